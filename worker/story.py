"""An invoice's whole story as text or JSON, from the journal alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from worker.domain import FrozenTally, utc_text
from worker.record import Entry, EntryKind, History, InvoiceRow, one_line

# What reading an entry raises whose data have another shape: another version's, or changed ones.
_OTHER_SHAPE = (LookupError, TypeError, ValueError, AttributeError)
_MOST_DIFFERENCES = 5


def row_json(row: InvoiceRow) -> dict[str, Any]:
    """Return the journal's current word on an invoice, JSON-ready."""
    return {
        "id": row.key.invoice_id,
        "platform": row.key.platform,
        "state": row.state.value,
        "reason": row.reason,
        "first_seen_at": utc_text(row.first_seen_at),
        "updated_at": utc_text(row.updated_at),
        "due_at": _moment(row.due_at),
        "attempt": row.attempt,
        "claimed_by": row.lease_owner,
    }


def story_json(history: History) -> dict[str, Any]:
    """Return everything the journal knows of an invoice, JSON-ready."""
    return {
        **row_json(history.row),
        "deliveries": [
            {
                "id": delivery.id,
                "event": delivery.event,
                "received_at": utc_text(delivery.received_at),
                "times": delivery.times,
                "sha256": delivery.digest,
            }
            for delivery in history.deliveries
        ],
        "tallies": [tally_json(tally) for tally in history.tallies],
        "entries": [
            {"at": utc_text(entry.at), "kind": entry.kind.value, "data": entry.data}
            for entry in history.entries
        ],
    }


def story_text(history: History) -> str:
    """Return an invoice's story for people: what is, what was counted and why, what happened."""
    return "\n".join(
        [*_headline(history.row), *_counted(history), "", "What happened", *_happened(history)]
    )


def last_seen(history: History) -> dict[str, Any]:
    """Return what the platform last said of the invoice; empty when it was never fetched."""
    kinds = (EntryKind.FETCHED, EntryKind.ISSUED)
    return next((e.data for e in reversed(history.entries) if e.kind in kinds), {})


def charges_by_id(history: History) -> dict[str, dict[str, Any]]:
    """Return what the platform last answered for each usage charge."""
    charges: dict[str, dict[str, Any]] = {}
    for entry in history.entries:
        with suppress(*_OTHER_SHAPE):
            if entry.kind is EntryKind.CHARGE_ANSWER and "error" not in entry.data:
                charges[entry.data["charge_id"]] = entry.data
            elif entry.kind is EntryKind.ISSUED:
                charges |= {charge["charge_id"]: charge for charge in entry.data["charges"]}
    return charges


def _headline(row: InvoiceRow) -> Iterator[str]:
    yield f"{row.key}: {row.state}"
    if row.reason:
        yield f"  {row.reason}"
    if row.due_at:
        failed = f", {row.attempt} failed attempts in a row" if row.attempt else ""
        yield f"  due {utc_text(row.due_at)}{failed}"
    if row.lease_owner:
        yield f"  being worked on by {row.lease_owner}"


def _counted(history: History) -> Iterator[str]:
    if not history.tallies:
        return
    yield ""
    yield "What was counted"
    charges, before = charges_by_id(history), quantities_before(history)
    currency = last_seen(history).get("currency", "")
    asked: tuple[object, ...] = ()
    for tally in history.tallies:
        amount = charges.get(tally.charge_id, {}).get("amount")
        priced = f", {amount} {currency}" if amount is not None else ""
        was = before.get(tally.charge_id)
        changed = f" (was {was})" if was is not None else ""
        yield f"  {tally.span.component}: {tally.quantity}{changed}{priced}"
        question = _question(tally)
        yield from (f"    {line}" for line in tally_lines(tally, again=question == asked))
        asked = question


def _question(tally: FrozenTally) -> tuple[object, ...]:
    """Return what the source was asked; one statement answers many charges."""
    return tally.evidence.source, tally.evidence.query, tally.evidence.parameters


def tally_lines(tally: FrozenTally, *, again: bool = False) -> Iterator[str]:
    """Explain one counted number; `again`: the tally before it told of the same statement."""
    evidence = tally.evidence
    counted = "" if tally.events is None else f", {tally.events} events"
    if tally.charge_id:
        yield f"charge {tally.charge_id}"
    yield f"{tally.aggregation} of {tally.metric!r} by {tally.span.subject!r}{counted}"
    yield f"{utc_text(tally.span.period.start)} <= time < {utc_text(tally.span.period.end)}"
    if tally.filters:
        yield f"where {', '.join(f'{column} is {value!r}' for column, value in tally.filters)}"
    if tally.value != tally.quantity:
        divided = "" if tally.divide_by == 1 else f", divided by {tally.divide_by}"
        yield f"counted {tally.value}{divided}, rounded {tally.rounding}"
    if again:
        yield "source and query: as above"
    else:
        yield f"source: {tally.source}, {evidence.source}"
        yield f"query: {' '.join(evidence.query.split())}"
        yield f"with: {json.dumps(evidence.parameters, ensure_ascii=False)}"
    if evidence.watermark:
        yield f"the source had everything up to {utc_text(evidence.watermark)}"
    if evidence.stored_until:
        yield f"of what was stored until {utc_text(evidence.stored_until)}"
    yield from (f"note: {note}" for note in evidence.notes)
    yield (
        f"asked {utc_text(evidence.asked_at)} by version {tally.program},"
        f" answer SHA-256 {evidence.digest}"
    )


