"""The PostgreSQL journal keeps the contract, and its word under trouble."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from builders import KEY, LEASE, NOW, delivery
from contracts import JournalContract, entry
from contracts_acts import ActsContract
from postgres import Server

from worker.errors import ConfigError, JournalUnavailable
from worker.journal import open_journal
from worker.journal.postgres import PostgresJournal
from worker.record import EntryKind, Receipt


class TestPostgresJournal(JournalContract):
    """Run the contract on databases."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        """Name this test's database."""
        return postgres_url


class TestPostgresActs(ActsContract):
    """Run the contract of acts on databases."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        """Name this test's database."""
        return postgres_url


@pytest.fixture(name="journal")
def _journal(postgres_url: str) -> Iterator[PostgresJournal]:
    with closing(PostgresJournal(postgres_url)) as journal:
        yield journal


def test_connections_ended_while_idle_are_replaced(
    journal: PostgresJournal, postgres: Server, database: str
) -> None:
    """After a failover the next call finds its way by itself."""
    journal.check()
    assert postgres.terminate(database) == 1
    assert journal.record_delivery(delivery(), NOW) is Receipt.NEW


def test_a_connection_ended_in_the_middle_stores_nothing(
    journal: PostgresJournal, postgres: Server, database: str
) -> None:
    """What was under way is undone as a whole, said to be so, and can be done again."""

    def cut_off() -> None:
        with journal.store.transaction() as tx:
            tx.run("DELETE FROM deliveries")
            postgres.terminate(database)
            tx.run("DELETE FROM invoices")

    journal.record_delivery(delivery(), NOW)
    with pytest.raises(JournalUnavailable, match="terminat"):
        cut_off()
    assert journal.record_delivery(delivery(), NOW) is Receipt.DUPLICATE


