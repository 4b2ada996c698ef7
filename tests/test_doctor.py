"""The doctor: what the configuration tells, alone and together with what others told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from doctor_builders import (
    COMPONENT,
    EVENTS,
    PASSWORD,
    PLATFORM,
    REDIS,
    SECRET,
    SUBJECTS,
    TOKEN,
    Installation,
    installed,
    plan,
)
from test_journal_commands import seen

from worker.cli import main
from worker.doctor import Finding, examine
from worker.doctor.findings import Look, findings_of
from worker.metering import UsageEvent
from worker.wiring import configured, open_event_store, utc_now

METER = """
[usage_sources.meter]
kind = "meter"
"""
PAGES = "[ops]\nenabled = true\n"
USERS = f'{PAGES}[ops.users.ana]\nrole = "operator"\n[ops.users.rob]\nrole = "reader"\n'
ANA, ROB = (f"RECONCILER__OPS__USERS__{name}__PASSWORD" for name in ("ANA", "ROB"))
SECOND = """
[components."SMS"]
source = "events"
metric = "text_message"
"""


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


def test_all_well(whole: Installation) -> None:
    """On a whole installation every part is looked at, every finding is well, none has a mend."""
    findings = whole.findings()
    assert [finding for finding in findings if not finding.well or finding.mend] == []
    assert [finding.subject for finding in findings] == SUBJECTS
    assert whole.control.record().broken == []


def test_the_command_of_a_whole_installation(whole: Installation) -> None:
    """`doctor` ends with 0 where all is well, and with 3 and the mend where anything is not."""
    well = CliRunner().invoke(main, ["doctor"])
    assert (well.exit_code, "BAD" in well.stdout, "mend:" in well.stdout) == (0, False, False)
    whole.control.drop_webhooks()
    bad = CliRunner().invoke(main, ["doctor"])
    assert bad.exit_code == 3
    assert "BAD webhooks of billforward: none leads to /webhooks/billforward\n" in bad.stdout
    assert "    mend: make one in the platform's pages" in bad.stdout
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert [one["subject"] for one in told if not one["well"]] == ["webhooks of billforward"]
    assert set(told[0]) == {"subject", "well", "told", "mend"}


def test_a_terminal_shows_what_is_looked_at(whole: Installation) -> None:
    """While a look takes its time its subject is shown, as it is written; then only findings."""
    strange = "a [red]{b} c"
    whole.configure(
        events=EVENTS.replace("usage_sources.events", f'usage_sources."{strange}"'),
        component=COMPONENT.replace('"events"', f'"{strange}"'),
    )
    stdout, stderr = seen("doctor")
    assert "BAD" not in stdout
    for subject in ("journal", "redis", "platform billforward", f"usage source {strange}"):
        assert f"looking at {subject} " in stderr
    assert "\x1b[32m" in stderr
    assert stderr.endswith("\x1b[2K")
    _, plain = seen("doctor", NO_COLOR="1")
    assert "looking at redis " in plain
    assert "\x1b[3" not in plain
    stdout, stderr = seen("doctor", "--json")
    assert (all(one["well"] for one in json.loads(stdout)), stderr) == (True, "")
    assert CliRunner().invoke(main, ["doctor"]).stderr == ""


def test_wrong_config(whole: Installation) -> None:
    """Each complaint of the configuration is a finding, and nothing else is looked at."""
    whole.configure("[webhook]\nprot = 1\nport = -1\n")
    findings = whole.findings()
    assert [finding.subject for finding in findings] == ["config", "config"]
    assert {finding.told.split(":")[0] for finding in findings} == {"webhook.prot", "webhook.port"}


def test_no_config(whole: Installation) -> None:
    """A missing configuration is a finding that says what to copy."""
    Path("config.toml").unlink()
    assert "copy config.example.toml" in whole.bad().told


@pytest.mark.parametrize(
    ("more", "variable", "unseen"),
    [
        ("", TOKEN, {"platform billforward", "plans of billforward", "webhooks of billforward"}),
        ("", PASSWORD, set()),
    ],
)
def test_a_missing_secret(whole: Installation, more: str, variable: str, unseen: set[str]) -> None:
    """A missing secret is the one finding; only what needs it is not looked at."""
    seen = {finding.subject for finding in whole.findings()}
    whole.unset(variable)
    finding = whole.bad()
    assert finding.subject == "secrets"
    assert variable in finding.told
    assert seen - {finding.subject for finding in whole.findings()} == unseen


def test_events_that_nobody_may_send(whole: Installation) -> None:
    """An endpoint for events without its token is found."""
    whole.configure('[events]\nsource = "meter"\n', meter=METER)
    take_an_event()
    finding = whole.bad()
    assert finding.subject == "secrets"
    assert "RECONCILER__EVENTS__TOKEN" in finding.told
    whole.set("RECONCILER__EVENTS__TOKEN", SECRET)
    assert [finding for finding in whole.findings() if not finding.well] == []


def take_an_event() -> None:
    """Let the meter store its first event, which makes its tables."""
    event = UsageEvent(source="s", id="1", subject="S", metric="calls", at=utc_now())
    open_event_store(configured()).append([event], all_or_nothing=True)


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("changeme", "webhook.password has 8 characters"),
        ("abababababababab", "webhook.password is made of 2 different characters"),
    ],
)
def test_a_weak_password(whole: Installation, password: str, told: str) -> None:
    """A webhook's password that can be guessed is found, and not shown."""
    whole.set(PASSWORD, password)
    finding = whole.bad()
    assert finding.subject == "passwords"
    assert told in finding.told
    assert password not in repr(finding)
    assert "openssl rand" in finding.mend
    assert PASSWORD in finding.mend


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("correct horse", "ops.users.rob.password has 13 characters"),
        ("ab" * 20, "ops.users.rob.password is made of 2 different characters"),
        (SECRET, "ops.users.rob.password is webhook.password too"),
        ("of-ana-and-long-enough", "ops.users.rob.password is ops.users.ana.password too"),
    ],
)
def test_a_weak_password_of_a_person(whole: Installation, password: str, told: str) -> None:
    """A person's password is judged as the webhook's is, and must be nobody else's."""
    whole.configure(USERS)
    whole.set(ANA, "of-ana-and-long-enough")
    whole.set(ROB, password)
    finding = whole.bad()
    assert finding.subject == "passwords"
    assert finding.told.startswith(told)
    assert password not in repr(finding)
    assert ROB in finding.mend
    assert "restart `reconciler serve`" in finding.mend


