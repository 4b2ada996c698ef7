"""The endpoint takes what is a notification, durably, and answers everything else clearly."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from werkzeug.test import TestResponse

from webhook_app import create_app
from worker.config import config_of
from worker.demo.redis_server import free_port, redis_server
from worker.errors import ConfigError
from worker.journal.sqlite import SqliteJournal

USER, PASSWORD, OLD_PASSWORD = "billing", "pässword-of-tests", "the-former-password"
NOT = "NOT-A66C1042-83BC-4224-B197-D6D7BC37"
URL = "/webhooks/billforward"


def notification(**changed: Any) -> dict[str, Any]:
    """Make a notification as BillForward sends it: entity is a string, with a key twice."""
    return {
        "type": "notification",
        "id": NOT,
        "created": "2015-12-02T12:24:10Z",
        "domain": "Invoice",
        "action": "Pending",
        "entityID": INV,
        "entity": f'{{"type": "invoice", "id": "{INV}", "type": "Subscription"}}',
        **changed,
    }


def basic(user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    """Make the header of HTTP basic authentication."""
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def client_for(journal_url: str, redis_url: str) -> FlaskClient:
    """Make the application and a client for it."""
    config = config_of(
        {"platforms": {"billforward": {"base_url": "http://127.0.0.1:9/v1"}}},
        {
            "RECONCILER__WEBHOOK__USERNAME": USER,
            "RECONCILER__WEBHOOK__PASSWORD": PASSWORD,
            "RECONCILER__WEBHOOK__PREVIOUS_PASSWORD": OLD_PASSWORD,
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-tests",
            "RECONCILER__JOURNAL__URL": journal_url,
            "RECONCILER__QUEUE__REDIS_URL": redis_url,
        },
    )
    return create_app(config).test_client()


@pytest.fixture
def client(journal_url: str, redis_url: str) -> FlaskClient:
    """The application with a real journal and a real Redis."""
    return client_for(journal_url, redis_url)


@pytest.fixture
def journal(client: FlaskClient, journal_url: str) -> SqliteJournal:
    """The journal the application writes to."""
    return SqliteJournal(Path(journal_url.removeprefix("sqlite:///")))


def queued(redis_url: str) -> list[str]:
    """Return the ids of the jobs on the queue."""
    queue = Queue("reconcile", connection=Redis.from_url(redis_url), serializer=JSONSerializer)
    return queue.get_job_ids()


def post(client: FlaskClient, body: Any, **changed: Any) -> TestResponse:
    """Deliver a body with good credentials."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(changed.pop("url", URL), data=raw, headers=basic() | changed)


def test_a_notification_is_journaled_and_enqueued(
    client: FlaskClient, journal: SqliteJournal, redis_url: str
) -> None:
    """200 means: durable in the journal, due, and rung for on the queue."""
    answer = post(client, notification())
    assert (answer.status_code, answer.json) == (200, {"result": "new"})
    history = journal.history(KEY)
    assert history is not None
    assert history.row.due_at is not None
    assert [d.id for d in history.deliveries] == [NOT]
    assert queued(redis_url) == [f"billforward-{INV}"]


def test_the_same_notification_is_one_delivery(
    client: FlaskClient, journal: SqliteJournal, redis_url: str
) -> None:
    """A duplicate id is answered 200 and neither stored nor rung for again."""
    results = [post(client, notification()).json for _ in range(3)]
    assert results == [{"result": "new"}, {"result": "duplicate"}, {"result": "duplicate"}]
    history = journal.history(KEY)
    assert history is not None
    assert [(d.id, d.times) for d in history.deliveries] == [(NOT, 3)]
    assert len(queued(redis_url)) == 1


def test_an_id_that_was_used_for_another_invoice_is_refused(client: FlaskClient) -> None:
    """The same id with another invoice is a conflict, said so, and the first one stands."""
    post(client, notification())
    answer = post(client, notification(entityID=INV.replace("C7D7BC92", "00000000")))
    assert answer.status_code == 409
    assert answer.json is not None
    assert "for another invoice" in answer.json["message"]


