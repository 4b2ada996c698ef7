"""`reconciler sources` tells which kinds there are, what they need, and what can be set."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from worker import sources_command
from worker.cli import main
from worker.plugins import SOURCES, kinds


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is no configuration."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    """Run the command in its own streams."""
    return CliRunner().invoke(main, ["sources", *arguments])


def test_every_kind_is_listed_with_what_it_does() -> None:
    """One line a kind, without any configuration."""
    result = run()
    assert result.exit_code == 0, result.output
    listed = [line.split()[0] for line in result.stdout.splitlines()]
    assert listed == kinds(SOURCES)
    assert "Counts usage in a CSV file" in result.stdout


def test_a_kind_tells_its_settings() -> None:
    """What must be set, the defaults, and what is a secret."""
    result = run("csv")
    assert "path" in result.stdout
    assert "required" in result.stdout
    assert "default reject" in result.stdout
    told = json.loads(run("usage_sources.sql:SqlSource", "--json").stdout)
    (kind,) = told["kinds"]
    by_name = {setting["name"]: setting for setting in kind["settings"]}
    assert by_name["url"]["required"]
    assert by_name["timeout_seconds"]["default"] == "30.0"


def test_an_unknown_kind_names_the_nearest() -> None:
    """A typing mistake gets a suggestion."""
    result = run("cvs")
    assert result.exit_code == 2
    assert 'did you mean "csv"?' in result.stderr


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind whose library is missing is listed with the command that brings it."""

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sources_command, "distribution", missing)
    assert sources_command.lacking("files") == ["duckdb"]
    assert sources_command.lacking("") == []
    result = run("files")
    assert result.exit_code in (0, 2)
    assert "pip install 'invoice-reconciler[files]'" in run().stdout


def test_configured_sources_are_named(tmp_path: Path) -> None:
    """Where there is a configuration, its sources stand below the kinds."""
    (tmp_path / "config.toml").write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:1/v1"\n'
        '[usage_sources.export]\nkind = "csv"\npath = "x.csv"\nsubject_column = "s"\n'
        'time_column = "t"\ntime_format = "iso"\n'
    )
    assert 'configured: "export", CsvSource' in run().stdout
