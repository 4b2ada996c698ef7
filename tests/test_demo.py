"""The demo, run as a user would: in an empty folder, as a process, with a clean environment."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from worker.demo import scenario
from worker.demo.processes import StepFailed
from worker.demo.report import Report
from worker.demo.run import STATE_FOLDER, demand_totals, run_demo
from worker.domain import InvoiceKey
from worker.journal.sqlite import SqliteJournal
from worker.record import State

COMMAND = [sys.executable, "-m", "worker"]
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
PROC = Path("/proc")  # Linux only; elsewhere what is left is not looked for
Done = subprocess.CompletedProcess[str]


def clean(**added: str) -> dict[str, str]:
    """Return an environment without anything of ours."""
    return {**{name: os.environ[name] for name in KEPT if name in os.environ}, **added}


def run(folder: Path, *arguments: str, **environ: str) -> Done:
    """Run a command in a folder to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=clean(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def processes_of(folder: Path) -> list[str]:
    """Return the processes whose command, working directory or environment names a folder."""
    found = []
    for process in PROC.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            told = [(process / name).read_text(errors="replace") for name in ("cmdline", "environ")]
            told.append(str((process / "cwd").readlink()))
        except OSError:  # it ended, or is another user's
            continue
        if any(str(folder) in each for each in told):
            found.append(f"{process.name} {told[0]}")
    return found


def none_left(folder: Path) -> bool:
    """Wait a little for the last process of a folder to be gone."""
    deadline = time.monotonic() + 5
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_of(folder) == []


def read(done: Done) -> dict[str, Any]:
    """Return the one document on standard output, with exact numbers."""
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout, parse_float=Decimal)
    return document


def invoices(done: Done) -> dict[str, dict[str, Any]]:
    """Return the document's invoices by id."""
    return {invoice["id"]: invoice for invoice in read(done)["invoices"]}


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a demo") / "of mine"


@pytest.fixture(scope="module", name="first")
def _first(folder: Path) -> Done:
    """Run it for the first time, in an empty folder."""
    folder.mkdir()
    done = run(folder, "demo", "--json")
    assert none_left(folder)
    return done


def test_the_articles_invoice(first: Done) -> None:
    """The article's invoice is billed as the article says: 105 messages, 0.10, 5.10 in all."""
    invoice = invoices(first)[scenario.ARTICLE]
    assert invoice["outcome"] == "issued"
    assert (invoice["state"], invoice["version"]) == ("Unpaid", 2)
    assert invoice["total"] == Decimal("5.10")
    (charge,) = invoice["charges"]
    assert set(charge) == {"id", "component", "quantity", "amount", "source", "events"}
    assert (charge["quantity"], charge["events"]) == (105, 105)
    assert charge["amount"] == Decimal("0.10")
    assert charge["component"] == "Text messages"
    assert "usage.db" in charge["source"]


def test_many_charges(first: Done) -> None:
    """An invoice of 51 usage charges is billed in full; the 46 unused ones as a counted zero."""
    invoice = invoices(first)[scenario.REPORTS]
    quantities = [charge["quantity"] for charge in invoice["charges"]]
    assert len(quantities) == 51
    assert sorted(quantities)[-5:] == [1, 2, 7, 12, 150]
    assert set(sorted(quantities)[:-5]) == {0}
    assert invoice["total"] == Decimal("43.00")


def test_skipped_and_held(first: Done) -> None:
    """A trial and a recalculated invoice are skipped untouched; an unmapped one is first held."""
    found = invoices(first)
    trial, recalculated = found[scenario.TRIAL], found[scenario.RECALCULATED]
    assert (trial["outcome"], trial["state"], trial["charges"]) == ("skipped", "Pending", [])
    assert "type is Trial" in trial["reason"]
    assert (recalculated["outcome"], recalculated["version"]) == ("skipped", 2)
    held = read(first)["held_first"]
    assert list(held) == [scenario.UNMAPPED]
    assert 'component "Fax pages" has no source' in held[scenario.UNMAPPED]
    assert found[scenario.UNMAPPED]["outcome"] == "issued"


def test_every_story_is_told(first: Done) -> None:
    """The document holds each invoice of the scenario, with every key and its expected total."""
    found = invoices(first)
    assert {key: value["total"] for key, value in found.items()} == {
        story.invoice_id: story.total for story in scenario.STORIES
    }
    keys = {"id", "outcome", "reason", "state", "version", "total", "charges"}
    assert all(set(invoice) == keys for invoice in found.values())


def test_only_the_state_folder_is_left(first: Done, folder: Path) -> None:
    """The demo leaves its state folder and nothing else, no secret in its files either."""
    assert [path.name for path in folder.iterdir()] == [str(STATE_FOLDER)]
    texts = [path for path in (folder / STATE_FOLDER).iterdir() if path.suffix in (".log", ".toml")]
    assert len(texts) == 3
    assert not any("password" in path.read_text().lower() for path in texts)


def test_the_journal_explains_it(first: Done, folder: Path) -> None:
    """Afterwards `show` explains 105 and 0.10 with everything of the demo gone but its journal."""
    done = run(folder, "show", scenario.ARTICLE)
    assert done.returncode == 0, done.stderr
    assert "Text messages: 105 (was 0), 0.10 USD" in done.stdout
    assert "105 events" in done.stdout
    assert "2015-11-02T12:18:51Z <= time < 2015-12-02T12:18:51Z" in done.stdout
    assert "FROM usage" in done.stdout


