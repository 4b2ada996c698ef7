"""What people do on the pages: each act once, in the journal, with who and why."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from builders import LEASE, NOW, delivery
from flask import Flask
from ops_builders import ORIGIN, Browser, Filler, fill, journal_of, key_of, logged_in, ops_app
from redis import Redis
from sandbox_builders import february_invoice

from sandbox.process import RunningSandbox
from worker.actions import ActRefused, Asked, Desk, close, park, release, replay, resume
from worker.config import config_of
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell
from worker.errors import JournalUnavailable
from worker.journal.sql import SqlJournal
from worker.ops.board import Board
from worker.ops.bulk_runs import Bulk, Bulks, new_id
from worker.record import EntryKind, State

WHY = {"reason": "asked by accounting"}


@pytest.fixture(name="now")
def _now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(name="app")
def _app(journal_url: str, redis_url: str, now: datetime) -> Flask:
    """The application on a journal with invoices of every kind, with a real Redis."""
    app = ops_app(journal_url, redis_url)
    fill(journal_of(app), now - timedelta(minutes=1))
    return app


@pytest.fixture(name="browser")
def _browser(app: Flask) -> Browser:
    return logged_in(app)


def page_of(key: InvoiceKey) -> str:
    """Return the URL of an invoice's page."""
    return f"/ops/invoices/{key.platform}/{key.invoice_id}"


def state_of(journal: SqlJournal, key: InvoiceKey) -> State:
    """Return where an invoice is."""
    history = journal.history(key)
    assert history is not None
    return history.row.state


def queued(redis_url: str) -> list[str]:
    """Return the jobs on the queue."""
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        found = redis.lrange("rq:queue:reconcile", 0, -1)
    assert isinstance(found, list)
    return [str(one) for one in found]


@pytest.mark.parametrize(
    ("verb", "number", "kind", "state"),
    [
        ("replay", 0x20, EntryKind.REPLAYED, State.HELD),
        ("replay", 1, EntryKind.REPLAYED, State.ISSUED),
        ("release", 0x20, EntryKind.RELEASED, State.DUE),
        ("release", 0x32, EntryKind.RELEASED, State.DUE),
        ("hold", 0x20, EntryKind.PARKED, State.PARKED),
        ("hold", 0x35, EntryKind.PARKED, State.PARKED),
        ("close", 0x20, EntryKind.CLOSED, State.CLOSED),
    ],
)
def test_an_act_is_done_and_recorded(
    app: Flask, browser: Browser, verb: str, number: int, kind: EntryKind, state: State
) -> None:
    """The journal has the act with who and why, and the page says that it was done."""
    key = key_of(number)
    answer = browser.post(f"{page_of(key)}/{verb}", WHY)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{page_of(key)}?done={verb}")
    history = journal_of(app).history(key)
    assert history is not None
    assert (history.entries[-1].kind, history.row.state) == (kind, state)
    assert history.entries[-1].data == {"by": "ana", "reason": "asked by accounting"}
    text = browser.get(answer.headers["Location"]).text
    assert 'class="note" role="status"' in text
    assert f"ana, {kind.value}: asked by accounting" in text
    assert journal_of(app).verify(key) is None


def test_a_replay_and_a_release_ring(browser: Browser, redis_url: str) -> None:
    """A worker is woken at once; a second press rings no second time."""
    for verb, number in (("replay", 0x20), ("release", 0x21), ("replay", 0x20)):
        browser.post(f"{page_of(key_of(number))}/{verb}", WHY)
    expected = {f"billforward-{key_of(number).invoice_id}" for number in (0x20, 0x21)}
    assert set(queued(redis_url)) == expected
    assert len(queued(redis_url)) == 2


def test_a_silent_doorbell_is_said(journal_url: str) -> None:
    """The act stands in the journal, and the page says that the sweep wakes a worker."""
    app = ops_app(journal_url)
    fill(journal_of(app), datetime.now(UTC))
    browser, key = logged_in(app), key_of(0x20)
    answer = browser.post(f"{page_of(key)}/release", WHY)
    assert "the next sweep does it" in browser.get(answer.headers["Location"]).text
    assert state_of(journal_of(app), key) is State.DUE


