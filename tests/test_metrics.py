"""Counts of many processes become one, survive every death, and never get in the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
from builders import query
from fakes import FakeSource
from prometheus_client.metrics_core import Metric as Family

from worker.errors import JournalUnavailable, SourceInvalid, SourceUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.measured import MeasuredSource, MeasuredStore, Measures
from worker.metrics import (
    CATALOGUE,
    COMMIT_SECONDS,
    DELIVERIES,
    JOURNAL_FAILURES,
    PLATFORM_SECONDS,
    SOURCE_QUERIES,
    SWEEP_AT,
    Kind,
    Metric,
    Numbers,
    families,
)
from worker.platforms.rest import RestClient, RestLimits

COUNT = """
import os, sys
from pathlib import Path
from worker.metrics import DELIVERIES, Numbers
numbers = Numbers(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    numbers.add(DELIVERIES, "new")
"""
WAIT = "print('counted', flush=True)\nsys.stdin.read()\n"
FORK = """
child = os.fork()
for _ in range(10):
    numbers.add(DELIVERIES, "new")
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the processes count in."""
    return tmp_path / "metrics"


def counted(folder: Path, metric: Metric, *labels: str) -> float:
    """Return what all processes counted."""
    wanted = dict(zip(metric.labels, labels, strict=True))
    return sum(
        sample.value
        for family in families(folder)
        for sample in family.samples
        if sample.name in (metric.name, f"{metric.name}_total", f"{metric.name}_count")
        and sample.labels == wanted
    )


def run(folder: Path, times: int, program: str = "") -> None:
    """Count in a process of its own, which ends."""
    command = [sys.executable, "-c", COUNT + program, str(folder), str(times)]
    subprocess.run(command, check=True, timeout=30)


def running(folder: Path, times: int) -> subprocess.Popen[bytes]:
    """Count in a process of its own, which stays."""
    child = subprocess.Popen(
        [sys.executable, "-c", COUNT + WAIT, str(folder), str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"counted\n"
    return child


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed in the end."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def test_processes_that_run_at_once_add_up(
    folder: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    """Each has files of its own; a scrape by any process sees the sum."""
    children += [running(folder, 3), running(folder, 4)]
    Numbers(folder).add(DELIVERIES, "new", amount=2)
    assert counted(folder, DELIVERIES, "new") == 9
    assert len(list(folder.glob("counter_*.db"))) == 3


def test_what_a_killed_process_counted_stays_and_its_slot_is_used_again(
    folder: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    """Counts never fall, and a hundred restarts leave no more files than one."""
    for _ in range(3):
        child = running(folder, 5)
        children.append(child)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert counted(folder, DELIVERIES, "new") == 15
    run(folder, 1)
    assert counted(folder, DELIVERIES, "new") == 16
    assert sorted(path.name for path in folder.iterdir()) == [
        "0.lock",
        "counter_0.db",
        "gauge_max_0.db",
        "histogram_0.db",
    ]


def test_a_fork_counts_in_a_slot_of_its_own(folder: Path) -> None:
    """As gunicorn forks: parent and child lose nothing of each other's."""
    run(folder, 1, FORK)
    assert counted(folder, DELIVERIES, "new") == 21
    assert len(list(folder.glob("*.lock"))) == 2


def test_a_folder_that_cannot_be_used_stops_nothing(tmp_path: Path) -> None:
    """Where counting is impossible the work goes on, uncounted."""
    (tmp_path / "file").touch()
    for numbers in (Numbers(), Numbers(tmp_path / "file" / "metrics")):
        numbers.begin()
        numbers.add(DELIVERIES, "new")
        numbers.observe(COMMIT_SECONDS, 0.1)
        numbers.raise_to(SWEEP_AT, 1)


def test_a_file_that_a_crash_left_broken_is_left_out_and_begun_anew(folder: Path) -> None:
    """A page of zeros in the middle, as a loss of power leaves it, fails no scrape and no start."""
    run(folder, 5)
    broken = folder / "counter_0.db"
    data = broken.read_bytes()
    broken.write_bytes(data[:64] + bytes(200) + data[264:])
    assert counted(folder, DELIVERIES, "new") == 0
    run(folder, 2)
    assert counted(folder, DELIVERIES, "new") == 2


def test_room_is_taken_before_it_is_mapped(folder: Path) -> None:
    """The files have their blocks from the start: a full disk must not end a process by SIGBUS."""
    Numbers(folder).begin()
    run(folder, 1)
    for path in folder.glob("*.db"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= 1 << 18


def test_every_metric_is_there_from_the_start(folder: Path) -> None:
    """What has no labels, and the known values of those that have, are told as 0 at first."""
    numbers = Numbers(folder)
    numbers.begin()
    names = {family.name for family in families(folder)}
    assert names == {metric.name for metric in CATALOGUE if metric.known}
    assert counted(folder, DELIVERIES, "duplicate") == 0


def test_histograms_are_cumulative(folder: Path) -> None:
    """Each duration is in its bucket and in all wider ones; sum and count fit."""
    numbers = Numbers(folder)
    for seconds in (0.0, 0.01, 0.011, 3, 500):
        numbers.observe(PLATFORM_SECONDS, seconds, "billforward")
    (family,) = [one for one in families(folder) if one.name == PLATFORM_SECONDS.name]
    assert bucket(family, 0.01) == 2
    assert bucket(family, 0.025) == 3
    assert bucket(family, 120) == 4
    assert bucket(family, inf) == 5
    sums = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert sums == [pytest.approx(503.021)]


def bucket(family: Family, limit: float) -> float:
    """Return how many durations a histogram has up to a limit."""
    return next(s.value for s in family.samples if float(s.labels.get("le", "nan")) == limit)


def test_the_highest_of_all_processes_counts(folder: Path) -> None:
    """Of two sweeps the one that was at work last tells when that was."""
    first, second = Numbers(folder), Numbers(folder)
    first.raise_to(SWEEP_AT, 200)
    second.raise_to(SWEEP_AT, 100)
    assert SWEEP_AT.kind is Kind.HIGHEST
    assert counted(folder, SWEEP_AT) == 200


def test_no_label_can_hold_an_id() -> None:
    """The labels are words of the program and names of the configuration, nothing else."""
    assert {label for metric in CATALOGUE for label in metric.labels} == {
        *("result", "what", "decision", "cause", "platform", "code", "source", "finding"),
        "channel",
    }


def test_a_source_is_measured_and_not_changed(folder: Path) -> None:
    """Each count is told with how it ended; answers and errors pass through as they are."""
    source = FakeSource()
    measured = MeasuredSource("events", source, Measures(Numbers(folder)))
    assert measured.count([query()]) == source.count([query()])
    for error in (SourceUnavailable("gone"), SourceInvalid("odd"), KeyError("bug")):
        source.failures = [error]
        with pytest.raises(type(error)):
            measured.count([query()])
    for result in ("ok", "unavailable", "invalid", "crashed"):
        assert counted(folder, SOURCE_QUERIES, "events", result) == 1


def test_commits_are_timed_and_failures_counted(folder: Path, tmp_path: Path) -> None:
    """Only what became durable is in the histogram; reading is not; a lost journal is a failure."""
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.store = MeasuredStore(journal.store, Numbers(folder))
    journal.check()
    assert journal.invoices() == []
    assert counted(folder, COMMIT_SECONDS) == 1
    (tmp_path / "journal.db").rename(tmp_path / "elsewhere.db")
    for ask in (journal.check, journal.invoices):
        with pytest.raises(JournalUnavailable):
            ask()
    assert counted(folder, COMMIT_SECONDS) == 1
    assert counted(folder, JOURNAL_FAILURES) == 2
    journal.close()


def test_a_request_without_an_answer_is_told_too() -> None:
    """Nobody listens: the code is "none"."""
    told: list[str] = []
    limits = RestLimits(connect=1, read=1, total=1)
    client = RestClient(
        "http://127.0.0.1:9/v1",
        "token",
        limits=limits,
        connections=1,
        error_of=lambda _: None,
        sleep=lambda _: None,
    )
    client.told = lambda code, seconds: told.append(code) if seconds >= 0 else None
    with pytest.raises(Exception, match="no connection"):
        client.get_once("/invoices")
    assert told == ["none"]


def test_slots_of_others_are_passed_by(folder: Path) -> None:
    """A lock that cannot be opened is another user's slot; the next one is taken."""
    folder.mkdir()
    (folder / "0.lock").mkdir()
    numbers = Numbers(folder)
    numbers.add(DELIVERIES, "new")
    assert counted(folder, DELIVERIES, "new") == 1
