"""The decision table: what to do with an invoice, from what is known of it; pure functions.

Each question is asked as late as it can be answered: first of the invoice alone, then of its
usage charges, then of their tallies. Within each function the rows stand in their order and
the first that applies decides; None means that nothing stands in the way so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations

from worker.counting import frozen_tally, span_of, subject_of
from worker.domain import (
    Component,
    FrozenTally,
    Invoice,
    InvoiceState,
    Mode,
    Rules,
    Tally,
    UsageCharge,
    UsageQuery,
    utc_text,
)
from worker.record import BilledSpan, Progress

_NOT_FOUND_POLL = timedelta(seconds=15)
_MOST_FAULTS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Recalculate:
    """Write these quantities where they differ, then issue. Empty: issue it as it is."""

    tallies: tuple[FrozenTally, ...]


@dataclass(frozen=True, slots=True)
class Verify:
    """It is not pending any more, and we were at work on it: read back whether it is ours."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again at `until`; no attempt is spent."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A person must look."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skip:
    """There is nothing for us to do."""

    reason: str


Counted = Recalculate | Wait | Hold | Skip
Decision = Counted | Verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What our own journal says when an invoice is judged."""

    progress: Progress
    first_seen_at: datetime
    now: datetime


def judge_invoice(invoice: Invoice | None, known: Known, rules: Rules) -> Decision | None:
    """Judge the invoice alone."""
    progress, now = known.progress, known.now
    if invoice is None:
        deadline = (progress.unknown_since or now) + rules.not_found_grace
        if now < deadline:
            return Wait(min(now + _NOT_FOUND_POLL, deadline), "the platform does not know it yet")
        return Hold("the platform does not know this invoice")
    if invoice.state is InvoiceState.VOIDED:
        return Skip("it is voided")
    if invoice.state is InvoiceState.OTHER:
        return Hold(f"its state {invoice.state_text} is not known to this program")
    if invoice.state is not InvoiceState.PENDING and progress.unfinished:
        return Verify()
    if progress.issued_at is not None:
        return _pending_again(progress.issued_at, now, rules)
    if invoice.type not in rules.invoice_types:
        return Skip(f"its type is {invoice.type}, not {' or '.join(sorted(rules.invoice_types))}")
    awaited_us = progress.awaited_us and rules.mode is Mode.WRITE
    if invoice.state is not InvoiceState.PENDING:
        return _not_ours(f"it is already {invoice.state_text}", awaited_us=awaited_us)
    if invoice.version != 1 and not progress.unfinished:
        told = f"its versionNumber is {invoice.version}: somebody else recalculated it"
        return _not_ours(told, awaited_us=awaited_us)
    if progress.unanswered_at is not None and now < progress.unanswered_at + rules.settle:
        return Wait(
            progress.unanswered_at + rules.settle,
            "a write got no answer and may still be applied",
        )
    return None


def judge_charges(
    charges: Sequence[UsageCharge], billed: Sequence[BilledSpan], known: Known, rules: Rules
) -> Counted | None:
    """Judge the usage charges, before anything is counted."""
    if not charges:
        return _without_usage(known, rules)
    faults = [
        *_unmapped(charges, rules.components),
        *_bad_periods(charges),
        *_without_subject(charges, rules.components),
        *_billed_twice(charges, billed, rules),
    ]
    if faults:
        return Hold(_listed(faults))
    countable_at, last = max((_countable_at(charge, rules), charge.component) for charge in charges)
    if known.now < countable_at:
        return Wait(countable_at, f'the period of "{last}" is not over')
    return None


def judge_watermarks(
    charges: Sequence[UsageCharge],
    watermarks: Mapping[str, datetime | None],
    rules: Rules,
    now: datetime,
) -> Wait | Hold | None:
    """Judge whether every source has everything of the periods; a source that cannot say, has.

    Of several sources that are behind, the slowest is named.
    """
    behind: list[tuple[datetime, str, datetime]] = []
    for charge in charges:
        source = rules.components[charge.component].source
        watermark = watermarks[source]
        if watermark is not None and watermark < _end(charge):
            behind.append((watermark, source, _end(charge)))
    if not behind:
        return None
    watermark, source, _ = min(behind)
    reason = f'source "{source}" has usage only up to {utc_text(watermark)}'
    if now >= min(end for _, _, end in behind) + rules.watermark_deadline:
        return Hold(f"{reason}, long after the period's end")
    return Wait(now + rules.watermark_poll, reason)


def judge_tallies(
    asked: Sequence[UsageQuery], tallies: Sequence[Tally], rules: Rules
) -> Hold | Recalculate:
    """Judge the counts: all of them become what is billed, or none does."""
    frozen: list[FrozenTally] = []
    faults: list[str] = []
    for query in asked:
        answers = [tally for tally in tallies if tally.query == query]
        result = frozen_tally(query, answers, rules.components[query.component])
        if isinstance(result, FrozenTally):
            frozen.append(result)
        else:
            faults.append(result)
    return Hold(_listed(faults)) if faults else Recalculate(tuple(frozen))


def differences(charges: Sequence[UsageCharge], tallies: Sequence[FrozenTally]) -> dict[str, int]:
    """Return, by charge id, the quantities that do not stand on the invoice yet."""
    stands = {charge.id: charge.quantity for charge in charges}
    return {t.charge_id: t.quantity for t in tallies if stands.get(t.charge_id) != t.quantity}


def judge_match(charges: Sequence[UsageCharge], tallies: Sequence[FrozenTally]) -> Hold | None:
    """Hold when the invoice's usage charges are not the ones that were counted."""
    there = {charge.id: charge.component for charge in charges}
    counted = {tally.charge_id: tally.span.component for tally in tallies}
    faults = [
        f'"{component}" ({charge_id}) joined the invoice after it was counted'
        for charge_id, component in there.items()
        if charge_id not in counted
    ] + [
        f'"{component}" ({charge_id}) left the invoice after it was counted'
        for charge_id, component in counted.items()
        if charge_id not in there
    ]
    return Hold(_listed(faults)) if faults else None


