"""The doctor on the journal: each misconfiguration seeded in a real one."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from builders import KEY
from doctor_builders import PRICE, Installation, installed
from postgres import Server

from worker.domain import InvoiceKey
from worker.journal import open_journal
from worker.ports import Ports
from worker.reconcile import reconcile
from worker.record import Act, Entry, EntryKind, Outcome, State
from worker.wiring import configured, open_service, utc_now

NOBODY = 65534


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


def wake(whole: Installation, age: timedelta = timedelta(0)) -> None:
    """Let the journal know an invoice, since some time."""
    with closing(open_journal(whole.journal_url)) as journal:
        journal.wake(KEY, Entry(kind=EntryKind.FOUND, at=utc_now() - age))


def run_invoice(whole: Installation, component: str) -> None:
    """Put an invoice with a usage charge on the platform, and work on it."""
    charge = {"name": "Usage", "pricingComponentName": component, "price": PRICE}
    shown = whole.control.put_invoice(
        charges=[charge], periodStart="2020-01-01T00:00:00Z", periodEnd="2020-02-01T00:00:00Z"
    )
    key = InvoiceKey("billforward", shown["id"])
    service = open_service(configured())
    journal = service.journal
    journal.wake(key, Entry(kind=EntryKind.FOUND, at=utc_now()))
    ports = Ports(
        platform=service.platforms["billforward"],
        sources=service.sources,
        journal=journal,
        now=utc_now,
        random=random.random,
        stopping=lambda: False,
    )
    outcome = reconcile(key, owner="test", ports=ports, rules=service.config.rules)
    assert outcome is not None
    assert outcome.state is State.HELD


def test_the_journal_is_made_where_none_is(whole: Installation) -> None:
    """Where there is no journal yet, one is made, and then it is well."""
    assert whole.found("journal").well
    assert (whole.folder / "state" / "journal.db").exists()


def test_a_folder_that_is_a_file(whole: Installation) -> None:
    """A file in the place of the journal's folder is found."""
    (whole.folder / "state").write_text("no folder")
    finding = whole.bad()
    assert finding.subject == "journal"
    assert "state/journal.db" in finding.told
    assert "journal.url" in finding.mend


def test_a_folder_that_cannot_be_written(open_to_all: Installation) -> None:
    """A state folder in which we may not make a file is found, with the command to own it."""
    state = open_to_all.folder / "state"
    state.mkdir()
    state.chmod(0o555)
    with nobody():
        finding = open_to_all.bad()
    assert finding.subject == "journal"
    assert "unable to open database file" in finding.told
    assert f"chown -R USER {state}" in finding.mend


def test_a_journal_that_cannot_be_written(open_to_all: Installation) -> None:
    """A journal that we may read and not write is found."""
    assert open_to_all.found("journal").well
    state = open_to_all.folder / "state"
    (state / "journal.db").chmod(0o444)
    state.chmod(0o555)
    with nobody():
        finding = open_to_all.bad()
    assert finding.subject == "journal"
    assert "readonly" in finding.told
    assert f"chown -R USER {state}" in finding.mend


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Iterator[Installation]:
    """An installation that anybody may read; all that is imported late, is imported."""
    with tempfile.TemporaryDirectory(prefix="reconciler-doctor-") as folder:
        Path(folder).chmod(0o755)
        with installed(Path(folder), monkeypatch, redis_url) as made:
            made.set("RECONCILER__JOURNAL__URL", f"sqlite:///{folder}/warm/journal.db")
            made.findings()
            made.unset("RECONCILER__JOURNAL__URL")
            yield made
            monkeypatch.undo()  # leaves the folder before it goes


@contextmanager
def nobody() -> Iterator[None]:
    """Give up being the administrator, who may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_database_in_which_we_may_only_read(
    whole: Installation, postgres: Server, database: str
) -> None:
    """A PostgreSQL journal whose user may read and not write is found."""
    open_journal(postgres.url(database)).close()
    role = f"reader_{database}"
    postgres.run(f"CREATE ROLE {role} LOGIN")
    try:
        postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=database)
        url = postgres.url(database).replace("postgres@", f"{role}@")
        whole.set("RECONCILER__JOURNAL__URL", url)
        finding = whole.bad()
    finally:
        postgres.run(f"DROP OWNED BY {role}", database=database)
        postgres.run(f"DROP ROLE {role}")
    assert finding.subject == "journal"
    assert "permission denied" in finding.told
    assert "correct journal.url" in finding.mend


def test_a_file_that_is_no_journal(whole: Installation) -> None:
    """A file that is no database is found."""
    (whole.folder / "state").mkdir()
    (whole.folder / "state" / "journal.db").write_bytes(b"x" * 5000)
    assert "file is not a database" in whole.bad().told


def test_a_journal_of_another_kind(whole: Installation) -> None:
    """A journal's URL that no adapter knows is found, without its password."""
    whole.set("RECONCILER__JOURNAL__URL", "mysql://me:s3cr3t-db@h/db")
    finding = whole.bad()
    assert "mysql is not a journal" in finding.told
    assert "s3cr3t" not in repr(finding)


