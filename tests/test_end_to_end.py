"""The core, the BillForward adapter, a SQL source and the journal, against the sandbox's faults."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import NOW, delivery

from sandbox.process import RunningSandbox
from worker.config import config_of
from worker.domain import InvoiceKey
from worker.reconcile import reconcile
from worker.record import EntryKind, History, State
from worker.wiring import Service, open_service

START, END = "2015-11-02T12:18:51Z", "2015-12-02T12:18:51Z"
CHARGES = 51
USED = {3: 12, 11: 1, 24: 150, 37: 7, 51: 2}
SUB = "SUB-00000000-0000-4000-8000-00000001"


@dataclass
class Stage:
    """A service whose clock can be moved, on the sandbox."""

    service: Service
    sandbox: RunningSandbox
    ahead: timedelta = timedelta(0)

    def now(self) -> datetime:
        """Tell the time, moved ahead."""
        return NOW + self.ahead

    def run(self, key: InvoiceKey, owner: str = "one") -> None:
        """Let a worker look at an invoice now."""
        ports = replace(
            self.service.ports("billforward", lambda: False), now=self.now, random=lambda: 0.0
        )
        reconcile(key, owner=owner, ports=ports, rules=self.service.config.rules)

    def run_until_settled(self, key: InvoiceKey) -> History:
        """Run again whenever the journal says it is due."""
        for _ in range(30):
            self.run(key)
            history = self.service.journal.history(key)
            assert history is not None
            if history.row.due_at is None:
                return history
            self.ahead = max(self.ahead, history.row.due_at - NOW)
        raise AssertionError(f"not settled: {key}")

    def deliver(self, number: int = 1) -> InvoiceKey:
        """Journal the notification of an invoice."""
        key = InvoiceKey("billforward", invoice_id(number))
        one = delivery(id=f"NOT-{number}", invoice_id=key.invoice_id)
        self.service.journal.record_delivery(one, self.now())
        return key

    def quantities(self, key: InvoiceKey) -> dict[str, int]:
        """Return what stands on the invoice's charges in the sandbox, zeros left out."""
        charges = self.sandbox.control.invoice(key.invoice_id)["charges"]
        return {
            c["pricingComponentName"]: c["pricingComponentValue"]
            for c in charges
            if c["pricingComponentValue"]
        }


def invoice_id(number: int) -> str:
    """Name an invoice."""
    return f"INV-00000000-0000-4000-8000-{number:08X}"


def stage_on(tmp_path: Path, sandbox: RunningSandbox, journal_url: str, **platform: Any) -> Stage:
    """Make a stage with 51 mapped components, of which five have usage."""
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS usage (subject TEXT, metric TEXT, at TEXT)")
        rows = [(SUB, f"c{n}", START) for n, times in USED.items() for _ in range(times)]
        rows += [("another customer", f"c{n}", START) for n in range(1, CHARGES + 1)]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    settings = {"base_url": sandbox.base_url, "total_timeout_seconds": 2.0, **platform}
    config = config_of(
        {
            "platforms": {"billforward": settings},
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
                }
            },
            "components": {f"c{n}": {"source": "events"} for n in range(1, CHARGES + 1)},
            "rules": {"max_attempts": 30},
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": "of-tests",
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        },
    )
    return Stage(open_service(config), sandbox)


def put_invoice(
    sandbox: RunningSandbox, number: int = 1, most: int | None = None, **changed: Any
) -> None:
    """Put an invoice with 51 usage charges of which many share a display name.

    Its plan prices quantities up to `most`; the platform refuses what lies above.
    """
    price = {
        "model": "tiered",
        "tiers": [
            {"lower": 0, "upper": 0, "type": "fixed", "price": 0},
            {"lower": 1, "upper": most, "type": "unit", "price": Decimal("0.25")},
        ],
    }
    charges = [
        {
            "id": f"CHG-00000000-0000-4000-8000-{number:04X}{n:04X}",
            "name": f"Report {n % 4}",
            "pricingComponentName": f"c{n}",
            "pricingComponentType": "usage",
            "pricingComponentValue": 0,
            "periodStart": START,
            "periodEnd": END,
            "price": price,
        }
        for n in range(1, CHARGES + 1)
    ]
    sandbox.control.put_invoice(
        **{
            "id": invoice_id(number),
            "type": "Subscription",
            "state": "Pending",
            "subscriptionID": SUB,
            "periodStart": END,
            "periodEnd": "2016-01-02T12:18:51Z",
            "charges": charges,
            "notify": False,
            **changed,
        }
    )


WANTED = {f"c{n}": times for n, times in USED.items()}


@pytest.mark.parametrize("recalculation", ["each", "batch"])
def test_all_51_charges_are_counted_and_those_that_differ_written(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, recalculation: str
) -> None:
    """A platform that pages by 20 hides no charge; five writes or one, and the right total."""
    stage = stage_on(tmp_path, sandbox, journal_url, recalculation=recalculation)
    sandbox.control.set(max_records=20)
    put_invoice(sandbox)
    history = stage.run_until_settled(stage.deliver())
    assert (history.row.state, history.row.reason) == (State.ISSUED, "Unpaid, 43.00 USD")
    assert len(history.tallies) == CHARGES
    assert stage.quantities(history.row.key) == WANTED
    writes = sandbox.control.record().sent("POST")
    assert len(writes) == (6 if recalculation == "each" else 2)
    assert sandbox.control.record().issues == {invoice_id(1): 1}


