"""POST /events: each event is stored once, or refused by name; on the real app and a real meter."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from webhook_app import create_app
from worker.config import config_of

TOKEN = "token-of-the-senders"
BATCH = "application/cloudevents-batch+json"
SINGLE = "application/cloudevents+json"
METER = {"kind": "meter", "timeout_seconds": 1}


def an_event(number: int = 1, **changed: Any) -> dict[str, Any]:
    """Make a good event."""
    return {
        "specversion": "1.0",
        "id": f"e-{number}",
        "source": "/phones",
        "type": "text_message",
        "subject": "SUB-1",
        "time": "2026-11-02T10:00:00Z",
        "data": {"value": 3},
        **changed,
    }


@pytest.fixture(name="client")
def _client(tmp_path: Path) -> Iterator[FlaskClient]:
    config = config_of(
        {
            "platforms": {"billforward": {"base_url": "http://127.0.0.1:1/v1"}},
            "journal": {"url": f"sqlite:///{tmp_path}/journal.db"},
            "usage_sources": {"meter": {**METER, "url": f"sqlite:///{tmp_path}/usage.db"}},
            "events": {"source": "meter"},
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": "of-the-hook",
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "of-the-platform",
            "RECONCILER__EVENTS__TOKEN": TOKEN,
        },
    )
    app = create_app(config)
    with app.test_client() as client:
        yield client
    app.extensions["receiver"].journal.close()


def send(client: FlaskClient, body: Any, kind: str = BATCH, query: str = "") -> TestResponse:
    """POST a body as JSON with the right token."""
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return client.post(f"/events{query}", data=text, content_type=kind, headers=headers)


def stored(tmp_path: Path) -> int:
    """Count the rows of the meter's table, without its help."""
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        if "meter_events" not in tables:
            return 0
        (number,) = db.execute("SELECT count(*) FROM meter_events").fetchone()
        return int(number)


def test_one_event_is_stored(client: FlaskClient, tmp_path: Path) -> None:
    """A single event in structured mode, and what became of it."""
    answer = send(client, an_event(), SINGLE)
    assert answer.status_code == 200
    assert answer.json == {"stored": 1, "duplicates": 0, "refused": []}
    assert stored(tmp_path) == 1


def test_an_event_sent_again_counts_once(client: FlaskClient, tmp_path: Path) -> None:
    """A duplicate answers 200 and says so, within a batch and across requests."""
    assert send(client, [an_event(), an_event()]).json == {
        "stored": 1,
        "duplicates": 1,
        "refused": [],
    }
    assert send(client, an_event(), SINGLE).json == {"stored": 0, "duplicates": 1, "refused": []}
    assert stored(tmp_path) == 1


def test_the_same_id_with_other_content_is_refused_by_name(
    client: FlaskClient, tmp_path: Path
) -> None:
    """409 for a single event, and what was stored stays as it was."""
    send(client, an_event(), SINGLE)
    answer = send(client, an_event(data={"value": 4}), SINGLE)
    assert answer.status_code == 409
    (refused,) = answer.get_json()["refused"]
    assert (refused["id"], refused["error"]) == ("e-1", "conflict")
    assert stored(tmp_path) == 1


def test_an_event_with_a_name_twice_is_refused_alone(client: FlaskClient, tmp_path: Path) -> None:
    """Neither of the two is guessed to be meant; the other events of the batch are stored."""
    twice = json.dumps(an_event(2)).replace('"value"', '"value": 5, "value"')
    answer = send(client, f"[{json.dumps(an_event(1))}, {twice}]")
    assert answer.status_code == 207
    (refused,) = answer.get_json()["refused"]
    assert refused["index"] == 1
    assert refused["message"].startswith('"value" stands twice in one object')
    assert send(client, twice.replace('"id"', '"id": "e-9", "id"'), SINGLE).status_code == 400
    assert stored(tmp_path) == 1


def test_a_batch_is_stored_event_by_event(client: FlaskClient, tmp_path: Path) -> None:
    """By default the good ones are stored, and the others named with their place: 207."""
    batch = [an_event(1), an_event(2, time="yesterday"), an_event(3), {"id": "e-4"}, 7]
    answer = send(client, batch)
    assert answer.status_code == 207
    told = answer.get_json()
    assert told["stored"] == 2
    assert [(one["index"], one["id"]) for one in told["refused"]] == [
        (1, "e-2"),
        (3, "e-4"),
        (4, None),
    ]
    assert stored(tmp_path) == 2


@pytest.mark.parametrize("bad", [an_event(2, time="yesterday"), an_event(9, data={"value": 4})])
def test_all_or_nothing(client: FlaskClient, tmp_path: Path, bad: dict[str, Any]) -> None:
    """`store=all`: one event that is refused, or conflicts, keeps every other out: 422."""
    send(client, an_event(9), SINGLE)
    answer = send(client, [an_event(1), bad, an_event(3)], query="?store=all")
    assert answer.status_code == 422
    told = answer.get_json()
    assert (told["stored"], [one["index"] for one in told["refused"]]) == (0, [1])
    assert stored(tmp_path) == 1
    assert send(client, [an_event(1), an_event(3)], query="?store=all").json == {
        "stored": 2,
        "duplicates": 0,
        "refused": [],
    }


