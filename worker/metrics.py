"""What the processes of a machine count, in files that one scrape adds up.

Each process owns a slot of the folder: a locked number, and under it one file for each type of
metric in prometheus-client's own format. A lock ends with its process, however that dies, and the
next process that takes the slot counts on. So counts never fall, and files never pile up.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TextIO

import structlog
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

_MOST_SLOTS = 1024
_FILE_BYTES = 1 << 18  # room for some hundred series; one that needs more grows
_BROKEN = (OSError, RuntimeError, ValueError, struct.error)

log = structlog.get_logger("metrics")


class Kind(StrEnum):
    """How the values of several processes become one; also how their files begin."""

    COUNTER = "counter"  # added up
    HISTOGRAM = "histogram"  # added up, bucket by bucket
    HIGHEST = "gauge_max"  # the highest counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One name in the scrape. No label holds an id: each has few values, known beforehand."""

    kind: Kind
    name: str  # a counter's without its _total
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()  # label values that are there from the start, at 0
    buckets: tuple[float, ...] = ()


_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, inf)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, inf)


def _counter(name: str, told: str, labels: str, known: Iterable[str] = ()) -> Metric:
    return Metric(
        kind=Kind.COUNTER,
        name=f"reconciler_{name}",
        help=told,
        labels=tuple(labels.split()),
        known=tuple((value,) for value in known) if labels else ((),),
    )


