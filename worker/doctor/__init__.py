"""The doctor: looks at everything a working installation needs, and says how to mend each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta

from worker.doctor import platforms, queue, records, settings, sources
from worker.doctor.findings import MOST_SECONDS, Finding, Look, Visit, findings_of
from worker.errors import ConfigError
from worker.logs import masked
from worker.record import one_line
from worker.wiring import configured, utc_now

__all__ = ["Finding", "examine"]

_CLOCK_OFF = timedelta(minutes=2)


def examine(
    now: Callable[[], datetime] = utc_now,
    most_seconds: float = MOST_SECONDS,
    looking: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Finding]:
    """Look at one thing after the other, each for so long at most; `looking` is around each look.

    Changes nothing but to make a journal where none is. No finding holds a secret.
    """
    try:
        config = configured()
    except ConfigError as error:
        for complaint in error.complaints:
            yield Finding("config", well=False, told=complaint, mend="correct the configuration")
        return
    yield Finding("config", well=True, told=f"{len(config.rules.components)} components mapped")
    for look in _looks(Visit(config=config, now=now)):
        with looking(one_line(look.subject)):
            found = findings_of(look, most_seconds)
        for finding in found:
            yield Finding(
                subject=one_line(finding.subject),
                well=finding.well,
                told=one_line(masked(finding.told, config.secrets)),
                mend="" if finding.well else one_line(masked(finding.mend, config.secrets)),
            )


def _looks(visit: Visit) -> Iterator[Look]:
    """Yield the looks in the order in which what is found is best mended."""
    yield from settings.early_looks(visit)
    yield from records.looks(visit)
    yield queue.look(visit)
    for name, platform in visit.platforms().items():
        yield platforms.look(visit, name, platform)
    made = visit.sources()
    for name in made:
        yield sources.look(visit, name, made)
    yield from settings.late_looks(visit)
    yield Look("clock", "set it by NTP", lambda: _clock(visit))


def _clock(visit: Visit) -> Iterator[Finding]:
    """Compare our clock with those of everybody who told theirs."""
    off = {name: by for name, by in visit.clocks.items() if abs(by) > _CLOCK_OFF}
    if not visit.clocks:
        yield Finding("clock", well=True, told="nobody told the time to compare it with")
    elif not off:
        yield Finding("clock", well=True, told=f"agrees with {', '.join(visit.clocks)}")
    for name, by in off.items():
        way = "behind" if by > timedelta(0) else "ahead of"
        yield Finding(
            "clock",
            well=False,
            told=f"ours is {abs(by.total_seconds()):.0f} s {way} that of {name}: periods would be"
            " counted too early or too late",
            mend="set the clock of the machine that is wrong by NTP: `timedatectl set-ntp true`",
        )
