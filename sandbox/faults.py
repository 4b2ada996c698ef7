"""Faults on command: rules that spoil the answers to matching requests of the API.

A rule is `{"match": {"method", "path", "nth", "probability", "seed"}, "times": 1, "kind": ...}`;
`path` is a regular expression searched in the raw path, `nth` the first matching request it
spoils (1: the next), `times` how many it spoils (null: all). The first live rule that matches wins.
"""

from __future__ import annotations

import http.client
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sandbox.wire import Json, Request, Response, encode, error_body

_MATCH_KEYS = {"method", "path", "nth", "probability", "seed"}


class FaultRuleError(ValueError):
    """A fault rule is not one; the message says why."""


@dataclass(slots=True)
class FaultRule:
    """One rule with its count of how often it matched and fired."""

    kind: str
    details: Mapping[str, Any]
    method: str | None = None
    path: re.Pattern[str] = field(default_factory=lambda: re.compile(""))
    nth: int = 1
    times: int | None = 1
    probability: float = 1.0
    chance: random.Random = field(default_factory=random.Random)
    matched: int = 0
    fired: int = 0

    def fires(self, request: Request) -> bool:
        """Count *request* if it matches, and say whether to spoil it; this uses the rule up."""
        if self.method not in (None, request.method) or not self.path.search(request.path):
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.matched += 1
        if self.matched < self.nth or self.chance.random() >= self.probability:
            return False
        self.fired += 1
        return True


class FaultRules:
    """The rules in the order they were added."""

    def __init__(self) -> None:
        self._rules: list[FaultRule] = []

    def add(self, rules: list[FaultRule]) -> None:
        """Append *rules*."""
        self._rules.extend(rules)

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def pick(self, request: Request) -> FaultRule | None:
        """Return the first rule that spoils *request*, or None."""
        return next((rule for rule in self._rules if rule.fires(request)), None)


def rule_of(body: object) -> FaultRule:
    """Read one rule; FaultRuleError says what is wrong with it."""
    if not isinstance(body, dict) or body.get("kind") not in DETAILS:
        raise FaultRuleError(f"kind must be one of {', '.join(DETAILS)}")
    kind = body["kind"]
    details = {k: v for k, v in body.items() if k not in ("match", "times", "kind")}
    match = body.get("match", {})
    unknown = [*(set(details) - DETAILS[kind]), *(set(match) - _MATCH_KEYS)]
    if unknown:
        raise FaultRuleError(f"{kind} does not know {', '.join(sorted(unknown))}")
    missing = _NEEDED.get(kind, set()) - set(details)
    if missing:
        raise FaultRuleError(f"{kind} needs {', '.join(sorted(missing))}")
    _check_details(details)
    return FaultRule(
        kind=kind,
        details=details,
        method=match.get("method"),
        path=_pattern(match.get("path", "")),
        nth=_whole("nth", match.get("nth", 1)),
        times=None if body.get("times", 1) is None else _whole("times", body.get("times", 1)),
        probability=_number("probability", match.get("probability", 1)),
        chance=random.Random(match.get("seed", 0)),  # noqa: S311 - repeatable on purpose
    )


def spoiled(rule: FaultRule, answer: Callable[[], Response], later: Callable[[], None]) -> Response:
    """Return what *rule* makes of a request.

    *answer* carries the request out; *later* schedules that for a late commit.
    """
    details = rule.details
    if rule.kind == "latency":
        response = answer()
        seconds = response.delay_seconds + _number("seconds", details["seconds"])
        return replace(response, delay_seconds=seconds)
    if rule.kind == "late_commit":
        later()
        return Response(status=0, dropped=True)
    if rule.kind == "drop_before":
        return Response(status=0, dropped=True)
    if rule.kind == "drop_after":
        return replace(answer(), dropped=True)
    if details.get("commit", False):
        answer()
    return _ANSWERS[rule.kind](details)


def _rate_limit(details: Json) -> Response:
    wait = details.get("retry_after")
    headers = () if wait is None else (("Retry-After", str(wait)),)
    return Response(
        status=429, body=encode(error_body("BFError", "too many requests")), headers=headers
    )


def _error(details: Json) -> Response:
    status = int(details.get("status", 503))
    message = details.get("message", http.client.responses.get(status, "failed"))
    body = error_body(details.get("error_type", "ServerError"), message)
    return Response(status=status, body=encode(body))


def _html(details: Json) -> Response:
    status = int(details.get("status", 502))
    page = details.get("body", f"<html><body><h1>{status}</h1></body></html>")
    return Response(status=status, body=page.encode(), content_type="text/html; charset=utf-8")


def _empty(details: Json) -> Response:
    return Response(status=int(details.get("status", 200)))


def _truncated(details: Json) -> Response:
    return Response(status=int(details.get("status", 200)), body=b'{"currentPage":0,"results":[{')


_ANSWERS: Mapping[str, Callable[[Any], Response]] = {
    "rate_limit": _rate_limit,
    "error": _error,
    "html": _html,
    "empty": _empty,
    "truncated": _truncated,
    "error_in_200": lambda details: _error({**details, "status": 200}),
}
DETAILS: Mapping[str, set[str]] = {
    "latency": {"seconds"},
    "rate_limit": {"retry_after"},
    "error": {"status", "error_type", "message", "commit"},
    "html": {"status", "body", "commit"},
    "empty": {"status", "commit"},
    "truncated": {"status", "commit"},
    "error_in_200": {"error_type", "message", "commit"},
    "drop_before": set(),
    "drop_after": set(),
    "late_commit": {"seconds"},
}
"""Each kind of fault with the details it takes; `commit` true carries the request out first."""
_NEEDED: Mapping[str, set[str]] = {"latency": {"seconds"}, "late_commit": {"seconds"}}


def _check_details(details: Json) -> None:
    if "seconds" in details:
        _number("seconds", details["seconds"])
    if not 200 <= _whole("status", details.get("status", 200)) <= 599:
        raise FaultRuleError("status must be 200 to 599")
    for name in ("body", "message", "error_type"):
        if not isinstance(details.get(name, ""), str):
            raise FaultRuleError(f"{name} must be text")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise FaultRuleError(f"path {text!r} is not a regular expression: {error}") from error


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FaultRuleError(f"{name} must be 1 or more, not {value!r}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value < 0:
        raise FaultRuleError(f"{name} must be a number of 0 or more, not {value!r}")
    return float(value)
