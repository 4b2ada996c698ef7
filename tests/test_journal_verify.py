"""Whatever is changed behind the program's back shows, in both kinds of journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from builders import INV, KEY, LEASE, NOW, delivery, frozen, invoice, other_key
from contracts import DONE, entry, tamper

from worker.domain import InvoiceKey
from worker.journal import open_journal
from worker.journal.sql import SqlJournal
from worker.outcomes import seen
from worker.record import EntryKind


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, new_journal_url: Callable[[str], str]) -> str:
    """A journal of each kind."""
    return new_journal_url(request.param)


@pytest.fixture
def journal(url: str) -> Iterator[SqlJournal]:
    """A journal in which one invoice is delivered, counted and issued, and another waits."""
    with closing(open_journal(url)) as opened:
        fill(opened)
        yield opened


def fill(journal: SqlJournal) -> None:
    """Bring one invoice to its end, and let another be due."""
    journal.record_delivery(delivery(), NOW)
    claim = journal.claim(KEY, "one", NOW, LEASE)
    assert claim is not None
    fetched = entry(**seen(invoice()))
    journal.freeze(claim, [fetched], [frozen(), frozen(0, charge_id="CHG-2")], NOW)
    journal.append(claim, [entry(EntryKind.ISSUE_INTENT)], NOW + LEASE)
    journal.settle(claim, [entry(EntryKind.ISSUED)], DONE)
    journal.record_delivery(delivery(id="NOT-2", invoice_id=other_key(1).invoice_id), NOW)
    journal.count_ignored(delivery(id="NOT-3", invoice_id=None, owes_ack=True), NOW)


def test_an_untouched_journal_is_whole(journal: SqlJournal) -> None:
    """Every invoice is named, and each proves whole."""
    keys = list(journal.keys())
    assert sorted(keys) == sorted([KEY, other_key(1)])
    assert [journal.verify(key) for key in keys] == [None, None]


def test_a_recount_is_whole(journal: SqlJournal) -> None:
    """Tallies that were given up leave the table and stay in the record."""
    key = other_key(1)
    claim = journal.claim(key, "one", NOW, LEASE)
    assert claim is not None
    later = [frozen(span=frozen().span.__class__("SUB-9", "Fax", frozen().span.period))]
    journal.freeze(claim, [], later, NOW)
    assert journal.discard_tallies(key, entry(EntryKind.DISCARDED, at=NOW + LEASE))
    assert journal.verify(key) is None


THIS = f"platform = 'billforward' AND invoice_id = '{INV}'"


@pytest.mark.parametrize(
    ("statement", "seq", "fault"),
    [
        (
            f"UPDATE entries SET data = replace(data, '105', '15') WHERE seq = 4 AND {THIS}",
            4,
            "entry 4 is not what its digest says",
        ),
        (
            f"UPDATE entries SET at = '2015-12-02T13:00:01.000000Z' WHERE seq = 3 AND {THIS}",
            3,
            "entry 3 is not what its digest says",
        ),
        (
            f"UPDATE entries SET kind = 'held' WHERE seq = 6 AND {THIS}",
            6,
            "entry 6 is not what its digest says",
        ),
        (
            f"UPDATE entries SET digest = 'x' WHERE seq = 1 AND {THIS}",
            1,
            "entry 1 is not what its digest says",
        ),
        (
            f"UPDATE entries SET data = '{{}} ' WHERE seq = 3 AND {THIS}",
            3,
            "entry 3 is not what its digest says",
        ),
        (
            f"UPDATE entries SET data = 'nonsense' WHERE seq = 2 AND {THIS}",
            2,
            "entry 2 is not what its digest says",
        ),
        (f"DELETE FROM entries WHERE seq = 3 AND {THIS}", 3, "entry 3 is missing"),
        (f"DELETE FROM entries WHERE seq = 1 AND {THIS}", 1, "entry 1 is missing"),
        (f"DELETE FROM entries WHERE seq > 4 AND {THIS}", 5, "entries 5 to 6 are cut off"),
        (
            f"UPDATE invoices SET head = 'x' WHERE {THIS}",
            6,
            "entry 6 is not the one the invoice's row names as its newest",
        ),
        (
            f"UPDATE invoices SET seq = 5 WHERE {THIS}",
            6,
            "entry 6 is not the one the invoice's row names as its newest",
        ),
        (
            f"UPDATE tallies SET component = 'Fax' WHERE charge_id = 'CHG-1' AND {THIS}",
            4,
            "the table of tallies is not what its entries counted",
        ),
        (
            f"DELETE FROM tallies WHERE charge_id = 'CHG-2' AND {THIS}",
            4,
            "the table of tallies is not what its entries counted",
        ),
        (
            f"UPDATE tallies SET quantity = '15' WHERE charge_id = 'CHG-1' AND {THIS}",
            4,
            "the table of tallies is not what its entries counted",
        ),
        *(
            (
                f"UPDATE invoices SET {name} = {value} WHERE {THIS}",
                None,
                f"the invoice's row says another {name} than its entries",
            )
            for name, value in (
                ("subscription_id", "'SUB-2'"),
                ("account_id", "''"),
                ("total", "'5.1'"),
                ("currency", "'EUR'"),
                ("components", "''"),
                ("period_start", "NULL"),
                ("period_end", "'2016'"),
                ("issued_at", "NULL"),
            )
        ),
        (
            f"UPDATE deliveries SET body = '{{}}' WHERE {THIS}",
            1,
            f"the body of delivery {delivery().id} is not what its digest says",
        ),
        (
            f"UPDATE deliveries SET digest = 'x' WHERE {THIS}",
            1,
            f"delivery {delivery().id} is not what entry 1 says",
        ),
        (
            f"UPDATE deliveries SET event = 'Invoice/Paid' WHERE {THIS}",
            1,
            f"delivery {delivery().id} is not what entry 1 says",
        ),
        (f"DELETE FROM deliveries WHERE {THIS}", 1, f"delivery {delivery().id} is gone"),
        (
            f"UPDATE deliveries SET invoice_id = '{INV}' WHERE id = 'NOT-2'",
            None,
            "no entry tells of delivery NOT-2",
        ),
        (
            f"DELETE FROM invoices WHERE {THIS}",
            None,
            "the invoice's row is gone, and others of it are not",
        ),
    ],
)
def test_every_change_behind_the_programs_back_shows(
    url: str, journal: SqlJournal, statement: str, seq: int | None, fault: str
) -> None:
    """The invoice, the entry and what is wrong are named; nothing else is blamed."""
    if url.startswith("sqlite"):  # its STRICT table wants bytes as bytes
        statement = statement.replace("body = '{}'", "body = x'7b7d'")
    tamper(url, statement)
    found = {key: journal.verify(key) for key in journal.keys()}  # noqa: SIM118  not a dict
    assert KEY in found
    broken = found[KEY]
    assert broken is not None
    assert (broken.key, broken.seq, broken.fault) == (KEY, seq, fault)
    assert str(broken) == f"{KEY}: {fault}"
    if "NOT-2" not in statement:
        assert found[other_key(1)] is None


def test_entries_that_change_places_show(url: str, journal: SqlJournal) -> None:
    """The order of what happened is proven too."""
    tamper(
        url,
        f"UPDATE entries SET seq = -3 WHERE seq = 3 AND {THIS}",
        f"UPDATE entries SET seq = 3 WHERE seq = 4 AND {THIS}",
        f"UPDATE entries SET seq = 4 WHERE seq = -3 AND {THIS}",
    )
    broken = journal.verify(KEY)
    assert broken is not None
    assert broken.seq == 3


def test_an_entry_moved_to_another_invoice_shows(url: str, journal: SqlJournal) -> None:
    """A digest holds whose entry it is."""
    other = InvoiceKey("billforward", "INV-OTHER")
    tamper(
        url,
        "INSERT INTO invoices"
        " (platform, invoice_id, state, first_seen_at, updated_at, seq, head)"
        " SELECT platform, 'INV-OTHER', state, first_seen_at, updated_at,"
        f" 1, digest FROM invoices JOIN (SELECT digest FROM entries WHERE seq = 1 AND {THIS}) AS d"
        f" ON {THIS}",
        "INSERT INTO entries SELECT platform, 'INV-OTHER', seq, at, kind, data, digest"
        f" FROM entries WHERE seq = 1 AND {THIS}",
    )
    broken = journal.verify(other)
    assert broken is not None
    assert broken.fault == "entry 1 is not what its digest says"


def test_many_invoices_are_walked_once_each(journal: SqlJournal) -> None:
    """Pages neither repeat nor leave out an invoice, on whatever platform it is."""
    keys = [InvoiceKey(f"p{n % 3}", f"INV-{n:04}") for n in range(1200)]
    for key in keys:
        journal.wake(key, entry(EntryKind.REPLAYED))
    walked = list(journal.keys())
    assert len(walked) == len(set(walked)) == 1202
    assert set(keys) < set(walked)
