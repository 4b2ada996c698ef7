"""What DuckDB would guess, round, skip or merge by itself, and the files source does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from test_usage_sources_files import COLUMNS, HEADER, csv_file, parquet

from usage_sources.contract import JUNE, MAY, close, query
from usage_sources.files import FilesSource
from worker.domain import Aggregation, Tally
from worker.errors import SourceInvalid, SourceUnavailable

MAY_2 = "2024-05-02T00:00:00Z"
ROW = ("S-1", "calls", MAY_2, "1", "ann", "eu")


def row(**changed: str | None) -> list[str | None]:
    """Return a good row with some columns changed."""
    return [changed.get(name, value) for name, value in zip(HEADER, ROW, strict=True)]


def asked(source: FilesSource, *aggregations: Aggregation, **changed: Any) -> list[Tally]:
    """Count in each of these ways, and close the source."""
    try:
        return list(source.count([query(how, aggregation=how, **changed) for how in aggregations]))
    finally:
        close(source)


def value(source: FilesSource, how: Aggregation = Aggregation.COUNT, **changed: Any) -> Any:
    """Return the value of one query."""
    return asked(source, how, **changed)[0].value


def refused(source: FilesSource, *hows: Aggregation, **changed: Any) -> str:
    """Return why the source refuses to count."""
    with pytest.raises(SourceInvalid) as caught:
        asked(source, *(hows or [Aggregation.COUNT]), **changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def csv_source(tmp_path: Path, *rows: Any, **changed: Any) -> FilesSource:
    """Return a source over a CSV file of these rows."""
    return FilesSource(path=csv_file(tmp_path / "usage.csv", rows), **{**COLUMNS, **changed})


def json_source(tmp_path: Path, *lines: str, **changed: Any) -> FilesSource:
    """Return a source over these lines of JSON."""
    path = tmp_path / "usage.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return FilesSource(path=str(path), **{**COLUMNS, **changed})


def parquet_source(tmp_path: Path, quantity: str, *rows: Any, **changed: Any) -> FilesSource:
    """Return a source over a Parquet file whose quantities have this type."""
    path = parquet(tmp_path / "usage.parquet", rows, "VARCHAR", quantity)
    return FilesSource(path=path, **{**COLUMNS, **changed})


def a_line(quantity: str, at: str = f'"{MAY_2}"', more: str = "") -> str:
    """Write one JSON object with a number as it is given."""
    told = f'"subject": "S-1", "metric": "calls", "at": {at}, "quantity": {quantity}'
    return f'{{{told}, "visitor": "ann", "region": "eu"{more}}}'


def test_json_numbers_keep_digits_that_a_double_loses(tmp_path: Path) -> None:
    """A JSON number counts with every digit that stands in its line."""
    for texts, total in {
        ("0.10000000000000000000001", "1e-1"): "0.20000000000000000000001",
        ("12345678901234567.891", "1.50"): "12345678901234569.391",
        ("123456789012345678901234567890", "1"): "123456789012345678901234567891",
        ('"7.10"', "3"): "10.10",
    }.items():
        source = json_source(tmp_path, *map(a_line, texts))
        assert value(source, Aggregation.SUM) == Decimal(total)


def test_a_nested_number_of_the_same_name_is_not_mistaken(tmp_path: Path) -> None:
    """Digits are taken from the line only where there is one candidate for them."""
    other = a_line("0.1", more=', "meta": {"quantity": 0.2}')
    assert value(json_source(tmp_path, other), Aggregation.SUM) == Decimal("0.1")
    same = a_line("0.10", more=', "meta": {"quantity": 0.1}')
    told = refused(json_source(tmp_path, same), Aggregation.SUM)
    assert "row 1, column quantity: '0.1, digits unknown'" in told


def test_json_times_are_read_from_their_digits(tmp_path: Path) -> None:
    """A hundred nanoseconds before the end are before the end, also where a double is not."""
    at = f"{int(MAY.end.timestamp()) - 1}.9999999"
    source = json_source(tmp_path, a_line("1", at), time_format="epoch_seconds")
    assert value(source) == 1
    assert value(source, period=JUNE) == 0


@pytest.mark.parametrize(
    "time", ["2024-05-31T23:59:59.999999999Z", "2024-06-01T01:59:59.9999999+02"]
)
def test_digits_beyond_microseconds_are_cut_off(tmp_path: Path, time: str) -> None:
    """Text just before midnight is in the month that ends there."""
    assert value(csv_source(tmp_path, row(at=time))) == 1
    assert value(csv_source(tmp_path, row(at=time)), period=JUNE) == 0


@pytest.mark.parametrize("kind", ["TIMESTAMPTZ_NS", "TIMESTAMPTZ"])
def test_a_timestamp_with_a_zone_needs_no_rule(tmp_path: Path, kind: str) -> None:
    """It is counted where times without a zone are rejected, and to its last digit."""
    path = parquet(
        tmp_path / "u.parquet", [row(at="2024-05-31 23:59:59.9999999+00")], kind, "DOUBLE"
    )
    source = FilesSource(path=path, **{**COLUMNS, "time_format": "native"})
    assert [value(source), value(source, period=JUNE)] == [1, 0]


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S"])
def test_a_timestamp_without_zone_follows_the_rule(tmp_path: Path, kind: str) -> None:
    """It is refused, or read as UTC where the settings say so."""
    path = parquet(tmp_path / "u.parquet", [row(at="2024-05-31 23:59:59")], kind, "DOUBLE")
    given = {**COLUMNS, "time_format": "native"}
    assert 'has no zone; if it is UTC, set naive_times = "utc"' in refused(
        FilesSource(path=path, **given)
    )
    source = FilesSource(path=path, **{**given, "naive_times": "utc"})
    assert [value(source), value(source, period=JUNE)] == [1, 0]


@pytest.mark.parametrize("quantity", ["nan", "inf", "-inf"])
def test_a_double_that_is_no_number_is_refused(tmp_path: Path, quantity: str) -> None:
    """NaN and infinity are not summed, and named with file and row."""
    source = parquet_source(tmp_path, "DOUBLE", ROW, row(quantity=quantity))
    for how in (Aggregation.SUM, Aggregation.MAX, Aggregation.LAST):
        told = refused(source, how)
        assert f"usage.parquet row 2, column quantity: '{quantity}' is not a finite" in told


def test_doubles_add_up_as_they_are_written(tmp_path: Path) -> None:
    """Ten million times 0.1 would drift as doubles; here the text of each is added."""
    rows = [row(quantity=each) for each in ["0.1"] * 10 + ["1e-07", "1e22"]]
    total = Decimal("10000000000000000000001.0000001")
    assert value(parquet_source(tmp_path, "DOUBLE", *rows), Aggregation.SUM) == total
    floats = [row(quantity="0.1")] * 3
    assert value(parquet_source(tmp_path, "FLOAT", *floats), Aggregation.SUM) == Decimal("0.3")


def test_a_sum_beyond_38_digits_is_no_number(tmp_path: Path) -> None:
    """Decimals that overflow are refused; whole numbers of 39 digits are added exactly."""
    nines = "9" * 38
    decimals = parquet_source(tmp_path, "DECIMAL(38,0)", *[row(quantity=nines), ROW])
    assert "Overflow" in refused(decimals, Aggregation.SUM)
    assert value(decimals, Aggregation.MAX) == Decimal(nines)
    source = csv_source(tmp_path, *[row(quantity=str(2**127 - 1))] * 3)
    assert value(source, Aggregation.SUM) == 3 * (2**127 - 1)
    biggest = [row(quantity=str(2**64 - 1))] * 3
    source = parquet_source(tmp_path, "UBIGINT", *biggest)
    assert value(source, Aggregation.SUM) == 3 * (2**64 - 1)


def test_a_product_of_events_keeps_every_digit(tmp_path: Path) -> None:
    """The same long fraction in many rows is not rounded to a context's 28 digits."""
    text = "1234567890123456789012345678.123456789012345678901"
    source = csv_source(tmp_path, *[row(quantity=text)] * 3)
    assert value(source, Aggregation.SUM) == Decimal(
        "3703703670370370367037037034.370370367037037036703"
    )
    with_sign = csv_source(tmp_path, *[row(quantity=f"-{text}")] * 3)
    assert value(with_sign, Aggregation.MAX) == Decimal(f"-{text}")


