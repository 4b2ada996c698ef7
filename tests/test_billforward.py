"""The BillForward adapter: what it asks for, what it sends, and which answers it believes."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import responses
from builders import INV, invoice, other_key
from responses.matchers import query_param_matcher

from worker.domain import InvoiceState
from worker.errors import (
    CredentialsRefused,
    DeliveryRejected,
    OutcomeUnknown,
    PlatformAnswerInvalid,
    PlatformRefused,
    PlatformUnavailable,
    ReconcilerError,
    Stopped,
    TransientError,
)
from worker.platforms.billforward import BillForward
from worker.writes import ChargeWrite

BASE = "https://bf.example/v1"
TOKEN = "s3cr3t-t0k3n"
ISSUE = f"{BASE}/invoices/{INV}/recalculate"
BATCH = f"{BASE}/charges/recalculate"
PAGE = {"records": "200", "order_by": "id", "order": "ASC", "include_retired": "false"}
REFUSAL = {"errorType": "ValidationError", "errorMessage": "no"}

Row = dict[str, Any]


def going_on() -> bool:
    """Say that the worker was not asked to end."""
    return False


@pytest.fixture(name="http")
def _http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as http:
        yield http


def platform(**changes: Any) -> BillForward:
    """Make the adapter, one that never sleeps."""
    settings: dict[str, Any] = {"base_url": BASE, "token": TOKEN, "sleep": lambda _: None}
    return BillForward(name="bf", **{**settings, **changes})


def charge_id(number: int) -> str:
    """Name a charge; ids sort as their numbers."""
    return f"CHG-00000000-0000-4000-8000-{number:08X}"


def row(number: int = 0, **changes: Any) -> Row:
    """Make a usage charge as BillForward lists it."""
    return {
        "id": charge_id(number),
        "versionNumber": 1,
        "type": "PricingComponent",
        "pricingComponentType": "usage",
        "pricingComponentName": f"Messages {number}",
        "pricingComponentValue": 0,
        "amount": 0,
        "state": "Pending",
        "subscriptionID": "SUB-1",
        "periodStart": "2015-11-02T12:18:51Z",
        "periodEnd": "2015-12-02T12:18:51Z",
        **changes,
    }


def invoice_row(**changes: Any) -> Row:
    """Make an invoice as BillForward shows it."""
    return {
        "id": INV,
        "versionNumber": 1,
        "type": "Subscription",
        "state": "Pending",
        "currency": "USD",
        "invoiceCost": 5,
        "charges": [],
        **changes,
    }


def envelope(*rows: Row, **paging: Any) -> Row:
    """Wrap rows as every answer is."""
    return {"executionTime": 12_000_000, **paging, "results": list(rows)}


def body_sent(http: responses.RequestsMock) -> Any:
    """Return the body of the only request."""
    (call,) = http.calls
    return json.loads(call.request.body or b"")


# --- settings


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "bf.example/v1",
        "ftp://bf.example/v1",
        "http://",
        "http:///v1",
        "https://user:pass@bf.example/v1",
        "https://bf.example/v1?access_token=x",
        "https://bf.example/v1#part",
        "https://bf.example/v 1",
        "https://bf.example/v1\n",
        "https://bf.example:port/v1",
        "https://bf.example:99999/v1",
        "https://[::1/v1",
    ],
)
def test_base_url_is_plain(base_url: str) -> None:
    """A base URL that is none, or that could hold a secret, is refused at once."""
    with pytest.raises(ValueError, match="base_url must be a plain"):
        platform(base_url=base_url)


@pytest.mark.parametrize(
    "base_url", [BASE, f"{BASE}/", "http://127.0.0.1:8080/RestAPI", "https://[::1]:443", "http://x"]
)
def test_base_urls(base_url: str) -> None:
    """Any host, port and path will do, since tenants have their own."""
    assert platform(base_url=base_url).base_url == base_url


@pytest.mark.parametrize(
    "changes",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": 65},
        {"connect_timeout_seconds": 0.0},
        {"read_timeout_seconds": -1.0},
        {"read_timeout_seconds": float("inf")},
        {"total_timeout_seconds": float("nan")},
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any]) -> None:
    """A number out of its range is refused by the setting's name."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        platform(**changes)


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN}\0", f"{TOKEN}\u20ac", f"\r{TOKEN}"])
def test_token_is_fit_for_a_header(token: str) -> None:
    """A token that no header can carry is refused without being shown."""
    with pytest.raises(ValueError, match="token has a character") as caught:
        platform(token=token)
    assert TOKEN not in str(caught.value)


