"""What RQ runs: one function, whose arguments are ids and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from worker.causes import cause_of
from worker.domain import InvoiceKey
from worker.errors import ConfigError, ReconcilerError
from worker.logs import configure_logs
from worker.metrics import DECISIONS, DUPLICATES, RUN_SECONDS
from worker.outcomes import exhausted
from worker.ports import Journal
from worker.reconcile import hold, reconcile
from worker.record import Claim, Entry, History, Outcome, State
from worker.wiring import Service, config_path, configured, open_service, utc_now

log = structlog.get_logger("worker")

stop_requested = threading.Event()  # set when this process was asked to end


class InvoiceHeld(ReconcilerError):
    """An invoice is held: the job ends as failed, where operators see and requeue it."""


def reconcile_invoice(platform: str, invoice_id: str) -> None:
    """Work on one invoice as far as it goes now; raise InvoiceHeld when a person must look.

    May run at any time, any number of times: the journal decides whether there is work.
    """
    clear_contextvars()
    bind_contextvars(invoice=invoice_id, platform=platform)
    service, key = current.service(), InvoiceKey(platform, invoice_id)
    with service.measures.tracing.trace("run", invoice=invoice_id, platform=platform) as trace:
        bind_contextvars(trace_id=trace.id)  # until the worker has told how the job ended
        outcome = _outcome(service, key, trace.id)
        if outcome is not None:
            trace.note(state=outcome.state.value, attempt=outcome.attempt)
    numbers = service.measures.numbers
    if outcome is None:
        numbers.add(DUPLICATES, "run")
        log.debug("not_due_or_taken")
        return
    numbers.add(DECISIONS, outcome.state.value, _cause(outcome))
    numbers.observe(RUN_SECONDS, outcome.seconds)
    log.info(
        outcome.state.value,
        reason=outcome.reason,
        attempt=outcome.attempt,
        seconds=outcome.seconds,
        calls=outcome.calls,
    )
    if outcome.state is State.HELD:
        raise InvoiceHeld(f"Held: {outcome.reason}")


def _outcome(service: Service, key: InvoiceKey, trace_id: str) -> Outcome | None:
    if key.platform not in service.platforms:
        reason = (
            f'there is no platform "{key.platform}" in the config any more; add it, then replay'
        )
        return hold(key, reason, owner=owner(), journal=service.journal, at=utc_now())
    ports = service.ports(key.platform, stop_requested.is_set)
    ports = replace(ports, journal=cast(Journal, _AttemptTold(ports.journal)))
    rules = service.config.rules
    return reconcile(key, owner=owner(), ports=ports, rules=rules, trace_id=trace_id)


class _AttemptTold:
    """A run's journal; it puts the attempt on the log lines whenever the run learns of it.

    The attempt is the journal's: how often the invoice failed in a row. A claim may change it, so
    that only what is read after it is right.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def history(self, key: InvoiceKey) -> History | None:
        """Read what there is, and bind the attempt."""
        history = self._journal.history(key)
        if history is not None:
            bind_contextvars(attempt=history.row.attempt)
        return history

    def settle(self, claim: Claim, entries: Sequence[Entry], outcome: Outcome) -> None:
        """Settle, and bind the attempt as it is from now on."""
        self._journal.settle(claim, entries, outcome)
        bind_contextvars(attempt=outcome.attempt)


def _cause(outcome: Outcome) -> str:
    """Name why an invoice is held, or would be after its last attempt; empty: it is neither."""
    match outcome.state:
        case State.HELD:
            return cause_of(outcome.reason).key
        case State.RETRYING:
            return cause_of(exhausted(outcome.attempt, outcome.reason)).key
    return ""


def owner() -> str:
    """Name this process as the holder of a claim."""
    return f"{socket.gethostname()}:{os.getpid()}"


class CurrentService:
    """The process's service; made anew when the configuration file has changed.

    So an operator maps a component and replays, without restarting the workers. A changed file
    with a mistake in it, or one that moves the journal or the queue under running processes, is
    reported with every job, and the last good one stays in force.
    """

    def __init__(self) -> None:
        self._service: Service | None = None
        self._made_from: tuple[int, int, int] | None = None

    def service(self) -> Service:
        """Return the service as the configuration says now."""
        version = _version_of(config_path())
        if self._service is None:
            self._service = self._made(None)
            self._made_from = version
        elif version != self._made_from:
            try:
                self._service = self._made(self._service)
                self._made_from = version
                log.info("configuration_read_again")
            except ConfigError as error:
                log.error("configuration_refused", complaints=error.complaints)  # noqa: TRY400
        return self._service

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in force."""
        return self._service.config.secrets if self._service else ()

    def _made(self, before: Service | None) -> Service:
        config = configured()
        if before is not None:
            old = before.config
            fixed, now = [
                (one.journal, one.queue, one.metrics.folder, one.log.otel) for one in (old, config)
            ]
            if fixed != now:
                told = "journal, queue, metrics.folder, log.otel: restart all processes to change"
                raise ConfigError([f"{told} these"])
        service = open_service(config, *((before.journal, before.measures) if before else ()))
        configure_logs(config.log.level, config.log.format, config.secrets)
        return service


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


current = CurrentService()
