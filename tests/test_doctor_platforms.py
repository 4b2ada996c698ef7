"""The doctor on the platform: each misconfiguration seeded in a real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from doctor_builders import PLATFORM, PRICE, TOKEN, Installation, installed, plan

HOOK = "http://billing:x@127.0.0.1:1/webhooks/billforward"


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


def test_a_wrong_token(whole: Installation) -> None:
    """A token that the platform refuses is found, with the variable to put another into."""
    whole.set(TOKEN, "s3cr3t-token-of-another-account")
    finding = whole.bad()
    assert finding.subject == "platform billforward"
    assert "the platform refused our token" in finding.told
    assert TOKEN in finding.mend
    assert "s3cr3t" not in repr(finding)


def test_a_platform_that_is_down(whole: Installation) -> None:
    """A platform that cannot be reached is found."""
    whole.configure(platform=PLATFORM.replace("BASE_URL", "http://127.0.0.1:1/v1"))
    finding = whole.bad()
    assert finding.subject == "platform billforward"
    assert "no connection" in finding.told
    assert "can be reached from here" in finding.mend


def test_a_base_url_with_another_path(whole: Installation) -> None:
    """A base_url below which there is nothing is found."""
    wrong = whole.server.base_url.replace("/v1", "/v7")
    whole.configure(platform=PLATFORM.replace("BASE_URL", wrong))
    finding = whole.bad()
    assert finding.subject == "platform billforward"
    assert ": 404 " in finding.told
    assert "correct platforms.billforward.base_url" in finding.mend


@pytest.mark.parametrize(
    ("status", "told"), [(200, "an answer that is not JSON but text/html"), (301, "a redirect")]
)
def test_a_base_url_of_another_site(whole: Installation, status: int, told: str) -> None:
    """A page or a redirect in the place of the API is found, and leads to base_url."""
    whole.control.add_fault("html", status=status, times=None)
    finding = whole.bad()
    assert finding.subject == "platform billforward"
    assert told in finding.told
    assert "platforms.billforward.base_url" in finding.mend


def test_a_platform_that_says_no_time(whole: Installation) -> None:
    """Whether the platform's answers have a date, decides only whether its clock is compared."""
    assert "platform billforward" in whole.found("clock").told


@pytest.mark.parametrize(
    ("wrong", "told", "mend"),
    [
        (
            {"invoiceIssueType": "Immediate"},
            'rate plan "Silver" has the invoice issue type Immediate',
            'set invoiceIssueType of "Silver" to Manual',
        ),
        (
            {"createZeroValuedInvoices": False},
            'rate plan "Silver" makes no invoices of value 0',
            'set createZeroValuedInvoices of "Silver" to true',
        ),
    ],
)
def test_a_rate_plan_that_does_not_wait(
    whole: Installation, wrong: dict[str, object], told: str, mend: str
) -> None:
    """A rate plan whose invoices are issued without their usage is found, by its name."""
    whole.control.put_plan(**{**plan("Text messages"), "name": "Silver", **wrong})
    finding = whole.bad()
    assert finding.subject == "plans of billforward"
    assert finding.told.startswith(told)
    assert mend in finding.mend


def test_a_rate_plan_without_usage_may_be_immediate(whole: Installation) -> None:
    """A rate plan that has no usage need not wait for anybody."""
    monthly = {"name": "Monthly fee", "chargeType": "subscription", "price": PRICE}
    whole.control.put_plan(name="Flat", components=[monthly], invoiceIssueType="Immediate")
    assert whole.found("plans of billforward").well


def test_every_page_of_the_rate_plans_is_read(whole: Installation) -> None:
    """A wrong rate plan far behind is found too, however small the platform's pages are."""
    whole.control.set(max_records=2)
    for _ in range(5):
        whole.control.put_plan(**plan("Text messages"))
    whole.control.put_plan(**plan("Text messages", invoiceIssueType="Immediate"))
    assert whole.bad().subject == "plans of billforward"


def test_a_component_that_will_be_held_is_told(whole: Installation) -> None:
    """A usage component of a rate plan that is not mapped yet is named before its first invoice."""
    whole.control.put_plan(**plan("Fax pages"))
    finding = whole.found("plans of billforward")
    assert finding.well
    assert 'not mapped, so that invoices with them are held: "Fax pages"' in finding.told


