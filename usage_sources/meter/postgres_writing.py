"""What appending needs of the meter's PostgreSQL database."""

# ruff: noqa: D102 - the port states the contract

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from psycopg import Connection

from usage_sources.meter.appending import HOUR, HourSum, Name, Pair, Row, SeriesState

_STORED = """SELECT sources.name, events.id, series.subject, series.metric, at, quantity
FROM meter_events AS events
JOIN meter_sources AS sources ON sources.id = events.source
JOIN meter_series AS series ON series.id = events.series
WHERE events.digest = ANY(%s)"""

_ADD_TO_HOURS = """INSERT INTO meter_hours AS hours (series, hour, stored_at, events, total, most)
SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::numeric[],
    %s::numeric[])
ON CONFLICT (series, hour) DO UPDATE SET
    stored_at = excluded.stored_at, events = hours.events + excluded.events,
    total = hours.total + excluded.total, most = greatest(hours.most, excluded.most)"""

_ROLL_UP = """INSERT INTO meter_hours (series, hour, stored_at, events, total, most)
SELECT series, at / %s, max(stored_at), count(*), sum(quantity), max(quantity)
FROM meter_events WHERE series = ANY(%s) GROUP BY 1, 2"""


class PostgresAppending:
    """Statements of a transaction that holds the clock, which makes it alone in writing."""

    def __init__(self, connection: Connection[Any], clock: Callable[[], int]) -> None:
        """Wait for the clock; what others committed until then is seen."""
        self._connection = connection
        self._clock = clock
        connection.execute("SELECT 1 FROM meter_clock FOR UPDATE")

    def stored(self, rows: Sequence[Row]) -> Mapping[Name, Row]:
        digests = [_digest(row.name) for row in rows]
        return {
            (source, name): Row((source, name), (subject, metric), at, quantity)
            for source, name, subject, metric, at, quantity in self._connection.execute(
                _STORED, [digests]
            )
        }

    def tick(self) -> int:
        row = self._connection.execute(
            "UPDATE meter_clock SET stored_at = greatest(stored_at + 1, %s) RETURNING stored_at",
            [self._clock()],
        ).fetchone()
        return int(row[0]) if row else 0

    def series(self, pairs: Collection[Pair], stored_at: int) -> Mapping[Pair, SeriesState]:
        digests = {_digest(pair): pair for pair in pairs}
        look = "SELECT digest, id, events, rolled FROM meter_series WHERE digest = ANY(%s)"
        found = {
            digests[bytes(digest)]: SeriesState(number, events, rolled)
            for digest, number, events, rolled in self._connection.execute(look, [list(digests)])
        }
        missing = [pair for pair in pairs if pair not in found]
        if missing:
            with self._connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO meter_series (subject, metric, digest, since)"
                    " VALUES (%s, %s, %s, %s)",
                    [(*pair, _digest(pair), stored_at) for pair in missing],
                )
            found.update(self.series(missing, stored_at))
        return found

    def add_events(self, rows: Sequence[Row], series: Sequence[int], stored_at: int) -> None:
        sources = {name: self._source(name) for name in sorted({row.name[0] for row in rows})}
        into = "COPY meter_events (source, id, digest, series, at, quantity, stored_at) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(into) as copy:
            for row, number in zip(rows, series, strict=True):
                source, name = row.name
                named = (sources[source], name, _digest(row.name))
                copy.write_row((*named, number, row.at, row.quantity, stored_at))

    def add_to_counts(self, counts: Mapping[int, int]) -> None:
        self._connection.execute(
            """UPDATE meter_series SET events = events + more
            FROM unnest(%s::bigint[], %s::bigint[]) AS added(series, more) WHERE id = series""",
            [list(counts), list(counts.values())],
        )

    def add_to_hours(self, hours: Mapping[tuple[int, int], HourSum], stored_at: int) -> None:
        sums = hours.values()
        self._connection.execute(
            _ADD_TO_HOURS,
            [
                *([series for series, _ in hours], [hour for _, hour in hours]),
                *([stored_at] * len(hours), [each.events for each in sums]),
                *([each.total for each in sums], [each.most for each in sums]),
            ],
        )

    def roll_up(self, series: Collection[int]) -> None:
        numbers = list(series)
        self._connection.execute(_ROLL_UP, [HOUR, numbers])
        self._connection.execute(
            "UPDATE meter_series SET rolled = true WHERE id = ANY(%s)", [numbers]
        )

    def _source(self, name: str) -> int:
        row = (
            self._connection.execute(
                "SELECT id FROM meter_sources WHERE name = %s", [name]
            ).fetchone()
            or self._connection.execute(
                "INSERT INTO meter_sources (name) VALUES (%s) RETURNING id", [name]
            ).fetchone()
        )
        return int(row[0]) if row else 0


def _digest(names: tuple[str, str]) -> bytes:
    """Return what stands for two texts of any length, without their border being moved."""
    first, second = (text.encode() for text in names)
    return hashlib.sha256(b"%d:%b%b" % (len(first), first, second)).digest()
