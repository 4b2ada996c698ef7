"""Who is alive: the workers by RQ's own registry, the sweep by what it leaves after each round."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from redis import RedisError

from worker.domain import utc
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable

_MOST_WORKERS = 1000
_PATIENCE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPulse:
    """One worker as RQ knows it."""

    name: str
    state: str
    seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Who worked of late."""

    workers: tuple[WorkerPulse, ...]
    swept_at: datetime | None  # None: no sweep made a round since Redis was emptied

    def sweeps(self, now: datetime, interval: timedelta) -> bool:
        """Tell whether a sweep is alive that makes a round every interval."""
        return self.swept_at is not None and now - self.swept_at <= 3 * interval + _PATIENCE


def pulse(doorbell: Doorbell) -> Pulse:
    """Look who is alive, without RQ's own clean-up; raise QueueUnavailable."""
    redis = doorbell.redis
    try:
        swept = cast(bytes | None, redis.get(doorbell.sweep_key))
        members = cast(set[bytes], redis.smembers(f"rq:workers:{doorbell.queue.name}"))
        keys = sorted(member.decode(errors="replace") for member in members)[:_MOST_WORKERS]
        pipe = redis.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, "state", "last_heartbeat")
        answers = cast(list[list[bytes | None]], pipe.execute())
    except RedisError as error:
        raise QueueUnavailable(doorbell.told(error)) from error
    workers = (
        WorkerPulse(
            name=key.removeprefix("rq:worker:"),
            state=(state or b"?").decode(errors="replace"),
            seen_at=_moment(seen),
        )
        for key, (state, seen) in zip(keys, answers, strict=True)
        if state or seen  # else it died, and its hash is gone
    )
    return Pulse(workers=tuple(workers), swept_at=_moment(swept))


def _moment(text: bytes | None) -> datetime | None:
    """Read a moment that anybody may have written; None: it is none."""
    try:
        return utc(datetime.fromisoformat((text or b"").decode()))
    except ValueError:
        return None
