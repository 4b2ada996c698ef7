"""A real MariaDB for the tests: one server for the session, one new database for each test.

It runs the program `mariadbd` where one is installed, as Debian's mariadb-server-core has it, on
a Unix socket in a folder of its own. Its settings are the ones that mislead most: a time zone
that is not UTC, a collation that ignores case, and every sql_mode that changes how texts are read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

_PROGRAM = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_SETTINGS = (
    "--default-time-zone=+05:30",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_general_ci",
    "--sql-mode=ANSI_QUOTES,NO_BACKSLASH_ESCAPES,ONLY_FULL_GROUP_BY,PAD_CHAR_TO_FULL_LENGTH,"
    "STRICT_ALL_TABLES",
    "--transaction-isolation=READ-COMMITTED",
)


class MariaDB:
    """A running MariaDB."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        utc = {"init_command": "SET time_zone = '+00:00'"}
        self._engine = sa.create_engine(self.url(), connect_args=utc)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "") -> str:
        """Name a database, the way the configuration does."""
        return f"mariadb+pymysql://root@/{database}?unix_socket={self._folder}/socket"

    def run(
        self, statement: str, rows: list[dict[str, Any]] | None = None, *, database: str = ""
    ) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator and return its rows."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"USE {database or 'information_schema'}")
            result = connection.execute(sa.text(statement), rows)
            return [tuple(row) for row in result] if result.returns_rows else []

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database; it is gone afterwards."""
        name = f"test_{uuid4().hex}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.run(f"DROP DATABASE {name}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server while the block runs."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def stop(self) -> None:
        """Stop the server, if it runs; what it held is lost with its folder."""
        self._engine.dispose()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        (self._folder / "socket").unlink(missing_ok=True)

    def start(self) -> None:
        """Start the server and wait until it is up."""
        self._process = subprocess.Popen(
            [
                *(self._program, "--no-defaults", "--user=root", *_SETTINGS),
                *("--skip-grant-tables", "--skip-networking", "--innodb-flush-method=nosync"),
                *(f"--datadir={self._folder}/data", f"--socket={self._folder}/socket"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while not (self._folder / "socket").exists():  # made as the last thing
            assert self._process.poll() is None, "mariadbd did not start"
            assert time.monotonic() < until, "mariadbd is not up within 60 s"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A real MariaDB."""
    if _PROGRAM is None:
        pytest.skip("no MariaDB to test on: the program mariadbd is not installed")
    pytest.importorskip("pymysql", reason="no MariaDB to test on: pymysql is not installed")
    # Not pytest's own folder, whose path can be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="reconciler-mariadb-"))
    (folder / "data").mkdir()
    server = MariaDB(_PROGRAM, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
