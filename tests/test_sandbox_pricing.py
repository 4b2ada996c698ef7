"""What a quantity costs."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.pricing import Price, PricingError, Tier


def tier(lower: int, upper: int | None, price: str, kind: str = "unit") -> Tier:
    """Return a tier priced in units unless told otherwise."""
    return Tier(lower=lower, upper=upper, kind=kind, price=Decimal(price))


@pytest.mark.parametrize(
    ("tiers", "quantity", "amount"),
    [
        ((tier(0, 100, "0.00"), tier(101, None, "0.02")), 105, "0.10"),
        ((tier(0, 100, "0.00"), tier(101, None, "0.05")), 101, "0.05"),
        ((tier(0, 100, "0.00"), tier(101, None, "0.05")), 100, "0.00"),
        ((tier(1, 1, "10", "fixed"), tier(2, None, "5")), 5, "30"),
        ((tier(1, 1, "10", "fixed"), tier(2, None, "5")), 0, "0"),
        ((tier(0, 0, "0"), tier(1, 10, "3", "fixed"), tier(11, 20, "1")), 20, "13"),
    ],
)
def test_graduated(tiers: tuple[Tier, ...], quantity: int, amount: str) -> None:
    """Each unit costs its own tier's price, a fixed tier is charged once when reached."""
    found = Price("tiered", tiers).amount(quantity)
    assert str(found) == amount


@pytest.mark.parametrize(
    ("quantity", "amount"), [(0, "0.00"), (10, "1.00"), (11, "0.55"), (21, "7")]
)
def test_volume(quantity: int, amount: str) -> None:
    """The whole quantity is priced at the tier it falls into."""
    tiers = (tier(0, 10, "0.10"), tier(11, 20, "0.05"), tier(21, None, "7", "fixed"))
    assert str(Price("tiered_volume", tiers).amount(quantity)) == amount


def test_above_the_last_tier() -> None:
    """A quantity above the last finite tier is an error, or else priced at that tier."""
    price = Price("tiered", (tier(0, 10, "1"), tier(11, 20, "2")))
    assert price.amount(20) == 30
    with pytest.raises(PricingError, match="no tier covers a quantity of 21"):
        price.amount(21)
    assert price.amount(21, strict=False) == 32


@pytest.mark.parametrize(
    ("model", "tiers"),
    [
        ("tiered", ()),
        ("stairs", (tier(0, None, "1"),)),
        ("flat", (tier(0, 1, "1"), tier(2, None, "1"))),
        ("tiered", (tier(0, 10, "1"), tier(10, None, "1"))),
        ("tiered", (tier(0, 10, "1"), tier(12, None, "1"))),
        ("tiered", (tier(0, None, "1"), tier(11, None, "1"))),
    ],
)
def test_tiers_that_contradict(model: str, tiers: tuple[Tier, ...]) -> None:
    """Tiers abut by one, only the last one is open, and the model is a known one."""
    with pytest.raises(PricingError):
        Price(model, tiers)


@pytest.mark.parametrize(("lower", "upper", "kind"), [(-1, 2, "unit"), (3, 2, "unit"), (0, 1, "x")])
def test_tiers_that_are_none(lower: int, upper: int, kind: str) -> None:
    """A tier runs upwards from 0 or more and is unit or fixed."""
    with pytest.raises(PricingError):
        tier(lower, upper, "1", kind)


MONEY = st.decimals(min_value=0, max_value=1000, places=4)
KINDS = st.sampled_from(["unit", "fixed"])


@st.composite
def prices(draw: st.DrawFn, model: str, kinds: st.SearchStrategy[str] = KINDS) -> Price:
    """Draw tiers from 0 upwards without a gap, in any order, the last one open."""
    lengths = draw(st.lists(st.integers(1, 15), max_size=5))
    tiers, lower = [], 0
    for length in [*lengths, None]:
        upper = None if length is None else lower + length - 1
        tiers.append(Tier(lower=lower, upper=upper, kind=draw(kinds), price=draw(MONEY)))
        lower += length or 0
    return Price(model, tuple(draw(st.permutations(tiers))))


@given(price=prices("tiered", st.just("unit")), quantity=st.integers(0, 90))
def test_graduated_is_the_sum_of_units(price: Price, quantity: int) -> None:
    """A graduated price is the sum of each unit's own tier's price."""
    units = [
        tier.price for unit in range(1, quantity + 1) for tier in price.tiers if tier.covers(unit)
    ]
    assert price.amount(quantity) == sum(units)


@given(price=prices("tiered"), quantity=st.integers(0, 90))
def test_graduated_never_falls(price: Price, quantity: int) -> None:
    """One unit more never costs less, where no price is negative."""
    assert price.amount(quantity) <= price.amount(quantity + 1)


@given(price=prices("tiered_volume"), quantity=st.integers(0, 90))
def test_volume_is_one_tier(price: Price, quantity: int) -> None:
    """A volume price is the quantity times its tier's price, or that tier's fixed price."""
    (own,) = [tier for tier in price.tiers if tier.covers(quantity)]
    assert price.amount(quantity) == (own.price if own.kind == "fixed" else quantity * own.price)
