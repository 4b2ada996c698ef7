"""What is asked of the sources, and what an answer bills: subjects, filters, scaling, grace."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from builders import END, MINUTE, NOW, START
from builders import charge as a_charge
from builders import component as a_component
from builders import evidence as an_evidence
from builders import frozen as a_frozen
from builders import query as a_query
from builders import rules as some_rules
from builders import tally as a_tally
from fakes import FakePlatform, FakeSource
from hypothesis import given
from hypothesis import strategies as st

from worker.counting import (
    frozen_tally,
    owners_to_read,
    queries_by_source,
    span_of,
    whole_units,
    with_metadata,
)
from worker.decision import Hold, Known, Wait, judge_charges, judge_watermarks
from worker.domain import FrozenTally, Owner, Rounding, Subject
from worker.errors import SourceUnavailable
from worker.record import Progress
from worker.recount import recount

TENANT = Subject.of("account.metadata.tenant")


def known(at: object = NOW) -> Known:
    """Make what the journal says of an invoice that was never looked at."""
    return Known(progress=Progress(), first_seen_at=NOW, now=at)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "owner", "key"),
    [
        ("subscription", Owner.SUBSCRIPTION, ""),
        ("account", Owner.ACCOUNT, ""),
        ("account.metadata.tenant", Owner.ACCOUNT, "tenant"),
        ("subscription.metadata.a.b", Owner.SUBSCRIPTION, "a.b"),
    ],
)
def test_a_subject_is_written_as_it_is_read(text: str, owner: Owner, key: str) -> None:
    """An owner's id or a value of its metadata, and the text of it again."""
    assert Subject.of(text) == Subject(owner, key)
    assert str(Subject.of(text)) == text


@pytest.mark.parametrize(
    "text", ["", "customer", "account.", "account.metadata", "account.metadata.", "account.id"]
)
def test_what_is_no_subject_is_refused(text: str) -> None:
    """The refusal names what may be written."""
    with pytest.raises(ValueError, match=r'"account.metadata.KEY"'):
        Subject.of(text)


def test_usage_can_be_keyed_by_metadata() -> None:
    """The value that the platform keeps with the owner is the subject of query and span."""
    rules = some_rules(a_component(subject=TENANT))
    assert owners_to_read([a_charge(), a_charge(id="CHG-2")], rules) == {(Owner.ACCOUNT, "ACC-1")}
    (charge,) = with_metadata([a_charge()], {(Owner.ACCOUNT, "ACC-1"): {"tenant": "t-7"}})
    (asked,) = queries_by_source([charge], rules)["events"]
    span = span_of(charge, rules)
    assert span is not None
    assert asked.subject == span.subject == "t-7"


def test_a_missing_metadata_key_is_held_by_name() -> None:
    """Nobody's usage is billed in its place."""
    rules = some_rules(a_component(subject=TENANT))
    (charge,) = with_metadata([a_charge()], {(Owner.ACCOUNT, "ACC-1"): {"tenants": "t-7"}})
    decision = judge_charges([charge], [], known(), rules)
    assert isinstance(decision, Hold)
    assert 'ACC-1 has no metadata "tenant"' in decision.reason


def test_nothing_is_read_where_ids_are_the_subjects() -> None:
    """Components keyed by ids, unmapped ones, and owners without an id cost no request."""
    by_id = some_rules(a_component())
    assert owners_to_read([a_charge(), a_charge(component="Fax")], by_id) == set()
    by_tenant = some_rules(a_component(subject=TENANT))
    assert owners_to_read([a_charge(account_id="")], by_tenant) == set()


def test_a_component_can_have_a_grace_of_its_own() -> None:
    """An invoice waits for the component that is countable last, and says for which."""
    rules = some_rules(
        a_component(grace=timedelta(0)),
        a_component(name="Calls", grace=timedelta(hours=6)),
        grace=timedelta(hours=1),
    )
    charges = [a_charge(), a_charge(id="CHG-2", component="Calls")]
    decision = judge_charges(charges, [], known(END + MINUTE), rules)
    assert decision == Wait(END + timedelta(hours=6), 'the period of "Calls" is not over')
    assert judge_charges(charges[:1], [], known(END), rules) is None


def test_the_slowest_source_is_waited_for_by_name() -> None:
    """Of two sources that are behind, the reason names the one that is further behind."""
    rules = some_rules(a_component(), a_component(name="Calls", source="cdr"))
    charges = [a_charge(), a_charge(id="CHG-2", component="Calls")]
    marks = {"events": END - MINUTE, "cdr": START}
    decision = judge_watermarks(charges, marks, rules, NOW)
    assert isinstance(decision, Wait)
    assert decision.reason.startswith('source "cdr" has usage only up to 2015-11-02')


