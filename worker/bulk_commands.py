"""`reconciler bulk replay|release`: one act for all invoices of a filter, as on the pages."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from worker.actions import Asked, Desk
from worker.bulk import BulkRequest, BulkResult, acts, filter_json, narrowed, numbered, record
from worker.errors import ReconcilerError
from worker.invoice_commands import (
    NEEDS_ATTENTION,
    as_json,
    filter_of,
    filter_options,
    open_desk,
    print_json,
    reason_option,
    refusable,
    user,
)
from worker.journal import open_journal
from worker.overviews import Filter
from worker.progress import progress
from worker.wiring import configured

_WORDS = {"replay": ("replaying", "replayed"), "release": ("releasing", "released")}

Found = Counter[tuple[BulkResult, str]]  # how many invoices this became of, and what was told


@click.group()
def bulk() -> None:
    """Replay or release all invoices of a filter. See them first with `reconciler list`.

    \b
    reconciler bulk release --cause unmapped_component --reason "mapped"
    reconciler bulk replay --state held --since 2026-10-01 --reason "usage corrected" --yes
    """  # noqa: D301  click reads the backspace itself


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what both acts take."""
    yes = click.option("--yes", is_flag=True, help="Ask for no confirmation.")
    return filter_options()(reason_option(yes(as_json(command))))


@bulk.command()
@_options
def replay(reason: str, *, yes: bool, as_json: bool, **wanted: Any) -> None:
    """Run all invoices of a filter again. No worker's answer is waited for.

    Without --state those that are due, waiting, retrying, held or observed; parked ones never.
    They are counted first; what changes after that is left alone. Ctrl-C stops after the invoice
    it is at. Ends with 3 where not all that were counted are done.
    """
    _do("replay", filter_of(wanted), reason, yes=yes, as_json=as_json)


@bulk.command()
@_options
def release(reason: str, *, yes: bool, as_json: bool, **wanted: Any) -> None:
    """Let all parked or held invoices of a filter go.

    They are counted first; what changes after that is left alone. Ctrl-C stops after the invoice
    it is at. Ends with 3 where not all that were counted are done.
    """
    _do("release", filter_of(wanted), reason, yes=yes, as_json=as_json)


def _do(verb: str, wanted: Filter, reason: str, *, yes: bool, as_json: bool) -> None:
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        desk = open_desk(config, journal)
        chosen = refusable(lambda: narrowed(verb, wanted))
        as_of = desk.now()
        total = journal.search(chosen, 1).total
        request = BulkRequest(
            verb=verb, wanted=chosen, asked=Asked(user(), reason), as_of=as_of, total=total
        )
        found, stopped, failure = Found(), False, None
        if _meant(request, yes=yes):
            record(desk, "bulk", request)
            try:
                stopped = _acted_on(desk, request, found, shown=not as_json)
            except ReconcilerError as error:
                failure = error
    _tell(request, found, stopped=stopped or failure is not None, as_json=as_json)
    if failure is not None:
        raise failure
    if _number(found, BulkResult.DONE) != request.total:
        sys.exit(NEEDS_ATTENTION)


def _meant(request: BulkRequest, *, yes: bool) -> bool:
    """Tell how many there are, and ask; False: there is none."""
    states = ", ".join(request.wanted.states)
    click.echo(f"{numbered(request.total)} to {request.verb}: only what is {states}", err=True)
    if request.total and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here whether it is meant: add --yes")
        question = f"{request.verb.capitalize()} {numbered(request.total)}?"
        click.confirm(question, abort=True, err=True)
    return request.total > 0


def _acted_on(desk: Desk, request: BulkRequest, found: Found, *, shown: bool) -> bool:
    """Act on one after the other; return whether Ctrl-C ended it."""
    doing, _ = _WORDS[request.verb]
    with (
        _stoppable() as stop,
        progress(f"{doing}, Ctrl-C stops", request.total, shown=shown) as advance,
    ):
        for one in acts(desk, request):
            found[one.became, one.told] += 1
            advance(found.total())
            if stop.is_set():
                record(desk, "stop bulk", request)
                return True
    return False


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Take the first Ctrl-C as a wish to stop; the second one ends the program."""
    stop, before = threading.Event(), signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(request: BulkRequest, found: Found, *, stopped: bool, as_json: bool) -> None:
    done = _number(found, BulkResult.DONE)
    refused = {told: n for (became, told), n in found.items() if became is BulkResult.REFUSED}
    rest = max(0, request.total - done - sum(refused.values()))
    # what changed may also be out of the filter now, and was not met then
    changed = min(_number(found, BulkResult.PASSED), rest) if stopped else rest
    for became, told in found:
        if became is BulkResult.DONE and told:
            click.echo(told, err=True)
    if as_json:
        print_json(
            {
                "act": f"bulk {request.verb}",
                "by": request.asked.by,
                "reason": request.asked.reason,
                "filter": filter_json(request.wanted),
                "invoices": request.total,
                "done": done,
                "refused": refused,
                "changed_meanwhile": changed,
                "left": rest - changed,
            }
        )
        return
    click.echo(f"{_WORDS[request.verb][1]} {done:,} of {numbered(request.total)}")
    for told, number in refused.items():
        click.echo(f"{number:,} refused: {told}")
    if changed:
        click.echo(f"{changed:,} changed meanwhile, and left alone")
    if stopped:
        click.echo(f"stopped: {rest - changed:,} left")


def _number(found: Found, became: BulkResult) -> int:
    return sum(number for (what, _), number in found.items() if what is became)