@pytest.mark.parametrize(
    ("domain", "action"),
    [("Invoice", "Paid"), ("Invoice", "Unpaid"), ("Account", "Created"), ("Newfangled", "Event")],
)
def test_other_events_are_counted_and_not_processed(
    client: FlaskClient, journal: SqliteJournal, redis_url: str, domain: str, action: str
) -> None:
    """Any event but Invoice/Pending is answered 200 and leaves a count."""
    answer = post(client, notification(domain=domain, action=action))
    assert (answer.status_code, answer.json) == (200, {"result": "ignored"})
    assert journal.ignored() == {("billforward", f"{domain}/{action}"): 1}
    assert journal.invoices() == []
    assert queued(redis_url) == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + b64encode(b"\xff\xfe:\xff").decode()},
        {"Authorization": "Bearer " + PASSWORD.encode().hex()},
        basic(password=""),
        basic(user=""),
        basic(password=PASSWORD + "x"),
        basic(user=USER.upper()),
        basic(user=PASSWORD, password=USER),
    ],
)
def test_without_the_password_nothing_is_stored(
    client: FlaskClient, journal: SqliteJournal, headers: dict[str, str]
) -> None:
    """Missing, broken and wrong credentials are 401, before anything is looked at."""
    answer = client.post(URL, data=json.dumps(notification()), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert answer.json is not None
    assert "user and password" in answer.json["message"]
    assert journal.invoices() == []


def test_both_passwords_are_good_during_rotation(client: FlaskClient) -> None:
    """The former password is taken as long as it is configured."""
    answer = client.post(URL, data=json.dumps(notification()), headers=basic(password=OLD_PASSWORD))
    assert answer.status_code == 200


def test_an_unset_former_password_opens_nothing(journal_url: str, redis_url: str) -> None:
    """No former password means none, not an empty one."""
    config = config_of(
        {"platforms": {"billforward": {"base_url": "http://127.0.0.1:9/v1"}}},
        {
            "RECONCILER__WEBHOOK__PASSWORD": PASSWORD,
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-tests",
            "RECONCILER__JOURNAL__URL": journal_url,
        },
    )
    client = create_app(config).test_client()
    headers = basic(user="billing-platform", password="")
    assert client.post(URL, data=b"{}", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b"\xff\xfe{}",
        b'{"id": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 5_000 + b"}",
        json.dumps(notification(id="../../etc/passwd")).encode(),
        json.dumps(notification(id=NOT + "\n")).encode(),
        json.dumps(notification(entityID="../INV-1")).encode(),
        json.dumps(notification(entityID="%2e%2e%2f")).encode(),
        json.dumps(notification(entityID=INV + "/charges")).encode(),
        json.dumps(notification(entityID=None)).encode(),
        json.dumps(notification(entityID={"$ne": ""})).encode(),
        json.dumps(notification(domain=7)).encode(),
        json.dumps(notification(action="Pending\u0000")).encode(),
        json.dumps(notification())[:-1].encode() + b', "entityID": "x"}',
    ],
)
def test_what_is_no_notification_is_refused_in_words(
    client: FlaskClient, journal: SqliteJournal, body: bytes
) -> None:
    """Every unreadable body is 400 with a sentence, and leaves nothing behind."""
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"] == "unreadable"
    assert answer.json["message"].startswith("Not a notification: ")
    assert journal.invoices() == []


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(min_size=1, max_size=300))
def test_no_body_breaks_the_endpoint(client: FlaskClient, body: bytes) -> None:
    """Whatever bytes come, the answer is 400 in JSON, never a crash."""
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.is_json


def test_a_body_of_many_keys_is_taken_or_refused_quickly(client: FlaskClient) -> None:
    """Keys up to the size limit are read without trouble."""
    body = json.dumps(notification() | {f"k{n}": n for n in range(15_000)}).encode()
    assert len(body) < 256 * 1024
    assert post(client, body).status_code == 200


def test_a_body_over_the_limit_is_413(client: FlaskClient, journal: SqliteJournal) -> None:
    """One byte more than 256 KiB is refused, the limit itself is not."""
    padding = 256 * 1024 - len(json.dumps(notification(pad="")))
    assert post(client, notification(pad="x" * padding)).status_code == 200
    answer = post(client, notification(id=NOT.replace("A", "B"), pad="x" * (padding + 1)))
    assert answer.status_code == 413
    assert answer.json is not None
    assert "262144 bytes" in answer.json["message"]


def test_a_length_beside_a_chunked_body_is_411(client: FlaskClient) -> None:
    """Two stories about where the body ends are none."""
    answer = post(client, notification(), **{"Transfer-Encoding": "chunked"})
    assert answer.status_code == 411


def test_a_compressed_body_is_415(client: FlaskClient) -> None:
    """No compressed body is unpacked, so none can explode."""
    assert post(client, b"\x1f\x8b", **{"Content-Encoding": "gzip"}).status_code == 415


