"""The SQL source on a real PostgreSQL: the contract for each way to store times, and its traps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from postgres import Server
from sql_on_a_server import EpochDecimal, EpochMicroseconds, OnServer, Write, own_statements
from test_usage_sources_sql import TABLE, ask

from usage_sources.contract import (
    JUNE,
    MAY,
    MIDNIGHT,
    UsageEvent,
    close,
    event,
    query,
)
from usage_sources.reading import microseconds
from usage_sources.sql import SqlSource
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable


class Place:
    """A database with a table of usage, made anew as often as it is asked for."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name).replace("postgresql://", "postgresql+psycopg://")

    def store(
        self,
        events: Sequence[UsageEvent],
        time: str = "timestamptz",
        written: Write = lambda at: at,
    ) -> None:
        """Replace the table `usage` by one of these events."""
        with psycopg.connect(self.server.url(self.name), autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS usage CASCADE")
            connection.execute(
                "CREATE TABLE usage (subject_id text, metric text, quantity numeric,"
                f" visitor text, region text, created_at {time})".encode()
            )
            rows = [
                (e.subject, e.metric, e.quantity, e.unique, e.region, written(e.at)) for e in events
            ]
            connection.cursor().executemany(
                "INSERT INTO usage VALUES (%s, %s, %s, %s, %s, %s)", rows
            )

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator."""
        return self.server.run(statement, database=self.name)

    def source(self, **changed: Any) -> SqlSource:
        """Make a source over the table."""
        return SqlSource(**{"url": self.url, **TABLE, "time_format": "native", **changed})


@pytest.fixture(scope="module")
def shared(postgres: Server) -> Iterator[Place]:
    """A database for many tests, each of which makes the table anew."""
    with postgres.database() as name:
        yield Place(postgres, name)


class OnPostgres(OnServer):
    """The contract on PostgreSQL."""

    time = "timestamptz"
    place: Place


class TestNative(OnPostgres):
    """Times as timestamptz."""

    def source_down(self, tmp_path: Path) -> SqlSource:
        """Stop the server until the test is over."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        assert ask(source) == 1
        self.stack.enter_context(self.place.server.stopped())
        return source

    def source_slow(self, tmp_path: Path) -> SqlSource:
        """Hold a lock on the table until the test is over."""
        self.source_with([event(MIDNIGHT)], tmp_path)
        place = self.place
        holder = self.stack.enter_context(psycopg.connect(place.server.url(place.name)))
        holder.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")
        return place.source(timeout_seconds=1.0)


class TestNativeWithoutZone(OnPostgres):
    """Times as timestamps that are said to be UTC."""

    time = "timestamp"
    settings: ClassVar[dict[str, Any]] = {"naive_times": "utc"}

    def written(self, at: datetime) -> object:
        """Write UTC without saying so."""
        return at.astimezone(UTC).replace(tzinfo=None)

    def source_slow(self, tmp_path: Path) -> SqlSource:
        """Count in a view that takes its time."""
        place = self.place
        place.store([event(MIDNIGHT)], self.time, self.written)
        place.run("CREATE VIEW slow AS SELECT usage.* FROM usage, pg_sleep(5)")
        return place.source(table="slow", timeout_seconds=1.0, **self.settings)


class TestEpochSeconds(OnPostgres):
    """Times as whole seconds."""

    resolution = timedelta(seconds=1)
    time = "bigint"
    settings: ClassVar[dict[str, Any]] = {"time_format": "epoch_seconds"}

    def written(self, at: datetime) -> object:
        """Write an integer."""
        return microseconds(at) // 1_000_000


class TestEpochMilliseconds(EpochDecimal):
    """Times as NUMERIC without digits."""

    time = "numeric"


class TestEpochMicroseconds(EpochMicroseconds):
    """Times as bigint."""


class TestStatement(OnPostgres):
    """A statement of the operator's own, with one that selects the metrics there are."""

    aggregations = frozenset({Aggregation.SUM})
    filters = False
    settings: ClassVar[dict[str, Any]] = own_statements("usage")


@pytest.fixture
def place(postgres: Server, database: str) -> Place:
    """A database of this test's own."""
    return Place(postgres, database)


def test_padded_and_numbered_names_are_whole_names(place: Place) -> None:
    """A CHAR column's padding is no part of a name, and 01 is not the integer 1."""
    place.store([event(MIDNIGHT)] * 2)
    place.run("ALTER TABLE usage ALTER subject_id TYPE char(10), ALTER metric TYPE char(10)")
    place.run("ALTER TABLE usage ADD number integer DEFAULT 1")
    padded, numbered = place.source(), place.source(subject_column="number")
    assert ask(padded) == 2
    assert ask(padded, subject="S-1 ") is None
    assert [ask(numbered, subject=each) for each in ("1", "01", "S-1")] == [2, None, None]
    close(padded)
    close(numbered)


@pytest.mark.parametrize(
    ("kind", "stored", "value", "number"),
    [
        ("integer", "7", "7", 1),
        ("numeric(10,2)", "1.5", "1.5", 1),
        ("double precision", "0.1", "0.1", 1),
        ("boolean", "true", "true", 1),
        ("boolean", "true", "false", 0),
        ("char(5)", "eu", "eu", 1),
        ("uuid", "6f1f7e9a-0000-4000-8000-000000000001", "6f1f7e9a-0000-4000-8000-000000000001", 1),
        ("integer", "7", "seven", "tier is INTEGER, which is never 'seven'"),
        ("numeric", "1.5", "much", "tier is NUMERIC, which is never 'much'"),
        ("boolean", "true", "yes", "tier is BOOLEAN, which is never 'yes'"),
        ("real", "0.1", "0.1", "tier is REAL, by which nothing is filtered"),
        ("timestamptz", "2024-05-01", "2024-05-01", "tier is TIMESTAMP, by which nothing is"),
    ],
)
def test_a_filter_is_compared_as_its_column_is(
    place: Place, kind: str, stored: str, value: str, number: int | str
) -> None:
    """Numbers and truth values filter as such; a value that the type cannot hold is refused."""
    place.store([event(MIDNIGHT)])
    place.run(f"ALTER TABLE usage ADD tier {kind} DEFAULT '{stored}'")
    source = place.source()
    asked = query(filters=(("tier", value), ("region", "eu")))
    if isinstance(number, int):
        assert source.count([asked])[0].value == number
    else:
        with pytest.raises(SourceInvalid, match=number):
            source.count([asked])
    close(source)


def test_the_timeout_is_for_all_statements_together(place: Place) -> None:
    """Two statements that each end within the timeout are given up when it is over."""
    place.store([event(MIDNIGHT)])
    slow = {
        "watermark_query": "SELECT now() FROM pg_sleep(1.6)",
        "known_subjects_query": "SELECT 'S-1' FROM pg_sleep(1.6) WHERE 'S-1' IN :subjects",
    }
    source = place.source(timeout_seconds=2.5, **slow)
    assert ask(source) == 1
    with pytest.raises(SourceUnavailable, match=r"no answer within 2\.5 s"):
        ask(source, period=JUNE)
    close(source)


def test_a_dropped_connection_is_made_again(place: Place) -> None:
    """A warm connection that an administrator ended does not spoil the next count."""
    place.store([event(MIDNIGHT)])
    source = place.source()
    assert ask(source) == 1
    assert place.server.terminate(place.name) >= 1
    assert ask(source) == 1
    close(source)


def test_the_source_cannot_write(place: Place) -> None:
    """Every transaction is read-only, so that no statement can change the database."""
    place.store([event(MIDNIGHT)])
    text = "DELETE FROM usage WHERE created_at >= :start AND created_at < :end"
    text += " AND subject_id = :subject RETURNING 1 AS value"
    source = place.source(**{**TestStatement.settings, "query": text, "known_metrics_query": None})
    with pytest.raises(SourceInvalid, match="read-only transaction"):
        ask(source)
    assert place.run("SELECT count(*) FROM usage") == [(1,)]
    close(source)


def test_doubles_add_up_as_they_are_written(place: Place) -> None:
    """Ten times 0.1 in a column of doubles is 1."""
    place.store([event(MIDNIGHT, quantity=Decimal("0.1"))] * 10)
    place.run("ALTER TABLE usage ALTER quantity TYPE double precision")
    source = place.source()
    assert ask(source, Aggregation.SUM, period=MAY) == 1
    close(source)
