"""Which requests the sandbox refuses and remembers."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import pytest
from sandbox_builders import Caller, charge_change, february_invoice, invoice_change

from sandbox.client import SandboxControl
from sandbox.server import SandboxServer
from sandbox.wire import Json


@pytest.fixture(name="invoice")
def _invoice(control: SandboxControl) -> Json:
    return control.put_invoice(**february_invoice(2))


def raw(server: SandboxServer, method: str, target: str, body: bytes, **headers: str) -> int:
    """Send a request that no ordinary client would, and return the status."""
    parts = urlsplit(server.origin)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    headers = {"Authorization": f"Bearer {server.token}", **headers}
    connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status


def without(body: Json, name: str) -> Json:
    """Return *body* without one field."""
    return {key: value for key, value in body.items() if key != name}


BAD_CHARGE_CHANGES: list[tuple[Json, str]] = [
    (without(charge_change(), "recalculationBehaviour"), "recalculationBehaviour is required"),
    (charge_change(recalculationBehaviour="RecalculateAsLatestSubscriptionVersion"), "must be one"),
    (charge_change(pricingComponentValue=-1), "a whole number of 0 or more, not -1"),
    (charge_change(pricingComponentValue=1.5), "a whole number of 0 or more"),
    (charge_change(pricingComponentValue="105"), "a whole number of 0 or more, not '105'"),
    (charge_change(pricingComponentValue=True), "a whole number of 0 or more, not True"),
    (charge_change(dryRun="false"), "dryRun must be true or false"),
    (charge_change(invoicingType="Later"), "invoicingType must be one of"),
    (charge_change(quantity=1), "quantity is not a known field"),
    (charge_change(amount=3), "the amount follows from"),
]


@pytest.mark.parametrize(("body", "reason"), BAD_CHARGE_CHANGES)
def test_bad_charge_changes(
    api: Caller, control: SandboxControl, invoice: Json, body: Json, reason: str
) -> None:
    """A charge recalculation that breaks a rule is a 400, a violation, and changes nothing."""
    charge = invoice["charges"][0]["id"]
    answer = api.post(f"charges/{charge}/recalculate", body)
    assert (answer.status, answer.body["errorType"]) == (400, "ValidationError")
    assert reason in answer.body["errorMessage"]
    assert answer.body["errorParameters"]
    (violation,) = control.record().violations
    assert violation.startswith(f"POST /v1/charges/{charge}/recalculate: ")
    assert control.invoice(invoice["id"]) == invoice


BAD_INVOICE_CHANGES: list[Json] = [
    *(without(invoice_change(), name) for name in invoice_change()),
    invoice_change(newState="Issued"),
    invoice_change(recalculationBehaviour="RecalculateWithCurrentPricing"),
    invoice_change(onlyInvoiceAssociatedCharges=False),
    invoice_change(dryRun=0),
    invoice_change(state="Unpaid"),
]


@pytest.mark.parametrize("body", BAD_INVOICE_CHANGES)
def test_bad_invoice_changes(
    api: Caller, control: SandboxControl, invoice: Json, body: Json
) -> None:
    """An invoice recalculation needs all four fields with right values, and no others."""
    answer = api.post(f"invoices/{invoice['id']}/recalculate", body)
    assert (answer.status, answer.body["errorType"]) == (400, "ValidationError")
    assert len(control.record().violations) == 1
    assert control.invoice(invoice["id"]) == invoice


def test_all_complaints_at_once(api: Caller, invoice: Json) -> None:
    """One error names every field at fault."""
    answer = api.post(f"invoices/{invoice['id']}/recalculate", {"newState": "X", "odd": 1})
    assert answer.body["errorParameters"] == [
        "odd",
        "recalculationBehaviour",
        "newState",
        "onlyInvoiceAssociatedCharges",
        "dryRun",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"charges": []},
        {"charges": ["CHG-1"]},
        {"charges": None},
        {"invoiceState": None},
        {"invoiceState": "Issued"},
        {"recalculateInvoices": None},
        {"newState": "Unpaid"},
    ],
)
def test_bad_batches(
    api: Caller, control: SandboxControl, invoice: Json, changes: dict[str, Any]
) -> None:
    """A batch names its charges, recalculateInvoices and the state to go to."""
    item = charge_change(id=invoice["charges"][0]["id"])
    body = {"charges": [item], "recalculateInvoices": True, "invoiceState": "Unpaid", **changes}
    assert api.post("charges/recalculate", body).status == 400
    assert len(control.record().violations) == 1
    assert control.invoice(invoice["id"]) == invoice


def test_a_charge_twice_in_a_batch(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A batch holds each charge once."""
    item = charge_change(id=invoice["charges"][0]["id"])
    body = {"charges": [item, item], "recalculateInvoices": False}
    assert api.post("charges/recalculate", body).status == 400
    assert "twice" in control.record().violations[0]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"newState=Unpaid", "application/x-www-form-urlencoded"),
        (b"{}", "text/plain"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'{"newState":"Unpaid","newState":"Pending"}', "application/json"),
        (b'{"dryRun":NaN}', "application/json"),
        (b'{"newState":"\\u0000"}', "application/json"),
        (b"\xff", "application/json"),
        (b"", "application/json"),
    ],
)
def test_bodies_that_cannot_be_read(
    server: SandboxServer,
    control: SandboxControl,
    invoice: Json,
    body: bytes,
    content_type: str,
) -> None:
    """A body must be one JSON object, without doubt about its meaning, and say so."""
    target = f"/v1/invoices/{invoice['id']}/recalculate"
    assert raw(server, "POST", target, body, Content_Type=content_type) == 400
    assert len(control.record().violations) == 1


