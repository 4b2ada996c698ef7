"""`reconciler preview`: counts everything and shows what would be billed; nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import click

from worker.decision import Hold, Wait
from worker.domain import UsageCharge, utc_text
from worker.invoice_commands import (
    NEEDS_ATTENTION,
    as_json,
    invoice_argument,
    invoice_key,
    platform_option,
    print_json,
)
from worker.journal import open_journal
from worker.preview import Preview, preview_json
from worker.previewing import previewed
from worker.progress import progress
from worker.wiring import configured, open_service


@click.command()
@invoice_argument
@platform_option
@as_json
def preview(invoice_id: str, platform: str | None, *, as_json: bool) -> None:
    """Count what an invoice would be billed, and show it. Nothing is written anywhere."""
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        key = invoice_key(config, journal, invoice_id, platform)
        service = open_service(config, journal)
        with progress("counting", None, shown=not as_json):
            found = previewed(key, service.ports(key.platform, lambda: False), config.rules)
    if isinstance(found, Preview):
        if as_json:
            print_json(preview_json(found))
        else:
            click.echo("\n".join(_lines(found)))
        return
    verb = type(found).__name__.lower()
    until = utc_text(found.until) if isinstance(found, Wait) else None
    if as_json:
        print_json({"decision": verb, "reason": found.reason, "until": until})
    else:
        click.echo(f"{invoice_id}: {verb}{f' until {until}' if until else ''}: {found.reason}")
    if isinstance(found, Hold):
        sys.exit(NEEDS_ATTENTION)


def _lines(found: Preview) -> Iterator[str]:
    width = max([len(charge.component) for charge in found.before], default=len("component"))
    yield _line("component", "before", "amount before", "counted", "amount", width=width)
    for before, after in zip(found.before, found.after, strict=True):
        was, is_now = ((_quantity(one), f"{one.amount:f}") for one in (before, after))
        yield _line(before.component, *was, *is_now, width=width)
    invoice = found.invoice
    yield f"total {invoice.total} {invoice.currency}, would be {found.total}; nothing was written"


def _line(component: str, *cells: str, width: int) -> str:
    return "  ".join([f"{component:<{width}}", *(f"{cell:>14}" for cell in cells)])


def _quantity(charge: UsageCharge) -> str:
    return "nothing" if charge.quantity is None else f"{charge.quantity:f}"
