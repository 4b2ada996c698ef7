"""The list of invoices: filtered, page by page, and as a file for spreadsheets or programs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from flask import Response, render_template, request, url_for
from flask.typing import ResponseReturnValue

from worker.causes import CAUSES
from worker.ops.board import board
from worker.ops.filters import Params, read_cursor, read_query
from worker.overviews import Filter, Listed, listed_json
from worker.ports import Journal
from worker.record import State
from worker.story import row_json

PAGE = 50

_EXPORT_PAGE = 500
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_COLUMNS = (
    *("platform", "id", "state", "cause", "reason", "subscription_id", "account_id"),
    *("components", "period_start", "period_end", "total", "currency"),
    *("first_seen_at", "updated_at", "due_at", "issued_at", "attempt", "claimed_by"),
)


def invoices() -> ResponseReturnValue:
    """Show a page of the invoices that the link's filter lets through."""
    query = read_query(request.args)
    page = board().desk.journal.search(query.wanted, PAGE, read_cursor(request.args))
    return render_template(
        "ops/invoices.html",
        query=query,
        page=page,
        now=board().desk.now(),
        causes=sorted(CAUSES, key=lambda cause: cause.title),
        platforms=list(board().config().platforms),
        states=list(State),
        more=page.after and link("ops.invoices", {**query.params, "after": str(page.after)}),
        csv_url=link("ops.export_csv", query.params),
        json_url=link("ops.export_json", query.params),
    )


def export_csv() -> ResponseReturnValue:
    """Send every invoice of the filter as CSV, a page at a time."""
    return _file(_csv(_all(board().desk.journal, _wanted())), "text/csv", "invoices.csv")


def export_json() -> ResponseReturnValue:
    """Send every invoice of the filter as JSON, a page at a time."""
    parts = _json(_all(board().desk.journal, _wanted()))
    return _file(parts, "application/json", "invoices.json")


def link(endpoint: str, params: Params) -> str:
    """Return the URL of a page with a filter."""
    return url_for(endpoint, **params)  # type: ignore[arg-type]


def cell(value: Any) -> str:
    """Write a value so that no spreadsheet takes it for a formula; numbers stay numbers."""
    text = "; ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    harmless = not text.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(text)
    return text if harmless else f"'{text}"


def _wanted() -> Filter:
    return read_query(request.args).wanted


def _all(journal: Journal, wanted: Filter) -> Iterator[dict[str, Any]]:
    after = None
    while page := journal.listed(wanted, _EXPORT_PAGE, after):
        yield from map(_row, page)
        after = page[-1].cursor


def _row(listed: Listed) -> dict[str, Any]:
    return row_json(listed.row) | listed_json(listed)


def _csv(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow(cell(row[name]) for name in _COLUMNS)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _json(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    between = "[\n"
    for row in rows:
        yield f"{between}{json.dumps(row)}"
        between = ",\n"
    yield "[]\n" if between == "[\n" else "\n]\n"


def _file(parts: Iterator[str], mimetype: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(parts, mimetype=mimetype, headers=headers)