def test_token_is_not_shown() -> None:
    """The adapter's own description leaves the token out."""
    assert TOKEN not in repr(platform())


def test_check(http: responses.RequestsMock) -> None:
    """A check is one small read."""
    small = query_param_matcher({"records": "1", "order": "ASC"})
    http.get(f"{BASE}/invoices/state/Pending", json=envelope(), match=[small])
    found = platform()
    found.check()
    assert found.calls == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"status": 401}, CredentialsRefused),
        ({"status": 503}, PlatformUnavailable),
        ({"json": {"hello": "world"}}, PlatformAnswerInvalid),
        ({"status": 404}, PlatformRefused),
    ],
)
def test_check_fails(
    http: responses.RequestsMock, answer: dict[str, Any], kind: type[ReconcilerError]
) -> None:
    """A check says whether the platform, the credentials or the address is at fault."""
    http.get(f"{BASE}/invoices/state/Pending", **answer)
    with pytest.raises(kind):
        platform().check()


def test_parse_delivery() -> None:
    """A delivery names the platform as the configuration does."""
    body = json.dumps({"id": INV, "domain": "Invoice", "action": "Pending", "entityID": INV})
    delivery = platform().parse_delivery(body.encode())
    assert (delivery.platform, delivery.invoice_id) == ("bf", INV)
    with pytest.raises(DeliveryRejected):
        platform().parse_delivery(b"")


# --- reading an invoice


def test_invoice(http: responses.RequestsMock) -> None:
    """An invoice is asked for without its retired versions; its numbers keep their digits."""
    body = json.dumps(envelope(invoice_row())).replace('"invoiceCost": 5', '"invoiceCost": 0E-7')
    current = query_param_matcher({"include_retired": "false"})
    http.get(f"{BASE}/invoices/{INV}", body=body, match=[current])
    found = platform().invoice(INV)
    assert found is not None
    assert (found.id, str(found.total)) == (INV, "0E-7")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_invoice_versions(http: responses.RequestsMock, order: Sequence[int]) -> None:
    """Of several versions the newest counts, in whatever order they come."""
    rows = [invoice_row(versionNumber=number) for number in order]
    http.get(f"{BASE}/invoices/{INV}", json=envelope(*rows))
    found = platform().invoice(INV)
    assert found is not None
    assert found.version == 3


@pytest.mark.parametrize(
    "answer",
    [
        {"json": envelope()},
        {"status": 404},
        {"status": 404, "json": {"errorType": "NoSuchEntity"}},
        {"json": {"errorType": "NoSuchEntity"}},
    ],
)
def test_no_invoice(http: responses.RequestsMock, answer: dict[str, Any]) -> None:
    """An unknown id is None, whichever way the platform says so."""
    http.get(f"{BASE}/invoices/{INV}", **answer)
    assert platform().invoice(INV) is None


@pytest.mark.parametrize(
    "rows",
    [
        [invoice_row(id=other_key(1).invoice_id)],
        [invoice_row(), invoice_row(id=other_key(1).invoice_id)],
        [invoice_row(id=INV.lower())],
        [invoice_row(invoiceCost=None)],
    ],
)
def test_another_invoice(http: responses.RequestsMock, rows: list[Row]) -> None:
    """An answer about another invoice, or without an amount, is invalid."""
    http.get(f"{BASE}/invoices/{INV}", json=envelope(*rows))
    with pytest.raises(PlatformAnswerInvalid):
        platform().invoice(INV)


def test_ids_cannot_leave_their_place(http: responses.RequestsMock) -> None:
    """An id is quoted: it stays one segment of the path."""
    http.get(f"{BASE}/invoices/..%2Fa%3Fb%23c%20d", json=envelope())
    assert platform().invoice("../a?b#c d") is None


# --- listing charges


