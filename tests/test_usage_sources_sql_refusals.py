"""What the SQL source refuses to count in a table, and how it says so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from test_usage_sources_sql import MAY_2, Open, ask, opening, row

from usage_sources.contract import JUNE, MAY, query
from usage_sources.reading import microseconds
from worker.domain import Aggregation, Period
from worker.errors import SourceInvalid

open_source = pytest.fixture(opening)


@pytest.mark.parametrize("bad", ["yesterday", "2024-05-02", "2024-05-02T25:00:00Z", 17, None, b"x"])
def test_a_time_that_is_none_names_table_column_and_row(open_source: Open, bad: object) -> None:
    """An unreadable time is never passed over: the error names where it is and what it is."""
    source = open_source([row(MAY_2), row(bad)])
    with pytest.raises(SourceInvalid) as caught:
        ask(source)
    for part in ("table usage row 2", "created_at", "'S-1'", "NULL" if bad is None else repr(bad)):
        assert part in str(caught.value)


def test_a_bad_row_of_another_subject_holds_nobody_else(open_source: Open) -> None:
    """Only the rows of the subjects that are asked about have to be readable."""
    other = ("S-2", "calls", "yesterday", "many", None)
    assert ask(open_source([row(MAY_2), other])) == 1


def test_a_time_without_zone_is_refused_unless_it_is_said_to_be_utc(open_source: Open) -> None:
    """No zone is assumed; naive_times = "utc" states one."""
    rows = [row("2024-05-01 00:00:00"), row("2024-06-01 00:00:00")]
    with pytest.raises(SourceInvalid, match=r"has no zone.*naive_times"):
        ask(open_source(rows))
    assert ask(open_source(rows, naive_times="utc")) == 1


@pytest.mark.parametrize("bad", ["soon", None, b"x", 1_714_600_000_000, 1_714_600, float("inf")])
def test_an_epoch_that_cannot_be_meant_is_refused(open_source: Open, bad: object) -> None:
    """Text, NULL, or a number in the wrong unit in an epoch column would count as nothing."""
    columns = "subject_id, metric, created_at INTEGER, quantity, visitor"
    source = open_source(
        [row(1_714_600_000), row(bad)], time_format="epoch_seconds", columns=columns
    )
    with pytest.raises(SourceInvalid, match=r"table usage row 2: created_at of subject 'S-1'"):
        ask(source)


def test_an_epoch_column_of_text_is_refused(open_source: Open) -> None:
    """Text compares by letters, so a column declared as text holds no epochs."""
    columns = "subject_id, metric, created_at TEXT, quantity, visitor"
    source = open_source([row(1_714_600_000)], time_format="epoch_seconds", columns=columns)
    with pytest.raises(SourceInvalid, match="created_at is TEXT"):
        source.check()


def test_a_fraction_beside_an_edge_between_two_seconds_is_refused(open_source: Open) -> None:
    """Whole seconds decide an edge between them exactly; a stored fraction might not."""
    odd = Period(MAY.start + timedelta(milliseconds=500), MAY.end)
    first = microseconds(MAY.start) // 1_000_000
    whole = [row(first), row(first + 1)]
    assert ask(open_source(whole, time_format="epoch_seconds"), period=odd) == 1
    with pytest.raises(SourceInvalid, match="created_at"):
        ask(open_source([*whole, row(first + 0.25)], time_format="epoch_seconds"), period=odd)


@pytest.mark.parametrize(
    "bad", ["many", "1,5", "NaN", "Infinity", "1_000", "1e999", "1e-999", b"x", ""]
)
@pytest.mark.parametrize("how", [Aggregation.SUM, Aggregation.MAX, Aggregation.LAST])
def test_a_quantity_that_is_none_is_named(open_source: Open, bad: object, how: Aggregation) -> None:
    """A quantity that is no finite number is an error that shows it."""
    source = open_source([row(MAY_2, bad)])
    with pytest.raises(SourceInvalid) as caught:
        ask(source, how)
    assert f"table usage row 1: quantity of subject 'S-1': {bad!r}" in str(caught.value)


@pytest.mark.parametrize("how", [Aggregation.SUM, Aggregation.MAX, Aggregation.LAST])
def test_a_missing_quantity_is_never_zero(open_source: Open, how: Aggregation) -> None:
    """NULL in a counted row is an error, though SQL's aggregates pass over it."""
    source = open_source([row(MAY_2, 5), row("2024-05-03T00:00:00Z", None)])
    with pytest.raises(SourceInvalid, match="quantity is NULL in 1 of 2 rows of subject 'S-1'"):
        ask(source, how)
    assert ask(source) == 2


def test_a_missing_unique_value_is_refused(open_source: Open) -> None:
    """NULL in the unique column is nobody, and so an error."""
    source = open_source([row(MAY_2), row(MAY_2, visitor=None)])
    with pytest.raises(SourceInvalid, match="visitor is NULL in 1 of 2 rows"):
        ask(source, Aggregation.UNIQUE)


@pytest.mark.parametrize("how", [Aggregation.MAX, Aggregation.LAST])
def test_no_value_in_the_period_is_no_maximum(open_source: Open, how: Aggregation) -> None:
    """A known subject without events has no largest and no last value."""
    source = open_source([row(MAY_2)])
    with pytest.raises(SourceInvalid, match="no value in the period"):
        ask(source, how, period=JUNE)


