"""Replaying or releasing many invoices: in small steps, by a thread of the endpoint.

How far it is stands in Redis, so that every process shows it and a stop reaches the one that
works. What was asked for, and by whom, stands there signed: who can write to Redis can end a run,
hold it up or let it skip invoices, but not change whose it is and what it does. Each act goes
through the journal like a single one: what was done before a crash, a stop or an emptied Redis
stays done, and going on does nothing twice.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import cast

import structlog
from itsdangerous import BadData
from redis import RedisError
from werkzeug.datastructures import MultiDict

from worker.actions import Asked, Desk
from worker.bulk import BulkRequest, BulkResult, acts, record
from worker.domain import utc, utc_text
from worker.errors import QueueUnavailable, ReconcilerError
from worker.ops.filters import Params, read_query
from worker.ops.visits import signer
from worker.overviews import Cursor

RUNNING, STOPPED, DONE, FAILED = "running", "stopped", "done", "failed"
_STATES = (RUNNING, STOPPED, DONE, FAILED)

_STEP = 20  # invoices between two looks whether it goes on
_DIGITS = 12  # more invoices than any journal has
_KEPT = timedelta(days=7)
_SILENT = timedelta(minutes=1)
_ID = 12

log = structlog.get_logger("ops")


class BulkUnreadable(ReconcilerError):
    """What Redis holds under a bulk run's name is not what this program put there."""


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
    after: Cursor | None = None  # how far it got in the list
    beat_at: datetime | None = None
    runner: str = ""  # the thread that may work on it
    note: str = ""  # why it failed, or what a person must know

    @property
    def request(self) -> BulkRequest:
        """Return what it does, and to which invoices."""
        return BulkRequest(
            verb=self.verb,
            wanted=read_query(MultiDict(self.params)).wanted,
            asked=self.asked,
            as_of=self.as_of,
            total=self.total,
        )

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

    def __init__(self, desk: Desk, key: bytes) -> None:
        """Sign with a key that all processes share; no other key's runs are believed."""
        self._desk = desk
        self._redis = desk.doorbell.redis
        self._signer = signer(key, "bulk")

    def begin(self, bulk: Bulk) -> None:
        """Store and record it, and start its thread; raise QueueUnavailable."""
        self._start(bulk, "bulk")

    def find(self, bulk_id: str) -> Bulk | None:
        """Read how far one is; None: there is none such any more.

        Raise QueueUnavailable, or BulkUnreadable where it is not as this program wrote it.
        """
        try:
            found = cast(dict[bytes, bytes], self._redis.hgetall(_key(bulk_id)))
        except RedisError as error:
            raise QueueUnavailable(self._desk.doorbell.told(error)) from error
        try:
            return self._bulk(bulk_id, _texts(found)) if found else None
        except (BadData, KeyError, ValueError, OverflowError) as error:
            told = "what Redis keeps of it is damaged, or not signed by this installation"
            raise BulkUnreadable(told) from error

    def stop(self, bulk: Bulk, by: str) -> None:
        """Let it end after the step it is at, and record who stopped it; raise QueueUnavailable."""
        self._put(bulk.id, {"state": STOPPED})
        self._record("stop bulk", _taken_over(bulk, by))

    def go_on(self, bulk: Bulk, by: str) -> None:
        """Start a thread where the last one got, in this person's name; raise QueueUnavailable."""
        self._start(_taken_over(bulk, by), "go on with bulk")

    def _start(self, asked: Bulk, how: str) -> None:
        bulk = replace(asked, runner=secrets.token_hex(4))
        beat = utc_text(self._desk.now())
        signed = self._signed(bulk)
        self._put(bulk.id, {"signed": signed, "state": RUNNING, "beat_at": beat, "note": ""})
        self._record(how, bulk)
        threading.Thread(
            target=self._run, args=(bulk.id, bulk.runner), name=f"bulk-{bulk.id}", daemon=True
        ).start()

    def _record(self, how: str, bulk: Bulk) -> None:
        """Keep in the journal what Redis forgets."""
        record(self._desk, how, bulk.request, f"run {bulk.id}")

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
        found = list(islice(acts(self._desk, bulk.request, bulk.after), _STEP))
        became = Counter(one.became for one in found)
        warnings = [one.told for one in found if one.became is BulkResult.DONE and one.told]
        numbers = {
            "done": bulk.done + became[BulkResult.DONE],
            "refused": bulk.refused + became[BulkResult.REFUSED],
            "passed": bulk.passed + became[BulkResult.PASSED],
        }
        stored = {name: str(number) for name, number in numbers.items()}
        stored |= {"beat_at": utc_text(self._desk.now()), "note": [bulk.note, *warnings][-1]}
        if len(found) < _STEP:
            log.info("ops_bulk_done", bulk=bulk.id, by=bulk.asked.by, verb=bulk.verb, **numbers)
            return {**stored, "state": DONE}
        return {**stored, "after": str(found[-1].cursor)}

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

    def _signed(self, bulk: Bulk) -> str:
        told = {
            "id": bulk.id,
            "runner": bulk.runner,
            "verb": bulk.verb,
            "params": bulk.params,
            "by": bulk.asked.by,
            "reason": bulk.asked.reason,
            "as_of": utc_text(bulk.as_of),
            "total": bulk.total,
        }
        return str(self._signer.dumps(told))

    def _bulk(self, bulk_id: str, texts: Mapping[str, str]) -> Bulk:
        """Believe what is signed, of this very run; the rest only says how far it is."""
        told = self._signer.loads(texts["signed"], max_age=int(_KEPT.total_seconds()))
        if told["id"] != bulk_id or texts["state"] not in _STATES:
            raise ValueError("it is another run's, or in no state that a run can be in")
        return Bulk(
            id=bulk_id,
            runner=told["runner"],
            verb=told["verb"],
            params=told["params"],
            asked=Asked(told["by"], told["reason"]),
            as_of=datetime.fromisoformat(told["as_of"]),
            total=told["total"],
            state=texts["state"],
            done=_number(texts.get("done", "0")),
            refused=_number(texts.get("refused", "0")),
            passed=_number(texts.get("passed", "0")),
            after=Cursor.of(texts["after"]) if "after" in texts else None,
            beat_at=utc(datetime.fromisoformat(texts["beat_at"])),
            note=texts.get("note", ""),
        )


def new_id() -> str:
    """Name a bulk run."""
    return secrets.token_hex(_ID)


def _taken_over(bulk: Bulk, by: str) -> Bulk:
    return replace(bulk, asked=Asked(by, bulk.asked.reason))


def _key(bulk_id: str) -> str:
    return f"reconciler:bulk:{bulk_id}"


def _texts(found: Mapping[bytes, bytes]) -> Mapping[str, str]:
    return {name.decode(): text.decode() for name, text in found.items()}


def _number(text: str) -> int:
    if len(text) > _DIGITS or not text.isdecimal():
        raise ValueError("it counts no invoices")
    return int(text)
