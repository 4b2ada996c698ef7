"""Plays one seed after the other, in child processes, and checks what came of each."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from redis import Redis

from proof import actors
from proof.checks import problems
from proof.plan import MOST_LATE_SECONDS, Action, Kill, Plan
from proof.world import BEGIN, World, delivery_id, key_of
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell

CRASHED = 70  # exit code: the program raised what it must not
NOT_QUIET = 71  # exit code: there is still work after the last round
_MOST_ROUNDS = 60
_ONE_SECOND = timedelta(seconds=1)


@dataclass(slots=True)
class Played:
    """What a seed came to."""

    seed: int
    kills: int = 0
    faults: int = 0
    problems: list[str] = field(default_factory=list)


class Seed:
    """One seed under way."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._played = Played(plan.seed)
        self._chance = random.Random(plan.seed + 1)  # noqa: S311  repeatable on purpose
        self._url = world.journals.fresh()
        self._adapters = world.adapters(plan, self._url)
        self._doorbell = Doorbell(world.redis_url, self._adapters.config.queue.name)
        self._now = BEGIN
        self._invoices = {invoice.number: invoice for invoice in plan.invoices}
        self._sent: set[int] = set()  # notifications the platform has tried to deliver
        self._answered: set[int] = set()  # of which these were answered 200

    def play(self) -> Played:
        """Do what was planned, then everything until it is quiet, and check."""
        with Redis.from_url(self._world.redis_url) as redis:
            redis.flushall()
        self._world.prepare(self._plan)
        for action in self._plan.actions:
            getattr(self, f"_{action.name}")(action)
        quiet = self._until_quiet()
        record = self._world.sandbox.control.record()
        self._played.faults = sum(1 for request in record.requests if request["fault"])
        journal = self._world.journals.opened(self._url)
        if not quiet:
            self._played.problems.append(f"lost: not settled after {_MOST_ROUNDS} rounds")
        answered = self._sent if quiet else self._answered
        self._played.problems += problems(self._world, self._plan, journal, record, answered)
        journal.close()
        self._doorbell.redis.close()
        return self._played

    def _deliver(self, action: Action) -> None:
        invoice = self._invoices[action.invoice]
        key, name = key_of(self._plan, invoice), delivery_id(self._plan, invoice)
        self._sent.add(action.invoice)
        scene = self._scene(action.kill)
        (code,) = self._in_children([lambda: actors.deliver(scene, name, key)])
        if code == 0:
            self._answered.add(action.invoice)

    def _work(self, action: Action) -> None:
        keys = self._rung()
        if action.workers > 1:  # RQ may run one job in several processes at once
            keys = [key_of(self._plan, invoice) for invoice in self._plan.invoices]
        runs: list[Callable[[], int]] = []
        for number in range(action.workers):
            mine = self._chance.sample(keys, len(keys))
            first = number == 0
            scene = self._scene(
                action.kill if first else None,
                full=action.disk_full,
                stop_after=action.stop_after if first else 0,
            )
            owner = f"worker {number}"
            runs.append(lambda scene=scene, mine=mine, owner=owner: actors.work(scene, mine, owner))  # type: ignore[misc]
        self._in_children(runs)

    def _sweep(self, action: Action) -> None:
        scene = self._scene(action.kill)
        doorbell = self._doorbell
        self._in_children([lambda: actors.sweep(scene, doorbell)] * action.workers)

    def _wipe(self, _action: Action) -> None:
        with Redis.from_url(self._world.redis_url) as redis:
            redis.flushall()

    def _wait(self, _action: Action) -> None:
        self._advance(self._now + timedelta(minutes=10))

    def _until_quiet(self) -> bool:
        """Redeliver, sweep and work until nothing is due any more; False: it does not end.

        No process is killed any more, so one does all of it.
        """
        (code,) = self._in_children([self._quietly])
        return code == 0

    def _quietly(self) -> int:
        scene, journal = self._scene(None), self._world.journals.opened(self._url)
        for number in sorted(self._sent - self._answered):
            invoice = self._invoices[number]
            name = delivery_id(self._plan, invoice)
            if actors.deliver(scene, name, key_of(self._plan, invoice)) != 0:
                return NOT_QUIET
        for _ in range(_MOST_ROUNDS):
            scene = self._scene(None)
            actors.sweep(scene, self._doorbell)
            actors.work(scene, self._rung(), "the last worker")
            rows = journal.invoices()
            open_rows = [row for row in rows if row.due_at is not None]
            known = {row.key for row in rows}
            if not open_rows and all(key_of(self._plan, i) in known for i in self._plan.invoices):
                return 0
            moments = [max(filter(None, (row.due_at, row.lease_until))) for row in open_rows]
            self._advance(max(self._now, min(moments, default=self._now)) + _ONE_SECOND)
        return NOT_QUIET

    def _advance(self, moment: datetime) -> None:
        """Move the clock; late commits have come by then, as their time is real."""
        late = any(fault["kind"] == "late_commit" for fault in self._plan.faults)
        if late and moment - self._now > timedelta(seconds=60):
            time.sleep(MOST_LATE_SECONDS * 1.5)
        self._now = moment

    def _rung(self) -> list[InvoiceKey]:
        """Take everything off the queue, as workers would."""
        jobs: list[bytes] = []
        while (job := self._doorbell.redis.lpop(self._doorbell.queue.key)) is not None:
            assert isinstance(job, bytes)  # noqa: S101
            jobs.append(job)
        ids = dict.fromkeys(job.decode() for job in jobs)
        return [InvoiceKey(*job_id.split("-", 1)) for job_id in ids]

    def _scene(self, kill: Kill | None, *, full: bool = False, stop_after: int = 0) -> actors.Scene:
        world, url = self._world, self._url
        return actors.Scene(
            adapters=self._adapters,
            open_journal=lambda: world.journals.opened(url, full=full),
            now=self._now,
            fate=actors.Fate(kill),
            stop_after=stop_after,
        )

    def _in_children(self, runs: Sequence[Callable[[], int]]) -> list[int]:
        """Run each in a child process of its own, all at once; return their exit codes."""
        children = [_forked(run) for run in runs]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for code in codes:
            if code == -signal.SIGKILL:
                self._played.kills += 1
            elif code not in (0, NOT_QUIET, actors.JOURNAL_FAILED):
                self._played.problems.append(f"crashed: a child process ended with {code}")
        return codes


def _forked(run: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    code = CRASHED
    try:
        code = run()
    except BaseException:  # noqa: BLE001  whatever it is, the parent must hear of it
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
