"""What runs in the child processes: endpoint, workers and sweeps, mortal at named steps."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import webhook_app
from proof.plan import Kill
from proof.world import Adapters
from worker.domain import InvoiceKey
from worker.doorbell import Doorbell
from worker.errors import JournalUnavailable
from worker.ports import Journal, Ports
from worker.reconcile import reconcile
from worker.record import EntryKind
from worker.sweep import Sweep

JOURNAL_FAILED = 75  # exit code: the journal did not take it, and nothing was promised


class Fate:
    """Ends the process by SIGKILL when it comes to its step."""

    def __init__(self, kill: Kill | None) -> None:
        self._kill = kill
        self._times = 0

    def at(self, step: str) -> None:
        """Come to a step."""
        if self._kill is not None and self._kill.step == step:
            self._times += 1
            if self._times == self._kill.nth:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What an actor works with."""

    adapters: Adapters
    open_journal: Callable[[], Journal]
    now: datetime
    fate: Fate
    stop_after: int = 0  # platform calls; 0: never


class Mortal:
    """A port that tells fate what happens on it."""

    def __init__(self, inner: Any, fate: Fate, steps: Mapping[str, tuple[str, str]]) -> None:
        self._inner = inner
        self._fate = fate
        self._steps = steps  # by method: the step before it, and the step after it

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._steps:
            return found
        before, after = self._steps[name]

        def called(*arguments: Any, **named: Any) -> Any:
            self._fate.at(before)
            result = found(*arguments, **named)
            self._fate.at(_kind_of(arguments) if name == "append" else after)
            return result

        return called


def deliver(scene: Scene, delivery_id: str, key: InvoiceKey) -> int:
    """Receive a notification through the real endpoint; 0: it answered 200."""
    receiver: webhook_app.Receiver = scene.adapters.app.extensions["receiver"]
    receiver.journal = Mortal(
        scene.open_journal(), scene.fate, {"record_delivery": ("received", "journaled")}
    )
    receiver.doorbell = Mortal(receiver.doorbell, scene.fate, {"ring": ("", "enqueued")})  # type: ignore[assignment]
    with _clock(scene.now):
        answer = _post(scene, delivery_id, key)
    return 0 if answer == 200 else JOURNAL_FAILED


def work(scene: Scene, keys: Sequence[InvoiceKey], owner: str) -> int:
    """Reconcile the invoices, one after the other."""
    platform: Any = scene.adapters.platforms["billforward"]
    _watch_writes(platform, scene.fate)
    journal = Mortal(
        scene.open_journal(),
        scene.fate,
        {
            "claim": ("", "claimed"),
            "freeze": ("", "frozen"),
            "append": ("", ""),
            "settle": ("before settle", "marked"),
        },
    )
    sources = {
        name: Mortal(source, scene.fate, {"count": ("", "counted")})
        for name, source in scene.adapters.sources.items()
    }
    ports = Ports(
        platform=Mortal(
            platform, scene.fate, {"invoice": ("", "fetched"), "usage_charges": ("", "listed")}
        ),
        sources=sources,
        journal=journal,
        now=lambda: scene.now,
        random=lambda: 0.0,
        stopping=lambda: 0 < scene.stop_after <= platform.calls,
    )
    try:
        for key in keys:
            reconcile(key, owner=owner, ports=ports, rules=scene.adapters.config.rules)
    except JournalUnavailable:
        return JOURNAL_FAILED
    return 0


def sweep(scene: Scene, doorbell: Doorbell) -> int:
    """Make one round."""
    mortal = {"due": ("", "due read"), "ring": ("", "rung")}
    round_of = Sweep(
        journal=Mortal(scene.open_journal(), scene.fate, mortal),
        platforms=scene.adapters.platforms,
        doorbell=Mortal(doorbell, scene.fate, mortal),  # type: ignore[arg-type]
        now=lambda: scene.now,
        find_every=timedelta(0),
        find_pages=3,
    )
    try:
        round_of.round()
    except JournalUnavailable:
        return JOURNAL_FAILED
    return 0


def _watch_writes(platform: Any, fate: Fate) -> None:
    """Tell fate before and after each write that goes out, from whichever thread."""
    rest = platform._rest
    send = type(rest)._call.__get__(rest)

    def watched(method: str, path: str, **named: Any) -> Any:
        kind = "issue" if path.startswith("/invoices/") else "write"
        if method == "POST":
            fate.at(f"before {kind}")
        answer = send(method, path, **named)
        if method == "POST":
            fate.at(f"after {kind}")
        return answer

    rest._call = watched
    rest._sleep = _no_sleep


def _no_sleep(_seconds: float) -> None:
    """Try again at once: the seeds' time is not the clock's."""


def _kind_of(arguments: tuple[Any, ...]) -> str:
    kinds = {entry.kind for entry in arguments[1]}
    if EntryKind.CHARGE_ANSWER in kinds:
        return "write answered"
    return "issue answered" if EntryKind.ISSUE_ANSWER in kinds else ""


@contextmanager
def _clock(now: datetime) -> Iterator[None]:
    """Let the endpoint see the seed's time."""
    module: Any = webhook_app
    before, module.utc_now = module.utc_now, lambda: now
    try:
        yield
    finally:
        module.utc_now = before


def _post(scene: Scene, delivery_id: str, key: InvoiceKey) -> int:
    webhook = scene.adapters.config.webhook
    body = {
        "type": "notification",
        "id": delivery_id,
        "domain": "Invoice",
        "action": "Pending",
        "entityID": key.invoice_id,
    }
    return (
        scene.adapters.app.test_client()
        .post(
            f"/webhooks/{key.platform}",
            data=json.dumps(body),
            auth=(webhook.username, webhook.password),
        )
        .status_code
    )
