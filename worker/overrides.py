"""What the environment adds to the configuration file, and which values are secrets.

`RECONCILER__SECTION__KEY` overrides a key, `RECONCILER__SECTION__KEY_FILE` names a file that
holds its value. In a name of several words (`Text messages`) everything but letters and digits
is written as one underscore: `RECONCILER__COMPONENTS__TEXT_MESSAGES__SOURCE`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from worker.plugins import PLATFORMS, SOURCES, UnknownKind, plugin_class, secrets_of

Where = tuple[str, ...]

PREFIX = "RECONCILER__"
SECTION_SECRETS = {  # by section; those of platforms and sources are said by their classes
    "webhook": ("password", "previous_password"),
    "events": ("token",),
    "metrics": ("token",),
    "notices": ("webhook_url", "slack_url", "smtp_password"),
    "ops": ("session_key",),
}
TABLE_SECRETS: dict[Where, tuple[str, ...]] = {
    ("ops", "users"): ("password",)
}  # of each table in a section's table
GROUPS = {"platforms": PLATFORMS, "usage_sources": SOURCES}

_FROM_FILE = "_FILE"
_IN_URL = (re.compile(r"://[^/\s:@]*:(\S+)@"), re.compile(r"[?&]password=([^&\s]+)"))


class Misplaced(ValueError):
    """A variable does not fit the file's structure; the text says why."""


def override(
    data: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[Where, str], list[str]]:
    """Put what the environment says into the data.

    Return which variable each key came from, and a complaint for each that cannot be read.
    """
    origins: dict[Where, str] = {}
    complaints: list[str] = []
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).split("__")
        from_file = parts[-1].endswith(_FROM_FILE)
        parts[-1] = parts[-1].removesuffix(_FROM_FILE)
        try:
            if from_file and name.removesuffix(_FROM_FILE) in environ:
                raise Misplaced(f"{name.removesuffix(_FROM_FILE)} is set too; keep one of the two")
            value = _content(environ[name]) if from_file else environ[name]
            origins[_put(data, parts, value)] = name
        except Misplaced as error:
            complaints.append(f"{name}: {error}")
    return origins, complaints


def secrets_in_file(data: dict[str, Any]) -> list[str]:
    """Complain of secrets that stand in the file, by their key or inside a URL."""
    complaints = [
        f"{dotted(where)}: a secret must not stand in the file; set {variable(*where)}"
        for where, value in _leaves(data)
        if _is_secret(data, where) or any(_secrets_in(value))
    ]
    return list(dict.fromkeys(complaints))


def secret_values(data: dict[str, Any]) -> list[str]:
    """Return every secret in the data, to keep them out of all texts; longest first."""
    found: set[str] = set()
    for where, value in _leaves(data):
        if _is_secret(data, where):
            found.add(str(value))
        found.update(_secrets_in(value))
    return sorted(found - {""}, key=lambda secret: (-len(secret), secret))


def variable(*where: str) -> str:
    """Return the environment variable that sets a key."""
    return PREFIX + "__".join(map(_upper, where))


def missing(*where: str) -> str:
    """Say that a secret is not set, and which variable sets it."""
    name = variable(*where)
    return f"{dotted(where)} is not set: put it into {name}, or its file's path into {name}_FILE"


def dotted(where: Collection[str]) -> str:
    """Write a key's place as TOML would."""
    return ".".join(map(quoted, where))


def quoted(key: str) -> str:
    """Write one part of a key, in quotes where TOML needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'


def _content(path: str) -> str:
    try:
        return Path(path).read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise Misplaced(f"cannot read the file it names ({type(error).__name__})") from None


def _put(data: dict[str, Any], parts: list[str], text: str) -> Where:
    """Put a value at its place and return the place."""
    if not all(map(_upper, parts)):
        raise Misplaced(f"write it as {PREFIX}SECTION__KEY")
    value = _parsed(text)
    where: list[str] = []
    table: Any = data
    for part in parts:
        if where:
            table = table.setdefault(where[-1], {})
        if not isinstance(table, dict):
            raise Misplaced(f"{dotted(where)} is not a table, so it has no such key")
        where.append(_key(table, part))
    table[where[-1]] = value
    return tuple(where)


def _key(table: Mapping[str, Any], part: str) -> str:
    """Return the key that a variable's part means; an unknown one in lower case."""
    meant = [key for key in table if _upper(key) == _upper(part)]
    if len(meant) > 1:
        raise Misplaced(f"may mean {' or '.join(map(quoted, meant))}; set it in the file")
    return meant[0] if meant else part.lower()


def _parsed(text: str) -> Any:
    """Return a list where the text is one; everything else is text that its type will read."""
    if not text.startswith("["):
        return text
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        raise Misplaced('is not a TOML list such as ["a", "b"]') from None


def _upper(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_").upper()


def _leaves(data: dict[str, Any]) -> Iterator[tuple[Where, Any]]:
    """Yield every value with its key's place; each item of a list with the list's."""
    left: list[tuple[Where, Any]] = [((), data)]
    while left:
        where, value = left.pop(0)
        if isinstance(value, dict):
            left[:0] = [((*where, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left[:0] = [(where, inner) for inner in value]
        else:
            yield where, value


def _is_secret(data: dict[str, Any], where: Where) -> bool:
    """Tell whether a place is a secret's, or inside one."""
    if (named := TABLE_SECRETS.get(where[:2])) is not None:
        return len(where) > 3 and where[3] in named
    if where[0] in SECTION_SECRETS:
        return len(where) > 1 and where[1] in SECTION_SECRETS[where[0]]
    if where[0] not in GROUPS or len(where) < 3:
        return False
    kind = data[where[0]][where[1]].get("kind", where[1])
    try:
        return where[2] in secrets_of(plugin_class(GROUPS[where[0]], str(kind)))
    except UnknownKind:
        return False


def _secrets_in(value: Any) -> Iterator[str]:
    """Yield the passwords inside a URL, as they are written and as they are meant."""
    if isinstance(value, str):
        for pattern in _IN_URL:
            for password in pattern.findall(value):
                yield password
                yield unquote(password)
