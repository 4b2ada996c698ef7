"""The SQL source over a statement of the operator's own, and what any SQL source refuses."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from test_usage_sources_sql import MAY_2, TABLE, Open, ask, opening, row, rows_of, store

from usage_sources.contract import JUNE, UsageEvent, UsageSourceContract, query
from usage_sources.sql import SqlSource
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable

WINDOW = """iso_microseconds(created_at) >= iso_microseconds(:start)
    AND iso_microseconds(created_at) < iso_microseconds(:end)"""
# NULL, which is refused, where any quantity is NULL: a sum alone passes over it.
EXACT_SUM = "CASE WHEN COUNT(quantity) = COUNT(*) THEN decimal_sum(quantity) END"
MANY = f"""
    SELECT subject_id AS subject, metric, COUNT(*) AS events,
        {EXACT_SUM} AS value
    FROM usage WHERE subject_id IN :subjects AND metric IN :metrics AND {WINDOW}
    GROUP BY subject_id, metric"""
ONE = f"""
    SELECT COUNT(*) AS value FROM usage
    WHERE subject_id = :subject AND metric = :component AND {WINDOW}"""
KNOWN = "SELECT DISTINCT subject_id FROM usage WHERE subject_id IN :subjects"
QUERY: dict[str, Any] = dict.fromkeys(TABLE) | {
    "time_format": "iso",
    "query": MANY,
    "known_subjects_query": KNOWN,
}

open_source = pytest.fixture(opening)


class TestManyAtOnce(UsageSourceContract):
    """One statement that answers all charges of a period."""

    aggregations = frozenset({Aggregation.SUM})
    knows_metrics = False
    filters = False

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store ISO text and sum with the function that the source registers."""
        url = store(tmp_path / "usage.db", rows_of(events, datetime.isoformat))
        return SqlSource(url=url, **QUERY)


class TestMetricsAreStated(TestManyAtOnce):
    """With a statement that selects the metrics, a misspelt one is told from an unused one."""

    knows_metrics = True

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Ask the table itself which metrics there are."""
        url = store(tmp_path / "usage.db", rows_of(events, datetime.isoformat))
        metrics = "SELECT DISTINCT metric FROM usage WHERE metric IN (:metrics)"
        return SqlSource(url=url, **{**QUERY, "known_metrics_query": metrics})


class TestListsInParentheses(TestManyAtOnce):
    """`IN (:subjects)`, as one writes plain SQL, asks the same as `IN :subjects`."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Write every list in parentheses."""
        url = store(tmp_path / "usage.db", rows_of(events, datetime.isoformat))
        lists = {":subjects": "(:subjects)", ":metrics": "( :metrics )"}
        query, known = MANY, KNOWN
        for plain, enclosed in lists.items():
            query, known = query.replace(plain, enclosed), known.replace(plain, enclosed)
        return SqlSource(url=url, **{**QUERY, "query": query, "known_subjects_query": known})


