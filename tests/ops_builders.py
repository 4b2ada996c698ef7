"""For the tests of the operators' pages and for their screenshots.

A journal full of different invoices, the application on it, and a browser that presses buttons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from typing import Any

from builders import LEASE, charge, delivery, evidence, frozen, invoice
from flask import Flask
from werkzeug.test import TestResponse

from webhook_app import create_app
from worker.config import config_of
from worker.domain import InvoiceKey, InvoiceState, Period, Span
from worker.errors import ConfigError
from worker.journal.sql import SqlJournal
from worker.outcomes import answered, exhausted, seen
from worker.preview import Preview, preview_json
from worker.record import Claim, Entry, EntryKind, Outcome, State

PASSWORDS = {
    "ana": "operator-password-of-tests",
    "rob": "reader-password-of-tests",
    "eve": "",  # known by a proxy's header alone
}
XSS = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
NO_REDIS = "redis://127.0.0.1:1/0"
ORIGIN = {"Origin": "http://localhost"}

_HOUR = timedelta(hours=1)
_REASONS = (
    'component "Fax pages" has no source. Map it in config, then requeue',
    'component "Voice minutes" has no source. Map it in config, then requeue',
    'source "events" does not know "SUB-9"',
    exhausted(12, "GET /invoices: no answer from 127.0.0.1:8081"),
    'source "events": no such table: usage',
)


def key_of(number: int) -> InvoiceKey:
    """Name an invoice of the filled journal."""
    return InvoiceKey("billforward", f"INV-{number:08X}-0000-4000-8000-00000000")


class Filler:
    """Writes invoices into a journal as workers and people would, at the moments it is told."""

    def __init__(self, journal: SqlJournal, now: datetime) -> None:
        self.journal = journal
        self.now = now

    def deliver(self, key: InvoiceKey, at: datetime) -> None:
        """Let the platform tell of an invoice."""
        number = f"NOT-{key.invoice_id[4:]}"
        self.journal.record_delivery(delivery(id=number, invoice_id=key.invoice_id), at)

    def claim(self, key: InvoiceKey, at: datetime) -> Claim:
        """Let a worker take it and fetch it."""
        claim = self.journal.claim(key, "worker-1:4711", at, LEASE)
        assert claim is not None
        fetched = seen(invoice(id=key.invoice_id, subscription_id="SUB-1", account_id="ACC-1"))
        self.journal.append(claim, [Entry(kind=EntryKind.FETCHED, at=at, data=fetched)], at + LEASE)
        return claim

    def end(self, key: InvoiceKey, at: datetime, kind: EntryKind, outcome: Outcome) -> None:
        """Let a worker look at it and end so."""
        self.deliver(key, at)
        claim = self.claim(key, at)
        entry = Entry(kind=kind, at=at, data={"reason": outcome.reason, "seconds": 1, "calls": 3})
        self.journal.settle(claim, [entry], outcome)

    def hold(self, key: InvoiceKey, reason: str, at: datetime) -> None:
        """Let a worker hold it."""
        self.end(key, at, EntryKind.HELD, Outcome(state=State.HELD, reason=reason))

    def issue(self, key: InvoiceKey, at: datetime, quantity: int, **tally: Any) -> None:
        """Let a worker count one charge, write it and issue the invoice."""
        self.deliver(key, at)
        claim = self.claim(key, at)
        counted = frozen(quantity, **tally)
        assert self.journal.freeze(claim, [], [counted], at) == []
        name = counted.span.component
        intent = {"charge_id": "CHG-1", "component": name, "from": "0", "to": quantity}
        written = replace(
            charge(component=name),
            quantity=Decimal(quantity),
            amount=Decimal(quantity) * Decimal("0.10"),
        )
        after = invoice(
            id=key.invoice_id, state=InvoiceState.UNPAID, version=3, total=Decimal("15.50")
        )
        issued = {**seen(after), "charges": [answered(written)], "reason": "Unpaid, 15.50 USD"}
        entries = [
            Entry(kind=EntryKind.CHARGE_INTENT, at=at, data=intent),
            Entry(kind=EntryKind.CHARGE_ANSWER, at=at, data=answered(written)),
            Entry(kind=EntryKind.ISSUE_INTENT, at=at, data={"version": 2}),
            Entry(kind=EntryKind.ISSUE_ANSWER, at=at, data=seen(after)),
            Entry(kind=EntryKind.ISSUED, at=at, data=issued),
        ]
        self.journal.settle(claim, entries, Outcome(state=State.ISSUED, reason="Unpaid, 15.50 USD"))

    def observe(self, key: InvoiceKey, at: datetime) -> None:
        """Let a worker that may not write look at it."""
        self.deliver(key, at)
        claim = self.claim(key, at)
        preview = Preview(
            invoice=invoice(),
            before=(charge(),),
            after=(charge(quantity=Decimal(105), amount=Decimal("10.50")),),
        )
        told = "would bill 15.50 USD; the mode is observe"
        entry = Entry(
            kind=EntryKind.PREVIEWED, at=at, data={**preview_json(preview), "reason": told}
        )
        self.journal.settle(claim, [entry], Outcome(state=State.OBSERVED, reason=told))

    def park(self, key: InvoiceKey, at: datetime, reason: str) -> None:
        """Let a person hold it back."""
        self.deliver(key, at)
        entry = Entry(kind=EntryKind.PARKED, at=at, data={"by": "ana", "reason": reason})
        assert self.journal.park(key, entry)


def month_of(number: int) -> Period:
    """Return one of the months before December 2015; 0: November."""
    return Period(
        datetime(2015, 11 - number, 2, 12, tzinfo=UTC),
        datetime(2015, 12 - number, 2, 12, tzinfo=UTC),
    )


def fill(journal: SqlJournal, now: datetime) -> dict[str, InvoiceKey]:
    """Put one or more invoices of every kind into a journal; return one of each by its kind."""
    filler = Filler(journal, now)
    for number, quantity in enumerate((105, 98, 120, 40)):
        span = Span("SUB-1", "Text messages", month_of(number))
        filler.issue(
            key_of(number + 1), now - (number + 1) * _HOUR, quantity, span=span, evidence=evidence()
        )
    for number, reason in enumerate(_REASONS):
        filler.hold(key_of(0x20 + number), reason, now - (number + 2) * 3 * _HOUR)
    later = now + _HOUR
    waiting = Outcome(state=State.WAITING, reason="period ends later", due_at=later)
    filler.end(key_of(0x30), now - 2 * _HOUR, EntryKind.WAITING, waiting)
    retrying = Outcome(
        state=State.RETRYING, reason="GET /invoices: no answer", due_at=later, attempt=2
    )
    filler.end(key_of(0x31), now - _HOUR, EntryKind.FAILED, retrying)
    filler.park(key_of(0x32), now - 30 * _HOUR, "a dispute with the customer")
    filler.observe(key_of(0x33), now - 5 * _HOUR)
    skipped = Outcome(state=State.SKIPPED, reason="it is Paid already")
    filler.end(key_of(0x34), now - 6 * _HOUR, EntryKind.SKIPPED, skipped)
    filler.deliver(key_of(0x35), now)
    filler.deliver(key_of(0x36), now - 4 * _HOUR)
    closed = {"by": "ana", "reason": "issued by hand"}
    journal.close_by_hand(key_of(0x36), Entry(kind=EntryKind.CLOSED, at=now - _HOUR, data=closed))
    names = {"issued": 1, "held": 0x20, "waiting": 0x30, "retrying": 0x31, "parked": 0x32}
    names |= {"observed": 0x33, "skipped": 0x34, "due": 0x35, "closed": 0x36}
    return {name: key_of(number) for name, number in names.items()}


def ops_app(
    journal_url: str,
    redis_url: str = NO_REDIS,
    ops: Mapping[str, Any] | None = None,
    token: str = "token-of-tests",  # noqa: S107
    **more: Any,
) -> Flask:
    """Make the application with the operators' pages; `more` are other sections of the file."""
    users = {"ana": {"role": "operator"}, "rob": {"role": "reader"}}
    section: dict[str, Any] = {"enabled": True, "users": users} if ops is None else dict(ops)
    environ = {
        "RECONCILER__WEBHOOK__PASSWORD": "password-of-tests",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": token,
        "RECONCILER__JOURNAL__URL": journal_url,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }
    for name in section.get("users", ()):
        environ[f"RECONCILER__OPS__USERS__{name.upper()}__PASSWORD"] = PASSWORDS[name]
    platforms = {"billforward": {"base_url": "http://127.0.0.1:1/v1"}}
    return create_app(config_of({"platforms": platforms, "ops": section, **more}, environ))


