"""Progress of long work: on standard error, and only where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress(
    doing: str, total: int | None, done: int = 0, *, in_bytes: bool = False, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar that goes when the work is over; what is yielded takes how much is done.

    A total of None: nobody knows how far it is, and the time it took so far is shown. What goes
    to standard output while the bar is there would break it on a terminal: print it afterwards.
    """
    console = Console(stderr=True)
    looked_at = sys.stderr.isatty() and not console.is_dumb_terminal  # whatever FORCE_COLOR says
    with Progress(
        *_columns(total, in_bytes=in_bytes),
        console=console,
        transient=True,
        redirect_stdout=False,  # it would send data to standard error
        disable=not (shown and looked_at),
    ) as bar:
        task = bar.add_task(doing, total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


def _columns(total: int | None, *, in_bytes: bool) -> tuple[ProgressColumn, ...]:
    begin = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), BarColumn())
    if total is None:
        return (*begin, TimeElapsedColumn())
    return (*begin, DownloadColumn() if in_bytes else MofNCompleteColumn(), TimeRemainingColumn())
