"""What must hold after every seed, read from the sandbox and the journal."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from proof.plan import Plan, PlannedInvoice
from proof.world import World, delivery_id, key_of
from sandbox.client import RecordView
from worker.ports import Journal
from worker.record import History, State

ISSUED = ("Unpaid", "Paid")


def problems(
    world: World, plan: Plan, journal: Journal, record: RecordView, answered: Collection[int]
) -> list[str]:
    """Return everything that is not as promised, each as `lost`, `doubled` or `wrong`.

    `answered` are the numbers of the invoices whose notification was answered with 200.
    """
    found = [f"doubled: {one}" for one in record.second_issues]
    found += [f"wrong: written after issue: {one}" for one in record.writes_after_issue]
    found += [f"wrong: a rule of the platform was broken: {one}" for one in record.violations]
    for invoice in plan.invoices:
        found += _of_invoice(world, plan, journal, invoice)
        if invoice.number in answered:
            found += _of_notification(plan, invoice, journal.history(key_of(plan, invoice)))
        times = record.issues.get(key_of(plan, invoice).invoice_id, 0)
        if times > 1:
            found.append(f"doubled: {key_of(plan, invoice)} was issued {times} times")
    found += [f"wrong: {broken}" for broken in map(journal.verify, journal.keys()) if broken]
    return found


def _of_invoice(
    world: World, plan: Plan, journal: Journal, invoice: PlannedInvoice
) -> Iterator[str]:
    key = key_of(plan, invoice)
    history = journal.history(key)
    if history is None:
        yield f"lost: {key} is not in the journal"
        return
    row = history.row
    there = world.sandbox.control.invoice(key.invoice_id)
    issued = there["state"] in ISSUED
    expected = _expected(invoice)
    if row.state is not expected:
        yield f"lost: {key} is {row.state} ({row.reason}), expected {expected}"
    if issued != (expected is State.ISSUED):
        yield f"wrong: {key} is {there['state']} on the platform, {row.state} in the journal"
    if row.lease_owner is not None or not row.reason:
        yield f"lost: {key} has no outcome"
    written = {
        charge["pricingComponentName"]: charge["pricingComponentValue"]
        for charge in there["charges"]
    }
    counted = world.counted(invoice) if expected is State.ISSUED else dict.fromkeys(written, 0)
    if written != counted:
        yield f"wrong: {key} bills {written}, counted {counted}"
    frozen = {tally.span.component: tally.quantity for tally in history.tallies}
    if expected is State.ISSUED and frozen != counted:
        yield f"wrong: {key} has tallies {frozen} in the journal, counted {counted}"


def _of_notification(plan: Plan, invoice: PlannedInvoice, history: History | None) -> Iterator[str]:
    name = delivery_id(plan, invoice)
    if history is None or name not in {delivery.id for delivery in history.deliveries}:
        yield f"lost: notification {name} was answered 200, and the journal does not know it"


def _expected(invoice: PlannedInvoice) -> State:
    if invoice.kind == "Trial" or invoice.version != 1:
        return State.SKIPPED
    return State.ISSUED if invoice.mapped else State.HELD
