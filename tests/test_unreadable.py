"""A record that cannot be read is held and said, and stops nothing else; nothing of it is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY, LEASE, NOW, delivery, frozen, other_key, rules
from click.testing import CliRunner
from contracts import entry, tamper
from fakes import FakeClock, FakePlatform, FakeSource
from flask import Flask
from ops_builders import Browser, fill, journal_of, key_of, logged_in, ops_app

from worker import actions
from worker.actions import ActRefused, Desk
from worker.cli import main
from worker.doorbell import Doorbell
from worker.errors import RecordInvalid
from worker.journal import open_journal
from worker.journal.codec import canonical, counted_entry
from worker.journal.sql import SqlJournal
from worker.ops.rq_requeue import requeue
from worker.outcomes import seen
from worker.overdue import most_overdue
from worker.ports import Ports
from worker.reconcile import reconcile
from worker.record import EntryKind, InvoiceRow, Outcome, State

TALLY = counted_entry([frozen()], NOW).data["tallies"][0]
SAID = "cannot be read: it was changed behind the program's back, or by another version"
COUNTED = 4  # the number of the entry that froze the tallies


def counted(**changed: Any) -> str:
    """Write the data of frozen tallies, one thing of the first changed."""
    return canonical({"tallies": [TALLY | changed]})


ODD_COUNTS = {
    "no tallies": "{}",
    "tallies of no kind": '{"tallies":null}',
    "an object of tallies": '{"tallies":{}}',
    "a text of tallies": '{"tallies":""}',
    "a tally that is none": '{"tallies":[5]}',
    "a tally without all": '{"tallies":[{"charge_id":"CHG-1"}]}',
    "a quantity in text": counted(quantity="105"),
    "a quantity of truth": counted(quantity=True),
    "a fraction": counted(quantity=10.5),
    "no component": counted(component=None),
    "no number": counted(value="many"),
    "another rounding": counted(rounding="to_the_moon"),
    "a moment without zone": counted(period_start="2015-11-02T12:00:00"),
    "evidence of no kind": counted(evidence=5),
}


@pytest.fixture(name="url", params=["sqlite", "postgres"])
def _url(request: pytest.FixtureRequest, new_journal_url: Callable[[str], str]) -> str:
    """A journal of each kind."""
    return new_journal_url(request.param)


@pytest.fixture(name="journal")
def _journal(url: str) -> Iterator[SqlJournal]:
    """A journal in which one invoice was fetched and counted, and is due again."""
    with closing(open_journal(url)) as opened:
        opened.record_delivery(delivery(), NOW)
        claim = opened.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        opened.freeze(claim, [entry(**seen(FakePlatform().invoices[INV]))], [frozen()], NOW)
        later = Outcome(state=State.RETRYING, reason="no answer", due_at=NOW, attempt=1)
        opened.settle(claim, [entry(EntryKind.FAILED)], later)
        yield opened


def damage(url: str, data: str, seq: int, invoice_id: str = INV) -> None:
    """Change an entry's data behind the program's back."""
    tamper(
        url,
        f"UPDATE entries SET data = '{data}' WHERE seq = {seq} AND invoice_id = '{invoice_id}'",
    )


def run(journal: SqlJournal, platform: FakePlatform) -> Outcome | None:
    """Let a worker look at the invoice."""
    ports = Ports(
        platform=platform,
        sources={"events": FakeSource()},
        journal=journal,
        now=FakeClock(),
        random=lambda: 0.0,
        stopping=lambda: False,
    )
    return reconcile(KEY, owner="two", ports=ports, rules=rules())


def row_of(journal: SqlJournal) -> InvoiceRow:
    """Return where the only invoice stands."""
    (row,) = journal.invoices()
    return row


def demand_held(journal: SqlJournal, seq: int) -> None:
    """Run, and see that the invoice is held for its entry, and nothing was asked or written."""
    platform = FakePlatform()
    outcome = run(journal, platform)
    assert outcome is not None
    assert outcome.reason.startswith(f"entry {seq} of {INV} {SAID}; reconciler journal verify")
    assert platform.steps == []
    row = row_of(journal)
    assert (row.state, row.reason) == (State.HELD, outcome.reason)
    assert (row.due_at, row.lease_until, row.attempt) == (None, None, 0)


@pytest.mark.parametrize("data", [pytest.param(v, id=k) for k, v in ODD_COUNTS.items()])
def test_counts_of_another_shape_hold_the_invoice(url: str, journal: SqlJournal, data: str) -> None:
    """They are never taken for no counts; each run says so, and asks the platform nothing."""
    damage(url, data, COUNTED)
    for _ in range(2):
        demand_held(journal, COUNTED)
        journal.wake(KEY, entry(EntryKind.REPLAYED))
    with pytest.raises(RecordInvalid, match=f"entry {COUNTED} of"):
        journal.history(KEY)
    with pytest.raises(RecordInvalid):
        journal.discard_tallies(KEY, entry(EntryKind.DISCARDED))
    broken = journal.verify(KEY)
    assert broken is not None
    assert broken.fault == f"entry {COUNTED} is not what its digest says"


@pytest.mark.parametrize(
    ("seq", "data"),
    [
        *((seq, data) for seq in range(1, 6) for data in ("5", "null")),
        *((COUNTED, data) for data in ("nonsense", "[]", '"text"', "[" * 100_000)),
    ],
    ids=lambda value: str(value)[:8],
)
def test_data_that_are_no_object_hold_the_invoice(
    url: str, journal: SqlJournal, seq: int, data: str
) -> None:
    """Whatever entry it is: delivered, claimed, fetched, counted or failed."""
    damage(url, data, seq)
    demand_held(journal, seq)
    broken = journal.verify(KEY)
    assert broken is not None
    assert broken.seq == seq


def test_a_restored_record_goes_on_with_its_counts(url: str, journal: SqlJournal) -> None:
    """After the mend a replay issues the invoice, with what was frozen before."""
    damage(url, "{}", COUNTED)
    demand_held(journal, COUNTED)
    damage(url, canonical({"tallies": [TALLY]}), COUNTED)
    assert journal.verify(KEY) is None
    journal.wake(KEY, entry(EntryKind.REPLAYED))
    platform = FakePlatform()
    outcome = run(journal, platform)
    assert outcome is not None
    assert outcome.state is State.ISSUED
    assert platform.charges["CHG-1"].quantity == 105


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EntryKind.COUNTED, {"odd": "shape"}),
        (EntryKind.FETCHED, {"state": "Pending"}),
        (EntryKind.CHARGE_INTENT, {"odd": "shape"}),
        (EntryKind.CHARGE_ANSWER, {"odd": "shape"}),
    ],
)
def test_what_another_version_wrote_is_named_by_verify(
    journal: SqlJournal, kind: EntryKind, data: dict[str, Any]
) -> None:
    """Its digest holds, and yet no run can go by it."""
    claim = journal.claim(KEY, "newer", NOW, LEASE)
    assert claim is not None
    due = Outcome(state=State.DUE, reason="", due_at=NOW)
    journal.settle(claim, [entry(kind, **data)], due)
    broken = journal.verify(KEY)
    assert broken is not None
    assert (broken.seq, broken.fault) == (
        7,
        "entry 7 is as it was written, but this version cannot read it",
    )
    demand_held(journal, 7)


def test_an_unreadable_invoice_is_overdue_too(url: str, journal: SqlJournal) -> None:
    """That it is due, and that no worker takes it, stands in no entry; nor does it hide others."""
    damage(url, "5", 1)
    late = most_overdue(journal, NOW)
    assert late is not None
    assert (late.row.key, late.since) == (KEY, NOW)
    journal.wake(other_key(1), entry(EntryKind.FOUND, at=NOW - LEASE))
    late = most_overdue(journal, NOW)
    assert late is not None
    assert late.row.key == other_key(1)


def test_show_says_it(
    url: str, journal: SqlJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence on standard error, and exit code 1; closing by hand works."""
    damage(url, "{}", COUNTED)
    (tmp_path / "config.toml").write_text('platforms.billforward.base_url = "https://h/v1"\n')
    monkeypatch.setenv("RECONCILER_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("RECONCILER__JOURNAL__URL", url)
    for told in ([], ["--json"]):
        result = CliRunner().invoke(main, ["show", INV, *told])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"reconciler: entry {COUNTED} of {INV} {SAID}")
        assert result.stderr.count("\n") == 1
    result = CliRunner().invoke(main, ["close", INV, "--reason", "issued by hand"])
    assert result.exit_code == 0, result.output
    assert row_of(journal).state is State.CLOSED


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application on a journal with invoices of every kind; Redis does not answer."""
    app = ops_app(
        journal_url,
        usage_sources={"events": {"kind": "csv", "path": "usage.csv", **COLUMNS}},
        components={"Text messages": {"source": "events", "metric": "sms"}},
    )
    fill(journal_of(app), datetime.now(UTC))
    return app


COLUMNS = {"subject_column": "s", "metric_column": "m", "time_column": "t", "time_format": "iso"}
LIST = "/ops/invoices"
ISSUED, OBSERVED, PARKED = (
    f"{LIST}/billforward/{key_of(number).invoice_id}" for number in (1, 0x33, 0x32)
)

DAMAGES = [
    *((EntryKind.COUNTED, data) for data in ODD_COUNTS.values()),
    *(
        (kind, data)
        for kind in (EntryKind.DELIVERED, EntryKind.CLAIMED, EntryKind.FETCHED, EntryKind.ISSUED)
        for data in ("nonsense", "5", "null")
    ),
]


@pytest.mark.parametrize(("kind", "data"), DAMAGES)
def test_the_pages_say_it(app: Flask, journal_url: str, kind: EntryKind, data: str) -> None:
    """The invoice's page names the entry, the lists and sources work, and no press is a crash."""
    invoice_id = key_of(1).invoice_id
    tamper(
        journal_url,
        f"UPDATE entries SET data = '{data}' WHERE kind = '{kind}' AND invoice_id = '{invoice_id}'",
    )
    browser = logged_in(app)
    answer = browser.get(ISSUED)
    assert answer.status_code == 200
    assert re.search(r"entry \d of INV-\S+ cannot be read", answer.text)
    assert re.search(r"broken</span>: entry \d is not what its digest says", answer.text)
    demand_others_work(browser, ISSUED)


