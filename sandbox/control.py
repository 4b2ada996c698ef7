"""The control API under `/sandbox`: putting things in, setting switches, reading the record.

It needs no token and takes no part in faults or in the record; a wrong request is answered with
400 and `{"error": sentence}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from sandbox import billing, seeding
from sandbox.faults import rule_of
from sandbox.moments import moment_of, new_id, text_of
from sandbox.notifications import again, made, shown_webhook
from sandbox.outbox import Webhook
from sandbox.plans import account_of, plan_of, shown_account, shown_plan, shown_subscription
from sandbox.reading import without_user
from sandbox.rules import Field, checked
from sandbox.wire import Json, Ready, invalid
from sandbox.world import World

_WEBHOOK = {
    "url": Field("text", required=True),
    "ackEnabled": Field("boolean"),
    "extra": Field("object"),
}
_NOTIFY = {
    "invoiceID": Field("text", required=True),
    "action": Field("text"),
    "times": Field("quantity"),
    "id": Field("text"),
}
_CLOCK = {
    "now": Field("moment"),
    "frozen": Field("boolean"),
    "advance_seconds": Field("amount"),
    "real": Field("boolean"),
}


def answer(world: World, method: str, path: str, body: Json) -> Json | Ready:
    """Carry out a control request whose path below `/sandbox` is *path*; ValueError if wrong."""
    match (method, [unquote(segment) for segment in path.strip("/").split("/")]):
        case (("GET" | "POST" | "DELETE"), [name]) if (method, name) in _PLAIN:
            return _PLAIN[method, name](world, body)
        case ("GET", ["invoices", invoice_id]):
            return world.shown_invoice(world.invoice(invoice_id))
        case ("PATCH", ["invoices", invoice_id]):
            return seeding.patch_invoice(world, invoice_id, body)
        case ("PATCH", ["charges", charge_id]):
            return seeding.patch_charge(world, charge_id, body)
        case ("POST", ["subscriptions", subscription_id, "cancel"]):
            return _cancel(world, subscription_id, body)
    raise invalid(f"there is no control {method} {path}")


def add_webhook(
    world: World, url: str, *, ack_enabled: bool = False, extra: Json | None = None
) -> Webhook:
    """Send notifications to *url* (http or https, user:password allowed) from now on."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise invalid("a webhook needs an http or https URL", "url")
    webhook = Webhook(
        id=new_id("WHK"),
        url=url,
        ack_enabled=ack_enabled,
        created=world.clock.now(),
        extra=extra or {},
    )
    world.outbox.webhooks[webhook.id] = webhook
    return webhook


def _add_webhook(world: World, body: Json) -> Json:
    checked(body, _WEBHOOK)
    ack_enabled = body.get("ackEnabled", False)
    webhook = add_webhook(world, body["url"], ack_enabled=ack_enabled, extra=body.get("extra"))
    return shown_webhook(world, webhook, without_user(webhook.url))


def _drop_webhooks(world: World, _: Json) -> Json:
    world.outbox.webhooks.clear()
    return {}


def _invoices(world: World, _: Json) -> Json:
    return {"results": [world.shown_invoice(one[-1]) for one in world.invoices.values()]}


def _add_plan(world: World, body: Json) -> Json:
    plan = plan_of(world, body)
    world.plans[plan.id] = plan
    return shown_plan(world, plan)


def _add_account(world: World, body: Json) -> Json:
    account = account_of(world, body)
    world.accounts[account.id] = account
    return shown_account(world, account)


def _add_subscription(world: World, body: Json) -> Json:
    return shown_subscription(world, billing.subscribe(world, body))


def _cancel(world: World, subscription_id: str, body: Json) -> Json:
    checked(body, {"at": Field("moment")})
    at = moment_of(body["at"]) if body.get("at") else None
    return world.shown_invoice(billing.cancel(world, subscription_id, at))


def _notify(world: World, body: Json) -> Json:
    checked(body, _NOTIFY)
    invoice = world.invoice(body["invoiceID"])
    known = world.outbox.traces.get(body.get("id", ""))
    if known is not None:
        notification = known.notification
    else:
        notification = made(world, invoice, body.get("action", invoice.state))
        if body.get("id"):
            notification = again(notification, body["id"])
    world.outbox.add(notification, body.get("times", 1), world.settings)
    return {"id": notification.id}


def _add_faults(world: World, body: Json) -> Json:
    rules = body["rules"] if isinstance(body.get("rules"), list) else [body]
    world.faults.add([rule_of(rule) for rule in rules])
    return {"added": len(rules)}


def _clear_faults(world: World, _: Json) -> Json:
    world.faults.clear()
    return {}


def _settings(world: World, body: Json) -> Json:
    world.settings = world.settings.changed(body)
    return world.settings.as_json()


def _clock(world: World, body: Json) -> Json:
    checked(body, _CLOCK)
    clock = world.clock
    if body.get("real"):
        clock.reset()
    if body.get("now"):
        clock.set(moment_of(body["now"]), frozen=body.get("frozen", False))
    elif "frozen" in body:
        clock.set(clock.now(), frozen=body["frozen"])
    clock.advance(float(body.get("advance_seconds", 0)))
    return {"now": text_of(clock.now()), "frozen": clock.frozen}


def _record(world: World, _: Json) -> Json:
    return {**world.record.as_json(), **_notifications(world, {})}


def _clear_record(world: World, _: Json) -> Json:
    world.record = replace(type(world.record)(), issues=world.record.issues)
    return {}


def _notifications(world: World, _: Json) -> Json:
    return {"notifications": [trace.as_json() for trace in world.outbox.traces.values()]}


_PLAIN: Mapping[tuple[str, str], Callable[[World, Json], Json]] = {
    ("GET", "invoices"): _invoices,
    ("POST", "invoices"): seeding.put_invoice,
    ("POST", "plans"): _add_plan,
    ("POST", "accounts"): _add_account,
    ("POST", "subscriptions"): _add_subscription,
    ("POST", "webhooks"): _add_webhook,
    ("DELETE", "webhooks"): _drop_webhooks,
    ("POST", "notify"): _notify,
    ("POST", "faults"): _add_faults,
    ("DELETE", "faults"): _clear_faults,
    ("GET", "settings"): _settings,
    ("POST", "settings"): _settings,
    ("GET", "clock"): _clock,
    ("POST", "clock"): _clock,
    ("GET", "record"): _record,
    ("DELETE", "record"): _clear_record,
    ("GET", "notifications"): _notifications,
}
