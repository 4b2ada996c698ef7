"""GET /metrics tells of all processes, the journal and the queue, to those who may read it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import INV, NOW
from metrics_builders import (
    Installation,
    deliver,
    installation,
    put_invoice,
    samples,
    total,
    value,
)
from redis import Redis

from sandbox.process import RunningSandbox
from worker.errors import JournalUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.metrics_scrape import Cached
from worker.overviews import Overview

TOKEN = "metrics-token-of-tests"


@pytest.fixture
def there(tmp_path: Path, sandbox: RunningSandbox, redis_url: str) -> Installation:
    """An installation in which nothing has happened yet."""
    return installation(tmp_path, sandbox, redis_url, "")


def scraped(there: Installation, path: str = "/metrics") -> str:
    """Scrape, from this machine."""
    answer = there.client().get(path)
    assert answer.status_code == 200, answer.text
    assert answer.content_type.startswith("text/plain; version=")
    return answer.text


def test_every_process_is_in_one_scrape(there: Installation, sandbox: RunningSandbox) -> None:
    """What the endpoint, the worker and the sweep did is told together, and no id in any label."""
    put_invoice(sandbox)
    client = there.client()
    assert [deliver(client).status_code for _ in range(2)] == [200, 200]
    assert deliver(client, "wrong").status_code == 401
    there.run("work", "--burst")
    there.run("sweep", "--once")
    text = scraped(there)
    for result in ("new", "duplicate", "unauthorized"):
        assert value(text, "reconciler_deliveries_total", result=result) == 1
    assert value(text, "reconciler_duplicates_suppressed_total", what="delivery") == 1
    assert value(text, "reconciler_decisions_total", decision="issued", cause="") == 1
    assert value(text, "reconciler_run_seconds_count") == 1
    ok = value(text, "reconciler_platform_requests_total", platform="billforward", code="200")
    assert ok >= 6
    told = total(samples(text)["reconciler_platform_request_seconds_count"].values())
    assert told >= ok
    assert value(text, "reconciler_source_queries_total", source="events", result="ok") == 1
    assert value(text, "reconciler_sweep_rounds_total", result="done") == 1
    assert value(text, "reconciler_sweep_last_round_timestamp_seconds") > time.time() - 600
    assert value(text, "reconciler_journal_commit_seconds_count") >= 7
    assert value(text, "reconciler_sweep_alive") == 1
    assert value(text, "reconciler_invoices", state="issued") == 1
    assert value(text, "reconciler_oldest_unissued_seconds") == 0
    assert value(text, "rq_jobs", queue="reconcile", status="finished") == 1
    assert "INV-" not in text
    assert "SUB-" not in text
    assert sandbox.token not in text


def test_an_issue_is_counted_once(there: Installation, sandbox: RunningSandbox) -> None:
    """A replay of an issued invoice only reads it back, and is counted as that."""
    put_invoice(sandbox)
    deliver(there.client())
    there.run("work", "--burst")
    for times in (1, 2):
        there.run("replay", INV, "--reason", "is it well?", "--wait", "0", code=3)
        there.run("work", "--burst")
        text = scraped(there)
        assert value(text, "reconciler_decisions_total", decision="issued", cause="") == 1
        assert value(text, "reconciler_decisions_total", decision="confirmed", cause="") == times


def test_an_issue_whose_answer_was_lost_is_counted(
    there: Installation, sandbox: RunningSandbox
) -> None:
    """The run that reads it back first is the one that issued it."""
    put_invoice(sandbox)
    deliver(there.client())
    issue = {"method": "POST", "path": "/invoices/"}
    sandbox.control.add_fault("late_commit", seconds=0, match=issue)
    there.run("work", "--burst")
    assert value(scraped(there), "reconciler_decisions_total", decision="issued", cause="") == 0
    there.run("replay", INV, "--reason", "now", "--wait", "0", code=3)
    there.run("work", "--burst")
    assert value(scraped(there), "reconciler_decisions_total", decision="issued", cause="") == 1


def test_runs_are_counted_by_why_they_wait_or_skip(
    there: Installation, sandbox: RunningSandbox
) -> None:
    """By a word of few, not by a reason with ids in it."""
    deliver(there.client())
    there.run("work", "--burst")
    put_invoice(sandbox, invoice_type="Adhoc")
    there.run("replay", INV, "--reason", "now", "--wait", "0", code=3)
    there.run("work", "--burst")
    decisions = samples(scraped(there))["reconciler_decisions_total"]
    assert {labels: number for labels, number in decisions.items() if number} == {
        (("cause", "not_found_yet"), ("decision", "waiting")): 1,
        (("cause", "type"), ("decision", "skipped")): 1,
    }


def test_the_journal_is_told_as_it_stands(there: Installation, sandbox: RunningSandbox) -> None:
    """Held by cause, the age of the oldest, and paused platforms, all from the journal itself."""
    put_invoice(sandbox, component="Fax pages")
    deliver(there.client())
    there.run("work", "--burst")
    there.run("pause", "--reason", "a rate is wrong")
    text = scraped(there)
    assert value(text, "reconciler_invoices", state="held") == 1
    assert value(text, "reconciler_held_invoices", cause="unmapped_component") == 1
    assert value(text, "reconciler_held_invoices", cause="fraction") == 0
    assert 0 < value(text, "reconciler_oldest_unissued_seconds") < 600
    assert value(text, "reconciler_paused", platform="billforward") == 1
    cause = "unmapped_component"
    assert value(text, "reconciler_decisions_total", decision="held", cause=cause) == 1
    assert value(text, "rq_jobs", queue="reconcile", status="failed") == 1


def test_a_scrape_changes_nothing_in_redis(there: Installation, redis_url: str) -> None:
    """RQ's own counts would clean up and requeue; a worker that died is not counted."""
    redis = Redis.from_url(redis_url)
    redis.sadd("rq:workers:reconcile", "rq:worker:dead", "rq:worker:alive")
    redis.hset("rq:worker:alive", "state", "busy")
    redis.zadd("rq:wip:reconcile", {"long-gone": 1})
    before = {key: redis.dump(key) for key in sorted(redis.keys())}
    text = scraped(there)
    assert {key: redis.dump(key) for key in sorted(redis.keys())} == before
    redis.close()
    assert value(text, "rq_workers", queues="reconcile", state="busy") == 1
    assert value(text, "rq_workers", queues="reconcile", state="idle") == 0
    assert value(text, "rq_jobs", queue="reconcile", status="started") == 1


