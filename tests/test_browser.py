"""An operator at a real browser: finds the held invoice, reads why, mends it, sees it issued."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from browser import Visitor, facts, wait_until
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.color import Color

from bench.chromium import set_scheme, set_viewport
from bench.station import OPERATOR, PLATFORM, READER, Station, usage_charge
from worker.domain import Period
from worker.record import EntryKind, State

pytest_plugins = ["browser_fixtures"]

MONTH = Period(datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC))
NEXT_MONTH = Period(MONTH.end, datetime(2026, 11, 1, tzinfo=UTC))
PAGES = ("/ops/", "/ops/invoices", "/ops/sources", "/ops/bulk?verb=replay")
RQ_PAGES = (
    "/ops/rq/",
    "/ops/rq/0/view/workers",
    "/ops/rq/0/view/jobs",
    "/ops/rq/0/view/jobs/reconcile/failed/8/asc/1",
    f"/ops/rq/0/view/job/{PLATFORM}-INV-00000000-0000-4000-8000-00000008",
)
PHONE = (360, 640)
LOADING = 'tr[data-role="loading-placeholder"], #job-data:empty'
OPENED = "document.querySelectorAll('details').forEach(one => one.open = true)"


def invoice_id(number: int) -> str:
    """Name an invoice."""
    return f"INV-00000000-0000-4000-8000-{number:08X}"


def one_path(number: int) -> str:
    """Return the page of an invoice."""
    return f"/ops/invoices/{PLATFORM}/{invoice_id(number)}"


def raise_invoice(station: Station, number: int, component: str) -> None:
    """Have an invoice of 12 text messages and 4 units of a component raised and notified."""
    subscription = f"SUB-00000000-0000-4000-8000-{number:08X}"
    metric = component.lower()
    station.use(
        subscription, "text_message", [f"2026-09-{day:02}T08:00:00Z" for day in range(1, 13)]
    )
    station.use(subscription, metric, [f"2026-09-0{day}T10:00:00Z" for day in range(1, 5)])
    station.control.put_invoice(
        id=invoice_id(number),
        type="Subscription",
        state="Pending",
        subscriptionID=subscription,
        periodStart="2026-10-01T00:00:00Z",
        periodEnd="2026-11-01T00:00:00Z",
        charges=[usage_charge("Text messages", MONTH), usage_charge(component, MONTH)],
        notify=True,
    )


def hold_one(station: Station, number: int, component: str) -> None:
    """Have an invoice held because nothing counts one of its components."""
    raise_invoice(station, number, component)
    wait_until("held", lambda: state_of(station, number) is State.HELD)
    job = f"{PLATFORM}-{invoice_id(number)}"
    wait_until("a failed job", lambda: job in station.doorbell.failed())


def state_of(station: Station, number: int) -> State | None:
    """Return where the journal says an invoice is; None: no worker has ended with it."""
    try:
        row = station.history(invoice_id(number)).row
    except KeyError:
        return None
    return None if row.lease_owner else row.state


def see_it_issued(someone: Visitor, number: int, component: str) -> None:
    """See on the invoice's page that it is issued, with the right amounts, and once."""
    someone.wait_for_state("issued")
    seen = facts(someone)
    assert (seen["Total before"], seen["Total after"]) == ("0.00 USD", "4.00 USD")
    assert seen["Record"].startswith("whole")
    sections = someone.all("section.charge")
    charges = {one.text.split("\n")[0]: one.text for one in sections}
    assert set(charges) == {"Text messages", component}
    assert "12 for 3.00 USD" in charges["Text messages"]
    assert "4 for 1.00 USD" in charges[component]
    record = someone.station.control.record()
    assert record.issues[invoice_id(number)] == 1
    assert record.broken == []


def acts_of(station: Station, number: int) -> list[tuple[str, str]]:
    """Return who replayed an invoice and why, as the journal has it."""
    replays = [e for e in station.history(invoice_id(number)).entries if "by" in e.data]
    assert {entry.kind for entry in replays} <= {EntryKind.REPLAYED}
    return [(entry.data["by"], entry.data["reason"]) for entry in replays]


