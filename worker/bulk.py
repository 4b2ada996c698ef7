"""Replaying or releasing many invoices, the same for the command line and the pages.

They are counted first. Then each act goes through the journal like a single one: what was done
before a stop or a crash stays done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlencode

from worker import actions
from worker.actions import ActRefused, Asked, Desk
from worker.domain import InvoiceKey, utc_text
from worker.errors import RecordInvalid
from worker.overviews import Cursor, Filter, Listed
from worker.record import State

STEP = 20  # invoices that are read at once

_TEXTS = ("platform", "cause", "component", "subscription", "account", "text")
_MAY_BE = {
    "release": (State.HELD, State.PARKED),
    # what is done with is run again only where somebody asks for that state
    "replay": (State.DUE, State.WAITING, State.RETRYING, State.HELD, State.OBSERVED),
}

Verb = Callable[[Desk, InvoiceKey, Asked], str]
VERBS: Mapping[str, Verb] = {"replay": actions.replay, "release": actions.release}


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """An act, the invoices it is for, and who asked for it."""

    verb: str
    wanted: Filter
    asked: Asked
    as_of: datetime  # what changed after it was counted is left alone
    total: int


class Became(StrEnum):
    """What became of an invoice of many."""

    DONE = "done"
    REFUSED = "refused"
    PASSED = "passed"  # changed meanwhile, and left alone


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of one invoice."""

    cursor: Cursor  # its place in the list
    became: Became
    told: str = ""  # why it was refused, or a warning


def narrowed(verb: str, wanted: Filter) -> Filter:
    """Narrow a filter to the states in which the act changes something; raise ActRefused."""
    states = wanted.states or _MAY_BE[verb]
    if verb == "release":
        states = tuple(state for state in states if state in _MAY_BE[verb])
    else:
        states = tuple(state for state in states if state is not State.PARKED)
    if not states:
        raise ActRefused(f"A {verb} does nothing for invoices in this state.")
    return replace(wanted, states=states)


def acts(desk: Desk, many: Many, after: Cursor | None = None) -> Iterator[Acted]:
    """Act on each invoice in turn, beyond a place in the list; say what became of it."""
    while found := desk.journal.listed(many.wanted, STEP, after):
        for listed in found:
            yield _acted(desk, many, listed)
        after = found[-1].cursor


def record(desk: Desk, how: str, many: Many, run: str = "") -> None:
    """Keep in the journal who asked, and for which invoices."""
    words = urlencode(filter_json(many.wanted), doseq=True)
    told = ", ".join(filter(None, (numbered(many.total), words, run)))
    asked = Asked(many.asked.by, f"{many.asked.reason} ({told})")
    desk.journal.record_act(desk.act(f"{how} {many.verb}", many.wanted.platform, asked))


def filter_json(wanted: Filter) -> dict[str, str | list[str]]:
    """Return what a filter asks for, JSON-ready; `because` is a part of the reason."""
    given: dict[str, str | list[str]] = {"state": [state.value for state in wanted.states]}
    given |= {name: getattr(wanted, name) for name in _TEXTS} | {"because": wanted.reason}
    for name, moment in (("since", wanted.since), ("until", wanted.until)):
        given[name] = utc_text(moment) if moment else ""
    return {name: words for name, words in given.items() if words}


def numbered(number: int) -> str:
    """Write a number of invoices."""
    return f"{number:,} invoice{'s' * (number != 1)}"


def _acted(desk: Desk, many: Many, listed: Listed) -> Acted:
    if listed.row.updated_at > many.as_of:
        return Acted(listed.cursor, Became.PASSED)
    try:
        warning = VERBS[many.verb](desk, listed.row.key, many.asked)
    except (ActRefused, RecordInvalid) as refusal:
        return Acted(listed.cursor, Became.REFUSED, str(refusal))
    return Acted(listed.cursor, Became.DONE, warning)
