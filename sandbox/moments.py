"""Moments and periods: whole seconds in UTC, calendar-correct months, a clock to set."""

from __future__ import annotations

import calendar
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_UNITS = ("minutes", "days", "months", "years")


@dataclass(frozen=True, slots=True)
class Duration:
    """The length of a plan's period, such as 1 month."""

    count: int
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in _UNITS or self.count < 1:
            raise ValueError(f"a period is 1 or more {', '.join(_UNITS)}, not {self}")

    def after(self, anchor: datetime, times: int) -> datetime:
        """Return *anchor* plus *times* such lengths; a month keeps the day, or ends on its last."""
        steps = self.count * times
        if self.unit == "minutes":
            return anchor + timedelta(minutes=steps)
        if self.unit == "days":
            return anchor + timedelta(days=steps)
        return _add_months(anchor, steps * (12 if self.unit == "years" else 1))


def _add_months(anchor: datetime, months: int) -> datetime:
    years, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + years, month + 1
    day = min(anchor.day, calendar.monthrange(year, month)[1])
    return anchor.replace(year=year, month=month, day=day)


def text_of(moment: datetime) -> str:
    """Return *moment* as BillForward writes it: `2026-01-31T08:00:00Z`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"


def java_text_of(moment: datetime) -> str:
    """Return *moment* as a notification's `changes` hold it: `Tue Jun 02 15:49:05 UTC 2015`."""
    return moment.astimezone(UTC).strftime("%a %b %d %H:%M:%S UTC %Y")


def moment_of(text: object) -> datetime:
    """Return the moment in *text*, ISO 8601 with a zone, in UTC; else raise ValueError."""
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no zone")
    return moment.astimezone(UTC)


def real_now() -> datetime:
    """Return the machine's time in UTC."""
    return datetime.now(UTC)


class SandboxClock:
    """Real time, until it is set or moved; whole seconds."""

    def __init__(self, real: Callable[[], datetime] = real_now) -> None:
        self._real = real
        self._offset = timedelta(0)
        self._frozen_at: datetime | None = None

    @property
    def frozen(self) -> bool:
        """Whether time stands still."""
        return self._frozen_at is not None

    def now(self) -> datetime:
        """Return the sandbox's time, cut to whole seconds."""
        moment = self._frozen_at or self._real() + self._offset
        return moment.replace(microsecond=0)

    def set(self, moment: datetime, *, frozen: bool) -> None:
        """Make it *moment* now; time runs on from there unless *frozen*."""
        self._offset = moment - self._real()
        self._frozen_at = moment if frozen else None

    def advance(self, seconds: float) -> None:
        """Move time by *seconds*; frozen time stays frozen."""
        step = timedelta(seconds=seconds)
        self._offset += step
        if self._frozen_at is not None:
            self._frozen_at += step

    def reset(self) -> None:
        """Return to real time."""
        self._offset = timedelta(0)
        self._frozen_at = None


def new_id(prefix: str) -> str:
    """Return a fresh id shaped like BillForward's: prefix, dash, 8-4-4-4-8 upper-case hex."""
    return f"{prefix}-{str(uuid.uuid4()).upper()[:-4]}"


def new_uuid() -> str:
    """Return a fresh upper-case UUID, as invoice lines and payments carry."""
    return str(uuid.uuid4()).upper()