def list_charges(
    http: responses.RequestsMock, rows: Sequence[Row], most: int = 10**6, **paging: Any
) -> list[int]:
    """Let the platform page through *rows*; return the offsets that will be asked for."""
    offsets: list[int] = []

    def page(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        query = {key: value for key, (value,) in parse_qs(urlsplit(str(request.url)).query).items()}
        offset = int(query.pop("offset"))
        assert query == PAGE
        offsets.append(offset)
        size = min(int(query["records"]), most)
        stated = {"recordsRequested": size, "currentOffset": offset, **paging}
        return 200, {}, json.dumps(envelope(*rows[offset : offset + size], **stated))

    http.add_callback("GET", f"{BASE}/invoices/{INV}/charges", callback=page)
    return offsets


@pytest.mark.parametrize(
    ("count", "most", "offsets"),
    [
        (0, 200, [0]),
        (51, 200, [0]),
        (200, 200, [0, 200]),
        (450, 200, [0, 200, 400]),
        (51, 10, [0, 10, 20, 30, 40, 50]),
        (20, 10, [0, 10, 20]),
        (3, 1, [0, 1, 2, 3]),
    ],
)
def test_pages(http: responses.RequestsMock, count: int, most: int, offsets: list[int]) -> None:
    """Every charge is listed once, in stable order, also where the platform caps its pages."""
    asked = list_charges(http, [row(number) for number in range(count)], most)
    found = platform().usage_charges(invoice())
    assert [charge.id for charge in found] == [charge_id(number) for number in range(count)]
    assert asked == offsets


@pytest.mark.parametrize(
    "stated", [{"recordsRequested": 0}, {"recordsRequested": None}, {"recordsRequested": 500}]
)
def test_page_size_not_told(http: responses.RequestsMock, stated: Row) -> None:
    """Where the platform does not say a smaller page size, the one asked for counts."""
    asked = list_charges(http, [row(number) for number in range(201)], **stated)
    assert len(platform().usage_charges(invoice())) == 201
    assert asked == [0, 200]


@pytest.mark.parametrize(("versions", "quantity"), [((1, 2), 8), ((2, 1), 7), ((2, 2), 8)])
def test_charge_listed_twice(
    http: responses.RequestsMock, versions: Sequence[int], quantity: int
) -> None:
    """A charge that moves across pages is there once, newest version first, then last read."""
    twice = [
        row(0, versionNumber=version, pricingComponentValue=value)
        for version, value in zip(versions, (7, 8), strict=True)
    ]
    list_charges(http, [twice[0], row(1), twice[1]], 2)
    found = {charge.id: charge for charge in platform().usage_charges(invoice())}
    assert list(found) == [charge_id(0), charge_id(1)]
    assert (found[charge_id(0)].version, found[charge_id(0)].quantity) == (2, Decimal(quantity))


@pytest.mark.parametrize("newest_first", [True, False])
def test_charge_voided_meanwhile(http: responses.RequestsMock, newest_first: bool) -> None:
    """A charge whose newest version is Voided is not billed by an older one."""
    rows = [row(0, versionNumber=2, state="Voided"), row(0)]
    list_charges(http, rows if newest_first else rows[::-1], 1)
    assert platform().usage_charges(invoice()) == []


def test_only_usage_charges(http: responses.RequestsMock) -> None:
    """Fees, credits and Voided charges are left out, even where they lack a version."""
    fee = {"id": charge_id(1), "type": "Manual", "amount": 5, "state": "Pending"}
    others = [row(2, pricingComponentType="subscription"), row(3, state="Voided")]
    list_charges(http, [row(0), fee, *others])
    (found,) = platform().usage_charges(invoice())
    assert (found.id, found.invoice_id, found.component) == (charge_id(0), INV, "Messages 0")


def test_list_lacks_a_charge(http: responses.RequestsMock) -> None:
    """A list without a charge that the invoice embeds is not believed, but asked for later."""
    list_charges(http, [row(0)])
    embedded = frozenset({charge_id(0), charge_id(7)})
    with pytest.raises(TransientError, match=charge_id(7)):
        platform().usage_charges(invoice(usage_charge_ids=embedded))


def test_endless_pages(http: responses.RequestsMock) -> None:
    """A platform that ignores the offset is not asked for ever."""
    list_charges(http, [row(0)] * 300, 2)
    with pytest.raises(PlatformAnswerInvalid, match="more than 100 pages"):
        platform().usage_charges(invoice())
    assert len(http.calls) == 100


@pytest.mark.parametrize(
    "rows", [[row(id=None)], [row(pricingComponentName=None)], [row(amount="0.10")]]
)
def test_charge_unreadable(http: responses.RequestsMock, rows: list[Row]) -> None:
    """A usage charge that cannot be read is an error, never left out."""
    list_charges(http, rows)
    with pytest.raises(PlatformAnswerInvalid):
        platform().usage_charges(invoice())


def test_list_breaks_off(http: responses.RequestsMock) -> None:
    """A page that cannot be had fails the whole list."""
    url, full = f"{BASE}/invoices/{INV}/charges", [row(number) for number in range(200)]
    http.get(url, json=envelope(*full), match=[query_param_matcher({**PAGE, "offset": "0"})])
    http.get(url, status=503, match=[query_param_matcher({**PAGE, "offset": "200"})])
    with pytest.raises(PlatformUnavailable):
        platform().usage_charges(invoice())


# --- writing quantities


def recalculated(number: int) -> str:
    """Return where a charge is recalculated."""
    return f"{BASE}/charges/{charge_id(number)}/recalculate"


def writes(found: BillForward, quantities: Mapping[str, int]) -> list[ChargeWrite]:
    """Write quantities and return what became of each."""
    return list(found.recalculate(invoice(), quantities, going_on))


@pytest.mark.parametrize("quantity", [0, 105, 10**15])
def test_charge_body(http: responses.RequestsMock, quantity: int) -> None:
    """A charge is sent its whole quantity and the pricing, nothing else; 0 is sent as 0."""
    answered = row(0, pricingComponentValue=quantity, versionNumber=2, amount=3)
    http.post(recalculated(0), json=envelope(answered))
    (write,) = writes(platform(), {charge_id(0): quantity})
    assert body_sent(http) == {
        "pricingComponentValue": quantity,
        "recalculationBehaviour": "RecalculateWithLatestPricing",
    }
    assert write.error is None
    assert write.charge is not None
    assert (write.charge.quantity, write.charge.version) == (Decimal(quantity), 2)
    assert write.charge.invoice_id == INV


def test_charge_behaviour(http: responses.RequestsMock) -> None:
    """The operator may choose the other pricing."""
    http.post(recalculated(0), json=envelope(row(0)))
    writes(platform(charge_behaviour="RecalculateWithCurrentPricing"), {charge_id(0): 0})
    assert body_sent(http)["recalculationBehaviour"] == "RecalculateWithCurrentPricing"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"json": envelope()}, PlatformAnswerInvalid),
        ({"json": {}}, PlatformAnswerInvalid),
        ({"json": envelope(row(1, pricingComponentValue=7))}, PlatformAnswerInvalid),
        ({"json": envelope(row(0, pricingComponentValue=8))}, PlatformAnswerInvalid),
        ({"json": envelope(row(0, pricingComponentValue=None))}, PlatformAnswerInvalid),
        ({"json": REFUSAL, "status": 400}, PlatformRefused),
        ({"json": REFUSAL}, PlatformRefused),
        ({"status": 404}, PlatformRefused),
        ({"status": 401}, CredentialsRefused),
        ({"status": 429}, PlatformUnavailable),
        ({"status": 500}, OutcomeUnknown),
        ({"body": "<h1>"}, OutcomeUnknown),
        ({"body": requests.ReadTimeout("late")}, OutcomeUnknown),
        ({"body": requests.ConnectTimeout("late")}, PlatformUnavailable),
    ],
)
@pytest.mark.parametrize("how", ["each", "batch"])
def test_charge_not_written(
    http: responses.RequestsMock, answer: dict[str, Any], kind: type[ReconcilerError], how: str
) -> None:
    """No answer that shows the quantity is an error; only a "not now" is sent again."""
    if how == "batch" and "results" in answer.get("json", {}):
        batch = {"charges": answer["json"]["results"], "recalculatedInvoices": []}
        answer = {"json": envelope(batch)}
    http.post(recalculated(0) if how == "each" else BATCH, **answer)
    (write,) = writes(platform(recalculation=how), {charge_id(0): 7})
    assert (write.charge_id, write.charge) == (charge_id(0), None)
    assert isinstance(write.error, kind)
    assert len(http.calls) == (4 if kind is PlatformUnavailable else 1)


