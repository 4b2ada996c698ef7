"""`reconciler hold|release|pause|resume`: what people stop and let go, through the journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import click

from worker import actions
from worker.actions import Asked, Desk
from worker.domain import InvoiceKey, utc_text
from worker.invoice_commands import (
    as_json,
    invoice_argument,
    invoice_key,
    open_desk,
    platform_option,
    print_json,
    reason_option,
    refusable,
    tell_done,
    user,
)
from worker.journal import open_journal
from worker.record import Act
from worker.wiring import configured

_platform = click.option("--platform", default="", help="Only this one. Default: all of them.")


@click.command()
@invoice_argument
@platform_option
@reason_option
@as_json
def hold(invoice_id: str, platform: str | None, reason: str, *, as_json: bool) -> None:
    """Hold an invoice back. Nothing is done for it, whatever is notified, until its release."""

    def act(desk: Desk, key: InvoiceKey) -> None:
        actions.park(desk, key, _asked(reason))
        tell_done("hold", desk.journal, key, "parked", as_json=as_json)

    _do(invoice_id, platform, act)


@click.command()
@invoice_argument
@platform_option
@reason_option
@as_json
def release(invoice_id: str, platform: str | None, reason: str, *, as_json: bool) -> None:
    """Let a parked or held invoice go. It is worked on at once, with all its attempts."""

    def act(desk: Desk, key: InvoiceKey) -> None:
        if warning := actions.release(desk, key, _asked(reason)):
            click.echo(warning, err=True)
        tell_done("release", desk.journal, key, "released", as_json=as_json)

    _do(invoice_id, platform, act)


@click.command()
@_platform
@reason_option
@as_json
def pause(platform: str, reason: str, *, as_json: bool) -> None:
    """Let no worker begin with an invoice; what one is at, it ends. Notifications are taken."""
    with closing(open_journal(configured().journal.url)) as journal:
        desk = open_desk(configured(), journal)
        since = actions.pause(desk, _checked(desk, platform), _asked(reason))
    told = f"{actions.named(platform)} paused since {utc_text(since.at)} by {since.by}"
    _tell(since, told, as_json=as_json)


@click.command()
@_platform
@reason_option
@as_json
def resume(platform: str, reason: str, *, as_json: bool) -> None:
    """Undo a pause; the next sweep rings for everything that is due."""
    with closing(open_journal(configured().journal.url)) as journal:
        desk = open_desk(configured(), journal)
        act = refusable(lambda: actions.resume(desk, _checked(desk, platform), _asked(reason)))
    _tell(act, f"{actions.named(platform)} resumed", as_json=as_json)


def _do(invoice_id: str, platform: str | None, act: Callable[[Desk, InvoiceKey], None]) -> None:
    """Do an act to the invoice that is meant."""
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        key = invoice_key(config, journal, invoice_id, platform)
        refusable(lambda: act(open_desk(config, journal), key))


def _tell(act: Act, told: str, *, as_json: bool) -> None:
    """Say what stands now; as JSON with null for every platform."""
    if not as_json:
        click.echo(told)
        return
    print_json(
        {
            "act": act.verb,
            "platform": act.platform or None,
            "by": act.by,
            "reason": act.reason,
            "at": utc_text(act.at),
        }
    )


def _asked(reason: str) -> Asked:
    return Asked(user(), reason)


def _checked(desk: Desk, platform: str) -> str:
    names = configured().platforms
    if platform and platform not in {*names, *desk.journal.paused()}:
        raise click.UsageError(f"there is no platform {platform!r}; there are {', '.join(names)}")
    return platform
