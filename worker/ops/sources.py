"""The usage sources: what is configured, when each was last asked for an invoice, and how it is.

They are asked only by a press of the button, all at once, and none is waited for longer than the
page allows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from flask import render_template
from flask.typing import ResponseReturnValue

from worker.asking import ask, watermark_of
from worker.config import Config
from worker.errors import ReconcilerError
from worker.ops.access import person
from worker.ops.board import board
from worker.overviews import Filter
from worker.ports import Journal, UsageSource
from worker.record import State
from worker.wiring import open_sources

WAIT_SECONDS = 10.0

_LOOKED_AT = 20  # invoices, the newest issued ones

log = structlog.get_logger("ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a source said when it was asked."""

    fault: str = ""
    took: timedelta | None = None
    watermark: datetime | None = None  # None: it cannot say


def sources() -> ResponseReturnValue:
    """Show the configured sources, without asking any."""
    return _page({})


def ask_sources() -> ResponseReturnValue:
    """Ask every source how it is, at once and for a bounded time."""
    log.info("ops_sources_asked", by=person().name)
    config = board().config()
    missing = [told for told in config.missing_secrets if told.startswith("usage_sources.")]
    try:
        opened = {} if missing else open_sources(config, board().measures)
    except ReconcilerError as error:
        missing, opened = [str(error)], {}
    return _page(_answers(opened), missing)


def _page(answers: Mapping[str, Answer], faults: list[str] | None = None) -> str:
    config, desk = board().config(), board().desk
    return render_template(
        "ops/sources.html",
        sources=config.usage_sources,
        components=_components(config),
        last_asked=_last_asked(desk.journal),
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


def _last_asked(journal: Journal) -> Mapping[str, datetime]:
    """Return when each source last counted for one of the newest issued invoices."""
    found: dict[str, datetime] = {}
    newest = journal.search(Filter(states=(State.ISSUED,), newest_first=True), _LOOKED_AT)
    for listed in newest.invoices:
        history = journal.history(listed.row.key)
        for tally in history.tallies if history else ():
            asked_at = tally.evidence.asked_at
            found[tally.source] = max(asked_at, found.get(tally.source, asked_at))
    return found


def _answers(opened: Mapping[str, UsageSource]) -> Mapping[str, Answer]:
    """Ask each in a thread of its own; who has not answered in time is told so."""
    found: dict[str, Answer] = {}

    def look(name: str) -> None:
        found[name] = _asked(opened, name)

    threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in opened]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WAIT_SECONDS
    for thread in threads:
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
