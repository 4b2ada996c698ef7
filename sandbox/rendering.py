"""Invoices and charges as BillForward shows them (key sets recorded 2026); nulls are left out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sandbox.entities import Charge, Extra, Invoice, Plan, Version
from sandbox.moments import text_of
from sandbox.pricing import calculation_text
from sandbox.wire import Json, Ready, encode


@dataclass(frozen=True, slots=True)
class Renderer:
    """Turns entities of one organisation into wire JSON."""

    organization_id: str
    _made: dict[str, tuple[Charge, Ready, Ready]] = field(default_factory=dict)

    def charge(self, charge: Charge, plan: Plan) -> Ready:
        """Return a charge; `type` is PricingComponent, what kind it is stands apart."""
        return self._charge_and_line(charge, plan)[0]

    def _charge_and_line(self, charge: Charge, plan: Plan) -> tuple[Ready, Ready]:
        # An invoice of 51 charges is asked for often and changes seldom, so each charge's text
        # is kept for as long as the charge stays the same value.
        made = self._made.get(charge.id)
        if made is None or made[0] is not charge:
            texts = (encode(self._charge(charge, plan)), encode(self._line(charge, plan)))
            made = (charge, Ready(texts[0].decode()), Ready(texts[1].decode()))
            self._made[charge.id] = made
        return made[1:]

    def _charge(self, charge: Charge, plan: Plan) -> Json:
        kind = "Manual" if charge.component_name is None else "PricingComponent"
        return _laid_over(
            {
                "@type": kind,
                **_versioned(charge.id, charge.version),
                **self._belongs(charge.subscription_id, charge.account_id),
                "invoiceID": charge.invoice_id,
                **_named(charge),
                "amount": charge.amount,
                "amountExcludingTax": charge.amount,
                "currency": charge.currency,
                "periodStart": charge.period_start,
                "periodEnd": charge.period_end,
                "type": kind,
                "invoicingType": "Aggregated",
                "state": charge.state,
                "chargeType": "Debit",
                "calculation": _calculation(charge),
                "remainingCreditBehaviour": "Rollover",
                "trial": False,
                "creationType": "Subscription",
                "proration": 1,
                **_component(charge),
                **_sold(plan),
            },
            charge.extra,
        )

    def invoice(self, invoice: Invoice, charges: Sequence[Charge], plan: Plan) -> Json:
        """Return an invoice with all its charges (by id) and lines (by name)."""
        shown = sorted(charges, key=lambda charge: charge.id)
        lines = sorted(charges, key=lambda charge: (charge.name.lower(), charge.id))
        return _laid_over(
            {
                **self.invoice_head(invoice),
                "invoiceLines": [self._charge_and_line(one, plan)[1] for one in lines],
                "taxLines": [],
                "invoicePayments": self._payments(invoice),
                "invoiceRefunds": [],
                "invoiceCreditNotes": [],
                "charges": [self.charge(one, plan) for one in shown],
                "children": [],
                "executions": [],
            },
            invoice.extra,
        )

    def invoice_head(self, invoice: Invoice) -> Json:
        """Return an invoice without anything nested, as its notifications carry it."""
        return _without_nulls(
            {
                "@type": "invoice",
                **_versioned(invoice.id, invoice.version),
                **self._belongs(invoice.subscription_id, invoice.account_id),
                "name": invoice.name,
                "state": invoice.state,
                "issued": _text(invoice.issued),
                "due": _text(invoice.issued),
                "periodStart": invoice.period_start,
                "periodEnd": invoice.period_end,
                "deleted": False,
                **_executed(invoice),
                "currency": invoice.currency,
                **_money(invoice),
                "type": invoice.kind,
                "managedBy": "BillForward",
                "initialInvoice": invoice.initial,
                "processing": False,
                "paymentTerms": 0,
                "monotonicNumber": invoice.number,
            }
        )

    def _belongs(self, subscription_id: str, account_id: str) -> Json:
        return {
            "subscriptionID": subscription_id,
            "subscriptionVersionID": subscription_id,
            "accountID": account_id,
            "organizationID": self.organization_id,
        }

    def _line(self, charge: Charge, plan: Plan) -> Json:
        return _without_nulls(
            {
                "id": charge.line_id,
                "created": text_of(charge.version.created),
                "changedBy": "System",
                "updated": text_of(charge.version.updated),
                "invoiceID": charge.invoice_id,
                "subscriptionChargeID": charge.id,
                "subscriptionID": charge.subscription_id,
                "organizationID": self.organization_id,
                **_named(charge),
                "calculation": _calculation(charge),
                "cost": charge.amount,
                "tax": 0,
                "componentValue": charge.quantity,
                "chargeType": "Debit",
                "type": "PricingComponent",
                "periodStart": charge.period_start,
                "periodEnd": charge.period_end,
                "pricingComponentID": charge.component_id,
                "pricingComponentType": charge.component_type,
                "unitOfMeasureID": charge.unit_id,
                **_sold(plan),
            }
        )

    def _payments(self, invoice: Invoice) -> list[Json]:
        if invoice.paid is None:
            return []
        paid = text_of(invoice.paid)
        return [
            {
                "id": _derived(invoice.id, "invoice payment"),
                "created": paid,
                "changedBy": "System",
                "updated": paid,
                "paymentReceived": paid,
                "paymentID": f"PAY-{_derived(invoice.id, 'payment')[:-4]}",
                "invoiceID": invoice.id,
                "organizationID": self.organization_id,
                "currency": invoice.currency,
                "gateway": "offline",
                "nominalAmount": invoice.cost,
                "actualAmount": invoice.cost,
                "refundedAmount": 0,
            }
        ]


def _versioned(entity_id: str, version: Version) -> Json:
    return {
        "id": entity_id,
        "versionID": version.id,
        "versionNumber": version.number,
        "created": text_of(version.created),
        "changedBy": "System",
        "updated": text_of(version.updated),
    }


def _named(charge: Charge) -> Json:
    return {
        "name": charge.name,
        "description": charge.description,
        "pricingComponentName": charge.component_name,
        "publicPricingComponentName": charge.name if charge.component_name else None,
    }


def _component(charge: Charge) -> Json:
    return {
        "pricingComponentID": charge.component_id,
        "pricingComponentType": charge.component_type,
        "pricingComponentValue": charge.quantity,
        "unitOfMeasureID": charge.unit_id,
        "unitOfMeasureName": charge.unit_name,
    }


def _sold(plan: Plan) -> Json:
    return {
        "productID": plan.product_id,
        "productName": plan.product_name,
        "publicProductName": plan.product_name,
        "productRatePlanID": plan.id,
        "productRatePlanName": plan.name,
        "publicProductRatePlanName": plan.name,
    }


def _executed(invoice: Invoice) -> Json:
    tries = 1 if invoice.paid else 0
    paid = _text(invoice.paid)
    return {
        "totalExecutionAttempts": tries,
        "automatedExecutionAttempts": tries,
        "lastExecutionAttempt": paid,
        "finalExecutionAttempt": paid,
        "paymentReceived": paid,
    }


def _money(invoice: Invoice) -> Json:
    cost = invoice.cost
    return {
        "costExcludingTax": cost,
        "invoiceCost": cost,
        "totalInvoiceCost": cost,
        "nonDiscountedCost": cost,
        "nonDiscountedCostExcludingTax": cost,
        "invoicePaid": cost if invoice.paid else 0,
        "discountAmount": 0,
        "discountAmountExcludingTax": 0,
        "invoiceRefunded": 0,
        "creditRolledOver": 0,
        "creditRolledOverExcludingTax": 0,
        "zeroCost": cost == 0,
    }


def _calculation(charge: Charge) -> str:
    return calculation_text(charge.price, charge.quantity or 0, charge.amount)


def _derived(entity_id: str, what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{what} of {entity_id}")).upper()


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else text_of(moment)


def _without_nulls(entity: Json) -> Json:
    return {key: value for key, value in entity.items() if value is not None}


def _laid_over(entity: Json, extra: Extra) -> Json:
    return _without_nulls({**entity, **extra} if extra else entity)
