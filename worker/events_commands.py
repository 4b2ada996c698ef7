"""`reconciler events import`: files of usage events into the built-in meter."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import click

from worker.bookmarks import Bookmark
from worker.event_files import SUFFIXES, FileFormat, Record, format_of, records
from worker.invoice_commands import NEEDS_ATTENTION
from worker.metering import CAME_BEFORE, EventStore, Verdict
from worker.progress import progress
from worker.wiring import configured, open_event_store

_BATCH = 5_000
_MOST_TOLD = 20
_GARBAGE_FROM = 100_000  # objects; a batch makes many, and none of them is in a circle


@dataclass(slots=True)
class _Totals:
    """What became of the records so far."""

    verdicts: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    unreadable: int = 0
    unfinished: int = 0
    told: int = 0
    early: int = 0  # stored before the file was begun anew, in which they come once more

    @property
    def refused(self) -> int:
        return self.verdicts[Verdict.CONFLICT] + self.unreadable

    def __str__(self) -> str:
        stored = self.verdicts[Verdict.STORED] + self.early
        known = max(0, self.verdicts[Verdict.DUPLICATE] - self.early)
        return f"{stored} stored, {known} known already, {self.refused} refused"

    def tell(self, text: str) -> None:
        """Name the first few refusals."""
        self.told += 1
        if self.told <= _MOST_TOLD:
            click.echo(text, err=True)
        elif self.told == _MOST_TOLD + 1:
            click.echo("… and more, which are not named", err=True)


@click.group()
def events() -> None:
    """Bring usage events into the built-in meter."""


@events.command("import")
@click.argument(
    "path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "jsonl"]),
    help="Default: by the end of the file's name (.csv, .jsonl, .ndjson).",
)
@click.option(
    "--state",
    "state_folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("state/imports"),
    show_default=True,
    help="The folder that keeps how far each file was read.",
)
def import_command(path: Path, kind: FileFormat | None, state_folder: Path) -> None:
    """Store the events of a CSV file or of JSON lines, each once.

    Interrupted, or when the file has grown, it goes on where it was; read twice, nothing counts
    twice. A record that is refused is tried again by every run. Each JSON line is a CloudEvent; a
    CSV file has a header with source, id, subject, type, time and value.
    """
    kind = kind or format_of(path)
    if kind is None:
        raise click.UsageError(f"give --format: {path.name} ends in none of {_suffixes()}")
    store = open_event_store(configured())
    totals = _Totals()
    with path.open("rb") as file, _garbage_seldom(), _told_when_stopped(totals):
        bookmark = Bookmark(state_folder, path, file, f"{kind} {store.place}")
        if bookmark.offset:
            bookmark.lift()  # a stop between here and the first new mark shall begin anew
            _check(store, list(_last_batch(file, kind, bookmark)), bookmark, totals)
        try:
            batches = _batches(records(file, kind, bookmark.offset))
            with progress("reading", path.stat().st_size, bookmark.offset, in_bytes=True) as bar:
                _store_all(store, batches, bookmark, totals, bar)
        finally:
            bookmark.keep()
    _tell(totals)


def _store_all(
    store: EventStore,
    batches: Iterator[list[Record]],
    bookmark: Bookmark,
    totals: _Totals,
    advance: Callable[[int], None],
) -> None:
    """Store batch after batch; the mark stays before the first record that was refused."""
    whole = True
    for batch in batches:
        kept = _store(store, batch, totals)
        if whole and kept:
            bookmark.move(batch[kept - 1].offset)
        whole = whole and kept == len(batch)
        advance(batch[-1].offset)


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _batches(found: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(found, _BATCH)):
        yield batch


def _last_batch(file: BinaryIO, kind: FileFormat, bookmark: Bookmark) -> Iterator[Record]:
    """Read what was stored last before the mark."""
    for record in records(file, kind, bookmark.last):
        yield record
        if record.offset >= bookmark.offset:
            return


def _check(store: EventStore, batch: list[Record], bookmark: Bookmark, totals: _Totals) -> None:
    """Go to the file's start unless the store has all of this batch: it was lost, or restored."""
    events = [record.event for record in batch if record.event is not None]
    verdicts = store.append(events, all_or_nothing=False)
    if len(events) == len(batch) and all(one is Verdict.DUPLICATE for one in verdicts):
        return
    click.echo("the store lacks what it had: reading the file from its start", err=True)
    bookmark.forget()
    totals.early = verdicts.count(Verdict.STORED)


def _store(store: EventStore, batch: list[Record], totals: _Totals) -> int:
    """Store what can be read, tell the rest; return how many came before the first refused."""
    readable = [record.event for record in batch if record.event is not None]
    verdicts = store.append(readable, all_or_nothing=False)
    for verdict in Verdict:
        totals.verdicts[verdict] += verdicts.count(verdict)
    if len(readable) == len(batch) and Verdict.CONFLICT not in verdicts:
        return len(batch)
    of_readable = iter(verdicts)
    first = len(batch)
    for place, record in enumerate(batch):
        if (event := record.event) is not None:
            if next(of_readable) is not Verdict.CONFLICT:
                continue
            named = f"{event.id!r} of {event.source!r}"
            totals.tell(f"line {record.line}: {named} {CAME_BEFORE}")
        elif record.unfinished:
            totals.unfinished += 1
            totals.tell(f"line {record.line} {record.fault}")
        else:
            totals.unreadable += 1
            totals.tell(f"line {record.line}: {record.fault}")
        first = min(first, place)
    return first


@contextmanager
def _told_when_stopped(totals: _Totals) -> Iterator[None]:
    """Say what came of it so far where somebody stops it by hand."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"{totals}; run the same command again, and it goes on")
        raise


def _tell(totals: _Totals) -> None:
    click.echo(totals)
    if totals.refused or totals.unfinished:
        sys.exit(NEEDS_ATTENTION)


@contextmanager
def _garbage_seldom() -> Iterator[None]:
    """Look for garbage only after many objects: otherwise it takes a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE_FROM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
