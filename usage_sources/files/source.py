"""Usage counted in Parquet, CSV and JSON files with a row per event, by DuckDB."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import ClassVar

from usage_sources.files.engine import Engine, Found, S3Access, changed_at, duckdb, is_url
from usage_sources.files.reader import Answer, FilesReader, Reading
from usage_sources.files.sql import FileFormat, Layout
from usage_sources.reading import NaiveTimes, TimeFormat, digest, nobody, nothing_used
from worker.domain import Evidence, Tally, UsageQuery, utc_text

_SUFFIXES: dict[str, FileFormat] = {
    "parquet": "parquet",
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}
_FILES_TOLD = 100  # one by one in the evidence; of more, a digest of the list
_LISTED = (
    "The statement lists each quantity with its events, because DuckDB would add them as floats;"
    " they were added exactly from the list."
)


@dataclass(frozen=True, kw_only=True)
class FilesSource:
    """Counts usage in files that all have the same columns; each field is a setting."""

    extra: ClassVar[str] = "files"  # what must be installed beside

    # A file, or a pattern with * and **, or a list of them; a URL with s3:// or https://.
    path: str | tuple[str, ...]
    # Column with the id that usage is keyed by.
    subject_column: str
    # Column with the moment the usage occurred.
    time_column: str
    # How times are stored: "iso" (text), "epoch_seconds", "epoch_milliseconds",
    # "epoch_microseconds", or "native" (a timestamp type of Parquet).
    time_format: TimeFormat
    # "parquet", "csv" or "jsonl" (an object per line); default: what the names end in.
    format: FileFormat | None = None
    # What a time without a zone means: "reject" makes it an error, "utc" reads it as UTC.
    naive_times: NaiveTimes = "reject"
    # Column with the metric's name; without it the files hold one metric only.
    metric_column: str | None = None
    # Metrics that exist although no event of theirs is in the files; any other that is in no row
    # at all is an error, since a misspelt name must not count as 0.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # Column with each event's quantity; needed to count sum, max and last.
    quantity_column: str | None = None
    # Column whose distinct values are counted; needed to count unique.
    unique_column: str | None = None
    # The one character between two fields of CSV.
    delimiter: str = ","
    # Everything older than the files' latest change by this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None
    # How long one count may take in all.
    timeout_seconds: float = 60.0
    # How much memory DuckDB may use, as in "2GB"; default: most of the machine's.
    memory_limit: str | None = None
    # Whether a path may be a URL; DuckDB needs its extension httpfs, which is never fetched here.
    allow_network: bool = False
    # Who reads an s3:// path: the id of its access key.
    s3_key_id: str | None = None
    # The access key's secret, and a session's token where there is one.
    s3_secret: str | None = field(default=None, repr=False, metadata={"secret": True})
    s3_session_token: str | None = field(default=None, repr=False, metadata={"secret": True})
    # The region, and the host of a store that is not Amazon's.
    s3_region: str | None = None
    s3_endpoint: str | None = None

    def __post_init__(self) -> None:
        duckdb()
        if not self._paths or not all(self._paths):
            raise ValueError("path must name a file, a pattern or a list of them")
        for path in self._paths:
            self._check_path(path)
        formats = {_format_of(path) for path in self._paths}
        if self.format is None and (None in formats or len(formats) > 1):
            raise ValueError("format is needed where path ends in no or more than one of its names")
        if self._format != "parquet" and self.time_format == "native":
            raise ValueError(
                f'time_format: {self._format} has no timestamps; use "iso" or "epoch_..."'
            )
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError('delimiter must be one character, as in "," or ";"')
        if self.known_metrics and self.metric_column is None:
            raise ValueError("known_metrics needs metric_column")
        if self.watermark_lag_seconds is not None and not self.watermark_lag_seconds >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")
        if not 0 < self.timeout_seconds <= 86_400:
            raise ValueError("timeout_seconds must be more than 0, and a day at most")
        limit = self.memory_limit
        if limit is not None and not re.fullmatch(r"[1-9][0-9]*([.][0-9]+)? ?[KMGT]i?B", limit):
            raise ValueError('memory_limit must be a number and a unit, as in "2GB"')

    def _check_path(self, path: str) -> None:
        if not is_url(path):
            return
        if not path.startswith(("s3://", "https://")):
            raise ValueError("path may be a path of this machine, or a URL with s3:// or https://")
        host = path.split("//", 1)[1].split("/", 1)[0]
        if "@" in host or re.search(r"[?&][^/]*=", path):
            raise ValueError("path must hold no user, password or query: it is shown to people")
        if not self.allow_network:
            raise ValueError("path is a URL; set allow_network = true if it is to be read")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query, from one state of the files."""
        asked_at = self.now()
        with self._engine.reading() as session:
            reading = self._reader.read(session, queries) if queries else None
        if reading is None:
            return []
        notes = self._notes(reading)
        return [self._tally(each, reading, asked_at, notes) for each in reading.answers]

    def watermark(self) -> datetime | None:
        """Return the files' latest change less the lag that the settings state; None: unsaid."""
        if self.watermark_lag_seconds is None:
            return None
        with self._engine.reading() as session:
            return self._watermark(self._engine.files(session))

    def check(self) -> None:
        """Ask for nobody's usage, so that every file is looked at once."""
        with self._engine.reading() as session:
            self._reader.check(session, nobody(self.now()))

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Stop the engine; the next use starts a new one."""
        self._engine.close()

    @property
    def _paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def _format(self) -> FileFormat:
        return self.format or _format_of(self._paths[0]) or "parquet"

    @cached_property
    def _engine(self) -> Engine:
        access = S3Access(
            key_id=self.s3_key_id,
            secret=self.s3_secret,
            session_token=self.s3_session_token,
            region=self.s3_region,
            endpoint=self.s3_endpoint,
        )
        return Engine(self._paths, self.timeout_seconds, self.memory_limit, access)

    @cached_property
    def _reader(self) -> FilesReader:
        layout = Layout(
            format=self._format,
            subject=self.subject_column,
            time=self.time_column,
            metric=self.metric_column,
            quantity=self.quantity_column,
            unique=self.unique_column,
            time_format=self.time_format,
            naive_times=self.naive_times,
            delimiter=self.delimiter,
        )
        return FilesReader(self._engine, layout, self.known_metrics)

    def _watermark(self, files: Sequence[Found]) -> datetime | None:
        lag = self.watermark_lag_seconds
        if lag is None:
            return None
        return max(changed_at(file) for file in files) - timedelta(seconds=lag)

    def _notes(self, reading: Reading) -> tuple[str, ...]:
        """Tell which files were read, and which of their rows nobody is billed for."""
        told = [
            f"{file.path}: {file.size} bytes, changed {utc_text(changed_at(file))}"
            for file in reading.files
        ]
        notes = tuple(f"Read {each}." for each in told)
        if len(told) > _FILES_TOLD:
            notes = (_summary(reading.files, told),)
        if nobody := reading.rows_of_nobody:
            notes += (f"{nobody} rows have no {self.subject_column}; they are nobody's.",)
        return notes

    def _tally(
        self, answer: Answer, reading: Reading, asked_at: datetime, notes: tuple[str, ...]
    ) -> Tally:
        query, value, events = answer.query, answer.value, answer.events
        if query.subject not in reading.known:
            value, events = None, None
        elif value is None:
            value, events = nothing_used(self._reader.place, query), 0
        if answer.is_listed:
            notes += (_LISTED,)
        evidence = Evidence(
            source=self._reader.place,
            query=answer.text,
            parameters=answer.parameters,
            asked_at=asked_at,
            digest=digest(query, value, events),
            watermark=self._watermark(reading.files),
            notes=notes,
        )
        return Tally(query=query, value=value, events=events, evidence=evidence)


def _format_of(path: str) -> FileFormat | None:
    """Tell the format from a name's end; a compressed file ends in .gz or .zst after it."""
    name = re.sub(r"[.](gz|zst)$", "", path.lower())
    return _SUFFIXES.get(name.rpartition(".")[2])


def _summary(files: Sequence[Found], told: Sequence[str]) -> str:
    listing = hashlib.sha256("\n".join(told).encode()).hexdigest()
    latest = max(map(changed_at, files))
    return (
        f"Read {len(files)} files of {sum(file.size for file in files)} bytes in all, the latest"
        f" changed {utc_text(latest)}; the SHA-256 of their sorted list, a line"
        f' "path: size bytes, changed time" each, is {listing}.'
    )
