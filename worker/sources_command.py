"""`reconciler sources`: the kinds of usage sources, their settings, and what each needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import Any

import click

from worker.errors import ConfigError
from worker.invoice_commands import as_json, print_json
from worker.plugins import (
    SOURCES,
    UnknownKind,
    in_words,
    kinds,
    plugin_class,
    settings_of,
    types_of,
)
from worker.wiring import configured

_PACKAGE = "invoice-reconciler"


@click.command()
@click.argument("kind", required=False)
@as_json
def sources(kind: str | None, *, as_json: bool) -> None:
    """List the kinds of usage sources. With KIND, every setting of one.

    KIND is a name from the list, or your own as "package.module:Class".
    """
    try:
        found = [_described(kind)] if kind else [_described_or_not(one) for one in kinds(SOURCES)]
    except UnknownKind as error:
        raise click.UsageError(str(error)) from error
    configured_here = _configured()
    if as_json:
        print_json({"kinds": found, "configured": configured_here})
        return
    lines = _settings(found[0]) if kind else _table(found, configured_here)
    for line in lines:
        click.echo(line)


def _described(kind: str) -> dict[str, Any]:
    plugin = plugin_class(SOURCES, kind)
    extra = str(getattr(plugin, "extra", ""))
    at_times = dict(getattr(plugin, "optional_extras", {}))
    summary = (plugin.__doc__ or "").strip().splitlines()
    types = types_of(plugin)
    return {
        "kind": kind,
        "does": summary[0] if summary else "",
        "extra": extra,
        "installed": not lacking(extra),
        "optional_extras": [
            {"extra": one, "for": use, "installed": not lacking(one)}
            for one, use in at_times.items()
        ],
        "settings": [_setting(field, types[field.name]) for field in settings_of(plugin)],
    }


def _described_or_not(kind: str) -> dict[str, Any]:
    """Describe a kind in the list, where one that cannot be loaded must not hide the others."""
    try:
        return _described(kind)
    except UnknownKind as error:
        nothing = {"extra": "", "installed": True, "optional_extras": [], "settings": []}
        return {"kind": kind, "does": str(error), **nothing}


def lacking(extra: str) -> list[str]:
    """Return the packages of an extra of ours that are not installed."""
    wanted = [
        re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0]
        for line in requires(_PACKAGE) or []
        if extra and re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", line)
    ]
    return [name for name in wanted if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _setting(field: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is dataclasses.MISSING
    return {
        "name": field.name,
        "type": "name of another source" if field.metadata.get("source") else in_words(kind),
        "required": required,
        "default": None if required else _default(default),
        "secret": bool(field.metadata.get("secret")),
    }


def _default(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value in ("", (), [], {}) else str(value)


def _configured() -> dict[str, str]:
    """Return the configured sources and their kinds; nothing where there is no configuration."""
    try:
        config = configured()
    except ConfigError:
        return {}
    return {name: _kind(source.plugin) for name, source in config.usage_sources.items()}


def _kind(plugin: type[Any]) -> str:
    """Return what a configuration calls a class."""
    for kind in kinds(SOURCES):
        with suppress(UnknownKind):
            if plugin_class(SOURCES, kind) is plugin:
                return kind
    return f"{plugin.__module__}:{plugin.__qualname__}"


def _table(found: list[dict[str, Any]], configured_here: dict[str, str]) -> Iterator[str]:
    width = max(len(one["kind"]) for one in found)
    for one in found:
        needs = "" if one["installed"] else f"  (not installed: {_how(one)})"
        yield f"{one['kind']:<{width}}  {one['does']}{needs}"
    for name, kind in configured_here.items():
        yield f'configured: "{name}", {kind}'


def _how(one: dict[str, Any]) -> str:
    return f"pip install '{_PACKAGE}[{one['extra']}]'"


def _settings(one: dict[str, Any]) -> Iterator[str]:
    yield f"{one['kind']}: {one['does']}"
    always = [{**one, "for": ""}] if one["extra"] else []
    for extra in [*always, *one["optional_extras"]]:
        use = f" for {extra['for']}" if extra["for"] else ""
        yield f"needs [{extra['extra']}]{use}: {'installed' if extra['installed'] else _how(extra)}"
    width = max((len(setting["name"]) for setting in one["settings"]), default=0)
    for setting in one["settings"]:
        told = "required" if setting["required"] else f"default {setting['default'] or 'none'}"
        secret = ", a secret: from the environment only" if setting["secret"] else ""
        yield f"  {setting['name']:<{width}}  {told}{secret}  ({setting['type']})"