def test_an_unknown_platform_is_404_after_the_password(client: FlaskClient) -> None:
    """Whoever has no password does not learn which platforms there are."""
    assert post(client, notification(), url="/webhooks/other").status_code == 404
    assert client.post("/webhooks/other", data=b"{}").status_code == 401


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [("GET", URL, 405), ("PUT", URL, 405), ("GET", "/nowhere", 404), ("POST", "/healthz", 405)],
)
def test_every_error_is_json(client: FlaskClient, method: str, url: str, status: int) -> None:
    """Wrong methods and paths are answered as JSON with a message too."""
    answer = client.open(url, method=method)
    assert answer.status_code == status
    assert answer.json is not None
    assert answer.json["message"]


def test_without_redis_it_is_stored_and_answered_in_time(journal_url: str) -> None:
    """Redis down: the delivery is durable, due, and answered 200 within a second (R3)."""
    client = client_for(journal_url, f"redis://127.0.0.1:{free_port()}/0")
    began_at = time.monotonic()
    assert post(client, notification()).json == {"result": "new"}
    assert time.monotonic() - began_at < 1.0
    assert SqliteJournal(Path(journal_url.removeprefix("sqlite:///"))).history(KEY) is not None
    assert client.get("/readyz").status_code == 503


def test_with_redis_hung_it_is_stored_and_answered_in_time(
    journal_url: str, tmp_path: Path
) -> None:
    """Redis stopped in the middle: the same, and it is rung again once Redis goes on."""
    with redis_server(tmp_path / "redis", environ={}) as url:
        client = client_for(journal_url, url)
        assert post(client, notification()).status_code == 200
        with Redis.from_url(url) as redis:
            pid = int(redis.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            began_at = time.monotonic()
            answer = post(client, notification(id=NOT.replace("A", "B")))
            seconds = time.monotonic() - began_at
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answer.json == {"result": "new"}
        assert seconds < 1.0
        assert post(client, notification(id=NOT.replace("A", "C"))).status_code == 200


def test_a_journal_that_cannot_write_is_503(
    client: FlaskClient, journal_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is answered 200 that was not stored, and the platform is asked to send again."""
    monkeypatch.setattr("worker.journal.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    client = client_for(journal_url, redis_url)
    path = journal_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        answer = post(client, notification())
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "30"
        assert client.get("/readyz").status_code == 503
    assert queued(redis_url) == []
    assert post(client, notification()).json == {"result": "new"}


def test_health_and_readiness(client: FlaskClient) -> None:
    """/healthz tells of the process, /readyz of the journal and Redis."""
    assert client.get("/healthz").json == {"ok": True}
    assert client.get("/readyz").json == {"ok": True, "failing": {}}


def test_it_refuses_to_start_without_its_secrets(journal_url: str) -> None:
    """Every missing secret is named at once, with the variable to set."""
    config = config_of({"platforms": {"billforward": {"base_url": "http://h/v1"}}}, {})
    with pytest.raises(ConfigError) as caught:
        create_app(config)
    assert len(caught.value.complaints) == 2
    assert "RECONCILER__WEBHOOK__PASSWORD" in str(caught.value)


@pytest.fixture
def served(tmp_path: Path, journal_url: str, redis_url: str) -> Iterator[int]:
    """The real server, by its command; yields the port."""
    port = free_port()
    config = tmp_path / "config.toml"
    config.write_text(
        f'[webhook]\nusername = "{USER}"\nport = {port}\nprocesses = 1\n'
        '[platforms.billforward]\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[journal]\nurl = "{journal_url}"\n'
    )
    environ = {
        **os.environ,
        "RECONCILER_CONFIG": str(config),
        "RECONCILER__WEBHOOK__PASSWORD": PASSWORD,
        "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-of-tests",
        "RECONCILER__QUEUE__REDIS_URL": redis_url,
    }
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "worker", "serve"], env=environ, stdout=log, stderr=log
        )
    try:
        _await_port(port)
        yield port
    finally:
        server.terminate()
        assert server.wait(15) == 0


def _await_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def _raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def test_the_real_server_refuses_a_chunked_body(served: int, journal_url: str) -> None:
    """A body without Content-Length would be cut silently, so it is 411; a good one passes."""
    body = json.dumps(notification()).encode()
    credentials = basic()["Authorization"]
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {credentials}\r\n"
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert _raw(served, head.encode() + chunked).startswith(b"HTTP/1.1 411")
    whole = f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    assert _raw(served, head.encode() + whole).startswith(b"HTTP/1.1 200")
    journal = SqliteJournal(Path(journal_url.removeprefix("sqlite:///")))
    assert [row.key for row in journal.invoices()] == [KEY]
