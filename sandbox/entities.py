"""What the sandbox stores: frozen values, replaced as a whole when something changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sandbox.moments import Duration
from sandbox.pricing import Price

INVOICE_STATES = ("Paid", "Unpaid", "Pending", "Voided")
CHARGE_STATES = ("Voided", "Pending", "AwaitingPayment", "Paid", "Failed")
CHARGE_TYPES = (
    "Setup",
    "Upgrade",
    "Manual",
    "ProductRatePlanMigration",
    "Arrears",
    "Advance",
    "Coupon",
    "Usage",
    "PricingComponent",
)
COMPONENT_TYPES = ("setup", "subscription", "arrears", "usage")
ISSUED_STATES = ("Unpaid", "Paid")

Extra = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which version of an entity this is; the first one's id equals the entity's."""

    id: str
    number: int
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a plan that is charged for."""

    id: str
    version_id: str
    name: str
    public_name: str
    charged: str
    """One of COMPONENT_TYPES: once, in advance, or (the last two) in retrospect."""
    price: Price
    default_quantity: int = 0
    unit_id: str
    unit_name: str
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A product's rate plan; `issue_type` Manual makes its invoices start Pending."""

    id: str
    version_id: str
    name: str
    product_id: str
    product_name: str
    currency: str
    duration: Duration
    issue_type: str = "Immediate"
    zero_invoices: bool = True
    components: tuple[Component, ...] = ()
    created: datetime
    metadata: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays."""

    id: str
    created: datetime
    metadata: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """An account's use of a plan, with a clock of its own that `advance` moves."""

    id: str
    account_id: str
    plan_id: str
    name: str
    state: str
    created: datetime
    started: datetime
    period_number: int
    """How many periods have begun since `started`, the first being 0."""
    period_start: datetime
    period_end: datetime
    ahead_seconds: int = 0
    """How far its clock runs ahead of the sandbox's."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Quantities by component name, where they differ from the default."""
    metadata: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A line of an invoice; its period is kept as written, so that odd ones can be tried."""

    id: str
    version: Version
    line_id: str
    invoice_id: str
    subscription_id: str
    account_id: str
    plan_id: str
    name: str
    description: str | None = None
    component_id: str | None = None
    component_name: str | None = None
    component_type: str | None = None
    quantity: int | None = None
    unit_id: str | None = None
    unit_name: str | None = None
    price: Price | None = None
    """None: an ad hoc charge, tied to no component."""
    amount: Decimal
    currency: str
    period_start: str | None
    period_end: str | None
    state: str = "Pending"
    extra: Extra = field(default_factory=dict)
    """Keys laid over the rendered charge as they are; None takes one away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """A bill; `cost` is what its last recalculation found, not always its charges' sum."""

    id: str
    version: Version
    subscription_id: str
    account_id: str
    plan_id: str
    name: str
    kind: str
    """Its business type: Subscription, FinalArrears, Charge, ..."""
    state: str
    currency: str
    period_start: str | None
    period_end: str | None
    initial: bool = False
    number: int
    """Counts invoices upwards, as monotonicNumber."""
    cost: Decimal = Decimal("0.00")
    charge_ids: tuple[str, ...] = ()
    issued: datetime | None = None
    paid: datetime | None = None
    extra: Extra = field(default_factory=dict)
    """Keys laid over the rendered invoice as they are; None takes one away."""