@pytest.mark.parametrize("how", ["each", "batch"])
def test_nothing_to_write(how: str) -> None:
    """Without quantities nothing is sent."""
    found = platform(recalculation=how)
    assert (writes(found, {}), found.calls) == ([], 0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({"json": REFUSAL, "status": 400}, PlatformRefused), ({"status": 503}, OutcomeUnknown)],
)
def test_first_failure_stops(
    http: responses.RequestsMock, answer: dict[str, Any], kind: type[ReconcilerError]
) -> None:
    """After a failure no further charge is sent, and each unsent one comes with an error."""
    http.post(recalculated(0), json=envelope(row(0)))
    http.post(recalculated(1), **answer)
    quantities = {charge_id(number): 0 for number in range(5)}
    found = writes(platform(concurrency=1), quantities)
    assert {write.charge_id for write in found} == set(quantities)
    assert len(found) == 5
    errors = {write.charge_id: write.error for write in found}
    assert errors[charge_id(0)] is None
    assert isinstance(errors[charge_id(1)], kind)
    assert all(isinstance(errors[charge_id(n)], PlatformUnavailable) for n in (2, 3, 4))
    assert all("not sent" in str(errors[charge_id(n)]) for n in (2, 3, 4))
    assert len(http.calls) == 2


# --- several at a time, over real connections


