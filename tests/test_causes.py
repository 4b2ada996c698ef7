"""Every reason to hold has a cause, and every cause says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import (
    END,
    INV,
    KEY,
    MINUTE,
    MONTH,
    NOW,
    charge,
    component,
    delivery,
    frozen,
    invoice,
    query,
    rules,
    tally,
)
from fakes import FakePlatform, FakeSource

from worker.causes import CAUSES, OTHER, cause_named, cause_of, quiet_cause_of
from worker.decision import (
    Hold,
    Known,
    Skip,
    Wait,
    judge_charges,
    judge_invoice,
    judge_match,
    judge_tallies,
    judge_watermarks,
)
from worker.domain import InvoiceState, Mode, Rules, Span, Subject, Tally, UsageCharge
from worker.errors import (
    CredentialsRefused,
    PlatformAnswerInvalid,
    PlatformRefused,
    PlatformUnavailable,
    RecordInvalid,
    SourceInvalid,
    SourceUnavailable,
)
from worker.journal.rows import entries_of
from worker.journal.sqlite import SqliteJournal
from worker.metrics import DECISIONS
from worker.outcomes import billed_elsewhere
from worker.ports import Ports
from worker.reconcile import hold, reconcile
from worker.record import BilledSpan, Outcome, Progress, State

HOUR = timedelta(hours=1)
ODD = 'a "b" (c): was counted as 1; has no source'  # a name that looks like reasons do


def known(**progress: Any) -> Known:
    """Make what the journal says."""
    return Known(progress=Progress(**progress), first_seen_at=NOW, now=NOW)


def of_invoice(*, mode: Mode = Mode.WRITE, progress: Any = None, **changed: Any) -> str:
    """Hold for what the invoice is."""
    held = judge_invoice(invoice(**changed), known(**(progress or {})), rules(mode=mode))
    return held.reason  # type: ignore[union-attr]


def of_charges(*charges: UsageCharge, by: Rules | None = None, billed: Any = ()) -> str:
    """Hold for what the usage charges are."""
    return judge_charges(charges, billed, known(), by or rules()).reason  # type: ignore[union-attr]


def of_answer(*answers: Tally, **changed: Any) -> str:
    """Hold for what a source answered."""
    held = judge_tallies([query()], answers, rules(component(**changed)))
    return held.reason  # type: ignore[union-attr]


def of_count(value: Any, **changed: Any) -> str:
    """Hold for what was counted."""
    return of_answer(tally(value), **changed)


def not_known() -> str:
    """Hold what the platform has not known for long."""
    since = NOW - HOUR
    return judge_invoice(None, known(unknown_since=since), rules()).reason  # type: ignore[union-attr]


def behind() -> str:
    """Hold for a source that is behind for too long."""
    late = END + timedelta(days=30)
    held = judge_watermarks([charge()], {"events": END - MINUTE}, rules(), late)
    return held.reason  # type: ignore[union-attr]


def elsewhere() -> BilledSpan:
    """Make what another invoice bills of the same."""
    return BilledSpan(invoice_id="INV-2", span=Span("SUB-1", "Text messages", MONTH))


def by_metadata() -> Rules:
    """Make rules that count by an account's metadata."""
    return rules(component(subject=Subject.of("account.metadata.tenant")))


def unreadable() -> str:
    """Read an entry that is none."""
    row = {"seq": 5, "at": "2026-05-01T00:00:00.000000+00:00", "kind": "counted", "data": "5"}
    with pytest.raises(RecordInvalid) as caught:
        entries_of(KEY, [row])
    return str(caught.value)


