"""Notices reach people by each channel, once an interval for each cause, and never stop a sweep."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from builders import LEASE, MINUTE, NOW, other_key
from contracts import tamper
from fakes import FakeClock

from worker.config import config_of
from worker.errors import ConfigError, JournalUnavailable
from worker.journal import open_journal
from worker.journal.sqlite import SqliteJournal
from worker.metrics import Numbers
from worker.notices import PARKED, PAUSED, TOO_OLD, Channel, Notice, Notices, NotTold
from worker.notices_channels import Mail, Post, open_channels
from worker.record import Act, Entry, EntryKind, Outcome, State
from worker.sections import NoticesSection
from worker.wiring import open_notices, open_service

HOUR = timedelta(hours=1)
UNMAPPED = 'component "Fax pages" has no source. Map it in config, then requeue.'
FRACTION = '"Storage" was counted as 1.5: a fraction; set rounding'


@dataclass
class Told:
    """A channel that remembers, and fails on request."""

    name: str = "told"
    got: list[Notice] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def send(self, notice: Notice) -> None:
        """Take note."""
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(notice)


@pytest.fixture
def journal(tmp_path: Path) -> SqliteJournal:
    """An empty journal."""
    return SqliteJournal(tmp_path / "journal.db")


@pytest.fixture
def clock() -> FakeClock:
    """The clock of all sweeps."""
    return FakeClock()


def notices(journal: Any, clock: FakeClock, *channels: Channel) -> Notices:
    """Make notices that are sent every hour, and of what is older than a day."""
    return Notices(
        journal=journal,
        channels=channels,
        now=clock,
        every=HOUR,
        older_than=timedelta(days=1),
        page_url="https://ops.example/",
        secrets=["s3cr3t-7731"],
        numbers=Numbers(),
    )


def hold(journal: SqliteJournal, numbers: Sequence[int], reason: str) -> None:
    """Let invoices be held."""
    for number in numbers:
        at = NOW - timedelta(minutes=100 - number)
        journal.wake(other_key(number), Entry(kind=EntryKind.FOUND, at=at))
        claim = journal.claim(other_key(number), "one", at, LEASE)
        assert claim is not None
        entry = Entry(kind=EntryKind.HELD, at=at, data={"reason": reason})
        journal.settle(claim, [entry], Outcome(state=State.HELD, reason=reason))


def test_held_invoices_are_told_a_cause_at_a_time(journal: SqliteJournal, clock: FakeClock) -> None:
    """One notice for each cause: how many, the oldest by name, what to do, and where to look."""
    hold(journal, range(7), UNMAPPED)
    hold(journal, [9], FRACTION)
    told = Told()
    assert notices(journal, clock, told).tell() == 2
    first, second = told.got
    assert first.subject == "7 invoices held: A component has no source"
    assert second.subject == "1 invoice held: A count has a fraction"
    text = first.text()
    assert [key for key, _ in first.first] == [other_key(number) for number in range(5)]
    for part in (UNMAPPED, "and 2 more", first.cause.mend, "https://ops.example/"):
        assert part in text
    data = first.as_json()
    assert (data["cause"], data["count"], data["oldest_seconds"]) == ("unmapped_component", 7, 6000)
    assert data["invoices"][0] == {
        "platform": "billforward",
        "invoice": other_key(0).invoice_id,
        "reason": UNMAPPED,
    }


def test_a_cause_is_told_once_an_interval(journal: SqliteJournal, clock: FakeClock) -> None:
    """Rounds in between, more invoices and a restarted sweep change nothing; another cause does."""
    told = Told()
    hold(journal, [1], UNMAPPED)
    for number in (2, 3):
        notices(journal, clock, told).tell()
        hold(journal, [number], UNMAPPED)
        clock.advance(minutes=29)
    assert [one.count for one in told.got] == [1]
    hold(journal, [4], FRACTION)
    notices(journal, clock, told).tell()
    clock.advance(minutes=2)
    notices(journal, clock, told).tell()
    assert [one.count for one in told.got] == [1, 1, 3]


def test_nothing_is_told_where_nothing_is_wrong(journal: SqliteJournal, clock: FakeClock) -> None:
    """Young invoices, and one that was parked just now, are nobody's trouble."""
    journal.wake(other_key(1), Entry(kind=EntryKind.FOUND, at=NOW - 23 * HOUR))
    journal.wake(other_key(2), Entry(kind=EntryKind.FOUND, at=NOW - 99 * HOUR))
    parked = Entry(kind=EntryKind.PARKED, at=NOW, data={"reason": "wait for a credit note"})
    assert journal.park(other_key(2), parked)
    told = Told()
    assert notices(journal, clock, told).tell() == 0
    assert told.got == []


