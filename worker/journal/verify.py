"""Whether an invoice's record is what was written: chain, head, tallies, facts and deliveries.

Nothing here writes. What stands in memory is one invoice's entries and one delivery's body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

from worker.domain import InvoiceKey
from worker.errors import RecordInvalid
from worker.journal.codec import canonical, digest_of, tallies_of
from worker.journal.rows import NO_FACTS, entries_of, entry_of, fact_columns, id_of, tally_row
from worker.journal.schema import KEYS
from worker.journal.store import Row, Transaction
from worker.record import Broken, Entry, EntryKind

_MINE = "WHERE platform = ? AND invoice_id = ?"
_PAGE = 500


def verify_invoice(tx: Transaction, key: InvoiceKey) -> Broken | None:
    """Return the first thing that is not as it was written."""
    return next(_faults(tx, key), None)


def row_counts(tx: Transaction) -> dict[str, int]:
    """Return how many rows each table has."""
    return {table: tx.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in KEYS}


def invoice_keys(rows: Callable[..., list[Row]]) -> Iterator[InvoiceKey]:
    """Name every invoice, page by page, then those of which only stray rows are left."""
    last = ("", "")
    while True:
        page = rows(
            f"""SELECT platform, invoice_id FROM invoices WHERE (platform, invoice_id) > (?, ?)
            ORDER BY platform, invoice_id LIMIT {_PAGE}""",
            last,
        )
        yield from (InvoiceKey(row["platform"], row["invoice_id"]) for row in page)
        if len(page) < _PAGE:
            break
        last = page[-1]["platform"], page[-1]["invoice_id"]
    stray = " UNION ".join(
        f"""SELECT platform, invoice_id FROM {table} s WHERE NOT EXISTS (SELECT 1 FROM invoices i
        WHERE i.platform = s.platform AND i.invoice_id = s.invoice_id)"""
        for table in ("entries", "deliveries", "tallies")
    )
    for row in rows(f"{stray} ORDER BY platform, invoice_id"):
        yield InvoiceKey(row["platform"], row["invoice_id"])


def _faults(tx: Transaction, key: InvoiceKey) -> Iterator[Broken]:
    """Yield faults; each step trusts what the steps before it have found whole."""
    columns = ", ".join(("seq", "head", *NO_FACTS))
    invoice = tx.rows(f"SELECT {columns} FROM invoices {_MINE}", id_of(key))
    if not invoice:
        yield Broken(key=key, seq=None, fault="the invoice's row is gone, and others of it are not")
        return
    rows = tx.rows(f"SELECT * FROM entries {_MINE} ORDER BY seq", id_of(key))
    yield from _chain_faults(key, rows)
    yield from _head_faults(key, invoice[0], rows)
    yield from _shape_faults(key, rows)
    entries = entries_of(key, rows)
    frozen = [tally_row(key, tally) for tally in tallies_of(entries)]
    if _by_charge(tx.rows(f"SELECT * FROM tallies {_MINE}", id_of(key))) != _by_charge(frozen):
        told = "the table of tallies is not what its entries counted"
        yield Broken(key=key, seq=_counted(entries), fault=told)
    yield from _fact_faults(key, invoice[0], entries)
    yield from _delivery_faults(tx, key, entries)


def _chain_faults(key: InvoiceKey, rows: list[Row]) -> Iterator[Broken]:
    previous = ""
    for seq, row in enumerate(rows, start=1):
        if row["seq"] != seq:
            yield Broken(key=key, seq=seq, fault=f"entry {seq} is missing")
        if row["digest"] != (previous := _digest(key, row, previous)):
            yield Broken(key=key, seq=seq, fault=f"entry {seq} is not what its digest says")


def _digest(key: InvoiceKey, row: Row, previous: str) -> str:
    """Compute an entry's digest from its row; empty: the row does not hold an entry's text."""
    try:
        entry = entry_of(row)
        return digest_of(key, entry, previous) if canonical(entry.data) == row["data"] else ""
    except ValueError:
        return ""


def _head_faults(key: InvoiceKey, invoice: Row, rows: list[Row]) -> Iterator[Broken]:
    newest = len(rows)
    if invoice["seq"] > newest:
        fault = f"entries {newest + 1} to {invoice['seq']} are cut off"
        yield Broken(key=key, seq=newest + 1, fault=fault)
    elif (invoice["seq"], invoice["head"]) != (newest, rows[-1]["digest"] if rows else ""):
        fault = f"entry {newest} is not the one the invoice's row names as its newest"
        yield Broken(key=key, seq=newest, fault=fault)


def _shape_faults(key: InvoiceKey, rows: list[Row]) -> Iterator[Broken]:
    """Yield entries that are as they were written, and that this version cannot read."""
    for row in rows:
        try:
            entries_of(key, [row])
        except RecordInvalid:
            fault = f"entry {row['seq']} is as it was written, but this version cannot read it"
            yield Broken(key=key, seq=row["seq"], fault=fault)


def _fact_faults(key: InvoiceKey, invoice: Row, entries: tuple[Entry, ...]) -> Iterator[Broken]:
    for name, told in (NO_FACTS | fact_columns(entries)).items():
        if invoice[name] != told:
            fault = f"the invoice's row says another {name} than its entries"
            yield Broken(key=key, seq=None, fault=fault)


def _by_charge(rows: list[Row]) -> Mapping[str, Row]:
    return {row["charge_id"]: row for row in rows}


def _counted(entries: tuple[Entry, ...]) -> int | None:
    """Number the last entry that froze or gave up tallies."""
    kinds = (EntryKind.COUNTED, EntryKind.DISCARDED)
    return max((n for n, entry in enumerate(entries, 1) if entry.kind in kinds), default=None)


def _delivery_faults(
    tx: Transaction, key: InvoiceKey, entries: tuple[Entry, ...]
) -> Iterator[Broken]:
    told = {
        str(entry.data.get("delivery_id")): (seq, entry.data.get("digest"), entry.data.get("event"))
        for seq, entry in enumerate(entries, start=1)
        if entry.kind is EntryKind.DELIVERED
    }
    for row in tx.rows(f"SELECT id, digest, event FROM deliveries {_MINE} ORDER BY id", id_of(key)):
        seq, digest, event = told.pop(row["id"], (None, None, None))
        fault = ""
        if seq is None:
            fault = f"no entry tells of delivery {row['id']}"
        elif (row["digest"], row["event"]) != (digest, event):
            fault = f"delivery {row['id']} is not what entry {seq} says"
        elif _body_digest(tx, key, row["id"]) != digest:
            fault = f"the body of delivery {row['id']} is not what its digest says"
        if fault:
            yield Broken(key=key, seq=seq, fault=fault)
    for delivery_id, (seq, *_) in told.items():
        yield Broken(key=key, seq=seq, fault=f"delivery {delivery_id} is gone")


def _body_digest(tx: Transaction, key: InvoiceKey, delivery_id: str) -> str:
    (row,) = tx.rows(
        "SELECT body FROM deliveries WHERE platform = ? AND id = ?", [key.platform, delivery_id]
    )
    return hashlib.sha256(row["body"]).hexdigest()
