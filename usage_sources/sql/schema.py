"""What a table's columns are in the database, and whether the settings can be right about them."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import mysql as mysql_types

from usage_sources.reading import nearest
from usage_sources.sql import mysql
from usage_sources.sql.database import Database
from usage_sources.sql.keys import Type
from usage_sources.sql.statements import Columns
from worker.errors import SourceInvalid

# What MySQL keeps as bytes, which need not be text.
_BYTES = (
    *(sa.LargeBinary, sa.BINARY, sa.VARBINARY, mysql_types.BIT),
    *(mysql_types.TINYBLOB, mysql_types.MEDIUMBLOB, mysql_types.LONGBLOB),
)


def column_types(
    connection: sa.Connection, database: Database, columns: Columns
) -> dict[str, Type]:
    """Look up every column of the table; raise unless those that the settings name are there."""
    inspector = sa.inspect(connection)
    schema, _, table = columns.table.rpartition(".")
    try:
        found = inspector.get_columns(table, schema=schema or None)
    except sa_exc.NoSuchTableError:
        tables = inspector.get_table_names(schema or None)
        views = inspector.get_view_names(schema or None)
        raise SourceInvalid(
            f"{database.place}: there is no table {columns.table}"
            f"{_nearest(table, [*tables, *views])}"
        ) from None
    types = {column["name"]: column["type"] for column in found}
    for setting, name in columns.named().items():
        if name not in types:
            raise SourceInvalid(
                f"{database.place} table {columns.table} has no column {name}"
                f"{_nearest(name, list(types))}; correct {setting}"
            )
    return types


def checked(columns: Columns, types: dict[str, Type], database: Database) -> Columns:
    """Return the columns with what their types say of zones; raise where a type cannot be right."""
    place = f"{database.place} table {columns.table}"
    if database.dialect_name in mysql.DIALECTS:
        for name in filter(None, (columns.subject, columns.metric)):
            _check_text(place, name, types[name])
    kind = types[columns.time]
    time = f"{place}: {columns.time} is {kind}"
    if columns.time_format.startswith("epoch_") and isinstance(kind, sa.String):
        raise SourceInvalid(f"{time}, which does not compare as numbers; use a numeric column")
    quantity = types.get(columns.quantity or "")
    inexact = isinstance(quantity, (sa.Float, sa.String))
    if quantity is not None and database.dialect_name in mysql.DIALECTS:  # it adds up even dates
        inexact = inexact or not isinstance(quantity, (sa.Integer, sa.Numeric))
    if inexact and database.dialect_name not in ("sqlite", "postgresql"):
        raise SourceInvalid(
            f"{place}: {columns.quantity} is {quantity}, which this database does"
            " not add exactly; store it as DECIMAL, or write a query that casts it"
        )
    if columns.time_format != "native":
        return columns
    if not isinstance(kind, sa.DateTime):
        raise SourceInvalid(f"{time}, not a timestamp; set another time_format")
    if not kind.timezone and columns.naive_times == "reject":
        raise SourceInvalid(f'{time} and has no zone; if it is UTC, set naive_times = "utc"')
    return replace(columns, naive_times="reject" if kind.timezone else "utc")


def _check_text(place: str, name: str, kind: Type) -> None:
    """Refuse names in bytes: those that are no UTF-8 would be read with ? in their place."""
    if isinstance(kind, _BYTES):
        raise SourceInvalid(
            f"{place}: {name} is {kind}, which holds bytes and no text;"
            f" make a view that converts it, as in CONVERT({name} USING utf8mb4) AS {name}"
        )


def _nearest(name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return f"; nearest: {', '.join(near)}" if near else ""
