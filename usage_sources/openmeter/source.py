"""Usage counted by the meters of an OpenMeter, self-hosted or its cloud, over its REST API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Literal

from usage_sources.openmeter.api import (
    FirstApi,
    Meter,
    MeterApi,
    Question,
    ThirdApi,
    grouped_subjects,
)
from usage_sources.reading import digest, lagging, nothing_used, shown
from usage_sources.web import Credentials, Deadline, WebApi, check_base_url, check_header
from worker.domain import Aggregation, Evidence, Period, Tally, UsageQuery, utc_text
from worker.errors import SourceInvalid

_SUBJECTS_AT_ONCE = 100  # what the first API takes in one query
_FIRST_INEXACT = 2**53  # from here on, a 64-bit float leaves whole numbers out
_AGGREGATIONS = {
    "count": Aggregation.COUNT,
    "sum": Aggregation.SUM,
    "max": Aggregation.MAX,
    "latest": Aggregation.LAST,
    "unique_count": Aggregation.UNIQUE,
}
_RESERVED = {"subject", "customer_id"}  # what OpenMeter does not read from the event's data
_LEFT_OUT = "OpenMeter leaves out an event whose value is not a number."
_NOTES = {
    Aggregation.COUNT: (),
    Aggregation.SUM: (_LEFT_OUT,),
    Aggregation.MAX: (_LEFT_OUT,),
    Aggregation.LAST: (_LEFT_OUT, "Of events in the same second OpenMeter takes any as the last."),
    Aggregation.UNIQUE: ("To OpenMeter, events without a value have the same empty value.",),
}
_NOT_ASKED = "OpenMeter refuses an empty period, so it was not asked; no event can be in it."


@dataclass(frozen=True, kw_only=True)
class OpenMeterSource:
    """Counts usage by asking OpenMeter for a meter's total; each field is a setting.

    A component's metric is the meter's slug (key), and its filters are the meter's dimensions.
    A meter aggregates in one way, which must be the component's.
    """

    # What the configuration calls it.
    name: str = field(default="", metadata={"setting": False})
    # The address of OpenMeter, without /api.
    base_url: str
    # The API key, sent as a bearer token; an OpenMeter of your own may need none.
    token: str = field(default="", repr=False, metadata={"secret": True})
    # Which of its APIs to ask: "v1", or "v3" where the OpenMeter has it.
    api: Literal["v1", "v3"] = "v1"
    # Your OpenMeter keeps values as decimals all the way; otherwise they are 64-bit floats, and
    # one of 2^53 (9007199254740992) or more is refused, since its last digits may be lost.
    exact_values: bool = False
    # Everything older than this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None
    # How long one count may take, however many requests it needs.
    timeout_seconds: float = 30.0
    # A file of certificates (PEM) to trust instead of the usual ones; default: none.
    ca_file: str | None = None

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        check_header("token", self.token)
        if self.watermark_lag_seconds is not None and not self.watermark_lag_seconds >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError("timeout_seconds must be more than 0, and 3600 at most")
        if self.ca_file is not None and not Path(self.ca_file).is_file():
            raise ValueError(f"ca_file: there is no file {self.ca_file}")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query, with one request for those that differ in the subject only."""
        counting = _Counting(self._api, Deadline(self.timeout_seconds), self._web.place)
        for query in queries:
            counting.check(query)
        asked_at = self.now()
        return [
            self._tally(counting, query, total, asked_at)
            for together in _alike(queries)
            for query, total in counting.totals(together)
        ]

    def watermark(self) -> datetime | None:
        """Return the present moment less the lag that the settings state; None: unsaid."""
        return lagging(self.now(), self.watermark_lag_seconds)

    def check(self) -> None:
        """Raise unless OpenMeter answers and accepts the token."""
        self._api.check(Deadline(self.timeout_seconds))

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._web.close()

    @cached_property
    def _web(self) -> WebApi:
        return WebApi(
            self.base_url,
            kind="openmeter",
            timeout_seconds=self.timeout_seconds,
            credentials=Credentials(
                headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
                secrets=[self.token],
                set_by=(self.name, "token"),
            ),
            ca_file=self.ca_file,
        )

    @cached_property
    def _api(self) -> MeterApi:
        return FirstApi(self._web) if self.api == "v1" else ThirdApi(self._web)

    def _tally(
        self, counting: _Counting, query: UsageQuery, total: _Total, asked_at: datetime
    ) -> Tally:
        value = total.value
        if value is not None and not self.exact_values and abs(value) >= _FIRST_INEXACT:
            raise SourceInvalid(
                f"{counting.place}: meter {shown(query.metric)}: {value} is 2^53 or more, where"
                " OpenMeter's floats lose digits; set exact_values if yours keeps decimals"
            )
        whole = query.aggregation is Aggregation.COUNT and value is not None
        events = int(value) if whole and value is not None and value == int(value) else None
        exact = () if self.exact_values else ("OpenMeter computed it with 64-bit floats.",)
        notes = (*total.notes, *_NOTES[query.aggregation], *exact)
        evidence = Evidence(
            source=counting.place,
            query=total.question,
            parameters={
                "subject": query.subject,
                "metric": query.metric,
                "aggregation": query.aggregation.value,
                "start": utc_text(query.period.start),
                "end": utc_text(query.period.end),
                "filters": dict(query.filters),
            },
            asked_at=asked_at,
            digest=digest(query, value, events),
            watermark=lagging(asked_at, self.watermark_lag_seconds),
            notes=notes,
        )
        return Tally(query=query, value=value, events=events, evidence=evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Total:
    """What a subject used; None: nobody knows the subject."""

    value: Decimal | None
    question: str
    notes: tuple[str, ...] = ()


class _Counting:
    """One count: its deadline, and what was learnt of meters and subjects."""

    def __init__(self, api: MeterApi, deadline: Deadline, place: str) -> None:
        self.place = place
        self._api = api
        self._deadline = deadline
        self._meters: dict[str, Meter] = {}
        self._listed: dict[str, bool] = {}

    def check(self, query: UsageQuery) -> None:
        """Refuse what OpenMeter cannot answer exactly, before anything is counted."""
        meter = self._meter(query.metric)
        where = f"{self.place}: meter {shown(query.metric)}"
        if _AGGREGATIONS.get(meter.aggregation) is not query.aggregation:
            raise SourceInvalid(
                f"{where} aggregates by {meter.aggregation}, not {query.aggregation};"
                " correct metric or aggregation under components"
            )
        columns = [column for column, _ in query.filters]
        there = meter.columns - _RESERVED
        for column, value in query.filters:
            if not value:  # which OpenMeter may take for no filter
                raise SourceInvalid(f"{where} cannot be filtered by an empty {shown(column)}")
            if column not in there or columns.count(column) > 1:
                has = ", ".join(map(shown, sorted(there))) or "none"
                raise SourceInvalid(
                    f"{where} cannot be filtered by {shown(column)}; its dimensions are {has}"
                )
        if query.period.start.microsecond or query.period.end.microsecond:
            raise SourceInvalid(
                f"{where}: OpenMeter counts whole seconds, and {query.period} is none"
            )
        if meter.since is not None and meter.since > query.period.start:
            raise SourceInvalid(
                f"{where} leaves out what is older than {utc_text(meter.since)}, so the usage in"
                f" {query.period} is unknown"
            )

    def totals(self, queries: Sequence[UsageQuery]) -> Iterator[tuple[UsageQuery, _Total]]:
        """Answer queries that differ in the subject only."""
        first = queries[0]
        meter = self._meter(first.metric)
        for subjects in grouped_subjects([each.subject for each in queries], _SUBJECTS_AT_ONCE):
            asked = Question(subjects=subjects, period=first.period, filters=first.filters)
            question = self._api.question(meter, asked)
            found: dict[str, Decimal] = {}
            notes: tuple[str, ...] = ()
            if first.period.start == first.period.end:
                notes = (_NOT_ASKED,)
            else:
                found = self._api.totals(meter, asked, self._deadline)
            for query in queries:
                if query.subject in subjects:
                    value = found.get(query.subject)
                    if value is None:
                        value = self._nothing(meter, query)
                    yield query, _Total(value=value, question=question, notes=notes)

    def _meter(self, name: str) -> Meter:
        if name not in self._meters:
            self._meters[name] = self._api.meter(name, self._deadline)
        return self._meters[name]

    def _nothing(self, meter: Meter, query: UsageQuery) -> Decimal | None:
        """Tell nothing used from nobody there, for a subject without a row."""
        if not self._is_known(meter, query.subject):
            return None
        return nothing_used(self.place, query)

    def _is_known(self, meter: Meter, subject: str) -> bool:
        """Look whether OpenMeter was told of the subject, or the meter ever saw any event of it."""
        if not subject:  # which could be taken for no filter at all
            return False
        if subject not in self._listed:
            self._listed[subject] = self._api.lists(subject, self._deadline)
        ever = Question(subjects=(subject,), period=None)
        return self._listed[subject] or bool(self._api.totals(meter, ever, self._deadline))


def _alike(queries: Iterable[UsageQuery]) -> list[list[UsageQuery]]:
    """Group queries that one request can answer."""
    groups: dict[tuple[str, Period, tuple[tuple[str, str], ...]], list[UsageQuery]] = {}
    for query in queries:
        groups.setdefault((query.metric, query.period, query.filters), []).append(query)
    return list(groups.values())
