"""Two other sources asked the same: the first bills, the second must agree with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Context, Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

from usage_sources.reading import plain, shown
from worker.domain import Tally, UsageQuery
from worker.errors import ReconcilerError, SourceInvalid, SourceUnavailable, TransientError
from worker.ports import UsageSource

_MOST_TOLD = 3  # differences in one error
_TO_READ = Context(prec=60)

Asked = TypeVar("Asked")


@dataclass(frozen=True, kw_only=True)
class BothSources:
    """Bills what the first source counts, where the second counts the same; fields are settings.

    In shadow the second only leaves a note with each number, so that it can be trusted before
    it bills; the note ends with "the first stands" where the two differ.
    """

    # The source that bills: the name of another one of the configuration.
    first: Any = field(metadata={"source": True}, repr=False)
    # The source that is compared with it: the name of another one of the configuration.
    second: Any = field(metadata={"source": True}, repr=False)
    # How far apart the two may be.
    tolerance: Decimal = Decimal(0)
    # How far apart they may be in percent of the first; the wider of the two tolerances holds.
    tolerance_percent: Decimal = Decimal(0)
    # Only note the differences; the first bills, also when the second is not there.
    shadow: bool = False
    # What the second calls a metric, where it is not what the first calls it.
    metric_of_second: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.first is self.second:
            raise ValueError("first and second must be two sources")
        for setting in ("tolerance", "tolerance_percent"):
            value = getattr(self, setting)
            if not value.is_finite() or value < 0:
                raise ValueError(f"{setting} must be 0 or more")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Return the first's tallies, each with a note of what the second says to it."""
        tallies = _told_by("first", lambda: self._asked(self.first).count(queries))
        told, fault = self._second(queries)
        differences: list[str] = []
        answers: list[Tally] = []
        for tally in tallies:
            other = told.get(tally.query.charge_id)
            fits, note = self._compared(tally, other) if not fault else (False, fault)
            if not fits:
                differences.append(f"{_name(tally.query)}: {note}")
            notes = (*tally.evidence.notes, note if fits else f"{note}; the first stands")
            answers.append(replace(tally, evidence=replace(tally.evidence, notes=notes)))
        if differences and not self.shadow:
            more = len(differences) - _MOST_TOLD
            raise SourceInvalid(
                "; ".join(differences[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")
            )
        return answers

    def watermark(self) -> datetime | None:
        """Return the slower one's watermark, of those who can say; in shadow the first's."""
        first: datetime | None = _told_by("first", self._asked(self.first).watermark)
        if self.shadow:
            return first
        second: datetime | None = _told_by("second", self._asked(self.second).watermark)
        return min((each for each in (first, second) if each is not None), default=None)

    def check(self) -> None:
        """Raise unless both answer; in shadow nobody is held up by the second."""
        _told_by("first", self._asked(self.first).check)
        if not self.shadow:
            _told_by("second", self._asked(self.second).check)

    def close(self) -> None:
        """Close what was asked since the last time, each once."""
        while self._open:
            _, source = self._open.popitem()
            if (closing := getattr(source, "close", None)) is not None:
                closing()

    @cached_property
    def _open(self) -> dict[int, UsageSource]:
        return {}

    def _asked(self, source: UsageSource) -> UsageSource:
        self._open[id(source)] = source
        return source

    def _second(self, queries: Sequence[UsageQuery]) -> tuple[Mapping[str, Tally], str]:
        """Return the second's tally for each charge; in shadow a failure is a text instead."""
        asked = [
            replace(
                query,
                metric=self.metric_of_second.get(query.metric, query.metric),
                stored_until=None,  # the first's clock; what came late shows as a difference
            )
            for query in queries
        ]
        try:
            tallies = _told_by("second", lambda: self._asked(self.second).count(asked))
            return _by_charge(asked, tallies), ""
        except ReconcilerError as error:
            if not self.shadow:
                raise
            return {}, f"nothing to compare with, {error}"
        except Exception as error:
            if not self.shadow:
                raise
            return {}, f"nothing to compare with, the second source crashed: {type(error).__name__}"

    def _compared(self, one: Tally, other: Tally | None) -> tuple[bool, str]:
        """Tell whether two answers are near enough, and what to note of them."""
        if other is None:
            return False, "the second source gave no answer"
        both = (
            f"{one.evidence.source} counted {_number(one.value)},"
            f" {other.evidence.source} counted {_number(other.value)}"
        )
        if one.value is None and other.value is None:
            return True, both
        apart = _apart(one.value, other.value)
        if apart is None:
            return False, f"{both}; no tolerance is wide enough for that"
        first = abs(Fraction(one.value or 0))
        wide = max(Fraction(self.tolerance), Fraction(self.tolerance_percent) * first / 100)
        return apart <= wide, f"{both}, {_difference(apart, first)}; {self._allowed}"

    @property
    def _allowed(self) -> str:
        return (
            f"tolerance {plain(self.tolerance)} or {plain(self.tolerance_percent)} % of the first"
        )


def _told_by(which: str, question: Callable[[], Asked]) -> Asked:
    """Ask one of the two; what it refuses is told with which one it was."""
    try:
        return question()
    except TransientError as error:
        told = f"the {which} source: {error}"
        raise SourceUnavailable(told, retry_after=error.retry_after) from error
    except ReconcilerError as error:
        raise SourceInvalid(f"the {which} source: {error}") from error


def _by_charge(asked: Sequence[UsageQuery], tallies: Sequence[Tally]) -> dict[str, Tally]:
    """Put each tally to its charge; refuse what answers another question or one twice."""
    questions = {query.charge_id: query for query in asked}
    found: dict[str, Tally] = {}
    for tally in tallies:
        charge = tally.query.charge_id
        if questions.get(charge) != tally.query or charge in found:
            raise SourceInvalid("the second source answered what it was not asked, or twice")
        found[charge] = tally
    return found


def _apart(one: Any, other: Any) -> Fraction | None:
    """Return how far two numbers are apart; None: one of them is no exact number."""
    for value in (one, other):
        if not isinstance(value, Decimal) or not value.is_finite():
            return None
    return abs(Fraction(one) - Fraction(other))


def _difference(apart: Fraction, first: Fraction) -> str:
    """Write how far apart two numbers are, and how many percent of the first that is."""
    if not first:
        return f"apart {_decimal(apart)}"
    percent = round(apart * 100 / first, 2)
    told = f"{_decimal(percent)} %" if percent or not apart else "less than 0.01 %"
    return f"apart {_decimal(apart)} ({told})"


def _decimal(number: Fraction) -> str:
    return plain(_TO_READ.divide(Decimal(number.numerator), Decimal(number.denominator)))


def _number(value: Any) -> str:
    if value is None:
        return "nothing (it does not know the subject)"
    return plain(value) if isinstance(value, Decimal) and value.is_finite() else shown(value)


def _name(query: UsageQuery) -> str:
    return f'component "{query.component}" of subject {shown(query.subject)} in {query.period}'
