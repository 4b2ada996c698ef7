"""What BillForward posts to a webhook about an invoice.

`entity` and `changes` are JSON inside a string; in the entity the key `type` appears twice, first
with its class and later with its business type. `changes` is there on updates only.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sandbox.entities import Invoice
from sandbox.moments import java_text_of, new_id, text_of
from sandbox.outbox import Notification, Trace, Webhook
from sandbox.wire import Json, encode
from sandbox.world import World


def notify(world: World, invoice: Invoice, action: str, before: Invoice | None = None) -> None:
    """Queue Invoice/*action*; *before* is the invoice as it was, if this is an update."""
    notification = made(world, invoice, action, before)
    world.outbox.add(notification, world.settings.notification_copies, world.settings)


def made(
    world: World, invoice: Invoice, action: str, before: Invoice | None = None
) -> Notification:
    """Return a new notification about *invoice*, not queued yet."""
    now = world.clock.now()
    body: Json = {
        "type": "notification",
        "id": new_id("NOT"),
        "created": text_of(now),
        "domain": "Invoice",
        "action": action,
        "organizationID": world.renderer.organization_id,
        "entityID": invoice.id,
        "entity": _entity_text(world.renderer.invoice_head(invoice)),
    }
    if before is not None:
        body["changes"] = encode({"auditFieldChanges": _changes(before, invoice)}).decode()
    return Notification(
        id=body["id"], invoice_id=invoice.id, action=action, created=now, body=encode(body)
    )


def again(notification: Notification, notification_id: str) -> Notification:
    """Return *notification* under another id."""
    body = notification.body.replace(notification.id.encode(), notification_id.encode(), 1)
    return replace(notification, id=notification_id, body=body)


def shown_trace(world: World, trace: Trace) -> Json:
    """Return a notification as the acknowledging call answers it."""
    return {
        "type": "notification",
        "id": trace.notification.id,
        "created": text_of(trace.notification.created),
        "domain": "Invoice",
        "action": trace.notification.action,
        "organizationID": world.renderer.organization_id,
        "entityID": trace.notification.invoice_id,
        "totalSendAttempts": len(trace.attempts),
        "acked": None if trace.acked is None else text_of(trace.acked),
    }


def shown_webhook(world: World, webhook: Webhook, url: str) -> Json:
    """Return a webhook as `GET /webhooks` lists it; *url* is the one to show."""
    head = {"organizationID": world.renderer.organization_id, "deleted": False}
    return {
        "@type": "webhook",
        "id": webhook.id,
        "name": url,
        "URL": url,
        "format": "JSON",
        "ackEnabled": webhook.ack_enabled,
        "metadata": False,
        "verified": True,
        "consecutiveFailures": 0,
        "created": text_of(webhook.created),
        "updated": text_of(webhook.created),
        "changedBy": "System",
        **head,
        "webhookSubscriptions": [
            {"webhookID": webhook.id, "domain": "Invoice", "action": action, **head}
            for action in ("Pending", "Unpaid", "Paid", "Voided")
        ],
        **webhook.extra,
    }


def _entity_text(head: Json) -> str:
    # A dict cannot hold a key twice, so the class is put in front as text.
    kind = encode(head.pop("@type")).decode()
    return f'{{"type":{kind},{encode(head).decode()[1:]}'


def _changes(before: Invoice, after: Invoice) -> list[Json]:
    changes: list[Json] = []
    for name, old, new in (
        ("state", before.state, after.state),
        ("versionNumber", before.version.number, after.version.number),
        ("invoiceCost", before.cost, after.cost),
        ("issued", before.issued, after.issued),
    ):
        if old != new:
            change: Json = {"attributeName": name, "newValue": _as_text(new)}
            if old is not None:
                change["previousValue"] = _as_text(old)
            changes.append(change)
    return changes


def _as_text(value: object) -> str:
    return java_text_of(value) if isinstance(value, datetime) else str(value)
