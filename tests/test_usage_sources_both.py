"""Two sources asked the same: the contract for both, and what becomes of every difference."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import NOW, frozen, other_key
from contracts_search import claimed, known
from pydantic import TypeAdapter, ValidationError
from test_usage_sources_csv import FILE, write
from test_usage_sources_sql import TABLE, rows_of, store

from usage_sources.both import BothSources
from usage_sources.contract import MIDNIGHT, UsageEvent, UsageSourceContract, event, query
from usage_sources.csv_file import CsvSource
from usage_sources.sql import SqlSource
from worker.domain import Evidence, Tally, UsageQuery
from worker.errors import PermanentError, SourceInvalid, SourceUnavailable, TransientError
from worker.journal import open_journal


def of_file(events: Sequence[UsageEvent], folder: Path) -> CsvSource:
    """Make a CSV source over these events."""
    write(events, folder / "usage.csv", datetime.isoformat)
    return CsvSource(path=str(folder / "usage.csv"), **FILE)


def of_table(events: Sequence[UsageEvent], folder: Path, **changed: Any) -> SqlSource:
    """Make an SQL source over these events."""
    url = store(folder / "usage.db", rows_of(events, datetime.isoformat))
    return SqlSource(url=url, **{**TABLE, **changed})


class Compared(UsageSourceContract):
    """What the two runs of the suite share."""

    @pytest.fixture(autouse=True)
    def _cleaned(self) -> Iterator[None]:
        with ExitStack() as stack:
            self.stack = stack
            yield

    def slow_table(self, folder: Path) -> SqlSource:
        """Make an SQL source whose database is locked until the test is over."""
        table = of_table([event(MIDNIGHT)], folder, timeout_seconds=1.0)
        writer = self.stack.enter_context(closing(sqlite3.connect(folder / "usage.db")))
        writer.execute("BEGIN EXCLUSIVE")
        return table


class TestBoth(Compared):
    """A file that bills, and a table that has to agree."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> BothSources:
        """Store the same events twice."""
        return BothSources(first=of_file(events, tmp_path), second=of_table(events, tmp_path))

    def source_down(self, tmp_path: Path) -> BothSources:
        """Take the second's database away."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        (tmp_path / "usage.db").unlink()
        return source

    def source_slow(self, tmp_path: Path) -> BothSources:
        """Let the second be slow."""
        first = of_file([event(MIDNIGHT)], tmp_path)
        return BothSources(first=first, second=self.slow_table(tmp_path))


class TestInShadow(Compared):
    """A file that bills alone, whatever is wrong with the second."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> BothSources:
        """Compare with a database that is not there."""
        second = SqlSource(url=f"sqlite:///{tmp_path}/nowhere.db", **TABLE)
        return BothSources(first=of_file(events, tmp_path), second=second, shadow=True)

    def source_down(self, tmp_path: Path) -> BothSources:
        """Take the first's file away."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        (tmp_path / "usage.csv").unlink()
        return source

    def source_slow(self, tmp_path: Path) -> BothSources:
        """Let the first be slow, which bills."""
        second = of_file([event(MIDNIGHT)], tmp_path)
        return BothSources(first=self.slow_table(tmp_path), second=second, shadow=True)

    def test_a_second_that_is_slow_is_only_noted(self, tmp_path: Path) -> None:
        """After the second's timeout the first bills, and the note says what became of it."""
        first = of_file([event(MIDNIGHT)], tmp_path)
        source = BothSources(first=first, second=self.slow_table(tmp_path), shadow=True)
        (tally,) = source.count([query()])
        source.close()
        assert tally.value == 1
        assert "nothing to compare with, the second source: " in tally.evidence.notes[-1]
        assert "within 1 s" in tally.evidence.notes[-1]


