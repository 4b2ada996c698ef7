"""`python -m proof --seeds 1000`: play seeds, print what failed and how to repeat it."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import structlog

from proof.driver import Played, Seed
from proof.plan import plan_of
from proof.plant import BUGS, planted
from proof.world import (
    COMPONENTS,
    SUBSCRIPTIONS,
    World,
    postgres_journals,
    running_world,
    sqlite_journals,
)

JOURNALS = {"postgres": postgres_journals, "sqlite": sqlite_journals}


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many seeds to play.")
@click.option("--first", default=1, show_default=True, help="The first seed.")
@click.option("--journal", type=click.Choice(sorted(JOURNALS)), default="sqlite")
@click.option("--plant", type=click.Choice(sorted(BUGS)), help="Put in a bug, to see it caught.")
@click.option("--jobs", default=2, show_default=True, help="How many seeds to play at a time.")
def main(seeds: int, first: int, journal: str, plant: str | None, jobs: int) -> None:
    """Play seeds of crashes and faults; exit 1 when one of them fails."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began_at = time.monotonic()
    shares = [range(first + job, first + seeds, jobs) for job in range(min(jobs, seeds))]
    with planted(plant), ProcessPoolExecutor(len(shares), get_context("fork")) as pool:
        played = [one for share in pool.map(partial(_share, journal), shares) for one in share]
    _tell(played, time.monotonic() - began_at)


def _share(journal: str, seeds: range) -> list[Played]:
    """Play every seed of a share on servers of its own, up to the first that fails."""
    played: list[Played] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_world(Path(folder), JOURNALS[journal]) as world,
    ):
        gc.freeze()  # else each child copies the pages that its collections touch
        for seed in seeds:
            played.append(_play(world, seed, journal))
            if played[-1].problems:
                break
    return played


def _play(world: World, seed: int, journal: str) -> Played:
    played = Seed(world, plan_of(seed, SUBSCRIPTIONS, COMPONENTS)).play()
    for problem in played.problems:
        click.echo(f"seed {seed}: {problem}", err=True)
    if played.problems:
        click.echo(f"repeat it: make crash-proof SEEDS=1 FIRST={seed} JOURNAL={journal}", err=True)
    return played


def _tell(played: list[Played], seconds: float) -> None:
    problems = [problem for one in played for problem in one.problems]
    counts = {
        word: sum(problem.startswith(word) for problem in problems)
        for word in ("lost", "doubled", "wrong", "crashed")
    }
    milliseconds = 1000 * seconds / len(played)
    click.echo(f"{seconds:.1f} s, {milliseconds:.0f} ms a seed", err=True)
    crashed = f", {counts['crashed']} crashed" if counts["crashed"] else ""
    click.echo(
        f"crash-proof: {len(played)} seeds, {sum(one.kills for one in played)} kills,"
        f" {sum(one.faults for one in played)} faults: {counts['lost']} lost,"
        f" {counts['doubled']} doubled, {counts['wrong']} wrong{crashed}"
    )
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
