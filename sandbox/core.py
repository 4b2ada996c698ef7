"""The sandbox itself: one request in, one answer out, under one lock and without any network."""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import format_datetime

from sandbox import api, control
from sandbox.faults import FaultRule, spoiled
from sandbox.moments import SandboxClock, text_of
from sandbox.notifications import notify
from sandbox.outbox import Posting
from sandbox.reading import without_user
from sandbox.recalculation import enter_state, store_invoice
from sandbox.rules import refuse_tricks
from sandbox.settings import Settings
from sandbox.wire import Json, RefusedError, Request, Response, decode, encode, error_body
from sandbox.world import NotFoundError, World

CONTROL_PATH = "/sandbox"
_TOKEN = re.compile(r"(access_token=)[^&]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a sandbox starts with, and returns to on a reset."""

    token: str = "sandbox-token"  # noqa: S105 - a token that guards nothing
    base_path: str = "/v1"
    settings: Settings = field(default_factory=Settings)
    webhooks: Sequence[str] = ()


class Sandbox:
    """A BillForward look-alike for any thread to ask; `changed` is notified after each request."""

    def __init__(
        self,
        setup: Setup | None = None,
        *,
        clock: SandboxClock | None = None,
        real_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.setup = setup or Setup()
        self.changed = threading.Condition()
        self._clock = clock or SandboxClock()
        self._real_seconds = real_seconds
        self._world = self._fresh_world()

    def handle(self, request: Request) -> Response:
        """Answer *request*, to the API below the base path or to the control API."""
        with self.changed:
            self._settle()
            if _is_below(CONTROL_PATH, request.path):
                response = self._control(request)
            else:
                response = self._api(request)
            self.changed.notify_all()
        return response

    def next_posting(self, longest_seconds: float) -> Posting | None:
        """Return a notification to send; else wait for something to happen and return None."""
        with self.changed:
            self._settle()
            posting = self._world.outbox.take(self._world.settings)
            if posting is None:
                wait = self._world.seconds_to_next()
                self.changed.wait(longest_seconds if wait is None else min(wait, longest_seconds))
            return posting

    def note_attempt(self, posting: Posting, status: int | None, error: str | None) -> None:
        """Keep what became of sending *posting*: a status, or the error that prevented one."""
        with self.changed:
            attempt = {
                "at": text_of(self._world.clock.now()),
                "url": without_user(posting.webhook.url),
                "status": status,
                "error": error,
            }
            self._world.outbox.note(posting, attempt, self._world.settings)

    @property
    def notification_timeout_seconds(self) -> float:
        """How long a webhook may take to answer."""
        return self._world.settings.notification_timeout_seconds

    def _fresh_world(self) -> World:
        self._clock.reset()
        world = World(self.setup.settings, self._clock, self._real_seconds)
        for url in self.setup.webhooks:
            control.add_webhook(world, url)
        return world

    def _settle(self) -> None:
        # Nothing is seen of the sandbox but through its methods, so that what has come due
        # may happen here instead of on a timer.
        world = self._world
        for commit in world.due_commits():
            commit()
        for invoice_id in world.due_payments():
            invoice = world.invoice(invoice_id)
            if invoice.state == "Unpaid":
                paid = enter_state(world, invoice, "Paid")
                store_invoice(world, paid)
                notify(world, paid, "Paid", invoice)

    def _control(self, request: Request) -> Response:
        path = request.path.removeprefix(CONTROL_PATH)
        if (request.method, path) == ("POST", "/reset"):
            self._world = self._fresh_world()
            return Response(status=200, body=b"{}")
        try:
            body = decode(request.body) if request.body else {}
            if not isinstance(body, dict):
                raise TypeError("the body must be a JSON object")
            answer = control.answer(self._world, request.method, path, body)
            return Response(status=200, body=encode(answer))
        except (ValueError, TypeError, NotFoundError, RefusedError) as error:
            return Response(status=400, body=encode({"error": str(error)}))

    def _api(self, request: Request) -> Response:
        world = self._world
        rule = world.faults.pick(request)
        if rule is None:
            response = self._answer(request)
        else:
            response = spoiled(rule, lambda: self._answer(request), self._later(rule, request))
        world.record.requests.append(self._entry(request, response, rule))
        date = ("Date", format_datetime(world.clock.now(), usegmt=True))
        return replace(
            response,
            delay_seconds=response.delay_seconds + world.settings.latency_seconds,
            headers=(*response.headers, date),
        )

    def _later(self, rule: FaultRule, request: Request) -> Callable[[], None]:
        def commit() -> None:
            self._answer(request)

        return lambda: self._world.commit_later(float(rule.details["seconds"]), commit)

    def _answer(self, request: Request) -> Response:
        started = time.perf_counter_ns()
        try:
            self._authorise(request)
            refuse_tricks(request.path)
            page = api.answer(self._world, self._below_base(request), request)
        except RefusedError as refused:
            if refused.violation:
                text = f"{request.method} {request.path}: {refused.message}"
                self._world.record.violations.append(text)
            return Response(status=refused.status, body=encode(refused.as_json()))
        return Response(status=200, body=encode(page.envelope(time.perf_counter_ns() - started)))

    def _authorise(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise RefusedError(401, "Oauth", 'error="unauthorized", error_description="no token"')
        if not hmac.compare_digest(token.encode(), self.setup.token.encode()):
            message = 'error="invalid_token", error_description="this token is not known"'
            raise RefusedError(401, "Oauth", message, violation=False)

    def _below_base(self, request: Request) -> str:
        if not _is_below(self.setup.base_path, request.path):
            raise RefusedError(404, "NotImplemented", f"nothing is below {request.path}")
        return request.path.removeprefix(self.setup.base_path)

    def _entry(self, request: Request, response: Response, rule: FaultRule | None) -> Json:
        return {
            "at": text_of(self._world.clock.now()),
            "method": request.method,
            "path": request.path,
            "query": _TOKEN.sub(r"\1***", request.query),
            "body": _body_as_sent(request),
            "status": None if response.dropped else response.status,
            "fault": None if rule is None else rule.kind,
        }


def crashed(error: Exception) -> Response:
    """Return the answer to a request that the sandbox itself could not carry out."""
    message = f"the sandbox failed: {type(error).__name__}: {error}"
    return Response(status=500, body=encode(error_body("ServerError", message)))


def _is_below(base: str, path: str) -> bool:
    return path.startswith(f"{base}/")


def _body_as_sent(request: Request) -> object:
    if not request.body:
        return None
    try:
        return decode(request.body)
    except ValueError:
        return request.body.decode("utf-8", "replace").replace("\0", "")
