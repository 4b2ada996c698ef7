"""What became of a write on a platform: its answer, or why there is none; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from worker.domain import Invoice, UsageCharge
from worker.errors import ReconcilerError
from worker.record import one_line


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was sent and what was answered, as text for a person; no credential.

    Of a long text the first 400 characters, with its size. Each is made one printable line.
    """

    request: str
    answer: str  # where none came, what is known instead

    def __post_init__(self) -> None:
        for name in ("request", "answer"):
            object.__setattr__(self, name, one_line(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWrite:
    """What became of writing one quantity.

    `charge` is the platform's answer. Without it `error` says why: OutcomeUnknown where no
    answer came and the write may yet be applied; after any other error a new listing shows what
    stands on the charge for good.
    """

    charge_id: str
    charge: UsageCharge | None = None
    error: ReconcilerError | None = None
    exchange: Exchange | None = None  # None: not sent, or another write of its request carries it

    def __post_init__(self) -> None:
        _demand_one(self.charge, self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueWrite:
    """What became of issuing; without the platform's answer `error` says why.

    After OutcomeUnknown it may yet be issued; after any other error it was not.
    """

    invoice: Invoice | None = None
    error: ReconcilerError | None = None
    exchange: Exchange | None = None  # None: nothing was sent

    def __post_init__(self) -> None:
        _demand_one(self.invoice, self.error)


def _demand_one(answer: object | None, error: ReconcilerError | None) -> None:
    """Refuse a write of which nothing is known: it would pass for one that was applied."""
    if (answer is None) == (error is None):
        raise ValueError("a write has either an answer or an error")
