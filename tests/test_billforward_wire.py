"""What BillForward's JSON becomes, and what is refused."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.domain import Delivery, InvoiceState, Period
from worker.errors import DeliveryRejected, PlatformAnswerInvalid
from worker.platforms import billforward_wire as wire

NOTE = "NOT-8DB1D25C-2E2E-4C4E-9C5A-3B1D4E5F"
INV = "INV-C7D7BC92-11D1-4AC2-8DC5-78C53957"
CHG = "CHG-0F9A3E11-11D1-4AC2-8DC5-78C53957"
OLD = "C7D7BC92-11D1-4AC2-8DC5-78C5395712AB"  # as of 2014: a plain UUID
TWICE = '{"type":"invoice","id":"' + INV + '","state":"Pending","type":"Subscription"}'
DEEP = 100_000

Row = dict[str, Any]


def notification(**changes: Any) -> Row:
    """Make a notification of a pending invoice; None leaves a key out."""
    good = {
        "type": "notification",
        "id": NOTE,
        "domain": "Invoice",
        "action": "Pending",
        "entityID": INV,
        "entity": TWICE,
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def body_of(**changes: Any) -> bytes:
    """Write such a notification as it is sent."""
    return json.dumps(notification(**changes)).encode()


def read(body: bytes) -> Delivery:
    """Read a body as the platform "bf" does."""
    return wire.delivery("bf", body, owes_ack=False)


def invoice_row(**changes: Any) -> Row:
    """Make an invoice as recorded, with one usage charge."""
    return {
        "@type": "invoice",
        "id": INV,
        "versionID": INV,
        "versionNumber": 1,
        "subscriptionID": "SUB-1",
        "accountID": "ACC-1",
        "state": "Pending",
        "type": "Subscription",
        "currency": "USD",
        "invoiceCost": Decimal("5.00"),
        "charges": [charge_row()],
        **changes,
    }


def charge_row(**changes: Any) -> Row:
    """Make a usage charge as recorded."""
    return {
        "@type": "PricingComponent",
        "type": "PricingComponent",
        "id": CHG,
        "versionNumber": 1,
        "subscriptionID": "SUB-1",
        "accountID": "ACC-1",
        "state": "Pending",
        "name": "Messages",
        "pricingComponentName": "Text messages",
        "pricingComponentType": "usage",
        "pricingComponentValue": 105,
        "amount": Decimal("0.10"),
        "periodStart": "2015-11-02T12:18:51Z",
        "periodEnd": "2015-12-02T12:18:51Z",
        **changes,
    }


def without(row: Row, *keys: str) -> Row:
    """Leave keys out."""
    return {key: value for key, value in row.items() if key not in keys}


def test_delivery() -> None:
    """A notification becomes a delivery with its body as it came, whatever its entity holds."""
    body = body_of()
    assert read(body) == Delivery(
        platform="bf", id=NOTE, event="Invoice/Pending", invoice_id=INV, body=body
    )


def test_delivery_in_full() -> None:
    """Every key that BillForward's samples show, and one of tomorrow, may be there."""
    body = body_of(
        created="2015-06-02T15:49:05Z",
        organizationID="ORG-1",
        changes='{"auditFieldChanges":[{"attributeName":"state","newValue":"Pending"}]}',
        destinationURL="https://example.org/",
        format="JSON",
        totalSendAttempts=1,
        state="Sending",
        webhookID="WHK-1",
        ackEnabled=False,
        acked="",
        tomorrow={"cost": 0.1, "big": int("9" * 400)},
    )
    assert (read(body).id, read(body).invoice_id) == (NOTE, INV)


@pytest.mark.parametrize("found", [OLD, OLD.lower(), INV, INV.replace("INV", "XYZ")])
def test_delivery_ids(found: str) -> None:
    """Ids with three letters before them and plain UUIDs of 2014 are both read, as they are."""
    delivery = read(body_of(id=found, entityID=found))
    assert (delivery.id, delivery.invoice_id) == (found, found)


