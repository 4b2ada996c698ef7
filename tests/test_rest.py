"""The REST client: what was answered, or one clear error, and how often it asks."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import requests
import responses
from responses.matchers import request_kwargs_matcher
from responses.registries import OrderedRegistry

from worker.errors import (
    CredentialsRefused,
    OutcomeUnknown,
    PlatformRefused,
    PlatformUnavailable,
    ReconcilerError,
)
from worker.platforms.billforward_wire import error_of
from worker.platforms.rest import NotFound, RestClient, RestLimits
from worker.writes import Exchange

BASE = "https://bf.example/v1"
URL = f"{BASE}/things"
TOKEN = "s3cr3t-t0k3n"
QUERY: dict[str, str | int] = {"organizations": "ORG-HIDDEN"}
LIMITS = RestLimits(connect=1.5, read=2.5, total=60)
ERROR = {"errorType": "ValidationError", "errorMessage": "Validation Error\n - Field: y"}

Call = Callable[[RestClient], Any]
CALLS: dict[str, Call] = {
    "get": lambda rest: rest.get("/things", QUERY),
    "get_once": lambda rest: rest.get_once("/things"),
    "put_value": lambda rest: rest.put_value("/things", {"value": 1}),
    "post_once": lambda rest: rest.post_once("/things", {"value": 1}),
}
READS = (CALLS["get"], CALLS["get_once"])
REPEATED = (CALLS["get"], CALLS["put_value"])  # after a definite "not now"
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def brief(value: object) -> str:
    """Name a case."""
    return repr(value)[:60]


@pytest.fixture(name="http")
def _http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(registry=OrderedRegistry) as http:
        yield http


@pytest.fixture(name="slept")
def _slept() -> list[float]:
    return []


@pytest.fixture(name="rest")
def _rest(slept: list[float]) -> RestClient:
    return client(slept)


def client(
    slept: list[float], base_url: str = BASE, limits: RestLimits = LIMITS, token: str = TOKEN
) -> RestClient:
    """Make a client that records its sleeps instead of sleeping."""
    return RestClient(
        base_url, token, limits=limits, connections=4, error_of=error_of, sleep=slept.append
    )


def answer(http: responses.RequestsMock, call: Call, times: int = 1, **details: Any) -> None:
    """Let the platform give this answer next, so many times."""
    method = "GET" if call in READS else "POST"
    for _ in range(times):
        http.add(method, URL, **details)


def failure(rest: RestClient, call: Call) -> ReconcilerError:
    """Return the error that a call ends in."""
    with pytest.raises(ReconcilerError) as caught:
        call(rest)
    return caught.value


# --- what is sent


@every_call
def test_request(http: responses.RequestsMock, rest: RestClient, call: Call) -> None:
    """A request carries the token in its header only, asks for JSON and has its time-outs."""
    kept = request_kwargs_matcher({"timeout": (1.5, 2.5)})
    answer(http, call, json={"results": []}, match=[kept])
    assert call(rest) == {"results": []}
    sent = http.calls[0].request
    assert sent.headers["Authorization"] == f"Bearer {TOKEN}"
    assert sent.headers["Accept"] == "application/json"
    assert TOKEN not in str(sent.url)


def test_queries_and_bodies(http: responses.RequestsMock, rest: RestClient) -> None:
    """A GET has its query and no body, a POST its JSON body and no query."""
    http.get(URL, json={})
    http.post(URL, json={})
    rest.get("/things", {"records": 200, "order": "ASC"})
    rest.post_once("/things", {"value": 7})
    got, posted = (call.request for call in http.calls)
    assert (got.url, got.body) == (f"{URL}?records=200&order=ASC", None)
    assert (posted.url, json.loads(posted.body or b"")) == (URL, {"value": 7})
    assert posted.headers["Content-Type"] == "application/json"


def test_netrc_never_wins(
    http: responses.RequestsMock, rest: RestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .netrc entry for the host does not replace the token."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine bf.example login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    http.get(URL, json={})
    rest.get("/things")
    assert http.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"


def test_base_url_may_end_in_a_slash(http: responses.RequestsMock, slept: list[float]) -> None:
    """A slash at the base URL's end is not doubled."""
    http.get(URL, json={})
    client(slept, f"{BASE}/").get("/things")


