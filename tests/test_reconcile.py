"""One run after the other brings an invoice to its end, whatever fails on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY, LEASE, MINUTE, NOW, delivery, frozen, other_key
from builders import charge as a_charge
from builders import component as a_component
from builders import invoice as an_invoice
from builders import rules as some_rules
from fakes import FakeClock, FakePlatform, FakeSource, lost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.domain import Invoice, InvoiceState, Mode, Owner, Rules, Subject
from worker.errors import (
    JournalUnavailable,
    PlatformRefused,
    PlatformUnavailable,
    ReconcilerError,
    SourceInvalid,
    SourceUnavailable,
)
from worker.journal.codec import canonical
from worker.journal.sqlite import SqliteJournal
from worker.ports import Ports
from worker.reconcile import hold, reconcile
from worker.record import Entry, EntryKind, History, InvoiceRow, Outcome, State
from worker.writes import ChargeWrite, Exchange, IssueWrite


@dataclass
class World:
    """A platform, a source, a journal and a clock, with one delivered notification."""

    journal: SqliteJournal
    platform: FakePlatform
    source: FakeSource
    clock: FakeClock
    rules: Rules
    stop_after: int = 10**9  # ask the worker to end after so many steps

    def run(self, key: object = KEY, owner: str = "one") -> Outcome | None:
        """Let a worker look at the invoice now."""
        assert key == KEY
        return reconcile(KEY, owner=owner, ports=self.ports(), rules=self.rules)

    def ports(self) -> Ports:
        """Return what a run needs."""
        return Ports(
            platform=self.platform,
            sources={"events": self.source},
            journal=self.journal,
            now=self.clock,
            random=lambda: 0.0,
            stopping=lambda: len(self.platform.steps) >= self.stop_after,
        )

    def run_until_settled(self, most: int = 20) -> InvoiceRow:
        """Run again whenever the journal says it is due."""
        for _ in range(most):
            self.run()
            row = self.history.row
            if row.due_at is None:
                return row
            self.clock.now = max(self.clock.now, row.due_at)
        raise AssertionError(f"not settled: {self.history.row}")

    @property
    def history(self) -> History:
        """What the journal knows."""
        history = self.journal.history(KEY)
        assert history is not None
        return history

    def kinds(self) -> list[EntryKind]:
        """The kinds of the entries so far."""
        return [entry.kind for entry in self.history.entries]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The world of a test."""
    return a_world(tmp_path)


def a_world(folder: Path) -> World:
    """Make a world in which everything goes well."""
    journal = SqliteJournal(folder / "journal.db")
    journal.record_delivery(delivery(), NOW)
    return World(journal, FakePlatform(), FakeSource(), FakeClock(), some_rules())


def test_usage_is_counted_written_and_issued(world: World) -> None:
    """The main path: count, freeze, write, read back, issue, read back, in this order."""
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.ISSUED, "Unpaid, 6.05 USD")
    assert world.platform.steps == [
        *("invoice", "charges", "write CHG-1", "charges"),
        *("invoice", "issue", "invoice", "charges"),
    ]
    assert world.kinds() == [
        EntryKind.DELIVERED,
        EntryKind.CLAIMED,
        EntryKind.FETCHED,
        EntryKind.COUNTED,
        EntryKind.CHARGE_INTENT,
        EntryKind.CHARGE_ANSWER,
        EntryKind.ISSUE_INTENT,
        EntryKind.ISSUE_ANSWER,
        EntryKind.ISSUED,
    ]
    assert [tally.quantity for tally in world.history.tallies] == [105]


def told_of(world: World, kind: EntryKind) -> list[tuple[str | None, str | None]]:
    """Return what was sent and answered, by the entries of a kind."""
    data = [entry.data for entry in world.history.entries if entry.kind is kind]
    return [(one.get("request"), one.get("answer")) for one in data]


