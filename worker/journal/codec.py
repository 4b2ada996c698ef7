"""How records are written as JSON and chained; the same for every journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from worker.domain import (
    Aggregation,
    Evidence,
    FrozenTally,
    InvoiceKey,
    Period,
    Rounding,
    Span,
    utc,
)
from worker.record import Entry, EntryKind

_TALLY_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("charge_id", "subject", "component", "source", "metric", "program"), (str,)),
    "filters": (dict,),
    "quantity": (int,),
    "events": (int, type(None)),
    "evidence": (dict,),
}
_EVIDENCE_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("source", "query", "digest"), (str,)),
    "parameters": (dict,),
    "notes": (list,),
}


def stamp(moment: datetime) -> str:
    """Write an instant so that text order is time order: UTC, always six fraction digits.

    A datetime without a zone is refused (ValueError): it names no instant.
    """
    return utc(moment).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """Read what `stamp` wrote."""
    return datetime.fromisoformat(text)


def canonical(value: Any) -> str:
    """Write JSON that is the same text for the same value, in ASCII.

    So it holds whatever a platform's JSON held: also NUL, which PostgreSQL does not store, and
    half of a surrogate pair, which UTF-8 does not.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest_of(key: InvoiceKey, entry: Entry, previous: str) -> str:
    """Chain an entry to the one before it on the same invoice (SHA-256, hex).

    `previous` is that entry's digest, or empty for the first. Any later edit, deletion or
    reordering changes a digest that a following entry carries.
    """
    named = {
        "v": 1,
        "platform": key.platform,
        "invoice_id": key.invoice_id,
        "at": stamp(entry.at),
        "kind": entry.kind.value,
        "data": entry.data,
        "previous": previous,
    }
    return hashlib.sha256(canonical(named).encode()).hexdigest()


def counted_entry(tallies: Sequence[FrozenTally], at: datetime) -> Entry:
    """Make the entry that carries frozen tallies, so that the chain covers them."""
    data = {"tallies": [_tally_to_json(tally) for tally in tallies]}
    return Entry(kind=EntryKind.COUNTED, at=at, data=data)


def tallies_of(entries: Iterable[Entry]) -> tuple[FrozenTally, ...]:
    """Return the frozen tallies that stand: the last counted, unless given up since.

    What is not as `counted_entry` made it raises an error of Python's own: never is it no tally.
    """
    tallies: tuple[FrozenTally, ...] = ()
    for entry in entries:
        if entry.kind is EntryKind.COUNTED:
            _demand(entry.data, {"tallies": (list,)})
            tallies = tuple(map(_tally_of_json, entry.data["tallies"]))
        elif entry.kind is EntryKind.DISCARDED:
            tallies = ()
    return tallies


def _tally_to_json(tally: FrozenTally) -> dict[str, Any]:
    """Write a tally with exact numbers, as text where JSON has none."""
    evidence = tally.evidence
    return {
        "charge_id": tally.charge_id,
        "subject": tally.span.subject,
        "component": tally.span.component,
        "period_start": stamp(tally.span.period.start),
        "period_end": stamp(tally.span.period.end),
        "source": tally.source,
        "metric": tally.metric,
        "aggregation": tally.aggregation.value,
        "filters": dict(tally.filters),
        "quantity": tally.quantity,
        "value": str(tally.value),
        "divide_by": str(tally.divide_by),
        "rounding": tally.rounding.value,
        "events": tally.events,
        "program": tally.program,
        "evidence": {
            "source": evidence.source,
            "query": evidence.query,
            "parameters": evidence.parameters,
            "asked_at": stamp(evidence.asked_at),
            "digest": evidence.digest,
            "watermark": evidence.watermark and stamp(evidence.watermark),
            "stored_until": evidence.stored_until and stamp(evidence.stored_until),
            "notes": list(evidence.notes),
        },
    }


def _tally_of_json(data: dict[str, Any]) -> FrozenTally:
    """Read what `_tally_to_json` wrote."""
    _demand(data, _TALLY_TYPES)
    evidence = data["evidence"]
    _demand(evidence, _EVIDENCE_TYPES)
    period = Period(moment_of(data["period_start"]), moment_of(data["period_end"]))
    return FrozenTally(
        charge_id=data["charge_id"],
        span=Span(data["subject"], data["component"], period),
        source=data["source"],
        metric=data["metric"],
        aggregation=Aggregation(data["aggregation"]),
        filters=tuple(data["filters"].items()),
        quantity=data["quantity"],
        value=Decimal(data["value"]),
        divide_by=Decimal(data["divide_by"]),
        rounding=Rounding(data["rounding"]),
        events=data["events"],
        program=data["program"],
        evidence=Evidence(
            source=evidence["source"],
            query=evidence["query"],
            parameters=evidence["parameters"],
            asked_at=moment_of(evidence["asked_at"]),
            digest=evidence["digest"],
            watermark=_moment_or_none(evidence["watermark"]),
            stored_until=_moment_or_none(evidence["stored_until"]),
            notes=tuple(evidence["notes"]),
        ),
    )


def _demand(data: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    for name, wanted in types.items():
        if type(data[name]) not in wanted:  # True would be an int
            raise TypeError(f"{name} is not of its type")


def _moment_or_none(text: str | None) -> datetime | None:
    return moment_of(text) if text else None
