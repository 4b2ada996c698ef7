"""Names and texts from outside that carry scripts: no page of ours runs any of them."""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from browser import Visitor, wait_until
from builders import delivery

from bench.station import PLATFORM, Station, usage_charge
from worker.domain import InvoiceKey, Period
from worker.doorbell import without_markup
from worker.record import Act, Entry, EntryKind, State

pytest_plugins = ["browser_fixtures"]

PAYLOADS = (
    "<script>window.pwned=1;alert(1)</script>",
    '<img src="x" onerror="window.pwned=1">',
    '"><svg onload="window.pwned=1">',
    "' autofocus onfocus='window.pwned=1' x='",
    "</script><script>window.pwned=1</script>",
    '</title></textarea><iframe srcdoc="<script>parent.pwned=1</script>">',
    "javascript:window.pwned=1",
    "<%= window.pwned=1 %><% window.pwned=1 %>",
    "\\';window.pwned=1;//\\\";window.pwned=1;//",
    "{{ 7*'7' }}{% raise %}",
    '<a href="javascript:window.pwned=1">x</a>',
    '<form action="//evil.invalid"><button formaction="javascript:window.pwned=1">Replay</button>',
    '<meta http-equiv="refresh" content="0;url=//evil.invalid">',
    '<style>body{display:none}</style><base href="//evil.invalid/">',
)
MONTH = Period(datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC))
NOW = datetime.now(UTC)


def invoice_id(number: int) -> str:
    """Name an invoice."""
    return f"INV-00000000-0000-4000-8000-{number:08X}"


def raise_invoice(station: Station, number: int, *components: str) -> None:
    """Have an invoice with these components raised and notified."""
    subscription = f"SUB-00000000-0000-4000-8000-{number:08X}"
    for component in components:
        station.use(subscription, component, ["2026-09-03T08:00:00Z"])
    station.control.put_invoice(
        id=invoice_id(number),
        type="Subscription",
        state="Pending",
        subscriptionID=subscription,
        periodStart="2026-10-01T00:00:00Z",
        periodEnd="2026-11-01T00:00:00Z",
        charges=[usage_charge(component, MONTH) for component in components],
        notify=True,
    )


def entry(kind: EntryKind, payload: str) -> Entry:
    """Make an entry whose every text is a payload."""
    return Entry(kind=kind, at=NOW, data={"by": payload, "reason": payload, "total": payload})


@pytest.fixture(scope="module")
def hostile(running_station: Station) -> Station:
    """An installation that holds payloads wherever a text from outside can come to lie."""
    station, journal = running_station, running_station.journal
    for payload in PAYLOADS:
        station.map(f"issued {payload}", f"issued {payload}")
    raise_invoice(station, 100, *(f"issued {payload}" for payload in PAYLOADS))
    for number, payload in enumerate(PAYLOADS):
        raise_invoice(station, number, payload)  # held: nothing counts it
        told: dict[str, Any] = {"status": 400, "error_type": payload, "message": payload}
        match = {"path": invoice_id(200 + number)}
        station.control.add_fault("error", times=None, match=match, **told)
        raise_invoice(station, 200 + number, "Text messages")  # held: the platform's own words
        # of platforms that nobody works on: RQ takes no such ids
        journal.pause(Act(at=NOW, by=payload, verb="pause", reason=payload, platform=payload))
        journal.wake(InvoiceKey(payload, payload), entry(EntryKind.REPLAYED, payload))
        told_of = delivery(id=payload, platform=payload, event=payload, invoice_id=payload)
        journal.record_delivery(told_of, NOW)
        put_into_rq(station, payload)
    held = len(PAYLOADS) * 2
    wait_until("all held", lambda: len(journal.invoices([State.HELD])) >= held)
    wait_until("issued", lambda: station.history(invoice_id(100)).row.state is State.ISSUED)
    return station


def put_into_rq(station: Station, payload: str) -> None:
    """Put a payload into every field of RQ's that a dashboard shows."""
    redis, later = station.doorbell.redis, (NOW + timedelta(days=300)).timestamp()
    redis.sadd("rq:queues", f"rq:queue:{payload}")
    redis.sadd("rq:workers", f"rq:worker:{payload}")
    redis.sadd("rq:workers:reconcile", f"rq:worker:{payload}")
    fields = ("state", "queues", "current_job", "version", "python_version", "birth")
    for name in fields:
        redis.hset(f"rq:worker:{payload}", name, payload)
    for queue, registry in (
        ("reconcile", "failed"),
        ("reconcile", "finished"),
        (payload, "failed"),
    ):
        redis.zadd(f"rq:{registry}:{queue}", {job_of(payload): later})
    for name in ("description", "origin", "status", "meta", "created_at", "worker_name"):
        redis.hset(f"rq:job:{job_of(payload)}", name, payload)
    redis.hset(f"rq:job:{job_of(payload)}", "status", "failed")
    packed = b64encode(zlib.compress(payload.encode())).decode()
    redis.xadd(f"rq:results:{job_of(payload)}", {"type": "2", "exc_string": packed})


def job_of(payload: str) -> str:
    """Name a job that holds a payload; a colon would part its id from a run's."""
    return f"job {payload.replace(':', ';')}"


