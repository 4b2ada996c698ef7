"""The values of the trade, frozen, with their rules; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Decimal
from enum import StrEnum
from typing import Any


def utc(moment: datetime) -> datetime:
    """Return the same instant in UTC; refuse a datetime without a zone."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment.astimezone(UTC)


def utc_text(moment: datetime) -> str:
    """Write an instant as ISO 8601 in UTC with a Z, with a fraction only where there is one."""
    return utc(moment).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open stretch of time `[start, end)` in UTC: `moment in period` is the only test.

    An empty period (start == end) holds no moment. Inverted or zoneless bounds are refused.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "end", utc(self.end))
        if self.end < self.start:
            raise ValueError(f"period ends before it starts: {self}")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= utc(moment) < self.end

    def overlaps(self, other: Period) -> bool:
        """Tell whether any moment is in both."""
        return max(self.start, other.start) < min(self.end, other.end)

    def __str__(self) -> str:
        return f"{utc_text(self.start)}..{utc_text(self.end)}"


@dataclass(frozen=True, slots=True, order=True)
class InvoiceKey:
    """Which invoice, on which platform (the platform's name in the configuration)."""

    platform: str
    invoice_id: str

    def __str__(self) -> str:
        return f"{self.invoice_id} · {self.platform}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One received webhook request, raw, and what it announces."""

    platform: str
    id: str  # the platform's id of the notification, unique on it
    event: str  # the platform's name of the event, e.g. "Invoice/Pending"
    invoice_id: str | None  # None: the event does not ask us to reconcile an invoice
    body: bytes
    owes_ack: bool = False  # True: the platform sends it again until it is acknowledged

    @property
    def key(self) -> InvoiceKey | None:
        """The invoice to reconcile, if the event announces one."""
        return InvoiceKey(self.platform, self.invoice_id) if self.invoice_id else None


@dataclass(frozen=True, slots=True)
class Span:
    """What must be billed only once: a subject's usage of a component, over a period."""

    subject: str  # whose usage is counted
    component: str
    period: Period

    def overlaps(self, other: Span) -> bool:
        """Tell whether billing both would bill some moment twice."""
        return (
            self.subject == other.subject
            and self.component == other.component
            and self.period.overlaps(other.period)
        )


class InvoiceState(StrEnum):
    """Where the platform says an invoice is. OTHER: a state this program does not know."""

    PENDING = "Pending"
    UNPAID = "Unpaid"
    PAID = "Paid"
    VOIDED = "Voided"
    OTHER = "Other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """The platform's invoice, as far as reconciling it needs."""

    id: str
    type: str
    state: InvoiceState
    state_text: str  # the platform's own word for the state
    version: int
    total: Decimal
    currency: str
    subscription_id: str
    account_id: str
    usage_charge_ids: frozenset[str]  # as embedded in the invoice; a listing must cover them


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCharge:
    """A line of the invoice priced from a counted quantity, billed in arrears."""

    id: str
    invoice_id: str
    subscription_id: str
    account_id: str
    component: str  # the name that is unique in the rate plan; never the display name
    name: str  # what the customer reads; may repeat
    quantity: Decimal | None  # as it stands on the invoice now; None: not stated
    amount: Decimal
    version: int
    period: Period | None  # None: see period_fault
    period_fault: str = ""  # why the period cannot be read, in words


class Aggregation(StrEnum):
    """How events become one number."""

    COUNT = "count"
    SUM = "sum"
    MAX = "max"
    LAST = "last"
    UNIQUE = "unique"


class Rounding(StrEnum):
    """What to do with a fraction where the platform bills whole units."""

    REJECT = "reject"
    UP = "up"
    DOWN = "down"
    HALF_UP = "half_up"
    HALF_EVEN = "half_even"


_DECIMAL_ROUNDING = {
    Rounding.UP: ROUND_UP,
    Rounding.DOWN: ROUND_DOWN,
    Rounding.HALF_UP: ROUND_HALF_UP,
    Rounding.HALF_EVEN: ROUND_HALF_EVEN,
}


def to_whole(value: Decimal, rounding: Rounding) -> int | None:
    """Round a finite value to whole units; None: it has a fraction and the rule is REJECT."""
    if value == value.to_integral_value():
        return int(value)
    mode = _DECIMAL_ROUNDING.get(rounding)
    return None if mode is None else int(value.to_integral_value(rounding=mode))


class Subject(StrEnum):
    """Which id of the charge the source keys its usage by."""

    SUBSCRIPTION = "subscription"
    ACCOUNT = "account"


class UnknownSubject(StrEnum):
    """What an unknown subject means for a component."""

    HOLD = "hold"
    ZERO = "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """How one priced component of a plan is counted."""

    name: str
    source: str
    metric: str
    aggregation: Aggregation = Aggregation.COUNT
    subject: Subject = Subject.SUBSCRIPTION
    rounding: Rounding = Rounding.REJECT
    unknown_subject: UnknownSubject = UnknownSubject.HOLD
    max_quantity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """One question to a usage source: how much of this, by whom, when."""

    charge_id: str
    subject: str
    component: str
    metric: str
    aggregation: Aggregation
    period: Period


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an outsider needs to ask a source the same question again."""

    source: str  # kind and place, without credentials
    query: str  # the text that was run
    parameters: dict[str, Any]  # JSON-ready; what was bound to it
    asked_at: datetime
    digest: str  # SHA-256 of the answer
    watermark: datetime | None = None  # up to when the source vouched it had everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A source's answer to one query.

    `value` is None exactly when the source does not know the subject: unknown is never zero.
    """

    query: UsageQuery
    value: Decimal | None
    events: int | None  # how many events made the value; None: the source cannot say
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTally:
    """A tally as it will be billed: written to the journal before the first platform write."""

    charge_id: str
    span: Span
    metric: str
    aggregation: Aggregation
    quantity: int  # what is written on the charge
    value: Decimal  # what was counted, before rounding
    rounding: Rounding
    events: int | None
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator decided once for all invoices; each field is a setting."""

    components: dict[str, Component]
    invoice_types: frozenset[str]
    grace: timedelta  # after a period's end, before it is counted
    issue_without_usage: bool
    not_found_grace: timedelta  # a notification can outrun the platform's API
    watermark_poll: timedelta  # between looks at a source that is behind
    watermark_deadline: timedelta  # after a period's end; a source still behind is a person's
    settle: timedelta  # a write without an answer counts as not applied only after this long
    retry_delays: tuple[timedelta, ...]  # after the 1st, 2nd, ... failure; the last repeats
    max_attempts: int  # failures in a row before the invoice is held
    lease: timedelta  # a worker silent for longer has lost the invoice
