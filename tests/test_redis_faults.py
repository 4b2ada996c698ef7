"""Redis breaks at every step of an invoice's way, and nothing is lost, doubled or late.

The cases are played once, by `bench.redis_faults`; `python -m bench.faults redis` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from builders import KEY, other_key

from bench import redis_faults
from bench.own_redis import FAULTS, own_redis
from bench.redis_faults import INVOICES, STEPS, Case
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable

MOST_SECONDS = 1.5  # what a notification may wait for its answer, whatever Redis does


@pytest.fixture(scope="module")
def cases() -> Mapping[tuple[str, str], Case]:
    """Every fault at every step."""
    return {(case.fault, case.step): case for case in redis_faults.play_all()}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_redis_does_each_invoice_is_issued_once(
    cases: Mapping[tuple[str, str], Case], fault: str, step: str
) -> None:
    """Every notification is answered 200 in time; one sweep and one worker later all is issued."""
    case = cases[fault, step]
    assert [answer.status for answer in case.answers] == [200] * INVOICES
    assert case.slowest_seconds < MOST_SECONDS
    assert case.problems == []


@pytest.mark.parametrize("step", redis_faults.WORKED)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_invoice_under_work_does_not_wait_for_redis(
    cases: Mapping[tuple[str, str], Case], fault: str, step: str
) -> None:
    """A worker that has its invoice issues it while Redis is out."""
    assert cases[fault, step].issued_meanwhile


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"restart"}))
def test_the_faults_are_faults(fault: str, tmp_path: Path) -> None:
    """Each one keeps the doorbell silent until it is mended, or the cases would prove nothing."""
    with own_redis(tmp_path / "redis") as redis:
        doorbell = Doorbell(redis.url, "reconcile")
        doorbell.ring(KEY)
        FAULTS[fault].strike(redis)
        with pytest.raises(QueueUnavailable):
            doorbell.ring(other_key(1))
        FAULTS[fault].mend(redis)
        doorbell.ring(other_key(2))
        kept = len(doorbell.queue.get_job_ids())
        assert kept == (1 if fault == "kill -9, file lost" else 2)
        doorbell.redis.close()
