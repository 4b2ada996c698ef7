"""The doorbell, RQ's worker and the sweep, on a real Redis, a real sandbox and a real journal."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from builders import INV, KEY, LEASE, delivery
from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from sandbox.process import RunningSandbox
from worker.doorbell import FUNCTION, Doorbell, job_id_of
from worker.errors import QueueUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.metrics import families
from worker.pulse import pulse
from worker.record import Entry, EntryKind, State
from worker.rq_worker import plain, worker_name
from worker.sweep import Sweep

SUB = "SUB-926F46F4-CED2-475E-9E0E-8CF78A49"
CHG = "CHG-8960CF32-A993-4EFA-8F48-26EB1F1A"
NOW = datetime.now(UTC)


@pytest.fixture
def doorbell(redis_url: str) -> Doorbell:
    """The doorbell of the queue that the worker listens to."""
    return Doorbell(redis_url, "reconcile")


@pytest.fixture
def environ(
    tmp_path: Path, sandbox: RunningSandbox, redis_url: str, journal_url: str
) -> Mapping[str, str]:
    """The environment of a worker: sandbox, Redis, journal and a usage database of 105 events."""
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at INTEGER)")
        start = int(datetime(2015, 11, 2, 12, 18, 51, tzinfo=UTC).timestamp())
        rows = [(SUB, "text_message", start + n) for n in range(105)]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[platforms.billforward]\nbase_url = "{sandbox.base_url}"\n'
        f'[journal]\nurl = "{journal_url}"\n'
        f'[usage_sources.events]\nkind = "sql"\nurl = "sqlite:///{tmp_path}/usage.db"\n'
        'table = "usage"\nsubject_column = "subject"\nmetric_column = "metric"\n'
        'time_column = "at"\ntime_format = "epoch_seconds"\n'
        '[components."Text messages"]\nsource = "events"\nmetric = "text_message"\n'
    )
    return {
        **os.environ,
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__WEBHOOK__PASSWORD": "webhook-secret",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }


@pytest.fixture
def journal(environ: Mapping[str, str], journal_url: str) -> SqliteJournal:
    """The journal the worker writes to."""
    return SqliteJournal(Path(journal_url.removeprefix("sqlite:///")))


def sweep_once(journal: SqliteJournal, doorbell: Doorbell) -> int:
    """Make a round that asks no platform; return for how many invoices it rang."""
    sweep = Sweep(
        journal=journal,
        platforms={},
        doorbell=doorbell,
        now=lambda: datetime.now(UTC),
        find_every=timedelta(0),
        find_pages=0,
    )
    return sweep.round().rung


def put_invoice(sandbox: RunningSandbox, **changed: Any) -> None:
    """Put the article's invoice into the sandbox."""
    charge = {
        "id": CHG,
        "name": "Text messages",
        "pricingComponentName": changed.pop("component", "Text messages"),
        "pricingComponentType": "usage",
        "pricingComponentValue": 0,
        "periodStart": "2015-11-02T12:18:51Z",
        "periodEnd": "2015-12-02T12:18:51Z",
        "price": {
            "model": "tiered",
            "tiers": [
                {"lower": 0, "upper": 100, "type": "unit", "price": 0},
                {"lower": 101, "upper": None, "type": "unit", "price": 0.02},
            ],
        },
    }
    sandbox.control.put_invoice(
        **{
            "id": INV,
            "type": "Subscription",
            "state": "Pending",
            "subscriptionID": SUB,
            "periodStart": "2015-12-02T12:18:51Z",
            "periodEnd": "2016-01-02T12:18:51Z",
            "charges": [charge],
            "notify": False,
            **changed,
        }
    )