@pytest.mark.parametrize(
    "header",
    [None, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_without_the_token_nothing_is_stored(
    client: FlaskClient, tmp_path: Path, header: str | None
) -> None:
    """401 names the scheme; neither the body nor the token is looked at further."""
    headers = {} if header is None else {"Authorization": header}
    answer = client.post("/events", data="{", content_type=SINGLE, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert stored(tmp_path) == 0


@pytest.mark.parametrize(
    ("body", "kind", "query", "status", "told"),
    [
        ("{", SINGLE, "", 400, "not JSON"),
        ("[" * 100_000, BATCH, "", 400, "nested too deeply"),
        ("[]", SINGLE, "", 400, f"not what {SINGLE} is"),
        ("{}", BATCH, "", 400, f"not what {BATCH} is"),
        ("{}", "text/plain", "", 415, "application/cloudevents"),
        (json.dumps([an_event()]), BATCH, "?store=some", 400, "store must be"),
        (json.dumps([0] * 10_001), BATCH, "", 413, "10000 events at most"),
        (b"x" * (8 * 1024 * 1024 + 1), BATCH, "", 413, "bytes at most"),
    ],
)
def test_what_cannot_be_read_is_refused(
    client: FlaskClient, tmp_path: Path, body: Any, kind: str, query: str, status: int, told: str
) -> None:
    """Each refusal is JSON, says what is wrong, and stores nothing."""
    answer = send(client, body, kind, query)
    assert answer.status_code == status
    assert told in answer.get_json()["message"]
    assert stored(tmp_path) == 0


@pytest.mark.parametrize("body", [an_event(), [an_event()]])
def test_plain_json_tells_by_itself(client: FlaskClient, body: Any) -> None:
    """With application/json an object is one event and a list is a batch."""
    assert send(client, body, "application/json").json == {
        "stored": 1,
        "duplicates": 0,
        "refused": [],
    }


def test_an_empty_batch_is_nothing(client: FlaskClient) -> None:
    """No event, nothing stored, nothing refused."""
    assert send(client, []).json == {"stored": 0, "duplicates": 0, "refused": []}


def test_a_meter_that_cannot_store_asks_for_another_try(
    client: FlaskClient, tmp_path: Path
) -> None:
    """503 with Retry-After, and the same request is taken later."""
    send(client, an_event(1), SINGLE)
    with closing(sqlite3.connect(tmp_path / "usage.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        answer = send(client, an_event(2), SINGLE)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        db.execute("ROLLBACK")
    assert send(client, an_event(2), SINGLE).status_code == 200


def test_a_broken_meter_is_a_persons(client: FlaskClient, tmp_path: Path) -> None:
    """503 without a traceback: the log has the reason; mended, the same request is taken."""
    (tmp_path / "usage.db").write_bytes(b"this is no database. " * 1000)
    with capture_logs() as logs:
        answer = send(client, an_event(), SINGLE)
    assert answer.status_code == 503
    assert answer.get_json()["error"] == "meter_invalid"
    assert "must be mended" in answer.get_json()["message"]
    (told,) = [line for line in logs if line["event"] == "meter_invalid"]
    assert "not a database" in told["reason"]
    (tmp_path / "usage.db").unlink()
    assert send(client, an_event(), SINGLE).status_code == 200


def test_what_the_meter_cannot_keep_is_the_senders(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that only the meter refuses is 400, not an invitation to send it again."""
    monkeypatch.setattr("usage_sources.meter.appending._EARLIEST", 2_000_000_000_000_000)
    answer = send(client, [an_event()])
    assert answer.status_code == 400
    assert "not between" in answer.get_json()["message"]
    assert stored(tmp_path) == 0


def test_a_batch_of_which_nothing_is_taken_is_422(client: FlaskClient) -> None:
    """207 means that some are there; where every event was refused, the answer is an error."""
    answer = send(client, [an_event(1, time="yesterday"), {}])
    assert answer.status_code == 422
    assert [one["index"] for one in answer.get_json()["refused"]] == [0, 1]
    send(client, an_event(1), SINGLE)
    assert send(client, [an_event(1), {}]).status_code == 207


@pytest.mark.parametrize("query", ["", "?store=all"])
def test_a_conflict_within_a_batch_claims_nothing(client: FlaskClient, query: str) -> None:
    """The message is true whether the first of the two was stored or not."""
    answer = send(client, [an_event(), an_event(data={"value": 4})], query=query)
    (refused,) = answer.get_json()["refused"]
    assert refused["message"] == "'e-1' of '/phones' came before, with other content; use a new id"


@pytest.mark.parametrize(
    ("time", "status"),
    [("1980-01-01T00:00:00+10:00", 207), ("1979-12-31T23:00:00-02:00", 200)],
)
def test_the_bounds_of_time_are_the_meters(client: FlaskClient, time: str, status: int) -> None:
    """An instant that the meter does not keep is refused alone; the others are stored."""
    answer = send(client, [an_event(1), an_event(2, time=time)])
    assert answer.status_code == status
    assert answer.get_json()["stored"] == 3 - len(answer.get_json()["refused"]) - 1


def test_without_a_meter_there_is_no_such_endpoint(tmp_path: Path) -> None:
    """The endpoint is closed unless `[events]` names a source."""
    config = config_of(
        {
            "platforms": {"billforward": {"base_url": "http://127.0.0.1:1/v1"}},
            "journal": {"url": f"sqlite:///{tmp_path}/journal.db"},
        },
        {
            "RECONCILER__WEBHOOK__PASSWORD": "of-the-hook",
            "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "of-the-platform",
        },
    )
    app = create_app(config)
    with app.test_client() as client:
        assert send(client, an_event(), SINGLE).status_code == 404
    app.extensions["receiver"].journal.close()
