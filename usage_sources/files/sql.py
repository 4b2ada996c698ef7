"""The SQL that counts usage in files, in DuckDB's words; pure text, no engine."""

# ruff: noqa: S608 - names are quoted and checked against the files, values are bound

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from usage_sources.reading import (
    EARLIEST,
    EPOCH_UNITS,
    LATEST,
    NAMES_LOOKED_AT,
    NaiveTimes,
    TimeFormat,
    microseconds,
)
from worker.domain import Aggregation, Period

FileFormat = Literal["parquet", "csv", "jsonl"]

EXACT_SUMS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")  # and unsigned; DuckDB adds them exactly
INTEGERS = (*EXACT_SUMS, *(f"U{name}" for name in EXACT_SUMS))
_NAMES = ("VARCHAR", "UUID", "BOOLEAN", "DATE", "ENUM", "HUGEINT", "UHUGEINT", "DECIMAL")
_LATEST_NS = datetime(2262, 1, 1, tzinfo=UTC)  # nanoseconds since 1970 end soon after
_ZONE = "(Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)"
_ISO = (
    "[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]+)?)?" + _ZONE
)
_NUMBER = "(-?[0-9]+(?:[.][0-9]+)?(?:[eE][-+]?[0-9]+)?)"


def quoted(name: str) -> str:
    """Write a column's name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Write a text as a constant."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files are written and where in them the events are, as the settings say."""

    format: FileFormat
    subject: str
    time: str
    metric: str | None
    quantity: str | None
    unique: str | None
    time_format: TimeFormat
    naive_times: NaiveTimes
    delimiter: str

    def named(self) -> list[str]:
        """List every column that the settings name, each once."""
        names = (self.subject, self.time, self.metric, self.quantity, self.unique)
        return list(dict.fromkeys(name for name in names if name is not None))

    def table(self, *, placed: bool = False) -> str:
        """Write the reading of all files; placed: with a column that tells the file."""
        place = ", filename = 'source_file'" if placed else ""
        match self.format:
            case "parquet":
                return (
                    f"read_parquet($files, union_by_name = true, hive_partitioning = false{place})"
                )
            case "csv":
                return (
                    f"read_csv($files, header = true, all_varchar = true, delim = "
                    f"{literal(self.delimiter)}, quote = '\"', escape = '\"', comment = '',"
                    " skip = 0, strict_mode = true, null_padding = false, ignore_errors = false,"
                    f" union_by_name = true, hive_partitioning = false{place})"
                )
            case "jsonl":
                return f"read_ndjson_objects($files, ignore_errors = false{place})"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """How the times of the files compare: an expression, and how a moment is bound beside it."""

    value: str  # NULL where it cannot be read
    cast: str  # of a bound parameter, with {} in its place
    write: Callable[[datetime], Any]
    latest: datetime = LATEST

    def bounds(self, period: Period) -> dict[str, Any]:
        """Write a period's edges as they are bound."""
        return {"start_at": self.write(period.start), "end_at": self.write(period.end)}

    def plausible(self) -> dict[str, Any]:
        """Write the first and the last moment that can be meant, as they are bound."""
        return {"earliest": self.write(EARLIEST), "latest": self.write(self.latest)}

    def between(self, start: str, end: str) -> str:
        """Write that the time is in the half-open stretch between two bound moments."""
        first, last = self.cast.format(f"${start}"), self.cast.format(f"${end}")
        return f"{self.value} >= {first} AND {self.value} < {last}"


def moments_of(layout: Layout, kind: str) -> Moments:
    """Choose how times of a column of this type compare; raise ValueError where they cannot."""
    column = quoted(layout.time)
    if layout.time_format in EPOCH_UNITS:
        return _epoch(column, kind, EPOCH_UNITS[layout.time_format])
    if layout.time_format == "iso":
        if kind != "VARCHAR":
            raise ValueError(f'is {kind}, not text; set time_format to "native" or "epoch_..."')
        return _iso(column, layout.naive_times)
    return _native(column, kind, layout.naive_times)


def _iso(column: str, naive_times: NaiveTimes) -> Moments:
    text = f"upper({column})"
    pattern = literal(_ISO if naive_times == "reject" else f"{_ISO}?")
    # A text without zone gets one here: what it means must not hang on the session's zone.
    zoned = text
    if naive_times == "utc":
        has_zone = f"regexp_matches({text}, {literal(_ZONE + '$')})"
        zoned = f"CASE WHEN {has_zone} THEN {text} ELSE {text} || 'Z' END"
    read = f"TRY_CAST({zoned} AS TIMESTAMPTZ)"
    return Moments(
        value=f"CASE WHEN regexp_full_match({text}, {pattern}) THEN {read} END",
        cast="CAST({} AS TIMESTAMPTZ)",
        write=_zoned,
    )


