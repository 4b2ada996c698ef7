"""What is called late is late, and pages tell of sources and work what the journal knows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders import LEASE, MINUTE, NOW, evidence
from fakes import FakeClock
from flask import Flask
from metrics_builders import samples, value
from ops_builders import NO_REDIS, Filler, journal_of, key_of, logged_in, month_of, ops_app

from worker.domain import Span
from worker.doorbell import Doorbell
from worker.journal.sqlite import SqliteJournal
from worker.metrics_scrape import Scrape
from worker.overdue import most_overdue
from worker.record import Act, Entry, EntryKind, Outcome, State

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONG_AGO = NOW - 9 * DAY
FIRST = key_of(1)
BEHIND = 'source "events" has usage only up to 2015-12-02T09:00:00Z'
UNMAPPED = 'component "Fax pages" has no source. Map it in config, then requeue.'


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    """An empty journal."""
    journal = SqliteJournal(tmp_path / "journal.db")
    yield journal
    journal.close()


@pytest.fixture(name="filler")
def _filler(journal: SqliteJournal) -> Filler:
    return Filler(journal, NOW)


def waiting(until: datetime, reason: str = 'the period of "Text messages" is not over') -> Outcome:
    """Return the outcome that waits until a moment."""
    return Outcome(state=State.WAITING, reason=reason, due_at=until)


def retrying(until: datetime) -> Outcome:
    """Return the outcome of a failure, to be tried again."""
    reason = "GET /invoices: no answer"
    return Outcome(state=State.RETRYING, reason=reason, due_at=until, attempt=3)


def scrape(tmp_path: Path, journal: SqliteJournal, redis_url: str, clock: FakeClock) -> str:
    """Scrape, with a sweep that is to make a round every minute."""
    made = Scrape(
        folder=tmp_path / "metrics",
        journal=journal,
        doorbell=Doorbell(redis_url, "reconcile"),
        platforms=["billforward"],
        now=clock,
        sweep_every=MINUTE,
    )
    return made.text().decode()


def lawful(filler: Filler) -> None:
    """Put invoices into the journal that all wait for days, and rightly."""
    filler.end(key_of(1), LONG_AGO, EntryKind.WAITING, waiting(NOW + HOUR))
    filler.end(key_of(2), LONG_AGO, EntryKind.FAILED, retrying(NOW + MINUTE))
    filler.park(key_of(3), LONG_AGO, "a dispute with the customer")
    filler.observe(key_of(4), LONG_AGO)


def test_what_waits_lawfully_is_not_late(journal: SqliteJournal, filler: Filler) -> None:
    """For its time, its next attempt, a release, or a worker at it: however old, it is not."""
    lawful(filler)
    filler.deliver(key_of(5), LONG_AGO)
    assert journal.claim(key_of(5), "worker", NOW - MINUTE, LEASE)
    assert most_overdue(journal, NOW) is None


def test_what_is_paused_is_late_when_it_goes_on(journal: SqliteJournal, filler: Filler) -> None:
    """Of a platform that somebody stopped, nothing is late."""
    filler.deliver(FIRST, LONG_AGO)
    act = Act(at=NOW - 8 * DAY, by="ana", verb="pause", reason="a wrong rate")
    journal.pause(act)
    assert most_overdue(journal, NOW) is None
    assert journal.resume(Act(at=NOW, by="ana", verb="resume", reason="right again"))
    assert most_overdue(journal, NOW) is not None


def test_what_is_due_and_not_taken_is_late(journal: SqliteJournal, filler: Filler) -> None:
    """Since its time came, not since it was seen; of several, the one that waits longest."""
    filler.end(key_of(2), LONG_AGO, EntryKind.WAITING, waiting(NOW - 2 * HOUR))
    filler.deliver(key_of(3), NOW - HOUR)
    late = most_overdue(journal, NOW)
    assert late is not None
    assert (late.row.key, late.since) == (key_of(2), NOW - 2 * HOUR)
    assert late.told == "due, and no worker takes it"


def test_what_is_held_is_late_since_its_last_run(journal: SqliteJournal, filler: Filler) -> None:
    """One that lawfully waited for days and is held now, is held since now."""
    filler.end(key_of(2), LONG_AGO, EntryKind.WAITING, waiting(NOW - HOUR))
    claim = filler.claim(key_of(2), NOW - HOUR)
    entry = Entry(kind=EntryKind.HELD, at=NOW - HOUR, data={"reason": UNMAPPED})
    journal.settle(claim, [entry], Outcome(state=State.HELD, reason=UNMAPPED))
    late = most_overdue(journal, NOW)
    assert late is not None
    assert (late.row.key, late.since, late.told) == (key_of(2), NOW - HOUR, "held")


def test_what_is_held_for_longest_is_late_for_longest(
    journal: SqliteJournal, filler: Filler
) -> None:
    """By its last run: an older invoice that was replayed and held anew is held since then."""
    for number, at in ((1, LONG_AGO), (2, NOW - 2 * DAY), (1, NOW - DAY)):
        asked = Entry(kind=EntryKind.REPLAYED, at=at, data={"by": "ana", "reason": "x"})
        journal.wake(key_of(number), asked)
        entry = Entry(kind=EntryKind.HELD, at=at, data={"reason": UNMAPPED})
        held = Outcome(state=State.HELD, reason=UNMAPPED)
        journal.settle(filler.claim(key_of(number), at), [entry], held)
    late = most_overdue(journal, NOW)
    assert late is not None
    assert (late.row.key, late.since) == (key_of(2), NOW - 2 * DAY)


def test_the_scrape_tells_age_and_lateness_apart(
    tmp_path: Path, journal: SqliteJournal, filler: Filler, redis_url: str
) -> None:
    """The oldest unissued invoice is told by its age; what pages is told by its lateness."""
    clock = FakeClock()
    lawful(filler)
    text = scrape(tmp_path, journal, redis_url, clock)
    assert value(text, "reconciler_oldest_unissued_seconds") == (9 * DAY).total_seconds()
    assert value(text, "reconciler_overdue_seconds") == 0
    clock.advance(hours=26)
    text = scrape(tmp_path, journal, redis_url, clock)
    assert value(text, "reconciler_overdue_seconds") == (26 * HOUR - MINUTE).total_seconds()


def test_the_scrape_tells_whether_a_sweep_lives(
    tmp_path: Path, journal: SqliteJournal, redis_url: str
) -> None:
    """By the word it leaves in Redis, from whatever machine; without Redis, nobody can say."""
    clock = FakeClock()
    assert value(scrape(tmp_path, journal, redis_url, clock), "reconciler_sweep_alive") == 0
    Doorbell(redis_url, "reconcile").note_sweep(clock())
    assert value(scrape(tmp_path, journal, redis_url, clock), "reconciler_sweep_alive") == 1
    clock.advance(minutes=5)
    assert value(scrape(tmp_path, journal, redis_url, clock), "reconciler_sweep_alive") == 0
    assert "reconciler_sweep_alive" not in samples(scrape(tmp_path, journal, NO_REDIS, clock))


def test_the_overview_tells_what_is_overdue(journal_url: str) -> None:
    """Beside the oldest one, which may wait rightly, with why; due ones are told by themselves."""
    app, now = ops_app(journal_url), datetime.now(UTC)
    browser, filler = logged_in(app), Filler(journal_of(app), now)
    filler.park(key_of(1), now - 3 * DAY, "a dispute with the customer")
    text = browser.get("/ops/").text
    assert "Nothing is overdue." in text
    assert ">parked</span>: a dispute with the customer" in text
    filler.end(key_of(2), now - DAY, EntryKind.WAITING, waiting(now + HOUR))
    filler.deliver(key_of(3), now - 2 * HOUR)
    text = browser.get("/ops/").text
    late = f'Longest overdue: <a href="/ops/invoices/billforward/{key_of(3).invoice_id}">'
    assert late in text
    assert "due, and no worker takes it, for 2 h 0 min" in text
    for figure in ("<strong>1</strong> due now", "<strong>1</strong> waiting"):
        assert figure in text


def test_the_overview_of_nothing_claims_nothing(journal_url: str) -> None:
    """Where invoices are only observed, it does not say that they are issued."""
    app, now = ops_app(journal_url, rules={"mode": "observe"}), datetime.now(UTC)
    Filler(journal_of(app), now).observe(key_of(1), now)
    text = logged_in(app).get("/ops/").text
    assert "No invoice is to be issued." in text
    assert "The mode is observe" in text


SOURCES = {
    name: {
        "kind": "csv",
        "path": "nowhere.csv",
        "subject_column": "subject",
        "metric_column": "metric",
        "time_column": "at",
        "time_format": "iso",
    }
    for name in ("events", "storage")
}
COMPONENTS = {
    "Text messages": {"source": "events", "metric": "sms"},
    "Gigabytes": {"source": "storage", "metric": "gb"},
}


def sources_app(journal_url: str, mode: str = "write") -> Flask:
    """Make the application with two sources."""
    rules = {"mode": mode}
    return ops_app(journal_url, usage_sources=SOURCES, components=COMPONENTS, rules=rules)


def row_of(text: str, source: str) -> str:
    """Return the table's row of a source."""
    return text.split(f"<strong>{source}</strong>")[1].split("</tr>")[0]


