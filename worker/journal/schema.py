"""The journal's tables, as migrations; each is applied once, in order.

They are written in SQLite's words; `for_postgres` says the same in PostgreSQL's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.record import EntryKind, State

KEYS = {  # every table, and what names one of its rows
    "deliveries": ("platform", "id"),
    "invoices": ("platform", "invoice_id"),
    "entries": ("platform", "invoice_id", "seq"),
    "tallies": ("platform", "invoice_id", "charge_id"),
    "ignored": ("platform", "event"),
    "acks": ("platform", "delivery_id"),
    "acts": ("at", "verb", "platform"),
    "pauses": ("platform",),
    "notices": ("channel", "cause"),
}


def _words(enum: type[State] | type[EntryKind]) -> str:
    return ", ".join(f"'{word.value}'" for word in enum)


_FIRST_TABLES = (
    """CREATE TABLE deliveries (
        platform TEXT NOT NULL, id TEXT NOT NULL,
        event TEXT NOT NULL, invoice_id TEXT NOT NULL,
        body BLOB NOT NULL, digest TEXT NOT NULL,
        received_at TEXT NOT NULL, times INTEGER NOT NULL DEFAULT 1,
        PRIMARY KEY (platform, id)
    ) STRICT""",
    "CREATE INDEX deliveries_of_invoice ON deliveries (platform, invoice_id)",
    f"""CREATE TABLE invoices (
        platform TEXT NOT NULL, invoice_id TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ({_words(State)})),
        reason TEXT NOT NULL DEFAULT '',
        first_seen_at TEXT NOT NULL, updated_at TEXT NOT NULL,
        due_at TEXT, attempt INTEGER NOT NULL DEFAULT 0,
        lease_owner TEXT, lease_until TEXT, fence INTEGER NOT NULL DEFAULT 0,
        rings INTEGER NOT NULL DEFAULT 0, rings_claimed INTEGER NOT NULL DEFAULT 0,
        seq INTEGER NOT NULL DEFAULT 0, head TEXT NOT NULL DEFAULT '',
        cause TEXT NOT NULL DEFAULT '', issued_at TEXT,
        subscription_id TEXT NOT NULL DEFAULT '', account_id TEXT NOT NULL DEFAULT '',
        total TEXT NOT NULL DEFAULT '', currency TEXT NOT NULL DEFAULT '',
        components TEXT NOT NULL DEFAULT '', period_start TEXT, period_end TEXT,
        PRIMARY KEY (platform, invoice_id)
    ) STRICT""",
    "CREATE INDEX invoices_due ON invoices (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX invoices_by_state ON invoices (state, first_seen_at, platform, invoice_id)",
    "CREATE INDEX invoices_by_subscription ON invoices (subscription_id)",
    "CREATE INDEX invoices_by_account ON invoices (account_id)",
    f"""CREATE INDEX invoices_held ON invoices (cause, first_seen_at, platform, invoice_id)
        WHERE state = '{State.HELD}'""",
    f"CREATE INDEX invoices_held_since ON invoices (updated_at) WHERE state = '{State.HELD}'",
    "CREATE INDEX invoices_issued ON invoices (issued_at) WHERE issued_at IS NOT NULL",
    f"""CREATE TABLE entries (
        platform TEXT NOT NULL, invoice_id TEXT NOT NULL, seq INTEGER NOT NULL,
        at TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ({_words(EntryKind)})),
        data TEXT NOT NULL, digest TEXT NOT NULL,
        PRIMARY KEY (platform, invoice_id, seq)
    ) STRICT""",
    f"""CREATE INDEX entries_held ON entries (at, platform, invoice_id)
        WHERE kind = '{EntryKind.HELD}'""",
    """CREATE TABLE tallies (
        platform TEXT NOT NULL, invoice_id TEXT NOT NULL, charge_id TEXT NOT NULL,
        subject TEXT NOT NULL, component TEXT NOT NULL,
        period_start TEXT NOT NULL, period_end TEXT NOT NULL, quantity TEXT NOT NULL,
        PRIMARY KEY (platform, invoice_id, charge_id)
    ) STRICT""",
    """CREATE INDEX tallies_by_span ON tallies
        (platform, subject, component, period_start)""",
    """CREATE TABLE ignored (
        platform TEXT NOT NULL, event TEXT NOT NULL,
        times INTEGER NOT NULL, last_at TEXT NOT NULL,
        PRIMARY KEY (platform, event)
    ) STRICT""",
    """CREATE TABLE acks (
        platform TEXT NOT NULL, delivery_id TEXT NOT NULL, owed_at TEXT NOT NULL,
        PRIMARY KEY (platform, delivery_id)
    ) STRICT""",
    "CREATE INDEX acks_by_age ON acks (owed_at)",
    """CREATE TABLE acts (
        at TEXT NOT NULL, verb TEXT NOT NULL, platform TEXT NOT NULL,
        who TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (at, verb, platform)
    ) STRICT""",
    """CREATE TABLE pauses (
        platform TEXT NOT NULL, at TEXT NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (platform)
    ) STRICT""",
    """CREATE TABLE notices (
        channel TEXT NOT NULL, cause TEXT NOT NULL, told_at TEXT NOT NULL,
        PRIMARY KEY (channel, cause)
    ) STRICT""",
)

MIGRATIONS = {"first_tables": _FIRST_TABLES}

# What each database needs beside: to refuse changes of entries, and to search by age. SQLite reads
# the invoices of a search from an index that holds all that is searched; PostgreSQL, whose
# indexes bear no long texts, from the table.
SQLITE_ALONE = {
    "first_tables": (
        """CREATE INDEX invoices_by_age ON invoices (first_seen_at, platform, invoice_id, state,
        cause, subscription_id, account_id, period_start, period_end, components, reason)""",
        *(
            f"""CREATE TRIGGER entries_refuse_{change.lower()} BEFORE {change} ON entries
            BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END"""
            for change in ("UPDATE", "DELETE")
        ),
    )
}
POSTGRES_ALONE = {
    "first_tables": (
        "CREATE INDEX invoices_by_age ON invoices (first_seen_at, platform, invoice_id)",
        """CREATE FUNCTION entries_refuse_change() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'entries are append-only'; END $$""",
        """CREATE TRIGGER entries_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
        FOR EACH STATEMENT EXECUTE FUNCTION entries_refuse_change()""",
    )
}

_POSTGRES_WORDS = {
    "INTEGER": "BIGINT",
    "BLOB": "BYTEA",
    "TEXT": 'TEXT COLLATE "C"',  # compares as SQLite does, byte by byte
    " STRICT": "",
}


def for_postgres(statement: str) -> str:
    """Say a migration's statement in PostgreSQL's words."""
    return re.sub(
        r"\b(?:INTEGER|BLOB|TEXT)\b| STRICT$", lambda word: _POSTGRES_WORDS[word[0]], statement
    )


def pending(applied: Iterable[str]) -> list[str]:
    """Return what is not applied yet; ValueError: a later version has written the journal."""
    done = set(applied)
    if newer := done - set(MIGRATIONS):
        raise ValueError(
            f"it was written by a later version (migration {min(newer)}); upgrade the program"
        )
    return [name for name in MIGRATIONS if name not in done]
