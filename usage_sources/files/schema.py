"""What columns the files have, looked up once for each file; and where a bad row stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from usage_sources.files.engine import Found, Session
from usage_sources.files.sql import FileStatements, Layout, quoted
from usage_sources.reading import (
    EPOCH_UNITS,
    epoch_microseconds,
    iso_microseconds,
    nearest,
    shown,
)
from worker.errors import SourceInvalid

_SHOWN = "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {})"


class FilesSchema:
    """Tells the columns that all files have in common, with their types."""

    def __init__(self, place: str, layout: Layout) -> None:
        self._place = place
        self._layout = layout
        self._seen: dict[Found, dict[str, str]] = {}  # of files that are unchanged

    def statements(
        self, session: Session, files: Sequence[Found], filters: Sequence[str]
    ) -> FileStatements:
        """Build the statements, if every file has every column in one and the same type."""
        names = list(dict.fromkeys([*self._layout.named(), *filters]))
        try:
            if self._layout.format == "jsonl":  # every object has its own columns
                types = dict.fromkeys(names, "VARCHAR")
            else:
                types = self._types(session, files, names)
            statements = FileStatements(self._layout, types)
            for name in filters:
                statements.name(name)
        except ValueError as error:
            raise SourceInvalid(f"{self._place}: {error}") from None
        return statements

    def _types(
        self, session: Session, files: Sequence[Found], names: Sequence[str]
    ) -> dict[str, str]:
        self._seen = {file: self._columns(session, file) for file in files}
        first = files[0]
        types = self._seen[first]
        for file, columns in self._seen.items():
            for name in names:
                if name not in columns:
                    near = ", ".join(nearest(name, list(columns)))
                    raise SourceInvalid(
                        f"{self._place}: {file.path} has no column {name}; nearest: {near}"
                    )
                if columns[name] != types[name]:
                    raise SourceInvalid(
                        f"{self._place}: {name} is {types[name]} in {first.path} and"
                        f" {columns[name]} in {file.path}; write it in one type"
                    )
        return types

    def _columns(self, session: Session, file: Found) -> dict[str, str]:
        if file in self._seen:
            return self._seen[file]
        look = _SHOWN.format(self._layout.table())
        columns: dict[str, str] = dict(session.rows(look, {"files": [file.path]}))
        return columns


def row_fault(
    session: Session,
    statements: FileStatements,
    layout: Layout,
    fault: tuple[str, str],
    bound: Mapping[str, Any],
    reason: str = "",
) -> str:
    """Name file, row and value of the first row that has a fault: a column and a condition."""
    column, condition = fault
    held = session.rows(statements.holder(condition, column), bound)
    if not held:
        return f"column {column} {reason}"
    path, value = held[0]
    ((row,),) = session.rows(statements.row_of(condition), {**bound, "files": [path]})
    reason = reason or _reason(layout, value)
    return f"{path} row {row}, column {column}: {shown(value)} {reason}"


def quantity_fault(layout: Layout) -> tuple[str, str]:
    """Describe the rows that hold the bound value as their quantity."""
    column = layout.quantity or ""
    return column, f"CAST({quoted(column)} AS VARCHAR) IS NOT DISTINCT FROM $value"


def _reason(layout: Layout, value: Any) -> str:
    """Say why a time cannot be read, or a name is none."""
    if value is None or value == "":
        return "is missing" if value is None else "is empty"
    try:
        if layout.time_format in EPOCH_UNITS:
            epoch_microseconds(value, layout.time_format)
        elif layout.time_format == "iso":
            iso_microseconds(value, layout.naive_times)
    except ValueError as error:
        return str(error)
    return "is no time between 1980 and 9999 in a form that is read exactly"
