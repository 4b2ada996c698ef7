"""`reconciler hold|release|pause|resume`: what people stop and let go, through the journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import click

from worker import actions
from worker.actions import Asked, Desk
from worker.domain import InvoiceKey, utc_text
from worker.invoice_commands import (
    invoice_argument,
    invoice_key,
    open_desk,
    platform_option,
    refusable,
    user,
)
from worker.journal import open_journal
from worker.wiring import configured

_reason = click.option("--reason", required=True, help="Why; goes into the record.")
_platform = click.option("--platform", default="", help="Only this one. Default: all of them.")


@click.command()
@invoice_argument
@platform_option
@_reason
def hold(invoice_id: str, platform: str | None, reason: str) -> None:
    """Hold an invoice back: nothing is done for it, whatever is notified, until its release."""
    key, _ = _done(invoice_id, platform, lambda desk, key: actions.park(desk, key, _asked(reason)))
    click.echo(f"{key}: parked")


@click.command()
@invoice_argument
@platform_option
@_reason
def release(invoice_id: str, platform: str | None, reason: str) -> None:
    """Let a parked or held invoice go: it is worked on at once, with all its attempts."""
    key, warning = _done(
        invoice_id, platform, lambda desk, key: actions.release(desk, key, _asked(reason))
    )
    if warning:
        click.echo(warning, err=True)
    click.echo(f"{key}: released")


@click.command()
@_platform
@_reason
def pause(platform: str, reason: str) -> None:
    """Let no worker begin with an invoice; what one is at, it ends. Notifications are taken."""
    with closing(open_journal(configured().journal.url)) as journal:
        desk = open_desk(configured(), journal)
        since = actions.pause(desk, _checked(platform), _asked(reason))
    click.echo(f"{actions.named(platform)} paused since {utc_text(since.at)} by {since.by}")


@click.command()
@_platform
@_reason
def resume(platform: str, reason: str) -> None:
    """Undo a pause; the next sweep rings for everything that is due."""
    with closing(open_journal(configured().journal.url)) as journal:
        desk = open_desk(configured(), journal)
        refusable(lambda: actions.resume(desk, _checked(platform), _asked(reason)))
    click.echo(f"{actions.named(platform)} resumed")


def _done(
    invoice_id: str, platform: str | None, act: Callable[[Desk, InvoiceKey], str | None]
) -> tuple[InvoiceKey, str | None]:
    """Do an act to the invoice that is meant; return it, and the act's warning."""
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        key = invoice_key(config, journal, invoice_id, platform)
        return key, refusable(lambda: act(open_desk(config, journal), key))


def _asked(reason: str) -> Asked:
    return Asked(user(), reason)


def _checked(platform: str) -> str:
    names = configured().platforms
    if platform and platform not in names:
        raise click.UsageError(f"there is no platform {platform!r}; there are {', '.join(names)}")
    return platform
