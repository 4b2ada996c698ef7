"""Reading from a link which invoices to show, and writing it into links again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from werkzeug.datastructures import MultiDict

from worker.http_edge import Refused
from worker.overviews import Cursor, Filter
from worker.record import State

_TEXTS = {  # by the link's word for it; "reason" is why somebody asks for an act
    **{name: name for name in ("platform", "cause", "component", "subscription", "account")},
    "because": "reason",
    "text": "text",
}
_DAYS = ("since", "until")
_LAST_DAY = datetime(9999, 12, 30, tzinfo=UTC)  # the calendar ends after the next
NEWEST = "newest"

Params = dict[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class Query:
    """A filter with the words of the link that asked for it."""

    wanted: Filter
    params: Params  # what is empty is left out

    def get(self, name: str) -> str:
        """Return a word of the link, to fill the form with."""
        return str(self.params.get(name, ""))


def read_query(given: MultiDict[str, str]) -> Query:
    """Read a filter; refuse what cannot be meant."""
    texts = {name: given.get(name, "").strip() for name in _TEXTS}
    days = {name: given.get(name, "").strip() for name in _DAYS}
    states = tuple(dict.fromkeys(map(_state, given.getlist("state"))))
    newest = given.get("order") == NEWEST
    since, until = _day(days["since"]), _day(days["until"])
    asked: dict[str, Any] = {_TEXTS[name]: text for name, text in texts.items()}
    wanted = Filter(
        states=states,
        since=since,
        until=until and min(until, _LAST_DAY) + timedelta(days=1),  # the day itself is meant too
        newest_first=newest,
        **asked,
    )
    params: Params = {name: text for name, text in (texts | days).items() if text}
    if states:
        params["state"] = [state.value for state in states]
    if newest:
        params["order"] = NEWEST
    return Query(wanted, params)


def read_cursor(given: MultiDict[str, str]) -> Cursor | None:
    """Read where a page begins; None: at the first invoice."""
    text = given.get("after", "")
    if not text:
        return None
    try:
        return Cursor.of(text)
    except (ValueError, OverflowError):
        raise Refused(400, "bad_link", "This link names no place in the list.") from None


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise Refused(400, "bad_filter", "There is no such state.") from None


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        raise Refused(400, "bad_filter", "Write a day as 2026-10-31.") from None
