"""What the journal's statements need of a database; SQLite and PostgreSQL each give it once.

Statements are written in the words both databases know, with `?` in the place of each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = dict[str, Any]


class Transaction(Protocol):
    """Statements that others see all at once, or never."""

    @property
    def for_update(self) -> str:
        """What a SELECT ends with to keep its rows for this transaction alone."""

    @property
    def folded(self) -> str:
        """The function that a text is put into, so that LIKE finds a pattern of small letters."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run one statement and return its rows."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run one statement that returns nothing."""

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Add rows; all have the columns of the first."""

    def exclude(self, names: Iterable[str]) -> None:
        """Wait for other transactions that named one of these, and make later ones wait."""


class Store(Protocol):
    """A database that is open; every error of its own is raised as JournalUnavailable."""

    @property
    def place(self) -> str:
        """Where it is, without credentials."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin to write; durable when the block ends, undone when an error leaves it."""

    def snapshot(self) -> AbstractContextManager[Transaction]:
        """Begin to read: everything is as it was at one moment, whoever writes meanwhile."""

    def close(self) -> None:
        """Give up its connections."""


def insertion(table: str, columns: Iterable[str]) -> str:
    """Return the statement that adds one row."""
    names = list(columns)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
