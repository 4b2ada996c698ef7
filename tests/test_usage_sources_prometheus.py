"""The Prometheus source: what samples tell of a period, every setting and every refusal."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_server import INSTALLED, PrometheusLike, Stored, real_prometheus, series
from pydantic import TypeAdapter, ValidationError
from usage_server import Reply, Serving, serving

from usage_sources.contract import query as asking
from usage_sources.prometheus import PrometheusSource
from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable

TOKEN = "s3cret-t0ken"
SUM, MAX, LAST = Aggregation.SUM, Aggregation.MAX, Aggregation.LAST
ZERO = datetime(2024, 5, 1, tzinfo=UTC)
T0 = 1714521600_000
MINUTE = 60_000
HOUR = Period(ZERO, ZERO + timedelta(hours=1))


@pytest.fixture(name="like")
def _like() -> PrometheusLike:
    return PrometheusLike()


@pytest.fixture(name="server")
def _server(like: PrometheusLike) -> Iterator[Serving]:
    with serving(like) as running:
        yield running


@pytest.fixture(name="source")
def _source(server: Serving) -> Iterator[Callable[..., PrometheusSource]]:
    made: list[PrometheusSource] = []

    def make(**settings: Any) -> PrometheusSource:
        made.append(PrometheusSource(base_url=server.url, subject_label="tenant", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def minutes(values: dict[int, object], **labels: str) -> Stored:
    """Store one series with a sample at some minutes of the hour."""
    return series([(T0 + minute * MINUTE, value) for minute, value in values.items()], **labels)


def every(first: int, last: int, value: object, *, step: int = 5) -> dict[int, object]:
    """Return the same value at every few minutes, both ends included."""
    return dict.fromkeys(range(first, last + 1, step), value)


def hourly(**changed: Any) -> UsageQuery:
    """Ask for the hour."""
    return asking(**{"aggregation": SUM, "period": HOUR, **changed})


def only(source: PrometheusSource, **changed: Any) -> Tally:
    """Ask one query of the hour."""
    return source.count([hourly(**changed)])[0]


def refused(source: PrometheusSource, **changed: Any) -> str:
    """Ask one query that must be refused; return why."""
    with pytest.raises(SourceInvalid) as caught:
        source.count([hourly(**changed)])
    return str(caught.value)


def noted(tally: Tally, start: str) -> str:
    """Return the one note that begins so."""
    found = [note for note in tally.evidence.notes if note.startswith(start)]
    assert len(found) == 1, tally.evidence.notes
    return found[0]


Make = Callable[..., PrometheusSource]


class TestCounters:
    """Differences, resets and edges."""

    def test_values_are_those_of_the_last_sample_before(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """Off the edges, a sample counts from its own time on; later ones do not."""
        values = every(-3, 57, 100) | {2: 103, **every(7, 57, 110), 62: 999}
        like.stored = minutes(values)
        assert only(source()).value == 10

    def test_a_sample_on_an_edge_belongs_to_what_was_before(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """A sample at the end closes the period; one at the start closes the one before."""
        like.stored = minutes({-5: 0} | every(0, 55, 7) | {60: 20})
        assert only(source()).value == 13

    def test_resets_are_added_and_told(self, like: PrometheusLike, source: Make) -> None:
        """After a fall the whole value counts; the evidence says when, from what, and in which."""
        values = every(-5, 60, 500) | every(30, 60, 20) | every(50, 60, 3)
        like.stored = minutes(values, pod="a")
        tally = only(source())
        assert tally.value == 0 + 20 + 3
        assert noted(tally, "Resets") == (
            'Resets, after each of which a counter began again from 0: 2. {pod="a",tenant="S-1"}'
            ' at 2024-05-01T00:30:00Z, from 500 to 20; {pod="a",tenant="S-1"} at'
            " 2024-05-01T00:50:00Z, from 20 to 3. What was used between the last sample before a"
            " reset and the reset is in no sample."
        )

    def test_a_reset_before_the_start_is_not_of_the_period(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """Only falls after the sample that opens the period count."""
        like.stored = minutes({-5: 500, -4: 1} | every(0, 60, 5))
        assert only(source()).value == 0

    def test_many_resets_are_told_shortly(self, like: PrometheusLike, source: Make) -> None:
        """Ten are listed, the others counted."""
        like.stored = minutes({each: each % 2 for each in range(-1, 61)})
        tally = only(source())
        assert tally.value == 30
        note = noted(tally, "Resets, after each of which a counter began again from 0: 30.")
        assert note.count(", from 1 to 0") == 10
        assert "; and 20 more." in note

    def test_series_of_a_subject_are_added(self, like: PrometheusLike, source: Make) -> None:
        """Each has its own difference and its own resets; other subjects' are not in."""
        like.stored = {
            **minutes(every(-5, 30, 100) | every(35, 60, 103), pod="a"),
            **minutes(every(-5, 30, 900) | every(35, 60, 4), pod="b"),
            **minutes(every(-5, 30, 0) | every(35, 60, 1000), tenant="S-2"),
        }
        tally = only(source())
        assert tally.value == 3 + 4
        parts = [each["increase"] for each in tally.evidence.parameters["series"]]
        assert parts == ["3", "4"]

    def test_many_series_are_listed_shortly(self, like: PrometheusLike, source: Make) -> None:
        """All are added; the evidence lists ten of them and says so."""
        for pod in range(12):
            like.stored |= minutes(every(-5, 55, 1) | {60: 3}, pod=str(pod))
        tally = only(source())
        assert tally.value == 24
        assert len(tally.evidence.parameters["series"]) == 10
        noted(tally, "It is the sum of 12 series; 10 are listed.")

    def test_fractions_are_the_printed_decimals(self, like: PrometheusLike, source: Make) -> None:
        """Nothing is rounded, and a note says what the digits are."""
        like.stored = minutes(every(-5, 30, "0.1") | every(35, 60, "0.30000000000000004"))
        tally = only(source())
        assert tally.value == Decimal("0.20000000000000004")
        noted(tally, "The samples are 64-bit floats")

    def test_a_number_may_have_an_exponent(self, like: PrometheusLike, source: Make) -> None:
        """Some servers of this API write large values so."""
        like.stored = minutes(every(-5, 30, "1e+06") | every(35, 60, "1.000002e+06"))
        assert only(source()).value == 2

    def test_floats_that_lose_digits_are_refused(self, like: PrometheusLike, source: Make) -> None:
        """2^53 may be 2^53 + 1 that was rounded; one less is exact."""
        like.stored = minutes(every(-5, 55, 1) | {60: 2**53 - 1})
        assert only(source()).value == 2**53 - 2
        like.stored = minutes(every(-5, 55, 1) | {60: 2**53})
        assert "9007199254740992 is 2^53 or more" in refused(source())

    @pytest.mark.parametrize("text", ["NaN", "+Inf", "-Inf", "", "1_0", "0x10", "٣"])
    def test_what_is_no_number_is_refused(
        self, like: PrometheusLike, source: Make, text: str
    ) -> None:
        """The series, the moment and the text are named."""
        like.stored = minutes(every(-5, 60, 1) | {30: text}, pod="a")
        told = refused(source())
        assert 'series {pod="a",tenant="S-1"} at 2024-05-01T00:30:00Z' in told
        assert repr(text) in told

    @pytest.mark.parametrize("chunk_seconds", [7, 60, 60.001, 120.001, 3600, 10**9])
    @pytest.mark.parametrize("closed", [True, False])
    def test_chunks_change_nothing(
        self, like: PrometheusLike, source: Make, chunk_seconds: float, *, closed: bool
    ) -> None:
        """However the time is cut, each sample is taken once, also those on the cuts."""
        like.closed = closed
        period = Period(ZERO, ZERO + timedelta(minutes=4))
        like.stored = minutes({-1: 7, 0: 9, 1: 30, 2: 4, 3: 4, 4: 10})
        asked = source(
            chunk_seconds=chunk_seconds, staleness_seconds=60, timeout_seconds=100
        ).count([hourly(period=period)])[0]
        assert asked.value == 21 + 4 + 6
        assert asked.evidence.parameters["samples"] == 6