def wait(journal: SqliteJournal, number: int, outcome: Outcome) -> None:
    """Let an invoice that was seen four days ago wait since then."""
    at = NOW - 99 * HOUR
    journal.wake(other_key(number), Entry(kind=EntryKind.FOUND, at=at))
    claim = journal.claim(other_key(number), "one", at, LEASE)
    assert claim is not None
    entry = Entry(kind=EntryKind.WAITING, at=at, data={"reason": outcome.reason})
    journal.settle(claim, [entry], outcome)


def test_what_waits_for_its_time_is_not_told(journal: SqliteJournal, clock: FakeClock) -> None:
    """However old it is: not before its time has passed by the limit, and then with that time."""
    until = NOW + HOUR
    behind = 'source "events" has usage only up to 2015-12-01T00:00:00Z'
    wait(journal, 1, Outcome(state=State.WAITING, reason=behind, due_at=until))
    wait(journal, 2, Outcome(state=State.RETRYING, reason="no answer", due_at=until, attempt=2))
    told = Told()
    for _ in range(2):
        assert notices(journal, clock, told).tell() == 0
        clock.advance(hours=24)
    clock.advance(hours=1)
    assert notices(journal, clock, told).tell() == 1
    (notice,) = told.got
    assert (notice.cause, notice.count, notice.oldest_at) == (TOO_OLD, 2, until)
    assert f"due since 2015-12-02T14:00:00Z; the last: {behind}" in notice.text()


def test_an_invoice_that_is_not_issued_in_time_is_told(
    journal: SqliteJournal, clock: FakeClock
) -> None:
    """One that is due, and that no worker takes: from the limit on, people know."""
    journal.wake(other_key(1), Entry(kind=EntryKind.FOUND, at=NOW - 25 * HOUR))
    told = Told()
    assert notices(journal, clock, told).tell() == 1
    (notice,) = told.got
    assert notice.cause is TOO_OLD
    assert notice.subject == "1 invoice: Not issued in time"
    assert f"- {other_key(1)}: due since 2015-12-01T12:00:00Z" in notice.text()


def test_an_invoice_whose_worker_died_lately_is_late_too(
    journal: SqliteJournal, clock: FakeClock
) -> None:
    """Its lease ran out a moment ago; what is due for less than the limit is not told, nor busy."""
    for number, hours in enumerate((26, 25, 25, 23, 22), start=1):
        found = Entry(kind=EntryKind.FOUND, at=NOW - timedelta(hours=hours))
        journal.wake(other_key(number), found)
    for number, lease in ((2, LEASE), (3, 3 * LEASE), (4, LEASE)):
        assert journal.claim(other_key(number), "one", NOW - 2 * LEASE, lease)
    told = Told()
    assert notices(journal, clock, told).tell() == 1
    (notice,) = told.got
    assert notice.count == 2
    assert [key for key, _ in notice.first] == [other_key(1), other_key(2)]


def test_an_unreadable_record_silences_no_notice(journal: SqliteJournal, clock: FakeClock) -> None:
    """What stands in no entry is told of it too: that it is due, and that it is parked."""
    for number in (1, 2, 3):
        found = Entry(kind=EntryKind.FOUND, at=NOW - (30 - number) * HOUR)
        journal.wake(other_key(number), found)
    park(journal, 3, NOW - 26 * HOUR)
    url = f"sqlite:///{journal.path}"
    for number in (1, 3):
        damaged = other_key(number).invoice_id
        tamper(url, f"UPDATE entries SET data = '5' WHERE invoice_id = '{damaged}'")
    told = Told()
    assert notices(journal, clock, told).tell() == 2
    late, parked = told.got
    assert (late.count, [key for key, _ in late.first]) == (2, [other_key(1), other_key(2)])
    assert f"- {other_key(3)}: parked since 2015-12-01T11:00:00Z: a dispute" in parked.text()


