"""What an invoice's charges ask of the usage sources, and what an answer bills; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from worker import __version__
from worker.domain import (
    Component,
    FrozenTally,
    Owner,
    Rounding,
    Rules,
    Span,
    Tally,
    UnknownSubject,
    UsageCharge,
    UsageQuery,
    to_whole,
)

_MOST_DIGITS = 27


def subject_of(charge: UsageCharge, component: Component) -> str:
    """Return what the source keys the charge's usage by; empty: the platform does not say."""
    owner, key = component.subject.owner, component.subject.metadata_key
    return charge.metadata.get(owner, {}).get(key, "") if key else charge.owner_id(owner)


def owners_to_read(charges: Sequence[UsageCharge], rules: Rules) -> set[tuple[Owner, str]]:
    """Return whose metadata the charges' components need, each by its id."""
    mapped = [(charge, rules.components.get(charge.component)) for charge in charges]
    return {
        (component.subject.owner, charge.owner_id(component.subject.owner))
        for charge, component in mapped
        if component is not None and component.subject.metadata_key
        if charge.owner_id(component.subject.owner)
    }


def with_metadata(
    charges: Sequence[UsageCharge], read: Mapping[tuple[Owner, str], Mapping[str, str]]
) -> list[UsageCharge]:
    """Add to each charge what was read of its owners' metadata."""
    return [
        replace(charge, metadata={o: read.get((o, charge.owner_id(o)), {}) for o in Owner})
        for charge in charges
    ]


def span_of(charge: UsageCharge, rules: Rules) -> Span | None:
    """Return what the charge bills; None: it cannot be read or is not mapped."""
    component = rules.components.get(charge.component)
    if charge.period is None or component is None:
        return None
    return Span(subject_of(charge, component), component.name, charge.period)


def spans_of(charges: Sequence[UsageCharge], rules: Rules) -> list[Span]:
    """Return what the charges bill, as far as they can be read and are mapped."""
    return [span for charge in charges if (span := span_of(charge, rules))]


def queries_by_source(
    charges: Sequence[UsageCharge], rules: Rules
) -> dict[str, tuple[UsageQuery, ...]]:
    """Plan one question a charge, grouped by the name of the source that answers it."""
    plan: dict[str, tuple[UsageQuery, ...]] = {}
    for charge in charges:
        component = rules.components[charge.component]
        assert charge.period is not None  # noqa: S101  judge_charges held the others
        query = component.query(charge.id, subject_of(charge, component), charge.period)
        plan[component.source] = (*plan.get(component.source, ()), query)
    return plan


def frozen_tally(
    query: UsageQuery, answers: Sequence[Tally], component: Component
) -> FrozenTally | str:
    """Return what is billed for one query, or the reason why it cannot be said."""
    name = f'"{query.component}"'
    if len(answers) != 1:
        return f'source "{component.source}" gave {len(answers) or "no"} answers for {name}'
    value = answers[0].value
    if value is None:
        if component.unknown_subject is not UnknownSubject.ZERO:
            return (
                f'source "{component.source}" does not know "{query.subject}" for {name}; add it'
                ' there, or set unknown_subject = "zero" for the component'
            )
        value = Decimal(0)
    if not isinstance(value, Decimal):
        return f"{name} was counted as a {type(value).__name__}, which is not exact"
    quantity = _billable(value, component)
    if isinstance(quantity, str):
        return f"{name} was counted as {quantity}"
    return FrozenTally(
        charge_id=query.charge_id,
        span=Span(query.subject, query.component, query.period),
        source=component.source,
        metric=query.metric,
        aggregation=query.aggregation,
        filters=query.filters,
        quantity=quantity,
        value=value,
        divide_by=component.divide_by,
        rounding=component.rounding,
        events=answers[0].events,
        evidence=answers[0].evidence,
        program=__version__,
    )


def whole_units(value: Decimal, divide_by: Decimal, rounding: Rounding) -> int | None:
    """Scale and round a count; None: it is no count, or has a fraction that REJECT refuses."""
    if not value.is_finite() or value < 0 or value.adjusted() > _MOST_DIGITS:
        return None
    return to_whole(Fraction(value) / Fraction(divide_by), rounding)


def _billable(value: Decimal, component: Component) -> int | str:
    """Scale and round a count to whole units; a text: what it is and why it cannot be billed."""
    quantity = whole_units(value, component.divide_by, component.rounding)
    if quantity is None:
        return _unbillable(value, component)
    if component.max_quantity is not None and quantity > component.max_quantity:
        return f"{quantity}, above its max_quantity {component.max_quantity}"
    return quantity


def _unbillable(value: Decimal, component: Component) -> str:
    if not value.is_finite() or value < 0:
        return str(value)
    if value.adjusted() > _MOST_DIGITS:
        return f"{value}: more than any meter can mean"
    divided = "" if component.divide_by == 1 else f", divided by {component.divide_by}"
    return f"{value}{divided}: a fraction; set a rounding for the component"
