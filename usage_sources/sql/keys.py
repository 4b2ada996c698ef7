"""Columns that are compared with names: how, and how a name is bound, by the column's type."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql as mysql_types
from sqlalchemy.dialects import postgresql

from usage_sources.reading import stored_quantity
from usage_sources.sql import mysql

# Texts that are padded, or alike in other cases, until they are cast to plain text.
_NOT_PLAIN = (sa.Enum, sa.CHAR, postgresql.CITEXT)
_SINGLE = (sa.REAL, mysql_types.FLOAT)  # holds no 0.1, so that no row is equal to it
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Element = sa.ColumnElement[Any]
Type = sa.types.TypeEngine[Any]


@dataclass(frozen=True)
class Key:
    """A column that is compared with names."""

    column: Element
    exact: Element  # groups no two different names
    type: Type
    bind: Callable[[str], Any]  # None: no row can have this name

    def is_one_of(self, parameter: str) -> Element:
        """Compare with a list that is bound later."""
        return self.column.in_(sa.bindparam(parameter, expanding=True, type_=self.type))

    def is_exactly(self, parameter: str) -> Element:
        """Compare with one name that is bound later, through an index and telling case apart."""
        name = sa.bindparam(parameter, type_=self.type)
        same = self.column == name
        return same if self.exact is self.column else sa.and_(same, self.exact == name)

    def values(self, names: list[str]) -> list[Any]:
        """Bind the names that the column's type can hold."""
        return [value for name in names if (value := self.bind(name)) is not None]


def key_of(column: Element, kind: Type, dialect_name: str) -> Key:
    """Match a column with the names of subjects or metrics, each as it is written."""
    if dialect_name == "sqlite":
        has_affinity = not isinstance(kind, (sa.String, sa.LargeBinary, sa.types.NullType))
        bind = _unless_converted if has_affinity else str
        return Key(column, exact(column, kind, dialect_name), sa.String(), bind)
    if dialect_name in mysql.DIALECTS and isinstance(kind, sa.String):
        return Key(column, exact(column, kind, dialect_name), name_type(dialect_name), str)
    if isinstance(kind, sa.String) and not isinstance(kind, _NOT_PLAIN):
        return Key(column, exact(column, kind, dialect_name), sa.String(), str)
    if isinstance(kind, sa.Integer):
        return Key(column, column, sa.BigInteger(), _as_integer)
    if isinstance(kind, sa.Uuid):
        return Key(column, column, sa.Uuid(as_uuid=False), _as_uuid)
    text = exact(column, kind, dialect_name)
    text = sa.cast(column, sa.String) if text is column else text
    return Key(text, text, name_type(dialect_name), str)


def filter_of(column: Element, kind: Type, dialect_name: str) -> Key | None:
    """Match a column with a filter's value; None: its type is not compared with a text."""
    if isinstance(kind, sa.Boolean):
        return Key(column, column, sa.Boolean(), _BOOLEANS.get)
    if dialect_name == "sqlite":
        if isinstance(kind, sa.types.NullType):  # here a number is not equal to its own text
            column = sa.cast(column, sa.Text)
        return Key(column, exact(column, kind, dialect_name), sa.String(), str)
    if isinstance(kind, _SINGLE):
        return None
    if isinstance(kind, (sa.Numeric, sa.Float)):
        return Key(column, column, sa.Numeric(), _as_number)
    if isinstance(kind, (sa.String, sa.Integer, sa.Uuid)):
        return key_of(column, kind, dialect_name)
    return None


def exact(column: Element, kind: Type, dialect_name: str) -> Element:
    """Give a column such that no two different texts are equal in it."""
    if dialect_name == "sqlite":
        return column.collate("BINARY")
    if dialect_name in mysql.DIALECTS and not isinstance(kind, (sa.Integer, sa.Numeric)):
        # From any character set. Not CAST, which MariaDB 10.11 garbles where it is grouped by.
        using = column.op("USING")(sa.literal_column("utf8mb4"))
        return sa.func.CONVERT(using, type_=sa.String).collate(mysql.COLLATIONS[dialect_name])
    return sa.cast(column, sa.String) if isinstance(kind, _NOT_PLAIN) else column


class _ExactName(sa.types.TypeDecorator[str]):
    """A name that is equal to itself only, also in a column that takes more for equal.

    Its collation is binary, so that an index of another collation in utf8mb4 still serves.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, collation: str) -> None:
        super().__init__()
        self.collation = collation

    def bind_expression(self, bindvalue: sa.BindParameter[str]) -> Element:
        return bindvalue.collate(self.collation)


def name_type(dialect_name: str) -> Type:
    """Return the type that a name is bound as, to be compared with texts."""
    collation = mysql.COLLATIONS.get(dialect_name)
    return sa.String() if collation is None else _ExactName(collation)


def _as_integer(name: str) -> int | None:
    """Read a name that is exactly how the integer is written, so that 7 is never 007."""
    plain = re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name)
    return int(name) if plain else None


def _unless_converted(name: str) -> str | None:
    """Refuse a name that SQLite would take for a number that is written otherwise, as 007 for 7."""
    try:
        float(name)
    except ValueError:
        return name
    return name if _as_integer(name) is not None else None


def _as_number(name: str) -> Decimal | None:
    try:
        return stored_quantity(name)
    except ValueError:
        return None


def _as_uuid(name: str) -> str | None:
    try:
        return name if str(uuid.UUID(name)) == name else None
    except ValueError:
        return None
