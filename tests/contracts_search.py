"""What every `Journal` finds of many invoices: search, overview, earlier periods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from builders import END, INV, KEY, LEASE, MINUTE, MONTH, NOW, START, delivery, frozen, invoice
from contracts_acts import act, by_hand

from worker.domain import InvoiceKey, Period, Span
from worker.journal import open_journal
from worker.journal.sql import SqlJournal
from worker.outcomes import seen
from worker.overviews import Cursor, Filter, Page
from worker.record import Claim, Entry, EntryKind, Outcome, State

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
UNMAPPED = 'component "Fax pages" has no source. Map it in config, then requeue.'


def key(name: str, platform: str = "billforward") -> InvoiceKey:
    """Name an invoice."""
    return InvoiceKey(platform, name)


def known(journal: SqlJournal, one: InvoiceKey, at: datetime = NOW) -> None:
    """Let an invoice be due."""
    sent = delivery(id=f"NOT-{one}", platform=one.platform, invoice_id=one.invoice_id)
    journal.record_delivery(sent, at)


def claimed(journal: SqlJournal, one: InvoiceKey, at: datetime) -> Claim:
    """Take an invoice."""
    claim = journal.claim(one, "one", at, LEASE)
    assert claim is not None
    return claim


def settled(
    journal: SqlJournal,
    one: InvoiceKey,
    state: State,
    reason: str = "",
    at: datetime = NOW,
    **changed: Any,
) -> None:
    """Bring an invoice to a state; `changed` is what differs on the platform's invoice."""
    known(journal, one, at)
    fetched = Entry(
        kind=EntryKind.FETCHED, at=at, data=seen(invoice(**{"id": one.invoice_id, **changed}))
    )
    ended = Entry(kind=EntryKind(state.value), at=at, data={"reason": reason})
    journal.settle(claimed(journal, one, at), [fetched, ended], Outcome(state=state, reason=reason))


def counted(journal: SqlJournal, one: InvoiceKey, span: Span, at: datetime, number: int) -> None:
    """Freeze a count and issue the invoice."""
    known(journal, one, at)
    claim = claimed(journal, one, at)
    assert journal.freeze(claim, [], [frozen(number, span=span)], at) == []
    end = Entry(kind=EntryKind.ISSUED, at=at, data={})
    journal.settle(claim, [end], Outcome(state=State.ISSUED, reason="Unpaid"))


def names(page: Page) -> list[str]:
    """Name the invoices of a page."""
    return [one.row.key.invoice_id for one in page.invoices]


def found(journal: SqlJournal, **wanted: Any) -> list[str]:
    """Name what a filter lets through; the number told is their number."""
    page = journal.search(Filter(**wanted))
    assert page.total == len(page.invoices)
    assert page.after is None
    return names(page)


