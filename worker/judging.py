"""From an invoice's charges to what would be billed: judge, count, judge; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from worker.asking import counted, watermark_of
from worker.counting import owners_to_read, queries_by_source, with_metadata
from worker.decision import Counted, Known, judge_charges, judge_tallies, judge_watermarks
from worker.domain import Rules, Tally, UsageCharge
from worker.ports import Ports
from worker.record import BilledSpan


def read_metadata(
    charges: Sequence[UsageCharge], ports: Ports, rules: Rules
) -> Sequence[UsageCharge]:
    """Add the metadata that the usage is keyed by; each owner's is read once."""
    owners = owners_to_read(charges, rules)
    return with_metadata(charges, {owner: ports.platform.metadata(*owner) for owner in owners})


def judged_and_counted(
    charges: Sequence[UsageCharge],
    billed: Sequence[BilledSpan],
    known: Known,
    ports: Ports,
    rules: Rules,
) -> Counted:
    """Ask the sources, each once, where nothing stands in the way; judge their answers.

    `billed` is what other invoices bill of the same usage.
    """
    decision = judge_charges(charges, billed, known, rules)
    if decision is not None:
        return decision
    plan = queries_by_source(charges, rules)
    watermarks = {name: watermark_of(ports.sources, name) for name in plan}
    behind = judge_watermarks(charges, watermarks, rules, ports.now())
    if behind is not None:
        return behind
    asked = [query for queries in plan.values() for query in queries]
    tallies: list[Tally] = []
    for name, queries in plan.items():
        ports.go_on()
        tallies += counted(ports.sources, name, queries)
    return judge_tallies(asked, tallies, rules)