def test_what_was_sent_and_answered_is_journaled(world: World) -> None:
    """With the answer of each write, beside what was read from it."""
    world.run()
    assert told_of(world, EntryKind.CHARGE_ANSWER) == [("POST /charges/CHG-1 105", "200 written")]
    issued = (f"POST /invoices/{INV}/issue", "200 written")
    assert told_of(world, EntryKind.ISSUE_ANSWER) == [issued]
    assert told_of(world, EntryKind.ISSUED) == [(None, None)]


def test_a_refusal_is_journaled_as_it_was_answered(world: World) -> None:
    """Of a write and of the issue, with what was sent."""
    for step in ("write CHG-1", "issue"):
        world.platform.failures[step] = [PlatformUnavailable("429")]
    world.run_until_settled()
    assert [answer for _, answer in told_of(world, EntryKind.CHARGE_ANSWER)] == [
        "429",
        "200 written",
    ]
    assert [answer for _, answer in told_of(world, EntryKind.ISSUE_ANSWER)] == [
        "429",
        "200 written",
    ]


def test_what_was_sent_and_not_answered_is_journaled_with_the_failure(world: World) -> None:
    """The intent stays open; the run's end tells what was sent, of the first of several."""
    world.platform.failures |= {step: [lost("it")] for step in ("write CHG-1", "issue")}
    world.platform.lost_answers = {"write CHG-1", "issue"}
    world.run_until_settled()
    assert told_of(world, EntryKind.FAILED) == [
        ("POST /charges/CHG-1 105", "it: no answer in time"),
        (f"POST /invoices/{INV}/issue", "it: no answer in time"),
    ]
    assert told_of(world, EntryKind.CHARGE_ANSWER) == []
    assert told_of(world, EntryKind.ISSUE_ANSWER) == []


def test_a_platform_that_tells_nothing_is_journaled_without(world: World) -> None:
    """A write that came with another's request leaves no empty words."""

    class Silent(FakePlatform):
        def recalculate(self, *given: Any) -> Iterator[ChargeWrite]:
            return (replace(write, exchange=None) for write in super().recalculate(*given))

        def issue(self, invoice: Invoice) -> IssueWrite:
            return replace(super().issue(invoice), exchange=None)

    world.platform = Silent()
    assert world.run_until_settled().state is State.ISSUED
    assert not any({"request", "answer"} & set(entry.data) for entry in world.history.entries)


def test_a_write_adds_little_to_the_journal(world: World) -> None:
    """Whatever is answered, an entry stays under 10 KB with the longest that is kept."""
    longest = Exchange(*["\U0001f4a9" * 400 + "… (1048576 bytes)"] * 2)

    class Talkative(FakePlatform):
        def recalculate(self, *given: Any) -> Iterator[ChargeWrite]:
            return (replace(write, exchange=longest) for write in super().recalculate(*given))

    world.platform = Talkative()
    world.run()
    sizes = [len(canonical(entry.data)) for entry in world.history.entries]
    assert 9_000 < max(sizes) < 10_000
    assert world.journal.verify(KEY) is None


def test_a_second_run_does_nothing(world: World) -> None:
    """A doorbell that rings again finds no work and sends nothing."""
    world.run()
    before = list(world.platform.steps)
    assert world.run() is None
    assert world.platform.steps == before


def test_only_charges_that_differ_are_written(world: World) -> None:
    """Most charges of a real invoice stand at their count already, at 0."""
    charges = {f"CHG-{n}": a_charge(id=f"CHG-{n}", component=f"C{n}") for n in range(5)}
    world.platform.charges = charges
    world.source.values = {f"m{n}": 7 * (n == 3) for n in range(5)}
    world.rules = some_rules(*(a_component(name=f"C{n}", metric=f"m{n}") for n in range(5)))
    assert world.run_until_settled().state is State.ISSUED
    assert [s for s in world.platform.steps if s.startswith("write")] == ["write CHG-3"]
    assert len(world.source.asked) == 1  # one call for all charges
    assert len(world.history.tallies) == 5