REASONS: dict[str, Callable[[], str]] = {
    "unreadable_record": unreadable,
    "unmapped_component": lambda: of_charges(charge(component="Fax pages")),
    "unmapped_component odd": lambda: of_charges(charge(component=ODD)),
    "unmapped_component first": lambda: of_charges(charge(component="Fax"), charge(period=None)),
    "unknown_subject": lambda: of_count(None),
    "source_behind": behind,
    "source_invalid": lambda: of_answer(),
    "fraction": lambda: of_count(Decimal("7.5")),
    "fraction divided": lambda: of_count(7, divide_by=Decimal(2)),
    "max_quantity": lambda: of_count(7, max_quantity=6),
    "impossible_count negative": lambda: of_count(-1),
    "impossible_count NaN": lambda: of_count(Decimal("NaN")),
    "impossible_count large": lambda: of_count(Decimal("1e40")),
    "impossible_count float": lambda: of_answer(replace(tally(), value=1.5)),  # type: ignore[arg-type]
    "billed_twice": lambda: of_charges(charge(), billed=[elsewhere()]),
    "billed_twice late": lambda: billed_elsewhere(elsewhere()),
    "billed_twice within": lambda: of_charges(charge(), charge(id="CHG-2")),
    "charges_changed joined": lambda: judge_match([charge()], []).reason,  # type: ignore[union-attr]
    "charges_changed left": lambda: judge_match([], [frozen()]).reason,  # type: ignore[union-attr]
    "no_subject": lambda: of_charges(charge(subscription_id="")),
    "no_subject metadata": lambda: of_charges(charge(), by=by_metadata()),
    "bad_period": lambda: of_charges(charge(period=None, period_fault="its periodEnd is missing")),
    "not_on_platform": not_known,
    "taken_back": lambda: of_invoice(progress={"issued_at": NOW - HOUR}),
    "settled_elsewhere": lambda: of_invoice(
        state=InvoiceState.UNPAID, progress={"awaited_us": True}
    ),
    "settled_elsewhere version": lambda: of_invoice(version=2, progress={"awaited_us": True}),
    "unknown_state": lambda: of_invoice(state=InvoiceState.OTHER, state_text="Frozen"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_decision_to_hold_has_its_cause(name: str) -> None:
    """Each reason that the decision table gives is known, whatever the names in it are."""
    assert cause_of(REASONS[name]()).key == name.split()[0]


@pytest.fixture(name="journal")
def _journal(tmp_path: Any) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.record_delivery(delivery(), NOW)
    yield journal
    journal.close()


def run(journal: SqliteJournal, stands_in: Any = None, at: datetime = NOW, **ruled: Any) -> Outcome:
    """Work on the invoice once, with a platform or a source that does as a test wants it."""
    ports = Ports(
        platform=stands_in if isinstance(stands_in, FakePlatform) else FakePlatform(),
        sources={"events": stands_in if isinstance(stands_in, FakeSource) else FakeSource()},
        journal=journal,
        now=lambda: at,
        random=lambda: 0.0,
        stopping=lambda: False,
    )
    outcome = reconcile(KEY, owner="one", ports=ports, rules=rules(**ruled))
    assert outcome is not None
    return outcome


def cause_after(journal: SqliteJournal, stands_in: Any, **ruled: Any) -> str:
    """Run the invoice, of which the first failure is the last; return why it is held then."""
    outcome = run(journal, stands_in, max_attempts=1, **ruled)
    assert outcome.state is State.HELD, outcome
    (row,) = journal.overview(NOW).held
    assert row.cause == cause_of(outcome.reason)
    return row.cause.key


@pytest.mark.parametrize(
    ("step", "error", "key"),
    [
        ("charges", PlatformRefused("GET /charges: 400 Bad: no"), "platform_refused"),
        ("write CHG-1", PlatformRefused("POST /charges/CHG-1: 422 X: y"), "platform_refused"),
        ("invoice", PlatformAnswerInvalid("asked for INV-1, got INV-2"), "platform_answer"),
        ("invoice", PlatformAnswerInvalid('the answer has no list "results"'), "platform_answer"),
        ("invoice", PlatformAnswerInvalid('INV-1 has no number "invoiceCost"'), "platform_answer"),
        ("invoice", PlatformUnavailable("GET /invoices: 503"), "platform_unreachable"),
        (
            "invoice",
            CredentialsRefused("GET /invoices: 401, the platform refused our token"),
            "token_refused",
        ),
    ],
)
def test_what_the_platform_does_has_its_cause(
    journal: SqliteJournal, step: str, error: Exception, key: str
) -> None:
    """Refusals and odd answers are told apart from a platform that is out of reach."""
    platform = FakePlatform(failures={step: [error]})  # type: ignore[list-item]
    assert cause_after(journal, platform) == key


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (SourceUnavailable("no answer within 30 s"), "source_unreachable"),
        (SourceInvalid("row 7: value is not a number"), "source_invalid"),
        (RuntimeError("x"), "source_invalid"),
    ],
)
def test_what_a_source_does_has_its_cause(
    journal: SqliteJournal, error: Exception, key: str
) -> None:
    """A source that does not answer is another cause than one whose answer is wrong."""
    assert cause_after(journal, FakeSource(failures=[error])) == key


def test_a_defect_of_the_program_has_its_cause(journal: SqliteJournal) -> None:
    """What the program raises by mistake is not blamed on the platform."""
    platform = FakePlatform(failures={"invoice": [ZeroDivisionError()]})  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError):
        cause_after(journal, platform)
    (held,) = journal.overview(NOW).held
    assert held.cause.key == "program_defect"


def test_workers_that_died_have_their_cause(journal: SqliteJournal) -> None:
    """An invoice whose claims all ran out is held for that."""
    for hour in range(3):
        assert journal.claim(KEY, "dead", NOW + hour * HOUR, MINUTE)
    assert cause_of(run(journal, at=NOW + 3 * HOUR).reason).key == "workers_died"


