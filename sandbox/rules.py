"""Which fields, values and parameters a request may carry; each breach is a ValidationError."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from sandbox.moments import moment_of
from sandbox.wire import Json, RefusedError, Request, decode, invalid

CHARGE_BEHAVIOURS = ("RecalculateWithLatestPricing", "RecalculateWithCurrentPricing")
INVOICE_BEHAVIOURS = (
    "RecalculateAsLatestSubscriptionVersion",
    "RecalculateAsCurrentSubscriptionVersion",
)
_TRICKS = re.compile(r"%2f|%5c|%2e|%00|\\|//|/\.\.?(/|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Field:
    """What one field of a body may hold: its kind, whether it must be there, its enum."""

    kind: str
    required: bool = False
    enum: Sequence[str] = ()


Fields = Mapping[str, Field]


def body_of(request: Request) -> Json:
    """Return the JSON object a POST carries; an UnserializationException otherwise."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise _unreadable(f"content type must be application/json, not {media_type or 'absent'}")
    try:
        body = decode(request.body)
    except ValueError as error:
        raise _unreadable(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _unreadable("the body must be a JSON object")
    return body


def query_of(request: Request, allowed: Sequence[str]) -> dict[str, str]:
    """Return the query parameters; one that is not in *allowed* is a violation."""
    pairs = parse_qsl(request.query, keep_blank_values=True)
    unknown = sorted({name for name, _ in pairs} - set(allowed))
    if unknown:
        raise invalid(f"unknown query parameter: {', '.join(unknown)}", *unknown)
    twice = len(pairs) != len(dict(pairs)) and any(name != "organizations" for name, _ in pairs)
    if twice:
        raise invalid("a query parameter occurs twice")
    return dict(pairs)


def refuse_tricks(path: str) -> None:
    """Refuse a path with dot segments, encoded slashes or dots, empty segments or NULs."""
    if _TRICKS.search(path):
        raise invalid(f"the path {path!r} plays tricks")


def checked(body: Json, fields: Fields) -> Json:
    """Return *body* if it keeps to *fields*; all complaints come in one ValidationError."""
    complaints = [(name, "is not a known field") for name in body if name not in fields]
    for name, field in fields.items():
        complaint = _complaint(field, body.get(name))
        if complaint:
            complaints.append((name, complaint))
    if complaints:
        text = "; ".join(f"{name} {complaint}" for name, complaint in complaints)
        raise invalid(text, *(name for name, _ in complaints))
    return body


def chosen(query: Mapping[str, str], name: str, enum: Sequence[str]) -> str | None:
    """Return the parameter if it is given, which must then be one of *enum*."""
    value = query.get(name)
    if value is not None and value not in enum:
        raise invalid(f"{name} must be one of {', '.join(enum)}, not {value!r}", name)
    return value


def whole(query: Mapping[str, str], name: str, default: int, least: int) -> int:
    """Return the parameter as a whole number of *least* or more."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise invalid(f"{name} must be a whole number of {least} or more, not {text!r}", name)
    return int(text)


def truth(query: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return the parameter as a truth value, written `true` or `false`."""
    value = chosen(query, name, ("true", "false"))
    return default if value is None else value == "true"


def _complaint(field: Field, value: Any) -> str:
    if value is None:
        return "is required" if field.required else ""
    wanted = _KINDS[field.kind](value)
    if wanted:
        return f"must be {wanted}, not {value!r}"
    if field.enum and value not in field.enum:
        return f"must be one of {', '.join(field.enum)}, not {value!r}"
    return ""


def _quantity(value: Any) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return "" if good else "a whole number of 0 or more"


def _amount(value: Any) -> str:
    good = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return "" if good else "a number"


def _moment(value: Any) -> str:
    try:
        moment_of(value)
    except ValueError:
        return "an ISO 8601 moment with a zone"
    return ""


_KINDS: Mapping[str, Callable[[Any], str]] = {
    "text": lambda value: "" if isinstance(value, str) else "text",
    "boolean": lambda value: "" if isinstance(value, bool) else "true or false",
    "list": lambda value: "" if isinstance(value, list) and value else "a list that is not empty",
    "object": lambda value: "" if isinstance(value, dict) else "an object",
    "quantity": _quantity,
    "amount": _amount,
    "moment": _moment,
    "anything": lambda _: "",
}


def _unreadable(message: str) -> RefusedError:
    return RefusedError(400, "UnserializationException", message)
