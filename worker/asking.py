"""Asking a usage source: whatever goes wrong is told with the source's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

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
