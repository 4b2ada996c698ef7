"""Each row of the decision table decides as stated, and in its order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from builders import END, MINUTE, MONTH, NOW, START
from builders import charge as a_charge
from builders import component as a_component
from builders import frozen as a_frozen
from builders import invoice as an_invoice
from builders import query as a_query
from builders import rules as some_rules
from builders import tally as a_tally
from hypothesis import given
from hypothesis import strategies as st

from worker.counting import queries_by_source, spans_of
from worker.decision import (
    Hold,
    Known,
    Recalculate,
    Skip,
    Verify,
    Wait,
    differences,
    judge_charges,
    judge_invoice,
    judge_match,
    judge_tallies,
    judge_watermarks,
)
from worker.domain import InvoiceState, Owner, Period, Rounding, Span, Subject, UnknownSubject
from worker.record import BilledSpan, Progress

RULES = some_rules()


def known(**progress: Any) -> Known:
    """Say what the journal knows; by default that nothing was done yet."""
    return Known(progress=Progress(**progress), first_seen_at=NOW - MINUTE, now=NOW)


def test_an_invoice_not_found_is_waited_for_a_little() -> None:
    """A notification can outrun the platform's API: wait, spending no attempt."""
    decision = judge_invoice(None, known(), RULES)
    assert decision == Wait(NOW + timedelta(seconds=15), "the platform does not know it yet")


def test_an_invoice_not_found_for_long_is_held() -> None:
    """After the grace for unknown invoices a person must look."""
    late = known(unknown_since=NOW - 5 * MINUTE)
    assert judge_invoice(None, late, RULES) == Hold("the platform does not know this invoice")


@pytest.mark.parametrize("state", [InvoiceState.UNPAID, InvoiceState.PAID])
def test_an_invoice_that_left_pending_during_our_work_is_verified(state: InvoiceState) -> None:
    """When the journal shows writes of ours, what is issued is read back, not assumed."""
    for progress in ({"issue_tried": True}, {"charges_tried": True}):
        assert judge_invoice(an_invoice(state=state), known(**progress), RULES) == Verify()


@pytest.mark.parametrize("state", [InvoiceState.UNPAID, InvoiceState.PAID])
def test_an_invoice_already_issued_is_skipped(state: InvoiceState) -> None:
    """Whoever issued it, there is nothing for us to do."""
    assert judge_invoice(an_invoice(state=state), known(), RULES) == Skip(f"it is already {state}")


def test_a_voided_invoice_is_skipped_even_after_our_writes() -> None:
    """A voided invoice bills nobody."""
    decision = judge_invoice(an_invoice(state=InvoiceState.VOIDED), known(issue_tried=True), RULES)
    assert decision == Skip("it is voided")


def test_an_unknown_state_is_not_taken_for_pending() -> None:
    """A state this program does not know is named, and a person looks."""
    strange = an_invoice(state=InvoiceState.OTHER, state_text="Draft")
    for progress in ({}, {"issue_tried": True}):
        decision = judge_invoice(strange, known(**progress), RULES)
        assert decision == Hold("its state Draft is not known to this program")


def test_an_invoice_we_issued_is_never_issued_again() -> None:
    """Pending again after our issue: wait while the platform may lag, then a person decides."""
    soon = judge_invoice(an_invoice(), known(issued_at=NOW - MINUTE, issue_tried=True), RULES)
    later = judge_invoice(an_invoice(), known(issued_at=NOW - 9 * MINUTE, issue_tried=True), RULES)
    assert soon == Wait(NOW + MINUTE, "we issued it, and the platform shows it pending yet")
    assert isinstance(later, Hold)
    assert "somebody took it back" in later.reason


@pytest.mark.parametrize("kind", ["Trial", "Charge", "Amendment", "Aggregated", "Newfangled"])
def test_other_invoice_types_are_skipped_by_name(kind: str) -> None:
    """Only the configured types deserve usage."""
    decision = judge_invoice(an_invoice(type=kind), known(), RULES)
    assert decision == Skip(f"its type is {kind}, not FinalArrears or Subscription")


def test_final_arrears_are_worked_on() -> None:
    """The last bill at cancellation is usage too."""
    assert judge_invoice(an_invoice(type="FinalArrears"), known(), RULES) is None


def test_a_version_that_is_not_ours_is_skipped() -> None:
    """VersionNumber 2 without work of ours: somebody else recalculated it."""
    decision = judge_invoice(an_invoice(version=2), known(), RULES)
    assert decision == Skip("its versionNumber is 2: somebody else recalculated it")