def work_off(environ: Mapping[str, str]) -> str:
    """Run a worker process until the queue is empty; return what it logged."""
    command = [sys.executable, "-m", "worker", "work", "--burst"]
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def working(
    environ: Mapping[str, str], log: BinaryIO | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a worker process running; it must end well when asked to."""
    command = [sys.executable, "-m", "worker", "work"]
    worker = subprocess.Popen(command, env=dict(environ), stderr=log)
    try:
        yield worker
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


def eventually(found: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def state_of(journal: SqliteJournal) -> tuple[State, str]:
    """Return the invoice's state and reason."""
    history = journal.history(KEY)
    assert history is not None
    return history.row.state, history.row.reason


def test_a_rung_invoice_is_reconciled_by_a_worker_process(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """From the queue to Unpaid, 5.10: the article's own numbers, by a real worker."""
    put_invoice(sandbox)
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    logged = work_off(environ)
    assert state_of(journal) == (State.ISSUED, "Unpaid, 0.10 USD")
    charge = sandbox.control.invoice(INV)["charges"][0]
    assert (charge["pricingComponentValue"], str(charge["amount"])) == (105, "0.10")
    (event,) = [json.loads(line) for line in logged.splitlines() if '"issued"' in line]
    assert event["invoice"] == INV
    assert event["calls"] == 8
    assert event["seconds"] >= 0
    assert doorbell.failed() == []


def test_in_observe_mode_the_whole_program_only_reads(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """Sweep and worker count and price; the platform sees no write, and no acknowledgement."""
    put_invoice(sandbox)
    before = sandbox.control.invoice(INV)
    journal.record_delivery(delivery(owes_ack=True), NOW)
    observing = {
        **environ,
        "RECONCILER__RULES__MODE": "observe",
        "RECONCILER__PLATFORMS__BILLFORWARD__ACKNOWLEDGE": "true",
    }
    command = [sys.executable, "-m", "worker", "sweep", "--once"]
    subprocess.run(command, env=observing, check=True, timeout=60)
    assert doorbell.queue.get_job_ids() == [job_id_of(KEY)]
    work_off(observing)
    assert state_of(journal) == (State.OBSERVED, "would bill 0.10 USD; the mode is observe")
    history = journal.history(KEY)
    assert history is not None
    (charge,) = history.entries[-1].data["charges"]
    assert (charge["quantity_before"], charge["quantity"], charge["amount"]) == ("0", "105", "0.10")
    assert sandbox.control.invoice(INV) == before
    assert before["state"] == "Pending"
    sent = sandbox.control.record().requests
    writes = [(one["path"], one["body"]["dryRun"]) for one in sent if one["method"] != "GET"]
    assert writes == [("/v1/charges/recalculate", True)]
    paths = [one["path"] for one in sent]
    assert "/v1/invoices/state/Pending" in paths  # the sweep has looked
    assert [path for path in paths if "/ack/" in path] == []
    assert journal.acks_owed("billforward") == [delivery().id]


def test_a_worker_is_known_to_rq_as_to_the_journal(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """Its name in RQ begins with the owner of its claims; two of one process number are two."""
    put_invoice(sandbox)
    sandbox.control.set(latency_seconds=0.5)
    journal.record_delivery(delivery(), NOW)
    with working(environ) as worker:
        doorbell.ring(KEY)
        eventually(lambda: _claimed(journal))
        history = journal.history(KEY)
        (alive,) = pulse(doorbell).workers
        (known,) = Worker.all(connection=doorbell.redis)
    assert history is not None
    assert history.row.lease_owner == f"{socket.gethostname()}:{worker.pid}"
    assert alive.name == known.name
    assert alive.name.startswith(f"{history.row.lease_owner}:")
    assert worker_name() != worker_name()


def test_a_held_invoice_is_seen_in_the_failed_registry_in_one_line(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """Operators see which invoice and why, without a traceback; the worker lives on."""
    put_invoice(sandbox, component="Fax <b>pages</b>")
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    logged = work_off(environ)
    assert state_of(journal)[0] is State.HELD
    assert doorbell.failed() == [job_id_of(KEY)]
    job = Job.fetch(job_id_of(KEY), connection=doorbell.redis, serializer=JSONSerializer)
    assert job.description == f"{INV} billforward"
    latest = job.latest_result()
    assert latest is not None
    assert latest.exc_string is not None
    assert latest.exc_string == (
        'Held: component "Fax ‹b›pages‹/b›" has no source. Map it in config, then requeue.'
    )
    assert "Traceback" not in logged
    assert sandbox.control.record().sent("POST") == []


def test_a_requeue_in_rq_replays_a_held_invoice(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """The dashboard's requeue button runs the same job; once mapped, the invoice goes out."""
    put_invoice(sandbox, component="Fax pages")
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    work_off(environ)
    with Path(environ["RECONCILER_CONFIG"]).open("a") as config:
        config.write('[components."Fax pages"]\nsource = "events"\nmetric = "text_message"\n')
    registry = FailedJobRegistry(queue=doorbell.queue)
    registry.requeue(job_id_of(KEY))
    work_off(environ)
    assert state_of(journal)[0] is State.ISSUED
    assert doorbell.failed() == []


def test_a_running_worker_reads_a_changed_configuration(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """A mapping added while the worker runs counts for the next job; a mistake keeps the old."""
    put_invoice(sandbox, component="Fax pages")
    config = Path(environ["RECONCILER_CONFIG"])
    good = config.read_text()
    with working(environ):
        for text, state in (
            (good, State.HELD),
            (good + "\n[rules]\ngrace = 1\n", State.HELD),
            (
                good + '[components."Fax pages"]\nsource = "events"\nmetric = "text_message"\n',
                State.ISSUED,
            ),
        ):
            config.write_text(text)
            journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=datetime.now(UTC)))
            doorbell.ring(KEY)
            eventually(lambda: not journal.due(datetime.now(UTC)) and not _claimed(journal))
            assert state_of(journal)[0] is state


SOURCE = """
from dataclasses import dataclass
from pathlib import Path

from usage_sources.sql import SqlSource


@dataclass(frozen=True, kw_only=True)
class Noted(SqlSource):
    def close(self):
        super().close()
        with Path(__file__).with_suffix(".txt").open("a") as notes:
            print(self.timeout_seconds, file=notes)
        raise OSError("it is stuck")
"""


def test_the_sources_of_the_former_configuration_are_closed(
    environ: Mapping[str, str],
    journal: SqliteJournal,
    doorbell: Doorbell,
    sandbox: RunningSandbox,
    tmp_path: Path,
) -> None:
    """Each once, when the new one is in force; a close that fails is logged, and the job works."""
    put_invoice(sandbox)
    (tmp_path / "noted.py").write_text(SOURCE)
    config = Path(environ["RECONCILER_CONFIG"])
    text = config.read_text().replace('kind = "sql"', 'kind = "noted:Noted"\ntimeout_seconds = 7')
    changed = text.replace("timeout_seconds = 7", "timeout_seconds = 8")
    there = {**environ, "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "worker.log").open("wb") as log, working(there, log):
        for written, state in (
            (text + '[rules]\nmode = "observe"\n', State.OBSERVED),
            (changed, State.ISSUED),
            ("", State.ISSUED),
        ):
            if written:
                config.write_text(written)
            journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=datetime.now(UTC)))
            doorbell.ring(KEY)
            eventually(lambda: not journal.due(datetime.now(UTC)) and not _claimed(journal))
            assert state_of(journal)[0] is state
    assert (tmp_path / "noted.txt").read_text() == "7.0\n"
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines()]
    (stuck,) = [line for line in lines if line["event"] == "source_not_closed"]
    assert (stuck["source"], stuck["reason"], stuck["invoice"]) == ("events", "OSError", INV)
    assert "job_failed" not in {line["event"] for line in lines}


def _claimed(journal: SqliteJournal) -> bool:
    history = journal.history(KEY)
    return history is not None and history.row.lease_owner is not None


def test_ringing_many_times_is_one_job(doorbell: Doorbell) -> None:
    """An invoice that is on the queue is not put there again."""
    for _ in range(5):
        doorbell.ring(KEY)
    assert doorbell.queue.get_job_ids() == [job_id_of(KEY)]


def test_ringing_takes_the_invoice_out_of_the_failed_registry(doorbell: Doorbell) -> None:
    """A replayed invoice is no longer listed as failed while it is on its way."""
    doorbell.redis.zadd(doorbell.queue.failed_job_registry.key, {job_id_of(KEY): 1})
    doorbell.ring(KEY)
    assert doorbell.failed() == []


def test_a_platform_that_is_gone_from_the_configuration_holds(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell
) -> None:
    """The invoice is held with the reason, not tried again for ever."""
    gone = delivery(platform="former")
    journal.record_delivery(gone, NOW)
    assert gone.key is not None
    doorbell.ring(gone.key)
    work_off(environ)
    (row,) = journal.invoices()
    assert (row.state, row.due_at) == (State.HELD, None)
    assert row.reason.startswith('there is no platform "former" in the config any more')


def test_a_parked_invoice_of_a_platform_that_is_gone_is_left_alone(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, tmp_path: Path
) -> None:
    """A job that was on the queue already ends well, and counts as a run that came twice."""
    gone = delivery(platform="former")
    journal.record_delivery(gone, NOW)
    assert gone.key is not None
    doorbell.ring(gone.key)
    assert journal.park(
        gone.key, Entry(kind=EntryKind.PARKED, at=NOW, data={"by": "ann", "reason": "a dispute"})
    )
    work_off({**environ, "RECONCILER__METRICS__FOLDER": str(tmp_path / "counted")})
    (row,) = journal.invoices()
    assert (row.state, doorbell.failed()) == (State.PARKED, [])
    counted = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(tmp_path / "counted")
        for sample in family.samples
    }
    assert counted["reconciler_duplicates_suppressed_total", "run"] == 1
    assert not any(name == "reconciler_decisions_total" and n for (name, *_), n in counted.items())


def test_a_worker_asked_to_end_gives_its_invoice_up_at_once(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """SIGTERM: the current call ends, is journaled, the claim given up, exit 0; another goes on."""
    put_invoice(sandbox)
    sandbox.control.set(latency_seconds=0.5)
    journal.record_delivery(delivery(), NOW)
    with working(environ) as worker:
        doorbell.ring(KEY)
        eventually(lambda: _claimed(journal))
        began_at = time.monotonic()
        worker.terminate()
        assert worker.wait(20) == 0
        assert time.monotonic() - began_at < 5
    history = journal.history(KEY)
    assert history is not None
    assert (history.row.state, history.row.lease_owner) == (State.DUE, None)
    assert history.entries[-1].kind is EntryKind.STOPPED
    sandbox.control.set(latency_seconds=0)
    doorbell.ring(KEY)
    work_off(environ)
    assert state_of(journal)[0] is State.ISSUED


def test_what_stands_in_redis_is_an_id_and_a_name(doorbell: Doorbell, redis_url: str) -> None:
    """The job carries platform and invoice id as JSON, nothing else (R9)."""
    doorbell.ring(KEY)
    job = Job.fetch(job_id_of(KEY), connection=doorbell.redis, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs) == (FUNCTION, ["billforward", INV], {})
    assert job.meta == {}
    assert job.timeout == -1


def test_the_sweep_rings_for_what_redis_forgot(
    environ: Mapping[str, str],
    journal: SqliteJournal,
    doorbell: Doorbell,
    sandbox: RunningSandbox,
) -> None:
    """After FLUSHALL one sweep brings back every due invoice (R3)."""
    put_invoice(sandbox)
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    doorbell.redis.flushall()
    assert sweep_once(journal, doorbell) == 1
    work_off(environ)
    assert state_of(journal)[0] is State.ISSUED
    assert sweep_once(journal, doorbell) == 0


def test_the_sweep_leaves_what_is_not_its_business(
    journal: SqliteJournal, doorbell: Doorbell
) -> None:
    """Claimed invoices and those whose time has not come stay quiet."""
    journal.record_delivery(delivery(), NOW + timedelta(hours=1))
    assert sweep_once(journal, doorbell) == 0
    claim = journal.claim(KEY, "one", NOW + timedelta(hours=1), LEASE)
    assert claim is not None
    assert sweep_once(journal, doorbell) == 0


def test_redis_that_is_not_there_is_told(journal: SqliteJournal) -> None:
    """The sweep says that Redis is silent; what is due stays due."""
    journal.record_delivery(delivery(), NOW)
    with pytest.raises(QueueUnavailable, match="ConnectionError"):
        sweep_once(journal, Doorbell("redis://127.0.0.1:9/0", "reconcile"))
    assert journal.due(datetime.now(UTC)) == [KEY]


def crafted(redis: Redis, job_id: str, data: bytes, **fields: Any) -> None:
    """Put a job into Redis as an attacker with access to it would."""
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    values: Any = {
        "created_at": moment,
        "enqueued_at": moment,
        "origin": "reconcile",
        "data": data,
    }
    values |= {"status": "queued", **fields}
    redis.hset(f"rq:job:{job_id}", mapping=values)
    redis.rpush("rq:queue:reconcile", job_id)


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_but_our_function_runs(
    environ: Mapping[str, str],
    journal: SqliteJournal,
    doorbell: Doorbell,
    sandbox: RunningSandbox,
    tmp_path: Path,
) -> None:
    """Pickles, other functions, callbacks and wrong arguments are refused, and work goes on."""
    mark = tmp_path / "pwned"
    redis = doorbell.redis

    def call(function: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> bytes:
        return json.dumps([function, None, args, kwargs or {}]).encode()

    crafted(redis, "pickled", pickle.dumps(Exploit(mark)))
    crafted(redis, "system", call("os.system", [f"touch {mark}"]))
    crafted(redis, "arguments", call(FUNCTION, ["billforward", INV, "more"]))
    crafted(redis, "keywords", call(FUNCTION, [], {"platform": "billforward", "invoice_id": INV}))
    crafted(redis, "types", call(FUNCTION, ["billforward", 7]))
    crafted(redis, "timeout", call("os.getcwd", []), timeout="soon")
    for field in ("created_at", "result_ttl", "failure_ttl", "status"):
        crafted(redis, f"bad-{field}", call("os.getcwd", []), **{field: "garbage"})
    crafted(redis, "bad-bytes", call("os.getcwd", []), origin=b"\xff\xfe", description=b"\xff")
    crafted(
        redis,
        "callback",
        call(FUNCTION, ["billforward", INV]),
        success_callback_name="os.getcwd",
        failure_callback_name="os.abort",
        webhooks=json.dumps([{"url": "http://127.0.0.1:9/"}]),
    )
    put_invoice(sandbox)
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    work_off(environ)
    assert not mark.exists()
    assert set(doorbell.failed()) == {
        "pickled",
        "system",
        "arguments",
        "keywords",
        "types",
        "timeout",
    }
    assert state_of(journal)[0] is State.ISSUED


def test_what_the_dashboard_shows_is_plain() -> None:
    """Markup and secrets are taken out of every text that enters RQ."""
    assert (
        plain("<script>alert('s3cret')</script>", ("s3cret", "")) == "‹script›alert('***')‹/script›"
    )


def test_no_secret_is_left_anywhere(
    environ: Mapping[str, str], journal: SqliteJournal, doorbell: Doorbell, sandbox: RunningSandbox
) -> None:
    """After a run with failures neither log, Redis nor journal holds a token or password (R9)."""
    put_invoice(sandbox)
    sandbox.control.add_fault("html", status=502, match={"path": "/invoices/"}, times=None)
    bad = {**environ, "RECONCILER__PLATFORMS__BILLFORWARD__TOTAL_TIMEOUT_SECONDS": "0.5"}
    journal.record_delivery(delivery(), NOW)
    doorbell.ring(KEY)
    logged = work_off(bad)
    sandbox.control.clear_faults()
    state, reason = state_of(journal)
    assert state is State.RETRYING
    assert "502" in reason
    dump = b"".join(_everything(doorbell.redis)) + journal.path.read_bytes() + logged.encode()
    dump += journal.path.with_name(journal.path.name + "-wal").read_bytes()
    assert INV.encode() in dump
    for secret in (sandbox.token, "webhook-secret"):
        assert secret.encode() not in dump


def _everything(redis: Redis) -> Iterator[bytes]:
    for key in redis.scan_iter():
        dumped = redis.dump(key)
        assert isinstance(dumped, bytes)
        yield key + dumped


def test_the_queue_is_read_by_its_name(redis_url: str) -> None:
    """Doorbell and worker meet on the configured queue."""
    Doorbell(redis_url, "other").ring(KEY)
    with Redis.from_url(redis_url) as redis:
        assert Queue("other", connection=redis, serializer=JSONSerializer).count == 1
        assert Queue("reconcile", connection=redis, serializer=JSONSerializer).count == 0
