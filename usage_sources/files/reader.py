"""Counting in files: one grouped statement for each period and way of counting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from usage_sources.files.engine import Engine, Found, Session, is_cut_short
from usage_sources.files.schema import FilesSchema, quantity_fault, row_fault
from usage_sources.files.sql import FileStatements, Layout
from usage_sources.reading import (
    exact_quantity,
    exact_sum,
    grouped,
    never_used,
    no_metrics_apart,
    shown,
    stored_quantity,
)
from worker.domain import Aggregation, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable

OF_QUANTITY = (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the files say to one query; no value: they have no event for it."""

    query: UsageQuery
    value: Decimal | None
    events: int | None
    text: str  # the statement, as DuckDB runs it
    parameters: dict[str, Any]  # what was bound to its names
    is_listed: bool  # the statement gives a row for each quantity, and not one number


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one look at the files found."""

    answers: list[Answer]
    known: frozenset[str]  # those subjects asked for that have any row
    rows_of_nobody: int
    files: tuple[Found, ...]


class FilesReader:
    """Answers queries from files that all have the columns of the settings."""

    def __init__(self, engine: Engine, layout: Layout, known_metrics: Iterable[str]) -> None:
        self.place = engine.place
        self._engine = engine
        self._layout = layout
        self._known_metrics = frozenset(known_metrics)
        self._schema = FilesSchema(engine.place, layout)

    def read(self, session: Session, queries: Sequence[UsageQuery]) -> Reading:
        """Answer every query from files that did not change meanwhile."""
        self._check_asked(queries)
        files = self._engine.files(session)
        try:
            return self._read(session, files, queries)
        except SourceInvalid:
            self._check_whole(files)
            raise
        finally:
            self._check_unchanged(session, files)

    def check(self, session: Session, nobody: UsageQuery) -> None:
        """Raise unless every file has the columns, and a count of nobody's usage runs."""
        files = self._engine.files(session)
        try:
            statements = self._schema.statements(session, files, [])
            self._used(session, statements, [nobody])
            self._batch(session, statements, [nobody])
        except SourceInvalid:
            self._check_whole(files)
            raise

    def _check_unchanged(self, session: Session, files: tuple[Found, ...]) -> None:
        if self._engine.files(session) != files:
            raise SourceUnavailable(f"{self.place}: a file was changed while it was read")

    def _check_whole(self, files: tuple[Found, ...]) -> None:
        if self._layout.format == "parquet":
            for file in files:
                if file.identity and is_cut_short(file):
                    raise SourceUnavailable(
                        f"{self.place}: {file.path} has no end that a Parquet file has; it may"
                        " be half written"
                    )

    def _read(
        self, session: Session, files: tuple[Found, ...], queries: Sequence[UsageQuery]
    ) -> Reading:
        filters = sorted({name for query in queries for name, _ in query.filters})
        statements = self._schema.statements(session, files, filters)
        used = self._used(session, statements, queries)
        nobody = self._check_all(session, statements, queries, {metric for _, metric in used})
        batches = grouped(queries, lambda q: (q.period, q.aggregation, _columns(q)))
        return Reading(
            answers=[
                answer
                for batch in batches.values()
                for answer in self._batch(session, statements, batch)
            ],
            known=frozenset(subject for subject, _ in used),
            rows_of_nobody=nobody,
            files=files,
        )

    def _used(
        self, session: Session, statements: FileStatements, queries: Sequence[UsageQuery]
    ) -> set[tuple[str, str]]:
        """Return which of the subjects have used which metrics ever.

        Refuses rows of theirs that cannot be counted: those asked for, or for no metric at all.
        """
        asked = {(query.subject, self._metric_of(query)) for query in queries}
        bound = {
            "files": self._engine.paths,
            "subjects": sorted({subject for subject, _ in asked}),
            **statements.moments.plausible(),
        }
        used = set()
        for *names, odd, repeats in session.rows(statements.look(), bound):
            subject, metric = names[0], (names[1] or "") if self._layout.metric else ""
            used.add((subject, metric))
            if self._layout.metric and not metric:
                self._refuse(session, statements, self._layout.metric, subject, "metric")
            if repeats and (subject, metric) in asked:
                raise SourceInvalid(
                    f"{self.place}: an object of subject {shown(subject)} has a key twice"
                )
            if odd and (subject, metric) in asked:
                self._refuse(session, statements, self._layout.time, subject, "time")
        return used

    def _refuse(
        self,
        session: Session,
        statements: FileStatements,
        column: str,
        subject: str,
        kind: str,
    ) -> None:
        """Raise for a subject's row without metric, or with a time that cannot be read."""
        bound = {"files": self._engine.paths, "subjects": [subject]}
        condition = statements.no_metric()
        if kind == "time":
            condition = statements.odd_time()
            bound |= statements.moments.plausible()
        where = row_fault(session, statements, self._layout, (column, condition), bound)
        raise SourceInvalid(f"{self.place}: {where}, of subject {shown(subject)}")

    def _check_all(
        self,
        session: Session,
        statements: FileStatements,
        queries: Sequence[UsageQuery],
        used: set[str],
    ) -> int:
        """Return how many rows are nobody's; refuse metrics and columns that are in no row."""
        columns: list[str] = []
        if self._layout.format == "jsonl":
            filters = [name for query in queries for name, _ in query.filters]
            columns = list(dict.fromkeys([*self._layout.named(), *filters]))
        bound: dict[str, Any] = {"files": self._engine.paths}
        doubtful: set[str] = set()
        if self._layout.metric:
            doubtful = {query.metric for query in queries} - used - self._known_metrics
            bound["metrics"] = sorted(doubtful)
        ((rows, nobody, metrics, *present),) = session.rows(statements.whole(columns), bound)
        for name, number in zip(columns, present, strict=True):
            if rows and not number:
                raise SourceInvalid(f"{self.place}: no object has the key {name}")
        if missing := sorted(doubtful - set(metrics or ())):
            names = session.rows(statements.metrics(), {"files": self._engine.paths})
            has = [name for (name,) in names if name]
            raise SourceInvalid(never_used(self.place, self._layout.metric or "", missing, has))
        return int(nobody)

    def _batch(
        self, session: Session, statements: FileStatements, queries: list[UsageQuery]
    ) -> list[Answer]:
        filters = _columns(queries[0])
        names = zip(*(self._key(query) for query in queries), strict=True)
        parameters = statements.parameters(len(filters))
        bound = {
            "files": self._engine.paths,
            **{name: sorted(set(each)) for name, each in zip(parameters, names, strict=True)},
            **statements.moments.bounds(queries[0].period),
        }
        text = statements.count(queries[0].aggregation, filters)
        groups: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for row in session.rows(text, bound):
            groups.setdefault(row[: len(parameters)], []).append(row[len(parameters) :])
        answers = []
        for query in queries:
            rows = groups.get(self._key(query), [])
            value = self._value(session, statements, query, rows) if rows else None
            events = sum(row[0] for row in rows) if rows else None
            listed = not statements.adds_up(query.aggregation)
            answers.append(
                Answer(
                    query=query,
                    value=value,
                    events=events,
                    text=text,
                    parameters=bound,
                    is_listed=listed,
                )
            )
        return answers

    def _value(
        self,
        session: Session,
        statements: FileStatements,
        query: UsageQuery,
        rows: list[tuple[Any, ...]],
    ) -> Decimal:
        """Make one number of a group's rows."""
        if not statements.adds_up(query.aggregation):
            return self._combined(session, statements, query, rows)
        ((events, present, value),) = rows
        if present != events:
            raise SourceInvalid(
                f"{self._of(query)}: it is missing in {events - present} of {events} rows"
            )
        return exact_quantity(value)

    def _combined(
        self,
        session: Session,
        statements: FileStatements,
        query: UsageQuery,
        rows: list[tuple[Any, ...]],
    ) -> Decimal:
        """Make one number of quantities that DuckDB only listed, each with its events."""
        numbers: list[tuple[Decimal, Any]] = []
        for events, *is_last, text in rows:
            try:
                numbers.append((stored_quantity(text), is_last[0] if is_last else events))
            except ValueError as error:
                fault = quantity_fault(self._layout)
                bound = {"files": self._engine.paths, "subjects": [query.subject], "value": text}
                where = row_fault(session, statements, self._layout, fault, bound, str(error))
                raise SourceInvalid(f"{self._of(query)}: {where}") from None
        try:
            if query.aggregation is Aggregation.MAX:
                return max(number for number, _ in numbers)
            if query.aggregation is Aggregation.LAST:
                return _only({number for number, is_last in numbers if is_last})
            total = Decimal(0)
            for number, events in numbers:
                total = exact_sum(total, _times(number, events))
        except ValueError as error:
            raise SourceInvalid(f"{self._of(query)}: {error}") from None
        return total

    def _of(self, query: UsageQuery) -> str:
        column = self._layout.unique
        if query.aggregation in OF_QUANTITY:
            column = self._layout.quantity
        return f"{self.place}: {column} of subject {shown(query.subject)} in {query.period}"

    def _metric_of(self, query: UsageQuery) -> str:
        return query.metric if self._layout.metric else ""

    def _key(self, query: UsageQuery) -> tuple[str, ...]:
        metric = (query.metric,) if self._layout.metric else ()
        return (query.subject, *metric, *(value for _, value in sorted(query.filters)))

    def _check_asked(self, queries: Sequence[UsageQuery]) -> None:
        for query in queries:
            needs = query.aggregation in OF_QUANTITY and self._layout.quantity is None
            if needs:
                raise SourceInvalid(f"{self.place}: {query.aggregation} needs quantity_column")
            if query.aggregation is Aggregation.UNIQUE and self._layout.unique is None:
                raise SourceInvalid(f"{self.place}: {query.aggregation} needs unique_column")
        for batch in grouped(queries, lambda q: (q.aggregation, *sorted(q.filters))).values():
            if self._layout.metric is None and (fault := no_metrics_apart(self.place, batch)):
                raise SourceInvalid(f"{fault}; set metric_column")


def _columns(query: UsageQuery) -> tuple[str, ...]:
    return tuple(name for name, _ in sorted(query.filters))


def _times(number: Decimal, events: int) -> Decimal:
    """Multiply exactly: the digits by the events, the exponent as it is."""
    sign, digits, exponent = number.as_tuple()
    whole = str(int("".join(map(str, digits))) * events)
    return Decimal((sign, tuple(map(int, whole)), int(exponent)))


def _only(numbers: set[Decimal]) -> Decimal:
    if len(numbers) > 1:
        both = " and ".join(str(each) for each in sorted(numbers))
        raise ValueError(f"the last value is ambiguous: {both} have the same time")
    return next(iter(numbers))
