"""`reconciler list|show|replay|close`: what operators do with invoices, through the journal."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from worker.config import Config
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell
from worker.errors import QueueUnavailable, ReconcilerError
from worker.journal import open_journal
from worker.ports import Journal
from worker.record import Entry, EntryKind, InvoiceRow, State
from worker.story import row_json, story_json, story_text
from worker.wiring import configured, open_platforms, utc_now

NEEDS_ATTENTION = 3
_QUIET = (State.ISSUED, State.SKIPPED, State.CLOSED)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POLL_SECONDS = 0.2

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
invoice_argument = click.argument("invoice_id", metavar="INV")
platform_option = click.option("--platform", help="Needed where several know the id, or none yet.")


@click.command(name="list")
@click.option(
    "--state",
    "states",
    type=click.Choice([state.value for state in State]),
    multiple=True,
    help="Only invoices in this state; may be given several times.",
)
@click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most so many."
)
@as_json
def list_command(states: Sequence[str], limit: int, as_json: bool) -> None:
    """List invoices, oldest first."""
    journal = open_journal(configured().journal.url)
    rows = journal.invoices([State(state) for state in states], limit + 1)
    shown = rows[:limit]
    if as_json:
        print_json([row_json(row) for row in shown])
    else:
        several = len({row.key.platform for row in shown}) > 1
        names = [str(row.key) if several else row.key.invoice_id for row in shown]
        width = max(map(len, names), default=0)
        for name, row in zip(names, shown, strict=True):
            due = f" (due {row.due_at:%Y-%m-%d %H:%M:%SZ})" if row.due_at else ""
            click.echo(f"{name:<{width}}  {row.state:<9} {row.reason}{due}".rstrip())
    more = "; there are more, see --limit" if len(rows) > limit else ""
    click.echo(f"{len(shown)} invoices{more}", err=True)


@click.command()
@invoice_argument
@platform_option
@as_json
def show(invoice_id: str, platform: str | None, as_json: bool) -> None:
    """Tell the whole story of one invoice, from the journal alone."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = _key(config, journal, invoice_id, platform)
    history = journal.history(key)
    if history is None:
        _fail(f"{key.invoice_id} is not in the journal; reconciler replay asks {key.platform}")
    if as_json:
        print_json(story_json(history))
    else:
        click.echo(story_text(history))


@click.command()
@invoice_argument
@platform_option
@click.option("--reason", default="", help="Why; goes into the invoice's record.")
@click.option("--recount", is_flag=True, help="Count anew; only while nothing was written.")
@click.option(
    "--wait",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for a worker's answer.",
)
@as_json
def replay(
    invoice_id: str, platform: str | None, reason: str, recount: bool, wait: float, as_json: bool
) -> None:
    """Run one invoice again, through the same job; safe from every state, any number of times."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = _key(config, journal, invoice_id, platform)
    _demand_known(config, journal, key)
    asked = {"by": _user(), "reason": reason}
    if recount:
        entry = Entry(kind=EntryKind.DISCARDED, at=utc_now(), data=asked)
        if not journal.discard_tallies(key, entry):
            _fail(
                "it cannot be counted anew: a write was begun, or a worker is at it."
                " Replay it without --recount"
            )
    journal.wake(key, Entry(kind=EntryKind.REPLAYED, at=utc_now(), data=asked))
    try:
        Doorbell(config.queue.redis_url, config.queue.name).ring(key)
    except QueueUnavailable as error:
        click.echo(f"{error}; the sweep will ring", err=True)
    _tell(_settled(journal, key, wait), wait, as_json=as_json)


@click.command()
@invoice_argument
@platform_option
@click.option("--reason", required=True, help="How it was settled; goes into its record.")
def close(invoice_id: str, platform: str | None, reason: str) -> None:
    """Record that you settled an invoice by hand on the platform; nothing more is done for it."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = _key(config, journal, invoice_id, platform)
    entry = Entry(kind=EntryKind.CLOSED, at=utc_now(), data={"by": _user(), "reason": reason})
    if not journal.close_by_hand(key, entry):
        _fail(f"{invoice_id} is not in the journal, or a worker is at it; then try again later")
    click.echo(f"{key}: closed")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _tell(row: InvoiceRow, wait: float, *, as_json: bool) -> None:
    if as_json:
        print_json(row_json(row))
    else:
        click.echo(f"{row.key}: {row.state}{': ' if row.reason else ''}{row.reason}")
    if _is_open(row):
        click.echo(f"no worker has answered within {wait:g} s; is one running?", err=True)
    if row.state not in _QUIET or _is_open(row):
        sys.exit(NEEDS_ATTENTION)


def _key(config: Config, journal: Journal, invoice_id: str, platform: str | None) -> InvoiceKey:
    """Name the invoice; of several platforms, the one on which the journal knows the id."""
    if not _ID.fullmatch(invoice_id):
        raise click.UsageError(f"{invoice_id!r} is not an invoice's id")
    names = list(config.platforms)
    if platform is None:
        known = [n for n in names if len(names) > 1 and journal.history(InvoiceKey(n, invoice_id))]
        if len(known or names) > 1:
            raise click.UsageError(f"name one with --platform: {', '.join(known or names)}")
        platform = (known or names)[0]
    key = InvoiceKey(platform, invoice_id)
    if platform not in names and journal.history(key) is None:
        raise click.UsageError(f"there is no platform {platform!r} in the config")
    return key


def _demand_known(config: Config, journal: Journal, key: InvoiceKey) -> None:
    """Fail unless the journal or the platform knows the invoice: a typo leaves no trace."""
    if journal.history(key) is None:
        config.require_secrets()
        if open_platforms(config)[key.platform].invoice(key.invoice_id) is None:
            _fail(f"neither the journal nor {key.platform} knows an invoice {key.invoice_id}")


def _settled(journal: Journal, key: InvoiceKey, wait: float) -> InvoiceRow:
    """Return the invoice's row once a worker has settled it, or as it is after the wait."""
    deadline = time.monotonic() + wait
    while True:
        history = journal.history(key)
        if history is None:
            raise ReconcilerError(f"{key} is not in the journal")
        if not _is_open(history.row) or not time.monotonic() < deadline:
            return history.row
        time.sleep(_POLL_SECONDS)


def _is_open(row: InvoiceRow) -> bool:
    return row.lease_owner is not None or (row.due_at is not None and row.due_at <= utc_now())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's process may have no name
        return f"uid {os.getuid()}"


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)
