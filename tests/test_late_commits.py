"""A platform applies a request after we gave up on it: neither doubled nor stranded (R5)."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest
from builders import delivery
from sandbox_builders import february_invoice

from sandbox.process import RunningSandbox
from worker.config import load_config
from worker.domain import InvoiceKey
from worker.ports import Ports
from worker.reconcile import reconcile
from worker.record import Outcome, State
from worker.wiring import Service, open_service

LATE_SECONDS = (0.03, 1.0, 30.0)  # real ones
CONFIG = """
[platforms.billforward]
base_url = "{base_url}"
[journal]
url = "sqlite:///{folder}/journal.db"
[usage_sources.events]
kind = "sql"
url = "sqlite:///{folder}/usage.db"
table = "usage"
subject_column = "subject"
time_column = "at"
time_format = "epoch_seconds"
[components."Text messages 0"]
source = "events"
"""
JANUARY = 1767225600  # its first second
NOW = datetime(2026, 2, 2, tzinfo=UTC)


@pytest.fixture(name="service")
def _service(tmp_path: Path, sandbox: RunningSandbox) -> Service:
    """What a worker works with, on the sandbox."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(base_url=sandbox.base_url, folder=tmp_path))
    environ = {
        "RECONCILER__WEBHOOK__PASSWORD": "of-the-hook",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
    }
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, at INTEGER)")
    return open_service(load_config(path, environ))


def pending(service: Service, sandbox: RunningSandbox, folder: Path) -> InvoiceKey:
    """Raise an invoice over 105 messages of a subscription of its own, and tell of it."""
    subscription = f"SUB-{str(uuid4()).upper()}"
    with closing(sqlite3.connect(folder / "usage.db")) as db, db:
        rows = [(subscription, JANUARY + number) for number in range(105)]
        db.executemany("INSERT INTO usage VALUES (?, ?)", rows)
    body = february_invoice(subscriptionID=subscription, notify=False)
    key = InvoiceKey("billforward", sandbox.control.put_invoice(**body)["id"])
    told = delivery(id=f"NOT-{uuid4()}", invoice_id=key.invoice_id)
    service.journal.record_delivery(told, NOW)
    return key


class Worker:
    """Runs invoices at moments of our choice."""

    def __init__(self, service: Service) -> None:
        self._ports: Ports = service.ports("billforward", lambda: False)
        self._rules = service.config.rules

    def run(self, key: InvoiceKey, at: datetime) -> Outcome | None:
        """Run one invoice at a moment; None: it was not due then."""
        ports = replace(self._ports, now=lambda: at, random=lambda: 0.0)
        return reconcile(key, owner="worker", ports=ports, rules=self._rules)


def due_of(outcome: Outcome | None) -> datetime:
    """Return when an invoice that could not be finished is due again."""
    assert outcome is not None
    assert outcome.due_at is not None, outcome.reason
    return outcome.due_at


def test_a_late_commit_neither_doubles_nor_strands(
    service: Service, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    """Applied 30 ms, 1 s or 30 s after the connection broke, each invoice is issued once."""
    worker, due = Worker(service), dict[InvoiceKey, datetime]()
    for write, seconds in product(("charge", "issue"), LATE_SECONDS):
        key = pending(service, sandbox, tmp_path)
        (charge,) = sandbox.control.invoice(key.invoice_id)["charges"]
        path = f"/{key.invoice_id if write == 'issue' else charge['id']}/recalculate"
        match = {"method": "POST", "path": path}
        sandbox.control.add_fault("late_commit", seconds=seconds, match=match)
        due[key] = due_of(worker.run(key, NOW))
        if seconds >= 1:  # not applied yet: it is read, and nothing written before settle_seconds
            due[key] = due_of(worker.run(key, due[key]))
            assert due[key] - NOW >= service.config.rules.settle
            assert len(sandbox.control.record().sent("POST", path)) == 1
    time.sleep(max(LATE_SECONDS) + 1)  # now the last one is applied, still before it is due
    for key, moment in due.items():
        outcome = worker.run(key, moment)
        while outcome is None or outcome.state is not State.ISSUED:
            moment = due_of(outcome)
            assert moment - NOW < timedelta(hours=1), outcome
            outcome = worker.run(key, moment)
        there = sandbox.control.invoice(key.invoice_id)
        assert [charge["pricingComponentValue"] for charge in there["charges"]] == [105]
    assert sandbox.control.record().issues == {key.invoice_id: 1 for key in due}