def test_an_invoice_without_usage_is_issued_as_it_is(world: World) -> None:
    """A first invoice goes out without a count and without a write."""
    world.platform.charges = {}
    assert world.run_until_settled().state is State.ISSUED
    assert world.source.asked == []
    assert EntryKind.CHARGE_INTENT not in world.kinds()


def test_an_unmapped_component_holds_and_a_replay_issues(world: World) -> None:
    """Nothing is written while it is held; after the mapping a replay goes through (R6)."""
    world.platform.charges["CHG-2"] = a_charge(id="CHG-2", component="Fax pages")
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.HELD
    assert 'component "Fax pages" has no source' in outcome.reason
    assert world.platform.steps == ["invoice", "charges"]
    world.rules = some_rules(a_component(), a_component(name="Fax pages", metric="fax"))
    world.source.values["fax"] = 4
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock()))
    assert world.run_until_settled().state is State.ISSUED
    assert world.platform.issues == 1


def test_skipped_invoices_are_left_untouched(world: World) -> None:
    """A Trial is fetched once and nothing else happens to it."""
    world.platform.invoices[INV] = an_invoice(type="Trial")
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.SKIPPED
    assert world.platform.steps == ["invoice"]


def test_a_wait_spends_no_attempt(world: World) -> None:
    """An invoice the platform does not know yet is looked for again, then held."""
    known = world.platform.invoices.pop(INV)
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.attempt) == (State.WAITING, 0)
    assert world.run() is None  # not due yet
    world.clock.now = outcome.due_at or NOW
    world.platform.invoices[INV] = known
    assert world.run_until_settled().state is State.ISSUED


def test_counting_waits_for_a_source_that_is_behind(world: World) -> None:
    """Nothing is counted before the source vouches for the whole period."""
    world.source.has_up_to = NOW - timedelta(days=1)
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.WAITING
    assert world.source.asked == []
    world.source.has_up_to = NOW
    assert world.run_until_settled().state is State.ISSUED


@pytest.mark.parametrize("step", ["invoice", "charges", "write CHG-1", "issue"])
def test_a_passing_failure_is_tried_again_on_schedule(world: World, step: str) -> None:
    """An unreachable platform costs an attempt and a delay, and the next run goes on."""
    world.platform.failures[step] = [PlatformUnavailable("503")]
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.reason, outcome.attempt) == (State.RETRYING, "503", 1)
    assert outcome.due_at == NOW + timedelta(seconds=5)
    assert world.run_until_settled().state is State.ISSUED
    assert world.platform.issues == 1


def test_delays_grow_and_the_last_attempt_holds(world: World) -> None:
    """After the stated number of failures in a row a person must look, told the last error."""
    world.platform.failures["invoice"] = [PlatformUnavailable(f"error {n}") for n in range(9)]
    delays = []
    outcome = world.run()
    while outcome is not None and outcome.due_at is not None:
        delays.append(outcome.due_at - world.clock.now)
        world.clock.now = outcome.due_at
        outcome = world.run()
    assert delays == [timedelta(seconds=5), timedelta(seconds=30)]
    assert outcome is not None
    assert outcome.state is State.HELD
    assert outcome.reason == "exhausted after 3 attempts; the last: error 2"


def test_retry_after_is_honoured_within_reason(world: World) -> None:
    """The platform's own wait counts, up to an hour; a shorter one does not shorten ours."""
    for asked, waited in (
        (timedelta(minutes=10), timedelta(minutes=10)),
        (timedelta(days=365), timedelta(hours=1)),
    ):
        error = PlatformUnavailable("429", retry_after=asked)
        world.platform.failures["invoice"] = [error]
        world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock()))
        outcome = world.run()
        assert outcome is not None
        assert outcome.due_at == world.clock() + waited
    world.platform.failures["invoice"] = [
        PlatformUnavailable("429", retry_after=timedelta(seconds=-9))
    ]
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock()))
    outcome = world.run()
    assert outcome is not None
    assert outcome.due_at == world.clock() + timedelta(seconds=5)


