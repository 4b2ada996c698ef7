"""The ClickHouse source on a real engine: what it refuses to believe, and what changes nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from test_usage_sources_clickhouse import COLUMNS, SETTINGS, row, written
from test_usage_sources_clickhouse_engine import OnChdb, create, insert, run

from usage_sources.clickhouse import ClickHouseSource
from usage_sources.clickhouse.types import ColumnType
from usage_sources.contract import MAY, MIDNIGHT, event, query
from worker.domain import Aggregation, Period, Tally
from worker.errors import SourceInvalid
from worker.plugins import secrets_of

BASE = row(event(MIDNIGHT), written(MIDNIGHT))


def ask(aggregation: Aggregation = Aggregation.COUNT, /, **changed: Any) -> Tally:
    """Ask for subject S-1's calls in May."""
    (tally,) = OnChdb(**{**SETTINGS, **changed}).count([query(aggregation=aggregation)])
    return tally


def store(*rows: Mapping[str, Any], how: str = "Memory", **types: str) -> None:
    """Make the table with some columns of another type, and store rows."""
    kinds = {
        "subject": "String",
        "metric": "String",
        "at": "DateTime64(6, 'UTC')",
        "quantity": "Decimal(38, 10)",
        "visitor": "String",
        "region": "String",
        **types,
    }
    columns = ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())
    create("billing.events", columns, how)
    insert("billing.events", [{**BASE, **each} for each in rows])


@contextmanager
def session_says(**settings: object) -> Iterator[None]:
    """Change settings of the session, as a profile would."""
    try:
        for name, value in settings.items():
            run(f"SET {name} = '{value}'")
        yield
    finally:
        for name in settings:
            run(f"SET {name} = DEFAULT")


@pytest.mark.parametrize(
    ("kind", "quantities", "total"),
    [
        ("UInt8", ["255", "255"], "510"),
        ("Int64", [str(-(2**63))] * 2, str(-(2**64))),
        ("UInt64", [str(2**64 - 1)] * 2, str(2**65 - 2)),
        ("Int128", [str(2**127 - 1)] * 2, str(2**128 - 2)),
        ("Decimal(38, 0)", [str(10**38 - 1)] * 4, str(4 * (10**38 - 1))),
        ("Decimal(18, 18)", ["0.999999999999999999"] * 2, "1.999999999999999998"),
        ("Float64", ["0.1"] * 10, "1"),
        ("Float32", ["0.1", "0.2"], "0.3"),
        ("Float64", ["1e-7", "1e21", "-0"], "1000000000000000000000.0000001"),
        ("LowCardinality(Nullable(Int32))", ["1", "-3"], "-2"),
    ],
)
def test_sums_do_not_overflow(kind: str, quantities: list[str], total: str) -> None:
    """Sums beyond the column's own type are exact, and floats add as they are written."""
    with session_says(allow_suspicious_low_cardinality_types=1):
        store(*({"quantity": each} for each in quantities), quantity=kind)
    assert ask(Aggregation.SUM).value == Decimal(total)
    largest = max(map(Decimal, quantities))
    assert ask(Aggregation.MAX).value == largest


@pytest.mark.parametrize(
    ("kind", "quantities"),
    [
        ("Int256", [str(2**254)] * 2),
        ("UInt256", [str(2**255 + 5)]),
        ("Decimal(76, 40)", ["9" * 36] * 6),
        ("Float64", ["nan"]),
        ("Float64", ["inf", "1"]),
        ("Float64", ["-inf"]),
        ("Float64", ["1e300"]),
        ("Float32", ["1e-30"]),
    ],
)
def test_a_sum_that_cannot_be_exact_is_refused(kind: str, quantities: list[str]) -> None:
    """What may have overflowed, or is no finite number, is SourceInvalid and not a number."""
    store(*({"quantity": each} for each in quantities), quantity=kind)
    with pytest.raises(SourceInvalid, match=r"quantity of subject 'S-1'.*(?:exact|60 digits)"):
        ask(Aggregation.SUM)


