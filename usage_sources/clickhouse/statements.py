"""The statements that count usage in one ClickHouse table: text and parameters, no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from usage_sources.clickhouse.types import Clock, Key, Name, Quantity, quoted
from usage_sources.reading import EARLIEST, LATEST, NAMES_LOOKED_AT
from worker.domain import Aggregation, Period

Parameter = str | int | Sequence[Name]

# What a server's, a profile's or a user's settings must not do to a count: leave out rows
# without an error, count deleted or replaced ones, or answer from yesterday. Each count's text
# carries those that the server knows.
GUARDS: dict[str, str | int] = {
    "apply_deleted_mask": 1,
    "decimal_check_overflow": 1,
    "distinct_overflow_mode": "throw",
    "distributed_group_by_no_merge": 0,
    "do_not_merge_across_partitions_select_final": 0,
    "fallback_to_stale_replicas_for_distributed_queries": 0,
    "final": 0,
    "group_by_overflow_mode": "throw",
    "ignore_cold_parts_seconds": 0,
    "limit": 0,
    "offset": 0,
    "optimize_move_to_prewhere_if_final": 0,
    "read_overflow_mode": "throw",
    "read_overflow_mode_leaf": "throw",
    "result_overflow_mode": "throw",
    "set_overflow_mode": "throw",
    "skip_unavailable_shards": 0,
    "sort_overflow_mode": "throw",
    "timeout_overflow_mode": "throw",
    "timeout_overflow_mode_leaf": "throw",
    "transform_null_in": 0,
    "use_query_cache": 0,
    "use_skip_indexes_if_final": 0,
}
# Those that every server has, from version 23.8 on: what a look at the table itself carries.
SURE_GUARDS = (
    "limit",
    "offset",
    "read_overflow_mode",
    "result_overflow_mode",
    "timeout_overflow_mode",
    "use_query_cache",
)

_ESCAPES = str.maketrans(
    {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A text with {name:Type} places, what the server binds to them, and settings for one run."""

    text: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    settings: Mapping[str, str | int] = field(default_factory=dict)


def parameter_text(value: Parameter) -> str:
    """Write a parameter as clickhouse-client takes it after --param_NAME=."""
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, int):
        return str(value)
    return "[" + ",".join(_element(each) for each in value) + "]"


def _element(value: Name) -> str:
    return f"'{value.translate(_ESCAPES)}'" if isinstance(value, str) else str(value)


def quote(text: str) -> str:
    """Write one of our own words as a string of SQL."""
    return f"'{text.translate(_ESCAPES)}'"


def describe(database: str, table: str) -> Statement:
    """Ask for a table's columns and engine, and which of the guards the server knows."""
    return Statement(
        text=(
            "SELECT 'column', name, type FROM system.columns"
            " WHERE database = {database:String} AND table = {table:String}"
            " UNION ALL SELECT 'engine', name, engine FROM system.tables"
            " WHERE database = {database:String} AND name = {table:String}"
            " UNION ALL SELECT 'setting', name, value FROM system.settings"
            " WHERE name IN {guards:Array(String)}"
        ),
        parameters={"database": database, "table": table, "guards": list(GUARDS)},
        settings={name: GUARDS[name] for name in SURE_GUARDS},
    )