class Charges(ThreadingHTTPServer):
    """Recalculates charges and keeps count of how many requests it has at a time.

    Requests wait for each other in groups of `together`; charges in `held` wait for `let_go`;
    those in `refused` are refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recalculation)
        self.guard = threading.Lock()
        self.meeting = threading.Barrier(1)
        self.let_go = threading.Event()
        self.held: set[str] = set()
        self.refused: set[str] = set()
        self.asked: list[str] = []
        self.connections = 0
        self.running = 0
        self.most_running = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Recalculation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Charges

    def setup(self) -> None:
        """Count a connection."""
        super().setup()
        with self.server.guard:
            self.server.connections += 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing."""

    def _answer(self) -> None:
        server, asked = self.server, self.path.split("/")[3]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.guard:
            server.asked.append(asked)
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        server.meeting.wait(10)
        if asked in server.held:
            server.let_go.wait(10)
        good = envelope(row(id=asked, pricingComponentValue=body["pricingComponentValue"]))
        answer = json.dumps(REFUSAL if asked in server.refused else good).encode()
        with server.guard:
            server.running -= 1
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)

    do_POST = _answer  # noqa: N815 - the base's name


@pytest.fixture(name="server")
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Charges]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Charges() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.let_go.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("concurrency", "count"), [(1, 3), (4, 12), (8, 8)])
def test_at_a_time(server: Charges, concurrency: int, count: int) -> None:
    """As many charges are written at a time as the setting says, and never more."""
    server.meeting = threading.Barrier(concurrency)
    quantities = {charge_id(number): number for number in range(count)}
    found = writes(platform(base_url=server.url, concurrency=concurrency), quantities)
    assert server.most_running == concurrency
    assert {
        write.charge.id: write.charge.quantity for write in found if write.charge is not None
    } == quantities


def test_connections_are_kept(server: Charges) -> None:
    """Each of the writes at a time has one connection, kept for the next invoice."""
    server.meeting = threading.Barrier(4)
    found = platform(base_url=server.url, concurrency=4)
    for _ in range(2):
        writes(found, {charge_id(number): number for number in range(8)})
    assert (server.connections, len(server.asked)) == (4, 16)


