"""What every `Journal` keeps of what people do: parking, releasing, pausing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime

import pytest
from builders import KEY, LEASE, MINUTE, NOW, delivery, frozen, other_key

from worker.journal import open_journal
from worker.journal.sql import SqlJournal
from worker.record import Act, Entry, EntryKind, Outcome, State


def by_hand(kind: EntryKind, at: datetime = NOW, reason: str = "asked by accounting") -> Entry:
    """Make an operator's entry."""
    return Entry(kind=kind, at=at, data={"by": "ana", "reason": reason})


def act(verb: str, platform: str = "", at: datetime = NOW) -> Act:
    """Make what an operator does to a platform."""
    return Act(at=at, by="ana", verb=verb, reason="maintenance", platform=platform)


class ActsContract:
    """Subclass it with a fixture `url`: where this test's journal is."""

    @pytest.fixture
    def journal(self, url: str) -> Iterator[SqlJournal]:
        """A fresh journal that knows one invoice, which is due."""
        with closing(open_journal(url)) as opened:
            opened.record_delivery(delivery(), NOW)
            yield opened

    def test_a_parked_invoice_stays_until_it_is_released(self, journal: SqlJournal) -> None:
        """Neither a notification nor a replay makes it due, and nobody can claim it."""
        assert journal.park(KEY, by_hand(EntryKind.PARKED))
        journal.record_delivery(delivery(id="NOT-2"), NOW + MINUTE)
        journal.wake(KEY, by_hand(EntryKind.REPLAYED))
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.state, history.row.reason) == (State.PARKED, "asked by accounting")
        assert journal.due(NOW + LEASE) == []
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is None

        assert journal.release(KEY, by_hand(EntryKind.RELEASED, NOW + LEASE))
        assert journal.due(NOW + LEASE) == [KEY]
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is not None

    def test_a_held_invoice_can_be_released(self, journal: SqlJournal) -> None:
        """It is due at once, with all its attempts, and the record says who let it go."""
        claim = journal.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        held = Outcome(state=State.HELD, reason="no source", attempt=7)
        journal.settle(claim, [by_hand(EntryKind.HELD)], held)
        assert journal.release(KEY, by_hand(EntryKind.RELEASED, NOW + MINUTE))
        history = journal.history(KEY)
        assert history is not None
        assert (history.row.state, history.row.attempt) == (State.DUE, 0)
        assert history.entries[-1].data == {"by": "ana", "reason": "asked by accounting"}

    def test_only_what_can_be_held_back_is_parked(self, journal: SqlJournal) -> None:
        """Not an unknown invoice, one that a worker is at, or one that is done with."""
        assert not journal.park(other_key(1), by_hand(EntryKind.PARKED))
        claim = journal.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        assert not journal.park(KEY, by_hand(EntryKind.PARKED))
        done = Outcome(state=State.ISSUED, reason="Unpaid")
        journal.settle(claim, [by_hand(EntryKind.ISSUED)], done)
        assert not journal.park(KEY, by_hand(EntryKind.PARKED))
        assert not journal.release(KEY, by_hand(EntryKind.RELEASED))
        assert journal.verify(KEY) is None

    @pytest.mark.parametrize("platform", ["", "billforward"])
    def test_nobody_claims_on_a_paused_platform(self, journal: SqlJournal, platform: str) -> None:
        """Nothing is due and nothing can be claimed, until it is resumed; nothing is lost."""
        journal.pause(act("pause", platform))
        assert journal.due(NOW) == []
        assert journal.claim(KEY, "one", NOW, LEASE) is None
        assert list(journal.paused()) == [platform]
        journal.record_delivery(delivery(id="NOT-2", invoice_id="INV-2"), NOW)

        assert journal.resume(act("resume", platform, NOW + MINUTE))
        assert len(journal.due(NOW)) == 2
        assert journal.claim(KEY, "one", NOW, LEASE) is not None
        assert journal.paused() == {}

    def test_a_pause_of_another_platform_changes_nothing(self, journal: SqlJournal) -> None:
        """Each platform is paused by its own name."""
        journal.pause(act("pause", "stripe"))
        assert journal.due(NOW) == [KEY]

    def test_a_claim_that_runs_outlasts_a_pause(self, journal: SqlJournal) -> None:
        """A worker that has the invoice ends what it began; nobody takes it after that."""
        claim = journal.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        journal.pause(act("pause"))
        journal.append(claim, [by_hand(EntryKind.FETCHED)], NOW + LEASE)
        waiting = Outcome(state=State.WAITING, reason="", due_at=NOW)
        journal.settle(claim, [by_hand(EntryKind.WAITING)], waiting)
        assert journal.claim(KEY, "two", NOW + MINUTE, LEASE) is None

    def test_who_paused_and_resumed_is_kept(self, journal: SqlJournal) -> None:
        """Newest first; a second pause or resume is none, and the first one's name stays."""
        first = act("pause")
        journal.pause(first)
        journal.pause(act("pause", at=NOW + MINUTE))
        assert journal.paused() == {"": first}
        assert journal.resume(act("resume", at=NOW + 2 * MINUTE))
        assert not journal.resume(act("resume", at=NOW + 3 * MINUTE))
        assert [one.verb for one in journal.acts()] == ["resume", "pause"]
        assert journal.acts()[-1] == first

    def test_a_note_changes_nothing_but_the_record(self, journal: SqlJournal) -> None:
        """It stands in the record, also while a worker is at it, whose run goes on."""
        claim = journal.claim(KEY, "one", NOW, LEASE)
        before = journal.history(KEY)
        assert claim is not None
        assert before is not None
        noted = by_hand(EntryKind.RECOUNTED, NOW + MINUTE)
        assert journal.note(KEY, noted)
        assert journal.history(KEY) == replace(before, entries=(*before.entries, noted))
        journal.append(claim, [by_hand(EntryKind.FETCHED, NOW + MINUTE)], NOW + LEASE)
        assert journal.verify(KEY) is None
        assert not journal.note(other_key(1), noted)
        assert journal.history(other_key(1)) is None

    def test_an_act_on_many_is_kept_and_pauses_nothing(self, journal: SqlJournal) -> None:
        """It stands among what people did, and workers go on."""
        bulk = act("bulk release", "billforward")
        journal.record_act(bulk)
        assert [*journal.acts()] == [bulk]
        assert journal.paused() == {}
        assert journal.due(NOW) == [KEY]

    def test_what_a_person_settled_is_not_begun_again_by_a_notification(
        self, journal: SqlJournal
    ) -> None:
        """A closed invoice stays closed whatever is notified or found; a replay looks again."""
        assert journal.close_by_hand(KEY, by_hand(EntryKind.CLOSED))
        journal.record_delivery(delivery(id="NOT-2"), NOW + MINUTE)
        journal.wake(KEY, by_hand(EntryKind.FOUND, NOW + MINUTE))
        assert journal.due(NOW + LEASE) == []
        assert journal.claim(KEY, "one", NOW + LEASE, LEASE) is None
        journal.wake(KEY, by_hand(EntryKind.REPLAYED, NOW + LEASE))
        assert journal.due(NOW + LEASE) == [KEY]

    def test_what_was_counted_of_a_closed_invoice_stays_billed(self, journal: SqlJournal) -> None:
        """Giving it up for a recount would let another invoice bill the same usage again (R6)."""
        claim = journal.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        journal.freeze(claim, [], [frozen()], NOW)
        journal.settle(claim, [by_hand(EntryKind.HELD)], Outcome(state=State.HELD, reason="x"))
        assert journal.close_by_hand(KEY, by_hand(EntryKind.CLOSED, NOW + MINUTE))
        assert not journal.discard_tallies(KEY, by_hand(EntryKind.DISCARDED, NOW + MINUTE))
        assert [other.invoice_id for other in journal.billed(other_key(1), [frozen().span])] == [
            KEY.invoice_id
        ]
