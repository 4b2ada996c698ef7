"""The webhook endpoint: authenticate, limit, read, store durably, ring the doorbell, answer 200.

Run it by its factory: `gunicorn 'webhook_app:create_app()'`, or `reconciler serve`.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime, timedelta
from typing import Any

import structlog
from flask import Blueprint, Flask, Request, current_app, jsonify, request
from flask.typing import ResponseReturnValue
from structlog.contextvars import bind_contextvars, clear_contextvars
from werkzeug.exceptions import HTTPException

from worker.actions import Desk
from worker.config import Config, WebhookSection
from worker.domain import Delivery
from worker.doorbell import Doorbell
from worker.errors import DeliveryRejected, JournalUnavailable, QueueUnavailable
from worker.events_api import events_blueprint
from worker.http_edge import Refused, as_bytes, same, whole_body
from worker.logs import configure_logs
from worker.metrics import DELIVERIES, DUPLICATES
from worker.metrics_page import metrics_blueprint
from worker.metrics_scrape import Scrape
from worker.ops.board import Board
from worker.ops.error_pages import asks_for_page, defect_page, error_page
from worker.ops.mount import mount
from worker.ops.rq_mount import mount_rq
from worker.ops.rq_pages import installed
from worker.ports import Journal
from worker.record import Receipt
from worker.wiring import (
    configured,
    metrics_folder,
    open_event_store,
    open_measured_journal,
    open_measures,
    open_platforms,
    utc_now,
)

_MOST_BYTES = 256 * 1024

log = structlog.get_logger("webhook")
pages = Blueprint("webhook", __name__)


class Receiver:
    """What a request needs: the credentials, the platforms, the journal and the doorbell."""

    def __init__(self, config: Config) -> None:
        """Open the journal; Redis is looked for with each delivery."""
        self.webhook = config.webhook
        self.measures = open_measures(config)
        self.numbers = self.measures.numbers
        self.platforms = open_platforms(config)
        self.journal: Journal = open_measured_journal(config, self.measures)
        self.doorbell = Doorbell(config.queue.redis_url, config.queue.name)

    def receive(self, delivery: Delivery, at: datetime) -> str:
        """Store a delivery durably, ring for its invoice, and say what became of it."""
        key = delivery.key
        if key is None:
            self.journal.count_ignored(delivery, at)
            return "ignored"
        receipt = self.journal.record_delivery(delivery, at)
        if receipt is Receipt.CONFLICT:
            raise Refused(
                409,
                "conflict",
                f"Notification {delivery.id} came before, for another invoice; use a new id.",
            )
        event = log.bind(invoice=key.invoice_id, platform=key.platform, delivery=delivery.id)
        if receipt is Receipt.NEW:
            try:
                self.doorbell.ring(key)
            except QueueUnavailable as error:
                event.warning("doorbell_silent", reason=str(error), then="the sweep will ring")
        if receipt is Receipt.DUPLICATE:
            self.numbers.add(DUPLICATES, "delivery")
        event.info("delivery", result=receipt.value)
        return receipt.value


def create_app(config: Config | None = None) -> Flask:
    """Make the application; without a configuration, from RECONCILER_CONFIG or config.toml.

    Raises ConfigError with every complaint, JournalUnavailable when the journal cannot open.
    """
    read = configured if config is None else None
    if config is None:
        config = configured()
        secrets = (*config.secrets, *_headers(config))
        configure_logs(config.log.level, config.log.format, secrets)
    config.require_secrets()
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would be an answer that is not ours
    receiver = Receiver(config)
    receiver.numbers.begin()
    app.extensions["receiver"] = receiver
    app.register_blueprint(pages)
    app.register_blueprint(metrics_blueprint(_scrape(config, receiver), config.metrics.token))
    if config.events.source:
        app.register_blueprint(events_blueprint(open_event_store(config), config.events.token))
    if config.ops.enabled:
        desk = Desk(journal=receiver.journal, doorbell=receiver.doorbell, now=utc_now)
        mount(app, config, Board(desk, receiver.measures, config, read or (lambda: config)))
        mount_rq(app, installed())
    return app


@pages.post("/webhooks/<platform>")
def webhook(platform: str) -> ResponseReturnValue:
    """Take one notification, under a trace of its own."""
    receiver = _receiver()
    result = "failed"
    with receiver.measures.tracing.trace("delivery") as trace:
        bind_contextvars(trace_id=trace.id)
        try:
            result = receiver.receive(_delivery(receiver, platform), utc_now())
        except Refused as refusal:
            result = refusal.error
            raise
        except JournalUnavailable:
            result = "journal_unavailable"
            raise
        finally:
            receiver.numbers.add(DELIVERIES, result)
            trace.note(result=result)
    return jsonify(result=result)


@pages.before_app_request
def unbind() -> None:
    """Begin each request with no other's ids on the log lines of this thread."""
    clear_contextvars()


