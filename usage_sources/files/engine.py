"""One DuckDB inside the process: reads files, never the network unasked, in bounded time."""

from __future__ import annotations

import importlib
import math
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from usage_sources.files.sql import literal
from worker.errors import SourceInvalid, SourceUnavailable

_CONFIG = {  # nothing is fetched, kept or spilt that the settings did not ask for
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "enable_external_file_cache": "false",
    "temp_directory": "",
}
_BETWEEN_INTERRUPTS = 0.05  # one that comes between two statements is lost


def duckdb() -> Any:
    """Return the optional library, or say how to install it."""
    try:
        return importlib.import_module("duckdb")
    except ImportError:
        raise ValueError(
            "DuckDB is not installed; run pip install 'invoice-reconciler[files]'"
        ) from None


def is_url(path: str) -> bool:
    """Tell a URL from a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Who we are to an object store; empty: nobody in particular."""

    key_id: str | None
    secret: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    region: str | None
    endpoint: str | None

    def statement(self) -> str | None:
        """Write the statement that makes it known to this connection only; None: nothing to say."""
        given = {
            "KEY_ID": self.key_id,
            "SECRET": self.secret,
            "SESSION_TOKEN": self.session_token,
            "REGION": self.region,
            "ENDPOINT": self.endpoint,
            # A store of one's own, as MinIO, seldom has a host name for each bucket.
            "URL_STYLE": "path" if self.endpoint else None,
        }
        said = [f"{name} {literal(value)}" for name, value in given.items() if value]
        return f"CREATE OR REPLACE TEMPORARY SECRET (TYPE s3, {', '.join(said)})" if said else None

    def hidden(self, text: str) -> str:
        """Take the secrets out of a text."""
        for value in (self.secret, self.session_token):
            text = text.replace(value, "***") if value else text
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file that the settings name, as it was found."""

    path: str
    size: int
    modified_us: int  # microseconds since 1970
    identity: tuple[int, ...] = ()  # what else tells that it is the same, unchanged file


class Session:
    """What one count asks, all of it before one deadline."""

    def __init__(self, engine: Engine, cursor: Any, timeout_seconds: float) -> None:
        self._engine = engine
        self._cursor = cursor
        self._deadline = time.monotonic() + timeout_seconds

    def rows(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement; return all its rows."""
        done = threading.Event()
        watcher = threading.Thread(target=self._interrupt, args=(done,), daemon=True)
        watcher.start()
        try:
            if time.monotonic() >= self._deadline:
                raise self._engine.late()
            found: list[tuple[Any, ...]] = self._cursor.execute(statement, parameters).fetchall()
        except duckdb().Error as error:
            raise self._engine.sorted(error) from None
        finally:
            done.set()
            watcher.join()
        return found

    def _interrupt(self, done: threading.Event) -> None:
        wait = max(0.0, self._deadline - time.monotonic())
        while not done.wait(wait):
            self._cursor.interrupt()
            wait = _BETWEEN_INTERRUPTS


