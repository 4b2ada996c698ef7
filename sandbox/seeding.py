"""Invoices put in directly, in any state, and changed behind the client's back."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from sandbox.entities import (
    CHARGE_STATES,
    INVOICE_STATES,
    Account,
    Charge,
    Invoice,
    Subscription,
    Version,
)
from sandbox.moments import new_id, new_uuid
from sandbox.notifications import notify
from sandbox.plans import price_of
from sandbox.recalculation import enter_state, store_invoice
from sandbox.rules import Field, checked
from sandbox.wire import Json, Ready, invalid
from sandbox.world import World, cost_of

_INVOICE = {
    "id": Field("text"),
    "type": Field("text"),
    "state": Field("text", enum=INVOICE_STATES),
    "versionNumber": Field("quantity"),
    "subscriptionID": Field("text"),
    "accountID": Field("text"),
    "currency": Field("text"),
    "periodStart": Field("text"),
    "periodEnd": Field("text"),
    "initialInvoice": Field("boolean"),
    "charges": Field("anything"),
    "notify": Field("boolean"),
    "extra": Field("object"),
}
_CHARGE = {
    "id": Field("text"),
    "name": Field("text", required=True),
    "description": Field("text"),
    "pricingComponentName": Field("text"),
    "pricingComponentID": Field("text"),
    "pricingComponentType": Field("text"),
    "pricingComponentValue": Field("quantity"),
    "unitOfMeasureName": Field("text"),
    "periodStart": Field("text"),
    "periodEnd": Field("text"),
    "price": Field("object"),
    "amount": Field("amount"),
    "state": Field("text", enum=CHARGE_STATES),
    "extra": Field("object"),
}
_INVOICE_PATCH = {
    "state": Field("text", enum=INVOICE_STATES),
    "versionNumber": Field("quantity"),
    "notify": Field("boolean"),
    "extra": Field("object"),
}
_CHARGE_PATCH = {
    "state": Field("text", enum=CHARGE_STATES),
    "versionNumber": Field("quantity"),
    "pricingComponentValue": Field("quantity"),
    "extra": Field("object"),
}


def put_invoice(world: World, body: Json) -> Json:
    """Store an invoice with its charges as told, notify it if asked, and return it."""
    checked(body, _INVOICE)
    invoice_id = body.get("id") or new_id("INV")
    if invoice_id in world.invoices:
        raise invalid(f"there is already an invoice {invoice_id}", "id")
    subscription = _subscription(world, body)
    invoice = Invoice(
        id=invoice_id,
        version=world.first_version(invoice_id, body.get("versionNumber", 1)),
        subscription_id=subscription.id,
        account_id=subscription.account_id,
        plan_id=subscription.plan_id,
        name=subscription.name,
        kind=body.get("type", "Subscription"),
        state="Pending",
        currency=body.get("currency", "USD"),
        period_start=body.get("periodStart"),
        period_end=body.get("periodEnd"),
        initial=body.get("initialInvoice", False),
        number=world.next_invoice_number(),
        extra=body.get("extra", {}),
    )
    charges = [_charge(world, invoice, charge) for charge in _list(body.get("charges", []))]
    if len({charge.id for charge in charges} - set(world.charges)) != len(charges):
        raise invalid("a charge id is taken or occurs twice", "charges")
    for charge in charges:
        world.put_charge(charge)
    ids = tuple(charge.id for charge in charges)
    invoice = replace(invoice, charge_ids=ids, cost=cost_of(charges))
    _enter(world, invoice, body.get("state", "Pending"), loud=body.get("notify", False))
    return world.shown_invoice(world.invoice(invoice_id))


def patch_invoice(world: World, invoice_id: str, body: Json) -> Json:
    """Set an invoice's state, versionNumber or extra keys, as a colleague might; return it."""
    checked(body, _INVOICE_PATCH)
    invoice = world.invoice(invoice_id)
    if "versionNumber" in body:
        invoice = replace(invoice, version=_numbered(world, invoice, body["versionNumber"]))
    if "extra" in body:
        invoice = replace(invoice, extra=body["extra"])
    loud = body.get("notify", False)
    if "state" in body:
        _enter(world, invoice, body["state"], loud=loud)
    else:
        world.put_invoice(invoice)
    return world.shown_invoice(world.invoice(invoice_id))