class TestOneByOne(UsageSourceContract):
    """One statement for each charge, which answers 0 also for a subject that is not there."""

    aggregations = frozenset({Aggregation.COUNT})
    knows_metrics = False
    filters = False

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store ISO text and count it charge by charge."""
        url = store(tmp_path / "usage.db", rows_of(events, datetime.isoformat))
        return SqlSource(url=url, **{**QUERY, "query": ONE})


CATALOGUE = "SELECT 'calls' UNION SELECT 'text_message'"


def test_a_metric_that_the_statement_does_not_name_is_refused(open_source: Open) -> None:
    """The error says statement and nearest metric; what has usage or is named is counted."""
    stated = {**QUERY, "known_metrics_query": CATALOGUE}
    source = open_source([row(MAY_2), ("S-1", "unlisted", MAY_2, 2, "")], **stated)
    assert ask(source, Aggregation.SUM) == 1
    assert ask(source, Aggregation.SUM, metric="text_message") == 0
    assert ask(source, Aggregation.SUM, metric="text_message", subject="nobody") is None
    assert ask(source, Aggregation.SUM, metric="unlisted") == 2
    for subject in ("S-1", "nobody"):
        with pytest.raises(SourceInvalid) as caught:
            ask(source, Aggregation.SUM, metric="text_mesage", subject=subject)
        told = "known_metrics_query does not name the metric 'text_mesage', so its count is unknown"
        assert told in str(caught.value)
        assert "nearest: 'text_message'" in str(caught.value)


def test_a_component_is_looked_for_where_the_statement_counts_components(open_source: Open) -> None:
    """A statement of :component asks whether the component is known, not the metric."""
    source = open_source([row(MAY_2)], **{**QUERY, "query": ONE, "known_metrics_query": CATALOGUE})
    asked = query(metric="whatever", period=JUNE)
    known = source.count([dataclasses.replace(asked, component="calls")])[0]
    assert known.value == 0
    with pytest.raises(SourceInvalid, match="does not name the metric 'cals'"):
        source.count([dataclasses.replace(asked, component="cals")])


def test_a_tables_metrics_may_be_stated_by_a_statement(open_source: Open) -> None:
    """A metric that is in no row of the table, but that the statement names, is 0."""
    source = open_source([row(MAY_2)], known_metrics_query=CATALOGUE)
    assert ask(source, metric="text_message") == 0
    with pytest.raises(SourceInvalid, match="nobody ever used the metric 'text_mesage'"):
        ask(source, metric="text_mesage")


def test_a_statement_of_metrics_that_is_wrong_is_found_by_the_check(open_source: Open) -> None:
    """The check runs it, before the first invoice does."""
    with pytest.raises(SourceInvalid, match="no such table: catalogue"):
        open_source([row(MAY_2)], known_metrics_query="SELECT name FROM catalogue").check()


def test_a_statement_refuses_filters_in_words(open_source: Open) -> None:
    """A statement cannot be narrowed from outside, and the error says where to do it."""
    told = r"query cannot filter by 'region': write the condition into the query, or count from a"
    with pytest.raises(SourceInvalid, match=told):
        ask(open_source([row(MAY_2)], **QUERY), Aggregation.SUM, filters=(("region", "eu"),))


@pytest.mark.parametrize("text", [MANY, ONE])
def test_a_statement_does_not_stand_without_its_subjects(open_source: Open, text: str) -> None:
    """A query whose 0 might be nobody's is refused, saying which setting to give, why and how."""
    with pytest.raises(ValueError, match="needed with query") as caught:
        open_source([row(MAY_2)], **{**QUERY, "query": text, "known_subjects_query": None})
    for part in ("answers 0 also for a subject that nobody knows", "WHERE id IN :subjects"):
        assert part in str(caught.value)


def test_the_last_of_nothing_is_no_number(open_source: Open) -> None:
    """A known subject without a row has no maximum, whatever the statement computes."""
    source = open_source([row(MAY_2)], **QUERY)
    with pytest.raises(SourceInvalid, match="no value in the period"):
        ask(source, Aggregation.MAX, period=JUNE)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("NULL", "value of subject 'S-1', 'calls': NULL is not a number"),
        ("SUM(quantity * 0.1)", "decimal_sum"),
        ("'many'", "'many' is not a number"),
        ("'nan'", "not a finite number"),
        ("x'00'", "not a number"),
        ("1 AS value, 2", "two columns value"),
        ("1 AS number, 2 AS sum, 3", "two rows"),
    ],
)
def test_an_answer_that_is_no_count_is_refused(
    open_source: Open, value: str, complaint: str
) -> None:
    """A null, a float, a text, and a column or row too many are errors, never numbers."""
    text = MANY.replace(EXACT_SUM, value)
    if complaint == "two rows":
        text += " UNION ALL SELECT 'S-1', 'calls', 1, 2, 3, 4"
    source = open_source([row(MAY_2)], **{**QUERY, "query": text})
    with pytest.raises(SourceInvalid, match=complaint):
        ask(source, Aggregation.SUM)