@dataclass
class Stated:
    """A source that answers what it is told to, and remembers what it was asked."""

    name: str
    answers: list[Any]  # a value for each query in turn
    up_to: datetime | None = None
    error: Exception | None = None
    asked: list[UsageQuery] = field(default_factory=list)
    closed: int = 0

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer in reverse order, as a source may."""
        self._fail()
        self.asked += queries
        return [
            Tally(query=each, value=value, events=None, evidence=self._evidence())
            for each, value in reversed(list(zip(queries, self.answers, strict=True)))
        ]

    def watermark(self) -> datetime | None:
        """Say what it was told to."""
        self._fail()
        return self.up_to

    def check(self) -> None:
        """Be as well as it was told to be."""
        self._fail()

    def close(self) -> None:
        """Count how often it is closed."""
        self.closed += 1

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def _evidence(self) -> Evidence:
        return Evidence(
            source=self.name,
            query="?",
            parameters={},
            asked_at=MIDNIGHT,
            digest=f"{self.name}'s digest",
            notes=(f"{self.name}'s own note",),
        )


def both(one: Any, other: Any, **changed: Any) -> BothSources:
    """Make both from two numbers, or from two sources."""
    made = [
        each if isinstance(each, Stated) else Stated(name, [each])
        for name, each in (("old", one), ("new", other))
    ]
    return BothSources(first=made[0], second=made[1], **changed)


NUMBER, LESS, FEW = Decimal("1000"), Decimal("990"), Decimal(0)


@pytest.mark.parametrize(
    ("one", "other", "allowed"),
    [
        (NUMBER, NUMBER, {}),
        (NUMBER, Decimal("1000.00"), {}),
        (None, None, {}),
        (NUMBER, LESS, {"tolerance": Decimal(10)}),
        (LESS, NUMBER, {"tolerance": Decimal(10)}),
        (NUMBER, LESS, {"tolerance_percent": Decimal(1)}),
        (-NUMBER, -LESS, {"tolerance_percent": Decimal(1)}),
        (NUMBER, LESS, {"tolerance": Decimal(1), "tolerance_percent": Decimal(1)}),
        (FEW, Decimal(1), {"tolerance": Decimal(1)}),
    ],
)
def test_what_agrees_is_billed_with_a_note(one: Any, other: Any, allowed: dict[str, Any]) -> None:
    """The first's tally is given as it is, with one more note that has both numbers."""
    tally = both(one, other, **allowed).count([query()])[0]
    assert (tally.value, tally.query, tally.evidence.source) == (one, query(), "old")
    assert tally.evidence.digest == "old's digest"
    own, note = tally.evidence.notes
    assert own == "old's own note"
    for name, number in (("old", one), ("new", other)):
        text = "nothing (it does" if number is None else str(int(number))
        assert f"{name} counted {text}" in note


@pytest.mark.parametrize(
    ("one", "other", "allowed"),
    [
        (NUMBER, LESS, {}),
        (NUMBER, LESS, {"tolerance": Decimal("9.999999999999999999999999999999")}),
        (NUMBER, LESS, {"tolerance_percent": Decimal("0.9999999999999999999999999999")}),
        (LESS, NUMBER, {"tolerance_percent": Decimal(1)}),
        (FEW, Decimal("0.000001"), {"tolerance_percent": Decimal(100)}),
        (None, FEW, {"tolerance": Decimal(10**9)}),
        (FEW, None, {"tolerance": Decimal(10**9)}),
        (NUMBER, 1000.0, {}),
        (NUMBER, Decimal("NaN"), {"tolerance": Decimal(10**9)}),
        (Decimal("Infinity"), Decimal("Infinity"), {}),
    ],
)
def test_what_differs_is_held_with_both_numbers(
    one: Any, other: Any, allowed: dict[str, Any]
) -> None:
    """The error names component, subject, period, sources, numbers and what was allowed."""
    with pytest.raises(SourceInvalid) as caught:
        both(one, other, **allowed).count([query()])
    told = str(caught.value)
    assert told.startswith("component \"calls\" of subject 'S-1' in 2024-05-01T00:00:00Z..2024-06")
    assert "old counted" in told
    assert "new counted" in told
    assert "tolerance" in told


def test_the_error_has_the_numbers() -> None:
    """Both numbers, how far apart they are and both tolerances are there as they are written."""
    allowed = {"tolerance": Decimal("0.50"), "tolerance_percent": Decimal(1)}
    sources = both(NUMBER, Decimal("989.50"), **allowed)
    told = "old counted 1000, new counted 989.5, apart 10.5 (1.05 %); tolerance 0.5 or 1 %"
    with pytest.raises(SourceInvalid, match=re.escape(told)):
        sources.count([query()])


def test_one_difference_holds_all_charges() -> None:
    """The differences of a call come in one error, the first few of them in words."""
    asked = [query(str(n), metric=f"metric {n}") for n in range(6)]
    first = Stated("old", [Decimal(n) for n in range(6)])
    second = Stated("new", [Decimal(0), *[Decimal(9)] * 5])
    with pytest.raises(SourceInvalid) as caught:
        both(first, second).count(asked)
    assert '"metric 0"' not in str(caught.value)
    assert str(caught.value).count("component") == 3
    assert str(caught.value).endswith("; and 2 more")


