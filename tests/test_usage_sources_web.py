"""The JSON-over-HTTP client of usage sources: bounded, exact, silent about secrets."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_server import Asked, Reply, Serving, nobody, serving, talking

import usage_sources.web
from usage_sources.web import (
    Credentials,
    Deadline,
    NotThere,
    Refused,
    WebApi,
    check_base_url,
    check_header,
    path_segment,
)
from worker.errors import PermanentError, SourceInvalid, SourceUnavailable, TransientError

SECRET = 's3cr3t/t0k3n+"ä'
GONE_BY = 10  # seconds that no test's timeout of 0.3 may take


@pytest.fixture(name="server")
def _server() -> Iterator[Serving]:
    with serving(lambda _: Reply({})) as running:
        yield running


@pytest.fixture(name="api")
def _api(server: Serving) -> Iterator[WebApi]:
    api = client(server.url)
    yield api
    api.close()


def client(url: str, seconds: float = 5) -> WebApi:
    """Make a client with a secret."""
    return WebApi(
        url,
        kind="thing",
        timeout_seconds=seconds,
        credentials=Credentials(headers={"Authorization": "Bearer s3cr3t"}, secrets=[SECRET, ""]),
    )


def answers(server: Serving, body: Any, status: int = 200, **headers: str) -> None:
    """Let the server answer this."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    server.answering = lambda _: Reply(body, status, named)


def given_up(url: str) -> str:
    """Ask with a timeout of 0.3 seconds; return the text of the error, which must be soon."""
    api = client(url, 0.3)
    began_at = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        api.get("/x")
    assert time.monotonic() - began_at < GONE_BY
    api.close()
    return str(caught.value)


