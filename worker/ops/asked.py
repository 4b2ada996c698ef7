"""Reading who asks for an act and why."""

from __future__ import annotations

from flask import request

from worker.actions import Asked, reason_of
from worker.http_edge import Refused
from worker.ops.access import person


def asked() -> Asked:
    """Return who sent this form, and the reason it must give."""
    try:
        return Asked(person().name, reason_of(request.form.get("reason", "")))
    except ValueError as error:
        raise Refused(400, "bad_reason", str(error)) from error
