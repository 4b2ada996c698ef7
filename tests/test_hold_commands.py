"""Holding back, releasing and pausing at the command line."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from builders import INV, KEY, NOW, delivery
from click.testing import CliRunner, Result

from worker.cli import main
from worker.journal.sqlite import SqliteJournal
from worker.record import Act, State

NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(name="journal")
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteJournal]:
    """A journal that knows one invoice, in a working directory with a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILER_CONFIG", "config.toml")
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", NO_REDIS)
    monkeypatch.setenv("RECONCILER__JOURNAL__URL", "sqlite:///journal.db")
    (tmp_path / "config.toml").write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:1/v1"\n'
    )
    with closing(SqliteJournal(tmp_path / "journal.db")) as journal:
        journal.record_delivery(delivery(), NOW)
        yield journal


def run(*arguments: str) -> Result:
    """Run the command in its own streams."""
    return CliRunner().invoke(main, arguments)


def state_of(journal: SqliteJournal) -> State:
    """Return where the invoice is."""
    history = journal.history(KEY)
    assert history is not None
    return history.row.state


def test_an_invoice_is_held_back_and_let_go(journal: SqliteJournal) -> None:
    """Both are in its record with name and reason; a silent doorbell is said, and no failure."""
    result = run("hold", INV, "--reason", "a dispute")
    assert (result.exit_code, result.stdout) == (0, f"{KEY}: parked\n")
    assert state_of(journal) is State.PARKED
    result = run("release", INV, "--reason", "settled")
    assert (result.exit_code, result.stdout) == (0, f"{KEY}: released\n")
    assert "the sweep will ring" in result.stderr
    assert state_of(journal) is State.DUE
    history = journal.history(KEY)
    assert history is not None
    assert [entry.data.get("reason") for entry in history.entries[-2:]] == ["a dispute", "settled"]
    assert all(entry.data["by"] for entry in history.entries[-2:])


def test_what_cannot_be_held_or_released_is_said(journal: SqliteJournal) -> None:
    """An unknown invoice, one that a worker is at, and one that is neither parked nor held."""
    assert "is not in the journal" in run("hold", "INV-NOBODY", "--reason", "x").stderr
    assert "it is neither parked nor held" in run("release", INV, "--reason", "x").stderr
    assert journal.claim(KEY, "one", NOW, timedelta(days=36500)) is not None
    result = run("hold", INV, "--reason", "x")
    assert result.exit_code == 1
    assert "a worker is at it" in result.stderr


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_a_reason_is_required(journal: SqliteJournal, verb: str) -> None:
    """Nobody stops or lets go an invoice without saying why."""
    result = run(verb, INV)
    assert result.exit_code == 2
    assert "--reason" in result.stderr
    assert state_of(journal) is State.DUE


def test_everything_is_paused_and_resumed(journal: SqliteJournal) -> None:
    """While it is paused nothing is due; who did it is kept."""
    result = run("pause", "--reason", "the platform is being moved")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("every platform paused since ")
    assert journal.due(NOW) == []
    assert run("resume", "--reason", "done").stdout == "every platform resumed\n"
    assert journal.due(NOW) == [KEY]
    assert [act.reason for act in journal.acts()] == ["done", "the platform is being moved"]


def test_a_resume_without_a_pause_says_what_is_paused(journal: SqliteJournal) -> None:
    """One platform is paused by its name; another name is refused."""
    run("pause", "--platform", "billforward", "--reason", "x")
    result = run("resume", "--reason", "x")
    assert result.exit_code == 1
    assert "there is no pause of every platform; paused: billforward" in result.stderr
    result = run("pause", "--platform", "stripe", "--reason", "x")
    assert result.exit_code == 2
    assert "there are billforward" in result.stderr
    assert journal.due(NOW) == []


def test_programs_read_what_was_done_to_an_invoice(journal: SqliteJournal) -> None:
    """`hold` and `release` print one JSON object: the act, and the journal's word on it now."""
    for verb, state in (("hold", "parked"), ("release", "due")):
        result = run(verb, INV, "--reason", "x", "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert (told["act"], told["state"]) == (verb, state)
        assert (told["id"], told["platform"]) == (INV, "billforward")
    assert "the sweep will ring" in result.stderr
    refused = run("release", INV, "--reason", "x", "--json")
    assert (refused.exit_code, refused.stdout) == (1, "")


@pytest.mark.parametrize("platform", [None, "billforward"])
def test_programs_read_what_is_paused(journal: SqliteJournal, platform: str | None) -> None:
    """`pause` and `resume` print one JSON object: who, when, why and where; null is everywhere."""
    where = ["--platform", platform] if platform else []
    for verb in ("pause", "resume"):
        result = run(verb, *where, "--reason", "being moved", "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told.pop("at").endswith("Z")
        assert told == {
            "act": verb,
            "platform": platform,
            "by": getpass.getuser(),
            "reason": "being moved",
        }
    refused = run("resume", *where, "--reason", "x", "--json")
    assert (refused.exit_code, refused.stdout) == (1, "")


def test_what_is_paused_can_be_resumed_when_it_left_the_config(journal: SqliteJournal) -> None:
    """A pause of a platform that is not in the config any more can be undone, as on the pages."""
    journal.pause(Act(at=NOW, by="ana", verb="pause", reason="moved", platform="eu"))
    result = run("resume", "--platform", "eu", "--reason", "gone")
    assert (result.exit_code, result.stdout) == (0, "eu resumed\n")
    assert journal.paused() == {}
    assert run("resume", "--platform", "eu", "--reason", "gone").exit_code == 2


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
@pytest.mark.parametrize("command", [("hold", INV), ("release", INV), ("pause",), ("resume",)])
def test_a_reason_says_something(
    journal: SqliteJournal, command: tuple[str, ...], reason: str
) -> None:
    """A blank reason and an endless one are refused, as on the pages."""
    result = run(*command, "--reason", reason)
    assert result.exit_code == 2
    assert "eason" in result.stderr
    assert (state_of(journal), journal.acts()) == (State.DUE, [])