@pytest.mark.parametrize("reason", ["", "   ", "\n"])
def test_an_act_needs_a_reason(app: Flask, browser: Browser, reason: str) -> None:
    """Without one nothing is changed."""
    for verb in ("replay", "release", "hold", "close"):
        answer = browser.post(f"{page_of(key_of(0x20))}/{verb}", {"reason": reason})
        assert answer.status_code == 400
    assert browser.post("/ops/pause", {"reason": reason, "platform": ""}).status_code == 400
    assert state_of(journal_of(app), key_of(0x20)) is State.HELD
    assert journal_of(app).paused() == {}


@pytest.mark.parametrize(
    ("verb", "number", "told"),
    [
        ("replay", 0x32, "it is parked; a release lets it go"),
        ("release", 1, "it is neither parked nor held"),
        ("hold", 1, "it is done with or parked already"),
        ("hold", 0x32, "it is done with or parked already"),
    ],
)
def test_what_cannot_be_done_is_said(
    app: Flask, browser: Browser, verb: str, number: int, told: str
) -> None:
    """Nothing is changed, and the page says why."""
    before = journal_of(app).history(key_of(number))
    answer = browser.post(f"{page_of(key_of(number))}/{verb}", WHY)
    assert answer.status_code == 409
    assert f"Nothing was changed: {told}" in answer.text
    assert journal_of(app).history(key_of(number)) == before


def test_counting_anew_only_before_a_write(app: Flask, browser: Browser) -> None:
    """A replay that counts anew is refused once something was written."""
    form = {**WHY, "anew": "1"}
    answer = browser.post(f"{page_of(key_of(1))}/replay", form)
    assert answer.status_code == 409
    assert "cannot be counted anew" in answer.text
    assert browser.post(f"{page_of(key_of(0x20))}/replay", form).status_code == 303
    history = journal_of(app).history(key_of(0x20))
    assert history is not None
    kinds = [entry.kind for entry in history.entries[-2:]]
    assert kinds == [EntryKind.DISCARDED, EntryKind.REPLAYED]


def test_pausing_and_resuming(app: Flask, browser: Browser) -> None:
    """The banner says who and why until somebody resumes; both acts are kept."""
    form = {"platform": "billforward", "reason": "maintenance"}
    assert browser.post("/ops/pause", form).status_code == 303
    text = browser.get("/ops/").text
    assert "billforward is paused" in text
    assert "By ana since" in text
    assert browser.post("/ops/resume", {**form, "reason": "over"}).status_code == 303
    assert "is paused" not in browser.get("/ops/").text
    assert [(act.by, act.verb, act.reason) for act in journal_of(app).acts()] == [
        ("ana", "resume", "over"),
        ("ana", "pause", "maintenance"),
    ]
    answer = browser.post("/ops/resume", form)
    assert (answer.status_code, "there is no pause of" in answer.text) == (409, True)
    assert browser.post("/ops/pause", {**form, "platform": "other"}).status_code == 404


def bulk_form(browser: Browser, url: str) -> dict[str, list[str] | str]:
    """Read the confirmation page's form, as a browser would send it."""
    text = browser.get(url).text.split('action="/ops/bulk"')[1].split("</form>")[0]
    form: dict[str, list[str] | str] = {}
    for part in text.split('<input type="hidden" name="')[1:]:
        name, value = part.split('"')[0], part.split('value="')[1].split('"')[0]
        form[name] = [*form.get(name, []), value]
    return {**form, **WHY}


def finished(browser: Browser, url: str) -> str:
    """Load the progress page until it does not load itself again; return its text."""
    for _ in range(200):
        text = browser.get(url).text
        if 'http-equiv="refresh"' not in text:
            return text
        time.sleep(0.05)
    raise AssertionError(text)


