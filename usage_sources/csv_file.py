"""Usage counted in one CSV file with a row per event, read as a stream."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

from usage_sources.reading import (
    EPOCH_UNITS,
    NAMES_LOOKED_AT,
    NaiveTimes,
    digest,
    empty_value,
    epoch_microseconds,
    exact_quantity,
    exact_sum,
    iso_microseconds,
    microseconds,
    never_used,
    no_metrics_apart,
    shown,
)
from worker.domain import Aggregation, Evidence, Tally, UsageQuery, utc_text
from worker.errors import SourceInvalid, SourceUnavailable

_OF_QUANTITY = (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST)


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """Counts usage in a CSV file, UTF-8 with a header; each field is a setting."""

    # The file; it is read anew for every invoice, so replacing it is enough.
    path: str
    # Column with the id that usage is keyed by.
    subject_column: str
    # Column with the moment the usage occurred.
    time_column: str
    # How the times are written: "iso", "epoch_seconds", "epoch_milliseconds", "epoch_microseconds".
    time_format: Literal["iso", "epoch_seconds", "epoch_milliseconds", "epoch_microseconds"]
    # What a time without a zone means: "reject" makes it an error, "utc" reads it as UTC.
    naive_times: NaiveTimes = "reject"
    # Column with the metric's name; without it the file holds one metric only.
    metric_column: str | None = None
    # Metrics that exist although no event of theirs is in the file; any other that is in no row at
    # all is an error, since a misspelt name must not count as 0.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # Column with each event's quantity; needed to count sum, max and last.
    quantity_column: str | None = None
    # Column whose distinct values are counted; needed to count unique.
    unique_column: str | None = None
    # The one character between two fields.
    delimiter: str = ","
    # Everything older than the file's last change by this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError('delimiter must be one character, as in "," or ";"')
        if self.known_metrics and self.metric_column is None:
            raise ValueError("known_metrics needs metric_column")
        if self.watermark_lag_seconds is not None and not self.watermark_lag_seconds >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query from one pass over the file."""
        self._check_columns(queries)
        asked_at = self.now()
        gatherings = [_Gathering(query) for query in queries]
        with _opened(self.path) as file:
            before = os.fstat(file.fileno())
            seen = self._gather(file, gatherings)
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SourceUnavailable(f"csv {self.path} was written while it was read")
        self._check_metrics(seen, gatherings)
        return [self._tally(each, seen.subjects, asked_at, after) for each in gatherings]

    def watermark(self) -> datetime | None:
        """Return the file's last change less the lag that the settings state; None: unsaid."""
        if self.watermark_lag_seconds is None:
            return None
        with _opened(self.path) as file:
            return self._watermark(os.fstat(file.fileno()))

    def check(self) -> None:
        """Raise unless the file is there and its header has every column of the settings."""
        with _opened(self.path) as file:
            self._header(_rows(file, self.path, self.delimiter))

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def _gather(self, file: IO[str], gatherings: list[_Gathering]) -> _Seen:
        """Give every row to the queries that ask for it; return which names have any."""
        rows = _rows(file, self.path, self.delimiter)
        place = self._header(rows, {name for each in gatherings for name, _ in each.query.filters})
        wanted: dict[tuple[str, str], list[_Gathering]] = {}
        for each in gatherings:
            metric = each.query.metric if self.metric_column else ""
            wanted.setdefault((each.query.subject, metric), []).append(each)
        subjects = {each.query.subject for each in gatherings}
        seen = _Seen({each.query.metric for each in gatherings})
        for line, row in rows:
            metric = row[place[self.metric_column]] if self.metric_column else ""
            seen.add_metric(metric)
            subject = row[place[self.subject_column]]
            if subject not in subjects:
                continue
            seen.subjects.add(subject)
            if asking := wanted.get((subject, metric)):
                self._add(line, {name: row[at] for name, at in place.items()}, asking)
        return seen

    def _check_metrics(self, seen: _Seen, gatherings: list[_Gathering]) -> None:
        if self.metric_column is None:
            return
        exist = seen.metrics.union(self.known_metrics)
        if missing := sorted({each.query.metric for each in gatherings} - exist):
            place, column = f"csv {self.path}", self.metric_column
            raise SourceInvalid(never_used(place, column, missing, seen.metrics))

    def _add(self, line: int, row: dict[str, str], asking: list[_Gathering]) -> None:
        at = self._read(line, self.time_column, row, self._microseconds)
        for each in asking:
            if not each.start <= at < each.end or not each.is_passed_by(row):
                continue
            column = self._valued_column(each.query.aggregation)
            reader = _present if column == self.unique_column else exact_quantity
            value = self._read(line, column, row, reader) if column else None
            try:
                each.add(at, value)
            except ValueError as error:
                raise SourceInvalid(f"csv {self.path} line {line}: {column} {error}") from None

    def _read(
        self, line: int, column: str, row: dict[str, str], reader: Callable[[str], Any]
    ) -> Any:
        try:
            return reader(row[column])
        except ValueError as error:
            raise SourceInvalid(
                f"csv {self.path} line {line}, column {column}: {shown(row[column])} {error}"
            ) from None

    def _microseconds(self, text: str) -> int:
        if self.time_format in EPOCH_UNITS:
            return epoch_microseconds(text, self.time_format)
        return iso_microseconds(text, self.naive_times)

    def _header(
        self, rows: Iterator[tuple[int, list[str]]], filters: Collection[str] = ()
    ) -> dict[str, int]:
        """Read the first row; return where each column of the settings and filters stands."""
        _, header = next(rows, (0, []))
        if not header:
            raise SourceInvalid(f"csv {self.path} is empty; its first line must name the columns")
        names = dict.fromkeys([*self._columns(), *sorted(filters)])
        for name in names:
            if header.count(name) != 1:
                has = "has no column" if name not in header else "has more than one column"
                told = f"csv {self.path} line 1 {has} {name or shown(name)}"
                alone = "; see delimiter" if len(header) == 1 else ""
                raise SourceInvalid(f"{told}; it has {', '.join(header)[:300]}{alone}")
        return {name: header.index(name) for name in names}

    def _columns(self) -> list[str]:
        names = (self.metric_column, self.quantity_column, self.unique_column)
        return [self.subject_column, self.time_column, *(name for name in names if name)]

    def _valued_column(self, aggregation: Aggregation) -> str | None:
        if aggregation in _OF_QUANTITY:
            return self.quantity_column
        return self.unique_column if aggregation is Aggregation.UNIQUE else None

    def _check_columns(self, queries: Sequence[UsageQuery]) -> None:
        for aggregation in {query.aggregation for query in queries}:
            if self.metric_column is None:
                self._check_apart([each for each in queries if each.aggregation is aggregation])
            if aggregation is not Aggregation.COUNT and not self._valued_column(aggregation):
                setting = "quantity" if aggregation in _OF_QUANTITY else "unique"
                raise SourceInvalid(f"csv {self.path}: {aggregation} needs {setting}_column")

    def _check_apart(self, queries: Sequence[UsageQuery]) -> None:
        """Refuse to give charges that ask for different metrics one and the same number."""
        for filters in {query.filters for query in queries}:
            same = [query for query in queries if query.filters == filters]
            if fault := no_metrics_apart("the file", same):
                raise SourceInvalid(f"csv {self.path}: {fault}; set metric_column")

    def _watermark(self, file: os.stat_result) -> datetime | None:
        lag = self.watermark_lag_seconds
        return None if lag is None else _modified_at(file) - timedelta(seconds=lag)

    def _tally(
        self, gathering: _Gathering, known: set[str], asked_at: datetime, file: os.stat_result
    ) -> Tally:
        query = gathering.query
        value: Decimal | None = None
        events: int | None = None
        if query.subject in known:
            value, events = self._value(gathering), gathering.events
        evidence = Evidence(
            source=f"csv {Path(self.path).absolute()}",
            query=self._question(query),
            parameters={
                "subject": query.subject,
                "metric": query.metric,
                "start": utc_text(query.period.start),
                "end": utc_text(query.period.end),
                **({"filters": dict(query.filters)} if query.filters else {}),
                "file_bytes": file.st_size,
                "file_modified_at": utc_text(_modified_at(file)),
            },
            asked_at=asked_at,
            digest=digest(query, value, events),
            watermark=self._watermark(file),
        )
        return Tally(query=query, value=value, events=events, evidence=evidence)

    def _value(self, gathering: _Gathering) -> Decimal:
        try:
            return gathering.result()
        except ValueError as error:
            query = gathering.query
            raise SourceInvalid(
                f"csv {self.path}: subject {shown(query.subject)}, {shown(query.metric)}"
                f" in {query.period}: {error}"
            ) from None

    def _question(self, query: UsageQuery) -> str:
        column = self._valued_column(query.aggregation) or "rows"
        metric = f" and {self.metric_column} = :metric" if self.metric_column else ""
        where = f"{self.subject_column} = :subject{metric} and :start <= {self.time_column} < :end"
        filters = " and each column in :filters has its value" if query.filters else ""
        return f"{query.aggregation} of {column} where {where}{filters}"


