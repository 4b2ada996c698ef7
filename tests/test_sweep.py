"""The sweep rings, finds and acknowledges, each harmless when done twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from builders import KEY, MINUTE, NOW, delivery, other_key
from builders import invoice as an_invoice
from fakes import FakeClock, FakePlatform, lost
from structlog.testing import capture_logs

from worker.domain import InvoiceKey, InvoiceState, Mode
from worker.doorbell import Doorbell
from worker.errors import PlatformRefused, PlatformUnavailable, QueueUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.metrics import SWEEP_ROUNDS, Numbers, families
from worker.record import EntryKind
from worker.sweep import Sweep, Swept, sweep_until


class QuietDoorbell(Doorbell):
    """Remembers for whom it was rung."""

    def __init__(self) -> None:
        self.rung: list[InvoiceKey] = []
        self.broken = False

    def ring(self, key: InvoiceKey) -> None:
        """Take note."""
        if self.broken:
            raise QueueUnavailable("Redis: ConnectionError")
        self.rung.append(key)

    def note_sweep(self, at: datetime) -> None:
        """Take no note."""


class LateFailing(FakePlatform):
    """Does not answer when it is asked for a second page the first time."""

    def pending_invoices(self, offset: int) -> Sequence[str]:
        """Fail once, behind the first page."""
        if offset and "late" not in self.steps:
            self.steps.append("late")
            raise PlatformUnavailable("503")
        return super().pending_invoices(offset)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep on an empty journal and a platform with five pending invoices."""
    invoices = {
        other_key(n).invoice_id: replace(an_invoice(), id=other_key(n).invoice_id) for n in range(5)
    }
    return Sweep(
        journal=SqliteJournal(tmp_path / "journal.db"),
        platforms={"billforward": FakePlatform(invoices=invoices)},
        doorbell=QuietDoorbell(),
        now=FakeClock(),
        find_every=10 * MINUTE,
        find_pages=2,
    )


def platform_of(sweep: Sweep) -> FakePlatform:
    """Return the sweep's platform."""
    platform = sweep.platforms["billforward"]
    assert isinstance(platform, FakePlatform)
    return platform


def doorbell_of(sweep: Sweep) -> QuietDoorbell:
    """Return the sweep's doorbell."""
    assert isinstance(sweep.doorbell, QuietDoorbell)
    return sweep.doorbell


def clock_of(sweep: Sweep) -> FakeClock:
    """Return the sweep's clock."""
    assert isinstance(sweep.now, FakeClock)
    return sweep.now


def test_pending_invoices_that_nobody_told_of_are_found_page_by_page(sweep: Sweep) -> None:
    """A few pages a round, from where the last one ended; then it rests before it looks anew."""
    found = [sweep.round().found for _ in range(4)]
    assert found == [4, 1, 0, 0]
    assert platform_of(sweep).steps.count("pending") == 4  # the last found no more, then it rests
    clock_of(sweep).advance(minutes=11)
    assert sweep.round().found == 0
    assert platform_of(sweep).steps.count("pending") == 6
    history = sweep.journal.history(other_key(3))
    assert history is not None
    assert [entry.kind for entry in history.entries] == [EntryKind.FOUND]
    assert set(doorbell_of(sweep).rung) == {other_key(n) for n in range(5)}


def test_the_first_round_looks_though_the_clock_runs_on(sweep: Sweep) -> None:
    """A clock that tells a later time each time it is asked keeps no round from looking."""
    clock = clock_of(sweep)

    def running() -> datetime:
        clock.advance(seconds=0.000001)
        return clock()

    assert replace(sweep, now=running).round().found == 4


def test_known_and_issued_invoices_are_not_found_again(sweep: Sweep) -> None:
    """What a delivery told of, and what is not pending, is left alone."""
    sweep.journal.record_delivery(delivery(invoice_id=other_key(0).invoice_id), NOW)
    invoices = platform_of(sweep).invoices
    issued = other_key(1).invoice_id
    invoices[issued] = replace(invoices[issued], state=InvoiceState.UNPAID)
    assert sweep.round().found + sweep.round().found == 3


def test_a_platform_that_does_not_answer_stops_nothing_else(sweep: Sweep) -> None:
    """Due invoices are rung for first; the platform is asked again in the next round."""
    sweep.journal.record_delivery(delivery(), NOW)
    platform_of(sweep).failures["pending"] = [PlatformUnavailable("503")]
    assert sweep.round() == Swept(rung=1, found=0, acknowledged=0)
    assert doorbell_of(sweep).rung == [KEY]
    assert sweep.round().found == 4


