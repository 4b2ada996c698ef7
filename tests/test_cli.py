"""The command line: data on standard output, messages on standard error, exit codes kept."""

from __future__ import annotations

import getpass
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from builders import INV, LEASE, delivery, frozen, invoice, other_key
from click.testing import CliRunner, Result
from sandbox_builders import february_invoice

from sandbox.process import RunningSandbox
from worker.cli import main
from worker.doctor import Finding
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell, job_id_of
from worker.journal.sqlite import SqliteJournal
from worker.outcomes import seen
from worker.record import Claim, Entry, EntryKind, Outcome, State

KEY = InvoiceKey("billforward", INV)
HELD = InvoiceKey("billforward", "INV-HELD")
ISSUED = InvoiceKey("billforward", "INV-ISSUED")
PAST = datetime(2015, 12, 2, 13, 0, tzinfo=UTC)
NO_REDIS = "redis://127.0.0.1:1/0"
SECRETS: dict[str, Any] = {
    "RECONCILER__WEBHOOK__PASSWORD": "hook-7b2c9e10",
    "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-5d41402a",
}
WHY = {"replay": ("--reason", "mapped")}
CONFIG = '[platforms.billforward]\nbase_url = "http://127.0.0.1:1/v1"\n'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in a working directory of its own, without secrets and without Redis."""
    monkeypatch.setenv("RECONCILER_CONFIG", "")
    monkeypatch.delenv("RECONCILER_CONFIG")  # what a command sets of it ends with the test
    monkeypatch.chdir(tmp_path)
    configure(tmp_path, CONFIG)
    return tmp_path


@pytest.fixture(name="journal")
def _journal(place: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(place / "journal.db")
    yield journal
    journal.close()


def configure(place: Path, text: str) -> None:
    """Write the configuration."""
    log = '[journal]\nurl = "sqlite:///journal.db"\n[log]\nlevel = "warning"\n'
    queue = f'[queue]\nredis_url = "{NO_REDIS}"\n'
    (place / "config.toml").write_text(f"{text}{log}{queue}")


def run(*arguments: str, code: int = 0, redis: str = NO_REDIS, **environ: Any) -> Result:
    """Run a command; its exit code must be as said, and no traceback may be shown."""
    environ["RECONCILER__QUEUE__REDIS_URL"] = redis
    result = CliRunner().invoke(main, arguments, env=environ)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def entry(kind: EntryKind, **data: Any) -> Entry:
    """Make an entry."""
    return Entry(kind=kind, at=PAST, data=data)


def claimed(journal: SqliteJournal, key: InvoiceKey, at: datetime = PAST) -> Claim:
    """Take an invoice."""
    claim = journal.claim(key, "host:1", at, LEASE)
    assert claim is not None
    return claim


def settled(journal: SqliteJournal, key: InvoiceKey, state: State, reason: str) -> None:
    """Bring an invoice into a state."""
    sent = delivery(id=f"NOT-{key}", platform=key.platform, invoice_id=key.invoice_id)
    journal.record_delivery(sent, PAST)
    due_at = PAST if state is State.WAITING else None
    outcome = Outcome(state=state, reason=reason, due_at=due_at)
    journal.settle(claimed(journal, key), [entry(EntryKind(state.value), reason=reason)], outcome)


def three(journal: SqliteJournal) -> None:
    """Put one invoice that is held, one that is issued and one that is due."""
    settled(journal, HELD, State.HELD, 'component "Fax pages" has no source')
    settled(journal, ISSUED, State.ISSUED, "Unpaid, 5.10 USD")
    journal.record_delivery(delivery(), PAST + timedelta(seconds=1))


def commands() -> list[tuple[str, click.Command]]:
    """Return every command there is."""
    return list(main.commands.items())


def test_list(journal: SqliteJournal) -> None:
    """`list` gives a header and a line an invoice on standard output, their number on the other."""
    three(journal)
    result = run("list")
    days = f"{(datetime.now(UTC) - PAST).days}d"
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["INVOICE", "AGE", "STATE", "TOTAL", "CUSTOMER", "REASON"],
        ["INV-HELD", days, "held", "-", "-", "component", '"Fax', 'pages"', "has", "no", "source"],
        ["INV-ISSUED", days, "issued", "-", "-", "Unpaid,", "5.10", "USD"],
        [INV, days, "due", "-", "-", "(due", "2015-12-02", "13:00:01Z)"],
    ]
    assert len({line.rindex("  ") for line in result.stdout.splitlines()}) == 1
    assert result.stderr == "3 invoices\n"


def test_list_tells_customer_and_total(journal: SqliteJournal) -> None:
    """`list` shows what the platform said of an invoice; `--json` all that is known of it."""
    journal.record_delivery(delivery(), PAST)
    claim = claimed(journal, KEY)
    fetched = entry(EntryKind.FETCHED, **seen(invoice(total="5.10")))
    journal.freeze(claim, [fetched], [frozen()], PAST)
    journal.settle(claim, [entry(EntryKind.HELD)], Outcome(state=State.HELD, reason="x"))
    assert run("list").stdout.splitlines()[1].split()[2:] == ["held", "5.10", "USD", "ACC-1", "x"]
    (row,) = json.loads(run("list", "--json").stdout)
    assert (row["id"], row["state"], row["cause"]) == (INV, "held", "other")
    assert (row["total"], row["account_id"], row["subscription_id"]) == ("5.10", "ACC-1", "SUB-1")
    assert (row["components"], row["period_end"]) == (["Text messages"], "2015-12-02T12:18:51Z")


def test_list_by_state(journal: SqliteJournal) -> None:
    """`list --state held`, as its help says, gives the held ones; several states may be given."""
    three(journal)
    assert run("list", "--state", "held").stdout.splitlines()[1].startswith("INV-HELD ")
    both = run("list", "--state", "held", "--state", "issued", "--json").stdout
    assert [row["id"] for row in json.loads(both)] == ["INV-HELD", "INV-ISSUED"]
    assert run("list", "--state", "waiting", "--json").stdout == "[]\n"
    cut = run("list", "--limit", "2")
    assert len(cut.stdout.splitlines()) == 3
    assert cut.stderr == "2 invoices of 3; see --limit\n"
    assert run("list", "--state", "waiting").stdout == ""
    assert "'hold' is not one of" in run("list", "--state", "hold", code=2).stderr


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--platform", "billforward"], ["INV-HELD", "INV-ISSUED", INV]),
        (["--platform", "eu"], []),
        (["--cause", "unmapped_component"], ["INV-HELD"]),
        (["--because", "NO source"], ["INV-HELD"]),
        (["--reason", "NO source"], ["INV-HELD"]),
        (["--subscription", "SUB-1"], ["INV-ISSUED"]),
        (["--account", "ACC-1"], ["INV-ISSUED"]),
        (["--component", "Fax pages"], ["INV-HELD"]),
        (["--text", "5.10"], ["INV-ISSUED"]),
        (["--since", "2015-12-02T14:00:00+02:00"], ["INV-ISSUED"]),
        (["--since", "2015-12-03"], []),
        (["--until", "2015-11-03", "--state", "issued"], ["INV-ISSUED"]),
        (["--until", "2015-11-02"], []),
        (["--newest"], [INV, "INV-ISSUED", "INV-HELD"]),
    ],
    ids=" ".join,
)
def test_list_filters(journal: SqliteJournal, options: list[str], found: list[str]) -> None:
    """Each option of `list` leaves out what it does not name."""
    settled(journal, HELD, State.HELD, 'component "Fax pages" has no source')
    journal.record_delivery(delivery(id="NOT-2", invoice_id="INV-ISSUED"), PAST)
    claim = claimed(journal, ISSUED)
    journal.freeze(claim, [entry(EntryKind.FETCHED, **seen(invoice()))], [frozen()], PAST)
    done = Outcome(state=State.ISSUED, reason="Unpaid, 5.10 USD")
    journal.settle(claim, [entry(EntryKind.ISSUED)], done)
    journal.record_delivery(delivery(), PAST + timedelta(seconds=1))
    assert [row["id"] for row in json.loads(run("list", *options, "--json").stdout)] == found


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--since", "2015-12-02T13:00:00", "has no zone"),
        ("--until", "yesterday", "is no moment"),
        ("--since", "0001-01-01T00:00:00+02:00", "is outside the calendar"),
        ("--until", "9999-12-31T23:59:59-02:00", "is outside the calendar"),
        ("--cause", "x", "is not one of"),
    ],
)
def test_list_refuses_wrong_use(place: Path, option: str, value: str, told: str) -> None:
    """An option that cannot be read is wrong use, with what it takes instead."""
    assert told in run("list", option, value, code=2).stderr


def test_list_names_platforms(place: Path, journal: SqliteJournal) -> None:
    """`list` says which platform an invoice is on where there are several."""
    three(journal)
    settled(journal, InvoiceKey("eu", "INV-HELD"), State.HELD, "too much")
    (line,) = [one for one in run("list").stdout.splitlines() if "INV-HELD · eu" in one]
    assert line.split()[4:] == ["held", "-", "-", "too", "much"]


def test_show(journal: SqliteJournal) -> None:
    """`show` tells one invoice's story, and `show --json` the same as one document."""
    three(journal)
    assert run("show", "INV-HELD").stdout.startswith("INV-HELD · billforward: held\n  component")
    story = json.loads(run("show", "INV-HELD", "--json").stdout)
    assert (story["id"], story["state"], len(story["entries"])) == ("INV-HELD", "held", 3)


