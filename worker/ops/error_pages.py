"""What is answered under /ops where no page of ours answers: a page for people, with our headers.

A reload after a press, a link that was cut, a defect of the program: a browser that is sent JSON
shows a person nothing to go on with.
"""

from __future__ import annotations

from flask import Response, current_app, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from worker.http_edge import Refused
from worker.ops.access import PAGES_POLICY, refused, with_headers

PREFIX = "/ops"

_TOLD = {
    404: "There is no such page.",
    405: "Nothing was done: this is only reached by a button. Go to a page, and press it there.",
    413: "The form is too large: nothing was done.",
}
_DEFECT = "A defect of the program. Its log says more."


def asks_for_page() -> bool:
    """Tell whether a person's browser wants a page of ours; scripts and programs want data."""
    by_script = request.headers.get("X-Requested-With") == "XMLHttpRequest"
    wants = "text/html" in request.headers.get("Accept", "") and not by_script
    return wants and _is_ours()


def error_page(error: HTTPException) -> ResponseReturnValue:
    """Say as a page what Flask says of a request that no page takes."""
    status, told = error.code or 500, str(error.description)
    return refused(Refused(status, error.name.lower(), _TOLD.get(status, told)))


def defect_page() -> ResponseReturnValue:
    """Say as a page that the program failed, without its insides."""
    return render_template("ops/failed.html", told=_DEFECT), 500


def closed(response: Response) -> Response:
    """Put our headers on an answer that came from none of our pages."""
    if not _is_ours() or "Content-Security-Policy" in response.headers:
        return response
    return with_headers(response, PAGES_POLICY)


def _is_ours() -> bool:
    return "ops" in current_app.blueprints and f"{request.path}/".startswith(f"{PREFIX}/")
