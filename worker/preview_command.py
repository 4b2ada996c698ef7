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
from worker.wiring import configured, open_service


@click.command()
@invoice_argument
@platform_option
@as_json
def preview(invoice_id: str, platform: str | None, *, as_json: bool) -> None:
    """Count an invoice's usage and show what it would be billed; nothing is written anywhere."""
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        key = invoice_key(config, journal, invoice_id, platform)
        service = open_service(config, journal)
        found = previewed(key, service.ports(key.platform, lambda: False), config.rules)
    if isinstance(found, Preview):
        if as_json:
            print_json(preview_json(found))
        else:
            click.echo("\n".join(_lines(found)))
        return
    verb = type(found).__name__.lower()
    until = f" until {utc_text(found.until)}" if isinstance(found, Wait) else ""
    if as_json:
        print_json({"decision": verb, "reason": found.reason})
    else:
        click.echo(f"{invoice_id}: {verb}{until}: {found.reason}")
    if isinstance(found, Hold):
        sys.exit(NEEDS_ATTENTION)


def _lines(found: Preview) -> Iterator[str]:
    width = max([len(charge.component) for charge in found.before], default=len("component"))
    yield f"{'component':<{width}}  {'before':>14}  {'counted':>14}  {'amount':>14}"
    for before, after in zip(found.before, found.after, strict=True):
        was, counted = _quantity(before), _quantity(after)
        yield f"{before.component:<{width}}  {was:>14}  {counted:>14}  {after.amount:>14f}"
    invoice = found.invoice
    yield f"total {invoice.total} {invoice.currency}, would be {found.total}; nothing was written"


def _quantity(charge: UsageCharge) -> str:
    return "nothing" if charge.quantity is None else f"{charge.quantity:f}"