def patch_charge(world: World, charge_id: str, body: Json) -> Ready:
    """Set a charge's state, versionNumber, value (with its price) or extra keys; return it."""
    checked(body, _CHARGE_PATCH)
    charge = world.charge(charge_id)
    if "versionNumber" in body:
        charge = replace(charge, version=_numbered(world, charge, body["versionNumber"]))
    if "pricingComponentValue" in body:
        quantity = body["pricingComponentValue"]
        amount = charge.amount if charge.price is None else charge.price.amount(quantity)
        charge = replace(charge, quantity=quantity, amount=amount)
    state, extra = body.get("state", charge.state), body.get("extra", charge.extra)
    return world.shown_charge(world.put_charge(replace(charge, state=state, extra=extra)))


def _enter(world: World, invoice: Invoice, state: str, *, loud: bool) -> None:
    before = world.invoices.get(invoice.id, (None,))[-1]
    invoice = enter_state(world, invoice, state)
    store_invoice(world, invoice)
    if loud:
        notify(world, invoice, state, before)


def _numbered(world: World, entity: Invoice | Charge, number: int) -> Version:
    version = entity.version
    return replace(
        version,
        id=new_id(entity.id.partition("-")[0]),
        number=number,
        updated=world.clock.now(),
    )


def _charge(world: World, invoice: Invoice, body: Any) -> Charge:
    checked(body if isinstance(body, dict) else {}, _CHARGE)
    charge_id, component = body.get("id") or new_id("CHG"), body.get("pricingComponentName")
    price = price_of(body["price"]) if "price" in body else None
    if (price is None) == (body.get("amount") is None) or (price is None) != (component is None):
        raise invalid("a charge has pricingComponentName and price, or else amount", "charges")
    quantity = body.get("pricingComponentValue", 0) if price else None
    return Charge(
        id=charge_id,
        version=world.first_version(charge_id),
        line_id=new_uuid(),
        invoice_id=invoice.id,
        subscription_id=invoice.subscription_id,
        account_id=invoice.account_id,
        plan_id=invoice.plan_id,
        name=body["name"],
        description=body.get("description"),
        component_id=body.get("pricingComponentID") or (new_id("PCO") if component else None),
        component_name=component,
        component_type=body.get("pricingComponentType", "usage") if component else None,
        quantity=quantity,
        unit_id=new_id("UOM") if component else None,
        unit_name=body.get("unitOfMeasureName", "Units") if component else None,
        price=price,
        amount=price.amount(quantity or 0) if price else Decimal(body["amount"]),
        currency=invoice.currency,
        period_start=body.get("periodStart", invoice.period_start),
        period_end=body.get("periodEnd", invoice.period_end),
        state=body.get("state", "Pending"),
        extra=body.get("extra", {}),
    )


def _subscription(world: World, body: Json) -> Subscription:
    # An invoice needs somebody to bill: whoever is named but not there yet is made on the spot.
    known = world.subscriptions.get(body.get("subscriptionID", ""))
    if known is not None:
        return known
    now, plan = world.clock.now(), world.stub_plan
    account_id = body.get("accountID") or new_id("ACC")
    world.accounts.setdefault(account_id, Account(id=account_id, created=now))
    subscription = Subscription(
        id=body.get("subscriptionID") or new_id("SUB"),
        account_id=account_id,
        plan_id=plan.id,
        name=plan.name,
        state="Provisioned",
        created=now,
        started=now,
        period_number=0,
        period_start=now,
        period_end=plan.duration.after(now, 1),
    )
    world.subscriptions[subscription.id] = subscription
    return subscription


def _list(charges: Any) -> list[Any]:
    if not isinstance(charges, list):
        raise invalid("charges must be a list", "charges")
    return charges
