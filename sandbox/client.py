"""A small client for a sandbox's control API."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import requests

from sandbox.moments import text_of
from sandbox.wire import Json, decode, encode

_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.01


class ControlError(Exception):
    """The control API refused; the message is its sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordView:
    """The sandbox's record as it was when asked; numbers with a fraction are Decimal."""

    requests: Sequence[Json]
    """{at, method, path, query, body, status (None: dropped), fault}"""
    violations: Sequence[str]
    second_issues: Sequence[Json]
    writes_after_issue: Sequence[Json]
    issues: Mapping[str, int]
    """How often each invoice was issued, by its id."""
    notifications: Sequence[Json]
    """{id, invoiceID, action, attempts: [{at, url, status, error}], acked, open}"""

    @property
    def broken(self) -> list[Any]:
        """Everything that a correct client never causes; tests want it empty."""
        return [*self.violations, *self.second_issues, *self.writes_after_issue]

    def sent(self, method: str, path_end: str = "") -> list[Json]:
        """Return the requests of *method* whose path ends in *path_end*, oldest first."""
        return [
            one
            for one in self.requests
            if one["method"] == method and one["path"].endswith(path_end)
        ]


class SandboxControl:
    """Drives the sandbox at *url*, its control URL; close it after use, or use it in `with`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy must not come between us and the loopback

    def __enter__(self) -> SandboxControl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def put_invoice(self, **fields: Any) -> Json:
        """Put an invoice with its charges in any state, `notify=True` to tell the webhooks."""
        return self._ask("POST", "invoices", fields)

    def invoice(self, invoice_id: str) -> Json:
        """Return an invoice with its charges, outside the record and the faults."""
        return self._ask("GET", f"invoices/{invoice_id}")

    def invoices(self) -> list[Json]:
        """Return every invoice, oldest first."""
        found: list[Json] = self._ask("GET", "invoices")["results"]
        return found

    def patch_invoice(self, invoice_id: str, **fields: Any) -> Json:
        """Set state, versionNumber or extra, as a colleague might; `notify=True` to tell."""
        return self._ask("PATCH", f"invoices/{invoice_id}", fields)

    def patch_charge(self, charge_id: str, **fields: Any) -> Json:
        """Set state, versionNumber, pricingComponentValue or extra of a charge."""
        return self._ask("PATCH", f"charges/{charge_id}", fields)

    def put_plan(self, **fields: Any) -> Json:
        """Store a rate plan with its components."""
        return self._ask("POST", "plans", fields)

    def put_account(self, **fields: Any) -> Json:
        """Store an account: `id`, `metadata`."""
        return self._ask("POST", "accounts", fields)

    def put_subscription(self, **fields: Any) -> Json:
        """Store a subscription and raise its first invoice."""
        return self._ask("POST", "subscriptions", fields)

    def cancel(self, subscription_id: str, at: datetime | None = None) -> Json:
        """End a subscription (default: at its own now); return its FinalArrears invoice."""
        body = {} if at is None else {"at": text_of(at)}
        return self._ask("POST", f"subscriptions/{subscription_id}/cancel", body)

    def add_webhook(self, url: str, *, ack_enabled: bool = False, **extra: Any) -> Json:
        """Send notifications to *url* from now on; user:password in it become HTTP basic.

        It is listed with the *extra* fields, such as `verified=False`.
        """
        body = {"url": url, "ackEnabled": ack_enabled, "extra": extra}
        return self._ask("POST", "webhooks", body)

    def drop_webhooks(self) -> None:
        """Send no notifications any more."""
        self._ask("DELETE", "webhooks")

    def notify(
        self,
        invoice_id: str,
        *,
        action: str | None = None,
        times: int = 1,
        notification_id: str | None = None,
    ) -> str:
        """Notify an invoice's state, or *action*, *times* under one id; return that id."""
        body: Json = {"invoiceID": invoice_id, "times": times}
        body |= {"action": action} if action else {}
        body |= {"id": notification_id} if notification_id else {}
        sent: str = self._ask("POST", "notify", body)["id"]
        return sent

    def add_fault(self, kind: str, *, times: int | None = 1, **rule: Any) -> None:
        """Add a fault rule: `match={...}` and the details of its kind."""
        self._ask("POST", "faults", {"kind": kind, "times": times, **rule})

    def clear_faults(self) -> None:
        """Forget all fault rules."""
        self._ask("DELETE", "faults")

    def set(self, **settings: Any) -> Json:
        """Change settings by name; return all of them."""
        return self._ask("POST", "settings", settings)

    def set_clock(self, now: datetime, *, frozen: bool = False) -> None:
        """Set the sandbox's clock; it runs on unless *frozen*."""
        self._ask("POST", "clock", {"now": text_of(now), "frozen": frozen})

    def advance_clock(self, seconds: int) -> None:
        """Move the sandbox's clock forward."""
        self._ask("POST", "clock", {"advance_seconds": seconds})

    def record(self) -> RecordView:
        """Return what the sandbox has recorded so far."""
        return RecordView(**self._ask("GET", "record"))

    def clear_record(self) -> None:
        """Forget requests and broken rules; how often each invoice was issued stays known."""
        self._ask("DELETE", "record")

    def reset(self) -> None:
        """Forget everything and return to the settings and webhooks it was started with."""
        self._ask("POST", "reset")

    def wait_until_delivered(self, timeout_seconds: float = 10.0) -> list[Json]:
        """Wait until no notification will be tried again; return them all, or TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            found: list[Json] = self._ask("GET", "notifications")["notifications"]
            if not any(one["open"] for one in found):
                return found
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"notifications are still open after {timeout_seconds} s")

    def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        response = self._session.request(
            method,
            f"{self.url}/{path}",
            data=None if body is None else encode(body),
            headers={"Content-Type": "application/json"},
            timeout=_TIMEOUT_SECONDS,
        )
        answer: Json = decode(response.content)
        if response.status_code != 200:
            raise ControlError(answer.get("error", str(answer)))
        return answer
