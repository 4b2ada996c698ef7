"""Counting again what was billed, to compare; nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from worker.asking import counted
from worker.counting import whole_units
from worker.domain import FrozenTally, Tally, utc_text
from worker.errors import ReconcilerError
from worker.ports import UsageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount:
    """One billed number, and what its source says of it now."""

    billed: FrozenTally
    value: Decimal | None = None  # as counted now; None: see fault
    quantity: int | None = None  # scaled and rounded as it was billed
    fault: str = ""  # why it cannot be counted again

    @property
    def difference(self) -> int | None:
        """How many units more it would be now; None: it cannot be said."""
        return None if self.quantity is None else self.quantity - self.billed.quantity


def recount(
    tallies: Sequence[FrozenTally], sources: Mapping[str, UsageSource], *, late_too: bool = False
) -> Iterator[Recount]:
    """Ask each source its question again, with all charges of it in one call.

    A source that keeps when its events came in leaves out those that came after the first count,
    unless they are asked for.
    """
    if late_too:
        tallies = [_without_cut_off(tally) for tally in tallies]
    for name in dict.fromkeys(tally.source for tally in tallies):
        mine = [tally for tally in tallies if tally.source == name]
        try:
            answers = _answers(mine, name, sources)
        except ReconcilerError as error:
            yield from (Recount(billed=tally, fault=str(error)) for tally in mine)
            continue
        for tally in mine:
            yield _compared(tally, [a for a in answers if a.query == tally.query])


def recount_json(result: Recount) -> dict[str, Any]:
    """Return what was billed and what is counted now, JSON-ready."""
    billed = result.billed
    return {
        "charge_id": billed.charge_id,
        "component": billed.span.component,
        "period_start": utc_text(billed.span.period.start),
        "period_end": utc_text(billed.span.period.end),
        "billed": billed.quantity,
        "recounted": result.quantity,
        "difference": result.difference,
        "value_billed": str(billed.value),
        "value_recounted": None if result.value is None else str(result.value),
        "fault": result.fault,
    }


def _without_cut_off(tally: FrozenTally) -> FrozenTally:
    return replace(tally, evidence=replace(tally.evidence, stored_until=None))


def _answers(
    tallies: Sequence[FrozenTally], name: str, sources: Mapping[str, UsageSource]
) -> Sequence[Tally]:
    if name not in sources:
        raise ReconcilerError(f'the config has no usage source "{name}" any more')
    return counted(sources, name, [tally.query for tally in tallies])


def _compared(tally: FrozenTally, answers: Sequence[Tally]) -> Recount:
    if len(answers) != 1:
        told = f'source "{tally.source}" gave {len(answers) or "no"} answers'
        return Recount(billed=tally, fault=told)
    value = answers[0].value
    if value is None and not tally.value and answers[0].evidence.digest == tally.evidence.digest:
        value = tally.value  # it did not know the subject then either, and that was billed as 0
    if value is None:
        told = f'source "{tally.source}" does not know "{tally.span.subject}"'
        return Recount(billed=tally, fault=told)
    quantity = whole_units(value, tally.divide_by, tally.rounding)
    fault = "" if quantity is not None else f"it is {value} now, which cannot be billed"
    return Recount(billed=tally, value=value, quantity=quantity, fault=fault)
