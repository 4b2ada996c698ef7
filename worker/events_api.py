"""POST /events: usage events into the built-in meter, as CloudEvents in JSON.

One event (`application/cloudevents+json`) or a batch (`application/cloudevents-batch+json`); with
`application/json` the body itself tells. Each event is stored once, however often it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from flask import Blueprint, Request, jsonify, request
from flask.typing import ResponseReturnValue

from worker.cloudevents import EventRejected, parsed_json, usage_event
from worker.errors import SourceInvalid, SourceUnavailable
from worker.http_edge import Refused, same, whole_body
from worker.metering import CAME_BEFORE, EventStore, UsageEvent, Verdict

_SINGLE, _BATCH, _EITHER = (
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/json",
)
_MOST_BYTES = 8 * 1024 * 1024
_MOST_EVENTS = 10_000
_MODES = {"each": False, "all": True}

log = structlog.get_logger("events")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An event of the request that was not stored, and why."""

    index: int
    id: object
    error: str
    message: str

    def as_json(self) -> dict[str, object]:
        named = self.id if isinstance(self.id, str) else None
        return {"index": self.index, "id": named, "error": self.error, "message": self.message}


def events_blueprint(store: EventStore, token: str) -> Blueprint:
    """Make the endpoint over a store; whoever sends shows the token as `Bearer`."""
    pages = Blueprint("events", __name__)

    @pages.post("/events")
    def events() -> ResponseReturnValue:
        """Store the events of one request."""
        _authenticate(request, token)
        all_or_nothing = _mode(request)
        given, is_batch = _given(request)
        found, refusals = _read(given)
        if refusals and all_or_nothing:
            return _answer([], refusals, is_batch=is_batch, nothing_stored=True)
        try:
            verdicts = store.append([event for _, event in found], all_or_nothing=all_or_nothing)
        except ValueError as error:
            raise Refused(400, "unstorable", f"Nothing was stored: {error}.") from None
        refusals += _conflicts(found, verdicts)
        nothing = all_or_nothing and bool(refusals)
        return _answer(verdicts, refusals, is_batch=is_batch, nothing_stored=nothing)

    @pages.errorhandler(SourceUnavailable)
    def unavailable(error: SourceUnavailable) -> ResponseReturnValue:
        """Ask the sender to send again: what was stored nevertheless is a duplicate then."""
        log.error("meter_unavailable", reason=str(error))
        answer = jsonify(error="meter_unavailable", message="Send it again later.")
        answer.headers["Retry-After"] = "5"
        return answer, 503

    @pages.errorhandler(SourceInvalid)
    def invalid(error: SourceInvalid) -> ResponseReturnValue:
        """Ask the sender to keep what it has: a person must mend the meter first."""
        log.error("meter_invalid", reason=str(error))
        told = "The meter must be mended; see the log. Send it again then."
        answer = jsonify(error="meter_invalid", message=told)
        answer.headers["Retry-After"] = "60"
        return answer, 503

    return pages


def _authenticate(incoming: Request, token: str) -> None:
    scheme, _, given = incoming.headers.get("Authorization", "").partition(" ")
    if not same(given.strip(), token) or scheme.lower() != "bearer":
        raise Refused(
            401, "unauthorized", "Send the header Authorization: Bearer …", challenge="Bearer"
        )


def _mode(incoming: Request) -> bool:
    """Tell whether one refused event shall refuse them all."""
    mode = incoming.args.get("store", "each")
    if mode not in _MODES:
        raise Refused(400, "bad_parameter", 'store must be "each" or "all".')
    return _MODES[mode]


def _given(incoming: Request) -> tuple[list[Any], bool]:
    """Return the events of the body, unread, and whether they came as a batch."""
    kind = incoming.mimetype
    if kind not in (_SINGLE, _BATCH, _EITHER):
        raise Refused(415, "content_type", f"Send {_SINGLE} or {_BATCH}.")
    try:
        parsed = parsed_json(whole_body(incoming, _MOST_BYTES))
    except EventRejected as error:
        raise Refused(400, "unreadable", f"The body is refused: {error}.") from None
    is_batch = isinstance(parsed, list)
    if (is_batch and kind == _SINGLE) or (not is_batch and kind == _BATCH):
        raise Refused(400, "unreadable", f"The body is not what {kind} is.")
    events = parsed if is_batch else [parsed]
    if len(events) > _MOST_EVENTS:
        raise Refused(413, "too_many", f"A batch may have {_MOST_EVENTS} events at most.")
    return events, is_batch


def _read(given: list[Any]) -> tuple[list[tuple[int, UsageEvent]], list[_Refusal]]:
    found: list[tuple[int, UsageEvent]] = []
    refusals: list[_Refusal] = []
    for index, raw in enumerate(given):
        try:
            found.append((index, usage_event(raw)))
        except EventRejected as error:
            event_id = raw.get("id") if isinstance(raw, dict) else None
            refusals.append(_Refusal(index, event_id, "invalid", str(error)))
    return found, refusals


def _conflicts(
    found: Sequence[tuple[int, UsageEvent]], verdicts: Sequence[Verdict]
) -> list[_Refusal]:
    return [
        _Refusal(index, event.id, "conflict", f"{event.id!r} of {event.source!r} {CAME_BEFORE}")
        for (index, event), verdict in zip(found, verdicts, strict=True)
        if verdict is Verdict.CONFLICT
    ]


def _answer(
    verdicts: Sequence[Verdict],
    refusals: Sequence[_Refusal],
    *,
    is_batch: bool,
    nothing_stored: bool,
) -> ResponseReturnValue:
    """Answer 200, or 207 where some of a batch are there now and others were refused.

    Where nothing is there: 422 of a batch, 400 or 409 of a single event.
    """
    counts = {verdict: sum(one is verdict for one in verdicts) for verdict in Verdict}
    answer = {
        "stored": 0 if nothing_stored else counts[Verdict.STORED],
        "duplicates": 0 if nothing_stored else counts[Verdict.DUPLICATE],
        "refused": [one.as_json() for one in sorted(refusals, key=lambda one: one.index)],
    }
    if not refusals:
        return jsonify(answer)
    if not is_batch:
        return jsonify(answer), 409 if refusals[0].error == "conflict" else 400
    return jsonify(answer), 207 if answer["stored"] or answer["duplicates"] else 422