@pytest.mark.parametrize("charges", [7, [{"odd": 1}], [5]])
def test_a_preview_of_another_shape_is_said(app: Flask, journal_url: str, charges: Any) -> None:
    """What was counted while observing is on the page of the invoice and on that of the sources."""
    data, invoice_id = json.dumps({"charges": charges}), key_of(0x33).invoice_id
    tamper(
        journal_url,
        f"UPDATE entries SET data = '{data}' WHERE kind = 'previewed'"
        f" AND invoice_id = '{invoice_id}'",
    )
    browser = logged_in(app)
    assert "cannot be read" in browser.get(OBSERVED).text
    demand_others_work(browser, OBSERVED)


def demand_others_work(browser: Browser, damaged: str) -> None:
    """See that every other page works, and that what cannot be done is refused."""
    others = ("/ops/", LIST, f"{LIST}?state=issued", f"{LIST}.csv", f"{LIST}.json", "/ops/sources")
    for url in others:
        assert browser.get(url).status_code == 200, url
    for verb in ("replay", "recount", "preview"):
        answer = browser.post(f"{damaged}/{verb}", {"reason": "a try"}, damaged)
        assert answer.status_code == 409, verb
        assert "cannot be read" in answer.text
    assert browser.post(f"{damaged}/close", {"reason": "by hand"}, damaged).status_code == 303
    assert "It is closed" in browser.get(f"{damaged}?done=close").text


def test_the_oldest_unreadable_invoice_is_named(app: Flask, journal_url: str) -> None:
    """The overview names the oldest that is not issued by its row, which can be read."""
    invoice_id = PARKED.rpartition("/")[2]
    tamper(journal_url, f"UPDATE entries SET data = '5' WHERE invoice_id = '{invoice_id}'")
    text = logged_in(app).get("/ops/").text
    assert "Oldest that is not issued" in text
    assert invoice_id in text


def test_a_requeue_is_refused_in_words(journal_url: str) -> None:
    """The press on the queue's pages changes nothing, and says why."""
    journal = open_journal(journal_url)
    journal.wake(KEY, entry(EntryKind.FOUND))
    damage(journal_url, "5", 1)
    doorbell = Doorbell("redis://127.0.0.1:1/0", "invoices")
    desk = Desk(journal=journal, doorbell=doorbell, now=FakeClock())
    with pytest.raises(ActRefused, match="entry 1 of"):
        requeue(desk, f"{KEY.platform}-{KEY.invoice_id}", "ana")
    with pytest.raises(RecordInvalid):
        actions.replay(desk, KEY, actions.Asked("ana", "a try"))
