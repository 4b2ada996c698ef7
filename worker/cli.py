"""The command `reconciler`: data on standard output, messages on standard error.

Exit codes: 0 ok, 1 failed, 2 wrong use, 3 something needs a person's attention.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from worker.bulk_commands import bulk
from worker.config import Config
from worker.demo.run import STATE_FOLDER, run_demo
from worker.doctor import Finding, examine
from worker.doorbell import Doorbell
from worker.errors import ConfigError, ReconcilerError
from worker.events_commands import events
from worker.hold_commands import hold, pause, release, resume
from worker.invoice_commands import (
    NEEDS_ATTENTION,
    as_json,
    close,
    list_command,
    print_json,
    replay,
    show,
)
from worker.journal import open_journal
from worker.journal_commands import journal
from worker.logs import configure_logs
from worker.preview_command import preview
from worker.progress import progress
from worker.rq_worker import run_worker
from worker.sources_command import sources
from worker.sweep import Sweep, sweep_until
from worker.usage_commands import count, recount
from worker.wiring import CONFIG_VARIABLE, configured, open_notices, open_service, utc_now

_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_READING = ("list", "show", "journal")  # the commands that may look into the demo's journal


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
    help=f"The configuration, a TOML file.  [env: {CONFIG_VARIABLE}; default: config.toml]",
)
@click.version_option(package_name="invoice-reconciler")
@click.pass_context
def main(ctx: click.Context, config_file: Path | None) -> None:
    """Count the usage of pending invoices, write it on their charges, and issue them.

    \b
    reconciler demo                        the whole job here, nothing to set up
    reconciler doctor                      what is wrong, and how to mend it
    reconciler list --state held           what needs a person
    reconciler show INV-…                  the whole story of one invoice
    reconciler replay INV-… --reason "…"   run it again; safe at any time
    """  # noqa: D301  click reads the backspace itself
    if config_file is not None:
        os.environ[CONFIG_VARIABLE] = str(config_file)
    elif (
        ctx.invoked_subcommand in _READING
        and CONFIG_VARIABLE not in os.environ
        and not Path("config.toml").exists()
    ):
        demo_config = STATE_FOLDER / "config.toml"
        if demo_config.exists():
            click.echo(f"no config.toml here: using the demo's, {demo_config}", err=True)
            os.environ[CONFIG_VARIABLE] = str(demo_config)


@main.command()
@as_json
def demo(as_json: bool) -> None:
    """Run the main job for real, with nothing to set up.

    Starts an embedded Redis, a BillForward sandbox, webhook and worker, and ends them.
    """
    sys.exit(run_demo(as_json=as_json))


@main.command()
def serve() -> None:
    """Receive the platforms' notifications over HTTP.

    Runs gunicorn at the address, and with the processes and threads, of the config's [webhook].
    """
    config = _ready_config()
    open_journal(config.journal.url).close()  # a clear word now, not from gunicorn's workers
    webhook = config.webhook
    command = [
        *(sys.executable, "-m", "gunicorn", "webhook_app:create_app()"),
        *("--worker-class", "gthread", "--no-control-socket", "--graceful-timeout", "5"),
        *("--workers", str(webhook.processes), "--threads", str(webhook.threads)),
        *("--bind", f"{webhook.host}:{webhook.port}"),
    ]
    os.execv(sys.executable, command)  # noqa: S606  our own interpreter, arguments checked


@main.command()
@click.option("--burst", is_flag=True, help="Stop when the queue is empty.")
def work(burst: bool) -> None:
    """Reconcile invoices as they ring.

    A process works on one invoice at a time: start as many as the platform takes. Asked to end,
    one leaves its invoice after the current step, for another to go on with.
    """
    config = _ready_config()
    _doorbell(config).check()
    open_journal(config.journal.url).close()
    run_worker(config, burst=burst)


@main.command(name="sweep")
@click.option("--once", is_flag=True, help="Sweep once and stop.")
def sweep_command(once: bool) -> None:
    """Ring for what is due, and find what was lost.

    Every interval it rings for each due invoice, looks for pending invoices that nobody told of,
    acknowledges notifications and sends notices. One is enough; several are harmless.
    """
    config = _ready_config()
    service = open_service(config)
    sweep = Sweep(
        journal=service.journal,
        platforms=service.platforms,
        doorbell=_doorbell(config),
        now=utc_now,
        find_every=timedelta(seconds=config.sweep.find_pending_seconds),
        find_pages=config.sweep.find_pending_pages,
        mode=config.rules.mode,
        numbers=service.measures.numbers,
    )
    notices = open_notices(service)
    if once:
        try:
            swept = sweep.round()
            sweep.doorbell.note_sweep(utc_now())
        finally:
            notices.tell()
        click.echo(
            f"rang for {swept.rung} invoices, found {swept.found} pending,"
            f" acknowledged {swept.acknowledged} notifications",
            err=True,
        )
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sweep_until(stop, sweep, timedelta(seconds=config.sweep.interval_seconds), notices.tell)


for command in (
    *(list_command, show, preview, replay, recount, hold, release, close, pause, resume),
    *(bulk, journal, count, sources, events),
):
    main.add_command(command)


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Look at everything, and say how to mend what is wrong.

    At config, secrets, journal, Redis, queue, workers, sweep, clocks, platforms and sources. Ends
    with 3 while anything is wrong.
    """
    findings = []

    def looking(subject: str) -> AbstractContextManager[object]:
        return progress(f"looking at {subject}", None, shown=not as_json)

    for finding in examine(looking=looking):  # told one by one: each look may take its time
        findings.append(finding)
        if not as_json:
            _tell(finding)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    if not all(finding.well for finding in findings):
        sys.exit(NEEDS_ATTENTION)


@main.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script that completes what is typed, by Tab.

    \b
    bash   in ~/.bashrc:                  source <(reconciler completion bash)
    zsh    in ~/.zshrc, after compinit:   source <(reconciler completion zsh)
    fish   once:  reconciler completion fish > ~/.config/fish/completions/reconciler.fish
    """  # noqa: D301  click reads the backspace itself
    click.echo(_SHELLS[shell](main, {}, "reconciler", "_RECONCILER_COMPLETE").source())


def _tell(finding: Finding) -> None:
    click.echo(f"{'ok  ' if finding.well else 'BAD '}{finding.subject}: {finding.told}")
    if not finding.well:
        click.echo(f"    mend: {finding.mend}")


def _ready_config() -> Config:
    """Read the configuration with its secrets and start logging."""
    config = configured()
    config.require_secrets()
    configure_logs(config.log.level, config.log.format, config.secrets)
    return config


def _doorbell(config: Config) -> Doorbell:
    return Doorbell(config.queue.redis_url, config.queue.name)
