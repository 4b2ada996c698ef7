"""The one use case: bring an invoice to issued, held, skipped, or a later time to look again.

    claim -> fetch -> judge -> list charges -> judge -> count -> judge -> freeze tallies
          -> write what differs -> read back -> issue -> read back -> settle

Whatever stops a run, the next one continues from the journal: frozen tallies are written as
they are, and an intent without an answer is read back before anything is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from worker.decision import (
    Decision,
    Hold,
    Known,
    Recalculate,
    Skip,
    Verify,
    Wait,
    differences,
    judge_charges,
    judge_invoice,
    judge_match,
    judge_tallies,
    judge_watermarks,
    queries_by_source,
)
from worker.domain import (
    FrozenTally,
    Invoice,
    InvoiceKey,
    InvoiceState,
    Rules,
    Tally,
    UsageCharge,
    UsageQuery,
    utc_text,
)
from worker.errors import (
    LeaseLost,
    OutcomeUnknown,
    PermanentError,
    ReconcilerError,
    SourceInvalid,
    TransientError,
)
from worker.ports import BillingPlatform, Journal, UsageSource
from worker.record import (
    BilledSpan,
    Claim,
    Entry,
    EntryKind,
    History,
    Outcome,
    State,
    progress_of,
)

_LONGEST_RETRY_AFTER = timedelta(hours=1)
_JITTER = 0.25  # a delay is lengthened by up to this share, so that retries spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a run needs from outside; time and randomness too."""

    platform: BillingPlatform
    sources: Mapping[str, UsageSource]
    journal: Journal
    now: Callable[[], datetime]
    random: Callable[[], float]  # in [0, 1)


def reconcile(key: InvoiceKey, *, owner: str, ports: Ports, rules: Rules) -> Outcome | None:
    """Work on one invoice as far as it goes now; None: not due, or another worker has it.

    Every failure is journaled before this returns; one that is a defect of the program itself
    is raised again after that. JournalUnavailable and LeaseLost leave the claim to run out.
    """
    claim = ports.journal.claim(key, owner, ports.now(), rules.lease)
    if claim is None:
        return None
    run = _Run(claim, ports, rules)
    try:
        return run.settle(*run.result())
    except LeaseLost:
        return None