def test_a_weak_session_key(whole: Installation) -> None:
    """A key that is long but simple would let others sign a session."""
    whole.configure(PAGES)
    whole.set("RECONCILER__OPS__SESSION_KEY", "xy" * 16)
    assert whole.bad().told.startswith("ops.session_key is made of 2 different characters")


def test_passwords_of_pages_that_are_off(whole: Installation) -> None:
    """Where there are no pages, nobody can log in with a weak password."""
    whole.configure(USERS.replace("true", "false"))
    whole.set(ANA, "short")
    assert whole.found("passwords").well


def test_a_call_that_outlasts_the_lease(whole: Installation) -> None:
    """A lease that ends before a call to the platform may end is found."""
    whole.configure("[rules]\nlease_seconds = 150\n")
    finding = whole.bad()
    assert finding.subject == "timeouts"
    assert "rules.lease_seconds must be above 155" in finding.told
    assert "platforms.billforward.read_timeout_seconds" in finding.mend


def test_a_source_that_outlasts_the_lease(whole: Installation) -> None:
    """A source that may take longer than the lease is found with both ways to mend it."""
    whole.configure(events=f"{EVENTS}timeout_seconds = 200\n")
    finding = whole.bad()
    assert finding.subject == "timeouts"
    assert "usage_sources.events.timeout_seconds is 200" in finding.told
    assert "timeout_seconds to 150 or less" in finding.mend
    assert "rules.lease_seconds to 400 or more" in finding.mend


def test_observing_is_told(whole: Installation) -> None:
    """That nothing is written is told, and is nothing bad."""
    whole.configure('[rules]\nmode = "observe"\n')
    finding = whole.found("mode")
    assert finding.well
    assert "nothing is issued" in finding.told


def test_two_components_that_count_the_same(whole: Installation) -> None:
    """Two components of one rate plan that would bill the same events are found."""
    whole.configure(second=SECOND)
    whole.control.put_plan(**plan("Text messages", "SMS"))
    finding = whole.bad()
    assert finding.subject == "components"
    assert finding.told.startswith('"Text messages", "SMS" count the same events')


def test_two_plans_may_count_the_same(whole: Installation) -> None:
    """On two rate plans the same metric under two names is what it must be."""
    whole.configure(second=SECOND)
    whole.control.put_plan(**plan("SMS"))
    assert whole.found("components").well


def test_components_alike_where_no_plan_is_known(whole: Installation) -> None:
    """Where the platform does not tell its plans, two components alike are found."""
    whole.configure(second=SECOND)
    whole.unset(TOKEN)
    bad = {finding.subject for finding in whole.findings() if not finding.well}
    assert bad == {"secrets", "components"}


@pytest.mark.parametrize("more", ['aggregation = "unique"', 'filters = { region = "eu" }'])
def test_components_that_differ(whole: Installation, more: str) -> None:
    """Components that count other events, or otherwise, are not alike."""
    whole.configure(second=f"{SECOND}{more}\n")
    whole.control.put_plan(**plan("Text messages", "SMS"))
    assert whole.found("components").well


def test_a_server_open_without_tls(whole: Installation) -> None:
    """A web server beyond the loopback is found unless something tells of TLS in front of it."""
    whole.configure('[webhook]\nhost = "0.0.0.0"\n')
    finding = whole.bad()
    assert finding.subject == "web server"
    assert finding.told.startswith("listens on 0.0.0.0:8000 without TLS")
    assert "127.0.0.1" in finding.mend
    whole.control.drop_webhooks()
    whole.control.add_webhook("https://billing:x@example.com/webhooks/billforward")
    assert whole.found("web server").well