def test_the_second_is_asked_by_its_own_names() -> None:
    """Where a metric has another name there, it is asked by that; all else is the same."""
    first, second = Stated("old", [NUMBER, LESS]), Stated("new", [NUMBER, LESS])
    asked = [query("1", filters=(("region", "eu"),)), query("2", metric="pages")]
    tallies = both(first, second, metric_of_second={"calls": "voice"}).count(asked)
    assert {tally.query.charge_id: tally.value for tally in tallies} == {"1": NUMBER, "2": LESS}
    assert [tally.query for tally in tallies] == [asked[1], asked[0]]
    assert first.asked == asked
    assert second.asked == [replace(asked[0], metric="voice"), asked[1]]


ERRORS = [
    (SourceUnavailable("no answer"), SourceUnavailable, "the second source: no answer"),
    (TransientError("gone"), SourceUnavailable, "the second source: gone"),
    (SourceInvalid("row 7"), SourceInvalid, "the second source: row 7"),
    (PermanentError("never"), SourceInvalid, "the second source: never"),
    (KeyError("s3cret"), KeyError, "the second source crashed: KeyError"),
]


@pytest.mark.parametrize(("error", "raised", "told"), ERRORS)
def test_a_second_that_fails_holds_or_is_noted(
    error: Exception, raised: type[Exception], told: str
) -> None:
    """Its error is ours, by the same remedy; in shadow it is a note and the first bills."""
    second = Stated("new", [NUMBER], error=error)
    questions: list[Callable[[BothSources], object]] = [
        lambda sources: sources.count([query()]),
        BothSources.check,
        BothSources.watermark,
    ]
    for question in questions:
        with pytest.raises(raised, match=None if raised is KeyError else told):
            question(both(NUMBER, second))
    tally = both(NUMBER, second, shadow=True).count([query()])[0]
    assert tally.value == NUMBER
    assert tally.evidence.notes[1] == f"nothing to compare with, {told}; the first stands"


def test_a_first_that_fails_bills_nothing_even_in_shadow() -> None:
    """Without the first there is no number, and its wait is passed on."""
    wait = timedelta(seconds=7)
    first = Stated("old", [NUMBER], error=SourceUnavailable("no answer", retry_after=wait))
    for shadow in (True, False):
        with pytest.raises(SourceUnavailable, match="the first source: no answer") as caught:
            both(first, NUMBER, shadow=shadow).count([query()])
        assert caught.value.retry_after == wait


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (NUMBER, NUMBER, "apart 0 (0 %)"),
        (NUMBER, LESS, "apart 10 (1 %)"),
        (LESS, NUMBER, "apart 10 (1.01 %)"),
        (-NUMBER, NUMBER, "apart 2000 (200 %)"),
        (NUMBER, Decimal("1000.000001"), "apart 0.000001 (less than 0.01 %)"),
        (FEW, Decimal("1E+3"), "apart 1000"),
        (FEW, FEW, "apart 0"),
    ],
)
def test_the_note_tells_how_far_apart_they_are(one: Decimal, other: Decimal, told: str) -> None:
    """The difference, and how many percent of the first it is, where there are any."""
    note = both(one, other, shadow=True).count([query()])[0].evidence.notes[1]
    assert f", {told}; tolerance" in note
    assert note.endswith("; the first stands") == (one != other)


@pytest.mark.parametrize("other", [LESS, None, 1000.0])
def test_in_shadow_a_difference_is_a_note(other: Any) -> None:
    """The first bills, and the note has both numbers."""
    tally = both(NUMBER, other, shadow=True).count([query()])[0]
    assert tally.value == NUMBER
    assert "old counted 1000, new counted" in tally.evidence.notes[1]
    assert tally.evidence.notes[1].endswith("; the first stands")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_journal_tells_which_counts_differed(
    kind: str, new_journal_url: Callable[[str], str]
) -> None:
    """The page's statement names the invoices whose counts differed, and no other."""
    page = (Path(__file__).parent.parent / "docs" / "usage-sources.md").read_text(encoding="utf-8")
    found = re.search(r'^sqlite3 -readonly \S+ "(.*?)"$', page, re.M | re.S)
    assert found is not None
    statement = found[1].replace("2026-11-01", f"{NOW:%Y-%m-%d}")
    if kind == "postgres":
        elements, texts = re.findall(r"`(json_array_elements\S*\(.*\) AS \w+)`", page)
        tallies, notes = re.findall(r"json_each\(.*?\) AS \w+", statement)
        statement = statement.replace(tallies, elements).replace(notes, texts)
        statement = statement.replace("note.value", "note")
    with closing(open_journal(new_journal_url(kind))) as journal:
        for number, other in enumerate((NUMBER, LESS)):
            told = both(NUMBER, other, shadow=True).count([query()])[0].evidence
            span = replace(frozen().span, subject=f"S-{number}")
            known(journal, other_key(number))
            claim = claimed(journal, other_key(number), NOW)
            assert not journal.freeze(claim, [], [frozen(evidence=told, span=span)], NOW)
        with journal.store.snapshot() as tx:
            ((invoice, note),) = [tuple(row.values()) for row in tx.rows(statement)]
    assert invoice == other_key(1).invoice_id
    assert "apart 10 (1 %)" in note


