"""The SQL source on a real MariaDB: the contract for each way to store times, and its traps."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from mariadb_server import MariaDB, mariadb
from sql_on_a_server import EpochDecimal, EpochMicroseconds, OnServer, Write, own_statements
from test_usage_sources_sql import TABLE, ask

from usage_sources.contract import (
    JUNE,
    MIDNIGHT,
    UsageEvent,
    close,
    event,
    query,
)
from usage_sources.sql import SqlSource
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable

__all__ = ["mariadb"]  # a fixture

NAIVE = {"time_format": "native", "naive_times": "utc"}


def without_zone(at: datetime) -> datetime:
    """Write UTC without saying so, as every time on MariaDB is."""
    return at.astimezone(UTC).replace(tzinfo=None)


class Place:
    """A database with a table of usage, made anew as often as it is asked for."""

    def __init__(self, server: MariaDB, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)

    def store(
        self,
        events: Sequence[UsageEvent],
        time: str = "datetime(6)",
        written: Write = without_zone,
        names: str = "text",
    ) -> None:
        """Replace the table `usage` by one of these events."""
        self.run(
            f"CREATE OR REPLACE TABLE `usage` (subject_id {names}, metric {names},"
            f" created_at {time}, quantity decimal(65, 10), visitor text, region text)"
        )
        values = ":subject, :metric, :at, :quantity, :visitor, :region"
        rows = [
            {"subject": e.subject, "metric": e.metric, "at": written(e.at)}
            | {"quantity": e.quantity, "visitor": e.unique, "region": e.region}
            for e in events
        ]
        if rows:
            self.run(f"INSERT INTO `usage` VALUES ({values})", rows)

    def run(
        self, statement: str, rows: list[dict[str, Any]] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, in UTC."""
        return self.server.run(statement, rows, database=self.name)

    def source(self, **changed: Any) -> SqlSource:
        """Make a source over the table."""
        return SqlSource(**{"url": self.url, **TABLE, **NAIVE, **changed})


@pytest.fixture(scope="module")
def shared(mariadb: MariaDB) -> Iterator[Place]:
    """A database for many tests, each of which makes the table anew."""
    with mariadb.database() as name:
        yield Place(mariadb, name)


class OnMariaDB(OnServer):
    """The contract on MariaDB."""

    time = "datetime(6)"
    place: Place

    def written(self, at: datetime) -> object:
        """Write UTC without saying so."""
        return without_zone(at)


@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
class TestDatetime(OnMariaDB):
    """Times as DATETIME(6), names as TEXT that ignores case."""

    def source_down(self, tmp_path: Path) -> SqlSource:
        """Stop the server until the test is over."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        assert ask(source) == 1
        self.stack.enter_context(self.place.server.stopped())
        self.stack.callback(gc.collect)  # PyMySQL leaves open the sockets that nobody answered
        return source

    def source_slow(self, tmp_path: Path) -> SqlSource:
        """Hold a lock on the table until the test is over."""
        self.source_with([event(MIDNIGHT)], tmp_path)
        holder = sa.create_engine(self.place.url, poolclass=sa.NullPool)
        connection = self.stack.enter_context(holder.connect())
        connection.exec_driver_sql("LOCK TABLES `usage` WRITE")
        return self.place.source(timeout_seconds=1.0)


class TestTimestamp(OnMariaDB):
    """Times as TIMESTAMP(6), which follows the session's zone."""

    time = "timestamp(6) NULL"


class TestOtherCharacterSet(OnMariaDB):
    """Names in another character set than the connection's."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store the events in a new table."""
        self.place.store(events, names="text CHARACTER SET utf16 COLLATE utf16_general_ci")
        return self.place.source()

    def source_slow(self, tmp_path: Path) -> SqlSource:
        """Count in a view that takes its time."""
        place = self.place
        place.store([event(MIDNIGHT)])
        place.run("CREATE OR REPLACE VIEW slow AS SELECT * FROM `usage` WHERE sleep(5) = 0")
        return place.source(table="slow", timeout_seconds=1.0)


class TestEpochMicroseconds(EpochMicroseconds):
    """Times as BIGINT."""


class TestEpochDecimal(EpochDecimal):
    """Times as DECIMAL."""


class TestStatement(OnMariaDB):
    """A statement of the operator's own, with one that selects the metrics there are."""

    aggregations = frozenset({Aggregation.SUM})
    filters = False
    settings: ClassVar[dict[str, Any]] = own_statements("`usage`")