@pytest.mark.parametrize(
    "changed", [{"state": InvoiceState.UNPAID}, {"state": InvoiceState.PAID}, {"version": 2}]
)
def test_what_others_did_while_it_awaited_us_is_held(changed: dict[str, Any]) -> None:
    """We had seen it waiting for its usage, and somebody went ahead without: a person must know."""
    decision = judge_invoice(an_invoice(**changed), known(awaited_us=True), RULES)
    assert isinstance(decision, Hold)
    assert "while it awaited our count" in decision.reason
    trial = an_invoice(**changed, type="Trial")
    assert isinstance(judge_invoice(trial, known(awaited_us=True), RULES), Skip)


def test_a_version_that_moved_during_our_work_is_resumed() -> None:
    """A failure between writes is resumed, never skipped because versionNumber moved (R5)."""
    assert judge_invoice(an_invoice(version=2), known(charges_tried=True), RULES) is None


def test_a_write_without_an_answer_is_waited_for() -> None:
    """The platform may apply a request after we gave up on it: nothing is written meanwhile."""
    waiting = known(charges_tried=True, unanswered_at=NOW - MINUTE)
    settled = known(charges_tried=True, unanswered_at=NOW - 3 * MINUTE)
    decision = judge_invoice(an_invoice(), waiting, RULES)
    assert decision == Wait(NOW + MINUTE, "a write got no answer and may still be applied")
    assert judge_invoice(an_invoice(), settled, RULES) is None


def test_an_invoice_without_usage_is_issued_as_it_is() -> None:
    """A subscription's first invoice has no usage charge and would otherwise stay pending."""
    assert judge_charges([], [], known(), RULES) == Recalculate(())


def test_usage_charges_get_the_time_to_appear() -> None:
    """Charges are made one by one: an empty list is believed only after the grace."""
    rules = some_rules(grace=5 * MINUTE)
    decision = judge_charges([], [], known(), rules)
    assert decision == Wait(NOW + 4 * MINUTE, "it has no usage charge yet")
    later = replace(known(), now=NOW + 4 * MINUTE)
    assert judge_charges([], [], later, rules) == Recalculate(())


def test_an_invoice_without_usage_is_left_alone_where_the_rules_say_so() -> None:
    """`issue_without_usage = false` leaves such invoices to somebody else."""
    rules = some_rules(issue_without_usage=False)
    assert judge_charges([], [], known(), rules) == Skip("it has no usage charge")


def test_every_unmapped_component_is_named() -> None:
    """An unmapped component holds the invoice, with the mend in the reason."""
    charges = [
        a_charge(id="CHG-1", component="Fax pages"),
        a_charge(id="CHG-2", component="Calls"),
        a_charge(id="CHG-3"),
    ]
    decision = judge_charges(charges, [], known(), RULES)
    assert isinstance(decision, Hold)
    assert 'component "Fax pages" has no source. Map it' in decision.reason
    assert '"Calls"' in decision.reason
    assert "Text messages" not in decision.reason


def test_many_faults_are_named_up_to_five() -> None:
    """A reason stays one readable line however much is wrong."""
    charges = [a_charge(id=f"CHG-{n}", component=f"C{n}") for n in range(9)]
    decision = judge_charges(charges, [], known(), RULES)
    assert isinstance(decision, Hold)
    assert decision.reason.endswith("; and 4 more")


def test_a_period_that_cannot_be_read_holds() -> None:
    """A missing, inverted or zoneless period is never guessed."""
    broken = a_charge(period=None, period_fault="its periodEnd is missing")
    decision = judge_charges([broken], [], known(), RULES)
    assert decision == Hold('"Text messages" (CHG-1): its periodEnd is missing')


def test_a_charge_without_its_subject_holds() -> None:
    """Without an id there is nobody to count for; that is not a count of zero."""
    decision = judge_charges([a_charge(subscription_id="")], [], known(), RULES)
    assert decision == Hold('"Text messages" (CHG-1) names no subscription')


def test_the_same_component_twice_for_one_period_holds() -> None:
    """Two charges for the same usage would bill it twice."""
    decision = judge_charges([a_charge(), a_charge(id="CHG-2")], [], known(), RULES)
    assert isinstance(decision, Hold)
    assert "twice for overlapping periods (CHG-1, CHG-2)" in decision.reason


