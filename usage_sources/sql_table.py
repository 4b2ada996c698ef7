"""Counting in one table of events: one grouped statement for each period and aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from usage_sources.reading import (
    exact_quantity,
    nearest,
    never_used,
    no_metrics_apart,
    shown,
)
from usage_sources.sql_database import Answer, Database, StoredValueInvalid, grouped
from usage_sources.sql_statements import (
    Columns,
    Key,
    TableStatements,
    falls_between,
    statement_text,
    time_bounds,
)
from worker.domain import Aggregation, Period, UsageQuery, utc_text
from worker.errors import SourceInvalid

_OF_QUANTITY = (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST)
_MOST_AT_ONCE = 500  # metrics in one statement; databases bound its columns and parameters


class TableReader:
    """Answers queries from one table, whose columns are looked up once."""

    def __init__(
        self, database: Database, columns: Columns, known_metrics: Iterable[str] = ()
    ) -> None:
        self._database = database
        self._columns = columns
        self._found: TableStatements | None = None
        self._whole_units_only = False
        self._metrics = set(known_metrics)  # that exist: stated, or once seen
        self.place = f"{database.place} table {columns.table}"

    def answers(self, connection: sa.Connection, queries: Sequence[UsageQuery]) -> list[Answer]:
        """Answer every query; a value is None where the table has no row in the period."""
        self._check_apart(queries)
        statements = self._statements(connection)
        self._check_times(connection, statements, queries)
        batches = grouped(queries, lambda query: (query.period, query.aggregation))
        return [
            answer
            for (period, aggregation), batch in batches.items()
            for answer in self._batch(connection, statements, period, aggregation, batch)
        ]

    def known(self, connection: sa.Connection, subjects: Iterable[str]) -> frozenset[str]:
        """Return those subjects that have any row, at any time; one cheap look for each."""
        statements = self._statements(connection)
        look = statements.known()

        def has_row(subject: str) -> bool:
            name = statements.subject.bind(subject)
            return name is not None and bool(
                self._database.rows(connection, look, {"name": name})[1]
            )

        return frozenset(filter(has_row, subjects))

    def check_metrics(self, connection: sa.Connection, answers: Iterable[Answer]) -> None:
        """Raise if any metric without events in its period is in no row at all, of anybody."""
        metric = self._statements(connection).metric
        if metric is None:
            return
        self._metrics |= {each.query.metric for each in answers if each.events}
        doubtful = sorted({each.query.metric for each in answers} - self._metrics)
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
        period: Period,
        aggregation: Aggregation,
        queries: list[UsageQuery],
    ) -> list[Answer]:
        self._check_columns(aggregation)
        statement = statements.count(aggregation)
        bound = {
            **_names(statements, queries),
            **time_bounds(self._columns.time_format, self._columns.naive_times, period),
        }
        rows = self._rows(connection, statements, statement, bound)
        found = {_key_of(row): row for row in rows}
        text = statement_text(statement, connection.dialect)
        told = {
            **{name: _json_ready(value) for name, value in bound.items()},
            "start_at": utc_text(period.start),
            "end_at": utc_text(period.end),
        }
        return [self._answer(query, found.get(self._key(query)), text, told) for query in queries]

    def _key(self, query: UsageQuery) -> tuple[str, ...]:
        return (query.subject, query.metric) if self._columns.metric else (query.subject,)

    def _answer(
        self, query: UsageQuery, row: sa.Row[Any] | None, text: str, told: dict[str, Any]
    ) -> Answer:
        if row is None:
            return Answer(query=query, value=None, events=None, text=text, parameters=told)
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
        return Answer(query=query, value=value, events=int(row.events), text=text, parameters=told)

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
        for same in grouped(queries, lambda query: query.aggregation).values():
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
            types = self._types(connection)
            self._check_types(types)
            self._found = TableStatements(self._columns, self._database.dialect_name, types)
        return self._found

    def _types(self, connection: sa.Connection) -> dict[str, sa.types.TypeEngine[Any]]:
        inspector = sa.inspect(connection)
        schema, _, table = self._columns.table.rpartition(".")
        try:
            columns = inspector.get_columns(table, schema=schema or None)
        except sa_exc.NoSuchTableError:
            tables = inspector.get_table_names(schema or None)
            views = inspector.get_view_names(schema or None)
            raise SourceInvalid(
                f"{self._database.place}: there is no table {self._columns.table}"
                f"{_nearest(table, [*tables, *views])}"
            ) from None
        types = {column["name"]: column["type"] for column in columns}
        for name in self._columns.named():
            if name not in types:
                raise SourceInvalid(
                    f"{self.place} has no column {name}{_nearest(name, list(types))}"
                )
        return types

    def _check_types(self, types: dict[str, sa.types.TypeEngine[Any]]) -> None:
        kind = types[self._columns.time]
        time = f"{self.place}: {self._columns.time} is {kind}"
        self._whole_units_only = isinstance(kind, sa.Integer)
        if self._columns.time_format.startswith("epoch_") and isinstance(kind, sa.String):
            raise SourceInvalid(f"{time}, which does not compare as numbers; use a numeric column")
        if self._columns.time_format == "native":
            self._check_native(kind, time)
        quantity = types.get(self._columns.quantity or "")
        inexact = isinstance(quantity, (sa.Float, sa.String))
        if inexact and self._database.dialect_name not in ("sqlite", "postgresql"):
            raise SourceInvalid(
                f"{self.place}: {self._columns.quantity} is {quantity}, which this database does"
                " not add exactly; store it as DECIMAL, or write a query that casts it"
            )

    def _check_native(self, kind: sa.types.TypeEngine[Any], time: str) -> None:
        if not isinstance(kind, sa.DateTime):
            raise SourceInvalid(f"{time}, not a timestamp; set another time_format")
        if not kind.timezone and self._columns.naive_times == "reject":
            raise SourceInvalid(f'{time} and has no zone; if it is UTC, set naive_times = "utc"')
        self._columns = replace(self._columns, naive_times="reject" if kind.timezone else "utc")


def _names(statements: TableStatements, queries: Sequence[UsageQuery]) -> dict[str, list[Any]]:
    names = {"subjects": statements.subject.values(sorted({query.subject for query in queries}))}
    if statements.metric is not None:
        names["metrics"] = statements.metric.values(sorted({query.metric for query in queries}))
    return names


def _key_of(row: sa.Row[Any]) -> tuple[str, ...]:
    metric = getattr(row, "metric", None)
    return (str(row.subject),) if metric is None else (str(row.subject), str(metric))


def _json_ready(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _nearest(name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return f"; nearest: {', '.join(near)}" if near else ""
