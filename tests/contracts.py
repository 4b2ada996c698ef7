"""What every `Journal` keeps, as one suite that each journal runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY, LEASE, MINUTE, MONTH, NOW, delivery, frozen, other_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.domain import InvoiceKey, Period, Span
from worker.errors import LeaseLost
from worker.ports import Journal
from worker.record import Claim, Entry, EntryKind, Outcome, Receipt, State

DONE = Outcome(state=State.ISSUED, reason="Unpaid, 5.10 USD")


def entry(kind: EntryKind = EntryKind.FETCHED, at: datetime = NOW, **data: Any) -> Entry:
    """Make an entry."""
    return Entry(kind=kind, at=at, data=data)


class JournalContract:
    """Subclass it and say how to open a journal; `again` opens the same one a second time."""

    def open(self, tmp_path: Path) -> Journal:
        """Open the journal of this test."""
        raise NotImplementedError

    @pytest.fixture
    def journal(self, tmp_path: Path) -> Journal:
        """A fresh journal."""
        return self.open(tmp_path)

    @pytest.fixture
    def again(self, tmp_path: Path, journal: Journal) -> Journal:
        """The same journal, opened by another process or machine."""
        return self.open(tmp_path)

    def test_a_new_delivery_makes_its_invoice_due(self, journal: Journal) -> None:
        """A delivery is stored with its digest, and its invoice waits for a worker."""
        assert journal.record_delivery(delivery(), NOW) is Receipt.NEW
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.state, history.row.due_at) == (State.DUE, NOW)
        assert [(d.id, d.times, len(d.digest)) for d in history.deliveries] == [
            (delivery().id, 1, 64)
        ]
        assert journal.due(NOW) == [KEY]

    def test_a_known_delivery_is_counted_and_changes_nothing(self, journal: Journal) -> None:
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

    def test_an_id_used_for_another_invoice_is_a_conflict(self, journal: Journal) -> None:
        """A delivery id is never taken for another invoice, and the first one stays as it was."""
        journal.record_delivery(delivery(), NOW)
        other = delivery(invoice_id=other_key(1).invoice_id)
        assert journal.record_delivery(other, NOW) is Receipt.CONFLICT
        assert journal.history(other_key(1)) is None
        assert journal.record_delivery(delivery(), NOW) is Receipt.DUPLICATE

    def test_a_delivery_that_names_no_invoice_is_refused(self, journal: Journal) -> None:
        """Such events are counted; recording one would be a defect of the caller."""
        with pytest.raises(ValueError, match="names no invoice"):
            journal.record_delivery(delivery(invoice_id=None), NOW)

    def test_ignored_events_are_counted_by_name(self, journal: Journal) -> None:
        """Events that ask for nothing leave a number, not a row each."""
        for event in ("Invoice/Paid", "Invoice/Paid", "Account/Created"):
            journal.count_ignored("billforward", event, NOW)
        assert journal.ignored() == {
            ("billforward", "Account/Created"): 1,
            ("billforward", "Invoice/Paid"): 2,
        }

    def test_what_is_recorded_is_there_for_another_reader(
        self, journal: Journal, again: Journal
    ) -> None:
        """A method that has returned is durable and seen by others."""
        journal.record_delivery(delivery(), NOW)
        assert again.due(NOW) == [KEY]

    def test_a_claim_is_exclusive_until_its_lease_ends(self, journal: Journal) -> None:
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

    def test_nothing_unknown_or_not_due_can_be_claimed(self, journal: Journal) -> None:
        """There is work only where the journal says so."""
        assert journal.claim(KEY, "one", NOW, LEASE) is None
        journal.record_delivery(delivery(), NOW)
        journal.settle(_claimed(journal), [entry(EntryKind.ISSUED)], DONE)
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is None

    def test_a_waiting_invoice_is_claimed_at_its_time(self, journal: Journal) -> None:
        """Wait means not before due_at, whoever rings."""
        journal.record_delivery(delivery(), NOW)
        until = NOW + 10 * MINUTE
        waiting = Outcome(state=State.WAITING, reason="not over", due_at=until, attempt=2)
        journal.settle(_claimed(journal), [entry(EntryKind.WAITING)], waiting)
        assert journal.claim(KEY, "one", until - MINUTE, LEASE) is None
        assert journal.due(until - MINUTE) == []
        assert journal.due(until) == [KEY]
        assert journal.claim(KEY, "one", until, LEASE) is not None

    def test_a_held_invoice_can_be_claimed_for_another_try(self, journal: Journal) -> None:
        """A job on a held invoice is an operator's requeue; it starts with all its attempts."""
        journal.record_delivery(delivery(), NOW)
        held = Outcome(state=State.HELD, reason="unmapped", attempt=7)
        journal.settle(_claimed(journal), [entry(EntryKind.HELD)], held)
        assert journal.due(NOW + LEASE) == []
        assert journal.claim(KEY, "one", NOW + MINUTE, LEASE) is not None
        history = journal.history(KEY)
        assert history is not None
        assert history.row.attempt == 0

    def test_a_lost_lease_stops_every_write(self, journal: Journal, again: Journal) -> None:
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

    def test_appending_prolongs_the_lease(self, journal: Journal) -> None:
        """A worker that is heard of keeps its invoice."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.append(claim, [entry(note="still at it")], NOW + 2 * LEASE)
        assert journal.claim(KEY, "two", NOW + LEASE, LEASE) is None
        assert journal.claim(KEY, "two", NOW + 2 * LEASE, LEASE) is not None

    def test_entries_keep_their_order_and_content(self, journal: Journal) -> None:
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

    def test_frozen_tallies_come_back_exactly(self, journal: Journal) -> None:
        """Quantity, value, window and evidence are what was frozen, digit for digit."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        tallies = [frozen(10**18), frozen(0, charge_id="CHG-2", events=None)]
        assert journal.freeze(claim, [entry()], tallies, NOW) == []
        history = journal.history(KEY)
        assert history is not None
        assert list(history.tallies) == tallies

    def test_an_overlapping_span_freezes_nothing(self, journal: Journal) -> None:
        """Of two invoices for the same usage only one is ever written; the other is told whose."""
        first, second = _two_claims(journal)
        assert journal.freeze(first, [], [frozen()], NOW) == []
        (billed,) = journal.freeze(second, [entry()], [frozen()], NOW)
        assert (billed.invoice_id, billed.span) == (INV, frozen().span)
        history = journal.history(second.key)
        assert history is not None
        assert history.tallies == ()
        assert entry() not in history.entries

    def test_adjacent_spans_do_not_overlap(self, journal: Journal) -> None:
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

    def test_a_skipped_invoice_bills_nothing(self, journal: Journal) -> None:
        """After an invoice turned out voided, its period may be billed on another."""
        first, second = _two_claims(journal)
        journal.freeze(first, [], [frozen()], NOW)
        assert len(journal.billed(second.key, [frozen().span])) == 1
        skipped = Outcome(state=State.SKIPPED, reason="it is voided")
        journal.settle(first, [entry(EntryKind.SKIPPED)], skipped)
        assert journal.billed(second.key, [frozen().span]) == []
        assert journal.billed(first.key, [frozen().span]) == []

    def test_frozen_tallies_can_be_given_up_before_a_write(self, journal: Journal) -> None:
        """A recount forgets what was frozen, and the record says that it did."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.freeze(claim, [], [frozen()], NOW)
        assert journal.discard_tallies(KEY, entry(EntryKind.DISCARDED, by="me"))
        history = journal.history(KEY)
        assert history is not None
        assert history.tallies == ()
        assert history.entries[-1].data == {"by": "me"}
        assert journal.freeze(claim, [], [frozen(106)], NOW) == []

    def test_frozen_tallies_stand_once_a_write_was_begun(self, journal: Journal) -> None:
        """After the first intent the numbers are what will be billed."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.freeze(claim, [], [frozen()], NOW)
        journal.append(claim, [entry(EntryKind.CHARGE_INTENT, charge_id="CHG-1")], NOW + LEASE)
        assert not journal.discard_tallies(KEY, entry(EntryKind.DISCARDED))
        history = journal.history(KEY)
        assert history is not None
        assert history.tallies == (frozen(),)

    def test_news_during_a_run_keeps_the_invoice_due(self, journal: Journal) -> None:
        """A notification or replay that came while a worker was at it is looked at afterwards."""
        journal.record_delivery(delivery(), NOW)
        claim = _claimed(journal)
        journal.record_delivery(delivery(id="NOT-2"), NOW + MINUTE)
        journal.settle(claim, [entry(EntryKind.SKIPPED, at=NOW + 2 * MINUTE)], DONE)
        assert journal.due(NOW + 2 * MINUTE) == [KEY]

    def test_waking_makes_any_invoice_due(self, journal: Journal) -> None:
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

    def test_invoices_are_listed_by_state_oldest_first(self, journal: Journal) -> None:
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

    def test_what_is_longest_overdue_rings_first(self, journal: Journal) -> None:
        """A bounded sweep does not starve the old for the new."""
        for number in (2, 1, 3):
            journal.wake(other_key(number), entry(EntryKind.REPLAYED, at=NOW + number * MINUTE))
        assert journal.due(NOW + 9 * MINUTE, limit=2) == [other_key(1), other_key(2)]

    def test_of_many_claimants_one_wins(self, journal: Journal, again: Journal) -> None:
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

    def test_a_journal_that_works_says_so(self, journal: Journal) -> None:
        """The check passes and changes nothing."""
        journal.check()
        assert journal.invoices() == []

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    def test_entries_hold_any_json(
        self, tmp_path_factory: pytest.TempPathFactory, value: Any
    ) -> None:
        """Whatever a platform or source said comes back as it was."""
        journal = self.open(tmp_path_factory.mktemp("journal"))
        journal.wake(KEY, entry(EntryKind.REPLAYED, value=value))
        history = journal.history(KEY)
        assert history is not None
        assert history.entries[0].data == {"value": value}


def _claimed(journal: Journal, key: InvoiceKey = KEY, at: datetime = NOW) -> Claim:
    claim = journal.claim(key, "one", at, LEASE)
    assert claim is not None
    return claim


def _two_claims(journal: Journal) -> Iterator[Claim]:
    for key in (KEY, other_key(2)):
        journal.wake(key, entry(EntryKind.REPLAYED))
        yield _claimed(journal, key)
