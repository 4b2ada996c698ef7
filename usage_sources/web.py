"""One JSON API: bounded in time and size, errors sorted by who must mend them."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

import requests
from urllib3.exceptions import TimeoutError as ConnectionTooSlow

from worker.errors import SourceInvalid, SourceUnavailable
from worker.overrides import variable

Query = Sequence[tuple[str, str]]
_Outcomes = SimpleQueue["_Response | Exception"]

_MOST_BYTES = 16 * 1024 * 1024  # of an answer, also after unpacking it
_LATER = (408, 425, 429)  # besides every 5xx
_CREDENTIALS = (401, 403)
_LONGEST_WAIT = timedelta(days=1)
_LONGEST_SHOWN = 200


class Deadline:
    """The moment by which a whole count must be done, however many requests it takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; 0: it has passed."""
        return max(0.0, self._at - monotonic())


class Refused(SourceInvalid):
    """The API understood the request and said no; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotThere(Refused):
    """The API has nothing at this address."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Credentials:
    """What proves who asks; `secrets` never show in our texts, also when the API repeats them."""

    headers: Mapping[str, str]
    secrets: Sequence[str] = ()
    set_by: tuple[str, str] = ("", "")  # the source's name, if it has one, and its setting


class WebApi:
    """A base URL and what proves who asks; keeps its connections between calls.

    Numbers with a point are read as Decimal. A name that stands twice in one object is refused,
    for one would be lost. No redirect is followed, and no proxy, cookie or .netrc is used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        kind: str,
        timeout_seconds: float,
        credentials: Credentials,
        ca_file: str | None = None,
    ) -> None:
        self._base_url = check_base_url(base_url)
        self.place = f"{kind} {self._base_url}"
        self._timeout = timeout_seconds
        self._secrets = _spellings(credentials.secrets)
        mend = f"; put the right one into {variable('usage_sources', *credentials.set_by)}"
        self._mend = mend if credentials.set_by[0] else ""
        self._session = requests.Session()
        self._session.trust_env = False  # no .netrc, no proxy that nobody configured here
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.verify = ca_file or True
        asking = {"Accept": "application/json", "Accept-Encoding": "gzip"}
        self._session.headers.update({**asking, **credentials.headers})

    def url(self, path: str, query: Query = ()) -> str:
        """Return the address of a path that is percent-encoded; the query is encoded here."""
        try:
            text = urlencode(list(query), quote_via=quote, safe="")
        except UnicodeEncodeError:
            raise SourceInvalid(f"{self.place}: a parameter is not Unicode text") from None
        return f"{self._base_url}{path}{'?' if text else ''}{text}"

    def next_url(self, url: str, link: str) -> str:
        """Return where a link of an answer leads; raise SourceInvalid where that is elsewhere."""
        try:
            target = urljoin(url, link)
            same = _is_plain(link) and _origin(target) == _origin(self._base_url)
        except ValueError:
            same = False
        if not same:
            raise SourceInvalid(f"{self.place}: it links to another place than its own origin")
        return target.partition("#")[0]

    def get(self, path: str, query: Query = (), *, deadline: Deadline | None = None) -> Any:
        """Return the parsed JSON; raise SourceUnavailable, NotThere, Refused or SourceInvalid."""
        return self.get_url(self.url(path, query), deadline=deadline)

    def get_url(self, url: str, *, deadline: Deadline | None = None) -> Any:
        """Do as `get` does, with an address made by `url` or `next_url`."""
        return self._ask("GET", url, None, deadline)

    def post(self, path: str, body: Any, *, deadline: Deadline | None = None) -> Any:
        """Do as `get` does, with a JSON body; only for questions, which change nothing there."""
        return self._ask("POST", self.url(path), body, deadline)

    def close(self) -> None:
        """Give up the connections."""
        self._session.close()

    def _ask(self, method: str, url: str, body: Any, deadline: Deadline | None) -> Any:
        deadline = deadline or Deadline(self._timeout)
        what = f"{self.place}: {method} {self._shown(urlsplit(url).path or '/')}"
        outcome = self._outcome(_Request(method, url, body), deadline)
        if outcome is None or isinstance(outcome, requests.Timeout | ConnectionTooSlow):
            raise SourceUnavailable(f"{what}: no answer within {deadline.seconds:g} s")
        if isinstance(outcome, _Unreadable):
            raise SourceInvalid(f"{what}: {outcome}")
        if isinstance(outcome, ValueError):
            raise SourceInvalid(f"{what}: cannot be sent ({type(outcome).__name__})")
        if isinstance(outcome, Exception):
            raise SourceUnavailable(f"{what}: no answer ({type(outcome).__name__})")
        return self._answer(what, outcome)

    def _outcome(self, request: _Request, deadline: Deadline) -> _Response | Exception | None:
        """Send it; return what came of it, or None where nothing did in time.

        A socket's timeout starts anew with each byte, so that only another thread can keep time.
        One that is given up ends with its connection.
        """
        if not deadline.left():
            return None
        outcomes: _Outcomes = SimpleQueue()
        Thread(target=self._send, args=(request, deadline, outcomes), daemon=True).start()
        try:
            return outcomes.get(timeout=deadline.left())
        except Empty:
            return None

    def _send(self, request: _Request, deadline: Deadline, outcomes: _Outcomes) -> None:
        try:
            with self._session.request(
                request.method,
                request.url,
                json=request.body,
                timeout=max(deadline.left(), 0.001),
                allow_redirects=False,
                stream=True,
            ) as response:
                status, headers = response.status_code, response.headers
                try:
                    content = _content(response, deadline)
                except _Unreadable:
                    if status == requests.codes.ok:
                        raise
                    content = b""  # what the status says is enough
            outcomes.put(_Response(status, headers, content))
        except Exception as error:  # noqa: BLE001 - it is told where the question was asked
            outcomes.put(error)

    def _answer(self, what: str, response: _Response) -> Any:
        status = response.status
        if status in _CREDENTIALS:
            raise SourceUnavailable(f"{what}: {status}, it refused our credentials{self._mend}")
        if status == requests.codes.ok and not response.content:
            raise SourceUnavailable(f"{what}: an empty answer")
        if status == requests.codes.ok:
            return self._parsed(what, response.content)
        said = f"{what}: {status} {self._shown(response.content.decode(errors='replace'))}".rstrip()
        if status in _LATER or status >= requests.codes.internal_server_error:
            raise SourceUnavailable(said, retry_after=_retry_after(response.headers))
        if status == requests.codes.not_found:
            raise NotThere(said, status)
        if status >= requests.codes.bad_request:
            raise Refused(said, status)
        if status >= requests.codes.multiple_choices:
            told = f"{status}, a redirect, is not followed; is base_url right?"
            raise SourceInvalid(f"{what}: {told}")
        raise SourceInvalid(f"{what}: {status} is no answer to a question")

    def _parsed(self, what: str, content: bytes) -> Any:
        try:
            return json.loads(
                content, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_once_each
            )
        except _Twice as error:
            told = f'the answer has "{self._shown(str(error))}" twice in one object'
            raise SourceInvalid(f"{what}: {told}, and one of the two would be lost") from None
        except (ValueError, ArithmeticError, RecursionError):
            told = "the answer is not JSON, or not of finite numbers"
            raise SourceInvalid(f"{what}: {told}") from None

    def _shown(self, text: str) -> str:
        """Make one short line of what it said, without our secrets should it echo them."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        printable = "".join(c if c.isprintable() else " " for c in text[: 20 * _LONGEST_SHOWN])
        line = " ".join(printable.split())
        return line if len(line) <= _LONGEST_SHOWN else f"{line[: _LONGEST_SHOWN - 3]}..."


class _Request(NamedTuple):
    method: str
    url: str
    body: Any


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class _Unreadable(Exception):
    """An answer's bytes cannot be used; the text says why."""


