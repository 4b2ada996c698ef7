"""What the operators' pages cost at the server, over a journal of many invoices.

    python -m bench.pages_http --invoices 100000

Fills a journal as bench.pages does, SQLite and PostgreSQL in turn, and asks the application for
each page as a browser does, behind its login: the whole request with guard, journal, Redis and
template, without a network. Medians of 15 requests each, and the slowest; the bytes of each
answer as it is before it is compressed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from flask.testing import FlaskClient

from bench.pages import COMPONENTS, NOW, RUNS, Bill, bills, fill, vacuum
from proof.world import postgres_journals, sqlite_journals
from webhook_app import create_app
from worker.config import config_of
from worker.demo.redis_server import redis_server
from worker.ops.board import Board
from worker.overviews import Cursor
from worker.record import State

LIMIT_MS = 200.0
MOST_BYTES = 150 * 1024
LIMITED = ("overview", "list, first page", "list, held", "list, text in nearly every reason")

_WIDE = [f"component {number:02}" for number in range(51)]
_PASSWORD = "of-the-bench"  # noqa: S105  it guards nothing


def application(journal_url: str, redis_url: str) -> FlaskClient:
    """Make the application on a filled journal, and who asks it."""
    config = config_of(
        {
            "platforms": {"billforward": {"base_url": "http://127.0.0.1:9/v1"}},
            "ops": {"enabled": True, "users": {"olga": {"role": "operator"}}},
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": _PASSWORD,
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": _PASSWORD,
            "RECONCILER__JOURNAL__URL": journal_url,
            "RECONCILER__QUEUE__REDIS_URL": redis_url,
            "RECONCILER__OPS__USERS__OLGA__PASSWORD": _PASSWORD,
        },
    )
    app = create_app(config)
    board: Board = app.extensions["ops_board"]
    board.desk = replace(board.desk, now=lambda: NOW)  # the invoices' own time
    return app.test_client()


def wide(made: list[Bill]) -> Bill:
    """Return an invoice of many usage charges."""
    last = next(b for b in reversed(made) if b.state is State.ISSUED)
    key = replace(last.key, invoice_id=f"{last.key.invoice_id}-WIDE")
    return replace(last, key=key, components=_WIDE)


def paths(made: list[Bill]) -> Mapping[str, str]:
    """Return what operators look at."""
    issued = next(b for b in reversed(made) if b.state is State.ISSUED)
    held = next(b for b in made if b.state is State.HELD)
    middle = Cursor(made[len(made) // 2].at, made[len(made) // 2].key)
    one = "/ops/invoices/billforward/"
    return {
        "overview": "/ops/",
        "list, first page": "/ops/invoices",
        "list, newest first": "/ops/invoices?order=newest",
        "list, held": "/ops/invoices?state=held",
        "list, held for one cause": "/ops/invoices?cause=fraction",
        "list, one component": f"/ops/invoices?component={COMPONENTS[7]}",
        "list, text: a whole id": f"/ops/invoices?text={issued.key.invoice_id}",
        "list, text in nearly every reason": "/ops/invoices?text=unpaid",
        "list, a page in the middle": f"/ops/invoices?after={middle}",
        "bulk replay, the count": "/ops/bulk?verb=replay&state=held",
        "an issued invoice": f"{one}{issued.key.invoice_id}",
        "an issued invoice of 51 usage charges": f"{one}{wide(made).key.invoice_id}",
        "a held invoice": f"{one}{held.key.invoice_id}",
        "sources": "/ops/sources",
        "RQ, failed jobs (data)": "/ops/rq/0/data/jobs/reconcile/failed/8/asc/1.json",
    }


def measure(
    client: FlaskClient, asked: Mapping[str, str]
) -> Iterator[tuple[str, float, float, int]]:
    """Ask for each page; yield its name, the median and the slowest in milliseconds, its bytes."""
    basic = b64encode(f"olga:{_PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    for name, path in asked.items():
        took = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            answer = client.get(path, headers=headers)
            took.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, f"{path}: {answer.status_code}"
        # the first one warms up
        yield name, statistics.median(took[1:]), max(took[1:]), len(answer.data)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--invoices", type=int, default=100_000)
    parser.add_argument("--held", type=int, default=2, help="of a hundred")
    given = parser.parse_args()
    made = list(bills(given.invoices, given.held))
    tables: dict[str, dict[str, tuple[float, float]]] = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        for name, journals in (("SQLite", sqlite_journals), ("PostgreSQL", postgres_journals)):
            place = Path(folder) / name
            place.mkdir()
            with journals(place) as kept, redis_server(place / "redis", environ={}) as redis_url:
                url = kept.fresh()
                with closing(kept.opened(url)) as journal:
                    fill(journal, iter([*made, wide(made)]))
                vacuum(url)
                client = application(url, redis_url)
                found = list(measure(client, paths(made)))
                tables[name] = {page: (median, most) for page, median, most, _ in found}
                sizes |= {page: size for page, _, _, size in found}
    print(f"\n{given.invoices:,} invoices, now {NOW:%Y-%m-%d}\n")
    print(f"| page | {' | '.join(f'{name} ms | slowest' for name in tables)} | KiB |")
    print(f"| --- |{' --- | --- |' * len(tables)} --- |")
    for page in next(iter(tables.values())):
        cells = [f"{number:.0f}" for table in tables.values() for number in table[page]]
        print(f"| {page} | {' | '.join(cells)} | {sizes[page] / 1024:.0f} |")
    slow = [
        f"{name}, {page}: {table[page][0]:.0f} ms"
        for name, table in tables.items()
        for page in LIMITED
        if table[page][0] > LIMIT_MS
    ]
    assert not slow, f"above {LIMIT_MS:g} ms: {'; '.join(slow)}"
    long = [f"{page}: {size:,}" for page, size in sizes.items() if size > MOST_BYTES]
    assert not long, f"above {MOST_BYTES:,} bytes: {'; '.join(long)}"


if __name__ == "__main__":
    main()
