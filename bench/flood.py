"""A flood of notifications on the real endpoint: every one answered, none lost, none doubled.

    python -m bench.flood --notifications 10000 --clients 8 --journal sqlite

Starts a Redis, a journal and `reconciler serve` with its defaults, and sends all notifications
at once from several processes, each over one kept connection. Every twentieth is sent twice, and
every fifth invoice is named by two notifications; both copies leave at about the same time.
No worker runs, so that the queue can be looked at. A 503 is sent again, as the platform would,
after its Retry-After but at most `_LONGEST_WAIT_SECONDS`; how often is in the result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import requests

from proof.world import postgres_journals
from worker.demo.processes import running, wait_for
from worker.demo.redis_server import free_port, redis_server
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell, job_id_of
from worker.journal import open_journal
from worker.journal.sql import SqlJournal

PLATFORM, QUEUE, USER = "billforward", "flood", "billing-platform"
_TWICE_EVERY = 20
_MOST_TRIES = 10
_LONGEST_WAIT_SECONDS = 2.0
_CLIENT_SECONDS = 600.0
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of sending one notification."""

    number: int
    began_at: float  # monotonic seconds, the same clock in every process
    seconds: float  # with what was sent again
    status: int  # 0: the connection broke, every time
    again: int  # how often it was sent again after a 503 or a broken connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What is sent, and where to."""

    notifications: int
    clients: int
    journal_url: str
    redis_url: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What journal and queue hold afterwards."""

    deliveries: Mapping[str, tuple[str, int]]  # by id: its invoice, how often it came
    delivered: Counter[str]  # how often an invoice's record names each delivery
    queued: Counter[str]  # how often each job stands on the queue


def notification_id(number: int) -> str:
    """Name a notification."""
    return f"NOT-F1000000-0000-4000-8000-{number:08X}"


def key_of(number: int) -> InvoiceKey:
    """Name the invoice of a notification; two of five share one with their neighbour."""
    return InvoiceKey(PLATFORM, f"INV-F1000000-0000-4000-8000-{number * 4 // 5:08X}")


def body_of(number: int) -> bytes:
    """Make a notification of the size that BillForward sends."""
    body = {
        "@type": "notification",
        "id": notification_id(number),
        "domain": "Invoice",
        "action": "Pending",
        "entityID": key_of(number).invoice_id,
        "changes": "[]",
        "entity": json.dumps({"@type": "invoice", "id": key_of(number).invoice_id, "x": "x" * 900}),
    }
    return json.dumps(body).encode()


def in_order(notifications: int) -> list[int]:
    """Return the numbers as they are dealt to the clients, with what is sent twice."""
    return [n for n in range(notifications) for _ in range(1 if n % _TWICE_EVERY else 2)]


_together: Barrier | None = None  # the clients of this pool wait here for one another


def _ready(together: Barrier) -> None:
    global _together
    _together = together


def _send_all(url: str, password: str, numbers: Sequence[int]) -> list[Answer]:
    """Be one client: send these, one after the other, over one connection."""
    bodies = [(number, body_of(number)) for number in numbers]
    with requests.Session() as session:
        session.trust_env = False  # a proxy must not come between us and the loopback
        session.auth = (USER, password)
        if _together is not None:
            _together.wait(_CLIENT_SECONDS)
        return [_send(session, url, number, body) for number, body in bodies]


def _send(session: requests.Session, url: str, number: int, body: bytes) -> Answer:
    began_at, status, tries, wait = time.monotonic(), 0, 0, 0.0
    while status in (0, 503) and tries < _MOST_TRIES:
        time.sleep(wait)
        tries, wait = tries + 1, 0.1
        try:
            response = session.post(
                url, data=body, headers={"Content-Type": "application/json"}, timeout=60
            )
            status = response.status_code
            wait = min(float(response.headers.get("Retry-After", wait)), _LONGEST_WAIT_SECONDS)
        except requests.ConnectionError:
            status = 0
    return Answer(number, began_at, time.monotonic() - began_at, status, tries - 1)


def flood(plan: Flood) -> list[Answer]:
    """Start the endpoint, send everything at once, stop the endpoint, return the answers."""
    port, password = free_port(), secrets.token_hex(16)
    environ = _environ(plan, port, password)
    with running("webhook", ["serve"], plan.folder, environ) as webhook:
        wait_for(
            "the webhook endpoint",
            lambda: _is_ready(f"http://127.0.0.1:{port}/readyz"),
            seconds=_START_SECONDS,
            alive={"webhook": webhook},
            folder=plan.folder,
        )
        url = f"http://127.0.0.1:{port}/webhooks/{PLATFORM}"
        numbers, clients = in_order(plan.notifications), plan.clients
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            clients,
            mp_context=context,
            initializer=_ready,
            initargs=(context.Barrier(clients),),
        ) as pool:
            sent = [
                pool.submit(_send_all, url, password, numbers[client::clients])
                for client in range(clients)
            ]
            return [answer for one in sent for answer in one.result(_CLIENT_SECONDS)]


def found(plan: Flood) -> Found:
    """Read what the journal and the queue hold."""
    journal = open_journal(plan.journal_url)
    try:
        return Found(
            deliveries=dict(_deliveries(journal)),
            delivered=Counter(_delivered(journal)),
            queued=Counter(_queued(plan)),
        )
    finally:
        journal.close()


def problems(plan: Flood, answers: Sequence[Answer], seen: Found) -> list[str]:
    """Say everything that is not as it must be."""
    told = [
        f"{notification_id(one.number)} was answered {one.status}"
        for one in answers
        if one.status != 200
    ]
    if Counter(one.number for one in answers) != Counter(in_order(plan.notifications)):
        told.append("not everything was sent")
    times, again = Counter(one.number for one in answers), Counter[int]()
    for one in answers:
        again[one.number] += one.again
    for number in range(plan.notifications):
        name, key = notification_id(number), key_of(number)
        invoice_id, came = seen.deliveries.get(name, ("", 0))
        if invoice_id != key.invoice_id:
            told.append(f"{name} is lost")
        if not times[number] <= came <= times[number] + again[number]:
            told.append(f"{name} came {came} times, sent {times[number]}")
        if seen.delivered[name] != 1:
            told.append(f"{name} stands in its invoice's record {seen.delivered[name]} times")
    rung = {job_id_of(key_of(number)) for number in range(plan.notifications)}
    told += [f"{job} is {n} times on the queue" for job, n in seen.queued.items() if n > 1]
    told += [f"{job} is on the queue, and nobody told of it" for job in seen.queued.keys() - rung]
    told += [f"nobody rang for {job}" for job in rung - seen.queued.keys()]
    if len(seen.deliveries) != plan.notifications:
        told.append(f"{len(seen.deliveries)} deliveries, sent {plan.notifications}")
    return told


def lost(plan: Flood, seen: Found) -> int:
    """Count the notifications that the journal does not hold."""
    return sum(notification_id(n) not in seen.deliveries for n in range(plan.notifications))


def result_line(journal: str, answers: Sequence[Answer], lost: int) -> str:
    """Say in one line how it went."""
    took = sorted(one.seconds * 1000 for one in answers)
    p50, p95, p99 = (took[int(len(took) * share)] for share in (0.50, 0.95, 0.99))
    ended_at = max(one.began_at + one.seconds for one in answers)
    seconds = ended_at - min(one.began_at for one in answers)
    answered = sum(one.status == 200 for one in answers)
    return (
        f"flood: {journal}: {answered} of {len(answers)} answered 200, {lost} lost,"
        f" {sum(one.again for one in answers)} sent again,"
        f" p50 {p50:.1f} p95 {p95:.1f} p99 {p99:.1f} max {took[-1]:.1f} ms,"
        f" {len(answers) / seconds:.0f} notifications/s"
    )


def _environ(plan: Flood, port: int, password: str) -> dict[str, str]:
    """Configure the endpoint: what differs from the defaults is where things are."""
    config = plan.folder / "config.toml"
    config.write_text(
        f'[webhook]\nport = {port}\n[platforms.{PLATFORM}]\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    return {
        **{name: value for name, value in os.environ.items() if "RECONCILER_" not in name},
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__JOURNAL__URL": plan.journal_url,
        "RECONCILER__QUEUE__REDIS_URL": plan.redis_url,
        "RECONCILER__QUEUE__NAME": QUEUE,
        "RECONCILER__WEBHOOK__PASSWORD": password,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "never sent",
    }


def _is_ready(url: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=2).status_code == 200
        except requests.RequestException:
            return False


def _deliveries(journal: SqlJournal) -> Iterator[tuple[str, tuple[str, int]]]:
    with journal.store.snapshot() as tx:
        for row in tx.rows("SELECT id, invoice_id, times FROM deliveries"):
            yield row["id"], (row["invoice_id"], row["times"])


def _delivered(journal: SqlJournal) -> Iterator[str]:
    with journal.store.snapshot() as tx:
        for row in tx.rows("SELECT data FROM entries WHERE kind = 'delivered'"):
            yield json.loads(row["data"])["delivery_id"]


def _queued(plan: Flood) -> Iterator[str]:
    doorbell = Doorbell(plan.redis_url, QUEUE)
    with doorbell.redis as redis:
        for job_id in redis.lrange(doorbell.queue.key, 0, -1):
            yield job_id.decode() if isinstance(job_id, bytes) else str(job_id)


def main() -> int:
    """Run one flood; 1: something was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument("--notifications", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--journal", choices=("sqlite", "postgres"), default="sqlite")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flood-")))
        journal_url = f"sqlite:///{folder}/journal.db"
        if given.journal == "postgres":
            journal_url = stack.enter_context(postgres_journals(folder)).url
        plan = Flood(
            notifications=given.notifications,
            clients=given.clients,
            journal_url=journal_url,
            redis_url=stack.enter_context(redis_server(folder / "redis", environ={})),
            folder=folder,
        )
        answers = flood(plan)
        seen = found(plan)
    told = problems(plan, answers, seen)
    print(result_line(given.journal, answers, lost(plan, seen)))
    for one in told[:20]:
        print(f"  {one}", file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