@pytest.mark.parametrize("kind", ["String", "Bool", "Array(Int8)", "Date", "FixedString(3)"])
def test_a_quantity_must_be_a_number(kind: str) -> None:
    """A column of another type is refused before anything is counted, and named with its type."""
    store(quantity=kind)
    with pytest.raises(SourceInvalid, match=r"quantity is \w+.*no number"):
        ask(Aggregation.COUNT)


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.MAX, Aggregation.LAST])
def test_a_missing_quantity_is_no_zero(aggregation: Aggregation) -> None:
    """NULL quantities, which ClickHouse leaves out, are counted and refused."""
    store({}, {"quantity": None}, quantity="Nullable(Int64)")
    with pytest.raises(SourceInvalid, match="quantity is NULL in 1 of 2 rows"):
        ask(aggregation)


def test_a_missing_visitor_is_nobody() -> None:
    """A NULL in the column of distinct values is refused."""
    store({}, {"visitor": None}, visitor="LowCardinality(Nullable(String))")
    with pytest.raises(SourceInvalid, match="visitor is NULL in 1 of 2 rows"):
        ask(Aggregation.UNIQUE)


def test_the_last_of_two_at_once_is_ambiguous() -> None:
    """Two quantities at the last moment are refused when they differ, and one when they do not."""
    earlier = {"at": "2024-04-30 23:00:00", "quantity": 9}
    for kind in ("Int8", "UInt64", "Float64", "Decimal(9, 2)"):
        store(earlier, {"quantity": 2}, {"quantity": 2}, quantity=kind)
        assert ask(Aggregation.LAST).value == 2
        store(earlier, {"quantity": 2}, {"quantity": 1}, quantity=kind)
        with pytest.raises(SourceInvalid, match="ambiguous: 1 and 2"):
            ask(Aggregation.LAST)


@pytest.mark.parametrize("aggregation", [Aggregation.MAX, Aggregation.LAST])
def test_nothing_has_no_largest(aggregation: Aggregation) -> None:
    """A known subject without events in the period has no max and no last."""
    store({"at": "2024-06-01 00:00:00"})
    with pytest.raises(SourceInvalid, match=f"there is no {aggregation}"):
        ask(aggregation)


HARMLESS: dict[str, dict[str, object]] = {
    "a limit": {"limit": 1},
    "an offset": {"offset": 1},
    "no totals": {"extremes": 1},
    "null for empty": {"aggregate_functions_null_for_empty": 1},
    "nulls are equal": {"transform_null_in": 1},
    "quoted numbers": {"output_format_json_quote_64bit_integers": 1},
    "other names first": {"prefer_column_name_to_alias": 1},
    "deleted rows": {"apply_deleted_mask": 0},
    "final by itself": {"final": 1},
}


@pytest.mark.parametrize("settings", HARMLESS.values(), ids=HARMLESS)
def test_a_profile_changes_no_count(settings: dict[str, object]) -> None:
    """Settings that would leave rows out, or count deleted ones, are overruled."""
    at = {"at": "2024-05-02 00:00:00"}
    store({}, {}, at, {"subject": "S-2"}, {"subject": "gone"}, how="MergeTree ORDER BY at")
    run("DELETE FROM billing.events WHERE subject = 'gone'")
    asked = [query("1"), query("2", subject="S-2"), query("3", subject="gone")]
    with session_says(**settings):
        values = [tally.value for tally in OnChdb(**SETTINGS).count(asked)]
    assert values == [3, 1, None]


BREAKING = {
    "read": {"max_rows_to_read": 2, "read_overflow_mode": "break", "max_block_size": 1},
    "result": {"max_result_rows": 1, "result_overflow_mode": "break", "max_block_size": 1},
    "group": {"max_rows_to_group_by": 1, "group_by_overflow_mode": "any"},
}


@pytest.mark.parametrize("settings", BREAKING.values(), ids=BREAKING)
def test_a_limit_ends_a_count_and_never_cuts_it(settings: dict[str, object]) -> None:
    """Where a profile would stop quietly in the middle, the count is refused."""
    store(*({"subject": f"S-{n % 3}"} for n in range(30)), how="MergeTree ORDER BY at")
    asked = [query(str(n), subject=f"S-{n}") for n in range(3)]
    source = OnChdb(**SETTINGS)
    layout = source._schema.described(source._asking())
    with session_says(**settings), pytest.raises(SourceInvalid, match="TOO_MANY_ROWS"):
        source._reader.answers(source._asking(), layout, asked)