def _histogram(name: str, told: str, labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(
        kind=Kind.HISTOGRAM,
        name=f"reconciler_{name}_seconds",
        help=told,
        labels=tuple(labels.split()),
        known=() if labels else ((),),
        buckets=buckets,
    )


DELIVERIES = _counter(
    *("deliveries", "Webhook requests, by what became of them", "result"),
    ("new", "duplicate", "ignored", "conflict", "unauthorized", "unreadable"),
)
DUPLICATES = _counter(
    *("duplicates_suppressed", "What came twice and was not done twice", "what"),
    ("delivery", "run"),
)
DECISIONS = replace(
    _counter("decisions", "Runs, by how they ended and why", "decision cause"),
    known=(
        ("issued", ""),
        ("confirmed", ""),  # issued by an earlier run, and only read back
        *(("waiting", cause) for cause in ("not_found_yet", "period_end", "source_behind")),
        *(("waiting", cause) for cause in ("no_usage_charge", "write_unanswered", "issue_unseen")),
        *(("skipped", cause) for cause in ("voided", "not_pending", "type", "version")),
        ("skipped", "no_usage_charge"),
    ),
)
RUN_SECONDS = _histogram("run", "How long runs took", "", _SLOW)
PLATFORM_REQUESTS = _counter(
    "platform_requests", "Requests to a platform; code none: no answer came", "platform code"
)
PLATFORM_SECONDS = _histogram(
    "platform_request", "How long a platform's answers took", "platform", _SLOW
)
SOURCE_QUERIES = _counter("source_queries", "Counts asked of a usage source", "source result")
SOURCE_SECONDS = _histogram("source_query", "How long a source's counts took", "source", _SLOW)
SWEEP_ROUNDS = _counter(
    "sweep_rounds", "Rounds of the sweep, by their result", "result", ("done", "failed")
)
SWEEP_FINDINGS = _counter(
    *("sweep_findings", "What the sweep had to do", "finding"), ("rung", "found", "acknowledged")
)
SWEEP_AT = Metric(
    kind=Kind.HIGHEST,
    name="reconciler_sweep_last_round_timestamp_seconds",
    help="When the sweep last ended a round well",
    known=((),),
)
COMMIT_SECONDS = _histogram("journal_commit", "How long the journal's commits took", "", _QUICK)
JOURNAL_FAILURES = _counter(
    "journal_failures", "Times that the journal could not be read or written", ""
)
NOTICES = _counter("notices", "Notices to people, by channel and result", "channel result")

CATALOGUE = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Numbers:
    """What this process counts; safe to use from several threads and after a fork.

    Counting never fails: without a folder, or with one that cannot be written, nothing is counted.
    The folder is made and a slot taken with the first count.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._slot: _Slot | None = None
        self._failed_as = 0  # the process that could not open a slot

    def begin(self) -> None:
        """Take a slot now, so that every metric is there with the first scrape."""
        with self._lock:
            self._opened()

    def add(self, metric: Metric, *labels: str, amount: float = 1) -> None:
        """Count."""
        with self._lock:
            if slot := self._opened():
                slot.add(metric, f"{metric.name}_total", labels, amount)

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Put a duration into a histogram."""
        with self._lock:
            if slot := self._opened():
                slot.observe(metric, seconds, labels)

    def raise_to(self, metric: Metric, value: float) -> None:
        """Set a value that only rises."""
        with self._lock:
            if slot := self._opened():
                slot.put(metric, value)

    def _opened(self) -> _Slot | None:
        """Return this process's slot; a fork takes one of its own."""
        process = os.getpid()
        if self._slot is not None and self._slot.process == process:
            return self._slot
        if self.folder is None or self._failed_as == process:
            return None
        try:
            self._slot = _taken(self.folder)
        except _BROKEN as error:
            self._slot = None
            self._failed_as = process
            log.warning("not_counting", folder=str(self.folder), reason=type(error).__name__)
        return self._slot


def families(folder: Path) -> list[Family]:
    """Add up what all processes counted; a file that cannot be read is left out."""
    files = [str(path) for path in sorted(folder.glob("*.db")) if _is_sound(path)]
    return list(MultiProcessCollector.merge(files))


class _Slot:
    """A locked number, with the files of this process."""

    def __init__(self, folder: Path, number: int, lock: TextIO) -> None:
        self.process = os.getpid()
        open_files = ExitStack()
        open_files.callback(lock.close)  # which gives the slot up
        weakref.finalize(self, open_files.close)
        self._keys: dict[tuple[str, tuple[str, ...]], str] = {}
        self._started: set[tuple[Metric, tuple[str, ...]]] = set()
        self._files: dict[Kind, MmapedDict] = {}
        for kind in Kind:
            self._files[kind] = _opened_file(folder / f"{kind}_{number}.db")
            open_files.callback(self._files[kind].close)
        for metric in CATALOGUE:
            for labels in metric.known:
                self._start(metric, labels)

    def add(self, metric: Metric, name: str, labels: tuple[str, ...], amount: float) -> None:
        key = self._key(metric, name, metric.labels, labels)
        file = self._files[metric.kind]
        file.write_value(key, file.read_value(key)[0] + amount, 0.0)

    def observe(self, metric: Metric, seconds: float, labels: tuple[str, ...]) -> None:
        self._start(metric, labels)
        bucket = metric.buckets[bisect_left(metric.buckets, seconds)]
        self._add_to_bucket(metric, bucket, labels, 1)
        self.add(metric, f"{metric.name}_sum", labels, seconds)

    def put(self, metric: Metric, value: float) -> None:
        key = self._key(metric, metric.name, (), ())
        self._files[metric.kind].write_value(key, value, time.time())

    def _start(self, metric: Metric, labels: tuple[str, ...]) -> None:
        """Have the metric there with these labels; what was counted stays."""
        if (metric, labels) in self._started:
            return
        self._started.add((metric, labels))
        match metric.kind:
            case Kind.COUNTER:
                self.add(metric, f"{metric.name}_total", labels, 0)
            case Kind.HISTOGRAM:
                self.add(metric, f"{metric.name}_sum", labels, 0)
                for bucket in metric.buckets:
                    self._add_to_bucket(metric, bucket, labels, 0)
            case Kind.HIGHEST:
                self.add(metric, metric.name, labels, 0)

    def _add_to_bucket(
        self, metric: Metric, bucket: float, labels: tuple[str, ...], amount: float
    ) -> None:
        names, values = (*metric.labels, "le"), (*labels, floatToGoString(bucket))
        key = self._key(metric, f"{metric.name}_bucket", names, values)
        file = self._files[metric.kind]
        file.write_value(key, file.read_value(key)[0] + amount, 0.0)

    def _key(
        self, metric: Metric, name: str, labels: tuple[str, ...], values: tuple[str, ...]
    ) -> str:
        found = self._keys.get((name, values))
        if found is None:
            found = mmap_key(metric.name, name, list(labels), list(values), metric.help)
            self._keys[name, values] = found
        return found


def _taken(folder: Path) -> _Slot:
    """Take the lowest free slot; OSError: the folder cannot be used."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_MOST_SLOTS):
        try:
            lock = (folder / f"{number}.lock").open("a")
        except OSError:
            if not os.access(folder, os.W_OK):
                raise
            continue  # another user's slot
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _Slot(folder, number, lock)
        except (BlockingIOError, PermissionError):
            lock.close()
        except BaseException:
            lock.close()
            raise
    raise OSError("every slot is taken")


def _opened_file(path: Path) -> MmapedDict:
    """Open a slot's file, anew where a crash of the machine left it broken.

    Its room is written beforehand: on a full disk that is an error here, where a page that is
    missing when the map is written to would end the process.
    """
    if not _is_sound(path) or path.stat().st_size < _FILE_BYTES:
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(bytes(_FILE_BYTES))
        fresh.replace(path)
    return MmapedDict(str(path))


def _is_sound(path: Path) -> bool:
    try:
        for key, *_ in MmapedDict.read_all_values_from_file(path):
            json.loads(key)
    except _BROKEN:
        return False
    return True
