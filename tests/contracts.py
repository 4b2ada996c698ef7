"""What every `Journal` keeps, as one suite that each journal runs."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from builders import INV, KEY, LEASE, MINUTE, MONTH, NOW, delivery, frozen, other_key
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from worker.domain import InvoiceKey, Period, Span
from worker.errors import LeaseLost
from worker.journal import open_journal
from worker.journal.sql import SqlJournal
from worker.record import Claim, Entry, EntryKind, Outcome, Receipt, State

ANY_TEXT = st.text(st.characters(), max_size=20)
DONE = Outcome(state=State.ISSUED, reason="Unpaid, 5.10 USD")


def entry(kind: EntryKind = EntryKind.FETCHED, at: datetime = NOW, **data: Any) -> Entry:
    """Make an entry."""
    return Entry(kind=kind, at=at, data=data)


class JournalContract:
    """Subclass it with a fixture `url`: where this test's journal is."""

    @pytest.fixture
    def journal(self, url: str) -> Iterator[SqlJournal]:
        """A fresh journal."""
        with closing(open_journal(url)) as opened:
            yield opened

    @pytest.fixture
    def again(self, url: str, journal: SqlJournal) -> Iterator[SqlJournal]:
        """The same journal, opened by another process or machine."""
        with closing(open_journal(url)) as opened:
            yield opened

    def test_a_new_delivery_makes_its_invoice_due(self, journal: SqlJournal) -> None:
        """A delivery is stored with its digest, and its invoice waits for a worker."""
        assert journal.record_delivery(delivery(), NOW) is Receipt.NEW
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.state, history.row.due_at) == (State.DUE, NOW)
        assert [(d.id, d.times, len(d.digest)) for d in history.deliveries] == [
            (delivery().id, 1, 64)
        ]
        assert journal.due(NOW) == [KEY]

    def test_a_known_delivery_is_counted_and_changes_nothing(self, journal: SqlJournal) -> None:
        """The same id again is one delivery, and rings for nothing."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.settle(claim, [entry(EntryKind.ISSUED)], DONE)
        for _ in range(2):
            assert journal.record_delivery(delivery(), NOW + MINUTE) is Receipt.DUPLICATE
        history = journal.history(KEY)
        assert history is not None
        assert [d.times for d in history.deliveries] == [3]
        assert history.row.due_at is None

    def test_an_id_used_for_another_invoice_is_a_conflict(self, journal: SqlJournal) -> None:
        """A delivery id is never taken for another invoice, and the first one stays as it was."""
        journal.record_delivery(delivery(), NOW)
        other = delivery(invoice_id=other_key(1).invoice_id)
        assert journal.record_delivery(other, NOW) is Receipt.CONFLICT
        assert journal.history(other_key(1)) is None
        assert journal.record_delivery(delivery(), NOW) is Receipt.DUPLICATE

    def test_a_delivery_that_names_no_invoice_is_refused(self, journal: SqlJournal) -> None:
        """Such events are counted; recording one would be a defect of the caller."""
        with pytest.raises(ValueError, match="names no invoice"):
            journal.record_delivery(delivery(invoice_id=None), NOW)

    def test_ignored_events_are_counted_by_name(self, journal: SqlJournal) -> None:
        """Events that ask for nothing leave a number, not a row each."""
        for event in ("Invoice/Paid", "Invoice/Paid", "Account/Created"):
            journal.count_ignored(delivery(event=event, invoice_id=None), NOW)
        assert journal.ignored() == {
            ("billforward", "Account/Created"): 1,
            ("billforward", "Invoice/Paid"): 2,
        }

    def test_what_is_recorded_is_there_for_another_reader(
        self, journal: SqlJournal, again: SqlJournal
    ) -> None:
        """A method that has returned is durable and seen by others."""
        journal.record_delivery(delivery(), NOW)
        assert again.due(NOW) == [KEY]

    def test_a_claim_is_exclusive_until_its_lease_ends(self, journal: SqlJournal) -> None:
        """One worker has the invoice; after the lease another may take it, with a higher fence."""
        journal.record_delivery(delivery(), NOW)
        first = journal.claim(KEY, "one", NOW, LEASE)
        assert first is not None
        assert journal.claim(KEY, "two", NOW + LEASE - MINUTE, LEASE) is None
        assert journal.due(NOW + LEASE - MINUTE) == []
        assert journal.due(NOW + LEASE) == [KEY]
        second = journal.claim(KEY, "two", NOW + LEASE, LEASE)
        assert second is not None
        assert second.fence > first.fence

    def test_nothing_unknown_or_not_due_can_be_claimed(self, journal: SqlJournal) -> None:
        """There is work only where the journal says so."""
        assert journal.claim(KEY, "one", NOW, LEASE) is None
        journal.record_delivery(delivery(), NOW)
        journal.settle(_claimed(journal), [entry(EntryKind.ISSUED)], DONE)
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is None

    def test_a_waiting_invoice_is_claimed_at_its_time(self, journal: SqlJournal) -> None:
        """Wait means not before due_at, whoever rings."""
        journal.record_delivery(delivery(), NOW)
        until = NOW + 10 * MINUTE
        waiting = Outcome(state=State.WAITING, reason="not over", due_at=until, attempt=2)
        journal.settle(_claimed(journal), [entry(EntryKind.WAITING)], waiting)
        assert journal.claim(KEY, "one", until - MINUTE, LEASE) is None
        assert journal.due(until - MINUTE) == []
        assert journal.due(until) == [KEY]
        assert journal.claim(KEY, "one", until, LEASE) is not None

    def test_a_held_invoice_can_be_claimed_for_another_try(self, journal: SqlJournal) -> None:
        """A job on a held invoice is an operator's requeue; it starts with all its attempts."""
        journal.record_delivery(delivery(), NOW)
        held = Outcome(state=State.HELD, reason="unmapped", attempt=7)
        journal.settle(_claimed(journal), [entry(EntryKind.HELD)], held)
        assert journal.due(NOW + LEASE) == []
        assert journal.claim(KEY, "one", NOW + MINUTE, LEASE) is not None
        history = journal.history(KEY)
        assert history is not None
        assert history.row.attempt == 0

    def test_a_lost_lease_stops_every_write(self, journal: SqlJournal, again: SqlJournal) -> None:
        """The old holder can neither append, freeze nor settle, and leaves no trace."""
        journal.record_delivery(delivery(), NOW)
        old = _claimed(journal)
        new = again.claim(KEY, "two", NOW + LEASE, LEASE)
        assert new is not None
        before = journal.history(KEY)
        for write in (
            lambda: journal.append(old, [entry()], NOW + 2 * LEASE),
            lambda: journal.freeze(old, [], [frozen()], NOW),
            lambda: journal.settle(old, [entry(EntryKind.ISSUED)], DONE),
        ):
            with pytest.raises(LeaseLost, match="took it over"):
                write()
        assert journal.history(KEY) == before
        again.settle(new, [entry(EntryKind.ISSUED)], DONE)

    def test_appending_prolongs_the_lease(self, journal: SqlJournal) -> None:
        """A worker that is heard of keeps its invoice."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.append(claim, [entry(note="still at it")], NOW + 2 * LEASE)
        assert journal.claim(KEY, "two", NOW + LEASE, LEASE) is None
        assert journal.claim(KEY, "two", NOW + 2 * LEASE, LEASE) is not None

    def test_entries_keep_their_order_and_content(self, journal: SqlJournal) -> None:
        """The story is told as it happened, with what was said."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.append(claim, [entry(number=1), entry(text="ü ✓")], NOW + LEASE)
        journal.settle(claim, [entry(EntryKind.ISSUED, total="5.10")], DONE)
        history = journal.history(KEY)
        assert history is not None
        assert [e.kind for e in history.entries] == [
            EntryKind.DELIVERED,
            EntryKind.CLAIMED,
            EntryKind.FETCHED,
            EntryKind.FETCHED,
            EntryKind.ISSUED,
        ]
        assert history.entries[3] == entry(text="ü ✓")
        assert (history.row.state, history.row.reason) == (State.ISSUED, DONE.reason)
        assert history.row.lease_owner is None

    def test_frozen_tallies_come_back_exactly(self, journal: SqlJournal) -> None:
        """Quantity, value, window and evidence are what was frozen, digit for digit."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        tallies = [frozen(10**18), frozen(0, charge_id="CHG-2", events=None)]
        assert journal.freeze(claim, [entry()], tallies, NOW) == []
        history = journal.history(KEY)
        assert history is not None
        assert list(history.tallies) == tallies

    def test_an_overlapping_span_freezes_nothing(self, journal: SqlJournal) -> None:
        """Of two invoices for the same usage only one is ever written; the other is told whose."""
        first, second = _two_claims(journal)
        assert journal.freeze(first, [], [frozen()], NOW) == []
        (billed,) = journal.freeze(second, [entry()], [frozen()], NOW)
        assert (billed.invoice_id, billed.span) == (INV, frozen().span)
        history = journal.history(second.key)
        assert history is not None
        assert history.tallies == ()
        assert entry() not in history.entries

    def test_adjacent_spans_do_not_overlap(self, journal: SqlJournal) -> None:
        """The month after, another component and another customer are free to bill."""
        first, second = _two_claims(journal)
        journal.freeze(first, [], [frozen()], NOW)
        next_month = Period(MONTH.end, MONTH.end + timedelta(days=31))
        free = [
            frozen(span=Span("SUB-1", "Text messages", next_month)),
            frozen(span=Span("SUB-1", "Fax", MONTH), charge_id="CHG-2"),
            frozen(span=Span("SUB-2", "Text messages", MONTH), charge_id="CHG-3"),
        ]
        assert journal.freeze(second, [], free, NOW) == []

    def test_a_skipped_invoice_bills_nothing(self, journal: SqlJournal) -> None:
        """After an invoice turned out voided, its period may be billed on another."""
        first, second = _two_claims(journal)
        journal.freeze(first, [], [frozen()], NOW)
        assert len(journal.billed(second.key, [frozen().span])) == 1
        skipped = Outcome(state=State.SKIPPED, reason="it is voided")
        journal.settle(first, [entry(EntryKind.SKIPPED)], skipped)
        assert journal.billed(second.key, [frozen().span]) == []
        assert journal.billed(first.key, [frozen().span]) == []

    def test_frozen_tallies_can_be_given_up_before_a_write(self, journal: SqlJournal) -> None:
        """A recount forgets what was frozen, and the record says that it did."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.freeze(claim, [], [frozen()], NOW)
        asked = entry(EntryKind.DISCARDED, at=NOW + LEASE, by="me")
        assert journal.discard_tallies(KEY, asked)
        history = journal.history(KEY)
        assert history is not None
        assert history.tallies == ()
        assert history.entries[-1].data == {"by": "me"}
        assert journal.freeze(claim, [], [frozen(106)], NOW) == []

    def test_frozen_tallies_stand_once_a_write_was_begun(self, journal: SqlJournal) -> None:
        """After the first intent the numbers are what will be billed."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.freeze(claim, [], [frozen()], NOW)
        journal.append(claim, [entry(EntryKind.CHARGE_INTENT, charge_id="CHG-1")], NOW + LEASE)
        assert not journal.discard_tallies(KEY, entry(EntryKind.DISCARDED, at=NOW + LEASE))
        history = journal.history(KEY)
        assert history is not None
        assert history.tallies == (frozen(),)

    def test_nothing_is_given_up_while_a_worker_is_at_it(self, journal: SqlJournal) -> None:
        """A recount during a run would take away the numbers that the run is about to bill."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.freeze(claim, [], [frozen()], NOW)
        before = journal.history(KEY)
        assert not journal.discard_tallies(KEY, entry(EntryKind.DISCARDED))
        assert not journal.close_by_hand(KEY, entry(EntryKind.CLOSED, reason="by hand"))
        assert journal.history(KEY) == before

    def test_a_closed_invoice_is_quiet_and_bills_what_was_frozen(self, journal: SqlJournal) -> None:
        """What a person settled is not due, keeps its periods billed, and can be replayed."""
        first, second = _two_claims(journal)
        journal.freeze(first, [], [frozen()], NOW)
        held = Outcome(state=State.HELD, reason="refused")
        journal.settle(first, [entry(EntryKind.HELD)], held)
        asked = entry(EntryKind.CLOSED, by="ann", reason="issued\nby hand")
        assert journal.close_by_hand(KEY, asked)
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.state, history.row.reason) == (State.CLOSED, "issued by hand")
        assert history.row.due_at is None
        assert history.entries[-1] == asked
        assert len(journal.billed(second.key, [frozen().span])) == 1
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is None
        journal.wake(KEY, entry(EntryKind.REPLAYED, at=NOW + LEASE))
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is not None

    def test_an_unknown_invoice_cannot_be_closed(self, journal: SqlJournal) -> None:
        """There is nothing to close, and nothing is stored."""
        assert not journal.close_by_hand(KEY, entry(EntryKind.CLOSED, reason="typo"))
        assert set(journal.counts().values()) == {0}

    def test_a_claim_left_behind_has_spent_an_attempt(self, journal: SqlJournal) -> None:
        """An invoice whose workers die is not tried for ever."""
        journal.record_delivery(delivery(), NOW)
        for died in range(3):
            claimed_at = NOW + died * LEASE
            assert journal.claim(KEY, "one", claimed_at, LEASE) is not None
            history = journal.history(KEY)
            assert history is not None
            assert history.row.attempt == died

    def test_a_held_invoice_whose_worker_dies_is_due(self, journal: SqlJournal) -> None:
        """A replay that was killed half-way is gone on with, not forgotten."""
        journal.record_delivery(delivery(), NOW)
        held = Outcome(state=State.HELD, reason="unmapped")
        journal.settle(_claimed(journal), [entry(EntryKind.HELD)], held)
        assert journal.claim(KEY, "one", NOW + MINUTE, LEASE) is not None
        assert journal.due(NOW + MINUTE + LEASE) == [KEY]

    def test_news_during_a_run_keeps_the_invoice_due(self, journal: SqlJournal) -> None:
        """A notification or replay that came while a worker was at it is looked at afterwards."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.record_delivery(delivery(id="NOT-2"), NOW + MINUTE)
        journal.settle(claim, [entry(EntryKind.SKIPPED, at=NOW + 2 * MINUTE)], DONE)
        assert journal.due(NOW + 2 * MINUTE) == [KEY]

    def test_waking_makes_any_invoice_due(self, journal: SqlJournal) -> None:
        """A replay starts anew from every state, also for an invoice not known before."""
        journal.wake(KEY, entry(EntryKind.REPLAYED, by="ops"))
        assert journal.due(NOW) == [KEY]
        failing = Outcome(
            state=State.RETRYING, reason="503", due_at=NOW + timedelta(days=1), attempt=9
        )
        journal.settle(_claimed(journal), [entry(EntryKind.FAILED)], failing)
        journal.wake(KEY, entry(EntryKind.REPLAYED, at=NOW + MINUTE))
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.due_at, history.row.attempt) == (NOW + MINUTE, 0)

    def test_invoices_are_listed_by_state_oldest_first(self, journal: SqlJournal) -> None:
        """An operator sees what waits longest at the top."""
        for number in (2, 1, 3):
            key = other_key(number)
            journal.wake(key, entry(EntryKind.REPLAYED, at=NOW + number * MINUTE))
        listed = journal.invoices()
        assert [row.key for row in listed] == [other_key(n) for n in (1, 2, 3)]
        claim = _claimed(journal, other_key(2), NOW + 9 * MINUTE)
        journal.settle(claim, [entry(EntryKind.ISSUED)], DONE)
        assert [row.key for row in journal.invoices([State.ISSUED])] == [other_key(2)]
        assert len(journal.invoices(limit=1)) == 1

    def test_what_is_longest_overdue_rings_first(self, journal: SqlJournal) -> None:
        """A bounded sweep does not starve the old for the new."""
        for number in (2, 1, 3):
            journal.wake(other_key(number), entry(EntryKind.REPLAYED, at=NOW + number * MINUTE))
        assert journal.due(NOW + 9 * MINUTE, limit=2) == [other_key(1), other_key(2)]

    def test_of_many_claimants_one_wins(self, journal: SqlJournal, again: SqlJournal) -> None:
        """However many workers race for an invoice at once, one has it."""
        keys = [other_key(number) for number in range(20)]
        for key in keys:
            journal.wake(key, entry(EntryKind.REPLAYED))
        start = threading.Barrier(8)

        def race(number: int) -> list[InvoiceKey]:
            start.wait(10)
            mine = journal if number % 2 else again
            return [key for key in keys if mine.claim(key, f"w{number}", NOW, LEASE)]

        with ThreadPoolExecutor(8) as pool:
            won = [key for keys_won in pool.map(race, range(8)) for key in keys_won]
        assert sorted(won) == sorted(keys)

    def test_a_journal_that_works_says_so(self, journal: SqlJournal) -> None:
        """The check passes and changes nothing."""
        journal.check()
        assert journal.invoices() == []

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | ANY_TEXT,
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    @example(value="\0 \ud800 \U0001f4a9")
    def test_entries_hold_any_json(self, journal: SqlJournal, value: Any) -> None:
        """Whatever a platform or source said comes back as it was, and is still proven."""
        key = InvoiceKey("billforward", f"INV-{uuid4()}")
        journal.wake(key, entry(EntryKind.REPLAYED, value=value))
        history = journal.history(key)
        assert history is not None
        assert history.entries[0].data == {"value": value}
        assert journal.verify(key) is None

    def test_a_reason_may_quote_anything(self, journal: SqlJournal) -> None:
        """An error text with characters that no database stores does not stop the outcome."""
        journal.record_delivery(delivery(), NOW)
        outcome = Outcome(state=State.HELD, reason="it said: \0 \ud800 ü")
        journal.settle(_claimed(journal), [entry(EntryKind.HELD)], outcome)
        (row,) = journal.invoices()
        assert row.reason == "it said: \ufffd \ufffd ü"

    def test_a_time_without_a_zone_is_refused(self, journal: SqlJournal) -> None:
        """A naive datetime names no instant; storing one would guess."""
        naive = NOW.replace(tzinfo=None)
        writes = (
            lambda: journal.record_delivery(delivery(), naive),
            lambda: journal.count_ignored(delivery(invoice_id=None), naive),
            lambda: journal.wake(KEY, entry(at=naive)),
            lambda: journal.due(naive),
            lambda: journal.claim(KEY, "one", naive, LEASE),
        )
        for write in writes:
            with pytest.raises(ValueError, match="no time zone"):
                write()
        assert set(journal.counts().values()) == {0}

    def test_of_many_invoices_the_known_ones_are_told(self, journal: SqlJournal) -> None:
        """The sweep asks in one go which of the platform's invoices no delivery told of."""
        keys = [other_key(number) for number in range(7000)]
        assert journal.known([]) == set()
        assert journal.known(keys) == set()
        for number in (3, 6999):
            journal.wake(other_key(number), entry(EntryKind.REPLAYED))
        journal.wake(InvoiceKey("stripe", other_key(5).invoice_id), entry(EntryKind.REPLAYED))
        assert journal.known(keys) == {other_key(3), other_key(6999)}

    def test_a_recount_of_an_unknown_invoice_leaves_no_trace(self, journal: SqlJournal) -> None:
        """There is nothing to give up, and nothing is stored that no invoice owns."""
        assert not journal.discard_tallies(KEY, entry(EntryKind.DISCARDED))
        assert set(journal.counts().values()) == {0}

    def test_what_names_an_invoice_is_not_ignored(self, journal: SqlJournal) -> None:
        """Counting a delivery that asks for work would lose it; that is a caller's defect."""
        with pytest.raises(ValueError, match="names an invoice"):
            journal.count_ignored(delivery(), NOW)

    def test_acknowledgements_are_owed_until_they_are_made(self, journal: SqlJournal) -> None:
        """What owes one is listed, oldest first, whether it asks for work or not."""
        later = delivery(owes_ack=True, id="NOT-1", invoice_id=None, event="Invoice/Paid")
        journal.count_ignored(later, NOW + MINUTE)
        journal.record_delivery(delivery(owes_ack=True, id="NOT-2"), NOW)
        journal.record_delivery(delivery(id="NOT-3"), NOW)
        journal.count_ignored(delivery(id="NOT-4", invoice_id=None), NOW)
        journal.record_delivery(delivery(platform="other", owes_ack=True, id="NOT-5"), NOW)
        assert journal.acks_owed("billforward") == ["NOT-2", "NOT-1"]
        assert journal.acks_owed("billforward", limit=1) == ["NOT-2"]
        for _ in range(2):
            journal.acknowledged("billforward", "NOT-2")
        assert journal.acks_owed("billforward") == ["NOT-1"]
        assert journal.acks_owed("other") == ["NOT-5"]

    def test_a_repeated_delivery_owes_its_acknowledgement_again(self, journal: SqlJournal) -> None:
        """The platform would not have sent it again, had our acknowledgement arrived."""
        owing = delivery(owes_ack=True)
        journal.record_delivery(owing, NOW)
        journal.record_delivery(owing, NOW + MINUTE)
        assert journal.acks_owed("billforward") == [owing.id]
        journal.acknowledged("billforward", owing.id)
        assert journal.record_delivery(owing, NOW + 2 * MINUTE) is Receipt.DUPLICATE
        assert journal.acks_owed("billforward") == [owing.id]

    def test_a_conflicting_delivery_is_not_acknowledged(self, journal: SqlJournal) -> None:
        """What was refused is not stored, so nothing vouches for it."""
        journal.record_delivery(delivery(), NOW)
        other = delivery(invoice_id=other_key(1).invoice_id, owes_ack=True)
        assert journal.record_delivery(other, NOW) is Receipt.CONFLICT
        assert journal.acks_owed("billforward") == []

    def test_of_two_racing_freezes_one_wins(self, journal: SqlJournal, again: SqlJournal) -> None:
        """Two invoices that bill the same usage at the same moment: one is written, never both."""
        for number in range(0, 40, 2):
            claims = list(_claims(journal, other_key(number), other_key(number + 1)))
            refused = _freeze_at_once(journal, again, claims, f"SUB-{number}")
            assert sorted(map(len, refused)) == [0, 2]
            assert all(journal.verify(claim.key) is None for claim in claims)

    def test_all_who_write_on_one_invoice_keep_one_chain(
        self, journal: SqlJournal, again: SqlJournal
    ) -> None:
        """A worker's appends, deliveries and replays at the same time leave no gap and no fork."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)

        def append() -> None:
            for number in range(25):
                journal.append(claim, [entry(number=number), entry()], NOW + LEASE)

        def deliver() -> None:
            for number in range(25):
                again.record_delivery(delivery(id=f"NOT-{number}"), NOW)

        def replay() -> None:
            for _ in range(25):
                again.wake(KEY, entry(EntryKind.REPLAYED))

        _at_once(append, deliver, replay)
        assert journal.verify(KEY) is None
        assert journal.counts()["entries"] == 2 + 25 * 4

    def test_a_snapshot_is_of_one_moment(self, journal: SqlJournal, again: SqlJournal) -> None:
        """Whoever reads on sees nothing of what was written since."""
        with again.store.snapshot() as tx:
            for _ in range(2):
                assert tx.rows("SELECT * FROM entries") == []
                journal.record_delivery(delivery(), NOW)
        assert again.counts()["entries"] == 1

    def test_a_reader_sees_one_moment(self, journal: SqlJournal, again: SqlJournal) -> None:
        """What is read while others write fits together: the row's story is the entries'."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)

        def write() -> None:
            for _ in range(50):
                journal.append(claim, [entry()], NOW + LEASE)

        def read() -> None:
            for _ in range(50):
                assert again.verify(KEY) is None

        _at_once(write, read)


