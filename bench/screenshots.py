"""Pictures of the operators' pages for the README, made from a demo journal.

    make screenshots

An installation is played through in quick motion: its invoices of the last months and of the last
24 hours are reconciled against the sandbox by the worker's own code, with a clock that is set.
Some are held, each for another cause. Then its processes are started, and a browser looks at it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from bench.chromium import chromium, programs, set_scheme, set_viewport
from bench.station import OPERATOR, PLATFORM, Station, started, station, usage_charge
from worker.config import load_config
from worker.domain import InvoiceKey, Period, utc_text
from worker.ports import Journal
from worker.reconcile import reconcile
from worker.record import Entry, EntryKind, State
from worker.wiring import open_service, utc_now

FOLDER = Path("docs/screens")
WIDTH, TALLEST = 1000, 1000
MOST_BYTES = 200 * 1024

_COMPONENTS = {"Text messages": "text_message", "API calls": "api_call"}
_UNMAPPED, _FAX = "Fax pages", "fax_page"
_MONTHS, _CUSTOMERS, _OF_A_DAY = 4, 3, 46
_HELD_EVERY = 9


@dataclass(frozen=True, slots=True)
class Bill:
    """One invoice of the demo: of which customer, when it was raised, and what is on it."""

    number: int
    customer: int
    at: datetime
    components: Sequence[str]

    @property
    def invoice_id(self) -> str:
        """Its name on the platform."""
        chance = random.Random(self.number)  # noqa: S311  reproducible, not secret
        return f"INV-{chance.getrandbits(32):08X}-5B1D-4E0B-9C51-{self.number:08X}"

    @property
    def period(self) -> Period:
        """The month before it."""
        return Period(self.at - timedelta(days=30), self.at)


def bills(now: datetime) -> Iterator[Bill]:
    """Make the invoices, oldest first: months of some customers, then a busy day of many."""
    chance = random.Random(1)  # noqa: S311
    number = 0
    day_began = now - timedelta(hours=24)
    for month in reversed(range(1, _MONTHS)):
        for customer in range(_CUSTOMERS):
            at = now - timedelta(days=30 * month, minutes=60 - 7 * customer)
            number += 1
            yield Bill(number, customer, at.replace(microsecond=0), ["Text messages", "API calls"])
    moments = sorted(chance.random() ** 0.8 for _ in range(_OF_A_DAY - _CUSTOMERS))
    for place, moment in enumerate(moments):
        number += 1
        at = (day_began + timedelta(hours=22.5) * moment).replace(microsecond=0)
        extra = [_UNMAPPED] if place % _HELD_EVERY == 4 else []
        yield Bill(number, _CUSTOMERS + place, at, ["Text messages", *extra])
    number += 1
    yield Bill(number, 900, (now - timedelta(seconds=30)).replace(microsecond=0), ["API calls"])
    for customer in range(_CUSTOMERS):
        number += 1
        at = (now - timedelta(minutes=60 - 7 * customer)).replace(microsecond=0)
        yield Bill(number, customer, at, ["Text messages", "API calls"])


def usage(bill: Bill) -> Iterator[tuple[str, list[str]]]:
    """Yield what its customer used: each metric with its times."""
    chance = random.Random(bill.number * 7)  # noqa: S311
    growth = 1 + bill.number / 60
    for component in bill.components:
        metric = _COMPONENTS.get(component, _FAX)
        times = int(chance.randint(60, 240) * growth)
        spread = (bill.period.end - bill.period.start) / (times + 1)
        yield metric, [utc_text(bill.period.start + spread * n) for n in range(times)]


def subscription(customer: int) -> str:
    """Name a customer's subscription."""
    return f"SUB-{0xDE300000 + customer:08X}-0000-4000-8000-00010000"


def played(prepared: Station, now: datetime) -> str:
    """Reconcile everything with a clock that is set; return the invoice that is shown."""
    for name, value in prepared.environ.items():
        if name.startswith("RECONCILER"):
            os.environ[name] = value
    config = load_config(prepared.folder / "config.toml", prepared.environ)
    service = open_service(config)
    last = ""
    for bill in bills(now):
        unknown = bill.number % 23 == 17  # a customer whom the source has never seen
        for metric, times in usage(bill):
            prepared.use(subscription(999 if unknown else bill.customer), metric, times)
        put(prepared, bill)
        key = InvoiceKey(PLATFORM, bill.invoice_id)
        at = min(bill.at + timedelta(minutes=6), now)  # the youngest waits: it is too early
        service.journal.wake(key, Entry(kind=EntryKind.FOUND, at=at))
        ports = replace(service.ports(PLATFORM, lambda: False), now=_Clock(at), random=lambda: 0.5)
        reconcile(key, owner="billing-1:4711", ports=ports, rules=config.rules)
        last = bill.invoice_id
    park_one(service.journal, now)
    return last


