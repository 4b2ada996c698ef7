"""BillForward: its paths and request bodies; `billforward_wire` reads its answers.

No other module knows BillForward's words. Facts come from BillForward's own documentation and
from answers recorded in 2026; where the two differ, the recordings count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from worker.domain import Delivery, Invoice, InvoiceState, Owner, UsageCharge
from worker.errors import (
    OutcomeUnknown,
    PlatformAnswerInvalid,
    PlatformUnavailable,
    ReconcilerError,
    Stopped,
    TransientError,
)
from worker.platforms import billforward_settings as settings
from worker.platforms import billforward_wire as wire
from worker.platforms.rest import Heard, NotFound, RestClient, RestLimits
from worker.ports import RatePlan, Webhook
from worker.writes import ChargeWrite, Exchange, IssueWrite

_PAGE = 200
_MOST_PAGES = 100
_PENDING_PAGE = 50  # whole invoices, with all their charges
_LONGEST_TIMEOUT_SECONDS = 3600


@dataclass(kw_only=True)
class BillForward:
    """BillForward's REST API as a `BillingPlatform`. Its fields are its settings."""

    name: str = field(metadata={"setting": False})
    base_url: str  # in full: sandbox, production and tenants differ
    token: str = field(repr=False, metadata={"secret": True})
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 30.0
    total_timeout_seconds: float = 60.0  # over all attempts at one call
    concurrency: int = 8  # charges recalculated at a time
    acknowledge: bool = False  # where the webhook's ackEnabled is set
    recalculation: Literal["each", "batch"] = "each"
    charge_behaviour: Literal["RecalculateWithLatestPricing", "RecalculateWithCurrentPricing"] = (
        "RecalculateWithLatestPricing"
    )
    invoice_behaviour: Literal[
        "RecalculateAsLatestSubscriptionVersion", "RecalculateAsCurrentSubscriptionVersion"
    ] = "RecalculateAsLatestSubscriptionVersion"
    sleep: Callable[[float], None] = field(default=time.sleep, metadata={"setting": False})

    def __post_init__(self) -> None:
        if not _is_plain_url(self.base_url):
            raise ValueError("base_url must be a plain http(s) URL such as https://host/v1")
        if not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("token has a character that a header cannot carry")
        if not 1 <= self.concurrency <= 64:
            raise ValueError("concurrency must be between 1 and 64")
        for name in ("connect_timeout_seconds", "read_timeout_seconds", "total_timeout_seconds"):
            if not 0 < getattr(self, name) <= _LONGEST_TIMEOUT_SECONDS:
                raise ValueError(f"{name} must be above 0 and at most {_LONGEST_TIMEOUT_SECONDS}")
        self._rest = RestClient(
            self.base_url,
            self.token,
            limits=RestLimits(
                connect=self.connect_timeout_seconds,
                read=self.read_timeout_seconds,
                total=self.total_timeout_seconds,
            ),
            connections=self.concurrency,
            error_of=wire.error_of,
            sleep=self.sleep,
        )
        self._pool = futures.ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)

    @property
    def calls(self) -> int:
        return self._rest.calls

    @property
    def longest_call(self) -> timedelta:
        return timedelta(seconds=self.connect_timeout_seconds + self.read_timeout_seconds)

    def tell_requests(self, to: Callable[[str, float], None]) -> None:
        """Call this after each request with its status code ("none": no answer) and its seconds."""
        self._rest.told = to

    def parse_delivery(self, body: bytes) -> Delivery:
        return wire.delivery(self.name, body, owes_ack=self.acknowledge)

    def invoice(self, invoice_id: str) -> Invoice | None:
        try:
            answer = self._rest.get(
                f"/invoices/{quote(invoice_id, safe='')}", {"include_retired": "false"}
            )
        except NotFound:
            return None
        versions = [wire.invoice(row) for row in wire.results(answer)]
        if not versions:
            return None
        if any(version.id != invoice_id for version in versions):
            raise PlatformAnswerInvalid(f"asked for {invoice_id}, got {versions[0].id}")
        return max(versions, key=lambda version: version.version)

    def usage_charges(self, invoice: Invoice) -> Sequence[UsageCharge]:
        newest: dict[str, dict[str, Any]] = {}
        for row in self._charge_rows(invoice.id):
            charge_id = wire.charge_id(row)
            known = newest.get(charge_id)
            if known is None or wire.charge_version(known) <= wire.charge_version(row):
                newest[charge_id] = row
        found = [wire.charge(row, invoice.id) for row in newest.values() if wire.is_usage(row)]
        if missing := invoice.usage_charge_ids - {charge.id for charge in found}:
            raise TransientError(f"the list of charges lacks {sorted(missing)[0]} of the invoice")
        return found

    def metadata(self, owner: Owner, owner_id: str) -> Mapping[str, str]:
        try:
            answer = self._rest.get(f"/{owner.value}s/{quote(owner_id, safe='')}")
        except NotFound:
            return {}
        return next((wire.metadata(row, owner_id) for row in wire.results(answer)), {})

    def recalculate(
        self, invoice: Invoice, quantities: Mapping[str, int], stopping: Callable[[], bool]
    ) -> Iterator[ChargeWrite]:
        if self.recalculation == "batch":
            return self._recalculate_batch(invoice, quantities)
        return self._recalculate_each(invoice, quantities, stopping)

    def preview(self, invoice: Invoice, quantities: Mapping[str, int]) -> Sequence[UsageCharge]:
        rows = self._batch(quantities, dry_run=True)
        writes = [wire.written(one, n, invoice.id, rows) for one, n in quantities.items()]
        return [write.charge for write in writes if write.charge is not None]

    def issue(self, invoice: Invoice) -> IssueWrite:
        sent: list[Exchange] = []
        try:
            write = IssueWrite(invoice=self._issued(invoice, sent.append))
        except ReconcilerError as error:
            write = IssueWrite(error=error)
        return replace(write, exchange=_last(sent))

    def _issued(self, invoice: Invoice, heard: Heard) -> Invoice:
        answer = self._rest.post_once(
            f"/invoices/{quote(invoice.id, safe='')}/recalculate",
            {
                "newState": "Unpaid",
                "recalculationBehaviour": self.invoice_behaviour,
                "onlyInvoiceAssociatedCharges": True,
                "dryRun": False,
            },
            heard,
        )
        try:
            issued = next(wire.invoice(row) for row in wire.results(answer))
        except (PlatformAnswerInvalid, StopIteration) as error:
            raise OutcomeUnknown(f"issuing {invoice.id} was answered, but unreadably") from error
        if issued.id != invoice.id:
            raise OutcomeUnknown(f"issuing {invoice.id} was answered with another invoice")
        if issued.state not in (InvoiceState.UNPAID, InvoiceState.PAID):
            raise OutcomeUnknown(f"issuing {invoice.id} was answered with {issued.state_text}")
        return issued

    def pending_invoices(self, offset: int) -> Sequence[str]:
        query: dict[str, str | int] = {
            "records": _PENDING_PAGE,
            "offset": offset,
            "order_by": "created",
            "order": "ASC",
            "include_retired": "false",
        }
        rows = wire.results(self._rest.get("/invoices/state/Pending", query))
        return [wire.invoice_id(row) for row in rows]

    def acknowledge_delivery(self, delivery_id: str) -> None:
        # A GET with an effect: sent once, and never by a layer that repeats reads.
        self._rest.get_once(f"/notifications/ack/{quote(delivery_id, safe='')}")

    def clock(self) -> datetime | None:
        return self._rest.date

    def plans(self) -> Sequence[RatePlan]:
        return [settings.plan(row) for row in self._setting_rows("/product-rate-plans")]

    def webhooks(self) -> Sequence[Webhook]:
        rows = self._setting_rows("/webhooks")
        return [settings.webhook(row, acknowledge=self.acknowledge) for row in rows]

    def _setting_rows(self, path: str) -> Iterator[dict[str, Any]]:
        """List what is not retired. How large a page is, the platform does not always say."""
        query: dict[str, str | int] = {
            "records": _PAGE,
            "order_by": "created",
            "order": "ASC",
            "include_retired": "false",
        }
        offset = 0
        for _ in range(_MOST_PAGES):
            rows = wire.results(self._rest.get(path, {**query, "offset": offset}))
            if not rows:
                return
            yield from rows
            offset += len(rows)
        raise PlatformAnswerInvalid(f"more than {_MOST_PAGES} pages of {path}")

    def check(self) -> None:
        wire.results(self._rest.get("/invoices/state/Pending", {"records": 1, "order": "ASC"}))

    def _charge_rows(self, invoice_id: str) -> Iterator[dict[str, Any]]:
        offset = 0
        for _ in range(_MOST_PAGES):
            answer = self._rest.get(
                f"/invoices/{quote(invoice_id, safe='')}/charges",
                {
                    "records": _PAGE,
                    "offset": offset,
                    "order_by": "id",
                    "order": "ASC",
                    "include_retired": "false",
                },
            )
            rows = wire.results(answer)
            yield from rows
            # The platform may give smaller pages than asked for; it says so here.
            page = answer.get("recordsRequested")
            size = page if isinstance(page, int) and 0 < page < _PAGE else _PAGE
            if len(rows) < size:
                return
            offset += len(rows)
        raise PlatformAnswerInvalid(f"more than {_MOST_PAGES} pages of charges on {invoice_id}")

    def _recalculate_each(
        self, invoice: Invoice, quantities: Mapping[str, int], stopping: Callable[[], bool]
    ) -> Iterator[ChargeWrite]:
        waiting = list(quantities.items())[::-1]
        running: set[futures.Future[ChargeWrite]] = set()
        failed = False
        try:
            while True:
                while waiting and not (failed or stopping()) and len(running) < self.concurrency:
                    running.add(self._begun(invoice.id, *waiting.pop()))
                if not running:
                    break
                done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for future in done:
                    write = future.result()
                    failed = failed or write.error is not None
                    yield write
        finally:
            futures.wait(running)
        unsent: ReconcilerError = Stopped("not sent, because the worker was asked to end")
        if failed:
            unsent = PlatformUnavailable("not sent, because another charge failed")
        for charge_id, _ in waiting:
            yield ChargeWrite(charge_id=charge_id, error=unsent)

    def _begun(self, invoice_id: str, charge_id: str, quantity: int) -> futures.Future[ChargeWrite]:
        """Write on another thread, whose log lines tell the invoice as this one's do."""
        write = partial(self._write, invoice_id, charge_id, quantity)
        return self._pool.submit(copy_context().run, write)

    def _write(self, invoice_id: str, charge_id: str, quantity: int) -> ChargeWrite:
        sent: list[Exchange] = []
        try:
            answer = self._rest.put_value(
                f"/charges/{quote(charge_id, safe='')}/recalculate",
                {
                    "pricingComponentValue": quantity,
                    "recalculationBehaviour": self.charge_behaviour,
                },
                sent.append,
            )
            write = wire.written(charge_id, quantity, invoice_id, wire.results(answer))
        except ReconcilerError as error:
            write = ChargeWrite(charge_id=charge_id, error=error)
        return replace(write, exchange=_last(sent))

    def _recalculate_batch(
        self, invoice: Invoice, quantities: Mapping[str, int]
    ) -> Iterator[ChargeWrite]:
        """Write all in one request, which the first of them carries."""
        sent: list[Exchange] = []
        for write in self._batch_writes(invoice, quantities, sent.append):
            yield replace(write, exchange=_last(sent))
            sent.clear()

    def _batch_writes(
        self, invoice: Invoice, quantities: Mapping[str, int], heard: Heard
    ) -> Iterator[ChargeWrite]:
        if not quantities:
            return
        try:
            rows = self._batch(quantities, dry_run=False, heard=heard)
        except ReconcilerError as error:
            for charge_id in quantities:
                yield ChargeWrite(charge_id=charge_id, error=error)
            return
        for charge_id, quantity in quantities.items():
            try:
                yield wire.written(charge_id, quantity, invoice.id, rows)
            except ReconcilerError as error:
                yield ChargeWrite(charge_id=charge_id, error=error)

    def _batch(
        self, quantities: Mapping[str, int], *, dry_run: bool, heard: Heard | None = None
    ) -> list[dict[str, Any]]:
        """Recalculate charges in one request; return their rows."""
        charges = [
            {
                "id": charge_id,
                "pricingComponentValue": quantity,
                "recalculationBehaviour": self.charge_behaviour,
            }
            for charge_id, quantity in quantities.items()
        ]
        body = {"charges": charges, "recalculateInvoices": False, "dryRun": dry_run}
        batches = wire.results(self._rest.put_value("/charges/recalculate", body, heard))
        return wire.rows(batches[0].get("charges") if batches else None, "charges")


def _last(sent: Sequence[Exchange]) -> Exchange | None:
    """Return what came of the last attempt, if any was sent."""
    return sent[-1] if sent else None


def _is_plain_url(text: str) -> bool:
    """Tell whether a text is an http(s) URL with a host, and nothing that may hold a secret."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", text):
        return False
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
