"""The three things the core needs from outside, as contracts.

Every adapter of a port passes that port's contract suite; so does the fake in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from worker.domain import (
    Delivery,
    FrozenTally,
    Invoice,
    InvoiceKey,
    Owner,
    Span,
    Tally,
    UsageCharge,
    UsageQuery,
)
from worker.errors import Stopped
from worker.overviews import Cursor, Filter, Listed, Overview, Page, PreviousTally
from worker.record import (
    Act,
    BilledSpan,
    Broken,
    Claim,
    Entry,
    History,
    InvoiceRow,
    Outcome,
    Receipt,
    State,
)
from worker.writes import ChargeWrite, IssueWrite


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong in a platform's own settings, and how to mend it there."""

    told: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePlan:
    """What customers subscribe to, as the platform has it."""

    name: str
    usage_components: tuple[str, ...]  # what of it is billed by usage
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where the platform sends notifications to."""

    url: str  # without credentials
    faults: tuple[Fault, ...] = ()


@runtime_checkable
class ShowsSettings(Protocol):
    """A platform whose own settings can be looked at; one that cannot is only checked.

    Raises what a `BillingPlatform` raises; a token may lack the right to look.
    """

    def clock(self) -> datetime | None:
        """Return the platform's time as its last answer said; None: it said none."""

    def plans(self) -> Sequence[RatePlan]:
        """List the rate plans in use, with what keeps their usage from being billed."""

    def webhooks(self) -> Sequence[Webhook]:
        """List the webhooks in use, with what keeps their notifications from coming."""


class BillingPlatform(Protocol):
    """The system that owns invoices.

    Every method may raise TransientError (try later) or PermanentError (a person must look).
    """

    calls: int  # requests sent so far, for the record of what an invoice takes
    longest_call: timedelta  # how long one request may go on before it is given up

    def parse_delivery(self, body: bytes) -> Delivery:
        """Read a webhook body; raise DeliveryRejected, saying what is wrong with it."""

    def invoice(self, invoice_id: str) -> Invoice | None:
        """Fetch the current version of an invoice; None: the platform knows none by this id."""

    def usage_charges(self, invoice: Invoice) -> Sequence[UsageCharge]:
        """List every usage charge of the invoice, each once, whatever the page size."""

    def metadata(self, owner: Owner, owner_id: str) -> Mapping[str, str]:
        """Read what is kept with a subscription or an account; empty: nothing, or none such."""

    def recalculate(
        self, invoice: Invoice, quantities: Mapping[str, int], stopping: Callable[[], bool]
    ) -> Iterator[ChargeWrite]:
        """Write each charge's quantity (by charge id) and yield what became of every one.

        After the first failure, and once `stopping()`, no further write is sent, and the unsent
        ones are yielded with an error too (Stopped). Closing the iterator sends nothing more.
        """

    def preview(self, invoice: Invoice, quantities: Mapping[str, int]) -> Sequence[UsageCharge]:
        """Return these charges as they would be with these quantities; nothing is stored."""

    def issue(self, invoice: Invoice) -> IssueWrite:
        """Recalculate the invoice and move it out of pending, once: never repeated in here."""

    def pending_invoices(self, offset: int) -> Sequence[str]:
        """Return a page of the pending invoices' ids, oldest first; empty: there are no more."""

    def acknowledge_delivery(self, delivery_id: str) -> None:
        """Tell the platform that a notification arrived for good; sent once, never repeated."""

    def check(self) -> None:
        """Raise unless the platform answers and accepts our credentials."""