class TestOneAtATime(TestStatement):
    """The same statement for one subject and one metric, which its rows do not name."""

    settings: ClassVar[dict[str, Any]] = TestStatement.settings | {
        "query": """
            SELECT count(*) AS events,
                CASE WHEN count(quantity) = count(*) THEN coalesce(sum(quantity), 0) END AS value
            FROM `usage` WHERE subject_id = :subject AND metric = :metric
                AND created_at >= :start AND created_at < :end""",
        "known_metrics_query": "SELECT metric FROM `usage` WHERE metric IN :metrics",
    }


@pytest.fixture
def place(mariadb: MariaDB) -> Iterator[Place]:
    """A database of this test's own."""
    with mariadb.database() as name:
        yield Place(mariadb, name)


ALIKE = ("abc", "ABC ", "ÁBC", "ABC\t", "Abc")  # are 'ABC' to one collation or another


@pytest.mark.parametrize(
    "names",
    [
        "varchar(40) COLLATE utf8mb4_general_ci",
        "varchar(40) COLLATE utf8mb4_unicode_520_nopad_ci",
        "varchar(40) COLLATE utf8mb4_bin",
        "varchar(40) CHARACTER SET latin1",
    ],
)
@pytest.mark.parametrize("settings", [{}, TestStatement.settings, TestOneAtATime.settings])
def test_nobody_is_billed_the_usage_of_a_name_that_looks_alike(
    place: Place, names: str, settings: dict[str, Any]
) -> None:
    """Case, accents and spaces at the end tell names apart, whatever the column's collation."""
    place.store([event(MIDNIGHT, subject=name) for name in ALIKE], names=names)
    source = place.source(**settings)
    assert ask(source, Aggregation.SUM, subject="ABC") is None
    close(source)
    place.store([event(MIDNIGHT, subject=name) for name in (*ALIKE, "ABC", "ABC")], names=names)
    source = place.source(**settings)
    asked = [query(each, subject=each, aggregation=Aggregation.SUM) for each in ("ABC", *ALIKE)]
    assert [tally.value for tally in source.count(asked)] == [2, 1, 1, 1, 1, 1]
    close(source)


@pytest.mark.parametrize(
    ("one", "other", "collation"),
    [
        ("mas", "maß", "utf8mb4_general_ci"),
        ("T-😀", "T-😁", "utf8mb4_general_ci"),
        ("Soren", "Søren", "utf8mb4_unicode_520_ci"),
        ("Caesar", "Cæsar", "utf8mb4_unicode_520_ci"),
        ("ab", "a\xadb", "utf8mb4_uca1400_ai_ci"),
    ],
)
def test_names_asked_together_are_counted_apart(
    place: Place, one: str, other: str, collation: str
) -> None:
    """A GROUP BY that takes two subjects or two metrics for one adds up neither's usage."""
    names = f"varchar(40) COLLATE {collation}"
    place.store([event(MIDNIGHT, subject=name) for name in (one, other, other)], names=names)
    (merged,) = place.run("SELECT count(*) FROM `usage` GROUP BY subject_id")
    assert merged == (3,), "this collation tells them apart"
    source = place.source(**TestStatement.settings)
    asked = [query(each, subject=each, aggregation=Aggregation.SUM) for each in (one, other)]
    assert [tally.value for tally in source.count(asked)] == [1, 2]
    close(source)
    place.store([event(MIDNIGHT, metric=name) for name in (one, other, other)], names=names)
    source = place.source(**TestStatement.settings | {"known_metrics_query": None})
    asked = [query(each, metric=each, aggregation=Aggregation.SUM) for each in (one, other)]
    assert [tally.value for tally in source.count(asked)] == [1, 2]
    close(source)


def test_a_name_is_not_billed_the_number_that_it_begins_with(place: Place) -> None:
    """A statement that compares a number with names counts 7's usage for 7, and not for 7abc."""
    place.store([event(MIDNIGHT, subject="7")], names="text")
    place.run("ALTER TABLE `usage` MODIFY subject_id integer")
    source = place.source(**TestOneAtATime.settings)
    asked = [ask(source, Aggregation.SUM, subject=name) for name in ("7", "7abc", "07")]
    assert asked == [1, None, None]
    close(source)


