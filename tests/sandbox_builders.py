"""Bodies, and a plain HTTP client, for tests against the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any

import requests

from sandbox.wire import Json, decode

TEXTS = {
    "model": "tiered",
    "tiers": [
        {"lower": 0, "upper": 100, "type": "unit", "price": Decimal("0.00")},
        {"lower": 101, "upper": None, "type": "unit", "price": Decimal("0.02")},
    ],
}
FEE = {
    "model": "flat",
    "tiers": [{"lower": 0, "upper": None, "type": "fixed", "price": Decimal("5.00")}],
}


def usage_charge(number: int = 0, **changes: Any) -> Json:
    """Return a usage charge of January, whose name is not unique, for a February invoice."""
    return {
        "name": "Messages",
        "pricingComponentName": f"Text messages {number}",
        "pricingComponentType": "usage",
        "pricingComponentValue": 0,
        "periodStart": "2026-01-01T00:00:00Z",
        "periodEnd": "2026-02-01T00:00:00Z",
        "price": TEXTS,
        **changes,
    }


def february_invoice(count: int = 1, /, **changes: Any) -> Json:
    """Return a Pending invoice with that many usage charges."""
    return {
        "periodStart": "2026-02-01T00:00:00Z",
        "periodEnd": "2026-03-01T00:00:00Z",
        "charges": [usage_charge(number) for number in range(count)],
        **changes,
    }


def charge_change(**changes: Any) -> Json:
    """Return a correct body to recalculate a charge to 105 items."""
    return {
        "pricingComponentValue": 105,
        "recalculationBehaviour": "RecalculateWithCurrentPricing",
        **changes,
    }


def invoice_change(**changes: Any) -> Json:
    """Return a correct body to issue an invoice."""
    return {
        "newState": "Unpaid",
        "recalculationBehaviour": "RecalculateAsLatestSubscriptionVersion",
        "onlyInvoiceAssociatedCharges": True,
        "dryRun": False,
        **changes,
    }


@dataclass(frozen=True)
class Answer:
    """One answer of the API: its status, its parsed body and its text."""

    status: int
    body: Json
    text: str = ""
    headers: Json = field(default_factory=dict)

    @property
    def results(self) -> list[Json]:
        """The entities in it."""
        found: list[Json] = self.body["results"]
        return found


class Caller:
    """Calls the API at *base_url* with *token*, over one kept connection."""

    def __init__(self, base_url: str, token: str) -> None:
        self.base_url = base_url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.close()

    def get(self, path: str, **query: Any) -> Answer:
        """GET a path below the base path."""
        return _answer(self.session.get(f"{self.base_url}/{path}", params=query, timeout=10))

    def post(self, path: str, body: Json) -> Answer:
        """POST a JSON body to a path below the base path."""
        return _answer(self.session.post(f"{self.base_url}/{path}", json=body, timeout=10))


def _answer(response: requests.Response) -> Answer:
    is_json = response.headers["Content-Type"].startswith("application/json") and response.text
    body = decode(response.content) if is_json else {}
    return Answer(response.status_code, body, response.text, dict(response.headers))
