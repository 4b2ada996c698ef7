"""`reconciler list|show|replay|close`: what operators do with invoices, through the journal."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, NoReturn, TypeVar

import click

from worker import actions
from worker.actions import ActRefused, Asked, Desk
from worker.causes import CAUSES
from worker.config import Config
from worker.domain import InvoiceKey, utc
from worker.doorbell import Doorbell
from worker.errors import ReconcilerError
from worker.journal import open_journal
from worker.overviews import Filter, Listed, listed_json
from worker.ports import Journal
from worker.progress import progress
from worker.record import History, InvoiceRow, State
from worker.story import row_json, story_json, story_text
from worker.wiring import configured, open_platforms, utc_now

NEEDS_ATTENTION = 3
_QUIET = (State.ISSUED, State.SKIPPED, State.CLOSED)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POLL_SECONDS = 0.2

Answer = TypeVar("Answer")
Command = TypeVar("Command", bound=Callable[..., Any])


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A date and time with a zone, or a date, whose midnight is meant in UTC."""

    name = "moment"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> datetime:
        """Read it; anything else is wrong use."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment such as 2026-10-01 or 2026-10-01T00:00:00+02:00")
        if len(value) == len("2026-10-01"):
            moment = moment.replace(tzinfo=UTC)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no zone; write Z or an offset such as +02:00 behind it")
        try:
            return utc(moment)
        except OverflowError:
            self.fail(f"{value!r} is outside the calendar: in UTC it has no year from 1 to 9999")


class Reason(click.ParamType):  # type: ignore[type-arg]
    """Why somebody does something, as the record keeps it."""

    name = "text"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> str:
        """Read it; one that says nothing is wrong use."""
        try:
            return actions.reason_of(value)
        except ValueError as error:
            self.fail(str(error))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
invoice_argument = click.argument("invoice_id", metavar="INV")
platform_option = click.option("--platform", help="Needed where several know the id, or none yet.")
reason_option = click.option(
    "--reason", type=Reason(), required=True, help="Why; goes into the record."
)


def filter_options(*because: str) -> Callable[[Command], Command]:
    """Let a command take a filter, for `filter_of`; with other names for `--because`."""
    options = (
        click.option(
            "--state",
            "states",
            type=click.Choice([state.value for state in State]),
            multiple=True,
            help="Only invoices in this state; may be given several times.",
        ),
        click.option("--platform", help="Only of this platform."),
        click.option(
            "--cause", type=click.Choice([c.key for c in CAUSES]), help="Only held for this."
        ),
        click.option("--because", *because, "because", help="Only with these words in the reason."),
        click.option("--subscription", metavar="ID", help="Only of this subscription."),
        click.option("--account", metavar="ID", help="Only of this account."),
        click.option(
            "--component", metavar="NAME", help="Only with a usage charge of this component."
        ),
        click.option("--since", type=Moment(), help="Only where a usage period ends after it."),
        click.option("--until", type=Moment(), help="Only where a usage period starts before it."),
        click.option("--text", help="Only with these words in the id or the reason."),
        click.option("--newest", "newest_first", is_flag=True, help="Newest first."),
    )

    def decorated(command: Command) -> Command:
        return reduce(lambda inner, option: option(inner), reversed(options), command)

    return decorated


def filter_of(wanted: Mapping[str, Any]) -> Filter:
    """Make the filter of what `filter_options` took."""
    given = {name: value for name, value in wanted.items() if value is not None}
    states, reason = given.pop("states"), given.pop("because", "")
    return Filter(states=tuple(map(State, states)), reason=reason, **given)


@click.command(name="list")
@filter_options("--reason")
@click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most so many."
)
@as_json
def list_command(limit: int, as_json: bool, **wanted: Any) -> None:
    """List invoices, oldest first. Of several options, all must hold.

    \b
    reconciler list --state held --component "Fax pages"
    reconciler list --since 2026-10-01 --until 2026-11-01 --json
    """  # noqa: D301  click reads the backspace itself
    with closing(open_journal(configured().journal.url)) as journal:
        page = journal.search(filter_of(wanted), limit)
    if as_json:
        print_json([row_json(one.row) | listed_json(one) for one in page.invoices])
    else:
        for line in _table(page.invoices, utc_now()):
            click.echo(line)
    shown = len(page.invoices)
    of = f" of {page.total}; see --limit" if page.after else ""
    click.echo(f"{shown} invoice{'s' * (shown != 1)}{of}", err=True)


def _table(invoices: Sequence[Listed], now: datetime) -> Iterator[str]:
    """Write a header and a line an invoice, in columns; the reason is last, as long as it is."""
    several = len({one.row.key.platform for one in invoices}) > 1
    cells = [
        (
            str(one.row.key) if several else one.row.key.invoice_id,
            _age(now - one.row.first_seen_at),
            one.row.state.value,
            f"{one.facts.total} {one.facts.currency}".strip() or "-",
            one.facts.account_id or one.facts.subscription_id or "-",
            f"{one.row.reason}{_due(one.row)}".lstrip(),
        )
        for one in invoices
    ]
    if cells:
        cells.insert(0, ("INVOICE", "AGE", "STATE", "TOTAL", "CUSTOMER", "REASON"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    for *others, reason in cells:
        padded = (f"{cell:<{width}}" for cell, width in zip(others, widths, strict=True))
        yield "  ".join([*padded, reason]).rstrip()


def _due(row: InvoiceRow) -> str:
    return f" (due {row.due_at:%Y-%m-%d %H:%M:%SZ})" if row.due_at else ""


def _age(age: timedelta) -> str:
    """Write how long ago in the largest unit of which there is one."""
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


@click.command()
@invoice_argument
@platform_option
@as_json
def show(invoice_id: str, platform: str | None, as_json: bool) -> None:
    """Tell the whole story of one invoice, from the journal alone."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = invoice_key(config, journal, invoice_id, platform)
    history = journal.history(key)
    if history is None:
        _fail(f"{key.invoice_id} is not in the journal; a replay asks {key.platform}")
    if as_json:
        print_json(story_json(history))
    else:
        click.echo(story_text(history))


