"""The doctor: each thing it looks at, well and not, with a mend and without a secret."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from builders import KEY
from redis import Redis, RedisError

from sandbox.process import RunningSandbox
from worker.demo.processes import wait_for
from worker.demo.redis_server import find_binary, free_port, stop
from worker.doctor import Finding, examine
from worker.doorbell import Doorbell

NO_REDIS = "redis://:s3cr3t-redis@127.0.0.1:1/0"
PASSWORD = "RECONCILER__WEBHOOK__PASSWORD"
TOKEN = "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN"
EVENTS = """
[usage_sources.events]
kind = "sql"
url = "sqlite:///usage.db"
table = "usage"
subject_column = "subject"
time_column = "at"
time_format = "iso"
"""
EXPORT = """
[usage_sources.export]
kind = "csv"
path = "export.csv"
subject_column = "subject"
time_column = "at"
time_format = "iso"
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, with both secrets set and no Redis."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSWORD, "s3cr3t-hook")
    monkeypatch.setenv(TOKEN, "s3cr3t-token")
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", NO_REDIS)
    configure("http://127.0.0.1:1/v1")
    return tmp_path


def configure(base_url: str, more: str = "") -> None:
    """Write the configuration."""
    Path("config.toml").write_text(
        f'[platforms.billforward]\nbase_url = "{base_url}"\ntotal_timeout_seconds = 0.1\n{more}'
    )


def looked() -> list[Finding]:
    """Return the findings; none tells a secret, and each bad one says how to mend it."""
    findings = list(examine())
    assert "s3cr3t" not in repr(findings)
    assert [finding for finding in findings if not finding.well and not finding.mend] == []
    return findings


def found(subject: str) -> Finding:
    """Return the one finding on a subject."""
    (finding,) = [finding for finding in looked() if finding.subject == subject]
    return finding


@contextmanager
def redis_with(folder: Path, *settings: str) -> Iterator[str]:
    """Run a Redis with settings of its own."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = [find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([*command, *settings], stdin=subprocess.DEVNULL, stdout=log)
    try:
        with Redis.from_url(url) as client:
            wait_for(
                "Redis",
                lambda: answers(client),
                seconds=10,
                alive={"redis": server},
                folder=folder,
            )
        yield url
    finally:
        stop(server)


def answers(client: Redis) -> bool:
    """Tell whether a Redis is up."""
    try:
        client.ping()
    except RedisError:
        return False
    return True


def test_all_well(sandbox: RunningSandbox, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a complete installation every finding is well, and every part was looked at."""
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", redis_url)
    monkeypatch.setenv(TOKEN, sandbox.token)
    configure(sandbox.base_url, EVENTS + EXPORT)
    make_usage("CREATE TABLE usage (subject TEXT, at TEXT)")
    Path("export.csv").write_text("subject,at\n")
    findings = list(examine())
    assert [finding for finding in findings if not finding.well] == []
    assert [finding.subject for finding in findings] == [
        *("config", "secrets", "journal", "redis", "redis persistence", "redis eviction"),
        *("platform billforward", "usage source events", "usage source export"),
    ]
    assert sandbox.token not in repr(findings)


def make_usage(statement: str) -> None:
    """Make the usage database."""
    with closing(sqlite3.connect("usage.db")) as db, db:
        db.execute(statement)


def test_wrong_config() -> None:
    """Each complaint of the configuration is a finding, and nothing else is looked at."""
    configure("http://127.0.0.1:1", "[webhook]\nprot = 1\nport = -1\n")
    findings = looked()
    assert [finding.subject for finding in findings] == ["config", "config"]
    assert {finding.told.split(":")[0] for finding in findings} == {"webhook.prot", "webhook.port"}


def test_no_config() -> None:
    """A missing configuration is a finding that says what to copy."""
    Path("config.toml").unlink()
    assert "copy config.example.toml" in found("config").told


def test_missing_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each missing secret is a finding; without them nobody outside is asked."""
    monkeypatch.delenv(TOKEN)
    monkeypatch.delenv(PASSWORD)
    findings = [finding for finding in looked() if finding.subject == "secrets"]
    assert [finding.well for finding in findings] == [False, False]
    assert TOKEN in findings[0].told
    assert PASSWORD in findings[1].told
    assert not any(finding.subject.startswith("platform") for finding in looked())


def test_secrets_set() -> None:
    """Set secrets are said to be set, and not shown."""
    assert found("secrets") == Finding("secrets", well=True, told="all set")


def test_journal(place: Path) -> None:
    """The journal is made where it can be, and then it is well."""
    assert found("journal").well
    assert (place / "state" / "journal.db").exists()


def test_journal_folder_is_a_file(place: Path) -> None:
    """A file in the place of the journal's folder is found."""
    (place / "state").write_text("no folder")
    finding = found("journal")
    assert not finding.well
    assert "state/journal.db" in finding.told
    assert "journal.url" in finding.mend


