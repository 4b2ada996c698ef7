"""What stands in RQ, read field by field: nothing is unpickled, and nothing is changed.

RQ's own classes unpickle jobs and clean up as they read.
"""

from __future__ import annotations

import zlib
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from rq import Queue
from rq.registry import (
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)
from rq.utils import str_to_date

QUEUED, FAILED = "queued", "failed"
_REGISTRIES: Mapping[str, str] = {
    "deferred": DeferredJobRegistry.key_template,
    "scheduled": ScheduledJobRegistry.key_template,
    "started": StartedJobRegistry.key_template,
    "finished": FinishedJobRegistry.key_template,
    FAILED: FailedJobRegistry.key_template,
    "canceled": CanceledJobRegistry.key_template,
}
PLACES = (QUEUED, *_REGISTRIES)
"""Where a queue's jobs are: in its list, or in one of its registries."""

_MOST_TEXT = 20_000  # characters of one text, and bytes of one failure
_MOST_LISTED = 1_000  # queues, and workers
_TIMES = ("created_at", "enqueued_at", "started_at", "ended_at")
_JOB = (*_TIMES, "description", "origin", "status")
_WORKER = ("state", "queues", "current_job", "version", "python_version", "birth", "last_heartbeat")
_GONE = "Redis has lost this job's data. The journal still knows the invoice."

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """Reads what rq-dashboard's pages show."""

    redis: Redis
    own_queue: str  # shown even before it was first rung on

    def queues(self) -> Sequence[str]:
        """Name every queue in this Redis."""
        prefix = Queue.redis_queue_namespace_prefix
        found = _texts(self.redis.smembers(Queue.redis_queues_keys))
        return sorted({self.own_queue, *(name.removeprefix(prefix) for name in found)})[
            :_MOST_LISTED
        ]

    def counts(self, queue: str) -> Mapping[str, int]:
        """Count a queue's jobs in each place."""
        pipe = self.redis.pipeline(transaction=False)
        for place in PLACES:
            (pipe.llen if place == QUEUED else pipe.zcard)(_key(queue, place))
        return dict(zip(PLACES, cast(list[int], pipe.execute()), strict=True))

    def jobs(self, queue: str, place: str, some: slice, *, newest_first: bool) -> Sequence[Json]:
        """Return some of the jobs in a place; those whose data is gone too."""
        key, first, last = _key(queue, place), some.start, some.stop - 1
        found: object
        if place != QUEUED:
            found = self.redis.zrange(key, first, last, desc=newest_first)
        elif newest_first:
            found = list(reversed(cast(list[bytes], self.redis.lrange(key, -last - 1, -first - 1))))
        else:
            found = self.redis.lrange(key, first, last)
        ids = [text.partition(":")[0] for text in _texts(found)]  # a started one: with its run's id
        return [self._failed(job) if place == FAILED else job for job in self._read(ids)]

    def job(self, job_id: str) -> Json | None:
        """Return one job; None: Redis has none by this id."""
        (job,) = self._read([job_id])
        return job if job["status"] or job["created_at"] else None

    def workers(self) -> Sequence[Json]:
        """Return the workers that are alive."""
        keys = sorted(_texts(self.redis.smembers("rq:workers")))[:_MOST_LISTED]
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, _WORKER)
        read = zip(keys, pipe.execute(), strict=True)
        return [self._worker(key, fields) for key, fields in read if fields[0] is not None]

    def _read(self, ids: Sequence[str]) -> Sequence[Json]:
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(f"rq:job:{job_id}", _JOB)
            pipe.xrevrange(f"rq:results:{job_id}", count=1)
        answers = iter(pipe.execute())
        return [_job(one, next(answers), next(answers)) for one in ids]

    def _worker(self, key: str, fields: Sequence[bytes | None]) -> Json:
        told: Json = {name: _text(one) for name, one in zip(_WORKER, fields, strict=True)}
        current = told["current_job"] and self.job(told["current_job"])
        if current:
            current = {"job_id": current["id"], "call_string": current["description"], **current}
        return told | {
            "name": key.removeprefix("rq:worker:"),
            "queues": told["queues"].split(","),
            "current_job": current or "idle",
        }

    @staticmethod
    def _failed(job: Json) -> Json:
        """Have every job of the failed ones say so: only then it has a button to requeue it."""
        lost = not job["status"]
        return job | {"exc_info": job["exc_info"] or (_GONE if lost else "no text was kept")}


def _job(job_id: str, fields: Sequence[bytes | None], results: Sequence[Any]) -> Json:
    read = dict(zip(_JOB, fields, strict=True))
    status = _text(read["status"])
    return {
        "id": job_id,
        "description": _text(read["description"]) or job_id,
        "origin": _text(read["origin"]),
        "status": status,
        "exc_info": _failure(results) if status == FAILED else None,
        **{name: _moment(read[name]) for name in _TIMES},
    }


def _failure(results: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> str | None:
    """Return why a job failed last; None: it was not kept."""
    packed = results[0][1].get(b"exc_string") if results else None
    if packed is None:
        return None
    try:
        # bounded: a few bytes can unpack to a heap
        raw = zlib.decompressobj().decompress(b64decode(packed), _MOST_TEXT)
    except (ValueError, zlib.error):
        return "unreadable"
    return _text(raw)


def _key(queue: str, place: str) -> str:
    if place == QUEUED:
        return f"{Queue.redis_queue_namespace_prefix}{queue}"
    return _REGISTRIES[place].format(queue)


def _texts(found: object) -> list[str]:
    return [_text(one) for one in cast(Iterable[bytes], found)]


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")[:_MOST_TEXT]


def _moment(raw: bytes | None) -> str | None:
    try:
        return str_to_date(raw).isoformat() if raw else None
    except (ValueError, TypeError):
        return None
