"""Endpoints that are killed while they take notifications; what was answered 200 must be there.

The endpoint is gunicorn with two worker processes, as `reconciler serve` runs it, but forked from
a process that has its modules already: it is up in a tenth of a second.
"""

from __future__ import annotations

import gc
import http.client
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
from gunicorn.app.wsgiapp import WSGIApplication  # type: ignore[import-untyped]

from bench.http import Answer, Sender
from bench.own_redis import own_redis
from proof.world import PostgresJournals
from webhook_app import Receiver
from worker.config import Config
from worker.demo.redis_server import free_port
from worker.domain import Delivery, InvoiceKey
from worker.journal import open_journal
from worker.journal.sql import SqlJournal
from worker.wiring import CONFIG_VARIABLE, configured, utc_now

CLIENTS = 4
INVOICES = 8  # so that notifications of one invoice come at once
_MOST_ANSWERS = 60  # before the kill
_EACH = 20  # notifications of each client, when it is PostgreSQL that is killed
_PATIENCE_SECONDS = 20.0
_NO_ANSWER = (OSError, http.client.HTTPException)


@dataclass(slots=True)
class Killed:
    """What one kill came to."""

    seed: int
    answered: int = 0
    unanswered: int = 0
    kept_unanswered: int = 0  # in the journal: the kill came between commit and answer
    refused: int = 0  # 503, and sent again
    slowest_seconds: float = 0
    problems: list[str] = field(default_factory=list)


Play = Callable[[int, Path], Killed]


class Clients:
    """Clients that send notifications, each the next one when the last was answered."""

    def __init__(self, sender: Sender, seed: int) -> None:
        """Take the way to the endpoint; the seed chooses the invoices."""
        self._sender = sender
        self._seed = seed
        self._lock = threading.Lock()
        self.answered: dict[str, InvoiceKey] = {}  # 200
        self.unanswered: dict[str, InvoiceKey] = {}
        self.refused = 0  # 503
        self.slowest_seconds = 0.0

    def until_no_answer(self, number: int) -> None:
        """Send until an answer does not come."""
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311  repeatable
        for count in range(100_000):
            name, key = self._named(number, count), key_of(chance.randrange(INVOICES))
            try:
                self._take(name, key, self._sender.send(name, key))
            except _NO_ANSWER:
                with self._lock:
                    self.unanswered[name] = key
                return

    def until_taken(self, number: int, count: int) -> None:
        """Send so many, each again until it is answered 200."""
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311  repeatable
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for one in range(count):
            name, key = self._named(number, one), key_of(chance.randrange(INVOICES))
            while time.monotonic() < deadline and name not in self.answered:
                self._take(name, key, self._sender.send(name, key))

    def await_answers(self, count: int) -> None:
        """Wait until so many were answered 200."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(self.answered) < count and time.monotonic() < deadline:
            time.sleep(0.001)

    def _take(self, name: str, key: InvoiceKey, answer: Answer) -> None:
        with self._lock:
            self.slowest_seconds = max(self.slowest_seconds, answer.seconds)
            if answer.status == 200:
                self.answered[name] = key
            else:
                assert (answer.status, answer.retry_after) == (503, "30")
                self.refused += 1
                time.sleep(0.01)

    def _named(self, number: int, count: int) -> str:
        return f"NOT-{self._seed:08X}-0000-4000-{number:04X}-{count:08X}"


def key_of(number: int) -> InvoiceKey:
    """Name one of the invoices."""
    return InvoiceKey("billforward", f"INV-00000000-0000-4000-8000-{number:08X}")


def write_config(folder: Path, journal_url: str, redis_url: str) -> None:
    """Write the endpoint's configuration and set what comes by the environment."""
    path = folder / "config.toml"
    path.write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:9/v1"\n[log]\nlevel = "error"\n'
    )
    os.environ |= {
        CONFIG_VARIABLE: str(path),
        "RECONCILER__WEBHOOK__PASSWORD": "of-the-kills",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-the-kills",
        "RECONCILER__JOURNAL__URL": journal_url,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }


@contextmanager
def endpoint(folder: Path, processes: int = 2) -> Iterator[tuple[int, Callable[[], None]]]:
    """Run gunicorn on the environment's configuration; yields its port and what kills it all."""
    port = free_port()
    server = get_context("fork").Process(
        target=_serve, args=(port, processes, folder / "serve.log")
    )
    server.start()

    def kill() -> None:
        if server.exitcode is None and server.pid is not None:
            os.killpg(server.pid, signal.SIGKILL)
            server.join()

    try:
        _await(port)
        yield port, kill
    finally:
        kill()


def _serve(port: int, processes: int, log: Path) -> None:
    """Be what `reconciler serve` becomes, in a group of its own."""
    os.setsid()
    with log.open("ab", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = [
        *("gunicorn", "webhook_app:create_app()", "--worker-class", "gthread"),
        *("--no-control-socket", "--workers", str(processes), "--threads", "8"),
        *("--bind", f"127.0.0.1:{port}"),
    ]
    WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]").run()


