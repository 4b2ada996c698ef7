"""rq-dashboard at /ops/rq: its holes are closed, and a requeue there is a replay, recorded."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY, LEASE, delivery
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from rq_dashboard import blueprint as upstream
from test_rq_worker import (
    Exploit,
    crafted,
    doorbell,
    environ,
    journal,
    put_invoice,
    work_off,
)
from werkzeug.test import TestResponse

import webhook_app
from sandbox.process import RunningSandbox
from worker.actions import Asked, Desk
from worker.config import load_config
from worker.domain import InvoiceKey
from worker.doorbell import FUNCTION, Doorbell, job_id_of
from worker.errors import JournalUnavailable
from worker.journal.sqlite import SqliteJournal
from worker.ops import rq_pages, rq_requeue
from worker.ops.rq_pages import installed
from worker.record import Entry, EntryKind, Outcome, State

__all__ = ["doorbell", "environ", "journal"]  # fixtures

RQ = "/ops/rq"
JOB = job_id_of(KEY)
REQUEUE = f"{RQ}/job/{JOB}/requeue"
FAILED = "rq:failed:reconcile"
USERS = {"anna": "operator", "rita": "reader"}
PASSWORDS = {f"RECONCILER__OPS__USERS__{one}__PASSWORD": f"password-of-{one}" for one in USERS}
EVIL = "\"><img src=x onerror=alert(1)>'</script><script>alert(2)</script>"
ROOT = Path(__file__).parent.parent


@dataclass
class Browser:
    """One person's browser: keeps the cookie, and sends what the page's scripts send."""

    client: FlaskClient
    name: str | None

    def get(self, path: str, **headers: str) -> TestResponse:
        """Load something under /ops/rq."""
        return self.load(RQ + path, **headers)

    def load(self, url: str, **headers: str) -> TestResponse:
        """Load something."""
        return self.client.get(url, headers=headers, auth=self._auth(), buffered=True)

    def data(self, path: str) -> Any:
        """Load what a page's script loads."""
        answer = self.get(f"/0/data/{path}.json")
        assert answer.status_code == 200, answer.text
        return answer.json

    def send(self, method: str, url: str, **headers: str) -> TestResponse:
        """Send what is no plain read, with everything that a page of ours would send."""
        found = re.search(r'name="ops-token" content="([^"]+)"', self.get("/").text)
        own = {
            "Sec-Fetch-Site": "same-origin",
            "Origin": "http://localhost",
            "X-Requested-With": "XMLHttpRequest",
            "X-CSRF-Token": found[1] if found else "",
        }
        sent = {name: value for name, value in (own | headers).items() if value}
        return self.client.open(url, method=method, headers=sent, auth=self._auth())

    def press(self, url: str = REQUEUE) -> tuple[int, str]:
        """Press a button; return the status and the sentence that is shown."""
        answer = self.send("POST", url)
        return answer.status_code, answer.json["message"] if answer.json else answer.text

    def _auth(self) -> tuple[str, str] | None:
        return (self.name, f"password-of-{self.name}") if self.name else None


def application(environ: Mapping[str, str], **changed: str) -> Flask:
    """Make the application, on the config file of the workers, with the users' passwords."""
    ours = {name: value for name, value in environ.items() if name.startswith("RECONCILER__")}
    path = Path(environ["RECONCILER_CONFIG"])
    if "[ops]" not in path.read_text():
        users = "".join(f'[ops.users.{name}]\nrole = "{role}"\n' for name, role in USERS.items())
        path.write_text(f"[ops]\nenabled = true\n{users}{path.read_text()}")
    return webhook_app.create_app(load_config(path, ours | PASSWORDS | changed))


@pytest.fixture
def app(environ: Mapping[str, str]) -> Flask:
    """The application, on the Redis, journal and config file of the workers."""
    return application(environ)


@pytest.fixture
def anna(app: Flask) -> Browser:
    """An operator's browser."""
    return Browser(app.test_client(), "anna")


@pytest.fixture
def rita(app: Flask) -> Browser:
    """A reader's browser."""
    return Browser(app.test_client(), "rita")


def fail(redis: Redis, *ids: str) -> None:
    """List jobs as failed, as RQ would."""
    redis.zadd(FAILED, {one: number for number, one in enumerate(ids)})


