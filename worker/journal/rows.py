"""How database rows become records; the same columns in every SQL journal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from worker.domain import FrozenTally, InvoiceKey, Period, Span
from worker.errors import RecordInvalid
from worker.journal.codec import canonical, digest_of, moment_of, stamp, tallies_of
from worker.journal.store import Row
from worker.overviews import Facts, fact
from worker.record import DeliveryRow, Entry, EntryKind, InvoiceRow, State, progress_of

NO_FACTS: Row = {
    "subscription_id": "",
    "account_id": "",
    "total": "",
    "currency": "",
    "components": "",
    "period_start": None,
    "period_end": None,
    "issued_at": None,
}
"""What the columns of an invoice's facts hold before an entry tells them."""

_SEEN = ("subscription_id", "account_id", "total", "currency")
_BREAK = "\n"  # stands before and after each component, and in none


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
    try:
        data = json.loads(row["data"])
    except RecursionError as error:
        raise ValueError("its data are nested too deep") from error
    if type(data) is not dict:
        raise ValueError("its data are no JSON object")
    return Entry(kind=EntryKind(row["kind"]), at=moment_of(row["at"]), data=data)


def entries_of(key: InvoiceKey, rows: Iterable[Row]) -> tuple[Entry, ...]:
    """Read an invoice's entries; RecordInvalid: one cannot be read.

    So what a run takes from them is never less than they hold: not a count, not a write.
    """
    return tuple(_whole_entry(key, row) for row in rows)


def _whole_entry(key: InvoiceKey, row: Row) -> Entry:
    """Read an entry and, to prove its shape, all that the program takes from one."""
    try:
        entry = entry_of(row)
        stamp(entry.at)
        for read in (tallies_of, progress_of, fact_columns):
            read([entry])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RecordInvalid(
            f"entry {row['seq']} of {key.invoice_id} cannot be read: it was changed behind the"
            " program's back, or by another version; reconciler journal verify names what is"
            " broken, docs/journal.md says how to restore"
        ) from error
    return entry


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
        "quantity": str(tally.quantity),
    }


def span_of(row: Row) -> Span:
    """Read the span of a tally's row."""
    period = Period(moment_of(row["period_start"]), moment_of(row["period_end"]))
    return Span(row["subject"], row["component"], period)


def invoice_of(row: Row) -> InvoiceRow:
    """Read an invoice's row."""
    return InvoiceRow(
        key=InvoiceKey(row["platform"], row["invoice_id"]),
        state=State(row["state"]),
        reason=row["reason"],
        first_seen_at=moment_of(row["first_seen_at"]),
        updated_at=moment_of(row["updated_at"]),
        due_at=_moment_or_none(row["due_at"]),
        attempt=row["attempt"],
        lease_owner=row["lease_owner"],
        lease_until=_moment_or_none(row["lease_until"]),
    )


def fact_columns(entries: Iterable[Entry]) -> Row:
    """Write what entries say of an invoice as columns to search it by; only what they tell.

    The newest entry's word counts, but for `issued_at`, where the first one's does.
    """
    told: Row = {}
    for entry in entries:
        data = entry.data
        if entry.kind in (EntryKind.FETCHED, EntryKind.ISSUED):
            told |= {name: fact(str(data[name])) for name in _SEEN if name in data}
        if entry.kind is EntryKind.ISSUED:
            told.setdefault("issued_at", stamp(entry.at))
        elif entry.kind is EntryKind.COUNTED:
            told |= _charge_columns(data.get("tallies", ()))
        elif entry.kind in (EntryKind.HELD, EntryKind.PREVIEWED) and "charges" in data:
            told |= _charge_columns(data["charges"])
    return told


def _charge_columns(charges: Sequence[dict[str, Any]]) -> Row:
    names = sorted({fact(charge["component"]) for charge in charges})
    starts = [charge["period_start"] for charge in charges if charge.get("period_start")]
    ends = [charge["period_end"] for charge in charges if charge.get("period_end")]
    return {
        "components": _BREAK + _BREAK.join(names) + _BREAK if names else "",
        "period_start": stamp(min(map(moment_of, starts))) if starts else None,
        "period_end": stamp(max(map(moment_of, ends))) if ends else None,
    }


def component_pattern(name: str) -> str:
    """Return the text that the column holds when the invoice has this component."""
    return f"{_BREAK}{name}{_BREAK}"


def facts_of(row: Row) -> Facts:
    """Read an invoice's facts from its row."""
    start, end = row["period_start"], row["period_end"]
    return Facts(
        **{name: row[name] for name in _SEEN},
        components=tuple(filter(None, row["components"].split(_BREAK))),
        period=Period(moment_of(start), moment_of(end)) if start and end else None,
        issued_at=_moment_or_none(row["issued_at"]),
    )


def _moment_or_none(text: str | None) -> datetime | None:
    return moment_of(text) if text else None


def delivery_of(row: Row) -> DeliveryRow:
    """Read a delivery's row, without its body."""
    return DeliveryRow(
        id=row["id"],
        event=row["event"],
        received_at=moment_of(row["received_at"]),
        times=row["times"],
        digest=row["digest"],
    )