class _Seen:
    """Which names have any row: the subjects asked for, and the metrics, as many as matter."""

    def __init__(self, asked: set[str]) -> None:
        self.subjects: set[str] = set()
        self.metrics: set[str] = set()
        self._asked = asked

    def add_metric(self, name: str) -> None:
        """Keep a metric that is asked for, or one of the first others."""
        if name in self._asked or len(self.metrics) < NAMES_LOOKED_AT:
            self.metrics.add(name)


@dataclass(kw_only=False)
class _Gathering:
    """What one query has found so far."""

    query: UsageQuery
    events: int = 0
    _value: Decimal | None = None
    _latest: int = 0
    _rivals: set[Decimal] = field(default_factory=set)  # the quantities of the latest moment
    _distinct: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.start = microseconds(self.query.period.start)
        self.end = microseconds(self.query.period.end)

    def is_passed_by(self, row: dict[str, str]) -> bool:
        """Tell whether the row has the values that the query filters by."""
        return all(row[column] == value for column, value in self.query.filters)

    def add(self, at: int, value: Any) -> None:
        """Take one event of the period in."""
        self.events += 1
        match self.query.aggregation:
            case Aggregation.SUM:
                self._value = exact_sum(self._value or Decimal(0), value)
            case Aggregation.MAX:
                self._value = value if self._value is None else max(self._value, value)
            case Aggregation.UNIQUE:
                self._distinct.add(value)
            case Aggregation.LAST if self.events == 1 or at > self._latest:
                self._latest, self._rivals = at, {value}
            case Aggregation.LAST if at == self._latest:
                self._rivals.add(value)

    def result(self) -> Decimal:
        """Return the number; raise ValueError where the events do not make one."""
        if not self.events:
            return empty_value(self.query.aggregation)
        match self.query.aggregation:
            case Aggregation.COUNT:
                return Decimal(self.events)
            case Aggregation.UNIQUE:
                return Decimal(len(self._distinct))
            case Aggregation.LAST if len(self._rivals) > 1:
                both = " and ".join(str(each) for each in sorted(self._rivals))
                raise ValueError(f"the last value is ambiguous: {both} have the same time")
            case Aggregation.LAST:
                return next(iter(self._rivals))
        return self._value or Decimal(0)


def _present(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _modified_at(file: os.stat_result) -> datetime:
    return datetime.fromtimestamp(file.st_mtime_ns // 1_000_000_000, UTC)


def _opened(path: str) -> IO[str]:
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except FileNotFoundError:  # it may be on its way: an export is not always replaced at once
        raise SourceUnavailable(f"csv {path} is not there; check the setting path") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise SourceInvalid(f"csv {path}: {error.strerror}; check the setting path") from None
    except OSError as error:
        raise SourceUnavailable(f"csv {path} cannot be opened: {error.strerror}") from None


def _rows(file: IO[str], path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row with its line number; refuse rows that are not as long as the first."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    width = 0
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                raise SourceInvalid(
                    f"csv {path} line {reader.line_num} has {len(row)} fields, not {width}"
                )
            if row:
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceInvalid(f"csv {path} after line {reader.line_num}: {error}") from None
    except OSError as error:
        raise SourceUnavailable(f"csv {path} cannot be read: {error.strerror}") from None