def hold(
    journal: SqliteJournal, key: InvoiceKey = KEY, state: State = State.HELD, attempt: int = 0
) -> None:
    """Leave an invoice in a state, as a run would."""
    now = datetime.now(UTC)
    journal.record_delivery(delivery(id=f"NOT-{key}", invoice_id=key.invoice_id), now)
    claim = journal.claim(key, "one", now, LEASE)
    assert claim is not None
    due_at = now + timedelta(hours=1) if state is State.RETRYING else None
    outcome = Outcome(state=state, reason="so it is", attempt=attempt, due_at=due_at)
    kind = EntryKind.FAILED if state is State.RETRYING else EntryKind(state.value)
    journal.settle(claim, [Entry(kind=kind, at=now)], outcome)


def park(journal: SqliteJournal) -> None:
    """Hold the invoice back, as a person does."""
    hold(journal)
    asked = Entry(kind=EntryKind.PARKED, at=datetime.now(UTC), data={"by": "b", "reason": "r"})
    assert journal.park(KEY, asked)


def entries(journal: SqliteJournal, key: InvoiceKey = KEY) -> tuple[Entry, ...]:
    """Return what the journal has of an invoice."""
    history = journal.history(key)
    return history.entries if history else ()


def everything(redis: Redis) -> dict[bytes, Any]:
    """Return all that stands in Redis."""
    return {key: redis.dump(key) for key in redis.scan_iter()}


def test_a_held_invoice_is_mended_requeued_and_issued(
    environ: Mapping[str, str],
    journal: SqliteJournal,
    doorbell: Doorbell,
    sandbox: RunningSandbox,
    anna: Browser,
) -> None:
    """Held; seen at once in RQ; mapped; requeued there; issued, once; the record says by whom."""
    put_invoice(sandbox, component="Fax pages")
    journal.record_delivery(delivery(), datetime.now(UTC))
    doorbell.ring(KEY)
    work_off({**environ, **PASSWORDS})
    (job,) = anna.data("jobs/reconcile/failed/8/asc/1")["jobs"]
    assert job["description"] == f"{INV} billforward"
    assert job["exc_info"] == (
        'Held: component "Fax pages" has no source. Map it in config, then requeue.'
    )
    assert anna.data(f"job/{JOB}")["status"] == "failed"
    with Path(environ["RECONCILER_CONFIG"]).open("a") as config:
        config.write('[components."Fax pages"]\nsource = "events"\nmetric = "text_message"\n')
    assert anna.press() == (200, f"{INV} is requeued.")
    (asked,) = [entry for entry in entries(journal) if entry.kind is EntryKind.REPLAYED]
    assert asked.data == {"by": "anna", "reason": "requeued in RQ"}
    work_off({**environ, **PASSWORDS})
    history = journal.history(KEY)
    assert history is not None
    assert history.row.state is State.ISSUED
    assert sandbox.control.record().issues == {INV: 1}
    assert anna.data("jobs/reconcile/failed/8/asc/1")["jobs"] == []
    (done,) = anna.data("jobs/reconcile/finished/8/asc/1")["jobs"]
    assert (done["id"], done["exc_info"]) == (JOB, None)


def test_a_second_press_changes_nothing_and_says_so(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser
) -> None:
    """The first press took the job out of the failed ones; the second finds it gone."""
    hold(journal)
    fail(doorbell.redis, JOB)
    assert anna.press()[0] == 200
    before, redis = entries(journal), everything(doorbell.redis)
    assert anna.press() == (
        409,
        f"{JOB}: it is not among the failed jobs: it was requeued already.",
    )
    assert entries(journal) == before
    assert everything(doorbell.redis) == redis
    assert doorbell.queue.get_job_ids() == [JOB]


def test_of_many_presses_at_once_one_counts(
    app: Flask, journal: SqliteJournal, doorbell: Doorbell
) -> None:
    """Eight operators press at the same time: one replay is recorded, seven are told."""
    hold(journal)
    fail(doorbell.redis, JOB)
    with ThreadPoolExecutor(8) as pool:
        browsers = [Browser(app.test_client(), "anna") for _ in range(8)]
        answers = sorted(status for status, _ in pool.map(Browser.press, browsers))
    assert answers == [200, *[409] * 7]
    assert [entry.kind for entry in entries(journal)].count(EntryKind.REPLAYED) == 1


