"""How a batch of events is stored, each event once; the same for every database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple, Protocol

from usage_sources.reading import EARLIEST, LATEST, exact_sum, microseconds, stored_quantity
from worker.metering import UsageEvent, Verdict

HOUR = 3_600_000_000  # microseconds
ROLL_FROM = 2_000  # events of a series, about; with fewer, adding up single events is as fast
SAMPLED = 16  # one event of so many is counted towards that, from a place in the batch that its
# moment gives: to count each costs a write to the row of every series

Name = tuple[str, str]  # an event's source and id
Pair = tuple[str, str]  # a series' subject and metric

_EARLIEST, _LATEST = microseconds(EARLIEST), microseconds(LATEST)


class Row(NamedTuple):
    """One event as it is stored; two with equal rows are the same event sent twice."""

    name: Name
    pair: Pair
    at: int  # microseconds since 1970
    quantity: Decimal


@dataclass(slots=True, eq=False)
class SeriesState:
    """What appending must know of a series, and keeps true while it appends."""

    id: int
    events: int  # about as many, until it is rolled up
    rolled: bool  # its hours are kept


@dataclass(slots=True)
class HourSum:
    """What a batch adds to an hour of a series."""

    events: int
    total: Decimal
    most: Decimal

    def add(self, quantity: Decimal) -> None:
        """Take one more event in."""
        self.events += 1
        self.total = exact_sum(self.total, quantity)
        self.most = max(self.most, quantity)


class Appending(Protocol):
    """A transaction that is alone in writing, from its first statement to its commit."""

    def stored(self, rows: Sequence[Row]) -> Mapping[Name, Row]:
        """Return what is stored under the names of these rows."""

    def tick(self) -> int:
        """Return the moment of this transaction, later than that of every earlier one."""

    def series(self, pairs: Collection[Pair], stored_at: int) -> Mapping[Pair, SeriesState]:
        """Return the series of these pairs; make those that are not there."""

    def add_events(self, rows: Sequence[Row], series: Sequence[int], stored_at: int) -> None:
        """Add rows in this order, each to its series."""

    def add_to_counts(self, counts: Mapping[int, int]) -> None:
        """Add to the number of events of some series."""

    def add_to_hours(self, hours: Mapping[tuple[int, int], HourSum], stored_at: int) -> None:
        """Add to the sums of some hours, each named by series and hour."""

    def roll_up(self, series: Collection[int]) -> None:
        """Make the hours of some series from all of their events, and keep them from now on."""


def our_clock() -> int:
    """Return the present moment in microseconds since 1970."""
    return time.time_ns() // 1_000


def rows_of(events: Iterable[UsageEvent]) -> list[Row]:
    """Read events; ValueError names what cannot be stored in any database."""
    return [_row(event) for event in events]


def append_rows(tx: Appending, rows: Sequence[Row], *, all_or_nothing: bool) -> list[Verdict]:
    """Add the rows that are new, and return a verdict for each row."""
    verdicts, new = judged(rows, tx.stored(rows))
    if not new or (all_or_nothing and Verdict.CONFLICT in verdicts):
        return verdicts
    stored_at = tx.tick()
    found = tx.series(dict.fromkeys(row.pair for row in new), stored_at)
    series = [found[row.pair] for row in new]
    tx.add_events(new, [state.id for state in series], stored_at)
    if hours := _hours(new, series):
        tx.add_to_hours(hours, stored_at)
    _grow(tx, series[stored_at % SAMPLED :: SAMPLED])
    return verdicts


def _grow(tx: Appending, sampled: Iterable[SeriesState]) -> None:
    """Count events, each for all that it was sampled from, and roll up series with enough."""
    growing = Counter(state for state in sampled if not state.rolled)
    if growing:
        tx.add_to_counts({state.id: SAMPLED * n for state, n in growing.items()})
    for state, n in growing.items():
        state.events += SAMPLED * n
    heavy = [state for state in growing if state.events >= ROLL_FROM]
    for state in heavy:
        state.rolled = True
    if heavy:
        tx.roll_up([state.id for state in heavy])


def judged(rows: Sequence[Row], stored: Mapping[Name, Row]) -> tuple[list[Verdict], list[Row]]:
    """Return the verdict on each row, and the rows that are new."""
    known = dict(stored)
    verdicts, new = [], []
    for row in rows:
        first = known.setdefault(row.name, row)
        if first is row:
            new.append(row)
            verdicts.append(Verdict.STORED)
        else:
            verdicts.append(Verdict.DUPLICATE if first == row else Verdict.CONFLICT)
    return verdicts, new


def _hours(rows: Sequence[Row], series: Sequence[SeriesState]) -> dict[tuple[int, int], HourSum]:
    hours: dict[tuple[int, int], HourSum] = {}
    for row, state in zip(rows, series, strict=True):
        if not state.rolled:
            continue
        key = (state.id, row.at // HOUR)
        if (found := hours.get(key)) is None:
            hours[key] = HourSum(1, row.quantity, row.quantity)
        else:
            found.add(row.quantity)
    return hours


def _row(event: UsageEvent) -> Row:
    source, name, subject, metric, moment, quantity = event
    texts = f"{source}{name}{subject}{metric}"
    if not texts.isascii():
        texts.encode()  # half of a surrogate pair is a ValueError
    if not (source and name and subject and metric) or "\0" in texts:
        raise ValueError("an event's source, id, subject or metric is empty or holds a NUL")
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    at = microseconds(moment)
    if not _EARLIEST <= at < _LATEST:
        raise ValueError(f"{moment} is not between 1980 and 9999")
    return Row((source, name), (subject, metric), at, _quantity(quantity))


def _quantity(quantity: Decimal) -> Decimal:
    if not isinstance(quantity, Decimal) or not quantity.is_finite():
        raise ValueError(f"{quantity} is not a finite Decimal")
    return _checked(quantity)


@lru_cache(maxsize=4096)
def _checked(quantity: Decimal) -> Decimal:
    return stored_quantity(quantity)
