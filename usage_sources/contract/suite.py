"""The contract suite: what every usage source must do, as tests its author runs with pytest."""

# ruff: noqa: S101 - these are tests, shipped so that authors of sources elsewhere can run them

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

from usage_sources.contract.asking import Asking
from usage_sources.contract.values import (
    CLOCK_CHANGES,
    JUNE,
    MAY,
    MIDNIGHT,
    NAMES,
    assert_unavailable,
    close,
    event,
    query,
)
from worker.domain import Aggregation, Period
from worker.errors import SourceInvalid
from worker.ports import UsageSource


class UsageSourceContract(Asking):
    """Subclass it, name it Test..., write `source_with`, and run pytest."""

    # The smallest difference between two times that the source can store.
    resolution: ClassVar[timedelta] = timedelta(microseconds=1)
    # Whether the source can tell a metric that nobody ever used from one that does not exist;
    # set it False only where nothing there lists the metrics, as where a statement is all you have.
    knows_metrics: ClassVar[bool] = True
    # Whether the source can count only the events where a column has a value.
    filters: ClassVar[bool] = True

    def source_down(self, _tmp_path: Path) -> UsageSource:
        """Return a source whose engine is not there: stopped, unreachable, or its files gone."""
        raise SkipTest("this source has no engine that could be down")

    def source_slow(self, _tmp_path: Path) -> UsageSource:
        """Return a source whose engine answers only after the source's timeout of 1 second."""
        raise SkipTest("this source has no engine that could be slow")

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

    def test_each_charge_has_its_own_subject(self, tmp_path: Path) -> None:
        """Charges of different subjects and metrics in one call; others' pairs are not theirs."""
        stored = [
            event(MIDNIGHT, subject=one, metric=each)
            for one, each in (
                ("S-1", "calls"),
                ("S-1", "pages"),
                ("S-1", "pages"),
                ("S-2", "pages"),
            )
        ]
        asked = [
            query("1", subject="S-1", metric="calls", aggregation=self.counting),
            query("2", subject="S-2", metric="pages", aggregation=self.counting),
        ]
        assert [tally.value for tally in self.tallies(tmp_path, stored, asked)] == [1, 1]

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

    def test_every_aggregation_looks_only_inside_the_period(self, tmp_path: Path) -> None:
        """What is larger, later or other at the end, or just before the start, changes nothing."""
        step = self.resolution
        stored = [
            event(MAY.start - step, quantity=Decimal(50), unique="early"),
            event(MAY.start, quantity=Decimal(7), unique="ann"),
            event(MAY.end - step, quantity=Decimal(3), unique="bob"),
            event(MAY.end, quantity=Decimal(90), unique="late"),
        ]
        expected = {
            Aggregation.COUNT: 2,
            Aggregation.SUM: 10,
            Aggregation.MAX: 7,
            Aggregation.LAST: 3,
            Aggregation.UNIQUE: 2,
        }
        for aggregation in self.aggregations:
            value = self.tally(tmp_path, stored, query(aggregation=aggregation)).value
            assert value == expected[aggregation], f"{aggregation} is {value}"

    def test_no_level_is_carried_into_the_period(self, tmp_path: Path) -> None:
        """With events outside only, nothing was used: there is no maximum and no last value."""
        stored = [event(MAY.start - self.resolution), event(MAY.end)]
        for aggregation in self.aggregations:
            value = self.value_if_any(tmp_path, stored, query(aggregation=aggregation))
            level = aggregation in (Aggregation.MAX, Aggregation.LAST)
            assert value == (None if level else 0), f"{aggregation} is {value}"

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
        assert first == again != other

    def test_check_and_watermark_answer(self, tmp_path: Path) -> None:
        """A healthy source passes its own check, and its watermark is a moment or unsaid."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        try:
            source.check()
            watermark = source.watermark()
        finally:
            close(source)
        assert watermark is None or watermark.utcoffset() is not None

    def test_filters_narrow_the_count(self, tmp_path: Path) -> None:
        """Only events whose column has the value count; charges may differ in nothing else."""
        stored = [event(MIDNIGHT, region=each) for each in ("eu", "eu", "us", "x'; DROP--")]
        by_region = [(("region", each),) for each in ("eu", "us", "x'; DROP--", "nowhere")]
        if not self.filters:
            asked = query(filters=by_region[0], aggregation=self.counting)
            assert self.value_if_any(tmp_path, stored, asked) is None, "a filter was ignored"
            return
        asked_for = [
            query(str(number), filters=each, aggregation=self.counting)
            for number, each in enumerate([(), *by_region])
        ]
        values = [tally.value for tally in self.tallies(tmp_path, stored, asked_for)]
        assert values == [4, 2, 1, 1, 0]

    def test_a_filter_on_no_column_is_refused(self, tmp_path: Path) -> None:
        """A column that is not there is SourceInvalid, whatever its name would do elsewhere."""
        for column in ("regio", "", 'region"; DROP TABLE usage;--', "1=1 OR region"):
            asked = query(filters=((column, "eu"),), aggregation=self.counting)
            value = self.value_if_any(tmp_path, [event(MIDNIGHT)], asked)
            assert value is None, f"filtered by {column!r}, it is {value}"

    def test_an_event_without_a_quantity_is_refused(self, tmp_path: Path) -> None:
        """A quantity that is NULL is not 0: a sum over it is SourceInvalid, and names it."""
        if Aggregation.SUM not in self.aggregations:
            raise SkipTest("this source cannot sum")
        stored = [event(MIDNIGHT), event(MIDNIGHT, quantity=None)]
        source = self.source_with(stored, tmp_path)
        try:
            tallies = source.count([query(aggregation=Aggregation.SUM)])
        except SourceInvalid:
            return
        finally:
            close(source)
        assert [tally.value for tally in tallies] == [None], "NULL was counted as 0"

    def test_an_engine_that_is_down_is_unavailable(self, tmp_path: Path) -> None:
        """Asking and checking say "try later" where nobody answers."""
        source = self.source_down(tmp_path)
        try:
            assert_unavailable(lambda: source.count([query(aggregation=self.counting)]))
            assert_unavailable(source.check)
        finally:
            close(source)

    def test_an_engine_that_is_slow_is_given_up(self, tmp_path: Path) -> None:
        """After its timeout a source says "try later", and does not wait for the answer."""
        source = self.source_slow(tmp_path)
        began_at = time.monotonic()
        try:
            assert_unavailable(lambda: source.count([query(aggregation=self.counting)]))
        finally:
            close(source)
        assert time.monotonic() - began_at < 10, "the timeout of 1 second was not kept"