def test_what_is_found_when_it_was_begun_has_its_cause(journal: SqliteJournal) -> None:
    """A mode that was changed meanwhile, and a bill that is not ours, are causes of their own."""
    platform = FakePlatform(failures={"issue": [PlatformUnavailable("POST /x: 503")]})
    assert run(journal, platform).state is State.RETRYING
    journal.record_delivery(delivery(id="NOT-2"), NOW)
    assert cause_after(journal, platform, mode=Mode.OBSERVE) == "observe_mode"
    platform.invoices[INV] = invoice(state=InvoiceState.UNPAID)
    platform.charges["CHG-1"] = charge(quantity=Decimal(1))
    assert cause_after(journal, platform) == "billed_otherwise"


def test_a_platform_that_is_gone_has_its_cause(journal: SqliteJournal) -> None:
    """An invoice of a platform that the config does not name any more is held for that."""
    reason = 'there is no platform "eu" in the config any more; add it, then replay'
    outcome = hold(KEY, reason, owner="one", journal=journal, at=NOW)
    assert outcome is not None
    assert cause_of(outcome.reason).key == "no_platform"


def test_of_several_faults_the_first_counts() -> None:
    """A later fault of the same invoice does not rename the cause."""
    text = '"A" was counted as -1; "B" was counted as 7, above its max_quantity 6'
    assert cause_of(text).key == "impossible_count"
    assert cause_of(of_count(7, max_quantity=6) + "; " + of_count(None)).key == "max_quantity"


def test_anything_else_is_other() -> None:
    """An unknown reason, or none, or an endless one, has a cause too."""
    assert {cause_of(text) for text in ("", "x", "\0", '"' * 100_000, '" overlaps ' * 9_999)} == {
        OTHER
    }
    assert cause_named("of another version") is OTHER


def quiet_of_invoice(*, progress: Any = None, **changed: Any) -> Wait | Skip:
    """Wait or skip for what the invoice is."""
    decision = judge_invoice(invoice(**changed), known(**(progress or {})), rules())
    assert isinstance(decision, Wait | Skip)
    return decision


def quiet_of_charges(*charges: UsageCharge, **ruled: Any) -> Wait | Skip:
    """Wait or skip for what the usage charges are."""
    decision = judge_charges(charges, (), known(), rules(component(name=ODD), **ruled))
    assert isinstance(decision, Wait | Skip)
    return decision


def slow() -> Wait | Hold | None:
    """Wait for a source that is behind."""
    return judge_watermarks([charge()], {"events": END - MINUTE}, rules(), NOW)


QUIET: dict[str, Callable[[], Any]] = {
    "waiting not_found_yet": lambda: judge_invoice(None, known(), rules()),
    "waiting period_end": lambda: quiet_of_charges(charge(component=ODD), grace=HOUR),
    "waiting source_behind": slow,
    "waiting no_usage_charge": lambda: quiet_of_charges(grace=HOUR),
    "waiting write_unanswered": lambda: quiet_of_invoice(
        progress={"charges_tried": True, "unanswered_at": NOW}
    ),
    "waiting issue_unseen": lambda: quiet_of_invoice(progress={"issued_at": NOW}),
    "skipped voided": lambda: quiet_of_invoice(state=InvoiceState.VOIDED),
    "skipped not_pending": lambda: quiet_of_invoice(state=InvoiceState.PAID),
    "skipped type": lambda: quiet_of_invoice(type="Adhoc"),
    "skipped version": lambda: quiet_of_invoice(version=2),
    "skipped no_usage_charge": lambda: quiet_of_charges(issue_without_usage=False),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_decision_to_wait_or_skip_has_its_cause(name: str) -> None:
    """Each is counted under a word of its own, whatever the names in the reason are."""
    decision, cause = name.split()
    made = QUIET[name]()
    assert isinstance(made, Wait if decision == "waiting" else Skip)
    assert quiet_cause_of(made.reason) == cause
    assert quiet_cause_of("of another version") == OTHER.key


def test_causes_to_wait_or_skip_are_counted_from_the_start() -> None:
    """Each is in the first scrape at 0, and none that never happens."""
    assert set(DECISIONS.known) == {("issued", ""), ("confirmed", "")} | {
        tuple(name.split()) for name in QUIET
    }


def test_every_cause_can_be_told() -> None:
    """Keys are unique words for links and alerts; each has a title, and says what to do."""
    assert len({cause.key for cause in CAUSES}) == len(CAUSES)
    for cause in CAUSES:
        assert re.fullmatch(r"[a-z_]{4,24}", cause.key)
        assert cause_named(cause.key) is cause
        assert cause.title[0].isupper()
        assert not cause.title.endswith(".")
        assert cause.mend.endswith(".")


def test_every_cause_is_tried() -> None:
    """No cause stands in the table for a reason that nothing gives."""
    text = Path(__file__).read_text()
    untried = [cause for cause in CAUSES if not re.search(rf'"{cause.key}[ "]', text)]
    assert untried == [OTHER]
