"""The statements that count usage in one table, built by SQLAlchemy for each dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from usage_sources.reading import (
    EARLIEST,
    EPOCH_UNITS,
    LATEST,
    NAMES_LOOKED_AT,
    NaiveTimes,
    TimeFormat,
    microseconds,
    shown,
)
from usage_sources.sql import mysql
from usage_sources.sql.evidence import plain_microseconds
from usage_sources.sql.keys import Element, Key, Type, exact, filter_of, key_of
from worker.domain import Aggregation, Period

Filters = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in the database the events are, as the settings say."""

    table: str
    subject: str
    time: str
    metric: str | None
    quantity: str | None
    unique: str | None
    time_format: TimeFormat
    naive_times: NaiveTimes

    def named(self) -> dict[str, str]:
        """Return every column that is named, by its setting."""
        settings = {
            "subject_column": self.subject,
            "time_column": self.time,
            "metric_column": self.metric,
            "quantity_column": self.quantity,
            "unique_column": self.unique,
        }
        return {setting: name for setting, name in settings.items() if name is not None}


def time_bounds(time_format: TimeFormat, naive_times: NaiveTimes, period: Period) -> dict[str, Any]:
    """Return `start` and `end` as they are compared with a time in this format."""
    return {
        "start": time_bound(time_format, naive_times, period.start),
        "end": time_bound(time_format, naive_times, period.end),
    }


