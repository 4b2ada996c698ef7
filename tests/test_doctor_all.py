"""Everything the doctor can find, in one place: each part of a whole installation made wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from builders import MONTH, other_key
from doctor_builders import (
    EVENTS,
    PASSWORD,
    REDIS,
    SUBJECTS,
    Installation,
    installed,
    plan,
    redis_with,
)
from ops_builders import Filler, key_of

from worker.domain import Span
from worker.doorbell import Doorbell
from worker.journal import open_journal
from worker.wiring import utc_now

WRONG = {  # can all be wrong at once; what is told of each
    "passwords": "webhook.password has 8 characters",
    "timeouts": "usage_sources.events.timeout_seconds is 200",
    "journal chain": "entry 1 is not what its digest says",
    "invoices": "the oldest unissued one waits for 3 days",
    "components seen": 'component "Voice minutes" of INV-',
    "disk": "MB are free at",
    "redis persistence": "appendonly no",
    "redis eviction": "maxmemory-policy allkeys-lru",
    "queue": "not a job of ours: evil",
    "workers": "none listens on reconcile",
    "other queues": "1 jobs of ours wait in old",
    "sweep": "last round: never",
    "plans of billforward": 'rate plan "Gold" has the invoice issue type Immediate',
    "webhooks of billforward": "none leads to /webhooks/billforward",
    "usage source export": "export.csv is not there",
    "component Fax pages": "nobody ever used the metric 'fax'",
    "components": '"Text messages", "SMS" count the same events',
    "web server": "listens on 0.0.0.0:8000 without TLS",
    "clock": "s ahead of that of",
}
OPEN_PAGES = {"operators' pages": "nobody has to log in, and a proxy is in front"}
"""A proxy in front, without which this is well, makes the web server well."""
FIRST = {"config", "secrets", "journal", "redis", "platform billforward", "usage source events"}
"""Wrong, each hides others: see the tests of a wrong config and of nothing set up."""
NEVER_WRONG = {"mode"}

MORE = """
[usage_sources.export]
kind = "csv"
path = "export.csv"
subject_column = "subject"
time_column = "at"
time_format = "iso"

[components."SMS"]
source = "events"
metric = "text_message"

[components."Fax pages"]
source = "events"
metric = "fax"
"""


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


def spoil_journal(whole: Installation) -> None:
    """Let one invoice wait for days, one have an unmapped component, and change an entry."""
    now = utc_now()
    with closing(open_journal(whole.journal_url)) as journal:
        filler = Filler(journal, now)
        filler.deliver(key_of(1), now - timedelta(days=3))
        filler.issue(key_of(2), now, 5, span=Span("SUB-1", "Voice minutes", MONTH))
    with closing(sqlite3.connect(whole.folder / "state" / "journal.db")) as db, db:
        db.execute("DROP TRIGGER entries_refuse_update")
        db.execute("UPDATE entries SET data = '{}' WHERE invoice_id = ?", [key_of(1).invoice_id])


def spoil_redis(url: str) -> None:
    """Put somebody else's job into our queue, and ours into one that nobody works on."""
    Doorbell(url, "old").ring(other_key(1))
    ours = Doorbell(url, "reconcile")
    ours.redis.rpush(ours.queue.key, "evil")


def found_wrong(whole: Installation, expected: dict[str, str]) -> set[str]:
    """Examine; return the subjects found wrong; each is told as expected."""
    found = [finding for finding in whole.findings() if not finding.well]
    for finding in found:
        assert expected[finding.subject] in finding.told
    return {finding.subject for finding in found}


def test_everything_wrong_is_found_at_once(
    whole: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is found wrong, and none hides another; what is always looked at is all here."""
    monkeypatch.setattr("worker.doctor.records.LEAST_FREE_BYTES", 10**18)
    spoil_journal(whole)
    whole.control.drop_webhooks()
    whole.control.put_plan(**plan("Text messages", "SMS", invoiceIssueType="Immediate"))
    whole.set(PASSWORD, "changeme")
    whole.configure(
        '[webhook]\nhost = "0.0.0.0"\n', events=f"{EVENTS}timeout_seconds = 200\n", rest=MORE
    )
    whole.now = lambda: utc_now() + timedelta(minutes=10)
    settings = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    with redis_with(whole.folder, *settings) as url:
        whole.set(REDIS, url)
        spoil_redis(url)
        assert found_wrong(whole, WRONG) == set(WRONG)
        whole.configure('[ops]\nenabled = true\n[notices]\npage_url = "https://ops.example/"\n')
        seen = found_wrong(whole, WRONG | OPEN_PAGES)
    assert seen == set(WRONG | OPEN_PAGES) - {"web server"}
    assert set(SUBJECTS) <= set(WRONG) | set(OPEN_PAGES) | FIRST | NEVER_WRONG
