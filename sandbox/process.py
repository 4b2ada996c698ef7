"""A sandbox as a child process, for demos and tests that want one apart from themselves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sandbox.client import SandboxControl

_STOP_SECONDS = 5.0


class StartError(RuntimeError):
    """The child did not become ready; the message holds what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSandbox:
    """A sandbox in a process of its own."""

    base_url: str
    token: str
    pid: int
    control: SandboxControl


@contextlib.contextmanager
def running_sandbox(
    *,
    token: str = "sandbox-token",  # noqa: S107 - a token that guards nothing
    port: int = 0,
    settings: Mapping[str, Any] | None = None,
    webhooks: Sequence[str] = (),
    start_seconds: float = 20.0,
) -> Iterator[RunningSandbox]:
    """Run `python -m sandbox` on the loopback for the length of a `with` block."""
    command = [sys.executable, "-m", "sandbox", "--port", str(port)]
    command += ["--settings", json.dumps(dict(settings or {}))]
    for url in webhooks:
        command += ["--webhook", url]
    with tempfile.TemporaryFile() as complaints, contextlib.ExitStack() as stack:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "SANDBOX_TOKEN": token},
        )
        stack.callback(_stop, child)
        ready = _ready_line(child, start_seconds)
        if ready is None:
            _stop(child)
            raise StartError(f"the sandbox did not start: {_tail(complaints)}")
        control = stack.enter_context(SandboxControl(ready["control_url"]))
        yield RunningSandbox(
            base_url=ready["base_url"], token=token, pid=child.pid, control=control
        )


def _ready_line(child: subprocess.Popen[bytes], seconds: float) -> dict[str, str] | None:
    lines: list[bytes] = []
    stdout = child.stdout
    if stdout is None:
        return None
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    found: dict[str, str] | None = json.loads(lines[0]) if lines and lines[0] else None
    return found


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _tail(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    return complaints.read()[-2000:].decode("utf-8", "replace").strip() or "it said nothing"
