"""One invoice: its page, and what people do with it there."""

from __future__ import annotations

from typing import Any

import structlog
from flask import redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from worker import actions
from worker.causes import cause_of
from worker.decision import Wait
from worker.domain import InvoiceKey, utc_text
from worker.errors import ConfigError, ReconcilerError, RecordInvalid
from worker.http_edge import Refused
from worker.ops.access import person
from worker.ops.asked import asked
from worker.ops.board import board
from worker.ops.invoice_view import view_of
from worker.ops.limits import closed_afterwards, limited
from worker.preview import Preview
from worker.previewing import previewed
from worker.record import History, State
from worker.recount import recount as counted_again
from worker.wiring import open_service, open_sources

log = structlog.get_logger("ops")

_DONE = {
    "replay": "It is due now: a worker runs it again.",
    "release": "It is released, and due now.",
    "hold": "It is parked: nothing is done for it until its release.",
    "close": "It is closed: nothing more is done for it.",
}


def invoice(platform: str, invoice_id: str) -> ResponseReturnValue:
    """Show everything the journal knows of one invoice; of one it cannot read, what is wrong."""
    done = _DONE.get(request.args.get("done", ""), "")
    silent = "No worker could be woken, as Redis does not answer: the next sweep does it."
    try:
        known = _history(platform, invoice_id)
    except RecordInvalid as error:
        return _unreadable(InvoiceKey(platform, invoice_id), error, done)
    return _page(known, done=done, silent="silent" in request.args and silent)


def act(platform: str, invoice_id: str, verb: str) -> ResponseReturnValue:
    """Do what a form asks for, with its reason, through the journal."""
    key, desk, warning = InvoiceKey(platform, invoice_id), board().desk, ""
    if key not in desk.journal.known([key]):
        raise _unknown()
    why = asked()
    try:
        match verb:
            case "replay":
                warning = actions.replay(desk, key, why, recount="anew" in request.form)
            case "release":
                warning = actions.release(desk, key, why)
            case "hold":
                actions.park(desk, key, why)
            case "close":
                actions.close(desk, key, why)
    except actions.ActRefused as refusal:
        return _page(_history(platform, invoice_id), refusal=str(refusal)), 409
    log.info(f"ops_{verb}", by=why.by, invoice=invoice_id, platform=platform)
    silent = {"silent": "1"} if warning else {}
    named = {"platform": platform, "invoice_id": invoice_id}
    return redirect(url_for("ops.invoice", **named, done=verb, **silent), 303)  # type: ignore[arg-type]


def pressed(platform: str, invoice_id: str, **_: str) -> ResponseReturnValue:
    """Lead a browser that loads a press's address to the invoice: only the press does anything."""
    return redirect(url_for("ops.invoice", platform=platform, invoice_id=invoice_id), 303)


@limited
def recount(platform: str, invoice_id: str) -> ResponseReturnValue:
    """Count again what was billed, record and show the difference; nothing else changes."""
    known, why = _history(platform, invoice_id), asked()
    if not known.tallies:
        return _page(known, refusal="nothing of it was counted yet"), 409
    log.info("ops_recount", by=why.by, invoice=invoice_id, platform=platform)
    sources = closed_afterwards(open_sources(board().config(), board().measures))
    results = list(counted_again(known.tallies, sources))
    actions.recounted(board().desk, known.row.key, why, results)
    return _page(_history(platform, invoice_id), recounts=results)


@limited
def preview(platform: str, invoice_id: str) -> ResponseReturnValue:
    """Count and price the invoice as a run would; nothing is written."""
    known, config = _history(platform, invoice_id), board().config()
    log.info("ops_preview", by=person().name, invoice=invoice_id, platform=platform)
    try:
        service = open_service(config, board().desk.journal, board().measures)
        closed_afterwards(service.sources)
        if platform not in service.platforms:
            raise actions.ActRefused("its platform is not in the config any more")
        ports = service.ports(platform, lambda: False)
        found = previewed(InvoiceKey(platform, invoice_id), ports, config.rules)
    except ConfigError as error:
        return _page(known, refusal="; ".join(error.complaints)), 409
    except ReconcilerError as error:
        return _page(known, refusal=str(error)), 409
    if isinstance(found, Preview):
        lines = list(zip(found.before, found.after, strict=True))
        return _page(known, preview=found, preview_lines=lines)
    until = f" until {utc_text(found.until)}" if isinstance(found, Wait) else ""
    return _page(known, unbilled=f"{type(found).__name__}{until}: {found.reason}")


def _history(platform: str, invoice_id: str) -> History:
    history = board().desk.journal.history(InvoiceKey(platform, invoice_id))
    if history is None:
        raise _unknown()
    return history


def _unknown() -> Refused:
    return Refused(404, "unknown_invoice", "The journal does not know this invoice.")


def _unreadable(key: InvoiceKey, error: RecordInvalid, done: str) -> str:
    log.warning("ops_record_invalid", reason=str(error))
    broken = board().desk.journal.verify(key)
    return render_template(
        "ops/unreadable.html", key=key, told=str(error), broken=broken, done=done
    )


def _page(history: History, **shown: Any) -> str:
    desk, row = board().desk, history.row
    return render_template(
        "ops/invoice.html",
        view=view_of(history, desk.journal),
        cause=cause_of(row.reason) if row.state is State.HELD else None,
        now=desk.now(),
        **shown,
    )
