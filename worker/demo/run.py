"""Runs the demo: starts everything, delivers the notifications, waits, replays, reports."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import requests
from rq.results import Result

from sandbox.client import ControlError, SandboxControl
from sandbox.process import RunningSandbox, StartError, running_sandbox
from worker.demo import scenario
from worker.demo.processes import StepFailed, running, wait_for
from worker.demo.redis_server import NoRedis, free_port, redis_server
from worker.demo.report import Report, report_of
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell, job_id_of
from worker.errors import JournalUnavailable
from worker.journal import open_journal
from worker.ports import Journal
from worker.record import State

STATE_FOLDER = Path(".reconciler-demo")
PLATFORM = "billforward"
_START_SECONDS = 20.0
_WORK_SECONDS = 25.0
_USER = "billforward"
_FAILURES = (
    *(StepFailed, NoRedis, StartError, ControlError, OSError, TimeoutError),
    *(JournalUnavailable, subprocess.TimeoutExpired),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What runs, and where it can be looked at."""

    folder: Path
    environ: Mapping[str, str]
    processes: Mapping[str, subprocess.Popen[bytes]]
    control: SandboxControl
    journal: Journal
    doorbell: Doorbell


def run_demo(*, as_json: bool) -> int:
    """Run the demo in the working directory; return the exit code."""
    began_at = time.monotonic()
    try:
        with _stoppable(), _folder(STATE_FOLDER.resolve()) as folder, ExitStack() as stack:
            report = _played(_set_up(folder, stack))
            demand_totals(report, scenario.STORIES)
    except _FAILURES as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    print(report.to_json() if as_json else report.to_table())
    _say(f"{len(report.histories)} invoices in {time.monotonic() - began_at:.1f} s")
    _say(f"how the first was counted: .venv/bin/reconciler show {scenario.ARTICLE}")
    return 0


