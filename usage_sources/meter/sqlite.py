"""The built-in meter in one SQLite file: WAL, synchronous=FULL, every write BEGIN IMMEDIATE."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from usage_sources.meter.appending import append_rows, our_clock, rows_of
from usage_sources.meter.sqlite_reading import SqliteSnapshot
from usage_sources.meter.sqlite_tables import add_functions, check_tables, make_tables
from usage_sources.meter.sqlite_writing import Known, SqliteAppending
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable
from worker.metering import UsageEvent, Verdict

_OLDEST_SQLITE = (3, 37)  # STRICT tables
_OPERATIONS_BETWEEN_LOOKS = 10_000  # of SQLite's machine: a few milliseconds
_PAUSE_SECONDS = 0.01
_WRITING = (
    "PRAGMA synchronous = FULL",
    # Pages are written back seldom: events of many series change the same ones again and again.
    "PRAGMA wal_autocheckpoint = 65536",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -131072",
)
_READING = ("PRAGMA query_only = ON", "PRAGMA cache_size = -32768")

# SQLite's result codes that a later try can get past; all others are a person's.
_PASSING = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_FULL),
}


_MENDS = {
    sqlite3.SQLITE_NOTADB: "; correct url, which names another file than the meter's",
    sqlite3.SQLITE_CORRUPT: "; put a copy of it back",
    sqlite3.SQLITE_BUSY: "; another program is writing to it: end that one, or try again later",
    sqlite3.SQLITE_READONLY: "; let this user write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "; let this user read and write the file and its folder",
    sqlite3.SQLITE_FULL: "; make room on its disk",
}

_EVENTS = """FROM meter_events JOIN meter_series ON meter_series.id = meter_events.series
WHERE subject = :subject AND metric = :metric AND at >= :start AND at < :end
AND stored_at <= :stored_until AND day IN (
SELECT day FROM meter_days WHERE day BETWEEN :start / 86400000000 AND :end / 86400000000)"""
_TEXTS = {  # what anybody can run with sqlite3; others: the quantities that are no millionths
    Aggregation.COUNT: f"SELECT count(*) AS events {_EVENTS}",
    Aggregation.SUM: f"""SELECT count(*) AS events, sum(millionths / 1000000) AS wholes,
sum(millionths % 1000000) AS millionths, group_concat(exact, ' + ') AS others {_EVENTS}""",
    Aggregation.MAX: f"""SELECT count(*) AS events, max(millionths) AS millionths,
group_concat(exact, ' or ') AS others {_EVENTS}""",
    Aggregation.LAST: f"""SELECT count(*) OVER () AS events, millionths, exact {_EVENTS}
ORDER BY at DESC, seq DESC LIMIT 1""",
}


class SqliteMeter:
    """An `EventStore` in a file that the processes of one machine share.

    The first append makes the file.
    """

    texts: Mapping[Aggregation, str] = MappingProxyType(_TEXTS)

    def __init__(
        self,
        path: Path,
        timeout_seconds: float,
        *,
        clock: Callable[[], int] = our_clock,
        max_pages: int | None = None,
    ) -> None:
        """Touch nothing yet; `max_pages` bounds the file's size (4 KiB each)."""
        path = path.absolute()
        self.place = f"meter sqlite:///{path}"
        self._clock = clock
        self._known: Known = {}
        self._known_as_of: object = None
        limit = () if max_pages is None else (f"PRAGMA max_page_count = {max_pages:d}",)
        self._writer = _File(path, timeout_seconds, (*_WRITING, *limit), writes=True)
        self._reader = _File(path, timeout_seconds, _READING, writes=False)

    def append(self, events: Sequence[UsageEvent], *, all_or_nothing: bool) -> Sequence[Verdict]:
        """Store what is not there yet, as the port says."""
        rows = rows_of(events)
        if not rows:
            return []
        with self._writer.transaction() as connection:
            tx = SqliteAppending(connection, self._clock, self._known_series(connection))
            return append_rows(tx, rows, all_or_nothing=all_or_nothing)

    def _known_series(self, connection: sqlite3.Connection) -> Known:
        """Return the series of the transaction before; none, unless this one follows upon it.

        Between them there was no commit by another connection, which data_version would tell, and
        none of ours but that transaction's own.
        """
        ((version,),) = connection.execute("PRAGMA data_version").fetchall()
        if self._known_as_of != (connection, version, self._writer.commits):
            self._known = {}
        self._known_as_of = (connection, version, self._writer.commits + 1)
        return self._known

    @contextmanager
    def reading(self) -> Iterator[SqliteSnapshot]:
        """Give the stored events as they are now, whatever is appended meanwhile."""
        with self._reader.transaction() as connection:
            yield SqliteSnapshot(connection)

    def close(self) -> None:
        """Give up the file; the next use opens it again."""
        self._writer.close()
        self._reader.close()


class _File:
    """One connection to the file, opened at first use; let go when the file was replaced.

    Threads of a process take turns: they would otherwise starve one another on SQLite's lock.
    """

    def __init__(
        self, path: Path, timeout_seconds: float, settings: Sequence[str], *, writes: bool
    ) -> None:
        self._place = f"meter sqlite:///{path}"
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._settings = settings
        self._writes = writes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._deadline = 0.0
        self.commits = 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection between BEGIN and COMMIT, and sort every error by its remedy."""
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise SourceUnavailable(f"{self._place} is busy with other threads of this process")
        try:
            self._deadline = time.monotonic() + self._timeout_seconds
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
            try:
                yield connection
                connection.execute("COMMIT")
                self.commits += 1
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._sorted(error) from error
        except OSError as error:
            raise SourceUnavailable(f"{self._place} cannot be opened: {error.strerror}") from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give up the connection; the next use opens it again."""
        with self._lock:
            self._let_go()

    def _opened(self) -> sqlite3.Connection:
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        elif not self._path.exists():
            raise SourceUnavailable(
                f"{self._place} is not there; the first event makes it, or correct url"
            )
        if self._connection is None or _identity(self._path) != self._file:
            self._let_go()
            self._connection = self._connect()
            self._file = _identity(self._path)
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise SourceInvalid(
                f"SQLite {sqlite3.sqlite_version} is too old; build Python with 3.37 or later"
            )
        mode = "rwc" if self._writes else "rw"
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            timeout=self._timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.set_progress_handler(self._is_late, _OPERATIONS_BETWEEN_LOOKS)
            add_functions(connection)
            if self._writes:
                make_tables(connection, self._place, self._write_ahead)
            else:
                check_tables(connection, self._place)
            for setting in self._settings:
                connection.execute(setting)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Turn the write-ahead log on; SQLite itself does not wait for others that do the same."""
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or self._is_late():
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _sorted(self, error: sqlite3.Error) -> SourceUnavailable | SourceInvalid:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        told = f"{self._place}: {error}{_MENDS.get(code & 0xFF, '')}"
        if code & 0xFF not in _PASSING:
            return SourceInvalid(told)
        if code == sqlite3.SQLITE_INTERRUPT:
            return SourceUnavailable(
                f"{self._place} gave no answer within {self._timeout_seconds:g} s"
            )
        return SourceUnavailable(told)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
