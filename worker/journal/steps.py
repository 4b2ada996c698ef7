"""The steps that the journal's transactions are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from worker.causes import cause_of
from worker.domain import Delivery, InvoiceKey, Span
from worker.errors import LeaseLost
from worker.journal.codec import stamp
from worker.journal.rows import entries_of, entry_rows, fact_columns, id_of, span_of
from worker.journal.store import Row, Transaction
from worker.record import BilledSpan, Claim, Entry, EntryKind, State

MINE = "WHERE platform = ? AND invoice_id = ?"


def unclaimed(tx: Transaction, key: InvoiceKey, at: datetime) -> list[Row]:
    """Take the invoice's row, unless a worker is at it."""
    return tx.rows(
        f"""SELECT seq, head FROM invoices {MINE}
        AND (lease_until IS NULL OR lease_until <= ?){tx.for_update}""",
        [*id_of(key), stamp(at)],
    )


def owe(tx: Transaction, delivery: Delivery, at: datetime) -> None:
    """Store that the delivery is to be acknowledged, if it is."""
    if delivery.owes_ack:
        tx.run(
            "INSERT INTO acks (platform, delivery_id, owed_at) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            [delivery.platform, delivery.id, stamp(at)],
        )


def ring(tx: Transaction, key: InvoiceKey, entry: Entry) -> None:
    """Make the invoice due, new or not, and tell a run under way of the news.

    One that is parked stays; one that a person closed is due again only when a person asks.
    """
    asked = entry.kind in (EntryKind.REPLAYED, EntryKind.RELEASED)
    at_rest = f"'{State.PARKED}'" if asked else f"'{State.PARKED}', '{State.CLOSED}'"
    (row,) = tx.rows(
        f"""INSERT INTO invoices
        (platform, invoice_id, state, first_seen_at, updated_at, due_at, rings)
        VALUES (?, ?, '{State.DUE}', ?, ?, ?, 1)
        ON CONFLICT (platform, invoice_id) DO UPDATE SET
        due_at = CASE WHEN invoices.state IN ({at_rest}) THEN NULL ELSE excluded.due_at END,
        updated_at = excluded.updated_at, attempt = 0, rings = invoices.rings + 1
        RETURNING seq, head""",
        [*id_of(key), *[stamp(entry.at)] * 3],
    )
    add(tx, key, row, [entry])


def fenced(tx: Transaction, claim: Claim) -> Row:
    """Take the invoice's row, if the claim is still its newest."""
    rows = tx.rows(
        f"""SELECT seq, head, rings, rings_claimed FROM invoices
        {MINE} AND fence = ? AND lease_owner = ?{tx.for_update}""",
        [*id_of(claim.key), claim.fence, claim.owner],
    )
    if not rows:
        raise LeaseLost(f"{claim.key}: another worker took it over")
    return rows[0]


def add(
    tx: Transaction,
    key: InvoiceKey,
    row: Row,
    new: Sequence[Entry],
    changes: Mapping[str, object] | None = None,
) -> None:
    """Add entries to the chain that the invoice's row ends, and change that row with them.

    What they tell of the invoice, and the cause of a hold, is kept in the row to search it by.
    """
    added = entry_rows(key, row["seq"], row["head"], new)
    tx.insert("entries", added)
    changed = dict(changes or {})
    if added:
        changed |= {"seq": added[-1]["seq"], "head": added[-1]["digest"]}
    if changed.get("state") == State.HELD:
        changed["cause"] = cause_of(str(changed["reason"])).key
    changed |= fact_columns(new)
    sets = (
        f"{name} = COALESCE({name}, ?)" if name == "issued_at" else f"{name} = ?"
        for name in changed
    )
    tx.run(f"UPDATE invoices SET {', '.join(sets)} {MINE}", [*changed.values(), *id_of(key)])


def entries(tx: Transaction, key: InvoiceKey) -> tuple[Entry, ...]:
    """Return the invoice's entries, oldest first."""
    rows = tx.rows(f"SELECT seq, at, kind, data FROM entries {MINE} ORDER BY seq", id_of(key))
    return entries_of(key, rows)


def billed(tx: Transaction, key: InvoiceKey, spans: Sequence[Span]) -> Sequence[BilledSpan]:
    """Return what other invoices, not skipped, bill of these spans."""
    if not spans:
        return []
    subjects = sorted({span.subject for span in spans})
    rows = tx.rows(
        f"""SELECT t.* FROM tallies t JOIN invoices i USING (platform, invoice_id)
        WHERE platform = ? AND invoice_id != ? AND i.state != '{State.SKIPPED}'
        AND t.subject IN ({marks(subjects)})
        AND t.period_start < ? AND t.period_end > ?
        ORDER BY invoice_id, t.charge_id""",
        [
            *(*id_of(key), *subjects),
            stamp(max(span.period.end for span in spans)),
            stamp(min(span.period.start for span in spans)),
        ],
    )
    others = [BilledSpan(invoice_id=row["invoice_id"], span=span_of(row)) for row in rows]
    return [other for other in others if any(other.span.overlaps(span) for span in spans)]


def marks(values: Sequence[object]) -> str:
    """Return one placeholder a value."""
    return ", ".join("?" * len(values))
