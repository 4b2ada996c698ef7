"""Redis breaks at a step of an invoice's way; what became of the notifications and invoices.

Each case has three invoices. Two are notified before the fault, unless it comes earlier, and the
third while Redis is out. Endpoint (over HTTP), RQ's worker and the sweep are the real ones, and
so are Redis, the journal and the sandbox; they only tell when they come to a step.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.http import Answer, Sender, served
from bench.own_redis import FAULTS, OwnRedis, own_redis
from proof.actors import Fate, Mortal
from proof.checks import problems
from proof.plan import Plan, PlannedInvoice
from proof.world import Adapters, World, delivery_id, key_of, running_world, sqlite_journals
from worker import jobs
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable
from worker.journal.sql import SqlJournal
from worker.record import State
from worker.rq_worker import InvoiceWorker, run_worker
from worker.sweep import Sweep, Swept
from worker.wiring import CONFIG_VARIABLE, Service, open_platforms, open_sources, utc_now

NOTIFIED = ("before the notification", "between journal and queue", "job on the queue")
WORKED = (
    *("during the fetch", "between two charge writes", "before the issue"),
    *("before settle", "after settle"),
)
SWEPT = ("sweep, before it rings", "sweep, between two rings")
STEPS = (*NOTIFIED, *WORKED, *SWEPT)
INVOICES = 3
_PATIENCE_SECONDS = 20.0

# What the parts call their steps, in the words of proof.actors.Mortal.
_JOURNAL = {
    "record_delivery": ("", NOTIFIED[1]),
    "append": ("", ""),
    "settle": ("before settle", "after settle"),
    "due": ("", SWEPT[0]),
}
_PLATFORM = {"invoice": ("during the fetch", ""), "issue": ("before the issue", "")}
_DOORBELL = {"ring": ("", SWEPT[1])}
_OTHER_NAMES = {"write answered": "between two charge writes"}


class Moment(Fate):
    """Does something, once, when the step comes."""

    def __init__(self, step: str, then: Callable[[], None]) -> None:
        """Remember the step, and what to do."""
        super().__init__(None)
        self._step = step
        self._then = then
        self.came = False

    def at(self, step: str) -> None:
        """Come to a step."""
        if not self.came and _OTHER_NAMES.get(step, step) == self._step:
            self.came = True
            self._then()


@dataclass(slots=True)
class Case:
    """What one fault at one step came to."""

    fault: str
    step: str
    answers: list[Answer] = field(default_factory=list)
    issued_meanwhile: bool = True  # the invoice under work, while Redis was still out
    problems: list[str] = field(default_factory=list)

    @property
    def slowest_seconds(self) -> float:
        """Return how long the slowest answer took."""
        return max(answer.seconds for answer in self.answers)


class _Scene:
    def __init__(self, world: World, redis: OwnRedis, number: int, case: Case) -> None:
        self._world, self._redis, self._case = world, redis, case
        self._plan = _plan(number)
        self._url = world.journals.fresh()
        self._adapters: Adapters = world.adapters(self._plan, self._url)
        self._journal: SqlJournal = world.journals.opened(self._url)
        self._doorbell = Doorbell(redis.url, self._adapters.config.queue.name)
        self._moment = Moment(case.step, self._struck)

    def play(self) -> Case:
        case = self._case
        self._redis.flush()
        self._world.prepare(self._plan)
        self._moment.at(NOTIFIED[0])
        self._notify(*self._plan.invoices[: INVOICES - 1])
        self._moment.at(NOTIFIED[2])
        if case.step in NOTIFIED:
            self._notify(self._plan.invoices[-1])
        elif case.step in SWEPT:
            self._redis.flush()
            with suppress(QueueUnavailable):
                self._sweep(self._moment)
        else:
            self._work_through_the_fault()
        assert case.step in WORKED or self._moment.came, "the step did not come"
        if case.step not in WORKED:
            FAULTS[case.fault].mend(self._redis)
        self._sweep(Moment("never", self._struck))
        self._ended(self._worker(None))
        record = self._world.sandbox.control.record()
        case.problems += problems(
            self._world,
            self._plan,
            self._journal,
            record,
            [one.number for one in self._plan.invoices],
        )
        self._journal.close()
        self._doorbell.redis.close()
        return case

    def _struck(self) -> None:
        """Break Redis; where all else is quiet, tell of the last invoice while it is out."""
        FAULTS[self._case.fault].strike(self._redis)
        if self._case.step not in NOTIFIED:
            self._notify(self._plan.invoices[-1])

    def _notify(self, *invoices: PlannedInvoice) -> None:
        """Send the invoices' notifications to the real endpoint."""
        app = self._adapters.app
        receiver = app.extensions["receiver"]
        receiver.journal = Mortal(self._journal, self._moment, _JOURNAL)
        with served(app) as port:
            sender = Sender(port, self._adapters.config.webhook)
            for invoice in invoices:
                name, key = delivery_id(self._plan, invoice), key_of(self._plan, invoice)
                self._case.answers.append(sender.send(name, key))

    def _sweep(self, moment: Moment) -> Swept:
        doorbell: Any = Mortal(self._doorbell, moment, _DOORBELL)
        sweep = Sweep(
            journal=Mortal(self._journal, moment, _JOURNAL),
            platforms=self._adapters.platforms,
            doorbell=doorbell,
            now=utc_now,
            find_every=timedelta(0),
            find_pages=1,
        )
        return sweep.round()

    def _work_through_the_fault(self) -> None:
        """Let a worker come to the step, break Redis there, and mend it when the invoice is out."""
        here, there = get_context("fork").Pipe()
        worker = self._worker(there)
        there.close()
        try:
            assert here.poll(_PATIENCE_SECONDS), "the worker did not come to the step"
            here.recv()
            self._struck()
            here.send(None)
            self._case.issued_meanwhile = self._first_is_issued()
        finally:
            FAULTS[self._case.fault].mend(self._redis)
            self._ended(worker)
            here.close()

    def _first_is_issued(self) -> bool:
        """Wait for the invoice under work; Redis is out and not needed for it."""
        key = key_of(self._plan, self._plan.invoices[0])
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            history = self._journal.history(key)
            if history is not None and history.row.state is State.ISSUED:
                return True
            time.sleep(0.005)
        return False

    def _worker(self, told: Connection | None) -> BaseProcess:
        """Start RQ's worker in a child process, until the queue is empty."""
        worker = get_context("fork").Process(target=self._work, args=(told,))
        worker.start()
        return worker

    def _ended(self, worker: BaseProcess) -> None:
        """Wait for a worker; one that met a broken Redis may end badly, and is started anew."""
        worker.join(_PATIENCE_SECONDS)
        if worker.is_alive():
            worker.kill()
            worker.join()
            self._case.problems.append("wrong: the worker did not end")

    def _work(self, told: Connection | None) -> None:
        """Do what `reconciler work --burst` does, with parts that tell their steps."""
        with (self._world.usage.parent / "worker.log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)

        warnings.simplefilter("default")  # a test's process would make errors of RQ's own

        def tell() -> None:
            if told is not None:
                told.send(None)
                told.recv()

        config = self._adapters.config
        moment = Moment(self._case.step, tell)
        platforms = open_platforms(config).items()
        os.environ[CONFIG_VARIABLE] = os.devnull + "/none"
        jobs.current._service = Service(
            config=config,
            journal=Mortal(self._world.journals.opened(self._url), moment, _JOURNAL),
            platforms={name: Mortal(one, moment, _PLATFORM) for name, one in platforms},
            sources=open_sources(config),
        )
        worker: Any = InvoiceWorker
        worker.unsubscribe = _no_farewell  # for which RQ takes a second
        run_worker(config, burst=True)


def _no_farewell(_worker: InvoiceWorker) -> None:
    """Leave the channel by ending."""


def play_all() -> list[Case]:
    """Play every fault at every step, each fault in a process and on servers of its own."""
    with ProcessPoolExecutor(len(FAULTS), get_context("fork")) as pool:
        return [case for cases in pool.map(_play_fault, FAULTS) for case in cases]


def _play_fault(fault: str) -> list[Case]:
    gc.freeze()  # else each child copies the pages that its collections touch
    with (
        tempfile.TemporaryDirectory() as name,
        running_world(Path(name), sqlite_journals) as world,
        own_redis(Path(name) / "own-redis") as redis,
    ):
        cases = []
        for number, step in enumerate(STEPS):
            scene = _Scene(replace(world, redis_url=redis.url), redis, number, Case(fault, step))
            cases.append(scene.play())
        return cases


def _plan(seed: int) -> Plan:
    """Plan three good invoices with three usage charges each."""
    invoices = tuple(
        PlannedInvoice(
            number=number,
            subscription=(seed * INVOICES + number) % 40,
            components=(0, 1, 2),
            kind="Subscription",
            version=1,
            mapped=True,
        )
        for number in range(1, INVOICES + 1)
    )
    return Plan(
        seed=seed,
        invoices=invoices,
        faults=(),
        actions=(),
        recalculation="each",
        bumps_version=False,
        page_size=None,
    )
