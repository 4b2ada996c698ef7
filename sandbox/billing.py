"""How subscriptions raise invoices: on entering a period, and at the end.

The invoice raised on entering a period bills in-advance parts for it, and usage and arrears for
the period before, each charge carrying its own period.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sandbox.entities import Charge, Component, Invoice, Plan, Subscription
from sandbox.moments import moment_of, new_id, new_uuid, text_of
from sandbox.notifications import notify
from sandbox.recalculation import enter_state, store_invoice
from sandbox.rules import Field, checked
from sandbox.wire import Json, RefusedError, invalid
from sandbox.world import World, cost_of

_SUBSCRIPTION = {
    "id": Field("text"),
    "accountID": Field("text", required=True),
    "productRatePlanID": Field("text", required=True),
    "name": Field("text"),
    "start": Field("moment", required=True),
    "values": Field("object"),
    "metadata": Field("object"),
}
_ADVANCE = {
    "created": Field("moment"),
    "periods": Field("quantity"),
    "to": Field("moment"),
    "dryRun": Field("boolean"),
    "skipIntermediatePeriods": Field("boolean"),
    "handleAmendments": Field("boolean"),
    "executionStrategy": Field("text", enum=("SingleAttempt", "FollowDunning", "None")),
    "freezeOnCompletion": Field("boolean"),
    "advanceInclusively": Field("boolean"),
}
_PERIODS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class _Span:
    """A period as two moments, the second one outside it."""

    start: datetime
    end: datetime


def subscribe(world: World, body: Json) -> Subscription:
    """Store a subscription in its first period and raise its first invoice."""
    checked(body, _SUBSCRIPTION)
    plan = world.plan(body["productRatePlanID"])
    start = moment_of(body["start"])
    ahead = (start - world.clock.now()).total_seconds()
    subscription = Subscription(
        id=body.get("id") or new_id("SUB"),
        account_id=world.account(body["accountID"]).id,
        plan_id=plan.id,
        name=body.get("name", plan.name),
        state="Provisioned",
        created=world.clock.now(),
        started=start,
        period_number=0,
        period_start=start,
        period_end=plan.duration.after(start, 1),
        ahead_seconds=max(0, int(ahead)),
        values=body.get("values", {}),
        metadata=body.get("metadata", {}),
    )
    world.subscriptions[subscription.id] = subscription
    _raise_invoice(world, subscription, None)
    return subscription


def advance(world: World, subscription_id: str, body: Json) -> Json:
    """Move a subscription's clock by whole periods or to a moment, raising the invoices due."""
    checked(body, _ADVANCE)
    if (body.get("periods") is None) == (body.get("to") is None):
        raise invalid("either periods or to is required", "periods", "to")
    if body.get("skipIntermediatePeriods"):
        raise RefusedError(501, "NotImplemented", "the sandbox skips no periods", violation=False)
    subscription = world.subscription(subscription_id)
    if subscription.state == "Cancelled":
        message = f"subscription {subscription_id} is Cancelled"
        raise RefusedError(409, "InconsistentState", message)
    steps, moment = _steps(world, subscription, body)
    raised: list[Invoice] = []
    if not body.get("dryRun", False):
        raised = _walk(world, steps, moment)
    return {
        "@type": "timeResponse",
        "subscriptionID": subscription_id,
        "currentTime": text_of(moment),
        "invoices": [invoice.id for invoice in raised],
    }


def cancel(world: World, subscription_id: str, at: datetime | None) -> Invoice:
    """End a subscription within its period and raise the FinalArrears invoice of what it used."""
    subscription = world.subscription(subscription_id)
    moment = at or world.clock.now() + timedelta(seconds=subscription.ahead_seconds)
    if not subscription.period_start < moment <= subscription.period_end:
        raise invalid(f"{text_of(moment)} is outside the current period", "at")
    ended = replace(subscription, state="Cancelled", period_end=moment)
    world.subscriptions[ended.id] = ended
    span = _Span(ended.period_start, moment)
    plan = world.plan(ended.plan_id)
    parts = [(part, span) for part in plan.components if part.charged in ("usage", "arrears")]
    return _store(world, ended, _Draft("FinalArrears", span, parts))


@dataclass(frozen=True, slots=True)
class _Draft:
    kind: str
    span: _Span
    parts: list[tuple[Component, _Span]]
    initial: bool = False