def test_in_shadow_unknown_stays_unknown() -> None:
    """What the first does not know is not known, whatever the second counts."""
    tally = both(None, NUMBER, shadow=True).count([query()])[0]
    assert tally.value is None
    assert (
        "old counted nothing (it does not know the subject), new counted 1000"
        in (tally.evidence.notes[1])
    )


@dataclass
class Careless(Stated):
    """A source that answers too little, too much or something else."""

    fault: str = ""

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Spoil a good answer."""
        tallies = list(super().count(queries))
        spoilt: dict[str, Callable[[Tally], list[Tally]]] = {
            "none": lambda _: [],
            "twice": lambda tally: [tally, tally],
            "other": lambda tally: [replace(tally, query=replace(tally.query, subject="S-2"))],
        }
        return [each for tally in tallies for each in spoilt[self.fault](tally)]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("none", "the second source gave no answer"),
        ("twice", "the second source answered what it was not asked, or twice"),
        ("other", "the second source answered what it was not asked, or twice"),
    ],
)
def test_a_second_that_answers_something_else_agrees_to_nothing(fault: str, told: str) -> None:
    """An answer that is missing, doubled or to another question is no agreement."""
    second = Careless("new", [NUMBER], fault=fault)
    with pytest.raises(SourceInvalid, match=told):
        both(NUMBER, second).count([query()])
    tally = both(NUMBER, second, shadow=True).count([query()])[0]
    assert (tally.value, told in tally.evidence.notes[1]) == (NUMBER, True)


EARLY, LATE = MIDNIGHT, MIDNIGHT + timedelta(hours=1)


@pytest.mark.parametrize(
    ("one", "other", "slower"),
    [(EARLY, LATE, EARLY), (LATE, EARLY, EARLY), (None, LATE, LATE), (LATE, None, LATE)],
)
def test_the_watermark_is_the_slower_ones(one: Any, other: Any, slower: Any) -> None:
    """Both must have everything, as far as they can say; in shadow only the first must."""
    first, second = Stated("old", [], up_to=one), Stated("new", [], up_to=other)
    assert both(first, second).watermark() == slower
    assert both(first, second, shadow=True).watermark() == one
    assert both(Stated("old", []), Stated("new", [])).watermark() is None


def test_in_shadow_nobody_waits_for_the_second() -> None:
    """A second that is down spoils neither the check nor the watermark of a shadow."""
    second = Stated("new", [], error=SourceUnavailable("no answer"))
    sources = both(Stated("old", [], up_to=EARLY), second, shadow=True)
    sources.check()
    assert sources.watermark() == EARLY


def test_each_source_is_closed_once() -> None:
    """Closing again closes nothing again, until it was asked again."""
    first, second = Stated("old", [NUMBER]), Stated("new", [NUMBER])
    sources = both(first, second)
    sources.close()
    assert (first.closed, second.closed) == (0, 0)
    sources.count([query()])
    for _ in range(2):
        sources.close()
        assert (first.closed, second.closed) == (1, 1)
    sources.check()
    sources.close()
    assert (first.closed, second.closed) == (2, 2)


def test_sources_that_ask_sources(tmp_path: Path) -> None:
    """What two agree on can be compared again, and closing reaches the innermost."""
    events = [event(MIDNIGHT)] * 3
    inner = BothSources(first=of_file(events, tmp_path), second=of_table(events, tmp_path))
    outer = BothSources(first=inner, second=Stated("new", [Decimal(3)]))
    tally = outer.count([query()])[0]
    assert tally.value == 3
    assert len(tally.evidence.notes) == 2
    outer.close()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"tolerance": -1}, "tolerance must be 0 or more"),
        ({"tolerance": "NaN"}, "tolerance"),
        ({"tolerance_percent": "-0.1"}, "tolerance_percent must be 0 or more"),
        ({"second": "same"}, "first and second must be two sources"),
        ({"metric_of_second": "voice"}, "metric_of_second"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, Any], complaint: str) -> None:
    """A wrong setting is refused when the configuration is read, with its name."""
    same = object()
    given = {"first": same, "second": object(), **changed}
    if changed.get("second"):
        given["second"] = same
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(BothSources).validate_python(given)