def test_a_failed_charge_stops_the_others_and_nothing_is_issued(world: World) -> None:
    """A failure between writes leaves a half-written invoice pending, and is resumed (R5)."""
    world.platform.charges = {
        f"CHG-{n}": a_charge(id=f"CHG-{n}", component=f"C{n}") for n in range(3)
    }
    world.rules = some_rules(*(a_component(name=f"C{n}", metric=f"m{n}") for n in range(3)))
    world.source.values = {f"m{n}": n + 1 for n in range(3)}
    world.platform.failures["write CHG-1"] = [PlatformUnavailable("503")]
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.RETRYING
    assert world.platform.issues == 0
    assert world.platform.charges["CHG-0"].quantity == 1
    # meanwhile the invoice's version moves and the source would answer something else
    world.platform.invoices[INV] = an_invoice(version=2)
    world.source.values = {f"m{n}": 99 for n in range(3)}
    assert world.run_until_settled().state is State.ISSUED
    assert [c.quantity for c in world.platform.charges.values()] == [1, 2, 3]
    assert len(world.source.asked) == 1  # counted once


def test_a_refused_charge_holds(world: World) -> None:
    """What the platform refuses for good is held with its reason; nothing is issued."""
    world.platform.failures["write CHG-1"] = [PlatformRefused("400 ValidationError: no")]
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.HELD, "400 ValidationError: no")
    assert world.platform.issues == 0


def test_a_lost_answer_to_a_write_is_read_back_after_a_while(world: World) -> None:
    """The write may be applied late: the next one waits, then reads before it writes."""
    world.platform.failures["write CHG-1"] = [lost("write")]
    world.platform.lost_answers.add("write CHG-1")
    assert world.run_until_settled().state is State.ISSUED
    assert world.clock() >= NOW + world.rules.settle
    assert world.platform.steps.count("write CHG-1") == 1
    assert world.platform.issues == 1


def test_a_lost_answer_to_the_issue_never_issues_twice(world: World) -> None:
    """The invoice turns out issued: it is verified and done (R1)."""
    world.platform.failures["issue"] = [lost("issue")]
    world.platform.lost_answers.add("issue")
    assert world.run_until_settled().state is State.ISSUED
    assert world.platform.issues == 1
    assert world.platform.steps.count("issue") == 1


def test_an_issue_that_never_arrived_is_sent_again_after_a_while(world: World) -> None:
    """Only after the time in which the platform might still apply it."""
    world.platform.failures["issue"] = [lost("issue")]
    assert world.run_until_settled().state is State.ISSUED
    assert world.clock() >= NOW + world.rules.settle
    assert world.platform.steps.count("issue") == 2
    assert world.platform.issues == 1


def test_an_issued_invoice_that_shows_pending_is_not_issued_again(world: World) -> None:
    """The platform said Unpaid and shows Pending: wait for it, then let a person decide."""
    world.run()
    world.platform.invoices[INV] = an_invoice(version=2)
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock()))
    outcome = world.run_until_settled()
    assert outcome.state is State.HELD
    assert "somebody took it back" in outcome.reason
    assert world.platform.issues == 1


def test_an_issue_that_was_answered_is_never_repeated(world: World) -> None:
    """The platform answers Unpaid and goes on showing Pending: it is not issued again (R1)."""

    class Stale(FakePlatform):
        def invoice(self, invoice_id: str) -> Invoice | None:
            self.steps.append("invoice")
            return an_invoice()

    world.platform = Stale()
    row = world.run_until_settled()
    assert row.state is State.HELD
    assert "somebody took it back" in row.reason
    assert world.platform.issues == 1
    assert world.clock() >= NOW + world.rules.settle


