"""Logs: one event a line, JSON outside a terminal, no secret anywhere."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog
from builders import INV
from metrics_builders import Installation, deliver, installation, put_invoice

from sandbox.process import RunningSandbox
from webhook_app import create_app
from worker.logs import configure_logs, masked

SECRET = "s3cr3t-5d41"
PROGRAM = """
import structlog
from worker.logs import configure_logs
configure_logs("info", "auto", ["{secret}"])
structlog.get_logger("x").info("delivery", invoice="INV-1", note="{secret}")
"""

PLATFORM = """
import logging
from dataclasses import dataclass
from worker.platforms.billforward import BillForward

@dataclass(kw_only=True)
class Odd(BillForward):
    def usage_charges(self, invoice):
        logging.getLogger("library").warning("slow")
        raise RuntimeError("a defect of its author")
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was logged since the last look."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert SECRET not in captured.err
    return [json.loads(line) for line in captured.err.splitlines()]


def configured(level: str = "info", form: Literal["json", "console"] = "json") -> Any:
    """Configure and return a new logger."""
    configure_logs(level, form, [SECRET, "", "abc"])
    return structlog.get_logger("test")


def test_json_outside_a_terminal() -> None:
    """Without a terminal, each event is one line of JSON on standard error."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(secret=SECRET)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "delivery", "invoice": "INV-1", "note": "***", "level": "info"}


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
    ids=str,
)
def test_readable_on_a_terminal(environ: dict[str, str], coloured: bool) -> None:
    """On a terminal, events are for people, in colours where it has some and nobody forbids it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(secret=SECRET)], stderr=theirs, env=environ
    ) as child:
        assert child.wait(30) == 0
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "delivery" in text
    assert "INV-1" in text
    assert not text.startswith("{")
    assert ("\x1b[" in text) is coloured
    assert SECRET not in text


def test_tracebacks_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """A secret inside an exception's text, its cause or its source line is masked."""
    log = configured()
    try:
        try:
            raise KeyError("s3cr3t-5d41")
        except KeyError as error:
            raise ValueError(f"cannot use {SECRET}") from error
    except ValueError:
        log.exception("failed", invoice="INV-1")
    (event,) = lines_of(capsys)
    assert event["invoice"] == "INV-1"
    assert "ValueError: cannot use ***" in event["exception"]
    assert event["exception"].count("***") >= 3


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        [SECRET],
        (f"token {SECRET}", 1),
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {SECRET: 1},
        ValueError(SECRET),
        SECRET.encode(),
        Path(SECRET),
    ],
)
def test_values_are_masked(capsys: pytest.CaptureFixture[str], value: object) -> None:
    """A secret is masked in texts, lists, tables and in any object that is logged."""
    configured().warning("seen", value=value, amount=1, share=0.5, nothing=None)
    (event,) = lines_of(capsys)
    assert "***" in json.dumps(event)
    assert isinstance(event["value"], dict) == isinstance(value, dict)
    assert (event["amount"], event["share"], event["nothing"]) == (1, 0.5, None)


def test_libraries_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """What a library logs comes in the same form, masked, with its traceback."""
    configured()
    try:
        raise OSError(f"no route with {SECRET}")
    except OSError:
        logging.getLogger("library").exception("could not use %s", SECRET)
    (event,) = lines_of(capsys)
    assert event["event"] == "could not use ***"
    assert "OSError: no route with ***" in event["exception"]


def test_new_secrets_of_a_logger_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """When the configuration is read again, its new secrets are masked in old loggers too."""
    log = configured()
    log.info("first")
    configure_logs("info", "json", ["another-secret"])
    log.info("second", value="another-secret")
    assert [event.get("value") for event in lines_of(capsys)] == [None, "***"]


def test_a_secret_that_the_endpoint_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once a page has read a changed token's file, its log holds neither the new nor the old."""
    token = tmp_path / "token"
    token.write_text("the-former-token")
    (tmp_path / "config.toml").write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[journal]\nurl = "sqlite:///{tmp_path}/journal.db"\n[log]\nformat = "json"\n'
        "[ops]\nenabled = true\n"
    )
    for name, value in {
        "RECONCILER_CONFIG": str(tmp_path / "config.toml"),
        "RECONCILER__WEBHOOK__PASSWORD": "of-the-webhook",
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN_FILE": str(token),
    }.items():
        monkeypatch.setenv(name, value)
    app = create_app()
    token.write_text("the-latter-token")
    assert "the-latter-token" in app.extensions["ops_board"].config().secrets
    told = "the-former-token the-latter-token of-the-webhook"
    structlog.get_logger("test").info("told", value=told)
    assert lines_of(capsys)[-1]["value"] == "*** *** ***"


def test_console_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """The form for people masks the same, tracebacks too."""
    log = configured(form="console")
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("failed", value=[SECRET])
    text = capsys.readouterr().err
    assert "ValueError: ***" in text
    assert SECRET not in text


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    """What is below the level is not logged, and chatty libraries only warn."""
    configured("warning").info("quiet")
    configured("debug").debug("loud")
    logging.getLogger("urllib3").info("quiet")
    assert [event["event"] for event in lines_of(capsys)] == ["loud"]


def test_masked_texts() -> None:
    """The longest secret is masked first, and words too short to be secrets are left."""
    assert masked("key abcd1 abcd12 or", ["abcd1", "abcd12"]) == "key *** *** or"
    assert masked("an or", ["", "a", "or"]) == "an or"


def test_a_job_names_its_invoice(tmp_path: Path) -> None:
    """Each event of a job carries the invoice's id and platform."""
    (tmp_path / "config.toml").write_text(
        f'[platforms.billforward]\nbase_url = "http://127.0.0.1:9/v1"\n[log]\nlevel = "debug"\n'
        f'[journal]\nurl = "sqlite:///{tmp_path}/journal.db"\n'
    )
    program = 'from worker.jobs import reconcile_invoice as r; r("billforward", "INV-77")'
    environ = {
        "RECONCILER_CONFIG": str(tmp_path / "config.toml"),
        "RECONCILER__WEBHOOK__PASSWORD": SECRET,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": SECRET,
    }
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert [(e["event"], e["invoice"], e["platform"]) for e in events] == [
        ("not_due_or_taken", "INV-77", "billforward")
    ]


def test_each_line_of_a_run_names_it(
    tmp_path: Path, sandbox: RunningSandbox, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's line too, and the failure's, carry invoice, platform, attempt and trace id.

    The attempt is the journal's at that moment: none failed before, and then this one did.
    """
    put_invoice(sandbox)
    (tmp_path / "odd.py").write_text(PLATFORM)
    monkeypatch.syspath_prepend(tmp_path)
    there = installation(tmp_path, sandbox, redis_url, "")
    odd = {"RECONCILER__PLATFORMS__BILLFORWARD__KIND": "odd:Odd", "PYTHONPATH": str(tmp_path)}
    there = Installation(there.folder, {**there.environ, **odd})
    assert deliver(there.client()).status_code == 200
    lines = [json.loads(line) for line in there.run("work", "--burst").splitlines()]
    began, *run, ended = lines
    assert [line["event"] for line in lines] == [
        *("worker_started", "slow", "job_failed", "worker_stopped")
    ]
    assert [(line["invoice"], line["platform"]) for line in run] == [(INV, "billforward")] * 2
    assert [line["attempt"] for line in run] == [0, 1]
    assert len({line["trace_id"] for line in run}) == 1
    assert not {"invoice", "attempt", "trace_id"} & (began.keys() | ended.keys())
