"""What a quantity costs: graduated and volume tiers, in Decimal only.

Tiers are inclusive at both ends and each begins one above the end of the one before. `tiered` is
graduated: each unit costs its own tier's price, and a fixed tier is charged once as soon as the
quantity reaches it. `tiered_volume` prices the whole quantity at the tier it falls into. `flat` is
one tier. A quantity of 0 that no tier covers costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

MODELS = ("flat", "tiered", "tiered_volume")
TIER_KINDS = ("unit", "fixed")


class PricingError(ValueError):
    """The tiers contradict one another, or do not cover the quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Units *lower* to *upper* (None: no end) at *price*, each or (fixed) all together."""

    lower: int
    upper: int | None
    kind: str
    price: Decimal

    def __post_init__(self) -> None:
        if self.kind not in TIER_KINDS:
            raise PricingError(f"a tier is unit or fixed, not {self.kind!r}")
        if self.lower < 0 or (self.upper is not None and self.upper < self.lower):
            raise PricingError(f"a tier cannot run from {self.lower} to {self.upper}")

    def covers(self, quantity: int) -> bool:
        """Return whether *quantity* falls into this tier."""
        return self.lower <= quantity and (self.upper is None or quantity <= self.upper)

    def graduated(self, quantity: int) -> Decimal:
        """Return what this tier adds to the graduated price of *quantity*."""
        if quantity < self.lower:
            return Decimal(0)
        if self.kind == "fixed":
            return self.price
        last = quantity if self.upper is None else min(quantity, self.upper)
        return (last - max(self.lower, 1) + 1) * self.price

    def whole(self, quantity: int) -> Decimal:
        """Return what *quantity* costs when all of it is priced here."""
        return self.price if self.kind == "fixed" else quantity * self.price


@dataclass(frozen=True, slots=True)
class Price:
    """A pricing model with its tiers, ascending and abutting by one."""

    model: str
    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise PricingError(f"a model is one of {', '.join(MODELS)}, not {self.model!r}")
        if not self.tiers or (self.model == "flat" and len(self.tiers) > 1):
            raise PricingError(f"a {self.model} price cannot have {len(self.tiers)} tiers")
        object.__setattr__(self, "tiers", tuple(sorted(self.tiers, key=lambda tier: tier.lower)))
        for before, after in pairwise(self.tiers):
            if before.upper is None or after.lower != before.upper + 1:
                raise PricingError(
                    f"tier {after.lower} must begin one above the end of the one before"
                )

    def amount(self, quantity: int, *, strict: bool = True) -> Decimal:
        """Return the price of *quantity* (whole, 0 or more); PricingError if no tier covers it."""
        if quantity == 0 and not self.tiers[0].covers(0):
            return Decimal(0) * self.tiers[0].price
        tier = self._tier_of(quantity, strict=strict)
        if self.model != "tiered":
            return tier.whole(quantity)
        beyond = 0 if tier.upper is None else max(0, quantity - tier.upper)
        extra = beyond * tier.price if tier.kind == "unit" else Decimal(0)
        return sum((each.graduated(quantity) for each in self.tiers), extra)

    def _tier_of(self, quantity: int, *, strict: bool) -> Tier:
        for tier in self.tiers:
            if tier.covers(quantity):
                return tier
        if strict:
            raise PricingError(f"no tier covers a quantity of {quantity}")
        return self.tiers[0] if quantity < self.tiers[0].lower else self.tiers[-1]


def calculation_text(price: Price | None, quantity: int, amount: Decimal) -> str:
    """Return the free text that explains an amount; nobody should parse it."""
    if price is None:
        return ""
    if len(price.tiers) == 1 and price.tiers[0].kind == "fixed":
        return f"{quantity} items at flat cost {amount}"
    return f"{quantity} items over {len(price.tiers)} tiers, cost {amount}"
