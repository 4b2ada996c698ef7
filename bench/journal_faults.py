"""The journal cannot be written while a notification comes; what is answered and what is left.

How each fault is made, as root may write anything:

- full disk: SQLite's own bound on the file's pages (`max_page_count`).
- a write that fails half-way: the operating system's bound on the size of a file (EFBIG), in the
  middle of the page that the log would grow by.
- locked: another process has begun an exclusive transaction and does not end it.
- read-only: `PRAGMA query_only`, which makes SQLite refuse with the error of a read-only file; on
  PostgreSQL a server that is a standby.
"""

from __future__ import annotations

import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from bench.http import Answer, Sender, served
from bench.kills import key_of
from webhook_app import Receiver, create_app
from worker.config import Config, config_of
from worker.journal.schema import KEYS
from worker.journal.sql import SqlJournal

MOST = 300  # notifications that may still find room
_PAGE_BYTES = 4096
_PATIENCE_SECONDS = 30.0

Strike = Callable[[SqlJournal], AbstractContextManager[None]]
Contents = Mapping[str, list[Any]]


@dataclass(slots=True)
class Refusal:
    """What came of notifications while the journal could not be written, and after."""

    taken: int = 0  # before there was no room
    refused: Answer | None = None
    ready: int = 0  # what /readyz said meanwhile
    again: Answer | None = None  # the same notification, after the mend
    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def play(journal_url: str, redis_url: str, strike: Strike) -> Refusal:
    """Send until it is refused, mend, compare every table, and send the same once more."""
    config = _config(journal_url, redis_url)
    app = create_app(config)
    receiver: Receiver = app.extensions["receiver"]
    journal: Any = receiver.journal
    found = Refusal()
    with closing(journal), served(app) as port:
        sender = Sender(port, config.webhook)
        _send(sender, 0, found)
        before = contents(journal)
        with strike(journal):
            for number in range(1, MOST):
                found.refused = _send(sender, number, found)
                if found.refused.status != 200:
                    break
                found.taken += 1
                before = contents(journal)
            found.ready = app.test_client().get("/readyz").status_code
        if contents(journal) != before:
            found.problems.append("wrong: the refused notification left something")
        found.problems += [f"wrong: {one}" for one in map(journal.verify, journal.keys()) if one]
        found.again = _send(sender, found.taken + 1, found)
        found.problems += [f"wrong: {one}" for one in map(journal.verify, journal.keys()) if one]
        found.problems += _unkept(journal, found.taken + 2)
    receiver.doorbell.redis.close()
    return found


def contents(journal: SqlJournal) -> Contents:
    """Read everything the journal holds."""
    with journal.store.snapshot() as tx:
        return {
            table: tx.rows(f"SELECT * FROM {table} ORDER BY {', '.join(key)}")  # noqa: S608
            for table, key in KEYS.items()
        }


def _send(sender: Sender, number: int, found: Refusal) -> Answer:
    answer = sender.send(_name(number), key_of(number))
    found.answers.append(answer)
    return answer


def _name(number: int) -> str:
    return f"NOT-00000000-0000-4000-8000-{number:08X}"


def _unkept(journal: SqlJournal, count: int) -> Iterator[str]:
    """Yield each notification answered 200 that is not there exactly once."""
    for number in range(count):
        history = journal.history(key_of(number))
        told = [(one.id, one.times) for one in history.deliveries] if history else []
        if told != [(_name(number), 1)]:
            yield f"{'doubled' if told else 'lost'}: {_name(number)}"


def _config(journal_url: str, redis_url: str) -> Config:
    return config_of(
        {
            "platforms": {"billforward": {"base_url": "http://127.0.0.1:9/v1"}},
            "journal": {"url": journal_url},
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": "of-the-faults",
            "RECONCILER__QUEUE__REDIS_URL": redis_url,
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-the-faults",
        },
    )


def _connection(journal: SqlJournal) -> Any:
    """Return the one connection of a journal in a file."""
    store: Any = journal.store
    return getattr(store, "_store", store)._db  # inside what measures it


@contextmanager
def full(pages_left: int, journal: SqlJournal) -> Iterator[None]:
    """Leave the file room for so many more pages."""
    db = _connection(journal)
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (most,) = db.execute("PRAGMA max_page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + pages_left}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA max_page_count = {most}")


@contextmanager
def write_fails(pages: int, journal: SqlJournal) -> Iterator[None]:
    """Let the write-ahead log grow by so many pages and a half, and by no byte then."""
    log = Path(f"{journal.store.place}-wal")
    size = log.stat().st_size + pages * _PAGE_BYTES + _PAGE_BYTES // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def locked(journal: SqlJournal) -> Iterator[None]:
    """Let another process hold the file exclusively."""
    here, there = get_context("fork").Pipe()
    other = get_context("fork").Process(target=_hold, args=(journal.store.place, here, there))
    other.start()
    there.close()
    try:
        assert here.poll(_PATIENCE_SECONDS), "the other process did not get the lock"
        yield
    finally:
        here.close()  # which it waits for
        other.join(_PATIENCE_SECONDS)
        other.kill()


def _hold(path: str, theirs: Connection, told: Connection) -> None:
    theirs.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        told.send(None)
        told.poll(_PATIENCE_SECONDS)


@contextmanager
def read_only(journal: SqlJournal) -> Iterator[None]:
    """Make SQLite refuse every write."""
    db = _connection(journal)
    db.execute("PRAGMA query_only = ON")
    try:
        yield
    finally:
        db.execute("PRAGMA query_only = OFF")


SQLITE: Mapping[str, Strike] = {
    "full disk": partial(full, 0),
    "full disk, 1 page left": partial(full, 1),
    "full disk, 2 pages left": partial(full, 2),
    "write fails in the 1st page": partial(write_fails, 0),
    "write fails in the 3rd page": partial(write_fails, 2),
    "locked": locked,
    "read-only": read_only,
}


def table_locked(url: str) -> Strike:
    """Let another session of PostgreSQL hold every table exclusively."""

    @contextmanager
    def strike(_journal: SqlJournal) -> Iterator[None]:
        with psycopg.connect(url) as other:
            other.execute(f"LOCK TABLE {', '.join(KEYS)} IN ACCESS EXCLUSIVE MODE".encode())
            yield

    return strike


def standby(stopped: Callable[[], AbstractContextManager[None]], url: str) -> Strike:
    """Make the PostgreSQL a standby, as a failover does to the server one is connected to."""

    @contextmanager
    def strike(_journal: SqlJournal) -> Iterator[None]:
        with psycopg.connect(url) as one:
            row = one.execute("SHOW data_directory").fetchone()
        assert row is not None
        with stopped():
            Path(row[0], "standby.signal").touch()
        try:
            yield
        finally:
            with psycopg.connect(url, autocommit=True) as one:
                one.execute("SELECT pg_promote()")
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while _recovers(url) and time.monotonic() < deadline:
                time.sleep(0.01)

    return strike


def _recovers(url: str) -> bool:
    with psycopg.connect(url) as one:
        row = one.execute("SELECT pg_is_in_recovery()").fetchone()
        return row is not None and bool(row[0])
