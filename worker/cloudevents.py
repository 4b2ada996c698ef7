"""CloudEvents 1.0 in JSON, read into usage events; what cannot be right is refused by name.

`type` is the metric, `subject` whose usage it is, `time` when it was used, and `data.value` how
much (1 where it is left out). Attributes that we do not use are not looked at.
Source: the CloudEvents specification 1.0.2 and its JSON event format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from worker.metering import UsageEvent

_LONGEST = 1024  # characters of an attribute
_MOST_DIGITS = 30  # before, and after, a quantity's point
# The same as the meter's: seconds that are read as milliseconds are not in these years.
_EARLIEST, _LATEST = datetime(1980, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_RFC_3339 = re.compile(rf"{_DATE.pattern}[Tt]{_TIME}:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-]{_TIME})")
_LEAP = re.compile(r"(?<=T[0-9]{2}:[0-9]{2}):60", re.IGNORECASE)


class EventRejected(ValueError):
    """An event cannot be counted; the text names what is wrong with it."""


def parsed_json(text: bytes | str) -> Any:
    """Parse JSON with exact numbers; raise EventRejected."""
    try:
        if isinstance(text, bytes):
            encoding = "utf-8" if text.startswith(b'{"') else json.detect_encoding(text)
            text = text.decode(encoding, "surrogatepass")
        text = text.rstrip(_BLANKS)
        found, end = _JSON.raw_decode(text, len(text) - len(text.lstrip(_BLANKS)))
    except RecursionError:
        raise EventRejected("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise EventRejected(f"it is not JSON: {error.msg}: {line}column {error.colno}") from None
    except (ValueError, ArithmeticError) as error:
        raise EventRejected(f"it is not JSON: {str(error)[:200]}") from None
    if end != len(text):
        raise EventRejected(f"it is not JSON: more follows behind character {end}")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


class _Repeating:
    """Stands for an object in which a name stands twice: it is none that can be read."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        seen = Counter(name for name, _ in pairs)
        self.name = seen.most_common(1)[0][0]

    def __str__(self) -> str:
        name = json.dumps(self.name[:_LONGEST])  # whatever the name holds, this can be printed
        return f"{name} stands twice in one object, and one of the two would be lost"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeating:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(pairs)


_BLANKS = " \t\n\r"  # those of JSON
_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_object)


def usage_event(event: Any) -> UsageEvent:
    """Read one event, a parsed JSON object; raise EventRejected."""
    if not isinstance(event, dict):
        raise EventRejected(_no_object(event, "an event is a JSON object"))
    if event.get("specversion") != "1.0":
        raise EventRejected('"specversion" must be "1.0"')
    return UsageEvent(
        source=_text(event, "source"),
        id=_text(event, "id"),
        subject=_text(event, "subject"),
        metric=_text(event, "type"),
        at=_moment(event),
        quantity=_quantity(event),
    )


def moment(text: str) -> datetime:
    """Read an RFC 3339 date and time with its zone; raise EventRejected.

    What is finer than a microsecond is cut off.
    """
    try:
        if not _RFC_3339.fullmatch(text):
            raise ValueError
        found = datetime.fromisoformat(text.upper())
    except ValueError:
        raise EventRejected(f'"time" {_no_moment(text)}') from None
    if not _EARLIEST <= found < _LATEST:
        raise EventRejected(f'"time" is not between {_EARLIEST.year} and {_LATEST.year - 1}')
    return found


def _no_moment(text: str) -> str:
    if _DATE.fullmatch(text):
        return "is only a date; write the time of day behind it, and a zone"
    if _RFC_3339.fullmatch(f"{text}Z"):
        return "has no zone; write Z or an offset behind it"
    if _RFC_3339.fullmatch(_LEAP.sub(":59", text, count=1)) and _LEAP.search(text):
        return "is in a leap second, which has no count; write second 59"
    return "is no date and time of RFC 3339"


def quantity(value: Any, name: str) -> Decimal:
    """Read an exact quantity: a whole or decimal number, or one in text; raise EventRejected."""
    try:
        return _exact(value)
    except EventRejected as error:
        raise EventRejected(f"{name} {error}") from None


def _exact(value: Any) -> Decimal:
    if isinstance(value, str):
        return _quantity_of_text(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise EventRejected("is no number")
    return _bounded(Decimal(value))


@lru_cache(maxsize=4096)
def _quantity_of_text(text: str) -> Decimal:
    if not text.isascii() or "_" in text or text != text.strip():
        raise EventRejected("is no number")
    try:
        return _bounded(Decimal(text))
    except InvalidOperation:
        raise EventRejected("is no number") from None


def _bounded(number: Decimal) -> Decimal:
    if not number.is_finite():
        raise EventRejected("is no finite number")
    exponent = number.as_tuple().exponent
    if number.adjusted() >= _MOST_DIGITS or int(exponent) < -_MOST_DIGITS:
        raise EventRejected(f"has more than {_MOST_DIGITS} digits on a side of the point")
    return number


def text_of(value: Any, name: str) -> str:
    """Check an attribute's text: some, of bounded length, without control characters."""
    if not isinstance(value, str) or not value:
        raise EventRejected(f'"{name}" {_no_text(value)}')
    if len(value) > _LONGEST:
        raise EventRejected(f'"{name}" has more than {_LONGEST} characters')
    if not value.isprintable():
        raise EventRejected(f'"{name}" has a character that cannot be printed')
    return value


def _no_text(value: Any) -> str:
    return "is missing" if value in (None, "") else "is no text; write it in quotes"


def _text(event: Mapping[str, Any], name: str) -> str:
    return text_of(event.get(name), name)


def _moment(event: Mapping[str, Any]) -> datetime:
    text = event.get("time")
    if text is None:
        raise EventRejected('"time" is missing: when it was used decides who pays for it')
    if not isinstance(text, str):
        raise EventRejected('"time" is no text; write it as in "2026-11-02T10:00:00Z"')
    return moment(text)


def _quantity(event: Mapping[str, Any]) -> Decimal:
    if "data_base64" in event:
        raise EventRejected('"data" must be JSON, not data_base64')
    data = event.get("data")
    if data is None:
        return Decimal(1)
    if not isinstance(data, dict):
        raise EventRejected(_no_object(data, '"data" must be an object such as {"value": 3}'))
    return quantity(data["value"], "data.value") if "value" in data else Decimal(1)


def _no_object(value: Any, told: str) -> str:
    return str(value) if isinstance(value, _Repeating) else told
