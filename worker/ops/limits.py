"""Bounds what the pages have counted: few counts at a time, and nothing left open behind them.

A count runs in the process that also takes the platform's notifications: as many presses as the
process has threads would keep those waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from threading import BoundedSemaphore, Thread
from typing import Any, ParamSpec

import structlog
from flask import current_app, g
from flask.typing import ResponseReturnValue

from worker.http_edge import Refused
from worker.measured import close_source
from worker.ops.access import refused
from worker.ports import UsageSource

END_SECONDS = 60.0  # that a source which hangs keeps a place after its count's answer was sent

_AGAIN_SECONDS = 10

_places = BoundedSemaphore(2)  # of this process

Given = ParamSpec("Given")

log = structlog.get_logger("ops")


@dataclass(slots=True)
class _Count:
    """The sources that a count has opened, and the threads that ask them, by name."""

    sources: dict[str, UsageSource] = field(default_factory=dict)
    threads: dict[str, Thread] = field(default_factory=dict)

    def end(self) -> None:
        """Close the sources once nobody asks them any more, then let another count begin.

        One that hangs for too long is left open: a close would take from it what it works with.
        """
        try:
            deadline = time.monotonic() + END_SECONDS
            for thread in self.threads.values():
                thread.join(max(deadline - time.monotonic(), 0))
            for name, source in self.sources.items():
                if self._asks(name):
                    log.warning("ops_source_not_closed", source=name, reason="it still hangs")
                else:
                    _close(name, source)
        finally:
            _places.release()

    def _asks(self, name: str) -> bool:
        return name in self.threads and self.threads[name].is_alive()


def limited(view: Callable[Given, ResponseReturnValue]) -> Callable[Given, ResponseReturnValue]:
    """Let two of the views that count run at a time; a third is refused, and told to wait."""

    @wraps(view)
    def bounded(*args: Given.args, **named: Given.kwargs) -> ResponseReturnValue:
        if not _places.acquire(blocking=False):
            return _busy()
        g.ops_count = count = _Count()
        try:
            return view(*args, **named)
        finally:
            _end(count)

    return bounded


def closed_afterwards(sources: Mapping[str, UsageSource]) -> Mapping[str, UsageSource]:
    """Have these sources closed when the count is over; only in a limited view."""
    _count().sources.update(sources)
    return sources


def outlasting(threads: Mapping[str, Thread]) -> None:
    """Let the count last until the threads that ask these sources end, also after its answer."""
    _count().threads.update(threads)


def _count() -> _Count:
    found: Any = g.ops_count
    assert isinstance(found, _Count)  # noqa: S101
    return found


def _end(count: _Count) -> None:
    """End a count; who is still at work is waited for elsewhere."""
    if any(thread.is_alive() for thread in count.threads.values()):
        Thread(target=count.end, name="end of a count", daemon=True).start()
    else:
        count.end()


def _close(name: str, source: UsageSource) -> None:
    try:
        close_source(source)
    except Exception as error:  # noqa: BLE001  a source is code of others too
        log.warning("ops_source_not_closed", source=name, reason=type(error).__name__)


def _busy() -> ResponseReturnValue:
    told = "Two counts are running; try again when they are done."
    answer = current_app.make_response(refused(Refused(429, "busy", told)))
    answer.headers["Retry-After"] = str(_AGAIN_SECONDS)
    return answer
