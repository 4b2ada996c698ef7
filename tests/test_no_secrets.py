"""After a full run with failures, no secret stands in anything that was written (R9)."""

from __future__ import annotations

import json
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from urllib.parse import quote

import pytest
import requests
from secrets_pages import look_at_pages
from secrets_run import (
    FAULTS,
    SECRETS,
    USER,
    Run,
    asked,
    everything_in,
    forms,
    invoice_id,
    leaks,
    prepared,
)

WEBHOOK = SECRETS["webhook password"]
ENDS = {1: "held", 2: "held", 4: "held", 5: "held", 6: "issued", 7: "held", 8: "issued", 9: "held"}


def deliver(run: Run) -> None:
    """Send every notification, and requests that are wrong in ways that could show a password."""
    good = (USER, WEBHOOK.encode())
    for number in FAULTS:
        body = {"id": invoice_id(number).replace("INV", "NOT"), "entityID": invoice_id(number)}
        body |= {"domain": "Invoice", "action": "Pending"}
        run.send(f"notification {number}", json=body, auth=good)
    run.send("a body that is none", data=b"none", auth=(USER, SECRETS["former password"]))
    run.send("a password too long", data=b"{}", auth=(USER, WEBHOOK.encode() + b"x"))
    run.send("a token", data=b"{}", headers={"Authorization": "Bearer " + quote(WEBHOOK)})
    run.send("a query", path=f"/nowhere?password={quote(WEBHOOK)}")
    for path in ("/healthz", "/readyz"):
        run.send(path, method="GET", path=path)
    header = b64encode(f"{USER}:{WEBHOOK}".encode()).decode()
    url = f"http://{USER}:{quote(WEBHOOK, safe='')}@h/webhooks/billforward"
    run.send_broken(f"POST / HTTP/1.1\r\nHost: h\r\nAuthorization Basic {header}\r\n\r\n")
    run.send_broken(f"POST {url}\r\nHost: h\r\n\r\n")
    run.send_broken(f"POST /webhooks/{quote(WEBHOOK)} HTTP/1.1\r\nHost: h\r\n\r\n")


def started(run: Run) -> None:
    """Wait until the endpoint answers."""
    for _ in range(400):
        try:
            requests.get(f"http://127.0.0.1:{run.port}/healthz", timeout=1)
        except requests.RequestException:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the endpoint did not start")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of all processes and commands, over; Redis is still there."""
    people = {"RECONCILER__LOG__FORMAT": "console"}
    with prepared(tmp_path_factory.mktemp("run")) as run:
        with ExitStack() as stack:
            stack.enter_context(run.running("serve", "serve"))
            stack.enter_context(run.running("sweep", "sweep", **people))
            stack.enter_context(run.running("work-json", "work"))
            stack.enter_context(run.running("work-console", "work", **people))
            started(run)
            deliver(run)
            run.wait(ENDS)
            asked(run)
            look_at_pages(run)
            run.collect("live ")
        run.ask("replay", invoice_id(7), "--reason", "again", "--wait", "0")
        run.ask("work", "--burst", LEAKY_BUILDS="2")  # its jobs fail before they have begun
        run.collect()
        yield run


def gathered(run: Run, kind: str) -> Mapping[str, bytes]:
    """Return the traces of a kind, of which there must be some."""
    found = {place: text for place, text in run.traces.items() if place.startswith(kind)}
    assert found
    return found


def test_the_run_met_its_failures(run: Run) -> None:
    """The run failed in every way it should, and what was masked shows where secrets stood."""
    reasons = {number: reason for number, (_, reason) in run.states.items()}
    assert "crashed: RuntimeError" in reasons[1]
    assert "could not be reached" in reasons[2]
    assert "401, the platform refused our token" in reasons[3]
    for number in (4, 9):
        assert "***" in reasons[number]
    assert "502" in reasons[5]
    assert run.traces["answer to notification 1"].startswith(b"200")
    codes = {place.rpartition("(")[2] for place in gathered(run, "output of")}
    assert codes == {"0)", "1)", "3)"}
    logs = b"\n".join(gathered(run, "file ").values())
    assert b'"event": "refused"' in logs
    assert b"[info     ] held" in logs
    for kind in ("redis ", "output of work --burst"):
        assert b"RuntimeError: no second connection to ***" in b"".join(
            gathered(run, kind).values()
        )