def time_bound(time_format: TimeFormat, naive_times: NaiveTimes, moment: datetime) -> Any:
    """Write one moment as it is compared; between two whole units the later one decides."""
    if time_format == "iso":
        return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if time_format == "native":
        return moment.replace(tzinfo=None) if naive_times == "utc" else moment
    return -(-microseconds(moment) // EPOCH_UNITS[time_format])


def time_type(time_format: TimeFormat, naive_times: NaiveTimes) -> Type:
    """Return the type that a bound is sent as."""
    if time_format == "iso":
        return sa.String()
    if time_format == "native":
        return sa.DateTime(timezone=naive_times == "reject")
    return sa.BigInteger()


def falls_between(time_format: TimeFormat, period: Period) -> bool:
    """Tell whether an edge of the period lies between two whole units of the column."""
    unit = EPOCH_UNITS.get(time_format, 1)
    return any(microseconds(edge) % unit for edge in (period.start, period.end))


class TableStatements:
    """Builds the statements for one table, from its columns' types in this database."""

    def __init__(
        self,
        columns: Columns,
        dialect_name: str,
        types: Mapping[str, Type],
        *,
        plain: bool = False,
    ) -> None:
        self._columns = columns
        self._iso = columns.time_format == "iso"
        self._sqlite = dialect_name == "sqlite"
        self._plain = plain  # without the functions that SqliteSession adds
        self._dialect_name = dialect_name
        self._types = types
        schema, _, name = columns.table.rpartition(".")
        self._table = sa.table(
            name,
            *(sa.column(each) for each in types),
            schema=schema or None,
        )
        self.subject = self._key(columns.subject)
        self.metric = self._key(columns.metric) if columns.metric else None

    def count(self, aggregation: Aggregation, filters: Filters = ()) -> sa.Select[Any]:
        """Select every group's value, its number of events and how many of them had a value."""
        counted = [*self._asked(), self._in_window(), *self._passing(filters)]
        if aggregation is Aggregation.LAST:
            return self._last(counted)
        value, present = self._value(aggregation)
        events = sa.func.count().label("events")
        return (
            sa.select(*self._group(), events, present, *self._readable(self._time()), value)
            .where(*counted)
            .group_by(*(key.exact for key in self._key_columns()))
        )

    def in_plain_sql(self) -> TableStatements:
        """Return statements that count the same where nobody added functions to the database."""
        return TableStatements(self._columns, self._dialect_name, self._types, plain=True)

    def bounds(self, period: Period) -> dict[str, Any]:
        """Return the `start` and `end` that `count` binds."""
        if self._iso and self._plain:
            return {"start": microseconds(period.start), "end": microseconds(period.end)}
        return time_bounds(self._columns.time_format, self._columns.naive_times, period)

    def filter_values(self, filters: Filters) -> dict[str, Any]:
        """Return what `count` binds for its filters; raise ValueError for one that cannot be."""
        bound = {}
        for number, (column, value) in enumerate(filters):
            key = self._filter(column)
            bound[f"filter_{number}"] = key.bind(value)
            if bound[f"filter_{number}"] is None:
                kind = self._types[column]
                raise ValueError(f"{column} is {kind}, which is never {shown(value)}")
        return bound

    def known(self) -> sa.Select[Any]:
        """Select the subject as it is stored, from any row of it, at any time."""
        return sa.select(self.subject.exact).where(self.subject.is_exactly("name")).limit(1)

    @staticmethod
    def used(metric: Key, number: int) -> sa.Select[Any]:
        """Select for each of so many metrics 1 or 0: whether any row has it, up to the first."""
        one: Element = sa.literal_column("1")
        none: Element = sa.literal_column("0")
        looks = [sa.exists(one).where(metric.is_exactly(f"name_{n}")) for n in range(number)]
        return sa.select(*(sa.case((look, one), else_=none) for look in looks))

    @staticmethod
    def metrics(metric: Key) -> sa.Select[Any]:
        """Select the first names of metrics that the table has."""
        named = sa.select(metric.exact).where(metric.column.is_not(None))
        return named.distinct().limit(NAMES_LOOKED_AT)

    def odd_time(self, *, fractions: bool) -> sa.Select[Any]:
        """Select a row of the subjects whose time is missing or cannot be meant.

        On SQLite text in a numeric column sorts above every number, so it is found here too.
        """
        time = self._time()
        odd = [
            time.is_(None),
            time < self._bound("earliest"),
            time >= self._bound("latest"),
        ]
        if fractions and self._sqlite:
            odd.append(sa.func.typeof(time) == "real")
        shown = time if self._sqlite else sa.cast(time, sa.String)
        found = sa.select(self.subject.exact.label("subject"), shown.label("value"))
        return found.where(*self._asked(), sa.or_(*odd)).limit(1)

    def edges_of_time(self) -> dict[str, Any]:
        """Return what `odd_time` binds."""
        settings = (self._columns.time_format, self._columns.naive_times)
        return {
            "earliest": time_bound(*settings, EARLIEST),
            "latest": time_bound(*settings, LATEST),
        }

    def rows_with(self, column: str) -> sa.Select[Any]:
        """Select the subject of a row that holds the bound value in this column."""
        return (
            sa.select(self.subject.exact.label("subject"))
            .where(*self._asked(), self._table.c[column].is_(sa.bindparam("value")))
            .limit(1)
        )

    def _last(self, counted: Sequence[Element]) -> sa.Select[Any]:
        """Rank the window's events from the latest; two different values there are ambiguous."""
        quantity = self._quantity()
        place = sa.func.rank().over(
            partition_by=[key.exact for key in self._key_columns()], order_by=self._instant().desc()
        )
        ranked = (
            sa.select(
                *self._keys(),
                self._time().label("time"),
                quantity.label("quantity"),
                place.label("place"),
            )
            .where(*counted)
            .subquery("ranked")
        )
        latest = sa.case((ranked.c.place == sa.literal_column("1"), ranked.c.quantity))
        keys = [ranked.c[label] for label in self._labels()]
        return sa.select(
            *keys,
            sa.func.count().label("events"),
            sa.func.count(ranked.c.quantity).label("present"),
            *self._readable(ranked.c.time),
            self._largest(latest).label("value"),
            self._smallest(latest).label("least"),
        ).group_by(*keys)

    def _value(self, aggregation: Aggregation) -> tuple[Element, Element]:
        if aggregation is Aggregation.COUNT:
            return sa.func.count().label("value"), sa.func.count().label("present")
        if aggregation is Aggregation.UNIQUE:
            unique = self._told_apart(self._columns.unique or "")
            distinct = sa.func.count(sa.distinct(unique))
            return distinct.label("value"), sa.func.count(unique).label("present")
        quantity = self._quantity()
        value = self._total(quantity) if aggregation is Aggregation.SUM else self._largest(quantity)
        return value.label("value"), sa.func.count(quantity).label("present")

    def _readable(self, time: Element) -> list[Element]:
        """Count the events whose time the plain statement can read, where it reads texts."""
        if self._plain or not self._iso:
            return []
        return [sa.func.count(plain_microseconds(time)).label("readable")]

    def _total(self, quantity: Element) -> Element:
        exactly = self._sqlite and not self._plain
        return sa.func.decimal_sum(quantity) if exactly else sa.func.sum(quantity)

    def _largest(self, quantity: Element) -> Element:
        exactly = self._sqlite and not self._plain
        return sa.func.decimal_max(quantity) if exactly else sa.func.max(quantity)

    def _smallest(self, quantity: Element) -> Element:
        exactly = self._sqlite and not self._plain
        return sa.func.decimal_min(quantity) if exactly else sa.func.min(quantity)

    def _quantity(self) -> Element:
        """Give the quantity as an exact number: elsewhere than on PostgreSQL it must be one.

        NUMERIC without digits is exact on PostgreSQL and rounds to whole numbers on others.
        """
        name = self._columns.quantity or ""
        column: Element = self._table.c[name]
        if self._sqlite and self._plain:
            return column + sa.literal_column("0")  # a text compares as a number, too
        if self._dialect_name != "postgresql":
            return column
        if isinstance(self._types[name], sa.Float):
            column = sa.cast(column, sa.Text)  # the shortest text; a direct cast keeps 15 digits
        return sa.cast(column, sa.Numeric)

    def _time(self) -> Element:
        return self._table.c[self._columns.time]

    def _instant(self) -> Element:
        """Give the time as something whose order is the order of the moments."""
        if not self._iso:
            return self._time()
        read = plain_microseconds if self._plain else sa.func.iso_microseconds
        return read(self._time())

    def _in_window(self) -> Element:
        start, end = self._bound("start"), self._bound("end")
        if not self._iso:
            return sa.and_(self._time() >= start, self._time() < end)
        if not self._plain:
            start, end = sa.func.iso_microseconds(start), sa.func.iso_microseconds(end)
        # Whole microseconds: up to end - 1 is before end. BETWEEN reads each text once, not twice.
        return self._instant().between(start, end - sa.literal_column("1", sa.BigInteger()))

    def _bound(self, name: str) -> Element:
        if self._iso and self._plain:
            return sa.bindparam(name, type_=sa.BigInteger())
        kind = time_type(self._columns.time_format, self._columns.naive_times)
        return sa.bindparam(name, type_=kind)

    def _asked(self) -> list[Element]:
        asked = [self.subject.is_one_of("subjects")]
        return asked if self.metric is None else [*asked, self.metric.is_one_of("metrics")]

    def _passing(self, filters: Filters) -> list[Element]:
        return [
            self._filter(column).is_exactly(f"filter_{number}")
            for number, (column, _) in enumerate(filters)
        ]

    def _filter(self, name: str) -> Key:
        if name not in self._types:
            raise ValueError(f"there is no column {shown(name)} to filter by")
        kind = self._types[name]
        key = filter_of(self._table.c[name], kind, self._dialect_name)
        if key is None:
            raise ValueError(f"{name} is {kind}, by which nothing is filtered")
        return key

    def _key_columns(self) -> list[Key]:
        return [self.subject] if self.metric is None else [self.subject, self.metric]

    def _labels(self) -> list[str]:
        return ["subject", "metric"][: len(self._key_columns())]

    def _keys(self) -> list[Element]:
        return [
            key.exact.label(label)
            for key, label in zip(self._key_columns(), self._labels(), strict=True)
        ]

    def _group(self) -> list[Element]:
        """Name a group; in MariaDB's mode ONLY_FULL_GROUP_BY only an aggregate can."""
        if self._dialect_name not in mysql.DIALECTS:
            return self._keys()
        return [
            sa.func.min(key.exact).label(label)
            for key, label in zip(self._key_columns(), self._labels(), strict=True)
        ]

    def _told_apart(self, name: str) -> Element:
        """Give a column whose different values all differ; as texts, these databases lose some."""
        column, kind = self._table.c[name], self._types[name]
        is_text = isinstance(kind, sa.String)
        if self._dialect_name in mysql.DIALECTS and not is_text:
            return column
        return exact(column, kind, self._dialect_name)

    def _key(self, name: str) -> Key:
        return key_of(self._table.c[name], self._types[name], self._dialect_name)
