"""The journal's statements, the same for every SQL database."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from datetime import datetime, timedelta

from worker.domain import Delivery, FrozenTally, InvoiceKey, Span
from worker.journal import acts, search, steps
from worker.journal.codec import counted_entry, stamp, tallies_of
from worker.journal.rows import (
    delivery_of,
    id_of,
    invoice_of,
    tally_row,
)
from worker.journal.store import Row, Store
from worker.journal.verify import invoice_keys, row_counts, verify_invoice
from worker.overviews import Cursor, Filter, Listed, Overview, Page, PreviousTally
from worker.record import (
    Act,
    BilledSpan,
    Broken,
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

_ROOM_BYTES = 16 * 1024  # for a delivery and its entry
_KEYS_AT_ONCE = 5000  # a database takes some ten thousands of values in a statement


class SqlJournal:
    """A `Journal` over any store.

    What is written on one invoice is written in turn: every transaction first takes the
    invoice's row, which also holds the newest entry's number and digest.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def close(self) -> None:
        """Give up the database."""
        self.store.close()

    def record_delivery(self, delivery: Delivery, at: datetime) -> Receipt:
        key = delivery.key
        if key is None:
            raise ValueError("a delivery that names no invoice is counted, not recorded")
        digest = hashlib.sha256(delivery.body).hexdigest()
        with self.store.transaction() as tx:
            (row,) = tx.rows(
                """INSERT INTO deliveries
                (platform, id, event, invoice_id, body, digest, received_at)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (platform, id) DO UPDATE SET times = deliveries.times
                + CASE WHEN deliveries.invoice_id = excluded.invoice_id THEN 1 ELSE 0 END
                RETURNING invoice_id, times""",
                [
                    *(delivery.platform, delivery.id, delivery.event, key.invoice_id),
                    *(delivery.body, digest, stamp(at)),
                ],
            )
            if row["invoice_id"] != key.invoice_id:
                return Receipt.CONFLICT
            steps.owe(tx, delivery, at)
            if row["times"] > 1:
                return Receipt.DUPLICATE
            data = {"delivery_id": delivery.id, "event": delivery.event, "digest": digest}
            steps.ring(tx, key, Entry(kind=EntryKind.DELIVERED, at=at, data=data))
            return Receipt.NEW

    def count_ignored(self, delivery: Delivery, at: datetime) -> None:
        if delivery.key is not None:
            raise ValueError("a delivery that names an invoice is recorded, not ignored")
        with self.store.transaction() as tx:
            tx.run(
                """INSERT INTO ignored (platform, event, times, last_at) VALUES (?, ?, 1, ?)
                ON CONFLICT (platform, event)
                DO UPDATE SET times = ignored.times + 1, last_at = excluded.last_at""",
                [delivery.platform, delivery.event, stamp(at)],
            )
            steps.owe(tx, delivery, at)

    def ignored(self) -> Mapping[tuple[str, str], int]:
        rows = self._rows("SELECT platform, event, times FROM ignored ORDER BY platform, event")
        return {(row["platform"], row["event"]): row["times"] for row in rows}

    def acks_owed(self, platform: str, limit: int = 1000) -> Sequence[str]:
        rows = self._rows(
            "SELECT delivery_id FROM acks WHERE platform = ? ORDER BY owed_at, delivery_id LIMIT ?",
            [platform, limit],
        )
        return [row["delivery_id"] for row in rows]

    def acknowledged(self, platform: str, delivery_id: str) -> None:
        with self.store.transaction() as tx:
            tx.run(
                "DELETE FROM acks WHERE platform = ? AND delivery_id = ?", [platform, delivery_id]
            )

    def wake(self, key: InvoiceKey, entry: Entry) -> None:
        with self.store.transaction() as tx:
            steps.ring(tx, key, entry)

    def claim(
        self, key: InvoiceKey, owner: str, at: datetime, lease: timedelta, trace_id: str = ""
    ) -> Claim | None:
        with self.store.transaction() as tx:
            taken = tx.rows(
                f"""UPDATE invoices SET fence = fence + 1, rings_claimed = rings,
                attempt = CASE WHEN lease_owner IS NOT NULL THEN attempt + 1
                    WHEN state = '{State.HELD}' THEN 0 ELSE attempt END,
                due_at = COALESCE(due_at, ?), lease_owner = ?, lease_until = ?
                {steps.MINE} AND (lease_until IS NULL OR lease_until <= ?)
                AND (state = '{State.HELD}' OR due_at <= ?) AND {acts.UNPAUSED}
                RETURNING fence, seq, head""",
                [
                    *(stamp(at), owner, stamp(at + lease)),
                    *(*id_of(key), stamp(at), stamp(at)),
                ],
            )
            if not taken:
                return None
            claim = Claim(key=key, owner=owner, fence=taken[0]["fence"])
            data = {"owner": owner, "fence": claim.fence} | (
                {"trace_id": trace_id} if trace_id else {}
            )
            steps.add(tx, key, taken[0], [Entry(kind=EntryKind.CLAIMED, at=at, data=data)])
            return claim

    def append(self, claim: Claim, entries: Sequence[Entry], lease_until: datetime) -> None:
        with self.store.transaction() as tx:
            row = steps.fenced(tx, claim)
            steps.add(tx, claim.key, row, entries, {"lease_until": stamp(lease_until)})

    def freeze(
        self,
        claim: Claim,
        entries: Sequence[Entry],
        tallies: Sequence[FrozenTally],
        at: datetime,
    ) -> Sequence[BilledSpan]:
        spans = [tally.span for tally in tallies]
        with self.store.transaction() as tx:
            row = steps.fenced(tx, claim)
            # Two invoices that bill one subject freeze in turn, and the second sees the first.
            tx.exclude(f"{claim.key.platform}/{span.subject}" for span in spans)
            if others := steps.billed(tx, claim.key, spans):
                return others
            tx.insert("tallies", [tally_row(claim.key, tally) for tally in tallies])
            steps.add(tx, claim.key, row, [*entries, counted_entry(tallies, at)])
            return []

    def discard_tallies(self, key: InvoiceKey, entry: Entry) -> bool:
        with self.store.transaction() as tx:
            rows = steps.unclaimed(tx, key, entry.at)
            billed = acts.state_of(tx, key) in (State.CLOSED, State.ISSUED)
            if not rows or billed or progress_of(steps.entries(tx, key)).unfinished:
                return False
            tx.run(f"DELETE FROM tallies {steps.MINE}", id_of(key))
            steps.add(tx, key, rows[0], [entry])
            return True

    def park(self, key: InvoiceKey, entry: Entry) -> bool:
        with self.store.transaction() as tx:
            return acts.park(tx, key, entry)

    def release(self, key: InvoiceKey, entry: Entry) -> bool:
        with self.store.transaction() as tx:
            return acts.release(tx, key, entry)

    def note(self, key: InvoiceKey, entry: Entry) -> bool:
        with self.store.transaction() as tx:
            return acts.note(tx, key, entry)

    def pause(self, act: Act) -> None:
        with self.store.transaction() as tx:
            acts.pause(tx, act)

    def resume(self, act: Act) -> bool:
        with self.store.transaction() as tx:
            return acts.resume(tx, act)

    def paused(self) -> Mapping[str, Act]:
        return acts.paused(self._rows("SELECT * FROM pauses ORDER BY platform"))

    def record_act(self, act: Act) -> None:
        with self.store.transaction() as tx:
            acts.record(tx, act)

    def acts(self, limit: int = 1000) -> Sequence[Act]:
        rows = self._rows("SELECT * FROM acts ORDER BY at DESC, verb, platform LIMIT ?", [limit])
        return [acts.act_of(row) for row in rows]

    def take_notice(self, channel: str, cause: str, at: datetime, every: timedelta) -> bool:
        with self.store.transaction() as tx:
            taken = tx.rows(
                """INSERT INTO notices (channel, cause, told_at) VALUES (?, ?, ?)
                ON CONFLICT (channel, cause) DO UPDATE SET told_at = excluded.told_at
                WHERE notices.told_at <= ? RETURNING channel""",
                [channel, cause, stamp(at), stamp(at - every)],
            )
            return bool(taken)

    def give_back_notice(self, channel: str, cause: str, at: datetime, as_if: datetime) -> None:
        with self.store.transaction() as tx:
            tx.run(
                "UPDATE notices SET told_at = ? WHERE channel = ? AND cause = ? AND told_at = ?",
                [stamp(as_if), channel, cause, stamp(at)],
            )

    def close_by_hand(self, key: InvoiceKey, entry: Entry) -> bool:
        with self.store.transaction() as tx:
            return acts.set_down(tx, key, entry, State.CLOSED)

    def settle(self, claim: Claim, entries: Sequence[Entry], outcome: Outcome) -> None:
        at = stamp(entries[-1].at)
        with self.store.transaction() as tx:
            row = steps.fenced(tx, claim)
            news = row["rings"] > row["rings_claimed"]
            changes = {
                "state": outcome.state.value,
                "reason": outcome.reason,
                "attempt": outcome.attempt,
                "updated_at": at,
                "due_at": at if news else outcome.due_at and stamp(outcome.due_at),
                "lease_owner": None,
                "lease_until": None,
            }
            steps.add(tx, claim.key, row, entries, changes)

    def billed(self, key: InvoiceKey, spans: Sequence[Span]) -> Sequence[BilledSpan]:
        with self.store.snapshot() as tx:
            return steps.billed(tx, key, spans)

    def history(self, key: InvoiceKey) -> History | None:
        with self.store.snapshot() as tx:
            found = tx.rows(f"SELECT * FROM invoices {steps.MINE}", id_of(key))
            if not found:
                return None
            deliveries = tx.rows(
                f"""SELECT id, event, received_at, times, digest FROM deliveries {steps.MINE}
                ORDER BY received_at, id""",
                id_of(key),
            )
            entries = steps.entries(tx, key)
        return History(
            row=invoice_of(found[0]),
            deliveries=tuple(map(delivery_of, deliveries)),
            entries=entries,
            tallies=tallies_of(entries),
        )

    def invoices(self, states: Sequence[State] = (), limit: int = 1000) -> Sequence[InvoiceRow]:
        where = f"WHERE state IN ({steps.marks(states)})" if states else ""
        rows = self._rows(
            f"SELECT * FROM invoices {where} ORDER BY first_seen_at, platform, invoice_id LIMIT ?",
            [*(state.value for state in states), limit],
        )
        return [invoice_of(row) for row in rows]

    def search(self, wanted: Filter, limit: int = 50, after: Cursor | None = None) -> Page:
        with self.store.snapshot() as tx:
            return search.search(tx, wanted, limit, after)

    def listed(self, wanted: Filter, limit: int, after: Cursor | None = None) -> Sequence[Listed]:
        with self.store.snapshot() as tx:
            return search.listed(tx, wanted, limit, after)

    def overview(self, now: datetime) -> Overview:
        with self.store.snapshot() as tx:
            return search.overview(tx, now)

    def previous_tallies(
        self, key: InvoiceKey, span: Span, count: int = 3
    ) -> Sequence[PreviousTally]:
        with self.store.snapshot() as tx:
            return search.previous_tallies(tx, key, span, count)

    def due(self, at: datetime, limit: int = 1000) -> Sequence[InvoiceKey]:
        rows = self._rows(
            f"""SELECT platform, invoice_id FROM invoices WHERE due_at <= ? AND {search.FREE}
            ORDER BY due_at LIMIT ?""",
            [stamp(at), stamp(at), limit],
        )
        return [InvoiceKey(row["platform"], row["invoice_id"]) for row in rows]

    def known(self, keys: Collection[InvoiceKey]) -> Set[InvoiceKey]:
        asked, found = list(keys), set[InvoiceKey]()
        for start in range(0, len(asked), _KEYS_AT_ONCE):
            some = asked[start : start + _KEYS_AT_ONCE]
            rows = self._rows(
                f"""SELECT platform, invoice_id FROM invoices
                WHERE (platform, invoice_id) IN (VALUES {", ".join(["(?, ?)"] * len(some))})""",
                [part for key in some for part in id_of(key)],
            )
            found.update(InvoiceKey(row["platform"], row["invoice_id"]) for row in rows)
        return found

    def keys(self) -> Iterator[InvoiceKey]:
        return invoice_keys(self._rows)

    def verify(self, key: InvoiceKey) -> Broken | None:
        with self.store.snapshot() as tx:
            return verify_invoice(tx, key)

    def counts(self) -> Mapping[str, int]:
        """Return how many rows each table has."""
        with self.store.snapshot() as tx:
            return row_counts(tx)

    def check(self) -> None:
        # Room is taken and given up: a statement that changes nothing needs no disk.
        row = {"platform": "", "event": "check", "times": 0, "last_at": "." * _ROOM_BYTES}
        with self.store.transaction() as tx:
            tx.insert("ignored", [row])
            tx.run("DELETE FROM ignored WHERE platform = ''")

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        with self.store.snapshot() as tx:
            return tx.rows(sql, values)
