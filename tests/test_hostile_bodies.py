"""Whatever a webhook request holds, the answer is clear and nothing wrong is stored or asked."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_webhook_app import NOT, client_for, notification, post, queued

from sandbox.process import RunningSandbox
from worker.domain import Delivery
from worker.errors import DeliveryRejected
from worker.journal.sqlite import SqliteJournal
from worker.platforms.billforward import BillForward

ID = re.compile(r"([A-Z]{3}-)?[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{8,12}", re.ASCII)
GOOD = json.dumps(notification()).encode()
LEVELS, DIGITS = 100_000, 100_000
MOST_SECONDS = 2.0
MOST_MEMORY_KB = 64 * 1024


def holding(raw: bytes) -> bytes:
    """Make a notification that is good but for the JSON text of one key that nobody reads."""
    return GOOD[:-1] + b', "extra": ' + raw + b"}"


def stored(journal_url: str) -> str:
    """Return the whole content of the journal as text."""
    with closing(sqlite3.connect(journal_url.removeprefix("sqlite:///"))) as db:
        return "\n".join(db.iterdump())


@pytest.fixture
def client(journal_url: str, redis_url: str) -> FlaskClient:
    """The application with a real journal and a real Redis."""
    return client_for(journal_url, redis_url)


BODIES = {
    "a list closed after 100,000 levels": holding(b"[" * LEVELS + b"]" * LEVELS),
    "objects of many levels": holding(b'{"a":' * 40_000 + b"1" + b"}" * 40_000),
    "Infinity": holding(b"Infinity"),
    "minus Infinity": holding(b"[[-Infinity]]"),
    "NaN inside": holding(b'{"a": [NaN]}'),
    "an integer of 100,000 digits": holding(b"9" * DIGITS),
    "a negative one": holding(b"-" + b"9" * DIGITS),
    "an id of 100,000 digits": b'{"id": ' + b"9" * DIGITS + b"}",
    "NUL bytes only": b"\0" * 1000,
    "NUL in a text": holding(b'"a\0b"'),
    "NUL at the end": GOOD + b"\0",
    "an overlong slash": holding(b'"\xc0\xaf"'),
    "an overlong NUL": holding(b'"\xc0\x80"'),
    "a cut sequence": holding(b'"\xe2\x82"'),
    "a code point above the last": holding(b'"\xf4\x90\x80\x80"'),
    "a byte order mark only": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf" * 2 + GOOD,
    "half a UTF-16 character": GOOD.decode().encode("utf-16")[:-1],
    "UTF-16 said, UTF-8 sent": b"\xff\xfe" + GOOD,
    "gzip without its header": gzip.compress(GOOD),
    "a bomb without its header": gzip.compress(b"0" * 50_000_000),
    "two documents": GOOD + GOOD,
    "a comment": GOOD + b"// so",
    "single quotes": GOOD.replace(b'"', b"'"),
    **{f"{key} twice": holding(f'1, "{key}": "x"'.encode()) for key in ("id", "entityID")},
    **{f"{key} twice": holding(f'1, "{key}": "x"'.encode()) for key in ("domain", "action")},
    "id twice, once escaped": holding(b'1, "\\u0069\\u0064": "' + NOT.encode() + b'"'),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_hostile_body_is_400_in_words_and_leaves_nothing(
    client: FlaskClient, journal_url: str, redis_url: str, body: bytes
) -> None:
    """Each is refused in JSON within two seconds; journal and queue are as they were."""
    before, began_at = stored(journal_url), time.monotonic()
    answer = post(client, body)
    assert time.monotonic() - began_at < MOST_SECONDS
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"] == "unreadable"
    assert answer.json["message"].startswith("Not a notification: the body ")
    assert len(answer.data) < 500
    assert (stored(journal_url), queued(redis_url)) == (before, [])


TRICKS = [
    *("../", "..", ".", "/", "\\", "%2e%2e%2f", "%2F", "?a=b", "#", ";a", ":80", "@host", "&a=b"),
    *("\n", "\r\n", "\r\nX-A: b", " ", "\t", "\v", "\0", "\x7f", "\x85", "\u2028", "\ud800"),
    *("\u202e", "'", '"', "<b>", "$(a)", "{}", "*", "-", "0" * 100_000),
]  # fmt: skip
INSTEAD: list[object] = [
    *("", "/", "../../admin", "http://127.0.0.1:9/", "inv" + INV[3:], "INV"),
    INV.replace("7", "\uff17", 1),  # a digit of full width
    INV.replace("C", "\u0421", 1),  # a letter that only looks the same
    *(0, True, None, [INV], {"id": INV}, 1e400),
]


@pytest.mark.parametrize("key", ["id", "entityID"])
def test_an_id_with_a_path_trick_is_refused(
    client: FlaskClient, journal_url: str, redis_url: str, key: str
) -> None:
    """Before, behind, inside or instead of an id: 400 that names the key, and nothing is kept."""
    before = stored(journal_url)
    good = notification()[key]
    placed = [[t + good, good + t, good[:8] + t + good[8:]] for t in TRICKS]
    for value in [*(one for places in placed for one in places), *INSTEAD]:
        body = json.dumps(notification(**{key: value})).encode()
        if value == 1e400:
            body = body.replace(b"Infinity", b"1e400")
        answer = post(client, body)
        assert (answer.status_code, value) == (400, value)
        assert answer.json is not None
        assert f'"{key}" is missing or not an id' in answer.json["message"]
    assert (stored(journal_url), queued(redis_url)) == (before, [])


@pytest.mark.parametrize("prefix", ["INV-", ""])
def test_an_accepted_id_is_asked_for_as_it_is(sandbox: RunningSandbox, prefix: str) -> None:
    """What the platform sees is /invoices/ and the plain id, with nothing before or behind."""
    platform = BillForward(name="b", base_url=sandbox.base_url, token=sandbox.token)
    asked = prefix + INV.removeprefix("INV-")
    accepted = platform.parse_delivery(json.dumps(notification(entityID=asked)).encode())
    assert accepted.invoice_id is not None
    platform.invoice(accepted.invoice_id)
    (request,) = sandbox.control.record().requests
    assert request["path"].endswith(f"/v1/invoices/{asked}")
    assert request["path"].count("/") == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_another_encoding_says_the_same_and_is_kept_raw(
    client: FlaskClient, journal_url: str, encoding: str
) -> None:
    """A body in another Unicode encoding is taken for what it says, and stored byte for byte."""
    body = GOOD.decode().encode(encoding)
    assert post(client, body).json == {"result": "new"}
    history = SqliteJournal(Path(journal_url.removeprefix("sqlite:///"))).history(KEY)
    assert history is not None
    assert [(d.id, d.digest) for d in history.deliveries] == [(NOT, sha256(body).hexdigest())]


def colliding(count: int) -> Iterator[str]:
    """Yield keys that have one hash in Java and PHP: any order of Aa and BB."""
    for _, parts in zip(range(count), product(("Aa", "BB"), repeat=13), strict=False):
        yield "".join(parts)


@pytest.mark.parametrize(
    "extra",
    [
        dict.fromkeys(colliding(7_500), 0),
        {str(n * (2**61 - 1)): 0 for n in range(8_000)},
        {"entity": json.dumps({str(n): n for n in range(12_000)})},
        {"x": [[]] * 60_000},
        {"x": [{"id": 1, "id ": 2}] * 10_000},
    ],
    ids=["one hash", "one remainder", "an entity of many keys", "many lists", "many objects"],
)
def test_what_is_strange_and_harmless_is_taken_in_time(
    client: FlaskClient, extra: dict[str, Any]
) -> None:
    """Keys made to collide, and many small values, are read within two seconds."""
    body = json.dumps(notification() | extra, separators=(",", ":")).encode()
    assert 90_000 < len(body) <= 256 * 1024
    began_at = time.monotonic()
    assert post(client, body).json == {"result": "new"}
    assert time.monotonic() - began_at < MOST_SECONDS


def test_a_million_keys_are_not_read(client: FlaskClient, journal_url: str) -> None:
    """13 MB of keys are 413 before a byte of them is parsed."""
    body = b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}"
    before, began_at = stored(journal_url), time.monotonic()
    answer = post(client, body)
    assert time.monotonic() - began_at < MOST_SECONDS
    assert (answer.status_code, stored(journal_url)) == (413, before)


PLATFORM = BillForward(name="billforward", base_url="http://127.0.0.1:9/v1", token="of-tests")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["id", "domain", "action", "entityID", "entity", "type", "\ud800", ""])
IDS = st.from_regex(ID, fullmatch=True) | st.from_regex(ID) | st.sampled_from([INV, NOT])
CHANGED = st.dictionaries(KEYS, VALUES | IDS | st.sampled_from(["Invoice", "Pending", "Paid"]))


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """Draw a good notification with up to three stretches of it replaced by other bytes."""
    body = GOOD
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 12)))
        strange = st.sampled_from([b"", b"\\", b'"', b"../", b"\xff", b"\0", b"{", b"]", b"NaN"])
        body = body[:start] + draw(strange | st.binary(max_size=8)) + body[end:]
    return body


MUTATED = spliced() | CHANGED.map(lambda changed: json.dumps(notification(**changed)).encode())
ANY = (
    st.binary(min_size=1, max_size=400)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | MUTATED
)


def read(body: bytes) -> Delivery | str:
    """Read a body with the real platform; return the delivery, or why there is none."""
    try:
        return PLATFORM.parse_delivery(body)
    except DeliveryRejected as error:
        return str(error)


@settings(max_examples=500, deadline=None)
@given(body=ANY)
def test_whatever_comes_is_a_delivery_or_a_refusal(body: bytes) -> None:
    """No bytes raise anything else, the same bytes say the same, and an id taken is plain."""
    found = read(body)
    assert found == read(body)
    if isinstance(found, str):
        assert found.isprintable()
        return
    assert found.body == body
    assert ID.fullmatch(found.id)
    assert (found.event == "Invoice/Pending") == (found.invoice_id is not None)
    assert found.invoice_id is None or ID.fullmatch(found.invoice_id)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=ANY)
def test_the_endpoint_stores_what_it_took_and_nothing_else(
    client: FlaskClient, journal_url: str, body: bytes
) -> None:
    """200 where the platform's reader takes it, 400 or 409 with an unchanged journal elsewhere."""
    before, found = stored(journal_url), read(body)
    answer = post(client, body)
    assert answer.json is not None
    if isinstance(found, str) or answer.status_code == 409:
        assert answer.status_code in (400, 409)
        assert answer.json["message"]
        assert stored(journal_url) == before
        return
    assert answer.status_code == 200
    assert stored(journal_url) != before
    assert (found.invoice_id or found.event) in stored(journal_url)
