"""What our HTTP endpoints share: refusals, whole bodies of bounded size, and comparing secrets."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Request

from worker.sections import is_loopback

# What proxies add: a request that came through one is nobody's of this machine. Those that add
# nothing often speak HTTP/1.0 to what is behind them, which no browser does.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


class Refused(Exception):
    """A request that is not taken: a status, a word for programs and a sentence for people."""

    def __init__(self, status: int, error: str, message: str, *, challenge: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.challenge = challenge  # how to authenticate, where the status is 401


def whole_body(incoming: Request, most_bytes: int) -> bytes:
    """Return the whole body; without Content-Length Flask would cut it silently."""
    if incoming.content_length is None or "Transfer-Encoding" in incoming.headers:
        raise Refused(411, "length_required", "Send the body with a Content-Length, not chunked.")
    if incoming.content_length > most_bytes:
        raise Refused(413, "too_large", f"The body may have {most_bytes} bytes at most.")
    if "Content-Encoding" in incoming.headers:
        raise Refused(415, "encoded", "Send the body as plain JSON, not compressed.")
    body = incoming.get_data(cache=False)
    if len(body) != incoming.content_length:
        raise Refused(400, "cut_short", "The body ended before its Content-Length.")
    return body


def same(given: str, expected: str) -> bool:
    """Compare a secret in constant time."""
    return hmac.compare_digest(as_bytes(given), as_bytes(expected))


def as_bytes(text: str) -> bytes:
    """Encode whatever a header held."""
    return text.encode(errors="surrogatepass")


def asked_host(incoming: Request) -> str:
    """Return the host that a request names, without its port; empty: none that can be read."""
    try:
        return urlsplit(f"//{incoming.host}").hostname or ""
    except ValueError:
        return ""


def is_from_here(incoming: Request) -> bool:
    """Tell a client of this machine from others, and from those behind a proxy on it."""
    old = incoming.environ.get("SERVER_PROTOCOL") == "HTTP/1.0"
    passed_on = old or any(name in incoming.headers for name in _FORWARDED)
    here = is_loopback(incoming.remote_addr or "") and is_loopback(asked_host(incoming))
    return here and not passed_on


def client_address(incoming: Request, trusts: Callable[[str], bool]) -> str:
    """Return who asks: the peer, or whom trusted proxies name; theirs, where they name nobody.

    Each proxy adds at the right; what stands left of an address that is not trusted is anybody's.
    """
    passed = incoming.headers.get("X-Forwarded-For", "").split(",")
    address = incoming.remote_addr or ""
    while passed and trusts(address) and _is_address(passed[-1].strip()):
        address = passed.pop().strip()
    return address


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False
