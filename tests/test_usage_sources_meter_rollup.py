"""The hourly sums of the built-in meter: whatever is asked, they change no number."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from meter_builders import COUNTABLE, hours_after, used
from postgres import Server

from usage_sources.contract.values import MIDNIGHT, query
from usage_sources.meter import appending as meter_appending
from usage_sources.meter.counting import Parts, Span, count_series
from usage_sources.meter.postgres import PostgresMeter
from usage_sources.meter.source import Meter, MeterSource
from usage_sources.meter.sqlite import SqliteMeter
from usage_sources.meter.sqlite_reading import SqliteSnapshot
from usage_sources.reading import microseconds, moment_at
from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid
from worker.metering import UsageEvent

HOUR = timedelta(hours=1)
Batches = list[list[UsageEvent]]


@pytest.fixture(autouse=True, scope="module")
def _rolled_early() -> Iterator[None]:
    """Keep hourly sums of everything with four events or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter_appending, "ROLL_FROM", 4)
        patch.setattr(meter_appending, "SAMPLED", 1)
        yield


def moments() -> st.SearchStrategy[datetime]:
    """Moments of six hours, many of them at the edge of one."""
    on_the_hour = st.integers(0, 6).map(hours_after)
    beside = st.builds(
        lambda moment, step: moment + timedelta(microseconds=step),
        on_the_hour,
        st.sampled_from([-1, 0, 1]),
    )
    within = st.datetimes(
        min_value=MIDNIGHT.replace(tzinfo=None),
        max_value=(MIDNIGHT + 6 * HOUR).replace(tzinfo=None),
    ).map(lambda moment: moment.replace(tzinfo=MIDNIGHT.tzinfo))
    return st.one_of(beside, beside, within)


def quantities() -> st.SearchStrategy[str]:
    """Whole numbers, fractions of every length, negative and huge ones."""
    odd = ["0", "-0", "0.1", "-2.5", "1.000000", "0.0000001", "9223372036854.775807"]
    odd += ["9223372036854.775808", "-9223372036854.775808", "1e18", "123456789e30", "-7e-40"]
    whole = st.integers(-100, 100).map(str)
    decimal = st.decimals(-1000, 1000, allow_nan=False, places=8).map(str)
    return st.one_of(whole, whole, st.sampled_from(odd), decimal)


EVENTS = st.builds(
    used,
    quantities(),
    id=st.integers(0, 40).map(str),  # few, so that names come again
    at=moments(),
    subject=st.sampled_from(["S-1", "S-1", "S-1", "S-2"]),
    metric=st.sampled_from(["calls", "calls", "pages"]),
)
BATCHES = st.lists(st.lists(EVENTS, max_size=12), min_size=1, max_size=6)
PERIODS = st.tuples(moments(), moments()).map(lambda two: Period(min(two), max(two)))


@dataclass(frozen=True)
class Model:
    """The events that are stored, in their order, each with the batch that brought it."""

    events: list[tuple[int, UsageEvent]]

    @classmethod
    def of(cls, batches: Batches) -> Model:
        """Keep the first event of each name."""
        kept: dict[str, tuple[int, UsageEvent]] = {}
        for number, batch in enumerate(batches):
            for each in batch:
                kept.setdefault(each.id, (number, each))
        return cls(list(kept.values()))

    def answer(self, asked: UsageQuery, until: int) -> tuple[Decimal | None, int | None] | None:
        """Count what the batches up to this one brought; None: there is no answer."""
        seen = [event for number, event in self.events if number <= until]
        if asked.metric not in {each.metric for each in seen}:
            return None
        mine = [each for each in seen if each.subject == asked.subject]
        if not mine:
            return None, None
        found = [e for e in mine if e.metric == asked.metric and e.at in asked.period]
        with localcontext(prec=200):
            match asked.aggregation:
                case Aggregation.COUNT:
                    return Decimal(len(found)), len(found)
                case Aggregation.SUM:
                    return sum((e.quantity for e in found), Decimal(0)), len(found)
                case Aggregation.MAX if found:
                    return max(e.quantity for e in found), len(found)
                case Aggregation.LAST if found:
                    return sorted(found, key=lambda e: e.at)[-1].quantity, len(found)
        return None


def answer(source: MeterSource, asked: UsageQuery) -> Tally | None:
    """Ask one query; None: it is refused."""
    try:
        (tally,) = source.count([asked])
    except SourceInvalid:
        return None
    return tally


def check_all(meter: Meter, source: MeterSource, batches: Batches, periods: list[Period]) -> None:
    """Compare every answer with the model's, up to each batch."""
    batches = [[used(id="first", subject="S-2")], *batches]
    cuts = []
    for batch in batches:
        meter.append(batch, all_or_nothing=False)
        with meter.reading() as snapshot:
            cuts.append(moment_at(snapshot.latest))
    model = Model.of(batches)
    for until, cut in enumerate(cuts):
        for asked in questions(periods):
            tally = answer(source, replace(asked, stored_until=cut))
            found = None if tally is None else (tally.value, tally.events)
            assert found == model.answer(asked, until), (asked, until)


