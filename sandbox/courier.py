"""The thread that carries notifications to webhooks."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from sandbox.core import Sandbox

_LONGEST_WAIT_SECONDS = 0.5


class Courier:
    """Sends what the sandbox wants sent, one notification at a time, until it is stopped."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sandbox-courier", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the attempt at hand, if any, and wait for that."""
        self._stopping.set()
        with self._sandbox.changed:
            self._sandbox.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            posting = self._sandbox.next_posting(_LONGEST_WAIT_SECONDS)
            if posting is not None:
                status, error = post(
                    posting.webhook.url,
                    posting.notification.body,
                    self._sandbox.notification_timeout_seconds,
                )
                self._sandbox.note_attempt(posting, status, error)


def post(url: str, body: bytes, timeout_seconds: float) -> tuple[int | None, str | None]:
    """POST *body* as JSON to *url*, its user:password as HTTP basic; return status or error."""
    parts = urlsplit(url)
    connection = _connection(parts, timeout_seconds)
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    try:
        connection.request("POST", target, body, dict(_headers(parts)))
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        return None, type(error).__name__
    else:
        return response.status, None
    finally:
        connection.close()


def _connection(parts: SplitResult, timeout_seconds: float) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_seconds)


def _headers(parts: SplitResult) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    return headers
