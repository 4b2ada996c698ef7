"""Counting at the command line: without an invoice, and again what was billed."""

from __future__ import annotations

import getpass
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from builders import INV, KEY, LEASE, NOW, delivery, frozen
from click.testing import CliRunner, Result
from test_journal_commands import seen

from worker.cli import main
from worker.journal.sqlite import SqliteJournal
from worker.record import EntryKind

WHY = ("--reason", "a dispute")
CONFIG = """
[platforms.billforward]
base_url = "http://127.0.0.1:1/v1"
[journal]
url = "sqlite:///journal.db"
[usage_sources.events]
kind = "sql"
url = "sqlite:///usage.db"
table = "usage"
subject_column = "subject"
metric_column = "metric"
time_column = "at"
time_format = "iso"
quantity_column = "bytes"
[components."Text messages"]
source = "events"
metric = "text_message"
[components."Traffic"]
source = "events"
metric = "traffic"
aggregation = "sum"
divide_by = 1024
rounding = "up"
"""


@pytest.fixture(name="place", autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with three messages and some traffic of SUB-1, and no secrets set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILER_CONFIG", "config.toml")
    (tmp_path / "config.toml").write_text(CONFIG)
    rows = [
        ("SUB-1", "text_message", "2015-11-02T12:18:51Z", 1),
        ("SUB-1", "text_message", "2015-12-02T12:18:50.999999Z", 1),
        ("SUB-1", "text_message", "2015-12-02T12:18:51Z", 1),
        ("SUB-1", "traffic", "2015-11-10T00:00:00Z", 4097),
    ]
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("CREATE TABLE usage (subject TEXT, metric TEXT, at TEXT, bytes INTEGER)")
        db.executemany("INSERT INTO usage VALUES (?, ?, ?, ?)", rows)
    return tmp_path


def run(*arguments: str) -> Result:
    """Run the command in its own streams."""
    return CliRunner().invoke(main, arguments)


def count(name: str, *more: str) -> Result:
    """Count a component of SUB-1 over the example's period."""
    bounds = ("--from", "2015-11-02T12:18:51Z", "--to", "2015-12-02T13:18:51+01:00")
    return run("count", "--component", name, "--subject", "SUB-1", *bounds, *more)


def billed(place: Path, quantity: int) -> None:
    """Journal an invoice that was counted."""
    with closing(SqliteJournal(place / "journal.db")) as journal:
        journal.record_delivery(delivery(), NOW)
        claim = journal.claim(KEY, "one", NOW, LEASE)
        assert claim is not None
        journal.freeze(claim, [], [frozen(quantity)], NOW)


def test_a_component_is_counted_without_an_invoice() -> None:
    """The quantity stands first, then all that explains it; the end does not count."""
    result = count("Text messages")
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert first == "Text messages: 2"
    assert "  2015-11-02T12:18:51Z <= time < 2015-12-02T12:18:51Z" in rest
    assert any(line.startswith("  query: SELECT") for line in rest)


def test_a_count_is_scaled_and_rounded_as_an_invoice_would_be() -> None:
    """What is printed is what would be billed, with the value it was made of."""
    result = count("Traffic", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["quantity"], told["value"], told["divide_by"]) == (5, "4097", "1024")


def test_what_an_invoice_would_be_held_for_is_said() -> None:
    """An unknown subject is no 0 at the command line either."""
    result = run(
        *("count", "--component", "Traffic", "--subject", "nobody"),
        *("--from", "2015-11-01", "--to", "2015-12-01"),
    )
    assert result.exit_code == 3
    assert result.stdout == ""
    assert 'an invoice would be held: source "events" does not know "nobody"' in result.stderr


def test_what_a_source_refuses_would_hold_an_invoice_too(place: Path) -> None:
    """It is told as that, and ends alike; a source that is away is only to be asked again later."""
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace('"traffic"', '"trafic"'))
    refused = count("Traffic", "--json")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert refused.stderr.startswith('an invoice would be held: source "events": sql sqlite:///')
    assert "nobody ever used the metric 'trafic'" in refused.stderr
    (place / "usage.db").unlink()
    away = count("Traffic")
    assert (away.exit_code, away.stdout) == (1, "")
    assert away.stderr.startswith('reconciler: source "events": ')
    assert away.stderr.endswith("; try again later\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("Textmessages", "2015-11-01", "2015-12-01"), 'did you mean "Text messages"?'),
        (("Traffic", "2015-11-01T00:00:00", "2015-12-01"), "has no zone"),
        (("Traffic", "November", "2015-12-01"), "is no moment such as"),
        (("Traffic", "2015-12-01", "2015-11-01"), "--to lies before --from"),
        (("Traffic", "0001-01-01T00:00:00+02:00", "2015-11-01"), "is outside the calendar"),
        (("Traffic", "2015-11-01", "9999-12-31T23:59:59-02:00"), "is outside the calendar"),
    ],
)
def test_what_cannot_be_counted_is_named(arguments: tuple[str, str, str], told: str) -> None:
    """A component that is not there, what is no time in UTC, and an inverted period."""
    name, start, end = arguments
    result = run("count", "--component", name, "--subject", "S", "--from", start, "--to", end)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_terminal_shows_that_it_counts() -> None:
    """A spinner on standard error that goes; none for programs, and no colours with NO_COLOR."""
    asked = (
        *("count", "--component", "Text messages", "--subject", "SUB-1"),
        *("--from", "2015-11-02T12:18:51Z", "--to", "2015-12-02T12:18:51Z"),
    )
    stdout, stderr = seen(*asked)
    assert stdout.startswith("Text messages: 2\n")
    assert "counting" in stderr
    assert "\x1b[32m" in stderr
    assert stderr.endswith("\x1b[2K")
    _, plain = seen(*asked, NO_COLOR="1")
    assert "counting" in plain
    assert "\x1b[3" not in plain
    stdout, stderr = seen(*asked, "--json")
    assert (json.loads(stdout)["quantity"], stderr) == (2, "")


