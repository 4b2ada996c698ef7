"""A journal that cannot be written, and endpoints that are killed: nothing answered 200 is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from postgres import Server

from bench import journal_faults, kills
from bench.journal_faults import Refusal, Strike
from bench.kills import Killed
from proof.world import sqlite_journals
from worker.errors import JournalUnavailable
from worker.journal.sqlite import SqliteJournal


def refused_and_taken_again(found: Refusal) -> None:
    """Assert what holds whatever stood in the way."""
    assert found.refused is not None
    assert (found.refused.status, found.refused.retry_after) == (503, "30")
    assert found.ready == 503
    assert found.problems == []
    assert found.again is not None
    assert (found.again.status, found.again.result) == (200, "new")


@pytest.mark.parametrize("fault", journal_faults.SQLITE)
def test_a_file_that_cannot_be_written_refuses_and_keeps_what_it_has(
    fault: str, journal_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, no table changed, every record whole, and the redelivery is taken."""
    monkeypatch.setattr("worker.journal.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    found = journal_faults.play(journal_url, redis_url, journal_faults.SQLITE[fault])
    refused_and_taken_again(found)


@pytest.mark.parametrize("fault", ["locked", "standby"])
def test_a_postgres_that_cannot_be_written_refuses_and_keeps_what_it_has(
    fault: str, new_journal_url: Callable[[str], str], redis_url: str, postgres: Server
) -> None:
    """The same on a PostgreSQL whose table is locked, and on one that became a standby."""
    url = new_journal_url("postgres")
    strikes: dict[str, Strike] = {
        "locked": journal_faults.table_locked(url),
        "standby": journal_faults.standby(postgres.stopped, url),
    }
    options = "options=-c%20lock_timeout%3D100ms"
    found = journal_faults.play(f"{url}&{options}", redis_url, strikes[fault])
    refused_and_taken_again(found)


def test_threads_wait_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot have its turn is told so, and does not queue behind all the others."""
    monkeypatch.setattr("worker.journal.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    told: list[JournalUnavailable] = []

    def ask() -> None:
        try:
            journal.check()
        except JournalUnavailable as error:
            told.append(error)

    with closing(SqliteJournal(tmp_path / "journal.db")) as journal:
        other = threading.Thread(target=ask)
        with journal.store.transaction():
            other.start()
            other.join(10)
        assert not other.is_alive()
        assert "other threads" in str(told)
        journal.check()


def nothing_acknowledged_is_lost(played: list[Killed], seeds: int) -> None:
    """Assert that the endpoints answered, and what they answered is there."""
    assert [problem for one in played for problem in one.problems] == []
    assert len(played) == seeds
    assert sum(one.answered for one in played) > 5 * seeds


def test_a_killed_endpoint_loses_no_delivery_it_answered() -> None:
    """40 seeds of kill -9 under load: every 200 is in the journal, which is whole and goes on."""
    played = kills.play_all(kills.kill_endpoint, range(1, 41), sqlite_journals)
    nothing_acknowledged_is_lost(played, 40)
    assert sum(one.unanswered for one in played) >= 40  # the kills came in the middle
    assert sum(one.kept_unanswered for one in played) > 0  # some between commit and answer


def test_a_killed_endpoint_loses_nothing_on_postgres(
    new_journal_url: Callable[[str], str],
) -> None:
    """The same with 5 seeds on a PostgreSQL journal."""
    journals = partial(kills.postgres_at, new_journal_url("postgres"))
    played = kills.play_all(kills.kill_endpoint, range(1, 6), journals, jobs=1)
    nothing_acknowledged_is_lost(played, 5)


def test_a_killed_postgres_loses_no_delivery_that_was_answered(
    new_journal_url: Callable[[str], str],
) -> None:
    """After kill -9 of a session PostgreSQL recovers: 503 meanwhile, and nothing lost."""
    journals = partial(kills.postgres_at, new_journal_url("postgres"))
    played = kills.play_all(kills.kill_postgres, range(1, 4), journals, jobs=1)
    nothing_acknowledged_is_lost(played, 3)
    assert sum(one.refused for one in played) > 0
