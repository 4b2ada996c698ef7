"""Requests that are twisted themselves: paths, headers and lengths, on the real server."""

from __future__ import annotations

import gzip
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from test_hostile_bodies import BODIES, GOOD, client, stored
from test_webhook_app import PASSWORD, URL, USER, basic, post

from worker.demo.redis_server import free_port

__all__ = ["client"]  # a fixture
MOST_MEMORY_KB = 64 * 1024


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"),
        *("application/json; charset=utf-7", "", "\t;;="),
    ],
)
def test_the_content_type_decides_nothing(client: FlaskClient, kind: str) -> None:
    """A notification under another content type is read as the JSON it is."""
    assert post(client, GOOD, **{"Content-Type": kind}).json == {"result": "new"}


@pytest.mark.parametrize(
    "url",
    [
        *("/webhooks//billforward", "//webhooks/billforward", URL + "/", URL + "/..", URL + "%2f"),
        *("/webhooks/./billforward", "/webhooks/%2e%2e/billforward", "/webhooks/%ff%00"),
        *(URL + "%0d%0a", URL + ";x", "/WEBHOOKS/billforward", "/webhooks/BillForward"),
        "/webhooks/" + "a" * 3000,
    ],
)  # fmt: skip
def test_a_twisted_path_is_404_in_json(client: FlaskClient, journal_url: str, url: str) -> None:
    """No path but the exact one is taken or redirected; without the password it says no more."""
    before = stored(journal_url)
    answer = post(client, GOOD, url=url)
    assert answer.status_code == 404
    assert answer.json is not None
    assert answer.json["message"]
    assert client.post(url, data=GOOD).status_code in (401, 404)
    assert stored(journal_url) == before


