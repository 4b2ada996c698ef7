"""The sweep: the safety net under everything that only rings.

It rings again for every invoice that is due, unclaimed and unfinished (Redis may have lost the
job, a worker may have died), finds pending invoices no notification told of, and acknowledges
notifications. Any number of sweeps may run at once: each step is harmless when done twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

import structlog

from worker.domain import InvoiceKey, Mode
from worker.doorbell import Doorbell
from worker.errors import PermanentError, ReconcilerError, TransientError
from worker.metrics import SWEEP_AT, SWEEP_FINDINGS, SWEEP_ROUNDS, Numbers
from worker.ports import BillingPlatform, Journal
from worker.record import Entry, EntryKind

log = structlog.get_logger("sweep")

_MOST_RUNG = 10_000


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round did."""

    rung: int  # invoices rung for
    found: int  # pending invoices nobody had told of
    acknowledged: int  # notifications


@dataclass(slots=True, kw_only=True)
class Sweep:
    """Makes rounds; remembers only how far it has looked through each platform's invoices."""

    journal: Journal
    platforms: Mapping[str, BillingPlatform]
    doorbell: Doorbell
    now: Callable[[], datetime]
    find_every: timedelta  # between two looks through a platform's pending invoices
    find_pages: int  # of pending invoices, in one round at most
    mode: Mode = Mode.WRITE  # in observe, platforms are only read: acknowledgements stay owed
    numbers: Numbers = field(default_factory=Numbers)
    _offsets: dict[str, int] = field(default_factory=dict)
    _rests_until: dict[str, datetime] = field(default_factory=dict)

    def round(self) -> Swept:
        """Do everything once; raises JournalUnavailable or QueueUnavailable.

        A platform that does not answer is logged, and looked at again in the next round.
        """
        try:
            swept = self._round()
        except BaseException:
            self.numbers.add(SWEEP_ROUNDS, "failed")
            raise
        self.numbers.add(SWEEP_ROUNDS, "done")
        self.numbers.raise_to(SWEEP_AT, self.now().timestamp())
        for finding, number in asdict(swept).items():
            self.numbers.add(SWEEP_FINDINGS, finding, amount=number)
        return swept

    def _round(self) -> Swept:
        due = self.journal.due(self.now(), _MOST_RUNG)
        for key in due:
            self.doorbell.ring(key)
        found = acknowledged = 0
        for name, platform in self.platforms.items():
            if self.mode is Mode.WRITE:
                acknowledged += self._acknowledge(name, platform)
            found += self._find(name, platform)
        return Swept(len(due), found, acknowledged)

    def _find(self, name: str, platform: BillingPlatform) -> int:
        """Wake the pending invoices that the journal does not know, a few pages a round.

        Invoices that are issued meanwhile shift the pages; what that hides, the next look shows.
        A page that could not be woken is looked at again.
        """
        now = self.now()
        if now < self._rests_until.get(name, now):
            return 0
        found = 0
        for _ in range(self.find_pages):
            offset = self._offsets.get(name, 0)
            try:
                keys = [InvoiceKey(name, one) for one in platform.pending_invoices(offset)]
            except (TransientError, PermanentError) as error:
                log.warning("pending_not_read", platform=name, reason=str(error))
                break
            if not keys:
                self._offsets[name] = 0
                self._rests_until[name] = self.now() + self.find_every
                break
            found += self._wake_unknown(keys)
            self._offsets[name] = offset + len(keys)
        return found

    def _wake_unknown(self, keys: Sequence[InvoiceKey]) -> int:
        known = self.journal.known(keys)
        unknown = [key for key in keys if key not in known]
        for key in unknown:
            self.journal.wake(key, Entry(kind=EntryKind.FOUND, at=self.now()))
            self.doorbell.ring(key)
        return len(unknown)

    def _acknowledge(self, name: str, platform: BillingPlatform) -> int:
        """Acknowledge what is owed; what the platform refuses for good is owed no more."""
        done = 0
        for delivery_id in self.journal.acks_owed(name):
            told = log.bind(platform=name, delivery=delivery_id)
            try:
                platform.acknowledge_delivery(delivery_id)
            except TransientError as error:
                told.warning("not_acknowledged", reason=str(error))
                break
            except PermanentError as error:
                told.warning("acknowledgement_refused", reason=str(error))
            self.journal.acknowledged(name, delivery_id)
            done += 1
        return done


def _told_nobody() -> None:
    """Stand in where no notices are set."""


def sweep_until(
    stop: threading.Event,
    sweep: Sweep,
    interval: timedelta,
    notify: Callable[[], object] = _told_nobody,
) -> None:
    """Make a round every interval until told to stop, and tell what is to be told after each.

    A round that fails is logged.
    """
    log.info("sweep_started", every_seconds=interval.total_seconds())
    while not stop.is_set():
        try:
            swept = sweep.round()
            sweep.doorbell.note_sweep(sweep.now())
            event = log.bind(**asdict(swept))
            tell = event.info if any(asdict(swept).values()) else event.debug
            tell("swept")
        except ReconcilerError as error:
            log.warning("sweep_failed", reason=str(error))
        notify()
        stop.wait(interval.total_seconds())
    log.info("sweep_stopped")