def questions(periods: Sequence[Period]) -> Iterator[UsageQuery]:
    """Ask everything of everybody."""
    for period in periods:
        for aggregation in sorted(COUNTABLE):
            for subject in ("S-1", "S-2"):
                yield query(subject=subject, aggregation=aggregation, period=period)
        yield query(metric="pages", period=period, aggregation=Aggregation.SUM)


@settings(max_examples=100, deadline=None)
@given(batches=BATCHES, periods=st.lists(PERIODS, min_size=1, max_size=3))
def test_sqlite_counts_as_if_by_hand(
    tmp_path_factory: pytest.TempPathFactory, batches: Batches, periods: list[Period]
) -> None:
    """Late events, fractions, duplicates, any period, any cut-off: the number of a plain list."""
    path = tmp_path_factory.mktemp("meter") / "usage.db"
    with (
        closing(SqliteMeter(path, 30)) as meter,
        closing(MeterSource(url=f"sqlite:///{path}")) as s,
    ):
        check_all(meter, s, batches, periods)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(batches=BATCHES, periods=st.lists(PERIODS, min_size=1, max_size=2))
def test_postgres_counts_as_if_by_hand(
    postgres: Server, batches: Batches, periods: list[Period]
) -> None:
    """The same on PostgreSQL, whose numbers need no care."""
    with postgres.database() as name:
        url = postgres.url(name)
        with closing(PostgresMeter(url, 30)) as meter, closing(MeterSource(url=url)) as source:
            check_all(meter, source, batches, periods)


def test_whole_hours_are_not_read_event_by_event(tmp_path: Path) -> None:
    """Of a heavy series only the ragged ends and the hours with late events are."""
    path = tmp_path / "usage.db"
    with closing(SqliteMeter(path, 30)) as meter:
        some = [used(at=hours_after(number / 2)) for number in range(24)]
        meter.append(some, all_or_nothing=False)
        with meter.reading() as snapshot:
            cut = snapshot.latest
        meter.append([used(at=hours_after(n)) for n in (2.5, 3.5, 7)], all_or_nothing=False)
        with meter.reading() as snapshot:
            watched = Watched(snapshot)
            (series,) = snapshot.series({"S-1"}, {"calls"}, cut)
            span = microseconds(hours_after(0.5)), microseconds(hours_after(9.5))
            assert count_series(watched, [series], span, cut)[series.id].events == 18
            late = [(2, 4), (7, 8)]
            ends = [(0.5, 1), (9, 9.5)]
            assert watched.spans == [
                (microseconds(hours_after(start)), microseconds(hours_after(end)))
                for start, end in [*ends, *late]
            ]
            watched.spans.clear()
            now = count_series(watched, [series], span, snapshot.latest)
            assert now[series.id].events == 21
            assert len(watched.spans) == len(ends)


class Watched:
    """A snapshot that remembers which single events were added up."""

    def __init__(self, snapshot: SqliteSnapshot) -> None:
        self._snapshot = snapshot
        self.latest = snapshot.latest
        self.spans: list[Span] = []

    def raw(self, series: Collection[int], span: Span, until: int) -> Parts:
        """Remember, and ask."""
        self.spans.append(span)
        return self._snapshot.raw(series, span, until)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)


def test_an_hour_grows_by_numbers_of_every_kind(tmp_path: Path) -> None:
    """Batch by batch, an hour takes in what fits into millionths and what does not."""
    path = tmp_path / "usage.db"
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        source.store.append([used("1") for _ in range(5)], all_or_nothing=False)
        total, most = Decimal(5), Decimal(1)
        for text in ("0.0000001", "1e20", "-3", "0.0000002", "2e20", "7.5", "-5e20", "1.5e20"):
            source.store.append([used(text)], all_or_nothing=False)
            total, most = total + Decimal(text), max(most, Decimal(text))
            for aggregation, expected in ((Aggregation.SUM, total), (Aggregation.MAX, most)):
                (tally,) = source.count([query(aggregation=aggregation)])
                assert tally.value == expected
                assert tally.evidence.notes, "it was not answered from the hours"


def test_only_heavy_series_are_rolled_up(tmp_path: Path) -> None:
    """The hours of a series are kept from its fourth event on, whichever batches bring it."""
    path = tmp_path / "usage.db"
    with closing(SqliteMeter(path, 30)) as meter:
        for number in range(5):
            meter.append([used(at=hours_after(number)), used(subject="S-2")], all_or_nothing=False)
            meter.append([used(subject=f"T-{number}")] * 9, all_or_nothing=False)
            with closing(sqlite3.connect(path)) as look:
                ((hours, events),) = look.execute("SELECT count(*), sum(events) FROM meter_hours")
            assert (hours, events or 0) == [(0, 0), (0, 0), (0, 0), (5, 8), (6, 10)][number]