def test_columns_of_whole_numbers_as_names(tmp_path: Path) -> None:
    """An id that is a number in the file is that number's text: 7 is not 07."""
    path = tmp_path / "usage.parquet"
    select = "SELECT 7 AS subject, 'calls' AS metric, TIMESTAMPTZ '2024-05-02 00:00:00Z' AS \"at\""
    with duckdb.connect(":memory:") as db:
        db.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    given = {**COLUMNS, "time_format": "native", "quantity_column": None, "unique_column": None}
    source = FilesSource(path=str(path), **given)
    assert [value(source, subject=each) for each in ("7", "07", "7.0")] == [1, None, None]


def test_columns_that_differ_in_case_are_different(tmp_path: Path) -> None:
    """A column is found by its exact name; DuckDB alone would take any case."""
    path = tmp_path / "usage.csv"
    path.write_text(f"subject,metric,at,Quantity\nS-1,calls,{MAY_2},1\n")
    source = FilesSource(path=str(path), **{**COLUMNS, "unique_column": None})
    assert "usage.csv has no column quantity; nearest: Quantity" in refused(source)
    path.write_text(f"subject,metric,at,Quantity,quantity\nS-1,calls,{MAY_2},1,2\n")
    assert "has no column quantity; nearest: quantity_1, Quantity, at" in refused(source)