@pytest.mark.parametrize(
    ("leave", "told"),
    [
        (lambda journal: hold(journal, state=State.ISSUED), "it is issued already"),
        (lambda journal: hold(journal, state=State.SKIPPED), "it is skipped already"),
        (park, "it is parked, and only a release lets it go"),
        (
            lambda journal: (
                journal.record_delivery(delivery(), datetime.now(UTC)),
                journal.claim(KEY, "one", datetime.now(UTC), LEASE),
            ),
            "a worker is at it",
        ),
        (lambda journal: None, "it is not the job of an invoice in the journal"),
    ],
)
def test_what_must_not_run_again_stays_as_it_is(
    leave: Callable[[SqliteJournal], object],
    told: str,
    journal: SqliteJournal,
    doorbell: Doorbell,
    anna: Browser,
) -> None:
    """A requeue of an issued, skipped, parked, running or unknown invoice changes nothing."""
    leave(journal)
    fail(doorbell.redis, JOB)
    before, redis = entries(journal), everything(doorbell.redis)
    status, said = anna.press()
    assert status == 409
    assert said.startswith(f"{JOB}: {told}")
    assert entries(journal) == before
    assert everything(doorbell.redis) == redis


def test_a_requeue_gives_new_attempts(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser
) -> None:
    """An invoice that failed eleven times is due at once, with all its attempts before it."""
    hold(journal, state=State.RETRYING, attempt=11)
    fail(doorbell.redis, JOB)
    assert anna.press()[0] == 200
    history = journal.history(KEY)
    assert history is not None
    assert history.row.attempt == 0
    assert journal.due(datetime.now(UTC)) == [KEY]


def test_a_requeue_of_a_lost_job_rings_anew(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser
) -> None:
    """Of a failed job whose data is gone or changed only the id counts: it names the invoice."""
    hold(journal)
    fail(doorbell.redis, JOB)
    (job,) = anna.data("jobs/reconcile/failed/8/asc/1")["jobs"]
    assert job["exc_info"].startswith("Redis has lost this job's data.")
    doorbell.redis.hset(f"rq:job:{JOB}", "data", json.dumps(["os.system", None, ["false"], {}]))
    assert anna.press()[0] == 200
    assert doorbell.foreign() == []
    assert doorbell.queue.get_job_ids() == [JOB]


def test_a_paused_platform_is_told(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser, app: Flask
) -> None:
    """A requeue during a pause is kept, and the answer says that it runs later."""
    desk: Desk = app.extensions["ops_board"].desk
    hold(journal)
    fail(doorbell.redis, JOB)
    journal.pause(desk.act("pause", "", Asked("b", "month end")))
    assert anna.press() == (200, f"{INV} is requeued, and runs when its platform is resumed.")