def test_calls_are_counted(http: responses.RequestsMock, rest: RestClient) -> None:
    """Every request counts, the repeated ones too."""
    answer(http, CALLS["get"], 2, status=503)
    answer(http, CALLS["get"], json={})
    CALLS["get"](rest)
    assert rest.calls == 3


# --- what is answered


def test_numbers(http: responses.RequestsMock, rest: RestClient) -> None:
    """A number with a fraction is a Decimal with exactly its digits, any other an int."""
    http.get(URL, body='{"a": 0E-7, "b": 0.10, "c": 31.00, "d": 105, "e": 0.1000000000000000055}')
    found = rest.get("/things")
    assert [str(found[key]) for key in "abcde"] == [
        "0E-7",
        "0.10",
        "31.00",
        "105",
        "0.1000000000000000055",
    ]
    assert [type(found[key]) for key in "ad"] == [Decimal, int]


@every_call
@pytest.mark.parametrize(
    ("details", "described"),
    [
        ({"body": ""}, "200: an empty answer"),
        ({"body": "", "status": 204}, "204: an empty answer"),
        ({"body": "<h1>", "content_type": "text/html; charset=x"}, "not JSON but text/html"),
        ({"body": '{"results":[{'}, "not JSON"),
        ({"body": '{"a": NaN}'}, "not JSON"),
        ({"body": '{"a": 1e99999999999999999999}'}, "not JSON"),
        ({"body": "1" * 5000}, "not JSON"),
        ({"body": "[" * 100_000}, "not JSON"),
        ({"body": b"\xff"}, "not JSON"),
        ({"body": "<h1>", "status": 503, "content_type": "text/html"}, "503"),
        ({"body": "", "status": 500}, "500"),
        ({"json": {"errorType": "BFError"}, "status": 500}, "500 BFError:"),
        ({"json": {"errorType": "ServerError", "errorMessage": "x"}}, "200 ServerError: x"),
        ({"json": ERROR, "status": 500}, "500 ValidationError"),
        ({"json": {"errorType": "GatewayError"}, "status": 502}, "502 GatewayError"),
    ],
    ids=brief,
)
def test_no_usable_answer(
    http: responses.RequestsMock,
    rest: RestClient,
    slept: list[float],
    call: Call,
    details: dict[str, Any],
    described: str,
) -> None:
    """No usable answer: a read is PlatformUnavailable, a write OutcomeUnknown and sent once."""
    times = 4 if call is CALLS["get"] else 1
    answer(http, call, times, **details)
    error = failure(rest, call)
    assert type(error) is (PlatformUnavailable if call in READS else OutcomeUnknown)
    assert described in str(error)
    assert (len(http.calls), len(slept)) == (times, times - 1)


@every_call
@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ({"status": 401}, CredentialsRefused),
        ({"status": 403, "body": "<h1>"}, CredentialsRefused),
        ({"json": {"errorType": "Oauth"}}, CredentialsRefused),
        ({"json": {"errorType": "Oauth"}, "status": 400}, CredentialsRefused),
        ({"json": {"errorType": "PermissionsError"}}, CredentialsRefused),
        ({"status": 404, "body": "<h1>"}, NotFound),
        ({"json": {"errorType": "NoSuchEntity"}, "status": 404}, NotFound),
        ({"json": {"errorType": "NoSuchEntity"}}, NotFound),
        ({"json": ERROR, "status": 404}, PlatformRefused),
        ({"json": ERROR, "status": 400}, PlatformRefused),
        ({"json": ERROR}, PlatformRefused),
        ({"json": {"errorType": "Tomorrow"}, "status": 412}, PlatformRefused),
        ({"status": 402}, PlatformRefused),
        ({"status": 409, "body": "<h1>"}, PlatformRefused),
    ],
    ids=brief,
)
def test_definite_answers(
    http: responses.RequestsMock,
    rest: RestClient,
    call: Call,
    details: dict[str, Any],
    kind: type[ReconcilerError],
) -> None:
    """A definite no is told apart by its type at any status, and is not asked for again."""
    answer(http, call, **details)
    assert type(failure(rest, call)) is kind
    assert len(http.calls) == 1


