"""The doctor on Redis, the queue, the workers and the sweep: each misconfiguration seeded there."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from builders import KEY, other_key
from doctor_builders import REDIS, Installation, installed, redis_with
from fakes import FakePlatform
from redis import Redis

from worker.doorbell import Doorbell
from worker.journal import open_journal
from worker.sweep import Sweep, sweep_until
from worker.wiring import utc_now


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


def test_redis_down(whole: Installation) -> None:
    """A Redis that does not answer is the one finding, without its password."""
    whole.set(REDIS, "redis://:s3cr3t-redis@127.0.0.1:1/0")
    finding = whole.bad()
    assert finding.subject == "redis"
    assert "Redis at 127.0.0.1:1: ConnectionError" in finding.told
    assert "queue.redis_url" in finding.mend
    assert "s3cr3t" not in repr(finding)


@pytest.mark.parametrize(
    ("settings", "subject", "told", "mend"),
    [
        ("--appendonly no", "redis persistence", "appendonly no", "appendonly yes"),
        (
            "--appendonly yes --appendfsync no",
            "redis persistence",
            "appendonly yes, appendfsync no",
            "appendfsync everysec",
        ),
        (
            "--appendonly yes --maxmemory-policy allkeys-lru",
            "redis eviction",
            "maxmemory-policy allkeys-lru",
            "maxmemory-policy noeviction",
        ),
    ],
)
def test_redis_settings(
    whole: Installation, settings: str, subject: str, told: str, mend: str
) -> None:
    """A Redis that forgets at a restart, or drops keys, is found with the setting that mends it."""
    with redis_with(whole.folder, *settings.split()) as url:
        whole.use_redis(url)
        finding = whole.bad()
    assert (finding.subject, finding.told) == (subject, told)
    assert mend in finding.mend


def test_redis_that_does_not_tell(whole: Installation) -> None:
    """A hosted Redis that hides its settings is well, and says that they cannot be read."""
    with redis_with(whole.folder, "--rename-command", "CONFIG", "") as url:
        whole.use_redis(url)
        findings = whole.findings()
    assert [finding for finding in findings if not finding.well] == []
    assert "maxmemory-policy cannot be read" in [finding.told for finding in findings]


def test_redis_too_old(whole: Installation) -> None:
    """A Redis older than 6.2 is found; a relay makes a real one say that it is."""
    with redis_with(whole.folder, "--appendonly", "yes") as url:
        whole.use_redis(url)
        with relay(int(url.rsplit(":", 1)[1].split("/")[0])) as port:
            whole.set(REDIS, f"redis://127.0.0.1:{port}/0")
            finding = whole.bad()
    assert finding.subject == "redis"
    assert finding.told.startswith("version 5.0")
    assert "Redis 6.2 or later" in finding.mend


@contextmanager
def relay(to: int) -> Iterator[int]:
    """Pass everything on to a Redis, and make its version 5.0 on the way back."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    pairs: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := _received(source):
            sink.sendall(re.sub(rb"redis_version:\d\.\d", b"redis_version:5.0", data))
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", to))
            pairs.extend((near, far))
            for ends in ((near, far), (far, near)):
                threads.append(threading.Thread(target=pump, args=ends))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join(10)
        for one in pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for one in pairs:
            one.close()


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def test_no_worker(whole: Installation, redis_url: str) -> None:
    """A queue that nobody listens on is found with the command that starts a worker."""
    with Redis.from_url(redis_url) as client:
        client.delete(*client.keys("rq:worker*"))
    finding = whole.bad()
    assert (finding.subject, finding.told) == ("workers", "none listens on reconcile")
    assert "`reconciler work`" in finding.mend


def test_a_worker_that_died_is_none(whole: Installation, redis_url: str) -> None:
    """A worker whose heartbeat ran out is not counted, though RQ still lists its name."""
    with Redis.from_url(redis_url) as client:
        client.delete(*client.keys("rq:worker:*"))
        assert client.smembers("rq:workers:reconcile")
    assert whole.bad().subject == "workers"


