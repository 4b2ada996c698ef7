"""A small flood on the real endpoint; its speed is measured in bench/, here is what must hold."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from builders import KEY, other_key
from redis import Redis

from bench.flood import Flood, Found, flood, found, in_order, key_of, lost, problems
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell, job_id_of

NOTIFICATIONS = 300


@pytest.mark.parametrize("journal", ["sqlite", "postgres"])
def test_a_flood_is_answered_and_kept_whole(
    tmp_path: Path, redis_url: str, new_journal_url: Callable[[str], str], journal: str
) -> None:
    """Everything sent at once is answered 200, journaled once, and queued once an invoice."""
    plan = Flood(
        notifications=NOTIFICATIONS,
        clients=3,
        journal_url=new_journal_url(journal),
        redis_url=redis_url,
        folder=tmp_path,
    )
    answers = flood(plan)
    seen = found(plan)
    assert problems(plan, answers, seen) == []
    assert len(answers) == len(in_order(NOTIFICATIONS)) > NOTIFICATIONS
    assert len(seen.queued) == len({key_of(number) for number in range(NOTIFICATIONS)})
    _sees_what_is_wrong(plan, seen)


def _sees_what_is_wrong(plan: Flood, seen: Found) -> None:
    """See that the checks find what they are there for."""
    deliveries = dict(seen.deliveries)
    name, _ = deliveries.popitem()
    short = replace(seen, deliveries=deliveries)
    assert lost(plan, short) == 1
    assert f"{name} is lost" in problems(plan, [], short)
    job = next(iter(seen.queued))
    twice = replace(seen, queued=seen.queued + Counter([job]))
    assert f"{job} is 2 times on the queue" in problems(plan, [], twice)


def test_those_who_ring_at_once_for_one_invoice_make_one_job(redis_url: str) -> None:
    """However many processes ring for an invoice at the same moment, its job is queued once."""
    ringers = 6
    doorbells = [Doorbell(redis_url, "race") for _ in range(ringers)]
    together = threading.Barrier(ringers)
    rounds = [other_key(number) for number in range(40)]

    def ring(doorbell: Doorbell) -> None:
        for key in rounds:
            together.wait(20)
            doorbell.ring(key)

    with ThreadPoolExecutor(ringers) as pool:
        for done in [pool.submit(ring, doorbell) for doorbell in doorbells]:
            done.result(60)
    with Redis.from_url(redis_url) as redis:
        queued = redis.lrange(doorbells[0].queue.key, 0, -1)
    assert Counter(queued) == {job_id_of(key).encode(): 1 for key in rounds}
    for doorbell in doorbells:
        doorbell.redis.close()


def test_an_invoice_whose_job_was_taken_off_is_rung_for_again(redis_url: str) -> None:
    """News that come while a worker is at the invoice put its job on the queue anew."""
    doorbell = Doorbell(redis_url, "again")
    doorbell.ring(KEY)
    assert doorbell.redis.lpop(doorbell.queue.key) == job_id_of(KEY).encode()
    doorbell.ring(KEY)
    assert doorbell.redis.lrange(doorbell.queue.key, 0, -1) == [job_id_of(KEY).encode()]
    doorbell.redis.close()


@pytest.mark.parametrize("invoice_id", ["in_1.x:y", "<b>", "Ä 漢", "a" * 64])
def test_any_id_can_be_rung_for(redis_url: str, invoice_id: str) -> None:
    """What RQ does not take in a job's id is written otherwise, and two ids stay two."""
    doorbell = Doorbell(redis_url, "reconcile")
    keys = [InvoiceKey("billforward", invoice_id), InvoiceKey("billforward", f"{invoice_id}x")]
    for key in [*keys, *keys]:
        doorbell.ring(key)
    assert doorbell.queue.get_job_ids() == [job_id_of(key) for key in keys]
    assert len(set(doorbell.queue.get_job_ids())) == 2
    assert doorbell.foreign() == []
    job = doorbell.queue.fetch_job(job_id_of(keys[0]))
    assert job is not None
    assert job.args == ["billforward", invoice_id]
