"""One event a line on standard error: readable on a terminal, JSON elsewhere, no secrets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from typing import Any, Literal, TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SHORTEST_SECRET = 4  # masking shorter ones would mask ordinary words

_secrets: tuple[str, ...] = ()  # of this process, which has one log


def configure_logs(
    level: str, form: Literal["auto", "json", "console"], secrets: Collection[str]
) -> None:
    """Send this program's events, and those of its libraries, to standard error."""
    global _secrets
    _secrets = tuple(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler: logging.StreamHandler[TextIO] = logging.StreamHandler(sys.stderr)
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    last: Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=_coloured(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            # Masked here, not in `shared`: loggers keep the processors that they began with, and
            # a configuration that is read again may bring other secrets.
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _mask,
                *([] if as_json else [_printable]),
                last,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    server = logging.getLogger("gunicorn.error")  # its own handlers would show what it refused
    if server.handlers:
        server.handlers.clear()
        server.propagate = True
    for chatty in ("rq.worker", "urllib3", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def mask_also(secrets: Collection[str]) -> None:
    """Keep more secrets out of the log; those before may still be in use."""
    global _secrets
    _secrets = tuple(dict.fromkeys([*_secrets, *secrets]))


def _coloured() -> bool:
    """Tell whether standard error shows colours, and nobody forbade them."""
    environ = os.environ
    return sys.stderr.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def masked(text: str, secrets: Collection[str]) -> str:
    """Replace every secret in a text, also as a URL writes it; the longest first."""
    long = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
    for form in sorted({form for secret in long for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _forms(secret: str) -> tuple[str, ...]:
    """Return how a secret may be written: plainly, and in the ways of URLs."""
    raw = secret.encode(errors="surrogateescape")
    # as written, for a path, for anything, for a form, and as SQLAlchemy writes it
    return secret, quote(raw), quote(raw, safe=""), quote_plus(raw), quote(raw, safe=" +")


def _printable(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Write out what would steer a terminal: a path or a name may be anybody's."""

    def plain(value: Any) -> Any:
        match value:
            case str():
                return "".join(
                    c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in value
                )
            case dict():
                return {plain(key): plain(inner) for key, inner in value.items()}
            case list():
                return [plain(inner) for inner in value]
        return value

    return {key: plain(value) for key, value in event.items()}


def _mask(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Be the last belt: nothing puts a secret into an event, and this would cut it out."""
    secrets = _secrets

    def plain(value: Any) -> Any:
        match value:
            case None | bool() | int() | float():
                return value
            case dict():
                return {masked(str(key), secrets): plain(inner) for key, inner in value.items()}
            case list() | tuple():
                return [plain(inner) for inner in value]
        return masked(value if isinstance(value, str) else repr(value), secrets)

    return {key: plain(value) for key, value in event.items()}
