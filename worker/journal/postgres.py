"""The journal in a PostgreSQL database, shared by several machines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from worker.errors import ConfigError, JournalUnavailable
from worker.journal.codec import stamp
from worker.journal.schema import MIGRATIONS, POSTGRES_ALONE, for_postgres, pending
from worker.journal.sql import SqlJournal
from worker.journal.store import Row, insertion
from worker.logs import masked

_WAIT_SECONDS = 5.0  # for a connection
_MOST_CONNECTIONS = 10

# All of these the URL's own parameters override.
_SESSION = {
    "application_name": "invoice-reconciler",
    "connect_timeout": "5",
    "client_encoding": "utf8",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
_SETTINGS = (
    "-c statement_timeout=30s -c lock_timeout=5s -c idle_in_transaction_session_timeout=60s"
    " -c synchronous_commit=on"
)


class PostgresJournal(SqlJournal):
    """A `Journal` in a database, shared by the processes of many machines."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables where there are none yet."""
        super().__init__(_Database(url))


class _Statements:
    """Statements between BEGIN and COMMIT."""

    for_update = " FOR UPDATE"
    folded = "lower"  # of A to Z only, as the columns' collation is C; ILIKE takes twice as long

    def __init__(self, connection: Connection[Row]) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(_query(sql), values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute(_query(sql), values)

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        if rows:
            with self._connection.cursor() as cursor:
                values = [list(row.values()) for row in rows]
                cursor.executemany(_query(insertion(table, rows[0])), values)

    def exclude(self, names: Iterable[str]) -> None:
        """Lock each name until the transaction ends, in one order for all, so none deadlock."""
        for number in sorted(set(map(_lock_number, names))):
            self.run("SELECT pg_advisory_xact_lock(?)", [number])


class _Database:
    """The database, through a pool of connections."""

    def __init__(self, url: str) -> None:
        given = _parsed(url)
        password = str(given.get("password") or "")
        self._secrets = [password, quote(password), quote(password, safe="")]
        self.place = _place(given)
        settings = f"{_SETTINGS} {given.get('options') or ''}".strip()
        conninfo = make_conninfo(**{**_SESSION, **given, "options": settings})
        with self._telling(), psycopg.connect(conninfo, row_factory=dict_row) as connection:
            _migrate(connection)
        self._pool = ConnectionPool(
            conninfo,
            connection_class=Connection[Row],
            kwargs={"row_factory": dict_row},
            min_size=0,
            max_size=_MOST_CONNECTIONS,
            num_workers=1,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=_WAIT_SECONDS,
            check=ConnectionPool.check_connection,
            open=True,
        )

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def transaction(self) -> Iterator[_Statements]:
        with self._begun(IsolationLevel.READ_COMMITTED, read_only=False) as statements:
            yield statements

    @contextmanager
    def snapshot(self) -> Iterator[_Statements]:
        with self._begun(IsolationLevel.REPEATABLE_READ, read_only=True) as statements:
            yield statements

    @contextmanager
    def _begun(self, isolation: IsolationLevel, *, read_only: bool) -> Iterator[_Statements]:
        with self._telling(), self._pool.connection() as connection:
            connection.isolation_level = isolation
            connection.read_only = read_only
            yield _Statements(connection)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            told = masked(told, self._secrets)
            raise JournalUnavailable(f"journal {self.place}: {told}") from error


def _parsed(url: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(url)
    except psycopg.Error:  # its text may hold a part of the password
        raise ConfigError(
            ["journal.url: cannot be read; write it as postgresql://user@host/database"]
        ) from None


def _place(given: dict[str, Any]) -> str:
    port = f":{given['port']}" if given.get("port") else ""
    return f"postgresql://{given.get('host') or ''}{port}/{given.get('dbname') or ''}"


def _query(sql: str) -> bytes:
    return sql.replace("%", "%%").replace("?", "%s").encode()


def _lock_number(name: str) -> int:
    """Map a name to one of the 2^64 advisory locks."""
    digest = hashlib.sha256(f"invoice-reconciler/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _migrate(connection: Connection[Row]) -> None:
    """Bring a journal to this version's tables; safe to run from several machines at once."""
    tx = _Statements(connection)
    (found,) = tx.rows("SHOW server_encoding")
    if found["server_encoding"] != "UTF8":
        raise psycopg.NotSupportedError(
            f"the database's encoding is {found['server_encoding']}; make one with UTF8"
        )
    tx.exclude(["migrations"])
    if tx.rows("SELECT to_regclass('journal_migrations') AS it")[0]["it"] is None:
        tx.run("CREATE TABLE journal_migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    try:
        missing = pending(row["name"] for row in tx.rows("SELECT name FROM journal_migrations"))
    except ValueError as error:
        raise psycopg.NotSupportedError(str(error)) from error
    for name in missing:
        for statement in (*map(for_postgres, MIGRATIONS[name]), *POSTGRES_ALONE.get(name, ())):
            tx.run(statement)
        tx.insert("journal_migrations", [{"name": name, "applied_at": stamp(datetime.now(UTC))}])
