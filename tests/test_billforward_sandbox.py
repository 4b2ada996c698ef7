"""The BillForward adapter against the sandbox, over real HTTP."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest
import structlog
from contracts_platform import PlatformContract, Stage
from sandbox_builders import FEE, february_invoice, usage_charge
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.testing import capture_logs

from sandbox.process import RunningSandbox, running_sandbox
from sandbox.wire import Json
from worker.domain import Invoice, InvoiceState, Owner, Period
from worker.errors import (
    CredentialsRefused,
    OutcomeUnknown,
    PlatformRefused,
    PlatformUnavailable,
    TransientError,
)
from worker.platforms.billforward import BillForward
from worker.ports import BillingPlatform
from worker.writes import ChargeWrite, Exchange

JANUARY = Period(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
UNKNOWN = "CHG-00000000-0000-4000-8000-00000000"
NOWHERE = "INV-00000000-0000-4000-8000-00000000"

either_way = pytest.mark.parametrize("how", ["each", "batch"])


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[RunningSandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture(name="sandbox")
def _sandbox(running: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> RunningSandbox:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.control.reset()
    return running


@pytest.fixture(name="slept")
def _slept() -> list[float]:
    return []


def adapter(sandbox: RunningSandbox, slept: list[float], **settings: Any) -> BillForward:
    """Make the adapter for the sandbox; it records its sleeps instead of sleeping."""
    good: dict[str, Any] = {"base_url": sandbox.base_url, "token": sandbox.token}
    return BillForward(name="bf", sleep=slept.append, **{**good, **settings})


def put(sandbox: RunningSandbox, count: int = 1, **changes: Any) -> str:
    """Put an invoice with so many usage charges and a fee; return its id."""
    body = february_invoice(count)
    fee = {"name": "Fee", "pricingComponentName": "Fee", "price": FEE}
    body["charges"].append({**fee, "pricingComponentType": "subscription"})
    invoice_id: str = sandbox.control.put_invoice(**{**body, **changes})["id"]
    return invoice_id


def fetched(platform: BillForward, invoice_id: str) -> Invoice:
    """Fetch an invoice that is there."""
    invoice = platform.invoice(invoice_id)
    assert invoice is not None
    return invoice


def wanted(platform: BillForward, invoice: Invoice) -> dict[str, int]:
    """Choose another quantity for each usage charge."""
    charges = platform.usage_charges(invoice)
    return {charge.id: number + 100 for number, charge in enumerate(charges)}


def write(platform: BillForward, invoice: Invoice, quantities: dict[str, int]) -> list[ChargeWrite]:
    """Write quantities and return what became of each."""
    return list(platform.recalculate(invoice, quantities, lambda: False))


def standing(platform: BillForward, invoice: Invoice) -> dict[str, int]:
    """Return the quantities that stand on the charges now."""
    charges = platform.usage_charges(invoice)
    return {charge.id: int(charge.quantity or 0) for charge in charges}


def requests_of(sandbox: RunningSandbox, fault: str) -> list[Json]:
    """Return the requests that a fault has spoiled."""
    return [one for one in sandbox.control.record().requests if one["fault"] == fault]


def assert_nothing_broken(sandbox: RunningSandbox) -> None:
    """Fail if the sandbox saw the adapter break a rule."""
    assert sandbox.control.record().broken == []


def test_check(sandbox: RunningSandbox, slept: list[float]) -> None:
    """A check passes with the right token and says that a wrong one is refused."""
    adapter(sandbox, slept).check()
    with pytest.raises(CredentialsRefused):
        adapter(sandbox, slept, token="another").check()
    assert slept == []
    assert_nothing_broken(sandbox)


def test_fetch(sandbox: RunningSandbox, slept: list[float]) -> None:
    """An invoice and its usage charges are read as the sandbox holds them."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox, 2, currency="XTK", type="FinalArrears"))
    assert (invoice.type, invoice.state, invoice.version) == (
        "FinalArrears",
        InvoiceState.PENDING,
        1,
    )
    assert (str(invoice.total), invoice.currency) == ("5.00", "XTK")
    charges = platform.usage_charges(invoice)
    assert {charge.id for charge in charges} == invoice.usage_charge_ids
    assert {charge.component for charge in charges} == {"Text messages 0", "Text messages 1"}
    assert {(charge.name, charge.period, charge.quantity) for charge in charges} == {
        ("Messages", JANUARY, Decimal(0))
    }
    assert {charge.subscription_id for charge in charges} == {invoice.subscription_id}
    assert {charge.account_id for charge in charges} == {invoice.account_id}
    assert_nothing_broken(sandbox)