def test_workers_on_another_queue(whole: Installation, redis_url: str) -> None:
    """Workers that listen on another queue only are named with it."""
    with Redis.from_url(redis_url) as client:
        client.delete(*client.keys("rq:worker*"))
    whole.listen(redis_url, "invoices")
    finding = whole.bad()
    assert finding.told == "none listens on reconcile, while others listen on invoices"
    assert "queue.name" in finding.mend


def test_a_worker_on_two_queues(whole: Installation, redis_url: str) -> None:
    """A worker that listens on a second queue beside ours is found."""
    whole.listen(redis_url, "reconcile", "mails")
    bad = [finding for finding in whole.findings() if not finding.well]
    assert [finding.subject for finding in bad] == ["workers"]
    assert "listens on reconcile, mails" in bad[0].told


def test_jobs_in_a_queue_that_nobody_works_on(whole: Installation, redis_url: str) -> None:
    """Our jobs under an old queue's name are found; another program's are its own matter."""
    for number in range(3):
        Doorbell(redis_url, "old").ring(other_key(number))
    with Redis.from_url(redis_url) as client:
        client.sadd("rq:queues", "rq:queue:mails")
        client.rpush("rq:queue:mails", "some-mail")
    finding = whole.bad()
    assert finding.subject == "other queues"
    assert finding.told == "3 jobs of ours wait in old, and no worker listens there"
    assert "redis-cli DEL rq:queue:old" in finding.mend


def test_a_job_that_is_not_ours_is_named(whole: Installation, redis_url: str) -> None:
    """A poisoned id on the queue is found before it costs a worker, our own jobs are not."""
    doorbell = Doorbell(redis_url, "reconcile")
    doorbell.ring(KEY)
    assert doorbell.foreign() == []
    redis = doorbell.redis
    redis.hset("rq:job:evil", mapping={"data": b'["os.system", null, ["true"], {}]'})
    redis.rpush(doorbell.queue.key, "evil")
    redis.rpush(f"{doorbell.queue.key}:intermediate", "empty")
    assert doorbell.foreign() == ["evil", "empty"]
    finding = whole.bad()
    assert (finding.subject, finding.told) == ("queue", "not a job of ours: evil, empty")
    assert f"redis-cli LREM {doorbell.queue.key} 0" in finding.mend


def test_a_dead_sweep(whole: Installation, redis_url: str) -> None:
    """A sweep whose last round is older than three intervals is found; so is one never seen."""
    doorbell = Doorbell(redis_url, "reconcile")
    doorbell.note_sweep(utc_now() - timedelta(minutes=5))
    finding = whole.bad()
    assert finding.subject == "sweep"
    assert "due every 60 s" in finding.told
    assert "`reconciler sweep`" in finding.mend
    doorbell.redis.delete(doorbell.sweep_key)
    assert "never" in whole.bad().told


def test_a_round_of_a_real_sweep_is_a_sign_of_life(whole: Installation, redis_url: str) -> None:
    """What the sweep leaves in Redis is what the doctor looks for."""
    doorbell = Doorbell(redis_url, "reconcile")
    doorbell.redis.delete(doorbell.sweep_key)
    sweep = Sweep(
        journal=open_journal(whole.journal_url),
        platforms={"billforward": FakePlatform(invoices={})},
        doorbell=doorbell,
        now=utc_now,
        find_every=timedelta(minutes=10),
        find_pages=1,
    )
    stop = threading.Event()
    sweep_until(stop, sweep, timedelta(milliseconds=1), stop.set)
    assert whole.found("sweep").well


def test_a_redis_that_refuses_us(whole: Installation) -> None:
    """A Redis that answers but lets us read nothing is found."""
    with redis_with(whole.folder, "--appendonly", "yes") as url:
        whole.use_redis(url)
        with Redis.from_url(url) as client:
            client.acl_setuser("default", enabled=True, nopass=True, commands=["-info"])
        finding = whole.bad()
    assert finding.subject == "redis"
    assert finding.told.startswith("it answers, but not to us")
