"""The doorbell: puts an invoice's id on the RQ queue, so that a worker looks at it now.

Ringing too often is harmless and not ringing costs one sweep interval: the journal decides
whether there is work.
"""

from __future__ import annotations

import json
import re
import zlib
from datetime import datetime
from typing import cast

from redis import Redis, RedisError, WatchError
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.domain import InvoiceKey, utc_text
from worker.errors import QueueUnavailable

FUNCTION = "worker.jobs.reconcile_invoice"
_TIMEOUT_SECONDS = 0.5
_KEEP_FINISHED_SECONDS = 24 * 60 * 60
_NOT_FOR_RQ = re.compile(r"[^A-Za-z0-9-]+")
_MOST_TRIES = 5  # to ring, while others ring for the same invoice or a worker is at it


class Doorbell:
    """Rings for invoices; never waits long for Redis."""

    def __init__(self, redis_url: str, queue: str) -> None:
        """Make a client; nothing is connected before the first ring."""
        self.redis = Redis.from_url(
            redis_url,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            # once more after a dropped connection, never after a timeout
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self.queue = Queue(queue, connection=self.redis, serializer=JSONSerializer)

    def ring(self, key: InvoiceKey) -> None:
        """Enqueue the invoice's job unless it is queued; raise QueueUnavailable.

        The job is watched between the look and the push, so that of two who ring at once for
        one invoice only one pushes.
        """
        try:
            with self.redis.pipeline() as pipe:
                for tries_left in reversed(range(_MOST_TRIES)):
                    try:
                        return self._push_unless_queued(key, pipe)
                    except WatchError:
                        if not tries_left:
                            raise
        except RedisError as error:
            raise QueueUnavailable(self.told(error)) from error

    def _push_unless_queued(self, key: InvoiceKey, pipe: Pipeline) -> None:
        job_id = job_id_of(key)
        pipe.watch(Job.key_for(job_id))  # type: ignore[no-untyped-call]
        if pipe.lpos(self.queue.key, job_id) is not None:
            return
        pipe.multi()
        pipe.zrem(self.queue.failed_job_registry.key, job_id)
        self.queue.enqueue_call(
            FUNCTION,
            args=(key.platform, key.invoice_id),
            job_id=job_id,
            description=without_markup(f"{key.invoice_id} {key.platform}"),
            timeout=-1,
            result_ttl=_KEEP_FINISHED_SECONDS,
            pipeline=pipe,
        )
        pipe.execute()

    def failed(self) -> list[str]:
        """Return the job ids in RQ's FailedJobRegistry, without running RQ's clean-up."""
        ids = cast(list[bytes], self.redis.zrange(self.queue.failed_job_registry.key, 0, -1))
        return [job_id.decode(errors="replace") for job_id in ids]

    def take_failed(self, job_id: str) -> float | None:
        """Take a job out of RQ's FailedJobRegistry and return its place; None: it is not there.

        Of two who take one job at once, one gets it. Raises QueueUnavailable.
        """
        key = self.queue.failed_job_registry.key
        try:
            with self.redis.pipeline() as pipe:
                pipe.zscore(key, job_id)
                pipe.zrem(key, job_id)
                place, taken = cast(tuple[float | None, int], tuple(pipe.execute()))
        except RedisError as error:
            raise QueueUnavailable(self.told(error)) from error
        return place if taken else None

    def put_back_failed(self, job_id: str, place: float) -> None:
        """Undo a taking; raise QueueUnavailable."""
        try:
            self.redis.zadd(self.queue.failed_job_registry.key, {job_id: place})
        except RedisError as error:
            raise QueueUnavailable(self.told(error)) from error

    def foreign(self) -> list[str]:
        """Return the ids on the queue whose jobs are not of ours, or cannot be read."""
        key = self.queue.key
        ids = [*self.redis.lrange(key, 0, -1), *self.redis.lrange(f"{key}:intermediate", 0, -1)]
        names = [one.decode(errors="replace") for one in ids if isinstance(one, bytes)]
        return [name for name in dict.fromkeys(names) if not self.is_ours(name)]

    def is_ours(self, job_id: str) -> bool:
        """Tell whether a job asks to reconcile an invoice, and nothing else."""
        data = self.redis.hget(f"rq:job:{job_id}", "data")
        try:
            raw = data if isinstance(data, bytes) else b""
            function, _, arguments, _ = json.loads(_unpacked(raw))
        except (ValueError, TypeError):
            return False
        return bool(function == FUNCTION and [type(one) for one in arguments] == [str, str])

    def check(self) -> None:
        """Raise QueueUnavailable unless Redis answers in time."""
        try:
            self.redis.ping()
        except RedisError as error:
            raise QueueUnavailable(self.told(error)) from error

    def note_sweep(self, at: datetime) -> None:
        """Leave word that a sweep made a round; raise QueueUnavailable."""
        try:
            self.redis.set(self.sweep_key, utc_text(at))
        except RedisError as error:
            raise QueueUnavailable(self.told(error)) from error

    @property
    def sweep_key(self) -> str:
        """Where the sweep leaves word."""
        return f"reconciler:sweep:{self.queue.name}"

    def told(self, error: RedisError) -> str:
        """Say which Redis did not answer."""
        return f"Redis at {self.place}: {type(error).__name__}"

    @property
    def place(self) -> str:
        """Where Redis is, without its password."""
        where = self.redis.connection_pool.connection_kwargs
        return where.get("path") or f"{where.get('host')}:{where.get('port')}"


def without_markup(text: str) -> str:
    """Take markup out of what RQ keeps: dashboards for RQ show texts unescaped."""
    return text.replace("<", "‹").replace(">", "›")


def _unpacked(data: bytes) -> bytes:
    """Return a job's data as RQ wrote it; RQ compresses it."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def job_id_of(key: InvoiceKey) -> str:
    """Name the invoice's job; one invoice has one job, whatever rings.

    RQ takes letters, digits, - and _ only; what else an id has is written as _ and its bytes.
    """
    return f"{key.platform}-{_NOT_FOR_RQ.sub(_in_bytes, key.invoice_id)}"


def _in_bytes(found: re.Match[str]) -> str:
    return f"_{found[0].encode(errors='surrogatepass').hex()}_"
