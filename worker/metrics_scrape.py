"""What a scrape tells: what the processes counted, how the journal stands, and the queue.

The queue's numbers have the names that boards for RQ know, without workers' names in labels.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar, cast

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from redis import RedisError

from worker import __version__
from worker.causes import CAUSES
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable, ReconcilerError
from worker.metrics import families
from worker.overdue import Overdue, most_overdue
from worker.overviews import Overview
from worker.ports import Journal
from worker.pulse import Pulse, pulse

_KEPT_SECONDS = 5.0
_MOST_SECONDS = 3.0  # a scrape waits no longer for the journal

Answer = TypeVar("Answer")
Standing = tuple[Overview, Overdue | None]

log = structlog.get_logger("metrics")


@dataclass(kw_only=True, eq=False)
class Scrape:
    """Answers scrapes, from several threads at once."""

    folder: Path
    journal: Journal
    doorbell: Doorbell
    platforms: Iterable[str]
    now: Callable[[], datetime]
    sweep_every: timedelta
    _read: Cached[Standing] = field(init=False)

    def __post_init__(self) -> None:
        self._read = Cached(self._stand)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: the registry would scrape to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read all; what does not answer is told by `reconciler_up`, and left out."""
        yield InfoMetricFamily(
            "reconciler_build", "The program's version", value={"version": __version__}
        )
        yield from families(self.folder)
        standing = self._read.value()
        queue = list(self._queue())
        up = _gauge("reconciler_up", "Whether it answers: 1 or 0", "part")
        up.add_metric(["journal"], float(standing is not None))
        up.add_metric(["redis"], float(bool(queue)))
        yield up
        yield from queue
        if standing is not None:
            yield from _standing(*standing, self.platforms)

    def _stand(self) -> Standing:
        now = self.now()
        return self.journal.overview(now), most_overdue(self.journal, now)

    def _queue(self) -> Iterator[Metric]:
        """Look at the queue without RQ's own clean-up: a scrape changes nothing."""
        try:
            jobs, alive = _jobs(self.doorbell), pulse(self.doorbell)
        except (RedisError, QueueUnavailable) as error:
            log.debug("queue_not_read", reason=type(error).__name__)
            return
        name = self.doorbell.queue.name
        by_status = _gauge("rq_jobs", "RQ jobs by queue and status", "queue status")
        for status, number in jobs.items():
            by_status.add_metric([name, status], number)
        yield by_status
        workers = _workers(alive)
        by_state = _gauge("rq_workers", "RQ workers by state", "state queues")
        for state in sorted({"idle", "busy", *workers}):
            by_state.add_metric([state, name], workers[state])
        yield by_state
        yield GaugeMetricFamily(
            "reconciler_sweep_alive",
            "Whether a sweep made its rounds of late, on whatever machine: 1 or 0",
            value=float(alive.sweeps(self.now(), self.sweep_every)),
        )


class Cached(Generic[Answer]):
    """What the journal tells, read at most every few seconds and never waited for long.

    A read that hangs is waited for by one thread, and no second one is begun beside it.
    """

    def __init__(
        self, read: Callable[[], Answer], kept: float = _KEPT_SECONDS, most: float = _MOST_SECONDS
    ) -> None:
        self._read = read
        self._kept = kept
        self._most = most
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._reading: Future[Answer] | None = None
        self._begun = 0.0

    def value(self) -> Answer | None:
        """Return what was read; None: the journal does not tell."""
        with self._lock:
            now = time.monotonic()
            stale = self._reading is None or now - self._begun > self._kept
            if stale and (self._reading is None or self._reading.done()):
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="overview")
                self._reading, self._begun = self._pool.submit(self._read), now
            reading = self._reading
        assert reading is not None  # noqa: S101
        try:
            return reading.result(self._most)
        except (ReconcilerError, TookTooLong) as error:
            log.warning("journal_not_read", reason=str(error) or "no answer in time")
            return None


def _standing(
    overview: Overview, late: Overdue | None, platforms: Iterable[str]
) -> Iterator[Metric]:
    """Tell how the invoices stand."""
    by_state = _gauge("reconciler_invoices", "Invoices by state", "state")
    for state, number in overview.by_state.items():
        by_state.add_metric([state.value], number)
    yield by_state
    held = _gauge("reconciler_held_invoices", "Held invoices by cause", "cause")
    numbers = {cause.key: 0 for cause in CAUSES} | {
        one.cause.key: one.number for one in overview.held
    }
    for key, number in numbers.items():
        held.add_metric([key], number)
    yield held
    oldest = overview.oldest_unissued
    yield GaugeMetricFamily(
        "reconciler_oldest_unissued_seconds",
        "Age of the oldest invoice that is not issued; 0: there is none",
        value=oldest.total_seconds() if oldest else 0,
    )
    yield GaugeMetricFamily(
        "reconciler_overdue_seconds",
        "How long an invoice is due and not taken by a worker, or held, at most; 0: none is",
        value=max((overview.now - late.since).total_seconds(), 0) if late else 0,
    )
    paused = _gauge("reconciler_paused", "Whether a platform is paused: 1 or 0", "platform")
    for name in platforms:
        paused.add_metric([name], float(bool({"", name} & set(overview.paused))))
    yield paused


def _jobs(doorbell: Doorbell) -> Mapping[str, int]:
    """Count the queue's jobs by status."""
    queue = doorbell.queue
    registries = {
        "started": queue.started_job_registry,
        "finished": queue.finished_job_registry,
        "failed": queue.failed_job_registry,
        "deferred": queue.deferred_job_registry,
        "scheduled": queue.scheduled_job_registry,
        "canceled": queue.canceled_job_registry,
    }
    pipe = doorbell.redis.pipeline(transaction=False)
    pipe.llen(queue.key)
    for registry in registries.values():
        pipe.zcard(registry.key)
    return dict(zip(("queued", *registries), cast(list[int], pipe.execute()), strict=True))


def _workers(alive: Pulse) -> Counter[str]:
    """Count the queue's workers by state; one that died is not there any more."""
    return Counter(worker.state for worker in alive.workers if worker.state in _STATES)


_STATES = ("idle", "busy", "started", "suspended")


def _gauge(name: str, told: str, labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, labels=labels.split())
