"""BillForward's rate plans and webhooks: what of their settings keeps usage from being billed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from worker.platforms.billforward_wire import rows
from worker.ports import Fault, RatePlan, Webhook

_AT_BILLFORWARD = "in BillForward's pages"


def plan(row: Mapping[str, Any]) -> RatePlan:
    """Read a rate plan; only one with usage can be set wrongly for us."""
    name = _shown(row, "name")
    components = rows(row.get("pricingComponents") or [], "pricingComponents")
    usage = [_shown(one, "name") for one in components if one.get("chargeType") == "usage"]
    faults = _plan_faults(name, row) if usage else ()
    return RatePlan(name=name, usage_components=tuple(usage), faults=tuple(faults))


def _plan_faults(name: str, row: Mapping[str, Any]) -> Iterator[Fault]:
    issue_type = row.get("invoiceIssueType", "Immediate")
    if issue_type != "Manual":
        yield Fault(
            told=f'rate plan "{name}" has the invoice issue type {issue_type}: its invoices do not'
            " wait for us, and usage is billed as 0 or the default quantity",
            mend=f'set invoiceIssueType of "{name}" to Manual {_AT_BILLFORWARD}',
        )
    if row.get("createZeroValuedInvoices") is False:
        yield Fault(
            told=f'rate plan "{name}" makes no invoices of value 0: one whose usage is still to be'
            " counted may never be raised",
            mend=f'set createZeroValuedInvoices of "{name}" to true {_AT_BILLFORWARD}',
        )


def webhook(row: Mapping[str, Any], *, acknowledge: bool) -> Webhook:
    """Read a webhook; `acknowledge` is our own setting."""
    url = _without_user(_shown(row, "URL"))
    return Webhook(url=url, faults=tuple(_webhook_faults(url, row, acknowledge=acknowledge)))


def _webhook_faults(url: str, row: Mapping[str, Any], *, acknowledge: bool) -> Iterator[Fault]:
    which = f"the webhook to {url}"
    if row.get("verified") is False:
        yield Fault(
            told=f"{which} is not verified: nothing is sent to it",
            mend=f"verify it {_AT_BILLFORWARD}, or by GET /webhooks/verify/ and its verificationID",
        )
    if row.get("format", "JSON") != "JSON":
        yield Fault(
            told=f"{which} sends {row['format']}, and only JSON is read",
            mend=f"set its format to JSON {_AT_BILLFORWARD}",
        )
    if not _tells_of_pending(row):
        yield Fault(
            told=f"{which} does not tell of Invoice/Pending",
            mend=f"subscribe it to domain Invoice, action Pending {_AT_BILLFORWARD}",
        )
    acked = row.get("ackEnabled")
    if acked is True and not acknowledge:
        yield Fault(
            told=f"{which} has ackEnabled, and we do not acknowledge: each notification is sent"
            " again and again",
            mend="set acknowledge = true for the platform in the config, or switch ackEnabled off",
        )
    if acked is False and acknowledge:
        yield Fault(
            told=f"{which} has no ackEnabled, and we acknowledge: one request too many for each"
            " notification",
            mend="set acknowledge = false for the platform in the config, or switch ackEnabled on",
        )


def _tells_of_pending(row: Mapping[str, Any]) -> bool:
    """Look through the subscriptions; a webhook that lists none is not judged."""
    subscriptions = rows(row.get("webhookSubscriptions") or [], "webhookSubscriptions")
    told = [
        (one.get("domain"), one.get("action")) for one in subscriptions if not one.get("deleted")
    ]
    return not told or ("Invoice", "Pending") in told


def _shown(row: Mapping[str, Any], key: str) -> str:
    """Return a text to show; what is left out or no text has none."""
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _without_user(url: str) -> str:
    """Return the URL without what may be a secret: user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "?"
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, query="", fragment="").geturl()
