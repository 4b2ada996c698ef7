"""Recalculating charges and invoices: the writes that a client makes, and their rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from sandbox.entities import INVOICE_STATES, ISSUED_STATES, Charge, Invoice
from sandbox.moments import text_of
from sandbox.notifications import notify
from sandbox.pricing import PricingError
from sandbox.rules import CHARGE_BEHAVIOURS, INVOICE_BEHAVIOURS, Field, checked
from sandbox.wire import Json, Ready, RefusedError, invalid
from sandbox.world import World, cost_of, in_state

_CHARGE_CHANGE = {
    "name": Field("text"),
    "description": Field("text"),
    "amount": Field("amount"),
    "invoicingType": Field("text", enum=("Immediate", "Aggregated")),
    "pricingComponentValue": Field("quantity"),
    "recalculationBehaviour": Field("text", required=True, enum=CHARGE_BEHAVIOURS),
}
CHARGE_REQUEST = {**_CHARGE_CHANGE, "created": Field("moment"), "dryRun": Field("boolean")}
BATCH_ITEM = {**_CHARGE_CHANGE, "id": Field("text", required=True), "organizationID": Field("text")}
BATCH_REQUEST = {
    "charges": Field("list", required=True),
    "organizationID": Field("text"),
    "dryRun": Field("boolean"),
    "recalculateInvoices": Field("boolean", required=True),
    "invoiceState": Field("text", enum=INVOICE_STATES),
}
INVOICE_REQUEST = {
    "created": Field("moment"),
    "recalculationBehaviour": Field("text", required=True, enum=INVOICE_BEHAVIOURS),
    "newState": Field("text", required=True, enum=INVOICE_STATES),
    "onlyInvoiceAssociatedCharges": Field("boolean", required=True),
    "dryRun": Field("boolean", required=True),
}


@dataclass(frozen=True, slots=True)
class _Turn:
    """An invoice as it would be after its recalculation, with its charges."""

    before: Invoice
    after: Invoice
    charges: Sequence[Charge]


def recalculate_charge(world: World, charge_id: str, body: Json) -> list[Ready]:
    """Reprice one charge to a new version under its id and return it; a dry run stores nothing."""
    change = checked(body, CHARGE_REQUEST)
    dry_run = change.get("dryRun", False)
    charge = world.charge(charge_id)
    _refuse_write(world, charge, change, dry_run=dry_run)
    new = _repriced(world, charge, change)
    if not dry_run:
        _store_charge(world, new)
    return [world.shown_charge(new)]


def recalculate_invoice(world: World, invoice_id: str, body: Json) -> list[Json]:
    """Sum the invoice's charges into a new version and move it to newState; return it."""
    change = checked(body, INVOICE_REQUEST)
    dry_run = change["dryRun"]
    invoice = world.invoice(invoice_id)
    if not change["onlyInvoiceAssociatedCharges"]:
        raise invalid("the sandbox associates no foreign charges", "onlyInvoiceAssociatedCharges")
    _refuse_turn(world, invoice, change["newState"], dry_run=dry_run)
    turn = _turned(world, invoice, world.charges_of(invoice), change["newState"])
    if not dry_run:
        _store_turn(world, turn)
    return [_shown(world, turn)]


def recalculate_batch(world: World, body: Json) -> list[Json]:
    """Reprice several charges and, if asked, recalculate their invoices into invoiceState."""
    change = checked(body, BATCH_REQUEST)
    dry_run, state = change.get("dryRun", False), change.get("invoiceState")
    if change["recalculateInvoices"] and state is None:
        raise invalid("invoiceState is required with recalculateInvoices", "invoiceState")
    items = [checked(item, BATCH_ITEM) for item in _objects(change["charges"])]
    if len({item["id"] for item in items}) != len(items):
        raise invalid("a charge occurs twice", "charges")
    charges = _batch_charges(world, items, dry_run=dry_run)
    turns = _batch_turns(world, charges, state, dry_run=dry_run) if state else []
    if not dry_run:
        for charge in charges if world.settings.batch_is_atomic else ():
            _store_charge(world, charge)
        for turn in turns:
            _store_turn(world, turn)
    return [
        {
            "charges": [world.shown_charge(charge) for charge in charges],
            "recalculatedInvoices": [_shown(world, turn) for turn in turns],
            "organizationID": world.renderer.organization_id,
            "recalculateInvoices": change["recalculateInvoices"],
        }
    ]


def enter_state(world: World, invoice: Invoice, state: str) -> Invoice:
    """Return *invoice* in *state*, stamped issued or paid; its charges follow when it is stored."""
    now = world.clock.now()
    issued = invoice.issued if state == "Voided" else None
    if state in ISSUED_STATES:
        issued = invoice.issued or now
    paid = (invoice.paid or now) if state == "Paid" else None
    version = replace(invoice.version, updated=now)
    return replace(invoice, state=state, issued=issued, paid=paid, version=version)


def store_invoice(world: World, invoice: Invoice) -> None:
    """Store *invoice*, let its charges follow its state, and let its payment come due."""
    for charge in world.charges_of(invoice):
        world.put_charge(in_state(charge, invoice.state))
    world.put_invoice(invoice)
    if invoice.state == "Unpaid":
        world.pay_later(invoice)