def test_filters_go_with_the_question_and_the_tally() -> None:
    """What narrows a count is asked, frozen, and asked again."""
    component = a_component(filters=(("region", "eu"),))
    (asked,) = queries_by_source([a_charge()], some_rules(component))["events"]
    assert asked.filters == (("region", "eu"),)
    frozen = frozen_tally(asked, [replace(a_tally(7), query=asked)], component)
    assert isinstance(frozen, FrozenTally)
    assert frozen.query == asked


def test_units_are_scaled_before_they_are_rounded() -> None:
    """Bytes billed by GiB: divided exactly, then rounded; the count itself is kept."""
    component = a_component(divide_by=Decimal(2**30), rounding=Rounding.UP)
    frozen = frozen_tally(a_query(), [a_tally(3 * 2**30 + 1)], component)
    assert isinstance(frozen, FrozenTally)
    assert (frozen.quantity, frozen.value) == (4, Decimal(3 * 2**30 + 1))
    refused = frozen_tally(a_query(), [a_tally(5)], a_component(divide_by=Decimal(3)))
    assert refused == (
        '"Text messages" was counted as 5, divided by 3: a fraction;'
        " set a rounding for the component"
    )


@given(
    value=st.integers(0, 10**20),
    units=st.decimals("0.001", "1000000", places=3),
    rounding=st.sampled_from([Rounding.UP, Rounding.DOWN, Rounding.HALF_UP, Rounding.HALF_EVEN]),
)
def test_scaling_is_exact(value: int, units: Decimal, rounding: Rounding) -> None:
    """The whole units are a neighbour of the exact quotient, and the quotient where it is whole."""
    whole = whole_units(Decimal(value), units, rounding)
    exact = Fraction(value) / Fraction(units)
    assert whole is not None
    assert abs(whole - exact) < 1
    if exact.denominator == 1:
        assert whole == exact


def test_a_platforms_metadata_is_read_once_for_an_owner() -> None:
    """Two charges of one account cost one request."""
    platform = FakePlatform(kept={(Owner.ACCOUNT, "ACC-1"): {"tenant": "t-7"}})
    owners = owners_to_read(
        [a_charge(), a_charge(id="CHG-2")], some_rules(a_component(subject=TENANT))
    )
    assert [platform.metadata(*owner) for owner in owners] == [{"tenant": "t-7"}]


def test_a_recount_compares_every_billed_number() -> None:
    """What was billed, what it is now, and the difference in billed units."""
    source = FakeSource(values={"text_message": 115, "call": 40})
    tallies = [
        a_frozen(105),
        a_frozen(4, charge_id="CHG-2", metric="call", value=Decimal(35), divide_by=Decimal(10)),
    ]
    same = replace(tallies[1], rounding=Rounding.HALF_UP)
    results = list(recount([tallies[0], same], {"events": source}))
    assert [(r.quantity, r.difference, r.fault) for r in results] == [(115, 10, ""), (4, 0, "")]


def test_a_recount_says_why_it_cannot_count() -> None:
    """A source that is gone, down, or does not know the subject any more gives no difference."""
    down = FakeSource(failures=[SourceUnavailable("no connection")])
    nobody = FakeSource(values={"text_message": None})
    tallies = [a_frozen(source="gone"), a_frozen(source="down"), a_frozen(source="nobody")]
    results = list(recount(tallies, {"down": down, "nobody": nobody}))
    assert [result.fault for result in results] == [
        'the config has no usage source "gone" any more',
        'source "down": no connection',
        'source "nobody" does not know "SUB-1"',
    ]
    assert {result.difference for result in results} == {None}


def test_a_subject_that_was_billed_zero_because_it_is_unknown_agrees() -> None:
    """Where the component said so, the same unknown again is no difference."""
    unknown = FakeSource(values={"text_message": None})
    (result,) = recount([a_frozen(0)], {"events": unknown})
    assert (result.difference, result.fault) == (0, "")


def test_a_recount_can_take_in_what_came_late() -> None:
    """By default a source is asked up to what it had stored then; on request, for all of it."""
    source = FakeSource()
    tally = a_frozen(evidence=an_evidence(stored_until=NOW))
    list(recount([tally], {"events": source}))
    list(recount([tally], {"events": source}, late_too=True))
    assert [query.stored_until for (query,) in source.asked] == [NOW, None]