def test_unknown_invoice(journal: SqliteJournal) -> None:
    """`show` of an invoice that the journal does not know fails and says what asks for it."""
    result = run("show", "INV-NOWHERE", code=1)
    assert result.stdout == ""
    assert "INV-NOWHERE is not in the journal; a replay asks" in result.stderr


@pytest.mark.parametrize("command", ["show", "replay"])
@pytest.mark.parametrize("invoice_id", ["../x", "", "a b", "INV;ls", "x" * 65, "INV-1\n"])
def test_bad_ids(place: Path, command: str, invoice_id: str) -> None:
    """What cannot be an invoice's id is wrong use, and reaches nothing."""
    result = run(command, invoice_id, *WHY.get(command, ()), code=2)
    assert f"{invoice_id!r} is not an invoice's id" in result.stderr
    assert result.stdout == ""


def test_several_platforms(place: Path, journal: SqliteJournal) -> None:
    """With several platforms the journal says which is meant; where it cannot, one is asked for."""
    configure(
        place, f'{CONFIG}[platforms.eu]\nkind = "billforward"\nbase_url = "http://127.0.0.1:1"\n'
    )
    three(journal)
    settled(journal, InvoiceKey("eu", "INV-EU"), State.HELD, "too much")
    assert run("show", "INV-EU").stdout.startswith("INV-EU · eu: held")
    assert "name one with --platform: billforward, eu" in run("show", "INV-NEW", code=2).stderr
    settled(journal, InvoiceKey("eu", "INV-HELD"), State.HELD, "too much")
    twice = run("replay", "INV-HELD", *WHY["replay"], code=2)
    assert "name one with --platform: billforward, eu" in twice.stderr
    assert "INV-HELD · eu" in run("show", "INV-HELD", "--platform", "eu").stdout
    refused = run("show", "INV-HELD", "--platform", "us", code=2)
    assert "there is no platform 'us' in the config" in refused.stderr