def _steps(
    world: World, subscription: Subscription, body: Json
) -> tuple[list[Subscription], datetime]:
    plan = world.plan(subscription.plan_id)
    following = _following(subscription, plan)
    if body.get("periods") is not None:
        if not 1 <= body["periods"] <= _PERIODS_AT_ONCE:
            raise invalid(f"periods must be 1 to {_PERIODS_AT_ONCE}", "periods")
        steps = [next(following) for _ in range(body["periods"])]
        return steps, steps[-1].period_start
    moment = moment_of(body["to"])
    inclusive = body.get("advanceInclusively", True)
    steps = []
    for step in following:
        if step.period_start > moment or (step.period_start == moment and not inclusive):
            return steps, moment
        steps.append(step)
        if len(steps) > _PERIODS_AT_ONCE:
            raise invalid(f"to lies more than {_PERIODS_AT_ONCE} periods ahead", "to")
    raise AssertionError("periods never end")


def _following(subscription: Subscription, plan: Plan) -> Iterator[Subscription]:
    while True:
        number = subscription.period_number + 1
        subscription = replace(
            subscription,
            period_number=number,
            period_start=subscription.period_end,
            period_end=plan.duration.after(subscription.started, number + 1),
        )
        yield subscription


def _walk(world: World, steps: list[Subscription], moment: datetime) -> list[Invoice]:
    ahead = max(0, int((moment - world.clock.now()).total_seconds()))
    raised = []
    for step in steps:
        before = world.subscription(step.id)
        entered = replace(step, ahead_seconds=ahead)
        world.subscriptions[step.id] = entered
        invoice = _raise_invoice(world, entered, _Span(before.period_start, before.period_end))
        if invoice is not None:
            raised.append(invoice)
    return raised


def _raise_invoice(
    world: World, subscription: Subscription, before: _Span | None
) -> Invoice | None:
    plan = world.plan(subscription.plan_id)
    span = _Span(subscription.period_start, subscription.period_end)
    parts: list[tuple[Component, _Span]] = []
    for part in plan.components:
        if part.charged == "subscription" or (part.charged == "setup" and before is None):
            parts.append((part, span))
        elif part.charged in ("usage", "arrears") and before is not None:
            parts.append((part, before))
        elif part.charged == "usage" and world.settings.first_invoice_has_usage:
            parts.append((part, _Span(span.start, span.start)))
    draft = _Draft("Subscription", span, parts, initial=before is None)
    worth = [part.price.amount(_quantity(subscription, part)) for part, _ in parts]
    if not plan.zero_invoices and not any(worth):
        return None
    return _store(world, subscription, draft)


def _store(world: World, subscription: Subscription, draft: _Draft) -> Invoice:
    plan = world.plan(subscription.plan_id)
    invoice_id = new_id("INV")
    charges = [
        world.put_charge(_charge(world, subscription, invoice_id, part, span))
        for part, span in draft.parts
    ]
    invoice = Invoice(
        id=invoice_id,
        version=world.first_version(invoice_id),
        subscription_id=subscription.id,
        account_id=subscription.account_id,
        plan_id=plan.id,
        name=plan.name,
        kind=draft.kind,
        state="Pending",
        currency=plan.currency,
        period_start=text_of(draft.span.start),
        period_end=text_of(draft.span.end),
        initial=draft.initial,
        number=world.next_invoice_number(),
        cost=cost_of(charges),
        charge_ids=tuple(charge.id for charge in charges),
    )
    state = "Pending" if plan.issue_type == "Manual" else "Unpaid"
    invoice = enter_state(world, invoice, state)
    store_invoice(world, invoice)
    notify(world, invoice, state)
    return invoice


def _charge(
    world: World, subscription: Subscription, invoice_id: str, part: Component, span: _Span
) -> Charge:
    charge_id, quantity = new_id("CHG"), _quantity(subscription, part)
    return Charge(
        id=charge_id,
        version=world.first_version(charge_id),
        line_id=new_uuid(),
        invoice_id=invoice_id,
        subscription_id=subscription.id,
        account_id=subscription.account_id,
        plan_id=subscription.plan_id,
        name=part.public_name,
        description=part.description,
        component_id=part.id,
        component_name=part.name,
        component_type=part.charged,
        quantity=quantity,
        unit_id=part.unit_id,
        unit_name=part.unit_name,
        price=part.price,
        amount=part.price.amount(quantity, strict=world.settings.strict_quantities),
        currency=world.plan(subscription.plan_id).currency,
        period_start=text_of(span.start),
        period_end=text_of(span.end),
    )


def _quantity(subscription: Subscription, part: Component) -> int:
    # A usage value falls back to the default with each period, so one set before does not count.
    if part.charged == "usage":
        return part.default_quantity
    return subscription.values.get(part.name, part.default_quantity)