def test_the_held_invoice_is_found_mended_and_replayed(visitor: Visitor) -> None:
    """Overview, list, reason, a mapping in the config, Replay with a reason: issued once."""
    station = visitor.station
    hold_one(station, 1, "Fax pages")
    visitor.open("/ops/")
    assert visitor.driver.title.startswith("Log in")
    visitor.log_in()
    visitor.press("A component has no source")
    visitor.press(invoice_id(1))
    seen = facts(visitor)
    assert seen["State"] == "held"
    assert 'component "Fax pages" has no source' in seen["Reason"]
    assert "Map the component" in seen["What to do"]
    station.map("Fax pages", "fax pages")
    visitor.press("Replay")
    visitor.one("#why-replay").send_keys("mapped the fax pages")
    visitor.press("Replay", "details[open] form")
    assert "a worker runs it again" in visitor.text("main .note")
    see_it_issued(visitor, 1, "Fax pages")
    assert f"{OPERATOR}, replayed: mapped the fax pages" in visitor.text("main")
    assert acts_of(station, 1) == [(OPERATOR, "mapped the fax pages")]


def test_the_failed_job_is_recognised_and_requeued_in_rq(visitor: Visitor) -> None:
    """Its description and one line say which and why; Requeue there is a replay by that person."""
    station = visitor.station
    hold_one(station, 2, "Letters")
    visitor.log_in()
    visitor.press("RQ")
    visitor.wait("the queue", lambda: int(visitor.text("td.failed a")) > 0)
    visitor.one("td.failed a").click()
    row = f"tr[data-job-id='{PLATFORM}-{invoice_id(2)}']"
    visitor.wait("the job", lambda: visitor.all(row))
    assert visitor.text(f"{row} .description") == f"{invoice_id(2)} {PLATFORM}"
    failure = visitor.text(f"{row} .exc_info")
    assert failure == 'Held: component "Letters" has no source. Map it in config, then requeue.'
    station.map("Letters", "letters")
    visitor.press("Requeue", row)
    visitor.wait("the answer", lambda: "is requeued" in visitor.text("#ops-told"))
    visitor.open(one_path(2))
    see_it_issued(visitor, 2, "Letters")
    assert acts_of(station, 2) == [(OPERATOR, "requeued in RQ")]
    visitor.open(f"/ops/rq/0/view/job/{PLATFORM}-{invoice_id(2)}")
    visitor.wait("its end", lambda: "finished" in visitor.text("#job-data"))
    assert not visitor.one("#requeue-job-btn").is_displayed()


def test_all_failed_jobs_are_requeued_in_rq(visitor: Visitor) -> None:
    """Requeue All asks first; No does nothing, Yes replays each invoice by that person."""
    station = visitor.station
    for number in (9, 10):
        hold_one(station, number, "Vouchers")
    station.map("Vouchers", "vouchers")
    visitor.log_in()
    visitor.open(RQ_PAGES[3])
    visitor.wait("the jobs", lambda: len(visitor.all("tr[data-role=job]")) >= 2)
    for answer in ("No", "Yes"):
        visitor.press("Requeue All")
        visitor.wait("the question", lambda: "requeue all?" in visitor.text(".modal.show h3"))
        assert acts_of(station, 9) == []
        visitor.wait("its rest", lambda: visitor.script(AT_REST))  # until then, it does not close
        visitor.press(answer, ".modal.show")
        visitor.wait("no question", lambda: not visitor.all(".modal-backdrop"))
    visitor.wait("the answer", lambda: "requeued" in visitor.text("#ops-told"))
    for number in (9, 10):
        visitor.open(one_path(number))
        see_it_issued(visitor, number, "Vouchers")
        assert acts_of(station, number) == [(OPERATOR, "requeued in RQ")]


