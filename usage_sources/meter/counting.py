"""How a count is put together: whole hours from the roll-up, the rest from single events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from usage_sources.meter.appending import HOUR
from usage_sources.reading import exact_sum

Span = tuple[int, int]  # microseconds since 1970: the start is in, the end is not


@dataclass(frozen=True, slots=True)
class Series:
    """All events of one metric by one subject."""

    id: int
    subject: str
    metric: str
    rolled: bool  # its hours are kept


@dataclass(frozen=True, slots=True)
class Part:
    """What some events are together."""

    events: int = 0
    total: Decimal = Decimal(0)
    most: Decimal | None = None

    def __add__(self, other: Part) -> Part:
        both = [most for most in (self.most, other.most) if most is not None]
        return Part(
            self.events + other.events,
            exact_sum(self.total, other.total),
            max(both, default=None),
        )


Parts = dict[int, Part]  # by series; one without events may be left out


class Snapshot(Protocol):
    """The stored events as they were at one moment; `until` leaves out what was stored later."""

    latest: int  # when the newest of all events was stored; 0: there is none

    def series(
        self, subjects: Collection[str], metrics: Collection[str], until: int
    ) -> Sequence[Series]:
        """Return the series of these subjects and metrics that had an event by then."""

    def known_subjects(self, subjects: Collection[str], until: int) -> Set[str]:
        """Return those of some subjects that had any event by then."""

    def known_metrics(self, metrics: Collection[str], until: int) -> Set[str]:
        """Return those of some metrics that had any event by then."""

    def some_metrics(self, limit: int) -> Sequence[str]:
        """Return a few of the metrics there are."""

    def raw(self, series: Collection[int], span: Span, until: int) -> Parts:
        """Add up single events."""

    def hours(self, series: Collection[int], hours: Span, until: int) -> Parts:
        """Add up the hours (from, to) to which nothing was added after `until`."""

    def late_hours(
        self, series: Collection[int], hours: Span, until: int
    ) -> Sequence[tuple[int, int]]:
        """Return (series, hour) of all others, in order."""

    def last(self, series: int, span: Span, until: int) -> Decimal | None:
        """Return the quantity of the latest event, of several the one stored last."""


def count_series(
    snapshot: Snapshot, series: Collection[Series], span: Span, until: int
) -> Mapping[int, Part]:
    """Count each series over one span, exactly, by the shortest way."""
    first, last = -(-span[0] // HOUR), span[1] // HOUR
    rolled = [each.id for each in series if each.rolled] if first < last else []
    light = sorted({each.id for each in series}.difference(rolled))
    found = snapshot.raw(light, span, until) if light else {}
    if not rolled:
        return found
    _add(found, snapshot.hours(rolled, (first, last), until))
    for edge in ((span[0], first * HOUR), (last * HOUR, span[1])):
        if edge[0] < edge[1]:
            _add(found, snapshot.raw(rolled, edge, until))
    if until < snapshot.latest:
        for number, late in _spans(snapshot.late_hours(rolled, (first, last), until)):
            _add(found, snapshot.raw([number], late, until))
    return found


def _add(found: Parts, parts: Parts) -> None:
    for number, part in parts.items():
        found[number] = found.get(number, Part()) + part


def _spans(hours: Iterable[tuple[int, int]]) -> list[tuple[int, Span]]:
    """Make one span of hours that follow one another in a series."""
    spans: list[tuple[int, Span]] = []
    for number, hour in hours:
        start, end = hour * HOUR, (hour + 1) * HOUR
        if spans and spans[-1][0] == number and spans[-1][1][1] == start:
            start = spans.pop()[1][0]
        spans.append((number, (start, end)))
    return spans
