"""Files of usage events, CSV or JSON lines, read record by record from any offset."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from worker.cloudevents import EventRejected, moment, parsed_json, quantity, text_of, usage_event
from worker.errors import PermanentError
from worker.metering import UsageEvent

FileFormat = Literal["csv", "jsonl"]
SUFFIXES: Mapping[str, FileFormat] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COLUMNS = ("source", "id", "subject", "type", "time")  # and "value", 1 where there is none
_ONE = Decimal(1)
_LONGEST_LINE = 1024 * 1024
_ADD = "if the file is complete, add a newline and run again"
_CR_ALONE = "its lines end in a carriage return alone; write them with a newline and run again"


class Record(NamedTuple):
    """One record of a file: the event in it, or why there is none."""

    line: int  # of the file, from 1; the last one where a record has several
    offset: int  # in bytes, of what follows it
    event: UsageEvent | None
    fault: str = ""
    unfinished: bool = False  # it may still be written


def format_of(path: Path) -> FileFormat | None:
    """Tell a file's format from its name."""
    return SUFFIXES.get(path.suffix.lower())


def records(file: BinaryIO, kind: FileFormat, offset: int) -> Iterator[Record]:
    """Read the records that begin at an offset, which must be one that a record ended at.

    The last record is called unfinished when its end is not there yet. Raises PermanentError when
    a CSV file has no header with the columns of an event.
    """
    return _csv(file, offset) if kind == "csv" else _json_lines(file, offset)


class _Lines:
    """The whole lines of a file from an offset, counted."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        file.seek(0)
        self._file = file
        self.number = _lines_before(file, offset)
        self.offset = offset
        self.rest: bytes | None = None  # behind the last whole line; None: not read so far

    def __iter__(self) -> Iterator[bytes]:
        readline = self._file.readline
        while (line := readline(_LONGEST_LINE)).endswith(b"\n"):
            self.number += 1
            self.offset += len(line)
            yield line
        self.rest = line

    def left(self) -> Record | None:
        """Return what stands behind the last whole line; None: nothing but blanks."""
        rest = (self.rest or b"").strip()
        if not rest:
            return None
        if b"\r" in rest:
            fault, unfinished = f"has no end: {_CR_ALONE}", True
        elif len(self.rest or b"") == _LONGEST_LINE:
            told = f"it is longer than {_LONGEST_LINE} bytes, and nothing behind it was read"
            fault, unfinished = told, False
        else:
            fault, unfinished = f"has no end: {_ADD}", True
        return Record(self.number + 1, self.offset, None, fault, unfinished)


def _lines_before(file: BinaryIO, offset: int) -> int:
    """Count the lines up to an offset, and stand there."""
    lines, left = 0, offset
    while left and (part := file.read(min(left, _LONGEST_LINE))):
        lines += part.count(b"\n")
        left -= len(part)
    return lines


def _json_lines(file: BinaryIO, offset: int) -> Iterator[Record]:
    lines = _Lines(file, offset)
    for line in lines:
        if line.isspace():
            continue
        try:
            event = usage_event(parsed_json(line))
        except EventRejected as error:
            yield Record(lines.number, lines.offset, None, str(error))
        else:
            yield Record(lines.number, lines.offset, event)
    if left := lines.left():
        yield left


def _csv(file: BinaryIO, offset: int) -> Iterator[Record]:
    header = _header(file)
    fields = [header.index(name) for name in COLUMNS]
    value_at = header.index("value") if "value" in header else None
    lines = _Lines(file, max(offset, file.tell()))
    rows = csv.reader((line.decode(errors="surrogateescape") for line in lines), strict=True)
    while True:
        began = lines.number + 1
        try:
            row = next(rows, None)
            if row is None:
                break
            if not row:
                continue
            if len(row) != len(header):
                raise EventRejected(f"it has {len(row)} fields, and the header {len(header)}")
            event = _event(row, fields, value_at)
        except EventRejected as error:
            yield Record(lines.number, lines.offset, None, str(error))
        except csv.Error as error:
            if lines.rest is not None:
                fault = f"has no end: a quote is not closed; {_ADD}"
                yield Record(began, lines.offset, None, fault, unfinished=True)
                break
            yield Record(began, lines.offset, None, f"it is not CSV: {error}")
        else:
            yield Record(lines.number, lines.offset, event)
    if left := lines.left():
        yield left


def _header(file: BinaryIO) -> list[str]:
    file.seek(0)
    line = file.readline(_LONGEST_LINE)
    if b"\r" in line.rstrip(b"\r\n") or line.endswith(b"\r"):
        raise PermanentError(f"line 1 cannot be read: {_CR_ALONE}")
    try:
        header = next(csv.reader([line.decode("utf-8-sig", errors="replace")]), [])
    except csv.Error as error:
        raise PermanentError(f"line 1 is not CSV: {error}") from None
    missing = [name for name in COLUMNS if header.count(name) != 1]
    if missing or header.count("value") > 1:
        raise PermanentError(
            f"the file's first line must name each of {', '.join(COLUMNS)} once, and value where"
            f" quantities are not 1; not so: {', '.join(missing) or 'value'}{_separated(header)}"
        )
    if not line.endswith(b"\n"):
        raise PermanentError(f"line 1 has no end: {_ADD}")
    return header


def _separated(header: Sequence[str]) -> str:
    others = len(header) == 1 and set(";\t|") & set(header[0])
    return "; fields are separated by commas" if others else ""


def _event(row: Sequence[str], fields: Sequence[int], value_at: int | None) -> UsageEvent:
    source, name, subject, metric, time = fields
    return UsageEvent(
        source=text_of(row[source], "source"),
        id=text_of(row[name], "id"),
        subject=text_of(row[subject], "subject"),
        metric=text_of(row[metric], "type"),
        at=moment(row[time]),
        quantity=_ONE if value_at is None else quantity(row[value_at], "value"),
    )
