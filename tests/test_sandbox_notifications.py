"""What reaches a webhook, how often and in which order."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sandbox_builders import Caller, february_invoice, invoice_change

from sandbox.client import SandboxControl
from sandbox.courier import post
from sandbox.moments import java_text_of, moment_of
from sandbox.wire import Json

FAST = {"redelivery_seconds": [0.01, 0.01], "reorder_hold_seconds": 0.05}


class Receiver(http.server.ThreadingHTTPServer):
    """A webhook that keeps what it gets and answers the statuses it is told, then 200."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.bodies: list[Json] = []
        self.headers: list[Any] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        """Where it listens, with a login."""
        return f"http://bf:p%40ss@127.0.0.1:{self.server_address[1]}/hook?x=1"


class _Receive(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.server.headers.append({**self.headers, "target": self.path})
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture(name="receiver")
def _receiver(control: SandboxControl) -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=[0.01])
        thread.start()
        control.set(**FAST)
        control.add_webhook(receiver.url)
        yield receiver
        control.drop_webhooks()
        receiver.shutdown()
        thread.join()


def test_pending(control: SandboxControl, receiver: Receiver) -> None:
    """A new invoice is notified with its entity as text that holds `type` twice."""
    invoice = control.put_invoice(**february_invoice(), notify=True)
    (sent,) = control.wait_until_delivered()
    (body,) = receiver.bodies
    assert set(body) == {
        "type",
        "id",
        "created",
        "domain",
        "action",
        "organizationID",
        "entityID",
        "entity",
    }
    assert (body["type"], body["domain"], body["action"]) == ("notification", "Invoice", "Pending")
    assert (body["id"], body["entityID"]) == (sent["id"], invoice["id"])
    assert len(body["id"]) == 36
    pairs = json.loads(body["entity"], object_pairs_hook=list)
    assert [value for key, value in pairs if key == "type"] == ["invoice", "Subscription"]
    assert not {"charges", "@type"} & {key for key, _ in pairs}


def test_login(control: SandboxControl, receiver: Receiver) -> None:
    """The URL's login is sent as HTTP basic, and shown nowhere."""
    control.put_invoice(notify=True)
    (sent,) = control.wait_until_delivered()
    (headers,) = receiver.headers
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"bf:p@ss"
    assert headers["Content-Type"] == "application/json"
    assert headers["target"] == "/hook?x=1"
    assert sent["attempts"][0]["url"].startswith("http://127.0.0.1")


def test_webhooks_are_listed(api: Caller, control: SandboxControl, receiver: Receiver) -> None:
    """Webhooks are listed under the upper-case key URL, without the password."""
    (found,) = api.get("webhooks").results
    assert found["URL"] == receiver.url.replace("bf:p%40ss@", "")
    assert found["ackEnabled"] is False


def test_changes(api: Caller, control: SandboxControl, receiver: Receiver) -> None:
    """An update carries its changes as text, with values as text and dates in Java's manner."""
    invoice = control.put_invoice(**february_invoice())
    api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    control.wait_until_delivered()
    (body,) = receiver.bodies
    assert body["action"] == "Unpaid"
    changes = {c["attributeName"]: c for c in json.loads(body["changes"])["auditFieldChanges"]}
    assert changes["state"]["previousValue"] == "Pending"
    assert changes["versionNumber"]["newValue"] == "2"
    issued = moment_of(control.invoice(invoice["id"])["issued"])
    assert changes["issued"] == {"attributeName": "issued", "newValue": java_text_of(issued)}


def test_quiet_recalculation(api: Caller, control: SandboxControl, receiver: Receiver) -> None:
    """Recalculation notifies nobody if that is switched off; payment still does."""
    control.set(notify_on_recalculation=False, pay_after_seconds=0)
    invoice = control.put_invoice(**february_invoice())
    api.post(f"invoices/{invoice['id']}/recalculate", invoice_change())
    control.invoice(invoice["id"])
    control.wait_until_delivered()
    assert [body["action"] for body in receiver.bodies] == ["Paid"]


