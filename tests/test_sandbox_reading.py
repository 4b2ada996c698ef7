"""What GET requests answer."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
import requests
from sandbox_builders import Caller, charge_change, february_invoice, invoice_change, usage_charge

from sandbox.client import ControlError, SandboxControl
from sandbox.server import SandboxServer, serving
from sandbox.wire import Json

MARCH = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(name="invoice")
def _invoice(control: SandboxControl) -> Json:
    return control.put_invoice(**february_invoice(12))


def test_invoice_embeds_all_charges(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """An invoice holds all its charges by id, one line each, in an envelope with totalRecords."""
    answer = api.get(f"invoices/{invoice['id']}")
    assert answer.status == 200
    assert list(answer.body)[:-2] == [
        "currentPage",
        "currentOffset",
        "recordsRequested",
        "recordsReturned",
        "totalRecords",
    ]
    (found,) = answer.results
    assert found["@type"] == "invoice"
    assert (found["type"], found["versionNumber"]) == ("Subscription", 1)
    assert found["versionID"] == found["id"]
    ids = [charge["id"] for charge in found["charges"]]
    assert (len(ids), ids) == (12, sorted(ids))
    assert {line["subscriptionChargeID"] for line in found["invoiceLines"]} == set(ids)
    assert control.record().broken == []


def test_nulls_are_left_out(api: Caller, invoice: Json) -> None:
    """A field without a value is absent, in the invoice and in its charges."""
    answer = api.get(f"invoices/{invoice['id']}")
    assert "null" not in answer.text
    assert "issued" not in answer.results[0]
    assert "description" not in answer.results[0]["charges"][0]


def test_amounts_keep_their_digits(api: Caller, control: SandboxControl) -> None:
    """An amount is an unquoted number with its digits, such as 0.10."""
    charges = [usage_charge(pricingComponentValue=105)]
    invoice = control.put_invoice(**february_invoice(charges=charges))
    assert '"amount":0.10,' in api.get(f"invoices/{invoice['id']}").text


def test_charges_come_ten_at_a_time(api: Caller, invoice: Json) -> None:
    """The charges of an invoice come ten to a page, by id descending, without totalRecords."""
    path = f"invoices/{invoice['id']}/charges"
    first, second = api.get(path), api.get(path, offset=10)
    assert (first.body["recordsRequested"], first.body["recordsReturned"]) == (10, 10)
    assert (second.body["currentPage"], second.body["currentOffset"]) == (1, 10)
    assert second.body["recordsReturned"] == 2
    assert not {"totalRecords", "nextPage"} & set(first.body)
    ids = [charge["id"] for charge in [*first.results, *second.results]]
    assert ids == sorted((charge["id"] for charge in invoice["charges"]), reverse=True)


def test_charges_ascending_and_filtered(
    api: Caller, invoice: Json, control: SandboxControl
) -> None:
    """Order ASC turns the page round; `state` and `type` filter it."""
    path = f"invoices/{invoice['id']}/charges"
    ids = [charge["id"] for charge in invoice["charges"]]
    control.patch_charge(ids[3], state="Voided")
    assert [c["id"] for c in api.get(path, records=200, order="ASC").results] == ids
    assert [c["id"] for c in api.get(path, state="Voided").results] == [ids[3]]
    assert api.get(path, type="Manual").results == []
    assert len(api.get(path, type="PricingComponent", records=50).results) == 12


def test_largest_page(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """A capped page size shows in recordsRequested."""
    control.set(max_records=5)
    answer = api.get(f"invoices/{invoice['id']}/charges", records=200)
    assert (answer.body["recordsRequested"], len(answer.results)) == (5, 5)


def test_invoices_by_state(api: Caller, control: SandboxControl) -> None:
    """Invoices of a state come in pages, by creation if asked."""
    moments = []
    for day in (3, 1, 2):
        control.set_clock(MARCH.replace(day=day), frozen=True)
        moments.append(control.put_invoice(**february_invoice())["created"])
    control.put_invoice(**february_invoice(state="Voided"))
    query = {"order_by": "created", "order": "ASC", "records": 2}
    first = api.get("invoices/state/Pending", **query)
    second = api.get("invoices/state/Pending", offset=2, **query)
    created = [one["created"] for one in [*first.results, *second.results]]
    assert created == sorted(moments)
    assert "totalRecords" not in first.body
    assert len(api.get("invoices/state/Voided").results) == 1


def test_single_entities(api: Caller, control: SandboxControl) -> None:
    """Subscription, account and plan carry metadata and come without paging keys."""
    account = control.put_account(id="ACC-1", metadata={"tenant": "t-9"})
    invoice = control.put_invoice(**february_invoice(accountID="ACC-1", subscriptionID="SUB-1"))
    for path in (
        "subscriptions/SUB-1",
        "accounts/ACC-1",
        f"product-rate-plans/{invoice['charges'][0]['productRatePlanID']}",
    ):
        answer = api.get(path)
        assert set(answer.body) == {"executionTime", "results"}
    assert api.get("accounts/ACC-1").results == [account]
    assert api.get("subscriptions/SUB-1").results[0]["accountID"] == "ACC-1"


def test_charge_by_id(api: Caller, invoice: Json) -> None:
    """A charge can be fetched alone and is the one the invoice embeds."""
    charge = invoice["charges"][0]
    assert api.get(f"charges/{charge['id']}").results == [charge]


def test_retired_versions(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """With include_retired an invoice comes in every version, the newest first."""
    path = f"invoices/{invoice['id']}"
    api.post(f"{path}/recalculate", invoice_change(newState="Pending"))
    answer = api.get(path, include_retired="true")
    assert [one["versionNumber"] for one in answer.results] == [2, 1]
    assert len({one["versionID"] for one in answer.results}) == 2
    assert len(api.get(path).results) == 1
    control.set(include_retired_by_default=True)
    assert len(api.get(path).results) == 2


@pytest.mark.parametrize(
    "path", ["invoices/INV-0", "invoices/INV-0/charges", "charges/CHG-0", "subscriptions/SUB-0"]
)
def test_unknown_id(api: Caller, control: SandboxControl, path: str) -> None:
    """An unknown id is 404 NoSuchEntity, or an empty 200 if switched; never a violation."""
    answer = api.get(path)
    assert (answer.status, answer.body["errorType"]) == (404, "NoSuchEntity")
    control.set(unknown_id_is_empty=True)
    answer = api.get(path)
    assert (answer.status, answer.results) == (200, [])
    assert control.record().broken == []


def test_token(server: SandboxServer, control: SandboxControl) -> None:
    """A wrong token is 401 Oauth; a missing one is a violation as well; neither is recorded."""
    with Caller(server.base_url, "wrong") as stranger:
        answer = stranger.get("webhooks")
        assert (answer.status, answer.body["errorType"]) == (401, "Oauth")
        assert control.record().violations == []
        del stranger.session.headers["Authorization"]
        assert stranger.get("webhooks", access_token=server.token).status == 401
    record = control.record()
    assert len(record.violations) == 1
    assert server.token not in str(record)


def test_odd_values(api: Caller, control: SandboxControl) -> None:
    """An invoice can be given missing periods, unknown enums and unknown fields."""
    charge = usage_charge(
        periodStart=None, periodEnd="2026-02-01", extra={"taxCode": "T", "name": None}
    )
    body = february_invoice(charges=[charge], type="Novel", versionNumber=3, extra={"novel": 1})
    invoice = control.put_invoice(**body)
    (found,) = api.get(f"invoices/{invoice['id']}").results
    assert (found["type"], found["versionNumber"], found["novel"]) == ("Novel", 3, 1)
    (charge,) = found["charges"]
    assert (charge["periodEnd"], charge["taxCode"]) == ("2026-02-01", "T")
    assert not {"periodStart", "name"} & set(charge)


def test_a_colleague(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """State and versionNumber can change behind the client's back."""
    control.patch_invoice(invoice["id"], state="Voided", versionNumber=7)
    (found,) = api.get(f"invoices/{invoice['id']}").results
    assert (found["state"], found["versionNumber"]) == ("Voided", 7)
    assert {charge["state"] for charge in found["charges"]} == {"Voided"}


