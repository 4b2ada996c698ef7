"""Stand-ins at the ports, each readable in a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

import builders

from worker.domain import Delivery, Invoice, InvoiceState, Owner, Tally, UsageCharge, UsageQuery
from worker.errors import OutcomeUnknown, ReconcilerError, Stopped
from worker.writes import ChargeWrite, Exchange, IssueWrite


@dataclass
class FakeClock:
    """A clock that moves only when told."""

    now: datetime = builders.NOW

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now

    def advance(self, **by: float) -> None:
        """Let time pass."""
        self.now += timedelta(**by)


@dataclass
class FakePlatform:
    """One invoice on a platform that prices a unit at 0.01, and fails on request.

    `failures` maps a step ("invoice", "charges", "write CHG-1", "issue") to the errors its next
    calls end in. `lost_answers` names the steps that are carried out before they fail.
    """

    invoices: dict[str, Invoice] = field(default_factory=lambda: {builders.INV: builders.invoice()})
    charges: dict[str, UsageCharge] = field(default_factory=lambda: {"CHG-1": builders.charge()})
    failures: dict[str, list[ReconcilerError]] = field(default_factory=dict)
    lost_answers: set[str] = field(default_factory=set)
    steps: list[str] = field(default_factory=list)
    calls: int = 0
    kept: dict[tuple[Owner, str], dict[str, str]] = field(default_factory=dict)
    longest_call: timedelta = timedelta(seconds=35)
    issues: int = 0

    def parse_delivery(self, body: bytes) -> Delivery:
        """Not asked in these tests."""
        raise NotImplementedError

    def invoice(self, invoice_id: str) -> Invoice | None:
        """Return the invoice as it is now."""
        self._step("invoice")
        return self.invoices.get(invoice_id)

    def usage_charges(self, invoice: Invoice) -> Sequence[UsageCharge]:
        """Return the charges as they are now."""
        self._step("charges")
        return list(self.charges.values())

    def metadata(self, owner: Owner, owner_id: str) -> Mapping[str, str]:
        """Say what is kept with an owner."""
        self._step(f"metadata {owner_id}")
        return self.kept.get((owner, owner_id), {})

    def recalculate(
        self, invoice: Invoice, quantities: Mapping[str, int], stopping: Callable[[], bool]
    ) -> Iterator[ChargeWrite]:
        """Write one charge after the other."""
        failed: ReconcilerError | None = None
        for charge_id, quantity in quantities.items():
            if failed is None and stopping():
                failed = Stopped("not sent")
            exchange = None
            if failed is None:
                failed = self._written(charge_id, quantity)
                exchange = _exchange(f"POST /charges/{charge_id} {quantity}", failed)
            charge = None if failed else self.charges[charge_id]
            yield ChargeWrite(charge_id=charge_id, charge=charge, error=failed, exchange=exchange)

    def preview(self, invoice: Invoice, quantities: Mapping[str, int]) -> Sequence[UsageCharge]:
        """Say what the charges would cost."""
        self._step("preview")
        return [
            replace(self.charges[one], quantity=Decimal(n), amount=Decimal(n) / 100)
            for one, n in quantities.items()
        ]

    def issue(self, invoice: Invoice) -> IssueWrite:
        """Move the invoice out of pending."""
        failure = self._failure("issue")
        exchange = _exchange(f"POST /invoices/{invoice.id}/issue", failure)
        if failure is None or "issue" in self.lost_answers:
            self.issues += 1
            total = invoice.total + sum((c.amount for c in self.charges.values()), Decimal(0))
            self.invoices[invoice.id] = replace(
                builders.invoice(state=InvoiceState.UNPAID), id=invoice.id, total=total, version=2
            )
        issued = self.invoices[invoice.id] if failure is None else None
        return IssueWrite(invoice=issued, error=failure, exchange=exchange)

    def pending_invoices(self, offset: int) -> Sequence[str]:
        """Return the pending invoices, two a page."""
        self._step("pending")
        pending = [i.id for i in self.invoices.values() if i.state is InvoiceState.PENDING]
        return pending[offset : offset + 2]

    def acknowledge_delivery(self, delivery_id: str) -> None:
        """Take note of it."""
        self._step(f"ack {delivery_id}")

    def check(self) -> None:
        """Answer."""

    def _written(self, charge_id: str, quantity: int) -> ReconcilerError | None:
        step = f"write {charge_id}"
        failure = self._failure(step)
        if failure is None or step in self.lost_answers:
            before = self.charges[charge_id]
            amount = Decimal(quantity) / 100
            self.charges[charge_id] = replace(
                before, quantity=Decimal(quantity), amount=amount, version=before.version + 1
            )
        return failure

    def _step(self, step: str) -> None:
        if failure := self._failure(step):
            raise failure

    def _failure(self, step: str) -> ReconcilerError | None:
        self.calls += 1
        self.steps.append(step)
        waiting = self.failures.get(step, [])
        return waiting.pop(0) if waiting else None


def _exchange(request: str, failed: ReconcilerError | None) -> Exchange:
    return Exchange(request, "200 written" if failed is None else str(failed))


def lost(step: str) -> OutcomeUnknown:
    """Make the error of an answer that never came."""
    return OutcomeUnknown(f"{step}: no answer in time")


@dataclass
class FakeSource:
    """A source that knows one number for each metric, or raises."""

    values: dict[str, Decimal | int | None] = field(default_factory=lambda: {"text_message": 105})
    failures: list[Exception] = field(default_factory=list)
    has_up_to: datetime | None = None
    asked: list[tuple[UsageQuery, ...]] = field(default_factory=list)

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query whose metric is known."""
        self.asked.append(tuple(queries))
        if self.failures:
            raise self.failures.pop(0)
        return [
            replace(builders.tally(self.values[query.metric]), query=query)
            for query in queries
            if query.metric in self.values
        ]

    def watermark(self) -> datetime | None:
        """Say up to when everything is in."""
        return self.has_up_to

    def check(self) -> None:
        """Answer."""
