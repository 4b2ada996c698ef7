"""One poison invoice among ordinary ones: what it costs the others, measured.

    python -m bench.poison --invoices 300 --workers 2 --repeats 3

Plays the same invoices against the real sandbox, with real worker and sweep processes, without a
poison invoice and with one at the head of the queue that never comes to an end:

- refused: the platform answers 500 whatever is asked about it
- hangs: its usage source says nothing until its timeout, and then gives up
- crashes: counting it kills the worker's process; a worker that ended is started again

The plays take turns; medians are compared, from the first claim to the last of the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sandbox.process import RunningSandbox, running_sandbox
from usage_sources.sql import SqlSource
from worker.demo.processes import running
from worker.demo.redis_server import redis_server, stop
from worker.domain import Delivery, InvoiceKey, Tally, UsageQuery, utc_text
from worker.doorbell import Doorbell
from worker.errors import SourceUnavailable
from worker.journal import open_journal
from worker.journal.codec import moment_of
from worker.journal.sql import SqlJournal
from worker.record import InvoiceRow, State

Until = Callable[[Sequence[InvoiceRow]], bool]
Kind = Literal["none", "refused", "hangs", "crashes"]
KINDS: tuple[Kind, ...] = ("none", "refused", "hangs", "crashes")
POISON = 0  # the number of the poison invoice; the others are 1, 2, ...
COMPONENTS = 5
_START, _END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
_TIERS = [{"lower": 0, "upper": None, "type": "unit", "price": 1}]
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class PoisonedUsage(SqlSource):
    """The usage database, which does not survive being asked about one subject."""

    # What becomes of a question about the poison: nothing until the timeout, or the end.
    does: Literal["hangs", "crashes", "answers"] = "answers"
    # How long it hangs before it gives up.
    hang_seconds: float = 1.0

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer, unless the poison is asked about."""
        if self.does != "answers" and any(one.subject == subject(POISON) for one in queries):
            if self.does == "crashes":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.hang_seconds)
            raise SourceUnavailable("no answer in time")
        return super().count(queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What is played."""

    invoices: int
    kind: Kind = "none"
    workers: int = 1
    latency_seconds: float = 0.0
    hang_seconds: float = 1.0
    sweep_seconds: float = 5.0
    settings: str = ""  # more TOML
    platform_settings: str = ""  # TOML of the platform's own table


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What it came to."""

    others: Sequence[InvoiceRow]
    poison: InvoiceRow | None
    seconds: float  # from the first claim to the last of the others settled
    poison_runs: int
    poison_seconds: float  # of a worker's time, as journaled; a run that crashed journals none
    workers_started: int
    failed_jobs: Sequence[str]
    issues: Mapping[str, int]  # how often the sandbox issued each invoice

    @property
    def per_second(self) -> float:
        """Tell how many of the others were done a second."""
        return len(self.others) / self.seconds


def key_of(number: int) -> InvoiceKey:
    """Name an invoice."""
    return InvoiceKey("billforward", f"INV-B1500000-0000-4000-8000-{number:08X}")


def subject(number: int) -> str:
    """Name the subscription of an invoice."""
    return f"SUB-B1500000-0000-4000-8000-{number:08X}"


def play(folder: Path, sandbox: RunningSandbox, redis_url: str, it: Play, until: Until) -> Played:
    """Play it until `until(rows)`; everything started is stopped in the end."""
    folder.mkdir(parents=True)
    numbers = range(0 if it.kind != "none" else 1, it.invoices + 1)
    _write_usage(folder / "usage.db", numbers)
    _put_invoices(sandbox, it, numbers)
    environ = _environ(folder, sandbox, redis_url, it)
    journal = open_journal(f"sqlite:///{folder}/journal.db")
    doorbell = Doorbell(redis_url, folder.name)
    with closing(journal), closing(doorbell.redis):
        for number in numbers:
            journal.record_delivery(_delivery(number), datetime.now(UTC))
            doorbell.ring(key_of(number))
        with ExitStack() as stack:
            stack.enter_context(running("sweep", ["sweep"], folder, environ))
            crew = stack.enter_context(_crew(folder, environ, it.workers))
            _wait(journal, crew, until)
        rows = {row.key: row for row in journal.invoices(limit=it.invoices + 1)}
        poison = rows.pop(key_of(POISON), None)
        others = list(rows.values())
        claims = _claims(journal)
        began_at = min(at for times in claims.values() for at in times)
        return Played(
            others=others,
            poison=poison,
            seconds=(max(row.updated_at for row in others) - began_at).total_seconds(),
            poison_runs=len(claims.get(key_of(POISON).invoice_id, ())),
            poison_seconds=_poison_seconds(journal),
            workers_started=crew.started,
            failed_jobs=doorbell.failed(),
            issues=sandbox.control.record().issues,
        )


def others_settled(rows: Sequence[InvoiceRow]) -> bool:
    """Tell whether every invoice but the poison has come to an end."""
    return all(row.due_at is None for row in rows if row.key != key_of(POISON))


def all_settled(rows: Sequence[InvoiceRow]) -> bool:
    """Tell whether every invoice has."""
    return all(row.due_at is None for row in rows)


@dataclass(slots=True)
class _Crew:
    """Worker processes, each started again when it ends, as a service manager does."""

    folder: Path
    environ: Mapping[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0

    def start(self) -> subprocess.Popen[bytes]:
        """Start one."""
        self.started += 1
        command = [sys.executable, "-m", "worker", "work"]
        with (self.folder / "worker.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.environ)
            )

    def tend(self) -> None:
        """Start those again that have ended."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[place] = self.start()


@contextmanager
def _crew(folder: Path, environ: Mapping[str, str], workers: int) -> Iterator[_Crew]:
    crew = _Crew(folder, environ)
    try:
        crew.processes = [crew.start() for _ in range(workers)]
        yield crew
    finally:
        for process in crew.processes:
            stop(process)


def _wait(journal: SqlJournal, crew: _Crew, until: Until, most_seconds: float = 600.0) -> None:
    deadline = time.monotonic() + most_seconds
    while not until(rows := journal.invoices(limit=100_000)):
        if time.monotonic() > deadline or crew.started > 100:
            left = [f"{row.key}: {row.state} {row.reason}" for row in rows if row.due_at]
            log = (crew.folder / "worker.log").read_text()[-2000:]
            raise TimeoutError("\n".join(["not settled:", *left[:10], log]))
        crew.tend()
        time.sleep(0.2)


def _claims(journal: SqlJournal) -> dict[str, list[datetime]]:
    found: dict[str, list[datetime]] = {}
    with journal.store.snapshot() as tx:
        rows = tx.rows("SELECT invoice_id, at FROM entries WHERE kind = 'claimed'")
    for row in rows:
        found.setdefault(row["invoice_id"], []).append(moment_of(row["at"]))
    return found


def _poison_seconds(journal: SqlJournal) -> float:
    history = journal.history(key_of(POISON))
    return sum(entry.data.get("seconds", 0.0) for entry in history.entries) if history else 0.0


def _delivery(number: int) -> Delivery:
    return Delivery(
        platform="billforward",
        id=f"NOT-B1500000-0000-4000-8000-{number:08X}",
        event="Invoice/Pending",
        invoice_id=key_of(number).invoice_id,
        body=b"{}",
    )


def _write_usage(path: Path, numbers: range) -> None:
    rows = [
        (subject(number), f"c{component}", int(_START.timestamp()) + 60 * event)
        for number in numbers
        for component in range(0, COMPONENTS, 2)
        for event in range(3)
    ]
    rows += [("somebody else", f"c{component}", 0) for component in range(COMPONENTS)]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at INTEGER)")
        db.execute("CREATE INDEX usage_by_metric ON usage (metric, subject, at)")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)


def _put_invoices(sandbox: RunningSandbox, it: Play, numbers: range) -> None:
    control = sandbox.control
    control.reset()
    for number in numbers:
        control.put_invoice(**_invoice(number))
    if it.kind == "refused":
        poison = key_of(POISON).invoice_id
        control.add_fault("error", status=500, times=None, match={"path": poison})
    control.set(latency_seconds=it.latency_seconds)


def _invoice(number: int) -> dict[str, Any]:
    charges = [
        {
            "id": f"CHG-B1500000-0000-4000-{component:04X}-{number:08X}",
            "name": "Usage",
            "pricingComponentName": f"c{component}",
            "periodStart": utc_text(_START),
            "periodEnd": utc_text(_END),
            "price": {"model": "flat", "tiers": _TIERS},
        }
        for component in range(COMPONENTS)
    ]
    return {
        "id": key_of(number).invoice_id,
        "subscriptionID": subject(number),
        "charges": charges,
    }


def _environ(folder: Path, sandbox: RunningSandbox, redis_url: str, it: Play) -> dict[str, str]:
    does = it.kind if it.kind in ("hangs", "crashes") else "answers"
    (folder / "config.toml").write_text(
        f'[platforms.billforward]\nbase_url = "{sandbox.base_url}"\n{it.platform_settings}\n'
        f'[journal]\nurl = "sqlite:///{folder}/journal.db"\n'
        f"[sweep]\ninterval_seconds = {it.sweep_seconds}\nfind_pending_pages = 0\n"
        f'[usage_sources.usage]\nkind = "bench.poison:PoisonedUsage"\ndoes = "{does}"\n'
        f'hang_seconds = {it.hang_seconds}\nurl = "sqlite:///{folder}/usage.db"\n'
        'table = "usage"\nsubject_column = "subject"\nmetric_column = "metric"\n'
        'time_column = "at"\ntime_format = "epoch_seconds"\n'
        + "".join(f'[components.c{n}]\nsource = "usage"\n' for n in range(COMPONENTS))
        + it.settings
    )
    return {
        **{name: value for name, value in os.environ.items() if "RECONCILER" not in name},
        "PYTHONPATH": str(_ROOT),
        "RECONCILER_CONFIG": str(folder / "config.toml"),
        "RECONCILER__WEBHOOK__PASSWORD": "never sent",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
        "RECONCILER__QUEUE__NAME": folder.name,
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
    }


def main() -> int:
    """Measure and print the medians; 1: the poison cost more than a twentieth."""
    parser = argparse.ArgumentParser(prog="python -m bench.poison", description=__doc__)
    for name, default in (("--invoices", 300), ("--workers", 2), ("--repeats", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--hang-seconds", type=float, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=KINDS[1:])
    given = parser.parse_args()
    kinds: list[Kind] = ["none", *given.kinds]
    seen: dict[Kind, list[Played]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="poison-")))
        redis_url = stack.enter_context(redis_server(folder / "redis", environ={}))
        sandbox = stack.enter_context(running_sandbox(token="token-of-the-bench"))  # noqa: S106
        for repeat in range(given.repeats):
            for kind in kinds if repeat % 2 == 0 else kinds[::-1]:
                it = Play(
                    invoices=given.invoices,
                    kind=kind,
                    workers=given.workers,
                    latency_seconds=given.latency_ms / 1000,
                    hang_seconds=given.hang_seconds,
                )
                place = folder / f"{kind}-{repeat}"
                played = play(place, sandbox, redis_url, it, until=others_settled)
                assert {row.state for row in played.others} == {State.ISSUED}
                print(f"{kind}: {played.per_second:.2f} invoices/s", file=sys.stderr)
                seen[kind].append(played)
    return _told(seen)


def _told(seen: Mapping[Kind, Sequence[Played]]) -> int:
    medians = {
        kind: statistics.median(one.per_second for one in plays) for kind, plays in seen.items()
    }
    print("| poison | others' invoices/s | of none | its runs | its seconds | workers started |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, plays in seen.items():
        share, last = medians[kind] / medians["none"], plays[-1]
        spent = statistics.median(one.poison_seconds for one in plays)
        print(
            f"| {kind} | {medians[kind]:.2f} | {share:.1%} | {last.poison_runs} | {spent:.1f}"
            f" | {last.workers_started} |"
        )
    return 1 if min(medians.values()) < 0.95 * medians["none"] else 0


if __name__ == "__main__":
    sys.exit(main())
