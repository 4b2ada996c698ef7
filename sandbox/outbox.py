"""Notifications waiting to be sent, and what became of each attempt; it sends nothing itself."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sandbox.moments import text_of
from sandbox.settings import Settings
from sandbox.wire import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where notifications go; the URL may carry user:password for HTTP basic."""

    id: str
    url: str
    ack_enabled: bool
    created: datetime
    extra: Json = field(default_factory=dict)
    """What it is shown with instead: `verified`, `format`, `deleted`, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One event about an invoice; `body` is sent as it is, every time."""

    id: str
    invoice_id: str
    action: str
    created: datetime
    body: bytes


@dataclass(slots=True)
class Posting:
    """One notification on its way to one webhook."""

    notification: Notification
    webhook: Webhook
    tries: int = 0


@dataclass(slots=True)
class Trace:
    """What became of one notification."""

    notification: Notification
    attempts: list[Json] = field(default_factory=list)
    open: int = 0
    """Postings that will still be tried."""
    acked: datetime | None = None

    def as_json(self) -> Json:
        """Return it as `GET /sandbox/record` shows it."""
        return {
            "id": self.notification.id,
            "invoiceID": self.notification.invoice_id,
            "action": self.notification.action,
            "attempts": list(self.attempts),
            "acked": None if self.acked is None else text_of(self.acked),
            "open": self.open,
        }


class Outbox:
    """A queue by due time, with a window in which notifications can be shuffled."""

    def __init__(self, real_seconds: Callable[[], float]) -> None:
        self.webhooks: dict[str, Webhook] = {}
        self.traces: dict[str, Trace] = {}
        self._real_seconds = real_seconds
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Posting]] = []
        self._held: list[Posting] = []
        self._held_since = 0.0
        self._shuffles: dict[int, random.Random] = {}

    def add(self, notification: Notification, copies: int, settings: Settings) -> None:
        """Queue *copies* of *notification* for every webhook, shuffled where settings say so."""
        trace = self.traces.setdefault(notification.id, Trace(notification))
        for webhook in self.webhooks.values():
            for _ in range(copies):
                trace.open += 1
                self._hold(Posting(notification, webhook))
        if len(self._held) >= settings.reorder_window:
            self._release(settings)

    def take(self, settings: Settings) -> Posting | None:
        """Take out the next posting that is due, or None; `note` must follow."""
        now = self._real_seconds()
        if self._held and now >= self._held_since + settings.reorder_hold_seconds:
            self._release(settings)
        while self._queue and self._queue[0][0] <= now:
            posting = heapq.heappop(self._queue)[2]
            if not self._is_moot(posting):
                return posting
            self.traces[posting.notification.id].open -= 1
        return None

    def note(self, posting: Posting, attempt: Json, settings: Settings) -> None:
        """Keep *attempt* ({at, url, status, error}) and queue the next one if one is owed."""
        trace = self.traces.get(posting.notification.id)
        if trace is None:  # the sandbox was reset meanwhile
            return
        trace.attempts.append(attempt)
        posting.tries += 1
        status = attempt["status"]
        delivered = status is not None and 200 <= status < 300
        pause = self._pause(posting, trace, settings, delivered=delivered)
        if pause is None:
            trace.open -= 1
        else:
            self._push(posting, self._real_seconds() + pause)

    def acknowledge(self, notification_id: str, moment: datetime) -> Trace | None:
        """Mark it acknowledged, so that nothing more is sent; None if there is no such id."""
        trace = self.traces.get(notification_id)
        if trace is not None and trace.acked is None:
            trace.acked = moment
        return trace

    def seconds_to_next(self, settings: Settings) -> list[float]:
        """Return how long until something may be due, as a list of none to two waits."""
        now = self._real_seconds()
        waits = [due - now for due, _, _ in self._queue[:1]]
        if self._held:
            waits.append(self._held_since + settings.reorder_hold_seconds - now)
        return waits

    def _pause(
        self, posting: Posting, trace: Trace, settings: Settings, *, delivered: bool
    ) -> float | None:
        pauses = settings.redelivery_seconds
        if trace.acked is not None or not pauses:
            return None
        if posting.webhook.ack_enabled:
            if posting.tries >= settings.ack_attempts:
                return None
            return pauses[min(posting.tries, len(pauses)) - 1]
        if delivered or posting.tries > len(pauses):
            return None
        return pauses[posting.tries - 1]

    def _is_moot(self, posting: Posting) -> bool:
        # A copy is sent once even if another one was acknowledged: duplicates are meant to arrive.
        acked = self.traces[posting.notification.id].acked is not None
        return posting.webhook.id not in self.webhooks or (acked and posting.tries > 0)

    def _hold(self, posting: Posting) -> None:
        if not self._held:
            self._held_since = self._real_seconds()
        self._held.append(posting)

    def _release(self, settings: Settings) -> None:
        if settings.reorder_window > 1:
            seed = settings.reorder_seed
            shuffle = self._shuffles.setdefault(seed, random.Random(seed))  # noqa: S311 - repeatable on purpose
            shuffle.shuffle(self._held)
        for posting in self._held:
            self._push(posting, self._real_seconds())
        self._held.clear()

    def _push(self, posting: Posting, due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._order), posting))
