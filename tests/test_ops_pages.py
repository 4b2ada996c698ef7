"""What the operators' pages show, on a real journal over HTTP; whatever texts hold, it is text."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from builders import MONTH, NOW, evidence, frozen
from flask import Flask
from markupsafe import escape
from ops_builders import (
    IMAGE,
    XSS,
    Browser,
    Filler,
    fill,
    journal_of,
    key_of,
    logged_in,
    month_of,
    ops_app,
)
from redis import Redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from webhook_app import create_app
from worker.domain import FrozenTally, InvoiceKey, Period, Span
from worker.doorbell import Doorbell
from worker.journal.sql import SqlJournal
from worker.ops import lists
from worker.ops.lists import cell
from worker.ops.shown import columns, length, moment, share
from worker.overviews import Hour
from worker.record import Act, Claim, Entry, EntryKind, Outcome, State

LIST = "/ops/invoices"


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application on a journal with invoices of every kind; Redis does not answer."""
    app = ops_app(journal_url)
    fill(journal_of(app), datetime.now(UTC))
    return app


@pytest.fixture(name="browser")
def _browser(app: Flask) -> Browser:
    return logged_in(app)


def page_of(key: InvoiceKey) -> str:
    """Return the URL of an invoice's page."""
    return f"{LIST}/{key.platform}/{key.invoice_id}"


def test_the_overview_counts(browser: Browser) -> None:
    """It says how many invoices are where, the oldest one, and what to do about each cause."""
    text = browser.get("/ops/").text
    assert "<strong>5</strong> held" in text
    assert "<strong>1</strong> parked" in text
    assert "<strong>1</strong> due now" in text
    assert "<strong>1</strong> waiting" in text
    assert key_of(0x32).invoice_id in text
    assert "A component has no source" in text
    assert "Map the component under components in the config" in text
    assert f'href="{LIST}?cause=unmapped_component">2</a>' in text
    assert text.count('<rect class="issued"') == 24


def test_the_chart_is_as_tall_as_its_numbers(journal_url: str) -> None:
    """The fullest hour fills the chart, the others stand to it as their numbers; none is no bar."""
    app, now = ops_app(journal_url), datetime.now(UTC)
    filler = Filler(journal_of(app), now)
    for number in range(4):
        filler.issue(
            key_of(number), now - timedelta(hours=3), 5, span=Span("S", str(number), MONTH)
        )
    filler.issue(key_of(4), now - timedelta(hours=5), 5)
    for number in (5, 6):
        filler.hold(key_of(number), "no", now - timedelta(hours=5))
    text = logged_in(app).get("/ops/").text
    found = re.findall(
        r"<title>\S+ UTC: (\d+) issued, (\d+) held</title>.*?"
        r'class="issued"[^>]* y="(\d+)"[^>]* height="(\d+)".*?'
        r'class="held"[^>]* y="(\d+)"[^>]* height="(\d+)"',
        text,
        re.DOTALL,
    )
    bars = [tuple(map(int, one)) for one in found]
    full, quarter = (4, 0, 0, 100, 100, 0), (1, 2, 75, 25, 50, 50)
    empty = (0, 0, 100, 0, 100, 0)
    assert [bar for bar in bars if bar != empty] == [quarter, full]
    assert len(bars) == 24
    assert bars.index(full) - bars.index(quarter) == 2


def test_the_overview_without_redis(browser: Browser) -> None:
    """It comes all the same, and says that nobody is woken."""
    assert "Redis at 127.0.0.1:1: ConnectionError" in browser.get("/ops/").text