def test_an_invoice_issued_by_others_in_the_middle_is_verified(world: World) -> None:
    """Issued over our heads with half our numbers is held, with the charges named."""
    world.platform.failures["write CHG-1"] = [PlatformUnavailable("503")]
    world.run()
    world.platform.invoices[INV] = an_invoice(state=InvoiceState.UNPAID, version=2)
    outcome = world.run_until_settled()
    assert outcome.state is State.HELD
    assert "not as we counted it" in outcome.reason
    assert "CHG-1" in outcome.reason
    assert world.platform.issues == 0


def test_a_charge_that_joined_after_counting_holds(world: World) -> None:
    """Only what was counted is issued."""
    world.platform.failures["write CHG-1"] = [PlatformUnavailable("503")]
    world.run()
    world.platform.charges["CHG-2"] = a_charge(id="CHG-2", component="Calls")
    outcome = world.run_until_settled()
    assert outcome.state is State.HELD
    assert "joined the invoice after it was counted" in outcome.reason
    assert world.platform.issues == 0


def test_a_quantity_that_does_not_stick_is_not_issued(world: World) -> None:
    """Values are read back before the issue, not assumed (R1)."""

    class Forgetful(FakePlatform):
        def usage_charges(self, invoice: object) -> Sequence[object]:  # type: ignore[override]
            self.steps.append("charges")
            return [replace(c, quantity=Decimal(0)) for c in self.charges.values()]

    world.platform = Forgetful()
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.RETRYING
    assert "still shows another quantity" in outcome.reason
    assert world.platform.issues == 0


def test_a_period_billed_elsewhere_holds(world: World) -> None:
    """The same usage is never billed on two invoices."""
    other = other_key(2)
    world.journal.wake(other, Entry(kind=EntryKind.REPLAYED, at=NOW))
    claim = world.journal.claim(other, "two", NOW, LEASE)
    assert claim is not None
    world.journal.freeze(claim, [], [frozen()], NOW)
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.HELD
    assert other.invoice_id in outcome.reason
    assert world.platform.steps == ["invoice", "charges"]
    assert world.source.asked == []


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (SourceUnavailable("timeout"), State.RETRYING, 'source "events": timeout'),
        (SourceInvalid("no table usage"), State.HELD, 'source "events": no table usage'),
        (KeyError("boom"), State.HELD, 'source "events" crashed: KeyError'),
    ],
)
def test_a_failing_source_is_named(world: World, error: Exception, state: State, told: str) -> None:
    """Unreachable is tried again, wrong or crashing is held, and none is ever zero (R4)."""
    world.source.failures = [error]
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (state, told)
    assert world.platform.steps == ["invoice", "charges"]


def test_a_taken_invoice_is_left_to_its_worker(world: World) -> None:
    """A second worker finds it claimed and sends nothing."""
    claim = world.journal.claim(KEY, "two", world.clock(), LEASE)
    assert claim is not None
    assert world.run() is None
    assert world.platform.steps == []


def test_a_worker_that_lost_its_lease_stops_before_the_next_write(world: World) -> None:
    """Whoever took over goes on; the old worker neither writes nor settles."""

    class Slow(FakePlatform):
        def usage_charges(self, invoice: object) -> Sequence[object]:  # type: ignore[override]
            self.steps.append("charges")
            world.clock.advance(minutes=6)
            world.journal.claim(KEY, "two", world.clock(), LEASE)
            return list(self.charges.values())

    world.platform = Slow()
    assert world.run() is None
    assert world.platform.steps == ["invoice", "charges"]
    assert world.history.row.lease_owner == "two"