def test_requeue_all_replays_each_that_may_be(
    journal: SqliteJournal,
    doorbell: Doorbell,
    anna: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every held invoice of the queue is replayed, some at a press; the others are told of."""
    monkeypatch.setattr(rq_requeue, "MOST_REQUEUED", 2)
    keys = [InvoiceKey("billforward", f"INV-{number}") for number in range(3)]
    for key in keys:
        hold(journal, key)
    hold(journal, state=State.ISSUED)
    fail(doorbell.redis, JOB, "foreign", *map(job_id_of, keys))
    url = f"{RQ}/requeue/reconcile"
    issued = "1 not: it is issued already, so nothing was changed."
    foreign = "1 not: it is not the job of an invoice in the journal, so nothing runs it."
    assert anna.press(url) == (
        200,
        f"2 requeued. {issued} {foreign} 1 left: press again.",
    )
    assert anna.press(url) == (200, f"1 requeued. {issued} {foreign}")
    assert sorted(doorbell.queue.get_job_ids()) == sorted(map(job_id_of, keys))
    assert sorted(doorbell.failed()) == sorted([JOB, "foreign"])
    for key in keys:
        assert entries(journal, key)[-1].data == {"by": "anna", "reason": "requeued in RQ"}
    assert anna.press(f"{RQ}/requeue/other")[0] == 403


class FullJournal:
    """A journal whose disk is full: it can be read, and takes nothing."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def wake(self, key: InvoiceKey, entry: Entry) -> None:
        """Take nothing."""
        raise JournalUnavailable("the disk is full")


def test_a_requeue_that_the_journal_does_not_take_is_undone(
    journal: SqliteJournal, doorbell: Doorbell
) -> None:
    """The job stays among the failed ones, at its place, when the replay cannot be recorded."""
    hold(journal)
    fail(doorbell.redis, "first", JOB)
    redis = everything(doorbell.redis)
    full: Any = FullJournal(journal)
    desk = Desk(journal=full, doorbell=doorbell, now=lambda: datetime.now(UTC))
    with pytest.raises(JournalUnavailable):
        rq_requeue.requeue(desk, JOB, "anna")
    assert everything(doorbell.redis) == redis


def test_requeue_all_says_how_far_it_came(journal: SqliteJournal, doorbell: Doorbell) -> None:
    """When the journal fails on the way, what is left is told, and still listed as failed."""
    hold(journal)
    fail(doorbell.redis, "foreign", JOB, "later")
    full: Any = FullJournal(journal)
    desk = Desk(journal=full, doorbell=doorbell, now=lambda: datetime.now(UTC))
    done = rq_requeue.requeue_all(desk, "anna")
    assert (done.done, done.left, done.refused["the disk is full"]) == (0, 1, 1)
    assert doorbell.failed() == ["foreign", JOB, "later"]


def test_a_job_links_to_its_invoice(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser
) -> None:
    """From a job's page it is one step to the invoice's own page; a foreign job has no such."""
    hold(journal)
    doorbell.ring(KEY)
    url = f"/ops/invoices/billforward/{INV}"
    assert f'<a href="{url}">{INV}</a>' in anna.get(f"/0/view/job/{JOB}").text
    assert anna.load(url).status_code == 200
    crafted(doorbell.redis, "foreign", b"", status="failed")
    assert "/ops/invoices/" not in anna.get("/0/view/job/foreign").text


def test_a_silent_redis_is_told(environ: Mapping[str, str], journal: SqliteJournal) -> None:
    """Pages, data and presses say which Redis does not answer, without its password."""
    hold(journal)
    before = entries(journal)
    silent = "redis://:redis-password@127.0.0.1:9/0"
    app = application(environ, RECONCILER__QUEUE__REDIS_URL=silent)
    anna = Browser(app.test_client(), "anna")
    for answer in (
        anna.get("/0/view/jobs", Accept="text/html"),
        anna.get("/0/data/queues.json"),
        anna.send("POST", REQUEUE),
        anna.send("POST", f"{RQ}/requeue/reconcile"),
    ):
        assert answer.status_code == 503
        assert "Redis at 127.0.0.1:9: ConnectionError. Nothing was changed" in answer.text
        assert "redis-password" not in answer.text
    assert entries(journal) == before


def upstream_rules() -> Iterator[tuple[str, set[str]]]:
    """Name every URL that rq-dashboard itself answers, and by which methods."""
    app = Flask("upstream")
    app.register_blueprint(upstream, url_prefix=RQ)
    values = {
        "instance_number": "0",
        "queue_name": "reconcile",
        "registry_name": "failed",
        "job_id": JOB,
        "per_page": "8",
        "order": "asc",
        "page": "1",
        "filename": "css/main.css",
    }
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(RQ) and not rule.rule.endswith("favicon.ico"):
            url = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: values[found[1]], rule.rule)
            yield url, set(rule.methods or ()) - {"HEAD", "OPTIONS"}


ACTS = sorted(url for url, methods in upstream_rules() if "POST" in methods)
READS = sorted(url for url, methods in upstream_rules() if methods == {"GET"})


def test_reads_change_nothing(
    journal: SqliteJournal, doorbell: Doorbell, anna: Browser, rita: Browser
) -> None:
    """Every page of rq-dashboard is there, for readers too, and leaves Redis as it was."""
    assert len(READS) > 10
    hold(journal)
    doorbell.ring(InvoiceKey("billforward", "INV-2"))
    doorbell.redis.rpush(doorbell.queue.key, "gone")
    crafted(doorbell.redis, JOB, b"", status="failed")
    doorbell.redis.sadd("rq:workers", "rq:worker:dead")
    fail(doorbell.redis, JOB, "expired")
    redis = everything(doorbell.redis)
    for url in READS:
        for browser in (anna, rita):
            answer = browser.load(url)
            assert answer.status_code == 200, url
    assert everything(doorbell.redis) == redis