def _at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Start the calls together, each in its thread; return what they returned."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def _claimed(journal: SqlJournal, key: InvoiceKey = KEY, at: datetime = NOW) -> Claim:
    claim = journal.claim(key, "one", at, LEASE)
    assert claim is not None
    return claim


def _two_claims(journal: SqlJournal) -> Iterator[Claim]:
    return _claims(journal, KEY, other_key(2))


def _claims(journal: SqlJournal, *keys: InvoiceKey) -> Iterator[Claim]:
    for key in keys:
        journal.wake(key, entry(EntryKind.REPLAYED))
        yield _claimed(journal, key)


def _freeze_at_once(
    journal: SqlJournal, again: SqlJournal, claims: list[Claim], subject: str
) -> list[Any]:
    """Freeze the same two spans for two invoices, each in another order."""
    both = [
        frozen(span=Span(f"{subject}-{n}", "Fax", MONTH), charge_id=f"CHG-{n}") for n in range(2)
    ]
    return _at_once(
        lambda: journal.freeze(claims[0], [], both, NOW),
        lambda: again.freeze(claims[1], [], both[::-1], NOW),
    )


def tamper(url: str, *statements: str) -> None:
    """Change a journal behind the program's back, its own refusals removed."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            for change in ("update", "delete"):
                db.execute(f"DROP TRIGGER IF EXISTS entries_refuse_{change}")
            for statement in statements:
                db.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute("DROP TRIGGER IF EXISTS entries_refuse_change ON entries")
            for statement in statements:
                connection.execute(statement.encode())
