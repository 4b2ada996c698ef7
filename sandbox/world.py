"""Everything one sandbox knows at a moment; the other modules read and change it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from sandbox.entities import Account, Charge, Invoice, Plan, Subscription, Version
from sandbox.faults import FaultRules
from sandbox.moments import Duration, SandboxClock, new_id
from sandbox.outbox import Outbox
from sandbox.record import Record
from sandbox.rendering import Renderer
from sandbox.settings import Settings
from sandbox.wire import Json, Ready

T = TypeVar("T")
Versioned = TypeVar("Versioned", Invoice, Charge)


class NotFoundError(LookupError):
    """No entity has this id."""

    def __init__(self, what: str, entity_id: str) -> None:
        super().__init__(f"no {what} has the id {entity_id}")


@dataclass(slots=True, order=True)
class _Later:
    due: float
    order: int
    action: Callable[[], None]


class World:
    """One organisation's entities, clock, faults and record; used under its owner's lock only.

    `real_seconds` is a monotonic clock in seconds: late commits and notifications follow it,
    payments follow the sandbox's own clock.
    """

    def __init__(
        self, settings: Settings, clock: SandboxClock, real_seconds: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.real_seconds = real_seconds
        self.record = Record()
        self.faults = FaultRules()
        self.outbox = Outbox(real_seconds)
        self.renderer = Renderer(new_id("ORG"))
        self.invoices: dict[str, tuple[Invoice, ...]] = {}
        self.charges: dict[str, tuple[Charge, ...]] = {}
        self.plans: dict[str, Plan] = {}
        self.accounts: dict[str, Account] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.stub_plan = self._made_stub_plan()
        self._invoice_numbers = itertools.count(1)
        self._order = itertools.count()
        self._commits: list[_Later] = []
        self._payments: list[tuple[datetime, int, str]] = []

    def _made_stub_plan(self) -> Plan:
        plan = Plan(
            id=new_id("PRP"),
            version_id=new_id("PRP"),
            name="Sandbox plan",
            product_id=new_id("PRO"),
            product_name="Sandbox product",
            currency="USD",
            duration=Duration(1, "months"),
            issue_type="Manual",
            created=self.clock.now(),
        )
        self.plans[plan.id] = plan
        return plan

    def next_invoice_number(self) -> int:
        """Return 1, 2, 3, ..."""
        return next(self._invoice_numbers)

    def first_version(self, entity_id: str, number: int = 1) -> Version:
        """Return the version of an entity made now."""
        now = self.clock.now()
        version_id = entity_id if number == 1 else new_id(entity_id.partition("-")[0])
        return Version(id=version_id, number=number, created=now, updated=now)

    def next_version(self, entity_id: str, version: Version) -> Version:
        """Return the version after *version*, made now."""
        return Version(
            id=new_id(entity_id.partition("-")[0]),
            number=version.number + 1,
            created=version.created,
            updated=self.clock.now(),
        )

    def invoice(self, invoice_id: str) -> Invoice:
        """Return the current version, or raise NotFoundError."""
        return _found(self.invoices, "invoice", invoice_id)[-1]

    def charge(self, charge_id: str) -> Charge:
        """Return the current version, or raise NotFoundError."""
        return _found(self.charges, "charge", charge_id)[-1]

    def subscription(self, subscription_id: str) -> Subscription:
        """Return the subscription, or raise NotFoundError."""
        return _found(self.subscriptions, "subscription", subscription_id)

    def account(self, account_id: str) -> Account:
        """Return the account, or raise NotFoundError."""
        return _found(self.accounts, "account", account_id)

    def plan(self, plan_id: str) -> Plan:
        """Return the rate plan, or raise NotFoundError."""
        return _found(self.plans, "rate plan", plan_id)

    def charges_of(self, invoice: Invoice) -> list[Charge]:
        """Return the invoice's charges in their current version, as they were made."""
        return [self.charges[charge_id][-1] for charge_id in invoice.charge_ids]

    def put_invoice(self, invoice: Invoice) -> Invoice:
        """Store *invoice*: as a new version if its version id is new, else in place."""
        self.invoices[invoice.id] = _stored(self.invoices.get(invoice.id, ()), invoice)
        return invoice

    def put_charge(self, charge: Charge) -> Charge:
        """Store *charge*: as a new version if its version id is new, else in place."""
        self.charges[charge.id] = _stored(self.charges.get(charge.id, ()), charge)
        return charge

    def shown_invoice(self, invoice: Invoice) -> Json:
        """Return the invoice as wire JSON, with its charges."""
        return self.renderer.invoice(invoice, self.charges_of(invoice), self.plan(invoice.plan_id))

    def shown_charge(self, charge: Charge) -> Ready:
        """Return the charge as wire JSON."""
        return self.renderer.charge(charge, self.plan(charge.plan_id))

    def commit_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Run *action* once, when *seconds* of real time have passed."""
        due = self.real_seconds() + seconds
        heapq.heappush(self._commits, _Later(due, next(self._order), action))

    def pay_later(self, invoice: Invoice) -> None:
        """Let the invoice be paid after `pay_after_seconds` of sandbox time, if that is set."""
        if self.settings.pay_after_seconds is not None:
            due = self.clock.now() + timedelta(seconds=self.settings.pay_after_seconds)
            heapq.heappush(self._payments, (due, next(self._order), invoice.id))

    def due_commits(self) -> list[Callable[[], None]]:
        """Take out the late commits whose time has come, oldest first."""
        found = []
        while self._commits and self._commits[0].due <= self.real_seconds():
            found.append(heapq.heappop(self._commits).action)
        return found

    def due_payments(self) -> list[str]:
        """Take out the ids of the invoices to be paid by now."""
        found = []
        while self._payments and self._payments[0][0] <= self.clock.now():
            found.append(heapq.heappop(self._payments)[2])
        return found

    def seconds_to_next(self) -> float | None:
        """Return how long nothing is due (at most a second where time may be set); None: ever."""
        waits = [later.due - self.real_seconds() for later in self._commits[:1]]
        if self._payments:
            waits.append(min(1.0, (self._payments[0][0] - self.clock.now()).total_seconds()))
        waits.extend(self.outbox.seconds_to_next(self.settings))
        return max(0.0, min(waits)) if waits else None


def cost_of(charges: list[Charge]) -> Decimal:
    """Return the sum of all charges that are not voided."""
    amounts = (charge.amount for charge in charges if charge.state != "Voided")
    return sum(amounts, Decimal("0.00"))


def in_state(charge: Charge, invoice_state: str) -> Charge:
    """Return *charge* as it stands once its invoice is in *invoice_state*."""
    states = {"Unpaid": "AwaitingPayment"}
    if charge.state in ("Voided", "Failed"):
        return charge
    return replace(charge, state=states.get(invoice_state, invoice_state))


def _found(entities: dict[str, T], what: str, entity_id: str) -> T:
    try:
        return entities[entity_id]
    except KeyError:
        raise NotFoundError(what, entity_id) from None


def _stored(versions: tuple[Versioned, ...], entity: Versioned) -> tuple[Versioned, ...]:
    same = bool(versions) and versions[-1].version.id == entity.version.id
    return versions[: len(versions) - same] + (entity,)  # noqa: RUF005 - mypy cannot type the stars
