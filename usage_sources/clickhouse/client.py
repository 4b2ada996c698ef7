"""A ClickHouse server over HTTP: statements in bounded time, errors sorted by their remedy."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic
from typing import Any, Protocol

import urllib3

from usage_sources.clickhouse.statements import Statement
from worker.errors import SourceInvalid, SourceUnavailable

_DRIVER = "clickhouse_connect"
Rows = list[list[Any]]

# ClickHouse's codes of what passes by itself; every other one is for a person to look at.
_PASSING = frozenset(
    {
        *(32, 101, 102),  # a shard's connection ended in the middle, or out of step
        *(159, 160),  # took longer than max_execution_time, or would
        *(198, 203, 209, 210, 279),  # no name, connection or answer of a shard in time
        *(201, 202, 745),  # the user's quota, too many queries at once, server overloaded
        *(225, 242, 999),  # keeper is away
        *(236, 394, 734, 735),  # the query was cancelled, as when the server stops
        *(241, 243, 439),  # no memory, disk or thread left
        *(369, 372, 373),  # every replica is behind, or the session is in use
        *(425, 473, 499),  # system call, lock or object storage failed
        519,  # none of the replicas answered
    }
)
_LATER = (408, 425, 429)  # HTTP statuses, besides every 5xx, where no code says more
_HINTS = {
    60: "check database and table, and that the user may read it",
    158: "the user's limits do not let it read enough; raise max_rows_to_read",
    164: "the user may not set limits; give it readonly = 2 instead of 1",
    181: "final is for tables whose engine replaces rows; set final = false",
    307: "the user's limits do not let it read enough; raise max_bytes_to_read",
    497: "grant the user SELECT and SHOW COLUMNS on the table",
    516: "check username and the password",
}


class EngineError(Exception):
    """A statement failed: the engine's code if it gave one, and whether it passes by itself."""

    def __init__(self, text: str, *, code: int | None = None, passing: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.passing = passing or code in _PASSING


class Executor(Protocol):
    """Runs statements somewhere."""

    def run(self, statement: Statement, seconds: float) -> Rows:
        """Return all rows, within so many seconds; raise EngineError."""

    def close(self) -> None:
        """Give up what is open."""


def rows_of(content: bytes) -> Rows:
    """Read JSONCompact whole; a number with a point becomes a Decimal."""
    try:
        answer = json.loads(content, parse_float=Decimal, parse_constant=_refuse)
        rows = answer["data"]
        whole = answer["rows"] == len(rows) and all(isinstance(row, list) for row in rows)
    except (ValueError, ArithmeticError, RecursionError, KeyError, TypeError):
        raise EngineError("the answer is no ClickHouse answer in JSON") from None
    if not whole:
        raise EngineError("the answer is not whole")
    return list(rows)


class Asking:
    """The statements of one count: they share its time, and their errors are sorted."""

    def __init__(
        self, executor: Executor, place: str, seconds: float, secrets: Sequence[str] = ()
    ) -> None:
        self._executor = executor
        self._place = place
        self._seconds = seconds
        self._deadline = monotonic() + seconds
        self._secrets = [secret for secret in secrets if secret]

    def rows(self, statement: Statement) -> Rows:
        """Run one statement in what is left of the time."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise SourceUnavailable(f"{self._place}: no answer within {self._seconds:g} s")
        try:
            return self._executor.run(statement, left)
        except EngineError as error:
            raise self._sorted(error) from None

    def _sorted(self, error: EngineError) -> SourceUnavailable | SourceInvalid:
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if len(text) > 300:
            text = f"{text[:300]}..."
        if error.passing:
            return SourceUnavailable(f"{self._place}: {text}")
        hint = _HINTS.get(error.code or 0, "")
        return SourceInvalid(f"{self._place}: {text}{f'; {hint}' if hint else ''}")


def check_driver() -> None:
    """Raise ValueError unless the driver is installed."""
    if importlib.util.find_spec(_DRIVER) is None:
        raise ValueError(
            "counting in ClickHouse needs a driver that is not installed:"
            " pip install 'invoice-reconciler[clickhouse]'"
        )


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is and who asks."""

    host: str
    port: int
    secure: bool
    database: str
    username: str
    password: str


class ClickHouseClient:
    """One server through clickhouse-connect, connected at first use and kept warm.

    A statement runs in a thread that is given up when the time is over, because no timeout of a
    socket bounds a name that is looked up for minutes, or an answer that comes drop by drop.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client: Any = None
        # A pool of our own takes no proxy from the environment that nobody configured here.
        self._pool = urllib3.PoolManager(maxsize=1)

    def run(self, statement: Statement, seconds: float) -> Rows:
        """Run a statement and return its rows."""
        outcome = _within(seconds, lambda: self._content(statement, seconds))
        if outcome is None:
            self.close()
            raise EngineError(f"no answer within {seconds:.3g} s", passing=True)
        if isinstance(outcome, Exception):
            raise _engine_error(outcome)
        return rows_of(outcome)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._client = None
        self._pool.clear()
        self._pool = urllib3.PoolManager(maxsize=1)

    def _content(self, statement: Statement, seconds: float) -> bytes:
        client = self._client or self._connected(seconds)
        client.timeout = urllib3.Timeout(connect=seconds, read=seconds)
        content = client.raw_query(
            statement.text,
            parameters=dict(statement.parameters) or None,
            settings={
                "readonly": 2,  # only reads, and may bound itself
                "max_execution_time": math.ceil(seconds),
                "date_time_output_format": "iso",
                **statement.settings,
            },
            fmt="JSONCompact",
        )
        self._client = client
        return bytes(content)

    def _connected(self, seconds: float) -> Any:
        logging.getLogger(_DRIVER).setLevel(logging.CRITICAL)  # what fails is told by our errors
        address = self._address
        whole = math.ceil(seconds)
        client = importlib.import_module(_DRIVER).get_client(
            host=address.host,
            port=address.port,
            interface="https" if address.secure else "http",
            database=address.database,
            username=address.username,
            password=address.password,
            connect_timeout=whole,
            send_receive_timeout=whole,
            query_retries=0,
            autogenerate_session_id=False,  # a session takes one query at a time
            pool_mgr=self._pool,
        )
        client.http_retries = 0
        return client


def _within(seconds: float, call: Callable[[], bytes]) -> bytes | Exception | None:
    """Return what a call returns or raises, or None when it does neither in time."""
    done: list[bytes | Exception] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:  # noqa: BLE001 - handed over to the thread that waits
            done.append(error)

    thread = threading.Thread(target=work, name="clickhouse", daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else None


def _engine_error(error: Exception) -> EngineError:
    """Read what the driver raised: the server's own words, or why there are none."""
    text = str(error)
    code = getattr(error, "code", None)
    if code is not None:
        return EngineError(_said(text), code=int(code))
    if status := re.search(r"HTTP status (\d{3})", text):
        number = int(status[1])
        later = number in _LATER or number >= 500
        return EngineError(f"HTTP status {number}, and no answer of ClickHouse", passing=later)
    if "is readonly" in text:
        return EngineError(text, code=164)
    cause = error.__cause__
    if isinstance(cause, urllib3.exceptions.HTTPError):
        reason = getattr(cause, "reason", None) or cause
        return EngineError(f"could not be reached: {type(reason).__name__}", passing=True)
    return EngineError(f"{type(error).__name__}: {text}")


def _said(text: str) -> str:
    """Cut a message down to the server's sentence."""
    said = text.partition("server response: ")[2] or text
    said = re.sub(r"\s*\(for url [^)]*\)$", "", said)
    return re.sub(r"\s*\(version [^()]*(?:\([^()]*\))?\)\s*$", "", said)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a number")
