"""Platforms and usage sources by name: entry points or `package.module:Class`.

A plugin is a dataclass; its fields are its settings. A field's metadata may say
`{"secret": True}` (only from the environment), `{"setting": False}` (not the user's to set) or
`{"source": True}` (in the file the name of another usage source, to the plugin the source itself).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

PLATFORMS = "billing_platforms"
SOURCES = "usage_sources"

_OF_TABLES = ("model_type", "dict_type", "dataclass_type")  # what stands there may be a secret
_MOST_SHOWN = 80
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    bool: "true or false",
    timedelta: "a duration in seconds",
}

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}  # making one takes milliseconds


class UnknownKind(LookupError):
    """No plugin of this kind can be loaded; the text says what there is."""


def kinds(group: str) -> list[str]:
    """Return the names of the installed plugins of a group."""
    return sorted(_installed(group))


def plugin_class(group: str, kind: str) -> type[Any]:
    """Find the class of a kind; raise UnknownKind, naming the kinds there are."""
    if ":" not in kind and kind not in _installed(group):
        known = ", ".join(kinds(group))
        raise UnknownKind(
            f'no kind "{kind}"{suggestion(kind, kinds(group))}; there are {known},'
            ' or name your own as "package.module:Class"'
        )
    try:
        found = resolve_name(kind) if ":" in kind else _installed(group)[kind].load()
    except Exception as error:  # importing runs whatever the module says
        reason = f"{type(error).__name__}: {error}"
        raise UnknownKind(f'kind "{kind}" cannot be loaded: {reason}') from error
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UnknownKind(f'kind "{kind}" is not a dataclass, whose fields would be its settings')
    return found


def secrets_of(plugin: type[Any]) -> list[str]:
    """Return the names of the settings that may come only from the environment."""
    return [field.name for field in settings_of(plugin) if field.metadata.get("secret")]


def required_secrets_of(plugin: type[Any]) -> list[str]:
    """Return the names of the secrets that the plugin cannot do without."""
    must = [field.name for field in settings_of(plugin) if _has_no_default(field)]
    return [name for name in secrets_of(plugin) if name in must]


def sources_named(plugin: type[Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return which settings name other usage sources, and which they name."""
    names = [field.name for field in settings_of(plugin) if field.metadata.get("source")]
    return {name: each for name in names if isinstance(each := settings.get(name), str)}


def circles(named: Mapping[str, Mapping[str, str]]) -> list[list[tuple[str, str]]]:
    """Return each circle of sources once: its sources in order, with the settings that lead on."""
    found: dict[frozenset[str], list[tuple[str, str]]] = {}
    for start in named:
        ways: list[list[tuple[str, str]]] = [[(start, setting)] for setting in named[start]]
        while ways:
            way = ways.pop()
            after = named[way[-1][0]][way[-1][1]]
            if after == start:
                found.setdefault(frozenset(name for name, _ in way), way)
            elif after in named and after not in [name for name, _ in way]:
                ways += [[*way, (after, setting)] for setting in named[after]]
    return list(found.values())


def complaints_about(
    plugin: type[Any], settings: Mapping[str, Any]
) -> list[tuple[tuple[str, ...], str]]:
    """Check settings without connecting anywhere; return (place, what is wrong) pairs.

    A complaint about the settings as a whole has an empty place.
    """
    names = [field.name for field in settings_of(plugin)]
    complaints: list[tuple[tuple[str, ...], str]] = [
        ((name,), unknown(name, names)) for name in settings if name not in names
    ]
    known = {name: value for name, value in settings.items() if name in names}
    complaints += [
        ((field.name,), "must be the name of another usage source")
        for field in settings_of(plugin)
        if field.metadata.get("source") and not isinstance(known.get(field.name, ""), str)
    ]
    # One stand-in for each name: two settings that name the same source are given the same.
    named = sources_named(plugin, known)
    stand_ins = {name: object() for name in named.values()}
    known |= {setting: stand_ins[name] for setting, name in named.items()}
    try:
        build(plugin, _with_name(plugin, "check", known))
    except ValidationError as error:
        secrets = secrets_of(plugin)
        complaints += [_complaint(plugin, detail, secrets) for detail in error.errors()]
    except Exception as error:  # noqa: BLE001  a plugin's own code may raise anything
        complaints.append(((), f"{type(error).__name__} while it was made: {error}"))
    return complaints


