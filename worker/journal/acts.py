"""What people do: parking, releasing, recounting and settling invoices, pausing platforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.domain import InvoiceKey
from worker.journal import steps
from worker.journal.codec import moment_of, stamp
from worker.journal.rows import id_of
from worker.journal.store import Row, Transaction
from worker.record import Act, Entry, State, one_line

UNPAUSED = "NOT EXISTS (SELECT 1 FROM pauses p WHERE p.platform IN ('', invoices.platform))"

_OPEN = (State.DUE, State.WAITING, State.RETRYING, State.HELD, State.OBSERVED)


def set_down(tx: Transaction, key: InvoiceKey, entry: Entry, state: State) -> bool:
    """Leave an invoice in a state of rest, with the entry's reason; False: a worker is at it."""
    rows = steps.unclaimed(tx, key, entry.at)
    if not rows:
        return False
    changes = {
        "state": state.value,
        "reason": one_line(str(entry.data["reason"])),
        "updated_at": stamp(entry.at),
        **dict.fromkeys(("due_at", "lease_owner", "lease_until")),
        "attempt": 0,
    }
    steps.add(tx, key, rows[0], [entry], changes)
    return True


def park(tx: Transaction, key: InvoiceKey, entry: Entry) -> bool:
    """Hold an invoice back; False: it is at rest already, a worker is at it, or it is unknown."""
    return state_of(tx, key) in _OPEN and set_down(tx, key, entry, State.PARKED)


def release(tx: Transaction, key: InvoiceKey, entry: Entry) -> bool:
    """Make a parked or held invoice due; False: it is neither."""
    if state_of(tx, key) not in (State.PARKED, State.HELD):
        return False
    tx.run(f"UPDATE invoices SET state = '{State.DUE}' {steps.MINE}", id_of(key))
    steps.ring(tx, key, entry)
    return True


def note(tx: Transaction, key: InvoiceKey, entry: Entry) -> bool:
    """Add an entry, also while a worker is at it; False: the invoice is not known."""
    rows = tx.rows(f"SELECT seq, head FROM invoices {steps.MINE}{tx.for_update}", id_of(key))
    if rows:
        steps.add(tx, key, rows[0], [entry])
    return bool(rows)


def pause(tx: Transaction, act: Act) -> None:
    """Let nobody claim; a platform that is paused already keeps its first act."""
    begun = tx.rows(
        "INSERT INTO pauses (platform, at, who, reason) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING platform",
        [act.platform, stamp(act.at), act.by, act.reason],
    )
    if begun:
        record(tx, act)


def resume(tx: Transaction, act: Act) -> bool:
    """Undo a pause; False: there was none."""
    if not tx.rows("DELETE FROM pauses WHERE platform = ? RETURNING platform", [act.platform]):
        return False
    record(tx, act)
    return True


def paused(rows: Sequence[Row]) -> Mapping[str, Act]:
    """Read the pauses that stand."""
    return {row["platform"]: act_of({**row, "verb": "pause"}) for row in rows}


def act_of(row: Row) -> Act:
    """Read an act's row."""
    return Act(
        at=moment_of(row["at"]),
        by=row["who"],
        verb=row["verb"],
        reason=row["reason"],
        platform=row["platform"],
    )


def record(tx: Transaction, act: Act) -> None:
    """Keep who did what, and why."""
    tx.run(
        "INSERT INTO acts (at, verb, platform, who, reason) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [stamp(act.at), act.verb, act.platform, act.by, act.reason],
    )


def state_of(tx: Transaction, key: InvoiceKey) -> State | None:
    """Return where an invoice is; None: it is not known."""
    rows = tx.rows(f"SELECT state FROM invoices {steps.MINE}{tx.for_update}", id_of(key))
    return State(rows[0]["state"]) if rows else None
