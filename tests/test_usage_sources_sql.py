"""The SQL source over one table: the contract for each way to store times, and every refusal."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql

from usage_sources.contract import (
    MIDNIGHT,
    UsageEvent,
    UsageSourceContract,
    close,
    event,
    query,
)
from usage_sources.reading import microseconds
from usage_sources.sql import SqlSource
from usage_sources.sql.database import Database
from usage_sources.sql.schema import checked
from usage_sources.sql.statements import Columns, TableStatements
from worker.domain import Aggregation, Period
from worker.errors import SourceInvalid

TABLE: dict[str, Any] = {
    "table": "usage",
    "time_format": "iso",
    "subject_column": "subject_id",
    "time_column": "created_at",
    "metric_column": "metric",
    "quantity_column": "quantity",
    "unique_column": "visitor",
}


def store(
    path: Path,
    rows: Sequence[Sequence[object]],
    *,
    columns: str = "subject_id TEXT, metric TEXT, created_at, quantity, visitor TEXT, region TEXT",
) -> str:
    """Write rows of usage to a new SQLite file and return its URL."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE usage ({columns})")
        width = columns.count(",") + 1
        filled = [(*each, *["eu"] * width)[:width] for each in rows]
        connection.executemany(f"INSERT INTO usage VALUES ({', '.join('?' * width)})", filled)
    return f"sqlite:///{path}"


def row(at: object, quantity: object = 1, visitor: str | None = "ann") -> tuple[object, ...]:
    """Make one row of subject S-1's calls."""
    return ("S-1", "calls", at, quantity, visitor)


def rows_of(
    events: Sequence[UsageEvent], written: Callable[[datetime], object]
) -> list[tuple[object, ...]]:
    """Make rows of events, with times written as the table's time_format has them."""
    return [
        (
            *(each.subject, each.metric, written(each.at)),
            *(None if each.quantity is None else str(each.quantity), each.unique, each.region),
        )
        for each in events
    ]


def statement_text(statement: sa.Select[Any], dialect: sa.Dialect) -> str:
    """Write a statement on one line with the names of its parameters."""
    kind: Any = type(dialect)
    text = " ".join(str(statement.compile(dialect=kind(paramstyle="named"))).split())
    return re.sub(r"\(?__\[POSTCOMPILE_(\w+?)(?:~~~~REPL~~(.*?)~~)?\]\)?", r"(:\1\2)", text)


class TestIsoText(UsageSourceContract):
    """Times as ISO text, each with its own offset."""

    @pytest.fixture(autouse=True)
    def _cleaned(self) -> Iterator[None]:
        with ExitStack() as stack:
            self.stack = stack
            yield

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store times as Python writes them."""
        url = store(tmp_path / "usage.db", rows_of(events, datetime.isoformat))
        return SqlSource(url=url, **TABLE)

    def source_down(self, tmp_path: Path) -> SqlSource:
        """Take away the file of a source that was warm."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        assert ask(source) == 1
        (tmp_path / "usage.db").unlink()
        return source

    def source_slow(self, tmp_path: Path) -> SqlSource:
        """Lock the file until the test is over, as a long write does."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        writer = self.stack.enter_context(closing(sqlite3.connect(tmp_path / "usage.db")))
        writer.execute("BEGIN EXCLUSIVE")
        return replace(source, timeout_seconds=1.0)


class TestIsoTextBelowMicroseconds(UsageSourceContract):
    """Times as ISO text with a space, nine digits and Z, which start a nanosecond too late."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store times 999 nanoseconds late: still before the next microsecond."""
        url = store(
            tmp_path / "usage.db",
            rows_of(events, lambda at: f"{at.astimezone(UTC):%F %T.%f}999Z"),
        )
        return SqlSource(url=url, **TABLE)