@pytest.mark.parametrize(
    "target",
    [
        "/v1/invoices/../charges/CHG-1",
        "/v1/invoices/INV-1%2Fcharges",
        "/v1/invoices/INV-1%2fcharges",
        "/v1/invoices/%2e%2e/webhooks",
        "/v1/invoices//charges",
        "/v1/invoices/INV-1%00",
        "/v1/invoices/INV-1\\charges",
        "/v1/invoices/..",
    ],
)
def test_path_tricks(server: SandboxServer, control: SandboxControl, target: str) -> None:
    """A path with dot segments, encoded slashes or the like is refused and remembered."""
    assert raw(server, "GET", target, b"") == 400
    assert "plays tricks" in control.record().violations[0]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/invoice/INV-1", 404),
        ("GET", "/v2/invoices/INV-1", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/invoices/INV-1", 405),
        ("DELETE", "/v1/charges/CHG-1", 405),
        ("GET", "/v1/charges/CHG-1/recalculate", 405),
        ("POST", "/v1/charges/CHG-1/recalculate?dryRun=true", 400),
        ("GET", "/v1/invoices/INV-1?expand=charges", 400),
        ("GET", "/v1/webhooks?records=5&records=6", 400),
        ("GET", "/v1/webhooks?records=0", 400),
        ("GET", "/v1/webhooks?records=ten", 400),
        ("GET", "/v1/webhooks?offset=-1", 400),
        ("GET", "/v1/invoices/state/Issued", 400),
        ("GET", "/v1/invoices/state/Pending?order=asc", 400),
        ("GET", "/v1/invoices/state/Pending?order_by=colour", 400),
    ],
)
def test_paths_and_parameters(
    server: SandboxServer, control: SandboxControl, method: str, target: str, status: int
) -> None:
    """Unknown paths, methods and parameters are refused and remembered."""
    assert raw(server, method, target, b"") == status
    assert len(control.record().violations) == 1


def test_get_with_a_body(server: SandboxServer, control: SandboxControl) -> None:
    """A GET carries no body."""
    assert raw(server, "GET", "/v1/webhooks", b"{}", Content_Type="application/json") == 400
    assert control.record().violations == ["GET /v1/webhooks: a GET carries no body"]


def test_bodies_too_large(server: SandboxServer) -> None:
    """A body of unknown or absurd length is not read."""
    assert raw(server, "POST", "/v1/x", b"", Content_Length="99999999999") == 413
    assert raw(server, "POST", "/v1/x", b"0\r\n\r\n", Transfer_Encoding="chunked") == 413


@pytest.mark.parametrize("state", ["Voided", "Paid"])
def test_states_that_cannot_be_recalculated(
    api: Caller, control: SandboxControl, invoice: Json, state: str
) -> None:
    """A Voided or Paid invoice stays as it is; trying to change it is a violation."""
    before = control.patch_invoice(invoice["id"], state=state)
    path, body = f"invoices/{invoice['id']}/recalculate", invoice_change(newState="Pending")
    answer = api.post(path, body)
    assert (answer.status, answer.body["errorType"]) == (409, "InconsistentState")
    assert len(control.record().violations) == 1
    control.set(record_state_conflicts=False)
    assert api.post(path, body).status == 409
    assert len(control.record().violations) == 1
    assert control.invoice(invoice["id"]) == before