@pytest.mark.parametrize("setting", ["subject_column", "metric_column"])
@pytest.mark.parametrize("kind", ["varbinary(9)", "binary(9)", "blob", "tinyblob", "bit(8)"])
def test_names_in_bytes_are_refused(place: Place, setting: str, kind: str) -> None:
    """Bytes need not be text, so that a view must say which; the refusal says so."""
    place.store([event(MIDNIGHT)])
    place.run(f"ALTER TABLE `usage` ADD name {kind}")
    source = place.source(**{setting: "name"})
    with pytest.raises(SourceInvalid, match=r"name is .* make a view that converts it"):
        ask(source)
    close(source)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("varbinary(16)", [f"INET6_ATON('192.168.0.{n}')" for n in (200, 201, 202)]),
        ("binary(4)", ["x'fffefdfc'", "x'fffefdfd'", "x'80'"]),
        ("bit(16)", ["b'1000000010000000'", "b'1000000010000001'", "b'1111111111111111'"]),
        ("float", ["16777214", "16777215", "16777216"]),
        ("double", ["0.1", "0.10000000000000002", "0.3"]),
        ("datetime(6)", ["'2024-05-01'", "'2024-05-01 00:00:00.000001'", "'2024-05-02'"]),
        ("decimal(20, 2)", ["1", "1.01", "2"]),
        ("varchar(9)", ["'a'", "'A'", "'á'"]),
    ],
)
def test_unique_counts_every_different_value(place: Place, kind: str, values: list[str]) -> None:
    """Values of any type are told apart as they are, and the same one counts once."""
    place.store([])
    place.run(f"ALTER TABLE `usage` MODIFY visitor {kind}")
    at = [{"at": without_zone(MIDNIGHT)}]
    for value in (*values, values[0]):
        place.run(f"INSERT INTO `usage` VALUES ('S-1', 'calls', :at, 1, {value}, 'eu')", at)
    source = place.source()
    assert ask(source, Aggregation.UNIQUE) == 3
    close(source)


def test_padded_and_numbered_names_are_whole_names(place: Place) -> None:
    """A CHAR column's padding is no part of a name, and 01 is not the integer 1."""
    place.store([event(MIDNIGHT)] * 2, names="char(10)")
    place.run("ALTER TABLE `usage` ADD number integer DEFAULT 1")
    padded, numbered = place.source(), place.source(subject_column="number")
    assert ask(padded) == 2
    assert ask(padded, subject="S-1 ") is None
    found = [ask(numbered, subject=each) for each in ("1", "01", "1x", "S-1")]
    assert found == [2, None, None, None]
    close(padded)
    close(numbered)


@pytest.mark.parametrize(
    ("kind", "stored", "value", "number"),
    [
        ("integer", "7", "7", 1),
        ("integer", "7", "7x", "tier is INTEGER, which is never '7x'"),
        ("decimal(10,2)", "1.5", "1.5", 1),
        ("double", "0.1", "0.1", 1),
        ("float", "0.1", "0.1", "tier is FLOAT, by which nothing is filtered"),
        ("char(5)", "eu", "eu", 1),
        ("char(5)", "eu", "EU", 0),
        ("enum('us', 'eu')", "eu", "eu", 1),
        ("enum('us', 'eu')", "eu", "2", 0),
        ("uuid", "6f1f7e9a-0000-4000-8000-000000000001", "6f1f7e9a-0000-4000-8000-000000000001", 1),
        ("datetime", "2024-05-01", "2024-05-01", "tier is DATETIME, by which nothing is"),
    ],
)
def test_a_filter_is_compared_as_its_column_is(
    place: Place, kind: str, stored: str, value: str, number: int | str
) -> None:
    """Numbers filter as such, texts by each letter; what would never be equal is refused."""
    place.store([event(MIDNIGHT)])
    place.run(f"ALTER TABLE `usage` ADD tier {kind} DEFAULT '{stored}'")
    source = place.source()
    asked = query(filters=(("tier", value), ("region", "eu")))
    if isinstance(number, int):
        assert source.count([asked])[0].value == number
    else:
        with pytest.raises(SourceInvalid, match=number):
            source.count([asked])
    close(source)


@pytest.mark.parametrize("kind", ["double", "text", "datetime", "varbinary(9)", "bit(8)"])
def test_what_is_not_added_exactly_is_refused(place: Place, kind: str) -> None:
    """Quantities must be DECIMAL or whole, and the refusal says so."""
    place.store([event(MIDNIGHT)])
    place.run(f"ALTER TABLE `usage` ADD amount {kind}")
    source = place.source(quantity_column="amount")
    with pytest.raises(SourceInvalid, match=r"amount is .* store it as DECIMAL"):
        ask(source, Aggregation.SUM)
    close(source)


