"""`reconciler journal`: prove the record whole, and move it to another database."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import closing
from pathlib import Path

import click

from worker.errors import JournalUnavailable
from worker.journal import open_journal
from worker.journal.copy import copy_journal
from worker.record import Broken
from worker.wiring import configured, utc_now

_NEEDS_ATTENTION = 3
_SQLITE = "sqlite:///"


@click.group()
def journal() -> None:
    """Prove the journal whole, or copy it into another database.

    \b
    reconciler journal verify
    reconciler journal copy sqlite:///state/journal.db postgresql://reconciler@db/reconciler
    """  # noqa: D301  click reads the backspace itself


@journal.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> None:  # noqa: FBT001  a click flag
    """Recompute the chain of every invoice, and name the first fault of each that is broken."""
    with closing(open_journal(configured().journal.url)) as store:
        walked, faults = 0, list[Broken]()
        for walked, key in enumerate(store.keys(), start=1):  # noqa: B007  counts
            if fault := store.verify(key):
                faults.append(fault)
                if not as_json:
                    click.echo(str(fault))
        counts = store.counts()
    if as_json:
        broken = [{**dataclasses.asdict(f.key), "entry": f.seq, "fault": f.fault} for f in faults]
        found = {"invoices": walked, "entries": counts["entries"], "broken": broken}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        told = f"{len(faults)} broken" if faults else "all whole"
        rows = f"{counts['entries']} entries, {counts['deliveries']} deliveries"
        click.echo(f"walked {walked} invoices, {rows}: {told}")
    if faults:
        sys.exit(_NEEDS_ATTENTION)


@journal.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy the journal at one URL into the empty one at another; then verify the copy.

    Stop webhook, worker and sweep first. Give PostgreSQL's password by PGPASSWORD or ~/.pgpass:
    arguments can be seen in the list of processes.
    """
    if source.startswith(_SQLITE) and not Path(source.removeprefix(_SQLITE)).is_file():
        raise JournalUnavailable(f"there is no journal at {source}")
    with closing(open_journal(source)) as of, closing(open_journal(target)) as to:
        if of.store.place == to.store.place:
            raise click.UsageError("FROM and TO are the same")
        copied = copy_journal(of, to, utc_now())
        click.echo(f"copied {of.store.place} to {to.store.place}:")
    for table, rows in copied.items():
        click.echo(f"{rows:>9} {table}")
    click.echo("every invoice's chain was recomputed in the copy: all whole")