def test_two_periods_of_one_component_are_both_billed() -> None:
    """Adjacent periods share no moment, so both may stand on one invoice."""
    earlier = a_charge(id="CHG-2", period=Period(START - timedelta(days=30), START))
    assert judge_charges([a_charge(), earlier], [], known(), RULES) is None


def test_a_period_billed_on_another_invoice_holds() -> None:
    """What another invoice bills is named, with that invoice."""
    other = BilledSpan(invoice_id="INV-2", span=Span("SUB-1", "Text messages", MONTH))
    decision = judge_charges([a_charge()], [other], known(), RULES)
    assert isinstance(decision, Hold)
    assert "billed on INV-2" in decision.reason


def test_counting_waits_for_the_slowest_period_and_the_grace() -> None:
    """Nothing is counted before every period is over and its grace has passed."""
    rules = some_rules(a_component(), a_component(name="Calls"), grace=timedelta(hours=2))
    later = Period(START, END + timedelta(hours=1))
    charges = [a_charge(), a_charge(id="CHG-2", component="Calls", period=later)]
    decision = judge_charges(charges, [], known(), rules)
    assert decision == Wait(END + timedelta(hours=3), 'the period of "Calls" is not over')
    assert judge_charges(charges, [], replace(known(), now=END + timedelta(hours=3)), rules) is None


def test_a_source_that_is_behind_is_waited_for() -> None:
    """Counting waits until the source vouches for the whole period."""
    charges = [a_charge()]
    behind = judge_watermarks(charges, {"events": END - timedelta(seconds=1)}, RULES, NOW)
    assert behind == Wait(
        NOW + timedelta(minutes=5), 'source "events" has usage only up to 2015-12-02T12:18:50Z'
    )
    assert judge_watermarks(charges, {"events": END}, RULES, NOW) is None
    assert judge_watermarks(charges, {"events": None}, RULES, NOW) is None


def test_a_source_that_stays_behind_is_held() -> None:
    """Waiting for a watermark ends, long after the period, with a person."""
    late = END + RULES.watermark_deadline
    decision = judge_watermarks([a_charge()], {"events": START}, RULES, late)
    assert isinstance(decision, Hold)
    assert "long after the period's end" in decision.reason


def test_an_accounts_usage_is_billed_on_one_of_its_subscriptions_only() -> None:
    """Two subscriptions that count by account would each bill all of it."""
    rules = some_rules(a_component(subject=Subject(Owner.ACCOUNT)))
    (span,) = spans_of([a_charge(subscription_id="SUB-2")], rules)
    other = BilledSpan(invoice_id="INV-2", span=span)
    assert isinstance(judge_charges([a_charge()], [other], known(), rules), Hold)
    assert judge_charges([a_charge(account_id="ACC-2")], [other], known(), rules) is None


def test_questions_carry_the_charges_own_period_and_subject() -> None:
    """Each charge is asked for over its own window, by the id the component names."""
    rules = some_rules(
        a_component(subject=Subject(Owner.ACCOUNT)),
        a_component(name="Calls", source="cdr", metric="call"),
    )
    short = Period(START, START + timedelta(days=3))
    charges = [a_charge(), a_charge(id="CHG-2", component="Calls", period=short)]
    plan = queries_by_source(charges, rules)
    assert plan["events"] == (a_query(subject="ACC-1"),)
    (call,) = plan["cdr"]
    assert (call.metric, call.period, call.subject) == ("call", short, "SUB-1")


def test_counted_values_become_what_is_billed() -> None:
    """A good count is frozen with its evidence; a counted zero is written as zero (R4)."""
    assert judge_tallies([a_query()], [a_tally(105)], RULES) == Recalculate((a_frozen(105),))
    assert judge_tallies([a_query()], [a_tally(0)], RULES) == Recalculate((a_frozen(0),))


@pytest.mark.parametrize(
    ("value", "changed", "told"),
    [
        (-1, {}, "counted as -1"),
        (Decimal("NaN"), {}, "counted as NaN"),
        (Decimal("Infinity"), {}, "counted as Infinity"),
        (Decimal("2.5"), {}, "a fraction; set a rounding"),
        (106, {"max_quantity": 105}, "above its max_quantity 105"),
        (Decimal("1E+1000000"), {}, "more than any meter can mean"),
        (None, {}, 'does not know "SUB-1"'),
    ],
)
def test_counts_that_cannot_be_billed_hold(
    value: Decimal | int | None, changed: dict[str, Any], told: str
) -> None:
    """Negative, endless, fractional, absurd and unknown are held, never turned into a number."""
    decision = judge_tallies([a_query()], [a_tally(value)], some_rules(a_component(**changed)))
    assert isinstance(decision, Hold)
    assert told in decision.reason


