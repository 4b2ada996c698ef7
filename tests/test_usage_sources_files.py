"""The files source on a real DuckDB: the contract for each format and way to write times."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import duckdb

from usage_sources.contract import UsageEvent, UsageSourceContract
from usage_sources.files import FilesSource
from usage_sources.reading import microseconds

COLUMNS: dict[str, Any] = {
    "time_format": "iso",
    "subject_column": "subject",
    "time_column": "at",
    "metric_column": "metric",
    "quantity_column": "quantity",
    "unique_column": "visitor",
}
HEADER = ["subject", "metric", "at", "quantity", "visitor", "region"]


def rows_of(
    events: Sequence[UsageEvent], written: Callable[[datetime], object]
) -> list[tuple[Any, ...]]:
    """Return events as rows under the header."""
    return [
        (each.subject, each.metric, written(each.at), each.quantity, each.unique, each.region)
        for each in events
    ]


def parquet(path: Path, rows: Sequence[Sequence[Any]], time: str, quantity: str) -> str:
    """Write a Parquet file with columns of these types; return its path."""
    types = ["VARCHAR", "VARCHAR", time, quantity, "VARCHAR", "VARCHAR"]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(HEADER, types, strict=True))
    with duckdb.connect(":memory:") as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"CREATE TABLE events ({columns})")
        if rows:
            texts = [[None if each is None else str(each) for each in row] for row in rows]
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", texts)
        db.execute(f"COPY events TO '{path}' (FORMAT parquet)")
    return str(path)


def csv_file(path: Path, rows: Sequence[Sequence[Any]], delimiter: str = ",") -> str:
    """Write a CSV file with a header; return its path."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([HEADER, *rows])
    return str(path)


def jsonl(path: Path, rows: Sequence[Sequence[Any]]) -> str:
    """Write a JSON object per line, numbers with their digits; return its path."""
    lines = []
    for row in rows:
        numbers = {name: v for name, v in zip(HEADER, row, strict=True) if isinstance(v, Decimal)}
        others = {n: v for n, v in zip(HEADER, row, strict=True) if n not in numbers}
        text = json.dumps(others, ensure_ascii=False)[:-1]
        lines.append(text + "".join(f', "{n}": {v:f}' for n, v in numbers.items()) + "}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def naive(at: datetime) -> datetime:
    """Write a moment in UTC without saying so."""
    return at.astimezone(UTC).replace(tzinfo=None)


class EnginesThatFail:
    """What the suite needs of an engine that is down or slow."""

    settings: ClassVar[dict[str, Any]] = COLUMNS
    name: ClassVar[str] = "nothing.parquet"

    def source_down(self, tmp_path: Path) -> FilesSource:
        """Name a file that is not there."""
        return FilesSource(path=str(tmp_path / self.name), **self.settings)

    def source_slow(self, tmp_path: Path) -> FilesSource:
        """Name twenty million rows of text, packed small."""
        rows = b"S-1,calls,2024-05-02T00:00:00Z,1,ann,eu\n" * 100_000
        path = tmp_path / "slow.csv.gz"
        packed = gzip.compress(rows)
        path.write_bytes(gzip.compress(",".join(HEADER).encode() + b"\n") + packed * 200)
        return FilesSource(path=str(path), **{**COLUMNS, "timeout_seconds": 1.0})


class TestParquet(EnginesThatFail, UsageSourceContract):
    """Timestamps with a zone, and decimals."""

    settings: ClassVar[dict[str, Any]] = {**COLUMNS, "time_format": "native"}

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write the types that carry everything."""
        rows = rows_of(events, datetime.isoformat)
        path = parquet(tmp_path / "usage.parquet", rows, "TIMESTAMPTZ", "DECIMAL(38,6)")
        return FilesSource(path=path, **self.settings)


class TestParquetNanoseconds(UsageSourceContract):
    """Timestamps without a zone, finer than a microsecond, and doubles."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write 999 nanoseconds more than the suite says: they change nothing."""
        rows = rows_of(events, lambda at: f"{naive(at).isoformat(timespec='microseconds')}999")
        path = parquet(tmp_path / "usage.parquet", rows, "TIMESTAMP_NS", "DOUBLE")
        changed = {"time_format": "native", "naive_times": "utc"}
        return FilesSource(path=path, **{**COLUMNS, **changed})


class TestParquetEpoch(UsageSourceContract):
    """Whole microseconds, and quantities as text."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write integers."""
        path = parquet(tmp_path / "u.parquet", rows_of(events, microseconds), "BIGINT", "VARCHAR")
        return FilesSource(path=path, **{**COLUMNS, "time_format": "epoch_microseconds"})


class TestCsv(EnginesThatFail, UsageSourceContract):
    """Times as ISO text, each with its own offset."""

    name: ClassVar[str] = "nothing.csv"

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write times as Python does."""
        path = csv_file(tmp_path / "usage.csv", rows_of(events, datetime.isoformat))
        return FilesSource(path=path, **COLUMNS)


class TestCsvSeconds(UsageSourceContract):
    """Times as seconds with six decimals, fields between semicolons."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write the microseconds as a decimal fraction."""
        rows = rows_of(events, lambda at: f"{Decimal(microseconds(at)) / 1_000_000:.6f}")
        path = csv_file(tmp_path / "usage.csv", rows, ";")
        changed = {"time_format": "epoch_seconds", "delimiter": ";"}
        return FilesSource(path=path, **{**COLUMNS, **changed})


class TestJsonLines(EnginesThatFail, UsageSourceContract):
    """Times as ISO text without a zone, quantities as numbers."""

    name: ClassVar[str] = "nothing.jsonl"

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write times in UTC."""
        path = jsonl(tmp_path / "usage.jsonl", rows_of(events, lambda at: naive(at).isoformat()))
        return FilesSource(path=path, **{**COLUMNS, "naive_times": "utc"})


class TestJsonMilliseconds(UsageSourceContract):
    """Times as numbers of milliseconds, with a fraction down to microseconds."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write numbers with three decimals."""
        rows = rows_of(events, lambda at: Decimal(microseconds(at)) / 1000)
        path = jsonl(tmp_path / "usage.ndjson", rows)
        return FilesSource(path=path, **{**COLUMNS, "time_format": "epoch_milliseconds"})


class TestSeveralFiles(UsageSourceContract):
    """Every event in a file of its own month's folder, columns in any order."""

    resolution = timedelta(seconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Write one file for each half of the events, in two folders."""
        for number in (0, 1):
            folder = tmp_path / f"part {number}'s [x]"
            folder.mkdir(exist_ok=True)
            csv_file(folder / "usage.csv", rows_of(events[number::2], datetime.isoformat))
        return FilesSource(path=str(tmp_path / "**" / "*.csv"), **COLUMNS)
