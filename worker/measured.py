"""Thin wrappers at the ports: what they count and trace, the core and the adapters know nothing of.

`wiring` puts them between a run and its ports; what passes through them is not changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from worker.domain import Tally, UsageQuery
from worker.errors import JournalUnavailable, ReconcilerError, TransientError
from worker.journal.store import Store, Transaction
from worker.metrics import (
    COMMIT_SECONDS,
    JOURNAL_FAILURES,
    PLATFORM_REQUESTS,
    PLATFORM_SECONDS,
    SOURCE_QUERIES,
    SOURCE_SECONDS,
    Numbers,
)
from worker.ports import BillingPlatform, UsageSource
from worker.tracing import Tracing


@runtime_checkable
class TellsRequests(Protocol):
    """A platform that tells of each of its requests; those that do not are not measured."""

    def tell_requests(self, to: Callable[[str, float], None]) -> None:
        """Call this after each request with its status code ("none": no answer) and its seconds."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Where a process counts and traces; by default nowhere."""

    numbers: Numbers = field(default_factory=Numbers)
    tracing: Tracing = field(default_factory=Tracing)

    def watch(self, name: str, platform: BillingPlatform) -> None:
        """Measure a platform's requests, where it tells of them."""

        def told(code: str, seconds: float) -> None:
            self.numbers.add(PLATFORM_REQUESTS, name, code)
            self.numbers.observe(PLATFORM_SECONDS, seconds, name)
            self.tracing.waited("platform request", seconds, platform=name, code=code)

        if isinstance(platform, TellsRequests):
            platform.tell_requests(told)


class MeasuredSource:
    """A `UsageSource` whose counts are measured."""

    def __init__(self, name: str, source: UsageSource, measures: Measures) -> None:
        self._name = name
        self._source = source
        self._measures = measures

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Ask the source, and take the time and the result."""
        began = time.monotonic()
        result = "crashed"
        try:
            tallies = self._source.count(queries)
            result = "ok"
        except TransientError:
            result = "unavailable"
            raise
        except ReconcilerError:
            result = "invalid"
            raise
        finally:
            seconds = time.monotonic() - began
            numbers = self._measures.numbers
            numbers.add(SOURCE_QUERIES, self._name, result)
            numbers.observe(SOURCE_SECONDS, seconds, self._name)
            self._measures.tracing.waited("source query", seconds, source=self._name, result=result)
        return tallies

    def watermark(self) -> datetime | None:
        """Ask the source."""
        return self._source.watermark()

    def check(self) -> None:
        """Ask the source."""
        self._source.check()

    def close(self) -> None:
        """Close the source, if it keeps something open."""
        close_source(self._source)


def close_source(source: UsageSource) -> None:
    """Close a source, if it keeps something open; its next use opens it again."""
    closing: Callable[[], None] | None = getattr(source, "close", None)
    if closing is not None:
        closing()


class MeasuredStore:
    """A journal's `Store` whose commits are measured: from BEGIN until the change is durable."""

    def __init__(self, store: Store, numbers: Numbers) -> None:
        self._store = store
        self._numbers = numbers

    @property
    def place(self) -> str:
        """Where it is, without credentials."""
        return self._store.place

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin to write, and take the time until it is durable."""
        began = time.monotonic()
        with self._counting_failures(), self._store.transaction() as statements:
            yield statements
        self._numbers.observe(COMMIT_SECONDS, time.monotonic() - began)

    def snapshot(self) -> AbstractContextManager[Transaction]:
        """Begin to read."""
        return self._reading()

    def close(self) -> None:
        """Give up its connections."""
        self._store.close()

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with self._counting_failures(), self._store.snapshot() as statements:
            yield statements

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except JournalUnavailable:
            self._numbers.add(JOURNAL_FAILURES)
            raise
