"""Logging in and out."""

from __future__ import annotations

from urllib.parse import urlsplit

import structlog
from flask import g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from worker.ops.access import access, person

log = structlog.get_logger("ops")


def login() -> ResponseReturnValue:
    """Ask for name and password, and begin a session with the right ones."""
    wanted = _own_page(request.values.get("next", ""))
    if request.method == "GET":
        return redirect(wanted) if g.ops_person else _form(wanted)
    name, password = request.form.get("name", ""), request.form.get("password", "")
    if not access().log_in(name, password):
        return _form(wanted, wrong=True), 401
    log.info("ops_login", by=person().name)
    return redirect(wanted, 303)


def logout() -> ResponseReturnValue:
    """End the session."""
    access().log_out()
    return redirect(url_for("ops.login"), 303)


def _form(wanted: str, *, wrong: bool = False) -> str:
    return render_template("ops/login.html", wanted=wanted, wrong=wrong)


def _own_page(wanted: str) -> str:
    """Return where to go after the login: a page of ours, whatever the link said."""
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return url_for("ops.overview")
    own = not parts.scheme and not parts.netloc and parts.path.startswith("/ops/")
    printable = wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    return wanted if own and printable else url_for("ops.overview")
