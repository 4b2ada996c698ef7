"""An invoice's story: everything that was billed is explained, from the journal alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import END, INV, KEY, LEASE, MINUTE, NOW, delivery, evidence, frozen, other_key

from worker import __version__
from worker.domain import InvoiceKey, Rounding
from worker.journal.sqlite import SqliteJournal
from worker.record import Claim, Entry, EntryKind, History, Outcome, State
from worker.story import charges_by_id, last_seen, row_json, story_json, story_text

TOOK = {"seconds": 0.25, "calls": 3}
SEEN = {
    "state": "Pending",
    "type": "Subscription",
    "version": 1,
    "pending": True,
    "total": "5.00",
    "currency": "USD",
}
TALLY = frozen(
    value=Decimal("1045"),
    divide_by=Decimal(10),
    filters=(("region", "eu"),),
    rounding=Rounding.HALF_UP,
    evidence=evidence(
        source="sql sqlite:///usage.db table usage",
        query="SELECT count(*)\n  FROM usage\n  WHERE subscription_id = :subject",
        parameters={"subject": "SUB-1", "start": "2015-11-02T12:18:51Z"},
        watermark=END + MINUTE,
        stored_until=NOW,
        notes=("the second source was down",),
    ),
)


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "journal.db")
    yield journal
    journal.close()


def entry(kind: EntryKind, minutes: int, **data: Any) -> Entry:
    """Make an entry so many minutes after the beginning."""
    return Entry(kind=kind, at=NOW + minutes * MINUTE, data=data)


def claimed(journal: SqliteJournal, minutes: int, key: InvoiceKey = KEY) -> Claim:
    """Take the invoice."""
    claim = journal.claim(key, "host:1", NOW + minutes * MINUTE, LEASE)
    assert claim is not None
    return claim


def billed(journal: SqliteJournal) -> History:
    """Drive an invoice through all that can happen, from its notification to its issue."""
    for _ in range(2):
        journal.record_delivery(delivery(), NOW)
    later = NOW + 5 * MINUTE
    claim = claimed(journal, 1)
    failed = entry(EntryKind.FAILED, 2, reason="no answer", attempt=1, until="13:05", **TOOK)
    retrying = Outcome(state=State.RETRYING, reason="no answer", due_at=later, attempt=1)
    journal.settle(claim, [entry(EntryKind.FETCHED, 2, found=False), failed], retrying)
    claim = claimed(journal, 6)
    waiting = entry(EntryKind.WAITING, 6, reason="not over", until="13:10", **TOOK)
    journal.settle(
        claim,
        [entry(EntryKind.FETCHED, 6, **SEEN), waiting],
        Outcome(state=State.WAITING, reason="not over", due_at=NOW + 10 * MINUTE, attempt=1),
    )
    claim = claimed(journal, 11)
    journal.freeze(claim, [entry(EntryKind.FETCHED, 11, **SEEN)], [TALLY], NOW + 11 * MINUTE)
    intent = {"charge_id": "CHG-1", "component": "Text messages", "from": "0", "to": 105}
    answer: dict[str, Any] = {"charge_id": "CHG-1", "component": "Text messages"}
    answer |= {"name": "Messages"}
    answer |= {"quantity": "105", "amount": "0.10", "version": 2}
    refused = {"charge_id": "CHG-1", "error": "PlatformRefused: locked"}
    written = [
        entry(EntryKind.CHARGE_INTENT, 12, **intent),
        entry(EntryKind.CHARGE_ANSWER, 12, **refused),
        entry(EntryKind.CHARGE_INTENT, 13, **{**intent, "from": None}),
        entry(EntryKind.CHARGE_ANSWER, 13, **answer, request="POST /x {}", answer="200 {}"),
        entry(EntryKind.ISSUE_INTENT, 14, version=1),
        entry(EntryKind.ISSUE_ANSWER, 14, error="not now"),
        entry(EntryKind.ISSUE_INTENT, 15, version=1),
        entry(EntryKind.ISSUE_ANSWER, 15, **SEEN | {"state": "Unpaid", "total": "5.10"}),
    ]
    journal.append(claim, written, NOW + 30 * MINUTE)
    issued = SEEN | {"state": "Unpaid", "version": 2, "total": "5.10", "charges": [answer]}
    journal.settle(
        claim,
        [entry(EntryKind.ISSUED, 16, reason="Unpaid, 5.10 USD", **issued, **TOOK)],
        Outcome(state=State.ISSUED, reason="Unpaid, 5.10 USD"),
    )
    return history_of(journal)


def history_of(journal: SqliteJournal, key: InvoiceKey = KEY) -> History:
    """Return an invoice's history."""
    history = journal.history(key)
    assert history is not None
    return history


