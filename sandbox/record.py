"""What happened to a sandbox: every request, every broken rule, every issue."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from sandbox.wire import Json

REQUESTS_KEPT = 50_000
"""Older requests are forgotten, so that a long run cannot fill the memory."""


@dataclass(slots=True)
class Record:
    """The sandbox's memory of its client; a test fails when `broken` holds anything."""

    requests: deque[Json] = field(default_factory=lambda: deque(maxlen=REQUESTS_KEPT))
    violations: list[str] = field(default_factory=list)
    second_issues: list[Json] = field(default_factory=list)
    writes_after_issue: list[Json] = field(default_factory=list)
    issues: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> list[Any]:
        """Every broken rule, double issue and late write."""
        return [*self.violations, *self.second_issues, *self.writes_after_issue]

    def as_json(self) -> Json:
        """Return it all as `GET /sandbox/record` shows it, apart from notifications."""
        return {
            "requests": list(self.requests),
            "violations": list(self.violations),
            "second_issues": list(self.second_issues),
            "writes_after_issue": list(self.writes_after_issue),
            "issues": dict(self.issues),
        }
