"""What operators ask of all invoices at once, and what the journal answers; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.causes import Cause
from worker.domain import InvoiceKey, Period, utc, utc_text
from worker.record import Act, InvoiceRow, State, one_line

UNISSUED = (State.DUE, State.WAITING, State.RETRYING, State.HELD, State.PARKED)
"""The states of invoices that are still to be issued, by us or by a person's decision."""

HOUR = timedelta(hours=1)
HOURS = 24

_MOST_FACT = 200  # characters: more than any platform's ids and names have
_MOST_TEXT = 500


def fact(text: str) -> str:
    """Make an id or a name of the platform's what it is stored and searched as."""
    return one_line(text)[:_MOST_FACT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which invoices to show, and in which order; what is empty leaves out nothing.

    Texts are found in any place, with letters A to Z of either case; ids are compared as a whole.
    The order is by age; where it is by another moment, only a first page can be asked for.
    """

    states: tuple[State, ...] = ()
    platform: str = ""
    subscription: str = ""
    account: str = ""
    component: str = ""  # its whole name: on the invoice, or named in quotes by the reason
    cause: str = ""  # the key of a cause: held for it
    reason: str = ""  # a part of the reason
    text: str = ""  # a part of the id or of the reason
    since: datetime | None = None  # a usage charge's period reaches beyond it
    until: datetime | None = None  # a usage charge's period starts before it
    due_since: datetime | None = None  # then or before; those longest due come first
    unchanged_since: datetime | None = None  # those longest unchanged come first
    paused_since: datetime | None = None  # its platform, or every one, is paused since then
    free_at: datetime | None = None  # no worker is at it then, and its platform is not paused
    newest_first: bool = False

    def __post_init__(self) -> None:
        for name in ("platform", "subscription", "account", "component", "cause"):
            object.__setattr__(self, name, fact(getattr(self, name)))
        for name in ("reason", "text"):
            object.__setattr__(self, name, one_line(getattr(self, name))[:_MOST_TEXT])
        moments = ("since", "until", "due_since", "unchanged_since", "paused_since", "free_at")
        for name in moments:
            moment = getattr(self, name)
            object.__setattr__(self, name, moment and utc(moment))


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """The place of one invoice in the order of their age; its text goes into a link."""

    first_seen_at: datetime
    key: InvoiceKey

    @classmethod
    def of(cls, text: str) -> Cursor:
        """Read what `str` wrote; raise ValueError."""
        moment, _, rest = one_line(text).partition(" ")
        platform, _, invoice_id = rest.rpartition(" ")
        if not platform or not invoice_id:
            raise ValueError("it names no place in the list")
        return cls(utc(datetime.fromisoformat(moment)), InvoiceKey(platform, invoice_id))

    def __str__(self) -> str:
        return f"{utc_text(self.first_seen_at)} {self.key.platform} {self.key.invoice_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an invoice's entries last said of it, to be searched by; empty: not known yet."""

    subscription_id: str = ""
    account_id: str = ""
    total: str = ""  # an exact number
    currency: str = ""
    components: tuple[str, ...] = ()  # of its usage charges, each once, sorted
    period: Period | None = None  # from the first start of a usage charge to the last end
    issued_at: datetime | None = None  # when it was first read back as issued


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An invoice in a list."""

    row: InvoiceRow
    facts: Facts
    cause: Cause | None  # of a held one

    @property
    def cursor(self) -> Cursor:
        """Its place in the order of age."""
        return Cursor(self.row.first_seen_at, self.row.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some invoices that a filter lets through."""

    invoices: tuple[Listed, ...]
    total: int  # how many it lets through in all, exactly
    after: Cursor | None  # what to ask the next page with; None: there is none, or it is not by age


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFor:
    """How many invoices are held for one cause."""

    cause: Cause
    number: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """How many invoices were issued, and how many held, in an hour of the clock (UTC)."""

    start: datetime
    issued: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How the work stands."""

    now: datetime
    by_state: Mapping[State, int]  # every state
    oldest: Cursor | None  # the unissued invoice that was seen first
    held: tuple[HeldFor, ...]  # most invoices first
    issued_today: int  # since midnight UTC
    hours: tuple[Hour, ...]  # the last 24, oldest first; the last one is not over
    paused: Mapping[str, Act]  # by platform; "": all of them

    @property
    def oldest_unissued(self) -> timedelta | None:
        """How long the oldest unissued invoice has waited."""
        return None if self.oldest is None else self.now - self.oldest.first_seen_at


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousTally:
    """What an earlier invoice billed of the same usage."""

    invoice_id: str
    period: Period
    quantity: int


def hour_of(moment: datetime) -> datetime:
    """Return the start of the moment's hour, in UTC."""
    return utc(moment).replace(minute=0, second=0, microsecond=0)


def listed_json(listed: Listed) -> dict[str, Any]:
    """Return what a list shows beside the invoice's row, JSON-ready."""
    facts = listed.facts
    return {
        "cause": listed.cause.key if listed.cause else None,
        "subscription_id": facts.subscription_id,
        "account_id": facts.account_id,
        "total": facts.total or None,
        "currency": facts.currency,
        "components": list(facts.components),
        "period_start": utc_text(facts.period.start) if facts.period else None,
        "period_end": utc_text(facts.period.end) if facts.period else None,
        "issued_at": utc_text(facts.issued_at) if facts.issued_at else None,
    }
