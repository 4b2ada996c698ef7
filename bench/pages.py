"""What operators' pages cost: the journal's overview and searches over many invoices.

    python -m bench.pages --invoices 100000

Fills a journal in a temporary folder, SQLite and PostgreSQL in turn, with a year of invoices and
their entries, written by the journal's own functions in one transaction. A tenth of them is of
the last day; of a hundred, two are held (--held) and one is waiting or retrying. Times are the
fastest and the median of 15 runs, each one call of the port, everything in memory.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psycopg

from proof.world import postgres_journals, sqlite_journals
from worker.causes import cause_of
from worker.domain import Aggregation, Evidence, FrozenTally, InvoiceKey, Period, Rounding, Span
from worker.journal.codec import counted_entry, stamp
from worker.journal.rows import NO_FACTS, entry_rows, fact_columns, tally_row
from worker.journal.sql import SqlJournal
from worker.journal.store import Row
from worker.overviews import Cursor, Filter
from worker.record import Entry, EntryKind, State

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
YEAR = timedelta(days=360)
DAY = timedelta(days=1)
MONTH = timedelta(days=30)
COMPONENTS = [f"component {number:02}" for number in range(50)]
RUNS = 15
Answer = TypeVar("Answer")
_BATCH = 1000
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One invoice as it is put into the journal."""

    number: int
    key: InvoiceKey
    subscription: str
    at: datetime
    state: State
    components: Sequence[str]

    @property
    def period(self) -> Period:
        """The month before it."""
        return Period(self.at - MONTH, self.at)

    @property
    def reason(self) -> str:
        """Why it is where it is."""
        name = self.components[0]
        held = (
            f'component "{name}" has no source. Map it in config, then requeue.',
            f'source "events" does not know "{self.subscription}" for "{name}"; add it there, or'
            ' set unknown_subject = "zero" for the component',
            f'"{name}" was counted as {self.number}.5: a fraction; set a rounding for it',
            f'"{name}" was counted as {self.number}, above its max_quantity 10',
            'exhausted after 12 attempts; the last: source "events": no answer within 30 s',
        )
        return {
            State.HELD: held[self.number % len(held)],
            State.ISSUED: f"Unpaid, {self.number / 100:.2f} USD",
            State.WAITING: f'the period of "{name}" is not over',
            State.RETRYING: 'source "events": no answer within 30 s',
        }[self.state]