class TestAnswers:
    """What a 200 carries."""

    def test_numbers_keep_every_digit(self, server: Serving, api: WebApi) -> None:
        """A number with a point is a Decimal of its own text, one without an int."""
        answers(server, b'{"a": 0.1, "b": 123456789012345678901234567890, "c": 1e2, "d": "1.10"}')
        answer = api.get("/x")
        assert answer == {"a": Decimal("0.1"), "b": 123456789012345678901234567890, "c": 100} | {
            "d": "1.10"
        }
        assert not any(isinstance(each, float) for each in answer.values())

    @pytest.mark.parametrize(
        "body",
        [
            b" ",
            b"<html>",
            b'{"a": 1',
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"a": -Infinity}',
            b'{"a": 1e99999999999999999999}',
            b'{"a": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"a": "\xff"}',
        ],
        ids=lambda body: repr(body)[:20],
    )
    def test_what_is_not_exact_json_is_refused(
        self, server: Serving, api: WebApi, body: bytes
    ) -> None:
        """No half answer, no number that is none."""
        answers(server, body)
        with pytest.raises(SourceInvalid, match="GET /x: the answer is not JSON"):
            api.get("/x")

    def test_a_name_that_stands_twice_is_refused(self, server: Serving, api: WebApi) -> None:
        """The refusal says which name it is, and no secret, should that be one."""
        for name, told in (("total", "total"), (SECRET, r"\*\*\*")):
            twice = json.dumps({name: 1, "other": 2}).replace('"other"', json.dumps(name))
            answers(server, f"[{twice}]".encode())
            with pytest.raises(SourceInvalid, match=f'GET /x: the answer has "{told}" twice in'):
                api.get("/x")

    def test_a_packed_answer_is_read(self, server: Serving, api: WebApi) -> None:
        """Gzip, which is what is asked for, is unpacked."""
        answers(server, gzip.compress(b'{"a": 1}'), Content_Encoding="gzip")
        assert api.get("/x") == {"a": 1}
        assert server.asked[0].headers["Accept-Encoding"] == "gzip"

    @pytest.mark.parametrize(
        ("body", "encoding", "told"),
        [
            (gzip.compress(b" " * (64 << 20)), "gzip", "larger than 16777216 bytes, unpacked"),
            (gzip.compress(b"{}")[:-9], "gzip", "not one whole gzip"),
            (gzip.compress(b"{}") + gzip.compress(b"{}"), "gzip", "not one whole gzip"),
            (b"{}", "gzip", "not the gzip that it says"),
            (gzip.compress(gzip.compress(b"{}")), "gzip, gzip", "not asked for"),
            (b"{}", "br", "not asked for"),
        ],
        ids=["bomb", "cut", "two", "plain", "twice", "br"],
    )
    def test_a_badly_packed_answer_is_refused(
        self, server: Serving, api: WebApi, body: bytes, encoding: str, told: str
    ) -> None:
        """A bomb is never unpacked beyond the bound; a cut or strange packing is no answer."""
        answers(server, body, Content_Encoding=encoding)
        with pytest.raises(SourceInvalid, match=told):
            api.get("/x")

    def test_a_bomb_takes_little_memory(self, server: Serving, api: WebApi) -> None:
        """Of 64 MiB packed in 64 KiB, only as much is unpacked as shows that it is too much."""
        answers(server, gzip.compress(b" " * (64 << 20)), Content_Encoding="gzip")
        tracemalloc.start()
        try:
            with pytest.raises(SourceInvalid, match="unpacked"):
                api.get("/x")
            assert tracemalloc.get_traced_memory()[1] < 48 << 20
        finally:
            tracemalloc.stop()

    def test_a_large_answer_is_refused(
        self, server: Serving, api: WebApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More than the bound is not even read; what the status says is still told."""
        monkeypatch.setattr(usage_sources.web, "_MOST_BYTES", 1000)
        answers(server, b"[" + b" " * 998 + b"]")
        assert api.get("/x") == []
        answers(server, b"[" + b" " * 999 + b"]")
        with pytest.raises(SourceInvalid, match="larger than 1000 bytes"):
            api.get("/x")
        answers(server, b"x" * 2000, 503)
        with pytest.raises(SourceUnavailable, match="503"):
            api.get("/x")

    def test_connections_are_kept(self, server: Serving, api: WebApi) -> None:
        """Request after request goes over one connection."""
        for _ in range(5):
            api.get("/x")
        assert len(server.connections) == 1

    def test_a_question_can_have_a_body(self, server: Serving, api: WebApi) -> None:
        """POST sends JSON and reads the answer as GET does."""
        server.answering = lambda asked: Reply(json.loads(asked.body))
        assert api.post("/x", {"from": "é"}) == {"from": "é"}
        assert server.asked[0].method == "POST"


class TestErrors:
    """Who must mend what."""

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
    def test_later(self, server: Serving, api: WebApi, status: int) -> None:
        """What may be well again soon is to be tried later."""
        answers(server, {"message": "busy"}, status)
        with pytest.raises(SourceUnavailable, match=f'GET /x: {status} {{"message": "busy"}}'):
            api.get("/x")

    @pytest.mark.parametrize("status", [400, 402, 405, 409, 410, 422, 451])
    def test_refused(self, server: Serving, api: WebApi, status: int) -> None:
        """What the API says no to, a person must look at; the status can be asked for."""
        answers(server, {}, status)
        with pytest.raises(Refused, match=str(status)) as caught:
            api.get("/x")
        assert caught.value.status == status
        assert not isinstance(caught.value, NotThere | TransientError)

    def test_absent(self, server: Serving, api: WebApi) -> None:
        """404 is an error of its own."""
        answers(server, {}, 404)
        with pytest.raises(NotThere) as caught:
            api.get("/x")
        assert caught.value.status == 404
        assert isinstance(caught.value, PermanentError)

    @pytest.mark.parametrize("status", [401, 403])
    def test_credentials(self, server: Serving, api: WebApi, status: int) -> None:
        """A refused token is told without what the API says of it, and is no mere refusal."""
        answers(server, {"your": "token s3cr3t"}, status)
        with pytest.raises(SourceUnavailable, match=r"refused our credentials$") as caught:
            api.get("/x")
        assert not isinstance(caught.value, Refused)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_no_redirect_is_followed(self, server: Serving, api: WebApi, status: int) -> None:
        """A redirect could carry the token elsewhere; it is told instead."""
        answers(server, {}, status, Location=f"{server.url}/y")
        with pytest.raises(SourceInvalid, match=f"{status}, a redirect"):
            api.get("/x")
        assert [each.target for each in server.asked] == ["/x"]

    @pytest.mark.parametrize("status", [201, 202, 204, 206])
    def test_only_200_is_an_answer(self, server: Serving, api: WebApi, status: int) -> None:
        """Part of an answer, or a promise of one, is none."""
        answers(server, b"" if status == 204 else {"total": 1}, status)
        with pytest.raises(SourceInvalid, match=f"{status} is no answer"):
            api.get("/x")

    @pytest.mark.parametrize(
        ("text", "wait"),
        [
            ("7", timedelta(seconds=7)),
            (" 7 ", timedelta(seconds=7)),
            ("0", timedelta(0)),
            ("9" * 30, timedelta(days=1)),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("²", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", timedelta(0)),
            ("Wed, 21 Oct 2015 07:28:00 -0000", timedelta(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", timedelta(days=1)),
            ("Fri, 31 Dec 9999 23:59:59 -2300", timedelta(days=1)),
            ("Fri, 99 Dec 2024 23:59:59 GMT", None),
        ],
    )
    def test_retry_after(
        self, server: Serving, api: WebApi, text: str, wait: timedelta | None
    ) -> None:
        """The wait that is asked for is passed on, at most a day, and never a wrong one."""
        answers(server, {}, 429, Retry_After=text)
        with pytest.raises(SourceUnavailable) as caught:
            api.get("/x")
        assert caught.value.retry_after == wait

    def test_retry_after_a_date(self, server: Serving, api: WebApi) -> None:
        """A date is as long as it is away."""
        in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        answers(server, {}, 503, Retry_After=in_an_hour)
        with pytest.raises(SourceUnavailable) as caught:
            api.get("/x")
        wait = caught.value.retry_after
        assert wait is not None
        assert timedelta(minutes=58) < wait <= timedelta(hours=1)

    @given(text=st.text(st.characters(max_codepoint=255), max_size=40))
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_retry_after_anything(self, text: str) -> None:
        """Whatever stands in the header, reading it fails on nothing."""
        wait = usage_sources.web._retry_after({"Retry-After": text})
        assert wait is None or timedelta(0) <= wait <= timedelta(days=1)


class TestTime:
    """What is slow is given up; nothing waits longer than it may."""

    def test_a_server_that_is_not_there(self) -> None:
        """A refused connection is "try later"."""
        assert "no answer (ConnectionError)" in given_up(nobody())

    def test_a_server_that_says_nothing(self, server: Serving) -> None:
        """No answer at all is given up at the timeout."""
        server.answering = server.hang
        assert "no answer within 0.3 s" in given_up(server.url)

    @pytest.mark.parametrize(
        "begun",
        [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
        ],
        ids=["status", "headers", "body", "chunks", "until the end"],
    )
    def test_a_server_that_drips(self, begun: bytes) -> None:
        """A byte now and then resets a socket's timeout, and buys no time here."""

        def drip(connection: socket.socket, closing: threading.Event) -> None:
            connection.sendall(begun)
            while not closing.wait(0.05):
                connection.sendall(b"1")

        with talking(drip) as url:
            assert "no answer within 0.3 s" in given_up(url)

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Len",
            b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a":',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":',
            b"220 mail.example ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        ],
        ids=["nothing", "half a header", "half a body", "half a chunk", "mail", "many headers"],
    )
    def test_an_answer_that_breaks_off(self, said: bytes) -> None:
        """A broken connection is "try later", never a shorter answer."""
        with talking(lambda connection, _: connection.sendall(said)) as url:
            assert "answer" in given_up(url)

    def test_many_requests_share_a_deadline(self, server: Serving, api: WebApi) -> None:
        """Once the time of a count is up, nothing more is sent."""
        over = Deadline(0)
        with pytest.raises(SourceUnavailable, match="no answer within 0 s"):
            api.get("/x", deadline=over)
        api.get("/y")
        assert [each.target for each in server.asked] == ["/y"]
        assert 0 < Deadline(5).left() <= 5

    def test_the_next_request_is_not_disturbed(self, server: Serving) -> None:
        """After one that was given up, the same client asks again and is answered."""
        api = client(server.url, 0.3)
        server.answering = server.hang
        with pytest.raises(SourceUnavailable):
            api.get("/x")
        answers(server, {"a": 1})
        assert api.get("/x", deadline=Deadline(5)) == {"a": 1}
        api.close()


