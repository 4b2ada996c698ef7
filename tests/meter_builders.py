"""What the tests of the built-in meter share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import cast

from usage_sources.contract.values import MIDNIGHT, UsageEvent, query
from usage_sources.meter import MeterSource
from worker import metering
from worker.domain import Aggregation

KINDS = ("sqlite", "postgres")
COUNTABLE = frozenset(Aggregation) - {Aggregation.UNIQUE}

_numbers = itertools.count()


def used(
    quantity: str = "1",
    *,
    id: str | None = None,  # noqa: A002  the event's own word
    at: datetime = MIDNIGHT,
    subject: str = "S-1",
    metric: str = "calls",
    source: str = "gateway",
) -> metering.UsageEvent:
    """Make an event; without an id it gets one that no other has."""
    return metering.UsageEvent(
        source=source,
        id=f"event {next(_numbers)}" if id is None else id,
        subject=subject,
        metric=metric,
        at=at,
        quantity=Decimal(quantity),
    )


def hours_after(hours: float) -> datetime:
    """Return a moment of the month that the queries ask for."""
    return MIDNIGHT + timedelta(hours=hours)


def append(
    source: MeterSource, *events: metering.UsageEvent, all_or_nothing: bool = False
) -> list[str]:
    """Store events and return the verdicts in words."""
    return [str(each) for each in source.store.append(events, all_or_nothing=all_or_nothing)]


def value(source: MeterSource, aggregation: Aggregation = Aggregation.SUM) -> Decimal | None:
    """Count S-1's calls in May."""
    (tally,) = source.count([query(aggregation=aggregation)])
    return tally.value


def store_all(source: MeterSource, events: Sequence[UsageEvent]) -> MeterSource:
    """Store the events of the contract suite, each under a number."""
    some = [
        metering.UsageEvent(
            source="suite",
            id=str(number),
            subject=each.subject,
            metric=each.metric,
            at=each.at,
            quantity=cast("Decimal", each.quantity),  # the suite has one without
        )
        for number, each in enumerate(events)
    ]
    source.store.append(some, all_or_nothing=True)
    return source
