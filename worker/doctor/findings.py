"""What the doctor finds, and how it looks: each look by itself, and in a bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from worker import __version__
from worker.config import Config
from worker.errors import ReconcilerError
from worker.overrides import dotted
from worker.ports import BillingPlatform, RatePlan, UsageSource
from worker.wiring import open_platforms, open_sources

MOST_SECONDS = 40.0  # above the usual time limits, whose own words say more
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, and how to mend it where it is not."""

    subject: str
    well: bool
    told: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """One thing to look at; `mend` is what helps where it cannot even be looked at."""

    subject: str
    mend: str
    find: Callable[[], Iterable[Finding]]


@dataclass(kw_only=True)
class Visit:
    """One examination: what it is of, and what earlier looks saw that later ones need."""

    config: Config
    now: Callable[[], datetime]
    clocks: dict[str, timedelta] = field(default_factory=dict)  # how far each is ahead of ours
    plans: dict[str, Sequence[RatePlan]] = field(default_factory=dict)  # of platforms that told
    https: bool = False  # a webhook's notifications come encrypted

    def platforms(self) -> dict[str, BillingPlatform]:
        """Make the platforms of which no secret is missing."""
        given = self.config.platforms
        ready = {name: given[name] for name in given if not self._lacks("platforms", name)}
        return open_platforms(replace(self.config, platforms=ready))

    def sources(self) -> dict[str, UsageSource]:
        """Make the sources of which no secret is missing, nor of those they ask."""
        given = self.config.usage_sources
        ready = {name for name in given if not self._lacks("usage_sources", name)}
        for _ in given:  # as far as one may ask through others
            ready = {name for name in ready if set(given[name].sources().values()) <= ready}
        kept = {name: given[name] for name in given if name in ready}
        return open_sources(replace(self.config, usage_sources=kept))

    def _lacks(self, section: str, name: str) -> bool:
        start = f"{dotted((section, name))}."
        return any(told.startswith(start) for told in self.config.missing_secrets)

    def note_clock(self, name: str, theirs: datetime, before: datetime, after: datetime) -> None:
        """Keep how far a clock is off, that was read between two moments of ours."""
        nearest = min(max(theirs, before), after)
        self.clocks[name] = theirs - nearest


def findings_of(look: Look, seconds: float) -> list[Finding]:
    """Look, for so long at most; what goes wrong is a finding itself."""
    found: list[Finding] = []
    ended = threading.Event()

    def do() -> None:
        found.extend(_found(look))
        ended.set()

    threading.Thread(target=do, name=f"doctor {look.subject}", daemon=True).start()
    if not ended.wait(seconds):
        told = f"gave no answer within {seconds:g} s"
        return [*found, Finding(look.subject, well=False, told=told, mend=look.mend)]
    return found


def _found(look: Look) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(look.find())
    except ReconcilerError as error:
        found.append(Finding(look.subject, well=False, told=str(error), mend=look.mend))
    except Exception as error:  # noqa: BLE001  what this look met must not hide the others
        told = f"could not be looked at: {type(error).__name__}"
        mend = f"{look.mend}; if that is right, report it with the version, {__version__}"
        found.append(Finding(look.subject, well=False, told=told, mend=mend))
    return found


def named(names: Sequence[str]) -> str:
    """List the first few names."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
