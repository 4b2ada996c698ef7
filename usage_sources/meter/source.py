"""The built-in meter: keeps usage events itself, each once, and counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from usage_sources.meter.appending import HOUR
from usage_sources.meter.counting import Part, Snapshot, Span, count_series
from usage_sources.meter.sqlite import SqliteMeter
from usage_sources.reading import (
    NAMES_LOOKED_AT,
    digest,
    lagging,
    microseconds,
    moment_at,
    never_used,
    nothing_used,
)
from worker.domain import Aggregation, Evidence, Period, Tally, UsageQuery, utc_text
from worker.errors import SourceInvalid
from worker.metering import EventStore

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")
_ROLLED_NOTE = (
    "whole hours were added up from the hourly sums that the meter keeps;"
    " the query adds up single events, which is the same number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the events say to one query."""

    query: UsageQuery
    until: int  # what was stored later is not in
    known: bool  # the subject had any event by then
    events: int
    value: Decimal | None
    rolled: bool


class Meter(EventStore, Protocol):
    """A database that keeps events."""

    place: str  # where it is, without credentials
    texts: Mapping[Aggregation, str]  # statements that an outsider can run, each one count

    def reading(self) -> AbstractContextManager[Snapshot]:
        """Give the stored events as they are now."""

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""


@dataclass(frozen=True, kw_only=True)
class MeterSource:
    """Counts the usage events that were sent to this program; each field is a setting.

    The tables are made when the first event is stored.
    """

    # What must be installed beside, and for what.
    optional_extras: ClassVar[Mapping[str, str]] = {"postgres": "a PostgreSQL url"}

    # Where the events are kept: a SQLite file that the processes of one machine share, or
    # "postgresql://user@host/database" for several machines.
    url: str = field(default="sqlite:///state/usage.db", repr=False)
    # Metrics that exist although no event of theirs has come yet; any other that nobody ever used
    # is an error, since a misspelt name must not count as 0.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # Everything older than this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None
    # How long one count, or storing one batch of events, may take.
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.url.startswith((_SQLITE, *_POSTGRES)) or self.url == _SQLITE:
            raise ValueError(
                'url must be "sqlite:///path/to/file" or "postgresql://user@host/database"'
            )
        if self.url.startswith(_POSTGRES):
            _postgres_module().check_url(self.url)
        if self.watermark_lag_seconds is not None and not self.watermark_lag_seconds >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")
        if not self.timeout_seconds > 0:
            raise ValueError("timeout_seconds must be more than 0")

    @property
    def store(self) -> EventStore:
        """Where events are put in."""
        return self._meter

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query, from one state of the store."""
        self._refuse(queries)
        if not queries:
            return []
        asked_at = self.now()
        with self._meter.reading() as snapshot:
            answers = [
                answer
                for (span, until), some in _grouped(queries, snapshot.latest).items()
                for answer in _answers(snapshot, some, span, until)
            ]
            self._check_metrics(snapshot, answers)
        return [self._tally(answer, asked_at) for answer in answers]

    def watermark(self) -> datetime | None:
        """Return the present less the lag that the settings state; None: unsaid."""
        return lagging(self.now(), self.watermark_lag_seconds)

    def check(self) -> None:
        """Raise unless the tables are there and can be read."""
        with self._meter.reading() as snapshot:
            snapshot.some_metrics(1)

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._meter.close()

    @cached_property
    def _meter(self) -> Meter:
        if self.url.startswith(_SQLITE):
            return SqliteMeter(Path(self.url.removeprefix(_SQLITE)), self.timeout_seconds)
        meter: Meter = _postgres_module().PostgresMeter(self.url, self.timeout_seconds)
        return meter

    def _refuse(self, queries: Sequence[UsageQuery]) -> None:
        for query in queries:
            if query.filters:
                raise SourceInvalid(f"{self._meter.place}: events have no columns to filter by")
            if query.aggregation not in self._meter.texts:
                *others, last = self._meter.texts
                raise SourceInvalid(
                    f"{self._meter.place} cannot count {query.aggregation}: an event has one"
                    f" quantity and no other value; use {', '.join(others)} or {last}"
                )

    def _check_metrics(self, snapshot: Snapshot, answers: Sequence[_Answer]) -> None:
        """Raise where a metric is in no event at all, up to the moment that was asked for."""
        unused: dict[int, set[str]] = {}
        for answer in answers:
            if not answer.events and answer.query.metric not in self.known_metrics:
                unused.setdefault(answer.until, set()).add(answer.query.metric)
        for until, metrics in unused.items():
            if missing := sorted(metrics - snapshot.known_metrics(metrics, until)):
                names = snapshot.some_metrics(NAMES_LOOKED_AT)
                place = self._meter.place
                told = never_used(place, "type", missing, names, called="attribute")
                raise SourceInvalid(told)

    def _tally(self, answer: _Answer, asked_at: datetime) -> Tally:
        query = answer.query
        value = answer.value if answer.known else None
        events = answer.events if answer.known else None
        if answer.known and value is None:
            value = nothing_used(self._meter.place, query)
        evidence = Evidence(
            source=self._meter.place,
            query=self._meter.texts[query.aggregation],
            parameters=_parameters(answer),
            asked_at=asked_at,
            digest=digest(query, value, events),
            watermark=lagging(asked_at, self.watermark_lag_seconds),
            stored_until=moment_at(answer.until),
            notes=(_ROLLED_NOTE,) if answer.rolled else (),
        )
        return Tally(query=query, value=value, events=events, evidence=evidence)


def _grouped(
    queries: Sequence[UsageQuery], latest: int
) -> dict[tuple[Span, int], list[UsageQuery]]:
    """Put together what one statement can answer; nothing stored after `latest` is there."""
    groups: dict[tuple[Span, int], list[UsageQuery]] = {}
    for query in queries:
        span = microseconds(query.period.start), microseconds(query.period.end)
        asked = latest if query.stored_until is None else microseconds(query.stored_until)
        groups.setdefault((span, min(asked, latest)), []).append(query)
    return groups


def _answers(
    snapshot: Snapshot, queries: Sequence[UsageQuery], span: Span, until: int
) -> list[_Answer]:
    subjects = {query.subject for query in queries}
    found = snapshot.series(subjects, {query.metric for query in queries}, until)
    series = {(each.subject, each.metric): each for each in found}
    asked = {(query.subject, query.metric) for query in queries}
    parts = count_series(snapshot, [series[pair] for pair in series if pair in asked], span, until)
    known = {each.subject for each in found}
    known.update(snapshot.known_subjects(subjects - known, until))
    answers = []
    for query in queries:
        one = series.get((query.subject, query.metric))
        part = Part() if one is None else parts.get(one.id, Part())
        value: Decimal | None = None
        if one is not None and part.events:
            value = _value_of(query.aggregation, part)
            if query.aggregation is Aggregation.LAST:
                value = snapshot.last(one.id, span, until)
        answers.append(
            _Answer(
                query=query,
                until=until,
                known=query.subject in known,
                events=part.events,
                value=value,
                rolled=one is not None and one.rolled and _by_hours(query.aggregation, span),
            )
        )
    return answers


def _by_hours(aggregation: Aggregation, span: Span) -> bool:
    """Tell whether the sums of hours are used: not for the last value, or without a whole hour."""
    return aggregation is not Aggregation.LAST and -(-span[0] // HOUR) < span[1] // HOUR


def _value_of(aggregation: Aggregation, part: Part) -> Decimal | None:
    match aggregation:
        case Aggregation.COUNT:
            return Decimal(part.events)
        case Aggregation.SUM:
            return part.total
        case Aggregation.MAX:
            return part.most
    return None


def _parameters(answer: _Answer) -> dict[str, Any]:
    """Return what stands in the place of the statement's names, and the same for a reader."""
    query = answer.query
    named = {"subject": query.subject, "metric": query.metric}
    return {**named, **_bounds(query.period, answer.until)}


@lru_cache(maxsize=64)
def _bounds(period: Period, until: int) -> Mapping[str, Any]:
    """Return those that all counts of an invoice share."""
    return {
        "start": microseconds(period.start),
        "end": microseconds(period.end),
        "stored_until": until,
        "start_at": utc_text(period.start),
        "end_at": utc_text(period.end),
        "stored_until_at": utc_text(moment_at(until)),
    }


def _postgres_module() -> Any:
    try:
        return import_module("usage_sources.meter.postgres")
    except ImportError:
        raise ValueError(
            "url: PostgreSQL needs psycopg: pip install 'invoice-reconciler[postgres]'"
        ) from None