def test_a_defect_of_the_program_is_journaled_and_raised(world: World) -> None:
    """A crash of our own costs an attempt, is told, and does not spin."""
    world.platform.failures["invoice"] = [TypeError("oops")]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        world.run()
    row = world.history.row
    assert (row.state, row.reason) == (State.RETRYING, "unexpected TypeError in the program")
    assert row.due_at is not None
    assert row.due_at > world.clock()


def test_a_journal_that_fails_leaves_the_claim_to_run_out(world: World) -> None:
    """Without the journal nothing is written on the platform; the lease frees the invoice."""

    class Failing(SqliteJournal):
        def freeze(self, *_: object) -> list[object]:  # type: ignore[override]
            raise JournalUnavailable("disk is full")

        def settle(self, *_: object) -> None:
            raise JournalUnavailable("disk is full")

    good = world.journal
    world.journal = Failing(good.path)
    with pytest.raises(JournalUnavailable):
        world.run()
    assert world.platform.steps == ["invoice", "charges"]
    world.journal = good
    world.clock.advance(minutes=5)
    assert world.run_until_settled().state is State.ISSUED


@pytest.mark.parametrize("point", range(1, 16))
def test_a_worker_killed_at_any_commit_leaves_work_that_ends_well(world: World, point: int) -> None:
    """Killed before or after each commit, the next run ends with one right issue (R5)."""
    crash_at(world, point)
    world.clock.now += LEASE
    assert world.run_until_settled().state is State.ISSUED
    assert world.platform.issues == 1
    assert world.platform.charges["CHG-1"].quantity == 105


@pytest.mark.parametrize("steps", range(1, 7))
def test_a_worker_asked_to_end_stops_after_its_current_call(world: World, steps: int) -> None:
    """It journals, gives up the claim at once, spends no attempt, and the next one goes on."""
    world.stop_after = steps
    outcome = world.run()
    assert outcome is not None
    row = world.history.row
    if steps < 5:  # once it is issued, reading back is all that is left
        assert (row.state, row.attempt, row.due_at) == (State.DUE, 0, NOW)
        assert len(world.platform.steps) == steps
        assert world.kinds()[-1] is EntryKind.STOPPED
    assert row.lease_owner is None
    world.stop_after = 10**9
    assert world.run_until_settled().state is State.ISSUED
    assert world.clock() == NOW  # no write was left without an answer
    assert world.platform.issues == 1


def test_an_invoice_that_left_pending_during_the_writes_is_not_issued(world: World) -> None:
    """It is read once more just before: what others issued meanwhile is never issued by us."""

    class Meanwhile(FakePlatform):
        def _written(self, charge_id: str, quantity: int) -> ReconcilerError | None:
            result = super()._written(charge_id, quantity)
            self.invoices[INV] = an_invoice(state=InvoiceState.PAID, version=2)
            return result

    world.platform = Meanwhile()
    row = world.run_until_settled()
    assert (row.state, row.reason) == (State.ISSUED, "Paid, 5.00 USD")
    assert world.platform.issues == 0


def test_workers_that_die_on_an_invoice_end_with_a_person(world: World) -> None:
    """A run that kills its process is not repeated for ever."""
    for _ in range(world.rules.max_attempts + 1):
        assert world.journal.claim(KEY, "dead", world.clock(), LEASE) is not None
        world.clock.advance(minutes=5)
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.due_at) == (State.HELD, None)
    assert "its workers died" in outcome.reason
    assert world.platform.steps == []


@pytest.mark.parametrize("name", ["Fax \ud800", "Fax\x00", "Fax\x1b[2J", "Fax\npages"])
def test_odd_characters_neither_break_the_journal_nor_reach_a_terminal(
    world: World, name: str
) -> None:
    """Whatever a platform calls a component, the invoice is held with one printable line."""
    world.platform.charges["CHG-2"] = a_charge(id="CHG-2", component=name)
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.HELD
    assert world.history.row.reason == outcome.reason
    assert outcome.reason.isprintable()