@pytest.mark.parametrize("column", ["value", "subject", "metric"])
def test_a_missing_column_is_named(open_source: Open, column: str) -> None:
    """The statement must say the value, and whose it is when several are asked for."""
    text = "SELECT * FROM (SELECT 1 AS value, 'S-1' AS subject, 'calls' AS metric)"
    text = text.replace(f"AS {column}", "AS other")
    text += " WHERE :start < :end OR '' IN :subjects OR '' IN :metrics"
    source = open_source([row(MAY_2)], **{**QUERY, "query": text})
    with pytest.raises(SourceInvalid, match=f"no column {column}, only"):
        ask(source)


def test_a_row_that_nobody_asked_for_is_refused(open_source: Open) -> None:
    """A statement that forgets whose usage it counts is not given to anybody."""
    text = MANY.replace("subject_id IN :subjects", "(1 OR '' IN :subjects)")
    source = open_source([row(MAY_2), ("S-2", "calls", MAY_2, 1, "")], **{**QUERY, "query": text})
    with pytest.raises(SourceInvalid, match="answered for subject 'S-2', 'calls'"):
        ask(source, Aggregation.SUM)


def test_each_charge_has_its_own_subject(open_source: Open) -> None:
    """Of lists of subjects and metrics a statement finds each with each; only pairs are asked."""
    rows = [row(MAY_2), ("S-1", "pages", MAY_2, 7, ""), ("S-2", "pages", MAY_2, 2, "")]
    asked = [query("1", subject="S-1", metric="calls"), query("2", subject="S-2", metric="pages")]
    summed = [dataclasses.replace(each, aggregation=Aggregation.SUM) for each in asked]
    assert [each.value for each in open_source(rows, **QUERY).count(summed)] == [1, 2]


def test_one_statement_cannot_tell_two_aggregations_apart(open_source: Open) -> None:
    """Two charges that want different things of the same usage do not get the same number."""
    asked = [query("1", aggregation=Aggregation.SUM), query("2", aggregation=Aggregation.MAX)]
    with pytest.raises(SourceInvalid, match="cannot tell max and sum"):
        open_source([row(MAY_2)], **QUERY).count(asked)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"query": "SELECT 1"}, "give either table or query"),
        ({"table": None}, "give either table or query"),
        ({"subject_column": None}, "subject_column is needed with table"),
        ({**QUERY, "time_column": "at"}, "time_column belongs to table"),
        ({**QUERY, "query": "SELECT :start, :subject"}, "query does not use :end"),
        ({**QUERY, "query": "SELECT :start, :end"}, "either :subject or :subjects"),
        ({**QUERY, "query": f"{MANY} LIMIT :limit"}, "unknown parameters limit"),
        ({**QUERY, "query": f"{MANY} LIMIT :metric"}, "only one of :metric"),
        ({**QUERY, "known_subjects_query": None}, "known_subjects_query is needed with query"),
        ({**QUERY, "known_metrics": ["calls"]}, "known_metrics belongs to a table with"),
        ({"metric_column": None, "known_metrics": ["calls"]}, "known_metrics belongs to a table"),
        ({"known_metrics": "calls"}, "known_metrics"),
        ({"known_subjects_query": "SELECT 1"}, "must use :subjects"),
        ({"known_metrics_query": "SELECT :subjects"}, "known_metrics_query may use :metrics and"),
        ({"known_metrics_query": "SELECT 1", "metric_column": None}, "needs a table with metric_"),
        (
            {**QUERY, "query": "SELECT :start, :end, :subject", "known_metrics_query": "SELECT 1"},
            "or a query that uses :metric, :metrics, :component or :components",
        ),
        ({"watermark_query": "SELECT :now"}, "must not use parameters"),
        ({"watermark_query": "SELECT 1", "watermark_lag_seconds": 1}, "not both"),
        ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be 0 or more"),
        ({"timeout_seconds": 0}, "timeout_seconds must be more than 0"),
        ({"time_format": "native"}, "SQLite has no timestamp type"),
        ({"time_format": "stardate"}, "time_format"),
        ({"url": "postgresql://localhost/db"}, 'time_format "iso"'),
        ({"url": "no url with secret"}, "url is not a SQLAlchemy URL"),
        ({"url": "nosuchdb://u:secret@host/db"}, "url is not a SQLAlchemy URL"),
        ({"url": "sqlite://"}, "url must name a SQLite file"),
        ({"url": "sqlite+aiosqlite:///usage.db"}, "another SQLite driver"),
    ],
)
def test_settings_that_contradict_are_named(changed: dict[str, Any], complaint: str) -> None:
    """A wrong combination is refused when the configuration is read, with the setting's name."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(SqlSource).validate_python({"url": "sqlite:///usage.db", **TABLE, **changed})
    text = str(caught.value.errors(include_input=False))
    assert complaint in text
    assert "secret" not in text


def test_the_evidence_names_the_file_by_its_whole_path(
    open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody elsewhere finds it, however the settings write it; and it stays the same file."""
    open_source([row(MAY_2)])
    monkeypatch.chdir(tmp_path)
    with closing(SqlSource(url="sqlite:///usage.db", **TABLE)) as source:
        source.check()
        monkeypatch.chdir("/")
        (tally,) = source.count([query()])
    assert tally.evidence.source.startswith(f"sql sqlite:///{tmp_path}/usage.db ")


