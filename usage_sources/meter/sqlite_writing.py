"""What appending needs of the meter's SQLite file."""

# ruff: noqa: D102, S608 - the port states the contract; only our own words enter a text

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby

from usage_sources.meter.appending import HOUR, HourSum, Name, Pair, Row, SeriesState
from usage_sources.meter.sqlite_tables import DAY, read, written, written_sum

_BLOCK = 1024  # numbers of series that are kept for one subject at a time
_MOST_KNOWN = 65_536
_LONGEST_KNOWN = 200  # characters of subject and metric; longer names would fill the memory

Known = dict[Pair, SeriesState]  # series as they are when a transaction begins

_STORED = """SELECT events.id, series.subject, series.metric, at, millionths, exact
FROM json_each(?) AS asked
CROSS JOIN meter_events AS events ON events.source = ? AND events.id = asked.value
CROSS JOIN meter_series AS series ON series.id = events.series"""

_SERIES = """SELECT asked.key, series.id, series.events, series.rolled
FROM json_each(?) AS asked
CROSS JOIN meter_series AS series
    ON series.subject = json_extract(asked.value, '$[0]')
    AND series.metric = json_extract(asked.value, '$[1]')"""

_NEWEST = """SELECT subject, max(series.id) FROM json_each(?) AS asked
CROSS JOIN meter_series AS series ON series.subject = asked.value GROUP BY subject"""

_ADD_TO_HOURS = """INSERT INTO meter_hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (series, hour) DO UPDATE SET
    stored_at = excluded.stored_at, events = events + excluded.events,
    high = CASE WHEN excluded.high IS NULL THEN high ELSE ifnull(high, 0) + excluded.high END,
    low = CASE WHEN excluded.low IS NULL THEN low ELSE ifnull(low, 0) + excluded.low END,
    most = ifnull(max(most, excluded.most), ifnull(most, excluded.most)),
    exact = decimal_add(exact, excluded.exact),
    most_exact = decimal_more(most_exact, excluded.most_exact)"""

_ROLL_UP = f"""INSERT INTO meter_hours
SELECT series, at / {HOUR}, max(stored_at), count(*),
    sum(millionths >> 32), sum(millionths & 4294967295), max(millionths),
    decimal_sum(exact) FILTER (WHERE exact IS NOT NULL),
    decimal_max(exact) FILTER (WHERE exact IS NOT NULL)
FROM meter_events INDEXED BY meter_events_to_count
WHERE day IN (SELECT day FROM meter_days) AND series = ? GROUP BY at / {HOUR}"""


class SqliteAppending:
    """Statements between BEGIN IMMEDIATE and COMMIT, which make it alone in writing.

    `known` are some of the series as they are; more are put in as they are looked up.
    """

    def __init__(
        self, connection: sqlite3.Connection, clock: Callable[[], int], known: Known
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._known = known

    def stored(self, rows: Sequence[Row]) -> Mapping[Name, Row]:
        found: dict[Name, Row] = {}
        for source, some in groupby(sorted(row.name for row in rows), key=lambda name: name[0]):
            number = self._source(source)
            if number is None:
                continue
            ids = json.dumps([each for _, each in some])
            for name, subject, metric, at, millionths, exact in self._connection.execute(
                _STORED, (ids, number)
            ):
                quantity = read(millionths, exact)
                found[source, name] = Row((source, name), (subject, metric), at, quantity)
        return found

    def tick(self) -> int:
        ((stored_at,),) = self._connection.execute(
            "UPDATE meter_clock SET stored_at = max(stored_at + 1, ?) RETURNING stored_at",
            (self._clock(),),
        ).fetchall()
        return int(stored_at)

    def series(self, pairs: Collection[Pair], stored_at: int) -> Mapping[Pair, SeriesState]:
        known = self._known.get
        found = {pair: state for pair in pairs if (state := known(pair)) is not None}
        if missing := [pair for pair in pairs if pair not in found]:
            found |= self._series(missing)
            found |= self._make_series([pair for pair in missing if pair not in found], stored_at)
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            short = (pair for pair in missing if sum(map(len, pair)) <= _LONGEST_KNOWN)
            self._known.update((pair, found[pair]) for pair in short)
        return found

    def _series(self, asked: Sequence[Pair]) -> dict[Pair, SeriesState]:
        rows = self._connection.execute(_SERIES, (json.dumps(asked),))
        return {
            asked[place]: SeriesState(number, events, bool(rolled))
            for place, number, events, rolled in rows
        }

    def add_events(self, rows: Sequence[Row], series: Sequence[int], stored_at: int) -> None:
        sources = {name: self._made_source(name) for name in {row.name[0] for row in rows}}
        values = [
            (sources[source], name, number, at // DAY, at, *written(quantity), stored_at)
            for ((source, name), _, at, quantity), number in zip(rows, series, strict=True)
        ]
        self._connection.executemany(
            "INSERT OR IGNORE INTO meter_days VALUES (?)", {(value[3],) for value in values}
        )
        self._connection.executemany(
            "INSERT INTO meter_events (source, id, series, day, at, millionths, exact, stored_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )

    def add_to_counts(self, counts: Mapping[int, int]) -> None:
        self._connection.executemany(
            "UPDATE meter_series SET events = events + ? WHERE id = ?",
            [(more, number) for number, more in counts.items()],
        )

    def add_to_hours(self, hours: Mapping[tuple[int, int], HourSum], stored_at: int) -> None:
        self._connection.executemany(
            _ADD_TO_HOURS, [(*key, stored_at, *_parts(each)) for key, each in hours.items()]
        )

    def roll_up(self, series: Collection[int]) -> None:
        for number in series:
            self._connection.execute(_ROLL_UP, (number,))
            self._connection.execute("UPDATE meter_series SET rolled = 1 WHERE id = ?", (number,))

    def _make_series(self, pairs: Sequence[Pair], stored_at: int) -> dict[Pair, SeriesState]:
        """Number each series beside those of its subject, so that their events lie together."""
        subjects = json.dumps(sorted({subject for subject, _ in pairs}))
        newest: dict[str, int] = dict(self._connection.execute(_NEWEST, (subjects,)).fetchall())
        look = "SELECT coalesce(max(id), 0) FROM meter_series"
        ((highest,),) = self._connection.execute(look).fetchall()
        made: dict[Pair, SeriesState] = {}
        for subject, metric in pairs:
            number = newest.get(subject, -1) + 1
            if number % _BLOCK == 0:
                number = highest = (highest // _BLOCK + 1) * _BLOCK
            newest[subject] = number
            made[subject, metric] = SeriesState(number, 0, rolled=False)
        self._connection.executemany(
            "INSERT INTO meter_series (id, subject, metric, since) VALUES (?, ?, ?, ?)",
            [(state.id, *pair, stored_at) for pair, state in made.items()],
        )
        return made

    def _source(self, name: str) -> int | None:
        row = self._connection.execute("SELECT id FROM meter_sources WHERE name = ?", (name,))
        found = row.fetchone()
        return None if found is None else int(found[0])

    def _made_source(self, name: str) -> int:
        found = self._source(name)
        if found is not None:
            return found
        made = self._connection.execute("INSERT INTO meter_sources (name) VALUES (?)", (name,))
        return made.lastrowid or 0


def _parts(hour: HourSum) -> tuple[object, ...]:
    high, low, exact = written_sum(hour.total)
    most, most_exact = written(hour.most)
    return hour.events, high, low, most, exact, most_exact