def test_everything_billed_is_explained(journal: SqliteJournal) -> None:
    """The text gives quantity, amount, window, source, query, parameters, moment and digest."""
    text = story_text(billed(journal))
    assert text.startswith(f"{INV} · billforward: issued\n  Unpaid, 5.10 USD\n")
    for told in (
        "Text messages: 105 (was 0), 0.10 USD",
        "charge CHG-1",
        "count of 'text_message' by 'SUB-1', 105 events",
        "2015-11-02T12:18:51Z <= time < 2015-12-02T12:18:51Z",
        "where region is 'eu'",
        "counted 1045, divided by 10, rounded half_up",
        "of what was stored until 2015-12-02T13:00:00Z",
        "note: the second source was down",
        "source: events, sql sqlite:///usage.db table usage",
        "query: SELECT count(*) FROM usage WHERE subscription_id = :subject\n",
        'with: {"start": "2015-11-02T12:18:51Z", "subject": "SUB-1"}',
        "the source had everything up to 2015-12-02T12:19:51Z",
        f"asked 2015-12-02T13:00:00Z by version {__version__}, answer SHA-256 {'d' * 64}",
    ):
        assert f"    {told}" in text or f"  {told}" in text, told


def test_what_happened_is_told_in_order(journal: SqliteJournal) -> None:
    """The text tells each step once, with its moment, from the notification to the issue."""
    text = story_text(billed(journal)).partition("What happened\n")[2]
    told = [line.split("Z  ", 1)[1].split(maxsplit=1) for line in text.splitlines()]
    assert [(kind, text) for kind, text in told] == [
        ("delivered", f"{delivery().id} Invoice/Pending, sent 2 times"),
        ("claimed", "by host:1, fencing number 1"),
        ("fetched", "not found"),
        ("failed", "no answer; again at 13:05; took 0.25 s, 3 calls"),
        ("claimed", "by host:1, fencing number 2"),
        ("fetched", "Pending, Subscription, version 1, 5.00 USD"),
        ("waiting", "not over; again at 13:10; took 0.25 s, 3 calls"),
        ("claimed", "by host:1, fencing number 3"),
        ("fetched", "Pending, Subscription, version 1, 5.00 USD"),
        ("counted", "1 usage charge, frozen"),
        ("charge_intent", "Text messages: 0 -> 105 on CHG-1"),
        ("charge_answer", "CHG-1 refused: PlatformRefused: locked"),
        ("charge_intent", "Text messages: nothing -> 105 on CHG-1"),
        ("charge_answer", "Text messages: 105 costs 0.10 (version 2)"),
        ("issue_intent", "into Unpaid, from version 1"),
        ("issue_answer", "refused: not now"),
        ("issue_intent", "into Unpaid, from version 1"),
        ("issue_answer", "Unpaid, Subscription, version 1, 5.10 USD"),
        ("issued", "Unpaid, 5.10 USD; took 0.25 s, 3 calls"),
    ]