def test_a_date_of_zeros_is_refused(place: Place) -> None:
    """A zero date, which is before every period, is named and not passed over."""
    place.store([event(MIDNIGHT)], "text", lambda _: "0000-00-00 00:00:00")
    place.run("ALTER TABLE `usage` MODIFY created_at datetime")
    source = place.source()
    with pytest.raises(SourceInvalid, match="'0000-00-00 00:00:00' is no time between"):
        ask(source)
    close(source)


def test_names_are_found_through_an_index(place: Place) -> None:
    """A name that is told apart by each letter is still looked up, in another collation's index."""
    place.store(
        [event(MIDNIGHT, subject=f"S-{number}") for number in range(500)], names="varchar(40)"
    )
    place.run("ALTER TABLE `usage` ADD INDEX by_subject (subject_id, created_at)")
    source = place.source()
    evidence = source.count([query()])[0].evidence
    close(source)
    (plan,) = place.run(f"EXPLAIN {evidence.query}", [evidence.parameters])
    assert "by_subject" in plan
    assert plan[8] == "1", "so many rows are looked at"


def test_the_timeout_is_for_all_statements_together(place: Place) -> None:
    """Two statements that each end within the timeout are given up when it is over."""
    place.store([event(MIDNIGHT)])
    slow = {
        "watermark_query": "SELECT now() FROM (SELECT sleep(1.6)) AS slept",
        "known_subjects_query": "SELECT 'S-1' FROM (SELECT sleep(1.6)) AS slept"
        " WHERE 'S-1' IN :subjects",
    }
    source = place.source(timeout_seconds=2.5, **slow)
    assert ask(source) == 1
    with pytest.raises(SourceUnavailable, match=r"no answer within 2\.5 s .*max_statement_time"):
        ask(source, period=JUNE)
    close(source)


def test_a_dropped_connection_is_made_again(place: Place) -> None:
    """A warm connection that an administrator ended does not spoil the next count."""
    place.store([event(MIDNIGHT)])
    source = place.source()
    assert ask(source) == 1
    ours = f"SELECT id FROM information_schema.processlist WHERE db = '{place.name}'"
    ended = place.run(f"{ours} AND id != connection_id()")
    assert ended
    for (number,) in ended:
        place.run(f"KILL {number}")
    assert ask(source) == 1
    close(source)


def test_the_source_cannot_write_and_sees_one_state(place: Place) -> None:
    """Every transaction is read-only and repeats its reads, whatever the server's default is."""
    place.store([event(MIDNIGHT)])
    bounds = " AND created_at >= :start AND created_at < :end AND subject_id = :subject"
    text = {**TestStatement.settings, "known_metrics_query": None}
    level = "SELECT @@tx_isolation = 'REPEATABLE-READ' AS value FROM `usage` WHERE 1 = 1"
    source = place.source(**{**text, "query": level + bounds})
    assert ask(source, Aggregation.SUM) == 1
    close(source)
    source = place.source(**{**text, "query": "DELETE FROM `usage` WHERE 1 = 1" + bounds})
    with pytest.raises(SourceInvalid, match="READ ONLY transaction"):
        ask(source)
    assert place.run("SELECT count(*) FROM `usage`") == [(1,)]
    close(source)


def test_only_what_can_pass_is_to_be_tried_again(place: Place) -> None:
    """A lock passes; a column that is not there, or a server of another kind, does not."""
    place.store([event(MIDNIGHT)])
    known = "SELECT nothing FROM `usage` WHERE subject_id IN :subjects"
    for changed, error, told in (
        ({"known_subjects_query": known}, SourceInvalid, "Unknown column 'nothing'"),
        ({"url": place.url.replace("mariadb+", "mysql+")}, SourceInvalid, "begin url with mariadb"),
        ({"url": place.url.replace(place.name, "gone")}, SourceUnavailable, "Unknown database"),
    ):
        source = place.source(**changed)
        with pytest.raises(error, match=told):
            ask(source, subject="nobody")
        close(source)


@pytest.mark.parametrize("code", [1130, 1412, 3032, 9001])
def test_an_error_of_the_server_that_passes_is_to_be_tried_again(place: Place, code: int) -> None:
    """A table that was just altered, a server or proxy that lets nobody in for now: all pass."""
    place.store([event(MIDNIGHT)])
    signal = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'for now'"
    known = f"BEGIN NOT ATOMIC IF 'nobody' IN :subjects THEN {signal}; END IF; END"
    source = place.source(known_subjects_query=known)
    with pytest.raises(SourceUnavailable, match="for now"):
        ask(source, subject="nobody")
    close(source)
