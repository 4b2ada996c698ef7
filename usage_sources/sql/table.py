"""Counting in one table of events: one grouped statement for each period and aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from usage_sources.reading import (
    exact_quantity,
    grouped,
    never_used,
    no_metrics_apart,
    shown,
)
from usage_sources.sql.database import Answer, Database, StoredValueInvalid
from usage_sources.sql.evidence import notes_on_table, told
from usage_sources.sql.keys import Key
from usage_sources.sql.names import MetricsReader
from usage_sources.sql.schema import checked, column_types
from usage_sources.sql.statements import (
    Columns,
    TableStatements,
    falls_between,
)
from worker.domain import Aggregation, UsageQuery, utc_text
from worker.errors import SourceInvalid

_OF_QUANTITY = (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST)
_MOST_AT_ONCE = 500  # metrics in one statement; databases bound its columns and parameters


class TableReader:
    """Answers queries from one table, whose columns are looked up once."""

    def __init__(
        self,
        database: Database,
        columns: Columns,
        known_metrics: Iterable[str] = (),
        stated: MetricsReader | None = None,
    ) -> None:
        self._database = database
        self._columns = columns
        self._found: TableStatements | None = None
        self._whole_units_only = False
        self._metrics = set(known_metrics)  # that exist: stated, or once seen
        self._stated = stated
        self.place = f"{database.place} table {columns.table}"

    def answers(self, connection: sa.Connection, queries: Sequence[UsageQuery]) -> list[Answer]:
        """Answer every query; a value is None where the table has no row in the period."""
        self._check_apart(queries)
        statements = self._statements(connection)
        self._check_times(connection, statements, queries)
        batches = grouped(queries, lambda query: (query.period, query.aggregation, query.filters))
        return [
            answer
            for batch in batches.values()
            for answer in self._batch(connection, statements, batch)
        ]

    def known(self, connection: sa.Connection, subjects: Iterable[str]) -> frozenset[str]:
        """Return those subjects that have any row, at any time; one cheap look for each."""
        statements = self._statements(connection)
        look = statements.known()

        def has_row(subject: str) -> bool:
            name = statements.subject.bind(subject)
            if name is None:
                return False
            rows = self._database.rows(connection, look, {"name": name})[1]
            return [str(row[0]) for row in rows] == [subject]

        return frozenset(filter(has_row, subjects))

    def check_metrics(self, connection: sa.Connection, answers: Iterable[Answer]) -> None:
        """Raise if any metric without events in its period is in no row at all, of anybody."""
        metric = self._statements(connection).metric
        if metric is None:
            return
        self._metrics |= {each.query.metric for each in answers if each.events}
        doubtful = sorted({each.query.metric for each in answers} - self._metrics)
        if self._stated is not None:
            self._metrics |= self._stated.known(connection, set(doubtful))
            doubtful = [name for name in doubtful if name not in self._metrics]
        self._metrics |= self._used(connection, metric, doubtful)
        if missing := [name for name in doubtful if name not in self._metrics]:
            column, names = self._columns.metric or "", self._names_of(connection, metric)
            raise SourceInvalid(never_used(self.place, column, missing, names))

    def _used(self, connection: sa.Connection, metric: Key, names: list[str]) -> set[str]:
        bound = [(name, value) for name in names if (value := metric.bind(name)) is not None]
        used = set()
        for first in range(0, len(bound), _MOST_AT_ONCE):
            some = bound[first : first + _MOST_AT_ONCE]
            values = {f"name_{n}": value for n, (_, value) in enumerate(some)}
            look = TableStatements.used(metric, len(some))
            (row,) = self._database.rows(connection, look, values)[1]
            used |= {name for (name, _), found in zip(some, row, strict=True) if found}
        return used

    def _names_of(self, connection: sa.Connection, metric: Key) -> list[str]:
        """Return metrics to choose from; a table too large to tell in time has none to offer."""
        try:
            rows = self._database.rows(connection, TableStatements.metrics(metric), {})[1]
        except sa_exc.SQLAlchemyError:
            return []
        return [str(row[0]) for row in rows]

    def check(self, connection: sa.Connection) -> None:
        """Raise unless the table has the columns, of the types that the settings need."""
        self._statements(connection)

    def _batch(
        self,
        connection: sa.Connection,
        statements: TableStatements,
        queries: list[UsageQuery],
    ) -> list[Answer]:
        """Answer queries that differ in nothing but their subjects and metrics."""
        period, filters = queries[0].period, queries[0].filters
        how = (queries[0].aggregation, filters)
        self._check_columns(queries[0].aggregation)
        try:
            values, statement = statements.filter_values(filters), statements.count(*how)
        except ValueError as error:
            told_of = "correct filters under components"
            raise SourceInvalid(f"{self.place}: {error}; {told_of}") from None
        names = {**_names(statements, queries), **values}
        bound = {**names, **statements.bounds(period)}
        rows = {_key_of(row): row for row in self._rows(connection, statements, statement, bound)}
        plain = statements.in_plain_sql()
        bound = {**names, **plain.bounds(period)}
        text, parameters = told(plain.count(*how), connection.dialect, bound)
        parameters |= {"start_at": utc_text(period.start), "end_at": utc_text(period.end)}
        none = Answer(query=queries[0], value=None, events=None, text=text, parameters=parameters)
        return [
            self._answer(replace(none, query=query), rows.get(self._key(query)))
            for query in queries
        ]

    def _key(self, query: UsageQuery) -> tuple[str, ...]:
        return (query.subject, query.metric) if self._columns.metric else (query.subject,)

    def _answer(self, none: Answer, row: sa.Row[Any] | None) -> Answer:
        """Read a row as the answer to the query that has none yet."""
        query = none.query
        if row is None:
            return none
        column = self._valued_column(query.aggregation)
        of = f"of subject {shown(query.subject)}"
        if row.present != row.events:
            raise SourceInvalid(
                f"{self.place}: {column} is NULL in {row.events - row.present} of {row.events}"
                f" rows {of} in {query.period}"
            )
        try:
            value = exact_quantity(row.value)
            least = exact_quantity(getattr(row, "least", row.value))
        except ValueError as error:
            raise SourceInvalid(
                f"{self.place}: {column} {of}: {shown(row.value)} {error}"
            ) from None
        if value != least:
            raise SourceInvalid(
                f"{self.place}: the last {column} {of} in {query.period} is ambiguous:"
                f" {least} and {value} have the same time"
            )
        unread = row.events - getattr(row, "readable", row.events)
        notes = notes_on_table(self._database.dialect_name, query.aggregation, unread)
        return replace(none, value=value, events=int(row.events), notes=notes)

    def _rows(
        self,
        connection: sa.Connection,
        statements: TableStatements,
        statement: sa.Select[Any],
        bound: dict[str, Any],
    ) -> Sequence[sa.Row[Any]]:
        try:
            return self._database.rows(connection, statement, bound)[1]
        except StoredValueInvalid as error:
            fault = error.fault
        is_time = fault.function == "iso_microseconds"
        column = self._columns.time if is_time else self._columns.quantity or ""
        where = {"subjects": bound["subjects"], "value": fault.value}
        where |= {"metrics": bound["metrics"]} if "metrics" in bound else {}
        holders = self._database.rows(connection, statements.rows_with(column), where)[1]
        subject = holders[0].subject if holders else ""
        of = f" of subject {shown(subject)}" if holders else ""
        row = self._row_of(connection, column, fault.value, subject)
        raise SourceInvalid(f"{self.place}{row}: {column}{of}: {shown(fault.value)} {fault.reason}")

    def _row_of(self, connection: sa.Connection, column: str, value: Any, subject: str) -> str:
        """Say which row holds a value, where the database numbers its rows; else nothing."""
        if self._database.dialect_name != "sqlite":
            return ""
        schema, _, name = self._columns.table.rpartition(".")
        table = sa.table(name, schema=schema or None)
        held = sa.column(column).op("IS")(sa.bindparam("value"))
        mine = sa.column(self._columns.subject) == sa.bindparam("subject")
        look: sa.Select[Any] = (
            sa.select(sa.literal_column("rowid")).select_from(table).where(held, mine).limit(1)
        )
        try:
            rows = self._database.rows(connection, look, {"value": value, "subject": subject})[1]
        except (sa_exc.SQLAlchemyError, SourceInvalid):  # a view, or a table without row numbers
            return ""
        return f" row {rows[0][0]}" if rows else ""

    def _check_apart(self, queries: Sequence[UsageQuery]) -> None:
        """Refuse to give charges that ask for different metrics one and the same number."""
        if self._columns.metric is not None:
            return
        for same in grouped(queries, lambda query: (query.aggregation, query.filters)).values():
            if fault := no_metrics_apart(self.place, same):
                raise SourceInvalid(f"{fault}; set metric_column")

    def _check_columns(self, aggregation: Aggregation) -> None:
        if aggregation in _OF_QUANTITY and self._columns.quantity is None:
            raise SourceInvalid(f"{self.place}: {aggregation} needs quantity_column")
        if aggregation is Aggregation.UNIQUE and self._columns.unique is None:
            raise SourceInvalid(f"{self.place}: {aggregation} needs unique_column")

    def _valued_column(self, aggregation: Aggregation) -> str | None:
        if aggregation in _OF_QUANTITY:
            return self._columns.quantity
        return self._columns.unique if aggregation is Aggregation.UNIQUE else "count"

    def _check_times(
        self,
        connection: sa.Connection,
        statements: TableStatements,
        queries: Sequence[UsageQuery],
    ) -> None:
        """Find times that no comparison would count; ISO text is read row by row instead."""
        if self._columns.time_format == "iso":
            return
        time = f"{self.place}: {self._columns.time}"
        fractions = any(falls_between(self._columns.time_format, each.period) for each in queries)
        if fractions and not self._whole_units_only and self._database.dialect_name != "sqlite":
            raise SourceInvalid(f"{time} may hold fractions, which this period's edges would split")
        look = statements.odd_time(fractions=fractions)
        bound = {**_names(statements, queries), **statements.edges_of_time()}
        for row in self._database.rows(connection, look, bound)[1]:
            where = self._row_of(connection, self._columns.time, row.value, row.subject)
            raise SourceInvalid(
                f"{self.place}{where}: {self._columns.time} of subject"
                f" {shown(str(row.subject))}: {shown(row.value)} is no time"
                f" between 1980 and 9999 in whole units of {self._columns.time_format}"
            )

    def _statements(self, connection: sa.Connection) -> TableStatements:
        if self._found is None:
            types = column_types(connection, self._database, self._columns)
            self._columns = checked(self._columns, types, self._database)
            self._whole_units_only = isinstance(types[self._columns.time], sa.Integer)
            self._found = TableStatements(self._columns, self._database.dialect_name, types)
        return self._found


def _names(statements: TableStatements, queries: Sequence[UsageQuery]) -> dict[str, list[Any]]:
    names = {"subjects": statements.subject.values(sorted({query.subject for query in queries}))}
    if statements.metric is not None:
        names["metrics"] = statements.metric.values(sorted({query.metric for query in queries}))
    return names


def _key_of(row: sa.Row[Any]) -> tuple[str, ...]:
    metric = getattr(row, "metric", None)
    return (str(row.subject),) if metric is None else (str(row.subject), str(metric))
