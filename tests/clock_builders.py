"""A real service on the sandbox whose clock a test moves, and usage at stated times."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from builders import NOW, delivery
from sandbox_builders import TEXTS

from sandbox.process import RunningSandbox
from worker.config import config_of
from worker.domain import InvoiceKey, Period
from worker.reconcile import reconcile
from worker.record import History, State
from worker.wiring import Service, open_service

SUB = "SUB-00000000-0000-4000-8000-00000001"
TEXT = "Text messages"
MOST_LOOKS = 40


@dataclass
class SteppingClock:
    """A clock that takes a step whenever it is read, until there are no more."""

    now: datetime = NOW
    steps: Iterator[timedelta] = field(default_factory=lambda: iter(()))
    readings: int = 0

    def __call__(self) -> datetime:
        """Tell the time, after the step."""
        self.readings += 1
        self.now += next(self.steps, timedelta(0))
        return self.now

    def at_least(self, moment: datetime) -> None:
        """Let time pass until then."""
        self.now = max(self.now, moment)


@dataclass
class Stage:
    """A real service on the sandbox, with a clock of ours."""

    service: Service
    clock: SteppingClock

    def deliver(self, invoice_id: str) -> InvoiceKey:
        """Journal the notification of an invoice."""
        one = delivery(id=f"NOT{invoice_id[3:]}", invoice_id=invoice_id)
        self.service.journal.record_delivery(one, self.clock.now)
        assert one.key is not None
        return one.key

    def run(self, key: InvoiceKey) -> History:
        """Let a worker look at an invoice once."""
        ports = self.service.ports("billforward", lambda: False)
        ports = replace(ports, now=self.clock, random=lambda: 0.0)
        reconcile(key, owner="one", ports=ports, rules=self.service.config.rules)
        history = self.service.journal.history(key)
        assert history is not None
        return history

    def settled(self, key: InvoiceKey) -> History:
        """Look again whenever it is due, until there is nothing left to do."""
        for _ in range(MOST_LOOKS):
            history = self.run(key)
            if history.row.due_at is None:
                assert self.service.journal.verify(key) is None
                return history
            self.clock.at_least(history.row.due_at)
        raise AssertionError(f"not settled: {key}")

    def billed(self, invoice_id: str) -> tuple[int, Period]:
        """Reconcile an invoice of one charge; return what was billed, and for which period."""
        history = self.settled(self.deliver(invoice_id))
        assert history.row.state is State.ISSUED, history.row.reason
        (tally,) = history.tallies
        return tally.quantity, tally.span.period


def stage_on(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, times: Iterable[str]
) -> Stage:
    """Make a stage whose usage is one text message at each of these times."""
    add_usage(tmp_path, times)
    config = config_of(
        {
            "platforms": {
                "billforward": {"base_url": sandbox.base_url, "total_timeout_seconds": 0.5}
            },
            "journal": {"url": journal_url},
            "usage_sources": {
                "events": {
                    "kind": "sql",
                    "url": f"sqlite:///{tmp_path}/usage.db",
                    "table": "usage",
                    "subject_column": "subject",
                    "metric_column": "metric",
                    "time_column": "at",
                    "time_format": "iso",
                },
                "export": {
                    "kind": "csv",
                    "path": f"{tmp_path}/usage.csv",
                    "subject_column": "subject",
                    "metric_column": "metric",
                    "time_column": "at",
                    "time_format": "iso",
                },
            },
            "components": {
                TEXT: {"source": "events", "metric": "text"},
                "Exported": {"source": "export", "metric": "text"},
            },
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": "of-tests",
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        },
    )
    return Stage(open_service(config), SteppingClock())


def add_usage(tmp_path: Path, times: Iterable[str]) -> None:
    """Add a text message at each of these times, to the database and to the export."""
    rows = [(SUB, "text", at) for at in times]
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS usage (subject TEXT, metric TEXT, at TEXT)")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    lines = ["subject,metric,at", *(",".join(row) for row in rows)]
    (tmp_path / "usage.csv").write_text("\n".join(lines))


def put(sandbox: RunningSandbox, number: int, start: str, end: str, **charge: Any) -> str:
    """Put an invoice with one usage charge over a period given as text; return its id."""
    invoice_id = f"INV-C10C0000-0000-4000-8000-{number:08X}"
    one = {
        "name": "Messages",
        "pricingComponentName": TEXT,
        "periodStart": start,
        "periodEnd": end,
        "price": TEXTS,
        **charge,
    }
    sandbox.control.put_invoice(id=invoice_id, subscriptionID=SUB, charges=[one])
    return invoice_id
