"""Puts the operators' pages into the application: every page with its URL, behind one guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
from flask import Blueprint, Flask, render_template
from flask.typing import ResponseReturnValue

from worker import __version__
from worker.config import Config
from worker.errors import JournalUnavailable, QueueUnavailable, ReconcilerError
from worker.ops import bulk, invoice, lists, login, overview, shown, sources
from worker.ops.access import TOKEN_FIELD, Access
from worker.ops.board import Board
from worker.ops.compression import compressed
from worker.ops.error_pages import PREFIX, closed
from worker.ops.visits import open_visits, session_key

RQ_URL = "/ops/rq/"

_OPEN = ("ops.login", "ops.log_in", "ops.logout", "ops.static")
_ONE = "/invoices/<platform>/<invoice_id>"
_PRESSED = f"{_ONE}/<any(replay, release, hold, close, recount, preview):pressed>"
_RULES: tuple[tuple[str, str, Callable[..., ResponseReturnValue], str], ...] = (
    ("/", "overview", overview.overview, "GET"),
    ("/pause", "pause", overview.pause, "POST"),
    ("/resume", "resume", overview.resume, "POST"),
    ("/invoices", "invoices", lists.invoices, "GET"),
    ("/invoices.csv", "export_csv", lists.export_csv, "GET"),
    ("/invoices.json", "export_json", lists.export_json, "GET"),
    (_ONE, "invoice", invoice.invoice, "GET"),
    (f"{_ONE}/<any(replay, release, hold, close):verb>", "act", invoice.act, "POST"),
    (f"{_ONE}/recount", "recount", invoice.recount, "POST"),
    (f"{_ONE}/preview", "preview", invoice.preview, "POST"),
    (_PRESSED, "pressed", invoice.pressed, "GET"),
    ("/bulk", "confirm", bulk.confirm, "GET"),
    ("/bulk", "begin_bulk", bulk.begin, "POST"),
    ("/bulk/<bulk_id>", "bulk", bulk.show, "GET"),
    ("/bulk/<bulk_id>/stop", "stop_bulk", bulk.stop, "POST"),
    ("/bulk/<bulk_id>/continue", "continue_bulk", bulk.go_on, "POST"),
    ("/sources", "sources", sources.sources, "GET"),
    ("/sources", "ask_sources", sources.ask_sources, "POST"),
    ("/login", "login", login.login, "GET"),
    ("/login", "log_in", login.login, "POST"),
    ("/logout", "logout", login.logout, "POST"),
)

log = structlog.get_logger("ops")


def mount(app: Flask, config: Config, board: Board) -> None:
    """Add the pages under /ops, and the guard that other blueprints there share."""
    guard = Access(config.ops, open_visits(config))
    app.extensions["ops_access"] = guard
    app.extensions["ops_board"] = board
    app.extensions["ops_session_key"] = session_key(config)
    pages = Blueprint(
        "ops",
        __name__,
        url_prefix=PREFIX,
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    guard.protect(pages, open_to_all=_OPEN)
    for rule, endpoint, view, method in _RULES:
        pages.add_url_rule(rule, endpoint, view, methods=[method])
    pages.register_error_handler(ReconcilerError, _failed)
    pages.after_request(compressed)
    app.jinja_env.globals |= _words(guard)
    app.register_blueprint(pages)
    app.after_request(closed)


def _words(guard: Access) -> Mapping[str, object]:
    """Return what every template may use."""
    return {
        "access": guard,
        "token_field": TOKEN_FIELD,
        "moment": shown.moment,
        "length": shown.length,
        "rq_url": RQ_URL,
        "program_version": __version__,
    }


def _failed(error: ReconcilerError) -> ResponseReturnValue:
    """Say what did not answer; nothing of the press was lost without a word."""
    log.warning("ops_failed", reason=str(error))
    gone = isinstance(error, JournalUnavailable | QueueUnavailable)
    return render_template("ops/failed.html", told=str(error)), 503 if gone else 409