def test_a_broken_chain(whole: Installation) -> None:
    """An entry that was changed behind the program's back is found, with its invoice."""
    wake(whole)
    assert whole.found("journal chain").told == "the last 1 invoices are whole"
    with closing(sqlite3.connect(whole.folder / "state" / "journal.db")) as db, db:
        db.execute("DROP TRIGGER entries_refuse_update")
        db.execute('UPDATE entries SET data = \'{"by":"somebody"}\'')
    finding = whole.bad()
    assert finding.subject == "journal chain"
    assert KEY.invoice_id in finding.told
    assert "entry 1 is not what its digest says" in finding.told
    assert "`reconciler journal verify`" in finding.mend


def test_an_invoice_that_waits_too_long(whole: Installation) -> None:
    """An invoice that is due for a day and not taken is found; for less, it is well."""
    wake(whole, timedelta(hours=20))
    assert whole.found("invoices").well
    whole.now = lambda: utc_now() + timedelta(hours=6)
    late = whole.found("invoices")
    assert not late.well
    assert late.told == (
        "the oldest unissued one waits for 26 hours;"
        f" {KEY} for 26 hours: due, and no worker takes it"
    )
    assert "`reconciler list --state held`" in late.mend


def test_an_invoice_that_rightly_waits_for_long(whole: Installation) -> None:
    """However old it is, one that waits for its time is told of, and is well."""
    wake(whole, timedelta(days=3))
    since = utc_now() - timedelta(days=3)
    with closing(open_journal(whole.journal_url)) as journal:
        claim = journal.claim(KEY, "test", since, timedelta(minutes=1))
        assert claim is not None
        entry = Entry(kind=EntryKind.WAITING, at=since, data={})
        until = utc_now() + timedelta(hours=1)
        journal.settle(claim, [entry], Outcome(state=State.WAITING, reason="x", due_at=until))
    found = whole.found("invoices")
    assert (found.well, found.told) == (True, "the oldest unissued one waits for 3 days")


def test_an_old_invoice_alone_is_the_one_finding(whole: Installation) -> None:
    """Nothing else is wrong for an invoice that waits."""
    wake(whole, timedelta(days=3))
    finding = whole.bad()
    assert finding.subject == "invoices"
    assert "for 3 days: due, and no worker takes it" in finding.told


def test_an_unmapped_component_that_was_seen(whole: Installation) -> None:
    """A component of a held invoice that is mapped nowhere is found, until it is mapped."""
    run_invoice(whole, "Fax pages")
    finding = whole.bad()
    assert finding.subject == "components seen"
    assert finding.told.startswith('component "Fax pages" of INV-')
    assert '[components."Fax pages"]' in finding.mend
    assert "1 held: A component has no source" in whole.found("invoices").told
    fax = '[components."Fax pages"]\nsource = "events"\nmetric = "text_message"\n'
    whole.configure(fax=f'{fax}aggregation = "unique"\n', events_of="")
    assert whole.found("components seen").well


def test_a_pause_is_told(whole: Installation) -> None:
    """That somebody paused the work is told, and is nothing bad."""
    with closing(open_journal(whole.journal_url)) as journal:
        journal.pause(Act(at=utc_now(), by="ann", verb="pause", reason="month end"))
    finding = whole.found("pauses")
    assert finding.well
    assert "everything is paused by ann" in finding.told
    assert "month end" in finding.told


def test_a_disk_that_is_nearly_full(whole: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room for the journal is found; here more is asked for than any disk has."""
    monkeypatch.setattr("worker.doctor.records.LEAST_FREE_BYTES", 10**18)
    finding = whole.bad()
    assert finding.subject == "disk"
    assert f"are free at {whole.folder}" in finding.told
    assert "`reconciler journal copy`" in finding.mend
