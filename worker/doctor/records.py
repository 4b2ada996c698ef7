"""The journal: whether it can be written and is whole, and what its invoices tell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from worker.doctor.findings import MOST_NAMED, Finding, Look, Visit, named
from worker.journal import journal_file, open_journal
from worker.journal.sql import SqlJournal
from worker.overdue import most_overdue
from worker.overrides import dotted
from worker.overviews import Filter, Listed, fact

LEAST_FREE_BYTES = 500_000_000
_LAST_INVOICES = 100
_MEND = (
    "held: `reconciler list --state held` tells the reasons; mend them, then"
    ' `reconciler replay INV-… --reason "…"`. Due: mend what is said of workers, sweep and Redis'
)


def looks(visit: Visit) -> list[Look]:
    """Return the look at the journal, and the one at its disk, which may be why it fails."""
    url = visit.config.journal.url
    file = journal_file(url)
    writable = "correct journal.url; or start the database, and let its user make tables"
    if file is not None:
        folder = file.absolute().parent
        writable = (
            f"correct journal.url, or give {folder} and the files in it to the user that the"
            f" processes run as: chown -R USER {folder}"
        )
    found = [Look("journal", writable, lambda: _journal(visit))]
    if file is not None:
        found.append(Look("disk", "correct journal.url", lambda: _disk(file)))
    return found


def _journal(visit: Visit) -> Iterator[Finding]:
    with closing(open_journal(visit.config.journal.url)) as journal:
        journal.check()
        ignored = sum(journal.ignored().values())
        place = journal.store.place  # the URL may hold a password
        told = f"{place} can be written; {ignored} notifications were not about pending invoices"
        yield Finding("journal", well=True, told=told)
        _note_clock(visit, journal)
        last = journal.search(Filter(newest_first=True), _LAST_INVOICES).invoices
        yield from _chains(journal, last)
        yield from _waiting(visit, journal)
        yield from _unmapped(visit, last)
        yield from _pauses(journal)


def _note_clock(visit: Visit, journal: SqlJournal) -> None:
    """Read a database server's clock; a file has none."""
    if journal_file(visit.config.journal.url) is not None:
        return
    before = visit.now()
    with journal.store.snapshot() as tx:
        (row,) = tx.rows("SELECT clock_timestamp() AS at")
    theirs: datetime = row["at"]
    visit.note_clock("the journal's database", theirs, before, visit.now())


def _chains(journal: SqlJournal, last: Sequence[Listed]) -> Iterator[Finding]:
    broken = [fault for one in last if (fault := journal.verify(one.row.key)) is not None]
    if not broken:
        yield Finding("journal chain", well=True, told=f"the last {len(last)} invoices are whole")
        return
    yield Finding(
        "journal chain",
        well=False,
        told="changed behind the program's back: " + named([str(fault) for fault in broken]),
        mend="stop the workers, run `reconciler journal verify` for all that is changed, and"
        " restore the journal from a backup",
    )


def _waiting(visit: Visit, journal: SqlJournal) -> Iterator[Finding]:
    """Tell what waits, and find what is due or held for longer than notices leave it."""
    now = visit.now()
    overview, late = journal.overview(now), most_overdue(journal, now)
    limit = timedelta(seconds=visit.config.notices.older_than_seconds)
    age = overview.oldest_unissued or timedelta(0)
    oldest = f"the oldest unissued one waits for {_rough(age)}" if overview.oldest else "none waits"
    told = [f"{one.number} held: {one.cause.title}" for one in overview.held[:MOST_NAMED]]
    well = late is None or now - late.since <= limit
    if late is not None and not well:
        told = [f"{late.row.key} for {_rough(now - late.since)}: {late.told}", *told]
    yield Finding("invoices", well=well, told="; ".join([oldest, *told]), mend=_MEND)


def _rough(age: timedelta) -> str:
    """Write an age in its largest unit."""
    seconds = int(age.total_seconds())
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"


def _unmapped(visit: Visit, last: Sequence[Listed]) -> Iterator[Finding]:
    """Find the components of invoices that are mapped nowhere: the next invoice has them too."""
    mapped = {fact(name) for name in visit.config.rules.components}
    seen = {name: one.row.key for one in last for name in one.facts.components}
    unmapped = sorted(set(seen) - mapped)
    for name in unmapped[:MOST_NAMED]:
        yield Finding(
            "components seen",
            well=False,
            told=f'component "{name}" of {seen[name]} has no source: each invoice with it is held',
            mend=f"map it in the config: [{dotted(('components', name))}] with source and metric;"
            ' then `reconciler replay INV-… --reason "…"`',
        )
    if not unmapped:
        told = f"all components of the last {len(last)} invoices are mapped"
        yield Finding("components seen", well=True, told=told)


def _pauses(journal: SqlJournal) -> Iterator[Finding]:
    for platform, act in journal.paused().items():
        told = (
            f"{platform or 'everything'} is paused by {act.by} since {act.at:%Y-%m-%d %H:%M} UTC:"
            f" {act.reason}; `reconciler resume` ends it"
        )
        yield Finding("pauses", well=True, told=told)


def _disk(file: Path) -> Iterator[Finding]:
    folder = next(one for one in file.absolute().parents if one.exists())
    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk",
        well=free >= LEAST_FREE_BYTES,
        told=f"{free / 1e6:,.0f} MB are free at {folder}",
        mend=f"make room: below {LEAST_FREE_BYTES / 1e6:,.0f} MB the journal soon takes nothing,"
        " and every notification is refused; move journal.url to a larger disk, the processes"
        " stopped, with `reconciler journal copy`",
    )
