"""Notifications over real HTTP, each answer with the time it took."""

from __future__ import annotations

import http.client
import json
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from worker.config import WebhookSection
from worker.domain import InvoiceKey

_MOST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a notification was answered."""

    status: int
    result: str
    retry_after: str | None
    seconds: float


class Sender:
    """Sends notifications as the platform does, each over a connection of its own."""

    def __init__(self, port: int, webhook: WebhookSection) -> None:
        """Send to a port of the loopback, with the webhook's user and password."""
        self._port = port
        credentials = b64encode(f"{webhook.username}:{webhook.password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}"}

    def send(self, name: str, key: InvoiceKey) -> Answer:
        """Send one; OSError or HTTPException: no whole answer came."""
        body = {
            "type": "notification",
            "id": name,
            "domain": "Invoice",
            "action": "Pending",
            "entityID": key.invoice_id,
        }
        began_at = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_MOST_SECONDS)
        try:
            path = f"/webhooks/{key.platform}"
            connection.request("POST", path, json.dumps(body), self._headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
        finally:
            connection.close()
        seconds = time.monotonic() - began_at
        retry_after = answer.getheader("Retry-After")
        return Answer(answer.status, told.get("result", ""), retry_after, seconds)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def served(app: Flask) -> Iterator[int]:
    """Serve the application by threads of this process; yields the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    running = threading.Thread(target=server.serve_forever, args=(0.005,))
    running.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        running.join()
        server.server_close()