class UsageSource(Protocol):
    """A place usage is counted."""

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query over its exact half-open period, in any order.

        All usage charges of one invoice come in one call. A subject the source does not know
        gives a tally whose value is None. Raises SourceUnavailable (try later) or SourceInvalid
        (naming place, column and row); never answers 0 for what it does not know.
        """

    def watermark(self) -> datetime | None:
        """Return the moment up to which everything is in; None: the source cannot say."""

    def check(self) -> None:
        """Raise unless the source answers and is what its settings say."""


class Journal(Protocol):
    """The append-only record; each method is one transaction, durable when it returns.

    Raises JournalUnavailable when it cannot read or write. Methods that take a claim raise
    LeaseLost, and change nothing, when another worker holds the invoice by now.
    """

    def record_delivery(self, delivery: Delivery, at: datetime) -> Receipt:
        """Store a delivery and make its invoice due; a known id only counts one more time.

        The acknowledgement a new or a known one owes is stored with it.
        """

    def count_ignored(self, delivery: Delivery, at: datetime) -> None:
        """Count an event that asks for nothing, and store the acknowledgement it owes."""

    def ignored(self) -> Mapping[tuple[str, str], int]:
        """Return how often each (platform, event) that asks for nothing came."""

    def acks_owed(self, platform: str, limit: int = 1000) -> Sequence[str]:
        """Return the deliveries that are to be acknowledged, oldest first."""

    def acknowledged(self, platform: str, delivery_id: str) -> None:
        """Strike out an acknowledgement owed; not owed, nothing happens."""

    def wake(self, key: InvoiceKey, entry: Entry) -> None:
        """Make an invoice due at once, with all its attempts, whatever its state; know it anew."""

    def claim(
        self, key: InvoiceKey, owner: str, at: datetime, lease: timedelta, trace_id: str = ""
    ) -> Claim | None:
        """Take the invoice if it is due or held, and unclaimed; otherwise None.

        A claim that its worker did not settle has spent an attempt. The entry keeps the id that
        is on the log lines of the run.
        """

    def append(self, claim: Claim, entries: Sequence[Entry], lease_until: datetime) -> None:
        """Add entries and prolong the lease."""

    def freeze(
        self,
        claim: Claim,
        entries: Sequence[Entry],
        tallies: Sequence[FrozenTally],
        at: datetime,
    ) -> Sequence[BilledSpan]:
        """Add the entries and one that carries the tallies, unless an overlapping span is billed.

        Returns those spans of other invoices; when there is any, nothing was stored.
        """

    def discard_tallies(self, key: InvoiceKey, entry: Entry) -> bool:
        """Give up frozen tallies for a recount.

        False, and nothing changed: a write was begun, it is issued or closed (what was frozen
        stays billed), a worker is at it, or it is not known.
        """

    def park(self, key: InvoiceKey, entry: Entry) -> bool:
        """Hold an invoice back until it is released: nothing makes it due, nobody can claim it.

        False, and nothing changed: it is issued, skipped or closed, a worker is at it, or unknown.
        """

    def release(self, key: InvoiceKey, entry: Entry) -> bool:
        """Make a parked or held invoice due at once; False, and nothing changed: it is neither."""

    def note(self, key: InvoiceKey, entry: Entry) -> bool:
        """Add an entry to what is known of an invoice, and change nothing else; False: unknown."""

    def pause(self, act: Act) -> None:
        """Let nobody claim an invoice of the act's platform ("": any) until it is resumed."""

    def resume(self, act: Act) -> bool:
        """Undo a pause; False: there was none."""

    def paused(self) -> Mapping[str, Act]:
        """Return which platforms ("": all) are paused, and by whose act."""

    def record_act(self, act: Act) -> None:
        """Keep what a person did that changes no platform's pause."""

    def acts(self, limit: int = 1000) -> Sequence[Act]:
        """Return what people did to no single invoice, newest first."""

    def take_notice(self, channel: str, cause: str, at: datetime, every: timedelta) -> bool:
        """Take the right to tell a channel of a cause now, before it is told.

        False: it was taken less than `every` ago. Of two that ask at once, one gets it.
        """

    def give_back_notice(self, channel: str, cause: str, at: datetime, as_if: datetime) -> None:
        """Nobody could be told of what was taken at this moment: let it be as if taken earlier."""

    def close_by_hand(self, key: InvoiceKey, entry: Entry) -> bool:
        """Record that a person settled the invoice, with the entry's reason; nothing is due.

        What was frozen stays billed. False, and nothing changed: a worker is at it, or not known.
        """

    def settle(self, claim: Claim, entries: Sequence[Entry], outcome: Outcome) -> None:
        """Add entries, store how the run left the invoice, and give up the claim.

        A notification that came during the run keeps the invoice due.
        """

    def billed(self, key: InvoiceKey, spans: Sequence[Span]) -> Sequence[BilledSpan]:
        """Return what other invoices, issued or begun but not skipped, bill of these spans."""

    def history(self, key: InvoiceKey) -> History | None:
        """Return everything known of one invoice."""

    def invoices(self, states: Sequence[State] = (), limit: int = 1000) -> Sequence[InvoiceRow]:
        """Return the invoices in these states (none given: all), oldest first."""

    def search(self, wanted: Filter, limit: int = 50, after: Cursor | None = None) -> Page:
        """Return a page of the invoices that a filter lets through, oldest or newest first.

        `after` is the page before's. Each invoice comes once, whatever is added meanwhile.
        """

    def listed(self, wanted: Filter, limit: int, after: Cursor | None = None) -> Sequence[Listed]:
        """Return a page as `search` does, but count nothing: to go through all, page by page.

        `after` is the last one's cursor. Fewer than the limit: these are the last.
        """

    def overview(self, now: datetime) -> Overview:
        """Return how the work on all invoices stands."""

    def previous_tallies(
        self, key: InvoiceKey, span: Span, count: int = 3
    ) -> Sequence[PreviousTally]:
        """Return what other invoices, issued or closed, billed of the same subject and component.

        Only of periods that began before the span's; the newest first, at most `count`.
        """

    def due(self, at: datetime, limit: int = 1000) -> Sequence[InvoiceKey]:
        """Return unclaimed invoices whose time has come, longest overdue first."""

    def known(self, keys: Collection[InvoiceKey]) -> Set[InvoiceKey]:
        """Return those of some invoices that the journal knows."""

    def keys(self) -> Iterator[InvoiceKey]:
        """Name every invoice of which anything is stored, to verify each in turn."""

    def verify(self, key: InvoiceKey) -> Broken | None:
        """Recompute all that proves the invoice's record whole; return the first fault."""

    def check(self) -> None:
        """Raise unless the journal can be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a run needs from outside; time and randomness too."""

    platform: BillingPlatform
    sources: Mapping[str, UsageSource]
    journal: Journal
    now: Callable[[], datetime]
    random: Callable[[], float]  # in [0, 1)
    stopping: Callable[[], bool]  # True: this worker was asked to end
    tell_attempt: Callable[[int], object] = lambda _: None  # hears how often it failed in a row

    def go_on(self) -> None:
        """Raise Stopped between two steps when this worker was asked to end."""
        if self.stopping():
            raise Stopped("the worker was asked to end")
