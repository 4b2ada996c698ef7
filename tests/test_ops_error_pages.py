"""Under /ops every answer carries our headers, and a person's browser is shown a page, not JSON."""

from __future__ import annotations

import pytest
from builders import INV, KEY, NOW, delivery
from flask import Flask
from flask.typing import ResponseReturnValue
from ops_builders import ORIGIN, Browser, journal_of, logged_in, ops_app
from werkzeug.test import TestResponse

ONE = f"/ops/invoices/billforward/{INV}"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SCRIPT = {**PAGE, "X-Requested-With": "XMLHttpRequest"}
PROGRAM = {"Accept": "*/*"}


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application with one invoice that is due."""
    app = ops_app(journal_url)
    journal_of(app).record_delivery(delivery(), NOW)
    return app


@pytest.fixture(name="browser")
def _browser(app: Flask) -> Browser:
    return logged_in(app)


def see_it_closed(answer: TestResponse) -> None:
    """See that the answer may not be framed, guessed, kept, or run a script."""
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("verb", ["replay", "release", "hold", "close", "recount", "preview"])
def test_a_press_that_is_loaded_again_leads_to_its_invoice(
    app: Flask, browser: Browser, verb: str
) -> None:
    """The address that a press leaves in the browser is a way back, and does nothing."""
    answer = browser.get(f"{ONE}/{verb}", headers=PAGE)
    assert (answer.status_code, answer.headers["Location"]) == (303, ONE)
    see_it_closed(answer)
    history = journal_of(app).history(KEY)
    assert history is not None
    assert len(history.entries) == 1
    assert app.test_client().get(f"{ONE}/{verb}").headers["Location"].startswith("/ops/login")


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/ops/nothing", 404, "no such page"),
        ("/ops/rq/nothing", 404, "no such page"),
        (f"{ONE}/nothing", 404, "no such page"),
        ("/ops//", 404, "no such page"),
        ("/ops/static/nothing.css", 404, "no such page"),
        ("/ops/pause", 405, "only reached by a button"),
        ("/ops/bulk/0/stop", 405, "only reached by a button"),
        ("/ops/rq/requeue/reconcile", 405, "only reached by a button"),
    ],
)
def test_what_is_no_page_is_answered_by_one(
    browser: Browser, path: str, status: int, told: str
) -> None:
    """A person is told what is wrong with a link to go on; programs and scripts get JSON."""
    answer = browser.get(path, headers=PAGE)
    assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert told in answer.text
    assert 'href="/ops/"' in answer.text
    answers = [answer, *(browser.get(path, headers=headers) for headers in (PROGRAM, SCRIPT))]
    for one in answers[1:]:
        assert (one.status_code, one.mimetype) == (status, "application/json")
    for one in answers:
        assert "default-src 'none'" in one.headers["Content-Security-Policy"]
        assert one.headers["X-Content-Type-Options"] == "nosniff"
        assert one.headers["X-Frame-Options"] == "DENY"
        assert "Cache-Control" in one.headers


def test_every_other_answer_there_is_closed_too(browser: Browser) -> None:
    """A path without its slash, a method that nothing takes, a form that is too large."""
    big = {"csrf": "x" * 100_000}
    answers = {
        308: browser.get("/ops", headers=PAGE),
        405: browser.client.delete("/ops/sources", headers=PAGE | ORIGIN),
        413: browser.client.post("/ops/pause", data=big, headers=PAGE | ORIGIN),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        see_it_closed(answer)
    assert "The form is too large: nothing was done." in answers[413].text


def test_a_defect_is_told_without_its_insides(app: Flask, browser: Browser) -> None:
    """A person goes on from a page, a program from JSON; the log alone says what it was."""

    def broken() -> ResponseReturnValue:
        raise RuntimeError("the insides")

    app.view_functions["ops.sources"] = broken
    for headers, kind in ((PAGE, "text/html"), (PROGRAM, "application/json")):
        answer = browser.get("/ops/sources", headers=headers)
        assert (answer.status_code, answer.mimetype) == (500, kind)
        assert "insides" not in answer.text
        see_it_closed(answer)
    assert "A defect of the program" in browser.get("/ops/sources", headers=PAGE).text


def test_elsewhere_everybody_gets_json(app: Flask, journal_url: str) -> None:
    """What platforms and probes reach is JSON for all, and so is /ops where the pages are off."""
    off = ops_app(journal_url, ops={"enabled": False})
    for one, path in ((app, "/nothing"), (app, "/opsy"), (off, "/ops/nothing"), (off, "/ops/")):
        answer = one.test_client().get(path, headers=PAGE)
        assert (answer.status_code, answer.mimetype) == (404, "application/json")
        assert "Content-Security-Policy" not in answer.headers
