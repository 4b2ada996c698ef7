"""What one invoice's page shows, gathered from its record; nothing is asked of anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.domain import FrozenTally, Period
from worker.ops.shown import share
from worker.ports import Journal
from worker.record import Broken, Entry, EntryKind, History, State
from worker.story import charges_by_id, found_by, last_seen, quantities_before, told
from worker.writes import Exchange

_BAR_LENGTH = 140  # as in ops.css

_PERIODS = 3
_MOST_EVENTS = 300  # of the timeline, the newest
_MOST_DATA = 16_000  # characters of one entry
_ABOVE = "as shown above, under Usage charges"
_CUT = "… the rest is not shown; reconciler show --json prints all."
_BY_HAND = (
    EntryKind.REPLAYED,
    EntryKind.PARKED,
    EntryKind.RELEASED,
    EntryKind.DISCARDED,
    EntryKind.RECOUNTED,
    EntryKind.CLOSED,
)
_AT_REST = (State.ISSUED, State.SKIPPED, State.CLOSED, State.PARKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What one period billed of a charge's usage, beside the others."""

    period: Period
    invoice_id: str  # empty: this invoice
    quantity: int
    length: int
    change: str = ""  # against the charge's own number


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One usage charge with its number and all that explains it."""

    tally: FrozenTally
    before: str | None  # what stood on the charge; None: nothing, or it is not known
    amount: str | None
    bars: tuple[Bar, ...]  # oldest first; the last one is this charge's
    parameters: str
    again: bool  # the source was asked the same for the line before: one statement, many charges


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the record as the timeline shows it."""

    entry: Entry
    told: str
    exchange: Exchange | None
    data: str  # what else it says
    run: int  # which run it belongs to; 0: none had begun


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything the page shows of an invoice."""

    history: History
    broken: Broken | None
    lines: tuple[Line, ...]
    previewed: tuple[Mapping[str, Any], ...]  # what observing counted last
    seen: Mapping[str, Any]  # what the platform last said of the invoice
    total_before: str | None
    total_after: str | None  # None: it is not issued
    events: tuple[Event, ...]  # newest first
    left_out: int  # older events
    by_hand: tuple[tuple[Entry, str], ...]  # newest first, each with what it found

    @property
    def verbs(self) -> tuple[str, ...]:
        """Name the acts that can change something now."""
        state = self.history.row.state
        held_back = state in (State.HELD, State.PARKED)
        return (
            *(("replay",) if state is not State.PARKED else ()),
            *(("release",) if held_back else ()),
            *(("hold",) if state not in _AT_REST else ()),
            *(("close",) if state is not State.CLOSED else ()),
        )


def view_of(history: History, journal: Journal) -> View:
    """Gather what the page shows."""
    broken = journal.verify(history.row.key)
    events = tuple(_events(history, None if broken else _shown_above(history)))
    shown = events[-_MOST_EVENTS:]
    previews = [e for e in history.entries if e.kind is EntryKind.PREVIEWED]
    return View(
        history=history,
        broken=broken,
        lines=tuple(_lines(history, journal)),
        previewed=tuple(previews[-1].data.get("charges", ())) if previews else (),
        seen=last_seen(history),
        total_before=_first_total(history),
        total_after=_issued_total(history),
        events=shown[::-1],
        left_out=len(events) - len(shown),
        by_hand=tuple((e, found_by(e)) for e in reversed(history.entries) if e.kind in _BY_HAND),
    )


def _lines(history: History, journal: Journal) -> Iterator[Line]:
    charges, before = charges_by_id(history), quantities_before(history)
    asked: tuple[object, ...] = ()
    for tally in history.tallies:
        evidence = tally.evidence
        question = (evidence.source, evidence.query, evidence.parameters)
        amount = charges.get(tally.charge_id, {}).get("amount")
        yield Line(
            tally=tally,
            before=before.get(tally.charge_id),
            amount=None if amount is None else str(amount),
            bars=_bars(tally, history, journal),
            parameters=json.dumps(evidence.parameters, ensure_ascii=False),
            again=question == asked,
        )
        asked = question


def _bars(tally: FrozenTally, history: History, journal: Journal) -> tuple[Bar, ...]:
    earlier = journal.previous_tallies(history.row.key, tally.span, _PERIODS)
    most = max([tally.quantity, *(one.quantity for one in earlier)])
    bars = [
        Bar(
            period=one.period,
            invoice_id=one.invoice_id,
            quantity=one.quantity,
            length=share(one.quantity, most, _BAR_LENGTH),
            change=_change(one.quantity, tally.quantity),
        )
        for one in reversed(earlier)
    ]
    own = Bar(
        period=tally.span.period,
        invoice_id="",
        quantity=tally.quantity,
        length=share(tally.quantity, most, _BAR_LENGTH),
    )
    return (*bars, own)


def _change(then: int, now: int) -> str:
    """Say how much more it is now, in units and as a share."""
    percent = f" ({(now - then) * 100 / then:+.0f} %)" if then else ""
    return f"{now - then:+}{percent}"


def _shown_above(history: History) -> Entry | None:
    """Return the entry that carries the tallies of the usage charges; None: none stands."""
    counted = [entry for entry in history.entries if entry.kind is EntryKind.COUNTED]
    return counted[-1] if counted and history.tallies else None


def _events(history: History, above: Entry | None) -> Iterator[Event]:
    times = {delivery.id: delivery.times for delivery in history.deliveries}
    run = 0
    for entry in history.entries:
        run += entry.kind is EntryKind.CLAIMED
        exchange, rest = _exchange(entry.data)
        if entry is above:
            rest = rest | {"tallies": _ABOVE}
        data = json.dumps(rest, indent=2, ensure_ascii=False)
        if len(data) > _MOST_DATA:
            data = f"{data[:_MOST_DATA]}\n{_CUT}"
        yield Event(entry=entry, told=told(entry, times), exchange=exchange, data=data, run=run)


def _exchange(data: dict[str, Any]) -> tuple[Exchange | None, dict[str, Any]]:
    """Take what was sent and answered out of an entry's data; earlier versions kept none."""
    match data:
        case {"request": str(request), "answer": str(answer), **rest}:
            return Exchange(request, answer), rest
    return None, data


def _first_total(history: History) -> str | None:
    totals = (e.data["total"] for e in history.entries if "total" in e.data)
    return next(map(str, totals), None)


def _issued_total(history: History) -> str | None:
    kinds = (EntryKind.ISSUED,)
    issued = [e.data for e in history.entries if e.kind in kinds and "total" in e.data]
    return str(issued[-1]["total"]) if issued else None