def test_nothing_is_answered_from_a_cache() -> None:
    """An event that came after the first count is in the second."""
    store({}, how="MergeTree ORDER BY at")
    with session_says(use_query_cache=1):
        assert ask().value == 1
        insert("billing.events", [BASE])
        assert ask().value == 2


def test_replaced_rows_count_once_in_every_partition() -> None:
    """FINAL also joins what lies in two partitions, whatever the profile says."""
    how = "ReplacingMergeTree PARTITION BY region ORDER BY subject"
    store({}, how=how)
    insert("billing.events", [{**BASE, "region": "us"}])
    with session_says(do_not_merge_across_partitions_select_final=1):
        assert ask(final=True).value == 1


def test_collapsed_rows_are_gone() -> None:
    """In a table that collapses rows, one that was taken back does not count."""
    how = "CollapsingMergeTree(sign) ORDER BY visitor"
    store({"sign": 1}, {"sign": 1, "visitor": "bob"}, how=how, sign="Int8")
    insert("billing.events", [{**BASE, "sign": -1}])
    assert ask(final=True).value == 1


@pytest.mark.parametrize(
    ("how", "final", "says"),
    [
        ("ReplacingMergeTree ORDER BY at", False, "set final = true"),
        ("SummingMergeTree ORDER BY at", True, "none is an event"),
        ("AggregatingMergeTree ORDER BY at", False, "none is an event"),
        ("MergeTree ORDER BY at", True, "final is for tables whose engine replaces rows"),
    ],
)
def test_an_engine_that_loses_rows_is_refused(how: str, final: bool, says: str) -> None:
    """Rows that are merged at some later time give no count that repeats."""
    store({}, how=how)
    with pytest.raises(SourceInvalid, match=says):
        ask(final=final)


def test_a_view_ignores_final() -> None:
    """A view counts, and is refused with final, which would change nothing there."""
    store({}, {})
    run("CREATE OR REPLACE VIEW billing.seen AS SELECT * FROM billing.events")
    run("DROP TABLE IF EXISTS billing.filled SYNC")
    run(
        "CREATE MATERIALIZED VIEW billing.filled ENGINE = MergeTree ORDER BY at"
        " AS SELECT * FROM billing.events"
    )
    assert ask(table="seen").value == 2
    with pytest.raises(SourceInvalid, match="write FINAL inside of it"):
        ask(table="seen", final=True)
    with pytest.raises(SourceInvalid, match="name the table it fills"):
        ask(table="filled")
    run("DROP TABLE billing.filled SYNC")


@pytest.mark.parametrize(
    ("kind", "at", "time_format"),
    [
        ("DateTime", 0, "native"),
        ("Nullable(DateTime64(3))", None, "native"),
        ("UInt32", 0, "epoch_seconds"),
        ("Int64", 1714521600, "epoch_milliseconds"),
        ("Int64", 1714521600 * 10**9, "epoch_milliseconds"),
        ("Nullable(Int64)", None, "epoch_microseconds"),
    ],
)
def test_a_time_that_cannot_be_meant_is_refused(kind: str, at: object, time_format: str) -> None:
    """A time nobody gave, or one in another unit, is an error and not an empty period."""
    store({"at": at}, at=kind)
    with pytest.raises(SourceInvalid, match=r"at of subject 'S-1': .* is no time between 1980"):
        ask(time_format=time_format)


@pytest.mark.parametrize(
    ("kind", "time_format", "says"),
    [
        ("Date", "native", "is no DateTime"),
        ("String", "native", "is no DateTime"),
        ("Int64", "native", "is no DateTime"),
        ("DateTime64(3)", "epoch_milliseconds", 'set time_format = "native"'),
        ("Float64", "epoch_seconds", "does not hold whole numbers"),
        ("String", "epoch_seconds", "does not hold whole numbers"),
    ],
)
def test_a_time_column_must_be_of_its_format(kind: str, time_format: str, says: str) -> None:
    """Each other type is refused with what to set instead."""
    store(at=kind)
    with pytest.raises(SourceInvalid, match=says):
        ask(time_format=time_format)


def test_a_period_beyond_the_column_is_refused() -> None:
    """A period that no DateTime64 holds is not counted as an empty one."""
    store({})
    far = Period(MAY.start.replace(year=2300), MAY.end.replace(year=2300))
    with pytest.raises(SourceInvalid, match="beyond what"):
        OnChdb(**SETTINGS).count([query(period=far)])