def test_a_bulk_release_is_counted_confirmed_and_done(app: Flask, browser: Browser) -> None:
    """The count comes first; then each invoice of the filter is released with who and why."""
    url = "/ops/bulk?verb=release&cause=unmapped_component"
    assert "Release 2 invoices?" in browser.get(url).text
    answer = browser.post("/ops/bulk", bulk_form(browser, url))
    assert answer.status_code == 303
    text = finished(browser, answer.headers["Location"])
    assert "<dt>State</dt><dd>done</dd>" in text
    assert "<dt>Done</dt><dd>2</dd>" in text
    journal = journal_of(app)
    for number in (0x20, 0x21):
        history = journal.history(key_of(number))
        assert history is not None
        assert history.row.state is State.DUE
        assert history.entries[-1].data == {"by": "ana", "reason": "asked by accounting"}
    assert state_of(journal, key_of(0x22)) is State.HELD


def test_a_bulk_replay_leaves_what_is_done_with(app: Flask, browser: Browser) -> None:
    """Without a state in the filter only what is open is run again; parked ones never."""
    url = "/ops/bulk?verb=replay"
    form = bulk_form(browser, url)
    assert set(form["state"]) == {"due", "waiting", "retrying", "held", "observed"}
    finished(browser, browser.post("/ops/bulk", form).headers["Location"])
    journal = journal_of(app)
    for number, replayed in ((0x20, True), (0x30, True), (1, False), (0x32, False), (0x34, False)):
        history = journal.history(key_of(number))
        assert history is not None
        assert (history.entries[-1].kind is EntryKind.REPLAYED) is replayed


@pytest.mark.parametrize(
    ("query", "status"),
    [("verb=close", 400), ("verb=release&state=issued", 409), ("verb=replay&state=parked", 409)],
)
def test_a_bulk_act_that_cannot_be_is_refused(browser: Browser, query: str, status: int) -> None:
    """It is said before anything is asked for."""
    assert browser.get(f"/ops/bulk?{query}").status_code == status


def test_what_changed_since_the_count_is_left_alone(app: Flask, browser: Browser) -> None:
    """An invoice that is held only after the confirmation is not released with the others."""
    form = bulk_form(browser, "/ops/bulk?verb=release&state=held")
    late = key_of(0x40)
    Filler(journal_of(app), NOW).hold(late, "late", datetime.now(UTC))
    text = finished(browser, browser.post("/ops/bulk", form).headers["Location"])
    assert "left alone</dt><dd>1</dd>" in text
    assert state_of(journal_of(app), late) is State.HELD
    assert state_of(journal_of(app), key_of(0x20)) is State.DUE


@pytest.fixture(name="desk")
def _desk(app: Flask, redis_url: str) -> Desk:
    """A desk on the application's journal."""
    doorbell = Doorbell(redis_url, "reconcile")
    return Desk(journal=journal_of(app), doorbell=doorbell, now=lambda: datetime.now(UTC))


@pytest.fixture(name="bulks")
def _bulks(app: Flask, desk: Desk) -> Bulks:
    """The bulk runs of the application, as another of its processes has them."""
    return Bulks(desk, app.extensions["ops_session_key"])


def many_held(journal: SqlJournal, number: int) -> None:
    """Hold so many more invoices."""
    filler = Filler(journal, NOW)
    for one in range(number):
        filler.hold(key_of(0x1000 + one), "many", NOW)


def a_bulk(total: int) -> Bulk:
    """Ask for the release of those that `many_held` held."""
    return Bulk(
        id=new_id(),
        verb="release",
        params={"because": "many", "state": ["held"]},
        asked=Asked("ana", "r"),
        as_of=datetime.now(UTC),
        total=total,
    )


def ended(bulk: Bulk) -> None:
    """Wait until no thread of this process is at it."""
    for thread in threading.enumerate():
        if thread.name == f"bulk-{bulk.id}":
            thread.join(60)
            assert not thread.is_alive()


