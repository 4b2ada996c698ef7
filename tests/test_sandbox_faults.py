"""Faults on command."""

from __future__ import annotations

import time

import pytest
import requests
from sandbox_builders import Caller, charge_change, february_invoice, invoice_change

from sandbox.client import ControlError, SandboxControl
from sandbox.wire import Json


@pytest.fixture(name="invoice")
def _invoice(control: SandboxControl) -> Json:
    return control.put_invoice(**february_invoice())


def test_latency(api: Caller, control: SandboxControl) -> None:
    """An answer can be delayed, one or all of them, without holding up others."""
    control.set(latency_seconds=0.02)
    control.add_fault("latency", seconds=0.1)
    started = time.monotonic()
    api.get("webhooks")
    first = time.monotonic() - started
    api.get("webhooks")
    second = time.monotonic() - started - first
    assert first >= 0.12
    assert 0.02 <= second < first


@pytest.mark.parametrize("wait", ["7", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_rate_limit(api: Caller, control: SandboxControl, wait: str) -> None:
    """A 429 carries Retry-After as seconds or as a date."""
    control.add_fault("rate_limit", retry_after=wait)
    answer = api.get("webhooks")
    assert (answer.status, answer.headers["Retry-After"]) == (429, wait)
    assert api.get("webhooks").status == 200


SPOILED: list[tuple[Json, int, str]] = [
    ({"kind": "error", "status": 503}, 503, '"errorType":"ServerError"'),
    ({"kind": "error", "status": 500, "error_type": "BFError", "message": "m"}, 500, '"BFError"'),
    ({"kind": "html", "status": 502}, 502, "<html>"),
    ({"kind": "html", "status": 200, "body": "<p>down</p>"}, 200, "<p>down</p>"),
    ({"kind": "empty", "status": 500}, 500, ""),
    ({"kind": "empty"}, 200, ""),
    ({"kind": "truncated"}, 200, '"results":[{'),
    ({"kind": "error_in_200", "error_type": "ServerError"}, 200, '"errorType":"ServerError"'),
]


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("commit", [False, True])
def test_spoiled_answers(
    api: Caller,
    control: SandboxControl,
    invoice: Json,
    spoiled: tuple[Json, int, str],
    commit: bool,
) -> None:
    """An answer can be spoiled, the request carried out or not."""
    rule, status, text = spoiled
    control.add_fault(**rule, commit=commit)
    path = f"invoices/{invoice['id']}/recalculate"
    response = api.session.post(f"{api.base_url}/{path}", json=invoice_change(), timeout=10)
    assert response.status_code == status
    assert text in response.text
    assert control.invoice(invoice["id"])["state"] == ("Unpaid" if commit else "Pending")
    assert control.record().requests[-1]["fault"] == rule["kind"]


@pytest.mark.parametrize(("kind", "state"), [("drop_before", "Pending"), ("drop_after", "Unpaid")])
def test_dropped_connections(
    api: Caller, control: SandboxControl, invoice: Json, kind: str, state: str
) -> None:
    """A connection can end without an answer, before or after the state has changed."""
    control.add_fault(kind)
    with pytest.raises(requests.ConnectionError):
        api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    assert control.invoice(invoice["id"])["state"] == state
    assert control.record().requests[-1]["status"] is None
    assert api.get("webhooks").status == 200


def test_late_commit(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A request can go unanswered and be carried out later all the same."""
    control.add_fault("late_commit", seconds=0.15)
    with pytest.raises(requests.ConnectionError):
        api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    assert control.invoice(invoice["id"])["state"] == "Pending"
    time.sleep(0.16)
    assert control.invoice(invoice["id"])["state"] == "Unpaid"
    assert control.record().issues == {invoice["id"]: 1}


def test_late_commit_loses_the_race(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A late issue that meets an invoice issued meanwhile is a second issue."""
    control.add_fault("late_commit", seconds=0.05)
    path = f"invoices/{invoice['id']}/recalculate"
    with pytest.raises(requests.ConnectionError):
        api.post(path, invoice_change())
    assert api.post(path, invoice_change()).status == 200
    time.sleep(0.06)
    assert len(control.record().second_issues) == 1


def statuses(api: Caller, path: str, count: int) -> list[int]:
    """Return the statuses of that many GETs."""
    return [api.get(path).status for _ in range(count)]


def test_matching(api: Caller, control: SandboxControl, invoice: Json) -> None:
    """A rule spoils only requests of its method and path."""
    match = {"method": "POST", "path": "/charges/[^/]+/recalculate$"}
    control.add_fault("error", match=match)
    assert statuses(api, f"charges/{invoice['charges'][0]['id']}", 1) == [200]
    path = f"charges/{invoice['charges'][0]['id']}/recalculate"
    assert api.post(path, charge_change()).status == 503
    assert api.post(path, charge_change()).status == 200


def test_nth_and_times(api: Caller, control: SandboxControl) -> None:
    """A rule begins with the n-th match and is used up after so many times."""
    control.add_fault("error", times=2, match={"nth": 3})
    assert statuses(api, "webhooks", 6) == [200, 200, 503, 503, 200, 200]


def test_probability(api: Caller, control: SandboxControl) -> None:
    """A chance is repeatable by its seed, and a rule without end goes on until cleared."""
    runs = []
    for _ in range(2):
        control.add_fault("error", times=None, match={"probability": 0.5, "seed": 4})
        runs.append(statuses(api, "webhooks", 20))
        control.clear_faults()
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 503}
    assert set(statuses(api, "webhooks", 5)) == {200}


def test_first_rule_wins(api: Caller, control: SandboxControl) -> None:
    """Rules are used in the order they were added."""
    control.add_fault("error", status=500)
    control.add_fault("error", status=502)
    assert statuses(api, "webhooks", 3) == [500, 502, 200]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"kind": "gremlin"}, "kind must be one of latency"),
        ({"kind": "latency"}, "latency needs seconds"),
        ({"kind": "latency", "seconds": -1}, "seconds must be"),
        ({"kind": "error", "status": 99}, "status must be 200 to 599"),
        ({"kind": "error", "colour": 1}, "error does not know colour"),
        ({"kind": "error", "match": {"verb": "GET"}}, "error does not know verb"),
        ({"kind": "error", "match": {"path": "("}}, "not a regular expression"),
        ({"kind": "error", "times": 0}, "times must be 1 or more"),
        ({"kind": "html", "body": 1}, "body must be text"),
    ],
)
def test_rules_that_are_none(control: SandboxControl, rule: Json, reason: str) -> None:
    """A rule that makes no sense is refused with the reason."""
    with pytest.raises(ControlError, match=reason.replace("(", r"\(")):
        control.add_fault(**rule)
