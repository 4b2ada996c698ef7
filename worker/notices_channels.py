"""The channels of notices: a webhook, Slack and what takes the same, and mail by SMTP."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

import requests
import structlog

from worker.notices import Channel, Notice, NotTold
from worker.sections import NoticesSection

log = structlog.get_logger("notices")

_TIMEOUT_SECONDS = 10.0
_ATTEMPTS = 2
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Posts JSON to an address that is a secret."""

    name: str
    url: str = field(repr=False)
    body_of: Callable[[Notice], dict[str, Any]]
    timeout: float = _TIMEOUT_SECONDS
    pause: float = _PAUSE_SECONDS

    def send(self, notice: Notice) -> None:
        """Send it; once more where nobody answered, or not with an answer about it."""
        _repeated(lambda: self._send(notice), self.pause)

    def _send(self, notice: Notice) -> None:
        try:
            with requests.post(
                self.url,
                json=self.body_of(notice),
                timeout=self.timeout,
                allow_redirects=False,
                stream=True,  # what it answers beside its status is of no interest
            ) as answer:
                status = answer.status_code
        except (requests.RequestException, ValueError) as error:  # its text holds the address
            raise _Passing(f"no answer ({type(error).__name__})") from None
        if status == requests.codes.too_many_requests or status >= requests.codes.server_error:
            raise _Passing(f"answered {status}")
        if not requests.codes.ok <= status < requests.codes.multiple_choices:
            raise NotTold(f"answered {status}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Sends mail through one server."""

    settings: NoticesSection
    name: str = "mail"
    timeout: float = _TIMEOUT_SECONDS
    pause: float = _PAUSE_SECONDS

    def send(self, notice: Notice) -> None:
        """Send it to all; once more where the server did not answer or was busy."""
        _repeated(lambda: self._send(notice), self.pause)

    def _send(self, notice: Notice) -> None:
        try:
            message = _message(notice, self.settings)
            with closing(self._connected()) as server:
                if self.settings.smtp_user:
                    server.login(self.settings.smtp_user, self.settings.smtp_password)
                refused = server.send_message(message)
                with suppress(smtplib.SMTPException, OSError):  # it has the mail by now
                    server.quit()
        except smtplib.SMTPResponseException as error:
            kind = _Passing if 400 <= error.smtp_code < 500 else NotTold
            raise kind(f"the server answered {error.smtp_code}") from None
        except (smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError, ValueError) as error:
            raise NotTold(type(error).__name__) from None
        except (smtplib.SMTPException, OSError) as error:
            raise _Passing(f"no answer ({type(error).__name__})") from None
        if refused:  # the others have it
            log.warning("recipients_refused", channel=self.name, count=len(refused))

    def _connected(self) -> smtplib.SMTP:
        where = self.settings.smtp_host or "", self.settings.smtp_port
        if self.settings.smtp_tls == "tls":
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(*where, timeout=self.timeout, context=context)
        server = smtplib.SMTP(*where, timeout=self.timeout)
        if self.settings.smtp_tls == "starttls":
            try:
                server.starttls(context=ssl.create_default_context())
            except BaseException:
                server.close()
                raise
        return server


class _Passing(NotTold):
    """Sending once more may help."""


def open_channels(settings: NoticesSection) -> list[Channel]:
    """Make the channels that are set."""
    channels: list[Channel] = []
    if settings.webhook_url:
        channels.append(Post(name="webhook", url=settings.webhook_url, body_of=Notice.as_json))
    if settings.slack_url:
        channels.append(Post(name="slack", url=settings.slack_url, body_of=_slack))
    if settings.smtp_host:
        channels.append(Mail(settings=settings))
    return channels


def _slack(notice: Notice) -> dict[str, Any]:
    """Write plain text: what a reason quotes can neither link nor call anybody."""
    text = notice.text()
    for sign, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, escaped)
    return {"text": text}


def _message(notice: Notice, settings: NoticesSection) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = f"[invoice-reconciler] {notice.subject}"
    sender = settings.smtp_from or ""
    message["From"] = sender
    message["To"] = ", ".join(settings.smtp_to or ())
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].strip("> "))
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notice.text())
    return message


def _repeated(send: Callable[[], None], pause: float) -> None:
    for left in reversed(range(_ATTEMPTS)):
        try:
            return send()
        except _Passing:
            if not left:
                raise
            time.sleep(pause)
    return None
