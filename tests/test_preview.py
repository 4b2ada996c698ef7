"""A preview counts and prices everything, and writes nothing anywhere."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders import LEASE, NOW, delivery, frozen
from click.testing import CliRunner, Result
from sandbox_builders import february_invoice
from test_journal_commands import seen

from sandbox.process import RunningSandbox
from worker.cli import main
from worker.domain import InvoiceKey
from worker.journal.sqlite import SqliteJournal

SUBSCRIPTION = "SUB-00000000-0000-4000-8000-00000001"
CONFIG = """
[platforms.billforward]
base_url = "{base_url}"
[journal]
url = "sqlite:///journal.db"
[usage_sources.events]
kind = "sql"
url = "sqlite:///usage.db"
table = "usage"
subject_column = "subject"
metric_column = "metric"
time_column = "at"
time_format = "epoch_seconds"
[components."Text messages 0"]
source = "events"
metric = "texts"
"""
JANUARY = 1767225600  # its first second


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: RunningSandbox) -> Path:
    """An installation before the sandbox, with 105 messages of one subscription in January."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "RECONCILER_CONFIG": "config.toml",
        "RECONCILER__WEBHOOK__PASSWORD": "of-the-hook",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.toml").write_text(CONFIG.format(base_url=sandbox.base_url))
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at INTEGER)")
        rows = [(SUBSCRIPTION, "texts", JANUARY + number) for number in range(105)]
        db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    return tmp_path


def invoice(sandbox: RunningSandbox, charges: int = 1) -> str:
    """Put a pending invoice of February that bills January."""
    body = february_invoice(charges, subscriptionID=SUBSCRIPTION, notify=False)
    invoice_id: str = sandbox.control.put_invoice(**body)["id"]
    return invoice_id


def run(*arguments: str) -> Result:
    """Run the command in its own streams."""
    return CliRunner().invoke(main, arguments)


def writes(sandbox: RunningSandbox) -> list[str]:
    """Return the requests that were no reads, but for dry runs."""
    return [
        request["path"]
        for request in sandbox.control.record().requests
        if request["method"] != "GET" and request["path"] != "/v1/charges/recalculate"
    ]


def test_before_counted_and_amount_are_shown(place: Path, sandbox: RunningSandbox) -> None:
    """The platform's own dry run prices the count; charge, invoice and journal stay as they are."""
    key = invoice(sandbox)
    before = sandbox.control.invoice(key)
    result = run("preview", key)
    assert result.exit_code == 0, result.output
    head, line, total = result.stdout.splitlines()
    assert head.split() == ["component", "before", "amount", "before", "counted", "amount"]
    assert line.split() == ["Text", "messages", "0", "0", "0.00", "105", "0.10"]
    assert len(head) == len(line)
    assert result.stderr == ""  # nobody looks: there is no progress to show
    assert total == "total 0.00 USD, would be 0.10; nothing was written"
    assert sandbox.control.invoice(key) == before
    assert writes(sandbox) == []
    with closing(sqlite3.connect(place / "journal.db")) as db:
        assert db.execute("SELECT count(*) FROM invoices").fetchone() == (0,)


def test_a_terminal_shows_that_it_counts(place: Path, sandbox: RunningSandbox) -> None:
    """A spinner on standard error that goes; none for programs, and no colours with NO_COLOR."""
    key = invoice(sandbox)
    stdout, stderr = seen("preview", key)
    assert stdout.endswith("would be 0.10; nothing was written\n")
    assert "counting" in stderr
    assert "\x1b[32m" in stderr
    assert stderr.endswith("\x1b[2K")
    _, plain = seen("preview", key, NO_COLOR="1")
    assert "counting" in plain
    assert "\x1b[3" not in plain
    stdout, stderr = seen("preview", key, "--json")
    assert (json.loads(stdout)["total"], stderr) == ("0.10", "")


def test_json_holds_the_same(place: Path, sandbox: RunningSandbox) -> None:
    """Every number as exact text."""
    result = run("preview", invoice(sandbox), "--json")
    told = json.loads(result.stdout)
    (charge,) = told["charges"]
    assert (told["total_before"], told["total"], told["currency"]) == ("0.00", "0.10", "USD")
    assert (charge["quantity_before"], charge["quantity"], charge["amount"]) == ("0", "105", "0.10")


def test_what_would_hold_it_is_shown(place: Path, sandbox: RunningSandbox) -> None:
    """A component without a source holds, exit code 3, and nothing is written."""
    key = invoice(sandbox, charges=2)
    result = run("preview", key)
    assert result.exit_code == 3
    assert ': hold: component "Text messages 1" has no source.' in result.stdout
    told = json.loads(run("preview", key, "--json").stdout)
    assert (told["decision"], told["until"]) == ("hold", None)
    assert writes(sandbox) == []


def test_an_unknown_invoice_is_said(place: Path, sandbox: RunningSandbox) -> None:
    """Where the platform knows none by the id, it waits as a run would, and says so."""
    result = run("preview", "INV-00000000-0000-4000-8000-0000DEAD")
    assert "wait until" in result.stdout
    assert "the platform does not know it yet" in result.stdout
    told = json.loads(run("preview", "INV-00000000-0000-4000-8000-0000DEAD", "--json").stdout)
    assert (told["decision"], told["reason"]) == ("wait", "the platform does not know it yet")
    assert datetime.fromisoformat(told["until"]) > datetime.now(UTC)


def test_a_charge_that_joined_after_the_count_is_no_zero(
    place: Path, sandbox: RunningSandbox
) -> None:
    """With frozen counts a charge that was not counted holds, as it would hold a run."""
    key = invoice(sandbox, charges=2)
    with closing(SqliteJournal(place / "journal.db")) as journal:
        known = InvoiceKey("billforward", key)
        journal.record_delivery(delivery(invoice_id=key), NOW)
        claim = journal.claim(known, "one", NOW, LEASE)
        assert claim is not None
        charge_id = sandbox.control.invoice(key)["charges"][0]["id"]
        journal.freeze(claim, [], [frozen(105, charge_id=charge_id)], NOW)
    result = run("preview", key)
    assert result.exit_code == 3
    assert "joined the invoice after it was counted" in result.stdout
