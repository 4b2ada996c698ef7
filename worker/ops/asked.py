"""Reading who asks for an act and why."""

from __future__ import annotations

from flask import request

from worker.actions import Asked
from worker.http_edge import Refused
from worker.ops.access import person
from worker.record import one_line

_MOST_REASON = 500


def asked() -> Asked:
    """Return who sent this form, and the reason it must give."""
    reason = one_line(request.form.get("reason", "")).strip()
    if not reason:
        raise Refused(400, "no_reason", "Write the reason: it goes into the record.")
    if len(reason) > _MOST_REASON:
        raise Refused(400, "long_reason", f"The reason may have {_MOST_REASON} characters at most.")
    return Asked(person().name, reason)
