"""The demo's processes: each started, watched, and stopped by its own id."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from worker.demo.redis_server import stop


class StepFailed(RuntimeError):
    """A step of the demo did not come out as it must; the text says which and what was seen."""


@contextmanager
def running(
    name: str, arguments: list[str], folder: Path, environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `reconciler ARGUMENTS` for the length of a `with` block; its log goes into `folder`."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-m", "worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environ),
        )
    try:
        yield process
    finally:
        stop(process)


def wait_for(
    what: str,
    found: Callable[[], bool],
    *,
    seconds: float,
    alive: Mapping[str, subprocess.Popen[bytes]],
    folder: Path,
) -> None:
    """Wait until `found()`; raise StepFailed when a process died or time is up."""
    deadline = time.monotonic() + seconds
    while not found():
        for name, process in alive.items():
            if process.poll() is not None:
                raise StepFailed(
                    f"{what}: {name} ended with {process.returncode}{_tail(folder, name)}"
                )
        if time.monotonic() > deadline:
            logs = "".join(_tail(folder, name) for name in alive)
            raise StepFailed(f"{what}: not within {seconds:g} s{logs}")
        time.sleep(0.05)


def _tail(folder: Path, name: str) -> str:
    text = (folder / f"{name}.log").read_text(errors="replace")[-1500:].strip()
    return f"\n--- end of {folder / name}.log\n{text}" if text else ""