@pytest.mark.parametrize(
    ("page_url", "told"),
    [
        ("https://ops.example/", "a proxy is in front: notices.page_url is https"),
        ("http://ops.internal/", "a proxy is in front: notices.page_url is beyond this machine"),
    ],
)
def test_open_pages_behind_a_proxy(whole: Installation, page_url: str, told: str) -> None:
    """Pages without a login are found where the configuration tells of a proxy."""
    whole.configure(f'{PAGES}[notices]\npage_url = "{page_url}"\n')
    finding = whole.bad()
    assert finding.subject == "operators' pages"
    assert told in finding.told
    assert "[ops.users]" in finding.mend


def test_open_pages_behind_the_webhooks_proxy(whole: Installation) -> None:
    """Pages without a login are found where the platform reaches us by https."""
    whole.configure(PAGES)
    assert whole.found("operators' pages").told.startswith("for this machine's own browser alone")
    whole.control.drop_webhooks()
    whole.control.add_webhook("https://billing:x@example.com/webhooks/billforward")
    assert "the platform's webhook has an https URL" in whole.bad().told


def test_pages_behind_a_proxy_that_is_not_named(whole: Installation) -> None:
    """A proxy whose clients all look like one is found, until its address is told."""
    notices = '[notices]\npage_url = "https://ops.example/"\n'
    whole.configure(USERS + notices)
    whole.set(ANA, "of-ana-and-long-enough")
    whole.set(ROB, "of-rob-and-long-enough")
    finding = whole.bad()
    assert finding.subject == "operators' pages"
    assert "ops.trusted_proxies" in finding.mend
    named = PAGES + 'trusted_proxies = ["127.0.0.1"]\n'
    whole.configure(USERS.replace(PAGES, named) + notices)
    assert whole.found("operators' pages").told == "2 may log in"


def test_pages_without_a_proxy(whole: Installation) -> None:
    """A link to where we listen ourselves tells of no proxy."""
    url = "http://ops.internal:8000/"
    whole.configure(f'[webhook]\nhost = "0.0.0.0"\n{USERS}[notices]\npage_url = "{url}"\n')
    whole.set(ANA, "of-ana-and-long-enough")
    whole.set(ROB, "of-rob-and-long-enough")
    assert whole.found("operators' pages").well


def test_our_clock_is_off(whole: Installation) -> None:
    """A clock of ours that is behind those of all others is found, once for each of them."""
    whole.now = lambda: utc_now() - timedelta(minutes=10)
    bad = [finding for finding in whole.findings() if not finding.well]
    assert [finding.subject for finding in bad] == ["clock", "clock"]
    assert bad[0].told.startswith("ours is 600 s behind that of Redis")
    assert "platform billforward" in bad[1].told
    assert "timedatectl" in bad[0].mend


def test_the_platforms_clock_is_off(whole: Installation) -> None:
    """A platform's clock that is ahead of ours is found."""
    whole.control.advance_clock(3600)
    finding = whole.bad()
    assert finding.subject == "clock"
    assert "behind that of platform billforward" in finding.told


def test_the_database_is_asked_for_its_time(whole: Installation, postgres_url: str) -> None:
    """A journal in PostgreSQL is well too, and its server's clock is compared."""
    whole.set("RECONCILER__JOURNAL__URL", postgres_url)
    whole.configure(USERS)
    whole.set(ANA, "of-ana-and-long-enough")
    whole.set(ROB, "of-rob-and-long-enough")
    assert whole.found("operators' pages").told.endswith("RECONCILER__OPS__SESSION_KEY")
    assert [finding for finding in whole.findings() if not finding.well] == []
    whole.now = lambda: utc_now() - timedelta(minutes=10)
    assert any("the journal's database" in one.told for one in whole.findings() if not one.well)


def test_nothing_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing there at all each part is a finding of its own, and none stops the others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TOKEN, SECRET)
    monkeypatch.setenv(REDIS, "redis://:s3cr3t-redis@127.0.0.1:1/0")
    platform = PLATFORM.replace("BASE_URL", "http://127.0.0.1:1")
    Path("config.toml").write_text(platform + EVENTS + COMPONENT)
    Path("state").write_text("no folder")
    findings = list(examine())
    assert [finding.subject for finding in findings if not finding.well] == [
        *("secrets", "journal", "redis", "platform billforward", "usage source events"),
    ]
    assert "s3cr3t" not in repr(findings)


def test_a_look_that_hangs_is_given_up() -> None:
    """What gives no answer in time is a finding."""
    over = threading.Event()

    def find() -> Iterable[Finding]:
        over.wait(60)
        return []

    try:
        (finding,) = findings_of(Look("usage source slow", "raise its timeout", find), 0.05)
    finally:
        over.set()
    assert not finding.well
    assert finding.told == "gave no answer within 0.05 s"
    assert finding.mend == "raise its timeout"


def test_a_look_that_crashes_is_a_finding() -> None:
    """What no look expects is told by its kind alone, for its text may hold anything."""
    (finding,) = findings_of(Look("it", "look at it", lambda: [int("s3cr3t")]), 5)  # type: ignore[list-item]
    assert finding.told == "could not be looked at: ValueError"
    assert finding.mend.startswith("look at it; if that is right, report it")