def test_journal_is_no_database(place: Path) -> None:
    """A file that is no journal is found."""
    (place / "state").mkdir()
    (place / "state" / "journal.db").write_bytes(b"x" * 5000)
    assert "file is not a database" in found("journal").told


def test_journal_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal's URL that no adapter knows is found, without its password."""
    monkeypatch.setenv("RECONCILER__JOURNAL__URL", "mysql://me:s3cr3t-db@h/db")
    finding = found("journal")
    assert not finding.well
    assert "mysql is not a journal" in finding.told


def test_redis_down() -> None:
    """A Redis that does not answer is found, without its password."""
    finding = found("redis")
    assert not finding.well
    assert "Redis at 127.0.0.1:1: ConnectionError" in finding.told
    assert "queue.redis_url" in finding.mend


@pytest.mark.parametrize(
    ("settings", "bad"),
    [
        (["--appendonly", "no"], {"redis persistence": "appendonly no"}),
        (
            ["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
            {"redis eviction": "maxmemory-policy allkeys-lru"},
        ),
        (["--appendonly", "yes"], {}),
    ],
)
def test_redis_settings(
    place: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], bad: dict[str, str]
) -> None:
    """A Redis that forgets at a restart or drops keys is found; one that keeps all is well."""
    with redis_with(place, *settings) as url:
        monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", url)
        findings = [finding for finding in looked() if finding.subject.startswith("redis")]
    assert [f.subject for f in findings] == ["redis", "redis persistence", "redis eviction"]
    assert {f.subject: f.told for f in findings if not f.well} == bad


def test_redis_that_does_not_tell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hosted Redis that hides its settings is well, and says that they cannot be read."""
    with redis_with(place, "--rename-command", "CONFIG", "") as url:
        monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", url)
        finding = found("redis eviction")
    assert finding.well
    assert finding.told == "maxmemory-policy cannot be read"


def test_platform_unreachable() -> None:
    """A platform that cannot be reached is found."""
    finding = found("platform billforward")
    assert not finding.well
    assert "base_url" in finding.mend


def test_token_refused(sandbox: RunningSandbox) -> None:
    """A token that the platform refuses is found, and not shown."""
    configure(sandbox.base_url)
    finding = found("platform billforward")
    assert not finding.well
    assert "token" in finding.mend


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("CREATE TABLE other (x)", "usage"),
        ("CREATE TABLE usage (subject TEXT, moment TEXT)", "at"),
    ],
)
def test_source_with_another_table(statement: str, told: str) -> None:
    """A source whose table or column is missing is found by its name."""
    configure("http://127.0.0.1:1", EVENTS)
    make_usage(statement)
    finding = found("usage source events")
    assert not finding.well
    assert told in finding.told


@pytest.mark.parametrize(
    ("settings", "subject", "told"),
    [(EVENTS, "events", "usage.db"), (EXPORT, "export", "export.csv")],
)
def test_source_without_file(settings: str, subject: str, told: str) -> None:
    """A source whose file is missing is found by the file's name, and no file is made."""
    configure("http://127.0.0.1:1", settings)
    before = set(os.listdir())
    finding = found(f"usage source {subject}")
    assert not finding.well
    assert told in finding.told
    assert set(os.listdir()) - before == {"state"}


@pytest.mark.parametrize("driver", ["psycopg", "pymysql"])
def test_source_without_driver(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    """A source whose database driver is not installed is found, without its password."""
    dialect = {"psycopg": "postgresql", "pymysql": "mysql"}[driver]
    native = EVENTS.replace('"iso"', '"native"')
    configure("http://127.0.0.1:1", f"{native}timeout_seconds = 1\n")
    monkeypatch.setenv(
        "RECONCILER__USAGE_SOURCES__EVENTS__URL", f"{dialect}+{driver}://u:s3cr3t-db@127.0.0.1:1/d"
    )
    finding = found("usage source events")
    assert not finding.well
    assert driver in finding.told or "gave no answer" in finding.told


def test_a_job_that_is_not_ours_is_named(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poisoned id on the queue is found before it costs a worker, our own jobs are not."""
    monkeypatch.setenv("RECONCILER__QUEUE__REDIS_URL", redis_url)
    doorbell = Doorbell(redis_url, "reconcile")
    doorbell.ring(KEY)
    assert doorbell.foreign() == []
    redis = doorbell.redis
    redis.hset("rq:job:evil", mapping={"data": b'["os.system", null, ["true"], {}]'})
    redis.rpush(doorbell.queue.key, "evil")
    redis.rpush(f"{doorbell.queue.key}:intermediate", "empty")
    assert doorbell.foreign() == ["evil", "empty"]
    finding = found("queue")
    assert not finding.well
    assert finding.told == "not a job of ours: evil, empty"
    assert doorbell.queue.key in finding.mend
