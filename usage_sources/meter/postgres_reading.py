"""What counting needs of the meter's PostgreSQL database."""

# ruff: noqa: D102 - the port states the contract

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from decimal import Decimal
from typing import Any

from psycopg import Connection

from usage_sources.meter.counting import Part, Parts, Series, Span

_RAW = """SELECT series, count(*), sum(quantity), max(quantity) FROM meter_events
WHERE series = ANY(%s) AND at >= %s AND at < %s AND stored_at <= %s GROUP BY series"""

_HOURS = """SELECT series, sum(events)::bigint, sum(total), max(most) FROM meter_hours
WHERE series = ANY(%s) AND hour >= %s AND hour < %s AND stored_at <= %s GROUP BY series"""


class PostgresSnapshot:
    """The stored events as they were at the first statement of a REPEATABLE READ transaction."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        ((self.latest,),) = self._rows("SELECT stored_at FROM meter_clock", [])

    def series(
        self, subjects: Collection[str], metrics: Collection[str], until: int
    ) -> Sequence[Series]:
        rows = self._rows(
            """SELECT id, subject, metric, rolled FROM meter_series
            WHERE subject = ANY(%s) AND metric = ANY(%s) AND since <= %s""",
            [list(subjects), list(metrics), until],
        )
        return [Series(*row) for row in rows]

    def known_subjects(self, subjects: Collection[str], until: int) -> Set[str]:
        if not subjects:
            return set()
        look = "SELECT DISTINCT subject FROM meter_series WHERE subject = ANY(%s) AND since <= %s"
        return {subject for (subject,) in self._rows(look, [list(subjects), until])}

    def known_metrics(self, metrics: Collection[str], until: int) -> Set[str]:
        look = """SELECT metric FROM unnest(%s::text[]) AS asked(metric) WHERE EXISTS (
        SELECT 1 FROM meter_series WHERE meter_series.metric = asked.metric AND since <= %s)"""
        return {metric for (metric,) in self._rows(look, [list(metrics), until])}

    def some_metrics(self, limit: int) -> Sequence[str]:
        rows = self._rows("SELECT DISTINCT metric FROM meter_series LIMIT %s", [limit])
        return [metric for (metric,) in rows]

    def raw(self, series: Collection[int], span: Span, until: int) -> Parts:
        return self._parts(_RAW, [list(series), *span, until])

    def hours(self, series: Collection[int], hours: Span, until: int) -> Parts:
        return self._parts(_HOURS, [list(series), *hours, until])

    def late_hours(
        self, series: Collection[int], hours: Span, until: int
    ) -> Sequence[tuple[int, int]]:
        return self._rows(
            """SELECT series, hour FROM meter_hours WHERE series = ANY(%s)
            AND hour >= %s AND hour < %s AND stored_at > %s ORDER BY series, hour""",
            [list(series), *hours, until],
        )

    def last(self, series: int, span: Span, until: int) -> Decimal | None:
        rows = self._rows(
            """SELECT quantity FROM meter_events
            WHERE series = %s AND at >= %s AND at < %s AND stored_at <= %s
            ORDER BY at DESC, seq DESC LIMIT 1""",
            [series, *span, until],
        )
        return rows[0][0] if rows else None

    def _parts(self, sql: str, values: Sequence[object]) -> Parts:
        return {series: Part(*numbers) for series, *numbers in self._rows(sql, values)}

    def _rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        return self._connection.execute(sql.encode(), values).fetchall()