def test_a_server_that_is_down_is_unavailable_until_it_is_back(
    postgres_url: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it restarts nothing is stored and nothing hangs; afterwards all is there."""
    monkeypatch.setattr("worker.journal.postgres._WAIT_SECONDS", 0.5)
    with closing(PostgresJournal(postgres_url)) as journal:
        journal.record_delivery(delivery(), NOW)
        with postgres.stopped():
            with pytest.raises(JournalUnavailable):
                journal.record_delivery(delivery(id="NOT-2"), NOW)
            with pytest.raises(JournalUnavailable, match="connection"):
                PostgresJournal(postgres_url)
        assert journal.record_delivery(delivery(), NOW) is Receipt.DUPLICATE
        assert journal.record_delivery(delivery(id="NOT-2"), NOW) is Receipt.NEW


def test_a_lock_that_is_never_let_go_ends_the_wait(postgres: Server, database: str) -> None:
    """Somebody's open transaction delays a write for a bounded time."""
    url = postgres.url(database, options="-c lock_timeout=100ms")
    with closing(PostgresJournal(url)) as journal:
        journal.record_delivery(delivery(), NOW)
        with psycopg.connect(url) as other:
            other.execute("SELECT * FROM invoices FOR UPDATE")
            with pytest.raises(JournalUnavailable, match="lock timeout"):
                journal.wake(KEY, entry(EntryKind.REPLAYED))
        journal.wake(KEY, entry(EntryKind.REPLAYED))


def test_a_statement_that_takes_too_long_is_ended(postgres: Server, database: str) -> None:
    """No statement runs without an end."""
    url = postgres.url(database, options="-c statement_timeout=100ms")
    with closing(PostgresJournal(url)) as journal:
        with (
            pytest.raises(JournalUnavailable, match="statement timeout"),
            journal.store.snapshot() as tx,
        ):
            tx.rows("SELECT pg_sleep(30)")
        journal.check()


def test_every_wait_is_bounded(journal: PostgresJournal) -> None:
    """The session's own limits are set, and a commit is on disk before it is answered."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with journal.store.snapshot() as tx:
        found = [tx.rows(f"SHOW {name}")[0][name] for name in (*names, "synchronous_commit")]
    assert found == ["30s", "5s", "1min", "on"]


def test_a_snapshot_writes_nothing(journal: PostgresJournal) -> None:
    """Reading is read-only by the database's own word."""
    with pytest.raises(JournalUnavailable, match="read-only"), journal.store.snapshot() as tx:
        tx.run("DELETE FROM acks")


def test_entries_cannot_be_changed_in_place(
    journal: PostgresJournal, postgres: Server, database: str
) -> None:
    """The table itself refuses updates, deletes and being emptied."""
    journal.record_delivery(delivery(), NOW)
    for statement in ("UPDATE entries SET data = '{}'", "DELETE FROM entries", "TRUNCATE entries"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            postgres.run(statement, database=database)


def test_several_machines_may_make_the_journal_at_once(postgres_url: str) -> None:
    """Processes that start together do not trip over the migrations."""
    program = (
        "import sys; from worker.journal import open_journal;"
        "journal = open_journal(sys.argv[1]); journal.check(); journal.close()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, postgres_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        _, complaint = process.communicate(timeout=30)
        assert (process.returncode, complaint) == (0, b"")


def test_a_process_that_does_not_close_ends_quietly(postgres_url: str) -> None:
    """A command that ends with the journal open neither hangs nor complains."""
    program = (
        "import sys; from worker.journal import open_journal; open_journal(sys.argv[1]).check()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, postgres_url], capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_journal_of_a_later_version_is_refused(
    postgres_url: str, postgres: Server, database: str
) -> None:
    """An older program never writes into tables it does not know."""
    PostgresJournal(postgres_url).close()
    postgres.run(
        "INSERT INTO journal_migrations VALUES ('from_the_future', '2030')", database=database
    )
    with pytest.raises(JournalUnavailable, match=r"later version.*from_the_future"):
        PostgresJournal(postgres_url)


def test_a_role_that_may_only_write_rows_is_enough(
    postgres_url: str, postgres: Server, database: str
) -> None:
    """Once the tables are there, the program needs no right to make any."""
    PostgresJournal(postgres_url).close()
    for statement in (
        "CREATE ROLE clerk LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO clerk",
    ):
        postgres.run(statement, database=database)
    try:
        url = postgres_url.replace("postgres@", "clerk@")
        with closing(PostgresJournal(url)) as journal:
            assert journal.record_delivery(delivery(), NOW) is Receipt.NEW
            assert journal.claim(KEY, "one", NOW, LEASE) is not None
    finally:
        postgres.run("DROP OWNED BY clerk", database=database)
        postgres.run("DROP ROLE clerk")


def test_a_database_of_another_encoding_is_refused(postgres: Server) -> None:
    """It could not hold every name that a customer may have."""
    with (
        postgres.database("SQL_ASCII") as name,
        pytest.raises(JournalUnavailable, match="SQL_ASCII; make one with UTF8"),
    ):
        PostgresJournal(postgres.url(name))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret-word@127.0.0.1:1/journal",
        "postgresql://me:s3cret-word@nowhere.invalid/journal?connect_timeout=2",
        "postgresql://me@127.0.0.1:1/journal?password=s3cret-word",
        "postgresql://me:s3cret-word%zz@127.0.0.1/journal",
        "postgresql://me@127.0.0.1/journal?passwort=s3cret-word",
        "postgresql://me:s3cret-word@127.0.0.1:notaport/journal",
    ],
)
def test_no_error_holds_the_password(url: str) -> None:
    """Whatever is wrong, what is told is one line and has no secret (R9)."""
    with pytest.raises((JournalUnavailable, ConfigError)) as caught:
        open_journal(url)
    told = str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in told
    assert "postgresql://" in told


def test_a_password_that_the_server_repeats_is_masked(postgres: Server, database: str) -> None:
    """Even where the password is a word of the error's text, it is not shown (R9)."""
    url = postgres.url(database, password="s3cret-word").replace("postgres@", "s3cret-word@")
    with pytest.raises(JournalUnavailable, match=r'role "\*\*\*" does not exist'):
        PostgresJournal(url)


def test_where_it_is_holds_no_credentials(postgres: Server, database: str) -> None:
    """The place that is shown is host and database."""
    url = postgres.url(database, password="s3cret-word")
    with closing(PostgresJournal(url)) as journal:
        assert journal.store.place.startswith("postgresql:///")
        assert journal.store.place.endswith(f"/{database}")


def test_without_psycopg_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who chose PostgreSQL without its extra reads which one to install."""
    monkeypatch.delitem(sys.modules, "worker.journal.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'invoice-reconciler\[postgres\]'"):
        open_journal("postgresql://localhost/x")
