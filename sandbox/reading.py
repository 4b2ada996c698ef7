"""The answers to GET requests: pages of entities, and single ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from sandbox.entities import CHARGE_STATES, CHARGE_TYPES, INVOICE_STATES
from sandbox.notifications import shown_trace, shown_webhook
from sandbox.plans import shown_account, shown_plan, shown_subscription
from sandbox.rules import chosen, truth, whole
from sandbox.wire import Json, Ready, invalid
from sandbox.world import NotFoundError, World

Query = Mapping[str, str]
PAGE_QUERY = ("organizations", "records", "offset", "order", "order_by", "include_retired")
DEFAULT_RECORDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Results with their paging; `records` None: an answer without paging keys."""

    results: Sequence[Json | Ready]
    records: int | None = DEFAULT_RECORDS
    offset: int = 0
    total: int | None = None
    says_page_size: bool = True  # False: recordsRequested is 0, whatever was asked for

    def envelope(self, nanoseconds: int) -> Json:
        """Return the answer's body; there is no nextPage (recorded 2026)."""
        paging: Json = {}
        if self.records is not None:
            paging = {
                "currentPage": self.offset // self.records,
                "currentOffset": self.offset,
                "recordsRequested": self.records if self.says_page_size else 0,
                "recordsReturned": len(self.results),
            }
        if self.total is not None:
            paging["totalRecords"] = self.total
        return {**paging, "executionTime": nanoseconds, "results": self.results}


def invoice(world: World, invoice_id: str, query: Query) -> Page:
    """Return one invoice with all its charges; with include_retired, each of its versions."""
    default = world.settings.include_retired_by_default
    current = world.invoice(invoice_id)
    if not truth(query, "include_retired", default=default):
        return Page(results=[world.shown_invoice(current)], total=1)
    versions = world.invoices[invoice_id]
    newest = sorted(versions, key=lambda one: one.version.number, reverse=_descending(query))
    return _page(world, query, newest, world.shown_invoice, total=True)


def invoices_in_state(world: World, state: str, query: Query) -> Page:
    """Return a page of the invoices in *state*, by id unless order_by says otherwise."""
    if state not in INVOICE_STATES:
        raise invalid(f"state must be one of {', '.join(INVOICE_STATES)}, not {state!r}", "state")
    found = [versions[-1] for versions in world.invoices.values() if versions[-1].state == state]
    return _page(world, query, _sorted(found, query), world.shown_invoice)


def charges(world: World, invoice_id: str, query: Query) -> Page:
    """Return a page of an invoice's charges, id DESC; `state` and `type` filter."""
    state = chosen(query, "state", CHARGE_STATES)
    kind = chosen(query, "type", CHARGE_TYPES)
    found = [
        charge
        for charge in world.charges_of(world.invoice(invoice_id))
        if state in (None, charge.state)
        and kind in (None, "Manual" if charge.component_name is None else "PricingComponent")
    ]
    return _page(world, query, _sorted(found, query), world.shown_charge)


def charge(world: World, charge_id: str, _: Query) -> Page:
    """Return one charge."""
    return Page(results=[world.shown_charge(world.charge(charge_id))])


def subscription(world: World, subscription_id: str, _: Query) -> Page:
    """Return one subscription with its metadata, without paging keys."""
    found = world.subscription(subscription_id)
    return Page(results=[shown_subscription(world, found)], records=None)


def account(world: World, account_id: str, _: Query) -> Page:
    """Return one account with its metadata, without paging keys."""
    return Page(results=[shown_account(world, world.account(account_id))], records=None)


def plan(world: World, plan_id: str, _: Query) -> Page:
    """Return one rate plan with its components, without paging keys."""
    return Page(results=[shown_plan(world, world.plan(plan_id))], records=None)


def plans(world: World, query: Query) -> Page:
    """Return a page of the rate plans; recorded: recordsRequested says 0 here."""
    found = sorted(
        world.plans.values(), key=lambda one: (one.created, one.id), reverse=_descending(query)
    )
    page = _page(world, query, found, lambda one: shown_plan(world, one), total=True)
    return replace(page, says_page_size=False)


def webhooks(world: World, query: Query) -> Page:
    """Return the webhooks, retired ones too unless asked not to; passwords are not shown."""
    retired = truth(query, "include_retired", default=True)
    shown = [
        shown_webhook(world, webhook, without_user(webhook.url))
        for webhook in world.outbox.webhooks.values()
    ]
    found = [webhook for webhook in shown if retired or not webhook["deleted"]]
    return _page(world, query, found, lambda webhook: webhook)


def acknowledge(world: World, notification_id: str, _: Query) -> Page:
    """Mark a notification received, so that it is not sent again, and return it."""
    trace = world.outbox.acknowledge(notification_id, world.clock.now())
    if trace is None:
        raise NotFoundError("notification", notification_id)
    return Page(results=[shown_trace(world, trace)])


def without_user(url: str) -> str:
    """Return *url* without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _page(
    world: World,
    query: Query,
    found: Sequence[Any],
    show: Callable[[Any], Json | Ready],
    *,
    total: bool = False,
) -> Page:
    records = whole(query, "records", DEFAULT_RECORDS, 1)
    if world.settings.max_records is not None:
        records = min(records, world.settings.max_records)
    offset = whole(query, "offset", 0, 0)
    return Page(
        results=[show(one) for one in found[offset : offset + records]],
        records=records,
        offset=offset,
        total=len(found) if total else None,
    )


def _sorted(found: list[Any], query: Query) -> list[Any]:
    keys = {
        "id": lambda one: one.id,
        "created": lambda one: (one.version.created, one.id),
        "updated": lambda one: (one.version.updated, one.id),
    }
    order_by = query.get("order_by", "id").lower()
    if order_by not in keys:
        raise invalid(f"order_by must be one of {', '.join(keys)}, not {order_by!r}", "order_by")
    return sorted(found, key=keys[order_by], reverse=_descending(query))


def _descending(query: Query) -> bool:
    return chosen(query, "order", ("ASC", "DESC")) != "ASC"
