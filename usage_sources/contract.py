"""The contract suite: what every usage source must do, as tests its author runs with pytest."""

# ruff: noqa: S101 - these are tests, shipped so that authors of sources elsewhere can run them

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid
from worker.ports import UsageSource

MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)
MAY = Period(MIDNIGHT, datetime(2024, 6, 1, tzinfo=UTC))
JUNE = Period(datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=UTC))
CLOCK_CHANGES = {  # local days from midnight to midnight, and how many half hours they have
    "Berlin in March": ("2024-03-30T23:00Z", "2024-03-31T22:00Z", 46),
    "Berlin in October": ("2024-10-26T22:00Z", "2024-10-27T23:00Z", 50),
    "New York in March": ("2024-03-10T05:00Z", "2024-03-11T04:00Z", 46),
    "New York in November": ("2024-11-03T04:00Z", "2024-11-04T05:00Z", 50),
    "Lord Howe in April": ("2024-04-06T13:00Z", "2024-04-07T13:30Z", 49),
    "Lord Howe in October": ("2024-10-05T13:30Z", "2024-10-06T13:00Z", 47),
}
NAMES = (  # that would harm or widen a statement they were pasted into
    "O'Brien",
    'say "hi"',
    "x'; DROP TABLE usage;--",
    "%",
    "_",
    "a\\b",
    ":start",
    "Ä 漢字 🙂",
    "n" * 10_000,
)


@dataclass(frozen=True, kw_only=True)
class UsageEvent:
    """One thing that a subject used, as the suite asks a source's author to store it."""

    subject: str
    metric: str
    at: datetime  # aware, in any zone; store the same instant
    quantity: Decimal = Decimal(1)
    unique: str | None = None


