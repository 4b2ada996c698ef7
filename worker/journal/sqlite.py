"""The journal in one SQLite file: WAL, synchronous=FULL, every write BEGIN IMMEDIATE."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from worker.errors import JournalUnavailable
from worker.journal.schema import MIGRATIONS, SQLITE_ALONE, pending
from worker.journal.sql import SqlJournal
from worker.journal.store import Row, insertion

_BUSY_TIMEOUT_SECONDS = 5.0
_PAUSE_SECONDS = 0.01

_OLDEST_SQLITE = (3, 37)  # STRICT tables


class SqliteJournal(SqlJournal):
    """A `Journal` in a file, shared by the processes of one machine."""

    def __init__(self, path: Path, *, max_pages: int | None = None) -> None:
        """Open or create the file; `max_pages` bounds its size (4 KiB each)."""
        self.path = path
        super().__init__(_File(path, max_pages))


class _Statements:
    """Statements between BEGIN and COMMIT."""

    for_update = ""  # a writer has the whole file
    folded = ""  # its LIKE takes A to Z of either case by itself

    def __init__(self, db: Database) -> None:
        self._db = db

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        return list(self._db.query(sql, list(values)))

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._db.execute(sql, list(values))

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        if rows:
            sql = insertion(table, rows[0])
            self._db.conn.executemany(sql, [list(row.values()) for row in rows])

    def exclude(self, names: Iterable[str]) -> None:
        """Do nothing: a writer has the whole file."""


class _File:
    """The file, through one connection.

    Threads of a process take turns on it: they would otherwise starve one another on SQLite's
    write lock.
    """

    def __init__(self, path: Path, max_pages: int | None) -> None:
        self.place = str(path)
        self._path = path
        self._lock = threading.RLock()
        with self._telling():
            self._db = _opened(path, max_pages)
            self._file = _identity(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[_Statements]:
        with self._between("BEGIN IMMEDIATE") as statements:
            yield statements

    @contextmanager
    def snapshot(self) -> Iterator[_Statements]:
        with self._between("BEGIN") as statements:
            yield statements

    @contextmanager
    def _between(self, begin: str) -> Iterator[_Statements]:
        with self._turn(), self._telling():
            if _identity(self._path) != self._file:
                raise OSError("its file was moved or replaced while it was open; start anew")
            self._db.execute(begin)
            try:
                yield _Statements(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the other threads no longer than for other processes."""
        if not self._lock.acquire(timeout=_BUSY_TIMEOUT_SECONDS):
            raise JournalUnavailable(f"journal {self.place}: other threads wait for it too long")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JournalUnavailable(f"journal {self.place}: {error}") from error


def _opened(path: Path, max_pages: int | None) -> Database:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise sqlite3.NotSupportedError(
            f"SQLite {sqlite3.sqlite_version} is too old; Python must be built with 3.37 or later"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    db = Database(connection, execute_plugins=False)
    try:
        _write_ahead(db)
        db.execute("PRAGMA synchronous = FULL")
        if max_pages is not None:
            db.execute(f"PRAGMA max_page_count = {max_pages:d}")
        _migrate(db)
    except BaseException:
        connection.close()
        raise
    return db


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _write_ahead(db: Database) -> None:
    """Turn the write-ahead log on; SQLite itself does not wait for others that do the same."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _migrate(db: Database) -> None:
    """Bring a journal to this version's tables; safe to run from several processes at once."""
    migrations = Migrations("journal")
    for name, statements in MIGRATIONS.items():
        migrations(name=name)(_step((*statements, *SQLITE_ALONE.get(name, ()))))
    db.execute("BEGIN IMMEDIATE")
    try:
        pending(migration.name for migration in migrations.applied(db))
        migrations.apply(db)
        db.execute("COMMIT")
    except ValueError as error:
        db.rollback()
        raise sqlite3.DatabaseError(str(error)) from error
    except BaseException:
        db.rollback()
        raise


def _step(statements: Sequence[str]) -> Any:
    def apply(db: Database) -> None:
        for statement in statements:
            db.execute(statement)

    return apply