def bills(count: int, held: int) -> Iterator[Bill]:
    """Make invoices in the order of their age."""
    chance = random.Random(1)  # noqa: S311  reproducible, not secret
    customers = max(1, count // 13)
    last_day = count // 10
    for number in range(count):
        if number < count - last_day:
            at = NOW - YEAR + (YEAR - DAY) * number / (count - last_day)
        else:
            at = NOW - DAY + DAY * (number - count + last_day) / last_day
        lot = chance.randrange(100)
        other = chance.choice((State.WAITING, State.RETRYING)) if lot == held else State.ISSUED
        yield Bill(
            number=number,
            key=InvoiceKey("billforward", f"INV-{chance.getrandbits(32):08X}-{number:08X}-4F01"),
            subscription=f"SUB-{number % customers:08X}-4000-8000-00010000",
            at=at,
            state=State.HELD if lot < held else other,
            components=chance.sample(COMPONENTS, 2),
        )


def entries_of(bill: Bill) -> tuple[list[Entry], list[FrozenTally]]:
    """Make what the record of a run holds."""
    seen = {
        "state": "Pending",
        "pending": True,
        "type": "Subscription",
        "version": 1,
        "total": f"{bill.number / 100:.2f}",
        "currency": "USD",
        "subscription_id": bill.subscription,
        "account_id": bill.subscription.replace("SUB", "ACC"),
    }
    named = {"delivery_id": f"NOT-{bill.number:08X}", "event": "Invoice/Pending", "digest": "0"}
    end = {"reason": bill.reason, "seconds": 0.4, "calls": 6}
    made = [
        Entry(kind=EntryKind.REPLAYED, at=bill.at, data=named),
        Entry(kind=EntryKind.CLAIMED, at=bill.at, data={"owner": "host:1", "fence": 1}),
        Entry(kind=EntryKind.FETCHED, at=bill.at, data=seen),
    ]
    if bill.state is not State.ISSUED:
        kind = {State.HELD: EntryKind.HELD, State.WAITING: EntryKind.WAITING}
        made.append(Entry(kind=kind.get(bill.state, EntryKind.FAILED), at=bill.at, data=end))
        return made, []
    tallies = [_tally(bill, name) for name in bill.components]
    made.append(counted_entry(tallies, bill.at))
    for tally in tallies:
        intent = {
            "charge_id": tally.charge_id,
            "component": tally.span.component,
            "from": "0",
            "to": 7,
        }
        answer = {"charge_id": tally.charge_id, "quantity": "7", "amount": "0.07", "version": 2}
        made.append(Entry(kind=EntryKind.CHARGE_INTENT, at=bill.at, data=intent))
        made.append(Entry(kind=EntryKind.CHARGE_ANSWER, at=bill.at, data=answer))
    made.append(Entry(kind=EntryKind.ISSUE_INTENT, at=bill.at, data={"version": 2}))
    made.append(Entry(kind=EntryKind.ISSUED, at=bill.at + _SECOND, data={**seen, **end}))
    return made, tallies


def _tally(bill: Bill, name: str) -> FrozenTally:
    asked = Evidence(
        source="sql sqlite:///usage.db table usage",
        query="SELECT count(*) FROM usage WHERE subscription_id = :subject AND occurred_at >= :s",
        parameters={"subject": bill.subscription, "metrics": list(bill.components)},
        asked_at=bill.at,
        digest="d" * 64,
    )
    return FrozenTally(
        charge_id=f"CHG-{bill.number:08X}-{name[-2:]}",
        span=Span(bill.subscription, name, bill.period),
        source="events",
        metric="text_message",
        aggregation=Aggregation.COUNT,
        quantity=7,
        value=Decimal(7),
        rounding=Rounding.REJECT,
        events=7,
        evidence=asked,
        program="bench",
    )


def fill(journal: SqlJournal, made: Iterator[Bill]) -> None:
    """Put invoices into an empty journal as the journal itself would have."""
    with journal.store.transaction() as tx:
        while batch := list(islice(made, _BATCH)):
            told, billed, invoices = list[Row](), list[Row](), list[Row]()
            for bill in batch:
                entries, tallies = entries_of(bill)
                rows = entry_rows(bill.key, 0, "", entries)
                told += rows
                billed += [tally_row(bill.key, tally) for tally in tallies]
                invoices.append(_row(bill, rows[-1]) | fact_columns(entries))
            tx.insert("entries", told)
            tx.insert("tallies", billed)
            tx.insert("invoices", invoices)


def _row(bill: Bill, newest: Row) -> Row:
    is_open = bill.state in (State.WAITING, State.RETRYING)
    return {
        "platform": bill.key.platform,
        "invoice_id": bill.key.invoice_id,
        "state": bill.state.value,
        "reason": bill.reason,
        "cause": cause_of(bill.reason).key if bill.state is State.HELD else "",
        "first_seen_at": stamp(bill.at),
        "updated_at": stamp(bill.at),
        "due_at": stamp(NOW + DAY) if is_open else None,
        "seq": newest["seq"],
        "head": newest["digest"],
        **NO_FACTS,
    }


def timed(work: Callable[[], Answer]) -> tuple[str, Answer]:
    """Run once to warm up, then time: the fastest and the median; return the last answer too."""
    answer = work()
    took = []
    for _ in range(RUNS):
        began = time.perf_counter()
        answer = work()
        took.append(time.perf_counter() - began)
    return f"{min(took) * 1000:.1f} / {statistics.median(took) * 1000:.1f}", answer


def questions(some: Bill) -> dict[str, Filter]:
    """Return what operators ask for."""
    return {
        "first page, all, oldest first": Filter(),
        "first page, all, newest first": Filter(newest_first=True),
        "held": Filter(states=(State.HELD,)),
        "held or retrying or waiting": Filter(states=(State.HELD, State.RETRYING, State.WAITING)),
        "held for one cause": Filter(cause="fraction"),
        "issued": Filter(states=(State.ISSUED,), newest_first=True),
        "one subscription": Filter(subscription=some.subscription),
        "one account": Filter(account=some.subscription.replace("SUB", "ACC")),
        "one component, 1 in 25": Filter(component=COMPONENTS[7]),
        "one component, none has it": Filter(component="Fax pages"),
        "a period, 1 in 12": Filter(since=NOW - 4 * MONTH, until=NOW - 3 * MONTH),
        "text: a whole id": Filter(text=some.key.invoice_id),
        "text: in no invoice": Filter(text="no such words"),
        "text: in nearly every reason": Filter(text="unpaid"),
        "reason, of the held": Filter(states=(State.HELD,), reason="above its max_quantity"),
        "text in issued only": Filter(states=(State.ISSUED,), text=some.key.invoice_id[-9:]),
        "text, platform, component, period": Filter(
            platform="billforward",
            component=COMPONENTS[7],
            text="unpaid",
            since=NOW - 6 * MONTH,
            until=NOW,
        ),
    }


def measure(journal: SqlJournal, made: list[Bill]) -> Iterator[tuple[str, str, str]]:
    """Time each call; yield what it is, its times and what it found."""
    some = next(b for b in made[len(made) // 2 :] if b.state is State.ISSUED)
    took, found = timed(lambda: journal.overview(NOW))
    yield "overview", took, f"{found.issued_today:,} issued today"
    for what, wanted in questions(some).items():
        took, page = timed(partial(journal.search, wanted))
        yield what, took, f"{page.total:,}"
    middle = made[len(made) // 2]
    place = Cursor(middle.at, middle.key)
    took, _ = timed(lambda: journal.search(Filter(), 50, place))
    yield "a page in the middle of all", took, ""
    took, _ = timed(lambda: journal.search(Filter(text="unpaid"), 50, place))
    yield "the same of a text search", took, ""
    late = next(b for b in reversed(made) if b.state is State.ISSUED)
    span = Span(late.subscription, late.components[0], late.period)
    took, earlier = timed(lambda: journal.previous_tallies(late.key, span))
    yield "previous tallies of a charge", took, str(len(earlier))


def vacuum(url: str) -> None:
    """Do what PostgreSQL's autovacuum does within a minute; SQLite has none."""
    if url.startswith("postgresql:"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


def play(
    journal: SqlJournal, tidy: Callable[[], object], count: int, held: int
) -> dict[str, tuple[str, str]]:
    """Fill a journal, prove some of it whole, and time what is read."""
    made = list(bills(count, held))
    began = time.perf_counter()
    fill(journal, iter(made))
    print(f"  {count:,} invoices made in {time.perf_counter() - began:.0f} s", flush=True)
    tidy()
    for bill in made[:: max(1, count // 100)]:
        assert journal.verify(bill.key) is None
    return {what: (took, found) for what, took, found in measure(journal, made)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--invoices", type=int, default=100_000)
    parser.add_argument("--held", type=int, default=2, help="of a hundred")
    given = parser.parse_args()
    tables = {}
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        for name, journals in (("SQLite", sqlite_journals), ("PostgreSQL", postgres_journals)):
            with journals(Path(folder)) as kept:
                print(name, flush=True)
                url = kept.fresh()
                with closing(kept.opened(url)) as journal:
                    tidy = partial(vacuum, url)
                    tables[name] = play(journal, tidy, given.invoices, given.held)
    print(f"\n{given.invoices:,} invoices\n\n| read | found | {' ms | '.join(tables)} ms |")
    print(f"| --- | --- |{' --- |' * len(tables)}")
    for what, (_, found) in next(iter(tables.values())).items():
        times = " | ".join(f"{table[what][0]}" for table in tables.values())
        print(f"| {what} | {found} | {times} |")


if __name__ == "__main__":
    main()