@pytest.mark.parametrize("empty", [True, False])
def test_unknown_invoice(sandbox: RunningSandbox, slept: list[float], empty: bool) -> None:
    """An unknown invoice is None, be it a 404 or no results."""
    sandbox.control.set(unknown_id_is_empty=empty)
    assert adapter(sandbox, slept).invoice(NOWHERE) is None


def test_fetch_after_many_versions(sandbox: RunningSandbox, slept: list[float]) -> None:
    """The current version is fetched also where retired ones are shown unless told not to."""
    sandbox.control.set(
        include_retired_by_default=True, charge_recalculation_bumps_invoice=True, max_records=1
    )
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox, 3))
    write(platform, invoice, wanted(platform, invoice))
    assert fetched(platform, invoice.id).version == 4
    assert_nothing_broken(sandbox)


@pytest.mark.parametrize("most", [None, 51, 10, 7])
def test_many_charges(sandbox: RunningSandbox, slept: list[float], most: int | None) -> None:
    """Of 51 usage charges none is left out, whatever the platform's page size."""
    sandbox.control.set(max_records=most)
    platform = adapter(sandbox, slept)
    charges = platform.usage_charges(fetched(platform, put(sandbox, 51)))
    assert len({charge.component for charge in charges}) == len(charges) == 51
    assert_nothing_broken(sandbox)


@either_way
def test_recalculate_and_issue(sandbox: RunningSandbox, slept: list[float], how: str) -> None:
    """All quantities are written and read back, then the invoice is issued with their price."""
    platform = adapter(sandbox, slept, recalculation=how)
    invoice = fetched(platform, put(sandbox, 51))
    quantities = wanted(platform, invoice)
    found = write(platform, invoice, quantities)
    assert {one.charge_id: one.charge and one.charge.quantity for one in found} == quantities
    assert [one.error for one in found] == [None] * 51
    assert standing(platform, invoice) == quantities
    issued = platform.issue(invoice).invoice
    assert issued is not None
    assert issued.state is InvoiceState.UNPAID
    assert issued.total == 5 + sum(Decimal("0.02") * (q - 100) for q in quantities.values())
    assert fetched(platform, invoice.id) == issued
    record = sandbox.control.record()
    assert (record.issues, record.broken) == ({invoice.id: 1}, [])
    assert len(record.sent("POST", "/recalculate")) == (52 if how == "each" else 2)


def test_worked_example(sandbox: RunningSandbox, slept: list[float]) -> None:
    """105 messages cost 0.10 beside a fee of 5.00, and a counted 0 is written as 0."""
    platform = adapter(sandbox, slept)
    charges = [usage_charge(0), usage_charge(1, pricingComponentValue=9)]
    fee = {"name": "Fee", "pricingComponentName": "Fee", "pricingComponentType": "subscription"}
    invoice = fetched(platform, put(sandbox, charges=[*charges, {**fee, "price": FEE}]))
    by_component = {charge.component: charge.id for charge in platform.usage_charges(invoice)}
    quantities = {by_component["Text messages 0"]: 105, by_component["Text messages 1"]: 0}
    found = write(platform, invoice, quantities)
    assert {str(one.charge.amount) for one in found if one.charge} == {"0.10", "0.00"}
    assert standing(platform, invoice) == quantities
    issued = platform.issue(invoice).invoice
    assert issued is not None
    assert str(issued.total) == "5.10"