def test_a_second_run(first: Done, folder: Path) -> None:
    """Run again in the same folder, even with a proxy set, the demo does the same, as a table."""
    proxy = "http://127.0.0.1:1"
    done = run(folder, "demo", http_proxy=proxy, HTTP_PROXY=proxy)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("INV-")]) == len(scenario.STORIES)
    assert max(map(len, lines)) <= 80
    article = next(line for line in lines if line.startswith(scenario.ARTICLE))
    assert article.split()[1:] == ["issued", "1", "of", "1", "2", "5.10", "USD"]
    assert "using the demo's" not in done.stderr
    assert none_left(folder)


def test_a_foreign_folder(tmp_path: Path) -> None:
    """A folder of that name that holds something else is refused by name, and left alone."""
    (tmp_path / STATE_FOLDER).mkdir()
    (tmp_path / STATE_FOLDER / "thesis.txt").write_text("dear")
    done = run(tmp_path, "demo")
    assert done.returncode == 1
    assert f"{tmp_path / STATE_FOLDER} holds something else; move it away" in done.stderr
    assert [path.name for path in (tmp_path / STATE_FOLDER).iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("url", ["redis://:s3cr3t@127.0.0.1:1/0", "127.0.0.1:6379"])
def test_redis_unreachable(tmp_path: Path, url: str) -> None:
    """With a REDIS_URL where nobody answers, the demo fails at once and says at which step."""
    done = run(tmp_path, "demo", REDIS_URL=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2] == "demo: Redis"
    assert "demo failed: no answer from the Redis that REDIS_URL names" in done.stderr
    assert "s3cr3t" not in done.stderr
    assert none_left(tmp_path)


def test_a_redis_that_is_there(tmp_path: Path, redis_url: str) -> None:
    """With a REDIS_URL, that Redis is used, and nothing of the demo is left in it."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.set("theirs", "1")
        commands = client.info("stats")["total_commands_processed"]
        done = run(tmp_path, "demo", "--json", REDIS_URL=redis_url)
        assert len(invoices(done)) == len(scenario.STORIES)
        assert client.info("stats")["total_commands_processed"] > commands + 50
        assert client.keys("*") == ["theirs"]
    assert not (tmp_path / STATE_FOLDER / "redis").exists()


def test_stopped_in_the_middle(tmp_path: Path) -> None:
    """SIGTERM in the middle of the demo ends everything that it started."""
    with subprocess.Popen(
        [*COMMAND, "demo"], cwd=tmp_path, env=clean(), stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "webhook endpoint and worker" in line:
                break
        time.sleep(0.3)
        assert len(processes_of(tmp_path)) >= 3 or not PROC.exists()
        demo.send_signal(signal.SIGTERM)
        demo.stderr.read()
        assert demo.wait(20) == 128 + signal.SIGTERM
    assert none_left(tmp_path)


def with_total(total: str) -> tuple[scenario.Story, ...]:
    """Return the stories, with another expected total for the article's invoice."""
    return tuple(
        replace(story, total=Decimal(total)) if story.invoice_id == scenario.ARTICLE else story
        for story in scenario.STORIES
    )


def test_totals_are_demanded(first: Done, folder: Path) -> None:
    """A total that differs, or an invoice that is missing, is named with both numbers."""
    journal = SqliteJournal(folder / STATE_FOLDER / "journal.db")
    keys = [InvoiceKey("billforward", story.invoice_id) for story in scenario.STORIES]
    histories = [history for key in keys if (history := journal.history(key))]
    journal.close()
    held: Mapping[str, str] = {}
    demand_totals(Report(histories=histories, held_first=held), scenario.STORIES)
    with pytest.raises(StepFailed, match=rf"^{scenario.ARTICLE} comes to 5.10, expected 5.11$"):
        demand_totals(Report(histories=histories, held_first=held), with_total("5.11"))
    without_last = Report(histories=histories[:-1], held_first=held)
    with pytest.raises(StepFailed, match=rf"^{scenario.THRICE} comes to None, expected 0.80$"):
        demand_totals(without_last, scenario.STORIES)


def test_a_wrong_total_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When an invoice comes to another total than expected, the demo exits 1 and names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(scenario, "STORIES", with_total("5.11"))
    before = signal.getsignal(signal.SIGTERM)
    assert run_demo(as_json=True) == 1
    assert signal.getsignal(signal.SIGTERM) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"demo failed: {scenario.ARTICLE} comes to 5.10, expected 5.11" in captured.err
    assert none_left(tmp_path)


def test_two_demos_at_once(first: Done, folder: Path) -> None:
    """A second demo in the folder of a running one is refused, and disturbs nothing."""
    with (folder / STATE_FOLDER / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = sorted(path.name for path in (folder / STATE_FOLDER).iterdir())
        done = run(folder, "demo")
        assert done.returncode == 1
        assert "another demo is running" in done.stderr
        assert sorted(path.name for path in (folder / STATE_FOLDER).iterdir()) == before


def test_stories_end_as_they_say() -> None:
    """Each story names another invoice; only the unmapped one is to be held first."""
    assert len({story.invoice_id for story in scenario.STORIES}) == len(scenario.STORIES)
    held = [story.invoice_id for story in scenario.STORIES if story.ends is State.HELD]
    assert held == [scenario.UNMAPPED]
