"""What an invoice would be billed, by the platform's own dry run; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from worker.decision import differences
from worker.domain import FrozenTally, Invoice, UsageCharge, utc_text
from worker.ports import BillingPlatform


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """An invoice as it is, and its usage charges as they would be."""

    invoice: Invoice
    before: tuple[UsageCharge, ...]
    after: tuple[UsageCharge, ...]  # in the order of `before`

    @property
    def total(self) -> Decimal:
        """The total with the charges as they would be; without what tax makes of the change."""
        changes = (b.amount - a.amount for a, b in zip(self.before, self.after, strict=True))
        return self.invoice.total + sum(changes, Decimal(0))


def preview_of(
    invoice: Invoice,
    charges: Sequence[UsageCharge],
    tallies: Sequence[FrozenTally],
    platform: BillingPlatform,
) -> Preview:
    """Ask the platform what the counted quantities would cost."""
    wanted = differences(charges, tallies)
    changed = {c.id: c for c in platform.preview(invoice, wanted)} if wanted else {}
    after = tuple(changed.get(charge.id, charge) for charge in charges)
    return Preview(invoice=invoice, before=tuple(charges), after=after)


def preview_json(preview: Preview) -> dict[str, Any]:
    """Return a preview, JSON-ready."""
    lines = zip(preview.before, preview.after, strict=True)
    return {
        "total_before": str(preview.invoice.total),
        "total": str(preview.total),
        "currency": preview.invoice.currency,
        "charges": [
            {
                "charge_id": before.id,
                "component": before.component,
                "quantity_before": None if before.quantity is None else str(before.quantity),
                "quantity": None if after.quantity is None else str(after.quantity),
                "amount_before": str(before.amount),
                "amount": str(after.amount),
                "period_start": before.period and utc_text(before.period.start),
                "period_end": before.period and utc_text(before.period.end),
            }
            for before, after in lines
        ],
    }
