"""Every page that operators see of a run, read as a browser would."""

from __future__ import annotations

import re
from collections.abc import Iterator

import requests
from secrets_run import FAULTS, OPERATOR, SECRETS, Run, invoice_id

_TOKEN = re.compile(r'name="csrf" value="([^"]+)"')
_JOB = re.compile(r'"id": ?"([^"]+)"')


def look_at_pages(run: Run) -> None:
    """Log in, open all pages, press what only counts, and keep every answer."""
    base = f"http://127.0.0.1:{run.port}"
    with requests.Session() as browser:
        browser.trust_env = False
        wrong = {"name": OPERATOR, "password": SECRETS["operator's password"] + "x"}
        for form in (wrong, wrong | {"password": SECRETS["operator's password"]}):
            _press(run, browser, base, "/ops/login", "/ops/login", **form)
        for path in _paths(run, browser, base):
            _keep(run, path, browser.get(base + path, timeout=30))
        for number in (1, 4, 8, 9):  # a source that crashes, errors that show the token, none
            one = f"/ops/invoices/billforward/{invoice_id(number)}"
            for verb in ("preview", "recount"):
                _press(run, browser, base, one, f"{one}/{verb}", reason="to see it")
        _press(run, browser, base, "/ops/sources", "/ops/sources")


def _paths(run: Run, browser: requests.Session, base: str) -> Iterator[str]:
    yield from ("/ops/", "/ops/sources", "/metrics")
    yield from (f"/ops/invoices{end}" for end in ("", ".csv", ".json"))
    yield from (f"/ops/invoices/billforward/{invoice_id(number)}" for number in FAULTS)
    yield from ("/ops/rq/", "/ops/rq/0/view/workers", "/ops/rq/0/data/queues.json")
    jobs = "/ops/rq/0/data/jobs/reconcile/failed/20/asc/1.json"
    yield jobs
    for job in _JOB.findall(browser.get(base + jobs, timeout=30).text):
        yield f"/ops/rq/0/view/job/{job}"
        yield f"/ops/rq/0/data/job/{job}.json"


def _press(
    run: Run, browser: requests.Session, base: str, page: str, path: str, **form: str
) -> None:
    shown = _TOKEN.search(browser.get(base + page, timeout=30).text)
    assert shown, f"{page} has no form"
    answer = browser.post(
        base + path,
        data={"csrf": shown[1], **form},
        headers={"Origin": base},
        timeout=30,
        allow_redirects=False,
    )
    _keep(run, f"{path} pressed, {answer.status_code}", answer)


def _keep(run: Run, name: str, answer: requests.Response) -> None:
    text = f"{answer.status_code} {answer.headers}\n".encode() + answer.content
    run.traces[f"page {name}"] = text
