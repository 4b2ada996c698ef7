"""What counting needs of the meter's SQLite file."""

# ruff: noqa: D102, S608 - the port states the contract; only our own words enter a text

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence, Set
from decimal import Decimal
from typing import Any

from usage_sources.meter.counting import Part, Parts, Series, Span
from usage_sources.meter.sqlite_tables import DAY, read, read_sum

_RAW = """SELECT count(*),
    sum(millionths >> 32), sum(millionths & 4294967295),
    decimal_sum(exact) FILTER (WHERE exact IS NOT NULL),
    max(millionths), decimal_max(exact) FILTER (WHERE exact IS NOT NULL)
FROM meter_events INDEXED BY meter_events_to_count
WHERE day IN (SELECT day FROM meter_days WHERE day BETWEEN ? AND ?)
AND series = ? AND at >= ? AND at < ? AND stored_at <= ?"""

_HOURS = """SELECT series, sum(events), sum(high), sum(low),
    decimal_sum(exact) FILTER (WHERE exact IS NOT NULL),
    max(most), decimal_max(most_exact) FILTER (WHERE most_exact IS NOT NULL)
FROM meter_hours
WHERE series IN ({}) AND hour >= ? AND hour < ? AND stored_at <= ? GROUP BY series"""


class SqliteSnapshot:
    """The stored events as they were when the transaction began."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        ((self.latest,),) = connection.execute("SELECT stored_at FROM meter_clock").fetchall()

    def series(
        self, subjects: Collection[str], metrics: Collection[str], until: int
    ) -> Sequence[Series]:
        rows = self._rows(
            f"""SELECT id, subject, metric, rolled FROM meter_series
            WHERE subject IN ({_marks(subjects)}) AND metric IN ({_marks(metrics)})
            AND since <= ?""",
            [*subjects, *metrics, until],
        )
        return [
            Series(number, subject, metric, bool(rolled))
            for number, subject, metric, rolled in rows
        ]

    def known_subjects(self, subjects: Collection[str], until: int) -> Set[str]:
        look = "SELECT 1 FROM meter_series WHERE subject = ? AND since <= ? LIMIT 1"
        return {each for each in subjects if self._rows(look, [each, until])}

    def known_metrics(self, metrics: Collection[str], until: int) -> Set[str]:
        look = "SELECT 1 FROM meter_series WHERE metric = ? AND since <= ? LIMIT 1"
        return {each for each in metrics if self._rows(look, [each, until])}

    def some_metrics(self, limit: int) -> Sequence[str]:
        rows = self._rows("SELECT DISTINCT metric FROM meter_series LIMIT ?", [limit])
        return [metric for (metric,) in rows]

    def raw(self, series: Collection[int], span: Span, until: int) -> Parts:
        # One statement each: grouped by series, what an index by day gives would have to be sorted.
        days = span[0] // DAY, span[1] // DAY
        rows = (
            (number, *self._rows(_RAW, [*days, number, *span, until])[0])
            for number in sorted(series)
        )
        return _parts(row for row in rows if row[1])

    def hours(self, series: Collection[int], hours: Span, until: int) -> Parts:
        return _parts(self._rows(_HOURS.format(_marks(series)), [*series, *hours, until]))

    def late_hours(
        self, series: Collection[int], hours: Span, until: int
    ) -> Sequence[tuple[int, int]]:
        return self._rows(
            f"""SELECT series, hour FROM meter_hours WHERE series IN ({_marks(series)})
            AND hour >= ? AND hour < ? AND stored_at > ? ORDER BY series, hour""",
            [*series, *hours, until],
        )

    def last(self, series: int, span: Span, until: int) -> Decimal | None:
        days = self._rows(
            "SELECT day FROM meter_days WHERE day BETWEEN ? AND ? ORDER BY day DESC",
            [span[0] // DAY, span[1] // DAY],
        )
        for (day,) in days:
            rows = self._rows(
                """SELECT millionths, exact FROM meter_events
                WHERE day = ? AND series = ? AND at >= ? AND at < ? AND stored_at <= ?
                ORDER BY at DESC, seq DESC LIMIT 1""",
                [day, series, *span, until],
            )
            if rows:
                return read(*rows[0])
        return None

    def _rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()


def _parts(rows: Iterable[Any]) -> Parts:
    return {
        series: Part(events, read_sum(high, low, exact), _greater(most, most_exact))
        for series, events, high, low, exact, most, most_exact in rows
    }


def _greater(most: int | None, most_exact: str | None) -> Decimal | None:
    both = [] if most is None else [read(most, None)]
    return max([*both, *([] if most_exact is None else [Decimal(most_exact)])], default=None)


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
