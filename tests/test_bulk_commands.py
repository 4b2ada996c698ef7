"""Replaying and releasing many invoices at the command line."""

from __future__ import annotations

import getpass
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import click
import pytest
from builders import NOW
from click.testing import CliRunner, Result
from contracts import tamper
from ops_builders import Filler, key_of
from test_journal_commands import seen

from worker import bulk
from worker.actions import Asked, Desk
from worker.cli import main
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell, job_id_of
from worker.errors import JournalUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.record import Entry, EntryKind, State

NO_REDIS = "redis://127.0.0.1:1/0"
WHY = ("--reason", "mapped")
FAX = 'component "Fax pages" has no source'
ISSUED, PARKED = key_of(0x900), key_of(0x901)

Change = Callable[[SqliteJournal, InvoiceKey], None]


@pytest.fixture(name="journal")
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteJournal]:
    """A journal in a working directory with a configuration; Redis is out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILER_CONFIG", "config.toml")
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", NO_REDIS)
    monkeypatch.setenv("RECONCILER__JOURNAL__URL", "sqlite:///journal.db")
    (tmp_path / "config.toml").write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:1/v1"\n'
    )
    with closing(SqliteJournal(tmp_path / "journal.db")) as journal:
        yield journal


def hold(journal: SqliteJournal, number: int) -> list[InvoiceKey]:
    """Hold so many invoices, beside one that is issued and one that is parked."""
    filler = Filler(journal, NOW)
    keys = [key_of(one) for one in range(number)]
    for minute, key in enumerate(keys):
        filler.hold(key, FAX, NOW + timedelta(minutes=minute))
    filler.issue(ISSUED, NOW, 105)
    filler.park(PARKED, NOW, "a dispute")
    return keys


def run(*arguments: str, code: int = 0) -> Result:
    """Run `reconciler bulk` with nobody at a terminal; the exit code must be as said."""
    result = CliRunner().invoke(main, ["bulk", *arguments])
    assert result.exit_code == code, result.output
    return result


def states(journal: SqliteJournal) -> dict[InvoiceKey, State]:
    """Return where every invoice is."""
    return {row.key: row.state for row in journal.invoices()}


def last_of(journal: SqliteJournal, key: InvoiceKey) -> Entry:
    """Return the last entry of an invoice's record."""
    history = journal.history(key)
    assert history is not None
    return history.entries[-1]


def acts(journal: SqliteJournal) -> list[tuple[str, str, str]]:
    """Return what people did to no single invoice, newest first."""
    return [(act.by, act.verb, act.reason) for act in journal.acts()]


def acting(monkeypatch: pytest.MonkeyPatch, act: bulk.Verb, verb: str = "release") -> None:
    """Put this in an act's place, which it may call."""
    monkeypatch.setattr(bulk, "VERBS", {verb: act})


