"""Counting in one ClickHouse table: what it must be, what it says, and what of that is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from usage_sources.clickhouse.client import Asking
from usage_sources.clickhouse.schema import Columns, Described, Schema
from usage_sources.clickhouse.statements import Statement, parameter_text
from usage_sources.clickhouse.types import Quantity
from usage_sources.reading import exact_quantity, grouped, never_used, no_metrics_apart, shown
from worker.domain import Aggregation, Period, UsageQuery, utc_text
from worker.errors import SourceInvalid

_OF_QUANTITY = (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST)
_SUM_HOLDS = 2**255  # what a 256 bit sum holds before it starts again from below

Batch = tuple[Period, Aggregation, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the table said to one query; no value: it had no row for it."""

    query: UsageQuery
    value: Decimal | None
    events: int | None
    text: str
    parameters: dict[str, Any]
    notes: tuple[str, ...]


class TableReader:
    """Answers queries from one table."""

    def __init__(self, schema: Schema, columns: Columns, known_metrics: Iterable[str] = ()) -> None:
        self.place = schema.place
        self._schema = schema
        self._columns = columns
        self._metrics = set(known_metrics)  # that exist: stated, or once seen

    def answers(
        self, asking: Asking, table: Described, queries: Sequence[UsageQuery]
    ) -> list[Answer]:
        """Answer every query; a value is None where the table has no row in the period."""
        if not queries:
            return []
        self._check_apart(queries)
        self._check_times(asking, table, queries)
        batches = grouped(queries, lambda each: (each.period, each.aggregation, each.filters))
        return [
            answer
            for batch, some in batches.items()
            for answer in self._batch(asking, table, batch, some)
        ]

    def known(self, asking: Asking, table: Described, subjects: set[str]) -> frozenset[str]:
        """Return those subjects that have any row, at any time."""
        rows = asking.rows(table.counting.known(sorted(subjects))) if subjects else []
        return frozenset(str(row[0]) for row in rows) & frozenset(subjects)

    def check_metrics(self, asking: Asking, table: Described, answers: Iterable[Answer]) -> None:
        """Raise if any metric without events in its period is in no row at all, of anybody."""
        metric, asked = table.layout.metric, list(answers)
        if metric is None:
            return
        self._metrics |= {each.query.metric for each in asked if each.events}
        doubtful = sorted({each.query.metric for each in asked} - self._metrics)
        if not doubtful:
            return
        found = asking.rows(table.counting.used(metric, doubtful))
        self._metrics |= {str(row[0]) for row in found} & set(doubtful)
        if missing := [name for name in doubtful if name not in self._metrics]:
            names = [str(row[0]) for row in asking.rows(table.counting.metrics(metric))]
            column = self._columns.metric or ""
            raise SourceInvalid(never_used(self.place, column, missing, names))

    def _batch(
        self, asking: Asking, table: Described, batch: Batch, queries: list[UsageQuery]
    ) -> list[Answer]:
        period, aggregation, filters = batch
        self._check_columns(aggregation)
        bound = [self._schema.filter(table, name, value) for name, value in filters]
        try:
            statement = table.counting.count(aggregation, period, _names(queries), bound)
        except ValueError as error:
            raise SourceInvalid(f"{self.place}: {self._columns.time}: {error}") from None
        labels = table.counting.labels(aggregation)
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in asking.rows(statement):
            named = dict(zip(labels, row, strict=True))
            key = tuple(str(named[label]) for label in labels[: self._width()])
            if key in found:
                raise SourceInvalid(f"{self.place} gave two rows for {' and '.join(key)}")
            found[key] = named
        notes = self._notes(table, period)
        return [
            self._answer(table, query, found.get(self._key_of(query)), statement, notes)
            for query in queries
        ]

    def _answer(
        self,
        table: Described,
        query: UsageQuery,
        row: Mapping[str, Any] | None,
        statement: Statement,
        notes: tuple[str, ...],
    ) -> Answer:
        value, events = None, None
        if row is not None:
            events = int(row["events"])
            value = self._value(table, query, row, events)
        told = {
            **{name: parameter_text(bound) for name, bound in statement.parameters.items()},
            "start_at": utc_text(query.period.start),
            "end_at": utc_text(query.period.end),
        }
        return Answer(
            query=query,
            value=value,
            events=events,
            text=statement.text,
            parameters=told,
            notes=notes,
        )

    def _value(
        self, table: Described, query: UsageQuery, row: Mapping[str, Any], events: int
    ) -> Decimal:
        column = self._valued_column(query.aggregation)
        of = f"of subject {shown(query.subject)}"
        if (missing := events - int(row.get("present", events))) != 0:
            raise SourceInvalid(
                f"{self.place}: {column} is NULL in {missing} of {events} rows {of}"
                f" in {query.period}"
            )
        if unfit := int(row.get("unfit", 0)):
            raise SourceInvalid(
                f"{self.place}: {column} {of} in {query.period} is not a number, not finite, or"
                f" too large or too small to add exactly, in {unfit} of {events} rows"
            )
        try:
            numbers = {
                name: exact_quantity(row[name])
                for name in ("value", "least", "most")
                if name in row
            }
        except ValueError as error:
            raise SourceInvalid(f"{self.place}: {column} {of}: {error}") from None
        value = numbers.get("value", Decimal(events))
        if query.aggregation is Aggregation.SUM:
            self._check_sum(table.layout.quantity, numbers, events, f"{column} {of}")
        elif numbers.get("least", value) != value:
            raise SourceInvalid(
                f"{self.place}: the last {column} {of} in {query.period} is ambiguous:"
                f" {numbers['least']} and {value} have the same time"
            )
        return value

    def _check_sum(
        self, quantity: Quantity | None, numbers: Mapping[str, Decimal], events: int, what: str
    ) -> None:
        """Refuse a sum that may have overflowed, which ClickHouse does without a word."""
        largest = max(abs(int(numbers[name])) for name in ("least", "most")) + 1
        scale = quantity.scale if quantity else 0
        if largest * 10**scale * events >= _SUM_HOLDS:
            raise SourceInvalid(f"{self.place}: {what} is too large to be added exactly")

    def _check_apart(self, queries: Sequence[UsageQuery]) -> None:
        """Refuse to give charges that ask for different metrics one and the same number."""
        if self._columns.metric is not None:
            return
        for aggregation in {query.aggregation for query in queries}:
            same = [query for query in queries if query.aggregation is aggregation]
            if fault := no_metrics_apart(self.place, same):
                raise SourceInvalid(f"{fault}; set metric_column")

    def _check_columns(self, aggregation: Aggregation) -> None:
        if aggregation in _OF_QUANTITY and self._columns.quantity is None:
            raise SourceInvalid(f"{self.place}: {aggregation} needs quantity_column")
        if aggregation is Aggregation.UNIQUE and self._columns.unique is None:
            raise SourceInvalid(f"{self.place}: {aggregation} needs unique_column")

    def _check_times(self, asking: Asking, table: Described, queries: Sequence[UsageQuery]) -> None:
        for row in asking.rows(table.counting.odd_time(_names(queries))):
            raise SourceInvalid(
                f"{self.place}: {self._columns.time} of subject {shown(str(row[0]))}:"
                f" {shown(row[1])} is no time between 1980 and 9999 ({self._columns.time_format})"
            )

    def _notes(self, table: Described, period: Period) -> tuple[str, ...]:
        unit = table.layout.clock.unit
        if not table.layout.clock.splits(period):
            return ()
        return (
            f"{self._columns.time} keeps whole units of {unit} microseconds: at an edge of the"
            " period between two of them, the earlier one is before it.",
        )

    def _valued_column(self, aggregation: Aggregation) -> str | None:
        if aggregation in _OF_QUANTITY:
            return self._columns.quantity
        return self._columns.unique if aggregation is Aggregation.UNIQUE else "count"

    def _width(self) -> int:
        return 1 if self._columns.metric is None else 2

    def _key_of(self, query: UsageQuery) -> tuple[str, ...]:
        return (query.subject, query.metric)[: self._width()]


def _names(queries: Sequence[UsageQuery]) -> dict[str, list[str]]:
    return {
        "subjects": sorted({query.subject for query in queries}),
        "metrics": sorted({query.metric for query in queries}),
    }