def park(journal: SqliteJournal, number: int, at: datetime) -> None:
    """Let a person park an invoice that is known."""
    data = {"by": "ana", "reason": f"a dispute over {number}"}
    assert journal.park(other_key(number), Entry(kind=EntryKind.PARKED, at=at, data=data))


def test_what_is_parked_for_long_is_told(journal: SqliteJournal, clock: FakeClock) -> None:
    """Not before the limit, and then since when, by whom and why, the one parked first first."""
    for number, hours in ((1, 90), (2, 80), (3, 70), (4, 60)):
        found = Entry(kind=EntryKind.FOUND, at=NOW - timedelta(hours=hours))
        journal.wake(other_key(number), found)
    for number, hours in ((1, 24), (2, 30), (3, 26), (4, 23)):
        park(journal, number, NOW - timedelta(hours=hours))
    journal.wake(other_key(2), Entry(kind=EntryKind.DELIVERED, at=NOW - 25 * HOUR))
    released = Entry(kind=EntryKind.RELEASED, at=NOW, data={"by": "ana", "reason": "settled"})
    assert journal.release(other_key(3), released)
    told = Told()
    assert notices(journal, clock, told).tell() == 1
    (notice,) = told.got
    assert (notice.cause, notice.count, notice.oldest_at) == (PARKED, 2, NOW - 30 * HOUR)
    assert notice.subject == "2 invoices: Parked by hand"
    assert [key for key, _ in notice.first] == [other_key(2), other_key(1)]
    line = "parked by ana since 2015-12-01T07:00:00Z: a dispute over 2"
    assert f"- {other_key(2)}: {line}" in notice.text()
    assert "reconciler release" in notice.text()


def pause(journal: SqliteJournal, at: datetime, platform: str = "", reason: str = "") -> None:
    """Let a person pause a platform."""
    journal.pause(Act(at=at, by="ana", verb="pause", reason=reason, platform=platform))


def test_what_a_pause_stops_for_long_is_told(journal: SqliteJournal, clock: FakeClock) -> None:
    """With the pause, by whom, since when and why; not as late: workers and sweep are well."""
    for number, hours in ((1, 26), (2, 25), (3, 1)):
        found = Entry(kind=EntryKind.FOUND, at=NOW - timedelta(hours=hours))
        journal.wake(other_key(number), found)
    pause(journal, NOW - 26 * HOUR, "billforward", "a wrong rate, s3cr3t-7731")
    pause(journal, NOW - 23 * HOUR, "", "lunch")
    told = Told()
    assert notices(journal, clock, told).tell() == 1
    (notice,) = told.got
    assert (notice.cause, notice.count, notice.oldest_at) == (PAUSED, 2, NOW - 26 * HOUR)
    assert notice.text().splitlines()[:4] == [
        "2 invoices: Stopped by a pause.",
        "billforward is paused by ana since 2015-12-01T11:00:00Z: a wrong rate, ***",
        "The oldest since 2015-12-01T11:00:00Z:",
        f"- {other_key(1)}: due since 2015-12-01T11:00:00Z",
    ]
    assert "reconciler resume" in notice.text()
    (told_pause,) = notice.as_json()["pauses"]
    assert (told_pause["platform"], told_pause["by"]) == ("billforward", "ana")
    clock.advance(hours=1)
    assert notices(journal, clock, told).tell() == 1
    assert "Every platform is paused by ana since 2015-12-01T14:00:00Z: lunch" in told.got[1].text()


