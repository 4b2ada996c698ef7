"""Subscriptions that raise invoices as their periods pass, and the clock they live by."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from sandbox_builders import FEE, TEXTS, Caller, february_invoice, invoice_change

from sandbox.client import SandboxControl
from sandbox.moments import Duration
from sandbox.wire import Json

MESSAGES = {"name": "Text messages", "chargeType": "usage", "price": TEXTS}
MONTHLY = {"name": "Monthly fee", "chargeType": "subscription", "price": FEE}
SETUP = {"name": "Set-up", "chargeType": "setup", "price": FEE}


def subscribe(control: SandboxControl, start: str = "2026-01-31T12:00:00Z", **plan: Any) -> str:
    """Store a plan, an account and a subscription to it, and return the subscription's id."""
    components = [SETUP, MONTHLY, MESSAGES]
    stored = control.put_plan(**{"name": "Basic", "components": components, **plan})
    account = control.put_account()
    found: str = control.put_subscription(
        accountID=account["id"], productRatePlanID=stored["id"], start=start, metadata={"t": 1}
    )["id"]
    return found


def spans(invoice: Json) -> dict[str, tuple[str, str]]:
    """Return each charge's period by the charge's name."""
    return {c["name"]: (c["periodStart"], c["periodEnd"]) for c in invoice["charges"]}


JAN, FEB, MAR, APR = (
    "2026-01-31T12:00:00Z",
    "2026-02-28T12:00:00Z",
    "2026-03-31T12:00:00Z",
    "2026-04-30T12:00:00Z",
)


def test_first_invoice(api: Caller, control: SandboxControl) -> None:
    """A first invoice bills set-up and the first period in advance, and no usage."""
    subscription = subscribe(control)
    (first,) = control.invoices()
    assert (first["initialInvoice"], first["state"]) == (True, "Pending")
    assert spans(first) == {"Set-up": (JAN, FEB), "Monthly fee": (JAN, FEB)}
    assert first["invoiceCost"] == 10
    found = api.get(f"subscriptions/{subscription}").results[0]
    assert (found["currentPeriodStart"], found["currentPeriodEnd"]) == (JAN, FEB)
    assert found["metadata"] == {"t": 1}


def test_next_invoices(api: Caller, control: SandboxControl) -> None:
    """Entering a period bills usage for the one before; months keep the day they began on."""
    subscription = subscribe(control)
    answer = api.post(f"subscriptions/{subscription}/advance", {"periods": 2})
    _, second, third = control.invoices()
    assert answer.results[0]["invoices"] == [second["id"], third["id"]]
    assert (second["periodStart"], second["periodEnd"]) == (FEB, MAR)
    assert spans(second) == {"Monthly fee": (FEB, MAR), "Text messages": (JAN, FEB)}
    assert spans(third) == {"Monthly fee": (MAR, APR), "Text messages": (FEB, MAR)}
    (usage,) = [c for c in third["charges"] if c["pricingComponentType"] == "usage"]
    assert (usage["pricingComponentValue"], usage["amount"]) == (0, 0)
    assert api.get(f"subscriptions/{subscription}").results[0]["currentPeriodStart"] == MAR
    assert control.record().broken == []


def test_advance_to_a_moment(api: Caller, control: SandboxControl) -> None:
    """Moving to a moment raises an invoice for each boundary up to it, itself included."""
    path = f"subscriptions/{subscribe(control)}/advance"
    api.post(path, {"to": "2026-02-28T11:59:59Z"})
    assert len(control.invoices()) == 1
    api.post(path, {"to": FEB, "dryRun": True})
    api.post(path, {"to": FEB, "advanceInclusively": False})
    assert len(control.invoices()) == 1
    api.post(path, {"to": FEB})
    assert len(control.invoices()) == 2


@pytest.mark.parametrize(
    "body", [{}, {"periods": 1, "to": FEB}, {"periods": 0}, {"periods": 1001}, {"days": 3}]
)
def test_bad_advances(api: Caller, control: SandboxControl, body: Json) -> None:
    """Either a number of periods or a moment is needed."""
    assert api.post(f"subscriptions/{subscribe(control)}/advance", body).status == 400
    assert len(control.record().violations) == 1


def test_immediate_plans(control: SandboxControl) -> None:
    """A plan that is not Manual raises its invoices issued; no client issued them."""
    subscribe(control, invoiceIssueType="Immediate")
    (first,) = control.invoices()
    assert first["state"] == "Unpaid"
    assert control.record().issues == {}


def test_zero_invoices(api: Caller, control: SandboxControl) -> None:
    """A plan may suppress invoices that are worth nothing, so that usage at 0 is never seen."""
    subscription = subscribe(control, components=[MESSAGES], createZeroValuedInvoices=False)
    api.post(f"subscriptions/{subscription}/advance", {"periods": 3})
    assert control.invoices() == []