@pytest.mark.parametrize("kind", ["file", "redis", "live", "output", "ps", "answer", "page"])
def test_no_secret_is_left(run: Run, kind: str) -> None:
    """No file, key, output, command line, answer or page holds a secret in any form."""
    assert leaks(gathered(run, kind)) == set()


def test_what_the_platform_echoed_was_kept_without_the_token(run: Run) -> None:
    """The pages show requests with their answers; in good ones and in refusals it was cut out."""
    for number, told in ((8, "200"), (9, "400")):
        page = run.traces[f"page /ops/invoices/billforward/{invoice_id(number)}"].decode()
        answers = re.findall("<dt>Answer</dt><dd><pre>(.*?)</pre>", page, re.DOTALL)
        assert answers
        assert all(one.startswith(told) and "***" in one for one in answers)


def test_the_pages_showed_what_failed(run: Run) -> None:
    """The pages that were searched are those of invoices, failed jobs and counts, and masked."""
    pages = gathered(run, "page ")
    codes = {name.rpartition(", ")[2] for name in pages if " pressed, " in name}
    assert codes == {"200", "303", "401", "409"}
    assert all(text[:3] == b"200" for name, text in pages.items() if " pressed, " not in name)
    held = sum(end == "held" for end in ENDS.values())
    assert sum("/view/job/" in name for name in pages) >= held
    masked = [name for name, text in pages.items() if b"***" in text]
    for place in ("/ops/invoices ", "0004", "/ops/rq/", "preview", "/ops/sources pressed"):
        assert any(place in f"{name} " for name in masked), place
    pressed = " ".join(name for name in pages if name.endswith("pressed, 200"))
    assert pressed.count("/preview ") == 2
    assert pressed.count("/recount ") == 2


def test_the_places_are_those_that_count(run: Run) -> None:
    """What was searched holds the journal, the logs, RQ's keys and the processes' command lines."""
    places = " ".join(run.traces)
    files = (
        "journal.db",
        "journal.db-wal",
        "serve.log",
        "sweep.log",
        "work-json.log",
        "appendonly.aof",
    )
    redis = ("rq:job:", "rq:results:", "rq:failed:", "rq:workers", "rq:worker:")
    for place in (*files, *redis, "ps serve", "ps work-json", "ps sweep", "answer to /readyz"):
        assert place in places
    lines = gathered(run, "ps serve").values()
    assert any(b"gunicorn" in line for line in lines)


@pytest.mark.parametrize("name", SECRETS)
def test_a_planted_leak_is_found(run: Run, name: str) -> None:
    """The same search finds each secret in each form: plain, in a URL, in base64, packed by RQ."""
    secret = SECRETS[name]
    header = b64encode(f"any user:{secret}".encode())
    plants = [
        f"x{secret}y".encode(),
        f"postgresql://u:{quote(secret, safe='')}@h/db".encode(),
        f"mysql://u:{quote(secret, safe='+ ')}@h/db".encode(),
        b"Authorization: Basic " + header,
        json.dumps({"a": secret}).encode(),
        repr(secret.encode()).encode(),
        *(b"<" + form + b">" for form in forms(secret)),
    ]
    for plant in plants:
        assert leaks({"a log": plant}) == {("a log", name)}
    packed = b64encode(zlib.compress(secret.encode()))
    run.redis.hset("planted", "exc_info", zlib.compress(secret.encode()))
    run.redis.xadd("rq:results:planted", {"exc_string": packed})
    found = leaks(everything_in(run.redis))
    run.redis.delete("planted", "rq:results:planted")
    assert found == {("redis b'planted'", name), ("redis b'rq:results:planted'", name)}