@click.command()
@invoice_argument
@platform_option
@reason_option
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
    invoice_id: str,
    platform: str | None,
    reason: str,
    recount: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Run one invoice again. Safe from every state, any number of times."""
    asked = Asked(user(), reason)
    config = configured()
    journal = open_journal(config.journal.url)
    key = invoice_key(config, journal, invoice_id, platform)
    _demand_known(config, journal, key)
    warning = refusable(
        lambda: actions.replay(open_desk(config, journal), key, asked, recount=recount)
    )
    if warning:
        click.echo(warning, err=True)
    with progress("waiting for a worker", None, shown=not as_json):
        row = _settled(journal, key, wait)
    _tell(row, wait, as_json=as_json)


@click.command()
@invoice_argument
@platform_option
@click.option(
    "--reason", type=Reason(), required=True, help="How it was settled; goes into its record."
)
@as_json
def close(invoice_id: str, platform: str | None, reason: str, as_json: bool) -> None:
    """Record that you settled an invoice by hand. Nothing more is done for it."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = invoice_key(config, journal, invoice_id, platform)
    refusable(lambda: actions.close(open_desk(config, journal), key, Asked(user(), reason)))
    tell_done("close", journal, key, "closed", as_json=as_json)


def open_desk(config: Config, journal: Journal) -> Desk:
    """Gather what every act needs."""
    doorbell = Doorbell(config.queue.redis_url, config.queue.name)
    return Desk(journal=journal, doorbell=doorbell, now=utc_now)


def refusable(act: Callable[[], Answer]) -> Answer:
    """Do an act; end the command with the reason where it is refused."""
    try:
        return act()
    except ActRefused as refusal:
        raise click.ClickException(str(refusal)) from refusal


def tell_done(verb: str, journal: Journal, key: InvoiceKey, done: str, *, as_json: bool) -> None:
    """Say what was done to an invoice; as JSON with the journal's word on it now."""
    if not as_json:
        click.echo(f"{key}: {done}")
        return
    print_json({"act": verb, **row_json(_known(journal, key).row)})


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


def invoice_key(
    config: Config, journal: Journal, invoice_id: str, platform: str | None
) -> InvoiceKey:
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
        row = _known(journal, key).row
        if not _is_open(row) or not time.monotonic() < deadline:
            return row
        time.sleep(_POLL_SECONDS)


def _known(journal: Journal, key: InvoiceKey) -> History:
    history = journal.history(key)
    if history is None:
        raise ReconcilerError(f"{key} is not in the journal")
    return history


def _is_open(row: InvoiceRow) -> bool:
    return row.lease_owner is not None or (row.due_at is not None and row.due_at <= utc_now())


def user() -> str:
    """Name the person at the keyboard, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's process may have no name
        return f"uid {os.getuid()}"


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)
