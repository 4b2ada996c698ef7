"""The pages of bulk runs: the count first, a confirmation, progress, and a stop."""

from __future__ import annotations

import re
from datetime import datetime

import structlog
from flask import current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from worker.actions import ActRefused
from worker.bulk import VERBS, narrowed
from worker.domain import utc, utc_text
from worker.http_edge import Refused
from worker.ops.access import person
from worker.ops.asked import asked
from worker.ops.board import board
from worker.ops.bulk_runs import DONE, RUNNING, Bulk, Bulks, BulkUnreadable, new_id
from worker.ops.filters import Query, read_query

log = structlog.get_logger("ops")

_SHOWN = 10
_ID = re.compile(r"[0-9a-f]{24}")


def confirm() -> ResponseReturnValue:
    """Count the invoices that a bulk act is for, and ask whether it is meant."""
    verb = request.args.get("verb", "")
    query = _query(verb, request.args)
    as_of = board().desk.now()
    page = board().desk.journal.search(query.wanted, _SHOWN)
    return render_template(
        "ops/bulk_confirm.html",
        verb=verb,
        query=query,
        page=page,
        now=as_of,
        as_of=utc_text(as_of),
    )


def begin() -> ResponseReturnValue:
    """Start what was confirmed."""
    verb, why = request.form.get("verb", ""), asked()
    query = _query(verb, request.form)
    bulk = Bulk(
        id=new_id(),
        verb=verb,
        params=query.params,
        asked=why,
        as_of=_moment(request.form.get("as_of", "")),
        total=board().desk.journal.search(query.wanted, 1).total,
    )
    _bulks().begin(bulk)
    log.info("ops_bulk_began", bulk=bulk.id, by=why.by, verb=verb, invoices=bulk.total)
    return redirect(url_for("ops.bulk", bulk_id=bulk.id), 303)


def show(bulk_id: str) -> ResponseReturnValue:
    """Show how far a bulk run is; the page loads itself again while it runs."""
    bulk = _bulk(bulk_id)
    return render_template("ops/bulk.html", bulk=bulk, works=bulk.works(board().desk.now()))


def stop(bulk_id: str) -> ResponseReturnValue:
    """End a bulk run after the step it is at."""
    bulk = _bulk(bulk_id)
    if bulk.state == RUNNING:
        _bulks().stop(bulk, person().name)
        log.info("ops_bulk_stopped", bulk=bulk_id, by=person().name)
    return redirect(url_for("ops.bulk", bulk_id=bulk_id), 303)


def go_on(bulk_id: str) -> ResponseReturnValue:
    """Go on with a bulk run that stopped, failed or lost its thread, in this person's name."""
    bulk = _bulk(bulk_id)
    if bulk.state != DONE and not bulk.works(board().desk.now()):
        _bulks().go_on(bulk, person().name)
        log.info("ops_bulk_resumed", bulk=bulk_id, by=person().name)
    return redirect(url_for("ops.bulk", bulk_id=bulk_id), 303)


def _query(verb: str, given: MultiDict[str, str]) -> Query:
    """Read the filter, narrowed to the states in which the act can change something."""
    if verb not in VERBS:
        raise Refused(400, "bad_verb", "Only a replay or a release can be done in bulk.")
    query = read_query(given)
    try:
        wanted = narrowed(verb, query.wanted)
    except ActRefused as refusal:
        raise Refused(409, "nothing_to_do", str(refusal)) from refusal
    return Query(wanted, {**query.params, "state": [state.value for state in wanted.states]})


def _bulks() -> Bulks:
    return Bulks(board().desk, current_app.extensions["ops_session_key"])


def _bulk(bulk_id: str) -> Bulk:
    try:
        bulk = _bulks().find(bulk_id) if _ID.fullmatch(bulk_id) else None
    except BulkUnreadable as error:
        told = (
            f"This bulk run cannot be read: {error}. What it did is in each invoice's record."
            " Begin a new one from the list of invoices."
        )
        raise Refused(409, "bulk_unreadable", told) from None
    if bulk is None:
        told = "There is no such bulk run any more. What it did is in each invoice's record."
        raise Refused(404, "no_bulk", told)
    return bulk


def _moment(text: str) -> datetime:
    """Read when the invoices were counted; never later than now."""
    try:
        return min(utc(datetime.fromisoformat(text)), board().desk.now())
    except (ValueError, OverflowError):
        raise Refused(400, "bad_form", "The form is not whole: load the page again.") from None
