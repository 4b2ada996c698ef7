"""The sandbox as a program of its own, and its settings."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from decimal import Decimal

import pytest
from sandbox_builders import Caller, february_invoice

import sandbox
from sandbox.core import Sandbox
from sandbox.process import StartError, running_sandbox
from sandbox.settings import Settings, UnknownSettingError
from sandbox.wire import Request, encode


def test_child_process() -> None:
    """A child process says where it is, takes its token and settings, and ends with the block."""
    with running_sandbox(token="secret-1", settings={"max_records": 3}) as running:
        invoice = running.control.put_invoice(**february_invoice(5))
        with Caller(running.base_url, "secret-1") as api:
            assert len(api.get(f"invoices/{invoice['id']}/charges").results) == 3
        assert running.base_url.startswith("http://127.0.0.1:")
    with pytest.raises(Exception, match="Connection"):
        running.control.record()


def test_clean_end() -> None:
    """SIGTERM ends it with exit code 0 after one line of JSON."""
    command = [sys.executable, "-m", "sandbox", "--base-path", "/RestAPI"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        assert ready["pid"] == child.pid
        assert ready["base_url"].endswith("/RestAPI")
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_child_that_cannot_start() -> None:
    """A child that does not start says why."""
    with (
        pytest.raises(StartError, match="no such setting: speed"),
        running_sandbox(settings={"speed": 1}),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--settings", "{"], "is not JSON"),
        (["--settings", "[]"], "must be a JSON object"),
        (["--webhook", "ftp://x"], "must be an http or https URL"),
        (["--base-path", "v1"], "must begin with a slash"),
        (["--host", "203.0.113.1", "--port", "1"], "cannot listen on 203.0.113.1 port 1"),
    ],
)
def test_bad_options(options: list[str], reason: str) -> None:
    """A wrong option is answered with a sentence and no traceback."""
    from click.testing import CliRunner

    from sandbox.__main__ import main

    result = CliRunner().invoke(main, options)
    assert result.exit_code in (1, 2)
    assert reason in result.output


def test_settings_are_explained() -> None:
    """Each setting that decides what BillForward leaves open is named in the package's text."""
    text = sandbox.__doc__ or ""
    assert [f.name for f in dataclasses.fields(Settings) if f"`{f.name}`" not in text] == []


@pytest.mark.parametrize(
    "changes",
    [{"nonsense": 1}, {"max_records": "3"}, {"batch_is_atomic": 1}, {"redelivery_seconds": 1}],
)
def test_wrong_settings(changes: dict[str, object]) -> None:
    """An unknown setting or a value of the wrong type is refused by name."""
    with pytest.raises(UnknownSettingError, match=next(iter(changes))):
        Settings().changed(changes)


def test_settings_keep_their_types() -> None:
    """Numbers from JSON become what the setting holds."""
    found = Settings().changed({"pay_after_seconds": Decimal("1.5"), "redelivery_seconds": [1]})
    assert (found.pay_after_seconds, found.redelivery_seconds) == (1.5, (1.0,))
    assert found.changed({"pay_after_seconds": None}).pay_after_seconds is None


def test_driven_without_http() -> None:
    """The core answers requests without any server."""
    core = Sandbox()
    body = encode({"id": "INV-1"})
    assert core.handle(Request(method="POST", target="/sandbox/invoices", body=body)).status == 200
    headers = {"authorization": f"Bearer {core.setup.token}"}
    request = Request(method="GET", target="/v1/invoices/INV-1", headers=headers)
    assert b'"INV-1"' in core.handle(request).body


@pytest.mark.parametrize("text", ["0.10", "0.000", "1E+3", "-0.05", "12345678901234567890.12"])
def test_numbers_keep_their_digits(text: str) -> None:
    """A Decimal is written as exactly its digits; no string is mistaken for one."""
    assert encode({"a": Decimal(text), "b": "1"}) == f'{{"a":{text},"b":"1"}}'.encode()
    with pytest.raises(TypeError):
        encode(Decimal("NaN"))
