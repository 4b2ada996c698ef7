"""An invoice that never comes to an end: what becomes of it, and of the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.poison import POISON, Kind, Play, all_settled, key_of, others_settled, play
from sandbox.process import RunningSandbox
from worker.doorbell import job_id_of
from worker.record import State

OTHERS = 12
SHORT_CALLS = "connect_timeout_seconds = 0.5\nread_timeout_seconds = 1\n"
SHORT_LEASE = "settle_seconds = 1.6\nlease_seconds = 3.2\n"


@pytest.mark.parametrize("kind", ["refused", "hangs"])
def test_the_others_do_not_wait_for_a_poison_invoice(
    tmp_path: Path, sandbox: RunningSandbox, redis_url: str, kind: Kind
) -> None:
    """One worker issues all others while the poison, first in the queue, waits for its retry."""
    it = Play(
        invoices=OTHERS,
        kind=kind,
        hang_seconds=0.2,
        sweep_seconds=0.5,
        settings="[rules]\nretry_delays_seconds = [3600]\n",
        platform_settings="total_timeout_seconds = 0.2\n",
    )
    began_at = datetime.now(UTC)
    played = play(tmp_path / "play", sandbox, redis_url, it, until=others_settled)
    assert {row.state for row in played.others} == {State.ISSUED}
    assert played.issues == {key_of(n).invoice_id: 1 for n in range(1, OTHERS + 1)}
    assert played.poison is not None
    assert (played.poison.state, played.poison.attempt) == (State.RETRYING, 1)
    assert played.poison.due_at is not None
    assert played.poison.due_at >= began_at + timedelta(hours=1)
    assert (played.poison_runs, played.workers_started) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "runs", "reason"),
    [
        ("refused", 2, "exhausted after 2 attempts; the last: GET /invoices/{}: 500 ServerError"),
        ("hangs", 2, 'exhausted after 2 attempts; the last: source "usage": no answer in time'),
        ("crashes", 3, "exhausted: its workers died, one after the other"),
    ],
)
def test_a_poison_invoice_ends_held_with_its_last_error(
    tmp_path: Path, sandbox: RunningSandbox, redis_url: str, kind: Kind, runs: int, reason: str
) -> None:
    """After max_attempts it is held and its job failed, whatever it does; all others are issued."""
    it = Play(
        invoices=OTHERS,
        kind=kind,
        hang_seconds=0.2,
        sweep_seconds=0.3,
        settings="[rules]\nmax_attempts = 2\nretry_delays_seconds = [0.2]\n"
        + (SHORT_LEASE if kind == "crashes" else ""),
        platform_settings=SHORT_CALLS if kind == "crashes" else "total_timeout_seconds = 0.2\n",
    )
    played = play(tmp_path / "play", sandbox, redis_url, it, until=all_settled)
    assert {row.state for row in played.others} == {State.ISSUED}
    assert played.issues == {key_of(n).invoice_id: 1 for n in range(1, OTHERS + 1)}
    assert played.poison is not None
    assert played.poison.state is State.HELD
    assert played.poison.reason.startswith(reason.format(key_of(POISON).invoice_id))
    # a ring between a job's start and its claim brings a second job, which tries a held one anew
    assert played.poison_runs >= runs
    assert played.failed_jobs == [job_id_of(key_of(POISON))]
    assert played.workers_started == (3 if kind == "crashes" else 1)