class Engine:
    """DuckDB, started at first use and kept warm."""

    def __init__(
        self,
        paths: Sequence[str],
        timeout_seconds: float,
        memory_limit: str | None,
        access: S3Access,
    ) -> None:
        self.paths = [path if is_url(path) else os.path.abspath(path) for path in paths]
        self.place = f"files {', '.join(self.paths)}"
        self._timeout_seconds = timeout_seconds
        self._memory_limit = memory_limit
        self._access = access

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session for one count."""
        cursor = self._connection.cursor()
        try:
            yield Session(self, cursor, self._timeout_seconds)
        finally:
            cursor.close()

    def files(self, session: Session) -> tuple[Found, ...]:
        """Find every file that the settings name; there must be one, and none twice."""
        found: dict[str, Found] = {}
        for pattern in self.paths:
            each_found = (
                _remote(session, pattern) if is_url(pattern) else self._local(session, pattern)
            )
            if not each_found:
                raise SourceUnavailable(
                    f"{self.place}: {pattern} names no file; check the setting path"
                )
            for file in each_found:
                if twin := found.get(file.path) or _same(file, found.values()):
                    raise SourceInvalid(
                        f"{self.place}: {file.path} is the same file as {twin.path} and would be"
                        " counted twice; correct path"
                    )
                found[file.path] = file
        return tuple(sorted(found.values(), key=lambda file: file.path))

    def late(self) -> SourceUnavailable:
        """Say that the time is over."""
        return SourceUnavailable(
            f"{self.place} gave no answer within {self._timeout_seconds:g} s; timeout_seconds"
            " is the limit"
        )

    def sorted(self, error: Exception) -> SourceUnavailable | SourceInvalid:
        """Sort one of DuckDB's errors by its remedy."""
        library = duckdb()
        text = shown_error(self._access.hidden(str(error)))
        if isinstance(error, library.InterruptException):
            return self.late()
        if isinstance(error, library.OutOfMemoryException):
            return SourceInvalid(f"{self.place}: {text}; memory_limit is the setting")
        if isinstance(error, library.IOException):
            return SourceUnavailable(f"{self.place}: {text}")
        return SourceInvalid(f"{self.place}: {text}")

    def close(self) -> None:
        """Stop the engine; the next use starts a new one."""
        if "_connection" in self.__dict__:
            self._connection.close()
            del self.__dict__["_connection"]

    @cached_property
    def _connection(self) -> Any:
        library = duckdb()
        limit = {"memory_limit": self._memory_limit} if self._memory_limit else {}
        try:
            connection = library.connect(":memory:", config={**_CONFIG, **limit})
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
            if any(is_url(path) for path in self.paths):
                self._reach_out(connection)
            connection.execute("SET lock_configuration = true")
        except library.Error as error:
            raise self.sorted(error) from None
        return connection

    def _reach_out(self, connection: Any) -> None:
        """Load what reads URLs; it is never fetched by us."""
        library = duckdb()
        try:
            connection.execute("LOAD httpfs")
        except library.Error:
            raise SourceInvalid(
                f"{self.place}: DuckDB reads URLs with its extension httpfs, which is not"
                " installed; run INSTALL httpfs once in duckdb as the same user, or set a path"
            ) from None
        # A request cannot be interrupted. One that failed is tried again by who asked.
        connection.execute(f"SET GLOBAL http_timeout = {math.ceil(self._timeout_seconds)}")
        connection.execute("SET GLOBAL http_retries = 0")
        if statement := self._access.statement():
            connection.execute(statement)

    def _local(self, session: Session, pattern: str) -> list[Found]:
        names = session.rows(
            "SELECT DISTINCT file FROM glob($pattern) ORDER BY file", {"pattern": pattern}
        )
        return [self._look_at(name) for (name,) in names]

    def _look_at(self, path: str) -> Found:
        try:
            file = os.stat(path)
        except OSError as error:
            raise SourceUnavailable(f"{self.place}: {path}: {error.strerror}") from None
        if not stat.S_ISREG(file.st_mode):
            raise SourceInvalid(f"{self.place}: {path} is not a regular file; check path")
        identity = (file.st_dev, file.st_ino, file.st_mtime_ns)
        micro = file.st_mtime_ns // 1000
        return Found(path=path, size=file.st_size, modified_us=micro, identity=identity)


def _remote(session: Session, pattern: str) -> list[Found]:
    """Ask the store for names, sizes and times, not for contents."""
    look = "SELECT filename, size, epoch_us(last_modified) FROM read_blob($pattern)"
    return [
        Found(path=path, size=size, modified_us=modified_us)
        for path, size, modified_us in session.rows(look, {"pattern": pattern})
    ]


def _same(file: Found, others: Sequence[Found] | Any) -> Found | None:
    if not file.identity:
        return None
    return next((each for each in others if each.identity[:2] == file.identity[:2]), None)


def shown_error(text: str) -> str:
    """Cut DuckDB's report to one line that says what and where."""
    head = re.split(r"\n\s*(?:Possible |LINE |Candidate|Potential |Try |The search space)", text)[0]
    file = re.search(r"\n  file = (.+)", text)
    return " ".join(head.split())[:300] + (f" (in {file[1]})" if file else "")


def is_cut_short(file: Found) -> bool:
    """Tell whether a local Parquet file lacks its end, as while it is being written."""
    with suppress(OSError), open(file.path, "rb") as opened:
        opened.seek(max(0, file.size - 4))
        return opened.read(4) != b"PAR1"
    return False


def changed_at(file: Found) -> datetime:
    """Return when a file was last changed."""
    return datetime.fromtimestamp(file.modified_us // 1_000_000, UTC)