class TestSecrets:
    """R9: no text holds a secret."""

    @pytest.mark.parametrize(
        "echo",
        [
            SECRET,
            json.dumps(SECRET),
            json.dumps(SECRET, ensure_ascii=False),
            json.dumps(SECRET).replace("/", "\\/"),
            "?key=s3cr3t%2Ft0k3n%2B%22%C3%A4",
            " " * 3995 + SECRET,
            "x" * 190 + SECRET,
        ],
    )
    def test_an_echo_is_blotted_out(self, server: Serving, api: WebApi, echo: str) -> None:
        """Whole, escaped or at a cut, what the API repeats of a secret is not told."""
        answers(server, echo.encode(), 400)
        with pytest.raises(Refused) as caught:
            api.get("/x")
        told = "".join(traceback.format_exception(caught.value))
        assert "s3c" not in told
        assert "0k3n" not in told

    def test_a_text_is_one_short_line(self, server: Serving, api: WebApi) -> None:
        """What an API says is cut, and cannot forge lines or colours in a log."""
        answers(server, "é\n\x1b[31m\u2028".encode() + b"y" * 100_000, 400)
        with pytest.raises(Refused) as caught:
            api.get("/" + "s" * 10_000)
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) < 600

    def test_the_query_is_not_told(self, server: Serving, api: WebApi) -> None:
        """An error names the path, not the parameters."""
        answers(server, {}, 400)
        with pytest.raises(Refused) as caught:
            api.get("/x", [("tenant", "private")])
        assert "private" not in str(caught.value)

    def test_no_proxy_netrc_or_cookie(
        self,
        server: Serving,
        api: WebApi,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Nothing of the machine's environment, or of an earlier answer, goes along."""
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, nobody())
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        answers(server, {}, Set_Cookie="a=b; Path=/")
        api.get("/x")
        api.get("/x")
        for asked in server.asked:
            assert asked.headers["Authorization"] == "Bearer s3cr3t"
            assert "Cookie" not in asked.headers


