"""The usage sources: what is configured, what the journal knows of each, and how it is now.

They are asked only by a press of the button, all at once, and none is waited for longer than the
page allows.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from flask import render_template
from flask.typing import ResponseReturnValue

from worker.asking import ask, watermark_of
from worker.config import Config
from worker.domain import Component, utc
from worker.errors import ReconcilerError, RecordInvalid
from worker.ops.access import person
from worker.ops.board import board
from worker.ops.limits import closed_afterwards, limited, outlasting
from worker.overviews import Filter
from worker.ports import Journal, UsageSource
from worker.record import EntryKind, History, State
from worker.wiring import open_sources

WAIT_SECONDS = 10.0

_LOOKED_AT = 20  # invoices, the newest that were counted
_MOST_STOPPED = 100  # invoices, of each source
_COUNTED = (State.ISSUED, State.OBSERVED)
_STOPPED = (State.WAITING, State.RETRYING, State.HELD)
_TROUBLE = (EntryKind.WAITING, EntryKind.FAILED, EntryKind.HELD)
_BEHIND = re.compile(r" has usage only up to ([^\s,]+)")

log = structlog.get_logger("ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a source said when it was asked."""

    fault: str = ""
    took: timedelta | None = None
    watermark: datetime | None = None  # None: it cannot say


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a source said at a moment, by the journal."""

    source: str
    at: datetime
    counted: bool = False
    watermark: datetime | None = None
    trouble: str = ""  # why an invoice did not go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the journal knows of a source: the last it said of each thing, and what it stops."""

    counted: Said | None
    complete: Said | None
    trouble: Said | None
    stopped: int  # invoices that wait, retry or are held, with its name in the reason


def sources() -> ResponseReturnValue:
    """Show the configured sources, without asking any."""
    return _page({})


@limited
def ask_sources() -> ResponseReturnValue:
    """Ask every source how it is, at once and for a bounded time."""
    log.info("ops_sources_asked", by=person().name)
    try:
        opened = closed_afterwards(open_sources(board().config(), board().measures))
    except ReconcilerError as error:
        return _page({}, str(error).splitlines())
    return _page(_answers(opened))


def _page(answers: Mapping[str, Answer], faults: list[str] | None = None) -> str:
    config, desk = board().config(), board().desk
    return render_template(
        "ops/sources.html",
        sources=config.usage_sources,
        components=_components(config),
        known=_known(desk.journal, config),
        stopped=[state.value for state in _STOPPED],
        most_stopped=_MOST_STOPPED,
        mode=config.rules.mode,
        answers=answers,
        faults=faults or [],
        now=desk.now(),
        wait=WAIT_SECONDS,
        looked_at=_LOOKED_AT,
    )


def _components(config: Config) -> Mapping[str, list[str]]:
    """Return which components each source counts."""
    found: dict[str, list[str]] = {name: [] for name in config.usage_sources}
    for component in config.rules.components.values():
        found[component.source].append(component.name)
    return found


def _known(journal: Journal, config: Config) -> Mapping[str, Known]:
    """Read what sources said of the newest counted invoices, and of those they stop now."""
    newest = journal.listed(Filter(states=_COUNTED, newest_first=True), _LOOKED_AT)
    said: list[Said] = []
    for listed in newest:
        with suppress(RecordInvalid):  # its own page tells of it
            if history := journal.history(listed.row.key):
                said += _said(history, config.rules.components, tuple(config.usage_sources))
    found: dict[str, Known] = {}
    for name in config.usage_sources:
        wanted = Filter(states=_STOPPED, reason=_naming(name), newest_first=True)
        rows = [listed.row for listed in journal.listed(wanted, _MOST_STOPPED)]
        told = [_trouble(name, row.updated_at, row.reason) for row in rows]
        of_it = [*told, *(one for one in said if one.source == name)]
        found[name] = Known(
            counted=_last(one for one in of_it if one.counted),
            complete=_last(one for one in of_it if one.watermark),
            trouble=_last(one for one in of_it if one.trouble),
            stopped=len(rows),
        )
    return found


def _said(
    history: History, components: Mapping[str, Component], names: Sequence[str]
) -> Iterator[Said]:
    """Yield what sources said of one invoice; of one that was observed, no evidence is kept."""
    for tally in history.tallies:
        evidence = tally.evidence
        yield Said(
            source=tally.source,
            at=evidence.asked_at,
            counted=True,
            watermark=evidence.watermark,
        )
    for entry in history.entries:
        if entry.kind is EntryKind.PREVIEWED:
            for charge in entry.data.get("charges", ()):
                if component := components.get(charge.get("component")):
                    yield Said(source=component.source, at=entry.at, counted=True)
        reason = str(entry.data.get("reason", "")) if entry.kind in _TROUBLE else ""
        yield from (_trouble(name, entry.at, reason) for name in names if _naming(name) in reason)


def _naming(source: str) -> str:
    """Return what a reason says of a source."""
    return f'source "{source}"'


def _trouble(source: str, at: datetime, reason: str) -> Said:
    """Read a reason that names a source; the one that waits for its watermark tells it."""
    _, _, rest = reason.partition(_naming(source))
    behind = _BEHIND.match(rest)
    try:
        watermark = utc(datetime.fromisoformat(behind[1])) if behind else None
    except ValueError:
        watermark = None
    return Said(source=source, at=at, watermark=watermark, trouble=reason)


def _last(said: Iterable[Said]) -> Said | None:
    return max(said, key=lambda one: one.at, default=None)


def _answers(opened: Mapping[str, UsageSource]) -> Mapping[str, Answer]:
    """Ask each in a thread of its own; who has not answered in time is told so."""
    found: dict[str, Answer] = {}

    def look(name: str) -> None:
        found[name] = _asked(opened, name)

    threads = {name: threading.Thread(target=look, args=(name,), daemon=True) for name in opened}
    for thread in threads.values():
        thread.start()
    outlasting(threads)
    deadline = time.monotonic() + WAIT_SECONDS
    for thread in threads.values():
        thread.join(max(deadline - time.monotonic(), 0))
    late = Answer(fault=f"no answer within {WAIT_SECONDS:g} s")
    return {name: found.get(name, late) for name in opened}


def _asked(opened: Mapping[str, UsageSource], name: str) -> Answer:
    began = time.monotonic()
    try:
        ask(opened, name, lambda source: source.check())
        watermark = watermark_of(opened, name)
    except ReconcilerError as error:
        return Answer(fault=str(error))
    return Answer(took=timedelta(seconds=time.monotonic() - began), watermark=watermark)