def test_what_was_found_before_a_page_failed_counts(sweep: Sweep) -> None:
    """A platform that stops in the middle costs the rest of that look only."""
    platform = LateFailing(invoices=platform_of(sweep).invoices)
    one = replace(sweep, platforms={"billforward": platform})
    assert one.round() == Swept(rung=0, found=2, acknowledged=0)
    assert one.round() == Swept(rung=2, found=3, acknowledged=0)


def test_a_broken_doorbell_fails_the_round_and_skips_no_page(sweep: Sweep, tmp_path: Path) -> None:
    """It is not the platform's fault, and what the page named is found when it rings again."""
    numbers = Numbers(tmp_path / "metrics")
    broken = replace(sweep, numbers=numbers, _offsets={}, _rests_until={})
    doorbell_of(sweep).broken = True
    with pytest.raises(QueueUnavailable), capture_logs() as logs:
        broken.round()
    assert logs == []
    doorbell_of(sweep).broken = False
    assert broken.round() == Swept(rung=1, found=3, acknowledged=0)
    assert broken.round() == Swept(rung=4, found=1, acknowledged=0)
    assert len(sweep.journal.invoices()) == 5
    rounds = {
        sample.labels["result"]: sample.value
        for family in families(tmp_path / "metrics")
        for sample in family.samples
        if sample.name == f"{SWEEP_ROUNDS.name}_total"
    }
    assert rounds == {"failed": 1, "done": 2}


def test_two_sweeps_at_once_are_harmless(sweep: Sweep) -> None:
    """Both ring, and each invoice is in the journal once."""
    other = replace(sweep, doorbell=QuietDoorbell(), _offsets={}, _rests_until={})
    for one in (sweep, other, sweep, other):
        one.round()
    assert len(sweep.journal.invoices()) == 5


def owing(sweep: Sweep, *ids: str) -> None:
    """Let acknowledgements be owed."""
    for number, name in enumerate(ids):
        key = other_key(100 + number)
        one = delivery(id=name, invoice_id=key.invoice_id, owes_ack=True)
        sweep.journal.record_delivery(one, NOW + timedelta(seconds=number))


def test_what_is_owed_is_acknowledged_once(sweep: Sweep) -> None:
    """After the delivery is stored, by the sweep alone, and not again."""
    owing(sweep, "NOT-1", "NOT-2")
    assert sweep.round().acknowledged == 2
    assert sweep.round().acknowledged == 0
    acks = [step for step in platform_of(sweep).steps if step.startswith("ack")]
    assert acks == ["ack NOT-1", "ack NOT-2"]


def test_in_observe_mode_acknowledgements_stay_owed(sweep: Sweep) -> None:
    """The platform is told nothing until the mode is write; then it is told all of it, once."""
    owing(sweep, "NOT-1", "NOT-2")
    observing = replace(sweep, mode=Mode.OBSERVE)
    assert observing.round().acknowledged == 0
    assert set(platform_of(sweep).steps) == {"pending"}
    assert sweep.journal.acks_owed("billforward") == ["NOT-1", "NOT-2"]
    assert sweep.round().acknowledged == 2
    assert sweep.journal.acks_owed("billforward") == []


def test_an_acknowledgement_without_an_answer_is_owed_still(sweep: Sweep) -> None:
    """It is sent again in the next round; sending it twice does no harm."""
    owing(sweep, "NOT-1", "NOT-2")
    platform_of(sweep).failures["ack NOT-1"] = [lost("ack")]
    assert sweep.round().acknowledged == 0
    assert sweep.round().acknowledged == 2


def test_a_refused_acknowledgement_does_not_stand_in_the_way(sweep: Sweep) -> None:
    """What the platform does not know any more is owed no more; the others go out."""
    owing(sweep, "NOT-1", "NOT-2")
    platform_of(sweep).failures["ack NOT-1"] = [PlatformRefused("404")]
    assert sweep.round().acknowledged == 2
    assert sweep.round().acknowledged == 0


def test_a_failing_round_is_tried_again(sweep: Sweep) -> None:
    """Redis down in one round costs that round only; asked to stop, the sweep ends."""
    sweep.journal.record_delivery(delivery(), NOW)
    doorbell_of(sweep).broken = True
    stop = threading.Event()
    running = threading.Thread(target=sweep_until, args=(stop, sweep, timedelta(seconds=0.01)))
    running.start()
    try:
        stop.wait(0.1)
        doorbell_of(sweep).broken = False
        for _ in range(200):
            if doorbell_of(sweep).rung:
                break
            stop.wait(0.02)
    finally:
        stop.set()
        running.join(10)
    assert not running.is_alive()
    assert KEY in doorbell_of(sweep).rung
