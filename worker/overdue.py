"""Which invoice is late: due, and nobody takes it; or held. What waits for its time is not late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from worker.errors import RecordInvalid
from worker.ports import Journal
from worker.record import InvoiceRow, State

_MOST_HELD = 1000  # looked at: those that were seen first
_MOST_DUE = 20  # looked at, until one has a record that can be read


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
    held = journal.invoices((State.HELD,), _MOST_HELD)
    late = [Overdue(row=row, since=row.updated_at) for row in held]
    late += islice(_due(journal, now), 1)
    return min(late, key=lambda one: one.since, default=None)


def _due(journal: Journal, now: datetime) -> Iterator[Overdue]:
    for key in journal.due(now, _MOST_DUE):
        with suppress(RecordInvalid):  # the worker that takes it holds it
            found = journal.history(key)
            if found is not None and found.row.due_at is not None:
                yield Overdue(row=found.row, since=found.row.due_at)
