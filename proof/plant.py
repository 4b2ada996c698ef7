"""Bugs to put in on purpose: the proof must catch each, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from worker import reconcile
from worker.decision import Skip
from worker.domain import InvoiceState
from worker.journal import steps
from worker.journal.sql import SqlJournal
from worker.record import Receipt

_RECONCILE: Any = reconcile
_STEPS: Any = steps
_JOURNAL: Any = SqlJournal
_PLACES = (  # where the bugs are put in
    *((_RECONCILE, "judge_invoice"), (_STEPS, "fenced")),
    *((_JOURNAL, "claim"), (_JOURNAL, "record_delivery")),
)


def _skip_moved_version() -> None:
    """Skip whatever versionNumber is not 1, though we moved it ourselves."""
    judge = _RECONCILE.judge_invoice

    def judged(invoice: Any, known: Any, rules: Any) -> Any:
        if invoice is not None and invoice.version != 1:
            return Skip(f"its versionNumber is {invoice.version}")
        return judge(invoice, known, rules)

    _RECONCILE.judge_invoice = judged


def _no_read_back() -> None:
    """Take an unknown outcome for "it did not happen", and issue again without a look."""
    judge = _RECONCILE.judge_invoice

    def judged(invoice: Any, known: Any, rules: Any) -> Any:
        if known.progress.issue_tried:
            known = replace(known, progress=replace(known.progress, unanswered_at=None))
            invoice = invoice and replace(invoice, state=InvoiceState.PENDING)
        return judge(invoice, known, rules)

    _RECONCILE.judge_invoice = judged


def _lease_ignored() -> None:
    """Let every worker take what another one holds, and write without its fencing number."""
    claim, fenced = _JOURNAL.claim, _STEPS.fenced

    def take(journal: Any, key: Any, owner: Any, at: Any, *more: Any) -> Any:
        later = at + timedelta(days=1)
        return claim(journal, key, owner, at, *more) or claim(journal, key, owner, later, *more)

    def unfenced(tx: Any, holder: Any) -> Any:
        (row,) = tx.rows(
            "SELECT fence, lease_owner FROM invoices WHERE platform = ? AND invoice_id = ?",
            [holder.key.platform, holder.key.invoice_id],
        )
        return fenced(tx, replace(holder, fence=row["fence"], owner=row["lease_owner"]))

    _JOURNAL.claim = take
    _STEPS.fenced = unfenced


def _delivery_forgotten() -> None:
    """Answer 200 to a notification that is not stored; its invoice is found by the sweep."""
    _JOURNAL.record_delivery = lambda _journal, _delivery, _at: Receipt.NEW


BUGS: Mapping[str, Callable[[], None]] = {
    "skip-moved-version": _skip_moved_version,
    "no-read-back": _no_read_back,
    "lease-ignored": _lease_ignored,
    "delivery-forgotten": _delivery_forgotten,
}


@contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """Put a bug into this process, and so into its children, for the length of a `with` block."""
    before = [getattr(owner, name) for owner, name in _PLACES]
    if bug is not None:
        BUGS[bug]()
    try:
        yield
    finally:
        for (owner, name), original in zip(_PLACES, before, strict=True):
            setattr(owner, name, original)
