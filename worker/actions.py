"""What people do with invoices, the same for the command line, the pages and the RQ dashboard.

Every act goes through the journal with who and why, and is safe to do twice: the journal decides
whether it changes anything. ActRefused says why it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.domain import InvoiceKey
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable, ReconcilerError
from worker.ports import Journal
from worker.record import Act, Entry, EntryKind, State, one_line
from worker.recount import Recount, recount_json

_MOST_REASON = 500


class ActRefused(ReconcilerError):
    """Nothing was changed; the text says why, and what can be done instead."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for an act, and why; both go into the record."""

    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every act needs."""

    journal: Journal
    doorbell: Doorbell
    now: Callable[[], datetime]

    def entry(self, kind: EntryKind, asked: Asked, **found: Any) -> Entry:
        """Make the entry that keeps an act, with what it found, JSON-ready."""
        data = {"by": asked.by, "reason": asked.reason, **found}
        return Entry(kind=kind, at=self.now(), data=data)

    def act(self, verb: str, platform: str, asked: Asked) -> Act:
        """Make the record of what concerns no single invoice."""
        return Act(at=self.now(), by=asked.by, verb=verb, reason=asked.reason, platform=platform)


def reason_of(text: str) -> str:
    """Return a reason as the record keeps it; ValueError: it is empty or too long."""
    reason = one_line(text).strip()
    if not reason:
        raise ValueError("Write the reason: it goes into the record.")
    if len(reason) > _MOST_REASON:
        raise ValueError(f"The reason may have {_MOST_REASON} characters at most.")
    return reason


def replay(desk: Desk, key: InvoiceKey, asked: Asked, *, recount: bool = False) -> str:
    """Make an invoice due at once, with all its attempts; with `recount`, to be counted anew.

    Return a warning where no worker could be woken, else an empty text.
    """
    history = desk.journal.history(key)
    if history is not None and history.row.state is State.PARKED:
        raise ActRefused("it is parked; a release lets it go")
    if recount and not desk.journal.discard_tallies(key, desk.entry(EntryKind.DISCARDED, asked)):
        raise ActRefused(
            "it cannot be counted anew: a write was begun, or a worker is at it."
            " Replay it without recount"
        )
    desk.journal.wake(key, desk.entry(EntryKind.REPLAYED, asked))
    return _ring(desk, key)


def park(desk: Desk, key: InvoiceKey, asked: Asked) -> None:
    """Hold an invoice back: nothing is done for it, whatever is notified, until its release."""
    _demand_known(desk, key)
    if not desk.journal.park(key, desk.entry(EntryKind.PARKED, asked)):
        raise ActRefused("it is done with or parked already, or a worker is at it")


def release(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
    """Let a parked or held invoice go: it is due at once, with all its attempts.

    Return a warning where no worker could be woken, else an empty text.
    """
    _demand_known(desk, key)
    if not desk.journal.release(key, desk.entry(EntryKind.RELEASED, asked)):
        raise ActRefused("it is neither parked nor held; a replay runs any invoice again")
    return _ring(desk, key)


def close(desk: Desk, key: InvoiceKey, asked: Asked) -> None:
    """Record that a person settled an invoice on the platform; nothing more is done for it."""
    _demand_known(desk, key)
    if not desk.journal.close_by_hand(key, desk.entry(EntryKind.CLOSED, asked)):
        raise ActRefused("a worker is at it; try again later")


def recounted(
    desk: Desk, key: InvoiceKey, asked: Asked, results: Sequence[Recount], *, late_too: bool = False
) -> None:
    """Record who had an invoice counted again, and by how much it differs; nothing else changes."""
    found = {"late_too": late_too, "charges": [recount_json(result) for result in results]}
    if not desk.journal.note(key, desk.entry(EntryKind.RECOUNTED, asked, **found)):
        raise _unknown(key)


def pause(desk: Desk, platform: str, asked: Asked) -> Act:
    """Let no worker begin on a platform ("": on any); return the pause that stands."""
    act = desk.act("pause", platform, asked)
    desk.journal.pause(act)
    return desk.journal.paused().get(platform, act)  # another may have resumed it meanwhile


def resume(desk: Desk, platform: str, asked: Asked) -> Act:
    """Undo a pause, and return the act; the next sweep rings for everything that is due."""
    act = desk.act("resume", platform, asked)
    if not desk.journal.resume(act):
        standing = ", ".join(map(named, desk.journal.paused())) or "none"
        raise ActRefused(f"there is no pause of {named(platform)}; paused: {standing}")
    return act


def named(platform: str) -> str:
    """Name a platform; the empty name means all."""
    return platform or "every platform"


def _demand_known(desk: Desk, key: InvoiceKey) -> None:
    if key not in desk.journal.known([key]):
        raise _unknown(key)


def _unknown(key: InvoiceKey) -> ActRefused:
    return ActRefused(f"{key.invoice_id} is not in the journal")


def _ring(desk: Desk, key: InvoiceKey) -> str:
    try:
        desk.doorbell.ring(key)
    except QueueUnavailable as error:
        return f"{error}; the sweep will ring"
    return ""