@pytest.mark.parametrize("url", ACTS)
def test_what_changes_something_takes_a_press_on_our_page(
    url: str, journal: SqliteJournal, doorbell: Doorbell, anna: Browser, rita: Browser
) -> None:
    """No other method, no other site, no missing token, no reader and no stranger gets through."""
    hold(journal)
    fail(doorbell.redis, JOB)
    before, redis = entries(journal), everything(doorbell.redis)
    stranger = Browser(anna.client.application.test_client(), None)
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE"):
        assert anna.send(method, url).status_code == 405, method
    for headers in (
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "forged"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "", "Origin": "null"},
        {"Sec-Fetch-Site": "", "Origin": ""},
    ):
        assert anna.send("POST", url, **headers).status_code == 403, headers
    told = "Your role is reader: you may only look."
    assert rita.press(url) == (403, told)
    assert stranger.press(url)[0] in (401, 403)
    assert entries(journal) == before
    assert everything(doorbell.redis) == redis


def test_every_url_needs_a_login(anna: Browser) -> None:
    """Whoever is not logged in sees the way to the login, and nothing of the queue."""
    stranger = anna.client.application.test_client()
    for url in READS:
        answer = stranger.get(url, buffered=True)
        assert answer.status_code == 302, url
        assert answer.location.startswith("/ops/login?next=")
    assert stranger.get("/rq").location == f"{RQ}/"


