"""How times, lengths of time and numbers are written on the pages, and bars measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.domain import utc
from worker.overviews import Hour

CHART_HEIGHT = 100
_BAR_WIDTH = 16
_STEP = 20


def moment(at: datetime | None) -> str:
    """Write a moment to the second, in UTC."""
    return "" if at is None else f"{utc(at):%Y-%m-%d %H:%M:%S} UTC"


def length(time: timedelta | None) -> str:
    """Write a length of time with its two largest units."""
    if time is None:
        return ""
    seconds = max(int(time.total_seconds()), 0)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def share(part: int, whole: int, most: int) -> int:
    """Return how long a bar is; anything above 0 is seen."""
    return 0 if part <= 0 or whole <= 0 else max(part * most // whole, 1)


@dataclass(frozen=True, slots=True)
class Column:
    """An hour in the chart: where its two bars stand."""

    hour: Hour
    x: int
    issued: int  # heights
    held: int
    width: int = _BAR_WIDTH // 2

    @property
    def label(self) -> str:
        """What the bars say."""
        start = f"{self.hour.start:%H:%M}"
        return f"{start} UTC: {self.hour.issued} issued, {self.hour.held} held"


def columns(hours: Sequence[Hour]) -> list[Column]:
    """Measure the bars of a chart, the tallest over its whole height."""
    most = max((max(hour.issued, hour.held) for hour in hours), default=0)
    return [
        Column(
            hour,
            number * _STEP,
            share(hour.issued, most, CHART_HEIGHT),
            share(hour.held, most, CHART_HEIGHT),
        )
        for number, hour in enumerate(hours)
    ]
