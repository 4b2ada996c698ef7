"""Which invoice is late: due, and nobody takes it; or held. What waits for its time is not late."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from worker.overviews import Filter
from worker.ports import Journal
from worker.record import InvoiceRow, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """An invoice that somebody should see to."""

    row: InvoiceRow
    since: datetime  # due since then, or held since then: by its last run

    @property
    def told(self) -> str:
        """What is the matter with it."""
        return "held" if self.row.state is State.HELD else "due, and no worker takes it"


def most_overdue(journal: Journal, now: datetime) -> Overdue | None:
    """Return the invoice that is late for longest.

    Invoices that wait for a period's end, a watermark or the next attempt are not late before
    that moment; parked ones, and those of a paused platform, only when they are let go.
    """
    held = journal.listed(Filter(states=(State.HELD,), unchanged_since=now), 1)
    due = journal.listed(Filter(due_since=now, free_at=now), 1)
    late = [Overdue(row=one.row, since=one.row.updated_at) for one in held]
    late += [Overdue(row=one.row, since=one.row.due_at) for one in due if one.row.due_at]
    return min(late, key=lambda one: one.since, default=None)
