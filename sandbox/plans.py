"""Plans, accounts and subscriptions: how they are read from control bodies and shown."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sandbox.entities import COMPONENT_TYPES, Account, Component, Plan, Subscription
from sandbox.moments import Duration, new_id, text_of
from sandbox.pricing import MODELS, TIER_KINDS, Price, Tier
from sandbox.rules import Field, checked
from sandbox.wire import Json, invalid
from sandbox.world import World

_PRICE = {
    "model": Field("text", required=True, enum=MODELS),
    "tiers": Field("list", required=True),
}
_TIER = {
    "lower": Field("quantity", required=True),
    "upper": Field("quantity"),
    "type": Field("text", required=True, enum=TIER_KINDS),
    "price": Field("amount", required=True),
}
_COMPONENT = {
    "id": Field("text"),
    "name": Field("text", required=True),
    "publicName": Field("text"),
    "description": Field("text"),
    "chargeType": Field("text", required=True, enum=COMPONENT_TYPES),
    "price": Field("object", required=True),
    "defaultQuantity": Field("quantity"),
    "unitOfMeasureName": Field("text"),
}
_PLAN = {
    "id": Field("text"),
    "name": Field("text", required=True),
    "productName": Field("text"),
    "currency": Field("text"),
    "duration": Field("quantity"),
    "durationPeriod": Field("text", enum=("minutes", "days", "months", "years")),
    "invoiceIssueType": Field("text", enum=("Immediate", "Manual")),
    "createZeroValuedInvoices": Field("boolean"),
    "components": Field("list", required=True),
    "metadata": Field("object"),
}
_ACCOUNT = {"id": Field("text"), "metadata": Field("object")}


def price_of(body: Json) -> Price:
    """Read `{"model", "tiers": [{"lower", "upper", "type", "price"}]}`."""
    checked(body, _PRICE)
    return Price(body["model"], tuple(_tier_of(tier) for tier in body["tiers"]))


def plan_of(world: World, body: Json) -> Plan:
    """Read a plan; without an id it gets one."""
    checked(body, _PLAN)
    return Plan(
        id=body.get("id") or new_id("PRP"),
        version_id=new_id("PRP"),
        name=body["name"],
        product_id=new_id("PRO"),
        product_name=body.get("productName") or body["name"],
        currency=body.get("currency", "USD"),
        duration=Duration(body.get("duration", 1), body.get("durationPeriod", "months")),
        issue_type=body.get("invoiceIssueType", "Manual"),
        zero_invoices=body.get("createZeroValuedInvoices", True),
        components=tuple(_component_of(component) for component in body["components"]),
        created=world.clock.now(),
        metadata=body.get("metadata", {}),
    )


def account_of(world: World, body: Json) -> Account:
    """Read an account; without an id it gets one."""
    checked(body, _ACCOUNT)
    return Account(
        id=body.get("id") or new_id("ACC"),
        created=world.clock.now(),
        metadata=body.get("metadata", {}),
    )


def shown_account(world: World, account: Account) -> Json:
    """Return an account; unlike other nulls, crmID is sent (recorded 2026)."""
    return {
        "@type": "account",
        "id": account.id,
        **_changed(account.created),
        "organizationID": world.renderer.organization_id,
        "crmID": None,
        "metadata": dict(account.metadata),
        "roles": [],
        "paymentMethods": [],
        "deleted": False,
    }


def shown_subscription(world: World, subscription: Subscription) -> Json:
    """Return a subscription with its metadata and its own clock."""
    plan = world.plan(subscription.plan_id)
    now = world.clock.now() + timedelta(seconds=subscription.ahead_seconds)
    return {
        "@type": "subscription",
        "id": subscription.id,
        "versionID": subscription.id,
        "versionNumber": 1,
        **_changed(subscription.created),
        "metadata": dict(subscription.metadata),
        "accountID": subscription.account_id,
        "organizationID": world.renderer.organization_id,
        "productID": plan.product_id,
        "productRatePlanID": plan.id,
        "name": subscription.name,
        "type": "Subscription",
        "state": subscription.state,
        "active": subscription.state != "Cancelled",
        "currentPeriodStart": text_of(subscription.period_start),
        "currentPeriodEnd": text_of(subscription.period_end),
        "contractStart": text_of(subscription.started),
        "initialPeriodStart": text_of(subscription.started),
        "versionStart": text_of(subscription.started),
        "totalPeriods": subscription.period_number + 1,
        "dunning": False,
        "managedBy": "BillForward",
        "creditEnabled": True,
        "failedPaymentBehaviour": "None",
        "pricingComponentValues": _values(world, subscription, plan),
        "fixedTerms": [],
        "contracts": [],
        "currentTime": text_of(now),
        "timeOffset": subscription.ahead_seconds,
        "paymentTerms": 0,
        "fixedTerm": False,
    }


def shown_plan(world: World, plan: Plan) -> Json:
    """Return a rate plan; its tiers come unsorted, `sortedTiers` ascending (recorded 2026)."""
    return {
        "@type": "productRatePlan",
        "id": plan.id,
        "versionID": plan.version_id,
        **_changed(plan.created),
        "metadata": dict(plan.metadata),
        "organizationID": world.renderer.organization_id,
        "productID": plan.product_id,
        "name": plan.name,
        "publicName": plan.name,
        "currency": plan.currency,
        "duration": plan.duration.count,
        "durationPeriod": plan.duration.unit,
        "productType": "recurring",
        "invoiceIssueType": plan.issue_type,
        "createZeroValuedInvoices": plan.zero_invoices,
        "taxStatus": "exclusive",
        "trial": 0,
        "trialPeriod": "none",
        "paymentTerms": 0,
        "pricingComponents": [_shown_component(world, plan, one) for one in plan.components],
    }


def _component_of(body: Any) -> Component:
    checked(_object(body), _COMPONENT)
    return Component(
        id=body.get("id") or new_id("PCO"),
        version_id=new_id("PCO"),
        name=body["name"],
        public_name=body.get("publicName", body["name"]),
        charged=body["chargeType"],
        price=price_of(body["price"]),
        default_quantity=body.get("defaultQuantity", 0),
        unit_id=new_id("UOM"),
        unit_name=body.get("unitOfMeasureName", "Units"),
        description=body.get("description"),
    )


def _tier_of(body: Any) -> Tier:
    checked(_object(body), _TIER)
    price = Decimal(body["price"])
    return Tier(lower=body["lower"], upper=body.get("upper"), kind=body["type"], price=price)


def _object(body: Any) -> Json:
    if not isinstance(body, dict):
        raise invalid("components and tiers must be objects")
    return body


def _shown_component(world: World, plan: Plan, component: Component) -> Json:
    tiers = [_shown_tier(component, tier) for tier in component.price.tiers]
    names = {"flat": "flat", "tiered": "tiered", "tiered_volume": "tieredVolume"}
    shown: Json = {
        "@type": f"{names[component.price.model]}PricingComponent",
        "id": component.id,
        "versionID": component.version_id,
        "productRatePlanID": plan.id,
        "productRatePlanVersionID": plan.version_id,
        "organizationID": world.renderer.organization_id,
        "name": component.name,
        "publicName": component.public_name,
        "chargeType": component.charged,
        "chargeModel": component.price.model,
        "invoicingType": "Aggregated",
        "defaultQuantity": component.default_quantity,
        "minQuantity": 0,
        "unitOfMeasureID": component.unit_id,
        "unitOfMeasure": {"id": component.unit_id, "name": component.unit_name},
        "tiers": tiers[::-1],
        "sortedTiers": tiers,
    }
    return (
        shown if component.description is None else {**shown, "description": component.description}
    )


def _shown_tier(component: Component, tier: Tier) -> Json:
    return {
        "pricingComponentID": component.id,
        "pricingComponentVersionID": component.version_id,
        "lowerThreshold": tier.lower,
        "upperThreshold": tier.upper,
        "bucketSize": None,
        "pricingType": tier.kind,
        "price": tier.price,
    }


def _values(world: World, subscription: Subscription, plan: Plan) -> list[Json]:
    return [
        {
            "@type": "pricingComponentValue",
            "organizationID": world.renderer.organization_id,
            "subscriptionID": subscription.id,
            "pricingComponentID": component.id,
            "pricingComponentName": component.name,
            "value": subscription.values.get(component.name, component.default_quantity),
            "inferredFromDefault": component.name not in subscription.values,
        }
        for component in plan.components
    ]


def _changed(created: datetime) -> Json:
    return {"created": text_of(created), "changedBy": "System", "updated": text_of(created)}
