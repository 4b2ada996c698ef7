"""The ClickHouse source on a real engine: the contract for each way to store, and evidence."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from test_usage_sources_clickhouse_engine import OnChdb, create, insert, run, serving

from usage_sources.clickhouse import ClickHouseSource
from usage_sources.clickhouse.statements import Statement
from usage_sources.contract import (
    JUNE,
    MAY,
    MIDNIGHT,
    UsageEvent,
    UsageSourceContract,
    event,
    query,
)
from usage_sources.reading import microseconds
from worker.domain import Aggregation, Period
from worker.errors import SourceUnavailable

SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "database": "billing",
    "table": "events",
    "subject_column": "subject",
    "time_column": "at",
    "metric_column": "metric",
    "quantity_column": "quantity",
    "unique_column": "visitor",
    "time_format": "native",
}
PROGRAM = shutil.which("clickhouse-server") or shutil.which("clickhouse")
COLUMNS = (
    "subject String, metric LowCardinality(String), at DateTime64(6, 'UTC'),"
    " quantity Nullable(Decimal(38, 10)), visitor Nullable(String), region String"
)


def written(moment: datetime, digits: int = 6) -> str:
    """Write a time in UTC as ClickHouse reads it."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{moment:%f}"[: 20 + digits] if digits else text


def row(stored: UsageEvent, at: object) -> dict[str, Any]:
    """Make the row of an event."""
    return {
        "subject": stored.subject,
        "metric": stored.metric,
        "at": at,
        "quantity": None if stored.quantity is None else str(stored.quantity),
        "visitor": stored.unique,
        "region": stored.region,
    }


def free_port() -> int:
    """Return a port of the loopback where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def endless() -> OnChdb:
    """Return a source over a view that takes minutes to count."""
    run("DROP TABLE IF EXISTS billing.endless SYNC")
    run(
        "CREATE VIEW billing.endless AS SELECT toString(sipHash64(number)) AS subject,"
        " 'calls' AS metric, toDateTime64('2024-05-01 00:00:00', 6, 'UTC') AS at,"
        " toDecimal128(1, 10) AS quantity, 'ann' AS visitor, 'eu' AS region"
        " FROM numbers(100000000000)"
    )
    return OnChdb(**{**SETTINGS, "table": "endless", "timeout_seconds": 1.0})


class TestMicroseconds(UsageSourceContract):
    """DateTime64(6), in a plain table."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> OnChdb:
        """Store decimals, and metrics in a dictionary."""
        create("billing.events", COLUMNS)
        insert("billing.events", [row(each, written(each.at)) for each in events])
        return OnChdb(**SETTINGS)

    def source_down(self, tmp_path: Path) -> ClickHouseSource:
        """Ask a port where nobody listens."""
        return ClickHouseSource(**SETTINGS, port=free_port(), timeout_seconds=1.0)

    def source_slow(self, tmp_path: Path) -> OnChdb:
        """Count more than can be counted: the engine itself gives up."""
        return endless()