@pytest.mark.parametrize(
    ("domain", "action"),
    [
        ("Invoice", "Unpaid"),
        ("Invoice", "Paid"),
        ("Invoice", "pending"),
        ("Subscription", "Pending"),
        ("Webhook", "Created"),
        ("Tomorrow", "NeverSeen"),
    ],
)
def test_other_events(domain: str, action: str) -> None:
    """Any other event asks for nothing, and its entityID may be anything."""
    for entity_id in (INV, None, 5, "../"):
        delivery = read(body_of(domain=domain, action=action, entityID=entity_id))
        assert (delivery.event, delivery.invoice_id) == (f"{domain}/{action}", None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"domain=Invoice", "not JSON"),
        (b"<notification/>", "not JSON"),
        (body_of()[:-1], "not JSON"),
        (body_of() + b"x", "not JSON"),
        (b"[" + body_of() + b"]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"NaN", "NaN is not a JSON number"),
        (body_of(x=float("nan")), "NaN is not a JSON number"),
        (body_of(x=[float("-inf")]), "-Infinity is not a JSON number"),
        (b"1" * 5000, "not JSON"),
        (body_of()[:-1] + b', "x": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * DEEP, "nested too deeply"),
        (b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
        (b'{"a":' * DEEP, "nested too deeply"),
        (body_of()[:-1] + b', "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deeply"),
        (body_of() + b"\0", "not JSON"),
        (b"\0" + body_of(), "not JSON"),
        (body_of().replace(b"notification", b"noti\0fication"), "not JSON"),
        (body_of().replace(b"notification", b"\xff\xfe"), "not JSON"),
        (body_of().replace(b"notification", b"\xc3"), "not JSON"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_unreadable_bodies(body: bytes, reason: str) -> None:
    """What is not one JSON object is rejected with a short line that says why."""
    with pytest.raises(DeliveryRejected, match=reason) as caught:
        read(body)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["id", "domain", "action", "entityID"])
def test_keys_that_decide_stand_once(key: str) -> None:
    """A key that decides something is rejected when it stands there twice, even with one value."""
    again = json.dumps({key: notification()[key]})[1:]
    with pytest.raises(DeliveryRejected, match=f'"{key}" stands in it twice'):
        read(body_of()[:-1] + b", " + again.encode())


def test_other_keys_may_stand_twice() -> None:
    """BillForward writes `type` twice; that decides nothing."""
    assert read(body_of()[:-1] + b', "type": "Subscription"}').invoice_id == INV


@pytest.mark.parametrize("key", ["id", "entityID"])
@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "",
        7,
        True,
        [INV],
        {"id": INV},
        f"../{INV}",
        f"{INV}/../{INV}",
        f"%2e%2e%2f{INV}",
        f"{INV}%00",
        f"{INV}\0",
        f"{INV}\n",
        f" {INV}",
        f"{INV} ",
        INV.replace("-", " "),
        INV[:-1],
        f"{INV}01234",
        f"INV{INV[4:]}",
        f"inv{INV[3:]}",
        f"INVO{INV[3:]}",
        INV.replace("C7D7", "\u04217D7"),  # a Cyrillic letter
        INV.replace("11D1", "\uff11\uff11D1"),  # full-width digits
        INV.replace("C7D7", "C\uff17D\uff17"),
        INV.replace("11D1", "\u0661\u0661D1"),  # Arabic digits, for which \d would do
        INV.replace("-", "\u2010"),
        INV.replace("C7D7", "G7D7"),
        f"{INV}?dryRun=true",
        f"{INV}#",
    ],
)
def test_ids_of_another_shape(key: str, wrong: object) -> None:
    """An id becomes part of a path: whatever is not of BillForward's shape is rejected."""
    with pytest.raises(DeliveryRejected, match=f'"{key}" is missing or not an id'):
        read(body_of(**{key: wrong}))


@pytest.mark.parametrize("key", ["domain", "action"])
@pytest.mark.parametrize(
    "wrong", [None, "", 7, "In voice", "Invoice\n", "Invoice/", "<b>", "Ínvoice", "a" * 65]
)
def test_events_of_another_shape(key: str, wrong: object) -> None:
    """An event is two words of plain letters, since operators read it."""
    with pytest.raises(DeliveryRejected, match=f'"{key}" is missing or not a word'):
        read(body_of(**{key: wrong}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "type", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NEARLY_IDS = st.from_regex(r"(INV-)?[0-9A-Fa-f]{8}(-[\dA-Fa-f]{4}){3}-[0-9A-F]{7,13}.?")
NEARLY = st.builds(
    lambda good, changes: json.dumps({**good, **changes}).encode(),
    st.just(notification()),
    st.dictionaries(
        st.sampled_from(["id", "domain", "action", "entityID", "entity"]),
        VALUES | NEARLY_IDS,
        max_size=3,
    ),
)


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()) | NEARLY)
def test_any_bytes(body: bytes) -> None:
    """Any bytes are a delivery, whose invoice id is harmless in a path, or are rejected."""
    try:
        delivery = read(body)
    except DeliveryRejected as rejected:
        assert "\n" not in str(rejected)  # noqa: PT017 - either outcome is right
        return
    assert set(delivery.invoice_id or "") <= {*string.ascii_uppercase, *string.hexdigits, "-"}
    assert delivery.body == body


def test_invoice() -> None:
    """An invoice is read with its amount as it is written."""
    found = wire.invoice(invoice_row())
    assert (found.id, found.type, found.version) == (INV, "Subscription", 1)
    assert (found.state, found.state_text) == (InvoiceState.PENDING, "Pending")
    assert (str(found.total), found.currency) == ("5.00", "USD")
    assert (found.subscription_id, found.account_id) == ("SUB-1", "ACC-1")
    assert found.usage_charge_ids == {CHG}


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Pending", InvoiceState.PENDING),
        ("Unpaid", InvoiceState.UNPAID),
        ("Paid", InvoiceState.PAID),
        ("Voided", InvoiceState.VOIDED),
        ("pending", InvoiceState.OTHER),
        ("Other", InvoiceState.OTHER),
        ("PartlyPaid", InvoiceState.OTHER),
        ("", InvoiceState.OTHER),
    ],
)
def test_invoice_states(text: str, state: InvoiceState) -> None:
    """A state that this program does not know is OTHER, and keeps the platform's word."""
    found = wire.invoice(invoice_row(state=text))
    assert (found.state, found.state_text) == (state, text)


