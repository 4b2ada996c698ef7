"""`reconciler events import`: files into the meter, each event once, from where it stopped."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_journal_commands import seen

from usage_sources.contract import query
from usage_sources.meter import MeterSource
from worker.cli import main
from worker.domain import Aggregation, Period

CONFIG = """
[platforms.billforward]
base_url = "http://127.0.0.1:1/v1"
[usage_sources.meter]
kind = "meter"
url = "sqlite:///usage.db"
[events]
source = "meter"
"""
NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
HEADER = "source,id,subject,type,time,value\n"


@pytest.fixture(name="place", autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILER_CONFIG", "config.toml")
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def run(*arguments: str) -> Result:
    """Run the command in its own streams."""
    return CliRunner().invoke(main, ["events", "import", *arguments])


def lines(first: int, count: int) -> str:
    """Write events as JSON lines."""
    events = [
        {
            "specversion": "1.0",
            "id": f"e-{number}",
            "source": "/phones",
            "type": "calls",
            "subject": "SUB-1",
            "time": "2026-11-02T10:00:00Z",
            "data": {"value": number},
        }
        for number in range(first, first + count)
    ]
    return "".join(json.dumps(event) + "\n" for event in events)


def rows(first: int, count: int) -> str:
    """Write events as CSV."""
    numbers = range(first, first + count)
    return "".join(f"/phones,e-{n},SUB-1,calls,2026-11-02T10:00:00Z,{n}\n" for n in numbers)


def stored(place: Path) -> int:
    """Count what is in the meter, without its help."""
    with closing(sqlite3.connect(place / "usage.db")) as db:
        (number,) = db.execute("SELECT count(*) FROM meter_events").fetchone()
        return int(number)


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", lines(0, 12_000)), ("a.csv", HEADER + rows(0, 12_000))]
)
def test_every_record_is_stored_once(place: Path, name: str, text: str) -> None:
    """Read twice, it counts once; the second time nothing needs to be read."""
    (place / name).write_text(text)
    result = run(name)
    assert (result.exit_code, result.stdout) == (
        0,
        "12000 stored, 0 known already, 0 refused\n",
    )
    assert stored(place) == 12_000
    assert run(name).stdout == "0 stored, 0 known already, 0 refused\n"


@pytest.mark.parametrize(("head", "more"), [("", lines), (HEADER, rows)])
def test_a_file_that_grew_goes_on_where_it_was(place: Path, head: str, more: object) -> None:
    """Only what was added is read; a last line that is half written waits for its end."""
    assert callable(more)
    path = place / ("a.csv" if head else "a.jsonl")
    text = head + more(0, 200)
    path.write_text(text + more(200, 1)[:-5])
    result = run(path.name)
    assert (result.exit_code, result.stdout) == (3, "200 stored, 0 known already, 0 refused\n")
    told = f"line {text.count(chr(10)) + 1} has no end: if the file is complete, add a newline"
    assert told in result.stderr
    path.write_text(text + more(200, 50))
    assert run(path.name).stdout == "50 stored, 0 known already, 0 refused\n"
    assert stored(place) == 250


def test_an_interrupted_import_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two batches, it has stored whole batches, and counts none of them twice."""
    (place / "a.jsonl").write_text(lines(0, 12_000))
    marks: list[int] = []

    def stop(*_: object) -> None:
        marks.append(1)
        if len(marks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("worker.bookmarks.os.replace", stop)
        patched.setattr("worker.bookmarks._SECONDS_BETWEEN", 0)
        stopped = run("a.jsonl")
    assert stopped.exit_code == 1
    told = "10000 stored, 0 known already, 0 refused; run the same command again, and it goes on"
    assert stopped.stdout == f"{told}\n"
    assert stored(place) == 10_000
    result = run("a.jsonl")
    assert result.stdout == "2000 stored, 10000 known already, 0 refused\n"
    assert stored(place) == 12_000


def test_a_killed_import_goes_on(place: Path) -> None:
    """Killed by SIGKILL somewhere on its way, it counts every record once in the end."""
    most = 40_000
    (place / "a.jsonl").write_text(lines(0, 100))
    run("a.jsonl")
    (place / "a.jsonl").write_text(lines(0, most))
    command = [sys.executable, "-m", "worker", "events", "import", "a.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None and stored(place) < 10_000:  # two batches
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    after = stored(place)
    assert 10_000 < after < most
    assert run("a.jsonl").stdout.startswith(f"{most - after} stored, ")
    assert stored(place) == most
    with closing(MeterSource(url=f"sqlite:///{place}/usage.db")) as meter:
        asked = query(subject="SUB-1", aggregation=Aggregation.SUM, period=NOVEMBER)
        assert meter.count([asked])[0].value == sum(range(most))


def test_a_terminal_shows_how_far_it_is(place: Path) -> None:
    """A bar on standard error counts the bytes, from where it goes on, and goes at the end."""
    for number, told in ((200, "200 stored, 0"), (300, "100 stored, 0")):
        (place / "a.jsonl").write_text(lines(0, number))
        stdout, stderr = seen("events", "import", "a.jsonl", NO_COLOR="1")
        assert stdout == f"{told} known already, 0 refused\n"
        first, *_, last = re.findall(r"(\d+\.\d)/(\d+\.\d) kB", stderr)
        assert (first[0] == "0.0", last[0] == last[1]) == (number == 200, True)
        assert stderr.endswith("\x1b[2K")


def test_another_file_in_its_place_is_read_from_its_start(place: Path) -> None:
    """A bookmark is good only for a file that begins as it did."""
    (place / "a.jsonl").write_text(lines(0, 100))
    run("a.jsonl")
    (place / "a.jsonl").write_text(lines(1000, 300))
    assert run("a.jsonl").stdout == "300 stored, 0 known already, 0 refused\n"


def test_a_file_that_differs_further_on_is_read_again(place: Path) -> None:
    """However much two files have alike at their beginning, nothing that differs is passed over."""
    (place / "a.jsonl").write_text(lines(0, 300))
    run("a.jsonl")
    (place / "a.jsonl").write_text(lines(0, 100) + lines(1000, 300))
    assert run("a.jsonl").stdout == "300 stored, 100 known already, 0 refused\n"


def test_a_change_far_before_the_mark_is_read(place: Path) -> None:
    """Every byte before the mark counts, not only what the last batch had."""
    text = lines(0, 6000)
    (place / "a.jsonl").write_text(text)
    run("a.jsonl")
    (place / "a.jsonl").write_text(text.replace('"e-10"', '"f-10"'))
    assert run("a.jsonl").stdout == "1 stored, 5999 known already, 0 refused\n"
    assert run("a.jsonl").stdout == "0 stored, 0 known already, 0 refused\n"


def test_another_store_gets_every_event(place: Path) -> None:
    """How far a file was read into one store says nothing of another; each has its own mark."""
    (place / "a.jsonl").write_text(lines(0, 200))
    run("a.jsonl")
    (place / "config.toml").write_text(CONFIG.replace("usage.db", "prod.db"))
    result = run("a.jsonl")
    assert result.stdout == "200 stored, 0 known already, 0 refused\n"
    assert "reading the file from its start" not in result.stderr
    assert run("a.jsonl").stdout == "0 stored, 0 known already, 0 refused\n"


def test_the_same_settings_elsewhere_are_another_store(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in the settings means another file in another folder."""
    (place / "a.jsonl").write_text(lines(0, 20))
    state = ("--state", str(place / "marks"))
    run(str(place / "a.jsonl"), *state)
    (place / "b").mkdir()
    monkeypatch.chdir(place / "b")
    (place / "b" / "config.toml").write_text(CONFIG)
    assert run(str(place / "a.jsonl"), *state).stdout.startswith("20 stored")


def test_a_store_that_was_deleted_is_filled_again(place: Path) -> None:
    """The mark is believed only while the store has what was read last."""
    (place / "a.jsonl").write_text(lines(0, 12_000))
    run("a.jsonl")
    for file in place.glob("usage.db*"):
        file.unlink()
    result = run("a.jsonl")
    assert result.stdout == "12000 stored, 0 known already, 0 refused\n"
    assert "reading the file from its start" in result.stderr
    assert stored(place) == 12_000


def test_a_store_that_was_restored_gets_what_it_lost(place: Path) -> None:
    """An older copy of the store lacks a part; the file is read from its start to find it."""
    (place / "a.jsonl").write_text(lines(0, 100))
    run("a.jsonl")
    with closing(sqlite3.connect(place / "usage.db")) as db:
        db.execute("VACUUM INTO 'backup.db'")
    for number in (200, 300):
        (place / "a.jsonl").write_text(lines(0, number))
        run("a.jsonl")
    for file in place.glob("usage.db*"):
        file.unlink()
    (place / "backup.db").rename(place / "usage.db")
    assert run("a.jsonl").stdout == "200 stored, 100 known already, 0 refused\n"
    assert stored(place) == 300


def test_a_lost_store_is_filled_though_the_next_run_is_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old mark is believed no more; what is told counts nothing that comes twice."""
    (place / "a.jsonl").write_text(lines(0, 12_000))
    run("a.jsonl")
    for file in place.glob("usage.db*"):
        file.unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("worker.events_commands._store_all", stop)
        told = run("a.jsonl").stdout
    early = stored(place)
    assert 0 < early < 12_000
    assert told.startswith(f"{early} stored, 0 known already, 0 refused; run the same command")
    expected = f"{12_000 - early} stored, {early} known already, 0 refused\n"
    assert run("a.jsonl").stdout == expected
    assert stored(place) == 12_000


def test_a_mended_line_is_read(place: Path) -> None:
    """A refused record is told and tried again on every run, until it is right."""
    good = lines(0, 200).splitlines(keepends=True)
    (place / "a.jsonl").write_text("".join([*good[:150], "{\n", *good[151:]]))
    result = run("a.jsonl")
    assert (result.exit_code, result.stdout) == (3, "199 stored, 0 known already, 1 refused\n")
    result = run("a.jsonl")
    assert (result.exit_code, result.stdout) == (3, "0 stored, 49 known already, 1 refused\n")
    assert "line 151: it is not JSON" in result.stderr
    (place / "a.jsonl").write_text("".join(good))
    result = run("a.jsonl")
    assert (result.exit_code, result.stdout) == (0, "1 stored, 49 known already, 0 refused\n")


def test_a_refused_record_holds_the_mark_over_batches(place: Path) -> None:
    """Batches after the one with a refused record do not move the mark past it either."""
    good = lines(0, 12_000).splitlines(keepends=True)
    (place / "a.jsonl").write_text("".join([*good[:6000], "{\n", *good[6001:]]))
    assert run("a.jsonl").stdout == "11999 stored, 0 known already, 1 refused\n"
    (place / "a.jsonl").write_text("".join(good))
    assert run("a.jsonl").stdout == "1 stored, 5999 known already, 0 refused\n"


def test_a_conflict_is_told_on_every_run(place: Path) -> None:
    """Exit code 3 stays while the file has another content for an event's name."""
    again = lines(1, 1).replace('"value": 1', '"value": 7')
    (place / "a.jsonl").write_text(lines(0, 5) + again)
    for stdout in ("5 stored, 0 known already, 1", "0 stored, 0 known already, 1"):
        result = run("a.jsonl")
        assert (result.exit_code, result.stdout) == (3, f"{stdout} refused\n")


def test_the_wrong_format_takes_nothing_away(place: Path) -> None:
    """Read with the wrong format first, the file is whole for the right one."""
    (place / "a.txt").write_text(HEADER + rows(0, 200))
    assert run("a.txt", "--format", "jsonl").exit_code == 3
    assert run("a.txt", "--format", "csv").stdout == "200 stored, 0 known already, 0 refused\n"


def test_a_row_that_is_no_csv_is_refused_alone(place: Path) -> None:
    """The rows before and after it are stored, and it is named."""
    bad = '/phones,"e"x,SUB-1,calls,2026-11-02T10:00:00Z,1\n'
    (place / "a.csv").write_text(HEADER + rows(0, 100) + bad + rows(100, 50))
    for stdout in ("150 stored, 0 known", "0 stored, 50 known"):
        result = run("a.csv")
        assert (result.exit_code, result.stdout) == (3, f"{stdout} already, 1 refused\n")
        assert "line 102: it is not CSV: " in result.stderr


def test_a_quote_that_is_never_closed_is_named_where_it_opens(place: Path) -> None:
    """What is before it is stored; closed later, the rest is read."""
    half = '/phones,"e-100'
    (place / "a.csv").write_text(HEADER + rows(0, 100) + half + "\n" + rows(101, 5))
    result = run("a.csv")
    assert (result.exit_code, result.stdout) == (3, "100 stored, 0 known already, 0 refused\n")
    assert "line 102 has no end: a quote is not closed" in result.stderr
    (place / "a.csv").write_text(HEADER + rows(0, 106))
    assert run("a.csv").stdout == "6 stored, 0 known already, 0 refused\n"


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", lines(0, 10)), ("a.csv", HEADER + rows(0, 10))]
)
def test_a_line_that_is_too_long_ends_the_reading(place: Path, name: str, text: str) -> None:
    """It is named, and the records before it are stored."""
    (place / name).write_text(text + "x" * 1_100_000)
    result = run(name)
    assert (result.exit_code, result.stdout) == (3, "10 stored, 0 known already, 1 refused\n")
    told = f"line {text.count(chr(10)) + 1}: it is longer than 1048576 bytes"
    assert told in result.stderr


def test_blanks_at_the_end_are_no_record(place: Path) -> None:
    """Empty lines, and blanks without a line's end, are nothing to tell of."""
    (place / "a.jsonl").write_text(lines(0, 3) + "\n\n  ")
    result = run("a.jsonl")
    assert (result.exit_code, result.stderr.strip()) == (0, "")


def test_bad_records_are_named_and_the_others_stored(place: Path) -> None:
    """Each refusal has its line and what is wrong; exit code 3."""
    bad = ["{", json.dumps({"specversion": "1.0"}), "7"]
    again = lines(1, 1).replace('"value": 1', '"value": 7')
    (place / "a.jsonl").write_text(lines(1, 1) + "".join(f"{one}\n" for one in bad) + "\n" + again)
    result = run("a.jsonl")
    assert result.exit_code == 3
    assert result.stdout == "1 stored, 0 known already, 4 refused\n"
    for told in (
        "line 2: it is not JSON: Expecting property name enclosed in double quotes: column 2\n",
        'line 3: "source" is missing',
        "line 4: an event is a JSON object",
        "line 6: 'e-1' of '/phones' came before, with other content; use a new id",
    ):
        assert told in result.stderr


def test_csv_fields_are_read_by_their_header(place: Path) -> None:
    """Quoted fields with line breaks, a missing value column, and rows of another length."""
    text = (
        'id,time,type,subject,source\n"e-1",2026-11-02T10:00:00Z,calls,"SUB,1","/a"\n'
        "e-2,2026-11-02T10:00:00Z,calls,SUB-1\n"
        'e-3,2026-11-02T10:00:00Z,"ca\nlls",SUB-1,/a\n'
        "e-4,2026-11-02T10:00:00,calls,SUB-1,/a\n"
    )
    (place / "a.csv").write_text(text)
    result = run("a.csv")
    assert result.stdout == "1 stored, 0 known already, 3 refused\n"
    assert "line 3: it has 4 fields, and the header 5" in result.stderr
    assert 'line 5: "type" has a character that cannot be printed' in result.stderr
    assert 'line 6: "time" has no zone' in result.stderr
    (place / "b.csv").write_text(HEADER + "/a,e-5,SUB-1,calls,2026-11-02T10:00:00Z,many\n")
    assert "line 2: value is no number\n" in run("b.csv").stderr


@pytest.mark.parametrize(
    ("name", "text", "more", "code", "told"),
    [
        ("a.txt", "", (), 2, "give --format: a.txt ends in none of .csv, .jsonl, .ndjson"),
        (
            *("a.csv", HEADER.replace(",", ";"), (), 1),
            "not so: source, id, subject, type, time; fields are separated by commas",
        ),
        ("a.csv", "id,source\n", (), 1, "must name each of source, id, subject, type, time once"),
        ("a.csv", "", (), 1, "not so: source, id, subject, type, time"),
        ("a.txt", "\n", ("--format", "jsonl"), 0, ""),
        ("a.csv", "source,id\rsubject,type\r", (), 1, "end in a carriage return alone"),
        ("a.csv", "source,i\x00d" + "x" * 140_000, (), 1, "line 1 is not CSV"),
        ("a.jsonl", lines(0, 2).replace("\n", "\r"), (), 3, "end in a carriage return alone"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    place: Path, name: str, text: str, more: Sequence[str], code: int, told: str
) -> None:
    """What is wrong with a file as a whole is one clear message."""
    (place / name).write_text(text)
    result = run(name, *more)
    assert result.exit_code == code
    assert told in result.stderr


def test_without_a_meter_it_says_what_to_set(place: Path) -> None:
    """The message names the setting."""
    (place / "config.toml").write_text(CONFIG.replace('source = "meter"', ""))
    (place / "a.jsonl").write_text(lines(1, 1))
    result = run("a.jsonl")
    assert result.exit_code == 1
    assert 'events.source is not set: name a usage source of the kind "meter"' in result.stderr
