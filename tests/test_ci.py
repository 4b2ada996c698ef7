"""CI runs every test: what a machine may lack is skipped elsewhere, and fails there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("environ", "told", "code"),
    [
        ({}, "SKIPPED [1] tests/test_browser.py", 0),
        ({"BROWSER_REQUIRED": "1"}, "ERROR tests/test_browser.py::test_the_keyboard_alone", 1),
    ],
    ids=["elsewhere", "in CI"],
)
def test_a_missing_browser(tmp_path: Path, environ: dict[str, str], told: str, code: int) -> None:
    """Without a browser its tests are skipped by name; where it is required they fail by name."""
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "keyboard", "tests/test_browser.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, done.stdout
    assert told in done.stdout
    assert "no Chromium with its chromedriver on PATH" in done.stdout


def test_ci_requires_the_browser() -> None:
    """What CI runs exports the variable before the tests, and ends with the tests' own result."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("export BROWSER_REQUIRED=1") < lines.index("make test")
    assert lines[-1] == "make test"
