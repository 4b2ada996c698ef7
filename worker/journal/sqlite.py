"""The journal in one SQLite file: WAL, synchronous=FULL, every write BEGIN IMMEDIATE."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from worker.domain import Delivery, FrozenTally, InvoiceKey, Span
from worker.errors import JournalUnavailable, LeaseLost
from worker.journal.codec import (
    canonical,
    counted_entry,
    digest_of,
    moment_of,
    stamp,
    tallies_of,
)
from worker.journal.rows import Row, delivery_of, id_of, invoice_of, span_of, tally_row
from worker.journal.schema import migrate
from worker.record import (
    BilledSpan,
    Claim,
    Entry,
    EntryKind,
    History,
    InvoiceRow,
    Outcome,
    Receipt,
    State,
    progress_of,
)

_BUSY_TIMEOUT_SECONDS = 5.0

_OLDEST_SQLITE = (3, 37)  # STRICT tables


class SqliteJournal:
    """A `Journal` in a file, shared by the processes of one machine.

    Threads of a process take turns on one connection: they would otherwise starve one another
    on SQLite's write lock.
    """

    def __init__(self, path: Path, *, max_pages: int | None = None) -> None:
        """Open or create the file; `max_pages` bounds its size (4 KiB each)."""
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = _opened(path, max_pages)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnavailable(f"journal {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def record_delivery(self, delivery: Delivery, at: datetime) -> Receipt:
        key = delivery.key
        if key is None:
            raise ValueError("a delivery that names no invoice is counted, not recorded")
        digest = hashlib.sha256(delivery.body).hexdigest()
        with self._transaction() as db:
            row = next(
                db.query(
                    """INSERT INTO deliveries
                    (platform, id, event, invoice_id, body, digest, received_at)
                    VALUES (?, ?, ?, ?, ?, ?, ?)
                    ON CONFLICT DO UPDATE SET times = times + (invoice_id = excluded.invoice_id)
                    RETURNING invoice_id, times""",
                    [
                        *(delivery.platform, delivery.id, delivery.event, key.invoice_id),
                        *(delivery.body, digest, stamp(at)),
                    ],
                )
            )
            if row["invoice_id"] != key.invoice_id:
                return Receipt.CONFLICT
            if row["times"] > 1:
                return Receipt.DUPLICATE
            data = {"delivery_id": delivery.id, "event": delivery.event, "digest": digest}
            self._ring(db, key, at)
            self._add(db, key, [Entry(kind=EntryKind.DELIVERED, at=at, data=data)])
            return Receipt.NEW

    def count_ignored(self, platform: str, event: str, at: datetime) -> None:
        with self._transaction() as db:
            db.execute(
                """INSERT INTO ignored (platform, event, times, last_at) VALUES (?, ?, 1, ?)
                ON CONFLICT DO UPDATE SET times = times + 1, last_at = excluded.last_at""",
                [platform, event, stamp(at)],
            )

    def ignored(self) -> Mapping[tuple[str, str], int]:
        rows = self._rows("SELECT platform, event, times FROM ignored ORDER BY platform, event")
        return {(row["platform"], row["event"]): row["times"] for row in rows}

    def wake(self, key: InvoiceKey, entry: Entry) -> None:
        with self._transaction() as db:
            self._ring(db, key, entry.at)
            self._add(db, key, [entry])

    def claim(self, key: InvoiceKey, owner: str, at: datetime, lease: timedelta) -> Claim | None:
        with self._transaction() as db:
            taken = list(
                db.query(
                    f"""UPDATE invoices SET lease_owner = ?, lease_until = ?, fence = fence + 1,
                    attempt = iif(state = '{State.HELD}', 0, attempt), rings_claimed = rings
                    WHERE platform = ? AND invoice_id = ?
                    AND (lease_until IS NULL OR lease_until <= ?)
                    AND (state = '{State.HELD}' OR due_at <= ?)
                    RETURNING fence""",
                    [owner, stamp(at + lease), *id_of(key), stamp(at), stamp(at)],
                )
            )
            if not taken:
                return None
            claim = Claim(key=key, owner=owner, fence=taken[0]["fence"])
            data = {"owner": owner, "fence": claim.fence}
            self._add(db, key, [Entry(kind=EntryKind.CLAIMED, at=at, data=data)])
            return claim

    def append(self, claim: Claim, entries: Sequence[Entry], lease_until: datetime) -> None:
        with self._transaction() as db:
            self._fenced(db, claim, "lease_until = ?", [stamp(lease_until)])
            self._add(db, claim.key, entries)

    def freeze(
        self,
        claim: Claim,
        entries: Sequence[Entry],
        tallies: Sequence[FrozenTally],
        at: datetime,
    ) -> Sequence[BilledSpan]:
        with self._transaction() as db:
            self._fenced(db, claim, "fence = fence", [])
            if others := self._billed(db, claim.key, [tally.span for tally in tallies]):
                return others
            db.table("tallies").insert_all([tally_row(claim.key, tally) for tally in tallies])
            self._add(db, claim.key, [*entries, counted_entry(tallies, at)])
            return []

    def discard_tallies(self, key: InvoiceKey, entry: Entry) -> bool:
        with self._transaction() as db:
            if progress_of(self._entries(db, key)).unfinished:
                return False
            db.execute("DELETE FROM tallies WHERE platform = ? AND invoice_id = ?", id_of(key))
            self._add(db, key, [entry])
            return True

    def settle(self, claim: Claim, entries: Sequence[Entry], outcome: Outcome) -> None:
        at = stamp(entries[-1].at)
        with self._transaction() as db:
            self._fenced(
                db,
                claim,
                """state = ?, reason = ?, attempt = ?, updated_at = ?, lease_owner = NULL,
                lease_until = NULL, due_at = iif(rings > rings_claimed, ?, ?)""",
                [
                    *(outcome.state.value, outcome.reason, outcome.attempt, at, at),
                    outcome.due_at and stamp(outcome.due_at),
                ],
            )
            self._add(db, claim.key, entries)

    def billed(self, key: InvoiceKey, spans: Sequence[Span]) -> Sequence[BilledSpan]:
        with self._reading() as db:
            return self._billed(db, key, spans)

    def history(self, key: InvoiceKey) -> History | None:
        where = "WHERE platform = ? AND invoice_id = ?"
        with self._reading() as db:
            row = next(iter(db.query(f"SELECT * FROM invoices {where}", id_of(key))), None)
            if row is None:
                return None
            deliveries = db.query(
                f"SELECT * FROM deliveries {where} ORDER BY received_at, id", id_of(key)
            )
            entries = self._entries(db, key)
            return History(
                row=invoice_of(row),
                deliveries=tuple(map(delivery_of, deliveries)),
                entries=entries,
                tallies=tallies_of(entries),
            )

    def invoices(self, states: Sequence[State] = (), limit: int = 1000) -> Sequence[InvoiceRow]:
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        rows = self._rows(
            f"SELECT * FROM invoices {where} ORDER BY first_seen_at, invoice_id LIMIT ?",
            [*(state.value for state in states), limit],
        )
        return [invoice_of(row) for row in rows]

    def due(self, at: datetime, limit: int = 1000) -> Sequence[InvoiceKey]:
        rows = self._rows(
            """SELECT platform, invoice_id FROM invoices
            WHERE due_at <= ? AND (lease_until IS NULL OR lease_until <= ?)
            ORDER BY due_at LIMIT ?""",
            [stamp(at), stamp(at), limit],
        )
        return [InvoiceKey(row["platform"], row["invoice_id"]) for row in rows]

    def check(self) -> None:
        with self._transaction() as db:
            db.execute("UPDATE ignored SET times = times WHERE platform IS NULL")

    @contextmanager
    def _reading(self) -> Iterator[Database]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise JournalUnavailable(f"journal {self.path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[Database]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._reading() as db:
            return list(db.query(sql, list(values)))

    def _ring(self, db: Database, key: InvoiceKey, at: datetime) -> None:
        """Make the invoice due, new or not, and tell a run under way that there is news."""
        db.execute(
            f"""INSERT INTO invoices
            (platform, invoice_id, state, first_seen_at, updated_at, due_at, rings)
            VALUES (?, ?, '{State.DUE}', ?, ?, ?, 1)
            ON CONFLICT DO UPDATE SET due_at = excluded.due_at, updated_at = excluded.updated_at,
            attempt = 0, rings = rings + 1""",
            [*id_of(key), *[stamp(at)] * 3],
        )

    def _fenced(self, db: Database, claim: Claim, change: str, values: list[Any]) -> None:
        """Change the invoice's row, if the claim is still its newest."""
        cursor = db.execute(
            f"UPDATE invoices SET {change} WHERE platform = ? AND invoice_id = ?"
            " AND fence = ? AND lease_owner = ?",
            [*values, *id_of(claim.key), claim.fence, claim.owner],
        )
        if cursor.rowcount != 1:
            raise LeaseLost(f"{claim.key}: another worker took it over")

    def _add(self, db: Database, key: InvoiceKey, entries: Sequence[Entry]) -> None:
        found = list(
            db.query(
                "SELECT seq, digest FROM entries WHERE platform = ? AND invoice_id = ?"
                " ORDER BY seq DESC LIMIT 1",
                id_of(key),
            )
        )
        seq, digest = (found[0]["seq"], found[0]["digest"]) if found else (0, "")
        rows = []
        for entry in entries:
            seq, digest = seq + 1, digest_of(key, entry, digest)
            rows.append(
                {
                    "platform": key.platform,
                    "invoice_id": key.invoice_id,
                    "seq": seq,
                    "at": stamp(entry.at),
                    "kind": entry.kind.value,
                    "data": canonical(entry.data),
                    "digest": digest,
                }
            )
        db.table("entries").insert_all(rows)

    def _entries(self, db: Database, key: InvoiceKey) -> tuple[Entry, ...]:
        rows = db.query(
            "SELECT at, kind, data FROM entries WHERE platform = ? AND invoice_id = ? ORDER BY seq",
            id_of(key),
        )
        return tuple(
            Entry(
                kind=EntryKind(row["kind"]),
                at=moment_of(row["at"]),
                data=json.loads(row["data"]),
            )
            for row in rows
        )

    def _billed(self, db: Database, key: InvoiceKey, spans: Sequence[Span]) -> Sequence[BilledSpan]:
        if not spans:
            return []
        subscriptions = sorted({span.subscription_id for span in spans})
        rows = db.query(
            f"""SELECT t.* FROM tallies t JOIN invoices i USING (platform, invoice_id)
            WHERE t.platform = ? AND t.invoice_id != ? AND i.state != '{State.SKIPPED}'
            AND t.subscription_id IN ({", ".join("?" * len(subscriptions))})
            AND t.period_start < ? AND t.period_end > ?""",
            [
                *(*id_of(key), *subscriptions),
                stamp(max(span.period.end for span in spans)),
                stamp(min(span.period.start for span in spans)),
            ],
        )
        others = [BilledSpan(invoice_id=row["invoice_id"], span=span_of(row)) for row in rows]
        return [other for other in others if any(other.span.overlaps(span) for span in spans)]


def _opened(path: Path, max_pages: int | None) -> Database:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise sqlite3.NotSupportedError(
            f"SQLite {sqlite3.sqlite_version} is too old; Python must be built with 3.37 or later"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    db = Database(connection, execute_plugins=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if max_pages is not None:
            db.execute(f"PRAGMA max_page_count = {max_pages:d}")
        migrate(db)
    except BaseException:
        connection.close()
        raise
    return db