def test_a_bulk_run_stops_and_goes_on(
    app: Flask, browser: Browser, bulks: Bulks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop ends it after the step it is at; going on does the rest, and nothing twice."""
    many_held(journal_of(app), 60)
    bulk = a_bulk(60)
    stopped: list[str] = []

    def slow(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        if not stopped:
            stopped.append(str(browser.post(f"/ops/bulk/{bulk.id}/stop", {}).status_code))
        return release(desk, key, asked)

    monkeypatch.setattr("worker.bulk.VERBS", {"release": slow})
    bulks.begin(bulk)
    ended(bulk)
    text = browser.get(f"/ops/bulk/{bulk.id}").text
    assert "<dt>State</dt><dd>stopped</dd>" in text
    assert "<dt>Done</dt><dd>20</dd>" in text
    assert stopped == ["303"]
    assert browser.post(f"/ops/bulk/{bulk.id}/continue", {}).status_code == 303
    text = finished(browser, f"/ops/bulk/{bulk.id}")
    assert "<dt>Done</dt><dd>60</dd>" in text
    for one in range(60):
        history = journal_of(app).history(key_of(0x1000 + one))
        assert history is not None
        kinds = [entry.kind for entry in history.entries]
        assert kinds.count(EntryKind.RELEASED) == 1
    told = f"r (60 invoices, state=held&because=many, run {bulk.id})"
    assert [(act.by, act.verb, act.reason) for act in journal_of(app).acts()] == [
        ("ana", "go on with bulk release", told),
        ("ana", "stop bulk release", told),
        ("ana", "bulk release", told),
    ]


def test_a_bulk_run_goes_through_the_list_once(
    app: Flask, browser: Browser, bulks: Bulks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replay leaves in the filter is replayed once, step by step; nothing is counted."""
    many_held(journal_of(app), 45)
    bulk = replace(a_bulk(45), verb="replay")
    monkeypatch.setattr("worker.journal.search._count", None)  # to count is a crash from now on
    bulks.begin(bulk)
    text = finished(browser, f"/ops/bulk/{bulk.id}")
    assert "<dt>Done</dt><dd>45</dd>" in text
    assert "left alone</dt><dd>0</dd>" in text


def a_failed_bulk(bulks: Bulks, total: int) -> Bulk:
    """Begin one as ana whose first act fails."""

    def broken(*_: object) -> str:
        raise JournalUnavailable("the journal is full")

    bulk = a_bulk(total)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("worker.bulk.VERBS", {"release": broken})
        bulks.begin(bulk)
        ended(bulk)
    return bulk


def key_in_redis(bulk: Bulk) -> str:
    """Name the hash of a bulk run."""
    return f"reconciler:bulk:{bulk.id}"


def kept(redis: Redis, bulk: Bulk) -> dict[bytes, bytes]:
    """Read the hash of a bulk run."""
    return cast(dict[bytes, bytes], redis.hgetall(key_in_redis(bulk)))


@pytest.fixture(name="redis")
def _redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


def test_a_bulk_run_whose_process_died_is_said(
    app: Flask, browser: Browser, bulks: Bulks, redis: Redis
) -> None:
    """It is shown as interrupted, and another process goes on where it was."""
    many_held(journal_of(app), 5)
    bulk = a_failed_bulk(bulks, 5)
    silent_since = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    for name, text in {"state": "running", "beat_at": silent_since}.items():
        redis.hset(key_in_redis(bulk), name, text)
    assert "interrupted" in browser.get(f"/ops/bulk/{bulk.id}").text
    browser.post(f"/ops/bulk/{bulk.id}/continue", {})
    assert "<dt>Done</dt><dd>5</dd>" in finished(browser, f"/ops/bulk/{bulk.id}")


def test_a_bulk_run_that_fails_says_why(app: Flask, browser: Browser, bulks: Bulks) -> None:
    """A journal that is gone ends it with the reason, and it can go on later."""
    many_held(journal_of(app), 3)
    text = browser.get(f"/ops/bulk/{a_failed_bulk(bulks, 3).id}").text
    assert "<dt>State</dt><dd>failed</dd>" in text
    assert "the journal is full" in text


def test_who_goes_on_with_a_bulk_run_answers_for_it(journal_url: str, redis_url: str) -> None:
    """The rest is done in the name of the person who pressed, with the first one's reason."""
    users = {"ana": {"role": "operator"}, "rob": {"role": "operator"}}
    app = ops_app(journal_url, redis_url, {"enabled": True, "users": users})
    journal, rob = journal_of(app), logged_in(app, "rob")
    many_held(journal, 3)
    key = app.extensions["ops_session_key"]
    doorbell = Doorbell(redis_url, "reconcile")
    desk = Desk(journal=journal, doorbell=doorbell, now=lambda: datetime.now(UTC))
    bulk = a_failed_bulk(Bulks(desk, key), 3)
    assert "By ana: r" in rob.get(f"/ops/bulk/{bulk.id}").text
    assert rob.post(f"/ops/bulk/{bulk.id}/continue", {}).status_code == 303
    assert "By rob: r" in finished(rob, f"/ops/bulk/{bulk.id}")
    for one in range(3):
        history = journal.history(key_of(0x1000 + one))
        assert history is not None
        assert history.entries[-1].kind is EntryKind.RELEASED
        assert history.entries[-1].data == {"by": "rob", "reason": "r"}
    done = [(act.by, act.verb) for act in journal.acts()]
    assert done == [("rob", "go on with bulk release"), ("ana", "bulk release")]


def test_a_bulk_run_that_was_changed_in_redis_is_not_believed(
    browser: Browser, desk: Desk, bulks: Bulks, redis: Redis
) -> None:
    """It is said that it cannot be read, whoever looks or presses; nothing is acted on."""
    many_held(journal := journal_of(browser.client.application), 3)
    bulk, other = a_failed_bulk(bulks, 3), a_failed_bulk(bulks, 3)
    whole = kept(redis, bulk)
    body, _, mark = whole[b"signed"].rpartition(b".")
    strangers = Bulks(desk, b"another key of 32 characters or more")
    elsewhere = a_failed_bulk(strangers, 3)
    old = {b"verb": b"release", b"params": b"{}", b"by": b"ana", b"reason": b"r", b"total": b"3"}
    damages: list[dict[bytes, bytes]] = [
        *({**whole, b"signed": text} for text in (b"", b"x", b"\xff", body, body + b"A." + mark)),
        {**whole, b"signed": kept(redis, other)[b"signed"]},
        {**whole, b"signed": kept(redis, elsewhere)[b"signed"]},
        *({**whole, b"state": text} for text in (b"", b"odd")),
        *({**whole, b"done": text} for text in (b"", b"x", b"-1", b"9" * 4300)),
        *(
            {**whole, b"after": text}
            for text in (b"", b"nowhere", b"0001-01-01T00:00:00+14:00 p i")
        ),
        *({**whole, b"beat_at": text} for text in (b"", b"now", b"2026-01-01T00:00:00")),
        *({n: t for n, t in whole.items() if n != gone} for gone in (b"signed", b"state")),
        {**old, b"state": b"stopped", b"as_of": b"2026-01-01T00:00:00+00:00"},
    ]
    token, url = browser.token("/ops/"), f"/ops/bulk/{bulk.id}"
    for damage in damages:
        redis.delete(key_in_redis(bulk))
        for name, text in damage.items():
            redis.hset(key_in_redis(bulk), name, text)
        answers = [browser.get(url)]
        for press in ("stop", "continue"):
            form = {"csrf": token}
            answers.append(browser.client.post(f"{url}/{press}", data=form, headers=ORIGIN))
        for answer in answers:
            assert (answer.status_code, "cannot be read" in answer.text) == (409, True), damage
    assert {state_of(journal, key_of(0x1000 + one)) for one in range(3)} == {State.HELD}
    assert {act.verb for act in journal.acts()} == {"bulk release"}


@pytest.mark.parametrize("forged", ["nothing", "another run's", "an earlier one"])
def test_a_bulk_run_that_is_changed_on_its_way_ends(
    app: Flask, bulks: Bulks, redis: Redis, monkeypatch: pytest.MonkeyPatch, forged: str
) -> None:
    """Its thread makes no further step, whatever was put in the place of what was asked for."""
    many_held(journal_of(app), 40)
    bulk, other = a_failed_bulk(bulks, 40), a_failed_bulk(bulks, 40)
    texts = {
        "nothing": b"",
        "another run's": kept(redis, other)[b"signed"],
        "an earlier one": kept(redis, bulk)[b"signed"],
    }

    def robbed(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        redis.hset(key_in_redis(bulk), "signed", texts[forged])
        return release(desk, key, asked)

    monkeypatch.setattr("worker.bulk.VERBS", {"release": robbed})
    bulks.go_on(bulk, "rob")
    ended(bulk)
    states = [state_of(journal_of(app), key_of(0x1000 + one)) for one in range(40)]
    assert (states.count(State.DUE), states.count(State.HELD)) == (20, 20)


def test_a_bulk_run_without_redis_is_refused(journal_url: str) -> None:
    """Nothing is begun that nobody could stop."""
    app = ops_app(journal_url)
    fill(journal_of(app), datetime.now(UTC) - timedelta(minutes=1))
    browser = logged_in(app)
    form = bulk_form(browser, "/ops/bulk?verb=release&state=held")
    answer = browser.post("/ops/bulk", form)
    assert (answer.status_code, "Redis at" in answer.text) == (503, True)
    assert journal_of(app).acts() == []
    assert state_of(journal_of(app), key_of(0x20)) is State.HELD


SQL = {
    "kind": "sql",
    "table": "usage",
    "subject_column": "subject",
    "metric_column": "metric",
    "time_column": "at",
    "time_format": "iso",
}


def test_a_recount_shows_the_difference(journal_url: str, tmp_path: Path) -> None:
    """What was billed, what its source says now, the difference; only the record grows."""
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at TEXT)")
        rows = [("SUB-1", "text_message", f"2015-11-{day:02}T12:00:00Z") for day in range(3, 10)]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    source = {**SQL, "url": f"sqlite:///{tmp_path}/usage.db"}
    app = ops_app(journal_url, usage_sources={"events": source})
    fill(journal_of(app), datetime.now(UTC))
    browser, key = logged_in(app), key_of(1)
    before = journal_of(app).history(key)
    answer = browser.post(f"{page_of(key)}/recount", WHY)
    assert answer.status_code == 200
    assert '<td class="number">105</td>' in answer.text
    assert '<td class="number">7</td><td class="number bad">-98</td>' in answer.text
    after = journal_of(app).history(key)
    assert before is not None
    assert after is not None
    assert after == replace(before, entries=(*before.entries, after.entries[-1]))
    assert browser.post(f"{page_of(key_of(0x20))}/recount", WHY).status_code == 409


def test_a_recount_without_its_source_says_so(browser: Browser) -> None:
    """A source that is not configured any more is a line in the table, not a crash."""
    text = browser.post(f"{page_of(key_of(1))}/recount", WHY).text
    assert "no usage source &#34;events&#34; any more" in text


@dataclass(frozen=True, kw_only=True)
class SecretSource:
    """A source of others that cannot do without its secret."""

    token: str = field(repr=False, metadata={"secret": True})


@pytest.mark.parametrize("url", [f"{page_of(key_of(1))}/recount", "/ops/sources"])
def test_a_source_whose_secret_is_missing_says_so(app: Flask, browser: Browser, url: str) -> None:
    """One that came into the file since the start names the variable that is not set."""
    data = {"usage_sources": {"events": {"kind": f"{__name__}:SecretSource"}}}
    platforms = {"billforward": {"base_url": "http://127.0.0.1:1/v1"}}
    changed = config_of({"platforms": platforms, **data}, {})
    before = app.extensions["ops_board"]
    app.extensions["ops_board"] = Board(before.desk, before.measures, changed, lambda: changed)
    answer = browser.post(url, WHY)
    assert answer.status_code in (200, 409)
    assert "RECONCILER__USAGE_SOURCES__EVENTS__TOKEN" in answer.text


def test_a_preview_prices_and_writes_nothing(
    journal_url: str, tmp_path: Path, sandbox: RunningSandbox
) -> None:
    """The platform's own dry run says what the invoice would cost."""
    subscription = "SUB-00000000-0000-4000-8000-00000001"
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at TEXT)")
        rows = [
            (subscription, "texts", f"2026-01-01T00:{n // 60:02}:{n % 60:02}Z") for n in range(105)
        ]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    body = february_invoice(1, subscriptionID=subscription, notify=False)
    key = InvoiceKey("billforward", sandbox.control.put_invoice(**body)["id"])
    app = ops_app(
        journal_url,
        token=sandbox.token,
        platforms={"billforward": {"base_url": sandbox.base_url}},
        usage_sources={"events": {**SQL, "url": f"sqlite:///{tmp_path}/usage.db"}},
        components={"Text messages 0": {"source": "events", "metric": "texts"}},
    )
    journal_of(app).record_delivery(delivery(invoice_id=key.invoice_id), datetime.now(UTC))
    browser = logged_in(app)
    answer = browser.post(f"{page_of(key)}/preview", {})
    assert answer.status_code == 200
    (row,) = re.findall(r"<tr><td>Text messages 0</td>.*?</tr>", answer.text)
    assert re.findall(r'<td class="number">(.*?)</td>', row) == ["0", "105", "0.00", "0.10"]
    assert "Total 0.00 USD, would be 0.10. Nothing was written." in answer.text
    sent = [one for one in sandbox.control.record().requests if one["method"] != "GET"]
    assert [(one["path"], one["body"]["dryRun"]) for one in sent] == [
        ("/v1/charges/recalculate", True)
    ]
    (charge,) = sandbox.control.invoice(key.invoice_id)["charges"]
    assert (charge["pricingComponentValue"], charge["amount"]) == (0, 0)
    history = journal_of(app).history(key)
    assert history is not None
    assert len(history.entries) == 1


