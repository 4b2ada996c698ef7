"""The doctor on usage sources: each misconfiguration seeded in a real database or file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from doctor_builders import COMPONENT, EVENTS, SECRET, Installation, installed, make_usage

from worker.domain import Tally, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable

EXPORT = """
[usage_sources.export]
kind = "csv"
path = "export.csv"
subject_column = "subject"
time_column = "at"
time_format = "iso"
"""


@pytest.fixture
def whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> Iterator[Installation]:
    """An installation in which all is well."""
    with installed(tmp_path, monkeypatch, redis_url) as made:
        yield made


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("CREATE TABLE other (x)", "usage"),
        ("CREATE TABLE usage (subject TEXT, moment TEXT, m TEXT)", "at"),
    ],
)
def test_another_table(whole: Installation, statement: str, told: str) -> None:
    """A source whose table or column is missing is found by its name."""
    Path("usage.db").unlink()
    make_usage(statement)
    finding = whole.bad()
    assert finding.subject == "usage source events"
    assert told in finding.told
    assert "correct usage_sources.events" in finding.mend


def test_no_database(whole: Installation) -> None:
    """A source whose file is missing is found by the file's name, and no file is made."""
    Path("usage.db").unlink()
    before = set(os.listdir())
    finding = whole.bad()
    assert finding.subject == "usage source events"
    assert "usage.db" in finding.told
    assert set(os.listdir()) - before == {"state"}


def test_no_export(whole: Installation) -> None:
    """A CSV file that is not there is found by its name, where it would be."""
    whole.configure(export=EXPORT)
    finding = whole.bad()
    assert finding.subject == "usage source export"
    assert "export.csv is not there" in finding.told


def test_a_database_that_is_down(whole: Installation) -> None:
    """A database server that cannot be reached is found, without its password."""
    native = EVENTS.replace('"iso"', '"native"')
    whole.configure(events=f"{native}timeout_seconds = 1\n")
    url = "postgresql+psycopg://u:s3cr3t-db@127.0.0.1:1/d"
    whole.set("RECONCILER__USAGE_SOURCES__EVENTS__URL", url)
    finding = whole.bad()
    assert finding.subject == "usage source events"
    assert "look whether it is up" in finding.mend
    assert "s3cr3t" not in repr(finding)


def test_no_driver(whole: Installation) -> None:
    """A source whose database driver is not installed is found, without its password."""
    whole.configure(events=EVENTS.replace('"iso"', '"native"'))
    url = "mysql+pymysql://u:s3cr3t-db@127.0.0.1:1/d"
    whole.set("RECONCILER__USAGE_SOURCES__EVENTS__URL", url)
    finding = whole.bad()
    assert finding.subject == "usage source events"
    assert "pymysql" in finding.told
    assert "s3cr3t" not in repr(finding)


@pytest.mark.parametrize("wrong", ["text_mesage", "Text_message"])
def test_a_metric_that_nobody_ever_used(whole: Installation, wrong: str) -> None:
    """A component with a misspelt metric is found before it holds an invoice."""
    whole.configure(component=COMPONENT.replace("text_message", wrong))
    finding = whole.bad()
    assert finding.subject == "component Text messages"
    assert wrong in finding.told
    assert "known_metrics of usage_sources.events" in finding.mend
    assert 'components."Text messages"' in finding.mend


@pytest.mark.parametrize(
    ("more", "told"),
    [('aggregation = "sum"', "quantity_column"), ('filters = { region = "eu" }', "region")],
)
def test_a_component_that_cannot_be_counted(whole: Installation, more: str, told: str) -> None:
    """A component that asks for a column that is not set or not there is found."""
    whole.configure(component=f"{COMPONENT}{more}\n")
    finding = whole.bad()
    assert finding.subject == "component Text messages"
    assert told in finding.told


def test_one_wrong_component_of_two(whole: Installation) -> None:
    """Each component is asked for by itself: the right one is not blamed with the wrong one."""
    second = COMPONENT.replace("Text messages", "Fax pages").replace("text_message", "fax")
    whole.configure(second=second)
    assert whole.bad().subject == "component Fax pages"


HOUSE = """
[usage_sources.house]
kind = "test_doctor_sources:Guarded"

[usage_sources.compared]
kind = "both"
first = "events"
second = "house"
"""


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A source of somebody else's, that wants a token."""

    token: str = field(metadata={"secret": True}, repr=False)
    timeout_seconds: float = 1.0

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Say that it is not there."""
        raise SourceUnavailable(f"asked {len(queries)} with {self.token}")

    def watermark(self) -> datetime | None:
        """Say nothing."""
        return None

    def check(self) -> None:
        """Say that it is not there, and carelessly what it was given."""
        raise SourceUnavailable(f"no answer to {self.token}")


CLOSED = """
[usage_sources.spare]
kind = "test_doctor_sources:Opened"
fails = "FAILS"
"""
COMPONENT_OF_SPARE = COMPONENT.replace('"events"', '"spare"')


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source that notes in a file what is done with it, and fails where it is told to."""

    fails: str = ""
    timeout_seconds: float = 1.0

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Note how long the periods are."""
        self._note("count", *(str(each.period.end - each.period.start) for each in queries))
        raise SourceInvalid("no such metric")

    def watermark(self) -> datetime | None:
        """Say nothing."""
        return None

    def check(self) -> None:
        """Be well, or not."""
        self._note("check")

    def close(self) -> None:
        """Note it."""
        self._note("close")

    def _note(self, *done: str) -> None:
        with Path("done.txt").open("a") as file:
            file.write(" ".join(done) + "\n")
        if self.fails == done[0]:
            raise SourceUnavailable("gone")
        if self.fails == f"{done[0]} for good":
            raise SourceInvalid("gone for good")


@pytest.mark.parametrize(
    ("component", "fails", "done", "bad"),
    [
        (COMPONENT, "", "check close", []),
        (COMPONENT, "check", "check close", ["usage source spare"]),
        (COMPONENT, "check for good", "check close", ["usage source spare"]),
        (COMPONENT_OF_SPARE, "", "check count 0:00:00 close", ["component Text messages"]),
        (COMPONENT_OF_SPARE, "count", "check count 0:00:00 close", ["usage source spare"]),
    ],
)
def test_a_source_is_closed_however_it_answers(
    whole: Installation, component: str, fails: str, done: str, bad: Sequence[str]
) -> None:
    """It is asked for an empty period only where a component says of what, and then closed."""
    whole.configure(component=component, spare=CLOSED.replace("FAILS", fails))
    assert [one.subject for one in whole.findings() if not one.well] == bad
    assert Path("done.txt").read_text().split() == done.split()


def test_a_source_without_its_secret_is_passed_over(whole: Installation) -> None:
    """A source that lacks a secret, and one that asks it, are not asked; the others are."""
    whole.configure(house=HOUSE)
    finding = whole.bad()
    assert finding.subject == "secrets"
    assert "RECONCILER__USAGE_SOURCES__HOUSE__TOKEN" in finding.told
    asked = {one.subject for one in whole.findings() if one.subject.startswith("usage source")}
    assert asked == {"usage source events"}


def test_what_a_source_tells_carelessly_is_masked(whole: Installation) -> None:
    """A secret in the text of a source's error is not shown."""
    whole.configure(house=HOUSE)
    whole.set("RECONCILER__USAGE_SOURCES__HOUSE__TOKEN", SECRET)
    told = [one.told for one in whole.findings() if not one.well]
    assert told[0] == 'source "house": no answer to ***'