def test_a_bulk_release_is_counted_recorded_and_done(
    journal: SqliteJournal, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count comes first; each is released with who and why, and rung for; others stay."""
    keys = hold(journal, 3)
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", redis_url)
    result = run("release", "--cause", "unmapped_component", *WHY, "--yes")
    assert result.stderr == "3 invoices to release: only what is held, parked\n"
    assert result.stdout == "released 3 of 3 invoices\n"
    assert states(journal) == {
        **dict.fromkeys(keys, State.DUE),
        ISSUED: State.ISSUED,
        PARKED: State.PARKED,
    }
    me = getpass.getuser()
    for key in keys:
        entry = last_of(journal, key)
        assert (entry.kind, entry.data) == (EntryKind.RELEASED, {"by": me, "reason": "mapped"})
    words = "state=held&state=parked&cause=unmapped_component"
    assert acts(journal) == [(me, "bulk release", f"mapped (3 invoices, {words})")]
    assert Doorbell(redis_url, "reconcile").queue.job_ids == [job_id_of(key) for key in keys]


def test_a_bulk_replay_runs_what_is_open(journal: SqliteJournal) -> None:
    """What is done with or parked is left; a doorbell that is out is said once, and no failure."""
    keys = hold(journal, 30)
    result = run("replay", *WHY, "--yes")
    assert result.stdout == "replayed 30 of 30 invoices\n"
    assert result.stderr.splitlines() == [
        "30 invoices to replay: only what is due, waiting, retrying, held, observed",
        "Redis at 127.0.0.1:1: ConnectionError; the sweep will ring",
    ]
    assert {last_of(journal, key).kind for key in keys} == {EntryKind.REPLAYED}
    assert last_of(journal, ISSUED).kind is EntryKind.ISSUED
    assert states(journal)[PARKED] is State.PARKED


def test_a_state_that_is_asked_for_is_replayed(journal: SqliteJournal) -> None:
    """What is done with is run again where its state is named, as on the pages."""
    hold(journal, 1)
    assert run("replay", "--state", "issued", *WHY, "--yes").stdout == "replayed 1 of 1 invoice\n"
    assert last_of(journal, ISSUED).kind is EntryKind.REPLAYED


@pytest.mark.parametrize(("verb", "state"), [("release", "issued"), ("replay", "parked")])
def test_what_cannot_be_is_refused(journal: SqliteJournal, verb: str, state: str) -> None:
    """It is said before anything is counted, in the words of the pages."""
    hold(journal, 1)
    refused = run(verb, "--state", state, *WHY, "--yes", code=1)
    assert f"A {verb} does nothing for invoices in this state." in refused.stderr
    assert acts(journal) == []


@pytest.mark.parametrize("reason", [(), ("--reason", " "), ("--reason", "x" * 501)])
@pytest.mark.parametrize("verb", ["replay", "release"])
def test_a_reason_is_required(journal: SqliteJournal, verb: str, reason: tuple[str, ...]) -> None:
    """Nothing is done to many invoices without saying why."""
    keys = hold(journal, 1)
    assert "eason" in run(verb, *reason, "--yes", code=2).stderr
    assert states(journal)[keys[0]] is State.HELD


def test_without_a_terminal_it_must_be_meant(journal: SqliteJournal) -> None:
    """A program that cannot be asked is told the count and --yes; nothing is done."""
    keys = hold(journal, 2)
    result = run("release", "--state", "held", *WHY, code=2)
    assert result.stderr.startswith("2 invoices to release: only what is held\n")
    assert "add --yes" in result.stderr
    assert (states(journal)[keys[0]], acts(journal)) == (State.HELD, [])


def test_where_there_is_none_nothing_is_asked(journal: SqliteJournal) -> None:
    """A filter that lets nothing through is no failure, and leaves no trace."""
    result = run("release", "--text", "nothing of the kind", *WHY)
    assert result.stdout == "released 0 of 0 invoices\n"
    assert acts(journal) == []


def test_a_person_is_asked_and_sees_how_far_it_is(journal: SqliteJournal) -> None:
    """A no changes nothing; after a yes a bar counts the invoices, and goes."""
    keys = hold(journal, 2)
    release = ("bulk", "release", "--state", "held", *WHY)
    stdout, stderr = seen(*release, typed="n\n", code=1)
    assert "Release 2 invoices? [y/N]: " in stderr
    assert (stdout, states(journal)[keys[0]]) == ("", State.HELD)
    stdout, stderr = seen(*release, typed="y\n")
    assert stdout == "released 2 of 2 invoices\n"
    assert "releasing, Ctrl-C stops" in stderr
    assert "2/2" in stderr
    assert states(journal)[keys[0]] is State.DUE


def test_no_bar_for_programs(journal: SqliteJournal) -> None:
    """With --json a terminal shows the count and no bar."""
    hold(journal, 2)
    stdout, stderr = seen("bulk", "release", "--state", "held", *WHY, "--yes", "--json")
    assert json.loads(stdout)["done"] == 2
    assert "releasing" not in stderr


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a shell's background job is started without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_stops_after_the_invoice_it_is_at(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many are done and left is told, the stop is recorded, and the same command goes on."""
    keys = hold(journal, 25)
    real = bulk.VERBS["release"]

    def interrupted(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        if key == keys[21]:
            os.kill(os.getpid(), signal.SIGINT)
        return real(desk, key, asked)

    with monkeypatch.context() as patched:
        acting(patched, interrupted)
        result = run("release", "--state", "held", *WHY, "--yes", code=3)
    assert result.stdout == "released 22 of 25 invoices\nstopped: 3 left\n"
    assert list(states(journal).values()).count(State.HELD) == 3
    assert [verb for _, verb, _ in acts(journal)] == ["stop bulk release", "bulk release"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = run("release", "--state", "held", *WHY, "--yes")
    assert again.stdout == "released 3 of 3 invoices\n"


@pytest.mark.usefixtures("_interruptible")
def test_a_second_ctrl_c_ends_at_once(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot wait for the invoice it is at is not made to."""
    hold(journal, 2)

    def hangs(*_: object) -> str:
        for _signal in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not ended")

    acting(monkeypatch, hangs)
    assert "Aborted!" in run("release", "--state", "held", *WHY, "--yes", code=1).stderr


def parked(journal: SqliteJournal, key: InvoiceKey) -> None:
    """Take an invoice out of the filter."""
    asked = {"by": "ana", "reason": "wait"}
    assert journal.park(key, Entry(kind=EntryKind.PARKED, at=NOW, data=asked))


def woken(journal: SqliteJournal, key: InvoiceKey) -> None:
    """Change an invoice that stays in the filter."""
    later = journal.acts()[0].at + timedelta(seconds=1)
    journal.wake(key, Entry(kind=EntryKind.REPLAYED, at=later, data={"by": "ana"}))


def closed(journal: SqliteJournal, key: InvoiceKey) -> None:
    """Settle an invoice by hand."""
    asked = {"by": "ana", "reason": "paid in cash"}
    assert journal.close_by_hand(key, Entry(kind=EntryKind.CLOSED, at=NOW, data=asked))


@pytest.mark.parametrize("change", [parked, woken, closed])
@pytest.mark.parametrize(("verb", "done"), [("replay", "replayed"), ("release", "released")])
def test_what_changed_since_the_count_is_left_alone(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch, change: Change, verb: str, done: str
) -> None:
    """What somebody took up meanwhile, the very next one too, is not touched; exit 3."""
    keys = hold(journal, 4)
    real = bulk.VERBS[verb]

    def meanwhile(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        if key == keys[0]:
            change(journal, keys[1])
        return real(desk, key, asked)

    acting(monkeypatch, meanwhile, verb)
    result = run(verb, "--state", "held", *WHY, "--yes", code=3)
    assert result.stdout == f"{done} 3 of 4 invoices\n1 changed meanwhile, and left alone\n"
    assert last_of(journal, keys[1]).data.get("reason") != "mapped"


def test_what_is_refused_is_told_with_its_reasons(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason has its number; one invoice whose record cannot be read stops no other."""
    keys = hold(journal, 4)
    damaged = keys[1].invoice_id
    tamper("sqlite:///journal.db", f"UPDATE entries SET data = '5' WHERE invoice_id = '{damaged}'")
    real = bulk.VERBS["replay"]

    def meanwhile(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        if key in keys[2:]:
            parked(journal, key)
        return real(desk, key, asked)

    acting(monkeypatch, meanwhile, "replay")
    replay = ("replay", "--state", "held", *WHY, "--yes", "--json")
    told = json.loads(run(*replay, code=3).stdout)
    by_damage, by_parking = sorted(told["refused"].items(), key=lambda one: one[1])
    assert damaged in by_damage[0]
    assert (by_damage[1], by_parking) == (1, ("it is parked; a release lets it go", 2))
    assert (told["invoices"], told["done"], told["left"]) == (4, 1, 0)


def test_a_failure_says_how_far_it_came(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that is lost ends it with its reason, after what was done."""
    keys = hold(journal, 3)
    real = bulk.VERBS["release"]

    def broken(desk: Desk, key: InvoiceKey, asked: Asked) -> str:
        if key == keys[1]:
            raise JournalUnavailable("the journal is full")
        return real(desk, key, asked)

    acting(monkeypatch, broken)
    result = run("release", "--state", "held", *WHY, "--yes", code=1)
    assert result.stdout == "released 1 of 3 invoices\nstopped: 2 left\n"
    assert "reconciler: the journal is full" in result.stderr


def test_programs_read_what_was_done(journal: SqliteJournal) -> None:
    """--json gives one object: who, why, for which invoices, and what became of them."""
    hold(journal, 2)
    options = ("--state", "issued", "--because", "UNPAID", "--since", "2015-01-01")
    result = run("replay", *options, "--platform", "billforward", *WHY, "--yes", "--json")
    assert json.loads(result.stdout) == {
        "act": "bulk replay",
        "by": getpass.getuser(),
        "reason": "mapped",
        "filter": {
            "state": ["issued"],
            "platform": "billforward",
            "because": "UNPAID",
            "since": "2015-01-01T00:00:00Z",
        },
        "invoices": 1,
        "done": 1,
        "refused": {},
        "changed_meanwhile": 0,
        "left": 0,
    }
    assert journal.acts()[0].platform == "billforward"


def test_the_filters_are_those_of_the_list() -> None:
    """What `list` shows, `bulk` can be told; in the list the reason has its old name too."""
    group = main.commands["bulk"]
    assert isinstance(group, click.Group)
    listed = {one.name: one for one in main.commands["list"].params}
    for command in group.commands.values():
        own = {one.name: one for one in command.params}
        assert set(own) - set(listed) == {"reason", "yes"}
        assert set(listed) - set(own) == {"limit"}
    assert "--reason" in listed["because"].opts


def test_every_command_has_help() -> None:
    """Each act's help says what it does, and explains every option."""
    for verb in ("replay", "release"):
        text = run(verb, "--help").stdout
        assert "Ctrl-C stops" in " ".join(text.split())
        assert "--because" in text
