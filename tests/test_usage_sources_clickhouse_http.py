"""The ClickHouse source over HTTP: what is sent, what errors mean, and that time is bounded."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from test_usage_sources_clickhouse import COLUMNS, SETTINGS, free_port, row, written
from test_usage_sources_clickhouse_engine import Server, create, insert, serving

from usage_sources.clickhouse import ClickHouseSource
from usage_sources.clickhouse.client import EngineError, rows_of
from usage_sources.contract import MAY, MIDNIGHT, event, query
from worker.errors import SourceInvalid, SourceUnavailable

PASSWORD = "s3cret-5d41"


@pytest.fixture(name="server")
def _server() -> Iterator[Server]:
    """A server over a table with one event."""
    create("billing.events", COLUMNS)
    insert("billing.events", [row(event(MIDNIGHT), written(MIDNIGHT))])
    with serving() as running:
        yield running


def source_on(port: int, **changed: Any) -> ClickHouseSource:
    """Make a source that asks this port."""
    return ClickHouseSource(**{**SETTINGS, "password": PASSWORD, **changed}, port=port)


def test_settings_go_with_each_statement(server: Server) -> None:
    """Counts only read, are bounded on the server, wait for the end, and share no session."""
    source = source_on(server.port, timeout_seconds=7.5)
    assert [tally.value for tally in source.count([query()])] == [1]
    source.close()
    counts = [each for each in server.heard if "count()" in each.text]
    assert len(counts) == 1
    told = counts[0].parameters
    assert told["readonly"] == "2"
    assert 1 <= int(told["max_execution_time"]) <= 8
    assert told["wait_end_of_query"] == "1"
    assert told["database"] == "billing"
    assert told["param_subjects"] == "['S-1']"
    assert told["param_start"] == "2024-05-01 00:00:00.000000"
    assert "session_id" not in told
    assert "S-1" not in counts[0].text
    assert all(PASSWORD not in each.text + str(each.parameters) for each in server.heard)


def test_a_connection_is_kept_warm(server: Server) -> None:
    """The driver greets the server once, and again only after it was closed."""
    source = source_on(server.port)
    for _ in range(3):
        source.count([query()])
    assert sum("version()" in each.text for each in server.heard) == 1
    source.close()
    source.count([query()])
    assert sum("version()" in each.text for each in server.heard) == 2
    source.close()


def test_no_proxy_of_the_environment_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that nobody configured here gets neither the question nor the password."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source = source_on(server.port)
    assert [tally.value for tally in source.count([query()])] == [1]
    source.close()


def test_a_watermark_comes_with_its_zone(server: Server) -> None:
    """A DateTime that is shown in any zone is the same moment over HTTP."""
    text = "SELECT toDateTime('2024-06-01 02:00:00', 'Europe/Berlin')"
    source = source_on(server.port, watermark_query=text)
    assert source.watermark() == MAY.end
    source.close()
    asked = next(each for each in server.heard if text in each.text)
    assert asked.parameters["skip_unavailable_shards"] == "0"


def failing(server: Server, **changed: Any) -> Exception:
    """Count where the server answers every count with an error."""
    source = source_on(server.port, **changed)
    with pytest.raises((SourceUnavailable, SourceInvalid)) as caught:
        source.count([query()])
    source.close()
    assert PASSWORD not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (60, 404, SourceInvalid),  # no such table
        (81, 404, SourceInvalid),  # no such database
        (115, 404, SourceInvalid),  # no such setting
        (158, 500, SourceInvalid),  # max_rows_to_read
        (159, 408, SourceUnavailable),  # max_execution_time
        (164, 500, SourceInvalid),  # readonly
        (181, 500, SourceInvalid),  # FINAL
        (201, 500, SourceUnavailable),  # quota
        (202, 503, SourceUnavailable),  # too many simultaneous queries
        (209, 500, SourceUnavailable),  # a shard's timeout
        (210, 500, SourceUnavailable),  # a shard's network
        (241, 500, SourceUnavailable),  # memory limit
        (279, 500, SourceUnavailable),  # no shard can be reached
        (369, 500, SourceUnavailable),  # all replicas are stale
        (394, 500, SourceUnavailable),  # cancelled, as when it stops
        (497, 403, SourceInvalid),  # no grant
        (516, 403, SourceInvalid),  # wrong password
        (62, 503, SourceInvalid),  # a syntax error behind any status
    ],
)
def test_a_code_says_whether_to_try_again(
    server: Server, code: int, status: int, error: type[Exception]
) -> None:
    """ClickHouse's own code decides, whatever the HTTP status is."""
    said = f"Code: {code}. DB::Exception: because of {PASSWORD}\nand more. (A_NAME) (version 26.9)"
    server.instead = (status, code, said.encode())
    caught = failing(server)
    assert type(caught) is error
    assert "because of *** and more. (A_NAME)" in str(caught)
    assert "version" not in str(caught)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, SourceUnavailable) for status in (408, 429, 500, 502, 503, 504)),
        *((status, SourceInvalid) for status in (400, 401, 403, 404, 414)),
    ],
)
def test_a_status_counts_where_no_code_is(
    server: Server, status: int, error: type[Exception]
) -> None:
    """A proxy's own answer is told from ClickHouse's: busy passes, refused does not."""
    server.instead = (status, None, b"<html>a proxy says no</html>")
    caught = failing(server)
    assert type(caught) is error
    assert f"HTTP status {status}" in str(caught)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b'{"data": [["S-1", "calls", 1]], "rows": 2}',
        b'{"data": [["S-1", "calls"',
        b'{"data": [["S-1", "calls", NaN]], "rows": 1}',
        b'{"rows": 1}',
        b"[]",
        json.dumps({"data": [["S-1", "calls", 1]], "rows": 1}).encode() + b"Code: 241. DB::",
    ],
)
def test_an_answer_that_is_not_whole_is_no_answer(server: Server, body: bytes) -> None:
    """What is cut off, followed by an error, or no JSON at all, is never a count."""
    server.instead = (200, None, body)
    assert isinstance(failing(server), SourceInvalid)
    with pytest.raises(EngineError):
        rows_of(body)