def test_without_javascript_rq_leads_to_the_list(visitor: Visitor) -> None:
    """Its pages need it, and say so; nothing seems to load for ever."""
    visitor.log_in()
    visitor.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        visitor.open("/ops/rq/")
        assert "These pages need JavaScript." in visitor.text("noscript")
        assert not visitor.one('[data-role="loading-placeholder"]').is_displayed()
        visitor.press("The list of invoices")
        assert visitor.text("h1") == "Invoices"
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_keyboard_alone_is_enough(visitor: Visitor) -> None:
    """From the login to the issued invoice by Tab, Enter and typing; the focus is always seen."""
    station = visitor.station
    hold_one(station, 3, "Parcels")
    visitor.open(one_path(3))
    visitor.keys(OPERATOR, Keys.TAB, station.password, Keys.ENTER)
    visitor.wait("the invoice", lambda: invoice_id(3) in visitor.driver.title)
    visitor.keys(Keys.TAB)
    assert visitor.driver.switch_to.active_element.text == "To the content"
    visitor.tab_to("Invoices")
    visitor.keys(Keys.ENTER)
    visitor.wait("the list", lambda: visitor.driver.title.startswith("Invoices"))
    visitor.tab_to(invoice_id(3))
    visitor.keys(Keys.ENTER)
    visitor.wait("the invoice", lambda: invoice_id(3) in visitor.driver.title)
    station.map("Parcels", "parcels")
    visitor.tab_to("Replay")
    visitor.keys(Keys.ENTER)
    visitor.tab_to("reason")
    visitor.keys("mapped by keyboard", Keys.ENTER)
    visitor.wait("the answer", lambda: "a worker runs it again" in visitor.text("main .note"))
    see_it_issued(visitor, 3, "Parcels")


def test_many_are_replayed_after_their_count_was_confirmed(visitor: Visitor) -> None:
    """The filtered set is counted and asked about first; its progress ends at all of them."""
    station = visitor.station
    for number in (4, 5):
        hold_one(station, number, "Stamps")
    station.map("Stamps", "stamps")
    visitor.log_in()
    visitor.open("/ops/invoices?state=held&because=Stamps")
    visitor.press("replay")
    assert visitor.text("h1") == "Replay 2 invoices?"
    visitor.one("#why").send_keys("mapped the stamps")
    visitor.press("Replay 2")
    visitor.wait("the end", lambda: facts(visitor)["State"] == "done")
    assert facts(visitor)["Done"] == "2"
    for number in (4, 5):
        visitor.open(one_path(number))
        see_it_issued(visitor, number, "Stamps")


def test_a_reader_looks_and_is_offered_nothing_else(visitor: Visitor) -> None:
    """A reader's pages carry no button that changes anything, in RQ neither."""
    hold_one(visitor.station, 6, "Crates")
    visitor.log_in(READER)
    for path in (*PAGES[:3], one_path(6)):
        visitor.open(path)
        posts = [one.get_attribute("action") or "" for one in visitor.all("form[method=post]")]
        assert [one for one in posts if not one.endswith("/ops/logout")] == [], path
    visitor.open(RQ_PAGES[3])
    visitor.wait("the job", lambda: visitor.all("tr[data-role=job]"))
    buttons = visitor.all("[data-role=requeue-job-btn], #requeue-all-btn")
    assert len(buttons) >= 2
    assert not any(one.is_displayed() for one in buttons)


def shown_pages(someone: Visitor, *paths: str) -> Iterator[str]:
    """Show a person each page, RQ's with its rows."""
    for path in paths:
        someone.open(path)
        someone.wait(f"the rows of {path}", lambda: not someone.all(LOADING))
        yield path


@pytest.fixture(scope="module")
def looked_at(running_station: Station) -> tuple[str, ...]:
    """The pages that are looked at, one of an issued and one of a held invoice among them."""
    running_station.map("Postcards", "postcards")
    raise_invoice(running_station, 7, "Postcards")
    wait_until("issued", lambda: state_of(running_station, 7) is State.ISSUED)
    hold_one(running_station, 8, "Telegrams")
    return (*PAGES, one_path(7), one_path(8))


def test_every_page_has_a_title_a_main_part_and_no_error(
    visitor: Visitor, looked_at: tuple[str, ...]
) -> None:
    """Each page names itself, has one heading and one main landmark; the console stays silent."""
    visitor.open("/ops/login")
    assert visitor.text("main h1")
    visitor.log_in()
    titles = []
    for _ in shown_pages(visitor, *looked_at):
        titles.append(visitor.driver.title)
        assert len(visitor.all("main")) == len(visitor.all("h1")) == 1
        assert visitor.one("html").get_attribute("lang") == "en"
        assert visitor.script(UNNAMED) == []
    assert len(set(titles)) == len(titles)
    for _ in shown_pages(visitor, *RQ_PAGES):
        assert visitor.driver.title
        told = visitor.one("#ops-told").text  # an answer that came too late is read again
        visitor.wait(f"no {told!r}", lambda: not visitor.one("#ops-told").is_displayed())
    assert visitor.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visitor: Visitor, looked_at: tuple[str, ...], scheme: str) -> None:
    """Each text stands out from what is behind it by 4.5 to 1, in the light and in the dark.

    RQ's pages have no dark: they are light in both.
    """
    visitor.log_in()
    set_scheme(visitor.driver, scheme)
    for path in shown_pages(visitor, *looked_at, *RQ_PAGES):
        visitor.script(OPENED)
        behind = Color.from_string(visitor.one("body").value_of_css_property("background-color"))
        assert (behind.red > 128) == (scheme == "light" or path in RQ_PAGES)
        assert visitor.script(FAINT) == [], path