def test_failure_among_several(server: Charges) -> None:
    """Writes on their way when another fails come to their end; no new one is begun."""
    server.refused, server.held = {charge_id(0)}, {charge_id(1)}
    found = platform(base_url=server.url, concurrency=2)
    iterator = found.recalculate(invoice(), {charge_id(number): 5 for number in range(6)}, going_on)
    first = next(iterator)
    assert (first.charge_id, type(first.error)) == (charge_id(0), PlatformRefused)
    server.let_go.set()
    second, *rest = iterator
    assert second.charge is not None
    assert (second.charge.id, second.charge.quantity) == (charge_id(1), Decimal(5))
    assert {write.charge_id for write in rest} == {charge_id(number) for number in (2, 3, 4, 5)}
    assert all(isinstance(write.error, PlatformUnavailable) for write in rest)
    assert sorted(server.asked) == [charge_id(0), charge_id(1)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_closed_early(server: Charges, concurrency: int) -> None:
    """Closing the iterator waits for what is on its way and sends nothing more."""
    server.meeting = threading.Barrier(concurrency)
    found = platform(base_url=server.url, concurrency=concurrency)
    iterator = found.recalculate(invoice(), {charge_id(number): 5 for number in range(9)}, going_on)
    next(iterator)
    assert isinstance(iterator, Generator)
    iterator.close()
    assert (len(server.asked), server.running) == (concurrency, 0)
    assert list(iterator) == []
    assert found.calls == concurrency


def test_asked_to_end_it_sends_no_more_and_tells_of_every_charge(server: Charges) -> None:
    """What is on its way comes to its end; what was not sent is yielded as such."""
    found = platform(base_url=server.url, concurrency=1)
    wanted = {charge_id(number): 5 for number in range(3)}
    results = list(found.recalculate(invoice(), wanted, lambda: len(server.asked) >= 1))
    assert [type(one.error) for one in results] == [type(None), Stopped, Stopped]
    assert {one.charge_id for one in results} == set(wanted)
    assert len(server.asked) == 1


@responses.activate
def test_pending_invoices_are_read_in_pages_oldest_first() -> None:
    """The list is asked for by offset, in ascending order, and gives ids only."""
    page = {"results": [{"id": f"INV-00000000-0000-4000-8000-{n:08X}"} for n in range(2)]}
    sent = responses.get("http://h/v1/invoices/state/Pending", json=page)
    found = platform(base_url="http://h/v1").pending_invoices(50)
    assert found == [row["id"] for row in page["results"]]
    assert sent.calls[0].request.params == {
        "records": "50",
        "offset": "50",
        "order_by": "created",
        "order": "ASC",
        "include_retired": "false",
    }


@responses.activate
def test_an_id_that_cannot_be_one_is_not_taken_from_the_list() -> None:
    """Ids become paths, so the platform's list is not trusted with them either."""
    page = {"results": [{"id": "../../x"}]}
    responses.get("http://h/v1/invoices/state/Pending", json=page)
    with pytest.raises(PlatformAnswerInvalid, match="cannot be one"):
        platform(base_url="http://h/v1").pending_invoices(0)


@responses.activate
@pytest.mark.parametrize("status", [200, 503])
def test_an_acknowledgement_is_sent_exactly_once(status: int) -> None:
    """It is a GET with an effect: nothing repeats it, whatever the answer."""
    sent = responses.get("http://h/v1/notifications/ack/NOT-1", status=status, json={"results": []})
    found = platform(base_url="http://h/v1")
    if status == 200:
        found.acknowledge_delivery("NOT-1")
    else:
        with pytest.raises(PlatformUnavailable):
            found.acknowledge_delivery("NOT-1")
    assert sent.call_count == 1


def test_nothing_is_sent_before_it_is_asked_for(server: Charges) -> None:
    """An iterator that nobody begins sends nothing."""
    found = platform(base_url=server.url)
    found.recalculate(invoice(), {charge_id(0): 5}, going_on)
    assert (found.calls, server.asked) == (0, [])


# --- in one batch


def test_batch_body(http: responses.RequestsMock) -> None:
    """A batch sends all quantities at once, and leaves the invoice as it is."""
    rows = [row(number, pricingComponentValue=number + 7) for number in (1, 0, 5)]
    http.post(BATCH, json=envelope({"charges": rows, "recalculatedInvoices": []}))
    found = writes(platform(recalculation="batch"), {charge_id(0): 7, charge_id(1): 8})
    assert body_sent(http) == {
        "charges": [
            {
                "id": charge_id(number),
                "pricingComponentValue": number + 7,
                "recalculationBehaviour": "RecalculateWithLatestPricing",
            }
            for number in (0, 1)
        ],
        "recalculateInvoices": False,
        "dryRun": False,
    }
    assert [(write.charge_id, write.error) for write in found] == [
        (charge_id(0), None),
        (charge_id(1), None),
    ]
    assert [write.charge.quantity for write in found if write.charge] == [Decimal(7), Decimal(8)]


def test_batch_answers_in_part(http: responses.RequestsMock) -> None:
    """Each charge of a batch is judged by itself: the missing and the wrong one are errors."""
    rows = [row(0, pricingComponentValue=7), row(1, pricingComponentValue=9)]
    http.post(BATCH, json=envelope({"charges": rows}))
    quantities = {charge_id(number): 7 for number in range(3)}
    good, wrong, missing = writes(platform(recalculation="batch"), quantities)
    assert (good.error, good.charge is not None) == (None, True)
    assert isinstance(wrong.error, PlatformAnswerInvalid)
    assert "it answered 9" in str(wrong.error)
    assert isinstance(missing.error, PlatformAnswerInvalid)
    assert "is not about it" in str(missing.error)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"json": REFUSAL, "status": 400}, PlatformRefused),
        ({"status": 429}, PlatformUnavailable),
        ({"status": 503}, OutcomeUnknown),
        ({"json": envelope()}, PlatformAnswerInvalid),
        ({"json": envelope({})}, PlatformAnswerInvalid),
        ({"json": envelope({"charges": [5]})}, PlatformAnswerInvalid),
    ],
)
def test_batch_fails(
    http: responses.RequestsMock, answer: dict[str, Any], kind: type[ReconcilerError]
) -> None:
    """A batch that fails as a whole fails for each charge; only a "not now" is sent again."""
    http.post(BATCH, **answer)
    quantities = {charge_id(number): 7 for number in range(3)}
    found = writes(platform(recalculation="batch"), quantities)
    assert [write.charge_id for write in found] == list(quantities)
    assert [type(write.error) for write in found] == [kind] * 3
    assert len(http.calls) == (4 if kind is PlatformUnavailable else 1)