def park_one(journal: Journal, now: datetime) -> None:
    """Have the newest held invoice kept back by a person."""
    data = {"by": OPERATOR, "reason": "the customer disputes it; accounting asks"}
    entry = Entry(kind=EntryKind.PARKED, at=now - timedelta(minutes=20), data=data)
    journal.park(journal.invoices([State.HELD])[-1].key, entry)


class _Clock:
    """Tells the time from a moment on, a little later at each look."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def __call__(self) -> datetime:
        self._at += timedelta(milliseconds=40)
        return self._at


def put(prepared: Station, bill: Bill) -> None:
    """Put an invoice on the platform."""
    prepared.control.put_invoice(
        id=bill.invoice_id,
        type="Subscription",
        state="Pending",
        subscriptionID=subscription(bill.customer),
        periodStart=utc_text(bill.at),
        periodEnd=utc_text(bill.at + timedelta(days=30)),
        charges=[usage_charge(component, bill.period) for component in bill.components],
        notify=False,
    )


def picture(driver: Chrome, name: str) -> None:
    """Store the page that is shown, down to its end or the tallest picture."""
    high = driver.execute_script("return Math.ceil(document.body.getBoundingClientRect().bottom)")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(high, TALLEST), "scale": 1}
    asked = {
        "format": "png",
        "clip": clip,
        "captureBeyondViewport": True,
        "optimizeForSpeed": False,
    }
    taken: Any = driver.execute_cdp_cmd("Page.captureScreenshot", asked)
    data = b64decode(taken["data"])
    assert len(data) < MOST_BYTES, f"{name}: {len(data):,} bytes"
    (FOLDER / f"{name}.png").write_bytes(data)
    print(f"{name}.png {len(data) // 1024} KiB, {WIDTH} x {clip['height']}")


def log_in(driver: Chrome, prepared: Station) -> None:
    """Log in as the operator."""
    driver.get(f"{prepared.url}/ops/login")
    driver.find_element(By.ID, "name").send_keys(OPERATOR)
    driver.find_element(By.ID, "password").send_keys(prepared.password)
    driver.find_element(By.CSS_SELECTOR, ".login button").click()
    WebDriverWait(driver, 20).until(lambda at: "Overview" in at.title)


def fail_again(prepared: Station) -> None:
    """Let the worker look at the held invoices, so that RQ has their jobs."""
    rows = prepared.journal.invoices([State.HELD])
    for row in rows:
        data = {"by": OPERATOR, "reason": "is it mapped by now?"}
        prepared.journal.wake(row.key, Entry(kind=EntryKind.REPLAYED, at=utc_now(), data=data))
        prepared.doorbell.ring(row.key)
    while len(prepared.doorbell.failed()) < len(rows):
        time.sleep(0.05)


def shown_in(driver: Chrome, prepared: Station, scheme: str, pages: Mapping[str, str]) -> None:
    """Take a picture of each page in one scheme of colours."""
    set_scheme(driver, scheme)
    for name, path in pages.items():
        set_viewport(driver, WIDTH, 800)
        driver.get(f"{prepared.url}{path}")
        if name == "sources":
            driver.find_element(By.CSS_SELECTOR, "main form button").click()
        loading = (By.CSS_SELECTOR, 'tr[data-role="loading-placeholder"]')
        WebDriverWait(driver, 20).until(lambda at: not at.find_elements(*loading))  # noqa: B023
        picture(driver, f"{name}-{scheme}")


def main() -> None:
    """Run from the command line."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found, now = programs(), utc_now()
    with (
        tempfile.TemporaryDirectory(prefix="screens-") as folder,
        station(Path(folder), _COMPONENTS) as prepared,
    ):
        shown = played(prepared, now)
        held = prepared.journal.invoices([State.HELD])[0].key.invoice_id
        pages = {
            "overview": "/ops/",
            "invoices": "/ops/invoices?state=held",
            "invoice": f"/ops/invoices/{PLATFORM}/{shown}",
            "held": f"/ops/invoices/{PLATFORM}/{held}",
            "sources": "/ops/sources",
        }
        failed = {"rq": "/ops/rq/0/view/jobs/reconcile/failed/8/asc/1"}
        with started(prepared), chromium(found) as driver:
            log_in(driver, prepared)
            for scheme in ("light", "dark"):
                shown_in(driver, prepared, scheme, pages)
            fail_again(prepared)
            shown_in(driver, prepared, "light", failed)  # rq-dashboard has no dark colours


if __name__ == "__main__":
    main()
