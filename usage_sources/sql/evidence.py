"""Statements as an outsider runs them: each parameter by name, and no function of ours in them.

On SQLite a parameter is `:name`, which the shell's `.parameter set` and every driver bind. On
PostgreSQL it is `:'name'`, which psql fills in from `-v name=value`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from usage_sources.sql.keys import Element
from worker.domain import Aggregation

_MEANINGS = {  # of the functions that an operator's own statement may use on SQLite
    "iso_microseconds": "reads ISO 8601 text as whole microseconds since 1970 in UTC, and cuts off"
    " the digits after them",
    "decimal_sum": "adds decimals exactly, as the sqlite3 shell's own decimal_sum does",
    "decimal_max": "is the largest of the decimals",
    "decimal_min": "is the smallest of the decimals",
}
_OF_QUANTITY = {
    Aggregation.SUM: "SQLite's sum() is exact for whole numbers only: where quantities have"
    " fractions, decimal_sum() of the sqlite3 shell gives the exact number that was counted",
    Aggregation.MAX: "SQLite's max() of numbers with fractions keeps about 15 digits of them;"
    " the number that was counted has every digit",
    Aggregation.LAST: "SQLite's max() of numbers with fractions keeps about 15 digits of them;"
    " the number that was counted has every digit",
}


def told(
    statement: sa.ClauseElement, dialect: sa.Dialect, bound: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return a statement's text and its parameters, JSON-ready and each by its own name."""
    # In this style every % that is no parameter is doubled, so nothing else looks like one.
    plain: Any = type(dialect)
    compiled: Any = statement.compile(dialect=plain(paramstyle="pyformat"))
    expanded = compiled.construct_expanded_state(dict(bound))
    written = ":'{}'" if dialect.name == "postgresql" else ":{}"
    text = re.sub(
        r"%%|%\((\w+)\)s",
        lambda found: written.format(found[1]) if found[1] else "%",
        expanded.statement,
    )
    return text, {key: _json_ready(value) for key, value in expanded.parameters.items()}


def notes_on_table(dialect_name: str, aggregation: Aggregation, unread: int) -> tuple[str, ...]:
    """Say where the statement above falls short of the count; `unread` events it cannot read."""
    if dialect_name != "sqlite":
        return ()
    notes = [_OF_QUANTITY[aggregation]] if aggregation in _OF_QUANTITY else []
    if unread:
        notes.append(
            f"SQLite's own functions cannot read the times of {unread} events that were counted,"
            " so the statement above leaves them out"
        )
    return tuple(notes)


def notes_on_text(dialect_name: str, text: str) -> tuple[str, ...]:
    """Say what the functions do that are there only while this program counts."""
    if dialect_name != "sqlite":
        return ()
    return tuple(
        f"{name}(x) {meaning}"
        for name, meaning in _MEANINGS.items()
        if re.search(rf"\b{name}\s*\(", text, re.IGNORECASE)
    )


def plain_microseconds(text: Element) -> Element:
    """Read ISO 8601 text with SQLite's own functions as microseconds since 1970.

    NULL for what they cannot read: week dates, no colons, offsets of seconds or from 15 hours on.
    """
    text = sa.func.upper(text)
    has_fraction = sa.func.substr(text, _int(20), _int(1)).in_([_str("."), _str(",")])
    after_fraction = sa.func.ltrim(sa.func.substr(text, _int(21)), _str("0123456789"))
    zone = sa.case((has_fraction, after_fraction), else_=sa.func.substr(text, _int(20)))
    seconds = sa.func.strftime(_str("%s"), sa.func.substr(text, _int(1), _int(19)).concat(zone))
    digits = sa.func.substr(
        text, _int(21), sa.func.length(text) - _int(20) - sa.func.length(after_fraction)
    )
    padded = sa.func.substr(digits.concat(_str("000000")), _int(1), _int(6))
    fraction = sa.case((has_fraction, sa.cast(padded, sa.Integer)), else_=_int(0))
    return sa.cast(seconds, sa.Integer) * _int(1_000_000) + fraction


def _int(number: int) -> Element:
    return sa.literal_column(str(number), sa.Integer())


def _str(text: str) -> Element:
    return sa.literal_column(f"'{text}'", sa.String())


def _json_ready(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value