def test_a_server_that_is_away_is_told_as_such(caplog: pytest.LogCaptureFixture) -> None:
    """Refused connections are "try later", in one short line, before which the driver has none."""
    source = source_on(free_port(), timeout_seconds=2.0)
    for asking in (source.check, lambda: source.count([query()])):
        with pytest.raises(SourceUnavailable, match=r"could not be reached: \w+$") as caught:
            asking()
        assert "param_" not in str(caught.value)
    assert not [each for each in caplog.records if each.name.startswith("clickhouse_connect")]
    source.close()


def test_https_is_spoken_where_it_is_set(server: Server) -> None:
    """A secure source sends nothing, and no password, to a server that has no certificate."""
    source = source_on(server.port, secure=True, timeout_seconds=2.0)
    with pytest.raises(SourceUnavailable, match=r"https://.*(?:SSL|reached)"):
        source.count([query()])
    source.close()
    assert server.heard == []


def test_an_answer_in_drops_is_given_up() -> None:
    """A server that sends a byte now and then does not hold a count beyond its time."""
    stopped = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(30):  # and ends as a broken answer
                if stopped.wait(0.1):
                    break
                connection.sendall(b" ")

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        source = source_on(listening.getsockname()[1], timeout_seconds=0.5)
        try:
            with pytest.raises(SourceUnavailable, match=r"no answer within 0\.5"):
                source.count([query()])
        finally:
            stopped.set()
            thread.join()
            source.close()


def test_a_count_after_a_timeout_connects_anew(server: Server) -> None:
    """What was given up does not spoil the next count."""
    server.hangs = threading.Event()
    source = source_on(server.port, timeout_seconds=0.3)
    with pytest.raises(SourceUnavailable, match="no answer within"):
        source.count([query()])
    server.hangs.set()
    patient = source_on(server.port, timeout_seconds=20.0)
    assert [tally.value for tally in patient.count([query()])] == [1]
    object.__setattr__(source, "timeout_seconds", 20.0)
    assert [tally.value for tally in source.count([query()])] == [1]
    source.close()
    patient.close()
