"""Previewing one invoice: judged and counted as a run would, priced, and nothing is written."""

from __future__ import annotations

from worker.counting import spans_of
from worker.decision import Hold, Known, Recalculate, Skip, Wait, judge_invoice, judge_match
from worker.domain import InvoiceKey, Rules
from worker.judging import judged_and_counted, read_metadata
from worker.ports import Ports
from worker.preview import Preview, preview_of
from worker.record import Progress, progress_of

Unbilled = Wait | Hold | Skip


def previewed(key: InvoiceKey, ports: Ports, rules: Rules) -> Preview | Unbilled:
    """Judge and count an invoice as a run would, and ask the platform what it would cost."""
    history = ports.journal.history(key)
    invoice = ports.platform.invoice(key.invoice_id)
    known = Known(
        progress=progress_of(history.entries) if history else Progress(),
        first_seen_at=history.row.first_seen_at if history else ports.now() - rules.grace,
        now=ports.now(),
    )
    decision = judge_invoice(invoice, known, rules)
    if isinstance(decision, Wait | Hold | Skip):
        return decision
    if decision is not None or invoice is None:
        return Skip("it is not pending any more; reconciler show tells what was billed")
    charges = read_metadata(ports.platform.usage_charges(invoice), ports, rules)
    tallies = history.tallies if history else ()
    if tallies and (changed := judge_match(charges, tallies)):
        return changed
    if not tallies:
        billed = ports.journal.billed(key, spans_of(charges, rules))
        counted = judged_and_counted(charges, billed, known, ports, rules)
        if not isinstance(counted, Recalculate):
            return counted
        tallies = counted.tallies
    return preview_of(invoice, charges, tallies, ports.platform)