@pytest.mark.parametrize("atomic", [True, False])
def test_batch_with_a_bad_charge(sandbox: RunningSandbox, slept: list[float], atomic: bool) -> None:
    """A refused batch is an error for each charge; a new listing shows what was written."""
    sandbox.control.set(batch_is_atomic=atomic)
    platform = adapter(sandbox, slept, recalculation="batch")
    invoice = fetched(platform, put(sandbox, 3))
    before, quantities = standing(platform, invoice), wanted(platform, invoice)
    found = write(platform, invoice, {**quantities, UNKNOWN: 1})
    assert {one.charge_id for one in found} == {*quantities, UNKNOWN}
    assert all(isinstance(one.error, PlatformRefused) for one in found)
    assert standing(platform, invoice) == (before if atomic else quantities)
    assert all(one.error is None for one in write(platform, invoice, quantities))
    assert standing(platform, invoice) == quantities
    assert_nothing_broken(sandbox)


def test_each_with_a_bad_charge(sandbox: RunningSandbox, slept: list[float]) -> None:
    """A refused charge stops the writing of those after it."""
    platform = adapter(sandbox, slept, concurrency=1)
    invoice = fetched(platform, put(sandbox, 3))
    (first, *others) = wanted(platform, invoice)
    found = write(platform, invoice, {first: 200, UNKNOWN: 1, **dict.fromkeys(others, 200)})
    errors = {one.charge_id: one.error for one in found}
    assert errors[first] is None
    assert isinstance(errors[UNKNOWN], PlatformRefused)
    assert all(isinstance(errors[one], PlatformUnavailable) for one in others)
    assert standing(platform, invoice) == {first: 200, **dict.fromkeys(others, 0)}
    assert_nothing_broken(sandbox)


FAULTS: list[Json] = [
    {"kind": "rate_limit", "retry_after": "3"},
    {"kind": "error", "status": 500},
    {"kind": "error", "status": 503, "commit": True},
    {"kind": "error_in_200", "error_type": "ServerError", "commit": True},
    {"kind": "html", "status": 502},
    {"kind": "html", "status": 200, "commit": True},
    {"kind": "empty"},
    {"kind": "empty", "commit": True},
    {"kind": "truncated", "commit": True},
    {"kind": "drop_before"},
    {"kind": "drop_after"},
]
LOST_ANSWERS = [*FAULTS[1:], {"kind": "late_commit", "seconds": 0}]


def named(fault: Json) -> str:
    """Name a case."""
    return "-".join(str(value) for value in fault.values())


every_fault = pytest.mark.parametrize("fault", FAULTS, ids=named)
every_lost_answer = pytest.mark.parametrize("fault", LOST_ANSWERS, ids=named)


def carried_out(fault: Json) -> bool:
    """Tell whether a spoiled request is carried out all the same."""
    return fault["kind"] in ("drop_after", "late_commit") or "commit" in fault


@every_fault
def test_reads_survive(sandbox: RunningSandbox, slept: list[float], fault: Json) -> None:
    """A read that fails three times is repeated until it is answered."""
    sandbox.control.set(max_records=2)
    platform = adapter(sandbox, slept)
    invoice_id = put(sandbox, 4)
    sandbox.control.add_fault(times=3, match={"method": "GET"}, **fault)
    invoice = fetched(platform, invoice_id)
    sandbox.control.add_fault(times=3, match={"path": "/charges$", "nth": 2}, **fault)
    assert len(platform.usage_charges(invoice)) == 4
    assert len(requests_of(sandbox, fault["kind"])) == len(slept) == 6
    assert_nothing_broken(sandbox)