def test_tallies_that_are_billed_elsewhere_by_now_are_not_resumed(world: World) -> None:
    """Frozen, voided, billed on another invoice, and back as pending: that is held."""
    world.stop_after = 2
    world.run()  # asked to end before it counts
    claim = world.journal.claim(KEY, "one", world.clock(), LEASE)
    assert claim is not None
    world.journal.freeze(claim, [], [frozen()], NOW)
    skipped = Outcome(state=State.SKIPPED, reason="it is voided")
    world.journal.settle(claim, [Entry(kind=EntryKind.SKIPPED, at=NOW)], skipped)
    other = other_key(2)
    world.journal.wake(other, Entry(kind=EntryKind.REPLAYED, at=NOW))
    theirs = world.journal.claim(other, "two", NOW, LEASE)
    assert theirs is not None
    assert world.journal.freeze(theirs, [], [frozen()], NOW) == []
    world.stop_after = 10**9
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock()))
    row = world.run_until_settled()
    assert row.state is State.HELD
    assert other.invoice_id in row.reason
    assert world.platform.issues == 0


def test_an_invoice_can_be_held_without_a_platform(world: World) -> None:
    """What cannot be worked on as things are configured is held, once, unless it is not due."""
    outcome = hold(KEY, "no platform", owner="one", journal=world.journal, at=NOW)
    assert outcome is not None
    assert outcome.state is State.HELD
    assert (world.history.row.state, world.history.row.reason) == (State.HELD, "no platform")
    parked = Entry(kind=EntryKind.PARKED, at=NOW, data={"by": "ann", "reason": "a dispute"})
    assert world.journal.park(KEY, parked)
    before = world.history
    assert hold(KEY, "no platform", owner="two", journal=world.journal, at=NOW) is None
    assert world.history == before


STEPS = ["invoice", "charges", "write CHG-1", "write CHG-2", "issue"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(["refused for now", "lost"])), max_size=6
    ),
    applied=st.sets(st.sampled_from(STEPS)),
    crashes=st.lists(st.integers(1, 20), max_size=4),
)
def test_however_it_fails_it_is_issued_once_with_the_right_numbers(
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[tuple[str, str]],
    applied: set[str],
    crashes: list[int],
) -> None:
    """Any mix of failures, lost answers and killed workers ends in one right issue (R1, R5, R6)."""
    world = a_world(tmp_path_factory.mktemp("world"))
    world.rules = some_rules(
        a_component(), a_component(name="Calls", metric="call"), max_attempts=99
    )
    world.source.values = {"text_message": 105, "call": 7}
    world.platform.charges["CHG-2"] = a_charge(id="CHG-2", component="Calls")
    world.platform.lost_answers = applied
    for step, how in faults:
        error: ReconcilerError = lost(step) if how == "lost" else PlatformUnavailable("503")
        if how == "lost" or step not in applied:
            world.platform.failures.setdefault(step, []).append(error)
    for point in crashes:
        crash_at(world, point)
        world.clock.now += LEASE + MINUTE
    outcome = world.run_until_settled(most=60)
    assert outcome.state is State.ISSUED
    assert world.platform.issues == 1
    assert [c.quantity for c in world.platform.charges.values()] == [105, 7]


def crash_at(world: World, point: int) -> None:
    """Run a worker that dies, as if killed, just before or after a commit to the journal."""

    class Killed(BaseException):
        pass

    class Mortal(SqliteJournal):
        left = point

        def _tick(self) -> None:
            Mortal.left -= 1
            if Mortal.left == 0:
                raise Killed

        def append(self, *arguments: object) -> None:
            self._tick()
            super().append(*arguments)  # type: ignore[arg-type]
            self._tick()

        def freeze(self, *arguments: object) -> object:  # type: ignore[override]
            self._tick()
            result = super().freeze(*arguments)  # type: ignore[arg-type]
            self._tick()
            return result

        def settle(self, *arguments: object) -> None:
            self._tick()
            super().settle(*arguments)  # type: ignore[arg-type]
            self._tick()

    good, world.journal = world.journal, Mortal(world.journal.path)
    try:
        world.run()
    except Killed:
        pass
    finally:
        world.journal.close()
        world.journal = good


