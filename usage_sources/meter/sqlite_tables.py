"""The meter's tables in SQLite, and how quantities are kept exact in them.

A quantity is a whole number of millionths, or else decimal text in `exact`. Sums of millionths
are kept in two parts, `high * 2^32 + low`, which cannot overflow.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from usage_sources.reading import exact_sum, plain
from worker.errors import SourceInvalid

_Combine = Callable[[Decimal, Decimal], Decimal]

DAY = 86_400_000_000  # microseconds

_MARK = 0x4D455452  # application_id: "METR"
_MILLION = 1_000_000
_LOW = (1 << 32) - 1
_INT64 = 1 << 63

_FIRST_TABLES = (
    "CREATE TABLE meter_clock (stored_at INTEGER NOT NULL) STRICT",
    "INSERT INTO meter_clock VALUES (0)",
    "CREATE TABLE meter_sources (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    # since: when its first event was stored; events: counted until it is rolled up
    """CREATE TABLE meter_series (
        id INTEGER PRIMARY KEY, subject TEXT NOT NULL, metric TEXT NOT NULL,
        since INTEGER NOT NULL, events INTEGER NOT NULL DEFAULT 0,
        rolled INTEGER NOT NULL DEFAULT 0, UNIQUE (subject, metric)
    ) STRICT""",
    "CREATE INDEX meter_series_of_metric ON meter_series (metric, since)",
    # the days since 1970 that have any event
    "CREATE TABLE meter_days (day INTEGER PRIMARY KEY) STRICT",
    # at and stored_at: microseconds since 1970; day: of `at`
    """CREATE TABLE meter_events (
        seq INTEGER PRIMARY KEY,
        source INTEGER NOT NULL REFERENCES meter_sources, id TEXT NOT NULL,
        series INTEGER NOT NULL REFERENCES meter_series, day INTEGER NOT NULL,
        at INTEGER NOT NULL, millionths INTEGER, exact TEXT, stored_at INTEGER NOT NULL,
        CHECK ((millionths IS NULL) != (exact IS NULL))
    ) STRICT""",
    "CREATE UNIQUE INDEX meter_events_by_name ON meter_events (source, id)",
    # By day first, so that new events, of whatever series, change the same few pages.
    """CREATE INDEX meter_events_to_count
        ON meter_events (day, series, at, stored_at, millionths, exact)""",
    # hour: since 1970; stored_at: of the newest event in it
    """CREATE TABLE meter_hours (
        series INTEGER NOT NULL REFERENCES meter_series, hour INTEGER NOT NULL,
        stored_at INTEGER NOT NULL, events INTEGER NOT NULL,
        high INTEGER, low INTEGER, most INTEGER, exact TEXT, most_exact TEXT,
        PRIMARY KEY (series, hour)
    ) STRICT, WITHOUT ROWID""",
    *(
        f"""CREATE TRIGGER meter_events_refuse_{change.lower()} BEFORE {change} ON meter_events
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"""
        for change in ("UPDATE", "DELETE")
    ),
)

_MIGRATIONS = (_FIRST_TABLES,)  # applied in order; user_version is how many


def make_tables(
    connection: sqlite3.Connection,
    place: str,
    write_ahead: Callable[[sqlite3.Connection], None],
) -> None:
    """Bring the file to this version's tables; safe to run from several processes at once."""
    _version_now(connection, place)  # refused before anything of a foreign file is changed
    write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, place)
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        if version < len(_MIGRATIONS):
            connection.execute(f"PRAGMA application_id = {_MARK}")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def check_tables(connection: sqlite3.Connection, place: str) -> None:
    """Raise SourceInvalid unless the file has this version's tables."""
    if (version := _version_now(connection, place)) < len(_MIGRATIONS):
        raise SourceInvalid(
            f"{place} has tables of version {version}; the next event that is stored brings them"
            f" to version {len(_MIGRATIONS)}"
        )


def _version_now(connection: sqlite3.Connection, place: str) -> int:
    """Look at one state of the file: another process may make the tables meanwhile."""
    connection.execute("BEGIN")
    try:
        return _version(connection, place)
    finally:
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection, place: str) -> int:
    """Return how many migrations are applied; refuse a file that is not ours or newer."""
    ((mark,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_schema")
    if mark != _MARK and (mark or version or tables):
        raise SourceInvalid(f"{place} is a database of another program; give the meter its own url")
    if version > len(_MIGRATIONS):
        raise SourceInvalid(
            f"{place} was written by a later version (tables of version {version});"
            " upgrade the program"
        )
    return int(version)


@lru_cache(maxsize=4096)
def written(quantity: Decimal) -> tuple[int | None, str | None]:
    """Return a quantity as `millionths` and `exact`, of which one is NULL."""
    over, under = quantity.as_integer_ratio()
    if _MILLION % under == 0:
        millionths = over * (_MILLION // under)
        if -_INT64 <= millionths < _INT64:
            return millionths, None
    return None, plain(quantity)


def read(millionths: int | None, exact: str | None) -> Decimal:
    """Return the quantity that was written so."""
    return Decimal(exact or 0) if millionths is None else _from_millionths(millionths)


def read_sum(high: int | None, low: int | None, exact: str | None) -> Decimal:
    """Return the sum that has these parts."""
    whole = _from_millionths(((high or 0) << 32) + (low or 0))
    return whole if exact is None else exact_sum(whole, Decimal(exact))


def written_sum(total: Decimal) -> tuple[int | None, int | None, str | None]:
    """Return a sum as its parts `high`, `low` and `exact`."""
    millionths, exact = written(total)
    if millionths is None:
        return None, None, exact
    return millionths >> 32, millionths & _LOW, None


def _from_millionths(count: int) -> Decimal:
    return Decimal(f"{count}E-6")


def add_functions(connection: sqlite3.Connection) -> None:
    """Add exact sums and maxima of decimal text: of a column, and of two values."""
    for name, combine in (("decimal_sum", exact_sum), ("decimal_max", max)):
        aggregate: Any = partial(_Aggregate, combine)
        connection.create_aggregate(name, 1, aggregate)
    for name, combine in (("decimal_add", exact_sum), ("decimal_more", max)):
        connection.create_function(name, 2, partial(_both, combine), deterministic=True)


class _Aggregate:
    """Makes one of decimal texts; NULLs are passed over."""

    def __init__(self, combine: _Combine) -> None:
        self._combine = combine
        self._found: Decimal | None = None

    def step(self, text: str | None) -> None:
        if text is not None:
            number = Decimal(text)
            self._found = number if self._found is None else self._combine(self._found, number)

    def finalize(self) -> str | None:
        return None if self._found is None else plain(self._found)


def _both(combine: _Combine, one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return other if one is None else one
    return plain(combine(Decimal(one), Decimal(other)))
