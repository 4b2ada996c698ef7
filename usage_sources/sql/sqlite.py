"""What one SQLite connection needs added: exact functions and a deadline."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from usage_sources.reading import (
    NaiveTimes,
    exact_sum,
    iso_microseconds,
    plain,
    stored_quantity,
)

_OPERATIONS_BETWEEN_LOOKS = 10_000  # of SQLite's machine: a few milliseconds

# SQLite's result codes that a later try can get past; all others are here to stay.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A stored value that one of the functions below could not read."""

    function: str
    value: Any
    reason: str


class SqliteSession:
    """One connection's functions, the first value they refused, and its deadline.

    ``iso_microseconds(text)`` reads ISO 8601 with any offset; ``decimal_sum(x)``,
    ``decimal_max(x)`` and ``decimal_min(x)`` aggregate without floats and answer text.
    SQLite reports only that a function failed, so the value is remembered here.
    """

    def __init__(self, connection: sqlite3.Connection, naive_times: NaiveTimes) -> None:
        self.fault: Fault | None = None
        self._naive_times = naive_times
        self._deadline = float("inf")
        connection.isolation_level = None  # BEGIN is ours, so that all reads see one state
        connection.create_function("iso_microseconds", 1, self._iso, deterministic=True)
        for name, combine in (
            ("decimal_sum", exact_sum),
            ("decimal_max", max),
            ("decimal_min", min),
        ):
            aggregate: Any = partial(_Aggregate, self, name, combine)
            connection.create_aggregate(name, 1, aggregate)
        connection.set_progress_handler(self._is_late, _OPERATIONS_BETWEEN_LOOKS)

    def start(self, timeout_seconds: float) -> None:
        """Give the statements that follow so much time together."""
        self.fault = None
        self._deadline = time.monotonic() + timeout_seconds

    def refuse(self, function: str, value: Any, error: ValueError) -> None:
        """Remember the first value that could not be read."""
        self.fault = self.fault or Fault(function, value, str(error))

    def _iso(self, text: Any) -> int:
        try:
            return iso_microseconds(text, self._naive_times)
        except ValueError as error:
            self.refuse("iso_microseconds", text, error)
            raise

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline


class _Aggregate:
    """Exact decimals made one; NULLs are passed over, as SQL's own aggregates do."""

    def __init__(
        self, session: SqliteSession, name: str, combine: Callable[[Decimal, Decimal], Decimal]
    ) -> None:
        self._session = session
        self._name = name
        self._combine = combine
        self._result: Decimal | None = None

    def step(self, value: Any) -> None:
        if value is None:
            return
        try:
            number = stored_quantity(value)
            self._result = number if self._result is None else self._combine(self._result, number)
        except ValueError as error:
            self._session.refuse(self._name, value, error)
            raise

    def finalize(self) -> str | None:
        return None if self._result is None else plain(self._result)


def is_passing(error: BaseException) -> bool:
    """Tell whether SQLite's error can be gone at a later try."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _PASSING