def test_nothing_else_is_answered(app: Flask) -> None:
    """Of all URLs under /ops/rq only the two requeues may change something."""
    acting = {
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(RQ) and (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    }
    refused = {"delete_job_view", "empty_queue", "compact_queue"}
    named = {"requeue_job_view", "requeue_all"} | refused
    assert acting == {f"rq_dashboard.{one}" for one in named}


@pytest.mark.parametrize(
    "path", [f"/job/{JOB}/delete", "/queue/reconcile/failed/empty", "/queue/reconcile/compact"]
)
def test_nothing_is_deleted(
    path: str, journal: SqliteJournal, doorbell: Doorbell, anna: Browser
) -> None:
    """Deleting, emptying and compacting are refused in a sentence, as data and as a page."""
    hold(journal)
    doorbell.ring(KEY)
    fail(doorbell.redis, JOB)
    redis = everything(doorbell.redis)
    status, told = anna.press(RQ + path)
    assert (status, "The journal is the truth" in told) == (403, True)
    answer = anna.send("POST", RQ + path, Accept="text/html", **{"X-Requested-With": ""})
    assert (answer.status_code, answer.mimetype) == (403, "text/html")
    assert "The journal is the truth" in answer.text
    assert everything(doorbell.redis) == redis


def plant(redis: Redis, payload: str) -> None:
    """Put a payload wherever rq-dashboard shows something."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    why = b64encode(zlib.compress(payload.encode()))
    redis.sadd("rq:queues", f"rq:queue:{payload}", b"rq:queue:\xff")
    job: Any = dict.fromkeys(("description", "origin", "worker_name", "ended_at"), payload)
    for job_id in (JOB, payload):
        redis.hset(f"rq:job:{job_id}", mapping=job | {"created_at": now, "status": "failed"})
        redis.xadd(f"rq:results:{job_id}", {"type": 2, "exc_string": why})
        redis.rpush("rq:queue:reconcile", job_id)
    fail(redis, JOB, payload)
    worker: Any = dict.fromkeys(("state", "queues", "version", "python_version"), payload)
    redis.hset(f"rq:worker:{payload}", mapping=worker | {"current_job": payload, "birth": now})
    redis.sadd("rq:workers", f"rq:worker:{payload}")


def test_no_text_is_markup(doorbell: Doorbell, anna: Browser) -> None:
    """Whatever a job, a queue or a worker is called, data and pages carry no markup of it."""
    plant(doorbell.redis, EVIL)
    for url in READS:
        answer = anna.load(url)
        if answer.mimetype == "application/json":
            assert "alert(1)" in answer.text, url
            assert not set("<>") & set(answer.text), url
        if answer.mimetype == "text/html":
            assert "<img" not in answer.text, url
            assert "alert(2)</script>" not in answer.text, url
    for path in ("view/job/{}", "data/job/{}.json", "view/jobs/{}/queued/8/asc/1"):
        for name in ("');alert(1);('", "<b>", EVIL.replace("/", "")):
            assert anna.load(f"{RQ}/0/{path.format(name)}").status_code == 404


def test_only_the_scripts_of_a_page_run(doorbell: Doorbell, anna: Browser) -> None:
    """Each page names its scripts by a fresh nonce; injected ones and handlers cannot run."""
    doorbell.ring(KEY)
    pages = [url for url in READS if "/view" in url or url.endswith("/")]
    assert len(pages) > 5
    nonces = set()
    for url in pages:
        answer = anna.load(url.replace("/failed/", "/queued/"))
        rules = answer.headers["Content-Security-Policy"].split("; ")
        (scripts,) = [rule for rule in rules if rule.startswith("script-src")]
        found = re.fullmatch(r"script-src 'nonce-([\w-]{22})' 'unsafe-eval'", scripts)
        assert found, scripts
        assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(rules)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        tags = re.findall(r"<script[^>]*>", answer.text)
        assert len(tags) > 5
        for tag in tags:
            assert f'nonce="{found[1]}"' in tag or 'type="text/template"' in tag
        assert (
            re.search(r"\son\w+\s*=", re.sub(r"(?s)<script.*?</script>", "", answer.text)) is None
        )
        nonces.add(found[1])
    assert len(nonces) == len(pages)


RENDER = """
const _ = require(process.argv[1]);
const evil = process.argv[2];
global.url_for_single_job_view = (id) => "/" + encodeURIComponent(id);
global.toRelative = (text) => text;
const row = {depends_on: [evil], depends_on_status: ["active"], queues: [evil]};
row.current_job = new Proxy({}, {get: () => evil, has: () => true});
const d = new Proxy(row, {get: (o, name) => name in o ? o[name] : evil, has: () => true});
const html = require("fs").readFileSync(0, "utf8");
const tags = /<script name="([^"]*)" type="text.template">([^]*?)<.script>/g;
for (const [, name, text] of html.matchAll(tags)) {
  process.stdout.write(_.template(text)({d: d, url: evil, number: evil}));
}
"""


def test_rows_escape_what_they_show(doorbell: Doorbell, anna: Browser) -> None:
    """rq-dashboard's own templates, run by its own library, show a payload as text."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    doorbell.ring(KEY)
    package = installed()
    assert package is not None
    library = str(package / "static" / "js" / "underscore-umd-min.js")
    for path in ("/", "/0/view/workers", f"/0/view/job/{JOB}", "/0/view/jobs"):
        done = subprocess.run(
            [node, "-e", RENDER, library, EVIL],
            input=anna.get(path).text,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        assert "&lt;img src=x onerror=alert(1)&gt;" in done.stdout
        assert "&amp;lt;" not in done.stdout
        assert "<img" not in done.stdout
        assert "<script" not in done.stdout


def test_no_pickle_is_opened(
    environ: Mapping[str, str], doorbell: Doorbell, anna: Browser, tmp_path: Path
) -> None:
    """Pickled jobs, meta and results of others are listed, and neither read nor run."""
    mark = tmp_path / "pwned"
    bomb = pickle.dumps(Exploit(mark))
    redis = doorbell.redis
    crafted(redis, "bomb", bomb, meta=bomb, result=bomb, status="failed", description="a bomb")
    redis.xadd("rq:results:bomb", {"type": 1, "return_value": b64encode(bomb)})
    redis.hset(
        "rq:worker:w", mapping={"state": "busy", "queues": "reconcile", "current_job": "bomb"}
    )
    redis.sadd("rq:workers", "rq:worker:w")
    fail(redis, "bomb")
    for url in READS:
        assert anna.load(url.replace(JOB, "bomb")).status_code in (
            200,
            404,
        )
    (job,) = anna.data("jobs/reconcile/failed/8/asc/1")["jobs"]
    assert (job["id"], job["description"]) == ("bomb", "a bomb")
    assert anna.data("workers")["workers"][0]["current_job"]["call_string"] == "a bomb"
    assert anna.press(f"{RQ}/job/bomb/requeue")[0] == 409
    assert anna.press(f"{RQ}/requeue/reconcile")[1].startswith("0 requeued. 1 not:")
    work_off({**environ, **PASSWORDS})
    assert not mark.exists()


def test_a_foreign_job_is_shown_and_never_requeued(
    doorbell: Doorbell, anna: Browser, tmp_path: Path
) -> None:
    """A job that would run another function stays where it is, whoever presses."""
    data = json.dumps(["os.system", None, [f"touch {tmp_path}/pwned"], {}]).encode()
    crafted(doorbell.redis, "system", data, status="failed")
    doorbell.redis.delete(doorbell.queue.key)
    fail(doorbell.redis, "system")
    redis = everything(doorbell.redis)
    status, told = anna.press(f"{RQ}/job/system/requeue")
    assert (status, told) == (
        409,
        "system: it is not the job of an invoice in the journal, so nothing runs it.",
    )
    assert everything(doorbell.redis) == redis


def test_ours_is_json_and_plain(doorbell: Doorbell) -> None:
    """What we put into RQ is JSON: a function's name and two ids; its description has no markup."""
    doorbell.ring(KEY)
    fields: Any = doorbell.redis.hgetall(f"rq:job:{JOB}")
    assert json.loads(zlib.decompress(fields[b"data"])) == [
        FUNCTION,
        None,
        ["billforward", INV],
        {},
    ]
    assert fields[b"description"] == f"{INV} billforward".encode()


def test_what_unpacks_to_a_heap_is_cut(doorbell: Doorbell, anna: Browser) -> None:
    """A failure text of fifty megabytes, packed to a few bytes, is shown by its beginning."""
    crafted(doorbell.redis, JOB, b"", status="failed")
    text = b64encode(zlib.compress(b"x" * 50_000_000))
    doorbell.redis.xadd(f"rq:results:{JOB}", {"type": 2, "exc_string": text})
    fail(doorbell.redis, JOB)
    (job,) = anna.data("jobs/reconcile/failed/8/asc/1")["jobs"]
    assert job["exc_info"] == "x" * 20_000
    doorbell.redis.xadd(f"rq:results:{JOB}", {"type": 2, "exc_string": b"garbage"})
    assert anna.data(f"job/{JOB}")["exc_info"] == "unreadable"


@pytest.mark.parametrize("place", ["failed", "queued"])
def test_pages_share_no_job(place: str, doorbell: Doorbell, anna: Browser) -> None:
    """Each job is on one page, in either order; rq-dashboard's own pages overlap."""
    ids = [f"job-{number:02}" for number in range(20)]
    fail(doorbell.redis, *ids)
    doorbell.redis.rpush(doorbell.queue.key, *ids)
    for order, wanted in (("asc", ids), ("dsc", ids[::-1])):
        pages = [anna.data(f"jobs/reconcile/{place}/8/{order}/{one}") for one in (1, 2, 3)]
        assert [len(page["jobs"]) for page in pages] == [8, 8, 4]
        assert [job["id"] for page in pages for job in page["jobs"]] == wanted
    told = pages[1]["pagination"]
    assert (told["current_page"], told["num_pages"]) == (2, 3)
    assert [one["number"] for one in told["pages_in_window"]] == [1, 2, 3]
    assert told["next_page"]["url"].endswith(f"/{place}/8/dsc/3")
    assert anna.get(f"/0/data/jobs/reconcile/{place}/8/asc/1000000.json").status_code == 200


def test_buttons_that_are_refused_are_not_shown(anna: Browser, rita: Browser) -> None:
    """No button deletes; a reader's page is marked, so that its buttons are hidden."""
    style = (ROOT / "worker" / "ops" / "static" / "rq.css").read_text()
    for place in ("queued", "failed"):
        page = anna.get(f"/0/view/jobs/reconcile/{place}/8/asc/1").text
        assert "empty-btn" not in re.sub(r"(?s)<script nonce.*?</script>", "", page)
        assert '<body class="ops-operator">' in page
    assert "#compact-btn" in style
    assert ".ops-reader #requeue-all-btn" in style
    assert '<body class="ops-reader">' in rita.get("/0/view/jobs").text


def test_six_is_declared_and_not_needed(anna: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """rq-dashboard does not name `six`; our extra does, and the pages run none of its code."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[>=<]", one)[0] for one in extras["optional-dependencies"]["dashboard"]]
    assert names == ["rq-dashboard", "six"]
    for name in [name for name in sys.modules if name.split(".")[0] in ("rq_dashboard", "six")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert anna.get("/").status_code == 200


def test_without_the_package_the_page_says_what_to_install(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the program runs without rq-dashboard; its page names the extra."""
    monkeypatch.setattr(webhook_app, "installed", lambda: None)
    browser = Browser(application(environ).test_client(), "rita")
    answer = browser.get("/", Accept="text/html")
    assert answer.status_code == 501
    assert "pip install &#39;invoice-reconciler[dashboard]&#39;" in answer.text
    assert browser.load("/ops/").status_code == 200


def test_another_version_of_the_package_is_not_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are made safe as they are in 0.9; those of another version are not shown."""
    assert installed() is not None
    monkeypatch.setattr(rq_pages, "_VERSION", "0.8.")
    assert installed() is None