def journal_of(app: Flask) -> SqlJournal:
    """Return the application's journal."""
    journal = app.extensions["receiver"].journal
    assert isinstance(journal, SqlJournal)
    return journal


class Browser:
    """A person's browser: keeps cookies, reads the token from the page, tells where it is from."""

    def __init__(self, app: Flask) -> None:
        self.client = app.test_client()

    def get(self, url: str, **named: Any) -> TestResponse:
        """Open a page."""
        return self.client.get(url, **named)

    def token(self, url: str = "/ops/login") -> str:
        """Read the token of a page's forms."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(url).text)
        assert found, url
        return unescape(found[1])

    def post(self, url: str, form: Mapping[str, Any], page: str = "/ops/") -> TestResponse:
        """Send a form from a page, as a browser would."""
        return self.client.post(url, data={"csrf": self.token(page), **form}, headers=ORIGIN)

    def log_in(self, name: str = "ana", password: str = "", **form: str) -> TestResponse:
        """Log in by the form."""
        given = {"name": name, "password": password or PASSWORDS[name], **form}
        return self.post("/ops/login", given, "/ops/login")


def logged_in(app: Flask, name: str = "ana") -> Browser:
    """Return the browser of a person who has logged in."""
    browser = Browser(app)
    assert browser.log_in(name).status_code == 303
    return browser


def complaints(ops: Mapping[str, Any], host: str = "127.0.0.1") -> str:
    """Return what is wrong with a section; empty: nothing."""
    platforms = {"billforward": {"base_url": "http://127.0.0.1:1/v1"}}
    try:
        config_of({"platforms": platforms, "ops": dict(ops), "webhook": {"host": host}}, {})
    except ConfigError as error:
        return str(error)
    return ""
