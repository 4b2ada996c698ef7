"""How the contract suite asks a source; its author gives the source."""

# ruff: noqa: S101 - part of a suite of tests

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

from usage_sources.contract.values import MAY, MIDNIGHT, UsageEvent, close, event, query
from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid
from worker.ports import UsageSource


class Asking(ABC):
    """Makes a source over given events, asks it, and closes it."""

    # Which aggregations the source can answer; COUNT or SUM must be among them.
    aggregations: ClassVar[frozenset[Aggregation]] = frozenset(Aggregation)

    @abstractmethod
    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> UsageSource:
        """Return a source over exactly these events; what an earlier call stored is replaced."""

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