def test_redelivery(control: SandboxControl, receiver: Receiver) -> None:
    """A refused notification is sent again, unchanged, until it is taken."""
    receiver.statuses = [500, 404]
    control.put_invoice(notify=True)
    (sent,) = control.wait_until_delivered()
    assert [attempt["status"] for attempt in sent["attempts"]] == [500, 404, 200]
    assert receiver.bodies[0] == receiver.bodies[1] == receiver.bodies[2]


def test_giving_up(control: SandboxControl, receiver: Receiver) -> None:
    """After the last pause of the schedule a notification is given up."""
    receiver.statuses = [500] * 9
    control.put_invoice(notify=True)
    (sent,) = control.wait_until_delivered()
    assert len(sent["attempts"]) == 3


def test_nobody_listens(control: SandboxControl) -> None:
    """A webhook that does not answer is tried again too, and the reason is recorded."""
    with Receiver() as gone:
        url = gone.url
    control.set(**FAST)
    control.add_webhook(url)
    control.put_invoice(notify=True)
    (sent,) = control.wait_until_delivered()
    assert [one["error"] for one in sent["attempts"]] == ["ConnectionRefusedError"] * 3


def test_acknowledgement(api: Caller, control: SandboxControl, receiver: Receiver) -> None:
    """With ackEnabled a notification comes again until it is acknowledged, even after a 200."""
    control.drop_webhooks()
    control.add_webhook(receiver.url, ack_enabled=True)
    control.set(redelivery_seconds=[0.01, 0.01, 0.01, 0.3])
    control.put_invoice(notify=True)
    deadline = time.monotonic() + 5
    while len(receiver.bodies) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (answer,) = api.get(f"notifications/ack/{receiver.bodies[0]['id']}").results
    assert answer["acked"]
    (sent,) = control.wait_until_delivered()
    assert (sent["acked"], len(sent["attempts"])) == (answer["acked"], 4)
    assert api.get("notifications/ack/NOT-0").status == 404


def test_never_acknowledged(control: SandboxControl, receiver: Receiver) -> None:
    """Without an acknowledgement the attempts end all the same."""
    control.drop_webhooks()
    control.add_webhook(receiver.url, ack_enabled=True)
    control.set(ack_attempts=4)
    control.put_invoice(notify=True)
    (sent,) = control.wait_until_delivered()
    assert (len(sent["attempts"]), sent["acked"]) == (4, None)


def test_duplicates_on_command(control: SandboxControl, receiver: Receiver) -> None:
    """A notification can be sent several times under one id, and again later."""
    invoice = control.put_invoice(**february_invoice())
    sent = control.notify(invoice["id"], times=3)
    control.notify(invoice["id"], notification_id=sent)
    control.notify(invoice["id"], action="Paid", notification_id="NOT-1")
    control.wait_until_delivered()
    assert [body["id"] for body in receiver.bodies] == [sent] * 4 + ["NOT-1"]
    assert receiver.bodies[-1]["action"] == "Paid"


def test_duplicates_of_everything(control: SandboxControl, receiver: Receiver) -> None:
    """Every notification can be sent several times."""
    control.set(notification_copies=2)
    for _ in range(2):
        control.put_invoice(notify=True)
    control.wait_until_delivered()
    ids = [body["id"] for body in receiver.bodies]
    assert (len(ids), len(set(ids))) == (4, 2)


def test_reordering(control: SandboxControl, receiver: Receiver) -> None:
    """Notifications can be shuffled in windows, in a repeatable way; none gets stuck in one."""
    orders: list[list[int]] = []
    for _ in range(2):
        receiver.bodies.clear()
        control.set(reorder_window=5, reorder_seed=7)
        made = [control.put_invoice(notify=True)["id"] for _ in range(7)]
        control.wait_until_delivered()
        orders.append([made.index(body["entityID"]) for body in receiver.bodies])
        control.reset()
        control.set(**FAST)
        control.add_webhook(receiver.url)
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])
    assert sorted(orders[0][:5]) == [0, 1, 2, 3, 4]
    assert sorted(orders[0][5:]) == [5, 6]


def test_hung_webhook(control: SandboxControl) -> None:
    """A webhook that takes too long has failed."""
    with Receiver() as silent:
        status, error = post(silent.url, b"{}", 0.05)
    assert (status, error) == (None, "TimeoutError")
