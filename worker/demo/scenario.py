"""What the demo bills: its invoices, the usage behind them, and how each shall end.

The first invoice is the worked example of BillForward's article on pending invoices; the others
show what else a billing month holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from worker.domain import Period, utc_text
from worker.record import State

ARTICLE = "INV-C7D7BC92-11D1-4AC2-8DC5-78C53957"
REPORTS = "INV-5B1D6C0A-51AA-4E0B-9C51-0000C151"
FINAL = "INV-F19A1A88-3E7D-4C7B-8F1E-0000F17A"
TRIAL = "INV-7214A11C-0B6E-4D0A-9A3B-00007214"
RECALCULATED = "INV-2EC41C00-6B57-4C2F-8D1E-00002EC4"
UNMAPPED = "INV-FA4E5A6E-9D2C-4B8F-A1C3-0000FA4E"
THRICE = "INV-3D15E0AD-1F2B-4E6C-B7A9-00003333"

_START = datetime(2015, 11, 2, 12, 18, 51, tzinfo=UTC)
_END = datetime(2015, 12, 2, 12, 18, 51, tzinfo=UTC)
_NEXT_END = datetime(2016, 1, 2, 12, 18, 51, tzinfo=UTC)
_MONTH = Period(_START, _END)
_NEXT_MONTH = Period(_END, _NEXT_END)
_SECOND = timedelta(seconds=1)

MESSAGES = "Text messages"
FAX = "Fax pages"
_MESSAGE_TIERS: list[dict[str, Any]] = [
    {"lower": 0, "upper": 100, "type": "unit", "price": Decimal("0.00")},
    {"lower": 101, "upper": None, "type": "unit", "price": Decimal("0.02")},
]
_PAGE_TIERS: list[dict[str, Any]] = [
    {"lower": 0, "upper": 0, "type": "fixed", "price": Decimal("0.00")},
    {"lower": 1, "upper": None, "type": "unit", "price": Decimal("0.25")},
]
REPORT_COUNT = 51
_REPORT_NAMES = ("Company report", "Credit check", "Address check", "Monitoring")
_REPORTS_USED = {3: 12, 11: 1, 24: 150, 37: 7, 51: 2}  # all others stay at 0


@dataclass(frozen=True, slots=True)
class Story:
    """One invoice of the demo: what it shows and how it shall end."""

    invoice_id: str
    shows: str
    ends: State
    total: Decimal  # what its invoice comes to in the end
    times: int = 1  # how often its notification is delivered


STORIES = (
    Story(ARTICLE, "the article's example: 105 messages", State.ISSUED, Decimal("5.10")),
    Story(REPORTS, "51 usage charges, 5 of them used", State.ISSUED, Decimal("43.00")),
    Story(FINAL, "FinalArrears, cut-short period", State.ISSUED, Decimal("0.80")),
    Story(TRIAL, "a Trial", State.SKIPPED, Decimal("0")),
    Story(RECALCULATED, "already recalculated", State.SKIPPED, Decimal("0")),
    Story(UNMAPPED, "unmapped component, then replayed", State.HELD, Decimal("1.00")),
    Story(THRICE, "its notification came three times", State.ISSUED, Decimal("0.80"), times=3),
)


def report_component(number: int) -> str:
    """Return the unique component name of one of the 51 reports."""
    return f"report.{number:02d}"


def invoices() -> Iterator[dict[str, Any]]:
    """Yield each invoice as the sandbox takes it."""
    message_charge = _usage("CHG-8960CF32-A993-4EFA-8F48-26EB1F1A", MESSAGES, MESSAGES, _MONTH)
    yield _invoice(ARTICLE, 1, "Subscription", [_fee(1), message_charge])
    reports = [
        _usage(
            _id("CHG", 0xC0, number),
            report_component(number),
            _REPORT_NAMES[number % len(_REPORT_NAMES)],
            _MONTH,
            tiers=_PAGE_TIERS,
        )
        for number in range(1, REPORT_COUNT + 1)
    ]
    yield _invoice(REPORTS, 2, "Subscription", reports)
    cut_short = Period(_END, datetime(2015, 12, 9, 8, 0, tzinfo=UTC))
    final = _usage(_id("CHG", 3, 1), MESSAGES, MESSAGES, cut_short)
    yield _invoice(FINAL, 3, "FinalArrears", [final], Period(cut_short.end, cut_short.end))
    yield _invoice(TRIAL, 4, "Trial", [_usage(_id("CHG", 4, 1), MESSAGES, MESSAGES, _MONTH)])
    seen = _usage(_id("CHG", 5, 1), MESSAGES, MESSAGES, _MONTH)
    yield {**_invoice(RECALCULATED, 5, "Subscription", [seen]), "versionNumber": 2}
    fax = _usage(_id("CHG", 6, 2), FAX, FAX, _MONTH, tiers=_PAGE_TIERS)
    mapped = _usage(_id("CHG", 6, 1), MESSAGES, MESSAGES, _MONTH)
    yield _invoice(UNMAPPED, 6, "Subscription", [mapped, fax])
    yield _invoice(
        THRICE, 7, "Subscription", [_usage(_id("CHG", 7, 1), MESSAGES, MESSAGES, _MONTH)]
    )


def write_usage(path: Path) -> None:
    """Make the usage database: one row an event, times as ISO text with whatever offset."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE usage (subscription_id TEXT NOT NULL, metric TEXT NOT NULL,"
            " occurred_at TEXT NOT NULL)"
        )
        db.execute("CREATE INDEX usage_by_subscription ON usage (subscription_id, metric)")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", _events())


