"""Slows down who guesses passwords; kept by each process for itself."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import Lock

_MOST_FAILURES = 5
_WINDOW_SECONDS = 300.0
_MOST_KEPT = 10_000  # addresses and names; the oldest are forgotten first

Key = tuple[str, str]


class Throttle:
    """Counts failed logins of a name from an address, and closes for both together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[Key, deque[float]] = OrderedDict()
        self._lock = Lock()

    def is_closed(self, address: str, name: str) -> bool:
        """Tell whether this name failed too often from this address of late."""
        with self._lock:
            failures = self._failures.get((address, name), ())
            since = self._clock() - _WINDOW_SECONDS
            return sum(at > since for at in failures) >= _MOST_FAILURES

    def failed(self, address: str, name: str) -> None:
        """Count a failure."""
        key = (address, name)
        with self._lock:
            self._failures.setdefault(key, deque(maxlen=_MOST_FAILURES)).append(self._clock())
            self._failures.move_to_end(key)
            while len(self._failures) > _MOST_KEPT:
                self._failures.popitem(last=False)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures."""
        with self._lock:
            self._failures.pop((address, name), None)