# --- issuing


@pytest.mark.parametrize(
    ("state", "expected"), [("Unpaid", InvoiceState.UNPAID), ("Paid", InvoiceState.PAID)]
)
def test_issue(http: responses.RequestsMock, state: str, expected: InvoiceState) -> None:
    """An invoice is issued with everything said that has a dangerous default."""
    http.post(ISSUE, json=envelope(invoice_row(state=state, versionNumber=2)))
    issued = platform().issue(invoice()).invoice
    assert issued is not None
    assert (issued.id, issued.state, issued.version) == (INV, expected, 2)
    assert body_sent(http) == {
        "newState": "Unpaid",
        "recalculationBehaviour": "RecalculateAsLatestSubscriptionVersion",
        "onlyInvoiceAssociatedCharges": True,
        "dryRun": False,
    }


def test_issue_behaviour(http: responses.RequestsMock) -> None:
    """The operator may choose the other subscription version."""
    http.post(ISSUE, json=envelope(invoice_row(state="Unpaid")))
    behaviour = "RecalculateAsCurrentSubscriptionVersion"
    platform(invoice_behaviour=behaviour).issue(invoice())
    assert body_sent(http)["recalculationBehaviour"] == behaviour


@pytest.mark.parametrize(
    "answer",
    [
        {"json": envelope()},
        {"json": {}},
        {"json": []},
        {"json": envelope(invoice_row(state="Pending"))},
        {"json": envelope(invoice_row(state="Tomorrow"))},
        {"json": envelope(invoice_row(state=None))},
        {"json": envelope(invoice_row(state="Unpaid", invoiceCost=None))},
        {"json": envelope(invoice_row(state="Unpaid", id=other_key(1).invoice_id))},
        {"json": {"errorType": None}},
        {"json": {"errorType": "ServerError"}},
        {"json": REFUSAL, "status": 500},
        {"body": ""},
        {"body": "<h1>"},
        {"body": '{"results": [{'},
        {"status": 500},
        {"status": 502, "body": "<h1>"},
        {"status": 504, "body": ""},
        {"body": requests.ReadTimeout("late")},
        {"body": requests.ConnectionError("reset")},
    ],
    ids=lambda answer: repr(answer)[:70],
)
def test_issue_unknown(http: responses.RequestsMock, answer: dict[str, Any]) -> None:
    """Issuing is sent once, and an answer that does not show it done leaves it unknown."""
    http.post(ISSUE, **answer)
    assert type(platform().issue(invoice()).error) is OutcomeUnknown
    assert len(http.calls) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"status": 412, "json": {"errorType": "PreconditionFailed"}}, PlatformRefused),
        ({"json": {"errorType": "PreconditionFailed"}}, PlatformRefused),
        ({"status": 404}, PlatformRefused),
        ({"status": 302}, PlatformRefused),
        ({"status": 401}, CredentialsRefused),
        ({"status": 429, "headers": {"Retry-After": "9"}}, PlatformUnavailable),
        ({"body": requests.ConnectTimeout("no")}, PlatformUnavailable),
    ],
)
def test_not_issued(
    http: responses.RequestsMock, answer: dict[str, Any], kind: type[ReconcilerError]
) -> None:
    """A definite no means that it was not issued; that too is asked for once only."""
    http.post(ISSUE, **answer)
    error = platform().issue(invoice()).error
    assert isinstance(error, kind)
    assert not isinstance(error, OutcomeUnknown)
    assert len(http.calls) == 1
    if isinstance(error, PlatformUnavailable) and "headers" in answer:
        assert error.retry_after == timedelta(seconds=9)