def test_two_last_values_at_once_are_ambiguous(open_source: Open) -> None:
    """Equal instants with different quantities have no last one; equal quantities have."""
    late, same = row("2024-05-02T02:00:00+02:00", 7), row(MAY_2, "7.0")
    assert ask(open_source([late, same]), Aggregation.LAST) == 7
    with pytest.raises(SourceInvalid, match="ambiguous: 7 and 8"):
        ask(open_source([late, row(MAY_2, 8)]), Aggregation.LAST)


def test_two_metrics_need_a_metric_column(open_source: Open) -> None:
    """Without a metric column two metrics would both be given all rows."""
    source = open_source([row(MAY_2)], metric_column=None)
    assert ask(source) == 1
    with pytest.raises(SourceInvalid, match="cannot tell the metrics 'calls', 'pages' apart"):
        source.count([query("1"), query("2", metric="pages")])


def test_filters_tell_metrics_apart_too(open_source: Open) -> None:
    """Without a metric column two metrics may be two filters of the same rows."""
    rows = [row(MAY_2), row(MAY_2, visitor="bob"), row(MAY_2, visitor="bob")]
    asked = [
        query("1", filters=(("visitor", "ann"),)),
        query("2", metric="pages", filters=(("visitor", "bob"),)),
    ]
    tallies = open_source(rows, metric_column=None).count(asked)
    assert [tally.value for tally in tallies] == [1, 2]
    assert [tally.evidence.parameters["filter_0"] for tally in tallies] == ["ann", "bob"]


def test_a_row_that_is_filtered_out_needs_no_quantity(open_source: Open) -> None:
    """Only what counts must have a quantity; one that is NULL is refused where it counts."""
    source = open_source([row(MAY_2), row(MAY_2, None, "bob")])
    assert ask(source, Aggregation.SUM, filters=(("visitor", "ann"),)) == 1
    with pytest.raises(SourceInvalid, match="quantity is NULL in 1 of 1 rows of subject 'S-1'"):
        ask(source, Aggregation.SUM, filters=(("visitor", "bob"),))


TIERS = [
    # how the column is declared, what is stored, the filter's value, and what is counted
    ("TEXT", "eu", "eu", 1),
    ("TEXT", "eu", "EU", 0),
    ("TEXT COLLATE NOCASE", "eu", "EU", 0),
    ("TEXT", None, "None", 0),
    ("INTEGER", 7, "7", 1),
    ("INTEGER", 7, "8", 0),
    ("REAL", 1.5, "1.5", 1),
    ("NUMERIC", 1, "1.0", 1),
    ("", 7, "7", 1),
    ("", "7", "7", 1),
    ("BOOLEAN", 1, "true", 1),
    ("BOOLEAN", 1, "0", 0),
    ("BOOLEAN", 1, "yes", "tier is BOOLEAN, which is never 'yes'"),
]


@pytest.mark.parametrize(("declared", "stored", "value", "number"), TIERS)
def test_a_filter_is_compared_as_its_column_is(
    open_source: Open, declared: str, stored: object, value: str, number: int | str
) -> None:
    """Numbers filter as numbers, truth values as such, and texts letter by letter."""
    columns = f"subject_id, metric, created_at, quantity, visitor, tier {declared}"
    source = open_source([(*row(MAY_2), stored)], columns=columns)
    filters = (("tier", value),)
    if isinstance(number, int):
        assert ask(source, filters=filters) == number
        assert ask(source, Aggregation.LAST) == 1
    else:
        with pytest.raises(SourceInvalid, match=number):
            ask(source, filters=filters)


def test_a_filter_that_is_refused_says_what_to_mend(open_source: Open) -> None:
    """The error names the table, the column and where the filter stands."""
    told = r"table usage: there is no column 'regio' to filter by; correct filters under components"
    with pytest.raises(SourceInvalid, match=told):
        ask(open_source([row(MAY_2)]), filters=(("regio", "eu"),))


@pytest.mark.parametrize("declared", ["INTEGER", "REAL", "NUMERIC", "BIGINT"])
def test_a_number_that_is_written_otherwise_is_another_subject(
    open_source: Open, declared: str
) -> None:
    """SQLite takes 01 for 1 in a column of numbers; nobody is billed for whom it is not."""
    columns = f"subject_id {declared}, metric, created_at, quantity, visitor"
    source = open_source([(1, "calls", MAY_2, 1, "ann")], columns=columns)
    for name in ("01", "1.0", " 1", "1e0", "+1"):
        assert ask(source, subject=name) is None, name
        assert ask(source, subject=name, period=JUNE) is None, name
    assert ask(source, subject="1") == (None if declared == "REAL" else 1)


@pytest.mark.parametrize(
    ("how", "setting"),
    [(Aggregation.SUM, "quantity_column"), (Aggregation.UNIQUE, "unique_column")],
)
def test_an_aggregation_names_the_setting_it_needs(
    open_source: Open, how: Aggregation, setting: str
) -> None:
    """Summing without a quantity, or telling apart without a column, says what to set."""
    source = open_source([row(MAY_2)], **{setting: None})
    with pytest.raises(SourceInvalid, match=f"{how} needs {setting}"):
        ask(source, how)