def test_the_json_holds_everything(journal: SqliteJournal) -> None:
    """The JSON can be written, and holds each delivery, tally and entry in full."""
    history = billed(journal)
    story = json.loads(json.dumps(story_json(history)))
    lists = {"deliveries", "tallies", "entries"}
    assert {k: v for k, v in story.items() if k not in lists} == row_json(history.row)
    assert (story["id"], story["platform"], story["state"]) == (INV, "billforward", "issued")
    assert (story["due_at"], story["claimed_by"], story["attempt"]) == (None, None, 0)
    (sent,) = story["deliveries"]
    assert (sent["times"], len(sent["sha256"]), sent["event"]) == (2, 64, "Invoice/Pending")
    assert story["tallies"] == [
        {
            "charge_id": "CHG-1",
            "component": "Text messages",
            "period_start": "2015-11-02T12:18:51Z",
            "period_end": "2015-12-02T12:18:51Z",
            "subject": "SUB-1",
            "metric": "text_message",
            "aggregation": "count",
            "filters": {"region": "eu"},
            "quantity": 105,
            "value": "1045",
            "divide_by": "10",
            "rounding": "half_up",
            "events": 105,
            "source": "events",
            "place": TALLY.evidence.source,
            "query": TALLY.evidence.query,
            "parameters": TALLY.evidence.parameters,
            "asked_at": "2015-12-02T13:00:00Z",
            "sha256": "d" * 64,
            "watermark": "2015-12-02T12:19:51Z",
            "stored_until": "2015-12-02T13:00:00Z",
            "notes": ["the second source was down"],
            "program": __version__,
        }
    ]
    assert [e["kind"] for e in story["entries"]] == [e.kind.value for e in history.entries]
    assert [e["data"] for e in story["entries"]] == [e.data for e in history.entries]


def test_a_counted_zero_is_told(journal: SqliteJournal) -> None:
    """A counted zero stands in the story as a number with its evidence, not as nothing."""
    journal.record_delivery(delivery(), NOW)
    tally = frozen(0, events=None)
    journal.freeze(claimed(journal, 0), [], [tally], NOW)
    text = story_text(history_of(journal))
    assert "Text messages: 0\n" in text
    assert "count of 'text_message' by 'SUB-1'\n" in text
    assert "counted 0, rounded" not in text


def test_a_fresh_invoice(journal: SqliteJournal) -> None:
    """Before any worker, the story is the notification and when it is due."""
    journal.record_delivery(delivery(), NOW)
    history = history_of(journal)
    text = story_text(history)
    assert text.splitlines()[:2] == [f"{KEY}: due", "  due 2015-12-02T13:00:00Z"]
    assert "What was counted" not in text
    assert "sent" not in text
    assert (last_seen(history), charges_by_id(history)) == ({}, {})


def test_who_holds_it_and_who_asked(journal: SqliteJournal) -> None:
    """The story says who works on it, who replayed it and why, and how often it failed."""
    key = other_key(1)
    journal.wake(key, entry(EntryKind.REPLAYED, 0, by="ann", reason="mapped"))
    claim = claimed(journal, 0, key)
    assert "being worked on by host:1" in story_text(history_of(journal, key))
    due_at = NOW + timedelta(hours=1)
    outcome = Outcome(state=State.RETRYING, reason="no answer", due_at=due_at, attempt=4)
    journal.settle(claim, [entry(EntryKind.FAILED, 0, reason="no answer")], outcome)
    text = story_text(history_of(journal, key))
    assert "replayed       by ann; mapped" in text
    assert "due 2015-12-02T14:00:00Z, 4 failed attempts in a row" in text


def test_a_refusal_keeps_the_last_price(journal: SqliteJournal) -> None:
    """A refused write after an answered one leaves the amount that the platform last said."""
    journal.record_delivery(delivery(), NOW)
    claim = claimed(journal, 0)
    answer = {"charge_id": "CHG-1", "component": "Text messages", "amount": "0.10"}
    refused = {"charge_id": "CHG-1", "error": "PlatformRefused: locked"}
    answers = [entry(EntryKind.CHARGE_ANSWER, 0, **each) for each in (answer, refused)]
    journal.append(claim, answers, NOW + LEASE)
    assert charges_by_id(history_of(journal)) == {"CHG-1": answer}


