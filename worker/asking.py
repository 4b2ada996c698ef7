"""Asking a usage source: whatever goes wrong is told with the source's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from worker.domain import Tally, UsageQuery, utc
from worker.errors import ReconcilerError, SourceInvalid, SourceUnavailable, TransientError
from worker.ports import UsageSource

Answer = TypeVar("Answer")


def ask(
    sources: Mapping[str, UsageSource], name: str, question: Callable[[UsageSource], Answer]
) -> Answer:
    """Put a question to the source of this name; raise SourceUnavailable or SourceInvalid.

    A source is code of others too: what it raises by mistake is a wrong answer, not our crash.
    """
    try:
        return question(sources[name])
    except TransientError as error:
        told = f'source "{name}": {error}'
        raise SourceUnavailable(told, retry_after=error.retry_after) from error
    except ReconcilerError as error:
        raise SourceInvalid(f'source "{name}": {error}') from error
    except Exception as error:
        raise SourceInvalid(f'source "{name}" crashed: {type(error).__name__}') from error


def watermark_of(sources: Mapping[str, UsageSource], name: str) -> datetime | None:
    """Ask up to when a source has everything; a moment without a zone is a wrong answer."""
    moment = ask(sources, name, lambda source: source.watermark())
    try:
        return None if moment is None else utc(moment)
    except ValueError as error:
        raise SourceInvalid(f'source "{name}": its watermark {error}') from error


def counted(
    sources: Mapping[str, UsageSource], name: str, queries: Sequence[UsageQuery]
) -> list[Tally]:
    """Ask a source to count, and wait for every answer, however it yields them."""
    return ask(sources, name, lambda source: list(source.count(queries)))
