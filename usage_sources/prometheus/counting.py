"""One count over the samples of a Prometheus: what is read, and what it means that there is none.

A subject is known to a metric by its series alone. Where a known subject has no sample in reach of
the period, its usage is unknown and not 0; it is 0 only where all its series are known to begin
later, and to begin at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from usage_sources.prometheus.api import NAME, Matchers, PrometheusApi, is_label, selector
from usage_sources.prometheus.tracks import (
    EndedSeries,
    Labels,
    NewSeries,
    Tracks,
    Unknown,
    Window,
    moment_text,
    name_of,
)
from usage_sources.reading import empty_value, microseconds, never_used, shown
from worker.domain import Aggregation, UsageQuery
from worker.errors import SourceInvalid

_MOST_SAMPLES = 20_000_000  # of one query
_LOOKED_BACK_DAYS = 400  # for a sample of a series that seems to be new
_GAUGED = (Aggregation.MAX, Aggregation.LAST)
_NO_COUNTER = {"gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"}
_NO_GAUGE = (_NO_COUNTER - {"gauge"}) | {"counter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to count, as the settings say; times in whole milliseconds."""

    subject_label: str
    labels: tuple[tuple[str, str], ...]
    known_metrics: frozenset[str]
    staleness: int
    max_gap: int
    chunk: int
    new_series: NewSeries
    ended_series: EndedSeries


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The answer to one query; None: nobody knows the subject."""

    value: Decimal | None
    question: str
    samples: int = 0
    series: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def check_query(place: str, query: UsageQuery) -> None:
    """Refuse what samples cannot answer exactly, before anything is asked."""
    where = f"{place}: metric {shown(query.metric)}"
    if query.aggregation is not Aggregation.SUM and query.aggregation not in _GAUGED:
        raise SourceInvalid(
            f"{where}: samples tell sum (of a counter), max and last (of a gauge), but not"
            f" {query.aggregation}; correct aggregation under components"
        )
    if query.period.start.microsecond % 1000 or query.period.end.microsecond % 1000:
        raise SourceInvalid(
            f"{where}: Prometheus keeps whole milliseconds, and {query.period} is none"
        )
    for label, value in query.filters:
        if not is_label(label):
            raise SourceInvalid(f"{where} cannot be filtered by {shown(label)}, which is no label")
        if not value:
            raise SourceInvalid(
                f"{where} cannot be filtered by an empty {label}: to Prometheus, that means the"
                " series without this label"
            )


class Counting:
    """One count: its server, and how to count."""

    def __init__(self, api: PrometheusApi, manner: Manner) -> None:
        self._api = api
        self._manner = manner

    def counted(self, query: UsageQuery) -> Counted:
        """Answer one query that was checked; raise SourceInvalid where the usage is unknown."""
        self._check_columns(query)
        self._check_type(query)
        try:
            return self._told(query)
        except Unknown as error:
            raise SourceInvalid(
                f"{self._where(query)}, subject {shown(query.subject)}, {query.period}: {error}"
            ) from None

    def _told(self, query: UsageQuery) -> Counted:
        manner, window = self._manner, self._window(query)
        matchers = self._matchers(query)
        question = f"{selector(matchers)}[{window.end - window.after}ms]"
        # An empty matcher would match the series of nobody, and of everything.
        tracks = self._tracks(matchers, window) if query.subject and query.metric else None
        if tracks is None or not tracks.tracks:
            return self._nothing(query, question)
        if manner.new_series == "from_zero":
            self._check_begun(tracks, matchers)
        told = tracks.told(query.aggregation, manner.new_series, manner.ended_series)
        return Counted(
            value=told.value,
            question=question,
            samples=tracks.samples,
            series=told.series,
            notes=told.notes,
        )

    def _tracks(self, matchers: Matchers, window: Window) -> Tracks:
        tracks = Tracks(window)
        for after, upto in _chunks(window, self._manner.chunk):
            chunk = self._api.samples(matchers, after, upto)
            tracks.add(each for each in chunk if each.samples)
            if tracks.samples > _MOST_SAMPLES:
                raise Unknown(f"it has more than {_MOST_SAMPLES} samples")
        return tracks

    def _check_begun(self, tracks: Tracks, matchers: Matchers) -> None:
        """Refuse to count a series from 0 that only went unseen for a while."""
        begun = {track.labels for track in tracks.begun()}
        if not begun:
            return
        since, start = moment_text(tracks.window.after + 1), moment_text(tracks.window.start)
        earlier = sorted(self._earlier(matchers, tracks.window.after))
        if begun == tracks.tracks.keys() and earlier:
            raise Unknown(
                f"series {name_of(earlier[0])} had samples before {since}, but none of the"
                f" subject's has any from then to {start}, so the value at the start is unknown"
            )
        if returned := [labels for labels in earlier if labels in begun]:
            raise Unknown(
                f"series {name_of(returned[0])} is not new: it had samples before {since}, but none"
                f" from then to {start}, so its value at the start is unknown"
            )

    def _earlier(self, matchers: Matchers, upto: int) -> set[Labels]:
        return self._api.earlier(matchers, upto, _LOOKED_BACK_DAYS)

    def _nothing(self, query: UsageQuery, question: str) -> Counted:
        """Tell nothing used from nobody there, where no sample is in reach of the period."""
        if not self._has_metric(query) or not self._is_known(replace(query, filters=())):
            return Counted(value=None, question=question)
        if query.filters and not self._is_known(query):
            return self._nothing_of_filters(query, question)
        return self._not_begun(query, question)

    def _nothing_of_filters(self, query: UsageQuery, question: str) -> Counted:
        """Answer 0 where the subject's other series are whole, and none ever had these labels."""
        others = self._told(replace(query, filters=()))
        note = "No series of the subject ever had these labels; its others have all their samples."
        return Counted(
            value=self._empty(query),
            question=question,
            samples=others.samples,
            series=others.series,
            notes=(note,),
        )

    def _not_begun(self, query: UsageQuery, question: str) -> Counted:
        window = self._window(query)
        may_begin = self._manner.new_series == "from_zero"
        if may_begin and not self._earlier(self._matchers(query), window.end):
            note = "Each of the subject's series begins after the period, and began from 0."
            return Counted(value=self._empty(query), question=question, notes=(note,))
        raise Unknown(
            f"no series has a sample from {moment_text(window.after + 1)} to"
            f" {moment_text(window.end)}, so the usage is unknown, not 0"
        )

    @staticmethod
    def _empty(query: UsageQuery) -> Decimal:
        try:
            return empty_value(query.aggregation)
        except ValueError as error:
            raise Unknown(str(error)) from None

    def _has_metric(self, query: UsageQuery) -> bool:
        """Tell whether the metric has series; raise unless it is said to exist anyway."""
        columns = self._columns(query)
        label = self._manner.subject_label
        if columns and label not in columns:
            raise SourceInvalid(
                f"{self._where(query)}: its series have no label {label} (subject_label);"
                f" they have {_names(columns)}"
            )
        if columns or query.metric in self._manner.known_metrics:
            return bool(columns)
        fixed = f" with {name_of(self._manner.labels)}" if self._manner.labels else ""
        raise SourceInvalid(
            never_used(f"{self._api.place}{fixed}", NAME, [query.metric], self._api.metrics())
        )

    def _is_known(self, query: UsageQuery) -> bool:
        if not query.subject:
            return False
        return self._api.has_value(self._manner.subject_label, self._matchers(query))

    def _check_columns(self, query: UsageQuery) -> None:
        columns = self._columns(query) if query.filters else frozenset()
        for label, _ in query.filters:
            if columns and label not in columns:
                raise SourceInvalid(
                    f"{self._where(query)} cannot be filtered by {shown(label)}; its labels are"
                    f" {_names(columns)}"
                )

    def _check_type(self, query: UsageQuery) -> None:
        """Refuse to count a gauge as a counter, whose every fall would be taken for a reset."""
        gauged = query.aggregation in _GAUGED
        types = self._api.types(query.metric) if query.metric else frozenset()
        wrong = sorted(types & (_NO_GAUGE if gauged else _NO_COUNTER))
        if wrong:
            needed = "gauge" if gauged else "counter"
            raise SourceInvalid(
                f"{self._where(query)} is a {wrong[0]}, and {query.aggregation} is of a {needed}"
            )

    def _columns(self, query: UsageQuery) -> frozenset[str]:
        return self._api.columns(self._of_metric(query)) if query.metric else frozenset()

    def _of_metric(self, query: UsageQuery) -> Matchers:
        return [(NAME, query.metric), *self._manner.labels]

    def _matchers(self, query: UsageQuery) -> Matchers:
        subject = (self._manner.subject_label, query.subject)
        return [*self._of_metric(query), subject, *query.filters]

    def _window(self, query: UsageQuery) -> Window:
        period, manner = query.period, self._manner
        edges = (_milliseconds(period.start), _milliseconds(period.end))
        return Window(*edges, manner.staleness, manner.max_gap)

    def _where(self, query: UsageQuery) -> str:
        return f"{self._api.place}: metric {shown(query.metric)}"


def _chunks(window: Window, size: int) -> Iterator[tuple[int, int]]:
    """Cut the time that samples are needed of into stretches, each open at its old end."""
    for after in range(window.after, window.end, size):
        yield after, min(after + size, window.end)


def _milliseconds(moment: datetime) -> int:
    return microseconds(moment) // 1000


def _names(columns: frozenset[str]) -> str:
    names = sorted(columns - {NAME})
    more = ", ..." if len(names) > 20 else ""
    return ", ".join(names[:20]) + more if names else "none"