def test_the_sources_are_told_without_asking(journal_url: str) -> None:
    """The last answer with its lag, the last trouble, and what it stops now with a link to it."""
    app, now = sources_app(journal_url), datetime.now(UTC)
    filler = Filler(journal_of(app), now)
    for number, age in ((1, 5 * HOUR), (2, 3 * HOUR)):
        asked = evidence(asked_at=now - age, watermark=now - age - 7 * MINUTE)
        told = {"span": Span("SUB-1", "Text messages", month_of(number)), "evidence": asked}
        filler.issue(key_of(number), now - age, 5, metric="sms", source="events", **told)
    row = row_of(logged_in(app).get("/ops/sources").text, "events")
    assert ", 3 h 0 min ago" in row
    assert "7 min behind when asked 3 h 0 min ago" in row
    assert "none known" in row
    assert "stopped by it" not in row
    filler.end(key_of(3), now - 2 * HOUR, EntryKind.WAITING, waiting(now + HOUR, BEHIND))
    down = 'source "events": no answer within 30 s'
    failed = Outcome(state=State.RETRYING, reason=down, due_at=now + HOUR, attempt=1)
    filler.end(key_of(4), now - HOUR, EntryKind.FAILED, failed)
    browser = logged_in(app)
    row = row_of(browser.get("/ops/sources").text, "events")
    assert "2015-12-02 09:00:00 UTC" in row  # what it told the one that waits is newer
    assert "1 h 0 min ago: source &#34;events&#34;: no answer within 30 s" in row
    assert "2 invoices stopped by it" in row
    assert "not asked" in row
    link = row.split('href="')[1].split('"')[0].replace("&amp;", "&")
    listed = browser.get(link).text
    assert "<strong>2</strong> invoices" in listed