@either_way
def test_not_now_is_repeated(sandbox: RunningSandbox, slept: list[float], how: str) -> None:
    """A quantity that the platform takes "not now" is sent again after the wait it asks for."""
    platform = adapter(sandbox, slept, recalculation=how)
    invoice = fetched(platform, put(sandbox, 8))
    quantities = wanted(platform, invoice)
    sandbox.control.add_fault("rate_limit", retry_after="3", times=3, match={"method": "POST"})
    found = write(platform, invoice, quantities)
    assert [one.error for one in found] == [None] * 8
    assert standing(platform, invoice) == quantities
    assert len(requests_of(sandbox, "rate_limit")) == len(slept) == 3
    assert all(wait >= 3 for wait in slept)
    assert_nothing_broken(sandbox)


@every_lost_answer
@either_way
def test_quantities_survive(
    sandbox: RunningSandbox, slept: list[float], fault: Json, how: str
) -> None:
    """A write without an answer is sent once and unknown; written again later, all is right."""
    platform = adapter(sandbox, slept, recalculation=how)
    invoice = fetched(platform, put(sandbox, 8))
    before, quantities = standing(platform, invoice), wanted(platform, invoice)
    times, sent = (3, 8) if how == "each" else (1, 1)
    sandbox.control.add_fault(times=times, match={"method": "POST"}, **fault)
    found = write(platform, invoice, quantities)
    lost = {one.charge_id: quantities[one.charge_id] for one in found if one.error}
    assert {type(one.error) for one in found if one.error} == {OutcomeUnknown}
    assert {one.charge_id for one in found} == set(quantities)
    assert len(lost) == (3 if how == "each" else 8)
    paths = [one["path"] for one in sandbox.control.record().sent("POST", "/recalculate")]
    assert len(paths) == len(set(paths)) == sent
    assert (len(requests_of(sandbox, fault["kind"])), slept) == (times, [])
    undone = {} if carried_out(fault) else {charge: before[charge] for charge in lost}
    assert standing(platform, invoice) == {**quantities, **undone}
    assert [one.error for one in write(platform, invoice, lost)] == [None] * len(lost)
    assert standing(platform, invoice) == quantities
    assert_nothing_broken(sandbox)


@every_fault
def test_lasting_faults(sandbox: RunningSandbox, slept: list[float], fault: Json) -> None:
    """What lasts longer than the attempts is an error to be tried later, and then goes well."""
    platform = adapter(sandbox, slept, concurrency=2)
    invoice = fetched(platform, put(sandbox, 4))
    quantities = wanted(platform, invoice)
    sandbox.control.add_fault(times=None, match={"method": "POST"}, **fault)
    found = write(platform, invoice, quantities)
    assert {one.charge_id for one in found} == set(quantities)
    assert all(isinstance(one.error, TransientError) for one in found)
    sent = [one.error for one in found if one.error and "not sent" not in str(one.error)]
    kind = PlatformUnavailable if fault["kind"] == "rate_limit" else OutcomeUnknown
    assert [type(error) for error in sent] == [kind] * 2
    attempts = 4 if kind is PlatformUnavailable else 1
    assert len(requests_of(sandbox, fault["kind"])) == 2 * attempts
    assert len(slept) == 2 * (attempts - 1)
    sandbox.control.clear_faults()
    assert all(one.error is None for one in write(platform, invoice, quantities))
    assert standing(platform, invoice) == quantities
    assert_nothing_broken(sandbox)


