"""Recalculating charges and invoices, and what is refused once an invoice is issued."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from sandbox_builders import Caller, charge_change, february_invoice, invoice_change, usage_charge

from sandbox.client import SandboxControl
from sandbox.server import SandboxServer
from sandbox.wire import Json


@pytest.fixture(name="invoice")
def _invoice(control: SandboxControl) -> Json:
    return control.put_invoice(**february_invoice(2))


def reprice(api: Caller, invoice: Json, number: int = 0, **changes: object) -> Json:
    """Recalculate one of the invoice's charges and return it."""
    charge = invoice["charges"][number]["id"]
    answer = api.post(f"charges/{charge}/recalculate", charge_change(**changes))
    assert answer.status == 200, answer.text
    return answer.results[0]


def issue(api: Caller, invoice: Json, **changes: object) -> Json:
    """Recalculate the invoice, into Unpaid unless told otherwise, and return it."""
    answer = api.post(f"invoices/{invoice['id']}/recalculate", invoice_change(**changes))
    assert answer.status == 200, answer.text
    return answer.results[0]


def test_charge_then_invoice(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """105 messages cost 0.10 on a new version of the charge; the invoice follows when issued."""
    charge = reprice(api, invoice)
    assert str(charge["amount"]) == "0.10"
    assert (charge["id"], charge["versionNumber"]) == (invoice["charges"][0]["id"], 2)
    assert charge["versionID"] != charge["id"]
    between = control.invoice(invoice["id"])
    assert (between["invoiceCost"], between["versionNumber"]) == (Decimal("0.00"), 1)
    issued = issue(api, invoice)
    assert (issued["state"], str(issued["invoiceCost"])) == ("Unpaid", "0.10")
    assert issued["versionNumber"] == 2
    assert "issued" in issued
    assert {one["state"] for one in issued["charges"]} == {"AwaitingPayment"}
    assert control.invoice(invoice["id"]) == issued
    record = control.record()
    assert (record.issues, record.broken) == ({invoice["id"]: 1}, [])


def test_dry_runs(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A dry run answers as if done and stores nothing."""
    assert reprice(api, invoice, dryRun=True)["amount"] == Decimal("0.10")
    assert issue(api, invoice, dryRun=True)["state"] == "Unpaid"
    assert control.invoice(invoice["id"]) == invoice
    assert control.record().issues == {}


def test_back_to_zero(api: Caller, control: SandboxControl) -> None:
    """A value is absolute: 0 is written as 0, a missing one keeps what was there."""
    charges = [usage_charge(pricingComponentValue=105)]
    invoice = control.put_invoice(**february_invoice(charges=charges))
    assert reprice(api, invoice, pricingComponentValue=None)["pricingComponentValue"] == 105
    assert reprice(api, invoice, pricingComponentValue=0)["amount"] == 0


def test_switches_of_the_invoice(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A charge's recalculation may raise its invoice's cost and version, if switched so."""
    control.set(cost_follows_charges=True, charge_recalculation_bumps_invoice=True)
    reprice(api, invoice)
    between = control.invoice(invoice["id"])
    assert (between["invoiceCost"], between["versionNumber"]) == (Decimal("0.10"), 2)
    assert issue(api, invoice)["versionNumber"] == 3


def test_second_issue(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """An issued invoice cannot be issued again; the attempt is kept apart from violations."""
    issued = issue(api, invoice)
    answer = api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    assert (answer.status, answer.body["errorType"]) == (412, "PreconditionFailed")
    record = control.record()
    (second,) = record.second_issues
    assert (second["invoiceID"], second["state"]) == (invoice["id"], "Unpaid")
    assert (record.violations, record.issues[invoice["id"]]) == ([], 1)
    assert control.invoice(invoice["id"]) == issued


def test_many_at_once(server: SandboxServer, control: SandboxControl, invoice: Json) -> None:
    """Of many who issue one invoice at the same moment, one succeeds."""

    def attempt(_: int) -> int:
        with Caller(server.base_url, server.token) as api:
            return api.post(f"invoices/{invoice['id']}/recalculate", invoice_change()).status

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(8))) == [200] + [412] * 7
    assert control.record().issues == {invoice["id"]: 1}
    assert len(control.record().second_issues) == 7


def test_issue_after_a_colleague_un_issued(
    api: Caller, control: SandboxControl, invoice: Json
) -> None:
    """An invoice that a colleague un-issued is issued again only if that is switched on."""
    issue(api, invoice)
    control.patch_invoice(invoice["id"], state="Pending")
    path = f"invoices/{invoice['id']}/recalculate"
    assert api.post(path, invoice_change()).status == 412
    assert len(control.record().second_issues) == 1
    control.set(reissue_allowed=True)
    assert api.post(path, invoice_change()).status == 200
    assert control.record().issues == {invoice["id"]: 2}


@pytest.mark.parametrize("state", ["Unpaid", "Paid"])
def test_write_after_issue(api: Caller, control: SandboxControl, invoice: Json, state: str) -> None:
    """A charge of an issued invoice cannot be written; the attempt is remembered."""
    before = control.patch_invoice(invoice["id"], state=state)
    charge = invoice["charges"][0]["id"]
    answer = api.post(f"charges/{charge}/recalculate", charge_change())
    assert answer.status == 412
    (late,) = control.record().writes_after_issue
    assert (late["chargeID"], late["pricingComponentValue"]) == (charge, 105)
    assert control.invoice(invoice["id"]) == before


def test_dry_run_after_issue(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A dry run on an issued invoice is refused but breaks no rule."""
    issue(api, invoice)
    charge = f"charges/{invoice['charges'][0]['id']}/recalculate"
    assert api.post(charge, charge_change(dryRun=True)).status == 412
    again = api.post(f"invoices/{invoice['id']}/recalculate", invoice_change(dryRun=True))
    assert again.status == 412
    assert control.record().broken == []


def batch(invoice: Json, *values: int, **changes: object) -> Json:
    """Return a batch body with those values for the invoice's first charges."""
    items = [
        charge_change(id=charge["id"], pricingComponentValue=value)
        for charge, value in zip(invoice["charges"], values, strict=False)
    ]
    wanted = {"recalculateInvoices": True, "invoiceState": "Unpaid", "dryRun": False}
    return {"charges": items, **wanted, **changes}


def test_batch(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """One batch writes all charges and issues their invoice."""
    answer = api.post("charges/recalculate", batch(invoice, 105, 110))
    (found,) = answer.results
    assert [charge["amount"] for charge in found["charges"]] == [Decimal("0.10"), Decimal("0.20")]
    (issued,) = found["recalculatedInvoices"]
    assert (issued["state"], issued["invoiceCost"]) == ("Unpaid", Decimal("0.30"))
    assert control.invoice(invoice["id"]) == issued
    assert control.record().issues == {invoice["id"]: 1}


def test_batch_without_invoices(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A batch may leave the invoices alone, or be a dry run."""
    body = batch(invoice, 105, recalculateInvoices=False, invoiceState=None)
    dry = api.post("charges/recalculate", {**batch(invoice, 105), "dryRun": True})
    assert dry.results[0]["recalculatedInvoices"][0]["state"] == "Unpaid"
    assert control.invoice(invoice["id"]) == invoice
    assert api.post("charges/recalculate", body).results[0]["recalculatedInvoices"] == []
    assert control.invoice(invoice["id"])["state"] == "Pending"


@pytest.mark.parametrize(("atomic", "values"), [(True, [0, 0]), (False, [105, 0])])
def test_batch_with_a_bad_charge(
    api: Caller, control: SandboxControl, invoice: Json, atomic: bool, values: list[int]
) -> None:
    """An atomic batch writes all or nothing; another one writes what came before the bad charge."""
    control.set(batch_is_atomic=atomic)
    body = batch(invoice, 105)
    body["charges"].append(charge_change(id="CHG-0"))
    assert api.post("charges/recalculate", body).status == 404
    found = control.invoice(invoice["id"])
    assert [charge["pricingComponentValue"] for charge in found["charges"]] == values
    assert found["state"] == "Pending"


@pytest.mark.parametrize("atomic", [True, False])
def test_batch_writes_once(
    api: Caller, control: SandboxControl, invoice: Json, atomic: bool
) -> None:
    """Each charge of a batch is written once, either way."""
    control.set(batch_is_atomic=atomic, charge_recalculation_bumps_invoice=True)
    body = batch(invoice, 105, 110, recalculateInvoices=False, invoiceState=None)
    assert api.post("charges/recalculate", body).status == 200
    assert control.invoice(invoice["id"])["versionNumber"] == 3


def test_batch_cannot_issue_twice(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A batch on an issued invoice is a write after issue."""
    api.post("charges/recalculate", batch(invoice, 105))
    assert api.post("charges/recalculate", batch(invoice, 105)).status == 412
    assert len(control.record().writes_after_issue) == 1


def test_quantity_above_the_tiers(api: Caller, control: SandboxControl) -> None:
    """A quantity above the last tier is refused, or priced at that tier if switched so."""
    tiers = [{"lower": 0, "upper": 100, "type": "unit", "price": 1}]
    charge = usage_charge(price={"model": "tiered", "tiers": tiers})
    invoice = control.put_invoice(**february_invoice(charges=[charge]))
    path = f"charges/{invoice['charges'][0]['id']}/recalculate"
    assert api.post(path, charge_change()).body["errorParameters"] == ["pricingComponentValue"]
    control.set(strict_quantities=False)
    assert reprice(api, invoice)["amount"] == 105


def test_ad_hoc_charges(api: Caller, control: SandboxControl) -> None:
    """A charge tied to no component has an amount to change, and nothing to count."""
    charges = [{"name": "Goodwill", "amount": Decimal("3.50")}]
    invoice = control.put_invoice(**february_invoice(charges=charges))
    path = f"charges/{invoice['charges'][0]['id']}/recalculate"
    assert invoice["charges"][0]["type"] == "Manual"
    assert api.post(path, charge_change()).status == 400
    changed = api.post(path, charge_change(pricingComponentValue=None, amount=4))
    assert changed.results[0]["amount"] == 4


def test_into_the_other_states(api: Caller, control: SandboxControl) -> None:
    """An invoice can be recalculated into Paid, which issues it too, and into Voided."""
    paid, voided = (control.put_invoice(**february_invoice()) for _ in range(2))
    assert issue(api, paid, newState="Paid")["invoicePayments"]
    assert issue(api, voided, newState="Voided")["charges"][0]["state"] == "Voided"
    assert control.record().issues == {paid["id"]: 1}