@pytest.mark.parametrize("width", [PHONE[0], 480, 700, 1200])
def test_no_cell_breaks_a_word(visitor: Visitor, looked_at: tuple[str, ...], width: int) -> None:
    """At every width a table's words stay whole, and where its rows are blocks it has no head."""
    visitor.log_in()
    visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    set_viewport(visitor.driver, width, PHONE[1], phone=width == PHONE[0])
    broken = {}
    for path in shown_pages(visitor, *looked_at):
        visitor.script(OPENED)
        if found := [*visitor.script(BROKEN), *visitor.script(HEADS)]:
            broken[path] = found
    assert broken == {}


def test_a_phone_shows_every_page_without_scrolling_sideways(
    visitor: Visitor, looked_at: tuple[str, ...]
) -> None:
    """At 360 pixels nothing of a page lies beside the screen, RQ's pages too."""
    visitor.log_in()
    set_viewport(visitor.driver, *PHONE, phone=True)
    wide = {}
    for path in shown_pages(visitor, *looked_at, *RQ_PAGES):
        visitor.script(OPENED)
        width = visitor.script("return document.documentElement.scrollWidth")
        if width > PHONE[0]:
            wide[path] = width
    assert wide == {}


AT_REST = "return jQuery('#confirmation-modal').data('bs.modal')._isTransitioning === false"

UNNAMED = """
const named = one => one.labels?.length || one.ariaLabel || one.type === 'hidden';
return [...document.querySelectorAll('input, select, textarea')]
  .filter(one => !named(one)).map(one => one.outerHTML);
"""
"""The fields of a page that have no label."""

BROKEN = """
const broken = [];
for (const cell of document.querySelectorAll('td, th')) {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const token of texts.currentNode.data.matchAll(/\\S+/g)) {
      if (token[0].length > 14) continue;
      for (const word of token[0].matchAll(/[\\p{L}\\p{N}]+/gu)) {
        const range = document.createRange(), start = token.index + word.index;
        range.setStart(texts.currentNode, start);
        range.setEnd(texts.currentNode, start + word[0].length);
        const lines = new Set([...range.getClientRects()].map(one => Math.round(one.top)));
        if (lines.size > 1) broken.push(word[0]);
      }
    }
  }
}
return broken;
"""
"""The ordinary words of tables that stand on more than one line; long ids may be broken."""

HEADS = """
const laid = one => getComputedStyle(one.querySelector('td')).display;
return [...document.querySelectorAll('table:has(thead):has(td)')]
  .filter(one => laid(one) === 'block' && one.tHead.checkVisibility())
  .map(one => one.tHead.innerText);
"""
"""The heads that are seen of tables whose cells stand below each other."""

FAINT = """
const bytes = color => {
  const box = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  box.fillStyle = color;
  box.fillRect(0, 0, 1, 1);
  return [...box.getImageData(0, 0, 1, 1).data];
};
const behind = one => {
  for (; one; one = one.parentElement) {
    const found = bytes(getComputedStyle(one).backgroundColor);
    if (found[3] === 255) return found;
  }
  return [255, 255, 255, 255];
};
const over = ([r, g, b, alpha], under) =>
  [r, g, b].map((part, at) => (part * alpha + under[at] * (255 - alpha)) / 255);
const light = color => {
  const [r, g, b] = color.map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const faint = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const text = texts.currentNode.textContent.trim(), one = texts.currentNode.parentElement;
  const style = getComputedStyle(one);
  if (!text || !one.checkVisibility() || one.closest('svg, .skip')) continue;
  const back = behind(one).slice(0, 3);
  const [a, b] = [light(over(bytes(style.color), back)), light(back)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(1)}`);
}
return faint;
"""
"""The texts of a page that hardly stand out from what is behind them (WCAG 2, AA)."""