class TestEpochSeconds(UsageSourceContract):
    """Times as whole seconds."""

    resolution = timedelta(seconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store integers, and quantities in a column that SQLite keeps as numbers."""
        url = store(
            tmp_path / "usage.db",
            rows_of(events, lambda at: microseconds(at) // 1_000_000),
            columns="subject_id TEXT, metric TEXT, created_at INTEGER, quantity NUMERIC, visitor,"
            " region",
        )
        return SqlSource(url=url, **{**TABLE, "time_format": "epoch_seconds"})


class TestEpochSecondsWithFractions(UsageSourceContract):
    """Times as seconds with a fraction, quantities as text."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store the float nearest to each microsecond."""
        url = store(
            tmp_path / "usage.db",
            rows_of(events, lambda at: microseconds(at) / 1_000_000),
            columns="subject_id TEXT, metric TEXT, created_at REAL, quantity TEXT, visitor, region",
        )
        return SqlSource(url=url, **{**TABLE, "time_format": "epoch_seconds"})


class TestEpochMilliseconds(UsageSourceContract):
    """Times as whole milliseconds, seen through a view."""

    resolution = timedelta(milliseconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store integers, and read them through a view of another name."""
        path = tmp_path / "usage.db"
        url = store(path, rows_of(events, lambda at: microseconds(at) // 1_000))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute('CREATE VIEW "Billed Usage" AS SELECT * FROM usage')
        changed = {"time_format": "epoch_milliseconds", "table": "Billed Usage"}
        return SqlSource(url=url, **{**TABLE, **changed})


class TestEpochMicroseconds(UsageSourceContract):
    """Times as whole microseconds, in a table named with its schema and case-blind columns."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store integers; the collation NOCASE must not merge names that differ in case."""
        url = store(
            tmp_path / "usage.db",
            rows_of(events, microseconds),
            columns="subject_id TEXT COLLATE NOCASE, metric TEXT COLLATE NOCASE,"
            " created_at INTEGER, quantity, visitor TEXT COLLATE NOCASE,"
            " region TEXT COLLATE NOCASE",
        )
        changed = {"time_format": "epoch_microseconds", "table": "main.usage"}
        return SqlSource(url=url, **{**TABLE, **changed})


def opening(tmp_path: Path) -> Iterator[Callable[..., SqlSource]]:
    """Make sources over given rows; each is closed after the test."""
    made: list[SqlSource] = []

    def opened(rows: Sequence[Sequence[object]], **changed: Any) -> SqlSource:
        columns = {"columns": changed.pop("columns")} if "columns" in changed else {}
        url = store(tmp_path / "usage.db", rows, **columns)
        made.append(SqlSource(**{"url": url, **TABLE, **changed}))
        return made[-1]

    yield opened
    for source in made:
        close(source)


open_source = pytest.fixture(opening)


def ask(source: SqlSource, aggregation: Aggregation = Aggregation.COUNT, **changed: Any) -> Any:
    """Return the value of one query."""
    return source.count([query(aggregation=aggregation, **changed)])[0].value


Open = Callable[..., SqlSource]

MAY_2 = "2024-05-02T00:00:00Z"


def test_floats_are_read_by_their_shortest_text(open_source: Open) -> None:
    """What SQLite keeps as REAL adds up as it is written, not as binary fractions."""
    columns = "subject_id, metric, created_at, quantity REAL, visitor"
    source = open_source([row(MAY_2, 0.1), row(MAY_2, 0.2)], columns=columns)
    assert ask(source, Aggregation.SUM) == Decimal("0.3")


def test_sums_beyond_64_bits_are_exact(open_source: Open) -> None:
    """Integers whose sum overflows SQLite's own sum keep every digit."""
    source = open_source([row(MAY_2, 2**63 - 1)] * 3)
    assert ask(source, Aggregation.SUM) == 3 * (2**63 - 1)
    tiny = open_source([row(MAY_2, str(10**59)), row(MAY_2, "0." + "0" * 58 + "1")])
    assert ask(tiny, Aggregation.SUM) == Decimal(f"{10**59}.{'0' * 58}1")


def test_one_statement_counts_all_charges_of_a_period(open_source: Open) -> None:
    """Thirty charges that agree on period and aggregation are one grouped statement."""
    stored = [("S-1", f"metric {number}", MAY_2, 1, "ann") for number in range(30)]
    asked = [query(str(number), metric=f"metric {number}") for number in range(30)]
    run: list[str] = []

    def heard(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        run.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        tallies = open_source(stored).count(asked)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)
    assert [tally.value for tally in tallies] == [1] * 30
    assert len([text for text in run if text.startswith("SELECT")]) == 1
    assert tallies[0].evidence.parameters["metrics_30"] == "metric 9"


def test_the_evidence_hides_no_parameter(open_source: Open) -> None:
    """Evidence names the place, the statement and its parameters, as bound and as ISO."""
    source = open_source([row(1_714_600_000)], time_format="epoch_seconds")
    evidence = source.count([query()])[0].evidence
    assert evidence.source.startswith("sql sqlite:///")
    assert evidence.source.endswith("usage.db table usage")
    assert "created_at >= :start AND usage.created_at < :end" in evidence.query
    assert evidence.parameters == {
        "subjects_1": "S-1",
        "metrics_1": "calls",
        "start": 1_714_521_600,
        "end": 1_717_200_000,
        "start_at": "2024-05-01T00:00:00Z",
        "end_at": "2024-06-01T00:00:00Z",
    }


moments = st.integers(-3_000_000, 3_000_000)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@settings(max_examples=40, deadline=None)
@given(
    stored=st.lists(st.tuples(moments, offsets), max_size=20),
    edges=st.tuples(moments, moments).map(sorted),
)
def test_the_count_is_what_python_counts(
    tmp_path_factory: pytest.TempPathFactory,
    stored: list[tuple[int, timezone]],
    edges: list[int],
) -> None:
    """For any events, offsets and period the database's count is the plain one."""
    start, end = (MIDNIGHT + timedelta(microseconds=edge) for edge in edges)
    times = [(MIDNIGHT + timedelta(microseconds=at)).astimezone(zone) for at, zone in stored]
    path = tmp_path_factory.getbasetemp() / "random.db"
    anchor = MIDNIGHT + timedelta(days=400)  # so that the subject is known
    url = store(path, [row(at.isoformat()) for at in [*times, anchor]])
    source = SqlSource(url=url, **TABLE)
    period = Period(start, end)
    assert ask(source, period=period) == sum(at in period for at in times)
    source.close()


def test_postgresql_gets_bound_values_and_exact_numbers() -> None:
    """On PostgreSQL quantities are cast to NUMERIC, doubles by their text, and all is bound."""
    columns = Columns(
        table="billing.usage",
        subject="subject_id",
        time="created_at",
        metric="metric",
        quantity="quantity",
        unique="visitor",
        time_format="native",
        naive_times="reject",
    )
    types: dict[str, Any] = dict.fromkeys(columns.named().values(), sa.String())
    types["quantity"] = sa.Double()
    dialect: sa.Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    built = TableStatements(columns, "postgresql", types)
    text = statement_text(built.count(Aggregation.SUM), dialect)
    assert text == (
        "SELECT billing.usage.subject_id AS subject, billing.usage.metric AS metric,"
        " count(*) AS events,"
        " count(CAST(CAST(billing.usage.quantity AS TEXT) AS NUMERIC)) AS present,"
        " sum(CAST(CAST(billing.usage.quantity AS TEXT) AS NUMERIC)) AS value"
        " FROM billing.usage"
        " WHERE billing.usage.subject_id IN (:subjects) AND billing.usage.metric IN (:metrics)"
        " AND billing.usage.created_at >= :start::TIMESTAMP WITH TIME ZONE"
        " AND billing.usage.created_at < :end::TIMESTAMP WITH TIME ZONE"
        " GROUP BY billing.usage.subject_id, billing.usage.metric"
    )
    last = statement_text(built.count(Aggregation.LAST), dialect)
    assert "rank() OVER (PARTITION BY billing.usage.subject_id, billing.usage.metric" in last


def test_mysql_gets_quoted_names_and_bound_values() -> None:
    """On MySQL names are in backticks, texts compare by each letter, and DECIMALs add uncast."""
    columns = Columns(
        table="billing.usage",
        subject="subject id",
        time="created_at",
        metric="metric",
        quantity="quantity",
        unique=None,
        time_format="native",
        naive_times="utc",
    )
    types: dict[str, Any] = dict.fromkeys(columns.named().values(), sa.String())
    types |= {"quantity": sa.Numeric(20, 6), "re`gion": sa.String()}
    dialect: sa.Dialect = mysql.pymysql.dialect()
    built = TableStatements(columns, "mysql", types)
    text = statement_text(built.count(Aggregation.SUM, (("re`gion", "eu"),)), dialect)
    exact = "COLLATE utf8mb4_0900_bin"
    key = f"CONVERT(billing.`usage`.{{}} USING utf8mb4) {exact}".format
    subject, metric = key("`subject id`"), key("metric")
    assert text == (
        f"SELECT min({subject}) AS subject, min({metric}) AS metric, count(*) AS events,"
        " count(billing.`usage`.quantity) AS present, sum(billing.`usage`.quantity) AS value"
        " FROM billing.`usage`"
        f" WHERE billing.`usage`.`subject id` IN (:subjects {exact})"
        f" AND billing.`usage`.metric IN (:metrics {exact})"
        " AND billing.`usage`.created_at >= :start AND billing.`usage`.created_at < :end"
        f" AND billing.`usage`.`re``gion` = :filter_0 {exact}"
        f" AND ({key('`re``gion`')}) = :filter_0 {exact}"
        f" GROUP BY {subject}, {metric}"
    )


@pytest.mark.parametrize("kind", [sa.Double(), sa.Float(), sa.String()])
def test_mysql_is_not_trusted_to_add_what_is_inexact(kind: Any) -> None:
    """A quantity that MySQL would add in floating point is refused, with what to do."""
    columns = Columns(
        table="usage",
        subject="subject_id",
        time="created_at",
        metric=None,
        quantity="quantity",
        unique=None,
        time_format="epoch_seconds",
        naive_times="reject",
    )
    types: dict[str, Any] = {
        **dict.fromkeys(columns.named().values(), sa.Integer()),
        "quantity": kind,
    }
    database = Database(sa.make_url("mysql+pymysql://u:s3cret@h/db"), 1.0, "reject")
    with pytest.raises(
        SourceInvalid, match=r"mysql.*quantity is .*; store it as DECIMAL"
    ) as caught:
        checked(columns, types, database)
    assert "s3cret" not in str(caught.value)
    assert checked(columns, {**types, "quantity": sa.Numeric(20, 6)}, database) == columns
