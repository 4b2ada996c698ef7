"""What the journal records of an invoice, and what can be read back from it; no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.domain import FrozenTally, InvoiceKey, Span


class State(StrEnum):
    """Where our own work on an invoice is."""

    DUE = "due"  # to be worked on as soon as a worker is free
    WAITING = "waiting"  # nothing is wrong; not before due_at
    RETRYING = "retrying"  # something failed; again at due_at
    HELD = "held"  # a person must look
    PARKED = "parked"  # a person holds it back; only a release lets it go
    OBSERVED = "observed"  # counted, and nothing was written: the mode is observe
    ISSUED = "issued"  # by us, and read back
    SKIPPED = "skipped"  # nothing for us to do
    CLOSED = "closed"  # a person settled it by hand, and said so


class EntryKind(StrEnum):
    """What an entry says; written when it happened, never changed."""

    DELIVERED = "delivered"  # a notification named the invoice
    REPLAYED = "replayed"  # an operator asked for another run
    PARKED = "parked"  # an operator holds it back, with the reason
    RELEASED = "released"  # an operator lets it go, with the reason
    FOUND = "found"  # a sweep saw it pending, and no notification had told of it
    CLAIMED = "claimed"  # a worker took the invoice
    FETCHED = "fetched"  # what the platform said of it
    COUNTED = "counted"  # tallies frozen
    DISCARDED = "discarded"  # frozen tallies given up for a recount; nothing was written yet
    PREVIEWED = "previewed"  # what would be billed; nothing was written
    RECOUNTED = "recounted"  # an operator had it counted again, with the reason; nothing changed
    CHARGE_INTENT = "charge_intent"  # about to write a quantity on a charge
    CHARGE_ANSWER = "charge_answer"  # what became of that
    ISSUE_INTENT = "issue_intent"  # about to issue
    ISSUE_ANSWER = "issue_answer"  # what became of that
    ISSUED = "issued"  # issued, and read back
    WAITING = "waiting"
    FAILED = "failed"
    STOPPED = "stopped"  # the worker was asked to end
    CLOSED = "closed"  # an operator: settled by hand, with the reason
    HELD = "held"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened to an invoice. `data` is JSON-ready and holds no secret."""

    kind: EntryKind
    at: datetime
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on one invoice; every append names its fencing number."""

    key: InvoiceKey
    owner: str
    fence: int


def one_line(text: str) -> str:
    """Make a text safe to show anywhere: no line breaks, controls or broken characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run left an invoice. The reason is made one printable line."""

    state: State
    reason: str
    due_at: datetime | None = None  # None: only a notification or an operator wakes it
    attempt: int = 0  # failures in a row so far
    seconds: float = 0.0  # what the run took
    calls: int = 0  # requests it sent to the platform
    read_back: bool = False  # an earlier run had issued it

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceRow:
    """The journal's current word on an invoice."""

    key: InvoiceKey
    state: State
    reason: str
    first_seen_at: datetime
    updated_at: datetime
    due_at: datetime | None
    attempt: int
    lease_owner: str | None
    lease_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One stored notification."""

    id: str
    event: str
    received_at: datetime
    times: int  # how often the platform sent it
    digest: str  # SHA-256 of the raw body


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything the journal knows of one invoice, oldest first."""

    row: InvoiceRow
    deliveries: tuple[DeliveryRow, ...]
    entries: tuple[Entry, ...]
    tallies: tuple[FrozenTally, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledSpan:
    """A span that another invoice bills, or is about to."""

    invoice_id: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """What the journal no longer proves of an invoice: it was changed behind the program's back."""

    key: InvoiceKey
    seq: int | None  # which of its entries; None: it is not about one entry
    fault: str

    def __str__(self) -> str:
        return f"{self.key}: {self.fault}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a person did that concerns no single invoice."""

    at: datetime
    by: str
    verb: str
    reason: str
    platform: str = ""  # empty: all of them


class Receipt(StrEnum):
    """What became of a delivery handed to the journal."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"  # the same id, already received for another invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What earlier runs may have done on the platform, folded from the entries."""

    charges_tried: bool = False
    issue_tried: bool = False
    issued_at: datetime | None = None  # the platform said that it is issued
    unanswered_at: datetime | None = None  # the newest intent whose outcome is unknown
    awaited_us: bool = False  # an earlier run saw it pending and never recalculated
    unknown_since: datetime | None = None  # since then the platform says it knows none such

    @property
    def unfinished(self) -> bool:
        """Tell whether writes of ours may stand on the invoice."""
        return self.charges_tried or self.issue_tried


_ISSUE = ""  # the place of the issue intent among those of the charges


def progress_of(entries: Iterable[Entry]) -> Progress:
    """Fold an invoice's entries: an intent without an answer is an unknown outcome."""
    open_intents: dict[str, datetime] = {}
    charges_tried = issue_tried = awaited_us = False
    issued_at = unknown_since = None
    for entry in entries:
        match entry.kind:
            case EntryKind.FETCHED if "state" in entry.data:
                unknown_since = None
                awaited_us |= entry.data["pending"] and entry.data["version"] == 1
            case EntryKind.FETCHED:
                unknown_since = unknown_since or entry.at
            case EntryKind.CHARGE_INTENT:
                charges_tried = True
                open_intents[entry.data["charge_id"]] = entry.at
            case EntryKind.CHARGE_ANSWER:
                open_intents.pop(entry.data["charge_id"], None)
            case EntryKind.ISSUE_INTENT:
                issue_tried = True
                open_intents[_ISSUE] = entry.at
            case EntryKind.ISSUE_ANSWER:
                open_intents.pop(_ISSUE, None)
                issued_at = issued_at if "error" in entry.data else entry.at
            case EntryKind.ISSUED:
                open_intents.pop(_ISSUE, None)
                issued_at = issued_at or entry.at
    return Progress(
        charges_tried=charges_tried,
        issue_tried=issue_tried,
        issued_at=issued_at,
        unanswered_at=max(open_intents.values(), default=None),
        awaited_us=awaited_us,
        unknown_since=unknown_since,
    )
