"""A REST API over one kept connection pool: what was answered, or one clear error.

Tells apart what a caller must tell apart: the platform said no, it is not there, or a write's
outcome is unknown. Numbers are read as Decimal. No text it raises or tells holds a header, a
query string or a credential.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from html import escape
from typing import Any, Literal

import requests
from requests.adapters import HTTPAdapter
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_before_delay,
)
from tenacity.wait import wait_random_exponential
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from worker.errors import (
    CredentialsRefused,
    OutcomeUnknown,
    PlatformRefused,
    PlatformUnavailable,
    TransientError,
)
from worker.writes import Exchange

_MOST_ATTEMPTS = 4
_TOO_SOON = (requests.codes.request_timeout, 425)  # the 4xx that say: send it again
_MOST_ERROR_TEXT = 300
_MOST_TOLD = 400  # characters of a request or an answer

Heard = Callable[[Exchange], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestLimits:
    """How long to wait for a platform, in seconds."""

    connect: float
    read: float
    total: float  # over all attempts at one call


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What a platform's error body says."""

    type: str
    message: str
    about: Literal["request", "credentials", "absence", "platform"]  # what is at fault


class NotFound(PlatformRefused):
    """The platform knows nothing at this address."""


class RestClient:
    """Calls to one base URL with one bearer token; safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        limits: RestLimits,
        connections: int,
        error_of: Callable[[Any], ErrorBody | None],
        sleep: Callable[[float], None],
    ) -> None:
        """Make a client; `error_of` finds an error in a parsed body, whatever its status."""
        self.calls = 0
        self.date: datetime | None = None  # the platform's time, by its last answer
        self.told: Callable[[str, float], None] = _told_nobody
        self._echo = _written(token)
        self._base_url = base_url.rstrip("/")
        self._limits = limits
        self._error_of = error_of
        self._sleep = sleep
        self._counting = threading.Lock()
        self._session = requests.Session()
        # An auth object, because a bare header would give way to a .netrc entry for the host.
        self._session.auth = _Bearer(token)
        self._session.headers["Accept"] = "application/json"
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
        self._session.mount(self._base_url, adapter)

    def get(self, path: str, query: Mapping[str, str | int] | None = None) -> Any:
        """Read; repeated while the platform is not there, within the total limit."""
        return self._repeated(lambda: self._call("GET", path, query=query))

    def get_once(self, path: str) -> Any:
        """GET exactly once, where reading has an effect."""
        return self._call("GET", path)

    def put_value(self, path: str, body: Mapping[str, Any], heard: Heard | None = None) -> Any:
        """POST an absolute value: repeated after a definite "not now", within the total limit.

        Not after a lost answer, though twice would be the same as once: the first attempt may be
        applied much later, when the invoice is issued, so the caller must know of it. `heard` is
        told of each attempt that was sent, whatever came of it.
        """
        return self._repeated(lambda: self._call("POST", path, body=body, heard=heard))

    def post_once(self, path: str, body: Mapping[str, Any], heard: Heard | None = None) -> Any:
        """POST exactly once; OutcomeUnknown when no answer came. `heard` as of `put_value`."""
        return self._call("POST", path, body=body, heard=heard)

    def _repeated(self, call: Callable[[], Any]) -> Any:
        retrying = Retrying(
            stop=stop_after_attempt(_MOST_ATTEMPTS) | stop_before_delay(self._limits.total),
            wait=_wait,
            retry=retry_if_exception_type(PlatformUnavailable)
            & retry_if_not_exception_type(CredentialsRefused),
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(call)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        heard: Heard | None = None,
    ) -> Any:
        what = f"{method} {path}"
        no_answer = PlatformUnavailable if method == "GET" else OutcomeUnknown
        with self._counting:
            self.calls += 1
        began, code = time.monotonic(), "none"
        try:
            response = self._session.request(
                method,
                self._base_url + path,
                params=query,
                json=body,
                timeout=(self._limits.connect, self._limits.read),
                allow_redirects=False,
            )
            code = str(response.status_code)
            self.date = _moment(response.headers.get("Date"))
        except requests.RequestException as error:
            unsent = _never_sent(error)
            if heard is not None and not unsent:
                heard(Exchange(self._request_text(what, body), _plain(error)))
            kind = PlatformUnavailable if unsent else no_answer
            raise kind(f"{what}: {_plain(error)}") from error
        finally:
            self.told(code, time.monotonic() - began)
        if heard is not None:
            answer = self._beginning(code, response.content)
            heard(Exchange(self._request_text(what, body), answer))
        return self._answer(what, response, no_answer)

    def _answer(
        self, what: str, response: requests.Response, no_answer: type[TransientError]
    ) -> Any:
        status = response.status_code
        told = f"{what}: {status}"
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if status == requests.codes.too_many_requests:
            raise PlatformUnavailable(f"{told} too many requests", retry_after=retry_after)
        payload = _parsed(response.content)
        error = self._error_of(payload) if payload is not _UNREADABLE else None
        about = _about(status)
        if error is not None and about != "platform":  # a 5xx never says that nothing was done
            about = error.about
        if error is not None:
            told = f"{told} {self._shown(error.type)}: {self._shown(error.message)}"
        if about == "credentials":
            raise CredentialsRefused(f"{what}: {status}, the platform refused our token")
        if about == "platform":
            raise no_answer(told, retry_after=retry_after)
        if about == "absence":
            raise NotFound(told)
        if about == "request":
            raise PlatformRefused(told)
        if status >= requests.codes.multiple_choices:
            raise PlatformRefused(f"{told} is a redirect; is base_url right?")
        if payload is _UNREADABLE:
            raise no_answer(f"{told}: {_described(response)}")
        return payload

    def _shown(self, text: str) -> str:
        """Make one line of the platform's text, without our token should it echo it."""
        text = self._echo.sub("***", text)
        printable = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(printable.split())[:_MOST_ERROR_TEXT]

    def _request_text(self, what: str, body: Mapping[str, Any] | None) -> str:
        return self._beginning(what, json.dumps(body).encode())

    def _beginning(self, head: str, content: bytes) -> str:
        """Tell as much of a body as a person reads, without our token should it be echoed."""
        body = content.replace(b"\0", b"").decode(errors="replace")  # NUL: binary, or UTF-16
        # Masked before it is cut, which might leave a part of the token.
        text = " ".join(self._echo.sub("***", f"{head} {body}").split())
        return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}… ({len(content)} bytes)"


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _written(token: str) -> re.Pattern[str]:
    """Match a token however JSON, a URL or HTML may write it; an empty one nowhere."""
    ways = (
        rf"(?:\\{{0,4}}{re.escape(c)}|{re.escape(escape(c))}"
        rf"|(?i:\\{{1,4}}u00{ord(c):02x}|%(?:25)?{ord(c):02x}|&#0*{ord(c)};|&#x0*{ord(c):x};))"
        for c in token
    )
    return re.compile("".join(ways) or "(?!)")


