"""What the demo shows in the end: a table for people, one JSON document for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sandbox.wire import encode
from worker.demo import scenario
from worker.record import EntryKind, History, InvoiceRow, State
from worker.story import charges_by_id, last_seen

_WIDTH = 80
_ROW = "{:<37} {:<9} {:>9} {:>3} {:>18}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The demo's invoices as the journal tells them."""

    histories: Sequence[History]
    held_first: Mapping[str, str]  # by invoice id: why it was held before its replay

    def to_json(self) -> str:
        """Return one JSON document; amounts are exact JSON numbers."""
        return encode(
            {
                "invoices": [_invoice_json(history) for history in self.histories],
                "held_first": dict(self.held_first),
            }
        ).decode()

    def to_table(self) -> str:
        """Return a table of two lines an invoice, at most 80 columns wide."""
        shows = {story.invoice_id: story.shows for story in scenario.STORIES}
        lines = [_ROW.format("invoice", "outcome", "written", "v", "total"), "─" * _WIDTH]
        for history in self.histories:
            row, seen = history.row, last_seen(history)
            written = f"{_written(history)} of {len(history.tallies)}"
            total = f"{seen['total']} {seen['currency']}"
            lines += [
                _ROW.format(row.key.invoice_id, row.state, written, seen["version"], total),
                *_wrapped(f"{shows[row.key.invoice_id]}{self._why(row)}"),
            ]
        return "\n".join(lines)

    def totals(self) -> dict[str, Decimal]:
        """Return what each invoice comes to, as the platform last said."""
        return {
            history.row.key.invoice_id: Decimal(last_seen(history).get("total", "NaN"))
            for history in self.histories
        }

    def _why(self, row: InvoiceRow) -> str:
        if held := self.held_first.get(row.key.invoice_id):
            return f". First held: {held}"
        return "" if row.state is State.ISSUED else f": {row.reason}"


def report_of(histories: Sequence[History], held_first: Mapping[str, str]) -> Report:
    """Make the report."""
    return Report(histories=histories, held_first=held_first)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _written(history: History) -> int:
    return sum(entry.kind is EntryKind.CHARGE_INTENT for entry in history.entries)


def _invoice_json(history: History) -> dict[str, Any]:
    seen, charges = last_seen(history), charges_by_id(history)
    return {
        "id": history.row.key.invoice_id,
        "outcome": history.row.state.value,
        "reason": history.row.reason,
        "state": seen["state"],
        "version": seen["version"],
        "total": Decimal(seen["total"]),
        "charges": [
            {
                "id": tally.charge_id,
                "component": tally.span.component,
                "quantity": tally.quantity,
                "amount": Decimal(charges[tally.charge_id]["amount"]),
                "source": tally.evidence.source,
                "events": tally.events,
            }
            for tally in history.tallies
        ],
    }
