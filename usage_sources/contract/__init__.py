"""The contract suite: what every usage source must do, as tests its author runs with pytest."""

from usage_sources.contract.suite import UsageSourceContract
from usage_sources.contract.values import (
    JUNE,
    MAY,
    MIDNIGHT,
    UsageEvent,
    close,
    event,
    query,
)

__all__ = [
    "JUNE",
    "MAY",
    "MIDNIGHT",
    "UsageEvent",
    "UsageSourceContract",
    "close",
    "event",
    "query",
]