def test_a_preview_of_a_silent_platform_says_so(app: Flask, browser: Browser) -> None:
    """The reason stands on the page; nothing is changed."""
    answer = browser.post(f"{page_of(key_of(0x20))}/preview", {})
    assert answer.status_code == 409
    assert "Nothing was changed" in answer.text
    assert state_of(journal_of(app), key_of(0x20)) is State.HELD


def test_the_acts_refuse_what_is_unknown_or_taken(desk: Desk) -> None:
    """The same rules for the command line, the pages and the dashboard."""
    stranger, asked = key_of(0x999), Asked("ana", "r")
    for act in (park, release, close):
        with pytest.raises(ActRefused, match="not in the journal"):
            act(desk, stranger, asked)
    taken = key_of(0x35)
    assert desk.journal.claim(taken, "one", desk.now(), LEASE) is not None
    for act in (park, close):
        with pytest.raises(ActRefused, match="a worker is at it"):
            act(desk, taken, asked)
    with pytest.raises(ActRefused, match="a worker is at it"):
        replay(desk, taken, asked, recount=True)
    with pytest.raises(ActRefused, match="there is no pause of every platform; paused: none"):
        resume(desk, "", asked)


@pytest.fixture(name="browser_of_postgres")
def _browser_of_postgres(new_journal_url: Callable[[str], str]) -> Iterator[Browser]:
    """The pages on a journal in PostgreSQL."""
    app = ops_app(new_journal_url("postgres"))
    with closing(journal_of(app)):
        fill(journal_of(app), datetime.now(UTC) - timedelta(minutes=1))
        yield logged_in(app)


def test_the_pages_on_postgresql(browser_of_postgres: Browser) -> None:
    """Every page opens, and an act is done, on the journal that several machines share."""
    browser, key = browser_of_postgres, key_of(0x20)
    for url in ("/ops/", "/ops/invoices?state=held&component=Fax+pages", page_of(key_of(1))):
        assert browser.get(url).status_code == 200
    assert browser.post(f"{page_of(key)}/release", WHY).status_code == 303
    assert "ana, released: asked by accounting" in browser.get(page_of(key)).text
    assert len(browser.get("/ops/invoices.csv").text.splitlines()) == 17
