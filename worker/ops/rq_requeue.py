"""Requeueing in the RQ dashboard: a replay of the invoice, through the journal.

RQ's own requeue would run the job as it stands in Redis, without new attempts and without a
word of who asked. Here the job's id names the invoice, and nothing else of the job is believed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from worker.actions import ActRefused, Asked, Desk, replay
from worker.domain import InvoiceKey
from worker.errors import JournalUnavailable, QueueUnavailable, RecordInvalid
from worker.record import InvoiceRow, State

REASON = "requeued in RQ"
MOST_REQUEUED = 500  # at one press
_MOST_LOOKED_AT = 5_000
_MOST_ID = 200  # characters of an id that are looked at for a dash

_AT_REST = {State.ISSUED: "issued", State.SKIPPED: "skipped", State.CLOSED: "closed by hand"}


@dataclass(slots=True)
class Requeued:
    """What one press did to many jobs."""

    done: int = 0
    left: int = 0  # failed jobs that were not looked at
    refused: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        told = [f"{self.done} requeued."]
        told += [f"{number} not: {why}." for why, number in self.refused.most_common()]
        if self.left:
            told.append(f"{self.left} left: press again.")
        return " ".join(told)


def requeue(desk: Desk, job_id: str, by: str) -> str:
    """Replay the invoice of a failed job, and say what follows.

    Raises ActRefused where nothing was changed; of two presses at once, the second one.
    """
    key = invoice_of(desk, job_id)
    told = _requeue(desk, key, job_id, by)
    return f"{key.invoice_id} {told}"


def requeue_all(desk: Desk, by: str) -> Requeued:
    """Replay the invoices of the failed jobs, those that failed first before others.

    What is done stays done when journal or Redis fail on the way; the answer says how far it came.
    """
    ids = desk.doorbell.failed()
    so_far = Requeued(left=len(ids))
    for job_id in ids[:_MOST_LOOKED_AT]:
        if so_far.done == MOST_REQUEUED:
            break
        so_far.left -= 1
        try:
            _requeue(desk, invoice_of(desk, job_id), job_id, by)
            so_far.done += 1
        except ActRefused as refusal:
            so_far.refused[str(refusal)] += 1
        except (JournalUnavailable, QueueUnavailable) as error:
            so_far.refused[str(error)] += 1
            break
    return so_far


def invoice_of(desk: Desk, job_id: str) -> InvoiceKey:
    """Return the invoice that a job's id names; raise ActRefused where it names none.

    Both parts of the id may have dashes, so the journal says which of them parts the two.
    """
    dashes = [place for place, char in enumerate(job_id[:_MOST_ID]) if char == "-"]
    known = desk.journal.known([InvoiceKey(job_id[:one], job_id[one + 1 :]) for one in dashes])
    if len(known) != 1:
        raise ActRefused("it is not the job of an invoice in the journal, so nothing runs it")
    return next(iter(known))


def _requeue(desk: Desk, key: InvoiceKey, job_id: str, by: str) -> str:
    try:
        history = desk.journal.history(key)
    except RecordInvalid as error:
        raise ActRefused(str(error)) from error
    against = _against(history.row, desk) if history else "the journal does not know it"
    if against:
        raise ActRefused(against)
    paused = {"", key.platform} & set(desk.journal.paused())
    place = desk.doorbell.take_failed(job_id)
    if place is None:
        raise ActRefused("it is not among the failed jobs: it was requeued already")
    try:
        warning = replay(desk, key, Asked(by, REASON))
    except BaseException:
        desk.doorbell.put_back_failed(job_id, place)
        raise
    if warning:
        return f"is due: {warning}."
    return "is requeued" + (", and runs when its platform is resumed." if paused else ".")


def _against(row: InvoiceRow, desk: Desk) -> str:
    """Say why a requeue would be wrong or without effect; empty: it would not."""
    if row.state in _AT_REST:
        return f"it is {_AT_REST[row.state]} already, so nothing was changed"
    if row.state is State.PARKED:
        return "it is parked, and only a release lets it go"
    if row.lease_until is not None and row.lease_until > desk.now():
        return "a worker is at it"
    return ""
