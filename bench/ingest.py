"""Usage events into the built-in meter, as they come: over HTTP, and from files.

    python -m bench.ingest --http 200000 --file 1000000

HTTP: the real `reconciler serve` with its defaults, and several processes that send batches of
500, each over one kept connection, into SQLite. Files: `reconciler events import` of as many JSON
lines, and CSV rows, each into a new SQLite file, with the start of the program. Every fiftieth
event is sent twice. Afterwards the meter's own table is counted: any event that is missing or
doubled ends this with exit code 1. Sending costs time too, on the same machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.meter import events
from bench.own_redis import own_redis
from worker.demo.processes import running, wait_for
from worker.demo.redis_server import free_port
from worker.domain import utc_text
from worker.metering import UsageEvent

_BATCH = 500
_TOKEN = "token-of-the-senders"  # noqa: S105  it guards nothing
_SUBJECTS = [f"SUB-{number:04}" for number in range(1000)]
_START_SECONDS = 30.0
_CONFIG = """
[platforms.billforward]
base_url = "http://127.0.0.1:1/v1"
[journal]
url = "sqlite:///{folder}/journal.db"
[webhook]
port = {port}
[usage_sources.meter]
kind = "meter"
url = "sqlite:///{folder}/usage.db"
[events]
source = "meter"
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one client saw."""

    waits: list[float]  # seconds of each request
    stored: int
    duplicates: int
    refused: int


def cloud_event(event: UsageEvent) -> dict[str, object]:
    """Write an event as a CloudEvent."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.metric,
        "subject": event.subject,
        "time": utc_text(event.at),
        "data": {"value": str(event.quantity)},
    }


def csv_row(event: UsageEvent) -> str:
    """Write an event as a row."""
    time_text = utc_text(event.at)
    names = f"{event.source},{event.id},{event.subject},{event.metric}"
    return f"{names},{time_text},{event.quantity}\n"


def bodies(seed: int, count: int) -> Iterator[bytes]:
    """Make the requests of one client."""
    batch: list[dict[str, object]] = []
    for event in events(count, _SUBJECTS, seed=seed):
        batch.append(cloud_event(event))
        if len(batch) == _BATCH:
            yield json.dumps(batch).encode()
            batch = []
    if batch:
        yield json.dumps(batch).encode()


def make_ready(folder: Path, seed: int, count: int) -> Path:
    """Write the requests down, so that making them is not measured."""
    path = folder / f"client-{seed}"
    path.write_bytes(b"\n".join(bodies(seed, count)))
    return path


def send(path: Path, port: int) -> Sent:
    """Send the requests of a file one after the other; anything but 200 ends it."""
    sent = Sent([], 0, 0, 0)
    stored = duplicates = refused = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {
        "Authorization": f"Bearer {_TOKEN}",
        "Content-Type": "application/cloudevents-batch+json",
    }
    for body in path.read_bytes().split(b"\n"):
        began_at = time.monotonic()
        connection.request("POST", "/events", body, headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        sent.waits.append(time.monotonic() - began_at)
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}: {told}")
        stored += told["stored"]
        duplicates += told["duplicates"]
        refused += len(told["refused"])
    connection.close()
    return Sent(sent.waits, stored, duplicates, refused)


def environ_of(folder: Path, redis_url: str, port: int) -> Mapping[str, str]:
    """Write the configuration; return the environment that our processes get."""
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    own = {name: text for name, text in os.environ.items() if not name.startswith("RECONCILER")}
    return own | {
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
        "RECONCILER__WEBHOOK__PASSWORD": "of-the-hook",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "of-the-platform",
        "RECONCILER__EVENTS__TOKEN": _TOKEN,
    }


def counted(folder: Path) -> int:
    """Count what is in the meter, without its help."""
    with closing(sqlite3.connect(folder / "usage.db")) as db:
        (number,) = db.execute("SELECT count(*) FROM meter_events").fetchone()
        return int(number)


def line(what: str, count: int, seconds: float, more: str) -> None:
    """Print one line of the table; `count` has those that were sent twice."""
    print(f"| {what} | {count:,} | {count / seconds:,.0f} | {more} |", flush=True)


def over_http(folder: Path, count: int, clients: int) -> int:
    """Send events from several processes; return how many are missing or doubled."""
    each = count // clients
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(clients))
        made = list(pool.map(partial(make_ready, folder), range(1, clients + 1), [each] * clients))
        redis = stack.enter_context(own_redis(folder / "redis"))
        port = free_port()
        environ = environ_of(folder, redis.url, port)
        serving = stack.enter_context(running("serve", ["serve"], folder, environ))
        wait_for(
            "the endpoint",
            partial(_answers, port),
            seconds=_START_SECONDS,
            alive={"serve": serving},
            folder=folder,
        )
        began_at = time.monotonic()
        sent = list(pool.map(send, made, [port] * clients))
        seconds = time.monotonic() - began_at
    waits = sorted(wait for one in sent for wait in one.waits)
    p50, p99 = statistics.median(waits), waits[int(len(waits) * 0.99) - 1]
    stored, duplicates = sum(one.stored for one in sent), sum(one.duplicates for one in sent)
    more = f"{1000 * p50:.0f} / {1000 * p99:.0f} | {duplicates:,}"
    what = f"HTTP, {clients} clients, batches of {_BATCH}"
    line(what, stored + duplicates, seconds, more)
    return abs(counted(folder) - clients * each) + sum(one.refused for one in sent)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/events")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()


def from_file(folder: Path, count: int, name: str) -> int:
    """Import one file twice; return how many events are missing or doubled."""
    path = folder / name
    with path.open("w") as file:
        if name.endswith(".csv"):
            file.write("source,id,subject,type,time,value\n")
            file.writelines(csv_row(one) for one in events(count, _SUBJECTS, seed=1))
        else:
            some = events(count, _SUBJECTS, seed=1)
            file.writelines(json.dumps(cloud_event(one)) + "\n" for one in some)
    environ = environ_of(folder, "redis://127.0.0.1:1/0", 1)
    lines = count + -(-count // 50)
    for what in (f"import, {path.suffix}", f"import, {path.suffix}, read before"):
        command = [sys.executable, "-m", "worker", "events", "import", str(path)]
        command += ["--state", str(folder / "imports")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began_at = time.monotonic()
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - began_at
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        known = ended.stdout.split(" stored, ")[1].split(" ")[0]
        line(what, lines, seconds, f"CPU {cpu / lines * 1e6:.1f} µs each | {int(known):,}")
    return abs(counted(folder) - count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--file", type=int, default=1_000_000)
    given = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs\n")
    print("| way | events sent | events/s | p50 / p99 of a request, ms | duplicates |")
    print("| --- | --- | --- | --- | --- |")
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        for kind in ("http", "events.jsonl", "events.csv"):
            folder = Path(name) / kind
            folder.mkdir()
            if kind == "http" and given.http:
                wrong += over_http(folder, given.http, given.clients)
            elif kind != "http" and given.file:
                wrong += from_file(folder, given.file, kind)
    print(f"\nmissing or doubled: {wrong}; load average after: {os.getloadavg()[0]:.1f}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