def test_a_pause_that_is_young_or_stops_nothing_is_not_told(
    journal: SqliteJournal, clock: FakeClock
) -> None:
    """Whoever paused an hour ago knows, however late the invoices; nor is another platform's."""
    journal.wake(other_key(1), Entry(kind=EntryKind.FOUND, at=NOW - 99 * HOUR))
    pause(journal, NOW - 99 * HOUR, "stripe")
    pause(journal, NOW - HOUR, "billforward")
    assert notices(journal, clock, Told()).tell() == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_sweeps_at_once_do_not_double(kind: str, new_journal_url: Callable[[str], str]) -> None:
    """Of eight sweeps with connections of their own, one tells; after the interval, one again."""
    url = new_journal_url(kind)
    journals = [open_journal(url) for _ in range(8)]
    hold(journals[0], [1], UNMAPPED)  # type: ignore[arg-type]
    told, clock = Told(), FakeClock()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            sweeps = [notices(journal, clock, told) for journal in journals]
            assert sum(pool.map(Notices.tell, sweeps)) == 1
            clock.advance(hours=1)
    assert len(told.got) == 3
    for journal in journals:
        journal.close()


def test_what_a_channel_did_not_take_is_told_later(
    journal: SqliteJournal, clock: FakeClock
) -> None:
    """The other channels are told at once; the failed one after ten minutes, not each round."""
    hold(journal, [1], UNMAPPED)
    hold(journal, [2], FRACTION)
    well, ill = Told("well"), Told("ill", failures=[NotTold("answered 500")])
    made = notices(journal, clock, ill, well)
    assert made.tell() == 2
    assert ([len(one.got) for one in (well, ill)]) == [2, 0]
    assert len(ill.failures) == 0  # the second cause was not tried on it in that round
    assert made.tell() == 1
    assert [one.cause.key for one in ill.got] == ["unmapped_component"]
    clock.advance(minutes=10)
    assert made.tell() == 1
    assert [one.cause.key for one in ill.got] == ["unmapped_component", "fraction"]


def test_telling_never_stops_a_sweep(journal: SqliteJournal, clock: FakeClock) -> None:
    """Neither a defect of a channel nor a journal that is gone leaves it as an error."""
    hold(journal, [1], UNMAPPED)
    assert notices(journal, clock, Told(failures=[KeyError("bug")])).tell() == 0
    journal.path.rename(journal.path.with_suffix(".gone"))
    with pytest.raises(JournalUnavailable):
        journal.overview(NOW)
    assert notices(journal, clock, Told()).tell() == 0


def test_no_secret_is_told(journal: SqliteJournal, clock: FakeClock) -> None:
    """Should a reason ever hold a secret, the notice does not."""
    hold(journal, [1], "something odd about s3cr3t-7731 here")
    told = Told()
    notices(journal, clock, told).tell()
    assert "s3cr3t-7731" not in json.dumps(told.got[0].as_json())


@dataclass
class Received:
    """What a local HTTP server was sent, and how it answers."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Received]:
    """A local HTTP server."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.bodies.append(json.loads(body))
            self.send_response(received.answers.pop(0) if received.answers else 204)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received.url = f"http://127.0.0.1:{server.server_port}/hook/t0ken-of-the-hook"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


@pytest.fixture
def notice(journal: SqliteJournal, clock: FakeClock) -> Notice:
    """A notice with a reason that would call everybody in Slack."""
    hold(journal, [1], 'component "<!channel> & <https://evil.example|pay>" has no source')
    told = Told()
    notices(journal, clock, told).tell()
    return told.got[0]


def quick(channel: Channel) -> Channel:
    """Let a channel not pause between its attempts, and wait for an answer half a second."""
    assert isinstance(channel, Post | Mail)
    return replace(channel, pause=0, timeout=0.5)


def posting(url: str) -> list[Channel]:
    """Make the webhook and the Slack channel."""
    return [quick(one) for one in open_channels(NoticesSection(webhook_url=url, slack_url=url))]