def test_a_recount_tells_the_new_tallies(journal: SqliteJournal) -> None:
    """Tallies that were given up stay in the entries, and are explained no more."""
    journal.record_delivery(delivery(), NOW)
    claim = claimed(journal, 0)
    journal.freeze(claim, [], [frozen(7)], NOW)
    held = Outcome(state=State.HELD, reason="somebody must look")
    journal.settle(claim, [entry(EntryKind.HELD, 1, reason="somebody must look")], held)
    assert journal.discard_tallies(KEY, entry(EntryKind.DISCARDED, 2, by="ann", reason=""))
    journal.freeze(claimed(journal, 3), [], [frozen(9)], NOW + 3 * MINUTE)
    text = story_text(history_of(journal))
    assert "Text messages: 9" in text
    assert "Text messages: 7" not in text
    assert "discarded      by ann" in text
    assert [t["quantity"] for t in story_json(history_of(journal))["tallies"]] == [9]


def test_a_statement_that_answered_many_charges_is_told_once(journal: SqliteJournal) -> None:
    """Fifty charges of one query are readable: the text stands with the first of them."""
    journal.record_delivery(delivery(), NOW)
    claim = claimed(journal, 0)
    tallies = [frozen(number, charge_id=f"CHG-{number}") for number in range(3)]
    journal.freeze(claim, [], tallies, NOW)
    text = story_text(history_of(journal))
    assert text.count("query: count") == 1
    assert text.count("source and query: as above") == 2


def recounted(component: str, difference: int | None, fault: str = "") -> dict[str, Any]:
    """Make what the record keeps of one charge that was counted again."""
    return {"component": component, "difference": difference, "fault": fault}


@pytest.mark.parametrize(
    ("charges", "told"),
    [
        ([recounted("Calls", 0)], "no difference"),
        ([recounted("Calls", 2), recounted("Fax", 0), recounted("SMS", -3)], "Calls +2; SMS -3"),
        ([recounted("Calls", None, "no\nanswer")], "Calls: no answer"),
        ([recounted(f"C{n}", 1) for n in range(7)], "C0 +1; C1 +1; C2 +1; C3 +1; C4 +1; 2 more"),
    ],
)
def test_a_recount_on_the_record_is_told(
    journal: SqliteJournal, charges: list[dict[str, Any]], told: str
) -> None:
    """Who asked and why, and the first charges that differ, in one line."""
    journal.record_delivery(delivery(), NOW)
    data = {"by": "ann", "reason": "a dispute", "charges": charges}
    assert journal.note(KEY, entry(EntryKind.RECOUNTED, 1, **data))
    lines = story_text(history_of(journal)).splitlines()
    assert lines[-1].endswith(f"recounted      by ann; a dispute; {told}")


@pytest.mark.parametrize("kind", [kind for kind in EntryKind if kind is not EntryKind.COUNTED])
@pytest.mark.parametrize("data", [{"odd": "shape"}, {"charges": 7}, {"charges": [{"odd": 1}]}])
def test_an_entry_of_another_shape_leaves_the_story_whole(
    journal: SqliteJournal, kind: EntryKind, data: dict[str, Any]
) -> None:
    """What another version wrote, or somebody changed, is told as that; all others are told."""
    history = billed(journal)
    odd = replace(history, entries=(*history.entries, Entry(kind=kind, at=NOW, data=data)))
    told, whole = story_text(odd).splitlines(), story_text(history).splitlines()
    assert told[-len(odd.entries) : -1] == whole[-len(history.entries) :]
    assert kind.value in told[-1]
    assert "Text messages: 105 (was 0)" in "\n".join(told)
    assert story_json(odd)["entries"][-1]["data"] == data