def test_wrong_control_requests(control: SandboxControl) -> None:
    """The control client raises the sandbox's own sentence."""
    with pytest.raises(ControlError, match="no such setting: speed"):
        control.set(speed=1)
    with pytest.raises(ControlError, match="max_records must be"):
        control.set(max_records=-1)
    with pytest.raises(ControlError, match="colour is not a known field"):
        control.put_invoice(colour="red")
    with pytest.raises(ControlError, match="no invoice has the id"):
        control.patch_invoice("INV-0", state="Paid")


def test_reset(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """A reset forgets entities, switches, faults and the record."""
    control.set(max_records=1)
    control.add_fault("empty", times=None)
    control.reset()
    assert api.get(f"invoices/{invoice['id']}").status == 404
    assert control.set()["max_records"] is None
    assert len(control.record().requests) == 1


def test_record_of_requests(api: Caller, invoice: Json, control: SandboxControl) -> None:
    """Each request is recorded with its query, body and status."""
    charge = invoice["charges"][0]["id"]
    api.get(f"invoices/{invoice['id']}/charges", records=3)
    api.post(f"charges/{charge}/recalculate", charge_change())
    read, written = control.record().requests
    assert (read["method"], read["query"], read["status"]) == ("GET", "records=3", 200)
    assert written["path"] == f"/v1/charges/{charge}/recalculate"
    assert written["body"] == charge_change()
    assert control.record().sent("POST", "/recalculate") == [written]
    control.clear_record()
    assert control.record().requests == []


def test_fast_enough(api: Caller, control: SandboxControl) -> None:
    """An invoice of 51 charges is answered in a few milliseconds."""
    invoice = control.put_invoice(**february_invoice(51))
    api.get(f"invoices/{invoice['id']}")
    started = time.perf_counter()
    for _ in range(20):
        api.get(f"charges/{invoice['charges'][0]['id']}")
        api.session.get(f"{api.base_url}/invoices/{invoice['id']}", timeout=10)
    assert (time.perf_counter() - started) / 40 < 0.05


def test_hangs_up_when_stopped() -> None:
    """Stopping ends kept connections, so that nothing waits for an idle client."""
    with serving() as server:
        api = Caller(server.base_url, server.token)
        assert api.get("webhooks").status == 200
    with api, pytest.raises(requests.ConnectionError):
        api.get("webhooks")
