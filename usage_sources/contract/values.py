"""What the contract suite stores and asks: events, queries, and names that do harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from worker.domain import Aggregation, Period, UsageQuery
from worker.errors import SourceUnavailable
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
    quantity: Decimal | None = Decimal(1)  # None: stored without one
    unique: str | None = None
    region: str = "eu"  # store it as a column "region", for the tests of filters


def event(
    at: datetime,
    *,
    subject: str = "S-1",
    metric: str = "calls",
    quantity: Decimal | None = Decimal(1),
    unique: str = "ann",
    region: str = "eu",
) -> UsageEvent:
    """Make an event; only its time must be given."""
    return UsageEvent(
        subject=subject, metric=metric, at=at, quantity=quantity, unique=unique, region=region
    )


def query(
    charge_id: str = "charge",
    *,
    subject: str = "S-1",
    metric: str = "calls",
    aggregation: Aggregation = Aggregation.COUNT,
    period: Period = MAY,
    filters: tuple[tuple[str, str], ...] = (),
) -> UsageQuery:
    """Make a query whose component is named as its metric, for sources keyed by either."""
    return UsageQuery(
        charge_id=charge_id,
        subject=subject,
        component=metric,
        metric=metric,
        aggregation=aggregation,
        period=period,
        filters=filters,
    )


def assert_unavailable(asking: Callable[[], object]) -> None:
    """Expect that whoever is asked says "try later"."""
    try:
        answer = asking()
    except SourceUnavailable:
        return
    raise AssertionError(f"an engine that is not there answered {answer}")


def close(source: UsageSource) -> None:
    """Close a source that keeps something open."""
    closing = getattr(source, "close", None)
    if closing is not None:
        closing()