class UsageSourceContract(ABC):
    """Subclass it, name it Test..., write `source_with`, and run pytest."""

    # Which aggregations the source can answer; COUNT or SUM must be among them.
    aggregations: ClassVar[frozenset[Aggregation]] = frozenset(Aggregation)
    # The smallest difference between two times that the source can store.
    resolution: ClassVar[timedelta] = timedelta(microseconds=1)
    # Whether the source can tell a metric that nobody ever used from one that does not exist;
    # set it False only where nothing there lists the metrics, as where a statement is all you have.
    knows_metrics: ClassVar[bool] = True

    @abstractmethod
    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> UsageSource:
        """Return a source over exactly these events; what an earlier call stored is replaced."""

    def test_the_start_counts_and_the_end_does_not(self, tmp_path: Path) -> None:
        """An event at the start is in; one at the end, or just before the start, is not."""
        step = self.resolution
        inside = [event(MAY.start), event(MAY.end - step)]
        outside = [event(MAY.start - step), event(MAY.end)]
        assert self.number(tmp_path, [*inside, *outside]) == 2

        only_outside = self.tally(tmp_path, outside, query(aggregation=self.counting))
        assert only_outside.value == 0, "an event outside the period was counted"

    def test_adjacent_periods_sum_to_the_whole(self, tmp_path: Path) -> None:
        """Every event is in exactly one of two periods that touch."""
        step = self.resolution
        around = [event(MAY.end + each * step) for each in (-2, -1, 0, 1)]
        whole = Period(MAY.start, JUNE.end)
        asked = [
            query(str(number), period=period, aggregation=self.counting)
            for number, period in enumerate((MAY, JUNE, whole))
        ]
        values = [tally.value for tally in self.tallies(tmp_path, around, asked)]
        assert values == [2, 2, 4]

    def test_days_of_a_clock_change_keep_their_hours(self, tmp_path: Path) -> None:
        """A local day of 23 to 25 hours, given in UTC, counts one event per half hour."""
        for day, (start, end, half_hours) in CLOCK_CHANGES.items():
            period = Period(datetime.fromisoformat(start), datetime.fromisoformat(end))
            first = period.start - timedelta(hours=2)
            events = [event(first + timedelta(minutes=30 * each)) for each in range(60)]
            assert self.number(tmp_path, events, period) == half_hours, day

    def test_an_offset_changes_no_instant(self, tmp_path: Path) -> None:
        """The same instant counts the same, whichever zone its time is written in."""
        zones = [timezone(timedelta(minutes=minutes)) for minutes in (345, 840, -660)]
        edges = [MAY.start, MAY.end - self.resolution, MAY.start - self.resolution, MAY.end]
        events = [event(edge.astimezone(zone)) for zone in zones for edge in edges]
        assert self.number(tmp_path, events) == 2 * len(zones)

    def test_a_known_subject_without_usage_has_used_zero(self, tmp_path: Path) -> None:
        """A subject with events at other times only has used 0, made of 0 events."""
        tally = self.tally(tmp_path, [event(JUNE.start)], query(aggregation=self.counting))
        assert tally.value == 0
        assert tally.events in (0, None)

    def test_a_metric_that_only_others_use_is_zero(self, tmp_path: Path) -> None:
        """A known subject has used 0 of a metric that the source knows from other subjects."""
        stored = [event(MIDNIGHT, metric="pages"), event(JUNE.start, subject="S-2")]
        assert self.number(tmp_path, stored) == 0

    def test_a_metric_nobody_ever_used_is_not_zero(self, tmp_path: Path) -> None:
        """A metric of no event at all, as if misspelt, is SourceInvalid or gives no value."""
        if not self.knows_metrics:
            raise SkipTest("this source cannot know which metrics exist")
        stored = [event(MIDNIGHT), event(MIDNIGHT, metric="pages", subject="S-2")]
        for metric in ("call", "Calls", "calls ", "", *NAMES):
            for subject in ("S-1", "nobody"):
                asked = query(subject=subject, metric=metric, aggregation=self.counting)
                value = self.value_if_any(tmp_path, stored, asked)
                assert value is None, f"{metric[:40]!r}, which nobody used, is {value}"

    def test_an_empty_period_holds_nothing(self, tmp_path: Path) -> None:
        """A period whose start is its end counts no event, not even one at that moment."""
        nothing = Period(MIDNIGHT, MIDNIGHT)
        assert self.number(tmp_path, [event(MIDNIGHT)], nothing) == 0

    def test_an_unknown_subject_is_not_zero(self, tmp_path: Path) -> None:
        """A subject the source has never seen gives no value at all."""
        for aggregation in self.aggregations:
            for subject in ("nobody", "s-1", "S-1 "):
                asked = query(subject=subject, aggregation=aggregation)
                tally = self.tally(tmp_path, [event(MIDNIGHT)], asked)
                assert tally.value is None, f"{aggregation} of {subject!r} is {tally.value}"

    def test_subjects_and_metrics_are_kept_apart(self, tmp_path: Path) -> None:
        """Each charge gets its own subject's and metric's usage, also where names are alike."""
        names = ("S-1", "s-1", "S-1 ", "S-10", "1", "01")
        stored = [
            event(MIDNIGHT, subject=name, metric=metric)
            for number, name in enumerate(names, start=1)
            for metric in ("calls", "Calls")
            for _ in range(number + (10 if metric == "Calls" else 0))
        ]
        asked = [
            query(f"{name}/{metric}", subject=name, metric=metric, aggregation=self.counting)
            for metric in ("calls", "Calls")
            for name in names
        ]
        values = [tally.value for tally in self.tallies(tmp_path, stored, asked)]
        assert values == [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]

    def test_one_call_answers_many_periods(self, tmp_path: Path) -> None:
        """Charges of different periods and metrics in one call each get their own window."""
        stored = [event(MAY.start), event(JUNE.start), event(JUNE.start, metric="pages")]
        asked = [
            query(f"{metric} {number}", metric=metric, period=period, aggregation=self.counting)
            for metric in ("calls", "pages")
            for number, period in enumerate((MAY, JUNE))
        ]
        values = [tally.value for tally in self.tallies(tmp_path, stored, asked)]
        assert values == [1, 1, 0, 1]

    def test_no_query_no_tally(self, tmp_path: Path) -> None:
        """Asking nothing is answered with nothing."""
        assert self.tallies(tmp_path, [event(MIDNIGHT)], []) == []

    def test_every_aggregation_is_what_its_name_says(self, tmp_path: Path) -> None:
        """Count, sum, max, last and unique of the same four events."""
        hours = [(0, "3", "ann"), (3, "-2", "bob"), (1, "9.5", "ann"), (2, "4", "Ann")]
        stored = [
            event(MIDNIGHT + timedelta(hours=at), quantity=Decimal(quantity), unique=unique)
            for at, quantity, unique in hours
        ]
        expected = {
            Aggregation.COUNT: Decimal(4),
            Aggregation.SUM: Decimal("14.5"),
            Aggregation.MAX: Decimal("9.5"),
            Aggregation.LAST: Decimal(-2),
            Aggregation.UNIQUE: Decimal(3),
        }
        for aggregation in self.aggregations:
            tally = self.tally(tmp_path, stored, query(aggregation=aggregation))
            assert tally.value == expected[aggregation], f"{aggregation} is {tally.value}"
            assert tally.events in (4, None), f"{aggregation} counted {tally.events} events"

    def test_fractions_add_up_exactly(self, tmp_path: Path) -> None:
        """Ten times 0.1 is 1, and nothing else."""
        assert self.total(tmp_path, ["0.1"] * 10) == 1

    def test_large_quantities_keep_every_digit(self, tmp_path: Path) -> None:
        """Sums of whole numbers around 10^18 are exact to the last digit."""
        assert self.total(tmp_path, [str(10**18), "1"]) == 10**18 + 1

    def test_a_negative_total_is_passed_on(self, tmp_path: Path) -> None:
        """A source judges no number: what is below zero is answered as it is."""
        assert self.total(tmp_path, ["3", "-5"]) == -2

    def test_names_are_only_names(self, tmp_path: Path) -> None:
        """Quotes, wildcards, comments and 10,000 characters in a name match that name alone."""
        stored = [event(MIDNIGHT, subject=name, metric=name) for name in NAMES]
        stored += [event(MIDNIGHT, subject="bystander", metric=name) for name in NAMES]
        asked = [
            query(str(number), subject=name, metric=name, aggregation=self.counting)
            for number, name in enumerate(NAMES)
        ]
        values = [tally.value for tally in self.tallies(tmp_path, stored, asked)]
        assert values == [1] * len(NAMES)
        for name in NAMES:
            unknown = query(subject=name, metric=name, aggregation=self.counting)
            stored = [event(MIDNIGHT, metric=name)]
            assert self.tally(tmp_path, stored, unknown).value is None, name[:40]

    def test_an_answer_can_be_asked_again(self, tmp_path: Path) -> None:
        """A tally carries its query, and evidence that names place, question and parameters."""
        before = datetime.now(UTC)
        asked = query(subject="S-1", aggregation=self.counting)
        tally = self.tally(tmp_path, [event(MIDNIGHT)], asked)
        evidence = tally.evidence
        assert tally.query == asked
        assert isinstance(tally.value, Decimal), "a value is a Decimal"
        assert evidence.source, "evidence names the source"
        assert evidence.query, "evidence holds the question"
        assert "S-1" in json.dumps(evidence.parameters), "the parameters name the subject"
        assert evidence.asked_at.utcoffset() is not None, "asked_at has a zone"
        assert before <= evidence.asked_at <= datetime.now(UTC)

    def test_the_digest_follows_the_answer(self, tmp_path: Path) -> None:
        """The same answer has the same SHA-256; another answer has another."""
        one, two = [event(MIDNIGHT)], [event(MIDNIGHT)] * 2
        asked = query(aggregation=self.counting)
        first, again, other = (
            self.tally(tmp_path, stored, asked).evidence.digest for stored in (one, one, two)
        )
        assert len(first) == 64
        assert int(first, 16) >= 0
        assert first == again
        assert first != other

    def test_check_and_watermark_answer(self, tmp_path: Path) -> None:
        """A healthy source passes its own check, and its watermark is a moment or unsaid."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        try:
            source.check()
            watermark = source.watermark()
        finally:
            close(source)
        assert watermark is None or watermark.utcoffset() is not None

    @property
    def counting(self) -> Aggregation:
        """The aggregation that counts events whose quantity is 1."""
        return Aggregation.COUNT if Aggregation.COUNT in self.aggregations else Aggregation.SUM

    def tallies(
        self, tmp_path: Path, events: Sequence[UsageEvent], queries: Sequence[UsageQuery]
    ) -> list[Tally]:
        """Ask a fresh source and return the tallies in the order of the queries."""
        source = self.source_with(events, tmp_path)
        try:
            answers = list(source.count(queries))
        finally:
            close(source)
        by_charge = {tally.query.charge_id: tally for tally in answers}
        assert len(answers) == len(by_charge) == len(queries), "one tally for each query"
        return [by_charge[each.charge_id] for each in queries]

    def tally(self, tmp_path: Path, events: Sequence[UsageEvent], asked: UsageQuery) -> Tally:
        """Ask a fresh source one query."""
        return self.tallies(tmp_path, events, [asked])[0]

    def value_if_any(
        self, tmp_path: Path, events: Sequence[UsageEvent], asked: UsageQuery
    ) -> Decimal | None:
        """Ask a fresh source one query; a refusal is no value."""
        try:
            return self.tally(tmp_path, events, asked).value
        except SourceInvalid:
            return None

    def number(
        self, tmp_path: Path, events: Sequence[UsageEvent], period: Period = MAY
    ) -> Decimal | None:
        """Ask how many of the events are in the period."""
        asked = query(period=period, aggregation=self.counting)
        return self.tally(tmp_path, events, asked).value

    def total(self, tmp_path: Path, quantities: Sequence[str]) -> Decimal | None:
        """Ask for the sum of these quantities; skip the test where the source cannot add."""
        if Aggregation.SUM not in self.aggregations:
            raise SkipTest("this source cannot sum")
        stored = [event(MIDNIGHT, quantity=Decimal(each)) for each in quantities]
        return self.tally(tmp_path, stored, query(aggregation=Aggregation.SUM)).value


def event(
    at: datetime,
    *,
    subject: str = "S-1",
    metric: str = "calls",
    quantity: Decimal = Decimal(1),
    unique: str = "ann",
) -> UsageEvent:
    """Make an event; only its time must be given."""
    return UsageEvent(subject=subject, metric=metric, at=at, quantity=quantity, unique=unique)


def query(
    charge_id: str = "charge",
    *,
    subject: str = "S-1",
    metric: str = "calls",
    aggregation: Aggregation = Aggregation.COUNT,
    period: Period = MAY,
) -> UsageQuery:
    """Make a query whose component is named as its metric, for sources keyed by either."""
    return UsageQuery(
        charge_id=charge_id,
        subject=subject,
        component=metric,
        metric=metric,
        aggregation=aggregation,
        period=period,
    )


def close(source: UsageSource) -> None:
    """Close a source that keeps something open."""
    closing = getattr(source, "close", None)
    if closing is not None:
        closing()
