"""Requests, answers and JSON as they cross the wire, independent of any HTTP server.

Money is a plain JSON number with its digits kept (`0.10`, `0E-7`), never a float.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

Json = dict[str, Any]

JSON_TYPE = "application/json"
# A Decimal travels through the C encoder as a string between two NULs, which are then stripped,
# and a Ready as its place in a list; `decode` lets no NUL in, so no other string looks like one.
_MARKED = re.compile(r'"\\u0000(@?)([-+.0-9E]+)\\u0000"')
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request: `target` is the raw path with query, header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The raw path, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The raw query, without its question mark."""
        return self.target.partition("?")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP answer; `dropped` means the connection is closed without a byte of it."""

    status: int
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: Sequence[tuple[str, str]] = ()
    delay_seconds: float = 0.0
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """JSON text made before, which `encode` puts in as it is."""

    text: str


class RefusedError(Exception):
    """A request that the platform refuses; `violation` says whether the client broke a rule."""

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        *,
        parameters: Sequence[str] = (),
        violation: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message
        self.parameters = tuple(parameters)
        self.violation = violation

    def as_json(self) -> Json:
        """Return the body BillForward sends with an error."""
        return error_body(self.error_type, self.message, self.parameters)


def invalid(message: str, *parameters: str) -> RefusedError:
    """Return the 400 ValidationError for a broken rule, naming the fields at fault."""
    return RefusedError(400, "ValidationError", message, parameters=parameters)


def error_body(error_type: str, message: str, parameters: Sequence[str] = ()) -> Json:
    """Return a BFError; `errorParameters` is left out when no field is at fault."""
    body: Json = {"errorType": error_type, "errorMessage": message}
    if parameters:
        body["errorParameters"] = list(parameters)
    return body


def encode(value: object) -> bytes:
    """Return *value* as JSON; a Decimal becomes a number with exactly its digits."""
    ready: list[str] = []

    def marked(inner: object) -> str:
        if isinstance(inner, Ready):
            ready.append(inner.text)
            return f"\0@{len(ready) - 1}\0"
        if isinstance(inner, Decimal) and inner.is_finite():
            return f"\0{inner}\0"
        raise TypeError(f"cannot be written as JSON: {inner!r}")

    def unmarked(match: re.Match[str]) -> str:
        return ready[int(match[2])] if match[1] else match[2]

    text = json.dumps(value, default=marked, allow_nan=False, separators=(",", ":"))
    return _MARKED.sub(unmarked, text).encode()


def decode(body: bytes) -> Any:
    """Return parsed JSON with fractions as Decimal; ValueError for anything doubtful in it."""
    text = body.decode("utf-8")
    if _ESCAPED_NUL.search(text):
        raise ValueError("a string holds a NUL character")
    return json.loads(
        text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
