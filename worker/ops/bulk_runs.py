"""Replaying or releasing many invoices: in small steps, by a thread of the endpoint.

How far it is stands in Redis, so that every process shows it and a stop reaches the one that
works. Each act goes through the journal like a single one: what was done before a crash, a stop
or an emptied Redis stays done, and going on does nothing twice.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import structlog
from redis import RedisError
from werkzeug.datastructures import MultiDict

from worker import actions
from worker.actions import Asked, Desk
from worker.domain import InvoiceKey, utc_text
from worker.errors import QueueUnavailable, ReconcilerError
from worker.ops.filters import Params, read_query
from worker.overviews import Cursor, Filter

RUNNING, STOPPED, DONE, FAILED = "running", "stopped", "done", "failed"
STEP = 20  # invoices between two looks whether to stop

_KEPT = timedelta(days=7)
_SILENT = timedelta(minutes=1)
_ID = 12

Verb = Callable[[Desk, InvoiceKey, Asked], str]
VERBS: Mapping[str, Verb] = {"replay": actions.replay, "release": actions.release}

log = structlog.get_logger("ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What was asked for, and how far it is."""

    id: str
    verb: str
    params: Params
    asked: Asked
    as_of: datetime  # what changed after it was counted is left alone
    total: int
    state: str = RUNNING
    done: int = 0
    refused: int = 0
    passed: int = 0  # changed meanwhile, and left alone
    after: str = ""  # how far it got in the list
    beat_at: datetime | None = None
    runner: str = ""  # the thread that may work on it
    note: str = ""  # why it failed, or what a person must know

    @property
    def seen(self) -> int:
        """Return how many invoices it has looked at."""
        return self.done + self.refused + self.passed

    def is_for(self, runner: str) -> bool:
        """Tell whether this thread is to go on with it."""
        return self.state == RUNNING and self.runner == runner

    def works(self, now: datetime) -> bool:
        """Tell whether a thread is at it."""
        alive = self.beat_at is not None and now - self.beat_at < _SILENT
        return self.state == RUNNING and alive


class Bulks:
    """Begins, shows, stops and resumes bulk runs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._redis = desk.doorbell.redis

    def begin(self, bulk: Bulk) -> None:
        """Store it and start its thread; raise QueueUnavailable."""
        texts = {
            "verb": bulk.verb,
            "params": json.dumps(bulk.params),
            "by": bulk.asked.by,
            "reason": bulk.asked.reason,
            "as_of": utc_text(bulk.as_of),
            "total": str(bulk.total),
        }
        self._put(bulk.id, texts)
        self._start(bulk.id)

    def find(self, bulk_id: str) -> Bulk | None:
        """Read how far one is; None: there is none such any more. Raise QueueUnavailable."""
        try:
            found = cast(dict[bytes, bytes], self._redis.hgetall(_key(bulk_id)))
        except RedisError as error:
            raise QueueUnavailable(self._desk.doorbell.told(error)) from error
        return _bulk(bulk_id, {k.decode(): v.decode() for k, v in found.items()}) if found else None

    def stop(self, bulk: Bulk) -> None:
        """Let it end after the step it is at; raise QueueUnavailable."""
        self._put(bulk.id, {"state": STOPPED})

    def go_on(self, bulk: Bulk) -> None:
        """Start a thread where the last one got; raise QueueUnavailable."""
        self._start(bulk.id)

    def _start(self, bulk_id: str) -> None:
        runner = secrets.token_hex(4)
        beat = utc_text(self._desk.now())
        self._put(bulk_id, {"state": RUNNING, "runner": runner, "beat_at": beat, "note": ""})
        threading.Thread(
            target=self._run, args=(bulk_id, runner), name=f"bulk-{bulk_id}", daemon=True
        ).start()

    def _run(self, bulk_id: str, runner: str) -> None:
        """Make steps until the list ends, somebody stops it, or another thread took it over."""
        try:
            while (bulk := self.find(bulk_id)) is not None and bulk.is_for(runner):
                stored = self._step(bulk)
                if (now := self.find(bulk_id)) is not None and now.runner == runner:
                    self._put(bulk_id, stored)
        except QueueUnavailable as error:
            log.warning("ops_bulk_lost", bulk=bulk_id, reason=str(error))
        except ReconcilerError as error:
            log.warning("ops_bulk_failed", bulk=bulk_id, reason=str(error))
            self._tell_failure(bulk_id, str(error))
        except Exception as error:
            log.exception("ops_bulk_failed", bulk=bulk_id)
            self._tell_failure(bulk_id, f"unexpected {type(error).__name__} in the program")
            raise

    def _step(self, bulk: Bulk) -> dict[str, str]:
        """Act on the next invoices; return what to store of it."""
        after = Cursor.of(bulk.after) if bulk.after else None
        page = self._desk.journal.search(wanted_of(bulk), STEP, after)
        numbers = {"done": bulk.done, "refused": bulk.refused, "passed": bulk.passed}
        warning = bulk.note
        for listed in page.invoices:
            if listed.row.updated_at > bulk.as_of:
                numbers["passed"] += 1
                continue
            try:
                warning = VERBS[bulk.verb](self._desk, listed.row.key, bulk.asked) or warning
                numbers["done"] += 1
            except actions.ActRefused:
                numbers["refused"] += 1
        stored = {name: str(number) for name, number in numbers.items()}
        stored |= {"beat_at": utc_text(self._desk.now()), "note": warning}
        if page.after is None:
            log.info("ops_bulk_done", bulk=bulk.id, by=bulk.asked.by, verb=bulk.verb, **numbers)
            return {**stored, "state": DONE}
        return {**stored, "after": str(page.after)}

    def _tell_failure(self, bulk_id: str, told: str) -> None:
        try:
            self._put(bulk_id, {"state": FAILED, "note": told})
        except QueueUnavailable as error:
            log.warning("ops_bulk_lost", bulk=bulk_id, reason=str(error))

    def _put(self, bulk_id: str, texts: Mapping[str, str]) -> None:
        try:
            with self._redis.pipeline() as pipe:
                for name, text in texts.items():
                    pipe.hset(_key(bulk_id), name, text)
                pipe.expire(_key(bulk_id), _KEPT)
                pipe.execute()
        except RedisError as error:
            raise QueueUnavailable(self._desk.doorbell.told(error)) from error


def new_id() -> str:
    """Name a bulk run."""
    return secrets.token_hex(_ID)


def wanted_of(bulk: Bulk) -> Filter:
    """Return which invoices it is for."""
    return read_query(MultiDict(bulk.params)).wanted


def _key(bulk_id: str) -> str:
    return f"reconciler:bulk:{bulk_id}"


def _bulk(bulk_id: str, texts: Mapping[str, str]) -> Bulk | None:
    if "verb" not in texts:
        return None
    beat = texts.get("beat_at")
    return Bulk(
        id=bulk_id,
        verb=texts["verb"],
        params=json.loads(texts["params"]),
        asked=Asked(texts["by"], texts["reason"]),
        as_of=datetime.fromisoformat(texts["as_of"]),
        total=int(texts["total"]),
        state=texts.get("state", RUNNING),
        done=int(texts.get("done", 0)),
        refused=int(texts.get("refused", 0)),
        passed=int(texts.get("passed", 0)),
        after=texts.get("after", ""),
        beat_at=datetime.fromisoformat(beat) if beat else None,
        runner=texts.get("runner", ""),
        note=texts.get("note", ""),
    )