def test_one_bad_count_holds_the_whole_invoice() -> None:
    """If any charge is uncountable, no charge is written (R5)."""
    rules = some_rules(a_component(), a_component(name="Calls"))
    asked = [a_query(), a_query(charge_id="CHG-2", component="Calls")]
    bad = a_tally(None, query=asked[1])
    assert isinstance(judge_tallies(asked, [a_tally(105), bad], rules), Hold)


def test_a_missing_answer_holds() -> None:
    """A source that leaves a question out has not said zero."""
    decision = judge_tallies([a_query()], [], RULES)
    assert decision == Hold('source "events" gave no answers for "Text messages"')


@pytest.mark.parametrize(
    "changed", [{"subject": "SUB-2"}, {"period": Period(START, NOW)}, {"metric": "call"}]
)
def test_an_answer_to_another_question_is_no_answer(changed: dict[str, Any]) -> None:
    """Only what was asked is billed, and only when it was answered once."""
    other = a_tally(8, query=a_query(**changed))
    assert isinstance(judge_tallies([a_query()], [other], RULES), Hold)
    assert judge_tallies([a_query()], [a_tally(105), other], RULES) == Recalculate((a_frozen(),))
    twice = judge_tallies([a_query()], [a_tally(105), a_tally(8)], RULES)
    assert twice == Hold('source "events" gave 2 answers for "Text messages"')


def test_a_float_is_not_billed() -> None:
    """A source that answers with a float has no exact number to give (R7)."""
    inexact = replace(a_tally(1), value=105.0)  # type: ignore[arg-type]
    decision = judge_tallies([a_query()], [inexact], RULES)
    assert decision == Hold('"Text messages" was counted as a float, which is not exact')


def test_an_unknown_subject_is_zero_only_where_the_component_says_so() -> None:
    """`unknown_subject = "zero"` is the operator's word, given per component."""
    rules = some_rules(a_component(unknown_subject=UnknownSubject.ZERO))
    decision = judge_tallies([a_query()], [a_tally(None)], rules)
    assert isinstance(decision, Recalculate)
    assert decision.tallies[0].quantity == 0


def test_a_fraction_is_rounded_by_the_components_rule() -> None:
    """The frozen tally keeps both what was counted and what is billed."""
    rules = some_rules(a_component(rounding=Rounding.UP))
    decision = judge_tallies([a_query()], [a_tally(Decimal("2.1"))], rules)
    assert isinstance(decision, Recalculate)
    assert (decision.tallies[0].value, decision.tallies[0].quantity) == (Decimal("2.1"), 3)


def test_only_what_differs_is_written() -> None:
    """A charge that carries its tally already is left alone; one that states nothing is not."""
    charges = [
        a_charge(id="CHG-1", quantity=Decimal("105.0")),
        a_charge(id="CHG-2", quantity=Decimal(7)),
        a_charge(id="CHG-3", quantity=None),
    ]
    tallies = [a_frozen(105), a_frozen(8, charge_id="CHG-2"), a_frozen(0, charge_id="CHG-3")]
    assert differences(charges, tallies) == {"CHG-2": 8, "CHG-3": 0}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_writing_the_differences_leaves_none(values: list[tuple[int, int]]) -> None:
    """After writing what differs, nothing differs: a resumed run converges."""
    charges = [a_charge(id=f"CHG-{n}", quantity=Decimal(v[0])) for n, v in enumerate(values)]
    tallies = [a_frozen(v[1], charge_id=f"CHG-{n}") for n, v in enumerate(values)]
    wanted = differences(charges, tallies)
    written = [replace(c, quantity=Decimal(wanted.get(c.id, c.quantity or 0))) for c in charges]
    assert differences(written, tallies) == {}


def test_charges_that_join_or_leave_after_counting_hold() -> None:
    """Only the charges that were counted may be issued."""
    assert judge_match([a_charge()], [a_frozen()]) is None
    joined = judge_match([a_charge(), a_charge(id="CHG-2", component="Calls")], [a_frozen()])
    left = judge_match([], [a_frozen()])
    assert joined == Hold('"Calls" (CHG-2) joined the invoice after it was counted')
    assert left == Hold('"Text messages" (CHG-1) left the invoice after it was counted')