def test_webhook_and_slack_are_posted_to(receiver: Received, notice: Notice) -> None:
    """The webhook gets everything as JSON; Slack one plain text that can call nobody."""
    for channel in posting(receiver.url):
        channel.send(notice)
    webhook, slack = receiver.bodies
    assert webhook == notice.as_json()
    assert set(slack) == {"text"}
    assert "&lt;!channel&gt; &amp; &lt;https" in slack["text"]
    assert "<" not in slack["text"]


@pytest.mark.parametrize(
    ("answers", "sent", "told"),
    [
        ([503, 200], 2, ""),
        ([429, 200], 2, ""),
        ([500, 500], 2, "answered 500"),
        ([404], 1, "answered 404"),
        ([302], 1, "answered 302"),
    ],
)
def test_a_post_is_repeated_once_where_that_can_help(
    receiver: Received, notice: Notice, answers: list[int], sent: int, told: str
) -> None:
    """A refusal and a redirect are final, a server in trouble is asked once more, never again."""
    receiver.answers = answers
    channel = posting(receiver.url)[0]
    if told:
        with pytest.raises(NotTold, match=told):
            channel.send(notice)
    else:
        channel.send(notice)
    assert len(receiver.bodies) == sent


def test_an_address_is_a_secret(notice: Notice) -> None:
    """Nobody listens there: the error names neither the host nor the token in its path."""
    channel = posting("http://127.0.0.1:9/hook/t0ken-of-the-hook")[0]
    with pytest.raises(NotTold) as caught:
        channel.send(notice)
    assert "t0ken" not in str(caught.value) + repr(channel)
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@dataclass
class Mailbox:
    """What a local SMTP server took, and what it answers to some commands."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)


class SmtpHandler(socketserver.StreamRequestHandler):
    """Speaks as much SMTP as takes a mail."""

    mailbox: Mailbox

    def handle(self) -> None:
        """Answer each command until the client leaves."""
        self._say("220 local")
        while line := self.rfile.readline():
            command = line.decode().strip()
            self.mailbox.commands.append(command)
            verb = command.split()[0].upper()
            answers = self.mailbox.answers.get(verb, [])
            answer = (
                answers.pop(0)
                if answers
                else {"EHLO": "250 local", "QUIT": "221 bye"}.get(verb, "250 ok")
            )
            if verb == "DATA" and not answer.startswith(("4", "5")):
                self._say("354 go on")
                self._take()
                answer = "250 taken"
            self._say(answer)
            if verb == "QUIT":
                return

    def _take(self) -> None:
        lines: list[bytes] = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line)
        mail = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mailbox.mails.append(mail)

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@contextmanager
def smtp_server() -> Iterator[Mailbox]:
    """Serve SMTP on the loopback."""
    box = Mailbox()
    handler = type("Handler", (SmtpHandler,), {"mailbox": box})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield box
        server.shutdown()
        thread.join()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A local SMTP server."""
    with smtp_server() as box:
        yield box


def mail_to(mailbox: Mailbox, **changed: Any) -> Channel:
    """Make the mail channel to the local server."""
    settings = NoticesSection(
        **{
            "smtp_host": "127.0.0.1",
            "smtp_port": mailbox.port,
            "smtp_tls": "none",
            "smtp_from": "Billing <reconciler@billing.example>",
            "smtp_to": ["oncall@billing.example", "accounting@billing.example"],
            **changed,
        }
    )
    (channel,) = open_channels(settings)
    return quick(channel)


def test_mail_is_sent_to_all(mailbox: Mailbox, notice: Notice) -> None:
    """One mail to all recipients, with the cause in its subject and the story in its text."""
    mail_to(mailbox).send(notice)
    (mail,) = mailbox.mails
    assert mail["Subject"] == "[invoice-reconciler] 1 invoice held: A component has no source"
    assert mail["To"] == "oncall@billing.example, accounting@billing.example"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@billing.example>")
    assert mail.get_content().replace("\r\n", "\n").strip() == notice.text()
    assert sum(command.startswith("rcpt") for command in mailbox.commands) == 2


