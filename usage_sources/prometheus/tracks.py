"""What the samples of one subject's series tell of a period; pure.

A sample at T shows what was used before T. The value of a counter at a moment is that of its last
sample at or before it, and what was used in `[start, end)` is the value at the end less the value
at the start. So periods that touch add up to the whole. A counter that falls was reset: it began
again from 0, so that what it shows after the fall was used since.

Where the samples do not tell the value at an edge, or leave a gap in which a reset could have
hidden usage, nothing is told: Unknown. A gap is one also where the values at both of its ends are
equal, for a counter can be reset and come back to where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from usage_sources.reading import (
    empty_value,
    exact_quantity,
    exact_sum,
    moment_at,
    plain,
    shown,
)
from worker.domain import Aggregation, utc_text

NewSeries = Literal["held", "from_zero"]
EndedSeries = Literal["held", "complete"]
Labels = tuple[tuple[str, str], ...]  # sorted, without the metric's name

_FIRST_INEXACT = 2**53  # from here on, a 64-bit float leaves whole numbers out
_MOST_TOLD = 10

SAMPLED = (
    "The counter is sampled: its value at a moment is that of its last sample at or before it,"
    " and the usage is the value at the end less the value at the start."
)
_FRACTIONS = "The samples are 64-bit floats; fractions are the decimals that the server prints."


class Unknown(ValueError):
    """The samples do not tell the usage; the text says why."""


class Window(NamedTuple):
    """A period, and how far apart samples may be; all in whole milliseconds."""

    start: int
    end: int
    staleness: int
    max_gap: int

    @property
    def after(self) -> int:
        """The moment after which samples are needed."""
        return self.start - self.staleness - 1


class Point(NamedTuple):
    """A sample: milliseconds since 1970, and its value."""

    at: int
    value: Decimal


class Fall(NamedTuple):
    """A counter's reset: the sample before it, and the one after it."""

    before: Point
    after: Point


class Series(NamedTuple):
    """A series' samples of one stretch of time, as the server wrote them, oldest first."""

    labels: Labels
    samples: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the samples tell: a value, each series' part in it, and what a reader must know."""

    value: Decimal
    series: list[dict[str, Any]]
    notes: tuple[str, ...]


class Track:
    """One series, sample by sample."""

    def __init__(self, labels: Labels, window: Window) -> None:
        self.name = name_of(labels)
        self.labels = labels
        self.opening: Point | None = None  # the last sample at or before the start
        self.first: Point | None = None  # after the start
        self.last: Point | None = None
        self.falls: list[Fall] = []
        self.lowest: Point | None = None
        self.inside: list[Point] = []  # in [start, end): its first, its highest and its last sample
        self._window = window
        self._text = ""

    def see(self, at: int, text: str) -> None:
        """Take the next sample; raise Unknown where it cannot follow the one before."""
        value = self._value(at, text)
        point, before = Point(at, value), self.last
        self.last = point
        if self.lowest is None or value < self.lowest.value:
            self.lowest = point
        if self._window.start <= at < self._window.end:
            first, highest, _ = self.inside or (point, point, point)
            self.inside = [first, point if value > highest.value else highest, point]
        if at <= self._window.start:
            self.opening = point
            return
        self.first = self.first or point
        if before is None:
            return
        if at - before.at > self._window.max_gap:
            raise Unknown(gap(f"series {self.name} has no", before.at, at, self._window.max_gap))
        if value < before.value:
            self.falls.append(Fall(before, point))

    def _value(self, at: int, text: str) -> Decimal:
        if text == self._text and self.last is not None:
            return self.last.value
        try:
            value = exact_quantity(text)
        except ValueError as error:
            raise Unknown(f"{self._sample(at)}: {shown(text)} {error}") from None
        if abs(value) >= _FIRST_INEXACT:
            raise Unknown(
                f"{self._sample(at)}: {plain(value)} is 2^53 or more, where 64-bit floats lose"
                " digits"
            )
        self._text = text
        return value

    def increase(self) -> Decimal:
        """Return what a counter counted; one without an opening began from 0."""
        if self.last is None:
            return Decimal(0)
        if self.lowest is not None and self.lowest.value < 0:
            raise Unknown(
                f"{self._sample(self.lowest.at)}: {plain(self.lowest.value)} is below 0, which no"
                " counter is; of a gauge, count max or last"
            )
        total = self.last.value
        if self.opening is not None:
            total = exact_sum(total, -self.opening.value)
        for fall in self.falls:
            total = exact_sum(total, fall.before.value)
        return total

    def _sample(self, at: int) -> str:
        return f"series {self.name} at {moment_text(at)}"