def test_unknown_things() -> None:
    """Unknown fields, enum values and made-up currencies change nothing."""
    found = wire.invoice(invoice_row(type="Tomorrow", currency="XTK", new={"a": [1]}, crmID=None))
    assert (found.type, found.currency) == ("Tomorrow", "XTK")
    charge = wire.charge(charge_row(type="Tomorrow", chargeType="New", new=[], taxCode=None), INV)
    assert charge == wire.charge(charge_row(), INV)


@pytest.mark.parametrize("absent", [{"charges": None}, {"charges": []}, {}])
def test_invoice_without_charges(absent: Row) -> None:
    """An invoice without charges, however that is written, has no usage charge."""
    row = {**without(invoice_row(), "charges"), **absent}
    assert wire.invoice(row).usage_charge_ids == frozenset()


def test_embedded_usage_charges() -> None:
    """Only usage charges that still count are expected in the list."""
    charges = [
        charge_row(id="CHG-1"),
        charge_row(id="CHG-2", state="Voided"),
        charge_row(id="CHG-3", pricingComponentType="subscription"),
        charge_row(id="CHG-4", state="Tomorrow"),
    ]
    assert wire.invoice(invoice_row(charges=charges)).usage_charge_ids == {"CHG-1", "CHG-4"}


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"type": "Usage"}, True),
        ({"type": "Usage", "pricingComponentType": "arrears"}, False),
        ({"pricingComponentType": "Usage"}, False),
        ({"pricingComponentType": None}, False),
        ({"state": "Voided"}, False),
        ({"state": "Paid"}, True),
        ({"state": None}, True),
    ],
)
def test_what_is_usage(changes: Row, counts: bool) -> None:
    """A usage charge is told by pricingComponentType, not by type, and a Voided one is none."""
    assert wire.is_usage(charge_row(**changes)) is counts


@pytest.mark.parametrize("key", ["id", "type", "state", "currency", "versionNumber", "invoiceCost"])
@pytest.mark.parametrize("wrong", [None, True, [], {}])
def test_invoice_lacks_something(key: str, wrong: object) -> None:
    """What an invoice must have is never guessed: the error names it."""
    for row in (invoice_row(**{key: wrong}), without(invoice_row(), key)):
        with pytest.raises(PlatformAnswerInvalid, match=f'"{key}"'):
            wire.invoice(row)


@pytest.mark.parametrize("key", ["id", "pricingComponentName", "versionNumber", "amount"])
@pytest.mark.parametrize("wrong", [None, True, [], {}])
def test_charge_lacks_something(key: str, wrong: object) -> None:
    """What a charge must have is never guessed: the error names it."""
    for row in (charge_row(**{key: wrong}), without(charge_row(), key)):
        with pytest.raises(PlatformAnswerInvalid, match=f'"{key}"'):
            wire.charge(row, INV)


@pytest.mark.parametrize("key", ["subscriptionID", "accountID", "name"])
def test_texts_that_may_be_absent(key: str) -> None:
    """A null is nothing, as is a key left out; it never becomes the word None."""
    given_null = wire.charge(charge_row(**{key: None}), INV)
    assert given_null == wire.charge(without(charge_row(), key), INV)
    assert "" in (given_null.subscription_id, given_null.account_id, given_null.name)
    with pytest.raises(PlatformAnswerInvalid, match=f'no text "{key}"'):
        wire.charge(charge_row(**{key: 5}), INV)


