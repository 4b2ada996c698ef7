"""Redis, the queue in it, and who listens there: the workers and the sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import RedisError

from worker.doctor.findings import Finding, Look, Visit, named
from worker.domain import utc_text
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable
from worker.pulse import pulse

_OLDEST_REDIS = (6, 2)  # RQ moves a job without ever losing it only from here on
_MOST_QUEUES = 100
_MOST_JOBS = 20  # of another queue, to tell whose they are


def look(visit: Visit) -> Look:
    """Return the look at everything in Redis: while it is down, there is one thing to mend."""
    return Look("redis", "start it, or correct queue.redis_url", lambda: _redis(visit))


def _redis(visit: Visit) -> Iterator[Finding]:
    doorbell = Doorbell(visit.config.queue.redis_url, visit.config.queue.name)
    with closing(doorbell.redis):
        doorbell.check()
        try:
            yield from _all(visit, doorbell)
        except RedisError as error:
            raise QueueUnavailable(f"it answers, but not to us: {type(error).__name__}") from error


def _all(visit: Visit, doorbell: Doorbell) -> Iterator[Finding]:
    yield from _server(doorbell)
    _note_clock(visit, doorbell)
    yield from _poison(doorbell)
    listeners = _listeners(doorbell)
    yield from _workers(doorbell, listeners)
    yield from _other_queues(visit, doorbell, listeners)
    yield from _sweep(visit, doorbell)


def _server(doorbell: Doorbell) -> Iterator[Finding]:
    """Judge the server's version and the settings that decide whether it forgets."""
    version = str(doorbell.redis.info().get("redis_version", "0"))
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_REDIS
    mend = "use Redis 6.2 or later, or Valkey: an older one may lose a job that a worker took"
    yield Finding("redis", new_enough, f"version {version}", mend)
    appendonly, fsync = _setting(doorbell, "appendonly"), _setting(doorbell, "appendfsync")
    told = f"appendonly {appendonly or 'cannot be read'}"
    lasting = appendonly in ("yes", None) and fsync != "no"
    yield Finding(
        "redis persistence",
        lasting,
        f"{told}, appendfsync {fsync}" if appendonly == "yes" else told,
        "set `appendonly yes` and `appendfsync everysec` in redis.conf, or redis-cli CONFIG SET;"
        " without it a restart loses jobs until the next sweep",
    )
    policy = _setting(doorbell, "maxmemory-policy")
    yield Finding(
        "redis eviction",
        policy in ("noeviction", None),
        f"maxmemory-policy {policy or 'cannot be read'}",
        "set `maxmemory-policy noeviction` in redis.conf, or redis-cli CONFIG SET; others drop"
        " jobs silently",
    )


def _setting(doorbell: Doorbell, name: str) -> str | None:
    """Read one of Redis' settings; None where the server does not tell."""
    try:
        answer = cast(dict[str, str], doorbell.redis.config_get(name))
    except RedisError:
        return None
    return answer.get(name)


def _note_clock(visit: Visit, doorbell: Doorbell) -> None:
    before = visit.now()
    seconds, microseconds = doorbell.redis.time()
    theirs = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
    visit.note_clock("Redis", theirs, before, visit.now())


def _poison(doorbell: Doorbell) -> Iterator[Finding]:
    foreign = doorbell.foreign()
    if not foreign:
        yield Finding("queue", well=True, told=f"only jobs of ours in {doorbell.queue.name}")
        return
    key = doorbell.queue.key
    yield Finding(
        "queue",
        well=False,
        told=f"not a job of ours: {named(foreign)}",
        mend=f"somebody else writes to this Redis: give it a password, and delete each with"
        f" `redis-cli LREM {key} 0 ID` and `redis-cli LREM {key}:intermediate 0 ID`",
    )


@dataclass(frozen=True, slots=True)
class _Listener:
    """A living worker, and the queues it takes jobs from."""

    name: str
    queues: tuple[str, ...]


def _listeners(doorbell: Doorbell) -> list[_Listener]:
    """Return the living workers of all queues; a dead one's hash is gone from RQ's registry."""
    redis = doorbell.redis
    keys = sorted(cast(set[bytes], redis.smembers("rq:workers")))
    found = [(key, cast(bytes | None, redis.hget(key.decode(), "queues"))) for key in keys]
    return [
        _Listener(key.decode().removeprefix("rq:worker:"), tuple(queues.decode().split(",")))
        for key, queues in found
        if queues is not None
    ]


def _workers(doorbell: Doorbell, listeners: list[_Listener]) -> Iterator[Finding]:
    ours = doorbell.queue.name
    here = [one for one in listeners if ours in one.queues]
    start = "start one process for each invoice to be worked on at a time: `reconciler work`"
    for one in here:
        if len(one.queues) > 1:
            yield Finding(
                "workers",
                well=False,
                told=f"worker {one.name} listens on {', '.join(one.queues)}: with several queues,"
                " RQ loses the job of a worker that is killed",
                mend=f"stop it, and {start}",
            )
    if here:
        yield Finding("workers", well=True, told=f"{len(here)} on {ours}")
        return
    others = sorted({queue for one in listeners for queue in one.queues})
    elsewhere = f", while others listen on {named(others)}" if others else ""
    yield Finding(
        "workers",
        well=False,
        told=f"none listens on {ours}{elsewhere}",
        mend=f"{start}; with the same queue.name and queue.redis_url everywhere",
    )


def _other_queues(
    visit: Visit, doorbell: Doorbell, listeners: list[_Listener]
) -> Iterator[Finding]:
    """Find our jobs in queues that nobody works on: the queue's name was changed under them."""
    served = {queue for one in listeners for queue in one.queues} | {doorbell.queue.name}
    waiting: Mapping[str, int] = {
        name: jobs
        for name in _queues(doorbell)
        if name not in served and (jobs := _jobs_of_ours(visit, name))
    }
    for name, jobs in waiting.items():
        yield Finding(
            "other queues",
            well=False,
            told=f"{jobs} jobs of ours wait in {name}, and no worker listens there",
            mend=f"give web server, sweep and workers the same queue.name; the sweep rings again"
            f" for what is due, so the old queue can go: `redis-cli DEL rq:queue:{name}`",
        )


def _queues(doorbell: Doorbell) -> list[str]:
    members = cast(set[bytes], doorbell.redis.smembers("rq:queues"))
    names = [member.decode(errors="replace").removeprefix("rq:queue:") for member in members]
    return sorted(names)[:_MOST_QUEUES]


def _jobs_of_ours(visit: Visit, queue: str) -> int:
    """Count the jobs in a queue, if the first ones are ours."""
    other = Doorbell(visit.config.queue.redis_url, queue)
    with closing(other.redis) as redis:
        first = cast(list[bytes], redis.lrange(other.queue.key, 0, _MOST_JOBS - 1))
        if not any(other.is_ours(job_id.decode(errors="replace")) for job_id in first):
            return 0
        return redis.llen(other.queue.key)


def _sweep(visit: Visit, doorbell: Doorbell) -> Iterator[Finding]:
    """Judge the sweep by the word it leaves after each round."""
    alive, now = pulse(doorbell), visit.now()
    interval = timedelta(seconds=visit.config.sweep.interval_seconds)
    last = "never, as far as Redis knows" if alive.swept_at is None else utc_text(alive.swept_at)
    yield Finding(
        "sweep",
        alive.sweeps(now, interval),
        f"last round: {last}; due every {interval.total_seconds():g} s",
        "start it: `reconciler sweep`; if it runs, its log says why its rounds fail",
    )