def test_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configuration every command says what to copy, and exits 1."""
    monkeypatch.chdir(tmp_path)
    for command in (["list"], ["show", "INV-1"], ["serve"], ["work"], ["sweep", "--once"]):
        result = run(*command, code=1)
        assert result.stderr == (
            "config: there is no config.toml; copy config.example.toml there,"
            " or name another with --config\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_config_errors_are_lines(place: Path) -> None:
    """Each complaint of the configuration is one line on standard error."""
    configure(place, f"{CONFIG}[webhook]\nprot = 1\nthreads = 0\n")
    result = run("list", code=1)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["config", "webhook.threads"],
        ["config", "webhook.prot"],
    ]


def test_config_option(place: Path, journal: SqliteJournal) -> None:
    """`--config` names another file, before what the environment says."""
    three(journal)
    (place / "config.toml").rename(place / "other.toml")
    result = run("--config", "other.toml", "list", RECONCILER_CONFIG="nowhere.toml")
    assert len(result.stdout.splitlines()) == 4
    assert "no nowhere.toml" in run("list", code=1, RECONCILER_CONFIG="nowhere.toml").stderr


def test_the_demos_config(place: Path, journal: SqliteJournal) -> None:
    """Without a configuration the demo's is used, and that is said on standard error."""
    three(journal)
    (place / ".reconciler-demo").mkdir()
    (place / "config.toml").rename(place / ".reconciler-demo" / "config.toml")
    result = run("list")
    assert len(result.stdout.splitlines()) == 4
    assert "using the demo's, .reconciler-demo/config.toml" in result.stderr


@pytest.mark.parametrize("command", ["serve", "work"])
def test_no_start_without_secrets(place: Path, command: str) -> None:
    """`serve` and `work` do not start before every secret is set, and name each variable."""
    result = run(command, code=1)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2
    for variable in SECRETS:
        assert f"put it into {variable}, or its file's path into {variable}_FILE" in result.stderr