def _told_nobody(_code: str, _seconds: float) -> None:
    """Stand in until somebody wants to be told of requests."""


_UNREADABLE = object()
_BACKOFF = wait_random_exponential(multiplier=0.2, max=5)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, TransientError) else None
    return max(_BACKOFF(state), asked.total_seconds() if asked else 0.0)


def _never_sent(error: requests.RequestException) -> bool:
    """Tell whether the request certainly did not reach the platform."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    cause: BaseException | None = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)


def _plain(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if _never_sent(error):
        return "no connection"
    return f"the connection broke ({type(error).__name__})"


def _retry_after(text: str | None) -> timedelta | None:
    """Read the header, in seconds or as an HTTP date; None where it says nothing usable."""
    if text is None:
        return None
    try:
        return timedelta(seconds=max(0, int(text)))
    except OverflowError:
        return timedelta.max
    except ValueError:
        pass
    moment = _moment(text)
    return None if moment is None else max(timedelta(0), moment - datetime.now(UTC))


def _moment(text: str | None) -> datetime | None:
    """Read an HTTP date; None where it is none."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _about(status: int) -> Literal["request", "credentials", "absence", "platform"] | None:
    """Tell from the status alone what is at fault; None: nothing."""
    if status >= requests.codes.internal_server_error or status in _TOO_SOON:
        return "platform"
    if status in (requests.codes.unauthorized, requests.codes.forbidden):
        return "credentials"
    if status == requests.codes.not_found:
        return "absence"
    return "request" if status >= requests.codes.bad_request else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, ArithmeticError, RecursionError):  # Decimal refuses 1e9999999999999999999
        return _UNREADABLE


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _described(response: requests.Response) -> str:
    if not response.content:
        return "an empty answer"
    kind = response.headers.get("Content-Type", "unnamed content").split(";")[0]
    return f"an answer that is not JSON but {kind}"
