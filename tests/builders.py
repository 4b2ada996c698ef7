"""Values for tests: every builder gives a good one, and takes what shall differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from worker import __version__
from worker.domain import (
    Aggregation,
    Component,
    Delivery,
    Evidence,
    FrozenTally,
    Invoice,
    InvoiceKey,
    InvoiceState,
    Period,
    Rounding,
    Rules,
    Span,
    Tally,
    UsageCharge,
    UsageQuery,
)

START = datetime(2015, 11, 2, 12, 18, 51, tzinfo=UTC)
END = datetime(2015, 12, 2, 12, 18, 51, tzinfo=UTC)
NOW = datetime(2015, 12, 2, 13, 0, 0, tzinfo=UTC)
MONTH = Period(START, END)
INV = "INV-C7D7BC92-11D1-4AC2-8DC5-78C53957"
KEY = InvoiceKey("billforward", INV)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(minutes=5)


def other_key(number: int) -> InvoiceKey:
    """Name another invoice."""
    return InvoiceKey("billforward", f"INV-00000000-0000-4000-8000-{number:08X}")


def invoice(**changed: Any) -> Invoice:
    """Make a pending Subscription invoice of version 1."""
    good = Invoice(
        id=INV,
        type="Subscription",
        state=InvoiceState.PENDING,
        state_text="Pending",
        version=1,
        total=Decimal("5.00"),
        currency="USD",
        subscription_id="SUB-1",
        account_id="ACC-1",
        usage_charge_ids=frozenset(),
    )
    if "state" in changed:
        changed.setdefault("state_text", changed["state"].value)
    return replace(good, **changed)


def charge(**changed: Any) -> UsageCharge:
    """Make a usage charge "Text messages" that stands at 0."""
    good = UsageCharge(
        id="CHG-1",
        invoice_id=INV,
        subscription_id="SUB-1",
        account_id="ACC-1",
        component="Text messages",
        name="Messages",
        quantity=Decimal(0),
        amount=Decimal("0.00"),
        version=1,
        period=MONTH,
    )
    return replace(good, **changed)


def component(**changed: Any) -> Component:
    """Make the mapping of "Text messages"."""
    good = Component(name="Text messages", source="events", metric="text_message")
    return replace(good, **changed)


def rules(*components: Component, **changed: Any) -> Rules:
    """Make rules that map "Text messages" and wait for nothing."""
    good = Rules(
        components={c.name: c for c in components or (component(),)},
        invoice_types=frozenset({"Subscription", "FinalArrears"}),
        grace=timedelta(0),
        issue_without_usage=True,
        not_found_grace=timedelta(minutes=2),
        watermark_poll=timedelta(minutes=5),
        watermark_deadline=timedelta(days=3),
        settle=timedelta(minutes=2),
        retry_delays=(timedelta(seconds=5), timedelta(seconds=30)),
        max_attempts=3,
        lease=LEASE,
    )
    return replace(good, **changed)


def evidence(**changed: Any) -> Evidence:
    """Make evidence of one answer."""
    good = Evidence(
        source="test events",
        query="count",
        parameters={"subject": "SUB-1"},
        asked_at=NOW,
        digest="d" * 64,
    )
    return replace(good, **changed)


def query(**changed: Any) -> UsageQuery:
    """Make the question that goes with `charge()`."""
    good = UsageQuery(
        charge_id="CHG-1",
        subject="SUB-1",
        component="Text messages",
        metric="text_message",
        aggregation=Aggregation.COUNT,
        period=MONTH,
    )
    return replace(good, **changed)


def tally(value: Decimal | int | None = 105, **changed: Any) -> Tally:
    """Make a source's answer to `query()`."""
    exact = None if value is None else Decimal(value)
    events = value if isinstance(value, int) else None
    return replace(Tally(query=query(), value=exact, events=events, evidence=evidence()), **changed)


def frozen(quantity: int = 105, **changed: Any) -> FrozenTally:
    """Make the frozen tally that goes with `charge()`."""
    good = FrozenTally(
        charge_id="CHG-1",
        span=Span("SUB-1", "Text messages", MONTH),
        source="events",
        metric="text_message",
        aggregation=Aggregation.COUNT,
        quantity=quantity,
        value=Decimal(quantity),
        rounding=Rounding.REJECT,
        events=quantity,
        evidence=evidence(),
        program=__version__,
    )
    return replace(good, **changed)


def delivery(**changed: Any) -> Delivery:
    """Make an Invoice/Pending notification."""
    good = Delivery(
        platform="billforward",
        id="NOT-A66C1042-83BC-4224-B197-D6D7BC37",
        event="Invoice/Pending",
        invoice_id=INV,
        body=b'{"raw": true}',
    )
    return replace(good, **changed)
