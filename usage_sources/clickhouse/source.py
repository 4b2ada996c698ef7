"""Usage counted in a table of events in ClickHouse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar

from usage_sources.clickhouse.client import (
    Address,
    Asking,
    ClickHouseClient,
    Executor,
    check_driver,
)
from usage_sources.clickhouse.schema import Columns, Described, Schema
from usage_sources.clickhouse.statements import GUARDS, Statement
from usage_sources.clickhouse.table import Answer, TableReader
from usage_sources.clickhouse.types import TimeFormat
from usage_sources.reading import (
    digest,
    epoch_microseconds,
    iso_microseconds,
    lagging,
    moment_at,
    nobody,
    nothing_used,
    stated_watermark,
)
from worker.domain import Evidence, Tally, UsageQuery

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]+")
_PORT, _SECURE_PORT = 8123, 8443


@dataclass(frozen=True, kw_only=True)
class ClickHouseSource:
    """Counts usage in one table of a ClickHouse server; each field is a setting.

    A DateTime is an instant, however it is shown: neither the column's zone nor the server's
    changes a count.
    """

    extra: ClassVar[str] = "clickhouse"  # what must be installed beside

    # The server's name or address, without scheme and port.
    host: str
    # Its HTTP port; without it 8123, or 8443 where it is secure.
    port: int | None = None
    # Speak HTTPS, and check the server's certificate.
    secure: bool = False
    # The database that the table is in.
    database: str = "default"
    # Who asks; the user needs SELECT on the table, and readonly = 0 or 2, not 1.
    username: str = "default"
    # The user's password.
    password: str = field(default="", repr=False, metadata={"secret": True})
    # Table or view with one row per event.
    table: str
    # Column with the id that usage is keyed by.
    subject_column: str
    # Column with the moment the usage occurred.
    time_column: str
    # How the times are stored: "native" (DateTime or DateTime64), or whole numbers:
    # "epoch_seconds", "epoch_milliseconds", "epoch_microseconds".
    time_format: TimeFormat
    # Column with the metric's name; without it the table holds one metric only.
    metric_column: str | None = None
    # Metrics that exist although no event of theirs has come yet; any other that is in no row at
    # all is an error, since a misspelt name must not count as 0.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # Column with each event's quantity; needed to count sum, max and last.
    quantity_column: str | None = None
    # Column whose distinct values are counted; needed to count unique.
    unique_column: str | None = None
    # Count what is left after rows were replaced or collapsed (SELECT ... FINAL); needed for the
    # engines that do so, as ReplacingMergeTree.
    final: bool = False
    # A SELECT of the one moment, in `time_format`, up to which everything is in.
    watermark_query: str | None = None
    # Instead of `watermark_query`: everything older than this many seconds is in.
    watermark_lag_seconds: float | None = None
    # How long one count may take in all, on the server too.
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_driver()
        if not _HOST.fullmatch(self.host):
            raise ValueError(
                'host must be a name or an address alone, as in "clickhouse.internal";'
                " port and secure say the rest"
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError("port must be between 1 and 65535")
        for name in ("database", "username", "table", "subject_column", "time_column"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if self.known_metrics and self.metric_column is None:
            raise ValueError("known_metrics belongs to a table with metric_column")
        self._check_watermark()
        if not self.timeout_seconds > 0:
            raise ValueError("timeout_seconds must be more than 0")

    def _check_watermark(self) -> None:
        query, lag = self.watermark_query, self.watermark_lag_seconds
        if query is not None and lag is not None:
            raise ValueError("give watermark_query or watermark_lag_seconds, not both")
        if query is not None and re.search(r"\{\w+:", query):
            raise ValueError("watermark_query must not use parameters")
        if lag is not None and not lag >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query: one statement for each period, aggregation and set of filters."""
        if not queries:
            return []
        asked_at = self.now()
        asking = self._asking()
        table = self._schema.described(asking)
        watermark = self._watermark(asking, table, asked_at)
        answers = self._reader.answers(asking, table, queries)
        self._reader.check_metrics(asking, table, answers)
        doubtful = {each.query.subject for each in answers if each.events is None}
        known = self._reader.known(asking, table, doubtful)
        return [self._tally(each, known, asked_at, watermark) for each in answers]

    def watermark(self) -> datetime | None:
        """Return the moment up to which everything is in, as the settings say; None: unsaid."""
        if self.watermark_query is None:
            return lagging(self.now(), self.watermark_lag_seconds)
        asking = self._asking()
        return self._watermark(asking, self._schema.described(asking), self.now())

    def check(self) -> None:
        """Ask for nobody's usage, so that every column is looked at and a statement runs."""
        now = self.now()
        asking = self._asking()
        table = self._schema.described(asking)
        self._watermark(asking, table, now)
        self._reader.answers(asking, table, [nobody(now)])
        self._reader.known(asking, table, {""})

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._executor.close()

    def connect(self) -> Executor:
        """Return what runs the statements; a test's subclass may run them elsewhere."""
        port = self.port or (_SECURE_PORT if self.secure else _PORT)
        return ClickHouseClient(
            Address(
                host=self.host,
                port=port,
                secure=self.secure,
                database=self.database,
                username=self.username,
                password=self.password,
            )
        )

    @cached_property
    def _executor(self) -> Executor:
        return self.connect()

    @property
    def _place(self) -> str:
        scheme = "https" if self.secure else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self.port or (_SECURE_PORT if self.secure else _PORT)
        return f"clickhouse {scheme}://{host}:{port}"

    @cached_property
    def _columns(self) -> Columns:
        return Columns(
            database=self.database,
            table=self.table,
            subject=self.subject_column,
            time=self.time_column,
            metric=self.metric_column,
            quantity=self.quantity_column,
            unique=self.unique_column,
            time_format=self.time_format,
            final=self.final,
        )

    @cached_property
    def _schema(self) -> Schema:
        return Schema(self._place, self._columns)

    @cached_property
    def _reader(self) -> TableReader:
        return TableReader(self._schema, self._columns, self.known_metrics)

    def _asking(self) -> Asking:
        return Asking(self._executor, self._place, self.timeout_seconds, [self.password])

    def _tally(
        self,
        answer: Answer,
        known: frozenset[str],
        asked_at: datetime,
        watermark: datetime | None,
    ) -> Tally:
        query, value, events = answer.query, answer.value, answer.events
        if value is None and query.subject in known:
            value, events = nothing_used(self._reader.place, query), 0
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

    def _watermark(self, asking: Asking, table: Described, now: datetime) -> datetime | None:
        if self.watermark_query is None:
            return lagging(now, self.watermark_lag_seconds)
        guards = {name: GUARDS[name] for name in table.layout.guards}
        text = self.watermark_query.strip().rstrip(";")
        rows = asking.rows(Statement(text=text, settings=guards))
        return stated_watermark(self._place, rows, self._moment)

    def _moment(self, value: Any) -> datetime:
        if self.time_format == "native":
            return moment_at(iso_microseconds(value, "reject"))
        return moment_at(epoch_microseconds(value, self.time_format))
