"""The first page: how all the work stands, what is held and why, who is alive; pause and resume."""

from __future__ import annotations

from datetime import timedelta

import structlog
from flask import redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from worker import actions
from worker.domain import utc_text
from worker.errors import QueueUnavailable
from worker.http_edge import Refused
from worker.ops.access import person
from worker.ops.asked import asked
from worker.ops.board import Board, board
from worker.ops.shown import CHART_HEIGHT, columns, moment
from worker.overdue import most_overdue
from worker.overviews import UNISSUED, Filter, Overview
from worker.ports import Journal
from worker.pulse import Pulse, pulse
from worker.record import InvoiceRow, State

log = structlog.get_logger("ops")

_MOST_ACTS = 20


def overview() -> ResponseReturnValue:
    """Show the overview."""
    return _page(board())


def pause() -> ResponseReturnValue:
    """Let no worker begin, on one platform or all; of a pause that stands already, say whose."""
    platform, desk = _platform(), board().desk
    asked_at = desk.now()
    standing = actions.pause(desk, platform, asked())
    if standing.at < asked_at:
        since = f"by {standing.by} since {moment(standing.at)}: {standing.reason}"
        return _page(board(), f"{actions.named(platform)} is paused already, {since}"), 409
    log.info("ops_pause", by=person().name, platform=platform)
    return redirect(url_for("ops.overview"), 303)


def resume() -> ResponseReturnValue:
    """Undo a pause."""
    platform = _platform()
    try:
        actions.resume(board().desk, platform, asked())
    except actions.ActRefused as refusal:
        return _page(board(), str(refusal)), 409
    log.info("ops_resume", by=person().name, platform=platform)
    return redirect(url_for("ops.overview"), 303)


def _page(known: Board, refusal: str = "") -> str:
    desk, config = known.desk, known.config()
    now = desk.now()
    found = desk.journal.overview(now)
    try:
        alive: Pulse | None = pulse(desk.doorbell)
        silent = ""
    except QueueUnavailable as error:
        alive, silent = None, str(error)
    interval = timedelta(seconds=config.sweep.interval_seconds)
    return render_template(
        "ops/overview.html",
        found=found,
        oldest=_oldest(desk.journal, found),
        late=most_overdue(desk.journal, now),
        figures=_figures(found),
        columns=columns(found.hours),
        chart_height=CHART_HEIGHT,
        alive=alive,
        silent=silent,
        sweeps=alive is not None and alive.sweeps(now, interval),
        acts=desk.journal.acts(_MOST_ACTS),
        platforms=list(config.platforms),
        mode=config.rules.mode,
        refusal=refusal,
        mistakes=known.mistakes,
    )


def _oldest(journal: Journal, found: Overview) -> InvoiceRow | None:
    """Return the unissued invoice that was seen first."""
    listed = journal.listed(Filter(states=UNISSUED), 1) if found.oldest else ()
    return listed[0].row if listed else None


def _figures(found: Overview) -> list[tuple[str, int, str]]:
    """Return what is counted, the number, and the list of it."""
    numbers = found.by_state

    def listed(*states: State) -> str:
        return url_for("ops.invoices", state=[state.value for state in states])

    today = found.now.replace(hour=0, minute=0, second=0, microsecond=0)
    return [
        ("held", numbers[State.HELD], listed(State.HELD)),
        ("retrying", numbers[State.RETRYING], listed(State.RETRYING)),
        ("due now", numbers[State.DUE], listed(State.DUE)),
        ("waiting", numbers[State.WAITING], listed(State.WAITING)),
        ("parked", numbers[State.PARKED], listed(State.PARKED)),
        ("observed", numbers[State.OBSERVED], listed(State.OBSERVED)),
        (
            f"issued today (since {utc_text(today)[11:16]} UTC)",
            found.issued_today,
            url_for("ops.invoices", state=State.ISSUED.value, order="newest"),
        ),
    ]


def _platform() -> str:
    """Return the platform that a form names; empty: all."""
    name = request.form.get("platform", "")
    known = {"", *board().config().platforms, *board().desk.journal.paused()}
    if name not in known:
        raise Refused(404, "no_platform", "There is no such platform.")
    return name
