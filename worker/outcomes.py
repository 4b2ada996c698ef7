"""How runs end, and what the journal keeps of invoices and charges; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from worker.decision import Wait
from worker.domain import Invoice, InvoiceState, Rules, UsageCharge, utc_text
from worker.preview import Preview, preview_json
from worker.record import BilledSpan, EntryKind, Outcome, State
from worker.writes import Exchange

_LONGEST_RETRY_AFTER = timedelta(hours=1)
_JITTER = 0.25  # a delay is lengthened by up to this share, so that retries spread

Result = tuple[EntryKind, Outcome, dict[str, Any]]
"""What to journal as a run's end: the kind of entry, the outcome, what else to note."""


def held(reason: str) -> Result:
    """End for a person to look."""
    return EntryKind.HELD, Outcome(state=State.HELD, reason=reason), {}


def waiting(wait: Wait, attempt: int) -> Result:
    """End until a later time; no attempt is spent."""
    outcome = Outcome(state=State.WAITING, reason=wait.reason, due_at=wait.until, attempt=attempt)
    return EntryKind.WAITING, outcome, {"until": utc_text(wait.until)}


def stopped(now: datetime, attempt: int) -> Result:
    """End because the worker was asked to; another may go on at once."""
    reason = "the worker was asked to end; the next goes on"
    outcome = Outcome(state=State.DUE, reason=reason, due_at=now, attempt=attempt)
    return EntryKind.STOPPED, outcome, {}


def failed(reason: str, attempt: int, due_at: datetime, rules: Rules) -> Result:
    """End with a passing failure, to be tried again; after the last attempt, held."""
    if attempt >= rules.max_attempts:
        return held(exhausted(attempt, reason))
    outcome = Outcome(state=State.RETRYING, reason=reason, due_at=due_at, attempt=attempt)
    return EntryKind.FAILED, outcome, {"attempt": attempt, "until": utc_text(due_at)}


def exhausted(attempt: int, reason: str) -> str:
    """Say that the last attempt is spent."""
    return f"exhausted after {attempt} attempts; the last: {reason}"


def retry_delay(
    attempt: int, retry_after: timedelta | None, random: float, rules: Rules
) -> timedelta:
    """Return how long to wait after the nth failure in a row; `random` is in [0, 1).

    What the other side asked for is honoured up to an hour, and never shortens our own delay.
    """
    delays = rules.retry_delays
    delay = delays[min(attempt, len(delays)) - 1] * (1 + _JITTER * random)
    asked = min(max(retry_after or timedelta(0), timedelta(0)), _LONGEST_RETRY_AFTER)
    return max(delay, asked)


def issued(invoice: Invoice, charges: Sequence[UsageCharge]) -> Result:
    """End with the invoice issued and every charge read back."""
    reason = f"{invoice.state_text}, {invoice.total} {invoice.currency}"
    data = {**seen(invoice), "charges": [answered(charge) for charge in charges]}
    return EntryKind.ISSUED, Outcome(state=State.ISSUED, reason=reason), data


def observed(preview: Preview) -> Result:
    """End with what would be billed, where nothing may be written."""
    reason = f"would bill {preview.total} {preview.invoice.currency}; the mode is observe"
    return EntryKind.PREVIEWED, Outcome(state=State.OBSERVED, reason=reason), preview_json(preview)


def billed_elsewhere(other: BilledSpan) -> str:
    """Say which invoice bills what this one would."""
    return f'"{other.span.component}" {other.span.period} is billed on {other.invoice_id}'


def seen(invoice: Invoice | None) -> dict[str, Any]:
    """Return what the platform said of an invoice, JSON-ready."""
    if invoice is None:
        return {"found": False}
    return {
        "state": invoice.state_text,
        "pending": invoice.state is InvoiceState.PENDING,
        "type": invoice.type,
        "version": invoice.version,
        "total": str(invoice.total),
        "currency": invoice.currency,
        "subscription_id": invoice.subscription_id,
        "account_id": invoice.account_id,
    }


def listed(charge: UsageCharge) -> dict[str, Any]:
    """Return what a charge bills, JSON-ready, to find an invoice by that was not counted."""
    period = charge.period
    return {
        "charge_id": charge.id,
        "component": charge.component,
        "period_start": period and utc_text(period.start),
        "period_end": period and utc_text(period.end),
    }


def answered(charge: UsageCharge) -> dict[str, Any]:
    """Return what the platform said of a charge, JSON-ready."""
    return {
        "charge_id": charge.id,
        "component": charge.component,
        "name": charge.name,
        "quantity": None if charge.quantity is None else str(charge.quantity),
        "amount": str(charge.amount),
        "version": charge.version,
    }


def exchanged(exchange: Exchange | None) -> dict[str, str]:
    """Return what was sent and what came back, JSON-ready; empty: there is nothing to tell."""
    return {} if exchange is None else {"request": exchange.request, "answer": exchange.answer}
