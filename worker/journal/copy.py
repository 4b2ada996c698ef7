"""Copying a whole journal into an empty one, of the same kind or another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from worker.domain import InvoiceKey
from worker.errors import ReconcilerError
from worker.journal.codec import stamp
from worker.journal.schema import KEYS
from worker.journal.sql import SqlJournal
from worker.journal.store import Row, Transaction
from worker.journal.verify import invoice_keys, row_counts, verify_invoice

_BATCH = 200  # rows; of deliveries, each with its body


def copy_journal(
    source: SqlJournal,
    target: SqlJournal,
    now: datetime,
    advance: Callable[[int], None] = lambda _: None,
) -> Mapping[str, int]:
    """Copy everything in one transaction on the target; return how many rows of each table.

    `advance` is told how many rows are copied and invoices verified.

    Raises ReconcilerError, and leaves the target empty, when it is not empty, a worker runs on
    the source, the source changes meanwhile, or the copy does not prove itself whole.
    """
    rows = 0
    with target.store.transaction() as to:
        if any(row_counts(to).values()):
            raise ReconcilerError(f"{target.store.place} is not empty: copy into a new journal")
        with source.store.snapshot() as of:
            _refuse_leased(of, now)
            for table in KEYS:
                for batch in _batches(of, table):
                    to.insert(table, batch)
                    rows += len(batch)
                    advance(rows)
        copied, there = row_counts(to), source.counts()
        if copied != there:
            raise ReconcilerError(
                f"{source.store.place} changed while it was copied: stop webhook, worker and sweep"
            )
        _verify(to, rows, advance)
    return copied


def _refuse_leased(of: Transaction, now: datetime) -> None:
    leased = of.rows(
        "SELECT platform, invoice_id FROM invoices WHERE lease_until > ? LIMIT 1", [stamp(now)]
    )
    for row in leased:
        key = InvoiceKey(row["platform"], row["invoice_id"])
        raise ReconcilerError(f"a worker is at {key}: stop the workers first")


def _batches(of: Transaction, table: str) -> Iterator[list[Row]]:
    """Yield a table's rows in the order of its key."""
    names = KEYS[table]
    key, marks = ", ".join(names), ", ".join("?" * len(names))
    where, last = "", list[object]()
    while batch := of.rows(f"SELECT * FROM {table} {where} ORDER BY {key} LIMIT {_BATCH}", last):
        yield batch
        where, last = f"WHERE ({key}) > ({marks})", [batch[-1][name] for name in names]


def _verify(to: Transaction, rows: int, advance: Callable[[int], None]) -> None:
    for done, key in enumerate(invoice_keys(to.rows), start=rows + 1):
        if fault := verify_invoice(to, key):
            raise ReconcilerError(
                f"not copied, as the record is not whole: {fault};"
                " reconciler journal verify tells all"
            )
        advance(done)
