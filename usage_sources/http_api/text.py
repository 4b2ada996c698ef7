"""What the settings of an HTTP API are written in: templates, JSON paths, times; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from string import Formatter
from typing import Any, Literal

from usage_sources.reading import EPOCH_UNITS, microseconds
from usage_sources.web import path_segment
from worker.domain import UsageQuery, utc_text

HttpTime = Literal["iso", "epoch_seconds", "epoch_milliseconds"]

PLACEHOLDERS = ("subject", "metric", "component", "start", "end")

_STEP = re.compile(r"""\.?([^\s.\[\]"'$*@?]+)|\[(\d{1,9})\]|\["([^"]+)"\]|\['([^']+)'\]""")
_LITERAL = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/%]*")


@dataclass(frozen=True)
class Template:
    """Text with {placeholders}; `{{` and `}}` stand for braces."""

    text: str

    @property
    def names(self) -> set[str]:
        """The placeholders in it; raise ValueError for anything else in braces."""
        names = set()
        for _, name, spec, conversion in Formatter().parse(self.text):
            if name is None:
                continue
            if name not in PLACEHOLDERS or spec or conversion:
                raise ValueError(f"may hold {{{'}, {'.join(PLACEHOLDERS)}}}, and no other braces")
            names.add(name)
        return names

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the text with the values as they are, for a parameter that is encoded later."""
        return self.text.format_map(dict(values))

    def path(self, values: Mapping[str, str]) -> str:
        """Return a path in which each value stays within its segment; raise ValueError.

        A value that is empty, or makes its segment "." or "..", would lead elsewhere.
        """
        encoded = {name: path_segment(values[name]) for name in self.names}
        path = self.text.format_map(encoded)
        if {".", ".."} & set(path.split("/")):
            raise ValueError(f"would lead elsewhere, to {path[:80]}")
        return path


def check_path(setting: str, text: str) -> Template:
    """Return the template of a path; raise ValueError naming the setting."""
    template = Template(text)
    try:
        literal = template.filled(dict.fromkeys(template.names, "x"))
        template.path(dict.fromkeys(template.names, "x"))
    except ValueError as error:
        raise ValueError(f"{setting} {error}") from None
    if not text.startswith("/") or text.startswith("//") or not _LITERAL.fullmatch(literal):
        raise ValueError(
            f"{setting} must begin with one slash and hold what may stand in the path of a URL;"
            " parameters belong to query"
        )
    return template


def check_parameter(setting: str, text: str) -> Template:
    """Return the template of a parameter's value; raise ValueError naming the setting."""
    template = Template(text)
    try:
        template.filled(dict.fromkeys(template.names, "x"))
    except ValueError as error:
        raise ValueError(f"{setting} {error}") from None
    return template


@dataclass(frozen=True)
class JsonPath:
    """Where something stands in JSON: names and indexes, as in `data.rows[0]["the total"]`.

    `$`, which is the whole, may stand in front, or alone. There are no wildcards.
    """

    text: str

    @property
    def steps(self) -> list[str | int]:
        """The names and indexes; raise ValueError where the text is no such path."""
        rest = self.text.removeprefix("$")
        if not self.text or (rest[:1] == "." and rest == self.text):
            raise ValueError(f"{self.text!r} is no path like data.rows[0].total")
        steps: list[str | int] = []
        while rest:
            found = _STEP.match(rest)
            bare = found is not None and found[1] is not None and rest[0] != "."
            if found is None or (bare and (steps or self.text[0] == "$")):
                raise ValueError(f"{self.text!r} is no path like data.rows[0].total")
            steps.append(int(found[2]) if found[2] else found[1] or found[3] or found[4])
            rest = rest[found.end() :]
        return steps

    def find(self, document: Any) -> Any:
        """Return what stands there; raise LookupError where nothing does."""
        place = document
        for step in self.steps:
            if isinstance(step, int):
                there = isinstance(place, list) and step < len(place)
            else:
                there = isinstance(place, dict) and step in place
            if not there:
                raise LookupError(f"there is nothing at {self.text}")
            place = place[step]
        return place


def check_json_path(setting: str, text: str | None) -> None:
    """Raise ValueError, naming the setting, unless it is a path or not given."""
    if text is None:
        return
    try:
        _ = JsonPath(text).steps
    except ValueError as error:
        raise ValueError(f"{setting} {error}") from None


def written(moment: datetime, time_format: HttpTime) -> str:
    """Write a moment; raise ValueError where the format would cut a part of it off."""
    if time_format == "iso":
        return utc_text(moment)
    count, rest = divmod(microseconds(moment), EPOCH_UNITS[time_format])
    if rest:
        raise ValueError(f"{utc_text(moment)} cannot be written as whole {time_format}")
    return str(count)


def values_of(query: UsageQuery, time_format: HttpTime) -> dict[str, str]:
    """Return what the placeholders stand for; raise ValueError where a time cannot be written."""
    return {
        "subject": query.subject,
        "metric": query.metric,
        "component": query.component,
        "start": written(query.period.start, time_format),
        "end": written(query.period.end, time_format),
    }