def test_work_without_redis(place: Path) -> None:
    """`work` without Redis says so in one line."""
    assert run("work", "--burst", code=1, **SECRETS).stderr == (
        "reconciler: Redis at 127.0.0.1:1: ConnectionError\n"
    )


def test_sweep_once(
    place: Path, journal: SqliteJournal, redis_url: str, sandbox: RunningSandbox
) -> None:
    """`sweep --once` rings for what is due or nobody told of, once however often it is run."""
    configure(place, f'[platforms.billforward]\nbase_url = "{sandbox.base_url}"\n')
    secrets = {**SECRETS, "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token}
    untold = InvoiceKey("billforward", sandbox.control.put_invoice(**february_invoice())["id"])
    three(journal)
    for rang, found in ((1, 1), (2, 0)):
        result = run("sweep", "--once", redis=redis_url, **secrets)
        told = f"rang for {rang} invoices, found {found} pending, acknowledged 0 notifications\n"
        assert (result.stdout, result.stderr) == ("", told)
    ringing = Doorbell(redis_url, "reconcile").queue.job_ids
    assert ringing == [job_id_of(KEY), job_id_of(untold)]


def test_sweep_without_redis(journal: SqliteJournal) -> None:
    """`sweep --once` without Redis fails in one line, without its password."""
    three(journal)
    redis = "redis://:s3cr3t-1@127.0.0.1:1/0"
    assert run("sweep", "--once", code=1, redis=redis, **SECRETS).stderr == (
        "reconciler: Redis at 127.0.0.1:1: ConnectionError\n"
    )


def test_replay_without_a_worker(journal: SqliteJournal, redis_url: str) -> None:
    """`replay` wakes the invoice, says that no worker answered, and asks for attention."""
    three(journal)
    result = run("replay", "INV-HELD", "--wait", "0", "--reason", "mapped", code=3, redis=redis_url)
    assert result.stdout.startswith("INV-HELD · billforward: held: ")
    assert "no worker has answered within 0 s" in result.stderr
    assert Doorbell(redis_url, "reconcile").queue.job_ids == [job_id_of(HELD)]
    history = journal.history(HELD)
    assert history is not None
    asked = history.entries[-1]
    assert asked.kind is EntryKind.REPLAYED
    assert asked.data == {"by": getpass.getuser(), "reason": "mapped"}


@pytest.mark.parametrize("reason", [(), ("--reason", " "), ("--reason", "x" * 501)])
@pytest.mark.parametrize("recount", [(), ("--recount",)])
def test_replay_needs_a_reason(
    journal: SqliteJournal, reason: tuple[str, ...], recount: tuple[str, ...]
) -> None:
    """Nobody runs an invoice again without saying why, as on the pages."""
    three(journal)
    before = journal.history(HELD)
    refused = run("replay", "INV-HELD", "--wait", "0", *reason, *recount, code=2)
    assert "eason" in refused.stderr
    assert journal.history(HELD) == before


def test_replay_of_an_unknown_invoice(
    journal: SqliteJournal, redis_url: str, sandbox: RunningSandbox
) -> None:
    """`replay` takes an invoice that only the platform knows; a typo leaves no trace."""
    sandbox.control.put_invoice(
        id=INV, type="Trial", state="Pending", periodStart=None, periodEnd=None, notify=False
    )
    environ = {
        **SECRETS,
        "RECONCILER__PLATFORMS__BILLFORWARD__BASE_URL": sandbox.base_url,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": sandbox.token,
    }
    why = ("--reason", "not told of", "--wait", "0")
    typo = run("replay", other_key(9).invoice_id, *why, code=1, redis=redis_url, **environ)
    assert (
        f"neither the journal nor billforward knows an invoice {other_key(9)}"[:60] in typo.stderr
    )
    assert journal.invoices() == []
    result = run("replay", INV, *why, "--json", code=3, redis=redis_url, **environ)
    assert json.loads(result.stdout)["state"] == "due"
    assert journal.due(datetime.now(UTC)) == [KEY]


def test_close_records_who_settled_it_and_how(journal: SqliteJournal) -> None:
    """`close` ends a held invoice with the operator's reason; an unknown one is refused."""
    three(journal)
    assert run("close", "INV-HELD", "--reason", "paid by hand").stdout.endswith(": closed\n")
    history = journal.history(HELD)
    assert history is not None
    assert (history.row.state, history.row.reason) == (State.CLOSED, "paid by hand")
    assert history.entries[-1].data["by"]
    assert "not in the journal" in run("close", "INV-X", "--reason", "typo", code=1).stderr
    assert "--reason" in run("close", "INV-HELD", code=2).stderr
    told = json.loads(run("close", "INV-ISSUED", "--reason", "refunded", "--json").stdout)
    assert (told["act"], told["id"], told["state"]) == ("close", "INV-ISSUED", "closed")


def test_replay_without_redis(journal: SqliteJournal) -> None:
    """`replay` without Redis keeps the wish in the journal, and says that the sweep will ring."""
    three(journal)
    result = run("replay", "INV-HELD", "--wait", "0", "--reason", "mapped", code=3)
    assert "Redis at 127.0.0.1:1: ConnectionError; the sweep will ring" in result.stderr
    assert HELD in journal.due(datetime.now(UTC))
    history = journal.history(HELD)
    assert history is not None
    assert history.entries[-1].data["reason"] == "mapped"


@pytest.mark.parametrize(
    ("state", "code"), [(State.ISSUED, 0), (State.SKIPPED, 0), (State.HELD, 3), (State.WAITING, 3)]
)
def test_replay_with_a_worker(
    place: Path, journal: SqliteJournal, redis_url: str, state: State, code: int
) -> None:
    """`replay` waits for a worker and exits 0 only when nothing is left to do."""
    three(journal)
    later = datetime.now(UTC) + timedelta(hours=1)
    began = threading.Event()

    def work() -> None:
        mine = SqliteJournal(place / "journal.db")
        queue = Doorbell(redis_url, "reconcile").queue
        while not queue.job_ids and not began.wait(0.01):
            pass
        claim = claimed(mine, HELD, datetime.now(UTC))
        outcome = Outcome(state=state, reason="so it is", due_at=later)
        if state is not State.WAITING:
            outcome = replace(outcome, due_at=None)
        mine.settle(claim, [entry(EntryKind(state.value), reason="so it is")], outcome)
        mine.close()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        why = ("--reason", "mapped", "--wait", "20")
        result = run("replay", "INV-HELD", *why, code=code, redis=redis_url)
    finally:
        began.set()
        worker.join(20)
    assert result.stdout == f"INV-HELD · billforward: {state}: so it is\n"
    assert result.stderr == ""


def test_recount(journal: SqliteJournal, redis_url: str) -> None:
    """`replay --recount` gives the tallies up for a reason, and never after a write."""
    journal.record_delivery(delivery(), PAST)
    claim = claimed(journal, KEY)
    journal.freeze(claim, [], [frozen()], PAST)
    held = Outcome(state=State.HELD, reason="look")
    journal.settle(claim, [entry(EntryKind.HELD, reason="look")], held)
    why = ("--recount", "--reason", "late usage")
    run("replay", INV, *why, "--wait", "0", code=3, redis=redis_url)
    history = journal.history(KEY)
    assert history is not None
    assert history.tallies == ()
    assert [one.data["reason"] for one in history.entries[-2:]] == ["late usage"] * 2

    now = datetime.now(UTC)
    claim = claimed(journal, KEY, now)
    journal.freeze(claim, [], [frozen()], now)
    intent = {"charge_id": "CHG-1", "component": "Text messages", "from": "0", "to": 105}
    journal.append(claim, [Entry(kind=EntryKind.CHARGE_INTENT, at=now, data=intent)], now)
    before = journal.history(KEY)
    result = run("replay", INV, *why, "--wait", "0", code=1, redis=redis_url)
    assert "it cannot be counted anew: a write was begun" in result.stderr
    assert result.stdout == ""
    assert journal.history(KEY) == before


def test_replay_by_nobody(
    journal: SqliteJournal, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`replay` works for a user without a name, as containers have them."""
    three(journal)

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    run("replay", "INV-HELD", "--reason", "mapped", "--wait", "0", code=3, redis=redis_url)
    history = journal.history(HELD)
    assert history is not None
    assert history.entries[-1].data["by"].startswith("uid ")


def test_doctor(place: Path, redis_url: str) -> None:
    """`doctor` marks each finding, tells how to mend the bad ones, and exits 3 for any."""
    result = run("doctor", code=3, redis=redis_url)
    assert "ok  config: 0 components mapped\n" in result.stdout
    assert "BAD secrets: webhook.password is not set" in result.stdout
    assert "    mend: set it where the processes start\n" in result.stdout
    assert result.stderr == ""
    findings = json.loads(run("doctor", "--json", code=3, redis=redis_url).stdout)
    assert {finding["subject"]: finding["well"] for finding in findings}["journal"] is True


def test_a_broken_journal(place: Path) -> None:
    """A journal that cannot be read is one line on standard error."""
    (place / "journal.db").write_bytes(b"no database at all, but long enough to look at" * 50)
    result = run("list", code=1)
    assert result.stderr == "reconciler: journal journal.db: file is not a database\n"


def test_version_and_help() -> None:
    """`--version` and `-h` answer; the help begins with examples to try."""
    assert "0.1.0" in run("--version").stdout
    text = run("-h").stdout
    assert "reconciler list --state held" in text
    assert "Exit codes: 0 ok, 1 failed, 2 wrong use, 3 something needs a person" in text


def test_examples_of_the_help_are_right() -> None:
    """Each command that the help shows exists."""
    text = run("--help").stdout
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("  reconciler ")]
    assert len(shown) == 5
    assert set(shown) <= set(main.commands)


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_has_help(name: str, command: click.Command) -> None:
    """Each command's help begins with what it does, and each of its options is explained."""
    lines = run(name, "--help").stdout.splitlines()
    assert lines[0].startswith(f"Usage: main {name}")
    assert lines[2].startswith("  ")
    assert lines[2].strip()[0].isupper()
    assert (command.help or "").split("\n\n")[0].rstrip().endswith(".")
    unexplained = [
        parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert unexplained == []


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["list", "--nothing"], ["show"], ["list", "--limit", "0"], ["show", "a", "b"]],
)
def test_wrong_use(place: Path, arguments: list[str]) -> None:
    """Wrong use is exit code 2 and says how it is used."""
    result = run(*arguments, code=2)
    assert result.stderr.startswith("Usage: ")
    assert result.stdout == ""


def test_doctor_tells_each_finding_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found is there to read while the next look takes its time."""
    told: list[str] = []

    def examine(**_: object) -> Iterator[Finding]:
        yield Finding("journal", well=False, told="is full", mend="free the disk")
        told.append(capsys.readouterr().out)
        yield Finding("clock", well=True, told="agrees")

    monkeypatch.setattr("worker.cli.examine", examine)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 3
    assert told == ["BAD journal: is full\n    mend: free the disk\n"]
    assert capsys.readouterr().out == "ok  clock: agrees\n"


BASH = """
source <(reconciler completion bash)
COMP_WORDS=({typed}) COMP_CWORD={at}
$(complete -p reconciler | grep -o '_[a-z_]*completion') reconciler
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("reconciler rec", ["recount"]),
        ("reconciler list --state re", ["retrying"]),
        ("reconciler journal v", ["verify"]),
        ("reconciler bulk rel", ["release"]),
        ("reconciler bulk replay --cause max", ["max_quantity"]),
    ],
)
def test_bash_completes(typed: str, offered: list[str]) -> None:
    """The script that `completion bash` prints, sourced by bash, completes what is typed."""
    words = BASH.format(typed=typed, at=len(typed.split()) - 1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", words],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize(
    ("shell", "binds", "typed", "offered"),
    [
        ("zsh", "compdef _reconciler_completion reconciler", "reconciler rec", "plain\nrecount\n"),
        ("fish", "complete --no-files --command reconciler", "reconciler", "plain,recount\t"),
    ],
)
def test_other_shells_complete(shell: str, binds: str, typed: str, offered: str) -> None:
    """The script binds to `reconciler`, and what it asks the program is answered with the words."""
    script = run("completion", shell).stdout
    assert binds in script
    assert f"_RECONCILER_COMPLETE={shell}_complete" in script
    environ = {"_RECONCILER_COMPLETE": f"{shell}_complete", "COMP_WORDS": typed}
    environ["COMP_CWORD"] = "1" if shell == "zsh" else "rec"
    answer = CliRunner().invoke(main, prog_name="reconciler", env=environ)
    assert offered in answer.stdout


def test_completion_of_another_shell(place: Path) -> None:
    """A shell that is not known is wrong use; no configuration is needed for the others."""
    (place / "config.toml").unlink()
    refused = run("completion", "tcsh", code=2)
    assert (refused.stdout, "'tcsh' is not one of" in refused.stderr) == ("", True)
    assert run("completion", "zsh").stderr == ""
