"""Who may see the operators' pages and who may act; the same guard for every blueprint there.

A person is who the session's cookie, basic authentication or a trusted proxy says. Every request
that is not a plain read needs the role of operator, comes from a page of ours, and carries the
page's token. Nothing is kept here but how often logins failed of late.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from flask import Blueprint, Response, current_app, g, redirect, render_template, request
from flask.typing import ResponseReturnValue

from worker.http_edge import Refused, asked_host, client_address, is_from_here
from worker.ops.throttle import Throttle
from worker.ops.visits import LASTS, Visit, Visits, digest
from worker.sections import OpsSection, Role, is_loopback

PAGES_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
COOKIE = "reconciler_ops"
TOKEN_FIELD = "csrf"  # noqa: S105  # the name of a form's field
TOKEN_HEADER = "X-CSRF-Token"  # noqa: S105
LOGIN_URL = "/ops/login"

_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_READS = ("GET", "HEAD", "OPTIONS")
_MOST_PATH = 200
_MOST_BYTES = 64 * 1024

log = structlog.get_logger("ops")


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, as it goes into the record, and what they may do."""

    name: str
    role: Role

    @property
    def may_act(self) -> bool:
        """Tell whether they may do more than look."""
        return self.role is Role.OPERATOR


class Access:
    """Decides for each request who asks and whether they may."""

    def __init__(self, ops: OpsSection, visits: Visits) -> None:
        self.throttle = Throttle(lambda address: is_loopback(address) or ops.trusts(address))
        self._ops = ops
        self._visits = visits

    def protect(
        self,
        blueprint: Blueprint,
        *,
        open_to_all: tuple[str, ...] = (),
        policy: str = PAGES_POLICY,
    ) -> None:
        """Guard every route of a blueprint, and put our headers on its answers.

        `open_to_all` are endpoints that need no login.
        """

        def guard() -> ResponseReturnValue | None:
            request.max_content_length = _MOST_BYTES
            g.ops_visit = self._visits.read(request.cookies.get(COOKIE, "")) or Visit()
            g.ops_person = self._person(g.ops_visit)
            reads = request.method in _READS
            if not reads:
                _demand_own_origin()
                self.demand_token()
            if request.endpoint in open_to_all:
                return None
            if g.ops_person is None:
                return self._ask_to_log_in()
            if not reads and not g.ops_person.may_act:
                raise Refused(403, "readers_only_look", "Your role is reader: you may only look.")
            return None

        def finish(response: Response) -> Response:
            self._keep_visit(response)
            return with_headers(response, policy)

        blueprint.before_request(guard)
        blueprint.after_request(finish)
        blueprint.register_error_handler(Refused, refused)

    def log_in(self, name: str, password: str) -> bool:
        """Check a password; True: the visit is this person's from now on."""
        if not self._knows(name, password):
            return False
        g.ops_visit = Visit(name=name)  # a new one: nobody else can know its id
        g.ops_person = self._named(name)
        return True

    def log_out(self) -> None:
        """End the session of this browser."""
        g.ops_visit = Visit()
        g.ops_person = None

    @property
    def has_passwords(self) -> bool:
        """Tell whether there is anybody to log in with a password."""
        return any(user.password for user in self._ops.users.values())

    def token(self) -> str:
        """Return the token that this visit's forms carry."""
        return self._visits.token(g.ops_visit, _name_of(g.ops_person))

    def demand_token(self) -> None:
        """Refuse a request without the token of this visit, in the form or in its header."""
        given = request.form.get(TOKEN_FIELD) or request.headers.get(TOKEN_HEADER, "")
        if not self._visits.is_token(given, g.ops_visit, _name_of(g.ops_person)):
            told = (
                "The form is not of this session, or is too old: load the page again. If this"
                " happens each time, the browser keeps no cookie: use https, or localhost."
            )
            raise Refused(403, "csrf", told)

    def _person(self, visit: Visit) -> Person | None:
        """Say who asks: by the proxy, the session, basic authentication, or on this machine."""
        if not self._ops.has_login:
            return _person_of_this_machine()
        if (person := self._proxied()) is not None:
            return person
        return self._named(visit.name) if visit.name else self._basic()

    def _proxied(self) -> Person | None:
        """Believe the proxy's header, but only from a proxy's address."""
        header = self._ops.proxy_user_header
        given = request.headers.get(header) if header else None
        if given is None or not self._ops.trusts(request.remote_addr or ""):
            return None
        if not _NAME.fullmatch(given):
            raise Refused(403, "no_name", "The proxy's header does not name one person.")
        if not self._ops.proxy_role_header:
            return self._named(given) or Person(given, Role.READER)
        try:
            return Person(given, Role(request.headers.get(self._ops.proxy_role_header, "")))
        except ValueError:
            told = f"{self._ops.proxy_role_header} must say reader or operator."
            raise Refused(403, "no_role", told) from None

    def _basic(self) -> Person | None:
        given = request.authorization
        if given is None or given.type != "basic":
            return None
        name = given.username or ""
        return self._named(name) if self._knows(name, given.password or "") else None

    def _named(self, name: str) -> Person | None:
        user = self._ops.users.get(name)
        return Person(name, user.role) if user else None

    def _knows(self, name: str, password: str) -> bool:
        """Check a password; neither its length nor an unknown name changes how long it takes."""
        address = client_address(request, self._ops.trusts)
        shown = name if _NAME.fullmatch(name) else ""  # what is no name may be a mistyped password
        if self.throttle.is_closed(address, shown):
            log.warning("ops_login_throttled", name=shown, address=address)
            raise Refused(429, "too_many_logins", "Too many failed logins. Wait five minutes.")
        user = self._ops.users.get(name)
        expected = user.password if user else ""
        knows = hmac.compare_digest(digest(password), digest(expected)) and bool(expected)
        if knows:
            self.throttle.succeeded(address, shown)
        else:
            self.throttle.failed(address, shown)
            log.warning("ops_login_failed", name=shown, address=address)
        return knows

    def _ask_to_log_in(self) -> ResponseReturnValue:
        """Show a browser the login page; tell programs how to authenticate."""
        if request.authorization is None and self.has_passwords and request.method in _READS:
            return redirect(f"{LOGIN_URL}?next={quote(request.full_path.rstrip('?'), safe='/')}")
        challenge = 'Basic realm="operators"' if self.has_passwords else ""
        raise Refused(401, "unauthorized", "Log in first.", challenge=challenge)

    def _keep_visit(self, response: Response) -> None:
        """Send the cookie where the browser has another one, or none."""
        visit: Visit | None = g.get("ops_visit")
        carried = self._visits.read(request.cookies.get(COOKIE, ""))
        if visit is None or response.mimetype != "text/html" or visit == carried:
            return
        response.set_cookie(
            COOKIE,
            self._visits.written(visit),
            max_age=LASTS,
            path="/ops",
            secure=request.is_secure or not is_loopback(asked_host(request)),
            httponly=True,
            samesite="Strict",
        )


