"""The doorbell: puts an invoice's id on the RQ queue, so that a worker looks at it now.

Ringing too often is harmless and not ringing costs one sweep interval: the journal decides
whether there is work.
"""

from __future__ import annotations

import json
import zlib
from typing import cast

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from worker.domain import InvoiceKey
from worker.errors import QueueUnavailable

FUNCTION = "worker.jobs.reconcile_invoice"
_TIMEOUT_SECONDS = 0.5
_KEEP_FINISHED_SECONDS = 24 * 60 * 60


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
        """Enqueue the invoice's job unless it is queued; raise QueueUnavailable."""
        job_id = job_id_of(key)
        try:
            if self.redis.lpos(self.queue.key, job_id) is not None:
                return
            self.redis.zrem(self.queue.failed_job_registry.key, job_id)
            self.queue.enqueue_call(
                FUNCTION,
                args=(key.platform, key.invoice_id),
                job_id=job_id,
                description=str(key),
                timeout=-1,
                result_ttl=_KEEP_FINISHED_SECONDS,
            )
        except RedisError as error:
            raise QueueUnavailable(self._told(error)) from error

    def failed(self) -> list[str]:
        """Return the job ids in RQ's FailedJobRegistry, without running RQ's clean-up."""
        ids = cast(list[bytes], self.redis.zrange(self.queue.failed_job_registry.key, 0, -1))
        return [job_id.decode() for job_id in ids]

    def foreign(self) -> list[str]:
        """Return the ids on the queue whose jobs are not of ours, or cannot be read."""
        key = self.queue.key
        ids = [*self.redis.lrange(key, 0, -1), *self.redis.lrange(f"{key}:intermediate", 0, -1)]
        names = [one.decode(errors="replace") for one in ids if isinstance(one, bytes)]
        return [name for name in dict.fromkeys(names) if not self._is_ours(name)]

    def _is_ours(self, job_id: str) -> bool:
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
            raise QueueUnavailable(self._told(error)) from error

    def _told(self, error: RedisError) -> str:
        """Say which Redis did not answer, without its password."""
        where = self.redis.connection_pool.connection_kwargs
        place = where.get("path") or f"{where.get('host')}:{where.get('port')}"
        return f"Redis at {place}: {type(error).__name__}"


def _unpacked(data: bytes) -> bytes:
    """Return a job's data as RQ wrote it; RQ compresses it."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def job_id_of(key: InvoiceKey) -> str:
    """Name the invoice's job; one invoice has one job, whatever rings."""
    return f"{key.platform}-{key.invoice_id}"