FAULTS: list[dict[str, Any]] = [
    {"kind": "rate_limit", "retry_after": "1", "times": 3},
    {"kind": "error", "status": 503, "match": {"method": "POST"}, "times": 6},
    {"kind": "error", "status": 500, "match": {"path": "INV-.*recalculate"}, "times": 1},
    {"kind": "html", "status": 502, "match": {"method": "GET"}, "times": 5},
    {"kind": "empty", "status": 200, "times": 2},
    {"kind": "error_in_200", "error_type": "ServerError", "times": 2},
    {"kind": "drop_before", "match": {"method": "POST"}, "times": 5},
    {"kind": "drop_after", "match": {"method": "POST"}, "times": 5},
    {"kind": "drop_after", "match": {"path": "INV-.*recalculate"}, "times": 1},
    {"kind": "drop_before", "match": {"path": "INV-.*recalculate"}, "times": 1},
    {"kind": "html", "status": 200, "commit": True, "match": {"path": "INV-.*recalc"}, "times": 1},
    {"kind": "truncated", "status": 200, "commit": True, "match": {"method": "POST"}, "times": 4},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault["kind"]))
@pytest.mark.parametrize("recalculation", ["each", "batch"])
def test_every_fault_ends_in_one_right_issue(
    tmp_path: Path,
    sandbox: RunningSandbox,
    journal_url: str,
    fault: dict[str, Any],
    recalculation: str,
) -> None:
    """Refusals, lost answers and broken connections cost time, never a wrong or second issue."""
    stage = stage_on(tmp_path, sandbox, journal_url, recalculation=recalculation)
    put_invoice(sandbox)
    sandbox.control.add_fault(**fault)
    history = stage.run_until_settled(stage.deliver())
    assert history.row.state is State.ISSUED
    assert stage.quantities(history.row.key) == WANTED
    assert sandbox.control.record().issues == {invoice_id(1): 1}


@pytest.mark.parametrize("atomic", [True, False])
def test_a_refused_batch_writes_no_wrong_issue(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, atomic: bool
) -> None:
    """Whether the platform applies half a batch or none, the invoice is held and not issued."""
    stage = stage_on(tmp_path, sandbox, journal_url, recalculation="batch")
    sandbox.control.set(batch_is_atomic=atomic)
    put_invoice(sandbox, most=100)
    history = stage.run_until_settled(stage.deliver())
    assert history.row.state is State.HELD
    assert "ValidationError" in history.row.reason
    assert bool(stage.quantities(history.row.key)) is not atomic
    record = sandbox.control.record()
    assert record.issues == {}
    assert len(record.violations) == 1  # the quantity above the last tier, and nothing else
    sandbox.control.clear_record()


def test_a_failure_between_writes_is_resumed_though_the_version_moved(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str
) -> None:
    """When each charge write moves the invoice's versionNumber, a resumed run still goes on."""
    stage = stage_on(tmp_path, sandbox, journal_url, concurrency=1)
    sandbox.control.set(charge_recalculation_bumps_invoice=True)
    put_invoice(sandbox)
    sandbox.control.add_fault(
        "error", status=503, match={"path": "/charges/", "method": "POST", "nth": 3}, times=4
    )
    key = stage.deliver()
    stage.run(key)
    history = stage.service.journal.history(key)
    assert history is not None
    assert history.row.state is State.RETRYING
    assert sandbox.control.invoice(key.invoice_id)["versionNumber"] > 1
    history = stage.run_until_settled(key)
    assert history.row.state is State.ISSUED
    assert stage.quantities(key) == WANTED
    counted = [entry for entry in history.entries if entry.kind is EntryKind.COUNTED]
    assert len(counted) == 1


def test_a_colleague_who_recalculates_first_is_respected(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str
) -> None:
    """An invoice of version 2 that we never wrote on is left alone, with the reason."""
    stage = stage_on(tmp_path, sandbox, journal_url)
    put_invoice(sandbox, versionNumber=2)
    history = stage.run_until_settled(stage.deliver())
    assert history.row.state is State.SKIPPED
    assert "versionNumber is 2" in history.row.reason
    assert sandbox.control.record().sent("POST") == []


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_race_issue_each_invoice_once(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, workers: int
) -> None:
    """However many workers ring at once, every invoice is written and issued by one of them."""
    first = stage_on(tmp_path, sandbox, journal_url)
    stages = [
        first,
        *(replace(first, service=open_service(first.service.config)) for _ in range(workers - 1)),
    ]
    keys = []
    for number in range(1, 7):
        put_invoice(sandbox, number, subscriptionID=f"SUB-00000000-0000-4000-8000-{number:08X}")
        with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
            db.execute(
                "INSERT INTO usage VALUES (?, 'c1', ?)",
                (f"SUB-00000000-0000-4000-8000-{number:08X}", START),
            )
        keys.append(first.deliver(number))
    start = threading.Barrier(workers)

    def race(number: int) -> None:
        start.wait(10)
        for key in keys:
            stages[number].run(key, owner=f"worker {number}")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(race, range(workers)))
    rows = first.service.journal.invoices()
    assert {row.state for row in rows} == {State.ISSUED}
    assert sandbox.control.record().issues == {key.invoice_id: 1 for key in keys}


def test_the_wait_for_a_running_period_is_until_its_end(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str
) -> None:
    """A subscription whose clock runs ahead raises an invoice early; it is not counted early."""
    stage = stage_on(tmp_path, sandbox, journal_url)
    put_invoice(sandbox)
    stage.ahead = datetime(2015, 12, 2, 12, 0, tzinfo=UTC) - NOW
    key = stage.deliver()
    stage.run(key)
    history = stage.service.journal.history(key)
    assert history is not None
    assert history.row.state is State.WAITING
    assert history.row.due_at == datetime(2015, 12, 2, 12, 23, 51, tzinfo=UTC)
    assert sandbox.control.record().sent("POST") == []
    assert stage.run_until_settled(key).row.state is State.ISSUED
