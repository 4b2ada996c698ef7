"""The built-in meter in SQLite: how fast events are stored, and an invoice is counted.

    python -m bench.meter --events 10000000

Makes two files in a temporary folder, each through `append`, synchronous=FULL: the events of one
month by 1,000 subscriptions, 51 components each, in the order of their times but for delays of
up to an hour; and as many events by one subscription. Two events in a hundred are sent twice.
Making an event costs time too, which is not counted. Counts are medians, everything in memory.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path

from usage_sources.meter import MeterSource
from usage_sources.meter.counting import count_series
from usage_sources.meter.sqlite import SqliteMeter
from usage_sources.reading import microseconds
from worker.domain import Aggregation, Period, UsageQuery
from worker.metering import UsageEvent

MONTH = Period(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
# As a subscription's months do, the invoice's begins and ends within an hour.
BILLED = Period(MONTH.start + timedelta(minutes=18), MONTH.end - timedelta(minutes=41))
COMPONENTS = [f"component_{number:02}" for number in range(51)]
_TWICE_EVERY = 50
_LARGE = 50_000
_QUANTITIES = [Decimal(each) for each in ("1", "1", "1", "25", "1024", "0.5", "3.125")]


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    what: str
    measured: str


def events(
    count: int, subjects: Sequence[str], *, seed: int, random_ids: bool = False
) -> Iterator[UsageEvent]:
    """Make a month of events, every fiftieth twice."""
    chance = random.Random(seed)  # noqa: S311  reproducible, not secret
    step = (MONTH.end - MONTH.start) / count
    for number in range(count):
        late = timedelta(microseconds=chance.randrange(3_600_000_000))
        at = max(MONTH.start, MONTH.start + number * step - late)
        name = chance.getrandbits(128)
        one = UsageEvent(
            source="gateway",
            id=f"{name:032x}" if random_ids else f"{seed:04x}{number:012x}{name % 2**64:016x}",
            subject=chance.choice(subjects),
            metric=chance.choice(COMPONENTS),
            at=at,
            quantity=chance.choice(_QUANTITIES),
        )
        yield one
        if number % _TWICE_EVERY == 0:
            yield one


@dataclass(frozen=True, slots=True)
class Took:
    """How long a piece of work took."""

    seconds: float
    cpu_seconds: float  # of this process; more than it on a machine that is busy otherwise


def timed(work: Callable[[], object]) -> Took:
    """Do it and look at both clocks."""
    cpu, began_at = time.process_time(), time.perf_counter()
    work()
    return Took(time.perf_counter() - began_at, time.process_time() - cpu)


def append_all(meter: SqliteMeter, some: Iterator[UsageEvent], size: int) -> Iterator[Took]:
    """Store events in batches; yield what each batch took."""
    while batch := list(islice(some, size)):
        yield timed(partial(meter.append, batch, all_or_nothing=False))


def rate(sent: int, took: Sequence[Took]) -> str:
    """Write events a second."""
    cpu = sum(each.cpu_seconds for each in took) / sent * 1e6
    return f"{sent / sum(each.seconds for each in took):,.0f} events/s (CPU {cpu:.1f} µs each)"


def build(meter: SqliteMeter, count: int, subjects: Sequence[str], what: str) -> list[Result]:
    """Store so many events in large batches, telling how it goes."""
    took, began_at = list[Took](), time.perf_counter()
    for one in append_all(meter, events(count, subjects, seed=1), _LARGE):
        took.append(one)
        if len(took) % 20 == 0:
            last = rate(20 * _LARGE, took[-20:])
            print(f"  {what}: {len(took) * _LARGE:,} sent, {last}", flush=True)
    return [
        Result(f"{what}: append, batches of {_LARGE:,}", rate(count + count // _TWICE_EVERY, took)),
        Result(f"{what}: whole time", f"{time.perf_counter() - began_at:,.0f} s"),
    ]


def appends(meter: SqliteMeter, subjects: Sequence[str]) -> Iterator[Result]:
    """Measure batches of each size into the full table."""
    seed = 1
    for size, count in ((5000, 250_000), (500, 100_000)):
        for random_ids in (False, True):
            seed += 1
            some = events(count, subjects, seed=seed, random_ids=random_ids)
            took = list(append_all(meter, some, size))
            sent = count + count // _TWICE_EVERY
            ids = "random ids" if random_ids else "ids in order"
            waits = sorted(each.seconds * 1000 for each in took)
            slow = waits[int(len(waits) * 0.99) - 1]
            yield Result(
                f"full table: append, batches of {size:,}, {ids}",
                f"{rate(sent, took)}, p50 {statistics.median(waits):.1f} ms,"
                f" p99 {slow:.0f} ms a batch",
            )


def median_ms(runs: int, work: Callable[[], object]) -> str:
    """Run once to warm up, then time."""
    work()
    took = [timed(work) for _ in range(runs)]
    middle = statistics.median(each.seconds for each in took) * 1000
    cpu = sum(each.cpu_seconds for each in took) / runs * 1000
    return f"{middle:.2f} ms (CPU {cpu:.2f} ms)"


def queries(subject: str) -> list[UsageQuery]:
    """Ask for all components of one invoice."""
    return [
        UsageQuery(
            charge_id=metric,
            subject=subject,
            component=metric,
            metric=metric,
            aggregation=Aggregation.SUM,
            period=BILLED,
        )
        for metric in COMPONENTS
    ]


def counts_of_many(source: MeterSource, subjects: Sequence[str]) -> Iterator[Result]:
    """Count invoices of many subscriptions."""
    turn = iter(subjects * 100)
    yield Result(
        "51 components of one of the subscriptions",
        median_ms(300, lambda: source.count(queries(next(turn)))),
    )


def counts_of_one(source: MeterSource, meter: SqliteMeter, subject: str) -> Iterator[Result]:
    """Count the heavy subscription by the roll-up and by single events."""
    tallies = source.count(queries(subject))
    total = sum(tally.events or 0 for tally in tallies)
    yield Result(
        f"51 components of the heavy subscription ({total:,} events), by the roll-up",
        median_ms(30, lambda: source.count(queries(subject))),
    )
    span = microseconds(BILLED.start), microseconds(BILLED.end)
    with meter.reading() as snapshot:
        series = snapshot.series([subject], COMPONENTS, snapshot.latest)
        raw = [replace(each, rolled=False) for each in series]
        yield Result(
            "the same by single events",
            median_ms(2, lambda: count_series(snapshot, raw, span, snapshot.latest)),
        )
        assert count_series(snapshot, raw, span, snapshot.latest) == count_series(
            snapshot, series, span, snapshot.latest
        )


def size_of(path: Path) -> Result:
    """Tell how large a file is."""
    return Result(f"{path.name}: size", f"{path.stat().st_size / 2**30:.2f} GiB")


def measure(folder: Path, count: int, parts: Sequence[str]) -> list[Result]:
    """Do each part in turn."""
    results = []
    subjects = [f"SUB-{number:08X}-5E1F-4000-8000-00010000" for number in range(1000)]
    for name in parts:
        some = subjects if name == "many" else ["SUB-HEAVY"]
        path = folder / f"{name}.db"
        meter = SqliteMeter(path, 120)
        source = MeterSource(url=f"sqlite:///{path}")
        results += build(meter, count, some, f"{len(some):,} subscription(s)")
        if name == "many":
            results += [*counts_of_many(source, some), *appends(meter, some)]
        else:
            results += counts_of_one(source, meter, some[0])
        meter.close()
        source.close()
        results.append(size_of(path))
    return results


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where the files are made; default: a temporary folder")
    parser.add_argument("--part", choices=["many", "one"], help="only this file; default: both")
    given = parser.parse_args()
    parts = [given.part] if given.part else ["many", "one"]
    with tempfile.TemporaryDirectory(prefix="meter-", dir=given.folder) as folder:
        results = measure(Path(folder), given.events, parts)
    print(f"\n{given.events:,} events\n\n| measured | |\n| --- | --- |")
    for each in results:
        print(f"| {each.what} | {each.measured} |")


if __name__ == "__main__":
    main()
