"""A whole installation for the doctor: real Redis, journal, sandbox and usage, all well."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from redis import Redis, RedisError
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from sandbox.client import SandboxControl
from sandbox.server import SandboxServer, serving
from worker.demo.processes import wait_for
from worker.demo.redis_server import find_binary, free_port, stop
from worker.doctor import Finding, examine
from worker.doorbell import Doorbell
from worker.wiring import utc_now

PASSWORD = "RECONCILER__WEBHOOK__PASSWORD"
TOKEN = "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN"
REDIS = "RECONCILER__QUEUE__REDIS_URL"
SECRET = "s3cr3t-and-long-enough"
PLATFORM = """
[platforms.billforward]
base_url = "BASE_URL"
total_timeout_seconds = 0.1
"""
COMPONENT = """
[components."Text messages"]
source = "events"
metric = "text_message"
"""
EVENTS = """
[usage_sources.events]
kind = "sql"
url = "sqlite:///usage.db"
table = "usage"
subject_column = "subject"
time_column = "at"
time_format = "iso"
metric_column = "metric"
"""
PRICE = {"model": "flat", "tiers": [{"lower": 0, "type": "unit", "price": 1}]}


def plan(*names: str, **fields: object) -> dict[str, object]:
    """Describe a rate plan with these usage components."""
    components = [{"name": one, "chargeType": "usage", "price": PRICE} for one in names]
    return {"name": "Gold", "components": components, **fields}


SUBJECTS = [
    *("config", "secrets", "passwords", "timeouts", "mode"),
    *("journal", "journal chain", "invoices", "components seen", "disk"),
    *("redis", "redis persistence", "redis eviction", "queue", "workers", "sweep"),
    *("platform billforward", "plans of billforward", "webhooks of billforward"),
    *("usage source events", "components", "web server", "operators' pages", "clock"),
]
"""What the doctor looks at in a whole installation, in its order."""


@dataclass
class Installation:
    """What the doctor examines; every part can be made wrong."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    server: SandboxServer
    control: SandboxControl
    stack: ExitStack
    now: Callable[[], datetime] = utc_now
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def journal_url(self) -> str:
        """The URL of the default journal."""
        return f"sqlite:///{self.folder}/state/journal.db"

    def configure(self, more: str = "", **parts: str) -> None:
        """Write the configuration, with parts of it replaced."""
        self.parts.update(parts)
        chosen = {"platform": PLATFORM, "events": EVENTS, "component": COMPONENT, **self.parts}
        text = more + "".join(chosen.values())
        Path("config.toml").write_text(text.replace("BASE_URL", self.server.base_url))

    def set(self, variable: str, value: str) -> None:
        """Set a variable of the environment."""
        self.monkeypatch.setenv(variable, value)

    def unset(self, variable: str) -> None:
        """Unset a variable of the environment."""
        self.monkeypatch.delenv(variable)

    def use_redis(self, url: str, queue: str = "reconcile") -> None:
        """Use a Redis, with a worker and a sweep that are alive on it."""
        self.set(REDIS, url)
        Doorbell(url, queue).note_sweep(utc_now())
        self.listen(url, queue)

    def listen(self, url: str, *queues: str) -> None:
        """Put a living worker into RQ's registry."""
        connection = Redis.from_url(url)
        self.stack.callback(connection.close)
        worker = Worker(
            [Queue(one, connection=connection, serializer=JSONSerializer) for one in queues],
            connection=connection,
            serializer=JSONSerializer,
        )
        worker.register_birth()  # type: ignore[no-untyped-call]

    def findings(self) -> list[Finding]:
        """Examine; no finding tells a secret, and each bad one says how to mend it."""
        found = list(examine(self.now))
        assert SECRET not in repr(found)
        assert self.server.token not in repr(found)
        assert [one for one in found if not one.well and not one.mend] == []
        return found

    def bad(self) -> Finding:
        """Examine; return the one finding that is not well."""
        bad = [one for one in self.findings() if not one.well]
        assert len(bad) == 1, bad
        return bad[0]

    def found(self, subject: str) -> Finding:
        """Examine; return the one finding on a subject."""
        (finding,) = [one for one in self.findings() if one.subject == subject]
        return finding


@contextmanager
def installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """Set an installation up in which all is well."""
    monkeypatch.chdir(folder)
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        control = stack.enter_context(SandboxControl(server.control_url))
        made = Installation(folder, monkeypatch, server, control, stack)
        control.put_plan(**plan("Text messages"))
        control.add_webhook("http://billing:x@127.0.0.1:1/webhooks/billforward")
        made.configure()
        made.set(PASSWORD, SECRET)
        made.set(TOKEN, server.token)
        made.use_redis(redis_url)
        make_usage()
        yield made


def make_usage(
    statement: str = "CREATE TABLE usage (subject TEXT, at TEXT, metric TEXT)",
) -> None:
    """Make the usage database, with one event where the table has its columns."""
    with closing(sqlite3.connect("usage.db")) as db, db:
        db.execute(statement)
        if "metric" in statement:
            db.execute("INSERT INTO usage VALUES ('S', '2020-01-01T00:00:00Z', 'text_message')")


@contextmanager
def redis_with(folder: Path, *settings: str) -> Iterator[str]:
    """Run a Redis with settings of its own."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = [find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([*command, *settings], stdin=subprocess.DEVNULL, stdout=log)
    try:
        with Redis.from_url(url) as client:
            alive = {"redis": server}
            wait_for("Redis", lambda: _answers(client), seconds=10, alive=alive, folder=folder)
        yield url
    finally:
        stop(server)


def _answers(client: Redis) -> bool:
    try:
        client.ping()
    except RedisError:
        return False
    return True