@dataclass(frozen=True)
class Served:
    """The real server: its port, its log and the process that answers."""

    port: int
    log: Path
    journal_url: str

    def ask(self, *headers: str, body: bytes = b"", line: str = f"POST {URL} HTTP/1.1") -> bytes:
        """Send a request as it is written and return everything that comes back."""
        head = "".join(f"{each}\r\n" for each in (line, *headers, "")).encode("latin-1")
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            with suppress(OSError):  # it may hang up on what it refused
                connection.sendall(head + body)
                connection.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                while part := connection.recv(65536):
                    answer += part
        return answer

    def most_memory_kb(self) -> int:
        """Return the most memory the answering process has ever had."""
        pid = re.findall(r"Booting worker with pid: (\d+)", self.log.read_text())[-1]
        return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server, by its command, with logs for people."""
    folder = tmp_path_factory.mktemp("served")
    port, log, config = free_port(), folder / "serve.log", folder / "config.toml"
    journal_url = f"sqlite:///{folder}/journal.db"
    config.write_text(
        f'[webhook]\nusername = "{USER}"\nport = {port}\nprocesses = 1\n'
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[journal]\nurl = "{journal_url}"\n[log]\nlevel = "debug"\nformat = "console"\n'
        '[queue]\nredis_url = "redis://127.0.0.1:9/0"\n'
    )
    environ = {
        **{name: value for name, value in os.environ.items() if "RECONCILER" not in name},
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__WEBHOOK__PASSWORD": PASSWORD,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-tests",
    }
    command = [sys.executable, "-m", "worker", "serve"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
    try:
        for _ in range(400):
            if "Booting worker" in log.read_text():
                break
            time.sleep(0.05)
        running = Served(port, log, journal_url)
        assert b'{"ok":true}' in running.ask("Host: h", line="GET /healthz HTTP/1.1")
        yield running
    finally:
        server.terminate()
        assert server.wait(15) == 0


LENGTH = f"Content-Length: {len(GOOD)}"
CREDENTIALS = f"Authorization: {basic()['Authorization']}"
HEADS = {
    "two lengths that differ": [LENGTH, "Content-Length: 5"],
    "one length twice": [LENGTH, LENGTH],
    "two lengths in one": [f"{LENGTH}, 5"],
    "a negative length": ["Content-Length: -1"],
    "a signed length": [f"Content-Length: +{len(GOOD)}"],
    "a length of 5,000 digits": ["Content-Length: " + "9" * 5_000],
    "a length of ten terabytes": ["Content-Length: 10000000000000"],
    "a length too short": ["Content-Length: 10"],
    "a length too long": [f"Content-Length: {len(GOOD) + 1}"],
    "no length": [],
    "a length and chunks": [LENGTH, "Transfer-Encoding: chunked"],
    "compressed transfer": [LENGTH, "Transfer-Encoding: gzip"],
    "a space before the colon": [LENGTH, "Transfer-Encoding : chunked"],
    "a folded header": [LENGTH, "X-A: a", "  b"],
    "two hosts": [LENGTH, "Host: other"],
    "NUL in a header": [LENGTH, "X-A: a\0b"],
    "a bare line feed": [LENGTH, "X-A: a\nTransfer-Encoding: chunked"],
    "many headers": [LENGTH, *(f"X-{n}: 1" for n in range(200))],
    "a long header": [LENGTH, "X-A: " + "a" * 100_000],
    "gzip": [LENGTH, "Content-Encoding: gzip"],
    "a header without a colon": [LENGTH, CREDENTIALS.replace(":", "", 1)],
}


def test_a_twisted_request_is_4xx_and_stores_nothing(served: Served) -> None:
    """Lengths, chunks and headers that tell two stories are refused; what is whole is taken."""
    before = stored(served.journal_url)
    for name, head in HEADS.items():
        answer = served.ask("Host: h", CREDENTIALS, *head, body=GOOD)
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), (name, answer)
        assert (name, stored(served.journal_url)) == (name, before)
    assert b'{"result":"new"}' in served.ask("Host: h", CREDENTIALS, LENGTH, body=GOOD)
    log = served.log.read_text()
    assert "Invalid HTTP Header: 'Authorization Basic ***'" in log
    assert CREDENTIALS.split()[-1] not in log


@pytest.mark.parametrize("credentials", [[CREDENTIALS], []], ids=["password", "none"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_request_inside_a_refused_body_is_never_read(
    served: Served, credentials: list[str], chunked: bool
) -> None:
    """What hides in a body that is refused unread does not become a request of its own."""
    head = "\r\n".join((f"POST {URL} HTTP/1.1", "Host: h", CREDENTIALS, LENGTH, "", ""))
    hidden = head.encode() + GOOD
    before = stored(served.journal_url)
    if chunked:
        framing = "Transfer-Encoding: chunked"
        body = b"%x\r\n" % len(hidden) + hidden + b"\r\n0\r\n\r\n"
    else:
        framing, body = f"Content-Length: {300_000}", hidden.ljust(300_000)
    answer = served.ask("Host: h", *credentials, framing, body=body)
    assert len(re.findall(rb"HTTP/1.1 4\d\d ", answer)) == 1
    assert b"HTTP/1.1 2" not in answer
    assert stored(served.journal_url) == before


def test_hostile_bodies_cost_the_real_server_little_memory(served: Served) -> None:
    """All of them, and a bomb of 200 MB under Content-Encoding, need less than 64 MiB more."""
    before, memory_before = stored(served.journal_url), served.most_memory_kb()
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)[: 200 * 1024]
    requests = [(body, "X-A: a") for body in BODIES.values()]
    requests += [(bomb, "Content-Encoding: gzip"), (bytes(20_000_000), "X-A: a")]
    for body, header in requests:
        answer = served.ask(
            "Host: h", CREDENTIALS, header, f"Content-Length: {len(body)}", body=body
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", answer)
        assert b"Content-Type: application/json" in answer
    assert stored(served.journal_url) == before
    assert served.most_memory_kb() - memory_before < MOST_MEMORY_KB


def test_a_path_cannot_steer_the_terminal_of_the_log(served: Served) -> None:
    """Escape sequences and line ends of an unknown caller are written out, not obeyed."""
    line = "POST /webhooks/a%0a2026-01-01T00:00:00Z%20[info]%20issued%0d%1b[2J%1b]0;x%07 HTTP/1.1"
    assert b" 401 " in served.ask("Host: h", "Content-Length: 0", line=line)
    line = "POST /webhooks/a%1b[2J%C2%9b1mb HTTP/1.1"
    assert b" 401 " in served.ask("Host: h", "Content-Length: 0", line=line)
    log = served.log.read_bytes().decode()
    assert "x1b[2J" in log
    assert all(c.isprintable() or c == "\n" for c in log)
    assert not any(line.startswith("2026-01-01T00:00:00Z") for line in log.splitlines())


def test_who_speaks_http_1_0_is_not_of_this_machine(served: Served) -> None:
    """A proxy that says nothing of itself speaks it, and what only this machine may read stays."""
    for version, status in ((b"1.1", b"200 OK"), (b"1.0", b"403 FORBIDDEN")):
        line = f"GET /metrics HTTP/{version.decode()}"
        answer = served.ask("Host: localhost", "Connection: close", line=line)
        assert answer.split(b"\r\n")[0].endswith(status)
