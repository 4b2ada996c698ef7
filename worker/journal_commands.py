"""`reconciler journal`: prove the record whole, and move it to another database."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing
from pathlib import Path

import click

from worker.errors import ConfigError, JournalUnavailable
from worker.invoice_commands import NEEDS_ATTENTION, as_json, print_json
from worker.journal import open_journal
from worker.journal.copy import copy_journal
from worker.journal.sql import SqlJournal
from worker.progress import progress
from worker.record import Broken
from worker.wiring import configured, utc_now

_SQLITE = "sqlite:///"


@click.group()
def journal() -> None:
    """Prove the journal whole, or copy it into another database.

    \b
    reconciler journal verify
    reconciler journal copy sqlite:///state/journal.db postgresql://reconciler@db/reconciler
    """  # noqa: D301  click reads the backspace itself


@journal.command()
@as_json
def verify(*, as_json: bool) -> None:
    """Recompute each invoice's chain, and name its first fault.

    Ends with 3 when a record is not whole.
    """
    walked, faults = 0, list[Broken]()
    with closing(open_journal(configured().journal.url)) as store:
        counts = store.counts()
        with progress("verifying", counts["invoices"], shown=not as_json) as advance:
            for walked, key in enumerate(store.keys(), start=1):
                if fault := store.verify(key):
                    faults.append(fault)
                advance(walked)
    if as_json:
        broken = [{**dataclasses.asdict(f.key), "entry": f.seq, "fault": f.fault} for f in faults]
        print_json({"invoices": walked, "entries": counts["entries"], "broken": broken})
    else:
        for fault in faults:
            click.echo(str(fault))
        told = f"{len(faults)} broken" if faults else "all whole"
        rows = f"{counts['entries']} entries, {counts['deliveries']} deliveries"
        click.echo(f"walked {walked} invoices, {rows}: {told}")
    if faults:
        sys.exit(NEEDS_ATTENTION)


@journal.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy a journal into an empty database, and verify the copy.

    FROM and TO are URLs. Stop webhook, worker and sweep first. Give PostgreSQL's password by
    PGPASSWORD or ~/.pgpass: arguments can be seen in the list of processes.
    """
    if source.startswith(_SQLITE) and not Path(source.removeprefix(_SQLITE)).is_file():
        raise JournalUnavailable(f"there is no journal at {source}")
    with closing(_opened("FROM", source)) as of, closing(_opened("TO", target)) as to:
        if of.store.place == to.store.place:
            raise click.UsageError("FROM and TO are the same")
        counts = of.counts()
        steps = sum(counts.values()) + counts["invoices"]  # each of which is verified
        with progress("copying and verifying", steps) as advance:
            copied = copy_journal(of, to, utc_now(), advance)
        click.echo(f"copied {of.store.place} to {to.store.place}:")
    for table, rows in copied.items():
        click.echo(f"{rows:>9} {table}")
    click.echo("every invoice's chain was recomputed in the copy: all whole")


def _opened(argument: str, url: str) -> SqlJournal:
    try:
        return open_journal(url)
    except ConfigError as error:  # it names the setting, of which nobody spoke here
        told = str(error).removeprefix("journal.url: ")
        raise click.UsageError(f"{argument}: {told}") from error