class _Run:
    """One claimed run on one invoice."""

    def __init__(self, claim: Claim, ports: Ports, rules: Rules) -> None:
        self._claim = claim
        self._ports = ports
        self._rules = rules
        self._unwritten: list[Entry] = []  # go to the journal with its next commit
        self._began_at = ports.now()
        self._calls_before = ports.platform.calls
        history = ports.journal.history(claim.key)
        if history is None:
            raise LookupError(f"claimed, and not in the journal: {claim.key}")
        self._history: History = history

    def result(self) -> tuple[EntryKind, Outcome, dict[str, Any]]:
        """Do the work; return what to journal as its result."""
        try:
            return self._carry_out(self._decide())
        except TransientError as error:
            return self._failed(str(error), error.retry_after)
        except PermanentError as error:
            return _held(str(error))
        except ReconcilerError:
            raise
        except Exception as error:
            self.settle(*self._failed(f"unexpected {type(error).__name__} in the program", None))
            raise

    def settle(self, kind: EntryKind, outcome: Outcome, data: dict[str, Any]) -> Outcome:
        """Journal the result and give up the claim."""
        outcome = replace(
            outcome,
            seconds=round((self._ports.now() - self._began_at).total_seconds(), 3),
            calls=self._ports.platform.calls - self._calls_before,
        )
        took = {"seconds": outcome.seconds, "calls": outcome.calls}
        self._note(kind, {"reason": outcome.reason, **data, **took})
        self._ports.journal.settle(self._claim, self._taken_notes(), outcome)
        return outcome

    def _decide(self) -> tuple[Decision, Invoice | None, Sequence[UsageCharge]]:
        platform, now = self._ports.platform, self._ports.now
        invoice = platform.invoice(self._claim.key.invoice_id)
        self._note(EntryKind.FETCHED, _seen(invoice))
        known = Known(
            progress=progress_of(self._history.entries),
            first_seen_at=self._history.row.first_seen_at,
            now=now(),
        )
        decision = judge_invoice(invoice, known, self._rules)
        if decision is not None or invoice is None:
            return decision or Skip("it is gone"), invoice, ()
        charges = platform.usage_charges(invoice)
        if self._history.tallies:
            return Recalculate(self._history.tallies), invoice, charges
        return self._judge_and_count(charges), invoice, charges

    def _judge_and_count(self, charges: Sequence[UsageCharge]) -> Decision:
        rules, now = self._rules, self._ports.now
        spans = [charge.span for charge in charges if charge.span]
        billed = self._ports.journal.billed(self._claim.key, spans)
        decision = judge_charges(charges, billed, rules, now())
        if decision is not None:
            return decision
        plan = queries_by_source(charges, rules)
        watermarks = {name: self._ports.sources[name].watermark() for name in plan}
        wait = judge_watermarks(charges, watermarks, rules, now())
        if wait is not None:
            return wait
        tallies = [tally for name, queries in plan.items() for tally in self._count(name, queries)]
        decision = judge_tallies(charges, tallies, rules)
        if isinstance(decision, Recalculate):
            self._freeze(decision.tallies)
        return decision

    def _count(self, source: str, queries: tuple[UsageQuery, ...]) -> Sequence[Tally]:
        try:
            return self._ports.sources[source].count(queries)
        except TransientError as error:
            raise type(error)(
                f'source "{source}": {error}', retry_after=error.retry_after
            ) from error
        except ReconcilerError as error:
            raise SourceInvalid(f'source "{source}": {error}') from error
        except Exception as error:
            raise SourceInvalid(f'source "{source}" crashed: {type(error).__name__}') from error

    def _freeze(self, tallies: tuple[FrozenTally, ...]) -> None:
        now = self._ports.now()
        others = self._ports.journal.freeze(self._claim, self._taken_notes(), tallies, now)
        if others:
            raise PermanentError(_overlap(others[0]))

    def _carry_out(
        self, found: tuple[Decision, Invoice | None, Sequence[UsageCharge]]
    ) -> tuple[EntryKind, Outcome, dict[str, Any]]:
        decision, invoice, charges = found
        attempt = self._history.row.attempt
        match decision:
            case Wait(until, reason):
                outcome = Outcome(state=State.WAITING, reason=reason, due_at=until, attempt=attempt)
                return EntryKind.WAITING, outcome, {"until": utc_text(until)}
            case Hold(reason):
                return _held(reason)
            case Skip(reason):
                return EntryKind.SKIPPED, Outcome(state=State.SKIPPED, reason=reason), {}
        assert invoice is not None  # noqa: S101  without one, it was held or is waited for
        match decision:
            case Verify():
                return self._verify(invoice, self._history.tallies)
            case Recalculate(tallies):
                return self._recalculate(invoice, charges, tallies)

    def _recalculate(
        self, invoice: Invoice, charges: Sequence[UsageCharge], tallies: tuple[FrozenTally, ...]
    ) -> tuple[EntryKind, Outcome, dict[str, Any]]:
        wanted = differences(charges, tallies)
        if wanted and not judge_match(charges, tallies):
            self._write(invoice, charges, wanted)
            charges = self._ports.platform.usage_charges(invoice)
        mismatch = judge_match(charges, tallies)
        if mismatch is not None:
            return _held(mismatch.reason)
        if left := differences(charges, tallies):
            raise TransientError(f"the platform still shows another quantity on {sorted(left)}")
        self._issue(invoice)
        issued = self._ports.platform.invoice(invoice.id)
        if issued is None or issued.state is InvoiceState.PENDING:
            raise OutcomeUnknown("the platform said that it is issued, and shows it pending yet")
        return self._verify(issued, tallies)

    def _write(
        self, invoice: Invoice, charges: Sequence[UsageCharge], wanted: Mapping[str, int]
    ) -> None:
        for charge in charges:
            if charge.id in wanted:
                data = {
                    "charge_id": charge.id,
                    "component": charge.component,
                    "from": None if charge.quantity is None else str(charge.quantity),
                    "to": wanted[charge.id],
                }
                self._note(EntryKind.CHARGE_INTENT, data)
        self._append()
        failure: ReconcilerError | None = None
        for write in self._ports.platform.recalculate(invoice, wanted):
            failure = failure or write.error
            if write.charge is not None:
                self._note(EntryKind.CHARGE_ANSWER, _answered(write.charge))
            elif not isinstance(write.error, OutcomeUnknown):
                data = {"charge_id": write.charge_id, "error": str(write.error)}
                self._note(EntryKind.CHARGE_ANSWER, data)
            self._append()
        if failure is not None:
            raise failure

    def _issue(self, invoice: Invoice) -> None:
        self._note(EntryKind.ISSUE_INTENT, {"version": invoice.version})
        self._append()
        try:
            answer = self._ports.platform.issue(invoice)
        except OutcomeUnknown:
            raise
        except ReconcilerError as error:
            self._note(EntryKind.ISSUE_ANSWER, {"error": str(error)})
            raise
        self._note(EntryKind.ISSUE_ANSWER, _seen(answer))
        self._append()

    def _verify(
        self, invoice: Invoice, tallies: Sequence[FrozenTally]
    ) -> tuple[EntryKind, Outcome, dict[str, Any]]:
        charges = self._ports.platform.usage_charges(invoice)
        mismatch = judge_match(charges, tallies)
        wrong = differences(charges, tallies)
        if mismatch is not None or wrong:
            told = mismatch.reason if mismatch else f"quantities differ on {sorted(wrong)}"
            return _held(f"it is {invoice.state_text}, but not as we counted it: {told}")
        reason = f"{invoice.state_text}, {invoice.total} {invoice.currency}"
        outcome = Outcome(state=State.ISSUED, reason=reason)
        data = {**_seen(invoice), "charges": [_answered(charge) for charge in charges]}
        return EntryKind.ISSUED, outcome, data

    def _failed(
        self, reason: str, retry_after: timedelta | None
    ) -> tuple[EntryKind, Outcome, dict[str, Any]]:
        attempt = self._history.row.attempt + 1
        if attempt >= self._rules.max_attempts:
            return _held(f"given up after {attempt} attempts; the last: {reason}")
        delays = self._rules.retry_delays
        delay = delays[min(attempt, len(delays)) - 1] * (1 + _JITTER * self._ports.random())
        asked = min(max(retry_after or timedelta(0), timedelta(0)), _LONGEST_RETRY_AFTER)
        due_at = self._ports.now() + max(delay, asked)
        outcome = Outcome(state=State.RETRYING, reason=reason, due_at=due_at, attempt=attempt)
        return EntryKind.FAILED, outcome, {"attempt": attempt, "until": utc_text(due_at)}

    def _note(self, kind: EntryKind, data: dict[str, Any]) -> None:
        self._unwritten.append(Entry(kind=kind, at=self._ports.now(), data=data))

    def _taken_notes(self) -> list[Entry]:
        notes, self._unwritten = self._unwritten, []
        return notes

    def _append(self) -> None:
        if self._unwritten:
            lease_until = self._ports.now() + self._rules.lease
            self._ports.journal.append(self._claim, self._taken_notes(), lease_until)


def _held(reason: str) -> tuple[EntryKind, Outcome, dict[str, Any]]:
    return EntryKind.HELD, Outcome(state=State.HELD, reason=reason), {}


def _seen(invoice: Invoice | None) -> dict[str, Any]:
    if invoice is None:
        return {"found": False}
    return {
        "state": invoice.state_text,
        "type": invoice.type,
        "version": invoice.version,
        "total": str(invoice.total),
        "currency": invoice.currency,
        "subscription_id": invoice.subscription_id,
        "account_id": invoice.account_id,
    }


def _answered(charge: UsageCharge) -> dict[str, Any]:
    return {
        "charge_id": charge.id,
        "component": charge.component,
        "name": charge.name,
        "quantity": None if charge.quantity is None else str(charge.quantity),
        "amount": str(charge.amount),
        "version": charge.version,
    }


def _overlap(other: BilledSpan) -> str:
    return f'"{other.span.component}" {other.span.period} is billed on {other.invoice_id} already'