def test_a_trouble_that_is_over_is_told(journal_url: str) -> None:
    """An invoice that was issued at its second attempt tells why its first one failed."""
    app, now = sources_app(journal_url), datetime.now(UTC)
    filler = Filler(journal_of(app), now)
    down = 'source "events": no answer within 30 s'
    failed = Outcome(state=State.RETRYING, reason=down, due_at=now - HOUR, attempt=1)
    filler.end(key_of(1), now - 2 * HOUR, EntryKind.FAILED, failed)
    asked = evidence(asked_at=now - HOUR)
    filler.issue(key_of(1), now - HOUR, 5, metric="sms", source="events", evidence=asked)
    text = logged_in(app).get("/ops/sources").text
    row = row_of(text, "events")
    assert "2 h 0 min ago: source &#34;events&#34;: no answer within 30 s" in row
    assert "stopped by it" not in row
    assert "none for the last 20 counted invoices" in row_of(text, "storage")


def test_the_sources_in_observe_mode(journal_url: str) -> None:
    """What is only observed was counted, too; that its evidence is not kept is said."""
    app, now = sources_app(journal_url, "observe"), datetime.now(UTC)
    Filler(journal_of(app), now).observe(key_of(1), now - HOUR)
    text = logged_in(app).get("/ops/sources").text
    assert "no evidence is kept" in text
    assert ", 1 h 0 min ago" in row_of(text, "events")
    assert "not known" in row_of(text, "events")
