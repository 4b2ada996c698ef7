"""Usage counted in a database, in a table of events or by a statement of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar

import sqlalchemy as sa

from usage_sources.reading import (
    EPOCH_UNITS,
    NaiveTimes,
    TimeFormat,
    digest,
    epoch_microseconds,
    iso_microseconds,
    lagging,
    moment_at,
    nobody,
    nothing_used,
    stated_watermark,
    with_zone,
)
from usage_sources.sql import mysql
from usage_sources.sql.database import Answer, Database, read_url
from usage_sources.sql.names import MetricsReader, SubjectsReader, parameters_of
from usage_sources.sql.statements import Columns
from usage_sources.sql.table import TableReader
from usage_sources.sql.text import TextReader, check_query, tells_metrics_apart
from worker.domain import Evidence, Tally, UsageQuery

_COLUMNS = ("subject_column", "time_column", "metric_column", "quantity_column", "unique_column")


@dataclass(frozen=True, kw_only=True)
class SqlSource:
    """Counts usage in any database that SQLAlchemy speaks to; each field is a setting.

    Give either `table` with its columns, or `query`. SQLite, PostgreSQL and MariaDB 10.11 are
    tested as they run; of MySQL, which must be 8.0.17 or newer, only the text of the statements is.
    On MariaDB and MySQL, quantities must be DECIMAL or whole, and times without zone, as all are
    there, are UTC (naive_times = "utc", also for TIMESTAMP: the session is set to UTC). A name is
    equal to itself only, whatever the column's collation: each parameter of a `query` has a COLLATE
    for it, and a `query` is run once for each name, also where it takes lists.
    """

    # What must be installed beside, and for what.
    optional_extras: ClassVar[Mapping[str, str]] = {
        "postgres": "a PostgreSQL url",
        "mysql": "a MySQL or MariaDB url",
    }

    # SQLAlchemy URL of the database; a SQLite file is opened read-only and never created.
    url: str = field(repr=False)
    # How the times are stored: "iso" (text, on SQLite only for `table`), "epoch_seconds",
    # "epoch_milliseconds", "epoch_microseconds", or "native" (a timestamp type, not on SQLite).
    time_format: TimeFormat
    # What a time without a zone means: "reject" makes it an error, "utc" reads it as UTC.
    naive_times: NaiveTimes = "reject"
    # Table or view with one row per event, "schema.table" where needed.
    table: str | None = None
    # Column with the id that usage is keyed by; needed with `table`.
    subject_column: str | None = None
    # Column with the moment the usage occurred; needed with `table`.
    time_column: str | None = None
    # Column with the metric's name; without it the table holds one metric only.
    metric_column: str | None = None
    # Metrics that exist although no event of theirs has come yet; any other that is in no row at
    # all is an error, since a misspelt name must not count as 0.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # Column with each event's quantity; needed to count sum, max and last.
    quantity_column: str | None = None
    # Column whose distinct values are counted; needed to count unique.
    unique_column: str | None = None
    # Instead of `table`: a SELECT of `value`, and optionally `events`, for :start, :end and
    # :subject or :subjects, and :metric, :metrics, :component or :components.
    query: str | None = None
    # A SELECT of those of :subjects that exist; needed with `query`, because count(*) answers 0
    # for anybody. Default with `table`: those that have any row.
    known_subjects_query: str | None = None
    # A SELECT of the metrics that exist, of all or of those in :metrics; with `query` the only way
    # to tell a misspelt metric from one that nobody used. Those of a table's rows exist anyway.
    known_metrics_query: str | None = None
    # A SELECT of the one moment, in `time_format`, up to which everything is in.
    watermark_query: str | None = None
    # Instead of `watermark_query`: everything older than this many seconds is in.
    watermark_lag_seconds: float | None = None
    # How long to wait for a connection, and again for the statements of one count.
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        url = read_url(self.url)
        sqlite = url.get_backend_name() == "sqlite"
        if (self.table is None) == (self.query is None):
            raise ValueError("give either table or query")
        if self.query is None:
            self._check_table(on_sqlite=sqlite)
        else:
            self._check_query(self.query)
        if sqlite and self.time_format == "native":
            raise ValueError('time_format: SQLite has no timestamp type; use "iso" or "epoch_..."')
        known = self.known_subjects_query
        if known is not None and parameters_of(known) != {"subjects"}:
            raise ValueError("known_subjects_query must use :subjects and nothing else")
        self._check_metrics()
        self._check_watermark()
        if not self.timeout_seconds > 0:
            raise ValueError("timeout_seconds must be more than 0")

    def _check_table(self, *, on_sqlite: bool) -> None:
        for name in ("subject_column", "time_column"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is needed with table")
        if self.time_format == "iso" and not on_sqlite:
            raise ValueError(
                'time_format "iso" can be compared in SQLite tables only;'
                ' use "native" or "epoch_...", or write a query'
            )

    def _check_query(self, query: str) -> None:
        for name in _COLUMNS:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to table; remove it, or give table, not query")
        if self.known_subjects_query is None:
            raise ValueError(
                "known_subjects_query is needed with query, because a statement answers 0 also"
                " for a subject that nobody knows; give one that selects those who exist, as in"
                ' known_subjects_query = "SELECT id FROM tenants WHERE id IN :subjects"'
            )
        check_query(query)

    def _check_metrics(self) -> None:
        if self.known_metrics and self.metric_column is None:
            raise ValueError("known_metrics belongs to a table with metric_column")
        metrics = self.known_metrics_query
        if metrics is None:
            return
        if not parameters_of(metrics) <= {"metrics"}:
            raise ValueError("known_metrics_query may use :metrics and nothing else")
        if self.metric_column is None and not tells_metrics_apart(self.query or ""):
            raise ValueError(
                "known_metrics_query needs a table with metric_column, or a query that uses"
                " :metric, :metrics, :component or :components"
            )

    def _check_watermark(self) -> None:
        query, lag = self.watermark_query, self.watermark_lag_seconds
        if query is not None and lag is not None:
            raise ValueError("give watermark_query or watermark_lag_seconds, not both")
        if query is not None and parameters_of(query):
            raise ValueError("watermark_query must not use parameters")
        if lag is not None and not lag >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query, from one state of the database."""
        asked_at = self.now()
        with self._database.reading() as connection:
            watermark = self._watermark(connection, asked_at)
            answers = self._reader.answers(connection, queries)
            self._reader.check_metrics(connection, answers)
            doubtful = {each.query.subject for each in answers if self._is_doubtful(each)}
            known = self._known(connection, doubtful)
        return [self._tally(each, known, asked_at, watermark) for each in answers]

    def watermark(self) -> datetime | None:
        """Return the moment up to which everything is in, as the settings say; None: unsaid."""
        if self.watermark_query is None:
            return lagging(self.now(), self.watermark_lag_seconds)
        with self._database.reading() as connection:
            return self._watermark(connection, self.now())

    def check(self) -> None:
        """Ask for nobody's usage, so that every statement runs once."""
        now = self.now()
        with self._database.reading() as connection:
            self._watermark(connection, now)
            self._reader.answers(connection, [nobody(now)])
            if self._metrics is not None:
                self._metrics.known(connection, {""})
            self._known(connection, {""})

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._database.close()

    @cached_property
    def _database(self) -> Database:
        return Database(read_url(self.url), self.timeout_seconds, self.naive_times)

    @cached_property
    def _reader(self) -> TableReader | TextReader:
        if self.query is not None:
            times = (self.time_format, self.naive_times)
            return TextReader(self._database, self.query, times, self._metrics)
        columns = Columns(
            table=self.table or "",
            subject=self.subject_column or "",
            time=self.time_column or "",
            metric=self.metric_column,
            quantity=self.quantity_column,
            unique=self.unique_column,
            time_format=self.time_format,
            naive_times=self.naive_times,
        )
        return TableReader(self._database, columns, self.known_metrics, self._metrics)

    @cached_property
    def _metrics(self) -> MetricsReader | None:
        query = self.known_metrics_query
        return None if query is None else MetricsReader(self._database, query)

    @cached_property
    def _subjects(self) -> TableReader | SubjectsReader:
        query = self.known_subjects_query
        if query is None and isinstance(self._reader, TableReader):
            return self._reader
        return SubjectsReader(self._database, query or "")

    def _known(self, connection: sa.Connection, subjects: set[str]) -> frozenset[str]:
        """Return which of the subjects exist."""
        return self._subjects.known(connection, subjects) if subjects else frozenset()

    def _tally(
        self,
        answer: Answer,
        known: frozenset[str],
        asked_at: datetime,
        watermark: datetime | None,
    ) -> Tally:
        query, value, events = answer.query, answer.value, answer.events
        if self._is_doubtful(answer):
            value, events = self._settled(answer, is_known=query.subject in known)
        evidence = Evidence(
            source=self._reader.place,
            query=answer.text,
            parameters=answer.parameters,
            asked_at=asked_at,
            digest=digest(query, value, events),
            watermark=watermark,
            notes=answer.notes,
        )
        return Tally(query=query, value=value, events=events, evidence=evidence)

    def _is_doubtful(self, answer: Answer) -> bool:
        """Tell whether an answer may be nobody's: without rows, of zero, or of another name.

        A statement of the operator's can compare a number with a name, and MySQL finds 7 for 7abc.
        """
        if self.query is not None and self._database.dialect_name in mysql.DIALECTS:
            return True
        return not answer.value and not answer.events

    def _settled(self, answer: Answer, *, is_known: bool) -> tuple[Decimal | None, int | None]:
        """Tell what is somebody's, were it nothing, from nobody there."""
        if not is_known:
            return None, None
        if answer.value is not None:
            return answer.value, answer.events
        return nothing_used(self._reader.place, answer.query), 0

    def _watermark(self, connection: sa.Connection, now: datetime) -> datetime | None:
        if self.watermark_query is None:
            return lagging(now, self.watermark_lag_seconds)
        rows = self._database.rows(connection, sa.text(self.watermark_query), {})[1]
        return stated_watermark(self._database.place, rows, self._moment)

    def _moment(self, value: Any) -> datetime:
        if self.time_format in EPOCH_UNITS:
            return moment_at(epoch_microseconds(value, self.time_format))
        if self.time_format == "iso":
            return moment_at(iso_microseconds(value, self.naive_times))
        if not isinstance(value, datetime):
            raise ValueError("is not a timestamp")  # noqa: TRY004 - a value of the data
        return with_zone(value, self.naive_times).astimezone(UTC)