@pages.get("/healthz")
def healthz() -> ResponseReturnValue:
    """Tell that the process answers."""
    return jsonify(ok=True)


@pages.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Tell whether deliveries can be stored (journal) and workers woken (redis)."""
    receiver = _receiver()
    checks = {"journal": receiver.journal.check, "redis": receiver.doorbell.check}
    failing: dict[str, str] = {}
    for name, check in checks.items():
        try:
            check()
        except (JournalUnavailable, QueueUnavailable) as error:
            failing[name] = str(error)
    return jsonify(ok=not failing, failing=failing), 503 if failing else 200


@pages.app_errorhandler(Refused)
def refused(error: Refused) -> ResponseReturnValue:
    """Answer a refusal as JSON."""
    log.warning(
        "refused",
        status=error.status,
        error=error.error,
        reason=error.message,
        path=request.path,
    )
    answer = jsonify(error=error.error, message=error.message)
    if error.challenge:
        answer.headers["WWW-Authenticate"] = error.challenge
    return answer, error.status


@pages.app_errorhandler(JournalUnavailable)
def journal_unavailable(error: JournalUnavailable) -> ResponseReturnValue:
    """Ask the platform to send again: nothing was stored."""
    log.error("journal_unavailable", reason=str(error))
    answer = jsonify(error="journal_unavailable", message="Not stored. Send it again later.")
    answer.headers["Retry-After"] = "30"
    return answer, 503


@pages.app_errorhandler(HTTPException)
def http_error(error: HTTPException) -> ResponseReturnValue:
    """Answer Flask's own errors (404, 405, ...) as JSON too; to a person, as a page."""
    if asks_for_page():
        return error_page(error)
    return jsonify(
        error=(error.name or "error").lower(), message=error.description
    ), error.code or 500


@pages.app_errorhandler(Exception)
def unexpected(error: Exception) -> ResponseReturnValue:
    """Answer a defect of the program without telling its insides."""
    log.error("unexpected", exc_info=error)
    if asks_for_page():
        return defect_page()
    return jsonify(error="internal", message="The log says why. Send it again later."), 500


def _delivery(receiver: Receiver, platform: str) -> Delivery:
    """Read the notification of a request that may deliver one."""
    _authenticate(request, receiver.webhook)
    if platform not in receiver.platforms:
        raise Refused(404, "unknown_platform", f'There is no platform "{platform}" in the config.')
    body = whole_body(request, _MOST_BYTES)
    try:
        return receiver.platforms[platform].parse_delivery(body)
    except DeliveryRejected as error:
        raise Refused(400, "unreadable", f"Not a notification: {error}.") from error


def _scrape(config: Config, receiver: Receiver) -> Scrape:
    return Scrape(
        folder=metrics_folder(config),
        journal=receiver.journal,
        doorbell=receiver.doorbell,
        platforms=receiver.platforms,
        now=utc_now,
        sweep_every=timedelta(seconds=config.sweep.interval_seconds),
    )


def _receiver() -> Receiver:
    receiver: Any = current_app.extensions["receiver"]
    assert isinstance(receiver, Receiver)  # noqa: S101
    return receiver


def _authenticate(incoming: Request, webhook: WebhookSection) -> None:
    """Compare in constant time; both passwords are good while one replaces the other."""
    given = incoming.authorization
    basic = given if given is not None and given.type == "basic" else None
    username, password = (basic.username or "", basic.password or "") if basic else ("", "")
    known = same(username, webhook.username)
    current = same(password, webhook.password)
    previous = bool(webhook.previous_password) & same(password, webhook.previous_password)
    if basic is None or not known & (current | previous):
        raise Refused(
            401,
            "unauthorized",
            "Put the webhook's user and password into its URL: https://user:password@host/…",
            challenge='Basic realm="webhooks"',
        )


def _headers(config: Config) -> list[str]:
    """Return the passwords as they come in: the server may log a header that it cannot read."""
    webhook = config.webhook
    pairs = [
        *((webhook.username, one) for one in (webhook.password, webhook.previous_password)),
        *((name, user.password) for name, user in config.ops.users.items()),
    ]
    return [b64encode(as_bytes(f"{name}:{password}")).decode() for name, password in pairs]