def test_what_is_down_is_told_and_the_rest_with_it(tmp_path: Path, sandbox: RunningSandbox) -> None:
    """Without Redis and without the journal a scrape is answered all the same."""
    there = installation(tmp_path, sandbox, "redis://127.0.0.1:9/0", "")
    client = there.client()
    (tmp_path / "journal.db").rename(tmp_path / "moved.db")
    text = client.get("/metrics").text
    assert value(text, "reconciler_up", part="redis") == 0
    assert value(text, "reconciler_up", part="journal") == 0
    assert value(text, "reconciler_deliveries_total", result="new") == 0
    absent = {"rq_jobs", "rq_workers", "reconciler_sweep_alive", "reconciler_invoices"}
    assert not (absent | {"reconciler_overdue_seconds"}) & set(samples(text))


def test_without_a_token_only_this_machine_reads(there: Installation) -> None:
    """Neither another host, nor whoever comes through a proxy, nor a page by a name of its own."""
    client = there.client()
    assert client.get("/metrics").status_code == 200
    for address in ("127.0.0.1", "::1"):
        assert client.get("/metrics", environ_base={"REMOTE_ADDR": address}).status_code == 200
    for address in ("192.0.2.7", "", "10.0.0.1", "::ffff:192.0.2.7"):
        answer = client.get("/metrics", environ_base={"REMOTE_ADDR": address})
        assert answer.status_code == 403
        assert "reconciler_" not in answer.text
    for headers in (
        {"X-Forwarded-For": "192.0.2.7"},
        {"Forwarded": "for=192.0.2.7"},
        {"Via": "1.1 proxy"},
        {"Host": "billing.example"},
    ):
        assert client.get("/metrics", headers=headers).status_code == 403


def test_with_a_token_everybody_shows_it(
    tmp_path: Path, sandbox: RunningSandbox, redis_url: str
) -> None:
    """A token opens the page to any host, and closes it to this machine without it."""
    there = installation(tmp_path, sandbox, redis_url, "")
    there.environ = {**there.environ, "RECONCILER__METRICS__TOKEN": TOKEN}
    client = there.client()
    for given in ("", "Bearer wrong", f"Basic {TOKEN}", TOKEN):
        answer = client.get("/metrics", headers={"Authorization": given})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    answer = client.get(
        "/metrics",
        headers={"Authorization": f"Bearer {TOKEN}"},
        environ_base={"REMOTE_ADDR": "192.0.2.7"},
    )
    assert answer.status_code == 200
    assert TOKEN not in answer.text
    assert client.post("/metrics").status_code == 405


@pytest.fixture
def overview(tmp_path: Path) -> Overview:
    """The overview of an empty journal."""
    return SqliteJournal(tmp_path / "empty.db").overview(NOW)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets a read that hangs go on."""
    event = threading.Event()
    with ExitStack() as stack:
        stack.callback(event.set)
        yield event


def test_a_journal_that_hangs_is_not_waited_for(
    overview: Overview, release: threading.Event
) -> None:
    """A scrape gives up soon, begins no second read beside the first, and sees the next answer."""
    begun: list[int] = []

    def read() -> Overview:
        begun.append(1)
        release.wait(20)
        return overview

    cached = Cached(read, kept=0, most=0.05)
    assert [cached.value() for _ in range(3)] == [None, None, None]
    assert len(begun) == 1
    release.set()
    asked = 1
    deadline = time.monotonic() + 10
    while cached.value() is None:
        asked += 1
        assert time.monotonic() < deadline
    assert len(begun) <= 1 + asked  # none was in line behind the one that hung


def test_the_journal_is_read_once_in_a_while(overview: Overview) -> None:
    """Scrapes that come together share one read; a failed one is told as that, and tried again."""
    answers: list[Overview | JournalUnavailable] = [JournalUnavailable("gone"), overview]

    def read() -> Overview:
        answer = answers.pop(0)
        if isinstance(answer, JournalUnavailable):
            raise answer
        return answer

    cached = Cached(read, kept=0)
    assert cached.value() is None
    time.sleep(0.001)
    assert cached.value() is overview
    kept = Cached(lambda: overview, kept=60)
    assert kept.value() is kept.value()
    assert INV not in repr(kept)