@dataclass(slots=True)
class Tracks:
    """All the series of one subject, over one period."""

    window: Window
    tracks: dict[Labels, Track] = field(default_factory=dict)
    last_at: int | None = None  # of any series
    samples: int = 0

    def add(self, chunk: Iterable[Series]) -> None:
        """Take the samples of the next stretch of time."""
        moments: set[int] = set()
        for series in chunk:
            track = self.tracks.setdefault(series.labels, Track(series.labels, self.window))
            for at, text in series.samples:
                track.see(at, text)
            moments.update(at for at, _ in series.samples)
            self.samples += len(series.samples)
        for at in sorted(moments):
            before, self.last_at = self.last_at, at
            if before is None or at <= self.window.start:
                continue
            if at - before > self.window.max_gap:
                raise Unknown(gap("no series has a", before, at, self.window.max_gap))

    def begun(self) -> list[Track]:
        """Return the series that have no value at the start."""
        return [track for track in self.tracks.values() if track.opening is None]

    def told(self, aggregation: Aggregation, new: NewSeries, ended: EndedSeries) -> Told:
        """Return the usage; raise Unknown where the samples do not tell it."""
        self._check_edges(new, ended)
        if aggregation is Aggregation.SUM:
            return self._counted(new)
        return self._gauged(aggregation)

    def _check_edges(self, new: NewSeries, ended: EndedSeries) -> None:
        window = self.window
        if begun := self.begun():
            track = begun[0]
            if new == "held":
                raise Unknown(
                    f"series {track.name} has no sample from {moment_text(window.after + 1)} to"
                    f" {moment_text(window.start)}, so its value at the start is unknown; if a"
                    ' series that begins always counts from 0, set new_series = "from_zero"'
                )
        if self.last_at is None or self.last_at < window.end - window.staleness:
            last = "at all" if self.last_at is None else f"after {moment_text(self.last_at)}"
            raise Unknown(
                f"there is no sample {last}, so the value at {moment_text(window.end)} is unknown"
            )
        if ended == "held":
            for track in self.tracks.values():
                if self._has_ended(track):
                    raise Unknown(
                        f"series {track.name} ends at {_at(track.last)}, and what it would have"
                        " counted later is unknown; if a series that ends has shown all its"
                        ' usage, set ended_series = "complete"'
                    )

    def _has_ended(self, track: Track) -> bool:
        last = track.last
        return last is None or last.at < self.window.end - self.window.staleness

    def _counted(self, new: NewSeries) -> Told:
        value = Decimal(0)
        series: list[dict[str, Any]] = []
        for _, track in sorted(self.tracks.items()):
            increase = track.increase()
            value = exact_sum(value, increase)
            series.append(
                {
                    "labels": dict(track.labels),
                    "opening": _written(track.opening),
                    "closing": _written(track.last),
                    "resets": len(track.falls),
                    "increase": plain(increase),
                }
            )
        falls = [(track, fall) for track in self.tracks.values() for fall in track.falls]
        notes = [SAMPLED, *_resets(falls)]
        if len(series) > _MOST_TOLD:
            notes.append(f"It is the sum of {len(series)} series; {_MOST_TOLD} are listed.")
        if begun := self.begun():
            each = [f"{t.name} at {_at(t.first)}, with {_value(t.first)}" for t in begun]
            notes.append(f"Counted from 0 (new_series = {new}): {_listed(each)}.")
        notes += self._endings()
        if value != int(value):
            notes.append(_FRACTIONS)
        return Told(value=value, series=series[:_MOST_TOLD], notes=tuple(notes))

    def _endings(self) -> list[str]:
        ends = [f"{t.name} at {_at(t.last)}" for t in self.tracks.values() if self._has_ended(t)]
        return [f"Ended before the period did, and complete: {_listed(ends)}."] if ends else []

    def _gauged(self, aggregation: Aggregation) -> Told:
        """Return the highest or the last sample in the period; series may only follow in turn."""
        inside = sorted(
            (track for track in self.tracks.values() if track.inside),
            key=lambda track: track.inside[0].at,
        )
        for one, other in pairwise(inside):
            if other.inside[0].at <= one.inside[2].at:
                raise Unknown(
                    f"series {one.name} and {other.name} are there at the same time, so that no"
                    f" one sample is the subject's {aggregation}; add labels or filters that"
                    " leave one"
                )
        if not inside:
            raise Unknown(str(_no_value(aggregation)))
        highest = max((track.inside[1] for track in inside), key=lambda point: point.value)
        point = highest if aggregation is Aggregation.MAX else inside[-1].inside[2]
        series = [{"labels": dict(t.labels), "last": _written(t.inside[2])} for t in inside]
        notes = [f"It is the value of the sample at {moment_text(point.at)}.", *self._endings()]
        if point.value != int(point.value):
            notes.append(_FRACTIONS)
        return Told(value=point.value, series=series[:_MOST_TOLD], notes=tuple(notes))


def name_of(labels: Labels) -> str:
    """Write labels as they stand in PromQL, cut to a readable length."""
    text = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels)
    return f"{{{text}}}" if len(text) <= 200 else f"{{{text[:197]}...}}"


def moment_text(at: int) -> str:
    """Write a moment that is given in milliseconds since 1970."""
    return utc_text(moment_at(at * 1000))


def gap(who: str, before: int, after: int, most: int) -> str:
    """Say between which two samples too much time went by."""
    return (
        f"{who} sample between {moment_text(before)} and {moment_text(after)}, which is more"
        f" than max_gap_seconds ({plain(Decimal(most) / 1000)}); usage in a gap is lost where a"
        " counter is reset in it"
    )


def _resets(falls: Sequence[tuple[Track, Fall]]) -> list[str]:
    if not falls:
        return []
    each = [
        f"{track.name} at {_at(fall.after)}, from {plain(fall.before.value)}"
        f" to {plain(fall.after.value)}"
        for track, fall in falls
    ]
    return [
        f"Resets, after each of which a counter began again from 0: {len(falls)}. {_listed(each)}."
        " What was used between the last sample before a reset and the reset is in no sample."
    ]


def _no_value(aggregation: Aggregation) -> ValueError:
    try:
        empty_value(aggregation)
    except ValueError as error:
        return error
    return ValueError(f"there is no {aggregation}")


def _at(point: Point | None) -> str:
    return "no moment" if point is None else moment_text(point.at)


def _value(point: Point | None) -> str:
    return "nothing" if point is None else plain(point.value)


def _written(point: Point | None) -> dict[str, str] | None:
    return None if point is None else {"at": moment_text(point.at), "value": plain(point.value)}


def _listed(each: Sequence[str]) -> str:
    more = f"; and {len(each) - _MOST_TOLD} more" if len(each) > _MOST_TOLD else ""
    return "; ".join(each[:_MOST_TOLD]) + more
