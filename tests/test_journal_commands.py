"""`reconciler journal` tells what it did, and ends with the code that says so."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from builders import INV, KEY, LEASE
from click.testing import CliRunner, Result
from contracts import tamper
from test_journal_verify import fill

from worker.cli import main
from worker.journal import open_journal
from worker.wiring import utc_now

END = b"end of the session"
CONFIG = '[platforms.billforward]\nbase_url = "https://h/v1"\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(name="url", params=["sqlite", "postgres"])
def _url(request: pytest.FixtureRequest, new_journal_url: Callable[[str], str]) -> str:
    url = new_journal_url(request.param)
    with closing(open_journal(url)) as journal:
        fill(journal)
    return url


@pytest.fixture(name="configured")
def _configured(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.setenv("RECONCILER_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("RECONCILER__JOURNAL__URL", url)
    return url


def run(*arguments: str) -> Result:
    """Run `reconciler journal`."""
    return CliRunner().invoke(main, ["journal", *arguments])


@pytest.mark.usefixtures("configured")
def test_a_whole_journal() -> None:
    """What was walked is told, and the exit code is 0."""
    done = run("verify")
    assert done.exit_code == 0
    assert done.stdout == "walked 2 invoices, 7 entries, 2 deliveries: all whole\n"
    done = run("verify", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"invoices": 2, "entries": 7, "broken": []}


def test_a_broken_journal(configured: str) -> None:
    """The first fault of each broken invoice is named, and the exit code asks for a person."""
    tamper(configured, f"DELETE FROM entries WHERE seq IN (3, 5) AND invoice_id = '{INV}'")
    done = run("verify")
    assert done.exit_code == 3
    assert done.stdout == (
        f"{KEY}: entry 3 is missing\nwalked 2 invoices, 5 entries, 2 deliveries: 1 broken\n"
    )
    done = run("verify", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["broken"] == [
        {
            "platform": "billforward",
            "invoice_id": INV,
            "entry": 3,
            "fault": "entry 3 is missing",
        }
    ]


@pytest.mark.parametrize("to", ["sqlite", "postgres"])
def test_a_copy_is_told(url: str, new_journal_url: Callable[[str], str], to: str) -> None:
    """Places without credentials, rows of each table, and the proof."""
    target = new_journal_url(to)
    done = run("copy", url, target)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "postgres@" not in done.stdout
    assert done.stdout.splitlines()[1:] == [
        "        2 deliveries",
        "        2 invoices",
        "        7 entries",
        "        2 tallies",
        "        1 ignored",
        "        1 acks",
        "        0 acts",
        "        0 pauses",
        "        0 notices",
        "every invoice's chain was recomputed in the copy: all whole",
    ]
    again = run("copy", url, target)
    assert again.exit_code == 1
    assert "not empty" in again.stderr


def test_a_copy_while_a_worker_runs_is_refused(
    url: str, new_journal_url: Callable[[str], str]
) -> None:
    """The reason says whom to stop."""
    with closing(open_journal(url)) as journal:
        (key,) = journal.due(utc_now())
        journal.claim(key, "one", utc_now(), LEASE)
    done = run("copy", url, new_journal_url("sqlite"))
    assert done.exit_code == 1
    assert f"a worker is at {key}: stop the workers first" in done.stderr


def test_a_journal_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A mistyped FROM is named, and no empty file is left in its place."""
    there = f"sqlite:///{tmp_path}/typo.db"
    done = run("copy", there, f"sqlite:///{tmp_path}/new.db")
    assert done.exit_code == 1
    assert there in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_not_copied_onto_itself(url: str) -> None:
    """The same URL twice is wrong use."""
    done = run("copy", url, url)
    assert done.exit_code == 2
    assert "the same" in done.stderr


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_copy_to_no_journal_is_wrong_use(url: str) -> None:
    """The argument is named that is no journal's URL, not a setting."""
    for arguments, named in ((("foo", url), "FROM"), ((url, "mysql://h/db"), "TO")):
        done = run("copy", *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"Error: {named}: " in done.stderr
        assert "is not a journal; use sqlite:///" in done.stderr


def seen(*arguments: str, typed: str = "", code: int = 0, **environ: str) -> tuple[str, str]:
    """Run `reconciler` at a terminal but for standard output; return both outputs."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(_read, ours)  # meanwhile: a terminal that nobody reads is soon full
        try:
            with subprocess.Popen(
                [sys.executable, "-m", "worker", *arguments],
                env={**os.environ, "TERM": "xterm", "COLUMNS": "90", **environ},
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=theirs,
                text=True,
            ) as child:
                stdout, _ = child.communicate(timeout=60)
        finally:
            os.write(theirs, END)
            os.close(theirs)
        stderr = shown.result()
    os.close(ours)
    assert child.returncode == code
    return stdout, stderr


def _read(terminal: int) -> str:
    """Read what a terminal shows, to the end of the session."""
    read = b""
    while not read.endswith(END):
        read += os.read(terminal, 65_536)
    return read.removesuffix(END).decode()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_terminal_shows_how_far_it_is(configured: str, tmp_path: Path) -> None:
    """A bar on standard error counts the invoices and goes; data stays on standard output."""
    stdout, stderr = seen("journal", "verify")
    assert stdout == "walked 2 invoices, 7 entries, 2 deliveries: all whole\n"
    assert "verifying" in stderr
    assert "2/2" in stderr
    assert "\x1b[32m" in stderr
    assert stderr.endswith("\x1b[2K")
    stdout, stderr = seen("journal", "copy", configured, f"sqlite:///{tmp_path}/new.db")
    assert stdout.startswith("copied ")
    assert "copying and verifying" in stderr
    assert "17/17" in stderr


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_no_bar_for_programs_or_plain_terminals() -> None:
    """With --json or a dumb terminal there is none, and with NO_COLOR one without colours."""
    stdout, stderr = seen("journal", "verify", "--json")
    assert (json.loads(stdout)["invoices"], stderr) == (2, "")
    assert seen("journal", "verify", TERM="dumb") == (
        "walked 2 invoices, 7 entries, 2 deliveries: all whole\n",
        "",
    )
    _, plain = seen("journal", "verify", NO_COLOR="1")
    assert "2/2" in plain
    assert "\x1b[3" not in plain


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_no_bar_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a terminal gets no bar, also where somebody wants colours everywhere."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run("verify")
    assert (done.exit_code, done.stderr) == (0, "")