def test_a_recount_that_agrees(place: Path) -> None:
    """Billed, recounted and a difference of 0, exit code 0."""
    billed(place, 2)
    result = run("recount", INV, *WHY)
    assert result.exit_code == 0, result.output
    head, line = result.stdout.splitlines()
    assert head.split() == ["component", "billed", "recounted", "difference"]
    assert line.split() == ["Text", "messages", "2015-11-02", "2", "2", "0"]


def test_a_recount_that_differs_needs_a_person(place: Path) -> None:
    """The difference is printed with its sign, exit code 3."""
    billed(place, 105)
    result = run("recount", INV, *WHY)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[1].split()[-3:] == ["105", "2", "-103"]
    (told,) = json.loads(run("recount", INV, *WHY, "--json").stdout)
    assert (told["billed"], told["recounted"], told["difference"]) == (105, 2, -103)


def test_a_recount_is_on_the_record(place: Path) -> None:
    """Who had it counted again, why, and each number, also with what came late; no number moves."""
    billed(place, 105)
    result = run("recount", INV, "--late-too", "--reason", "the customer asked", "--json")
    assert result.exit_code == 3
    with closing(SqliteJournal(place / "journal.db")) as journal:
        history = journal.history(KEY)
        assert journal.verify(KEY) is None
    assert history is not None
    last = history.entries[-1]
    assert last.kind is EntryKind.RECOUNTED
    assert last.data == {
        "by": getpass.getuser(),
        "reason": "the customer asked",
        "late_too": True,
        "charges": json.loads(result.stdout),
    }
    assert [tally.quantity for tally in history.tallies] == [105]
    story = run("show", INV).stdout
    assert f"by {getpass.getuser()}; the customer asked; Text messages -103" in story


@pytest.mark.parametrize("reason", [(), ("--reason", " "), ("--reason", "x" * 501)])
def test_a_recount_needs_a_reason(place: Path, reason: tuple[str, ...]) -> None:
    """Nothing is counted or recorded without saying why, as on the pages."""
    billed(place, 105)
    before = (place / "journal.db").read_bytes()
    refused = run("recount", INV, *reason)
    assert (refused.exit_code, refused.stdout, "eason" in refused.stderr) == (2, "", True)
    assert (place / "journal.db").read_bytes() == before


def test_a_recount_without_its_source_says_so(place: Path) -> None:
    """A source that is gone from the disk is named, exit code 3."""
    billed(place, 2)
    (place / "usage.db").unlink()
    result = run("recount", INV, *WHY)
    assert result.exit_code == 3
    assert 'source "events":' in result.stdout


def test_what_was_never_counted_cannot_be_recounted(place: Path) -> None:
    """An invoice without frozen counts, and one that nobody knows, are named."""
    with closing(SqliteJournal(place / "journal.db")) as journal:
        journal.record_delivery(delivery(), NOW)
    result = run("recount", INV, *WHY)
    assert result.exit_code == 1
    assert f"{INV}: nothing of it was counted yet" in result.stderr