def demand_totals(report: Report, stories: Sequence[scenario.Story]) -> None:
    """Raise StepFailed, naming each invoice that does not come to what its story says."""
    seen = report.totals()
    wrong = [
        f"{story.invoice_id} comes to {seen.get(story.invoice_id)}, expected {story.total}"
        for story in stories
        if seen.get(story.invoice_id) != story.total
    ]
    if wrong:
        raise StepFailed("\n".join(wrong))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end what was started, as Ctrl-C does."""

    def stop(_number: int, _frame: object) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Yield the state folder, emptied of what an earlier demo left; one demo at a time."""
    lock = folder / "demo.lock"
    if folder.exists() and any(folder.iterdir()) and not lock.exists():
        raise StepFailed(f"{folder} holds something else; move it away")
    folder.mkdir(exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepFailed(f"another demo is running in {folder}") from None
        for left in folder.iterdir():
            if left != lock:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder


def _set_up(folder: Path, stack: ExitStack) -> Stage:
    _say("usage database")
    scenario.write_usage(folder / "usage.db")
    _say("Redis")
    redis_url = stack.enter_context(redis_server(folder / "redis"))
    _say("BillForward sandbox")
    sandbox = stack.enter_context(running_sandbox(token=secrets.token_hex(16)))
    port, password = free_port(), secrets.token_hex(16)
    config = folder / "config.toml"
    config.write_text(_config(folder, sandbox, port))
    queue = f"demo-{secrets.token_hex(4)}"
    environ = {
        **{name: value for name, value in os.environ.items() if "RECONCILER_" not in name},
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__WEBHOOK__PASSWORD": password,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
        "RECONCILER__QUEUE__NAME": queue,
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
    }
    doorbell = Doorbell(redis_url, queue)
    stack.callback(_forget_queue, doorbell)  # once its worker, started below, has ended
    _say("webhook endpoint and worker")
    webhook = stack.enter_context(running("webhook", ["serve"], folder, environ))
    worker = stack.enter_context(running("worker", ["work"], folder, environ))
    processes = {"webhook": webhook, "worker": worker}
    wait_for(
        "the webhook endpoint",
        lambda: is_ready(f"http://127.0.0.1:{port}/readyz"),
        seconds=_START_SECONDS,
        alive=processes,
        folder=folder,
    )
    sandbox.control.add_webhook(f"http://{_USER}:{password}@127.0.0.1:{port}/webhooks/{PLATFORM}")
    journal = open_journal(f"sqlite:///{folder / 'journal.db'}")
    stack.callback(journal.close)
    return Stage(
        folder=folder,
        environ=environ,
        processes=processes,
        control=sandbox.control,
        journal=journal,
        doorbell=doorbell,
    )


def _played(stage: Stage) -> Report:
    _say("invoices raised, notifications delivered")
    for invoice in scenario.invoices():
        stage.control.put_invoice(**invoice)
    for story in scenario.STORIES:
        stage.control.notify(story.invoice_id, action="Pending", times=story.times)
    _await_states(stage, {story.invoice_id: story.ends for story in scenario.STORIES})
    held = InvoiceKey(PLATFORM, scenario.UNMAPPED)
    _wait(stage, "the held invoice in RQ's failed registry", lambda: _failed(stage, held))
    held_reason = _reason(stage, held)
    _say(f'mapping "{scenario.FAX}", replaying {scenario.UNMAPPED}')
    with (stage.folder / "config.toml").open("a") as config:
        config.write(_component(scenario.FAX, "fax_page"))
    _replay(stage, scenario.UNMAPPED)
    _await_states(stage, {scenario.UNMAPPED: State.ISSUED})
    stage.control.wait_until_delivered()
    record = stage.control.record()
    if record.broken:
        raise StepFailed(f"the sandbox recorded broken rules: {record.broken}")
    if any(times != 1 for times in record.issues.values()):
        raise StepFailed(f"an invoice was issued more than once: {record.issues}")
    histories = [
        history
        for story in scenario.STORIES
        if (history := stage.journal.history(InvoiceKey(PLATFORM, story.invoice_id)))
    ]
    return report_of(histories, {scenario.UNMAPPED: held_reason})


def _await_states(stage: Stage, wanted: Mapping[str, State]) -> None:
    def reached() -> bool:
        rows = {row.key.invoice_id: row for row in stage.journal.invoices()}
        return all(
            invoice_id in rows
            and rows[invoice_id].state is state
            and rows[invoice_id].lease_owner is None
            for invoice_id, state in wanted.items()
        )

    try:
        _wait(stage, "the invoices' outcomes", reached)
    except StepFailed as error:
        seen = [
            f"{row.key.invoice_id}: {row.state} {row.reason}" for row in stage.journal.invoices()
        ]
        raise StepFailed("\n".join([str(error), *seen])) from None


def _wait(stage: Stage, what: str, found: Callable[[], bool]) -> None:
    wait_for(what, found, seconds=_WORK_SECONDS, alive=stage.processes, folder=stage.folder)


def _failed(stage: Stage, key: InvoiceKey) -> bool:
    return job_id_of(key) in stage.doorbell.failed()


def _reason(stage: Stage, key: InvoiceKey) -> str:
    history = stage.journal.history(key)
    return history.row.reason if history else ""


def _replay(stage: Stage, invoice_id: str) -> None:
    command = [sys.executable, "-m", "worker", "replay", invoice_id, "--reason", "mapped"]
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        command, env=dict(stage.environ), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise StepFailed(
            f"reconciler replay ended with {done.returncode}: {done.stdout}{done.stderr}"
        )


def _forget_queue(doorbell: Doorbell) -> None:
    """Leave nothing of the demo in a Redis that was there before it."""
    queue = doorbell.queue
    for registry in (queue.failed_job_registry, queue.finished_job_registry):
        for job_id in registry.get_job_ids(cleanup=False):
            registry.remove(job_id, delete_job=True)
            doorbell.redis.delete(Result.get_key(job_id))  # type: ignore[no-untyped-call]
    queue.delete(delete_jobs=True)
    for key in doorbell.redis.scan_iter("rq:worker:*"):  # RQ keeps a dead worker for a minute
        if doorbell.redis.hget(key, "queues") == queue.name.encode():
            doorbell.redis.delete(key)


def is_ready(url: str) -> bool:
    """Tell whether a server of this machine answers 200."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy must not come between us and the loopback
        try:
            return session.get(url, timeout=2).status_code == 200
        except requests.RequestException:
            return False


def _say(step: str) -> None:
    print(f"demo: {step}", file=sys.stderr)


def _config(folder: Path, sandbox: RunningSandbox, port: int) -> str:
    components = [_component(scenario.MESSAGES, "text_message")]
    components += [
        _component(scenario.report_component(number), scenario.report_component(number))
        for number in range(1, scenario.REPORT_COUNT + 1)
    ]
    return (
        f'[webhook]\nusername = "{_USER}"\nport = {port}\nprocesses = 1\n\n'
        f'[platforms.{PLATFORM}]\nbase_url = "{sandbox.base_url}"\n\n'
        f'[journal]\nurl = "sqlite:///{folder / "journal.db"}"\n\n'
        f'[usage_sources.events]\nkind = "sql"\nurl = "sqlite:///{folder / "usage.db"}"\n'
        'table = "usage"\nsubject_column = "subscription_id"\nmetric_column = "metric"\n'
        'time_column = "occurred_at"\ntime_format = "iso"\n\n' + "".join(components)
    )


def _component(name: str, metric: str) -> str:
    return f'[components."{name}"]\nsource = "events"\nmetric = "{metric}"\n\n'