def _epoch(column: str, kind: str, unit: int) -> Moments:
    if kind in INTEGERS:
        return Moments(value=column, cast="{}", write=lambda at: -(-microseconds(at) // unit))
    if kind not in ("VARCHAR", "DOUBLE", "FLOAT") and not kind.startswith("DECIMAL"):
        raise ValueError(f"is {kind}, not a number")
    text = column if kind == "VARCHAR" else f"CAST({column} AS VARCHAR)"
    whole = f"CAST(regexp_extract({text}, '^[0-9]+') AS HUGEINT) * {unit}"
    digits = len(str(unit)) - 1  # of a fraction; those beyond microseconds are cut off
    part = f"rpad(substr(regexp_extract({text}, '[.]([0-9]*)', 1), 1, {digits}), {digits}, '0')"
    micro = f"{whole} + CAST({part} AS HUGEINT)" if digits else whole
    return Moments(
        value=f"CASE WHEN regexp_full_match({text}, '[0-9]{{1,18}}([.][0-9]*)?') THEN {micro} END",
        cast="{}",
        write=microseconds,
    )


def _native(column: str, kind: str, naive_times: NaiveTimes) -> Moments:
    zoned = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ", "TIMESTAMPTZ_NS": "TIMESTAMPTZ_NS"}
    nanoseconds = kind.endswith("_NS")
    latest = _LATEST_NS if nanoseconds else LATEST
    if kind in zoned:
        return Moments(
            value=column, cast=f"CAST({{}} AS {zoned[kind]})", write=_zoned, latest=latest
        )
    if not kind.startswith("TIMESTAMP"):
        raise ValueError(f"is {kind}, not a timestamp; set another time_format")
    if naive_times == "reject":
        raise ValueError(f'is {kind} and has no zone; if it is UTC, set naive_times = "utc"')
    same = kind if nanoseconds else "TIMESTAMP"
    value = column if kind == same else f"CAST({column} AS {same})"
    return Moments(value=value, cast=f"CAST({{}} AS {same})", write=_naive, latest=latest)


def _zoned(moment: datetime) -> str:
    return f"{_naive(moment)}Z"


def _naive(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="microseconds")


class FileStatements:
    """Builds the statements for files whose columns have these types."""

    def __init__(self, layout: Layout, types: Mapping[str, str]) -> None:
        self._layout = layout
        self._types = types
        self.moments = moments_of(layout, types[layout.time])
        self._subject = self.name(layout.subject)
        self._metric = self.name(layout.metric) if layout.metric else None

    def name(self, column: str) -> str:
        """Write a column as the text that names are compared with."""
        kind = self._types[column]
        if kind not in INTEGERS and not kind.startswith(_NAMES):
            raise ValueError(f"{column} is {kind}, which is not compared with a text")
        if self._layout.format == "csv":  # where an empty field is NULL to DuckDB
            return f"coalesce({quoted(column)}, '')"
        return quoted(column) if kind == "VARCHAR" else f"CAST({quoted(column)} AS VARCHAR)"

    def adds_up(self, aggregation: Aggregation) -> bool:
        """Tell whether DuckDB itself makes one number of a group, without any rounding."""
        if aggregation not in (Aggregation.SUM, Aggregation.MAX):
            return aggregation is not Aggregation.LAST
        kind = self._types[self._layout.quantity or ""]
        return kind in INTEGERS or kind.startswith("DECIMAL")

    def count(self, aggregation: Aggregation, filters: Sequence[str]) -> str:
        """Select for each group its names, its events, how many of them have a value, and that.

        Quantities that DuckDB would round are selected as they are, each with its events.
        """
        values = self._values(aggregation)
        keys = [*self.keys(), *(self.name(column) for column in filters)]
        asked = [
            f"{name} = ANY(${parameter})"
            for name, parameter in zip(keys, self.parameters(len(filters)), strict=True)
        ]
        window = self.moments.between("start_at", "end_at")
        rows = f"{self._relation(filters)} WHERE {' AND '.join([*asked, window])}"
        columns = ", ".join(keys)
        if aggregation is Aggregation.LAST:
            over = f"max({self.moments.value}) OVER (PARTITION BY {columns})"
            named = ", ".join(f"{key} AS key_{n}" for n, key in enumerate(keys))
            rows = (
                f"(SELECT {named}, {values}, {self.moments.value} = {over} AS is_last FROM {rows})"
            )
            columns = ", ".join(f"key_{n}" for n in range(len(keys)))
            values = "is_last, value"
        return f"SELECT {columns}, count(*) AS events, {values} FROM {rows} GROUP BY ALL"

    def keys(self) -> list[str]:
        """Write what usage is keyed by: subject, and metric where there is a column for it."""
        return [self._subject] if self._metric is None else [self._subject, self._metric]

    def parameters(self, filters: int) -> list[str]:
        """Name the parameters that hold the names asked for, in the order of the columns."""
        names = ["subjects", "metrics"][: len(self.keys())]
        return [*names, *(f"filter_{n}" for n in range(1, filters + 1))]

    def look(self) -> str:
        """Select the metrics of the subjects, and how many rows have an odd time or a key twice."""
        keys = ", ".join(self.keys())
        repeats = "count(*) FILTER (source_repeats)" if self._layout.format == "jsonl" else "0"
        return (
            f"SELECT {keys}, count(*) FILTER ({self.odd_time()}), {repeats}"
            f" FROM {self._relation()} WHERE {self._subject} = ANY($subjects) GROUP BY ALL"
        )

    def odd_time(self) -> str:
        """Write that a time is missing, cannot be read or cannot be meant."""
        return f"({self.moments.between('earliest', 'latest')}) IS NOT TRUE"

    def no_metric(self) -> str:
        """Write that the metric is missing."""
        return f"coalesce({self._metric}, '') = ''"

    def whole(self, present: Sequence[str]) -> str:
        """Select the number of rows, of nobody's rows, the metrics asked for, columns' values."""
        metrics = "[]"
        if self._metric is not None:
            metrics = f"list(DISTINCT {self._metric}) FILTER ({self._metric} = ANY($metrics))"
        counts = "".join(f", count({quoted(name)})" for name in present)
        nobody = f"count(*) FILTER (coalesce({self._subject}, '') = '')"
        return f"SELECT count(*), {nobody}, {metrics}{counts} FROM {self._relation(present)}"

    def metrics(self) -> str:
        """Select the first names of metrics that the files have."""
        return f"SELECT DISTINCT {self._metric} FROM {self._relation()} LIMIT {NAMES_LOOKED_AT}"

    def holder(self, condition: str, column: str, filters: Sequence[str] = ()) -> str:
        """Select file and value of a row of the subjects for which the condition holds."""
        return (
            f"SELECT source_file, CAST({quoted(column)} AS VARCHAR)"
            f" FROM {self._relation(filters, placed=True)}"
            f" WHERE {self._subject} = ANY($subjects) AND ({condition}) LIMIT 1"
        )

    def row_of(self, condition: str, filters: Sequence[str] = ()) -> str:
        """Select the number, in its one file, of the first row for which the condition holds."""
        numbered = f"SELECT *, row_number() OVER () AS source_row FROM {self._relation(filters)}"
        return (
            f"SELECT min(source_row) FROM ({numbered})"
            f" WHERE {self._subject} = ANY($subjects) AND ({condition})"
        )

    def _values(self, aggregation: Aggregation) -> str:
        if aggregation is Aggregation.COUNT:
            return "count(*) AS present, count(*) AS value"
        if aggregation is Aggregation.UNIQUE:
            unique = f"nullif(CAST({quoted(self._layout.unique or '')} AS VARCHAR), '')"
            return f"count({unique}) AS present, count(DISTINCT {unique}) AS value"
        column = quoted(self._layout.quantity or "")
        if not self.adds_up(aggregation):
            return f"CAST({column} AS VARCHAR) AS value"
        total = "sum" if aggregation is Aggregation.SUM else "max"
        return f"count({column}) AS present, {total}({column}) AS value"

    def _relation(self, more: Sequence[str] = (), *, placed: bool = False) -> str:
        """Write where rows come from; a JSON object becomes a row of the columns needed."""
        table = self._layout.table(placed=placed)
        if self._layout.format != "jsonl":
            return table
        columns = [
            f"{_json_text(name, exact=name in (self._layout.time, self._layout.quantity))}"
            f" AS {quoted(name)}"
            for name in dict.fromkeys([*self._layout.named(), *more])
        ]
        columns.append("len(json_keys(json)) <> list_unique(json_keys(json)) AS source_repeats")
        return (
            f"(SELECT {', '.join([*columns, *(['source_file'] if placed else [])])} FROM {table})"
        )


def _json_text(key: str, *, exact: bool) -> str:
    """Write the text that a JSON object has under a key; exact: a number as it is written.

    DuckDB reads a number with a fraction as a double. So its digits are taken from the line.
    """
    pointer = literal("/" + key.replace("~", "~0").replace("/", "~1"))
    text = f"json_extract_string(json, {pointer})"
    if not exact:
        return text
    pattern = literal(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:\s*" + _NUMBER)
    found = f"list_distinct(regexp_extract_all(CAST(json AS VARCHAR), {pattern}, 1))"
    same = f"list_filter({found}, lambda x: CAST(x AS DOUBLE) = CAST({text} AS DOUBLE))"
    written = f"CASE WHEN len({same}) = 1 THEN {same}[1] ELSE {text} || ', digits unknown' END"
    return f"CASE WHEN json_type(json, {pointer}) = 'DOUBLE' THEN {written} ELSE {text} END"
