"""The values of the trade, frozen, with their rules; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import ceil, floor
from typing import Any


def utc(moment: datetime) -> datetime:
    """Return the same instant in UTC; refuse a datetime without a zone."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


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
    # what the platform has in the metadata of the charge's owners, where a component asks for it
    metadata: Mapping[Owner, Mapping[str, str]] = field(default_factory=dict)

    def owner_id(self, owner: Owner) -> str:
        """Return the id of the subscription or account it bills; empty: not stated."""
        return self.subscription_id if owner is Owner.SUBSCRIPTION else self.account_id


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


def to_whole(value: Fraction, rounding: Rounding) -> int | None:
    """Round a value of at least 0 to whole units; None: it has a fraction, which REJECT refuses."""
    match rounding:
        case Rounding.UP:
            return ceil(value)
        case Rounding.DOWN:
            return floor(value)
        case Rounding.HALF_UP:
            return floor(value + Fraction(1, 2))
        case Rounding.HALF_EVEN:
            return round(value)
        case Rounding.REJECT:
            return int(value) if value.denominator == 1 else None


class Owner(StrEnum):
    """Whose id or metadata a source keys its usage by."""

    SUBSCRIPTION = "subscription"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a source keys its usage by: the id of a charge's owner, or a value of its metadata."""

    owner: Owner = Owner.SUBSCRIPTION
    metadata_key: str = ""  # empty: the owner's id

    @classmethod
    def of(cls, text: str) -> Subject:
        """Read "subscription", "account" or "account.metadata.KEY"; raise ValueError."""
        owner, dot, rest = text.partition(".")
        word, _, key = rest.partition(".")
        if owner not in list(Owner) or (dot and (word != "metadata" or not key)):
            allowed = '"subscription", "account", "subscription.metadata.KEY"'
            raise ValueError(f'must be {allowed} or "account.metadata.KEY"')
        return cls(Owner(owner), key)

    def __str__(self) -> str:
        return f"{self.owner}.metadata.{self.metadata_key}" if self.metadata_key else self.owner


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
    subject: Subject = field(default_factory=Subject)
    filters: tuple[tuple[str, str], ...] = ()  # a column of the source, and what it must be
    divide_by: Decimal = Decimal(1)  # units of the source in one that is billed
    rounding: Rounding = Rounding.REJECT
    unknown_subject: UnknownSubject = UnknownSubject.HOLD
    max_quantity: int | None = None
    grace: timedelta | None = None  # after a period's end; None: the rules' own

    def query(self, charge_id: str, subject: str, period: Period) -> UsageQuery:
        """Return the question that counts it."""
        return UsageQuery(
            charge_id=charge_id,
            subject=subject,
            component=self.name,
            metric=self.metric,
            aggregation=self.aggregation,
            period=period,
            filters=self.filters,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """One question to a usage source: how much of this, by whom, when."""

    charge_id: str
    subject: str
    component: str
    metric: str
    aggregation: Aggregation
    period: Period
    filters: tuple[tuple[str, str], ...] = ()  # count only where each column is equal to its value
    stored_until: datetime | None = None  # leave out what came in later, to repeat a count


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an outsider needs to ask a source the same question again."""

    source: str  # kind and place, without credentials
    query: str  # the text that was run
    parameters: dict[str, Any]  # JSON-ready; what was bound to it
    asked_at: datetime
    digest: str  # SHA-256 of the answer
    watermark: datetime | None = None  # up to when the source vouched it had everything
    stored_until: datetime | None = None  # what came in later is not in; None: cannot say
    notes: tuple[str, ...] = ()  # what else a reader must know of the answer, a sentence each

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked_at", utc(self.asked_at))
        for name in ("watermark", "stored_until"):
            moment = getattr(self, name)
            object.__setattr__(self, name, None if moment is None else utc(moment))


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
    source: str  # its name in the configuration
    metric: str
    aggregation: Aggregation
    filters: tuple[tuple[str, str], ...] = ()
    quantity: int  # what is written on the charge
    value: Decimal  # what was counted, before scaling and rounding
    divide_by: Decimal = Decimal(1)
    rounding: Rounding
    events: int | None
    evidence: Evidence
    program: str  # the version of this program that counted

    @property
    def query(self) -> UsageQuery:
        """The question it answers, to be asked again."""
        return UsageQuery(
            charge_id=self.charge_id,
            subject=self.span.subject,
            component=self.span.component,
            metric=self.metric,
            aggregation=self.aggregation,
            period=self.span.period,
            filters=self.filters,
            stored_until=self.evidence.stored_until,
        )


class Mode(StrEnum):
    """Whether this program may write on the platform."""

    WRITE = "write"
    OBSERVE = "observe"  # it counts and says what it would bill; nothing is written


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
    mode: Mode = Mode.WRITE