def test_the_overview_says_who_is_alive(journal_url: str, redis_url: str) -> None:
    """Workers by RQ's registry, the sweep by its last round; a silent one is said."""
    app = ops_app(journal_url, redis_url)
    browser = logged_in(app)
    text = browser.get("/ops/").text
    assert "No sweep has made a round" in text
    assert "No worker is alive" in text
    doorbell = Doorbell(redis_url, "reconcile")
    doorbell.note_sweep(datetime.now(UTC))
    with Redis.from_url(redis_url) as redis:
        worker = SimpleWorker(
            ["reconcile"], connection=redis, name="worker-one", serializer=JSONSerializer
        )
        worker.register_birth()  # type: ignore[no-untyped-call]
        text = browser.get("/ops/").text
        worker.register_death()  # type: ignore[no-untyped-call]
    assert "The sweep is alive" in text
    assert "worker-one" in text
    doorbell.note_sweep(datetime.now(UTC) - timedelta(hours=1))
    assert "The sweep is silent" in browser.get("/ops/").text


def test_a_journal_that_does_not_answer_is_said(
    app: Flask, browser: Browser, tmp_path: Path
) -> None:
    """The page says so with a 503; no page shows a traceback."""
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        db.execute("DROP TABLE pauses")
    answer = browser.get("/ops/")
    assert answer.status_code == 503
    assert "That did not work" in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=held", {0x20, 0x21, 0x22, 0x23, 0x24}),
        ("state=parked&state=observed", {0x32, 0x33}),
        ("cause=unmapped_component", {0x20, 0x21}),
        ("component=Fax+pages", {0x20}),
        ("because=no+such+table", {0x24}),
        ("text=00000022", {0x22}),
        ("component=Text+messages&since=2015-11-02&until=2015-11-30", {1, 2, 0x33}),
        ("state=issued&until=2015-09-15", {3, 4}),
        ("state=issued&until=2015-11-02", {1, 2, 3, 4}),  # the day itself is meant too
        ("platform=billforward&state=held", {0x20, 0x21, 0x22, 0x23, 0x24}),
        ("platform=stripe", set()),
        ("subscription=SUB-1&state=issued", {1, 2, 3, 4}),
        ("subscription=SUB-404", set()),
        ("account=ACC-1&state=waiting", {0x30}),
        ("account=ACC", set()),  # an id is compared as a whole
    ],
)
def test_the_list_is_filtered(browser: Browser, query: str, expected: set[int]) -> None:
    """Each filter leaves what it says, and the form shows it again."""
    text = browser.get(f"{LIST}?{query}").text
    every = [*range(1, 5), *range(0x20, 0x25), *range(0x30, 0x37)]
    assert {number for number in every if page_of(key_of(number)) in text} == expected
    assert f"<strong>{len(expected)}</strong> invoice" in text


def test_the_list_is_paged(journal_url: str) -> None:
    """Every invoice comes once over the pages, oldest first, whatever arrives meanwhile."""
    app = ops_app(journal_url)
    journal, browser = journal_of(app), logged_in(app)
    filler = Filler(journal, NOW)
    for number in range(120):
        filler.deliver(key_of(number), NOW + timedelta(seconds=number))
    seen: list[str] = []
    url: str | None = f"{LIST}?state=due"
    while url:
        text = browser.get(url).text
        seen += [part.split('"')[0] for part in text.split('<td><a href="')[1:]]
        filler.deliver(key_of(1000 + len(seen)), NOW + timedelta(days=1, seconds=len(seen)))
        following = text.split('class="button" href="')
        url = following[1].split('"')[0].replace("&amp;", "&") if len(following) > 1 else None
    assert seen[:120] == [page_of(key_of(number)) for number in range(120)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    "query", ["state=gone", "since=yesterday", "until=2015-13-01", "after=nowhere"]
)
def test_a_link_that_means_nothing_is_refused(browser: Browser, query: str) -> None:
    """It is a 400 with the reason, never a crash or an unfiltered list."""
    answer = browser.get(f"{LIST}?{query}")
    assert answer.status_code == 400
    assert "Refused" in answer.text