@every_fault
def test_issue_is_sent_once(sandbox: RunningSandbox, slept: list[float], fault: Json) -> None:
    """An issue that fails is not repeated; a look at the invoice tells whether it happened."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox))
    sandbox.control.add_fault(times=None, match={"method": "POST"}, **fault)
    error = platform.issue(invoice).error
    record = sandbox.control.record()
    assert (len(record.sent("POST")), slept, record.broken) == (1, [], [])
    if fault["kind"] == "rate_limit":
        assert type(error) is PlatformUnavailable
        assert error.retry_after == timedelta(seconds=3)
    else:
        assert type(error) is OutcomeUnknown
    happened = fetched(platform, invoice.id).state is InvoiceState.UNPAID
    assert happened is carried_out(fault)
    assert record.issues == ({invoice.id: 1} if happened else {})


def test_issue_carried_out_late(sandbox: RunningSandbox, slept: list[float]) -> None:
    """An issue without an answer may happen later: it is unknown, not undone."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox))
    sandbox.control.add_fault("late_commit", seconds=0, match={"method": "POST"})
    assert type(platform.issue(invoice).error) is OutcomeUnknown
    assert fetched(platform, invoice.id).state is InvoiceState.UNPAID
    assert sandbox.control.record().issues == {invoice.id: 1}


def test_slow_platform(sandbox: RunningSandbox, slept: list[float]) -> None:
    """A write that is answered too late is unknown, and was carried out all the same."""
    platform = adapter(sandbox, slept, read_timeout_seconds=0.1)
    invoice = fetched(platform, put(sandbox))
    sandbox.control.add_fault("latency", seconds=0.4, match={"method": "POST"})
    error = platform.issue(invoice).error
    assert type(error) is OutcomeUnknown
    assert "no answer in time" in str(error)
    assert fetched(platform, invoice.id).state is InvoiceState.UNPAID
    assert_nothing_broken(sandbox)


def test_voided_meanwhile(sandbox: RunningSandbox, slept: list[float]) -> None:
    """Writing to an invoice that a colleague has voided meanwhile is refused for good."""
    sandbox.control.set(record_state_conflicts=False)
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox))
    quantities = wanted(platform, invoice)
    sandbox.control.patch_invoice(invoice.id, state="Voided")
    (one,) = write(platform, invoice, quantities)
    assert type(one.error) is PlatformRefused
    error = platform.issue(invoice).error
    assert type(error) is PlatformRefused
    assert "InconsistentState" in str(error)
    assert fetched(platform, invoice.id).state is InvoiceState.VOIDED
    assert slept == []
    assert_nothing_broken(sandbox)


def test_calls_are_counted(sandbox: RunningSandbox, slept: list[float]) -> None:
    """Every request is counted, as many as the sandbox has seen."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox, 51))
    write(platform, invoice, wanted(platform, invoice))
    platform.issue(invoice)
    assert platform.calls == len(sandbox.control.record().requests) == 54


class TestBillForward(PlatformContract):
    """The adapter against the contract, each way of writing; the platform echoes its token."""

    @pytest.fixture(name="stage", params=["each", "batch"])
    def _stage(
        self, request: pytest.FixtureRequest, sandbox: RunningSandbox, slept: list[float]
    ) -> Stage:
        platform = adapter(sandbox, slept, recalculation=request.param, concurrency=1)
        echo = {"changedBy": f"Bearer {sandbox.token}"}
        charges = [usage_charge(number, extra=echo) for number in range(2)]
        invoice = fetched(platform, put(sandbox, charges=charges, extra=echo))
        first, second = (charge.id for charge in platform.usage_charges(invoice))
        refusal: Json = {"error_type": "X", "message": f"no more {sandbox.token}", "status": 400}
        posted = {"method": "POST"}
        return Stage(
            platform=cast(BillingPlatform, platform),
            invoice=invoice,
            charge_ids=(first, second),
            refuse_next=lambda: sandbox.control.add_fault("error", match=posted, **refusal),
            lose_next=lambda: sandbox.control.add_fault("drop_after", match=posted),
            secret=sandbox.token,
        )


def test_what_went_over_the_wire_is_told(sandbox: RunningSandbox, slept: list[float]) -> None:
    """The request as it was sent, the status and the beginning of the answer with its size."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox))
    (charge,) = platform.usage_charges(invoice)
    (one,) = write(platform, invoice, {charge.id: 105})
    assert one.exchange is not None
    assert one.exchange.request == (
        f'POST /charges/{charge.id}/recalculate {{"pricingComponentValue": 105,'
        ' "recalculationBehaviour": "RecalculateWithLatestPricing"}'
    )
    assert one.exchange.answer.startswith("200 {")
    assert f'"id":"{charge.id}"' in one.exchange.answer
    assert re.search(r"… \(\d{4} bytes\)$", one.exchange.answer)
    issued = platform.issue(invoice).exchange
    assert issued is not None
    assert issued.request.startswith(f'POST /invoices/{invoice.id}/recalculate {{"newState": "Unp')
    assert issued.answer.startswith("200 {")