class TestCoverage:
    """Where the samples do not tell the value, nothing is told."""

    @pytest.mark.parametrize("value", [5, 9, 0])
    def test_a_gap_is_held(self, like: PrometheusLike, source: Make, value: int) -> None:
        """Also one at both ends of which the counter shows the same."""
        like.stored = minutes(every(-5, 20, 5) | every(26, 61, value))
        assert (
            'series {tenant="S-1"} has no sample between 2024-05-01T00:20:00Z and'
            " 2024-05-01T00:26:00Z, which is more than max_gap_seconds (300)"
        ) in refused(source())
        assert only(source(max_gap_seconds=360)).value in (0, 4)

    def test_a_gap_over_the_start_is_held(self, like: PrometheusLike, source: Make) -> None:
        """The sample that opens the period and the next one are as near as any others."""
        like.stored = minutes({-5: 1} | every(1, 61, 2))
        assert "has no sample between 2024-04-30T23:55:00Z" in refused(source())

    def test_an_old_opening_is_held(self, like: PrometheusLike, source: Make) -> None:
        """The last sample before the start may be staleness_seconds old, and no more."""
        stored = minutes({-5: 3} | every(0, 60, 9))
        del stored[next(iter(stored))][1]
        like.stored = stored
        assert only(source(max_gap_seconds=600)).value == 6
        told = refused(source(max_gap_seconds=600, staleness_seconds=299.999))
        assert "has no sample from 2024-04-30T23:55:00.001000Z to 2024-05-01T00:00:00Z" in told

    def test_an_old_closing_is_held(self, like: PrometheusLike, source: Make) -> None:
        """The last sample before the end may be staleness_seconds old, and no more."""
        like.stored = minutes(every(-5, 55, 9))
        assert only(source()).value == 0
        told = refused(source(staleness_seconds=299.999, ended_series="complete"))
        assert "there is no sample after 2024-05-01T00:55:00Z, so the value at" in told

    def test_a_series_that_begins_is_held(self, like: PrometheusLike, source: Make) -> None:
        """Its value at the start is unknown, and is 0 only where the settings say so."""
        like.stored = minutes(every(20, 60, 4) | every(40, 60, 6))
        assert 'set new_series = "from_zero"' in refused(source())
        tally = only(source(new_series="from_zero"))
        assert tally.value == 6
        assert noted(tally, "Counted from 0") == (
            "Counted from 0 (new_series = from_zero):"
            ' {tenant="S-1"} at 2024-05-01T00:20:00Z, with 4.'
        )

    def test_a_series_that_comes_back_is_not_new(self, like: PrometheusLike, source: Make) -> None:
        """Samples from long before show that its first one is not all usage."""
        before = {-300 * 24 * 60: 1}
        like.stored = minutes(before | every(20, 60, 4))
        assert "had samples before 2024-04-30T23:55:00Z, but none" in refused(
            source(new_series="from_zero")
        )
        like.stored |= minutes(every(-5, 60, 1), pod="b")
        assert 'series {tenant="S-1"} is not new' in refused(source(new_series="from_zero"))

    def test_a_new_series_after_an_unseen_start_is_held(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """An outage over the start can hide usage, whatever name the series has after it."""
        like.stored = minutes({-60: 1}, pod="a") | minutes(every(20, 60, 4), pod="b")
        told = refused(source(new_series="from_zero", ended_series="complete"))
        assert 'series {pod="a",tenant="S-1"} had samples before' in told

    def test_a_series_that_ends_is_held(self, like: PrometheusLike, source: Make) -> None:
        """What it would have counted is unknown, unless the settings say that it is complete."""
        like.stored = {
            **minutes(every(-5, 20, 5) | {25: 8}, pod="a"),
            **minutes(every(-5, 60, 1), pod="b"),
        }
        told = refused(source())
        assert 'series {pod="a",tenant="S-1"} ends at 2024-05-01T00:25:00Z' in told
        tally = only(source(ended_series="complete"))
        assert tally.value == 3
        noted(tally, 'Ended before the period did, and complete: {pod="a",tenant="S-1"} at')

    def test_a_pod_that_is_replaced_is_added(self, like: PrometheusLike, source: Make) -> None:
        """One series ends, another one begins soon after it; a longer pause is a gap."""
        likely = {"new_series": "from_zero", "ended_series": "complete"}
        old = minutes(every(-5, 30, 5) | {35: 8}, pod="a")
        like.stored = old | minutes(every(40, 60, 2), pod="b")
        assert only(source(**likely)).value == 3 + 2
        like.stored = old | minutes(every(41, 61, 2), pod="b")
        assert "no series has a sample between 2024-05-01T00:35:00Z and" in refused(
            source(**likely)
        )

    def test_a_known_subject_out_of_reach_is_held(self, like: PrometheusLike, source: Make) -> None:
        """Samples long before or after the period tell nothing of it."""
        like.stored = minutes(every(-100, -50, 5))
        told = refused(source())
        assert "no series has a sample from 2024-04-30T23:55:00Z" in told
        assert "so the usage is unknown, not 0" in told
        assert "unknown, not 0" in refused(source(new_series="from_zero"))

    def test_series_that_begin_later_are_zero_only_from_zero(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """What begins at 0 after the period has used nothing in it."""
        like.stored = minutes(every(100, 150, 5))
        assert "unknown, not 0" in refused(source())
        assert only(source(new_series="from_zero")).value == 0

    def test_no_filter_hides_a_gap(self, like: PrometheusLike, source: Make) -> None:
        """Labels that no series ever had mean 0 only where the subject's others are whole."""
        like.stored = minutes(every(-5, 60, 5), region="eu")
        nowhere = (("region", "nowhere"),)
        tally = only(source(), filters=nowhere)
        assert tally.value == 0
        noted(tally, "No series of the subject ever had these labels")
        like.stored = minutes(every(-5, 30, 5), region="eu")
        assert "there is no sample after" in refused(
            source(ended_series="complete"), filters=nowhere
        )
        like.stored |= minutes(every(-500, -400, 5), region="nowhere")
        assert "no series has a sample from" in refused(source(), filters=nowhere)


class TestGauges:
    """`max` and `last` of the samples in the period."""

    def test_samples_in_the_period_count(self, like: PrometheusLike, source: Make) -> None:
        """The start counts and the end does not."""
        like.stored = minutes(every(-5, 55, -3) | {-5: 100, 0: 5, 55: 2, 60: 100})
        assert only(source(), aggregation=MAX).value == 5
        tally = only(source(), aggregation=LAST)
        assert tally.value == 2
        noted(tally, "It is the value of the sample at 2024-05-01T00:55:00Z.")

    def test_gauges_of_the_same_time_are_refused(self, like: PrometheusLike, source: Make) -> None:
        """Neither is the subject's; one after the other may be."""
        like.stored = minutes(every(-5, 60, 3), pod="a") | minutes(every(-5, 60, 4), pod="b")
        for aggregation in (MAX, LAST):
            assert "are there at the same time" in refused(source(), aggregation=aggregation)
            tally = only(source(labels={"pod": "b"}), aggregation=aggregation)
            assert tally.value == 4
        like.stored = minutes(every(-5, 30, 9), pod="a") | minutes(every(35, 60, 4), pod="b")
        turns = source(new_series="from_zero", ended_series="complete")
        assert only(turns, aggregation=MAX).value == 9
        assert only(turns, aggregation=LAST).value == 4

    def test_gaps_are_held(self, like: PrometheusLike, source: Make) -> None:
        """The highest value may have been in the gap."""
        like.stored = minutes(every(-5, 20, 3) | every(30, 60, 4))
        assert "max_gap_seconds" in refused(source(), aggregation=MAX)

    def test_no_value_is_not_zero(self, like: PrometheusLike, source: Make) -> None:
        """An empty period has no sample, and no highest one."""
        like.stored = minutes(every(-5, 60, 3))
        told = refused(source(), aggregation=MAX, period=Period(ZERO, ZERO))
        assert "no value in the period, so there is no max" in told


class TestAnswers:
    """What the server may say."""

    @pytest.mark.parametrize("more", [{"warnings": ["a store is down"]}, {"isPartial": True}])
    def test_a_partial_answer_is_no_answer(
        self, like: PrometheusLike, source: Make, more: dict[str, Any]
    ) -> None:
        """What is not the whole may be complete later."""
        like.stored, like.more = minutes(every(-5, 60, 3)), more
        with pytest.raises(SourceUnavailable, match="partial or has warnings"):
            only(source())

    @pytest.mark.parametrize(
        "data",
        [
            None,
            {"resultType": "vector", "result": []},
            {"resultType": "matrix", "result": None},
            {"resultType": "matrix", "result": [{"values": []}]},
            {"resultType": "matrix", "result": [{"metric": {}, "values": []}]},
            {"resultType": "matrix", "result": [{"metric": {"tenant": 1}, "values": []}]},
        ],
        ids=str,
    )
    def test_what_is_no_matrix_is_refused(
        self, server: Serving, source: Make, data: dict[str, Any] | None
    ) -> None:
        """Also series that were not asked for."""
        server.answering = lambda asked: Reply(
            {"status": "success", "data": {} if "metadata" in asked.target else data}
        )
        assert "this is no answer of Prometheus" in refused(source())

    @pytest.mark.parametrize(
        "values",
        [
            [[T0 // 1000, 5]],
            [["1714521600", "5"]],
            [[True, "5"]],
            [[T0 // 1000]],
            [[Decimal("1714521600.0001"), "5"]],
            [[1914521600, "5"]],
            [[T0 // 1000, "5"], [T0 // 1000, "6"]],
            [[T0 // 1000 + 1, "5"], [T0 // 1000, "6"]],
            None,
        ],
        ids=str,
    )
    def test_what_is_no_sample_is_refused(self, server: Serving, source: Make, values: Any) -> None:
        """A time in whole milliseconds in reach, each later than the last, and a text."""
        one = {"metric": {"__name__": "calls", "tenant": "S-1"}, "values": values}
        matrix = {"resultType": "matrix", "result": [one]}
        server.answering = lambda asked: Reply(
            {"status": "success", "data": {} if "metadata" in asked.target else matrix}
        )
        assert "this is no answer of Prometheus" in refused(source())

    def test_another_series_is_refused(
        self, like: PrometheusLike, server: Serving, source: Make
    ) -> None:
        """What stands before Prometheus may have changed the question."""
        like.stored = minutes(every(-5, 60, 3), tenant="S-2")
        server.answering = lambda asked: like(
            replace(asked, target=asked.target.replace("S-1", "S-2"))
        )
        assert "it holds a series that was not asked for" in refused(source())

    def test_a_series_twice_is_refused(self, server: Serving, source: Make) -> None:
        """Its usage would be lost or counted twice."""
        one = {"metric": {"__name__": "calls", "tenant": "S-1"}, "values": []}
        matrix = {"resultType": "matrix", "result": [one, one]}
        server.answering = lambda asked: Reply(
            {"status": "success", "data": {} if "metadata" in asked.target else matrix}
        )
        assert "a series stands in it twice" in refused(source())

    def test_too_many_samples_say_what_to_do(self, server: Serving, source: Make) -> None:
        """The server's own limit is met by shorter chunks; other refusals are told as they are."""
        wrong = "query processing would load too many samples into memory in query execution"
        server.answering = lambda asked: (
            Reply({"status": "success", "data": {}})
            if "metadata" in asked.target
            else Reply({"status": "error", "error": wrong}, 422)
        )
        assert "lower chunk_seconds" in refused(source())
        wrong = "something else"
        assert "something else" in refused(source())
        assert "chunk_seconds" not in refused(source())

    def test_an_error_in_a_success_is_refused(self, server: Serving, source: Make) -> None:
        """Only what says success is one."""
        server.answering = lambda _: Reply({"status": "error", "data": {}})
        assert "it does not say success" in refused(source())
        with pytest.raises(SourceInvalid, match="it does not say success"):
            source().check()

    @pytest.mark.parametrize("label", ["le", "quantile"])
    def test_histograms_are_refused(self, like: PrometheusLike, source: Make, label: str) -> None:
        """Their buckets hold each other, so that adding them counts usage again."""
        like.stored = minutes(every(-5, 60, 3), **{label: "0.5"})
        assert "is a histogram or a summary" in refused(source())

    def test_native_histograms_are_refused(self, server: Serving, source: Make) -> None:
        """Their samples are no numbers."""
        one = {"metric": {"__name__": "calls", "tenant": "S-1"}, "histograms": [[1, {}]]}
        matrix = {"resultType": "matrix", "result": [one]}
        server.answering = lambda asked: Reply(
            {"status": "success", "data": {} if "metadata" in asked.target else matrix}
        )
        assert "is a histogram or a summary" in refused(source())

    def test_a_type_that_does_not_fit_is_refused(self, like: PrometheusLike, source: Make) -> None:
        """Each fall of a gauge would be taken for a reset; unsaid types pass."""
        like.stored = minutes(every(-5, 60, 3))
        like.types = {"calls": "gauge"}
        assert "is a gauge, and sum is of a counter" in refused(source())
        assert only(source(), aggregation=MAX).value == 3
        like.types = {"calls": "counter", "other": "gauge"}
        assert only(source()).value == 0
        assert "is a counter, and max is of a gauge" in refused(source(), aggregation=MAX)
        like.types = {"calls": "unknown"}
        assert only(source()).value == 0

    def test_a_server_without_types_is_fine(
        self, like: PrometheusLike, server: Serving, source: Make
    ) -> None:
        """Not every server of this API lists them."""
        like.stored = minutes(every(-5, 60, 3))
        server.answering = lambda asked: (
            Reply({}, 404) if "metadata" in asked.target else like(asked)
        )
        assert only(source()).value == 0


class TestNames:
    """Metrics, labels and subjects."""

    def test_a_metric_without_series_names_the_nearest(
        self, like: PrometheusLike, source: Make
    ) -> None:
        """Unless it is listed as one that is yet to come: then nobody is known to it."""
        like.stored = minutes(every(-5, 60, 3))
        told = refused(source(), metric="call")
        assert "nobody ever used the metric 'call'" in told
        assert "nearest: 'calls'" in told
        assert only(source(known_metrics=("call",)), metric="call").value is None

    def test_a_wrong_subject_label_is_refused(self, like: PrometheusLike, server: Serving) -> None:
        """Or every subject would be unknown."""
        like.stored = minutes(every(-5, 60, 3))
        customer = PrometheusSource(base_url=server.url, subject_label="customer")
        with closing(customer) as source:
            assert "have no label customer (subject_label); they have tenant" in refused(source)

    def test_an_empty_subject_is_nobody(self, like: PrometheusLike, source: Make) -> None:
        """To Prometheus, an empty value would mean the series without the label."""
        like.stored = minutes(every(-5, 60, 3)) | {
            (("__name__", "calls"),): [(T0 + each * MINUTE, "5") for each in range(-5, 61)]
        }
        assert only(source(), subject="").value is None

    def test_an_empty_filter_is_refused(self, like: PrometheusLike, source: Make) -> None:
        """It would count the series without the label."""
        like.stored = minutes(every(-5, 60, 3), region="eu")
        assert "by an empty region" in refused(source(), filters=(("region", ""),))
        assert "which is no label" in refused(source(), filters=(("__name__", "calls"),))
        told = refused(source(), filters=(("regio", "eu"),))
        assert "cannot be filtered by 'regio'; its labels are region, tenant" in told

    def test_fixed_labels_narrow_everything(self, like: PrometheusLike, source: Make) -> None:
        """Samples, subjects and metrics with other labels are not there."""
        like.stored = {
            **minutes(every(-5, 30, 1) | every(35, 60, 2), replica="a"),
            **minutes(every(-5, 30, 1) | every(35, 60, 2), replica="b"),
            **minutes(every(-5, 60, 1), replica="b", tenant="S-2"),
        }
        assert only(source()).value == 2
        fixed = source(labels={"replica": "a"})
        tally = only(fixed)
        assert tally.value == 1
        assert 'replica="a"' in tally.evidence.query
        assert only(fixed, subject="S-2").value is None
        assert 'with {replica="c"}' in refused(source(labels={"replica": "c"}))

    def test_parts_of_a_millisecond_are_held(self, like: PrometheusLike, source: Make) -> None:
        """No sample can lie on such an edge."""
        like.stored = minutes(every(-5, 60, 3))
        odd, end = ZERO + timedelta(microseconds=1500), ZERO + timedelta(hours=1)
        for period in (Period(ZERO, odd), Period(odd, end)):
            assert "keeps whole milliseconds" in refused(source(), period=period)


class TestEvidence:
    """What an outsider needs."""

    def test_the_question_can_be_pasted(
        self, like: PrometheusLike, server: Serving, source: Make
    ) -> None:
        """One selector over the whole period, the time to ask it at, and the counters' values."""
        values = every(-5, 60, 3) | {60: 8}
        like.stored = minutes(values, region="eu")
        evidence = only(source(), filters=(("region", "eu"),)).evidence
        assert evidence.query == ('{__name__="calls",tenant="S-1",region="eu"}[3900001ms]')
        assert evidence.parameters["time"] == "2024-05-01T01:00:00Z"
        assert evidence.source == f"prometheus {server.url}"
        assert evidence.parameters["series"] == [
            {
                "labels": {"region": "eu", "tenant": "S-1"},
                "opening": {"at": "2024-05-01T00:00:00Z", "value": "3"},
                "closing": {"at": "2024-05-01T01:00:00Z", "value": "8"},
                "resets": 0,
                "increase": "5",
            }
        ]
        assert evidence.notes[0].startswith("The counter is sampled:")
        json.dumps(evidence.parameters)

    @pytest.mark.skipif(
        not INSTALLED, reason="prometheus and promtool are not installed (Debian: prometheus)"
    )
    def test_the_real_server_answers_the_pasted_question(self, tmp_path: Path) -> None:
        """Prometheus answers the evidence's query with the samples that were counted."""
        name = 'a"b\\c\n\t\x01 \x7f 漢字 🙂 {},=~[5m]'
        stored = minutes(every(-5, 60, 3) | {58: 8, 60: 8}, tenant=name)
        with (
            real_prometheus(tmp_path / "real", stored) as url,
            closing(PrometheusSource(base_url=url, subject_label="tenant")) as source,
        ):
            source.check()
            tally = only(source, subject=name)
            assert tally.value == 5
            time = tally.evidence.parameters["time"]
            asked = [("query", tally.evidence.query), ("time", time)]
            answer = source._web.get("/api/v1/query", asked)
            assert len(answer["data"]["result"][0]["values"]) == 15
            assert "cannot be filtered" in refused(source, filters=(("nowhere", "x"),))
            assert "nearest: 'calls'" in refused(source, metric="call")

    def test_the_watermark_lags(self, like: PrometheusLike, source: Make) -> None:
        """By as much as the settings say; else it is unsaid."""
        like.stored = minutes(every(-5, 60, 3))
        assert source().watermark() is None
        watermark = source(watermark_lag_seconds=60).watermark()
        assert watermark is not None
        assert timedelta(seconds=60) <= datetime.now(UTC) - watermark < timedelta(seconds=90)
        tally = only(source(watermark_lag_seconds=60))
        assert tally.evidence.watermark == tally.evidence.asked_at - timedelta(seconds=60)


class TestSettings:
    """What is refused before anything is asked."""

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"base_url": "ftp://x"}, "base_url must be"),
            ({"subject_label": "tenant-id"}, "subject_label: 'tenant-id' cannot be"),
            ({"subject_label": "__name__"}, "subject_label: '__name__' cannot be"),
            ({"labels": {'a="x"}': "b"}}, "cannot be the name of a label"),
            ({"labels": {"tenant": "b"}}, "labels.tenant: it is the subject_label"),
            ({"labels": {"a": ""}}, "an empty value means that there is no label"),
            ({"staleness_seconds": 0}, "staleness_seconds must be"),
            ({"max_gap_seconds": float("nan")}, "max_gap_seconds must be"),
            ({"chunk_seconds": float("inf")}, "chunk_seconds must be"),
            ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be 0 or more"),
            ({"timeout_seconds": 0}, "timeout_seconds must be more than 0"),
            ({"ca_file": "/nowhere.pem"}, "ca_file: there is no file"),
            ({"token": "a\nb"}, "token may hold printable ASCII"),
            ({"token": "a", "username": "u", "password": "p"}, "not both"),
            ({"username": "u"}, "username and password need each other"),
            ({"password": "p"}, "username and password need each other"),
            ({"username": "u:v", "password": "p"}, "username must not hold a colon"),
            ({"new_series": "zero"}, "new_series"),
            ({"ended_series": "zero"}, "ended_series"),
        ],
        ids=str,
    )
    def test_wrong_settings_are_named(self, wrong: dict[str, Any], told: str) -> None:
        """Each complaint begins with, or names, its setting."""
        good = {"base_url": "http://127.0.0.1", "subject_label": "tenant"}
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(PrometheusSource).validate_python({**good, **wrong})
        assert told in str(caught.value)

    def test_credentials_are_sent_and_never_shown(
        self, like: PrometheusLike, server: Serving, source: Make
    ) -> None:
        """A bearer token, or a user and password; an echo of them is masked."""
        like.stored = minutes(every(-5, 60, 3))
        basic = b64encode(b"ann:p\xc3\xa4ss-w0rd").decode()
        for settings, sent in (
            ({"token": TOKEN}, f"Bearer {TOKEN}"),
            ({"username": "ann", "password": "päss-w0rd"}, f"Basic {basic}"),
        ):
            server.answering = like
            made = source(**settings)
            tally = only(made)
            assert server.asked[-1].headers["Authorization"] == sent
            server.answering = lambda asked: Reply(asked.headers["Authorization"].encode(), 400)
            texts = repr(made) + repr(tally) + refused(made)
            assert not [each for each in (TOKEN, "päss", basic) if each in texts]

    def test_refused_credentials_tell_what_sets_them(self, server: Serving, source: Make) -> None:
        """The variable of the token, or of the password, by the name in the configuration."""
        server.answering = lambda _: Reply({}, 401)
        for settings, setting in (
            ({"token": TOKEN}, "TOKEN"),
            ({"username": "ann", "password": "w0rd"}, "PASSWORD"),
        ):
            told = f"put the right one into RECONCILER__USAGE_SOURCES__OURS__{setting}$"
            with pytest.raises(SourceUnavailable, match=told):
                source(name="ours", **settings).check()