def _batch_charges(world: World, items: Sequence[Json], *, dry_run: bool) -> list[Charge]:
    # Atomic: nothing is stored until every item has passed. Otherwise each is stored as it passes.
    charges = []
    for item in items:
        charge = world.charge(item["id"])
        _refuse_write(world, charge, item, dry_run=dry_run)
        charges.append(_repriced(world, charge, item))
        if not dry_run and not world.settings.batch_is_atomic:
            _store_charge(world, charges[-1])
    return charges


def _batch_turns(
    world: World, charges: Sequence[Charge], state: str, *, dry_run: bool
) -> list[_Turn]:
    repriced = {charge.id: charge for charge in charges}
    turns = []
    for invoice_id in dict.fromkeys(charge.invoice_id for charge in charges):
        invoice = world.invoice(invoice_id)
        _refuse_turn(world, invoice, state, dry_run=dry_run)
        all_charges = [repriced.get(one.id, one) for one in world.charges_of(invoice)]
        turns.append(_turned(world, invoice, all_charges, state))
    return turns


def _repriced(world: World, charge: Charge, change: Json) -> Charge:
    quantity, amount = change.get("pricingComponentValue"), change.get("amount")
    if charge.price is None:
        if quantity is not None:
            raise invalid("the charge has no component to count", "pricingComponentValue")
        price = charge.amount if amount is None else Decimal(amount)
    else:
        if amount is not None:
            raise invalid("the amount follows from the charge's component", "amount")
        quantity = charge.quantity if quantity is None else quantity
        try:
            price = charge.price.amount(quantity or 0, strict=world.settings.strict_quantities)
        except PricingError as error:
            raise invalid(str(error), "pricingComponentValue") from error
    return replace(
        charge,
        version=world.next_version(charge.id, charge.version),
        name=change.get("name", charge.name),
        description=change.get("description", charge.description),
        quantity=quantity,
        amount=price,
    )


def _turned(world: World, invoice: Invoice, charges: Sequence[Charge], state: str) -> _Turn:
    version = world.next_version(invoice.id, invoice.version)
    after = enter_state(world, replace(invoice, version=version), state)
    after = replace(after, cost=cost_of(list(charges)))
    return _Turn(invoice, after, [in_state(charge, state) for charge in charges])


def _shown(world: World, turn: _Turn) -> Json:
    return world.renderer.invoice(turn.after, turn.charges, world.plan(turn.after.plan_id))


def _store_charge(world: World, charge: Charge) -> None:
    world.put_charge(charge)
    invoice = world.invoice(charge.invoice_id)
    if world.settings.charge_recalculation_bumps_invoice:
        invoice = replace(invoice, version=world.next_version(invoice.id, invoice.version))
    if world.settings.cost_follows_charges:
        invoice = replace(invoice, cost=cost_of(world.charges_of(invoice)))
    world.put_invoice(invoice)


def _store_turn(world: World, turn: _Turn) -> None:
    # The version may have moved since the turn was planned, where charges bump their invoice.
    current = world.invoice(turn.after.id).version.number
    version = replace(turn.after.version, number=max(current + 1, turn.after.version.number))
    after = replace(turn.after, version=version)
    store_invoice(world, after)
    if after.state in ISSUED_STATES and turn.before.state == "Pending":
        world.record.issues[after.id] += 1
    if world.settings.notify_on_recalculation:
        notify(world, after, after.state, turn.before)


def _refuse_write(world: World, charge: Charge, change: Json, *, dry_run: bool) -> None:
    invoice = world.invoice(charge.invoice_id)
    if invoice.state == "Voided":
        raise _conflict(world, invoice, dry_run=dry_run)
    if invoice.state in ISSUED_STATES:
        if not dry_run:
            world.record.writes_after_issue.append(
                {
                    "at": text_of(world.clock.now()),
                    "chargeID": charge.id,
                    "invoiceID": invoice.id,
                    "state": invoice.state,
                    "pricingComponentValue": change.get("pricingComponentValue"),
                }
            )
        raise _too_late(invoice)


def _refuse_turn(world: World, invoice: Invoice, state: str, *, dry_run: bool) -> None:
    before = world.record.issues.get(invoice.id, 0) > 0 and not world.settings.reissue_allowed
    if state in ISSUED_STATES and (invoice.state in ISSUED_STATES or before):
        if not dry_run:
            world.record.second_issues.append(
                {
                    "at": text_of(world.clock.now()),
                    "invoiceID": invoice.id,
                    "state": invoice.state,
                    "newState": state,
                }
            )
        raise _too_late(invoice)
    if invoice.state in ("Paid", "Voided"):
        raise _conflict(world, invoice, dry_run=dry_run)


def _too_late(invoice: Invoice) -> RefusedError:
    message = f"invoice {invoice.id} has been issued and is {invoice.state}"
    return RefusedError(412, "PreconditionFailed", message, violation=False)


def _conflict(world: World, invoice: Invoice, *, dry_run: bool) -> RefusedError:
    counts = world.settings.record_state_conflicts and not dry_run
    message = f"invoice {invoice.id} is {invoice.state} and cannot be recalculated"
    return RefusedError(409, "InconsistentState", message, violation=counts)


def _objects(items: list[object]) -> list[Json]:
    found = [item for item in items if isinstance(item, dict)]
    if len(found) != len(items):
        raise invalid("charges must hold objects", "charges")
    return found