def test_the_exports_hold_what_the_list_shows(browser: Browser) -> None:
    """CSV and JSON give every invoice of the filter, each with its cause and facts."""
    rows = list(csv.DictReader(io.StringIO(browser.get(f"{LIST}.csv?state=held").text)))
    assert {row["cause"] for row in rows} == {
        *("unmapped_component", "unknown_subject", "platform_unreachable", "source_invalid"),
    }
    assert rows[0]["platform"] == "billforward"
    answer = browser.get(f"{LIST}.json?state=issued")
    assert "attachment" in answer.headers["Content-Disposition"]
    found = json.loads(answer.text)
    assert [one["id"] for one in found] == [key_of(n).invoice_id for n in (4, 3, 2, 1)]
    assert found[0]["components"] == ["Text messages"]
    assert json.loads(browser.get(f"{LIST}.json?text=nothing").text) == []


def test_an_export_is_read_while_it_is_sent(
    app: Flask, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted, and between two pages the journal is free for whoever writes."""
    monkeypatch.setattr(lists, "_EXPORT_PAGE", 5)
    monkeypatch.setattr("worker.journal.search._count", None)  # to count is a crash from now on
    for kind in ("csv", "json"):
        parts = browser.client.get(f"{LIST}.{kind}").iter_encoded()
        sent = next(parts)
        late = key_of(0x50 if kind == "csv" else 0x51)
        Filler(journal_of(app), NOW).deliver(late, datetime.now(UTC))
        assert late.invoice_id in (sent + b"".join(parts)).decode()


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1+1", '=HYPERLINK("http://x")', "＝1"],
)
def test_no_cell_is_a_formula(text: str) -> None:
    """What a spreadsheet would run begins with an apostrophe; the text is kept."""
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("number", ["-5.00", "5", "+1", "0.10"])
def test_numbers_stay_numbers(number: str) -> None:
    """An amount is not made a text."""
    assert cell(number) == number


def test_a_formula_in_a_reason_is_exported_as_text(journal_url: str) -> None:
    """An operator's own reason cannot run in accounting's spreadsheet."""
    app = ops_app(journal_url)
    Filler(journal_of(app), NOW).park(key_of(1), NOW, "=cmd|' /C calc'!A0")
    text = logged_in(app).get(f"{LIST}.csv").text
    assert "'=cmd|" in text


def test_an_issued_invoice_tells_all(browser: Browser) -> None:
    """Charge, count, query, amount, totals, earlier periods, what happened: all on one page."""
    text = browser.get(page_of(key_of(1))).text
    for told in (
        *("Text messages", "from 105 events", "<strong>105</strong> for 10.50 USD", "SUB-1"),
        *("5.00 USD", "15.50 USD", "charge answer", "worker-1:4711, fencing number 1"),
        *("NOT-00000001", "+7 (+7 %)", "-15 (-12 %)", "+65 (+162 %)", "d" * 64),
    ):
        assert told in text, told
    assert text.count('<svg class="bar"') == 4
    assert '<span class="well">whole</span>' in text


def noted(app: Flask, kind: EntryKind, **data: object) -> str:
    """Let a worker note something about the invoice it is at, and return the page's URL."""
    journal, now = journal_of(app), datetime.now(UTC)
    claim = Filler(journal, NOW).claim(key_of(0x35), now)
    journal.append(claim, [Entry(kind=kind, at=now, data=data)], now)
    return page_of(key_of(0x35))


@pytest.mark.parametrize(
    "kind", [EntryKind.CHARGE_ANSWER, EntryKind.ISSUE_ANSWER, EntryKind.FAILED]
)
@pytest.mark.parametrize("payload", ['{"a": 1}', XSS, IMAGE, "</pre></details>{{ 4057 * 7919 }}"])
def test_what_was_sent_and_answered_is_folded_away(
    app: Flask, browser: Browser, kind: EntryKind, payload: str
) -> None:
    """Under its attempt, closed, each once, and as text whatever it holds."""
    request, answer = f"POST /charges/CHG-1 {payload}", f"200 {payload}"
    url = noted(app, kind, error="no", charge_id="CHG-1", request=request, answer=answer)
    text = browser.get(url).text
    folded = re.findall(
        r'<details class="exchange"><summary>Request and answer</summary>(.*?)</details>',
        text,
        re.DOTALL,
    )
    (shown,) = folded
    assert [unescape(one) for one in re.findall("<pre>(.*?)</pre>", shown)] == [request, answer]
    for markup in ("<script", "<img", str(4057 * 7919)):
        assert markup not in text
    assert text.count(str(escape(answer))) == 1


@pytest.mark.parametrize(
    "data", [{}, {"request": "POST /x"}, {"request": 1, "answer": ["200"]}, {"answer": "200"}]
)
def test_an_entry_without_request_and_answer_is_shown(
    app: Flask, browser: Browser, data: dict[str, object]
) -> None:
    """Earlier versions wrote none; what another one wrote instead stands with the other data."""
    text = browser.get(noted(app, EntryKind.ISSUE_ANSWER, error="no", **data)).text
    assert "Request and answer" not in text
    assert "refused: no" in text
    for key in data:
        assert f"&#34;{key}&#34;" in text


def test_a_held_invoice_says_what_to_do(browser: Browser) -> None:
    """The reason, the mend, and the buttons that can change something."""
    text = browser.get(page_of(key_of(0x20))).text
    assert "component &#34;Fax pages&#34; has no source" in text
    assert "Map the component under components" in text
    assert [verb in text for verb in ("Replay", "Release", "Hold", "Close")] == [True] * 4
    issued = browser.get(page_of(key_of(1))).text
    assert [verb in issued for verb in ("<summary>Release", "<summary>Hold")] == [False] * 2


def test_an_observed_invoice_says_what_it_would_bill(browser: Browser) -> None:
    """What was counted without writing is shown with its amounts."""
    text = browser.get(page_of(key_of(0x33))).text
    assert "What would be billed" in text
    assert "10.50" in text


def test_a_changed_record_is_shown_as_broken(
    app: Flask, browser: Browser, journal_url: str
) -> None:
    """A row that was edited behind the program's back stands at the top in red."""
    with closing(sqlite3.connect(journal_url.removeprefix("sqlite:///"))) as db, db:
        db.execute("DROP TRIGGER entries_refuse_update")
        db.execute(
            "UPDATE entries SET data = replace(data, '105', '999') WHERE kind = 'counted'"
            " AND invoice_id = ?",
            [key_of(1).invoice_id],
        )
    text = browser.get(page_of(key_of(1))).text
    assert "The record is not as it was written" in text
    assert '<span class="bad">broken</span>' in text


@pytest.mark.parametrize(
    "kind", [EntryKind.DELIVERED, EntryKind.RECOUNTED, EntryKind.ISSUE_INTENT, EntryKind.CLAIMED]
)
def test_an_entry_of_another_shape_is_shown(app: Flask, browser: Browser, kind: EntryKind) -> None:
    """What was changed behind the program's back, or by another version, leaves the page whole."""
    journal = journal_of(app)
    claim = Filler(journal, NOW).claim(key_of(0x35), datetime.now(UTC))
    odd = Entry(kind=kind, at=NOW, data={"odd": "shape"})
    journal.append(claim, [odd], datetime.now(UTC))
    text = browser.get(page_of(key_of(0x35))).text
    assert "has not the shape of its kind" in text
    assert "&#34;odd&#34;: &#34;shape&#34;" in text


WIDE = [f"Component {number:02}" for number in range(51)]
STATEMENT = (
    f"SELECT count(*) FROM usage WHERE metric IN ({', '.join('?' * 51)}) {'AND true ' * 200}"
)


def wide_tallies(period: Period, **changed: Any) -> list[FrozenTally]:
    """Make the tallies of many usage charges, which one statement counted."""
    asked = evidence(query=STATEMENT, parameters={name: name for name in WIDE}, **changed)
    return [
        frozen(7, charge_id=f"CHG-{name[-2:]}", span=Span("SUB-1", name, period), evidence=asked)
        for name in WIDE
    ]


def count_many(journal: SqlJournal, month: int, now: datetime) -> Claim:
    """Let a worker count a month's invoice of many usage charges, and return its claim."""
    filler, key = Filler(journal, now), key_of(0x60 + month)
    filler.deliver(key, now)
    claim = filler.claim(key, now)
    assert journal.freeze(claim, [], wide_tallies(month_of(month)), now) == []
    return claim


def write_many(journal: SqlJournal, claim: Claim, now: datetime) -> None:
    """Let it write and issue all that it counted, with what was sent and answered."""
    told = {"request": f"POST /charges {'x' * 380}", "answer": f"200 {'x' * 380}"}
    written = [
        {"charge_id": f"CHG-{name[-2:]}", "component": name, "quantity": "7", "amount": "1.75"}
        for name in WIDE
    ]
    intents = [
        Entry(kind=EntryKind.CHARGE_INTENT, at=now, data={**one, "from": "0", "to": 7})
        for one in written
    ]
    answers = [
        Entry(kind=EntryKind.CHARGE_ANSWER, at=now, data={**one, "version": 2, **told})
        for one in written
    ]
    issued = Entry(kind=EntryKind.ISSUED, at=now, data={"charges": written, "total": "89.25"})
    journal.settle(claim, [*intents, *answers, issued], Outcome(state=State.ISSUED, reason="paid"))


def test_many_usage_charges_make_no_long_page(app: Flask, browser: Browser) -> None:
    """With three earlier periods of each; the statement is shown once, what it counted too."""
    journal, now = journal_of(app), datetime.now(UTC)
    for month in (3, 2, 1, 0):
        write_many(journal, count_many(journal, month, now), now)
    answer = browser.get(page_of(key_of(0x60)))
    assert len(answer.data) < 200 * 1024
    assert answer.text.count(str(escape(STATEMENT))) == 1
    assert answer.text.count("as above: one statement") == len(WIDE) - 1
    assert answer.text.count("Against the last periods") == len(WIDE)
    assert "as shown above, under Usage charges" in answer.text


def test_one_invoice_is_sent_compressed(app: Flask, browser: Browser) -> None:
    """Where the browser takes that; a page that repeats what was asked never is (BREACH)."""
    journal, now, takes = journal_of(app), datetime.now(UTC), {"Accept-Encoding": "br, gzip"}
    write_many(journal, count_many(journal, 0, now), now)
    url = page_of(key_of(0x60))
    answer = browser.get(url, headers=takes)
    assert (answer.content_encoding, answer.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert len(answer.data) < 16 * 1024
    assert "Against the last periods" in gzip.decompress(answer.data).decode()
    for other in ("/ops/", LIST, f"{LIST}?text=a", f"{LIST}/x/y", "/ops/sources"):
        assert browser.get(other, headers=takes).content_encoding is None
    for taken in ({}, {"Accept-Encoding": "gzip;q=0, br"}):
        assert "Against the last periods" in browser.get(url, headers=taken).text


def test_tallies_that_were_given_up_are_told(app: Flask, browser: Browser) -> None:
    """What was counted first and is billed no more stands in the timeline alone, to its bound."""
    journal, now = journal_of(app), datetime.now(UTC)
    claim = count_many(journal, 0, now)
    held = Entry(kind=EntryKind.HELD, at=now, data={"reason": "too many"})
    journal.settle(claim, [held], Outcome(state=State.HELD, reason="too many"))
    given_up = Entry(kind=EntryKind.DISCARDED, at=now, data={"by": "ana", "reason": "mended"})
    assert journal.discard_tallies(key_of(0x60), given_up)
    text = browser.get(page_of(key_of(0x60))).text
    assert "as shown above" not in text
    assert f"&#34;query&#34;: &#34;{STATEMENT[:40]}" in text
    assert "the rest is not shown; reconciler show --json prints all" in text
    assert len(text) < 100 * 1024


def test_a_broken_record_shows_its_own_tallies(
    app: Flask, browser: Browser, journal_url: str
) -> None:
    """Where the charges above need not be what the record says, the entry is shown as it is."""
    with closing(sqlite3.connect(journal_url.removeprefix("sqlite:///"))) as db, db:
        db.execute("DROP TRIGGER entries_refuse_update")
        db.execute(
            "UPDATE entries SET data = replace(data, '105', '999') WHERE kind = 'counted'"
            " AND invoice_id = ?",
            [key_of(1).invoice_id],
        )
    text = browser.get(page_of(key_of(1))).text
    assert "as shown above" not in text
    assert "&#34;quantity&#34;: 999" in text


def test_a_charges_filters_are_shown(app: Flask, browser: Browser) -> None:
    """Which of the events counted stands beside what was counted."""
    counted = {"span": Span("S", "Calls", MONTH), "filters": (("kind", "a"), ("region", "eu"))}
    Filler(journal_of(app), datetime.now(UTC)).issue(key_of(0x60), NOW, 5, **counted)
    assert "by S where kind is a, region is eu</dd>" in browser.get(page_of(key_of(0x60))).text


def test_acts_on_many_are_told(app: Flask, browser: Browser) -> None:
    """A pause says of what; a bulk run names a platform only where it was of one."""
    for verb, platform in (("pause", ""), ("bulk release", ""), ("bulk replay", "billforward")):
        journal_of(app).record_act(
            Act(at=NOW, by="ana", verb=verb, reason="why", platform=platform)
        )
    text = browser.get("/ops/").text
    for told in ("pause every platform: why", "bulk release: why", "bulk replay billforward: why"):
        assert f"ana, {told}" in text


def test_a_pause_that_stands_is_told(app: Flask, browser: Browser) -> None:
    """Who presses Pause again learns who paused when and why, and that nothing was changed."""
    stands = Act(at=NOW, by="rob", verb="pause", reason="a wrong rate", platform="billforward")
    journal_of(app).pause(stands)
    form = {"platform": "billforward", "reason": "maintenance"}
    answer = browser.post("/ops/pause", form)
    assert answer.status_code == 409
    told = (
        f"Nothing was changed: billforward is paused already, by rob since {moment(NOW)}: a wrong"
    )
    assert told in answer.text
    assert browser.post("/ops/pause", {**form, "platform": ""}).status_code == 303
    again = browser.post("/ops/pause", {**form, "platform": ""})
    assert "Nothing was changed: every platform is paused already, by ana since 20" in again.text


def test_a_bulk_run_of_one_is_of_one_invoice(journal_url: str, redis_url: str) -> None:
    """Its heading counts as people do."""
    app = ops_app(journal_url, redis_url)
    fill(journal_of(app), datetime.now(UTC))
    browser = logged_in(app)
    form = {"verb": "release", "as_of": datetime.now(UTC).isoformat(), "reason": "mended"}
    for cause, heading in (("unknown_subject", "1 invoice"), ("unmapped_component", "2 invoices")):
        begun = browser.post("/ops/bulk", {**form, "state": "held", "cause": cause})
        assert f"<h1>Release {heading}</h1>" in browser.get(begun.headers["Location"]).text


def test_an_unknown_invoice_is_said(browser: Browser) -> None:
    """It is a page with a 404."""
    answer = browser.get(f"{LIST}/billforward/INV-404")
    assert answer.status_code == 404
    assert "does not know this invoice" in answer.text


@pytest.mark.parametrize("payload", [XSS, IMAGE, "{{ 4057 * 7919 }}", "'; alert(1); //"])
def test_markup_is_shown_as_text(journal_url: str, payload: str) -> None:
    """Whatever a component, an error, an answer, an id or an operator says, no page runs it."""
    app = ops_app(journal_url)
    journal, browser, now = journal_of(app), logged_in(app), datetime.now(UTC)
    filler = Filler(journal, now)
    filler.hold(key_of(1), f'component "{payload}" has no source', now)
    span = Span(payload, payload, MONTH)
    told = evidence(source=payload, query=payload, parameters={payload: payload}, notes=(payload,))
    filler.issue(key_of(2), now, 5, span=span, metric=payload, source=payload, evidence=told)
    filler.park(key_of(3), now, payload)
    named = InvoiceKey("billforward", payload.replace("/", ""))
    failed = Outcome(state=State.RETRYING, reason=payload, due_at=now)
    filler.end(named, now, EntryKind.FAILED, failed)
    journal.pause(Act(at=now, by=payload, verb="pause", reason=payload))
    urls = ["/ops/", LIST, "/ops/sources", *(page_of(key_of(number)) for number in (1, 2, 3))]
    word = quote(payload, safe="")
    urls += [f"{LIST}/billforward/{quote(named.invoice_id, safe='')}", f"{LIST}?text={word}"]
    urls += [f"/ops/bulk?verb=release&because={word}", f"/ops/login?next={word}"]
    for url in urls:
        answer = browser.get(url)
        assert answer.status_code in (200, 302), url
        assert "<script" not in answer.text, url
        assert "<img" not in answer.text, url
        assert str(4057 * 7919) not in answer.text, url
    for number in (1, 2, 3):
        assert escape(payload) in browser.get(page_of(key_of(number))).text


CSV = {
    "kind": "csv",
    "subject_column": "subject",
    "metric_column": "metric",
    "time_column": "at",
    "time_format": "iso",
    "watermark_lag_seconds": 0.0,
}


def test_the_sources_are_asked_on_demand(journal_url: str, tmp_path: Path) -> None:
    """Nothing is asked when the page opens; a press tells answers, faults and watermarks."""
    (tmp_path / "usage.csv").write_text("at,subject,metric\n2015-11-03T00:00:00Z,SUB-1,sms\n")
    sources = {
        "events": {**CSV, "path": str(tmp_path / "usage.csv")},
        "gone": {**CSV, "path": str(tmp_path / "gone.csv")},
    }
    component = {"source": "events", "metric": "sms"}
    app = ops_app(journal_url, usage_sources=sources, components={"Text messages": component})
    fill(journal_of(app), datetime.now(UTC))
    browser = logged_in(app)
    text = browser.get("/ops/sources").text
    assert text.count("not asked") == 2
    assert "5 h 0 min ago" in text  # when it counted for an observed invoice
    assert "none for the last 20 counted invoices" in text
    text = browser.post("/ops/sources", {}).text
    assert "answers</span> in 0.0" in text
    assert "behind" in text
    assert "gone.csv" in text


def test_the_pages_read_the_file_again(
    journal_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers do: a new source is there at once, and a mistake is said on the overview."""
    file = tmp_path / "config.toml"
    good = """
        ops.enabled = true
        platforms.billforward.base_url = "http://127.0.0.1:1/v1"
        usage_sources.events.kind = "csv"
        usage_sources.events.path = "x"
        usage_sources.events.subject_column = "s"
        usage_sources.events.time_column = "t"
        usage_sources.events.time_format = "iso"
    """
    file.write_text(good)
    for name, value in {
        "RECONCILER_CONFIG": str(file),
        "RECONCILER__WEBHOOK__PASSWORD": "password-of-tests",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-tests",
        "RECONCILER__JOURNAL__URL": journal_url,
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }.items():
        monkeypatch.setenv(name, value)
    client = create_app().test_client()
    assert "events" in client.get("/ops/sources").text
    file.write_text(file.read_text().replace("usage_sources.events", "usage_sources.renamed"))
    assert "renamed" in client.get("/ops/sources").text
    file.write_text(file.read_text() + "sweep.intervall_seconds = 1\n")
    text = client.get("/ops/").text
    assert "The configuration has a mistake" in text
    assert "intervall_seconds" in text


def test_lengths_and_bars() -> None:
    """Times are written with their two largest units; the smallest bar is seen."""
    assert length(timedelta(days=3, hours=4, minutes=5)) == "3 d 4 h"
    assert length(timedelta(minutes=61)) == "1 h 1 min"
    assert length(timedelta(seconds=59)) == "59 s"
    assert length(timedelta(seconds=-5)) == "0 s"
    assert [share(1, 1000, 100), share(0, 5, 100), share(5, 5, 100), share(0, 0, 9)] == [
        1,
        0,
        100,
        0,
    ]
    (only,) = columns([Hour(start=NOW, issued=4, held=1)])
    assert (only.issued, only.held) == (100, 25)
