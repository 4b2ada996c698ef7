"""The built-in meter in a PostgreSQL database, shared by several machines."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from usage_sources.meter.appending import append_rows, our_clock, rows_of
from usage_sources.meter.postgres_reading import PostgresSnapshot
from usage_sources.meter.postgres_tables import make_tables, tables_are_there
from usage_sources.meter.postgres_writing import PostgresAppending
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable
from worker.metering import UsageEvent, Verdict

# All of these the URL's own parameters override.
_SESSION = {
    "application_name": "invoice-reconciler",
    "client_encoding": "utf8",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}

_EVENTS = """FROM meter_events JOIN meter_series ON meter_series.id = meter_events.series
WHERE subject = :'subject' AND metric = :'metric' AND at >= :start AND at < :end
AND stored_at <= :stored_until"""
_TEXTS = {  # what anybody can run with psql, each name set with -v
    Aggregation.COUNT: f"SELECT count(*) AS events {_EVENTS}",
    Aggregation.SUM: f"SELECT count(*) AS events, sum(quantity) AS value {_EVENTS}",
    Aggregation.MAX: f"SELECT count(*) AS events, max(quantity) AS value {_EVENTS}",
    Aggregation.LAST: f"""SELECT count(*) OVER () AS events, quantity AS value {_EVENTS}
ORDER BY at DESC, seq DESC LIMIT 1""",
}


def check_url(url: str) -> None:
    """Raise ValueError, which never repeats the URL, unless libpq can read it."""
    try:
        conninfo_to_dict(url)
    except psycopg.Error:  # its text may hold a part of the password
        raise ValueError(
            "url cannot be read; write it as postgresql://user@host/database"
        ) from None


class PostgresMeter:
    """An `EventStore` in a database.

    The first append makes the tables. Writers take turns, so that none commits events that were
    stored before a moment at which another one's events could be seen.
    """

    texts: Mapping[Aggregation, str] = MappingProxyType(_TEXTS)

    def __init__(
        self, url: str, timeout_seconds: float, *, clock: Callable[[], int] = our_clock
    ) -> None:
        """Touch nothing yet."""
        given = conninfo_to_dict(url)
        port = f":{given['port']}" if given.get("port") else ""
        self.place = (
            f"meter postgresql://{given.get('host') or ''}{port}/{given.get('dbname') or ''}"
        )
        self._clock = clock
        self._writer = _Session(given, timeout_seconds, self.place, writes=True)
        self._reader = _Session(given, timeout_seconds, self.place, writes=False)

    def append(self, events: Sequence[UsageEvent], *, all_or_nothing: bool) -> Sequence[Verdict]:
        """Store what is not there yet, as the port says."""
        rows = rows_of(events)
        if not rows:
            return []
        with self._writer.transaction() as connection:
            tx = PostgresAppending(connection, self._clock)
            return append_rows(tx, rows, all_or_nothing=all_or_nothing)

    @contextmanager
    def reading(self) -> Iterator[PostgresSnapshot]:
        """Give the stored events as they are now, whatever is appended meanwhile."""
        with self._reader.transaction() as connection:
            yield PostgresSnapshot(connection)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._writer.close()
        self._reader.close()


class _Session:
    """One connection, made at first use and again when it broke; threads take turns."""

    def __init__(
        self, given: Mapping[str, Any], timeout_seconds: float, place: str, *, writes: bool
    ) -> None:
        milliseconds = max(1, int(timeout_seconds * 1000))
        settings = f"-c statement_timeout={milliseconds} -c synchronous_commit=on"
        options = f"{settings} {given.get('options') or ''}".strip()
        wait = {"connect_timeout": str(max(2, int(timeout_seconds)))}  # libpq takes no less
        self._conninfo = make_conninfo(**{**_SESSION, **wait, **given, "options": options})
        password = str(given.get("password") or "")
        self._secrets = [text for text in {password, quote(password, safe="")} if text]
        self._place = place
        self._timeout_seconds = timeout_seconds
        self._writes = writes
        self._lock = threading.Lock()
        self._connection: Connection[Any] | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """Give the connection in a transaction, and sort every error by its remedy."""
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise SourceUnavailable(f"{self._place} is busy with other threads of this process")
        try:
            connection = self._opened()
            with _bounded(connection, self._timeout_seconds), connection.transaction():
                yield connection
        except psycopg.Error as error:
            raise self._sorted(error) from None
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give up the connection; the next use makes a new one."""
        with self._lock:
            self._let_go()

    def _opened(self) -> Connection[Any]:
        if self._connection is not None and not self._is_alive(self._connection):
            self._let_go()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _is_alive(self, connection: Connection[Any]) -> bool:
        with suppress(psycopg.Error), _bounded(connection, self._timeout_seconds):
            connection.execute("SELECT 1")
            connection.rollback()
        return not connection.closed

    def _connect(self) -> Connection[Any]:
        connection = psycopg.connect(self._conninfo)
        try:
            with _bounded(connection, self._timeout_seconds):
                if self._writes:
                    make_tables(connection, self._place)
                elif not tables_are_there(connection, self._place):
                    raise SourceUnavailable(
                        f"{self._place} has no tables of this version yet; the first event that is"
                        " stored makes them, or correct url"
                    )
        except BaseException:
            connection.close()
            raise
        if self._writes:
            connection.isolation_level = IsolationLevel.READ_COMMITTED
        else:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
        return connection

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _sorted(self, error: psycopg.Error) -> SourceUnavailable | SourceInvalid:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        for secret in self._secrets:
            text = re.sub(re.escape(secret), "***", text)
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            bound = f"could not be reached, or not within {self._timeout_seconds:g} s"
            return SourceUnavailable(f"{self._place} {bound}: {text}")
        return SourceInvalid(f"{self._place}: {text}")


@contextmanager
def _bounded(connection: Connection[Any], seconds: float) -> Iterator[None]:
    """Break the connection when the block takes longer, also where the server says nothing."""
    timer = threading.Timer(seconds, _break, [connection.fileno()])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _break(number: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as line:
        line.shutdown(socket.SHUT_RDWR)
