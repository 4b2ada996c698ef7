"""One database: connected at first use, read-only, in bounded time, errors sorted by remedy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc

from usage_sources.reading import NaiveTimes, shown
from usage_sources.sql import mysql, sqlite
from usage_sources.sql.sqlite import Fault, SqliteSession
from worker.domain import UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable

_SESSION = "usage_source_session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the database said to one query; no value: it had no row for it."""

    query: UsageQuery
    value: Decimal | None
    events: int | None
    text: str  # a statement that an outsider can run, with the names of its parameters
    parameters: dict[str, Any]  # JSON-ready; what to bind to them
    notes: tuple[str, ...] = ()  # where the statement falls short of what was counted


class ServerSession:
    """One connection to a server, and the time that its count has left."""

    fault: Fault | None = None  # a server tells its faults itself

    def __init__(self) -> None:
        self._deadline = float("inf")

    def start(self, timeout_seconds: float) -> None:
        """Give the statements that follow so much time together."""
        self._deadline = time.monotonic() + timeout_seconds

    def left(self) -> float:
        """Return how many seconds there are left."""
        return self._deadline - time.monotonic()


class StoredValueInvalid(SourceInvalid):
    """A value in the database cannot be read; `fault` says which."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


def read_url(text: str) -> sa.URL:
    """Read a database URL; the errors never repeat it, because it may hold a password."""
    try:
        url = sa.make_url(text)
        url.get_dialect()
    except (sa_exc.ArgumentError, ValueError):
        raise ValueError(
            "url is not a SQLAlchemy URL of an installed dialect,"
            " as in sqlite:////var/lib/usage.db or postgresql+psycopg://user@host/db"
        ) from None
    if url.get_backend_name() == "sqlite":
        _check_sqlite(url)
    return url


def _check_sqlite(url: sa.URL) -> None:
    if url.get_driver_name() != "pysqlite":
        raise ValueError("url names another SQLite driver; write sqlite:////path/to/usage.db")
    path = url.database or ""
    if path in ("", ":memory:") or path.startswith("file:"):
        raise ValueError(
            "url must name a SQLite file by its path, as in sqlite:////var/lib/usage.db;"
            " it is opened read-only"
        )


class Database:
    """An engine that only reads, kept warm between calls."""

    def __init__(self, url: sa.URL, timeout_seconds: float, naive_times: NaiveTimes) -> None:
        self.dialect_name = url.get_backend_name()
        if self.dialect_name == "sqlite":  # an outsider finds the file by its whole path
            url = url.set(database=str(Path(url.database or "").absolute()))
        self.place = f"sql {url.set(query={}).render_as_string(hide_password=True)}"
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._naive_times = naive_times
        self._file: tuple[int, int] | None = None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction of its own, and sort every error by its remedy."""
        if self.dialect_name == "sqlite":
            self._look_at_file()
        try:
            with self._engine.connect() as connection:
                self._check_server(connection.dialect)
                connection.info[_SESSION].start(self._timeout_seconds)
                yield connection
        except (sa_exc.SQLAlchemyError, UnicodeError) as error:
            raise self._sorted(error) from None

    def rows(
        self, connection: sa.Connection, statement: sa.Executable, parameters: Mapping[str, Any]
    ) -> tuple[Sequence[str], Sequence[sa.Row[Any]]]:
        """Run one statement; return its column names and all its rows."""
        try:
            result = connection.execute(statement, parameters)
            if not result.returns_rows:
                raise SourceInvalid(f"{self.place}: the statement is no SELECT: {statement}")
            return tuple(result.keys()), result.all()
        except sa_exc.DBAPIError:
            session = connection.info[_SESSION]
            if session.fault is None:
                raise
            fault, session.fault = session.fault, None
            raise StoredValueInvalid(
                f"{self.place}: {fault.function}: {shown(fault.value)} {fault.reason}", fault
            ) from None

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        if "_engine" in self.__dict__:
            self._engine.dispose()
            del self.__dict__["_engine"]

    @cached_property
    def _engine(self) -> sa.Engine:
        options: dict[str, Any] = {"hide_parameters": True, "pool_timeout": self._timeout_seconds}
        url = self._url
        if self.dialect_name == "sqlite":
            path = Path(url.database or "").as_uri()
            url = url.set(database=path, query={"mode": "ro", "uri": "true"})
        else:
            options["pool_pre_ping"] = True
        if self.dialect_name in ("postgresql", *mysql.DIALECTS):
            options["isolation_level"] = "REPEATABLE READ"
        try:
            engine = sa.create_engine(url, connect_args=self._connect_args(), **options)
        except ModuleNotFoundError:
            driver = f"the driver {url.get_driver_name()} of url is not installed"
            raise SourceInvalid(
                f"{self.place}: {driver}; install the package that brings it with pip"
            ) from None
        if self.dialect_name == "sqlite":
            self._prepare_sqlite(engine)
        else:
            self._prepare(engine)
        return engine

    def _connect_args(self) -> dict[str, Any]:
        seconds, milliseconds = max(1, math.ceil(self._timeout_seconds)), self._milliseconds
        match self._url.get_driver_name():
            case "pysqlite":
                return {"timeout": self._timeout_seconds}
            case "psycopg" | "psycopg2":
                given = self._url.query.get("options", "")
                bounded = (
                    f"{given} -c statement_timeout={milliseconds}"
                    " -c default_transaction_read_only=on"
                )
                return {
                    "connect_timeout": seconds,
                    "tcp_user_timeout": milliseconds,
                    "options": bounded.strip(),
                }
            case "pymysql" | "mysqldb":
                return {"connect_timeout": seconds, "read_timeout": seconds}
            case _:
                return {}

    @property
    def _milliseconds(self) -> int:
        return max(1, math.ceil(self._timeout_seconds * 1000))

    def _prepare(self, engine: sa.Engine) -> None:
        """Bound all statements of a count together, not each by itself."""

        def connected(dbapi_connection: Any, record: Any) -> None:
            record.info[_SESSION] = ServerSession()
            if self.dialect_name in mysql.DIALECTS:
                with closing(dbapi_connection.cursor()) as cursor:
                    for statement in mysql.ON_CONNECT:
                        cursor.execute(statement)

        def about_to_run(
            connection: sa.Connection, cursor: Any, *_statement_and_parameters: Any
        ) -> None:
            left = connection.info[_SESSION].left()
            if left <= 0:
                raise sa_exc.TimeoutError("the statements before took all the time there was")
            if self.dialect_name == "postgresql":
                cursor.execute(f"SET LOCAL statement_timeout = {math.ceil(left * 1000)}")
            elif self.dialect_name in mysql.DIALECTS:
                cursor.execute(mysql.bound(self.dialect_name, left))

        event.listen(engine, "connect", connected)
        event.listen(engine, "before_cursor_execute", about_to_run)

    def _prepare_sqlite(self, engine: sa.Engine) -> None:
        def connected(dbapi_connection: Any, record: Any) -> None:
            record.info[_SESSION] = SqliteSession(dbapi_connection, self._naive_times)

        def begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", begun)

    def _check_server(self, dialect: sa.Dialect) -> None:
        """Refuse to take MariaDB for MySQL: their collations have different names."""
        if self.dialect_name == "mysql" and getattr(dialect, "is_mariadb", False):
            raise SourceInvalid(
                f"{self.place}: the server is MariaDB; begin url with"
                f" mariadb+{self._url.get_driver_name()}:// in place of mysql"
            )

    def _look_at_file(self) -> None:
        """Refuse a missing file; let go of one that was replaced while we had it open."""
        path = self._url.database or ""
        try:
            found = os.stat(path)
        except OSError as error:
            raise SourceUnavailable(
                f"{self.place}: {path} cannot be opened: {error.strerror}; check url"
            ) from None
        file = (found.st_dev, found.st_ino)
        if self._file not in (None, file):
            self.close()
        self._file = file

    def _sorted(self, error: Exception) -> SourceUnavailable | SourceInvalid:
        cause = error.orig if isinstance(error, sa_exc.DBAPIError) and error.orig else error
        text = " ".join(str(cause).split())[:300]
        if self._url.password:
            text = text.replace(str(self._url.password), "***")
        if self._is_passing(error, cause):
            bound = f"gave no answer within {self._timeout_seconds:g} s or could not be reached"
            return SourceUnavailable(f"{self.place}: {bound}: {text}")
        return SourceInvalid(f"{self.place}: {text}")

    def _is_passing(self, error: Exception, cause: BaseException) -> bool:
        if isinstance(error, sa_exc.TimeoutError):
            return True
        if not isinstance(error, sa_exc.DBAPIError):
            return False
        if self.dialect_name == "sqlite":
            return sqlite.is_passing(cause)
        if self.dialect_name in mysql.DIALECTS and isinstance(error, sa_exc.OperationalError):
            return error.connection_invalidated or mysql.is_passing(cause)
        return error.connection_invalidated or isinstance(
            error, (sa_exc.OperationalError, sa_exc.InterfaceError)
        )
