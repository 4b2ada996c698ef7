"""How database rows become records; the same columns in every SQL journal."""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.domain import FrozenTally, InvoiceKey, Period, Span
from worker.journal.codec import canonical, digest_of, moment_of, stamp
from worker.journal.store import Row
from worker.record import DeliveryRow, Entry, EntryKind, InvoiceRow, State


def id_of(key: InvoiceKey) -> tuple[str, str]:
    """Return the columns that name an invoice."""
    return key.platform, key.invoice_id


def entry_rows(key: InvoiceKey, seq: int, head: str, entries: Sequence[Entry]) -> list[Row]:
    """Write entries as rows that follow the one with this number and digest."""
    rows = []
    for entry in entries:
        seq, head = seq + 1, digest_of(key, entry, head)
        rows.append(
            {
                "platform": key.platform,
                "invoice_id": key.invoice_id,
                "seq": seq,
                "at": stamp(entry.at),
                "kind": entry.kind.value,
                "data": canonical(entry.data),
                "digest": head,
            }
        )
    return rows


def entry_of(row: Row) -> Entry:
    """Read an entry's row; ValueError: it holds none."""
    return Entry(kind=EntryKind(row["kind"]), at=moment_of(row["at"]), data=json.loads(row["data"]))


def tally_row(key: InvoiceKey, tally: FrozenTally) -> Row:
    """Write what a tally bills as a row to look it up by; its entry holds the whole of it."""
    return {
        "platform": key.platform,
        "invoice_id": key.invoice_id,
        "charge_id": tally.charge_id,
        "subject": tally.span.subject,
        "component": tally.span.component,
        "period_start": stamp(tally.span.period.start),
        "period_end": stamp(tally.span.period.end),
    }


def span_of(row: Row) -> Span:
    """Read the span of a tally's row."""
    period = Period(moment_of(row["period_start"]), moment_of(row["period_end"]))
    return Span(row["subject"], row["component"], period)


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
