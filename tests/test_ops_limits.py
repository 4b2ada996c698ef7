"""What is costly on the pages is bounded, and a recount there is on the record."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from builders import delivery, tally
from flask import Flask
from ops_builders import Browser, fill, journal_of, key_of, logged_in, ops_app
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from worker.domain import InvoiceKey, Tally, UsageQuery
from worker.ops import limits, sources
from worker.record import EntryKind, History
from worker.story import story_text

WHY = {"reason": "asked by accounting"}
MOST_SECONDS = 30  # until a thread that should go on is given up
BUSY = "Two counts are running; try again when they are done."


class Gate:
    """What all sources of a test share: how many are asked now, and whether they may answer."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Semaphore(0)
        self.made = 0
        self.closed = 0
        self.asked_when_closed = 0
        self.busy: Counter[int] = Counter()  # by the source that is asked
        self.sticks = False  # a close fails
        self.lock = threading.Lock()

    def pass_through(self, source: object) -> None:
        """Be asked, and wait for the test."""
        with self.lock:
            self.busy[id(source)] += 1
        self.asked.release()
        assert self.open.wait(MOST_SECONDS)
        with self.lock:
            self.busy[id(source)] -= 1

    def close(self, source: object) -> None:
        """Be closed."""
        with self.lock:
            self.closed += 1
            self.asked_when_closed += self.busy[id(source)]
        if self.sticks:
            raise OSError("it is stuck")

    def wait_for(self, asked: int) -> None:
        """Wait until so many more were asked."""
        for _ in range(asked):
            assert self.asked.acquire(timeout=MOST_SECONDS)


gate = Gate()


@dataclass(frozen=True, kw_only=True)
class SlowSource:
    """A source of others that answers when the test lets it."""

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Count 7 of everything."""
        gate.pass_through(self)
        return [replace(tally(7), query=query) for query in queries]

    def watermark(self) -> None:
        """Say nothing."""

    def check(self) -> None:
        """Answer, after the test lets it."""
        gate.pass_through(self)

    def close(self) -> None:
        """Be closed."""
        gate.close(self)


@pytest.fixture(autouse=True)
def _new_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A closed gate for each test; nothing of it is left behind."""
    monkeypatch.setattr(f"{__name__}.gate", Gate())
    yield
    gate.open.set()
    ended()


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application, with a journal full of invoices and one slow source."""
    app = ops_app(journal_url, usage_sources={"events": {"kind": f"{__name__}:SlowSource"}})
    fill(journal_of(app), datetime.now(UTC))
    return app


def url_of(number: int, verb: str = "") -> str:
    """Return the URL of an invoice's page, or of what is done there."""
    key = key_of(number)
    return f"/ops/invoices/{key.platform}/{key.invoice_id}{verb}"


def ended() -> None:
    """Wait until the counts are over whose answers were sent before."""
    for thread in threading.enumerate():
        if thread.name == "end of a count":
            thread.join(MOST_SECONDS)
            assert not thread.is_alive()


def in_background(press: Callable[[], TestResponse]) -> Callable[[], TestResponse]:
    """Begin a press; what is returned waits for its answer."""
    answers: list[TestResponse] = []
    thread = threading.Thread(target=lambda: answers.append(press()))
    thread.start()

    def answer() -> TestResponse:
        thread.join(MOST_SECONDS)
        return answers[0]

    return answer


def recount(browser: Browser, number: int) -> TestResponse:
    """Press Recount."""
    return browser.post(url_of(number, "/recount"), WHY)


def history_of(app: Flask, key: InvoiceKey) -> History:
    """Return what the journal knows of an invoice."""
    history = journal_of(app).history(key)
    assert history is not None
    return history


def test_two_counts_run_at_a_time(app: Flask) -> None:
    """A third press is told to come back; notifications are taken, and the pages open meanwhile."""
    running = [in_background(lambda n=n: recount(logged_in(app), n)) for n in (1, 2)]  # type: ignore[misc]
    gate.wait_for(2)
    browser = logged_in(app)
    for url in (url_of(3, "/recount"), url_of(3, "/preview"), "/ops/sources"):
        answer = browser.post(url, WHY)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10"), url
        assert BUSY in answer.text
    assert browser.get(url_of(3)).status_code == 200
    assert journal_of(app).record_delivery(delivery(), datetime.now(UTC))
    gate.open.set()
    assert [answer().status_code for answer in running] == [200, 200]
    assert recount(browser, 3).status_code == 200