class SearchContract:
    """Subclass it with a fixture `url`: where this test's journal is."""

    @pytest.fixture
    def journal(self, url: str) -> Iterator[SqlJournal]:
        """A fresh journal."""
        with closing(open_journal(url)) as opened:
            yield opened

    @pytest.fixture
    def several(self, journal: SqlJournal) -> SqlJournal:
        """A journal with a held, an issued, a skipped, a due invoice, a minute apart."""
        settled(journal, key("INV-HELD"), State.HELD, UNMAPPED, subscription_id="SUB-9")
        settled(journal, key("INV-ISSUED"), State.ISSUED, "Unpaid, 5.10 USD", NOW + MINUTE)
        settled(journal, key("INV-EU", "eu"), State.SKIPPED, "it is voided", NOW + 2 * MINUTE)
        known(journal, key("INV-DUE"), NOW + 3 * MINUTE)
        return journal

    @pytest.mark.parametrize(
        ("wanted", "names"),
        [
            ({}, ["HELD", "ISSUED", "EU", "DUE"]),
            ({"newest_first": True}, ["DUE", "EU", "ISSUED", "HELD"]),
            ({"states": (State.HELD,)}, ["HELD"]),
            ({"states": (State.DUE, State.HELD, State.DUE)}, ["HELD", "DUE"]),
            ({"states": (State.DUE, State.HELD), "newest_first": True}, ["DUE", "HELD"]),
            ({"states": tuple(State)}, ["HELD", "ISSUED", "EU", "DUE"]),
            ({"platform": "eu"}, ["EU"]),
            ({"platform": "e"}, []),
            ({"subscription": "SUB-9"}, ["HELD"]),
            ({"subscription": "SUB-"}, []),
            ({"account": "ACC-1"}, ["HELD", "ISSUED", "EU"]),
            ({"cause": "unmapped_component"}, ["HELD"]),
            ({"cause": "fraction"}, []),
            ({"reason": "no SOURCE"}, ["HELD"]),
            ({"reason": "inv-held"}, []),
            ({"text": "inv-held"}, ["HELD"]),
            ({"text": "5.10 usd"}, ["ISSUED"]),
            ({"text": "INV-"}, ["HELD", "ISSUED", "EU", "DUE"]),
            ({"component": "fax pages"}, ["HELD"]),
            ({"component": "Fax"}, []),
            ({"platform": "eu", "states": (State.HELD,)}, []),
            ({"account": "ACC-1", "text": "void", "states": (State.SKIPPED,)}, ["EU"]),
        ],
        ids=str,
    )
    def test_each_part_of_a_filter_leaves_out_the_others(
        self, several: SqlJournal, wanted: Mapping[str, Any], names: list[str]
    ) -> None:
        """What is asked for holds of every invoice shown, in the order of age, and no other is."""
        assert found(several, **wanted) == [f"INV-{name}" for name in names]

    @pytest.mark.parametrize("text", ["%", "_", "!", "50%", "'", '"; DROP', "\\", "\0", "\ud800"])
    def test_a_text_is_taken_as_it_is(self, several: SqlJournal, text: str) -> None:
        """No letter has a meaning of its own, and what no journal can hold is not found."""
        settled(several, key("INV-X"), State.HELD, f"odd {text} reason", NOW + DAY)
        for part in ("text", "reason"):
            assert found(several, **{part: text}) == ["INV-X"]
        for part in ("platform", "subscription", "account", "component", "cause"):
            assert found(several, **{part: text}) == []

    def test_pages_hold_each_invoice_once(self, journal: SqlJournal) -> None:
        """Also among invoices of one moment, from either end, while others are added."""
        for number in range(23):
            known(journal, key(f"INV-{number:02}", f"p{number % 3}"), NOW + number // 5 * MINUTE)
        ordered = names(journal.search(Filter()))
        for newest_first in (False, True):
            wanted = Filter(newest_first=newest_first)
            walked, after = list[str](), None
            for number in range(10):
                page = journal.search(wanted, 4, after and Cursor.of(str(after)))
                walked += names(page)
                if page.after is None:
                    break
                after = page.after
                late = NOW + (-DAY if not newest_first else DAY)
                known(journal, key(f"INV-{newest_first}-{number}"), late)
            assert walked == ordered[:: -1 if newest_first else 1]
            ordered = names(journal.search(Filter(), 100))

    def test_every_page_tells_the_whole_number(self, several: SqlJournal) -> None:
        """It is exact on the first page and on the last, with states and without."""
        for states in ((), (State.HELD, State.ISSUED, State.SKIPPED, State.DUE)):
            first = several.search(Filter(states=states), 3)
            assert (first.total, len(first.invoices)) == (4, 3)
            last = several.search(Filter(states=states), 3, first.after)
            assert (last.total, names(last), last.after) == (4, ["INV-DUE"], None)
        whole = several.search(Filter(), 4)
        assert (whole.total, whole.after) == (4, None)

    @pytest.mark.parametrize("newest_first", [False, True])
    def test_a_listing_shows_the_same_and_counts_nothing(
        self, several: SqlJournal, monkeypatch: pytest.MonkeyPatch, *, newest_first: bool
    ) -> None:
        """Page by page it is what a search finds, in the same order, without the number."""
        states = (State.HELD, State.SKIPPED, State.DUE)
        wanted = Filter(states=states, newest_first=newest_first)
        expected = several.search(wanted).invoices
        monkeypatch.setattr("worker.journal.search._count", None)  # to count is a crash from now on
        first = several.listed(wanted, 2)
        last = several.listed(wanted, 2, first[-1].cursor)
        assert (len(first), [*first, *last]) == (2, [*expected])
        assert [*several.listed(wanted, 2, last[-1].cursor)] == []
        with pytest.raises(TypeError):
            several.search(wanted, 2)

    def test_what_is_due_comes_longest_due_first(self, journal: SqlJournal) -> None:
        """Whatever its age and state; and only what is free, where that is asked."""
        for number, name in enumerate(("INV-BUSY", "INV-LATER", "INV-DEAD", "INV-LONG", "INV-NOT")):
            known(journal, key(name), NOW + number * MINUTE)
        journal.wake(key("INV-LATER"), by_hand(EntryKind.REPLAYED, NOW + HOUR))
        for name, at in (("INV-BUSY", NOW + 2 * HOUR), ("INV-DEAD", NOW + 2 * HOUR - LEASE)):
            claimed(journal, key(name), at)
        settled(journal, key("INV-LONG"), State.ISSUED, at=NOW + HOUR)
        journal.wake(key("INV-LONG"), by_hand(EntryKind.REPLAYED, NOW - MINUTE))
        journal.wake(key("INV-NOT"), by_hand(EntryKind.REPLAYED, NOW + 2 * HOUR))
        due = ["INV-LONG", "INV-BUSY", "INV-DEAD", "INV-LATER"]
        assert found(journal, due_since=NOW + HOUR) == due
        assert found(journal, due_since=NOW + HOUR, newest_first=True) == due[::-1]
        free = {"due_since": NOW + HOUR, "free_at": NOW + 2 * HOUR}
        assert found(journal, **free) == ["INV-LONG", "INV-DEAD", "INV-LATER"]
        assert found(journal, states=(State.DUE,), **free) == ["INV-DEAD", "INV-LATER"]
        journal.pause(act("pause", at=NOW))
        assert found(journal, **free) == []

    @pytest.mark.parametrize("platform", ["", "eu"])
    def test_what_is_paused_since_then_is_found(self, journal: SqlJournal, platform: str) -> None:
        """By the pause of its platform or of all, from the moment of that pause on."""
        known(journal, key("INV-EU", "eu"), NOW)
        known(journal, key("INV-US", "us"), NOW)
        journal.pause(act("pause", platform, NOW + MINUTE))
        stopped = ["INV-EU"] if platform else ["INV-EU", "INV-US"]
        assert sorted(found(journal, due_since=NOW, paused_since=NOW + MINUTE)) == stopped
        assert found(journal, paused_since=NOW) == []

    def test_what_is_unchanged_comes_longest_so_first(self, journal: SqlJournal) -> None:
        """By its last change, not by its age."""
        for number, minutes in enumerate((5, 3, 9, 4)):
            settled(journal, key(f"INV-{number}"), State.HELD, at=NOW + number * MINUTE)
            again = Entry(kind=EntryKind.HELD, at=NOW + minutes * MINUTE, data={"reason": ""})
            claim = claimed(journal, key(f"INV-{number}"), again.at)
            journal.settle(claim, [again], Outcome(state=State.HELD, reason=""))
        known(journal, KEY)
        wanted = {"states": (State.HELD,), "unchanged_since": NOW + 5 * MINUTE}
        assert found(journal, **wanted) == ["INV-1", "INV-3", "INV-0"]

    def test_only_a_list_by_age_has_further_pages(self, several: SqlJournal) -> None:
        """Another order has a first page and the whole number; a place in it cannot be asked."""
        wanted = Filter(due_since=NOW + DAY, newest_first=True)
        known(several, key("INV-DUE-2"), NOW)
        page = several.search(wanted, 1)
        assert (names(page), page.total, page.after) == (["INV-DUE"], 2, None)
        with pytest.raises(ValueError, match="by age"):
            several.listed(wanted, 1, page.invoices[0].cursor)

    @pytest.mark.parametrize(
        ("since", "until", "hit"),
        [
            (None, None, True),
            (START, END, True),
            (END - MINUTE, None, True),
            (END, None, False),
            (None, START + MINUTE, True),
            (None, START, False),
            (START + DAY, START + 2 * DAY, True),
            (END, END + DAY, False),
        ],
    )
    def test_a_period_is_found_by_any_overlap(
        self, journal: SqlJournal, since: datetime | None, until: datetime | None, *, hit: bool
    ) -> None:
        """Half-open on both sides: what only touches is not in it."""
        counted(journal, KEY, Span("SUB-1", "Text messages", MONTH), NOW, 5)
        known(journal, key("INV-NO-PERIOD-KNOWN"))
        shown = found(journal, since=since, until=until)
        assert (INV in shown) is hit

    def test_what_was_counted_is_known(self, journal: SqlJournal) -> None:
        """Components, each once, and the whole stretch of the charges' periods."""
        known(journal, KEY)
        later = Period(END, END + DAY)
        spans = [
            Span("SUB-1", "Text messages", MONTH),
            Span("SUB-1", "Fax 100%", later),
            Span("SUB-1", "Text messages", Period(END + DAY, END + 2 * DAY)),
        ]
        tallies = [frozen(span=span, charge_id=f"CHG-{n}") for n, span in enumerate(spans)]
        journal.freeze(claimed(journal, KEY, NOW), [], tallies, NOW)
        (one,) = journal.search(Filter()).invoices
        assert one.facts.components == ("Fax 100%", "Text messages")
        assert one.facts.period == Period(START, END + 2 * DAY)
        assert found(journal, component="Fax 100%") == [INV]
        assert found(journal, component="100%") == []
        assert found(journal, component="Fax 100_") == []
        assert journal.verify(KEY) is None

    def test_what_the_platform_said_last_counts(self, journal: SqlJournal) -> None:
        """Total and currency are the newest; that it was not found says nothing of it."""
        settled(journal, KEY, State.HELD, "x")
        told = seen(invoice(total="7.25"))
        gone = Entry(kind=EntryKind.FETCHED, at=NOW, data=seen(None))
        issued = [Entry(kind=EntryKind.ISSUED, at=NOW + n * MINUTE, data=told) for n in (1, 2)]
        done = Outcome(state=State.ISSUED, reason="")
        journal.settle(claimed(journal, KEY, NOW), [*issued, gone], done)
        (one,) = journal.search(Filter()).invoices
        assert (one.facts.total, one.facts.currency) == ("7.25", "USD")
        assert one.facts.issued_at == NOW + MINUTE
        assert (one.row.state, one.cause) == (State.ISSUED, None)
        assert found(journal, cause="other") == []
        assert journal.verify(KEY) is None

    def test_odd_names_are_found_by_themselves(self, journal: SqlJournal) -> None:
        """What a platform's ids and names may hold is stored, and found by the same text."""
        odd = "a\0b\ud800\u200b%é" + "".join(sha256(bytes([n])).hexdigest() for n in range(200))
        settled(journal, KEY, State.HELD, "x", subscription_id=odd, account_id=odd, currency=odd)
        assert found(journal, subscription=odd, account=odd) == [INV]
        assert found(journal, subscription="a") == []
        assert journal.verify(KEY) is None

    def test_an_empty_journal_is_overseen(self, journal: SqlJournal) -> None:
        """Every state is told, with none in it, and 24 hours of nothing."""
        seen_now = journal.overview(NOW)
        assert dict(seen_now.by_state) == dict.fromkeys(State, 0)
        assert (seen_now.oldest, seen_now.oldest_unissued) == (None, None)
        assert (seen_now.held, seen_now.issued_today, len(seen_now.paused)) == ((), 0, 0)
        assert [(h.issued, h.held) for h in seen_now.hours] == [(0, 0)] * 24
        assert journal.search(Filter()) == Page(invoices=(), total=0, after=None)

    def test_the_overview_counts(self, several: SqlJournal) -> None:
        """By state and cause, most first, with the oldest of each, and what is paused."""
        for number in range(2):
            reason = f'"Text messages" was counted as {number}.5: a fraction; set a rounding'
            settled(several, key(f"INV-F{number}"), State.HELD, reason, NOW + number * HOUR)
        several.pause(act("pause", "eu"))
        now = several.overview(NOW + HOUR)
        numbers = {state: n for state, n in now.by_state.items() if n}
        assert numbers == {State.HELD: 3, State.ISSUED: 1, State.SKIPPED: 1, State.DUE: 1}
        assert [(h.cause.key, h.number, h.oldest_at) for h in now.held] == [
            ("fraction", 2, NOW),
            ("unmapped_component", 1, NOW),
        ]
        assert list(now.paused) == ["eu"]

    @pytest.mark.parametrize("state", [s for s in State if s is not State.DUE])
    def test_the_oldest_unissued_is_told(self, journal: SqlJournal, state: State) -> None:
        """What is issued, skipped, closed or only observed is not waited for; the rest is."""
        one, later = key("INV-1"), key("INV-2")
        if state in (State.PARKED, State.CLOSED):
            known(journal, one)
            entry = by_hand(EntryKind(state.value))
            assert (journal.park if state is State.PARKED else journal.close_by_hand)(one, entry)
        elif state in (State.RETRYING, State.OBSERVED):
            known(journal, one)
            end = Entry(kind=EntryKind.FAILED, at=NOW, data={})
            journal.settle(claimed(journal, one, NOW), [end], Outcome(state=state, reason=""))
        else:
            settled(journal, one, state)
        known(journal, later, NOW + HOUR)
        now = journal.overview(NOW + DAY)
        waited_for = (State.WAITING, State.RETRYING, State.HELD, State.PARKED)
        first = (one, NOW) if state in waited_for else (later, NOW + HOUR)
        assert now.oldest is not None
        assert (now.oldest.key, now.oldest.first_seen_at) == first
        assert now.oldest_unissued == NOW + DAY - first[1]

    def test_throughput_is_by_the_hour(self, journal: SqlJournal) -> None:
        """Each invoice counts once, when it was first issued, and once an hour it was held in."""
        midnight = NOW.replace(hour=0)
        for number, at in enumerate((midnight - MINUTE, midnight, NOW - MINUTE, NOW)):
            settled(journal, key(f"INV-{number}"), State.ISSUED, at=at)
        journal.wake(key("INV-0"), by_hand(EntryKind.REPLAYED, NOW))
        again = Entry(kind=EntryKind.ISSUED, at=NOW, data={})
        claim = claimed(journal, key("INV-0"), NOW)
        journal.settle(claim, [again], Outcome(state=State.ISSUED, reason=""))
        settled(journal, key("INV-LONG-AGO"), State.HELD, at=NOW - 30 * HOUR)
        for at in (NOW - HOUR, NOW - HOUR + MINUTE, NOW):
            settled(journal, KEY, State.HELD, at=at)
        now = journal.overview(NOW + 25 * MINUTE)
        assert now.issued_today == 3
        busy = {h.start.hour: (h.issued, h.held) for h in now.hours if h.issued or h.held}
        assert busy == {23: (1, 0), 0: (1, 0), 12: (1, 1), 13: (1, 1)}
        assert [now.hours[0].start, now.hours[-1].start] == [NOW - 23 * HOUR, NOW]

    def test_earlier_periods_are_told(self, journal: SqlJournal) -> None:
        """The last three of the same usage that were billed before, newest first, exactly."""
        spans = [
            Span("SUB-1", "Text messages", Period(START + n * MONTH_LONG, END + n * MONTH_LONG))
            for n in range(-5, 2)
        ]
        for number, span in enumerate(spans):
            counted(journal, key(f"INV-{number}"), span, NOW + number * MINUTE, 10**20 + number)
        mine = spans[5]
        for other in (replace(mine, subject="SUB-2"), replace(mine, component="Fax")):
            counted(journal, key(f"INV-{other}"), replace(other, period=spans[4].period), NOW, 7)
        told = journal.previous_tallies(key("INV-5"), mine)
        assert [(p.invoice_id, p.quantity) for p in told] == [
            ("INV-4", 10**20 + 4),
            ("INV-3", 10**20 + 3),
            ("INV-2", 10**20 + 2),
        ]
        assert told[0].period == spans[4].period
        assert len(journal.previous_tallies(key("INV-5"), mine, 10)) == 5
        assert journal.previous_tallies(key("INV-5", "eu"), mine) == []

    def test_what_was_not_billed_is_no_earlier_period(self, journal: SqlJournal) -> None:
        """A count that was frozen, and then held, was charged to nobody; closed by hand, it was."""
        early = Span("SUB-1", "Text messages", Period(START - MONTH_LONG, START))
        known(journal, key("INV-0"))
        claim = claimed(journal, key("INV-0"), NOW)
        journal.freeze(claim, [], [frozen(3, span=early)], NOW)
        held = Entry(kind=EntryKind.HELD, at=NOW, data={"reason": "x"})
        journal.settle(claim, [held], Outcome(state=State.HELD, reason="x"))
        mine = Span("SUB-1", "Text messages", MONTH)
        assert journal.previous_tallies(KEY, mine) == []
        assert journal.close_by_hand(key("INV-0"), by_hand(EntryKind.CLOSED))
        assert [p.quantity for p in journal.previous_tallies(KEY, mine)] == [3]


MONTH_LONG = END - START
