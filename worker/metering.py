"""Usage events as they come in, and the port they are kept behind; standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol


class UsageEvent(NamedTuple):
    """One thing that a subject used. `source` and `id` together name it for good."""

    source: str
    id: str
    subject: str
    metric: str
    at: datetime  # aware; when it was used
    quantity: Decimal = Decimal(1)


class Verdict(StrEnum):
    """What became of an event."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # it is there already, the same; it counts once
    CONFLICT = "conflict"  # its name is there with other content; nothing was changed


CAME_BEFORE = "came before, with other content; use a new id"  # what to say of a CONFLICT


class EventStore(Protocol):
    """Where events are kept, each once."""

    place: str  # where that is, without credentials

    def append(self, events: Sequence[UsageEvent], *, all_or_nothing: bool) -> Sequence[Verdict]:
        """Store what is not there yet, durably; return a verdict for each event, in their order.

        All or nothing: when any is a CONFLICT, nothing is stored, and those that would have been
        are still called STORED. Raises SourceUnavailable (try later), SourceInvalid (a person must
        look at the store), or ValueError for an event that no database can keep; in each case
        nothing of these events was stored, unless SourceUnavailable came while it was committed:
        then sending them again tells, because what is there already is a DUPLICATE.
        """