@pytest.mark.parametrize("key", ["subscriptionID", "accountID"])
def test_invoice_without_an_owner(key: str) -> None:
    """An invoice may lack its subscription or account, but not carry a number there."""
    for row in (invoice_row(**{key: None}), without(invoice_row(), key)):
        assert "" in (wire.invoice(row).subscription_id, wire.invoice(row).account_id)
    with pytest.raises(PlatformAnswerInvalid, match=f'no text "{key}"'):
        wire.invoice(invoice_row(**{key: 5}))


@pytest.mark.parametrize(
    "wrong", ["1", Decimal("1.5"), Decimal("1E+999999999"), Decimal("1E-999999999"), 10**19]
)
def test_versions_are_whole(wrong: object) -> None:
    """A version is a whole number of a sensible size: 1.5 does not pass for the first."""
    with pytest.raises(PlatformAnswerInvalid, match='"versionNumber"'):
        wire.invoice(invoice_row(versionNumber=wrong))
    with pytest.raises(PlatformAnswerInvalid, match='"versionNumber"'):
        wire.charge(charge_row(versionNumber=wrong), INV)
    assert wire.invoice(invoice_row(versionNumber=Decimal("2.0"))).version == 2


def test_charge() -> None:
    """A charge is read with the component that tells it apart and the name that may repeat."""
    found = wire.charge(charge_row(), INV)
    assert (found.id, found.invoice_id, found.version) == (CHG, INV, 1)
    assert (found.component, found.name) == ("Text messages", "Messages")
    assert (found.quantity, str(found.amount)) == (Decimal(105), "0.10")
    assert found.period == Period(
        datetime(2015, 11, 2, 12, 18, 51, tzinfo=UTC), datetime(2015, 12, 2, 12, 18, 51, tzinfo=UTC)
    )
    assert found.period_fault == ""


@pytest.mark.parametrize("amount", ["0E-7", "0.10", "31.00", "-0.00", "12345678901234567890.1234"])
def test_amounts_keep_their_digits(amount: str) -> None:
    """An amount keeps every digit it was written with."""
    assert str(wire.charge(charge_row(amount=Decimal(amount)), INV).amount) == amount
    assert str(wire.invoice(invoice_row(invoiceCost=Decimal(amount))).total) == amount


@pytest.mark.parametrize(
    ("value", "quantity"), [(0, Decimal(0)), (7, Decimal(7)), (Decimal("1.5"), Decimal("1.5"))]
)
def test_quantities(value: object, quantity: Decimal) -> None:
    """A quantity is read as it is, 0 included."""
    assert wire.charge(charge_row(pricingComponentValue=value), INV).quantity == quantity


def test_quantity_not_stated() -> None:
    """A quantity that is not stated is None, which is not 0."""
    for row in (
        charge_row(pricingComponentValue=None),
        without(charge_row(), "pricingComponentValue"),
    ):
        assert wire.charge(row, INV).quantity is None
    for wrong in ("0", False, 1.0):
        with pytest.raises(PlatformAnswerInvalid, match='no number "pricingComponentValue"'):
            wire.charge(charge_row(pricingComponentValue=wrong), INV)


@pytest.mark.parametrize(
    ("bounds", "fault"),
    [
        ({"periodStart": None}, "its periodStart is missing"),
        ({"periodEnd": None}, "its periodEnd is missing"),
        ({"periodStart": ""}, "its periodStart is not a moment"),
        ({"periodStart": 1446466731}, "its periodStart is not a moment"),
        ({"periodEnd": "Tue Jun 02 15:49:05 UTC 2015"}, "its periodEnd is not a moment"),
        ({"periodEnd": "2015-12-02T25:00:00Z"}, "its periodEnd is not a moment"),
        ({"periodEnd": "2015-12-02T12:18:51"}, "has no time zone"),
        ({"periodStart": "2015-11-02"}, "has no time zone"),
        ({"periodEnd": "2015-11-02T12:18:50Z"}, "ends before it starts"),
        ({"periodStart": "0001-01-01T00:00:00+23:00"}, "out of range"),
        ({"periodEnd": "9999-12-31T23:59:59-23:00"}, "out of range"),
    ],
)
def test_periods_that_are_none(bounds: Row, fault: str) -> None:
    """A period that cannot be read is None with the reason, and the charge is read all the same."""
    found = wire.charge(charge_row(**bounds), INV)
    assert found.period is None
    assert fault in found.period_fault
    assert found.id == CHG