def _await(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
        except _NO_ANSWER:
            assert time.monotonic() < deadline, "the endpoint did not start"
            time.sleep(0.005)
        else:
            return
        finally:
            connection.close()


def kill_endpoint(seed: int, folder: Path) -> Killed:
    """Kill an endpoint under load at a drawn moment; look, and go on with its journal."""
    chance = random.Random(seed)  # noqa: S311  repeatable
    answers, pause = chance.randrange(_MOST_ANSWERS), chance.uniform(0, 0.01)
    config = configured()
    with endpoint(folder) as (port, kill), ThreadPoolExecutor(CLIENTS) as pool:
        clients = Clients(Sender(port, config.webhook), seed)
        running = [pool.submit(clients.until_no_answer, number) for number in range(CLIENTS)]
        clients.await_answers(answers)
        time.sleep(pause)
        kill()
        for one in running:
            one.result(_PATIENCE_SECONDS)
    return _looked_at(seed, config, clients)


def kill_postgres(seed: int, folder: Path) -> Killed:
    """Kill a session of the journal's PostgreSQL, which then ends all others and recovers."""
    chance = random.Random(seed)  # noqa: S311  repeatable
    config = configured()
    # One process: another that starts while the journal is out would end the endpoint.
    with endpoint(folder, 1) as (port, _kill), ThreadPoolExecutor(CLIENTS) as pool:
        clients = Clients(Sender(port, config.webhook), seed)
        running = [pool.submit(clients.until_taken, number, _EACH) for number in range(CLIENTS)]
        clients.await_answers(chance.randrange(1, CLIENTS * _EACH // 2))
        os.kill(_session(config.journal.url), signal.SIGKILL)
        for one in running:
            one.result(_PATIENCE_SECONDS)
    return _looked_at(seed, config, clients)


def _session(url: str) -> int:
    """Return the process id of one of the endpoint's sessions."""
    with psycopg.connect(url, autocommit=True) as one:
        row = one.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid != pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _looked_at(seed: int, config: Config, clients: Clients) -> Killed:
    """Compare what was answered with what is there, then go on with the journal."""
    killed = Killed(seed, len(clients.answered), len(clients.unanswered))
    killed.refused, killed.slowest_seconds = clients.refused, clients.slowest_seconds
    found = killed.problems
    with closing(open_journal(config.journal.url)) as journal:
        found += _missing(journal, clients.answered)
        found += _broken(config, journal)
    receiver = Receiver(config)
    opened: Any = receiver.journal
    with closing(opened):
        for name, key in clients.unanswered.items():
            result = receiver.receive(_delivery(name, key), utc_now())
            killed.kept_unanswered += result == "duplicate"
        for name, key in list(clients.answered.items())[-CLIENTS:]:
            result = receiver.receive(_delivery(name, key), utc_now())
            found += [] if result == "duplicate" else [f"lost: {name} was {result} again"]
    with closing(open_journal(config.journal.url)) as journal:
        found += _missing(journal, clients.answered | clients.unanswered)
        found += _broken(config, journal)
    receiver.doorbell.redis.close()
    return killed


def _missing(journal: SqlJournal, expected: dict[str, InvoiceKey]) -> list[str]:
    """Compare notifications with what the journal has, each once and due."""
    told: list[str] = []
    for number in range(INVOICES):
        history = journal.history(key_of(number))
        if history is not None:
            assert history.row.due_at is not None
            told += [one.id for one in history.deliveries]
            told += [e.data["delivery_id"] for e in history.entries]
    return [
        f"{'lost' if told.count(name) < 2 else 'doubled'}: {name}"
        for name in expected
        if told.count(name) != 2  # the delivery and its entry
    ]


def _broken(config: Config, journal: SqlJournal) -> list[str]:
    found = [f"wrong: {broken}" for broken in map(journal.verify, journal.keys()) if broken]
    if config.journal.url.startswith("sqlite:///"):
        path = config.journal.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as db:
            (told,) = db.execute("PRAGMA integrity_check").fetchone()
        found += [] if told == "ok" else [f"wrong: {told}"]
    return found


def _delivery(name: str, key: InvoiceKey) -> Delivery:
    return Delivery(
        platform=key.platform,
        id=name,
        event="Invoice/Pending",
        invoice_id=key.invoice_id,
        body=b"{}",
    )


@contextmanager
def postgres_at(url: str, _folder: Path) -> Iterator[PostgresJournals]:
    """Keep the journals in a database that is there; for one job alone."""
    open_journal(url).close()  # makes the tables
    yield PostgresJournals(url)


def play_all(
    play: Play, seeds: Sequence[int], journals: Callable[[Path], Any], jobs: int = 2
) -> list[Killed]:
    """Play the seeds, each on a journal of its own, by processes with servers of their own."""
    shares = [(play, seeds[job::jobs], journals) for job in range(jobs)]
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        played = [one for share in pool.map(_share, shares) for one in share]
    return sorted(played, key=lambda killed: killed.seed)


def _share(share: tuple[Play, Sequence[int], Callable[[Path], Any]]) -> list[Killed]:
    play, seeds, journals = share
    gc.freeze()  # else each child copies the pages that its collections touch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with journals(folder) as kept, own_redis(folder / "redis") as redis:
            killed = []
            for seed in seeds:
                write_config(folder, kept.fresh(), redis.url)
                killed.append(play(seed, folder))
            return killed