def test_credentials_text(http: responses.RequestsMock, rest: RestClient) -> None:
    """What the platform says about our token is not repeated: it may quote it in part."""
    http.get(URL, status=401, json={"errorType": "Oauth", "errorMessage": TOKEN[:8]})
    error = failure(rest, CALLS["get"])
    assert str(error) == "GET /things: 401, the platform refused our token"


def test_error_texts(http: responses.RequestsMock, rest: RestClient) -> None:
    """An error's text is one short line of what the platform said, fit for any terminal."""
    http.get(URL, status=400, json=ERROR)
    error = failure(rest, CALLS["get"])
    assert str(error) == "GET /things: 400 ValidationError: Validation Error - Field: y"
    long = {"errorType": "T\n" * 9000, "errorMessage": "\x1b[31m\0\u202e" + "long " * 9000}
    http.get(URL, status=400, json=long)
    text = str(failure(rest, CALLS["get"]))
    assert len(text) < 700
    assert text.isprintable()


@every_call
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(http: responses.RequestsMock, rest: RestClient, call: Call, status: int) -> None:
    """A redirect is refused: the token goes nowhere else."""
    answer(http, call, status=status, headers={"Location": "https://elsewhere.example/"})
    error = failure(rest, call)
    assert type(error) is PlatformRefused
    assert "redirect" in str(error)
    assert len(http.calls) == 1


# --- when it asks again


NOT_NOW: list[dict[str, Any]] = [{"status": 429}, {"body": requests.ConnectTimeout("no")}]


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("get", [{"status": 503}, {"body": requests.ReadTimeout("lost")}, {"status": 429}]),
        ("put_value", [*NOT_NOW, {"status": 429}]),
    ],
)
def test_repeats(
    http: responses.RequestsMock,
    rest: RestClient,
    slept: list[float],
    name: str,
    faults: list[dict[str, Any]],
) -> None:
    """What is safe to repeat is repeated after growing random waits, until answered."""
    for fault in faults:
        answer(http, CALLS[name], **fault)
    answer(http, CALLS[name], json={"results": [1]})
    assert CALLS[name](rest) == {"results": [1]}
    assert all(0 <= wait <= most for wait, most in zip(slept, (0.2, 0.4, 0.8), strict=True))


@every_call
@pytest.mark.parametrize("fault", NOT_NOW, ids=brief)
def test_not_now(
    http: responses.RequestsMock, rest: RestClient, call: Call, fault: dict[str, Any]
) -> None:
    """A lasting "not now" is PlatformUnavailable after four attempts; once is once."""
    times = 4 if call in REPEATED else 1
    answer(http, call, times, **fault)
    assert type(failure(rest, call)) is PlatformUnavailable
    assert len(http.calls) == times


LOST: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 504, "headers": {"Retry-After": "1"}},
    {"status": 408},
    {"status": 200, "body": "<h1>"},
    {"body": requests.ReadTimeout("lost")},
    {"body": requests.ConnectionError("lost")},
]


@pytest.mark.parametrize("lost", LOST, ids=brief)
@pytest.mark.parametrize("before", [[], *([one] for one in NOT_NOW)], ids=brief)
def test_sent_once_and_unknown(
    http: responses.RequestsMock,
    rest: RestClient,
    slept: list[float],
    before: list[dict[str, Any]],
    lost: dict[str, Any],
) -> None:
    """An absolute value that may yet be applied is not sent again, whatever wait is asked for."""
    for fault in [*before, lost]:
        answer(http, CALLS["put_value"], **fault)
    error = failure(rest, CALLS["put_value"])
    assert type(error) is OutcomeUnknown
    assert error.retry_after == (timedelta(seconds=1) if "headers" in lost else None)
    assert len(http.calls) == rest.calls == len(before) + 1
    assert len(slept) == len(before)


def test_known_stays_known(http: responses.RequestsMock, rest: RestClient) -> None:
    """An attempt that was surely not applied leaves the later no as definite as it is."""
    answer(http, CALLS["put_value"], status=429)
    answer(http, CALLS["put_value"], status=400, json=ERROR)
    assert type(failure(rest, CALLS["put_value"])) is PlatformRefused