def test_default_quantity(api: Caller, control: SandboxControl) -> None:
    """A usage charge starts at its component's default quantity, not always at 0."""
    subscription = subscribe(control, components=[{**MESSAGES, "defaultQuantity": 105}])
    api.post(f"subscriptions/{subscription}/advance", {"periods": 1})
    (usage,) = control.invoices()[-1]["charges"]
    assert (usage["pricingComponentValue"], str(usage["amount"])) == (105, "0.10")


def test_first_usage_if_switched(control: SandboxControl) -> None:
    """A first invoice may carry usage over a zero-length period."""
    control.set(first_invoice_has_usage=True)
    subscribe(control)
    assert spans(control.invoices()[0])["Text messages"] == (JAN, JAN)


def test_cancellation(api: Caller, control: SandboxControl) -> None:
    """A cancelled subscription's last invoice bills usage up to the cancellation, no further."""
    subscription = subscribe(control)
    moment = datetime(2026, 2, 10, 6, tzinfo=UTC)
    last = control.cancel(subscription, moment)
    assert last["type"] == "FinalArrears"
    assert spans(last) == {"Text messages": (JAN, "2026-02-10T06:00:00Z")}
    assert api.get(f"subscriptions/{subscription}").results[0]["state"] == "Cancelled"
    assert api.post(f"subscriptions/{subscription}/advance", {"periods": 1}).status == 409


def test_plans_are_shown(api: Caller, control: SandboxControl) -> None:
    """A plan shows its components, their tiers descending and sortedTiers ascending."""
    plan = control.put_plan(name="Basic", components=[MESSAGES], durationPeriod="days", duration=7)
    (found,) = api.get(f"product-rate-plans/{plan['id']}").results
    assert found == plan
    (component,) = found["pricingComponents"]
    assert component["@type"] == "tieredPricingComponent"
    assert [tier["lowerThreshold"] for tier in component["tiers"]] == [101, 0]
    assert [tier["lowerThreshold"] for tier in component["sortedTiers"]] == [0, 101]


@pytest.mark.parametrize(
    ("unit", "count", "times", "expected"),
    [
        ("months", 1, 1, datetime(2024, 2, 29, tzinfo=UTC)),
        ("months", 1, 2, datetime(2024, 3, 31, tzinfo=UTC)),
        ("months", 11, 1, datetime(2024, 12, 31, tzinfo=UTC)),
        ("years", 1, 2, datetime(2026, 1, 31, tzinfo=UTC)),
        ("days", 30, 1, datetime(2024, 3, 1, tzinfo=UTC)),
        ("minutes", 5, 12, datetime(2024, 1, 31, 1, tzinfo=UTC)),
    ],
)
def test_durations(unit: str, count: int, times: int, expected: datetime) -> None:
    """Periods are counted from the first day, so that a short month does not shift later ones."""
    assert Duration(count, unit).after(datetime(2024, 1, 31, tzinfo=UTC), times) == expected


def test_clock(control: SandboxControl) -> None:
    """The clock can be set, frozen and moved, and shows in `created`."""
    control.set_clock(datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC), frozen=True)
    assert control.put_invoice()["created"] == "2030-05-06T07:08:09Z"
    control.advance_clock(51)
    assert control.put_invoice()["created"] == "2030-05-06T07:09:00Z"
    control.reset()
    now = datetime.now(UTC)
    created = datetime.fromisoformat(control.put_invoice()["created"])
    assert abs((created - now).total_seconds()) < 60


def test_payment(api: Caller, control: SandboxControl) -> None:
    """An issued invoice is paid by itself after that many seconds of the sandbox's clock."""
    control.set(pay_after_seconds=30)
    control.set_clock(datetime(2030, 1, 1, tzinfo=UTC), frozen=True)
    invoice = control.put_invoice(**february_invoice())
    api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    control.advance_clock(29)
    assert control.invoice(invoice["id"])["state"] == "Unpaid"
    control.advance_clock(1)
    paid = control.invoice(invoice["id"])
    assert (paid["state"], paid["versionNumber"]) == ("Paid", 2)
    assert paid["paymentReceived"] == "2030-01-01T00:00:30Z"
    assert paid["invoicePayments"][0]["gateway"] == "offline"


def test_payment_in_real_time(api: Caller, control: SandboxControl) -> None:
    """A payment due at once is seen by the next request."""
    control.set(pay_after_seconds=0)
    invoice = control.put_invoice(**february_invoice())
    api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    deadline = time.monotonic() + 5
    while control.invoice(invoice["id"])["state"] != "Paid":
        assert time.monotonic() < deadline
