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


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("sql", 'time_format  required  ("iso", "epoch_seconds", "epoch_milliseconds",'),
        ("sql", "timeout_seconds  default 30.0  (a number)"),
        ("files", 'format  default none  ("parquet", "csv" or "jsonl")'),
        ("files", "path  required  (text or a list of text)"),
        ("http", 'aggregations  required  (a list of "count", "sum", "max", "last" or "unique")'),
        ("http", "max_pages  default 100  (a whole number)"),
        ("http", "unknown_subject_statuses  default none  (a list of whole numbers)"),
        ("http", "query  default none  (a table of text)"),
        ("both", "first  required  (name of another source)"),
        ("both", "shadow  default false  (true or false)"),
        ("both", "tolerance  default 0  (a number)"),
    ],
)
def test_a_setting_tells_in_plain_words_what_it_takes(kind: str, told: str) -> None:
    """The values of which it is one, or the sort of value; never a type of Python."""
    told_all = [" ".join(line.split()) for line in run(kind).stdout.splitlines()]
    assert any(line.startswith(" ".join(told.split())) for line in told_all), told_all


def test_no_kind_shows_python() -> None:
    """Whatever a setting's type is, it is told in words."""
    for kind in kinds(SOURCES):
        for setting in json.loads(run(kind, "--json").stdout)["kinds"][0]["settings"]:
            assert not set("[]|<>'") & set(setting["type"]), setting
            assert setting["type"] not in ("str", "int", "float", "bool", "Any", "Decimal")


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
    how = "pip install 'invoice-reconciler[{}]'"
    result = run("files")
    assert result.exit_code == 0
    assert f"needs [files]: {how.format('files')}" in result.stdout.splitlines()
    assert how.format("files") in run().stdout
    for kind in ("sql", "meter"):
        told = f"needs [postgres] for a PostgreSQL url: {how.format('postgres')}"
        assert told in run(kind).stdout.splitlines()


def test_what_is_installed_says_so() -> None:
    """Each extra that a kind needs is named, with its use where it is not always needed."""
    assert "needs [files]: installed" in run("files").stdout.splitlines()
    assert "needs [clickhouse]: installed" in run("clickhouse").stdout.splitlines()
    assert "needs [postgres] for a PostgreSQL url: installed" in run("sql").stdout.splitlines()
    assert "needs [" not in run("csv").stdout


def test_configured_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a configuration, its sources stand below the kinds, each with its own."""
    (tmp_path / "config.toml").write_text(
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:1/v1"\n'
        '[usage_sources.export]\nkind = "csv"\npath = "x.csv"\nsubject_column = "s"\n'
        'time_column = "t"\ntime_format = "iso"\n'
        '[usage_sources.own]\nkind = "own_source:Own"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_source.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Own:\n    pass\n"
    )
    *_, export, own = run().stdout.splitlines()
    assert export == 'configured: "export", csv'
    assert own == 'configured: "own", own_source:Own'