class _Twice(ValueError):
    """One object has a name, which is the text, more than once."""


def check_base_url(url: str) -> str:
    """Return the URL without a slash at its end; raise ValueError naming the setting."""
    must = "base_url must be http(s)://host/path, without a user, a password or a question mark"
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        raise ValueError(must) from None
    if wrong or "@" in parts.netloc or "?" in url or "#" in url or not _is_plain(url):
        raise ValueError(must)
    return url.rstrip("/")


def check_header(setting: str, value: str) -> None:
    """Raise ValueError, without the value, unless an HTTP header can carry it as it is."""
    if not _is_plain(value, besides=" ") or value != value.strip():
        must = "may hold printable ASCII characters only, and no space at either end"
        raise ValueError(f"{setting} {must}")


def path_segment(value: str) -> str:
    """Encode a value as one segment of a path; raise ValueError where it could be no segment.

    "." and ".." cannot: clients and servers take them out, however they are encoded.
    """
    if value in ("", ".", ".."):
        raise ValueError("cannot stand in the path of a URL")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise ValueError("is not Unicode text") from None


def _is_plain(text: str, besides: str = "") -> bool:
    return all("!" <= c <= "~" or c in besides for c in text)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    if "@" in parts.netloc or not _is_plain(url):
        raise ValueError("is no address of the same origin")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname, port


def _spellings(secrets: Sequence[str]) -> list[str]:
    """Return the secrets as they are, and as a URL or JSON would write them; longest first."""
    spelt = set()
    for secret in filter(None, secrets):
        in_json = {json.dumps(secret, ensure_ascii=each)[1:-1] for each in (True, False)}
        spelt |= {secret, quote(secret), quote(secret, safe=""), *in_json}
        spelt |= {each.replace("/", "\\/") for each in in_json}
    return sorted(spelt, key=len, reverse=True)


def _content(response: requests.Response, deadline: Deadline) -> bytes:
    """Read the body up to the deadline and a bound on its size, and unpack it within the same."""
    content = bytearray()
    while part := response.raw.read1(65536, decode_content=False):
        content += part
        if len(content) > _MOST_BYTES:
            raise _Unreadable(f"the answer is larger than {_MOST_BYTES} bytes")
        if not deadline.left():
            raise requests.Timeout
    return _unpacked(bytes(content), response.headers.get("Content-Encoding", "").strip().lower())


def _unpacked(content: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "x-gzip"):
        raise _Unreadable("the answer is packed in a way that was not asked for")
    unpacking = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacking.decompress(content, _MOST_BYTES + 1)
    except zlib.error:
        raise _Unreadable("the answer is not the gzip that it says it is") from None
    if len(unpacked) > _MOST_BYTES:
        raise _Unreadable(f"the answer is larger than {_MOST_BYTES} bytes, unpacked")
    if not unpacking.eof or unpacking.unused_data:
        raise _Unreadable("the answer is not one whole gzip")
    return unpacked


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Read the header, in seconds or as a date; None where it says nothing usable."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        wait = moment - datetime.now(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(timedelta(0), wait), _LONGEST_WAIT)
