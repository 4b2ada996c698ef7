"""A real ClickHouse for the tests: inside this process, and behind HTTP for the driver."""

from __future__ import annotations

import atexit
import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from usage_sources.clickhouse import ClickHouseSource
from usage_sources.clickhouse.client import EngineError, Executor, Rows, rows_of
from usage_sources.clickhouse.statements import Statement, parameter_text, quote
from usage_sources.contract.values import NAMES

session = pytest.importorskip("chdb.session")

_ONE_AT_A_TIME = threading.Lock()


@cache
def engine() -> Any:
    """Return the one session that a process may have."""
    opened = session.Session()
    atexit.register(opened.close)
    opened.query("SET allow_suspicious_fixed_string_types = 1", "Null")
    opened.query("SET max_threads = 1", "Null")  # quicker for a few rows
    opened.query("CREATE DATABASE billing", "Null")
    return opened


def run(text: str, *, form: str = "Null", parameters: Mapping[str, str] | None = None) -> bytes:
    """Run any statement; raise EngineError with ClickHouse's own code."""
    with _ONE_AT_A_TIME:
        try:
            return bytes(engine().query(text, form, params=dict(parameters or {})).bytes())
        except Exception as error:  # noqa: BLE001 - the module's own error has no other base
            # What a failed statement had written already would stand before the next answer.
            engine().query("SELECT 1", "Null")
            code = re.search(r"Code: (\d+)", str(error))
            raise EngineError(str(error), code=int(code[1]) if code else None) from None


def with_settings(text: str, form: str, settings: Mapping[str, str | int]) -> str:
    """Write settings behind a statement, as HTTP sends them beside it."""
    told = [f"{name} = {quote(str(value))}" for name, value in settings.items()]
    return f"{text}\nFORMAT {form}" + (f" SETTINGS {', '.join(told)}" if told else "")


@cache
def settings_of_server() -> bytes:
    """Return what the driver asks for whenever it connects."""
    return run("SELECT name, value, readonly FROM system.settings LIMIT 10000", form="Native")


class ChdbExecutor:
    """Runs statements in this process, with parameters as clickhouse-client takes them."""

    def run(self, statement: Statement, seconds: float) -> Rows:
        """Run one statement in bounded time."""
        settings = {
            **statement.settings,
            "date_time_output_format": "iso",
            "max_execution_time": max(1, round(seconds)),
        }
        text = with_settings(statement.text, "JSONCompact", settings)
        bound = {name: parameter_text(each) for name, each in statement.parameters.items()}
        return rows_of(run(text, form="JSONCompact", parameters=bound))

    def close(self) -> None:
        """Keep the session, which other sources share."""


class OnChdb(ClickHouseSource):
    """The source with its statements run in this process."""

    def connect(self) -> Executor:
        """Take the engine of this process, where no server is needed."""
        return ChdbExecutor()


@dataclass
class Heard:
    """One request as the server got it."""

    text: str
    parameters: dict[str, str]
    headers: dict[str, str]


@dataclass
class Server:
    """An HTTP server that runs what it is sent in this process's ClickHouse."""

    port: int = 0
    heard: list[Heard] = field(default_factory=list)
    # What the next counts get instead of an answer: status, ClickHouse's code, body.
    instead: tuple[int, int | None, bytes] | None = None
    hangs: threading.Event | None = None  # answers nothing until it is set

    def answer(self, heard: Heard) -> tuple[int, int | None, bytes]:
        """Return status, ClickHouse's code if it is an error, and body."""
        self.heard.append(heard)
        named = heard.parameters
        ours = "'setting', name" in heard.text or "system.settings" not in heard.text
        if self.instead is not None and ours and "version()" not in heard.text:
            return self.instead
        if self.hangs is not None:
            self.hangs.wait(20)
        bound = {name[6:]: text for name, text in named.items() if name.startswith("param_")}
        kept = ("date_time_output_format", "max_execution_time")
        settings = {name: named[name] for name in kept if name in named}
        text, _, form = heard.text.rpartition("\n FORMAT ")
        if not text:
            text, form = heard.text, "TabSeparated"
        if "param_guards" not in named and "system.settings" in text:
            return 200, None, settings_of_server()
        try:
            return 200, None, run(with_settings(text, form, settings), form=form, parameters=bound)
        except EngineError as error:
            return 500, error.code, str(error).encode()


