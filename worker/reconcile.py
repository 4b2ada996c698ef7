"""The one use case: bring an invoice to issued, held, skipped, or a later time to look again.

    claim -> fetch -> judge -> list charges -> judge -> count -> judge -> freeze tallies
          -> write what differs -> read back -> issue -> read back -> settle

Whatever stops a run, the next continues from the journal: frozen tallies are written as they
are, and an intent without an answer is read back before anything is written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from worker.counting import spans_of
from worker.decision import (
    Decision,
    Hold,
    Known,
    Recalculate,
    Skip,
    Verify,
    Wait,
    differences,
    judge_invoice,
    judge_match,
)
from worker.domain import (
    FrozenTally,
    Invoice,
    InvoiceKey,
    InvoiceState,
    Mode,
    Rules,
    UsageCharge,
)
from worker.errors import (
    JournalUnavailable,
    LeaseLost,
    OutcomeUnknown,
    PermanentError,
    ReconcilerError,
    RecordInvalid,
    Stopped,
    TransientError,
)
from worker.judging import judged_and_counted, read_metadata
from worker.outcomes import (
    Result,
    answered,
    billed_elsewhere,
    exchanged,
    failed,
    held,
    issued,
    listed,
    observed,
    retry_delay,
    seen,
    stopped,
    waiting,
)
from worker.ports import Journal, Ports
from worker.preview import preview_of
from worker.record import (
    Claim,
    Entry,
    EntryKind,
    History,
    Outcome,
    State,
    progress_of,
)

_SHORT_LEASE = timedelta(seconds=30)


def reconcile(
    key: InvoiceKey, *, owner: str, ports: Ports, rules: Rules, trace_id: str = ""
) -> Outcome | None:
    """Work on one invoice as far as it goes now; None: not due, or another worker has it.

    Every failure is journaled before this returns; one that is a defect of the program itself
    is raised again after that. JournalUnavailable leaves the claim to run out.
    """
    claim = ports.journal.claim(key, owner, ports.now(), rules.lease, trace_id)
    if claim is None:
        return None
    try:
        return _outcome(claim, ports, rules)
    except LeaseLost:
        return None


def _outcome(claim: Claim, ports: Ports, rules: Rules) -> Outcome:
    try:
        run = _Run(claim, ports, rules)
    except RecordInvalid as error:  # what was counted and written is unknown: nothing is begun
        return _held(claim, str(error), ports.journal, ports.now())
    return run.outcome()


def hold(
    key: InvoiceKey, reason: str, *, owner: str, journal: Journal, at: datetime
) -> Outcome | None:
    """Hold an invoice that nothing can be done for as things are configured; None: not due."""
    claim = journal.claim(key, owner, at, _SHORT_LEASE)
    return None if claim is None else _held(claim, reason, journal, at)


def _held(claim: Claim, reason: str, journal: Journal, at: datetime) -> Outcome:
    outcome = Outcome(state=State.HELD, reason=reason)
    entry = Entry(kind=EntryKind.HELD, at=at, data={"reason": outcome.reason})
    journal.settle(claim, [entry], outcome)
    return outcome


class _Run:
    """One claimed run on one invoice."""

    def __init__(self, claim: Claim, ports: Ports, rules: Rules) -> None:
        self._claim = claim
        self._ports = ports
        self._rules = rules
        self._unwritten: list[Entry] = []  # go to the journal with its next commit
        self._unknown: dict[str, str] = {}  # the first write that may or may not be applied
        self._began_at = ports.now()
        self._calls_before = ports.platform.calls
        self._history = _history_of(claim, ports.journal)
        ports.tell_attempt(self._history.row.attempt)
        self._charges: Sequence[UsageCharge] = ()

    def outcome(self) -> Outcome:
        """Do the work and settle what came of it."""
        try:
            result = self._result()
        except (JournalUnavailable, LeaseLost):
            raise
        except TransientError as error:
            result = self._failed(str(error), error.retry_after)
        except Stopped:
            result = stopped(self._ports.now(), self._history.row.attempt)
        except ReconcilerError as error:
            result = held(str(error))
        except Exception as error:
            self._settle(*self._failed(f"unexpected {type(error).__name__} in the program", None))
            raise
        return self._settle(*result)

    def _settle(self, kind: EntryKind, outcome: Outcome, data: dict[str, Any]) -> Outcome:
        """Journal the result and give up the claim."""
        outcome = replace(
            outcome,
            seconds=round((self._ports.now() - self._began_at).total_seconds(), 3),
            calls=self._ports.platform.calls - self._calls_before,
            read_back=any(entry.kind is EntryKind.ISSUED for entry in self._history.entries),
        )
        if kind is EntryKind.HELD and self._charges:
            data = {"charges": [listed(charge) for charge in self._charges], **data}
        took = {"seconds": outcome.seconds, "calls": outcome.calls}
        self._note(kind, {"reason": outcome.reason, **data, **self._unknown, **took})
        self._ports.journal.settle(self._claim, self._unwritten, outcome)
        self._ports.tell_attempt(outcome.attempt)
        return outcome

    def _result(self) -> Result:
        """Judge what is known, learn more where that is not enough, and act."""
        if self._history.row.attempt >= self._rules.max_attempts:
            return held("exhausted: its workers died, one after the other")
        invoice = self._fetched()
        known = self._known()
        decision = judge_invoice(invoice, known, self._rules)
        if invoice is None or decision:
            return self._carried_out(decision, invoice, ())
        self._ports.go_on()
        charges = self._charges = self._ports.platform.usage_charges(invoice)
        if self._history.tallies:
            return self._resumed(invoice, charges, self._history.tallies)
        charges = read_metadata(charges, self._ports, self._rules)
        return self._carried_out(self._judged_and_counted(charges, known), invoice, charges)

    def _resumed(
        self, invoice: Invoice, charges: Sequence[UsageCharge], tallies: tuple[FrozenTally, ...]
    ) -> Result:
        """Go on with the numbers that were frozen, unless they are billed elsewhere by now."""
        if self._rules.mode is Mode.OBSERVE:
            return held("it was begun, and the mode is observe since; set it to write, then replay")
        others = self._ports.journal.billed(self._claim.key, [t.span for t in tallies])
        if others and not progress_of(self._history.entries).unfinished:
            return held(billed_elsewhere(others[0]))
        return self._recalculated(invoice, charges, tallies)

    def _carried_out(
        self, decision: Decision | None, invoice: Invoice | None, charges: Sequence[UsageCharge]
    ) -> Result:
        match decision, invoice:
            case Wait(), _:
                return waiting(decision, self._history.row.attempt)
            case Skip(reason), _:
                return EntryKind.SKIPPED, Outcome(state=State.SKIPPED, reason=reason), {}
            case Verify(), Invoice():
                return self._verified(invoice, self._history.tallies)
            case Recalculate(tallies), Invoice() if self._rules.mode is Mode.OBSERVE:
                return observed(preview_of(invoice, charges, tallies, self._ports.platform))
            case Recalculate(tallies), Invoice():
                return self._recalculated(invoice, charges, tallies)
            case Hold(reason), _:
                return held(reason)
        raise TypeError(f"nothing can be done of {decision}")

    def _fetched(self) -> Invoice | None:
        invoice = self._ports.platform.invoice(self._claim.key.invoice_id)
        self._note(EntryKind.FETCHED, seen(invoice))
        return invoice

    def _known(self) -> Known:
        return Known(
            progress=progress_of(self._history.entries),
            first_seen_at=self._history.row.first_seen_at,
            now=self._ports.now(),
        )

    def _judged_and_counted(self, charges: Sequence[UsageCharge], known: Known) -> Decision:
        """Count what the charges bill, and freeze it where it is to be written."""
        billed = self._ports.journal.billed(self._claim.key, spans_of(charges, self._rules))
        decision = judged_and_counted(charges, billed, known, self._ports, self._rules)
        if isinstance(decision, Recalculate) and self._rules.mode is Mode.WRITE:
            self._freeze(decision.tallies)
        return decision

    def _freeze(self, tallies: tuple[FrozenTally, ...]) -> None:
        now = self._ports.now()
        others = self._ports.journal.freeze(self._claim, self._unwritten, tallies, now)
        if others:
            raise PermanentError(billed_elsewhere(others[0]))
        self._unwritten = []

    def _recalculated(
        self, invoice: Invoice, charges: Sequence[UsageCharge], tallies: tuple[FrozenTally, ...]
    ) -> Result:
        wanted = differences(charges, tallies)
        if wanted and not judge_match(charges, tallies):
            self._write(invoice, charges, wanted)
            self._ports.go_on()
            charges = self._ports.platform.usage_charges(invoice)
        mismatch = judge_match(charges, tallies)
        if mismatch is not None:
            return held(mismatch.reason)
        if left := differences(charges, tallies):
            raise TransientError(f"the platform still shows another quantity on {sorted(left)}")
        return self._issued(invoice, tallies)

    def _issued(self, invoice: Invoice, tallies: tuple[FrozenTally, ...]) -> Result:
        """Issue the invoice if it is still pending, and read back that it is."""
        self._ports.go_on()
        now_there = self._ports.platform.invoice(invoice.id)
        if now_there is None or now_there.state is not InvoiceState.PENDING:
            raise TransientError("the invoice changed while we were at work on it")
        self._issue(now_there)
        after = self._ports.platform.invoice(invoice.id)
        if after is None or after.state is InvoiceState.PENDING:
            raise OutcomeUnknown("the platform said that it is issued, and shows it pending yet")
        return self._verified(after, tallies)

    def _write(
        self, invoice: Invoice, charges: Sequence[UsageCharge], wanted: Mapping[str, int]
    ) -> None:
        self._ports.go_on()
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
        writes = self._ports.platform.recalculate(invoice, wanted, self._ports.stopping)
        for write in writes:
            failure = failure or write.error
            sent = exchanged(write.exchange)
            if write.charge is not None:
                self._note(EntryKind.CHARGE_ANSWER, {**answered(write.charge), **sent})
            elif isinstance(write.error, OutcomeUnknown):
                self._unknown = self._unknown or sent
            else:
                data = {"charge_id": write.charge_id, "error": str(write.error), **sent}
                self._note(EntryKind.CHARGE_ANSWER, data)
            self._append()
        if failure is not None:
            raise failure

    def _issue(self, invoice: Invoice) -> None:
        self._ports.go_on()
        self._note(EntryKind.ISSUE_INTENT, {"version": invoice.version})
        self._append()
        write = self._ports.platform.issue(invoice)
        sent = exchanged(write.exchange)
        if write.error is None:
            self._note(EntryKind.ISSUE_ANSWER, {**seen(write.invoice), **sent})
            self._append()
            return
        if isinstance(write.error, OutcomeUnknown):
            self._unknown = sent
        else:
            self._note(EntryKind.ISSUE_ANSWER, {"error": str(write.error), **sent})
        raise write.error

    def _verified(self, invoice: Invoice, tallies: Sequence[FrozenTally]) -> Result:
        charges = self._ports.platform.usage_charges(invoice)
        mismatch = judge_match(charges, tallies)
        wrong = differences(charges, tallies)
        if mismatch is not None or wrong:
            told = mismatch.reason if mismatch else f"quantities differ on {sorted(wrong)}"
            return held(f"it is {invoice.state_text}, but not as we counted it: {told}")
        return issued(invoice, charges)

    def _failed(self, reason: str, retry_after: timedelta | None) -> Result:
        attempt = self._history.row.attempt + 1
        wait = retry_delay(attempt, retry_after, self._ports.random(), self._rules)
        return failed(reason, attempt, self._ports.now() + wait, self._rules)

    def _note(self, kind: EntryKind, data: dict[str, Any]) -> None:
        self._unwritten.append(Entry(kind=kind, at=self._ports.now(), data=data))

    def _append(self) -> None:
        if self._unwritten:
            lease_until = self._ports.now() + self._rules.lease
            self._ports.journal.append(self._claim, self._unwritten, lease_until)
            self._unwritten = []


def _history_of(claim: Claim, journal: Journal) -> History:
    history = journal.history(claim.key)
    if history is None:
        raise LookupError(f"claimed, and not in the journal: {claim.key}")
    return history