def test_odd_column_names_are_only_names(tmp_path: Path) -> None:
    """Quotes, dollars, slashes and words of SQL in a column's name do no harm."""
    names = ['sub"ject', "select", "$start", "a/b~c'd", 'v"; DROP', "re.g*"]
    given: dict[str, Any] = dict(
        zip([*list(COLUMNS)[1:]], [names[0], names[2], names[1], *names[3:5]], strict=True)
    )
    given = {**given, "time_format": "iso"}
    lines = [",".join(f'"{each.replace(chr(34), chr(34) * 2)}"' for each in names)]
    (tmp_path / "usage.csv").write_text("\n".join([*lines, ",".join(ROW)]))
    keyed = dict(zip(names, ROW, strict=True))
    (tmp_path / "usage.jsonl").write_text(json.dumps({**keyed, names[3]: 0.5}))
    for name, total in (("usage.csv", 1), ("usage.jsonl", Decimal("0.5"))):
        source = FilesSource(path=str(tmp_path / name), **given)
        filters = (("re.g*", "eu"),)
        hows = (Aggregation.SUM, Aggregation.UNIQUE, Aggregation.LAST)
        assert [each.value for each in asked(source, *hows, filters=filters)] == [total, 1, total]


def test_files_that_lack_a_column_are_named(tmp_path: Path) -> None:
    """A union of files has no silent NULLs: each file has each column, in one type."""
    csv_file(tmp_path / "1.csv", [ROW])
    (tmp_path / "2.csv").write_text(f"subject,metric,at,visitor\nS-1,calls,{MAY_2},ann\n")
    source = FilesSource(path=str(tmp_path / "*.csv"), **COLUMNS)
    assert "2.csv has no column quantity; nearest: " in refused(source)
    region = [query(filters=(("region", "eu"),))]
    bare = FilesSource(path=str(tmp_path / "*.csv"), **{**COLUMNS, "quantity_column": None})
    with pytest.raises(SourceInvalid, match=r"2\.csv has no column region"):
        bare.count(region)
    for name, kind in (("1", "BIGINT"), ("2", "DOUBLE")):
        parquet(tmp_path / f"{name}.parquet", [ROW], "VARCHAR", kind)
    mixed = FilesSource(path=str(tmp_path / "*.parquet"), **COLUMNS)
    assert "quantity is BIGINT in " in refused(mixed, Aggregation.SUM)


def test_columns_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    """Two CSV files whose columns stand in different places are added up rightly."""
    csv_file(tmp_path / "1.csv", [row(quantity="2")])
    (tmp_path / "2.csv").write_text(
        f"region,visitor,quantity,at,metric,subject\neu,ann,40,{MAY_2},calls,S-1\n"
    )
    source = FilesSource(path=(str(tmp_path / "1.csv"), str(tmp_path / "2.csv")), **COLUMNS)
    assert value(source, Aggregation.SUM) == 42


def test_no_file_is_counted_twice(tmp_path: Path) -> None:
    """Two patterns or a link that lead to one file are refused, not added."""
    path = csv_file(tmp_path / "1.csv", [ROW])
    both = FilesSource(path=(path, str(tmp_path / "*.csv")), **COLUMNS)
    assert "is the same file as" in refused(both)
    (tmp_path / "latest.csv").symlink_to(path)
    assert "latest.csv is the same file as" in refused(
        FilesSource(path=str(tmp_path / "*.csv"), **COLUMNS)
    )


