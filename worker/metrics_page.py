"""GET /metrics: for who shows the token; without one configured, for this machine only."""

from __future__ import annotations

from flask import Blueprint, Request, Response, request
from prometheus_client import CONTENT_TYPE_LATEST

from worker.http_edge import Refused, is_from_here, same
from worker.metrics_scrape import Scrape


def metrics_blueprint(scrape: Scrape, token: str) -> Blueprint:
    """Make the page; an empty token opens it to this machine alone."""
    pages = Blueprint("metrics", __name__)

    @pages.get("/metrics")
    def metrics() -> Response:
        """Answer a scrape."""
        _authenticate(request, token)
        return Response(
            scrape.text(), content_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"}
        )

    return pages


def _authenticate(incoming: Request, token: str) -> None:
    if token:
        scheme, _, given = incoming.headers.get("Authorization", "").partition(" ")
        if not same(given.strip(), token) or scheme.lower() != "bearer":
            raise Refused(
                401, "unauthorized", "Send the header Authorization: Bearer …", challenge="Bearer"
            )
    elif not is_from_here(incoming):
        raise Refused(403, "forbidden", "Set the metrics token to read this from elsewhere.")
