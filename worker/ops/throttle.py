"""Slows down who guesses passwords; kept by each process for itself."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from threading import Lock

_MOST_OF_NAME = 5
_MOST_OF_ADDRESS = 50  # whatever the names
_WINDOW_SECONDS = 300.0
_MOST_KEPT = 10_000  # addresses and names; the oldest are forgotten first
_HOST_BITS = 64  # of an IPv6 address: one machine has them all

Key = tuple[str, ...]


class Throttle:
    """Counts failed logins: of a name from an address, and of an address with any names.

    An address that many people share is not closed as a whole: one could lock the others out.
    """

    def __init__(
        self, is_shared: Callable[[str], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_shared = is_shared
        self._clock = clock
        self._failures: OrderedDict[Key, deque[float]] = OrderedDict()
        self._lock = Lock()

    def is_closed(self, address: str, name: str) -> bool:
        """Tell whether this name, or any, failed too often from this address of late."""
        with self._lock:
            since = self._clock() - _WINDOW_SECONDS
            return any(
                sum(at > since for at in self._failures.get(key, ())) >= most
                for key, most in self._limits(address, name).items()
            )

    def failed(self, address: str, name: str) -> None:
        """Count a failure."""
        with self._lock:
            for key, most in self._limits(address, name).items():
                self._failures.setdefault(key, deque(maxlen=most)).append(self._clock())
                self._failures.move_to_end(key)
            while len(self._failures) > _MOST_KEPT:
                self._failures.popitem(last=False)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures of the name; who knows one password may guess at others."""
        with self._lock:
            self._failures.pop((_machine(address), name), None)

    def _limits(self, address: str, name: str) -> Mapping[Key, int]:
        machine = _machine(address)
        limits: dict[Key, int] = {(machine, name): _MOST_OF_NAME}
        if not self._is_shared(address):
            limits[(machine,)] = _MOST_OF_ADDRESS
        return limits


def _machine(address: str) -> str:
    """Return what one machine cannot change by itself."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{int(found) >> _HOST_BITS:x}::/{_HOST_BITS}"