def access() -> Access:
    """Return the guard of this application."""
    found: Any = current_app.extensions["ops_access"]
    assert isinstance(found, Access)  # noqa: S101
    return found


def person() -> Person:
    """Return who sent this request; only behind the guard."""
    found: Any = g.ops_person
    assert isinstance(found, Person)  # noqa: S101
    return found


def refused(refusal: Refused) -> ResponseReturnValue:
    """Answer a refusal as a page."""
    path = request.path[:_MOST_PATH]
    log.warning("ops_refused", status=refusal.status, error=refusal.error, path=path)
    page = render_template("ops/refused.html", refusal=refusal)
    answer = current_app.make_response((page, refusal.status))
    if refusal.challenge:
        answer.headers["WWW-Authenticate"] = refusal.challenge
    return answer


def with_headers(response: Response, policy: str) -> Response:
    """Put on an answer what keeps browsers from running, framing, guessing or keeping it."""
    response.headers["Content-Security-Policy"] = policy
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    # with no-referrer, browsers would hide the origin of our own forms
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    kept = "private, max-age=86400" if (request.endpoint or "").endswith(".static") else "no-store"
    response.headers["Cache-Control"] = kept
    return response


def _person_of_this_machine() -> Person:
    """Without a login only a browser on this very machine may ask, and not through a proxy."""
    if not is_from_here(request):
        told = "No login is configured: these pages are for this machine's own browser only."
        raise Refused(403, "no_login", told)
    return Person("local", Role.OPERATOR)


def _demand_own_origin() -> None:
    """Refuse what comes from another site's page, or from none; a browser says where it is from."""
    site, origin = (request.headers.get(name) for name in ("Sec-Fetch-Site", "Origin"))
    if site is not None:
        own = site == "same-origin"
    else:
        own = origin is not None and _host_in(origin) == request.host.lower()
    if not own:
        raise Refused(403, "cross_site", "This came from another site, or from no page at all.")


def _host_in(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name_of(person: Person | None) -> str:
    return person.name if person else ""
