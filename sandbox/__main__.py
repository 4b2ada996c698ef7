"""`python -m sandbox`: a sandbox on its own, until SIGTERM or SIGINT."""

from __future__ import annotations

import json
import os
import signal
import threading
from urllib.parse import urlsplit

import click

from sandbox.core import Sandbox, Setup
from sandbox.server import SandboxServer
from sandbox.settings import Settings, UnknownSettingError
from sandbox.wire import decode


def _settings(_: click.Context, __: click.Parameter, text: str) -> Settings:
    try:
        changes = decode(text.encode())
        if not isinstance(changes, dict):
            raise click.BadParameter("must be a JSON object such as {'max_records': 50}")
        return Settings().changed(changes)
    except UnknownSettingError as error:
        raise click.BadParameter(str(error)) from error
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}") from error


def _webhooks(_: click.Context, __: click.Parameter, urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise click.BadParameter("must be an http or https URL")
    return urls


def _base_path(_: click.Context, __: click.Parameter, path: str) -> str:
    if not path.startswith("/") or path.endswith("/") or path.startswith("/sandbox"):
        raise click.BadParameter("must begin with a slash, end without one, and not be /sandbox")
    return path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port; 0 picks a free one.",
    show_default=True,
)
@click.option(
    "--token",
    envvar="SANDBOX_TOKEN",
    default="sandbox-token",
    show_default=True,
    show_envvar=True,
    help="Bearer token that the API wants.",
)
@click.option(
    "--base-path",
    default="/v1",
    show_default=True,
    callback=_base_path,
    help="Path that the API is under.",
)
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    callback=_webhooks,
    help="URL to notify, with user:password if it wants one; repeatable.",
)
@click.option("--settings", default="{}", callback=_settings, help="Switches, as a JSON object.")
def main(
    host: str,
    port: int,
    token: str,
    base_path: str,
    webhooks: tuple[str, ...],
    settings: Settings,
) -> None:
    """Run a BillForward look-alike; one line of JSON on stdout says where it is."""
    setup = Setup(token=token, base_path=base_path, settings=settings, webhooks=webhooks)
    try:
        server = SandboxServer(Sandbox(setup), host, port)
    except (OSError, OverflowError) as error:
        raise click.ClickException(f"cannot listen on {host} port {port}: {error}") from error
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    ready = {"base_url": server.base_url, "control_url": server.control_url, "pid": os.getpid()}
    click.echo(json.dumps(ready))
    stop.wait()
    server.stop()


if __name__ == "__main__":
    main(prog_name="python -m sandbox")
