"""The page on writing a source is true: its code passes the contract as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from worker.errors import SourceInvalid, SourceUnavailable

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-source.md"


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_example_passes_the_contract(tmp_path: Path) -> None:
    """Saved under the names in their first lines, the blocks are a source and passing tests."""
    for block in blocks("python"):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_gateway_usage.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"\b2\d passed", run.stdout), run.stdout


@pytest.mark.parametrize("text", ["{bad", "7", '[["S-1", "calls"]]', '[["S-1", "calls", "now"]]'])
def test_the_example_keeps_its_own_rule_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A file that cannot be read is for a person to look at; one that is away is tried later."""
    block = next(each for each in blocks("python") if each.startswith("# gateway_usage.py"))
    (tmp_path / "gateway_of_the_page.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gateway_of_the_page", raising=False)
    source = import_module("gateway_of_the_page").GatewaySource(path=str(tmp_path / "usage.json"))
    with pytest.raises(SourceUnavailable, match=r"usage\.json: No such file"):
        source.check()
    (tmp_path / "usage.json").write_text(text)
    with pytest.raises(SourceInvalid, match=r"usage\.json cannot be read: "):
        source.check()


def test_the_class_is_as_short_as_the_page_says() -> None:
    """The number of its lines is the one in the text."""
    block = next(each for each in blocks("python") if each.startswith("# gateway_usage.py"))
    text = block[block.index("@dataclass") :]
    number = sum(1 for line in text.splitlines() if line.strip())
    assert f"has {number} lines" in PAGE.read_text(encoding="utf-8")


def test_the_configuration_is_toml() -> None:
    """The page's settings can be read, and name the class that the page defines."""
    first, second = (tomllib.loads(block) for block in blocks("toml"))
    kind = first["usage_sources"]["gateway"]["kind"]
    assert kind == second["project"]["entry-points"]["usage_sources"]["gateway"]
    module, _, name = kind.partition(":")
    source = next(block for block in blocks("python") if block.startswith(f"# {module}.py"))
    assert f"class {name}:" in source
