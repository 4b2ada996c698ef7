"""What samples tell of a period, as laws: periods that touch add up, whatever was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_sources.prometheus.tracks import (
    EndedSeries,
    NewSeries,
    Series,
    Tracks,
    Unknown,
    Window,
)
from worker.domain import Aggregation

LAW = settings(max_examples=100, deadline=None, derandomize=True)
GAP = 10

Samples = list[tuple[int, str]]


@st.composite
def sampled(draw: st.DrawFn) -> Samples:
    """Draw a series: steps of up to a bit more than the gap, values that rise, stay or fall."""
    at, value = draw(st.integers(-30, 30)), Decimal(draw(st.integers(0, 20)))
    samples = [(at, str(value))]
    for _ in range(draw(st.integers(0, 25))):
        at += draw(st.integers(1, GAP) | st.just(GAP + 1))
        if draw(st.booleans()):
            value += draw(st.decimals(0, 9, places=draw(st.integers(0, 2))))
        elif draw(st.integers(0, 3)) == 0:
            value = Decimal(draw(st.integers(0, 5)))
        samples.append((at, str(value)))
    return samples


@st.composite
def covering(draw: st.DrawFn) -> Samples:
    """Draw a series without a gap, from before any period drawn here until after it."""
    at, value, samples = -GAP, Decimal(draw(st.integers(0, 20))), []
    while at < 100 + GAP:
        samples.append((at, str(value)))
        at += draw(st.integers(1, GAP))
        rises = draw(st.integers(0, 3))
        value = value + rises if draw(st.integers(0, 4)) else Decimal(rises)
    return samples


edges = st.lists(st.integers(0, 100), min_size=3, max_size=3).map(sorted)


def usage(
    all_samples: Sequence[Samples],
    start: int,
    end: int,
    new: NewSeries = "from_zero",
    ended: EndedSeries = "complete",
) -> Decimal | None:
    """Count a period, in chunks of 7; None where it is unknown."""
    window = Window(start, end, GAP, GAP)
    tracks = Tracks(window)
    try:
        for after in range(window.after, end, 7):
            upto = min(after + 7, end)
            chunk = [
                Series((("series", str(n)),), [each for each in s if after < each[0] <= upto])
                for n, s in enumerate(all_samples)
            ]
            tracks.add(each for each in chunk if each.samples)
        return tracks.told(Aggregation.SUM, new, ended).value
    except Unknown:
        return None


def growth(samples: Samples, start: int, end: int) -> Decimal:
    """Count one series step by step: what each sample in `(start, end]` adds to the one before."""
    total, before = Decimal(0), Decimal(0)
    for at, text in samples:
        value = Decimal(text)
        if start < at <= end:
            total += value - before if value >= before else value
        before = value
    return total


class TestLaws:
    """They hold for any samples."""

    @LAW
    @given(st.lists(sampled(), min_size=1, max_size=3), edges)
    def test_periods_that_touch_add_up(self, drawn: list[Samples], at: list[int]) -> None:
        """Where both halves are known, the whole is their sum, or unknown."""
        first, second = usage(drawn, at[0], at[1]), usage(drawn, at[1], at[2])
        whole = usage(drawn, at[0], at[2])
        if first is not None and second is not None and whole is not None:
            assert first + second == whole

    @LAW
    @given(st.lists(covering(), min_size=1, max_size=3), edges)
    def test_what_is_covered_is_known(self, drawn: list[Samples], at: list[int]) -> None:
        """Series without gaps tell every period, and halves add up to the whole."""
        first, second = usage(drawn, at[0], at[1], "held"), usage(drawn, at[1], at[2], "held")
        whole = usage(drawn, at[0], at[2], "held", "held")
        assert first is not None
        assert second is not None
        assert first + second == whole

    @LAW
    @given(st.lists(covering(), min_size=1, max_size=3), edges)
    def test_each_step_counts_once(self, drawn: list[Samples], at: list[int]) -> None:
        """The difference of the edges with its resets is the sum of all steps between."""
        expected = sum((growth(each, at[0], at[2]) for each in drawn), Decimal(0))
        assert usage(drawn, at[0], at[2], "held", "held") == expected

    @LAW
    @given(st.lists(sampled(), min_size=1, max_size=3), edges)
    def test_what_is_told_is_never_guessed(self, drawn: list[Samples], at: list[int]) -> None:
        """A value is told only where no two samples are too far apart, and both edges are known."""
        start, end = at[0], at[2]
        if usage(drawn, start, end, "held", "held") is None:
            return
        for samples in drawn:
            near = [t for t, _ in samples if start - GAP <= t <= end]
            if not near:
                continue
            assert near[0] <= start
            assert near[-1] >= end - GAP
            opening = max(t for t in near if t <= start)
            steps = [opening, *(t for t in near if t > start)]
            assert all(b - a <= GAP for a, b in pairwise(steps))


@pytest.mark.parametrize("new", ["held", "from_zero"])
def test_no_series_tells_nothing(new: NewSeries) -> None:
    """Without any sample there is no value, and no 0."""
    with pytest.raises(Unknown, match="there is no sample at all"):
        Tracks(Window(0, 10, GAP, GAP)).told(Aggregation.SUM, new, "complete")