def test_a_driver_that_is_not_installed_is_named_as_the_url_does() -> None:
    """It is the URL's word for it, which need not be the module's, that can be searched for."""
    settings = {**TABLE, "time_format": "native"}
    source = SqlSource(url="mysql+mysqlconnector://u@127.0.0.1:1/db", **settings)
    with pytest.raises(SourceInvalid, match="the driver mysqlconnector of url is not installed"):
        source.check()


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    """A SQLite file that is not there is unavailable, and is still not there afterwards."""
    source = SqlSource(url=f"sqlite:///{tmp_path}/usage.db", **TABLE)
    with pytest.raises(SourceUnavailable, match=r"usage\.db cannot be opened.*check url"):
        ask(source)
    assert list(tmp_path.iterdir()) == []


def test_a_locked_database_is_tried_again_later(open_source: Open, tmp_path: Path) -> None:
    """A writer that holds the file longer than the timeout makes the source unavailable."""
    source = open_source([row(MAY_2)], timeout_seconds=0.05)
    with closing(sqlite3.connect(tmp_path / "usage.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailable, match=r"within 0\.05 s.*locked"):
            ask(source)
    assert ask(source) == 1


def test_a_statement_that_takes_too_long_is_stopped(open_source: Open) -> None:
    """A count is bounded by timeout_seconds, however much the statement asks for."""
    endless = f"""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT COUNT(*) AS value, :subject AS subject FROM n, usage WHERE {WINDOW}"""
    source = open_source([row(MAY_2)], **{**QUERY, "query": endless, "timeout_seconds": 0.1})
    begun = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"no answer within 0\.1 s"):
        ask(source)
    assert time.monotonic() - begun < 10


def test_a_replaced_file_is_read_anew(open_source: Open, tmp_path: Path) -> None:
    """A warm connection does not go on reading a file that another one took the place of."""
    source = open_source([row(MAY_2)])
    assert ask(source) == 1
    store(tmp_path / "new.db", [row(MAY_2)] * 2)
    (tmp_path / "new.db").replace(tmp_path / "usage.db")
    assert ask(source) == 2


def test_the_source_cannot_write(open_source: Open) -> None:
    """The database is opened read-only, so that no statement can change it."""
    text = "DELETE FROM usage WHERE :start < :end AND :subject <> '' RETURNING 1 AS value"
    source = open_source([row(MAY_2)], **{**QUERY, "query": text})
    with pytest.raises(SourceInvalid, match="readonly"):
        ask(source)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"table": "usages"}, "no table usages; nearest: usage"),
        ({"table": "usage; DROP TABLE usage"}, "no table usage; DROP TABLE usage"),
        ({"time_column": "create_at"}, "no column create_at; nearest: created_at; correct time_co"),
        ({"quantity_column": "1"}, "no column 1; nearest:"),
        ({"watermark_query": "SELECT absent"}, "no such column: absent"),
        ({**QUERY, "query": f"{ONE} AND"}, "incomplete input"),
    ],
)
def test_what_is_not_in_the_database_is_named(
    open_source: Open, changed: dict[str, Any], complaint: str
) -> None:
    """The check finds a wrong table, column or statement and shows what is nearest."""
    with pytest.raises(SourceInvalid) as caught:
        open_source([row(MAY_2)], **changed).check()
    assert complaint in str(caught.value)