def _pending_again(issued_at: datetime, now: datetime, rules: Rules) -> Wait | Hold:
    if now < issued_at + rules.settle:
        return Wait(issued_at + rules.settle, "we issued it, and the platform shows it pending yet")
    return Hold(
        f"we issued it at {utc_text(issued_at)} and it is Pending again: somebody took it back;"
        " settle it on the platform by hand"
    )


def _not_ours(told: str, *, awaited_us: bool) -> Skip | Hold:
    """Skip what others did before we came; what they did while it awaited us, a person judges."""
    if awaited_us:
        return Hold(f"{told}, while it awaited our count; check it, then close it")
    return Skip(told)


def _without_usage(known: Known, rules: Rules) -> Recalculate | Wait | Skip:
    """Judge an invoice without usage charges, once they have had the time to appear."""
    if known.now < known.first_seen_at + rules.grace:
        return Wait(known.first_seen_at + rules.grace, "it has no usage charge yet")
    return Recalculate(()) if rules.issue_without_usage else Skip("it has no usage charge")


def _unmapped(charges: Sequence[UsageCharge], components: Mapping[str, Component]) -> list[str]:
    names = dict.fromkeys(c.component for c in charges if c.component not in components)
    return [f'component "{name}" has no source. Map it in config, then requeue.' for name in names]


def _bad_periods(charges: Sequence[UsageCharge]) -> list[str]:
    return [f'"{c.component}" ({c.id}): {c.period_fault}' for c in charges if c.period is None]


def _without_subject(
    charges: Sequence[UsageCharge], components: Mapping[str, Component]
) -> list[str]:
    return [
        _no_subject(c, components[c.component])
        for c in charges
        if c.component in components and not subject_of(c, components[c.component])
    ]


def _no_subject(charge: UsageCharge, component: Component) -> str:
    subject, named = component.subject, f'"{charge.component}" ({charge.id})'
    owner_id = charge.owner_id(subject.owner)
    if not subject.metadata_key or not owner_id:
        return f"{named} names no {subject.owner}"
    return (
        f'{named} is counted by {subject}, and {owner_id} has no metadata "{subject.metadata_key}";'
        " set it on the platform, then replay"
    )


def _billed_twice(
    charges: Sequence[UsageCharge], billed: Sequence[BilledSpan], rules: Rules
) -> list[str]:
    spans = [(charge, span) for charge in charges if (span := span_of(charge, rules))]
    within = [
        f'"{one.component}" is on it twice for overlapping periods ({one.id}, {other.id})'
        for (one, its), (other, others) in combinations(spans, 2)
        if its.overlaps(others)
    ]
    elsewhere = [
        f'"{charge.component}" {charge.period} overlaps {other.span.period},'
        f" billed on {other.invoice_id}"
        for charge, span in spans
        for other in billed
        if span.overlaps(other.span)
    ]
    return within + elsewhere


def _countable_at(charge: UsageCharge, rules: Rules) -> datetime:
    grace = rules.components[charge.component].grace
    return _end(charge) + (rules.grace if grace is None else grace)


def _end(charge: UsageCharge) -> datetime:
    assert charge.period is not None  # noqa: S101  judge_charges held the others
    return charge.period.end


def _listed(faults: Iterable[str]) -> str:
    """Join faults into one line; the first few by name, the rest by number."""
    faults = list(faults)
    named = "; ".join(faults[:_MOST_FAULTS_NAMED])
    rest = len(faults) - _MOST_FAULTS_NAMED
    return f"{named}; and {rest} more" if rest > 0 else named