UUID = "61f0c404-5cb3-11e7-907b-a6006ad3dba0"


@pytest.mark.parametrize(
    ("kind", "stored", "strangers"),
    [
        ("UInt64", "7", ["007", "+7", "7.0", "-7", str(2**64), "x", ""]),
        ("Int8", "-128", ["-129", "128", "--1"]),
        ("UUID", UUID, [UUID.upper(), UUID.replace("-", ""), "x"]),
        ("FixedString(4)", "ab", ["ab\0", "abc", "abcde", "\0"]),
        ("Enum8('eu' = 1, 'it''s' = 2)", "it's", ["eu", "It's", "nowhere"]),
        ("LowCardinality(String)", "ab", ["ab ", "AB", "\ud800"]),
        ("IPv4", "10.0.0.1", ["10.0.0.01", "10.0.0.2"]),
        ("Nullable(UInt16)", "0", ["", "00", "65536"]),
    ],
)
def test_a_name_is_compared_as_its_column_has_it(
    kind: str, stored: str, strangers: list[str]
) -> None:
    """A subject is itself only, in every type that holds names; all others are unknown."""
    store({"subject": stored}, subject=kind)
    names = [stored, *strangers]
    asked = [query(str(n), subject=name) for n, name in enumerate(names)]
    tallies = OnChdb(**SETTINGS).count(asked)
    values = {tally.query.subject: tally.value for tally in tallies}
    assert values == {stored: Decimal(1), **dict.fromkeys(strangers)}


def test_a_filter_must_fit_its_column() -> None:
    """Columns of other types filter too, and a value that they cannot hold is refused."""
    store({"region": 7}, {"region": 8}, region="UInt16")
    one = query(filters=(("region", "7"), ("visitor", "ann")))
    assert [tally.value for tally in OnChdb(**SETTINGS).count([one])] == [1]
    for value in ("eu", "70000", "07"):
        with pytest.raises(SourceInvalid, match="no value of a column of UInt16"):
            OnChdb(**SETTINGS).count([query(filters=(("region", value),))])
    with pytest.raises(SourceInvalid, match="no names to compare"):
        OnChdb(**SETTINGS).count([query(filters=(("quantity", "1"),))])


def test_columns_may_have_any_name() -> None:
    """Names of our own aliases and parameters, and such as need quoting, are only names."""
    odd = {"s": "events", "m": "value`, 1 --", "t": "start", "q": 'va"l\\ue', "u": "subject"}
    quoted = {
        key: "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`" for key, name in odd.items()
    }
    kinds = {"s": "String", "m": "String", "t": "DateTime", "q": "Int32", "u": "String"}
    table = "`odd\\`; DROP TABLE billing.events`"
    columns = ", ".join(f"{quoted[key]} {kind}" for key, kind in kinds.items())
    more = ", metric Int8, names Int8, present Int8, least Int8, `value` Int8"
    create(f"billing.{table}", columns + more)
    named = {"s": "S-1", "m": "calls", "t": "2024-05-01 00:00:00", "q": 5, "u": "ann"}
    insert(f"billing.{table}", [{odd[key]: each for key, each in named.items()}] * 2)
    source = OnChdb(
        **{
            **SETTINGS,
            "table": "odd`; DROP TABLE billing.events",
            "subject_column": odd["s"],
            "metric_column": odd["m"],
            "time_column": odd["t"],
            "quantity_column": odd["q"],
            "unique_column": odd["u"],
        }
    )
    expected = {"count": 2, "sum": 10, "max": 5, "last": 5, "unique": 1}
    for aggregation in Aggregation:
        (tally,) = source.count([query(aggregation=aggregation)])
        assert tally.value == expected[aggregation], aggregation
        assert tally.events == 2


def test_an_altered_table_is_looked_at_again() -> None:
    """A column that became finer, or a float, is counted as what it is now."""
    store({"at": "2024-04-30 23:59:59"}, at="DateTime", how="MergeTree ORDER BY subject")
    source = OnChdb(**SETTINGS)
    assert source.count([query()])[0].value == 0
    run("ALTER TABLE billing.events MODIFY COLUMN at DateTime64(6, 'UTC')")
    insert("billing.events", [{**BASE, "at": "2024-05-31 23:59:59.999999"}])
    assert source.count([query()])[0].value == 1
    create("billing.events", COLUMNS)


