"""What the server says of a table: refused unless its rows are events and its columns exact."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from usage_sources.clickhouse.client import Asking
from usage_sources.clickhouse.statements import (
    SURE_GUARDS,
    Counting,
    Filter,
    Layout,
    describe,
    full_name,
    tables_of,
)
from usage_sources.clickhouse.types import (
    ColumnType,
    Key,
    Quantity,
    TimeFormat,
    clock_of,
    key_of,
    quantity_of,
)
from usage_sources.reading import nearest, shown
from worker.errors import SourceInvalid

_REPLACING = ("Replacing", "Collapsing", "VersionedCollapsing")
_MERGING = ("Summing", "Aggregating", "Coalescing", "Graphite")
_MERGE_TREE = re.compile(r"(?:Replicated|Shared)?(\w*?)MergeTree")
_VIEWS = ("View", "LiveView", "WindowView")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in the server the events are, as the settings say."""

    database: str
    table: str
    subject: str
    time: str
    metric: str | None
    quantity: str | None
    unique: str | None
    time_format: TimeFormat
    final: bool


@dataclass(frozen=True)
class Described:
    """A table as the server describes it at the moment of one count."""

    types: Mapping[str, ColumnType]
    layout: Layout
    counting: Counting = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counting", Counting(self.layout))


class Schema:
    """Looks at one table anew for each count, because it can be altered at any time."""

    def __init__(self, place: str, columns: Columns) -> None:
        self.place = f"{place} table {columns.database}.{columns.table}"
        self._columns = columns

    def described(self, asking: Asking) -> Described:
        """Look up the columns and the engine; raise unless they are what the settings need."""
        rows = asking.rows(describe(self._columns.database, self._columns.table))
        types = {name: ColumnType.of(kind) for what, name, kind in rows if what == "column"}
        engines = [kind for what, _, kind in rows if what == "engine"]
        if not types or not engines:
            raise SourceInvalid(self._no_table(asking))
        guards = tuple(name for what, name, _ in rows if what == "setting")
        if not set(SURE_GUARDS) <= set(guards):
            raise SourceInvalid(f"{self.place}: its server is older than ClickHouse 23.8")
        self._check_engine(engines[0])
        columns = self._columns
        clock = clock_of(columns.time, self._type(types, columns.time), columns.time_format)
        if isinstance(clock, str):
            raise SourceInvalid(f"{self._told(types, columns.time)} {clock}")
        layout = Layout(
            table=full_name(columns.database, columns.table),
            final=columns.final,
            columns=frozenset(types),
            subject=self._key(types, columns.subject),
            metric=self._key(types, columns.metric) if columns.metric else None,
            clock=clock,
            quantity=self._quantity(types, columns.quantity) if columns.quantity else None,
            unique=self._key(types, columns.unique) if columns.unique else None,
            guards=guards,
        )
        return Described(types, layout)

    def filter(self, table: Described, name: str, value: str) -> Filter:
        """Bind a filter to its column; a value that the column cannot hold is a mistake."""
        key = self._key(table.types, name)
        bound = key.bind(value)
        if bound is None:
            kind = table.types[name].text
            raise SourceInvalid(
                f"{self.place}: filter {name}: {shown(value)} is no value of a column of {kind}"
            )
        return Filter(key=key, value=bound)

    def _type(self, types: Mapping[str, ColumnType], name: str) -> ColumnType:
        if name not in types:
            raise SourceInvalid(f"{self.place} has no column {name}{_nearest(name, types)}")
        return types[name]

    def _key(self, types: Mapping[str, ColumnType], name: str) -> Key:
        key = key_of(name, self._type(types, name))
        if key is None:
            raise SourceInvalid(f"{self._told(types, name)} whose values are no names to compare")
        return key

    def _quantity(self, types: Mapping[str, ColumnType], name: str) -> Quantity:
        quantity = quantity_of(name, self._type(types, name))
        if quantity is None:
            raise SourceInvalid(
                f"{self._told(types, name)} which is no number; store it as Decimal, or give a"
                " view that casts it"
            )
        return quantity

    def _told(self, types: Mapping[str, ColumnType], name: str) -> str:
        return f"{self.place}: {name} is {types[name].text},"

    def _no_table(self, asking: Asking) -> str:
        names = [str(row[0]) for row in asking.rows(tables_of(self._columns.database))]
        near = _nearest(self._columns.table, names)
        return f"{self.place} is not there, or its user may not see it{near}"

    def _check_engine(self, engine: str) -> None:
        """Refuse rows that are merged whenever the server likes: no count of them repeats."""
        found = _MERGE_TREE.fullmatch(engine)
        family = found[1] if found else ""
        if family in _MERGING:
            raise SourceInvalid(
                f"{self.place}: the engine {engine} merges rows, so that none is an event;"
                " count in the table that it is filled from"
            )
        if family in _REPLACING and not self._columns.final:
            raise SourceInvalid(
                f"{self.place}: the engine {engine} drops rows at some later time,"
                " so that a count does not repeat; set final = true"
            )
        if engine == "MaterializedView":
            raise SourceInvalid(f"{self.place} is a materialized view; name the table it fills")
        if engine in _VIEWS and self._columns.final:
            raise SourceInvalid(
                f"{self.place} is a view, which ignores final; write FINAL inside of it"
            )


def _nearest(name: str, names: Collection[str]) -> str:
    near = nearest(name, names)
    return f"; nearest: {', '.join(near)}" if near else ""
