"""A real installation to scrape: endpoint, worker and sweep in processes of their own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from builders import INV
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from sandbox.process import RunningSandbox
from webhook_app import create_app
from worker.config import load_config

PASSWORD = "webhook-password-of-tests"
SUB = "SUB-926F46F4-CED2-475E-9E0E-8CF78A49"
NOT = "NOT-A66C1042-83BC-4224-B197-D6D7BC37"
Labels = tuple[tuple[str, str], ...]


@dataclass
class Installation:
    """A configuration in a folder, and what is run with it."""

    folder: Path
    environ: Mapping[str, str]

    def client(self) -> FlaskClient:
        """Make the endpoint, in this process."""
        return create_app(load_config(self.folder / "config.toml", self.environ)).test_client()

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command in a process of its own; return what it logged."""
        done = subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stderr


def installation(folder: Path, sandbox: RunningSandbox, redis_url: str, more: str) -> Installation:
    """Write a configuration for the article's invoice, which counts 105 text messages."""
    with closing(sqlite3.connect(folder / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at INTEGER)")
        start = int(datetime(2015, 11, 2, 12, 18, 51, tzinfo=UTC).timestamp())
        rows = [(SUB, "text_message", start + n) for n in range(105)]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    (folder / "config.toml").write_text(
        f'[platforms.billforward]\nbase_url = "{sandbox.base_url}"\n'
        f'[journal]\nurl = "sqlite:///{folder}/journal.db"\n'
        f'[usage_sources.events]\nkind = "sql"\nurl = "sqlite:///{folder}/usage.db"\n'
        'table = "usage"\nsubject_column = "subject"\nmetric_column = "metric"\n'
        'time_column = "at"\ntime_format = "epoch_seconds"\n'
        '[components."Text messages"]\nsource = "events"\nmetric = "text_message"\n' + more
    )
    environ = {
        "RECONCILER_CONFIG": str(folder / "config.toml"),
        "RECONCILER__WEBHOOK__PASSWORD": PASSWORD,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }
    return Installation(folder, environ)


def put_invoice(
    sandbox: RunningSandbox, component: str = "Text messages", invoice_type: str = "Subscription"
) -> None:
    """Put the article's invoice into the sandbox."""
    charge = {
        "id": "CHG-8960CF32-A993-4EFA-8F48-26EB1F1A",
        "name": component,
        "pricingComponentName": component,
        "pricingComponentType": "usage",
        "pricingComponentValue": 0,
        "periodStart": "2015-11-02T12:18:51Z",
        "periodEnd": "2015-12-02T12:18:51Z",
        "price": {
            "model": "tiered",
            "tiers": [{"lower": 0, "upper": None, "type": "unit", "price": 0.02}],
        },
    }
    sandbox.control.put_invoice(
        id=INV,
        type=invoice_type,
        state="Pending",
        subscriptionID=SUB,
        periodStart="2015-12-02T12:18:51Z",
        periodEnd="2016-01-02T12:18:51Z",
        charges=[charge],
        notify=False,
    )


def deliver(client: FlaskClient, password: str = PASSWORD) -> TestResponse:
    """Deliver the notification of the article's invoice."""
    body = {
        "type": "notification",
        "id": NOT,
        "domain": "Invoice",
        "action": "Pending",
        "entityID": INV,
        "entity": json.dumps({"type": "invoice", "id": INV}),
    }
    credentials = b64encode(f"billing-platform:{password}".encode()).decode()
    return client.post(
        "/webhooks/billforward",
        data=json.dumps(body),
        headers={"Authorization": f"Basic {credentials}"},
    )


def samples(text: str) -> dict[str, dict[Labels, float]]:
    """Read a scrape: by name, by labels."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    """Return one value of a scrape; it must be there."""
    return samples(text)[name][tuple(sorted(labels.items()))]


def total(values: Iterable[float]) -> float:
    """Add up values of a scrape."""
    return float(sum(values))