IN_AN_HOUR = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@every_call
@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("120", 120, 120),
        (" 120 ", 120, 120),
        (IN_AN_HOUR, 3000, 3600),
        (IN_AN_HOUR.replace("GMT", "-0000"), 3000, 3600),
        ("Fri, 31 Dec 9999 23:59:59 -2300", 10**11, 10**12),
        ("9" * 30, 10**13, 10**15),
    ],
    ids=["seconds", "seconds in spaces", "date", "date, zone unsaid", "date, far away", "huge"],
)
def test_retry_after(
    http: responses.RequestsMock,
    rest: RestClient,
    slept: list[float],
    call: Call,
    header: str,
    least: int,
    most: int,
) -> None:
    """A 429 hands its wait on, in seconds or as a date; one beyond the limit is not slept."""
    answer(http, call, status=429, headers={"Retry-After": header})
    error = failure(rest, call)
    assert type(error) is PlatformUnavailable
    assert error.retry_after is not None
    assert least <= error.retry_after.total_seconds() <= most
    assert (len(http.calls), slept) == (1, [])


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("1.5", None),
        ("inf", None),
        ("9" * 5000, None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999999", None),
        ("0", 0),
        ("-30", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_odd_retry_after(
    http: responses.RequestsMock, rest: RestClient, header: str | None, wait: int | None
) -> None:
    """A wait that cannot be read is none, and one in the past is over."""
    headers = {} if header is None else {"Retry-After": header}
    answer(http, CALLS["post_once"], status=429, headers=headers)
    error = failure(rest, CALLS["post_once"])
    assert isinstance(error, PlatformUnavailable)
    assert error.retry_after == (None if wait is None else timedelta(seconds=wait))


@pytest.mark.parametrize(("name", "status"), [("get", 503), ("put_value", 429)])
def test_short_retry_after_is_slept(
    http: responses.RequestsMock, rest: RestClient, slept: list[float], name: str, status: int
) -> None:
    """A wait within the limit is slept in full, in a read also where a 503 asks for it."""
    answer(http, CALLS[name], status=429, headers={"Retry-After": "7"})
    answer(http, CALLS[name], status=status, headers={"Retry-After": "5"})
    answer(http, CALLS[name], json={})
    CALLS[name](rest)
    assert slept == [7.0, 5.0]


@pytest.mark.parametrize(("name", "status"), [("get", 503), ("put_value", 429)])
def test_total_time(slept: list[float], name: str, status: int) -> None:
    """No further attempt is begun that would end the wait after the limit of one call."""
    rest = client(slept, limits=RestLimits(connect=1, read=1, total=1.2))

    def slow(_: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        time.sleep(0.21)
        return status, {"Retry-After": "1"}, ""

    with responses.RequestsMock() as http:
        http.add_callback("GET" if name == "get" else "POST", URL, callback=slow)
        failure(rest, CALLS[name])
        assert (len(http.calls), slept) == (1, [])


# --- connections, over real sockets on the loopback


class Local(ThreadingHTTPServer):
    """Counts connections and requests; `manner` says how it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = "good"
        self.written: Callable[[str], bytes] = str.encode  # how "echo" writes the request's header
        self.connections = 0
        self.requests: list[str] = []
        self.ended = threading.Event()
        self.let_go = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def shutdown_request(self, request: Any) -> None:
        """Note that a connection has ended."""
        super().shutdown_request(request)
        self.ended.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Local

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append(self.command)
        manner, head = self.server.manner, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        self.close_connection = manner != "good"
        if manner == "hang":
            self.server.let_go.wait(10)
        elif manner == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif manner == "garbage":
            self.wfile.write(b"\0\0\0\r\n\r\n")
        elif manner == "echo":
            echoed = self.server.written(self.headers["Authorization"])
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(echoed))
            self.wfile.write(echoed)
        elif manner == "half":
            self.wfile.write(head + b"{")
        elif manner != "drop":
            self.wfile.write(head + b"{}")

    do_GET = do_POST = _answer  # noqa: N815 - the base's names


@pytest.fixture(name="local")
def _local(monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Local() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.let_go.set()
            server.shutdown()
            thread.join()


def test_one_connection(local: Local, slept: list[float]) -> None:
    """Calls one after the other share one connection."""
    rest = client(slept, local.url)
    for call in [*CALLS.values()] * 3:
        assert call(rest) == {}
    assert (local.connections, len(local.requests)) == (1, 3 * len(CALLS))


@pytest.mark.parametrize("name", ["put_value", "post_once"])
def test_connection_closed_while_idle(local: Local, slept: list[float], name: str) -> None:
    """A kept connection that the platform has closed meanwhile does not cost a write."""
    rest = client(slept, local.url)
    local.manner = "good, then close"
    CALLS["get"](rest)
    assert local.ended.wait(5)
    assert CALLS[name](rest) == {}
    assert (local.connections, local.requests) == (2, ["GET", "POST"])


@every_call
@pytest.mark.parametrize("manner", ["hang", "reset", "drop", "half", "garbage"])
def test_lost_answers(local: Local, slept: list[float], call: Call, manner: str) -> None:
    """An answer lost on the way: a read is PlatformUnavailable, a write unknown and sent once."""
    rest = client(slept, local.url, RestLimits(connect=1, read=0.05, total=60))
    local.manner = manner
    error = failure(rest, call)
    assert type(error) is (PlatformUnavailable if call in READS else OutcomeUnknown)
    assert ("no answer in time" if manner == "hang" else "the connection broke") in str(error)
    assert len(local.requests) == (4 if call is CALLS["get"] else 1)


@every_call
def test_connection_refused(
    slept: list[float], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no connection could be made nothing was sent, so that a write did not happen."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with contextlib.closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, so that nobody else is there; not listening
        error = failure(client(slept, f"http://127.0.0.1:{unheard.getsockname()[1]}"), call)
    assert type(error) is PlatformUnavailable
    assert "no connection" in str(error)
    assert len(slept) == (3 if call in REPEATED else 0)


@every_call
def test_connect_timeout(http: responses.RequestsMock, rest: RestClient, call: Call) -> None:
    """A connection not made in time was not used either."""
    times = 4 if call in REPEATED else 1
    answer(http, call, times, body=requests.ConnectTimeout("no"))
    assert str(failure(rest, call)).endswith("/things: no connection in time")


# --- secrets


ECHO = {"errorType": f"E {TOKEN}", "errorMessage": f"unknown {TOKEN} " * 50}
HIDDEN = (TOKEN[:8], "Bearer", "HIDDEN", "organizations", "access_token", "elsewhere")
LEAKS: list[dict[str, Any]] = [
    {"status": 401, "json": {"errorType": "Oauth", "errorMessage": f"invalid {TOKEN}"}},
    {"status": 400, "json": ECHO},
    {"status": 404, "json": ECHO},
    {"status": 500, "json": ECHO},
    {"status": 200, "json": ECHO},
    {"status": 429, "json": ECHO},
    {"status": 200, "body": TOKEN},
    {"status": 302, "headers": {"Location": f"https://elsewhere.example/?access_token={TOKEN}"}},
    {"body": requests.ConnectionError("lost")},
    {"body": requests.ReadTimeout("lost")},
]


@every_call
@pytest.mark.parametrize("details", LEAKS, ids=brief)
def test_secrets(rest: RestClient, call: Call, details: dict[str, Any]) -> None:
    """No error's text holds a header or query, and not even its traceback the token."""
    cookie = {} if isinstance(details.get("body"), Exception) else {"Set-Cookie": "x=HIDDEN"}
    headers = {**details.get("headers", {}), **cookie}
    with responses.RequestsMock(
        registry=OrderedRegistry, assert_all_requests_are_fired=False
    ) as http:
        answer(http, call, 4, **{**details, **({"headers": headers} if headers else {})})
        error = failure(rest, call)
    assert not any(hidden in str(error) for hidden in HIDDEN)
    assert TOKEN not in "".join(traceback.format_exception(error))


def test_secrets_on_a_broken_connection(local: Local, slept: list[float]) -> None:
    """A broken connection's error tells the path, without its query or the token."""
    local.manner = "reset"
    error = failure(client(slept, local.url), CALLS["get"])
    assert str(error).startswith("GET /things: the connection broke")
    assert not any(hidden in str(error) for hidden in HIDDEN)
    assert TOKEN not in "".join(traceback.format_exception(error))


# --- what is told of a write


def heard_of(rest: RestClient) -> list[Exchange]:
    """Post once, whatever comes of it, and return what was told."""
    heard: list[Exchange] = []
    with contextlib.suppress(ReconcilerError):
        rest.post_once("/things", {"value": 7}, heard.append)
    return heard


def test_each_attempt_is_told(http: responses.RequestsMock, rest: RestClient) -> None:
    """Method, path and body; status and answer, without a header; not what was never sent."""
    for fault in (*NOT_NOW, {"json": {"results": []}, "headers": {"Set-Cookie": "x=HIDDEN"}}):
        answer(http, CALLS["put_value"], **fault)
    heard: list[Exchange] = []
    rest.put_value("/things", {"value": 7}, heard.append)
    request = 'POST /things {"value": 7}'
    assert heard == [Exchange(request, "429"), Exchange(request, '200 {"results": []}')]


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 2**20,
        b"x \n" * 2**18,
        bytes(range(256)) * 4096,
        b"\\" * 2**20,
        "\U0001f4a9".encode() * 2**18,
        (TOKEN + " ").encode() * 2**16,
    ],
    ids=brief,
)
def test_of_a_long_answer_the_beginning_is_told(
    http: responses.RequestsMock, rest: RestClient, body: bytes
) -> None:
    """A megabyte of anything is one printable line of 400 characters, and its size."""
    http.post(URL, body=body)
    (exchange,) = heard_of(rest)
    assert exchange.answer.startswith("200 ")
    assert exchange.answer[400:] == f"… ({len(body)} bytes)"
    assert exchange.answer.isprintable()
    assert TOKEN[:4] not in exchange.answer


def test_a_long_request_is_cut_too(http: responses.RequestsMock, rest: RestClient) -> None:
    """A batch of many charges is told by its beginning and size."""
    http.post(URL, json={})
    heard: list[Exchange] = []
    rest.post_once("/things", {"charges": ["CHG"] * 1000}, heard.append)
    assert heard[0].request.startswith('POST /things {"charges": ["CHG", "CHG"')
    assert heard[0].request[400:] == "… (7013 bytes)"


@pytest.mark.parametrize("cut_at", range(380, 402))
def test_a_cut_leaves_no_part_of_the_token(
    http: responses.RequestsMock, rest: RestClient, cut_at: int
) -> None:
    """The token is looked for in the whole answer, not in what is shown of it."""
    http.post(URL, body="x" * (cut_at - len("200 ")) + TOKEN + "y" * 400)
    (exchange,) = heard_of(rest)
    assert TOKEN[:2] not in exchange.answer


AWKWARD = "t0k/e+n=\\&\"<'%~"
WRITTEN: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "PHP's JSON": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON for HTML": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "JSON, large digits": lambda text: "".join(f"\\u{ord(c):04X}" for c in text),
    "URL": lambda text: quote(text, safe=""),
    "URL in URL": lambda text: quote(quote(text, safe=""), safe=""),
    "form": quote_plus,
    "HTML": escape,
    "HTML, numbers": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "HTML, hex": lambda text: "".join(f"&#x{ord(c):02X};" for c in text),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN.keys())
def test_an_echoed_token_is_not_told(
    local: Local, slept: list[float], written: Callable[[str], str], encoding: str
) -> None:
    """However the platform writes our header into its answer, the token is cut out of it."""
    local.manner = "echo"
    local.written = lambda header: f"[{written(header)}]".encode(encoding)
    rest = client(slept, local.url, token=AWKWARD)
    (exchange,) = heard_of(rest)
    assert "***" in exchange.answer
    assert exchange.answer.rstrip('"\\]').endswith("***")
    assert "t0k" not in exchange.answer


def test_an_empty_token_cuts_nothing(http: responses.RequestsMock, slept: list[float]) -> None:
    """Where there is no secret, nothing is masked."""
    http.post(URL, json={"a": 1})
    (exchange,) = heard_of(client(slept, token=""))
    assert exchange.answer == '200 {"a": 1}'
