"""What RQ runs: one function, whose arguments are ids and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from worker.causes import cause_of, quiet_cause_of
from worker.domain import InvoiceKey
from worker.errors import ConfigError, ReconcilerError
from worker.logs import configure_logs, mask_also
from worker.measured import close_source
from worker.metrics import DECISIONS, DUPLICATES, RUN_SECONDS
from worker.outcomes import exhausted
from worker.reconcile import hold, reconcile
from worker.record import Outcome, State
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
    numbers.add(DECISIONS, *_decision(outcome))
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
    ports = replace(ports, tell_attempt=lambda attempt: bind_contextvars(attempt=attempt))
    rules = service.config.rules
    return reconcile(key, owner=owner(), ports=ports, rules=rules, trace_id=trace_id)


def _decision(outcome: Outcome) -> tuple[str, str]:
    """Name how a run ended, and why; of a retry, why it would be held after the last."""
    state, reason = outcome.state, outcome.reason
    match state:
        case State.HELD:
            return state.value, cause_of(reason).key
        case State.RETRYING:
            return state.value, cause_of(exhausted(outcome.attempt, reason)).key
        case State.WAITING | State.SKIPPED:
            return state.value, quiet_cause_of(reason)
        case State.ISSUED if outcome.read_back:
            return "confirmed", ""
    return state.value, ""


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
            before = self._service
            try:
                self._service = self._made(before)
            except ConfigError as error:
                log.error("configuration_refused", complaints=error.complaints)  # noqa: TRY400
            else:
                self._made_from = version
                log.info("configuration_read_again")
                _close_sources(before)
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
        if before is not None:
            mask_also(before.config.secrets)  # its sources are still to be closed
        return service


def _close_sources(former: Service) -> None:
    """Give up what a former service's sources keep open; nobody asks them any more."""
    for name, source in former.sources.items():
        try:
            close_source(source)
        except Exception as error:  # noqa: BLE001  a source is code of others too
            log.warning("source_not_closed", source=name, reason=type(error).__name__)


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


current = CurrentService()