@pytest.mark.parametrize(
    ("extra", "told", "mend"),
    [
        ({"verified": False}, "is not verified", "/webhooks/verify/"),
        ({"format": "XML"}, "sends XML", "format to JSON"),
        (
            {"webhookSubscriptions": [{"domain": "Invoice", "action": "Paid"}]},
            "does not tell of Invoice/Pending",
            "action Pending",
        ),
        ({"ackEnabled": True}, "has ackEnabled, and we do not", "acknowledge = true"),
    ],
)
def test_a_webhook_that_brings_nothing(
    whole: Installation, extra: dict[str, object], told: str, mend: str
) -> None:
    """A webhook that is there and set up wrongly is found with what to change."""
    whole.control.drop_webhooks()
    given = dict(extra)
    ack_enabled = bool(given.pop("ackEnabled", False))
    whole.control.add_webhook(HOOK, ack_enabled=ack_enabled, **given)
    finding = whole.bad()
    assert finding.subject == "webhooks of billforward"
    assert told in finding.told
    assert "billing:x" not in finding.told
    assert mend in finding.mend


def test_we_acknowledge_what_nobody_asks_for(whole: Installation) -> None:
    """The setting acknowledge without the webhook's ackEnabled is found; with it all is well."""
    whole.configure(platform=f"{PLATFORM}acknowledge = true\n")
    finding = whole.bad()
    assert finding.subject == "webhooks of billforward"
    assert "has no ackEnabled, and we acknowledge" in finding.told
    assert "acknowledge = false" in finding.mend
    whole.control.drop_webhooks()
    whole.control.add_webhook(HOOK, ack_enabled=True)
    assert whole.found("webhooks of billforward").well


@pytest.mark.parametrize("others", [(), ("https://billing:x@example.com/hooks/other?key=k3y",)])
def test_no_webhook_leads_here(whole: Installation, others: tuple[str, ...]) -> None:
    """Without a webhook of ours, the URL to make one with is told; others are named."""
    whole.control.drop_webhooks()
    for url in others:
        whole.control.add_webhook(url)
    finding = whole.bad()
    assert finding.subject == "webhooks of billforward"
    assert finding.told.startswith("none leads to /webhooks/billforward")
    assert ("https://example.com/hooks/other" in finding.told) == bool(others)
    assert "k3y" not in finding.told
    assert "https://billing-platform:PASSWORD@HOST/webhooks/billforward" in finding.mend


def test_a_retired_webhook_is_none(whole: Installation) -> None:
    """A webhook that was deleted on the platform brings nothing any more."""
    whole.control.drop_webhooks()
    whole.control.add_webhook(HOOK, deleted=True)
    assert whole.bad().told == "none leads to /webhooks/billforward"


def test_a_webhook_without_tls(whole: Installation) -> None:
    """A webhook over plain http to another machine sends the password in the clear."""
    whole.control.drop_webhooks()
    whole.control.add_webhook("http://billing:x@billing.example.com/webhooks/billforward")
    finding = whole.bad()
    assert finding.subject == "webhooks of billforward"
    assert "sends its password without TLS" in finding.told
    assert "https://" in finding.mend


@pytest.mark.parametrize("path", ["/product-rate-plans", "/webhooks"])
def test_a_token_that_may_not_look_at_settings(whole: Installation, path: str) -> None:
    """A token that may do all the work but not look at settings is well, and it is told."""
    refused = {"status": 403, "error_type": "PermissionsError", "match": {"path": path}}
    whole.control.add_fault("error", times=None, **refused)
    findings = whole.findings()
    assert [finding for finding in findings if not finding.well] == []
    assert any("the platform does not show them" in finding.told for finding in findings)


def test_settings_that_cannot_be_read_now(whole: Installation) -> None:
    """A platform that fails while its settings are read is one finding; the others are made."""
    whole.control.add_fault("error", status=503, match={"path": "/webhooks"}, times=None)
    finding = whole.bad()
    assert finding.subject == "webhooks of billforward"
    assert "503" in finding.told


def test_the_sandbox_lists_its_settings(whole: Installation) -> None:
    """The sandbox lists rate plans and webhooks in the shape recorded, in pages, and dates it."""
    asked = "records=1&order=ASC&include_retired=false"
    login = {"Authorization": f"Bearer {whole.server.token}"}
    plans, webhooks, refused = (
        requests.get(f"{whole.server.base_url}/{path}", headers=login, timeout=10)
        for path in (
            f"product-rate-plans?{asked}",
            f"webhooks?{asked}",
            "product-rate-plans?page=1",
        )
    )
    envelope = plans.json()
    assert envelope["recordsRequested"] == 0
    assert (envelope["recordsReturned"], envelope["totalRecords"]) == (1, 2)
    assert envelope["results"][0]["invoiceIssueType"] == "Manual"
    assert "totalRecords" not in webhooks.json()
    assert webhooks.json()["results"][0]["URL"] == "http://127.0.0.1:1/webhooks/billforward"
    assert refused.status_code == 400
    assert plans.headers["Date"].endswith(" GMT")
    whole.control.add_webhook(HOOK, deleted=True)
    urls = [f"{whole.server.base_url}/webhooks{query}" for query in ("", f"?{asked}&offset=1")]
    numbers = [len(requests.get(u, headers=login, timeout=10).json()["results"]) for u in urls]
    assert numbers == [2, 0]