@pytest.fixture
def executed() -> Iterator[list[str]]:
    """The statements that any engine of this process is asked to run."""
    texts: list[str] = []

    def note(*given: Any) -> None:
        texts.append(given[2])

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield texts
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    "setting",
    ["subject_column", "metric_column", "time_column", "quantity_column", "unique_column"],
)
@pytest.mark.parametrize(
    "name",
    [
        'created_at"; DROP TABLE usage; --',
        "quantity) FROM usage; DELETE FROM usage; --",
        "(SELECT name FROM sqlite_master)",
        "metric OR 1=1",
        '"metric"',
        "rowid",
        "x\0y",
        "%(x)s :subject ? {0}",
    ],
)
def test_a_hostile_column_name_is_refused_by_its_setting(
    open_source: Open, executed: list[str], tmp_path: Path, setting: str, name: str
) -> None:
    """Neither checking nor counting runs any statement that has the name in it."""
    source = open_source([row(MAY_2)], **{setting: name})
    counts = [partial(ask, source, each) for each in Aggregation]
    questions: list[Callable[[], object]] = [source.check, *counts]
    for asking in questions:
        with pytest.raises(SourceInvalid) as caught:
            asking()
        assert f"has no column {name}; nearest: " in str(caught.value)
        assert str(caught.value).endswith(f"; correct {setting}")
    assert executed
    assert [text for text in executed if name in text] == []
    with closing(sqlite3.connect(tmp_path / "usage.db")) as connection:
        assert connection.execute("SELECT count(*) FROM usage").fetchone() == (1,)


class Clockwork(SqlSource):
    """A source whose present moment is known."""

    @staticmethod
    def now() -> datetime:
        """Return noon."""
        return datetime(2024, 6, 1, 12, tzinfo=UTC)


def test_the_watermark_is_asked_for_or_lags(tmp_path: Path) -> None:
    """The watermark is what its statement says, or now less the lag, or unsaid; evidence has it."""
    url = store(tmp_path / "usage.db", [row("2024-05-02T02:00:00.5+02:00")])
    latest: dict[str, Any] = {"watermark_query": "SELECT MAX(created_at) FROM usage"}
    asked = Clockwork(url=url, **TABLE, **latest)
    lagging = Clockwork(url=url, **TABLE, watermark_lag_seconds=90.0)
    moment = datetime(2024, 5, 2, 0, 0, 0, 500_000, tzinfo=UTC)
    assert asked.watermark() == asked.count([query()])[0].evidence.watermark == moment
    assert lagging.watermark() == Clockwork.now() - timedelta(seconds=90)
    assert Clockwork(url=url, **TABLE).watermark() is None
    for source in (asked, lagging):
        source.close()


@pytest.mark.parametrize(
    "text", ["SELECT NULL", "SELECT 'soon'", "SELECT 1 WHERE 0", "SELECT '2024-05-01', 2"]
)
def test_a_watermark_that_is_no_moment_is_refused(open_source: Open, text: str) -> None:
    """An empty or unreadable watermark vouches for nothing."""
    with pytest.raises(SourceInvalid, match="watermark_query"):
        open_source([row(MAY_2)], watermark_query=text).watermark()


def test_no_error_shows_a_password() -> None:
    """Neither an unreachable database nor the source's own text gives its password away."""
    source = SqlSource(
        url="postgresql+psycopg://reader:s3cret@127.0.0.1:9/usage?password=s3cret",
        **{**TABLE, "time_format": "native"},
    )
    assert "s3cret" not in repr(source)
    with pytest.raises((SourceInvalid, SourceUnavailable)) as caught:
        source.check()
    assert "s3cret" not in str(caught.value)
    assert "reader:***@127.0.0.1:9/usage" in str(caught.value)
