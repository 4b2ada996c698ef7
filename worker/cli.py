"""The command `reconciler`: data on standard output, messages on standard error.

Exit codes: 0 ok, 1 failed, 2 wrong use, 3 something needs a person's attention.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import click

from worker.config import Config
from worker.demo.run import STATE_FOLDER, run_demo
from worker.doctor import examine
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell
from worker.errors import ConfigError, QueueUnavailable, ReconcilerError
from worker.journal import open_journal
from worker.journal_commands import journal as journal_commands
from worker.logs import configure_logs
from worker.ports import Journal
from worker.record import Entry, EntryKind, InvoiceRow, State
from worker.rq_worker import run_worker
from worker.story import row_json, story_json, story_text
from worker.sweep import Sweep, sweep_until
from worker.wiring import CONFIG_VARIABLE, configured, open_service, utc_now

NEEDS_ATTENTION = 3
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POLL_SECONDS = 0.2

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Commands(click.Group):
    """Turns the program's own errors into one clear message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for complaint in error.complaints:
                click.echo(f"config: {complaint}", err=True)
            ctx.exit(1)
        except ReconcilerError as error:
            click.echo(f"reconciler: {error}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong use, 3 something needs a person's attention.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"The TOML file.  [env: {CONFIG_VARIABLE}; default: config.toml]",
)
@click.version_option(package_name="invoice-reconciler")
@click.pass_context
def main(ctx: click.Context, config_file: Path | None) -> None:
    """Count the usage of pending invoices, write it on their charges, and issue them.

    \b
    reconciler demo                 the whole job on this machine, nothing to set up
    reconciler doctor               is everything there, and how to mend what is not
    reconciler list --state held    what needs a person
    reconciler show INV-…           the whole story of one invoice
    reconciler replay INV-…         run it again; safe at any time
    """  # noqa: D301  click reads the backspace itself
    if config_file is not None:
        os.environ[CONFIG_VARIABLE] = str(config_file)
    elif (
        ctx.invoked_subcommand != "demo"
        and CONFIG_VARIABLE not in os.environ
        and not Path("config.toml").exists()
    ):
        demo_config = STATE_FOLDER / "config.toml"
        if demo_config.exists():
            click.echo(f"no config.toml here: using the demo's, {demo_config}", err=True)
            os.environ[CONFIG_VARIABLE] = str(demo_config)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(as_json: bool) -> None:
    """Run the main job for real: embedded Redis, a BillForward sandbox, webhook and worker."""
    sys.exit(run_demo(as_json=as_json))


@main.command()
def serve() -> None:
    """Receive notifications (gunicorn, threads)."""
    webhook = _ready_config().webhook
    command = [
        *(sys.executable, "-m", "gunicorn", "webhook_app:create_app()"),
        *("--worker-class", "gthread", "--no-control-socket"),
        *("--workers", str(webhook.processes), "--threads", str(webhook.threads)),
        *("--bind", f"{webhook.host}:{webhook.port}"),
    ]
    os.execv(sys.executable, command)  # noqa: S606  our own interpreter, arguments checked


@main.command()
@click.option("--burst", is_flag=True, help="Stop when the queue is empty.")
def work(burst: bool) -> None:
    """Reconcile invoices as they ring; start one process per invoice to be worked on at a time."""
    config = _ready_config()
    _doorbell(config).check()
    run_worker(config, burst=burst)


@main.command(name="sweep")
@click.option("--once", is_flag=True, help="Sweep once and stop.")
def sweep_command(once: bool) -> None:
    """Ring for whatever is due, find pending invoices nobody told of, acknowledge."""
    config = _ready_config()
    service = open_service(config)
    sweep = Sweep(
        journal=service.journal,
        platforms=service.platforms,
        doorbell=_doorbell(config),
        now=utc_now,
        find_every=timedelta(seconds=config.sweep.find_pending_seconds),
        find_pages=config.sweep.find_pending_pages,
    )
    if once:
        swept = sweep.round()
        click.echo(
            f"rang for {swept.rung} invoices, found {swept.found} pending,"
            f" acknowledged {swept.acknowledged} notifications",
            err=True,
        )
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sweep_until(stop, sweep, timedelta(seconds=config.sweep.interval_seconds))


