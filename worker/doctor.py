"""The doctor: looks at everything a working installation needs, and says how to mend each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

from redis import RedisError

from worker.config import Config
from worker.doorbell import Doorbell
from worker.errors import ConfigError, QueueUnavailable, ReconcilerError
from worker.journal import open_journal
from worker.wiring import configured, open_platforms, open_sources

_MOST_NAMED = 5
_OLDEST_REDIS = (6, 2)  # RQ moves a job without ever losing it only from here on


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, and how to mend it where it is not."""

    subject: str
    well: bool
    told: str
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Look at one thing after the other; changes nothing but to make a journal where none is."""
    try:
        config = configured()
    except ConfigError as error:
        for complaint in error.complaints:
            yield Finding("config", well=False, told=complaint, mend="correct the configuration")
        return
    yield Finding("config", well=True, told=f"{len(config.rules.components)} components mapped")
    for secret in config.missing_secrets:
        yield Finding("secrets", well=False, told=secret, mend="set it where the processes start")
    if not config.missing_secrets:
        yield Finding("secrets", well=True, told="all set")
    mend = "correct journal.url, or make its folder and disk writable, or its database"
    yield _looked("journal", lambda: _check_journal(config), mend)
    yield from _redis(config)
    if not config.missing_secrets:
        yield from _outside(config)


def _looked(subject: str, look: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(subject, well=True, told=look())
    except ReconcilerError as error:
        return Finding(subject, well=False, told=str(error), mend=mend)


def _check_journal(config: Config) -> str:
    with closing(open_journal(config.journal.url)) as journal:
        journal.check()
        ignored = sum(journal.ignored().values())
        place = journal.store.place  # the URL may hold a password
    return f"{place} can be written; {ignored} notifications were not about pending invoices"


def _outside(config: Config) -> Iterator[Finding]:
    """Ask each platform and each source; connections are made here."""

    def asked(check: Callable[[], None]) -> Callable[[], str]:
        def answers() -> str:
            check()
            return "answers"

        return answers

    for name, platform in open_platforms(config).items():
        mend = "check base_url and token; the token's API key is made in the platform's own pages"
        yield _looked(f"platform {name}", asked(platform.check), mend)
    for name, source in open_sources(config).items():
        mend = "check the source's settings and that its database or file is there"
        yield _looked(f"usage source {name}", asked(source.check), mend)


def _redis(config: Config) -> Iterator[Finding]:
    doorbell = Doorbell(config.queue.redis_url, config.queue.name)
    try:
        doorbell.check()
        server = doorbell.redis.info()
        appendonly = _setting(doorbell, "appendonly")
        policy = _setting(doorbell, "maxmemory-policy")
        foreign = doorbell.foreign()
    except (QueueUnavailable, RedisError) as error:
        told = str(error) if isinstance(error, QueueUnavailable) else "it answers, but not to us"
        yield Finding("redis", well=False, told=told, mend="start it, or correct queue.redis_url")
        return
    version = str(server.get("redis_version", "0"))
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_REDIS
    yield Finding("redis", new_enough, f"version {version}", "use Redis 6.2 or later, or Valkey")
    yield Finding(
        "redis persistence",
        appendonly in ("yes", None),
        f"appendonly {appendonly or 'cannot be read'}",
        "set appendonly yes; without it a restart loses jobs until the next sweep",
    )
    yield Finding(
        "redis eviction",
        policy in ("noeviction", None),
        f"maxmemory-policy {policy or 'cannot be read'}",
        "set maxmemory-policy noeviction; others drop jobs silently",
    )
    if foreign:
        told = f"not a job of ours: {', '.join(foreign[:_MOST_NAMED])}"
        mend = (
            f"somebody else writes to this Redis: lock it, and delete it from {doorbell.queue.key}"
        )
        yield Finding("queue", well=False, told=told, mend=mend)


def _setting(doorbell: Doorbell, name: str) -> str | None:
    """Read one of Redis' settings; None where the server does not tell."""
    try:
        answer = cast(dict[str, str], doorbell.redis.config_get(name))
    except RedisError:
        return None
    return answer.get(name)
