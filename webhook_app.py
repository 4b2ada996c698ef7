"""The webhook endpoint: authenticate, limit, read, store durably, ring the doorbell, answer 200.

Run it by its factory: `gunicorn 'webhook_app:create_app()'`, or `reconciler serve`.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Any

import structlog
from flask import Blueprint, Flask, Request, current_app, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from worker.config import Config, WebhookSection
from worker.domain import Delivery
from worker.doorbell import Doorbell
from worker.errors import DeliveryRejected, JournalUnavailable, QueueUnavailable
from worker.journal import open_journal
from worker.logs import configure_logs
from worker.ports import Journal
from worker.record import Receipt
from worker.wiring import configured, open_platforms, utc_now

_MOST_BYTES = 256 * 1024

log = structlog.get_logger("webhook")
pages = Blueprint("webhook", __name__)


class Refused(Exception):
    """A request that is not taken: a status, a word for programs and a sentence for people."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message


class Receiver:
    """What a request needs: the credentials, the platforms, the journal and the doorbell."""

    def __init__(self, config: Config) -> None:
        """Open the journal; Redis is looked for with each delivery."""
        self.webhook = config.webhook
        self.platforms = open_platforms(config)
        self.journal: Journal = open_journal(config.journal.url)
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
        event.info("delivery", result=receipt.value)
        return receipt.value


def create_app(config: Config | None = None) -> Flask:
    """Make the application; without a configuration, from RECONCILER_CONFIG or config.toml.

    Raises ConfigError with every complaint, JournalUnavailable when the journal cannot open.
    """
    if config is None:
        config = configured()
        configure_logs(config.log.level, config.log.format, config.secrets)
    config.require_secrets()
    app = Flask(__name__, static_folder=None)
    app.extensions["receiver"] = Receiver(config)
    app.register_blueprint(pages)
    return app


@pages.post("/webhooks/<platform>")
def webhook(platform: str) -> ResponseReturnValue:
    """Take one notification."""
    receiver = _receiver()
    _authenticate(request, receiver.webhook)
    if platform not in receiver.platforms:
        raise Refused(404, "unknown_platform", f'There is no platform "{platform}" in the config.')
    body = _body(request)
    try:
        delivery = receiver.platforms[platform].parse_delivery(body)
    except DeliveryRejected as error:
        raise Refused(400, "unreadable", f"Not a notification: {error}.") from error
    return jsonify(result=receiver.receive(delivery, utc_now()))


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
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = 'Basic realm="webhooks"'
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
    """Answer Flask's own errors (404, 405, ...) as JSON too."""
    return jsonify(
        error=(error.name or "error").lower(), message=error.description
    ), error.code or 500


@pages.app_errorhandler(Exception)
def unexpected(error: Exception) -> ResponseReturnValue:
    """Answer a defect of the program without telling its insides."""
    log.error("unexpected", exc_info=error)
    return jsonify(error="internal", message="The log says why. Send it again later."), 500


def _receiver() -> Receiver:
    receiver: Any = current_app.extensions["receiver"]
    assert isinstance(receiver, Receiver)  # noqa: S101
    return receiver


def _authenticate(incoming: Request, webhook: WebhookSection) -> None:
    """Compare in constant time; both passwords are good while one replaces the other."""
    given = incoming.authorization
    basic = given if given is not None and given.type == "basic" else None
    username, password = (basic.username or "", basic.password or "") if basic else ("", "")
    known = _same(username, webhook.username)
    current = _same(password, webhook.password)
    previous = bool(webhook.previous_password) & _same(password, webhook.previous_password)
    if basic is None or not known & (current | previous):
        raise Refused(
            401,
            "unauthorized",
            "Put the webhook's user and password into its URL: https://user:password@host/…",
        )


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(_bytes(given), _bytes(expected))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _body(incoming: Request) -> bytes:
    """Return the whole body; without Content-Length Flask would cut it silently."""
    if incoming.content_length is None or "Transfer-Encoding" in incoming.headers:
        raise Refused(411, "length_required", "Send the body with a Content-Length, not chunked.")
    if incoming.content_length > _MOST_BYTES:
        raise Refused(413, "too_large", f"The body may have {_MOST_BYTES} bytes at most.")
    if "Content-Encoding" in incoming.headers:
        raise Refused(415, "encoded", "Send the body as plain JSON, not compressed.")
    return incoming.get_data(cache=False)