def test_usage_is_counted_by_the_metadata_of_its_owner(world: World) -> None:
    """The source is asked for the tenant's id that the platform keeps with the account."""
    subject = Subject.of("account.metadata.tenant")
    world.rules = some_rules(a_component(subject=subject))
    world.platform.kept = {(Owner.ACCOUNT, "ACC-1"): {"tenant": "t-7"}}
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.ISSUED
    assert [query.subject for (query,) in world.source.asked] == ["t-7"]
    assert world.history.tallies[0].span.subject == "t-7"


def test_frozen_tallies_are_issued_whatever_the_metadata_is_by_then(world: World) -> None:
    """What is frozen is written as it is; the metadata is not read again."""
    world.rules = some_rules(a_component(subject=Subject.of("account.metadata.tenant")))
    world.platform.kept = {(Owner.ACCOUNT, "ACC-1"): {"tenant": "t-7"}}
    world.platform.failures = {"write CHG-1": [PlatformUnavailable("no connection")]}
    world.run()
    world.platform.kept = {}
    assert world.run_until_settled().state is State.ISSUED
    assert [query.subject for (query,) in world.source.asked] == ["t-7"]


def test_a_watermark_without_a_zone_holds(world: World) -> None:
    """A source of others that answers such a moment is named, and nothing is counted."""
    world.source.has_up_to = NOW.replace(tzinfo=None)
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.HELD
    assert outcome.reason.startswith('source "events": its watermark')
    assert world.source.asked == []
    assert world.platform.issues == 0


def test_in_observe_mode_nothing_is_written(world: World) -> None:
    """Everything is counted and priced by the platform's dry run; no write, no frozen tally."""
    world.rules = some_rules(mode=Mode.OBSERVE)
    outcome = world.run()
    assert outcome is not None
    assert (outcome.state, outcome.due_at) == (State.OBSERVED, None)
    assert outcome.reason == "would bill 6.05 USD; the mode is observe"
    assert world.platform.steps == ["invoice", "charges", "preview"]
    assert world.history.tallies == ()
    (line,) = world.history.entries[-1].data["charges"]
    assert (line["quantity_before"], line["quantity"], line["amount"]) == ("0", "105", "1.05")


def test_an_observed_invoice_is_issued_once_writing_is_allowed(world: World) -> None:
    """A replay in mode write bills what is counted then."""
    world.rules = some_rules(mode=Mode.OBSERVE)
    world.run()
    world.rules = some_rules()
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock.now))
    assert world.run_until_settled().state is State.ISSUED
    assert world.platform.issues == 1


def test_what_was_begun_is_held_when_the_mode_becomes_observe(world: World) -> None:
    """Numbers that were frozen for writing are not written in observe mode."""
    world.platform.failures = {"write CHG-1": [PlatformUnavailable("no connection")]}
    world.run()
    world.rules = some_rules(mode=Mode.OBSERVE)
    world.clock.advance(hours=1)
    before = len(world.platform.steps)
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.HELD
    assert "the mode is observe" in outcome.reason
    assert world.platform.steps[before:] == ["invoice", "charges"]


def test_an_invoice_that_others_issue_is_skipped_in_observe_mode(world: World) -> None:
    """Observing a team that still issues by hand holds nothing."""
    world.rules = some_rules(mode=Mode.OBSERVE)
    world.run()
    world.platform.invoices[INV] = an_invoice(state=InvoiceState.UNPAID, version=2)
    world.journal.wake(KEY, Entry(kind=EntryKind.REPLAYED, at=world.clock.now))
    outcome = world.run()
    assert outcome is not None
    assert outcome.state is State.SKIPPED