def test_a_batch_is_told_once(sandbox: RunningSandbox, slept: list[float]) -> None:
    """One request for 51 charges: its beginning and size stand with the first of them."""
    platform = adapter(sandbox, slept, recalculation="batch")
    invoice = fetched(platform, put(sandbox, 51))
    first, *others = write(platform, invoice, wanted(platform, invoice))
    assert first.exchange is not None
    assert first.exchange.request.startswith('POST /charges/recalculate {"charges": [{"id": "CHG-')
    assert re.search(r"… \(\d{4} bytes\)$", first.exchange.request)
    assert {other.exchange for other in others} == {None}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"kind": "html", "body": "<h1>\n 502 \x1b[2J</h1>"}, "502 <h1> 502 �[2J</h1>"),
        ({"kind": "empty"}, "200"),
        ({"kind": "drop_before"}, "the connection broke (ConnectionError)"),
        ({"kind": "rate_limit"}, '429 {"errorType":"BFError","errorMessage":"too many requests"'),
    ],
)
def test_what_cannot_be_read_is_told(
    sandbox: RunningSandbox, slept: list[float], fault: Json, told: str
) -> None:
    """A page instead of JSON, nothing, a broken connection, a no: each as it came."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox))
    sandbox.control.add_fault(times=None, match={"method": "POST"}, **fault)
    (one,) = write(platform, invoice, wanted(platform, invoice))
    for exchange in (one.exchange, platform.issue(invoice).exchange):
        assert isinstance(exchange, Exchange)
        assert exchange.answer.startswith(told)


def test_log_lines_of_the_writes_tell_the_invoice(
    sandbox: RunningSandbox, slept: list[float]
) -> None:
    """Whatever writes on another thread logs with the invoice, the attempt and the trace id."""
    platform = adapter(sandbox, slept)
    invoice = fetched(platform, put(sandbox, 3))
    quantities = wanted(platform, invoice)
    threads: set[int] = set()

    def told(_code: str, _seconds: float) -> None:
        threads.add(threading.get_ident())
        structlog.get_logger("test").warning("asked")

    platform.tell_requests(told)
    bound = {"invoice": invoice.id, "attempt": 2, "trace_id": "t-1"}
    with capture_logs(processors=[merge_contextvars]) as found, bound_contextvars(**bound):
        write(platform, invoice, quantities)
    assert threading.get_ident() not in threads
    assert [{key: one.get(key) for key in bound} for one in found] == [bound] * 3


def test_metadata(sandbox: RunningSandbox, slept: list[float]) -> None:
    """What is kept with an account or a subscription is read as text; nothing there is nothing."""
    account = "ACC-00000000-0000-4000-8000-00000001"
    sandbox.control.put_account(id=account, metadata={"tenant": "t-7", "seats": 12, "vip": True})
    platform = adapter(sandbox, slept)
    kept = platform.metadata(Owner.ACCOUNT, account)
    assert kept == {"tenant": "t-7", "seats": "12", "vip": "true"}
    nobody = "00000000-0000-4000-8000-00000009"
    assert platform.metadata(Owner.ACCOUNT, f"ACC-{nobody}") == {}
    assert platform.metadata(Owner.SUBSCRIPTION, f"SUB-{nobody}") == {}
    assert_nothing_broken(sandbox)
