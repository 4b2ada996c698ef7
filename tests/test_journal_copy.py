"""A journal moves to another database whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from builders import KEY, LEASE, MINUTE, NOW, delivery, other_key
from contracts import entry, tamper
from test_journal_verify import fill

from worker.errors import ReconcilerError
from worker.journal import open_journal
from worker.journal.copy import copy_journal
from worker.journal.sql import SqlJournal
from worker.record import Act, EntryKind, Receipt

KINDS = ("sqlite", "postgres")
Open = Callable[[str], SqlJournal]


@pytest.fixture(name="opened")
def _opened(new_journal_url: Callable[[str], str]) -> Iterator[Open]:
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(closing(open_journal(new_journal_url(kind))))


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("of", KINDS)
def test_a_copy_holds_everything(opened: Open, of: str, to: str) -> None:
    """Rows, bodies, chains and acknowledgements owed are the same, and work goes on there."""
    source, target = opened(of), opened(to)
    fill(source)
    body = bytes(range(256))
    source.record_delivery(delivery(id="NOT-9", body=body, owes_ack=True), NOW)
    source.wake(other_key(7), entry(EntryKind.REPLAYED, text="ü \0 ✓"))
    source.pause(Act(at=NOW, by="ana", verb="pause", reason="", platform="stripe"))
    assert source.take_notice("slack", "fraction", NOW, LEASE)
    copied = copy_journal(source, target, NOW)
    assert copied == source.counts() == target.counts()
    assert copied == {
        "deliveries": 3,
        "invoices": 3,
        "entries": 9,
        "tallies": 2,
        "ignored": 1,
        "acks": 2,
        "acts": 1,
        "pauses": 1,
        "notices": 1,
    }
    assert not target.take_notice("slack", "fraction", NOW, LEASE)
    assert target.acks_owed("billforward") == source.acks_owed("billforward")
    assert target.ignored() == source.ignored()
    assert target.invoices() == source.invoices()
    for key in source.keys():  # noqa: SIM118  not a dict
        assert target.history(key) == source.history(key)
        assert target.verify(key) is None
    with target.store.snapshot() as tx:
        assert tx.rows("SELECT body FROM deliveries WHERE id = 'NOT-9'") == [{"body": body}]
    assert target.record_delivery(delivery(), NOW) is Receipt.DUPLICATE
    assert target.claim(KEY, "two", NOW, LEASE) is not None
    assert target.verify(KEY) is None


def test_a_copy_of_many_rows_is_whole(opened: Open) -> None:
    """Rows go in batches; none is left out or taken twice at their borders."""
    source, target = opened("sqlite"), opened("postgres")
    for number in range(401):
        key = other_key(number)
        source.record_delivery(delivery(id=f"NOT-{number}", invoice_id=key.invoice_id), NOW)
        source.wake(key, entry(EntryKind.REPLAYED))
    assert copy_journal(source, target, NOW)["entries"] == 802


@pytest.mark.parametrize("to", KINDS)
def test_a_journal_that_holds_anything_is_not_copied_into(opened: Open, to: str) -> None:
    """Two histories are never mixed."""
    source, target = opened("sqlite"), opened(to)
    fill(source)
    target.count_ignored(delivery(invoice_id=None), NOW)
    with pytest.raises(ReconcilerError, match="not empty"):
        copy_journal(source, target, NOW)
    assert target.counts()["entries"] == 0


@pytest.mark.parametrize("of", KINDS)
def test_a_journal_at_work_is_not_copied(opened: Open, of: str) -> None:
    """While a worker holds an invoice its copy would fork; a lease that ran out is no worker."""
    source, target = opened(of), opened("sqlite")
    fill(source)
    source.claim(other_key(1), "one", NOW, LEASE)
    with pytest.raises(ReconcilerError, match=other_key(1).invoice_id):
        copy_journal(source, target, NOW + LEASE - MINUTE)
    assert set(target.counts().values()) == {0}
    copy_journal(source, target, NOW + LEASE)


@pytest.mark.parametrize(("of", "to"), [KINDS, KINDS[::-1]])
def test_a_broken_journal_is_not_copied(
    new_journal_url: Callable[[str], str], opened: Open, of: str, to: str
) -> None:
    """A move does not launder what was changed; the target stays empty."""
    url = new_journal_url(of)
    with closing(open_journal(url)) as source:
        fill(source)
        tamper(url, "DELETE FROM entries WHERE seq = 3")
        target = opened(to)
        with pytest.raises(ReconcilerError, match=r"not whole.*entry 3 is missing"):
            copy_journal(source, target, NOW)
    assert set(target.counts().values()) == {0}


def test_a_delivery_during_the_copy_is_not_lost(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the source goes on receiving, the copy is given up, not left behind it."""
    source, target = opened("sqlite"), opened("postgres")
    fill(source)
    counts = source.counts

    def late() -> object:
        source.record_delivery(delivery(id="NOT-LATE"), NOW)
        return counts()

    monkeypatch.setattr(source, "counts", late)
    with pytest.raises(ReconcilerError, match="changed while it was copied"):
        copy_journal(source, target, NOW)
    assert set(target.counts().values()) == {0}
