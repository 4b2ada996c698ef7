"""A whole installation on this machine, for browser tests and screenshots.

Redis, the BillForward sandbox, a usage database and a journal of its own; then the endpoint with
the operators' pages, a worker and a sweep, each a real process that ends with its `with` block.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from sandbox.client import SandboxControl
from sandbox.process import running_sandbox
from worker.demo.processes import running, wait_for
from worker.demo.redis_server import free_port, redis_server
from worker.demo.run import is_ready
from worker.domain import InvoiceKey, Period, utc_text
from worker.doorbell import Doorbell
from worker.journal import open_journal
from worker.ports import Journal
from worker.record import History

PLATFORM = "billforward"
OPERATOR, READER = "olga", "rudi"

_TOKEN = "token-of-the-station"  # noqa: S105  it guards nothing
_WEBHOOK_USER = "platform"
_START_SECONDS = 30.0
_PRICE = {
    "model": "tiered",
    "tiers": [
        {"lower": 0, "upper": 0, "type": "fixed", "price": Decimal("0.00")},
        {"lower": 1, "upper": None, "type": "unit", "price": Decimal("0.25")},
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """An installation, and what its pages are compared with."""

    folder: Path
    port: int
    environ: Mapping[str, str]
    password: str  # of both people
    journal: Journal
    doorbell: Doorbell
    control: SandboxControl

    @property
    def url(self) -> str:
        """Where the endpoint listens."""
        return f"http://127.0.0.1:{self.port}"

    def map(self, component: str, metric: str) -> None:
        """Give a component its source, as an operator does: by a table at the config's end."""
        with (self.folder / "config.toml").open("a") as config:
            config.write(f"\n[components.{json.dumps(component)}]\n")  # TOML quotes as JSON does
            config.write(f'source = "events"\nmetric = {json.dumps(metric)}\n')

    def use(self, subscription: str, metric: str, times: Sequence[str]) -> None:
        """Let a customer use something at these times."""
        with closing(sqlite3.connect(self.folder / "usage.db")) as db, db:
            rows = [(subscription, metric, time) for time in times]
            db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)

    def history(self, invoice_id: str) -> History:
        """Return what the journal knows of an invoice; KeyError: nothing."""
        found = self.journal.history(InvoiceKey(PLATFORM, invoice_id))
        if found is None:
            raise KeyError(invoice_id)
        return found


def usage_charge(component: str, period: Period, **changed: Any) -> dict[str, Any]:
    """Make a usage charge that stands at 0; a unit costs 0.25."""
    return {
        "name": component,
        "pricingComponentName": component,
        "pricingComponentType": "usage",
        "pricingComponentValue": 0,
        "periodStart": utc_text(period.start),
        "periodEnd": utc_text(period.end),
        "price": _PRICE,
        **changed,
    }


@contextmanager
def station(folder: Path, components: Mapping[str, str]) -> Iterator[Station]:
    """Prepare an installation that maps these components to metrics; nothing of ours runs yet."""
    with ExitStack() as stack:
        redis_url = stack.enter_context(redis_server(folder / "redis", environ={}))
        sandbox = stack.enter_context(running_sandbox(token=_TOKEN))
        port, password = free_port(), secrets.token_hex(8)
        config = folder / "config.toml"
        config.write_text(_config(folder, sandbox.base_url, port))
        with closing(sqlite3.connect(folder / "usage.db")) as db, db:
            db.execute("CREATE TABLE usage (subscription_id TEXT, metric TEXT, occurred_at TEXT)")
        environ = {
            **{name: value for name, value in os.environ.items() if "RECONCILER_" not in name},
            "RECONCILER_CONFIG": str(config),
            "RECONCILER__WEBHOOK__PASSWORD": password,
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
            "RECONCILER__QUEUE__REDIS_URL": redis_url,
            **{f"RECONCILER__OPS__USERS__{n.upper()}__PASSWORD": password for n in _ROLES},
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        }
        made = Station(
            folder=folder,
            port=port,
            environ=environ,
            password=password,
            journal=stack.enter_context(closing(open_journal(f"sqlite:///{folder}/journal.db"))),
            doorbell=Doorbell(redis_url, "reconcile"),
            control=sandbox.control,
        )
        stack.callback(made.doorbell.redis.close)
        for component, metric in components.items():
            made.map(component, metric)
        yield made


@contextmanager
def started(prepared: Station) -> Iterator[None]:
    """Run the endpoint, a worker and a sweep; notifications are delivered from now on."""
    folder, environ = prepared.folder, prepared.environ
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(running(name, [name], folder, environ))
            for name in ("serve", "work", "sweep")
        }
        wait_for(
            "the endpoint",
            lambda: is_ready(f"{prepared.url}/readyz"),
            seconds=_START_SECONDS,
            alive=processes,
            folder=folder,
        )
        where = f"{_WEBHOOK_USER}:{prepared.password}@127.0.0.1:{prepared.port}"
        prepared.control.add_webhook(f"http://{where}/webhooks/{PLATFORM}")
        yield


_ROLES = {OPERATOR: "operator", READER: "reader"}


def _config(folder: Path, base_url: str, port: int) -> str:
    users = "".join(f'[ops.users.{name}]\nrole = "{role}"\n' for name, role in _ROLES.items())
    return (
        f'[webhook]\nusername = "{_WEBHOOK_USER}"\nport = {port}\nprocesses = 1\n'
        f'[platforms.{PLATFORM}]\nbase_url = "{base_url}"\n'
        f'[journal]\nurl = "sqlite:///{folder}/journal.db"\n'
        "[sweep]\ninterval_seconds = 1\n"
        f"[ops]\nenabled = true\n{users}"
        f'[usage_sources.events]\nkind = "sql"\nurl = "sqlite:///{folder}/usage.db"\n'
        'table = "usage"\nsubject_column = "subscription_id"\nmetric_column = "metric"\n'
        'time_column = "occurred_at"\ntime_format = "iso"\n'
    )
