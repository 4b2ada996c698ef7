"""The SQLite journal keeps the contract, its chain and its word under trouble."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from builders import KEY, LEASE, NOW, delivery, frozen, other_key
from contracts import DONE, JournalContract, entry
from contracts_acts import ActsContract

from worker.errors import ConfigError, JournalUnavailable
from worker.journal import open_journal
from worker.journal.codec import digest_of
from worker.journal.sqlite import SqliteJournal
from worker.record import EntryKind, Receipt


class TestSqliteJournal(JournalContract):
    """Run the contract on files."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Name this test's file, in a folder that is not there yet."""
        return f"sqlite:///{tmp_path}/state/journal.db"


class TestSqliteActs(ActsContract):
    """Run the contract of acts on files."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Name this test's file."""
        return f"sqlite:///{tmp_path}/journal.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal's file."""
    return tmp_path / "journal.db"


def test_every_entry_is_chained_to_the_one_before(path: Path) -> None:
    """Each digest covers the entry and its predecessor's digest, so that an edit shows (R8)."""
    journal = SqliteJournal(path)
    journal.record_delivery(delivery(), NOW)
    claim = journal.claim(KEY, "one", NOW, LEASE)
    assert claim is not None
    journal.freeze(claim, [entry()], [frozen()], NOW)
    history = journal.history(KEY)
    assert history is not None
    digests, previous = [], ""
    for one in history.entries:
        previous = digest_of(KEY, one, previous)
        digests.append(previous)
    with closing(sqlite3.connect(path)) as db:
        stored = [row[0] for row in db.execute("SELECT digest FROM entries ORDER BY seq")]
    assert stored == digests
    assert len(set(digests)) == len(digests) == 4


def test_entries_cannot_be_changed_in_place(path: Path) -> None:
    """The table itself refuses updates and deletes."""
    SqliteJournal(path).record_delivery(delivery(), NOW)
    with closing(sqlite3.connect(path)) as db:
        for statement in ("UPDATE entries SET data = '{}'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


def test_the_raw_body_is_kept(path: Path) -> None:
    """A delivery's bytes are stored as they came, before anybody understood them."""
    body = b'{"entity": "\xc3\xbc"}'
    SqliteJournal(path).record_delivery(delivery(body=body), NOW)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT body FROM deliveries").fetchone() == (body,)


def test_the_file_is_durable(path: Path) -> None:
    """Write-ahead log and full synchronisation: what was answered survives a crash."""
    with SqliteJournal(path).store.snapshot() as tx:
        assert tx.rows("PRAGMA journal_mode") == [{"journal_mode": "wal"}]
        assert tx.rows("PRAGMA synchronous") == [{"synchronous": 2}]


def test_a_full_disk_stores_nothing_half(path: Path) -> None:
    """When no page is left the write fails as a whole and what was there stays whole."""
    journal = SqliteJournal(path, max_pages=40)
    stored = _stored_until_full(journal)
    journal.close()
    again = SqliteJournal(path)
    assert len(again.invoices()) == stored > 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM deliveries").fetchone() == (stored,)
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (stored,)


def _stored_until_full(journal: SqliteJournal) -> int:
    for number in range(1000):
        one = delivery(id=f"NOT-{number}", invoice_id=f"INV-{number}", body=b"x" * 2000)
        try:
            journal.record_delivery(one, NOW)
        except JournalUnavailable as error:
            if "full" not in str(error):
                raise
            return number
    raise AssertionError("the journal never became full")


def test_a_locked_journal_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never lets go ends in JournalUnavailable, not in a hang."""
    monkeypatch.setattr("worker.journal.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    journal = SqliteJournal(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable, match="locked"):
            journal.record_delivery(delivery(), NOW)
        with pytest.raises(JournalUnavailable, match="locked"):
            journal.check()
    assert journal.record_delivery(delivery(), NOW) is Receipt.NEW


@pytest.mark.parametrize(
    "content", [b"not a database at all, but text", b"SQLite format 3\x00" * 9]
)
def test_a_file_that_is_no_journal_is_refused(path: Path, content: bytes) -> None:
    """Somebody else's file is named and left as it is."""
    path.write_bytes(content)
    with pytest.raises(JournalUnavailable, match=r"journal\.db"):
        SqliteJournal(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is a clear error."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(JournalUnavailable, match="state"):
        SqliteJournal(tmp_path / "state" / "journal.db")


def test_a_journal_of_a_later_version_is_refused(path: Path) -> None:
    """An older program never writes into tables it does not know."""
    SqliteJournal(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('journal', 'from_the_future', '2030')"
        )
    with pytest.raises(JournalUnavailable, match=r"later version.*from_the_future"):
        SqliteJournal(path)


def test_several_processes_may_make_the_journal_at_once(path: Path) -> None:
    """Web and worker processes that start together do not trip over the migrations."""
    program = (
        "import sys; from pathlib import Path; from worker.journal.sqlite import SqliteJournal;"
        "SqliteJournal(Path(sys.argv[1])).check()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        _, complaint = process.communicate(timeout=30)
        assert (process.returncode, complaint) == (0, b"")


def test_a_new_file_is_made_by_whoever_comes_first(tmp_path: Path) -> None:
    """Turning the write-ahead log on needs the file alone, and SQLite does not wait for that."""
    start = threading.Barrier(8)

    def make(round_: int) -> None:
        start.wait(10)
        SqliteJournal(tmp_path / f"{round_}.db").close()

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(60):
            list(pool.map(make, [round_] * 8))


def test_threads_of_one_process_share_a_journal(path: Path) -> None:
    """A threaded web server records from all its threads; nothing is lost or doubled."""
    journal = SqliteJournal(path)

    def deliver(worker: int) -> None:
        for number in range(25):
            key = other_key(worker * 100 + number)
            journal.record_delivery(
                delivery(id=f"NOT-{key.invoice_id}", invoice_id=key.invoice_id), NOW
            )

    threads = [threading.Thread(target=deliver, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(journal.invoices()) == 200


def test_settling_twice_is_refused(path: Path) -> None:
    """A claim ends with its run; there is no second outcome."""
    journal = SqliteJournal(path)
    journal.record_delivery(delivery(), NOW)
    claim = journal.claim(KEY, "one", NOW, LEASE)
    assert claim is not None
    journal.settle(claim, [entry(EntryKind.ISSUED)], DONE)
    with pytest.raises(Exception, match="took it over"):
        journal.settle(claim, [entry(EntryKind.ISSUED)], DONE)


@pytest.mark.parametrize("url", ["mysql://localhost/x", "sqlite:///", "journal.db", ""])
def test_other_journal_urls_are_refused_with_the_mend(url: str) -> None:
    """A URL that names no journal says what one looks like."""
    with pytest.raises(ConfigError, match="sqlite:///path/to/file"):
        open_journal(url)


def test_an_absolute_url_is_an_absolute_path(tmp_path: Path) -> None:
    """Four slashes name a place independent of the working directory."""
    open_journal(f"sqlite:///{tmp_path}/deep/journal.db").check()
    assert (tmp_path / "deep" / "journal.db").exists()


def test_a_file_that_was_replaced_is_not_written_any_more(path: Path, tmp_path: Path) -> None:
    """After a restored backup nothing is promised that the file at this place does not hold."""
    journal = SqliteJournal(path)
    path.rename(tmp_path / "old.db")
    with pytest.raises(JournalUnavailable, match="moved or replaced"):
        journal.record_delivery(delivery(), NOW)
    SqliteJournal(path).close()
    with pytest.raises(JournalUnavailable, match="moved or replaced"):
        journal.check()
