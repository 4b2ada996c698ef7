"""rq-dashboard's pages at /ops/rq, behind the login of the operators' pages.

Of the package, its pages and their scripts are used. Its server code is not: it unpickles what it
shows, requeues on a GET, and asks nobody where a request comes from. What the pages show comes
from `rq_look`, the two actions they may take are `rq_requeue`'s, and the others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any, cast

import structlog
from flask import (
    Blueprint,
    Flask,
    Response,
    jsonify,
    redirect,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from redis import RedisError

from worker.actions import ActRefused
from worker.doorbell import without_markup
from worker.errors import JournalUnavailable, QueueUnavailable
from worker.http_edge import Refused
from worker.ops import access, rq_requeue
from worker.ops.access import Access, person
from worker.ops.board import board
from worker.ops.error_pages import asks_for_page
from worker.ops.rq_look import PLACES, QUEUED, Json, Look
from worker.ops.rq_pages import POLICY, favicon, name_scripts, rendered

URL = "/ops/rq"
MISSING = "rq-dashboard 0.9 is not installed: pip install 'invoice-reconciler[dashboard]'"

_JOBS = (
    f"/0/view/jobs/<queue_name>/<any({', '.join(PLACES)}):registry_name>"
    "/<int:per_page>/<any(asc, dsc):order>/<int(min=1, max=1000000):page>"
)
_SAFE = re.compile(r"[A-Za-z0-9_.:@ -]{1,200}")
_MOST_A_PAGE = 200
_WINDOW = 5  # pages that are linked on each side
_KEPT = "The journal is the truth, and the sweep rings again for what is due in it."

log = structlog.get_logger("ops")


def mount_rq(app: Flask, package: Path | None) -> None:
    """Add the pages of an installed rq-dashboard, or one that says how to install it.

    Comes after the operators' pages: it shares their guard.
    """
    pages = Blueprint(
        "rq_dashboard",  # the package's pages make their links with this name
        __name__,
        url_prefix=URL,
        template_folder=package and package / "templates",
        static_folder=package and package / "static",
        static_url_path="/static",
    )
    guard: Access = app.extensions["ops_access"]
    pages.after_request(name_scripts)  # before `protect`: the last one added runs first
    guard.protect(pages, policy=POLICY)
    pages.before_request(_demand_plain_names)
    pages.register_error_handler(Refused, _refused)
    for failure in (RedisError, QueueUnavailable, JournalUnavailable):
        pages.register_error_handler(failure, _failed)
    if package is None:
        pages.add_url_rule("/", "queues_overview", _missing)
    else:
        _add_rules(pages)
        app.url_build_error_handlers.append(favicon)
    app.add_url_rule("/rq", "rq", lambda: redirect(f"{URL}/"))
    app.add_url_rule("/rq/", "rq_slash", lambda: redirect(f"{URL}/"))
    app.register_blueprint(pages)


def _add_rules(pages: Blueprint) -> None:
    reads: tuple[tuple[str, str, Callable[..., ResponseReturnValue]], ...] = (
        ("/", "queues_overview", _queues_page),
        ("/0/", "queues_page", _queues_page),
        ("/0/view", "queues_view", _queues_page),
        ("/0/view/queues", "queues_view_page", _queues_page),
        ("/0/view/workers", "workers_overview", _workers_page),
        ("/0/view/jobs", "own_jobs_overview", _jobs_page),
        (_JOBS, "jobs_overview", _jobs_page),
        ("/0/view/job/<job_id>", "job_view", _job_page),
        ("/0/data/queues.json", "list_queues", _queues_data),
        ("/0/data/workers.json", "list_workers", _workers_data),
        (f"{_JOBS.replace('view', 'data')}.json", "list_jobs", _jobs_data),
        ("/0/data/job/<job_id>.json", "job_info", _job_data),
    )
    acts: tuple[tuple[str, str, Callable[..., ResponseReturnValue]], ...] = (
        ("/job/<job_id>/requeue", "requeue_job_view", _requeue),
        ("/requeue/<queue_name>", "requeue_all", _requeue_all),
        ("/job/<job_id>/delete", "delete_job_view", _refuse_delete),
        ("/queue/<queue_name>/<registry_name>/empty", "empty_queue", _refuse_empty),
        ("/queue/<queue_name>/compact", "compact_queue", _refuse_empty),
    )
    for rule, endpoint, view in reads:
        pages.add_url_rule(rule, endpoint, view, methods=["GET"])
    for rule, endpoint, view in acts:
        pages.add_url_rule(rule, endpoint, view, methods=["POST"])


def _queues_page() -> str:
    return rendered("queues")


def _workers_page() -> str:
    return rendered("workers")


def _jobs_page(queue_name: str = "", **asked: Any) -> str:
    place: Json = {"registry_name": QUEUED, "per_page": 8, "order": "asc", "page": 1} | asked
    look = _look()
    names = [{"name": name} for name in look.queues()]
    return rendered("jobs", queue={"name": queue_name or look.own_queue}, queues=names, **place)


def _job_page(job_id: str) -> str:
    _job(job_id)
    try:
        about = rq_requeue.invoice_of(board().desk, job_id)
    except ActRefused:
        about = None
    return rendered("job", about=about, id=job_id)


def _queues_data() -> ResponseReturnValue:
    look = _look()
    found = []
    for name in look.queues():
        counts = look.counts(name)
        data = {"name": name, "count": counts[QUEUED], "queued_url": _jobs_url(name, QUEUED)}
        for place in PLACES[1:]:
            data[f"{place}_job_registry_count"] = counts[place]
            data[f"{place}_url"] = _jobs_url(name, place)
        found.append(data)
    return _data({"queues": found})


def _workers_data() -> ResponseReturnValue:
    return _data({"workers": _look().workers()})


def _jobs_data(
    queue_name: str, registry_name: str, per_page: int, order: str, page: int
) -> ResponseReturnValue:
    size = min(max(per_page, 1), _MOST_A_PAGE)
    look = _look()
    some = slice((page - 1) * size, page * size)
    jobs = look.jobs(queue_name, registry_name, some, newest_first=order == "dsc")
    last = ceil(look.counts(queue_name)[registry_name] / size)

    def link(number: int) -> Json:
        url = _jobs_url(queue_name, registry_name, size, order, max(number, 1))
        return {"number": number, "url": url}

    pagination: Json = {
        "current_page": page,
        "num_pages": last,
        "pages_in_window": [
            link(number) for number in range(max(page - _WINDOW, 1), min(page + _WINDOW, last) + 1)
        ],
        "first_page": link(1),
        "last_page": link(last),
    }
    if page > 1:
        pagination["prev_page"] = link(page - 1)
    if page < last:
        pagination["next_page"] = link(page + 1)
    return _data({"jobs": jobs, "pagination": pagination})


def _job_data(job_id: str) -> ResponseReturnValue:
    return _data(_job(job_id) | {"result": None, "metadata": "not shown"})


def _requeue(job_id: str) -> ResponseReturnValue:
    try:
        told = rq_requeue.requeue(board().desk, job_id, person().name)
    except ActRefused as refusal:
        raise Refused(409, "nothing_changed", f"{job_id}: {refusal}.") from refusal
    log.info("ops_requeue", by=person().name, job=job_id)
    return _data({"status": "OK", "message": told})


def _requeue_all(queue_name: str) -> ResponseReturnValue:
    if queue_name != _look().own_queue:
        raise Refused(403, "foreign_queue", "This queue is not ours: nothing was requeued.")
    done = rq_requeue.requeue_all(board().desk, person().name)
    log.info("ops_requeue_all", by=person().name, done=done.done, left=done.left)
    return _data({"status": "OK", "message": str(done), "count": done.done, "left": done.left})


def _refuse_delete(**_: str) -> ResponseReturnValue:
    told = f"Jobs are not deleted here. {_KEPT} Hold or close the invoice on its own page."
    raise Refused(403, "not_here", told)


def _refuse_empty(**_: str) -> ResponseReturnValue:
    told = f"Queues are not emptied here. {_KEPT} To stop the work, pause it on the overview."
    raise Refused(403, "not_here", told)


def _missing() -> ResponseReturnValue:
    raise Refused(
        501, "no_dashboard", f"{MISSING}. The pages of the invoices can do all that it can."
    )


def _demand_plain_names() -> None:
    """Refuse names that could be anything but names: one stands in a script, unescaped."""
    given: Mapping[str, Any] = request.view_args or {}
    if request.endpoint == "rq_dashboard.static":
        return
    if any(isinstance(one, str) and not _SAFE.fullmatch(one) for one in given.values()):
        raise Refused(404, "no_such_name", "No queue or job that is shown here has this name.")


def _refused(refusal: Refused) -> ResponseReturnValue:
    """Answer a page as a page, and a page's script as data."""
    if asks_for_page():
        return access.refused(refusal)
    log.warning("ops_refused", status=refusal.status, error=refusal.error, path=request.path[:200])
    told = {"status": "ERROR", "error": refusal.error, "message": refusal.message}
    answer = _data(told)
    if refusal.challenge:
        answer.headers["WWW-Authenticate"] = refusal.challenge
    return answer, refusal.status


def _failed(error: Exception) -> ResponseReturnValue:
    """Say what did not answer."""
    desk = board().desk
    named = (
        str(error)
        if not isinstance(error, RedisError)
        else (f"Redis at {desk.doorbell.place}: {type(error).__name__}")
    )
    return _refused(Refused(503, "no_answer", f"{named}. Nothing was changed; try again later."))


def _data(told: Json) -> Response:
    """Answer as JSON without markup: whatever stands in Redis, from whomever, is plain text."""
    answer = jsonify(told)
    answer.set_data(without_markup(answer.get_data(as_text=True)))
    return answer


def _look() -> Look:
    doorbell = board().desk.doorbell
    return Look(doorbell.redis, doorbell.queue.name)


def _job(job_id: str) -> Json:
    found = _look().job(job_id)
    if found is None:
        raise Refused(404, "no_such_job", "Redis has no job by this id, or not any more.")
    return found


def _jobs_url(queue: str, place: str, size: int = 8, order: str = "asc", page: int = 1) -> str:
    named = {"queue_name": queue, "registry_name": place, "per_page": size, "order": order}
    return url_for(".jobs_overview", page=page, **cast(Json, named))
