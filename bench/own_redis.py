"""A Redis that is broken on purpose: killed, restarted, emptied, stopped in the middle, full."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis, RedisError

from worker.demo.redis_server import find_binary, free_port, stop

_START_SECONDS = 10.0


class OwnRedis:
    """A real Redis on one port, with an append-only file, that can be broken and mended."""

    def __init__(self, folder: Path) -> None:
        """Choose where it will run; nothing is started yet."""
        self._folder = folder
        self._port, self._password = free_port(), secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        folder.mkdir(parents=True)

    def start(self) -> None:
        """Start it on the file it left, and wait until it answers; one that runs is ended first."""
        self.stop()
        with (self._folder / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                [find_binary(), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self._process = process
        settings = (
            f'bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\nsave ""\n'
            f'dir "{self._folder}"\nappendonly yes\nmaxmemory-policy noeviction\n'
        )
        assert process.stdin is not None
        process.stdin.write(settings.encode())
        process.stdin.close()
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert process.poll() is None, "Redis ended at its start"
            assert time.monotonic() < deadline, "Redis did not start in time"
            time.sleep(0.005)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self.signal(signal.SIGCONT)
            stop(self._process)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, by its own process id."""
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL; what it wrote to its file stays."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(_START_SECONDS)

    def restart(self) -> None:
        """Stop it as an operator does, and start it again."""
        self.stop()
        self.start()

    def start_empty(self) -> None:
        """Start it without its file: every job is gone."""
        for left in self._folder.glob("appendonly*"):
            left.unlink()
        self.start()

    def limit(self, size: str) -> None:
        """Bound its memory; `1` leaves room for nothing, `0` takes the bound off."""
        with Redis.from_url(self.url) as client:
            client.config_set("maxmemory", size)

    def flush(self) -> None:
        """Forget every key."""
        with Redis.from_url(self.url) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
                return bool(client.ping())
        except RedisError:
            return False


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to break a Redis, and how it comes back."""

    strike: Callable[[OwnRedis], None]
    mend: Callable[[OwnRedis], None]


FAULTS: Mapping[str, Fault] = {
    "kill -9": Fault(OwnRedis.kill, OwnRedis.start),
    "kill -9, file lost": Fault(OwnRedis.kill, OwnRedis.start_empty),
    "restart": Fault(OwnRedis.restart, lambda _redis: None),
    "hang": Fault(
        lambda redis: redis.signal(signal.SIGSTOP), lambda redis: redis.signal(signal.SIGCONT)
    ),
    "out of memory": Fault(lambda redis: redis.limit("1"), lambda redis: redis.limit("0")),
}


@contextmanager
def own_redis(folder: Path) -> Iterator[OwnRedis]:
    """Run a Redis for the length of a `with` block."""
    redis = OwnRedis(folder)
    try:
        redis.start()
        yield redis
    finally:
        redis.stop()