@pytest.mark.parametrize("verb", ["/recount", "/preview"])
def test_what_was_refused_gives_its_place_back(app: Flask, verb: str) -> None:
    """What lacks a reason, is of an unknown invoice, or fails takes no place for good."""
    gate.open.set()
    browser = logged_in(app)
    for _ in range(3):
        assert browser.post(url_of(1, verb), {}).status_code != 429
        assert browser.post(url_of(0x999, verb), WHY).status_code == 404
    assert recount(browser, 1).status_code == 200


@pytest.mark.parametrize("sticks", [False, True])
def test_what_a_count_opened_is_closed(app: Flask, *, sticks: bool) -> None:
    """Each press closes its own sources, measured as they are; one that cannot is no failure."""
    gate.open.set()
    gate.sticks = sticks
    browser = logged_in(app)
    assert recount(browser, 1).status_code == 200
    assert gate.closed == 1
    assert browser.post("/ops/sources", {}).status_code == 200
    assert gate.closed == 2
    browser.post(url_of(0x20, "/preview"), {})  # the platform is silent, the source is made
    assert gate.closed == 3


def test_a_source_that_is_asked_still_keeps_its_place(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page does not wait for it, but it is closed, and others begin, only after its answer."""
    monkeypatch.setattr(sources, "WAIT_SECONDS", 0.0)
    browser = logged_in(app)
    for _ in range(2):
        assert "no answer within 0 s" in browser.post("/ops/sources", {}).text
    gate.wait_for(2)
    assert browser.post("/ops/sources", {}).status_code == 429
    assert gate.closed == 0
    gate.open.set()
    ended()
    assert (gate.closed, gate.asked_when_closed) == (2, 0)
    assert recount(browser, 1).status_code == 200


def test_a_source_that_hangs_gives_its_place_back(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded wait others may count; it is left open, as it is at work, and logged."""
    monkeypatch.setattr(sources, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(limits, "END_SECONDS", 0.1)
    browser = logged_in(app)
    with capture_logs() as logged:
        for _ in range(3):
            assert browser.post("/ops/sources", {}).status_code == 200
            ended()
    assert gate.closed == 0
    unclosed = [line for line in logged if line["event"] == "ops_source_not_closed"]
    assert [(line["source"], line["reason"]) for line in unclosed] == [
        ("events", "it still hangs")
    ] * 3


def test_a_recount_is_on_the_record(app: Flask) -> None:
    """Who had what counted again, why, and the difference: on the page, and in the story."""
    gate.open.set()
    browser, key = logged_in(app), key_of(1)
    before = history_of(app, key)
    answer = recount(browser, 1)
    after = history_of(app, key)
    last = after.entries[-1]
    assert after == replace(before, entries=(*before.entries, last))
    assert last.kind is EntryKind.RECOUNTED
    assert (last.data["by"], last.data["reason"]) == ("ana", "asked by accounting")
    (charge,) = last.data["charges"]
    assert (charge["billed"], charge["recounted"], charge["difference"]) == (105, 7, -98)
    told = "ana, recounted: asked by accounting (Text messages -98)"
    assert told in answer.text
    assert told in browser.get(url_of(1)).text
    assert "by ana; asked by accounting; Text messages -98" in story_text(after)
    assert journal_of(app).verify(key) is None


@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_recount_needs_a_reason(app: Flask, reason: str) -> None:
    """Without one nothing is asked and nothing recorded."""
    browser, before = logged_in(app), history_of(app, key_of(1))
    answer = browser.post(url_of(1, "/recount"), {"reason": reason})
    assert answer.status_code == 400
    assert "Write the reason" in answer.text
    assert history_of(app, key_of(1)) == before
    assert 'id="why-recount" name="reason" required' in browser.get(url_of(1)).text