class TestSecondsInAnotherZone(UsageSourceContract):
    """DateTime shown in New York's zone, quantities as floats, subjects that are padded."""

    resolution = timedelta(seconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> OnChdb:
        """Store epoch seconds, which are the same instants in every zone."""
        create(
            "billing.events",
            "subject FixedString(10010), metric FixedString(10001), region FixedString(20),"
            " at DateTime('America/New_York'), quantity Nullable(Float64), visitor String",
        )
        rows = [row(each, microseconds(each.at) // 1_000_000) for each in events]
        insert("billing.events", rows)
        return OnChdb(**SETTINGS)


class TestReplacedRows(UsageSourceContract):
    """Whole milliseconds, each row stored twice, in a table whose engine replaces rows."""

    resolution = timedelta(milliseconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> OnChdb:
        """Store every event in two parts, as a producer does that sends again."""
        create(
            "billing.events",
            "id UInt64, " + COLUMNS.replace("DateTime64(6, 'UTC')", "Int64"),
            "ReplacingMergeTree ORDER BY id",
        )
        rows = [
            {**row(each, microseconds(each.at) // 1_000), "id": number}
            for number, each in enumerate(events)
        ]
        for _ in range(2):
            insert("billing.events", rows)
        return OnChdb(**{**SETTINGS, "time_format": "epoch_milliseconds", "final": True})


class TestOverHttp(UsageSourceContract):
    """DateTime64(9), each event 999 nanoseconds late, through clickhouse-connect."""

    @pytest.fixture(autouse=True)
    def _serve(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._stack = stack
            self._server = stack.enter_context(serving())
            yield

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> ClickHouseSource:
        """Store times that are still before the next microsecond."""
        create("billing.events", COLUMNS.replace("DateTime64(6, 'UTC')", "DateTime64(9)"), "Memory")
        rows = [row(each, f"{written(each.at)}999") for each in events]
        insert("billing.events", rows)
        return ClickHouseSource(**SETTINGS, port=self._server.port, password="s3cret")

    def source_down(self, tmp_path: Path) -> ClickHouseSource:
        """Ask a port where nobody listens."""
        return ClickHouseSource(**SETTINGS, port=free_port(), timeout_seconds=1.0)

    def source_slow(self, tmp_path: Path) -> ClickHouseSource:
        """Ask a server that says nothing."""
        self._server.hangs = threading.Event()
        return ClickHouseSource(**SETTINGS, port=self._server.port, timeout_seconds=1.0)


@contextmanager
def clickhouse_server(program: str, folder: Path) -> Iterator[int]:
    """Run a server of our own on the loopback; stop it at the end."""
    port, other = free_port(), free_port()
    command = [program] if program.endswith("-server") else [program, "server"]
    server = subprocess.Popen(
        [
            *command,
            "--",
            f"--http_port={port}",
            f"--tcp_port={other}",
            "--listen_host=127.0.0.1",
            f"--path={folder}/data/",
            "--mysql_port=0",
            "--postgresql_port=0",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        source = ClickHouseSource(**{**SETTINGS, "database": "default"}, port=port)
        until = time.monotonic() + 60
        while time.monotonic() < until and server.poll() is None:
            try:
                source.connect().run(Statement(text="SELECT 1"), 2)
            except Exception:  # noqa: BLE001 - not up yet
                time.sleep(0.2)
                continue
            break
        yield port
    finally:
        server.terminate()
        server.wait(30)


class OnAServer(UsageSourceContract):
    """DateTime64(6), on a server of its own, where one is installed."""

    @pytest.fixture(scope="class")
    def port(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
        """Start the server once for all tests."""
        with clickhouse_server(PROGRAM or "", tmp_path_factory.mktemp("clickhouse")) as port:
            yield port

    @pytest.fixture(autouse=True)
    def _know_port(self, port: int) -> None:
        self._port = port

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> ClickHouseSource:
        """Store through the driver itself."""
        import_client = pytest.importorskip("clickhouse_connect")
        client = import_client.get_client(host="127.0.0.1", port=self._port)
        client.command("CREATE DATABASE IF NOT EXISTS billing")
        client.command("DROP TABLE IF EXISTS billing.events SYNC")
        client.command(f"CREATE TABLE billing.events ({COLUMNS}) ENGINE = MergeTree ORDER BY at")
        rows = [list(row(each, each.at.astimezone(UTC)).values()) for each in events]
        if rows:
            names = ["subject", "metric", "at", "quantity", "visitor", "region"]
            client.insert("billing.events", rows, column_names=names)
        client.close()
        return ClickHouseSource(**SETTINGS, port=self._port)

    def source_down(self, tmp_path: Path) -> ClickHouseSource:
        """Ask a port where nobody listens."""
        return ClickHouseSource(**SETTINGS, port=free_port(), timeout_seconds=1.0)


if PROGRAM is not None:
    TestOnAServer = OnAServer
else:

    def test_a_server_of_its_own() -> None:
        """The contract is run on a real server where one is installed."""
        pytest.skip("neither clickhouse-server nor clickhouse is on the PATH")


def told_by(source: ClickHouseSource, aggregation: Aggregation, period: Period = MAY) -> Any:
    """Ask for one tally."""
    (tally,) = source.count([query(aggregation=aggregation, period=period)])
    return tally


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_evidence_can_be_run_as_it_is(aggregation: Aggregation) -> None:
    """The text with its parameters, as clickhouse-client takes them, gives the same number."""
    create("billing.events", COLUMNS)
    stored = [event(MIDNIGHT + timedelta(hours=n), quantity=Decimal(n)) for n in range(3)]
    insert("billing.events", [row(each, written(each.at)) for each in stored])
    asked = query(aggregation=aggregation, filters=(("region", "eu"),))
    (tally,) = OnChdb(**SETTINGS).count([asked])
    evidence = tally.evidence
    assert "skip_unavailable_shards = 0" in evidence.query
    assert evidence.parameters["filter_1"] == "['eu']"
    again = run(evidence.query, form="TSV", parameters=dict(evidence.parameters)).decode()
    fields = again.rstrip("\n").split("\t")
    value = fields[2] if aggregation is Aggregation.COUNT else fields[4]
    assert Decimal(value) == tally.value


def test_an_edge_between_two_units_is_noted() -> None:
    """A period that starts within a second of the column counts from the next, and says so."""
    create("billing.events", COLUMNS.replace("DateTime64(6, 'UTC')", "DateTime"))
    second, half = timedelta(seconds=1), timedelta(milliseconds=500)
    stored = [event(MAY.start), event(MAY.start + second), event(MAY.end)]
    insert("billing.events", [row(each, written(each.at, 0)) for each in stored])
    source = OnChdb(**SETTINGS)
    late = told_by(source, Aggregation.COUNT, Period(MAY.start + half, MAY.end))
    assert late.value == 1
    assert "1000000 microseconds" in late.evidence.notes[0]
    long = told_by(source, Aggregation.COUNT, Period(MAY.start, MAY.end + half))
    assert long.value == 3
    assert told_by(source, Aggregation.COUNT).evidence.notes == ()


@pytest.mark.parametrize("digits", [0, 1, 3, 5, 6, 7, 9])
def test_bounds_are_exact_in_every_precision(digits: int) -> None:
    """Ticks around odd edges are in or out as whole numbers of nanoseconds say."""
    create("billing.events", COLUMNS.replace("DateTime64(6, 'UTC')", f"DateTime64({digits})"))
    tick = 10 ** (9 - digits)  # nanoseconds
    start = MAY.start + timedelta(microseconds=123_457)
    edges = [start, start + timedelta(seconds=3, microseconds=1)]
    nanos = [microseconds(edge) * 1000 for edge in edges]
    ticks = sorted({edge // tick + step for edge in nanos for step in (-2, -1, 0, 1, 2)})
    base = row(event(MIDNIGHT), "")
    moments = [divmod(each * tick, 10**9) for each in ticks]
    texts = [f"{seconds}.{rest:09d}"[: 11 + digits].rstrip(".") for seconds, rest in moments]
    insert("billing.events", [{**base, "at": text} for text in texts])
    source = OnChdb(**SETTINGS)
    # Each odd edge alone as well: one that is a tick off could make up for the other.
    for period in (Period(*edges), Period(start, MAY.end), Period(MIDNIGHT, edges[1])):
        first, end = (microseconds(edge) * 1000 for edge in (period.start, period.end))
        expected = sum(first <= each * tick < end for each in ticks)
        assert told_by(source, Aggregation.COUNT, period).value == expected, period


def test_a_zone_changes_no_instant() -> None:
    """Neither the column's zone nor the session's moves a DateTime into another period."""
    stored = [event(MAY.start), event(MAY.end - timedelta(seconds=1)), event(MAY.end)]
    run("SET session_timezone = 'Asia/Tokyo'")
    try:
        for kind in ("DateTime", "DateTime('America/New_York')", "DateTime64(6)"):
            create("billing.events", COLUMNS.replace("DateTime64(6, 'UTC')", kind))
            rows = [row(each, microseconds(each.at) // 1_000_000) for each in stored]
            insert("billing.events", rows)
            assert told_by(OnChdb(**SETTINGS), Aggregation.COUNT).value == 2, kind
    finally:
        run("SET session_timezone = DEFAULT")


@pytest.mark.parametrize(
    ("time_format", "text"),
    [
        ("native", "SELECT toDateTime('2024-06-01 02:00:00', 'Europe/Berlin')"),
        ("native", "SELECT toDateTime64('2024-06-01 00:00:00', 6, 'UTC');"),
        ("native", "SELECT '2024-06-01T02:00:00+02:00' -- text with its offset"),
        ("epoch_milliseconds", "SELECT 1717200000000"),
        ("epoch_seconds", "SELECT toDecimal64(1717200000, 3)"),
    ],
)
def test_a_watermark_is_the_same_moment_in_every_type(time_format: str, text: str) -> None:
    """The query's one value is read exactly, wherever its zone is."""
    kind = "DateTime64(6, 'UTC')" if time_format == "native" else "Int64"
    create("billing.events", COLUMNS.replace("DateTime64(6, 'UTC')", kind))
    settings = {**SETTINGS, "time_format": time_format}
    source = OnChdb(**settings, watermark_query=text)
    source.check()
    assert source.watermark() == JUNE.start
    lagging = OnChdb(**settings, watermark_lag_seconds=60)
    before = datetime.now(UTC) - timedelta(seconds=60)
    assert before <= (lagging.watermark() or MIDNIGHT) <= datetime.now(UTC)


def test_a_count_carries_its_watermark() -> None:
    """The watermark is asked with the count and stands in its evidence."""
    create("billing.events", COLUMNS)
    insert("billing.events", [row(event(MIDNIGHT), written(MIDNIGHT))])
    source = OnChdb(**SETTINGS, watermark_query="SELECT max(at) FROM billing.events")
    assert told_by(source, Aggregation.COUNT).evidence.watermark == MIDNIGHT


def test_the_engine_itself_stops_in_time() -> None:
    """A count that takes too long is ended by max_execution_time, even if a profile says break."""
    run("SET timeout_overflow_mode = 'break'")
    try:
        with pytest.raises(SourceUnavailable, match="TIMEOUT_EXCEEDED"):
            told_by(endless(), Aggregation.COUNT)
    finally:
        run("SET timeout_overflow_mode = DEFAULT")


def test_distinct_values_are_counted_exactly() -> None:
    """A hundred thousand visitors are that many, which an estimate would not be."""
    create("billing.events", COLUMNS, "Memory")
    run(
        "INSERT INTO billing.events SELECT 'S-1', 'calls', toDateTime64('2024-05-01 00:00:00', 6,"
        " 'UTC'), 1, toString(number % 100003), 'eu' FROM numbers(200000)"
    )
    assert told_by(OnChdb(**SETTINGS), Aggregation.UNIQUE).value == 100_003
