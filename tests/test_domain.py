"""The values of the trade keep their laws."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from builders import END, MONTH, START
from hypothesis import given
from hypothesis import strategies as st

from worker.domain import Period, Rounding, Span, to_whole, utc, utc_text

offsets = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
moments = st.datetimes(
    min_value=datetime(1990, 1, 1),  # noqa: DTZ001  hypothesis adds the zone
    max_value=datetime(2090, 1, 1),  # noqa: DTZ001
    timezones=offsets,
)


def test_a_period_holds_its_start_and_not_its_end() -> None:
    """The moment at start counts, the one at end belongs to the next period."""
    assert START in MONTH
    assert END not in MONTH
    assert END - timedelta(microseconds=1) in MONTH
    assert START - timedelta(microseconds=1) not in MONTH


@given(bounds=st.lists(moments, min_size=2, max_size=6), moment=moments)
def test_adjacent_periods_partition_time(bounds: list[datetime], moment: datetime) -> None:
    """Each moment of a stretch is in exactly one of the periods it is cut into."""
    edges = sorted(bounds)
    periods = [Period(start, end) for start, end in itertools.pairwise(edges)]
    holders = sum(moment in period for period in periods)
    assert holders == (edges[0] <= moment < edges[-1])


@given(moment=moments, offset=offsets)
def test_the_zone_a_moment_is_written_in_changes_nothing(
    moment: datetime, offset: timezone
) -> None:
    """The same instant at another offset is in the same periods."""
    period = Period(START, END)
    assert (moment in period) == (moment.astimezone(offset) in period)
    assert Period(moment, moment + timedelta(1)) == Period(
        moment.astimezone(offset), moment + timedelta(1)
    )


def test_an_empty_period_holds_no_moment() -> None:
    """A period whose end is its start is allowed and counts nothing."""
    assert START not in Period(START, START)


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        (END, START, "ends before it starts"),
        (START.replace(tzinfo=None), END, "no time zone"),
        (START, END.replace(tzinfo=None), "no time zone"),
    ],
)
def test_a_period_refuses_bad_bounds(start: datetime, end: datetime, told: str) -> None:
    """Inverted and zoneless bounds are refused by what is wrong with them."""
    with pytest.raises(ValueError, match=told):
        Period(start, end)


def test_a_naive_moment_is_never_in_a_period() -> None:
    """Asking with a zoneless moment is an error, not a guess."""
    with pytest.raises(ValueError, match="no time zone"):
        START.replace(tzinfo=None) in MONTH  # noqa: B015


@given(moment=moments)
def test_utc_text_reads_back_as_the_same_instant(moment: datetime) -> None:
    """What is written with a Z is the instant that was given, to the microsecond."""
    text = utc_text(moment)
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == moment
    assert utc(moment).utcoffset() == timedelta(0)


def test_a_day_of_clock_change_is_as_long_as_it_is() -> None:
    """A Berlin day in March has 23 hours, in October 25; the period is in UTC and knows."""
    spring = Period(datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 3, 29, 22, tzinfo=UTC))
    autumn = Period(datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 23, tzinfo=UTC))
    assert spring.end - spring.start == timedelta(hours=23)
    assert autumn.end - autumn.start == timedelta(hours=25)


@given(a=moments, b=moments, c=moments, d=moments)
def test_overlap_is_symmetric_and_needs_a_shared_moment(
    a: datetime, b: datetime, c: datetime, d: datetime
) -> None:
    """Two periods overlap exactly when the later start lies in both."""
    one, other = Period(*sorted((a, b))), Period(*sorted((c, d)))
    later = max(one.start, other.start)
    assert one.overlaps(other) == other.overlaps(one) == (later in one and later in other)


def test_spans_overlap_only_for_the_same_component_of_the_same_subscription() -> None:
    """Billing another component, or another customer, for the same month is no double billing."""
    span = Span("SUB-1", "Fax", MONTH)
    assert span.overlaps(Span("SUB-1", "Fax", MONTH))
    assert not span.overlaps(Span("SUB-1", "Text", MONTH))
    assert not span.overlaps(Span("SUB-2", "Fax", MONTH))


@pytest.mark.parametrize(
    ("value", "rounding", "whole"),
    [
        ("2.5", Rounding.REJECT, None),
        ("2.0", Rounding.REJECT, 2),
        ("0E-7", Rounding.REJECT, 0),
        ("2.1", Rounding.UP, 3),
        ("2.9", Rounding.DOWN, 2),
        ("2.5", Rounding.HALF_UP, 3),
        ("2.5", Rounding.HALF_EVEN, 2),
        ("3.5", Rounding.HALF_EVEN, 4),
        ("1000000000000000000", Rounding.REJECT, 10**18),
        ("1000000000000000000.5", Rounding.HALF_UP, 10**18 + 1),
    ],
)
def test_rounding_follows_the_stated_rule(value: str, rounding: Rounding, whole: int) -> None:
    """A fraction is rounded by the component's rule, or refused."""
    assert to_whole(Fraction(value), rounding) == whole


@given(st.decimals(min_value=0, max_value=10**20, allow_nan=False, allow_infinity=False, places=6))
def test_rounding_moves_a_value_by_less_than_one(value: Decimal) -> None:
    """Whatever the rule, the whole quantity is a neighbour of the counted one."""
    for rounding in (Rounding.UP, Rounding.DOWN, Rounding.HALF_UP, Rounding.HALF_EVEN):
        whole = to_whole(Fraction(value), rounding)
        assert whole is not None
        assert abs(whole - value) < 1