def test_a_pattern_without_a_file_is_unavailable(tmp_path: Path) -> None:
    """What matches nothing is not an empty month; a folder is no file."""
    for path in ("*.csv", "none/**/*.csv"):
        with pytest.raises(SourceUnavailable, match="names no file; check the setting path"):
            value(FilesSource(path=str(tmp_path / path), **COLUMNS))
    (tmp_path / "folder.csv").mkdir()
    source = FilesSource(path=str(tmp_path / "folder.csv"), **COLUMNS)
    with pytest.raises((SourceUnavailable, SourceInvalid), match="check"):
        value(source)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"at": "yesterday"}, "row 2, column at: 'yesterday' is not an ISO 8601 date and time"),
        ({"at": ""}, "row 2, column at: NULL is missing"),
        ({"at": "2024-05-02"}, "row 2, column at: '2024-05-02' is not an ISO 8601"),
        ({"at": "2024-02-30T00:00:00Z"}, "column at: '2024-02-30T00:00:00Z' is not an ISO"),
        ({"at": "2024-05-02 00:00:00"}, "'2024-05-02 00:00:00' has no zone; if such"),
        ({"at": "1970-05-02T00:00:00Z"}, "'1970-05-02T00:00:00Z' is no time between 1980"),
        ({"metric": ""}, "row 2, column metric: NULL is missing"),
        ({"quantity": "many"}, "row 2, column quantity: 'many' is not a number"),
        ({"quantity": ""}, "row 2, column quantity: NULL is not a number"),
        ({"visitor": ""}, "visitor of subject 'S-1' in .*: it is missing in 1 of 2 rows"),
    ],
)
def test_a_row_that_cannot_be_counted_is_named(
    tmp_path: Path, changed: dict[str, str], told: str
) -> None:
    """The error names file, row, column and value, and another subject's row holds nobody."""
    hows = (Aggregation.SUM, Aggregation.UNIQUE)
    with pytest.raises(SourceInvalid, match=rf"usage\.csv.*{told}"):
        asked(csv_source(tmp_path, ROW, row(**changed)), *hows)
    other = csv_source(tmp_path, ROW, row(**{**changed, "subject": "S-2"}))
    assert [each.value for each in asked(other, *hows)] == [1, 1]


def test_rows_of_nobody_are_told(tmp_path: Path) -> None:
    """Rows without a subject are nobody's usage, and the evidence says how many there are."""
    rows = [ROW, row(subject=None), row(subject="")]
    (tally,) = asked(parquet_source(tmp_path, "DOUBLE", *rows), Aggregation.COUNT)
    assert tally.value == 1
    assert tally.evidence.notes[-1] == "2 rows have no subject; they are nobody's."


def test_parquet_nulls_are_named(tmp_path: Path) -> None:
    """NULL in a time or a quantity of the subject is refused with its row or how many."""
    source = parquet_source(tmp_path, "BIGINT", ROW, row(at=None))
    assert "usage.parquet row 2, column at: NULL is missing" in refused(source)
    source = parquet_source(tmp_path, "BIGINT", ROW, row(quantity=None))
    assert "it is missing in 1 of 2 rows" in refused(source, Aggregation.SUM)
    assert value(source) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (a_line("1", more=', "quantity": 2'), "has a key twice"),
        ('{"subject": "S-1", "metric"', "Malformed JSON in file .*usage.jsonl"),
        (a_line("1") + a_line("1"), "Malformed JSON in file .*usage.jsonl"),
        (a_line("NaN"), "column quantity"),
        (a_line("null"), "column quantity: NULL is not a number"),
        (
            a_line("1", more="").replace('"quantity": 1, ', ""),
            "column quantity: NULL is not a number",
        ),
    ],
)
def test_a_line_that_is_no_event_is_refused(tmp_path: Path, line: str, told: str) -> None:
    """Broken lines, keys that stand twice and values that are not there are not passed over."""
    with pytest.raises(SourceInvalid, match=told):
        asked(json_source(tmp_path, a_line("1"), line), Aggregation.SUM)


def test_a_key_that_no_object_has_is_named(tmp_path: Path) -> None:
    """A misspelt column of JSON objects is found out, since each may have its own keys."""
    told = refused(json_source(tmp_path, a_line("1"), unique_column="user"))
    assert "no object has the key user" in told


@pytest.mark.parametrize(
    "text",
    ["S-1,calls\r\n", "S-1,calls,2024-05-02T00:00:00Z,1,ann,eu,x\r\n", 'S-1,"calls,1,1,1,1\r\n'],
)
def test_a_csv_row_of_another_length_is_refused(tmp_path: Path, text: str) -> None:
    """Rows with too few or too many fields, or an open quote, are not padded, cut or skipped."""
    source = csv_source(tmp_path, *[ROW] * 3)
    with open(str(source.path), "a", newline="") as file:
        file.write(text)
    assert "usage.csv" in refused(source)
    many = csv_source(tmp_path, *[ROW] * 50_000)
    with open(str(many.path), "a", newline="") as file:
        file.write(text)
    assert "50002" in refused(many)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 holds no names."""
    source = csv_source(tmp_path, ROW)
    Path(str(source.path)).write_bytes(",".join(HEADER).encode() + b"\nK\xe4ufer,calls,1,1,1,1\n")
    assert "utf-8" in refused(source)


def test_the_number_of_an_epoch_in_the_wrong_unit_is_refused(tmp_path: Path) -> None:
    """Seconds read as milliseconds would all lie in 1970 and count as nothing."""
    rows = row(at="1714600000")
    told = refused(csv_source(tmp_path, rows, time_format="epoch_milliseconds"))
    assert "is not between 1980 and 9999" in told
    assert value(csv_source(tmp_path, rows, time_format="epoch_seconds")) == 1
    assert datetime.fromtimestamp(1714600000, UTC) in MAY
