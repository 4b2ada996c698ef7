"""The sweep: rings again for every invoice that is due, unclaimed and unfinished.

Redis may lose jobs and be wiped; the journal does not, so one interval later all of them ring.
"""

from __future__ import annotations

import threading

import structlog

from worker.config import Config
from worker.doorbell import Doorbell
from worker.errors import JournalUnavailable, QueueUnavailable
from worker.journal import open_journal
from worker.ports import Journal
from worker.wiring import utc_now

log = structlog.get_logger("sweep")


def sweep_once(journal: Journal, doorbell: Doorbell) -> int:
    """Ring for what is due; return for how many invoices."""
    keys = journal.due(utc_now())
    for key in keys:
        doorbell.ring(key)
    return len(keys)


def sweep(config: Config, stop: threading.Event) -> None:
    """Sweep every interval until told to stop; a failed round is logged and tried again."""
    journal = open_journal(config.journal.url)
    doorbell = Doorbell(config.queue.redis_url, config.queue.name)
    log.info("sweep_started", every_seconds=config.queue.sweep_interval_seconds)
    while not stop.is_set():
        try:
            rung = sweep_once(journal, doorbell)
            log.log(20 if rung else 10, "swept", rung=rung)
        except (JournalUnavailable, QueueUnavailable) as error:
            log.warning("sweep_failed", reason=str(error))
        stop.wait(config.queue.sweep_interval_seconds)
    log.info("sweep_stopped")
