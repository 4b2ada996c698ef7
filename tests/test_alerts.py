"""The rules and the board in docs/alerts ask for numbers that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from metrics_builders import deliver, installation, put_invoice, samples

from sandbox.process import RunningSandbox

ALERTS = Path(__file__).parent.parent / "docs" / "alerts"
RULES = ALERTS / "rules.yml"
BOARD = ALERTS / "board.json"
RULES_TEST = Path(__file__).parent / "alerts_test.yml"

_NAME = re.compile(r"\b((?:reconciler|rq)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
_OF_PROMETHEUS = {"job", "instance"}  # labels that the scrape itself puts on
_MORE = 'max_quantity = 100\n[notices]\npage_url = "https://ops.example/"\n'

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")


def rules() -> list[dict[str, Any]]:
    """Read the rules."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def board() -> dict[str, Any]:
    """Read the board."""
    read: dict[str, Any] = json.loads(BOARD.read_text())
    return read


def expressions() -> Iterator[str]:
    """Yield every query of the rules and of the board."""
    yield from (rule["expr"] for rule in rules())
    for panel in board()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (
        re.sub(r"label_values\((\w+), \w+\)", r"\1", variable["query"]["query"])
        for variable in board()["templating"]["list"]
        if variable["type"] == "query"
    )


@pytest.fixture
def scrape(tmp_path: Path, sandbox: RunningSandbox, redis_url: str) -> str:
    """A scrape of an installation that counted, held an invoice, and could tell nobody."""
    there = installation(tmp_path, sandbox, redis_url, _MORE)
    there.environ = {**there.environ, "RECONCILER__NOTICES__SLACK_URL": "http://127.0.0.1:9/x"}
    put_invoice(sandbox)
    client = there.client()
    deliver(client)
    there.run("work", "--burst")
    there.run("sweep", "--once")
    return client.get("/metrics").text


def test_every_metric_that_is_asked_for_exists(scrape: str) -> None:
    """Each name, and each label and plain value asked of it, is in a real scrape of ours."""
    there = samples(scrape)
    asked = [found for expression in expressions() for found in _NAME.findall(expression)]
    assert len(asked) > 40
    for name, matchers in asked:
        assert name in there, name
        labels = {label for one in there[name] for label, _ in one} | _OF_PROMETHEUS
        values = {pair for one in there[name] for pair in one}
        for label, operator, wanted in _MATCHER.findall(matchers):
            assert label in labels, f"{name}: {label}"
            known = label in _OF_PROMETHEUS or operator in ("=~", "!~") or (label, wanted) in values
            assert known, f"{name}: {label}={wanted}"


def test_what_is_grouped_by_is_a_label(scrape: str) -> None:
    """A sum by a label that nobody sets would be one number without a name."""
    labels = {label for found in samples(scrape).values() for one in found for label, _ in one}
    for expression in expressions():
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            for label in group.split(","):
                assert label.strip() in labels | _OF_PROMETHEUS, expression


def test_rules_are_whole() -> None:
    """Each has a name of its own, a time to be sure, a severity and two sentences for people."""
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["for"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_board_is_whole() -> None:
    """Each panel has an id and a title of its own, a place that no other takes, and a query."""
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["targets"]


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    """Prometheus itself reads the rules."""
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@needs_promtool
@pytest.mark.timeout(330)
def test_promtool_sees_the_rules_fire(tmp_path: Path) -> None:
    """Over some hours of numbers, each rule fires when its fault is there and stays silent else."""
    test = tmp_path / "test.yml"
    test.write_text(RULES_TEST.read_text().replace("RULES", str(RULES)))
    done = subprocess.run(
        ["promtool", "test", "rules", str(test)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fired = set(re.findall(r'alertname="(\w+)"', RULES_TEST.read_text()))
    assert fired == {rule["alert"] for rule in rules()}