def test_period_left_out() -> None:
    """A bound that is left out counts as missing."""
    found = wire.charge(without(charge_row(), "periodEnd"), INV)
    assert (found.period, found.period_fault) == (None, "its periodEnd is missing")


def test_periods_in_other_zones() -> None:
    """A period is kept in UTC with its fraction, and may be empty."""
    found = wire.charge(
        charge_row(
            periodStart="2015-11-02T14:18:51.25+02:00", periodEnd="2015-11-02T12:18:51.250000Z"
        ),
        INV,
    )
    moment = datetime(2015, 11, 2, 12, 18, 51, 250_000, tzinfo=UTC)
    assert found.period == Period(moment, moment)


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", 5, {}, {"results": None}, {"results": {}}, {"results": [1]}, {"result": []}],
)
def test_not_an_envelope(answer: object) -> None:
    """An answer that is not BillForward's envelope is invalid."""
    with pytest.raises(PlatformAnswerInvalid, match=r"envelope|no list"):
        wire.results(answer)


def test_envelope() -> None:
    """An envelope needs its results and nothing else."""
    assert wire.results({"results": [], "executionTime": 12_000_000}) == []
    assert wire.results({"results": [{"id": 1}]}) == [{"id": 1}]


@pytest.mark.parametrize("answer", [None, [], "errorType", {}, {"errorType": None, "results": []}])
def test_no_error(answer: object) -> None:
    """A body without an errorType, or with a null there, is not an error."""
    assert wire.error_of(answer) is None


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("Oauth", "credentials"),
        ("PermissionsError", "credentials"),
        ("NoSuchEntity", "absence"),
        ("ServerError", "platform"),
        ("BFError", "platform"),
        ("ValidationError", "request"),
        ("PreconditionFailed", "request"),
        ("Tomorrow", "request"),
    ],
)
def test_errors(kind: str, about: str) -> None:
    """An error's type says what is at fault; one never seen is about the request."""
    found = wire.error_of({"errorType": kind, "errorMessage": "text", "errorParameters": ["x"]})
    assert found is not None
    assert (found.type, found.message, found.about) == (kind, "text", about)


def test_error_without_text() -> None:
    """An error needs no message, and its type may be of any kind."""
    found = wire.error_of({"errorType": ["x"]})
    assert found is not None
    assert (found.type, found.message, found.about) == ("['x']", "", "request")


def test_written() -> None:
    """A write's answer is the charge of that id, found among others, with the quantity asked."""
    rows = [charge_row(id="CHG-0", pricingComponentValue=1), charge_row()]
    write = wire.written(CHG, 105, INV, rows)
    assert (write.charge_id, write.error) == (CHG, None)
    assert write.charge == wire.charge(charge_row(), INV)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "is not about it"),
        ([charge_row(id="CHG-0")], "is not about it"),
        ([charge_row(pricingComponentValue=104)], "to become 105, it answered 104"),
        ([charge_row(pricingComponentValue=Decimal("105.5"))], "it answered 105.5"),
        ([charge_row(pricingComponentValue=None)], "it answered None"),
        ([charge_row(amount=None)], 'no number "amount"'),
    ],
)
def test_written_something_else(rows: list[Row], reason: str) -> None:
    """An answer that does not show the quantity on the charge is invalid."""
    with pytest.raises(PlatformAnswerInvalid, match=reason):
        wire.written(CHG, 105, INV, rows)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, {}),
        ({}, {}),
        ({"a": "x", "b": 7, "c": False, "d": Decimal("0.10")}, None),
        ({"null": None, "list": ["x"], "object": {"x": 1}}, {}),
    ],
)
def test_metadata_values_are_read_as_text(
    given: dict[str, object] | None, read: dict[str, str] | None
) -> None:
    """Scalars become their text; what is no scalar is not there."""
    row = {"id": "ACC-1", "metadata": given}
    expected = {"a": "x", "b": "7", "c": "false", "d": "0.10"} if read is None else read
    assert wire.metadata(row, "ACC-1") == expected


def test_metadata_of_another_owner_is_refused() -> None:
    """An answer about somebody else, or of another shape, is no metadata."""
    with pytest.raises(PlatformAnswerInvalid, match="asked for ACC-1, got ACC-2"):
        wire.metadata({"id": "ACC-2", "metadata": {}}, "ACC-1")
    with pytest.raises(PlatformAnswerInvalid, match="is not an object"):
        wire.metadata({"id": "ACC-1", "metadata": ["tenant"]}, "ACC-1")
