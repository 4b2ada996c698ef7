"""What happens under one seed: drawn once, so that the seed repeats it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WEBHOOK_STEPS = ("received", "journaled", "enqueued")
WORKER_STEPS = (
    *("claimed", "fetched", "listed", "counted", "frozen"),
    *("before write", "after write", "write answered"),
    *("before issue", "after issue", "issue answered", "before settle", "marked"),
)
SWEEP_STEPS = ("due read", "rung")
KINDS = ("Subscription", "Subscription", "Subscription", "FinalArrears", "Trial")
MOST_LATE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process by SIGKILL when it comes to a step for the nth time."""

    step: str
    nth: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedInvoice:
    """An invoice of the seed: whose usage it bills, and what else is the matter with it."""

    number: int
    subscription: int  # which of the prepared subscriptions
    components: tuple[int, ...]
    kind: str
    version: int
    mapped: bool  # False: one component has no source, so that it must be held


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that happens: a delivery, workers, a sweep, a wiped Redis, a passing hour."""

    name: str
    invoice: int = 0
    workers: int = 1
    kill: Kill | None = None
    disk_full: bool = False
    stop_after: int = 0  # SIGTERM after so many platform calls; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one seed does."""

    seed: int
    invoices: tuple[PlannedInvoice, ...]
    faults: tuple[dict[str, Any], ...]
    actions: tuple[Action, ...]
    recalculation: str
    bumps_version: bool
    page_size: int | None


def plan_of(seed: int, subscriptions: int, components: int) -> Plan:
    """Draw what happens under a seed."""
    chance = random.Random(seed)  # noqa: S311  repeatable on purpose
    invoices = tuple(
        _invoice(chance, number, subscription, components)
        for number, subscription in enumerate(
            chance.sample(range(subscriptions), chance.randint(1, 3)), start=1
        )
    )
    return Plan(
        seed=seed,
        invoices=invoices,
        faults=tuple(_fault(chance) for _ in range(chance.choice((0, 0, 1, 2, 3)))),
        actions=tuple(_actions(chance, [invoice.number for invoice in invoices])),
        recalculation=chance.choice(("each", "each", "batch")),
        bumps_version=chance.random() < 0.5,
        page_size=chance.choice((None, None, 2)),
    )


def _invoice(
    chance: random.Random, number: int, subscription: int, components: int
) -> PlannedInvoice:
    return PlannedInvoice(
        number=number,
        subscription=subscription,
        components=tuple(sorted(chance.sample(range(components), chance.randint(1, 4)))),
        kind=chance.choice(KINDS),
        version=2 if chance.random() < 0.05 else 1,
        mapped=chance.random() >= 0.08,
    )


def _fault(chance: random.Random) -> dict[str, Any]:
    match: dict[str, Any] = chance.choice(
        (
            {"method": "GET"},
            {"method": "POST"},
            {"method": "POST", "path": "/charges/"},
            {"method": "POST", "path": "/invoices/"},
            {},
        )
    )
    match = {**match, "nth": chance.randint(1, 4)}
    fault: dict[str, Any] = chance.choice(
        (
            {"kind": "drop_before"},
            {"kind": "drop_after"},
            {"kind": "drop_after"},
            {"kind": "late_commit", "seconds": round(chance.uniform(0.001, MOST_LATE_SECONDS), 4)},
            {"kind": "rate_limit", "retry_after": chance.choice(("0", "1", "3600", "-5", "soon"))},
            {"kind": "error", "status": chance.choice((500, 502, 503))},
            {"kind": "error", "status": 500, "commit": True},
            {"kind": "html", "status": chance.choice((200, 502))},
            {"kind": "html", "status": 200, "commit": True},
            {"kind": "truncated", "commit": True},
            {"kind": "empty"},
            {"kind": "error_in_200"},
        )
    )
    return {**fault, "match": match, "times": chance.randint(1, 3)}


def _actions(chance: random.Random, invoices: list[int]) -> Iterator[Action]:
    """Yield deliveries, each once to three times and in any order, and what happens between."""
    deliveries = [number for number in invoices for _ in range(chance.choice((1, 1, 2, 3)))]
    if chance.random() < 0.1:
        deliveries = [number for number in deliveries if number != invoices[0]]  # never told
    chance.shuffle(deliveries)
    for number in deliveries:
        yield Action(name="deliver", invoice=number, kill=_kill(chance, WEBHOOK_STEPS, 0.3))
        while chance.random() < 0.6:
            yield _between(chance)
    for _ in range(chance.randint(1, 3)):
        yield _between(chance)


def _between(chance: random.Random) -> Action:
    name = chance.choice(("work", "work", "work", "work", "sweep", "wipe", "wait"))
    if name == "work":
        return Action(
            name=name,
            workers=chance.choice((1, 1, 1, 2, 2, 8)),
            kill=_kill(chance, WORKER_STEPS, 0.75),
            disk_full=chance.random() < 0.05,
            stop_after=chance.choice((0, 0, 0, 0, 1, 2, 3, 4)),
        )
    if name == "sweep":
        kill = _kill(chance, SWEEP_STEPS, 0.3)
        return Action(name=name, workers=chance.choice((1, 2)), kill=kill)
    return Action(name=name)


def _kill(chance: random.Random, steps: tuple[str, ...], share: float) -> Kill | None:
    if chance.random() >= share:
        return None
    return Kill(chance.choice(steps), chance.choice((1, 1, 1, 2, 3)))
