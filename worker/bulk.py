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

_TEXTS = ("platform", "cause", "component", "subscription", "account", "text")
_MAY_BE = {
    "release": (State.HELD, State.PARKED),
    # what is done with is run again only where somebody asks for that state
    "replay": (State.DUE, State.WAITING, State.RETRYING, State.HELD, State.OBSERVED),
}

Verb = Callable[[Desk, InvoiceKey, Asked], str]
VERBS: Mapping[str, Verb] = {"replay": actions.replay, "release": actions.release}


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRequest:
    """An act, the invoices it is for, and who asked for it."""

    verb: str
    wanted: Filter
    asked: Asked
    as_of: datetime  # what changed after it was counted is left alone
    total: int


class BulkResult(StrEnum):
    """What became of one of the invoices."""

    DONE = "done"
    REFUSED = "refused"
    PASSED = "passed"  # changed meanwhile, and left alone


@dataclass(frozen=True, slots=True)
class BulkItem:
    """What became of one invoice."""

    cursor: Cursor  # its place in the list
    became: BulkResult
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


def acts(desk: Desk, request: BulkRequest, after: Cursor | None = None) -> Iterator[BulkItem]:
    """Act on each invoice in turn, beyond a place in the list; say what became of it."""
    # Read one by one: what is read long before its turn may have changed since.
    while found := desk.journal.listed(request.wanted, 1, after):
        yield _acted(desk, request, found[0])
        after = found[0].cursor


def record(desk: Desk, how: str, request: BulkRequest, run: str = "") -> None:
    """Keep in the journal who asked, and for which invoices."""
    words = urlencode(filter_json(request.wanted), doseq=True)
    told = ", ".join(filter(None, (numbered(request.total), words, run)))
    asked = Asked(request.asked.by, f"{request.asked.reason} ({told})")
    desk.journal.record_act(desk.act(f"{how} {request.verb}", request.wanted.platform, asked))


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


def _acted(desk: Desk, request: BulkRequest, listed: Listed) -> BulkItem:
    if listed.row.updated_at > request.as_of:
        return BulkItem(listed.cursor, BulkResult.PASSED)
    try:
        warning = VERBS[request.verb](desk, listed.row.key, request.asked)
    except (ActRefused, RecordInvalid) as refusal:
        return BulkItem(listed.cursor, BulkResult.REFUSED, str(refusal))
    return BulkItem(listed.cursor, BulkResult.DONE, warning)