def _happened(history: History) -> Iterator[str]:
    times = {delivery.id: delivery.times for delivery in history.deliveries}
    for entry in history.entries:
        yield f"  {entry.at:%Y-%m-%d %H:%M:%S.%f}Z  {entry.kind.value:<14} {told(entry, times)}"


def told(entry: Entry, times: dict[str, int]) -> str:
    """Tell what an entry says, in a line; `times` says how often each delivery came."""
    try:
        return _told(entry, times)
    except _OTHER_SHAPE:
        return "has not the shape of its kind"


def _told(entry: Entry, times: dict[str, int]) -> str:
    data = entry.data
    match entry.kind:
        case EntryKind.DELIVERED:
            sent = times.get(data["delivery_id"], 1)
            return f"{data['delivery_id']} {data['event']}" + (f", sent {sent} times" * (sent > 1))
        case EntryKind.COUNTED:
            charges = len(data["tallies"])
            return f"{charges} usage charge{'s' * (charges != 1)}, frozen"
        case EntryKind.CHARGE_INTENT:
            was = "nothing" if data["from"] is None else data["from"]
            return f"{data['component']}: {was} -> {data['to']} on {data['charge_id']}"
        case EntryKind.CHARGE_ANSWER if "error" not in data:
            return (
                f"{data['component']}: {data['quantity']} costs {data['amount']}"
                f" (version {data['version']})"
            )
        case EntryKind.FETCHED | EntryKind.ISSUE_ANSWER if "state" in data:
            return (
                f"{data['state']}, {data['type']}, version {data['version']},"
                f" {data['total']} {data['currency']}"
            )
        case EntryKind.FETCHED:
            return "not found"
        case EntryKind.CLAIMED:
            return f"by {data['owner']}, fencing number {data['fence']}"
        case EntryKind.ISSUE_INTENT:
            return f"into Unpaid, from version {data['version']}"
        case EntryKind.RECOUNTED:
            return f"{_plainly(data)}; {_differences(data['charges'])}"
        case _:
            return _plainly(data)


def found_by(entry: Entry) -> str:
    """Tell what a person's look at an invoice found; empty: the entry is of no look."""
    if entry.kind is EntryKind.RECOUNTED:
        with suppress(*_OTHER_SHAPE):
            return _differences(entry.data["charges"])
    return ""


def _differences(charges: Sequence[dict[str, Any]]) -> str:
    """Tell the first charges that a recount found otherwise than they were billed."""
    found = [
        f"{one['component']}: {one['fault']}"
        if one["fault"]
        else f"{one['component']} {one['difference']:+}"
        for one in charges
        if one["fault"] or one["difference"]
    ]
    more = len(found) - _MOST_DIFFERENCES
    some = found[:_MOST_DIFFERENCES] + ([f"{more} more"] if more > 0 else [])
    return one_line("; ".join(some)) or "no difference"


def _plainly(data: dict[str, Any]) -> str:
    """Write the fields that are not told elsewhere."""
    parts = [f"by {data['by']}"] if "by" in data else []
    parts += [str(data["reason"])] if data.get("reason") else []
    if "error" in data:
        parts.append(f"{data.get('charge_id', '')} refused: {data['error']}".strip())
    if "until" in data:
        parts.append(f"again at {data['until']}")
    if "seconds" in data:
        parts.append(f"took {data['seconds']} s, {data['calls']} calls")
    return "; ".join(parts)


def quantities_before(history: History) -> dict[str, str | None]:
    """Return what stood on each charge that was written, before the first write."""
    before: dict[str, str | None] = {}
    for entry in history.entries:
        if entry.kind is EntryKind.CHARGE_INTENT:
            with suppress(*_OTHER_SHAPE):
                before.setdefault(entry.data["charge_id"], entry.data["from"])
    return before


def tally_json(tally: FrozenTally) -> dict[str, Any]:
    """Return one counted number with all that explains it, JSON-ready."""
    evidence = tally.evidence
    return {
        "charge_id": tally.charge_id,
        "component": tally.span.component,
        "period_start": utc_text(tally.span.period.start),
        "period_end": utc_text(tally.span.period.end),
        "subject": tally.span.subject,
        "metric": tally.metric,
        "aggregation": tally.aggregation.value,
        "filters": dict(tally.filters),
        "quantity": tally.quantity,
        "value": str(tally.value),
        "divide_by": str(tally.divide_by),
        "rounding": tally.rounding.value,
        "events": tally.events,
        "source": tally.source,
        "place": evidence.source,
        "query": evidence.query,
        "parameters": evidence.parameters,
        "asked_at": utc_text(evidence.asked_at),
        "sha256": evidence.digest,
        "watermark": _moment(evidence.watermark),
        "stored_until": _moment(evidence.stored_until),
        "notes": list(evidence.notes),
        "program": tally.program,
    }


def _moment(moment: datetime | None) -> str | None:
    return utc_text(moment) if moment else None