def pages(station: Station) -> Iterator[str]:
    """Name every page that there is to look at."""
    yield from ("/ops/", "/ops/invoices", "/ops/sources")
    for row in station.journal.invoices():
        platform, name = quote(row.key.platform, safe=""), quote(row.key.invoice_id, safe="")
        yield f"/ops/invoices/{platform}/{name}"
    for payload in PAYLOADS:
        said = quote(payload, safe="")
        names = ("text", "because", "component", "subscription", "account", "platform", "cause")
        yield "/ops/invoices?" + "&".join(f"{name}={said}" for name in names)
        yield f"/ops/rq/0/view/job/{quote(job_of(payload), safe='')}"
    said = quote(" ".join(PAYLOADS), safe="")
    yield from (f"/ops/bulk?verb=replay&text={said}", f"/ops/bulk?verb={said}", f"/ops/{said}")
    yield from (f"/ops/login?next={said}", f"/ops/rq/0/view/jobs/{said}/failed/8/asc/1")
    yield from ("/ops/rq/", "/ops/rq/0/view/workers")
    for registry in ("queued", "failed", "finished", "started"):
        yield f"/ops/rq/0/view/jobs/reconcile/{registry}/200/asc/1"


INJECTED = """
const scripts = [...document.scripts].filter(one =>
  one.text.includes('pwned') && one.type !== 'application/json');
const handled = [...document.querySelectorAll('*')].filter(one =>
  [...one.attributes].some(at => /^on/.test(at.name) || /^\\s*javascript:/i.test(at.value)
    && ['href', 'src', 'action', 'formaction'].includes(at.name)));
const strange = [...document.querySelectorAll(
  'iframe, base, object, embed, body img, body style, [http-equiv=refresh]')];
return [...scripts, ...handled, ...strange].map(one => one.outerHTML.slice(0, 200));
"""
"""What stands in a page as markup, and is not ours."""


def harm(someone: Visitor) -> list[str]:
    """Return what a payload did to the page that is shown, or tried to do."""
    if (alert := someone.alert()) is not None:
        return [f"an alert is open: {alert}"]
    ran = someone.script("return window.pwned")
    injected = [f"markup: {one}" for one in someone.script(INJECTED)]
    return [*([f"a payload ran: {ran}"] if ran else []), *injected]


def test_no_payload_runs_on_any_page(visitor: Visitor, hostile: Station) -> None:
    """Every page shows the payloads as text: none runs, none becomes markup, none breaks a policy.

    The pages' policy would stop most of them; its complaints on the console show that one
    was markup after all.
    """
    visitor.log_in()
    found = {}
    for path in pages(hostile):
        visitor.open(path)
        visitor.wait("its rows", lambda: visitor.alert() or not visitor.all(LOADING))
        refused = [one for one in visitor.complaints() if not is_refusal(one)]
        if harmful := [*harm(visitor), *refused]:
            found[path] = harmful
    assert found == {}


LOADING = 'tr[data-role="loading-placeholder"]'


def is_refusal(complaint: str) -> bool:
    """Tell whether the console only says that a page was refused, as those with such names are."""
    return "Failed to load resource" in complaint and "status of 4" in complaint


def test_the_payloads_are_shown_as_they_are(visitor: Visitor, hostile: Station) -> None:
    """A person reads each payload where it stands: nothing was cut out, and the test sees them."""
    visitor.log_in()
    visitor.open("/ops/")
    overview = visitor.text()
    visitor.open(f"/ops/invoices/{PLATFORM}/{invoice_id(100)}")
    issued = visitor.text()
    for number, payload in enumerate(PAYLOADS):
        assert payload in overview, "of the pauses"
        assert f"issued {payload}" in issued
        visitor.open(f"/ops/invoices/{PLATFORM}/{invoice_id(number)}")
        assert f'component "{payload}" has no source' in visitor.text()
        visitor.open(f"/ops/invoices/{PLATFORM}/{invoice_id(200 + number)}")
        assert payload in visitor.text("dd.reason")
    visitor.open("/ops/rq/0/view/jobs/reconcile/failed/200/asc/1")
    visitor.wait("the jobs", lambda: len(visitor.all("tr[data-role=job]")) >= len(PAYLOADS))
    for place in (".description", ".exc_info"):
        told = [" ".join(one.text.split()) for one in visitor.all(f"tr[data-role=job] {place}")]
        assert [one for one in PAYLOADS if without_markup(one) not in told] == [], place


def test_what_a_person_types_does_not_run(visitor: Visitor, hostile: Station) -> None:
    """Payloads as a reason, a name at the login and a filter stay texts as well."""
    visitor.log_in()
    number = 300
    raise_invoice(hostile, number, "of nobody")
    wait_until("held", lambda: hostile.journal.history(InvoiceKey(PLATFORM, invoice_id(number))))
    typed = " ".join(PAYLOADS[:8])
    visitor.open(f"/ops/invoices/{PLATFORM}/{invoice_id(number)}")
    visitor.press("Hold")
    visitor.one("#why-hold").send_keys(typed)
    visitor.press("Hold", "details[open] form")
    visitor.wait("the answer", lambda: "It is parked" in visitor.text("main .note"))
    assert typed in visitor.text("dd.reason")
    assert harm(visitor) == []
    visitor.press("Log out")
    visitor.wait("the login", lambda: visitor.all("#name"))
    visitor.one("#name").send_keys(typed[:100])
    visitor.one("#password").send_keys("wrong")
    visitor.press("Log in")
    visitor.wait("the answer", lambda: "wrong" in visitor.text("main .warning"))
    assert harm(visitor) == []
    assert [one for one in visitor.complaints() if not is_refusal(one)] == []