@pytest.mark.parametrize(
    ("answers", "mails", "told"),
    [
        ({"MAIL": ["451 busy"]}, 1, ""),
        ({"MAIL": ["451 busy", "451 busy"]}, 0, "answered 451"),
        ({"MAIL": ["550 go away"]}, 0, "answered 550"),
        ({"RCPT": ["550 unknown", "550 unknown"]}, 0, "SMTPRecipientsRefused"),
        ({"RCPT": ["550 unknown"]}, 1, ""),
        ({"QUIT": ["451 not now"]}, 1, ""),
    ],
)
def test_mail_is_repeated_once_where_that_can_help(
    mailbox: Mailbox, notice: Notice, answers: dict[str, list[str]], mails: int, told: str
) -> None:
    """A busy server is asked once more, a refusal is final, one unknown recipient loses nothing."""
    mailbox.answers = answers
    if told:
        with pytest.raises(NotTold, match=told):
            mail_to(mailbox).send(notice)
    else:
        mail_to(mailbox).send(notice)
    assert len(mailbox.mails) == mails


def test_mail_is_not_sent_in_the_clear_where_tls_is_set(mailbox: Mailbox, notice: Notice) -> None:
    """A server without STARTTLS gets neither password nor mail."""
    channel = mail_to(mailbox, smtp_tls="starttls", smtp_user="u", smtp_password="p4ssw0rd")
    with pytest.raises(NotTold, match="SMTPNotSupportedError"):
        channel.send(notice)
    assert mailbox.mails == []
    assert not any(command.upper().startswith("AUTH") for command in mailbox.commands)


def test_a_server_that_says_nothing_is_not_waited_for(notice: Notice) -> None:
    """Two bounded attempts, then the sweep goes on."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        box = Mailbox(port=silent.server_address[1])
        with pytest.raises(NotTold, match="no answer"):
            mail_to(box).send(notice)


GOOD: dict[str, Any] = {"platforms": {"billforward": {"base_url": "https://billing.example/v1"}}}
SECRETS = {
    "RECONCILER__WEBHOOK__PASSWORD": "hook-7b2c9e10",
    "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN": "token-5d41402a",
}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"webhook_url": "https://h/x"}, "a secret must not stand in the file"),
        ({"slack_url": "https://h/x"}, "a secret must not stand in the file"),
        ({"smtp_password": "p4ssw0rd"}, "a secret must not stand in the file"),
        ({"smtp_host": "mail.example"}, "mail needs smtp_from and smtp_to too"),
        ({"page_url": "ops.example"}, "must be a URL"),
        ({"every_seconds": 0}, "must be greater than 0"),
        ({"smtp_tls": "maybe"}, "notices.smtp_tls"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], complaint: str) -> None:
    """What cannot be told to anybody, or would give a secret away, is refused at the start."""
    with pytest.raises(ConfigError, match=complaint):
        config_of({**GOOD, "notices": settings}, SECRETS)


def test_the_settings_become_channels(journal_url: str) -> None:
    """Each channel that is set is there; addresses come from the environment, and are secrets."""
    environ = {
        **SECRETS,
        "RECONCILER__JOURNAL__URL": journal_url,
        "RECONCILER__NOTICES__WEBHOOK_URL": "https://hooks.example/t0ken-a",
        "RECONCILER__NOTICES__SLACK_URL": "https://hooks.example/t0ken-b",
        "RECONCILER__NOTICES__SMTP_PASSWORD": "p4ssw0rd",
    }
    mail = {"smtp_host": "mail.example", "smtp_from": "a@b.example", "smtp_to": ["c@b.example"]}
    config = config_of({**GOOD, "notices": {**mail, "every_seconds": 60}}, environ)
    assert {"https://hooks.example/t0ken-a", "p4ssw0rd"} < set(config.secrets)
    assert "t0ken" not in repr(config)
    made = open_notices(open_service(config))
    assert [channel.name for channel in made.channels] == ["webhook", "slack", "mail"]
    assert made.every == MINUTE
    assert "p4ssw0rd" not in repr(made)
    clear = {**mail, "smtp_tls": "none"}
    with pytest.raises(ConfigError, match="in the clear"):
        config_of({**GOOD, "notices": clear}, environ)
