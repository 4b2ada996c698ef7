"""How database rows become records; the same columns in every SQL journal."""

from __future__ import annotations

from typing import Any

from worker.domain import FrozenTally, InvoiceKey, Period, Span
from worker.journal.codec import moment_of, stamp
from worker.record import DeliveryRow, InvoiceRow, State

Row = dict[str, Any]


def id_of(key: InvoiceKey) -> tuple[str, str]:
    """Return the columns that name an invoice."""
    return key.platform, key.invoice_id


def tally_row(key: InvoiceKey, tally: FrozenTally) -> Row:
    """Write what a tally bills as a row to look it up by; its entry holds the whole of it."""
    return {
        "platform": key.platform,
        "invoice_id": key.invoice_id,
        "charge_id": tally.charge_id,
        "subscription_id": tally.span.subscription_id,
        "component": tally.span.component,
        "period_start": stamp(tally.span.period.start),
        "period_end": stamp(tally.span.period.end),
    }


def span_of(row: Row) -> Span:
    """Read the span of a tally's row."""
    period = Period(moment_of(row["period_start"]), moment_of(row["period_end"]))
    return Span(row["subscription_id"], row["component"], period)


def invoice_of(row: Row) -> InvoiceRow:
    """Read an invoice's row."""
    due_at, lease_until = row["due_at"], row["lease_until"]
    return InvoiceRow(
        key=InvoiceKey(row["platform"], row["invoice_id"]),
        state=State(row["state"]),
        reason=row["reason"],
        first_seen_at=moment_of(row["first_seen_at"]),
        updated_at=moment_of(row["updated_at"]),
        due_at=moment_of(due_at) if due_at else None,
        attempt=row["attempt"],
        lease_owner=row["lease_owner"],
        lease_until=moment_of(lease_until) if lease_until else None,
    )


def delivery_of(row: Row) -> DeliveryRow:
    """Read a delivery's row, without its body."""
    return DeliveryRow(
        id=row["id"],
        event=row["event"],
        received_at=moment_of(row["received_at"]),
        times=row["times"],
        digest=row["digest"],
    )