def _events() -> Iterator[tuple[str, str, str]]:
    """Yield subscription, metric and time; 105 of the article's messages lie in its period."""
    between = [_START + timedelta(hours=6, minutes=n) for n in range(103)]
    inside = [_START, *between, _END - _SECOND]
    outside = [_START - _SECOND, _END]
    berlin = timedelta(hours=1)
    for moment in inside:
        local = (moment + berlin).replace(tzinfo=None).isoformat()
        yield _subscription(1), "text_message", f"{local}+01:00"
    for moment in outside:
        yield _subscription(1), "text_message", utc_text(moment)
    for number, times in _REPORTS_USED.items():
        for n in range(times):
            moment = _START + timedelta(days=3, minutes=n)
            yield _subscription(2), report_component(number), utc_text(moment)
    for n in range(140):
        yield _subscription(3), "text_message", utc_text(_END + timedelta(hours=n))
        yield _subscription(7), "text_message", utc_text(_START + timedelta(hours=n))
    for n in range(4):
        yield _subscription(6), "fax_page", utc_text(_START + timedelta(days=n))
    for number in range(1, REPORT_COUNT + 1):  # by another customer, so that each metric exists
        yield _subscription(8), report_component(number), utc_text(_START)


def _invoice(
    invoice_id: str,
    number: int,
    kind: str,
    charges: list[dict[str, Any]],
    period: Period = _NEXT_MONTH,
) -> dict[str, Any]:
    return {
        "id": invoice_id,
        "type": kind,
        "state": "Pending",
        "subscriptionID": _subscription(number),
        "accountID": _id("ACC", number, 0),
        "currency": "USD",
        "periodStart": utc_text(period.start),
        "periodEnd": utc_text(period.end),
        "charges": charges,
        "notify": False,
    }


def _usage(
    charge_id: str,
    component: str,
    name: str,
    period: Period,
    tiers: list[dict[str, Any]] = _MESSAGE_TIERS,
) -> dict[str, Any]:
    return {
        "id": charge_id,
        "name": name,
        "pricingComponentName": component,
        "pricingComponentType": "usage",
        "pricingComponentValue": 0,
        "periodStart": utc_text(period.start),
        "periodEnd": utc_text(period.end),
        "price": {"model": "tiered", "tiers": tiers},
    }


def _fee(number: int) -> dict[str, Any]:
    tiers: list[dict[str, Any]] = [
        {"lower": 0, "upper": None, "type": "fixed", "price": Decimal("5.00")}
    ]
    fee = _usage(
        _id("CHG", number, 9), "Monthly fee", "Monthly fee", Period(_END, _NEXT_END), tiers
    )
    return {**fee, "pricingComponentType": "subscription", "pricingComponentValue": 1}


def _subscription(number: int) -> str:
    return _id("SUB", number, 0)


def _id(prefix: str, group: int, number: int) -> str:
    return f"{prefix}-DE300000-0000-4000-8000-{group:04X}{number:04X}"