class TestAddresses:
    """Whatever a name holds, it stays a name."""

    @given(value=st.text(min_size=1, max_size=30))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_a_segment_is_read_as_it_was(self, value: str) -> None:
        """Any text is one segment of the path, or refused; it arrives as it was."""
        try:
            segment = path_segment(value)
        except ValueError:
            assert value in (".", "..") or not value.isprintable()
            return
        asked = Asked("GET", f"/a/{segment}/b", {}, b"")
        assert asked.path == ["a", value, "b"]

    @pytest.mark.parametrize("value", ["", ".", ".."])
    def test_no_segment_leads_elsewhere(self, value: str) -> None:
        """What a client or server would take out of a path cannot stand in it."""
        with pytest.raises(ValueError, match="cannot stand in the path"):
            path_segment(value)

    @pytest.mark.parametrize(
        "name", ["a/../b", "%2e%2e", "a?b=c", "a#b", "..;", "a\\b", "%", "%zz", "ä", "a b", "a+b"]
    )
    def test_the_server_gets_what_was_meant(self, server: Serving, api: WebApi, name: str) -> None:
        """Path and parameters survive the journey, and the address told is the one asked."""
        path, query = f"/u/{path_segment(name)}/x", [("q[k]", name), ("q[k]", "2")]
        api.get(path, query)
        asked = server.asked[0]
        assert asked.path == ["u", name, "x"]
        assert asked.query == query
        assert api.url(path, query) == server.url + asked.target

    @pytest.mark.parametrize(
        ("link", "leads"),
        [
            ("/y?page=2", "/y?page=2"),
            ("?page=2", "/x?page=2"),
            ("y#here", "/y"),
            ("http://evil.example/y", None),
            ("//evil.example/y", None),
            ("https://127.0.0.1/y", None),
            ("http://me@127.0.0.1/y", None),
            ("http://127.0.0.1:1/y", None),
            ("http://127.0.0.1:x/y", None),
            ("http://[", None),
            ("file:///etc/passwd", None),
            ("/y\n", None),
        ],
    )
    def test_a_link_stays_at_its_origin(
        self, api: WebApi, server: Serving, link: str, leads: str | None
    ) -> None:
        """A link to another scheme, host or port is refused: the token would go there."""
        if leads is None:
            with pytest.raises(SourceInvalid, match="links to another place"):
                api.next_url(api.url("/x"), link)
        else:
            assert api.next_url(api.url("/x"), link) == server.url + leads

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "api.example",
            "ftp://api.example",
            "http://",
            "http://user:pw@api.example",
            "http://:pw@api.example",
            "http://api.example?key=1",
            "http://api.example/#x",
            "http://api.example:99999",
            "http://api.example:0",
            "http://api.example/a b",
            "http://api.example/\n",
            "http://[::1",
        ],
    )
    def test_a_wrong_base_url_is_refused(self, url: str) -> None:
        """The setting is named, and what stands in it, which may be a password, is not."""
        with pytest.raises(ValueError, match=r"^base_url must be") as caught:
            check_base_url(url)
        assert "pw" not in str(caught.value)

    def test_a_certificate_must_be_trusted(self, tmp_path: Path) -> None:
        """A server whose certificate nobody vouches for is not asked; a file can vouch for it."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("there is no openssl to make a certificate with")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        subprocess.run([*made, *subject, *files], check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with serving(lambda _: Reply({"a": 1}), tls) as running:
            assert "no answer (SSLError)" in given_up(running.url)
            assert running.asked == []
            trusting = WebApi(
                running.url,
                kind="thing",
                timeout_seconds=5,
                credentials=Credentials(headers={}),
                ca_file=str(certificate),
            )
            assert trusting.get("/x") == {"a": 1}
            trusting.close()

    def test_the_place_is_told(self) -> None:
        """Errors begin with the kind and the address."""
        assert client("http://api.example/v1/").place == "thing http://api.example/v1"

    @pytest.mark.parametrize(
        "value", ["s3c\nb", "s3c\r\nX: y", " s3c", "s3c ", "s3cä", "s3c\x00", "s3c\x7f"]
    )
    def test_a_header_carries_a_secret_or_refuses_it(self, value: str) -> None:
        """A token that a header would change or break is a mistake of the settings."""
        check_header("token", "Bearer a-b_c.d~e+f/g==")
        with pytest.raises(ValueError, match=r"^token may hold") as caught:
            check_header("token", value)
        assert "s3c" not in str(caught.value)
