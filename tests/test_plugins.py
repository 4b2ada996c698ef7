"""Platforms and usage sources by name: found, refused with a reason, and never run early."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from usage_sources.csv_file import CsvSource
from worker.platforms.billforward import BillForward
from worker.plugins import (
    PLATFORMS,
    SOURCES,
    UnknownKind,
    build_named,
    circles,
    complaints_about,
    kinds,
    plugin_class,
    required_secrets_of,
    secrets_of,
    sources_named,
)


class NoDataclass:
    """A class whose settings nobody can know."""


@dataclasses.dataclass(kw_only=True)
class Meter:
    """A source with every sort of field."""

    name: str = dataclasses.field(metadata={"setting": False})
    key: str = dataclasses.field(metadata={"secret": True})
    spare_key: str = dataclasses.field(default="", metadata={"secret": True})
    size: int = 3
    clock: object = dataclasses.field(default=None, metadata={"setting": False})


@dataclasses.dataclass
class Nameless:
    """A source that does not want to know its name."""

    size: int = 3


@dataclasses.dataclass
class Crashing:
    """A source whose author let something else than ValueError out."""

    size: int = 3

    def __post_init__(self) -> None:
        raise KeyError("size")


@dataclasses.dataclass(kw_only=True)
class Relay:
    """A source that asks two others, one of which it can do without."""

    inner: Any = dataclasses.field(metadata={"source": True})
    spare: Any = dataclasses.field(default=None, metadata={"source": True})

    def __post_init__(self) -> None:
        if isinstance(self.inner, str) or self.inner is self.spare:
            raise ValueError("inner must be a source, and not the spare one")


def test_shipped_kinds() -> None:
    """The kinds that the distribution brings are found by their entry points."""
    assert kinds(PLATFORMS) == ["billforward"]
    assert {"both", "csv", "sql"} <= set(kinds(SOURCES))
    assert plugin_class(PLATFORMS, "billforward") is BillForward
    assert plugin_class(SOURCES, "csv") is CsvSource


def test_dotted_path() -> None:
    """A class of one's own is named by module and class, nested ones too."""
    assert plugin_class(SOURCES, "test_plugins:Meter") is Meter


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("sqll", r'no kind "sqll", did you mean "sql"\?; there are .*csv, .*sql, or name your own'),
        ("postgres", r'no kind "postgres"; there are .*csv, '),
        ("", r'no kind ""; there are'),
        ("test_plugins:NoDataclass", "is not a dataclass, whose fields would be its settings"),
        ("test_plugins:plugin_class", "is not a dataclass"),
        ("os:path", "is not a dataclass"),
        ("test_plugins:Missing", "cannot be loaded: AttributeError: .*Missing"),
        ("no_such_module_here:Source", "cannot be loaded: ModuleNotFoundError: .*no_such_module"),
        ("a:b:c", "cannot be loaded: ValueError"),
        (":", "cannot be loaded: ValueError"),
    ],
)
def test_unknown_kinds(kind: str, told: str) -> None:
    """What cannot be a plugin is refused with the reason, and with what there is."""
    with pytest.raises(UnknownKind, match=told):
        plugin_class(SOURCES, kind)


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        ("plug_imports", "import nothing_like_it", "ModuleNotFoundError: .*nothing_like_it"),
        ("plug_syntax", "class Source(:", "SyntaxError"),
        ("plug_raises", "raise RuntimeError('no licence')", "RuntimeError: no licence"),
    ],
)
def test_module_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str, told: str
) -> None:
    """A module that fails on import is a reason, whatever it raises."""
    (tmp_path / f"{module}.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownKind, match=f'kind "{module}:Source" cannot be loaded: {told}'):
        plugin_class(SOURCES, f"{module}:Source")


def test_secret_fields() -> None:
    """Secrets are told from other settings, and required ones from those with a default."""
    assert secrets_of(Meter) == ["key", "spare_key"]
    assert required_secrets_of(Meter) == ["key"]
    assert secrets_of(BillForward) == required_secrets_of(BillForward) == ["token"]
    assert secrets_of(CsvSource) == []


@pytest.mark.parametrize(
    ("settings", "complaints"),
    [
        ({"key": "k"}, []),
        ({}, [(("key",), "is missing")]),
        ({"key": "k", "name": "x"}, [(("name",), "there is no such setting")]),
        ({"key": "k", "clock": 1}, [(("clock",), "there is no such setting")]),
        (
            {"key": "k", "sise": 1},
            [(("sise",), 'there is no such setting, did you mean "size"?')],
        ),
        ({"key": ["hidden"]}, [(("key",), "must be a valid string")]),
        ({"key": 12345}, [(("key",), "must be a valid string")]),
    ],
)
def test_complaints(settings: dict[str, Any], complaints: list[tuple[tuple[str], str]]) -> None:
    """Settings are checked by name and type; non-setting fields are not the user's to set."""
    assert complaints_about(Meter, settings) == complaints


def test_a_missing_setting_with_few_values_names_them() -> None:
    """What it can be stands in the complaint; where anything goes, only that it is missing."""
    told = dict(complaints_about(CsvSource, {"path": "x", "subject_column": "s"}))
    assert told["time_column",] == "is missing"
    formats = '"iso", "epoch_seconds", "epoch_milliseconds" or "epoch_microseconds"'
    assert told["time_format",] == f"is missing; give {formats}"


@pytest.mark.parametrize(
    ("settings", "complaints"),
    [
        ({"inner": "a"}, []),
        ({"inner": "a", "spare": "b"}, []),
        ({"inner": "a", "spare": "a"}, ["inner must be a source, and not the spare one"]),
        ({}, ["is missing"]),
        ({"inner": ["a"]}, ["must be the name of another usage source"]),
        ({"inner": "a", "spare": 1}, ["must be the name of another usage source"]),
    ],
)
def test_settings_that_name_sources(settings: dict[str, Any], complaints: list[str]) -> None:
    """A plugin is checked with something in the place of each source, the same for one name."""
    assert [told for _, told in complaints_about(Relay, settings)] == complaints
    names = {key: value for key, value in settings.items() if isinstance(value, str)}
    assert sources_named(Relay, settings) == names


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ({"a": {"x": "b"}, "b": {}}, []),
        ({"a": {"x": "b", "y": "c"}, "b": {"x": "c"}, "c": {"x": "nobody"}}, []),
        ({"a": {"x": "a"}}, [[("a", "x")]]),
        ({"a": {"x": "b"}, "b": {"x": "c"}, "c": {"x": "b"}}, [[("b", "x"), ("c", "x")]]),
        (
            {"a": {"x": "a", "y": "b"}, "b": {"y": "a"}},
            [[("a", "y"), ("b", "y")], [("a", "x")]],
        ),
    ],
)
def test_circles(named: dict[str, dict[str, str]], found: list[Any]) -> None:
    """Each circle is found once, from the first source of the file that is in it."""
    assert circles(named) == found


def test_a_wrong_value_is_shown() -> None:
    """The value of a setting that is no secret is shown, cut to a readable length."""
    [(where, told)] = complaints_about(Meter, {"key": "k", "size": "x" * 500})
    assert where == ("size",)
    assert told.startswith("must be a valid integer")
    assert "(got 'xxx" in told
    assert len(told) < 200


def test_a_crash_is_a_complaint() -> None:
    """A plugin that raises something else than ValueError is a complaint, not a traceback."""
    assert complaints_about(Crashing, {}) == [((), "KeyError while it was made: 'size'")]


def test_names() -> None:
    """A plugin with a non-setting field `name` is told its name; others are left alone."""
    assert build_named(Meter, "meter-1", {"key": "k"}).name == "meter-1"
    assert build_named(Nameless, "meter-1", {"size": "4"}) == Nameless(size=4)
