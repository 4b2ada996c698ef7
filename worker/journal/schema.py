"""The SQLite journal's tables, as migrations; applied once each, in order, in one transaction."""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from worker.record import EntryKind, State

migrations = Migrations("journal")


def _words(enum: type[State] | type[EntryKind]) -> str:
    return ", ".join(f"'{word.value}'" for word in enum)


@migrations()
def first_tables(db: Database) -> None:
    """Create deliveries, invoices, entries, tallies and the count of ignored events."""
    db.execute(
        """CREATE TABLE deliveries (
            platform TEXT NOT NULL, id TEXT NOT NULL,
            event TEXT NOT NULL, invoice_id TEXT NOT NULL,
            body BLOB NOT NULL, digest TEXT NOT NULL,
            received_at TEXT NOT NULL, times INTEGER NOT NULL DEFAULT 1,
            PRIMARY KEY (platform, id)
        ) STRICT"""
    )
    db.execute("CREATE INDEX deliveries_of_invoice ON deliveries (platform, invoice_id)")
    db.execute(
        f"""CREATE TABLE invoices (
            platform TEXT NOT NULL, invoice_id TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ({_words(State)})),
            reason TEXT NOT NULL DEFAULT '',
            first_seen_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            due_at TEXT, attempt INTEGER NOT NULL DEFAULT 0,
            lease_owner TEXT, lease_until TEXT, fence INTEGER NOT NULL DEFAULT 0,
            rings INTEGER NOT NULL DEFAULT 0, rings_claimed INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (platform, invoice_id)
        ) STRICT"""
    )
    db.execute("CREATE INDEX invoices_due ON invoices (due_at) WHERE due_at IS NOT NULL")
    db.execute("CREATE INDEX invoices_by_state ON invoices (state, first_seen_at)")
    db.execute(
        f"""CREATE TABLE entries (
            platform TEXT NOT NULL, invoice_id TEXT NOT NULL, seq INTEGER NOT NULL,
            at TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ({_words(EntryKind)})),
            data TEXT NOT NULL, digest TEXT NOT NULL,
            PRIMARY KEY (platform, invoice_id, seq)
        ) STRICT"""
    )
    for change in ("UPDATE", "DELETE"):
        db.execute(
            f"""CREATE TRIGGER entries_refuse_{change.lower()} BEFORE {change} ON entries
            BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END"""
        )
    db.execute(
        """CREATE TABLE tallies (
            platform TEXT NOT NULL, invoice_id TEXT NOT NULL, charge_id TEXT NOT NULL,
            subscription_id TEXT NOT NULL, component TEXT NOT NULL,
            period_start TEXT NOT NULL, period_end TEXT NOT NULL,
            PRIMARY KEY (platform, invoice_id, charge_id)
        ) STRICT"""
    )
    db.execute(
        "CREATE INDEX tallies_by_span ON tallies"
        " (platform, subscription_id, component, period_start)"
    )
    db.execute(
        """CREATE TABLE ignored (
            platform TEXT NOT NULL, event TEXT NOT NULL,
            times INTEGER NOT NULL, last_at TEXT NOT NULL,
            PRIMARY KEY (platform, event)
        ) STRICT"""
    )


def migrate(db: Database) -> None:
    """Bring a journal to this version's tables; safe to run from several processes at once.

    Raises sqlite3.DatabaseError when a later version of the program has written the journal.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        known = {migration.name for migration in migrations.pending(Database(memory=True))}
        applied = {migration.name for migration in migrations.applied(db)}
        if newer := applied - known:
            raise sqlite3.DatabaseError(
                f"it was written by a later version (migration {min(newer)}); upgrade the program"
            )
        migrations.apply(db)
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise
