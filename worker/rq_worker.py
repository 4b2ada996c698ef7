"""RQ's worker, made safe: it runs our one function, in this process, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from secrets import token_hex
from types import FrameType
from typing import Any

import structlog
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from structlog.contextvars import clear_contextvars

from worker.config import Config
from worker.doorbell import FUNCTION, without_markup
from worker.errors import ReconcilerError
from worker.jobs import InvoiceHeld, current, owner, reconcile_invoice, stop_requested
from worker.logs import masked

log = structlog.get_logger("worker")

_KEPT_FIELDS = frozenset(
    b"data created_at origin description enqueued_at started_at ended_at status worker_name"
    b" last_heartbeat result_ttl failure_ttl".split()
)


_NO_JOB = b'["", null, [], {}]'  # what stands for a job that cannot be read


class RefusedJob(ReconcilerError):
    """A job that asks for anything but reconciling an invoice by its id."""


class SafeJob(Job):
    """A job that can do one thing, whatever stands in Redis.

    RQ would call any importable name, run callbacks and send webhooks; this reads none of them.
    """

    def restore(self, raw_data: Mapping[Any, Any]) -> Any:
        """Read the fields that are harmless; the others are as if they were not there."""
        kept = {name: value for name, value in raw_data.items() if name in _KEPT_FIELDS}
        try:
            result = super().restore({b"data": _NO_JOB, **kept})
        except Exception:  # noqa: BLE001  whatever stands there must not end the worker
            log.warning("job_unreadable", job=self.id)
            result = super().restore({b"data": _NO_JOB})
        self.timeout = -1
        return result

    def _execute(self) -> None:
        arguments = list(self.args or ())
        named = self.func_name == FUNCTION and self.instance is None and not self.kwargs
        if not named or len(arguments) != 2 or not all(isinstance(a, str) for a in arguments):
            raise RefusedJob("this job is not one of ours; delete it")
        reconcile_invoice(*arguments)


class InvoiceWorker(SimpleWorker):
    """Runs jobs in this process, so that its connections stay warm between invoices."""

    secrets: tuple[str, ...] = ()  # as the process began: a job may fail before it has read them

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """End after the running invoice's current step, which is journaled, its claim given up."""
        stop_requested.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def perform_job(self, job: Job, queue: Queue) -> bool:
        """Run one job; what was bound to its log lines ends with it."""
        try:
            return super().perform_job(job, queue)
        finally:
            clear_contextvars()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log the failure once, as an event."""
        error = exc_info[1]
        if not isinstance(error, InvoiceHeld):
            log.error("job_failed", job=job.id, exc_info=exc_info)

    def handle_job_failure(
        self, job: Job, queue: Queue, started_job_registry: Any = None, exc_string: str = ""
    ) -> None:
        """Keep what the dashboard shows plain and safe: one line for a held invoice."""
        error = sys.exc_info()[1]
        text = str(error) if isinstance(error, InvoiceHeld | RefusedJob) else exc_string
        text = plain(text, (*self.secrets, *current.secrets()))
        super().handle_job_failure(job, queue, started_job_registry, text)


def plain(text: str, secrets: tuple[str, ...]) -> str:
    """Take markup and secrets out: RQ's dashboard shows texts unescaped."""
    return masked(without_markup(text), secrets)


def worker_name() -> str:
    """Name this process to RQ as in its claims, with an end of its own: numbers come again."""
    return f"{owner()}:{token_hex(3)}"


def run_worker(config: Config, *, burst: bool = False) -> None:
    """Work on the queue until told to stop; SIGTERM ends after the running call."""
    connection = Redis.from_url(config.queue.redis_url)
    queue = Queue(
        config.queue.name, connection=connection, job_class=SafeJob, serializer=JSONSerializer
    )
    worker = InvoiceWorker(
        [queue],  # exactly one: with two, RQ loses the job of a worker that is killed
        name=worker_name(),
        connection=connection,
        job_class=SafeJob,
        serializer=JSONSerializer,
        default_worker_ttl=30,
        maintenance_interval=10,
        job_monitoring_interval=5,
        log_job_description=False,
    )
    worker.secrets = config.secrets
    log.info("worker_started", queue=config.queue.name)
    worker.work(burst=burst, logging_level="WARNING")
    log.info("worker_stopped")