def _form_of(content: bytes, content_type: str) -> dict[str, str]:
    """Read multipart form data, as the driver sends long parameters."""
    message = BytesParser(EmailMessage, policy=HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + content
    )
    return {
        str(part.get_param("name", header="content-disposition")): bytes(
            part.get_payload(decode=True) or b""
        ).decode()
        for part in message.iter_parts()
    }


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    """Make the handler of one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            named = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/"):
                named |= _form_of(content, kind)
            text = named.pop("query", "") or content.decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, code, body = server.answer(Heard(text, named, headers))
            try:
                self.send_response(status)
                if code is not None:
                    self.send_header("X-ClickHouse-Exception-Code", str(code))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on the loopback until the block ends."""
    server = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    http.daemon_threads = True
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        if server.hangs is not None:
            server.hangs.set()
        http.shutdown()
        thread.join()
        http.server_close()


def insert(table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store rows."""
    if rows:
        run(f"INSERT INTO {table} FORMAT JSONEachRow\n" + "\n".join(map(json.dumps, rows)))


_made: dict[str, str] = {}


def create(table: str, columns: str, how: str = "MergeTree ORDER BY tuple()") -> None:
    """Make an empty table, in place of one that was there."""
    text = f"CREATE TABLE {table} ({columns}) ENGINE = {how}"
    if _made.get(table) == text:  # emptying is quicker than making
        run(f"TRUNCATE TABLE {table}")
        return
    run(f"DROP TABLE IF EXISTS {table} SYNC")
    run(text)
    _made[table] = text


HARMFUL = [*NAMES, "a\tb\nc\rd", "e\\'f", "\\N", "[]", "{x:String}", "g\0h", "", "`", "\\"]


def test_a_parameter_is_read_as_it_was_meant() -> None:
    """Each harmful text, alone and in a list, is the same text for the engine."""
    assert parameter_text(["g\0h\n", 7]) == "['g\\0h\\n',7]"
    together = Statement(
        text="SELECT {each:String}, {all:Array(String)}",
        parameters={"each": "\\'\t\n\0", "all": HARMFUL},
    )
    assert ChdbExecutor().run(together, 5) == [["\\'\t\n\0", HARMFUL]]
    for name in HARMFUL:
        alone = Statement(text="SELECT {each:String}", parameters={"each": name})
        assert ChdbExecutor().run(alone, 5) == [[name]]


def test_the_driver_sends_parameters_as_they_were_meant() -> None:
    """The same texts, through clickhouse-connect and HTTP, in the address or in a form."""
    with serving() as server:
        source = ClickHouseSource(
            host="127.0.0.1",
            port=server.port,
            username="reader",
            password="s3cret",
            table="t",
            subject_column="s",
            time_column="at",
            time_format="native",
        )
        executor = source.connect()
        statement = Statement(text="SELECT {all:Array(String)}", parameters={"all": HARMFUL})
        short = Statement(text="SELECT {all:Array(String)}", parameters={"all": HARMFUL[-9:]})
        assert executor.run(statement, 5) == [[HARMFUL]]
        assert executor.run(short, 5) == [[HARMFUL[-9:]]]
        executor.close()
        form, address = server.heard[-2].headers, server.heard[-1].headers
    assert form["content-type"].startswith("multipart/form-data")
    assert not address.get("content-type", "").startswith("multipart/")
    told = base64.b64decode(form["authorization"].removeprefix("Basic ")).decode()
    assert told == "reader:s3cret"
