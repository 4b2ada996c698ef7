"""How long the files source takes to count one invoice of 51 components in a Parquet file.

    python -m bench.files [ROWS ...]

It writes one event every few milliseconds of May 2024, by 10,000 subjects and with 51 metrics,
once in the order of time and once sorted by subject, and asks for one subject's 51 counts.
"""

# ruff: noqa: S608 - numbers and our own words

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import duckdb

from usage_sources.files import FilesSource
from worker.domain import Aggregation, Period, UsageQuery

COMPONENTS = 51
SUBJECTS = 10_000
TIMES = 7
MAY = Period(datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC))
MICROSECONDS = 31 * 86_400 * 1_000_000


def main(sizes: list[int]) -> None:
    """Measure each size, sorted and not, and print a line for each."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, DuckDB {duckdb.__version__}")
    print(f"{'rows':>12} {'sorted by':>10} {'MB':>6} {'first s':>8} {'then s':>8} {'sum s':>8}")
    for size in sizes or [1_000_000, 10_000_000]:
        for order in ("time", "subject"):
            with written(size, order) as path:
                measure(path, size, order)


@contextmanager
def written(rows: int, order: str) -> Iterator[Path]:
    """Write the events to a file that is gone afterwards."""
    by = "subject, occurred_at" if order == "subject" else "occurred_at"
    select = (
        f"SELECT 'S-' || (hash(i) % {SUBJECTS}) AS subject, 'metric ' || (i % {COMPONENTS}) AS"
        f" metric, make_timestamptz(1714521600000000 + i * {MICROSECONDS // rows}) AS occurred_at,"
        f" i % 1000 AS quantity FROM range({rows}) AS events(i) ORDER BY {by}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.parquet"
        with duckdb.connect(":memory:") as db:
            db.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
        yield path


def measure(path: Path, rows: int, order: str) -> None:
    """Time the first count of a cold engine, later ones, and sums instead of counts."""
    source = FilesSource(
        path=str(path),
        subject_column="subject",
        time_column="occurred_at",
        time_format="native",
        metric_column="metric",
        quantity_column="quantity",
    )
    first = timed(source, Aggregation.COUNT)
    counts = median(timed(source, Aggregation.COUNT) for _ in range(TIMES))
    sums = median(timed(source, Aggregation.SUM) for _ in range(TIMES))
    source.close()
    size = path.stat().st_size / 1e6
    print(f"{rows:>12,} {order:>10} {size:>6.0f} {first:>8.3f} {counts:>8.3f} {sums:>8.3f}")


def timed(source: FilesSource, how: Aggregation) -> float:
    """Count one invoice; return the seconds it took."""
    queries = [
        UsageQuery(
            charge_id=str(number),
            subject="S-4711",
            component=f"Component {number}",
            metric=f"metric {number}",
            aggregation=how,
            period=MAY,
        )
        for number in range(COMPONENTS)
    ]
    began_at = time.perf_counter()
    tallies = source.count(queries)
    seconds = time.perf_counter() - began_at
    assert len(tallies) == COMPONENTS
    assert sum(tally.events or 0 for tally in tallies) > 0
    return seconds


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