def tables_of(database: str) -> Statement:
    """Ask for the names of a database's tables, to find one that may be meant."""
    return Statement(
        text=(
            "SELECT name FROM system.tables WHERE database = {database:String}"
            " ORDER BY name LIMIT {most:UInt64}"
        ),
        parameters={"database": database, "most": NAMES_LOOKED_AT},
        settings={name: GUARDS[name] for name in SURE_GUARDS},
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One table, as the settings name its columns and as the server describes them."""

    table: str  # quoted, with its database
    final: bool
    columns: frozenset[str]  # every name there is, which an alias must not be
    subject: Key
    metric: Key | None
    clock: Clock
    quantity: Quantity | None
    unique: Key | None
    guards: tuple[str, ...]  # those of GUARDS that the server knows


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A column that must have one value for an event to count."""

    key: Key
    value: Name


class Counting:
    """Builds the statements for one table.

    A column can have the name of an alias and would be taken for it, so that such an alias is
    left out; rows are read by their place, and `labels` says which place is what.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._keys = [layout.subject] if layout.metric is None else [layout.subject, layout.metric]
        self._labels = ["subject", "metric"][: len(self._keys)]

    def labels(self, aggregation: Aggregation) -> list[str]:
        """Name the places of a row of `count`."""
        return [*self._labels, *self._values(aggregation)]

    def count(
        self,
        aggregation: Aggregation,
        period: Period,
        names: Mapping[str, list[str]],
        filters: Sequence[Filter] = (),
    ) -> Statement:
        """Select every group's events, how many have a value that fits, and the value."""
        clock = self._layout.clock
        by_filter = {f"filter_{n}": each for n, each in enumerate(filters, start=1)}
        conditions = [
            *self._asked(),
            f"{clock.column} >= {{start:{clock.parameter_type}}}",
            f"{clock.column} < {{end:{clock.parameter_type}}}",
            *(each.key.is_one_of(name) for name, each in by_filter.items()),
        ]
        named = dict(zip(self._labels, self._grouped(), strict=True)) | self._values(aggregation)
        text = self._select(named, conditions) + f" GROUP BY {', '.join(self._grouped())}"
        return self._guarded(
            text,
            {
                **self._bound(names),
                "start": clock.bound(period.start),
                "end": clock.bound(period.end),
                **{name: [each.value] for name, each in by_filter.items()},
            },
        )

    def odd_time(self, names: Mapping[str, list[str]]) -> Statement:
        """Select a row of the subjects whose time is missing or cannot be meant.

        A DateTime that nobody gave is stored as 1970, and no period would hold it.
        """
        clock = self._layout.clock
        odd = [f"{clock.column} < {{earliest:{clock.parameter_type}}}"]
        edges = {"earliest": clock.bound(EARLIEST)}
        if clock.nullable:
            odd.append(f"{clock.column} IS NULL")
        if not clock.native:
            odd.append(f"{clock.column} >= {{latest:{clock.parameter_type}}}")
            edges["latest"] = clock.bound(LATEST)
        named = {"subject": self._layout.subject.text, "value": clock.shown()}
        conditions = [*self._asked(), f"({' OR '.join(odd)})"]
        return self._guarded(
            self._select(named, conditions) + " LIMIT 1", {**self._bound(names), **edges}
        )

    def known(self, subjects: list[str]) -> Statement:
        """Select those of some subjects that have any row, at any time."""
        return self._existing("subject", self._layout.subject, subjects)

    def used(self, metric: Key, metrics: list[str]) -> Statement:
        """Select those of some metrics that are in any row, of anybody."""
        return self._existing("metric", metric, metrics)

    def metrics(self, metric: Key) -> Statement:
        """Select the first names of metrics that the table has."""
        text = self._select({"metric": metric.text}, [], distinct=True)
        return self._guarded(f"{text} LIMIT {NAMES_LOOKED_AT}", {})

    def _existing(self, label: str, key: Key, names: list[str]) -> Statement:
        """Stop as soon as each of them was seen once."""
        values = key.values(names)
        text = self._select({label: key.text}, [key.is_one_of("names")], distinct=True)
        return self._guarded(f"{text} LIMIT {max(1, len(values))}", {"names": values})

    def _select(
        self, named: Mapping[str, str], conditions: Sequence[str], *, distinct: bool = False
    ) -> str:
        layout = self._layout
        columns = ", ".join(
            value if name in layout.columns else f"{value} AS {name}"
            for name, value in named.items()
        )
        select = "SELECT DISTINCT" if distinct else "SELECT"
        final = " FINAL" if layout.final else ""
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"{select} {columns} FROM {layout.table}{final}{where}"

    def _guarded(self, text: str, parameters: Mapping[str, Parameter]) -> Statement:
        guards = ", ".join(
            f"{name} = {value if isinstance(value, int) else quote(value)}"
            for name, value in GUARDS.items()
            if name in self._layout.guards
        )
        return Statement(
            text=f"{text} SETTINGS {guards}" if guards else text, parameters=parameters
        )

    def _values(self, aggregation: Aggregation) -> dict[str, str]:
        """Return what is selected of a group; numbers go as text, which no format rounds."""
        events = {"events": "count()"}
        if aggregation is Aggregation.COUNT:
            return events
        if aggregation is Aggregation.UNIQUE:
            column = self._layout.unique.text if self._layout.unique else "NULL"
            return {**events, "present": f"count({column})", "value": f"uniqExact({column})"}
        quantity = self._layout.quantity
        if quantity is None:
            return events
        column, exact = quantity.column, quantity.exact
        value = {**events, "present": f"count({column})"}
        if quantity.fits is not None:
            value["unfit"] = f"countIf(NOT {quantity.fits})"
        if aggregation is Aggregation.SUM:
            value["value"] = f"toString(sum({exact}))"
            value["least"] = f"toString(min({column}))"
            value["most"] = f"toString(max({column}))"
        elif aggregation is Aggregation.MAX:
            value["value"] = f"toString(max({column}))"
        else:  # of several at the last moment the largest and the smallest: the same, or ambiguous
            time = self._layout.clock.column
            value["value"] = f"toString(argMax({column}, ({time}, {exact})))"
            value["least"] = f"toString(argMax({column}, ({time}, -{exact})))"
        return value

    def _grouped(self) -> list[str]:
        return [key.text for key in self._keys]

    def _asked(self) -> list[str]:
        return [
            key.is_one_of(f"{label}s") for key, label in zip(self._keys, self._labels, strict=True)
        ]

    def _bound(self, names: Mapping[str, list[str]]) -> dict[str, Parameter]:
        return {
            f"{label}s": key.values(names[f"{label}s"])
            for key, label in zip(self._keys, self._labels, strict=True)
        }


def full_name(database: str, table: str) -> str:
    """Write a table's name with its database's, quoted."""
    return f"{quoted(database)}.{quoted(table)}"