def build(plugin: type[Any], settings: Mapping[str, Any]) -> Any:
    """Make the plugin from its settings; raise pydantic's ValidationError."""
    if plugin not in _ADAPTERS:
        _ADAPTERS[plugin] = TypeAdapter(plugin)
    return _ADAPTERS[plugin].validate_python(dict(settings))


def build_named(plugin: type[Any], name: str, settings: Mapping[str, Any]) -> Any:
    """Make the plugin; one with a field `name` is told the one the configuration gave it."""
    return build(plugin, _with_name(plugin, name, settings))


def unknown(name: str, names: Collection[str]) -> str:
    """Say that a setting is unknown and which one may be meant."""
    return f"there is no such setting{suggestion(name, names)}"


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return ', did you mean "x"?' for the nearest name, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f', did you mean "{near[0]}"?' if near else ""


def plain_error(detail: Mapping[str, Any], *, secret: bool = False) -> str:
    """Write one of pydantic's error details as a sentence, without the value of a secret."""
    if detail["type"] == "missing":
        return "is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    message = re.sub(r"^\w+ should| or instance of \w+", _must, message)
    shown = not secret and detail["type"] not in _OF_TABLES
    return f"{message}{_got(detail['input'])}" if shown else message


def _must(found: re.Match[str]) -> str:
    return "" if found[0].startswith(" ") else "must"


def _got(value: object) -> str:
    """Show a single value, cut to a readable length; nothing of any other."""
    if isinstance(value, int) and value.bit_length() > _MOST_SHOWN:
        return ""
    if not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    return f" (got {text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + '...'})"


@cache
def _installed(group: str) -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def settings_of(plugin: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the fields that are a user's to set."""
    return [field for field in dataclasses.fields(plugin) if field.metadata.get("setting", True)]


def types_of(plugin: type[Any]) -> Mapping[str, Any]:
    """Return the types of the settings; of some only the text, where it cannot be read."""
    try:
        return get_type_hints(plugin)
    except Exception:  # noqa: BLE001  a plugin's own names may be anything
        return {field.name: field.type for field in dataclasses.fields(plugin)}


def in_words(kind: Any) -> str:
    """Say what a setting of this type takes, as somebody would who fills it in."""
    inner = [each for each in get_args(kind) if each not in (NoneType, Ellipsis)]
    origin = get_origin(kind)
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        *others, last = choices_of(kind)
        return f"{', '.join(others)} or {last}" if others else last
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a table of {_several(inner[-1])}"
    if isinstance(origin, type) and issubclass(origin, Collection):
        return f"a list of {_several(inner[0])}"
    if inner:
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))


def _several(kind: Any) -> str:
    words = in_words(kind)
    return f"{words.removeprefix('a ')}s" if words.startswith("a ") else words


def choices_of(kind: Any) -> list[str]:
    """Return the values of which a setting of this type is one, or holds some; none: any."""
    if get_origin(kind) is Literal:
        return [f'"{each}"' for each in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [f'"{each.value}"' for each in kind]
    return [each for inner in get_args(kind) for each in choices_of(inner)]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _with_name(plugin: type[Any], name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    has_name = any(
        field.name == "name" and not field.metadata.get("setting", True)
        for field in dataclasses.fields(plugin)
    )
    return {**settings, **({"name": name} if has_name else {})}


def _complaint(
    plugin: type[Any], detail: Mapping[str, Any], secrets: Collection[str]
) -> tuple[tuple[str, ...], str]:
    where = tuple(str(part) for part in detail["loc"])
    told = plain_error(detail, secret=not where or where[0] in secrets)
    if detail["type"] == "missing" and choices_of(kind := types_of(plugin).get(where[0])):
        told += f"; give {in_words(kind)}"
    return where, told