@main.command(name="list")
@click.option(
    "--state",
    "states",
    type=click.Choice([state.value for state in State]),
    multiple=True,
    help="Only these; may be given several times.",
)
@click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most so many."
)
@as_json
def list_command(states: Sequence[str], limit: int, as_json: bool) -> None:
    """List invoices, oldest first."""
    rows = _journal().invoices([State(state) for state in states], limit)
    if as_json:
        _print_json([row_json(row) for row in rows])
        return
    several = len({row.key.platform for row in rows}) > 1
    for row in rows:
        name = str(row.key) if several else row.key.invoice_id
        due = f" (due {row.due_at:%Y-%m-%d %H:%M:%SZ})" if row.due_at else ""
        click.echo(f"{name}  {row.state:<9} {row.reason}{due}".rstrip())
    click.echo(f"{len(rows)} invoices", err=True)


@main.command()
@click.argument("invoice_id", metavar="INV")
@click.option("--platform", help="Needed where several know the id.")
@as_json
def show(invoice_id: str, platform: str | None, as_json: bool) -> None:
    """Tell the whole story of one invoice, from the journal alone."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = _key(config, journal, invoice_id, platform)
    history = journal.history(key)
    if history is None:
        _fail(f"the journal knows no {key}; reconciler replay asks the platform for it")
    if as_json:
        _print_json(story_json(history))
    else:
        click.echo(story_text(history))


@main.command()
@click.argument("invoice_id", metavar="INV")
@click.option("--platform", help="Needed where several know the id, or none yet.")
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
        _doorbell(config).ring(key)
    except QueueUnavailable as error:
        click.echo(f"{error}; the sweep will ring", err=True)
    row = _settled(journal, key, wait)
    if as_json:
        _print_json(row_json(row))
    else:
        told = f"{row.state}: {row.reason}" if row.reason else row.state
        click.echo(f"{key}: {told}")
    if _is_open(row):
        click.echo(f"no worker has answered within {wait:g} s; is one running?", err=True)
    if row.state not in (State.ISSUED, State.SKIPPED) or _is_open(row):
        sys.exit(NEEDS_ATTENTION)


main.add_command(journal_commands)


@main.command()
@click.argument("invoice_id", metavar="INV")
@click.option("--platform", help="Needed when several platforms are configured.")
@click.option("--reason", required=True, help="How it was settled; goes into its record.")
def close(invoice_id: str, platform: str | None, reason: str) -> None:
    """Record that you settled an invoice by hand on the platform; nothing more is done for it."""
    config = configured()
    journal = open_journal(config.journal.url)
    key = _key(config, journal, invoice_id, platform)
    entry = Entry(kind=EntryKind.CLOSED, at=utc_now(), data={"by": _user(), "reason": reason})
    if not journal.close_by_hand(key, entry):
        _fail(f"{key} is not in the journal, or a worker is at it: try again when it is done")
    click.echo(f"{key}: closed")


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Check config, journal, Redis, platforms and sources, and say how to mend each."""
    findings = list(examine())
    if as_json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.well else "BAD "
            click.echo(f"{mark}{finding.subject}: {finding.told}")
            if not finding.well:
                click.echo(f"    mend: {finding.mend}")
    if not all(finding.well for finding in findings):
        sys.exit(NEEDS_ATTENTION)


def _ready_config() -> Config:
    """Read the configuration with its secrets and start logging."""
    config = configured()
    config.require_secrets()
    configure_logs(config.log.level, config.log.format, config.secrets)
    return config


def _journal() -> Journal:
    return open_journal(configured().journal.url)


def _doorbell(config: Config) -> Doorbell:
    return Doorbell(config.queue.redis_url, config.queue.name)


def _key(config: Config, journal: Journal, invoice_id: str, platform: str | None) -> InvoiceKey:
    """Name the invoice; of several platforms, the one on which the journal knows the id."""
    if not _ID.fullmatch(invoice_id):
        raise click.UsageError(f"{invoice_id!r} is not an invoice's id")
    if platform is None:
        names = list(config.platforms)
        known = [n for n in names if len(names) > 1 and journal.history(InvoiceKey(n, invoice_id))]
        if len(known or names) > 1:
            raise click.UsageError(f"name one with --platform: {', '.join(known or names)}")
        platform = (known or names)[0]
    elif platform not in config.platforms:
        raise click.UsageError(f"there is no platform {platform!r} in the config")
    return InvoiceKey(platform, invoice_id)


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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's process may have no name
        return f"uid {os.getuid()}"


def _is_open(row: InvoiceRow) -> bool:
    return row.lease_owner is not None or (row.due_at is not None and row.due_at <= utc_now())


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)