def test_what_is_not_there_is_named() -> None:
    """An unknown table or column is refused with the nearest that there is."""
    store({})
    with pytest.raises(SourceInvalid, match=r"billing.event is not there.*nearest: events"):
        ask(table="event")
    with pytest.raises(SourceInvalid, match="has no column metrics; nearest: metric"):
        ask(metric_column="metrics")
    with pytest.raises(SourceInvalid, match=r"count needs|sum needs quantity_column"):
        ask(Aggregation.SUM, quantity_column=None)
    with pytest.raises(SourceInvalid, match="unique needs unique_column"):
        ask(Aggregation.UNIQUE, unique_column=None)


def test_without_a_metric_column_metrics_cannot_be_told_apart() -> None:
    """Two metrics of a table that names none would get the same number."""
    store({}, {"metric": "pages"})
    one = {**SETTINGS, "metric_column": None}
    assert OnChdb(**one).count([query()])[0].value == 2
    with pytest.raises(SourceInvalid, match=r"cannot tell the metrics.*set metric_column"):
        OnChdb(**one).count([query("1"), query("2", metric="pages")])


def test_a_metric_can_be_announced() -> None:
    """A listed metric is 0 before its first event; another that nobody used is refused."""
    store({})
    listed = OnChdb(**SETTINGS, known_metrics=("pages",))
    assert listed.count([query(metric="pages")])[0].value == 0
    with pytest.raises(SourceInvalid, match=r"nobody ever used the metric 'cals'.*'calls'"):
        listed.count([query(metric="cals")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT at FROM billing.events", "must give one value"),
        ("SELECT 1, 2", "must give one value"),
        ("SELECT CAST(NULL, 'Nullable(DateTime)')", "is not ISO 8601 text"),
        ("SELECT '2024-05-01 00:00:00'", "has no zone"),
        ("SELECT toDate('2024-05-01')", "is not an ISO 8601 date and time"),
        ("SELECT nothing", "UNKNOWN_IDENTIFIER"),
    ],
)
def test_a_watermark_must_be_a_moment(text: str, says: str) -> None:
    """Whatever is not one moment is refused, by the count as well."""
    store({}, {})
    source = OnChdb(**SETTINGS, watermark_query=text)
    for asking in (source.watermark, source.check, lambda: source.count([query()])):
        with pytest.raises(SourceInvalid, match=says):
            asking()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"host": "http://db:8123"}, "host must be a name"),
        ({"host": "me:pw@db"}, "host must be a name"),
        ({"host": ""}, "host must be a name"),
        ({"port": 0}, "port must be"),
        ({"table": ""}, "table must not be empty"),
        ({"metric_column": None, "known_metrics": ("a",)}, "known_metrics belongs"),
        ({"watermark_query": "SELECT 1", "watermark_lag_seconds": 1.0}, "not both"),
        ({"watermark_query": "SELECT {x:Int8}"}, "must not use parameters"),
        ({"watermark_lag_seconds": -1.0}, "watermark_lag_seconds must be 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds must be"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], says: str) -> None:
    """Settings are checked before anything connects."""
    with pytest.raises(ValueError, match=says):
        ClickHouseSource(**{**SETTINGS, **changed})


def test_a_missing_driver_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clickhouse-connect the configuration is wrong, and says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'invoice-reconciler\[clickhouse\]'"):
        ClickHouseSource(**SETTINGS)


def test_the_password_is_a_secret() -> None:
    """It comes from the environment only, and no text of the source shows it."""
    source = ClickHouseSource(**SETTINGS, password="s3cret")
    assert secrets_of(ClickHouseSource) == ["password"]
    assert "s3cret" not in repr(source)


def test_types_are_read_without_what_wraps_them() -> None:
    """Wrappers are taken off, and what they say is kept."""
    read = ColumnType.of("LowCardinality(Nullable(DateTime64(3, 'Asia/Tokyo')))")
    assert (read.base, read.arguments, read.nullable) == ("DateTime64", "3, 'Asia/Tokyo'", True)
    assert ColumnType.of("SimpleAggregateFunction(sum, UInt64)").base == "SimpleAggregateFunction"
