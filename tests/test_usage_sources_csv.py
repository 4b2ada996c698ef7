"""The CSV source: the contract for each way to write times, and every refusal."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import usage_sources.csv_file
from usage_sources.contract import (
    JUNE,
    MAY,
    MIDNIGHT,
    UsageEvent,
    UsageSourceContract,
    event,
    query,
)
from usage_sources.csv_file import CsvSource
from usage_sources.reading import microseconds
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable

FILE: dict[str, Any] = {
    "time_format": "iso",
    "subject_column": "subject",
    "time_column": "at",
    "metric_column": "metric",
    "quantity_column": "quantity",
    "unique_column": "visitor",
}
HEADER = "subject,metric,at,quantity,visitor"
ROW = "S-1,calls,2024-05-02T00:00:00Z,1,ann"


def write(
    events: Sequence[UsageEvent],
    path: Path,
    written: Callable[[datetime], object],
    delimiter: str = ",",
) -> None:
    """Write events to a CSV file, quoted only where the names need it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow([*HEADER.split(","), "region"])
        for each in events:
            at = written(each.at)
            quantity, unique = each.quantity, each.unique
            writer.writerow([each.subject, each.metric, at, quantity, unique, each.region])


class TestIsoText(UsageSourceContract):
    """Times as ISO text, each with its own offset."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> CsvSource:
        """Write times as Python does."""
        write(events, tmp_path / "usage.csv", datetime.isoformat)
        return CsvSource(path=str(tmp_path / "usage.csv"), **FILE)

    def source_down(self, tmp_path: Path) -> CsvSource:
        """Take the file away."""
        source = self.source_with([event(MIDNIGHT)], tmp_path)
        (tmp_path / "usage.csv").unlink()
        return source

    def source_slow(self, _tmp_path: Path) -> CsvSource:
        """Skip: a file is read by this process, and no engine makes it wait."""
        pytest.skip("a file is read at once, so there is no timeout to keep")


class TestEpochSeconds(UsageSourceContract):
    """Times as seconds with six decimals, fields between semicolons."""

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> CsvSource:
        """Write the microseconds as a decimal fraction."""
        path = tmp_path / "usage.csv"
        write(events, path, lambda at: f"{microseconds(at) / 1_000_000:.6f}", delimiter=";")
        changed = {"time_format": "epoch_seconds", "delimiter": ";"}
        return CsvSource(path=str(path), **{**FILE, **changed})


class TestEpochMilliseconds(UsageSourceContract):
    """Times as whole milliseconds."""

    resolution = timedelta(milliseconds=1)

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> CsvSource:
        """Write integers."""
        write(events, tmp_path / "usage.csv", lambda at: microseconds(at) // 1_000)
        changed = {"time_format": "epoch_milliseconds"}
        return CsvSource(path=str(tmp_path / "usage.csv"), **{**FILE, **changed})


def source(tmp_path: Path, *lines: str, encoding: str = "utf-8", **changed: Any) -> CsvSource:
    """Write a file of these lines below the header and return a source over it."""
    path = tmp_path / "usage.csv"
    path.write_bytes("\n".join([HEADER, *lines]).encode(encoding))
    return CsvSource(path=str(path), **{**FILE, **changed})


def ask(source: CsvSource, aggregation: Aggregation = Aggregation.COUNT, **changed: Any) -> Any:
    """Return the value of one query."""
    return source.count([query(aggregation=aggregation, **changed)])[0].value


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("S-1,calls,yesterday,1,ann", "line 3, column at: 'yesterday' is not an ISO 8601"),
        ("S-1,calls,,1,ann", "line 3, column at: '' is not an ISO 8601"),
        ("S-1,calls,2024-05-02 00:00:00,1,ann", "line 3, column at: .* has no zone"),
        ("S-1,calls,2024-05-02T00:00:00Z,many,ann", "line 3, column quantity: 'many' is not a"),
        ("S-1,calls,2024-05-02T00:00:00Z,,ann", "line 3, column quantity: '' is not a number"),
        (
            "S-1,calls,2024-05-02T00:00:00Z,NaN,ann",
            "line 3, column quantity: 'NaN' is not a finite",
        ),
        ("S-1,calls,2024-05-02T00:00:00Z,1,", "line 3, column visitor: '' is empty"),
        ("S-1,calls,2024-05-02T00:00:00Z,1", "line 3 has 4 fields, not 5"),
        ("S-2,calls,2024-05-02T00:00:00Z,1,000,ann", "line 3 has 6 fields, not 5"),
        ('S-1,"calls,2024-05-02T00:00:00Z,1,ann', "after line 3: unexpected end of data"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    """An unreadable row is never passed over: the error names file, line and column."""
    asked = [query(how, aggregation=how) for how in (Aggregation.SUM, Aggregation.UNIQUE)]
    with pytest.raises(SourceInvalid, match=rf"usage\.csv {complaint}"):
        source(tmp_path, ROW, line).count(asked)


def test_a_bad_row_of_another_subject_holds_nobody_else(tmp_path: Path) -> None:
    """Only the values of the subjects that are asked about have to be readable."""
    assert ask(source(tmp_path, ROW, "S-2,calls,yesterday,many,")) == 1


def test_byte_order_mark_blank_lines_and_line_ends_are_no_data(tmp_path: Path) -> None:
    """A file as spreadsheets write it is read like any other."""
    lines = [ROW, "", ROW + "\r", ""]
    assert ask(source(tmp_path, *lines, encoding="utf-8-sig", unique_column=None)) == 2


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Another encoding than UTF-8 is an error, not a file of strange names."""
    with pytest.raises(SourceInvalid, match=r"usage\.csv after line .* can't decode"):
        ask(source(tmp_path, ROW, "Käufer,calls,2024-05-02T00:00:00Z,1,x", encoding="latin-1"))


def test_a_missing_file_says_which_setting_to_mend(tmp_path: Path) -> None:
    """A file that is not there yet is tried again, a folder is not; both name the setting."""
    faults = {tmp_path / "usage.csv": SourceUnavailable, tmp_path: SourceInvalid}
    for path, fault in faults.items():
        with pytest.raises(fault, match=r"check the setting path"):
            CsvSource(path=str(path), **FILE).check()


def test_a_wrong_header_is_named(tmp_path: Path) -> None:
    """A missing, a repeated and an absent header are found by the check."""
    with pytest.raises(SourceInvalid, match=r"line 1 has no column moment; it has subject, metric"):
        source(tmp_path, ROW, time_column="moment").check()
    path = tmp_path / "usage.csv"
    path.write_text(HEADER.replace(",", ";"))
    with pytest.raises(SourceInvalid, match="quantity;visitor; see delimiter"):
        CsvSource(path=str(path), **FILE).check()
    path.write_text("subject,metric,at,quantity,at,visitor\n")
    with pytest.raises(SourceInvalid, match="line 1 has more than one column at"):
        CsvSource(path=str(path), **FILE).check()
    path.write_text("")
    with pytest.raises(SourceInvalid, match="is empty"):
        CsvSource(path=str(path), **FILE).check()


def test_an_epoch_in_the_wrong_unit_is_refused(tmp_path: Path) -> None:
    """Seconds read as milliseconds would all lie in 1970 and count as nothing."""
    row = "S-1,calls,1714600000,1,ann"
    with pytest.raises(SourceInvalid, match="is not between 1980 and 9999"):
        ask(source(tmp_path, row, time_format="epoch_milliseconds"))
    assert ask(source(tmp_path, row, time_format="epoch_seconds")) == 1


@pytest.mark.parametrize("how", [Aggregation.MAX, Aggregation.LAST])
def test_no_value_in_the_period_is_no_maximum(tmp_path: Path, how: Aggregation) -> None:
    """A known subject without events has no largest and no last value."""
    with pytest.raises(SourceInvalid, match="no value in the period"):
        ask(source(tmp_path, ROW), how, period=JUNE)


def test_two_last_values_at_once_are_ambiguous(tmp_path: Path) -> None:
    """Equal instants with different quantities have no last one; equal quantities have."""
    same = "S-1,calls,2024-05-02T02:00:00+02:00,1.0,ann"
    assert ask(source(tmp_path, ROW, same), Aggregation.LAST) == 1
    with pytest.raises(SourceInvalid, match=r"ambiguous: 1 and 2"):
        ask(source(tmp_path, ROW, same.replace("1.0", "2")), Aggregation.LAST)


def test_an_aggregation_names_the_setting_it_needs(tmp_path: Path) -> None:
    """Summing without a quantity, or telling metrics apart without a column, says what to set."""
    bare = source(tmp_path, ROW, quantity_column=None, unique_column=None, metric_column=None)
    assert ask(bare) == 1
    with pytest.raises(SourceInvalid, match="sum needs quantity_column"):
        ask(bare, Aggregation.SUM)
    with pytest.raises(SourceInvalid, match="unique needs unique_column"):
        ask(bare, Aggregation.UNIQUE)
    with pytest.raises(SourceInvalid, match="cannot tell the metrics 'calls', 'pages' apart"):
        bare.count([query("1"), query("2", metric="pages")])


def test_a_filter_names_a_column_of_the_header(tmp_path: Path) -> None:
    """A column that is not there, or there twice, filters nothing; values are compared whole."""
    rows = [ROW, ROW.replace("ann", "Ann"), ROW.replace("ann", "ann ")]
    assert ask(source(tmp_path, *rows), filters=(("visitor", "ann"),)) == 1
    assert ask(source(tmp_path, *rows), filters=(("visitor", "ann"), ("quantity", "2"))) == 0
    with pytest.raises(SourceInvalid, match="line 1 has no column Visitor; it has subject, metric"):
        ask(source(tmp_path, *rows), filters=(("Visitor", "ann"),))
    path = tmp_path / "usage.csv"
    path.write_text("subject,metric,at,quantity,visitor,plan,plan\n" + ROW + ",a,b\n")
    with pytest.raises(SourceInvalid, match="line 1 has more than one column plan"):
        ask(CsvSource(path=str(path), **FILE), filters=(("plan", "a"),))


def test_a_row_that_is_filtered_out_needs_no_quantity(tmp_path: Path) -> None:
    """Only what counts has to be readable; an empty quantity that counts is refused by its line."""
    rows = [ROW, "S-1,calls,2024-05-02T00:00:00Z,,bob"]
    total = Aggregation.SUM
    assert ask(source(tmp_path, *rows), total, filters=(("visitor", "ann"),)) == 1
    with pytest.raises(SourceInvalid, match=r"usage\.csv line 3, column quantity: '' is not a"):
        ask(source(tmp_path, *rows), total, filters=(("visitor", "bob"),))


def test_filters_tell_metrics_apart_too(tmp_path: Path) -> None:
    """Without a metric column two metrics may be two filters of the same rows."""
    rows = [ROW, ROW.replace("ann", "bob"), ROW.replace("ann", "bob")]
    asked = [
        query("1", filters=(("visitor", "ann"),)),
        query("2", metric="pages", filters=(("visitor", "bob"),)),
    ]
    tallies = source(tmp_path, *rows, metric_column=None).count(asked)
    assert [tally.value for tally in tallies] == [1, 2]
    assert [tally.evidence.parameters["filters"] for tally in tallies] == [
        {"visitor": "ann"},
        {"visitor": "bob"},
    ]
    assert tallies[0].evidence.query == (
        "count of rows where subject = :subject and :start <= at < :end"
        " and each column in :filters has its value"
    )


def test_a_file_written_while_it_is_read_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an export is not counted: the source is unavailable until the file rests."""
    growing = source(tmp_path, ROW)
    rows = usage_sources.csv_file._rows

    def written_to(*arguments: Any) -> Iterator[tuple[int, list[str]]]:
        yield from rows(*arguments)
        with open(growing.path, "a", encoding="utf-8") as file:
            file.write("\n" + ROW)

    with monkeypatch.context() as patched:
        patched.setattr(usage_sources.csv_file, "_rows", written_to)
        with pytest.raises(SourceUnavailable, match="was written while it was read"):
            ask(growing)
    assert ask(growing) == 2


def test_the_evidence_names_the_file_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody elsewhere finds it, however the settings write it."""
    source(tmp_path, ROW)
    monkeypatch.chdir(tmp_path)
    (tally,) = CsvSource(path="usage.csv", **FILE).count([query()])
    assert tally.evidence.source == f"csv {tmp_path}/usage.csv"


def test_the_evidence_tells_which_file_it_was(tmp_path: Path) -> None:
    """Evidence holds the question in words, its parameters, and the file's size and age."""
    lagging = source(tmp_path, ROW, watermark_lag_seconds=60.0)
    noon = datetime(2024, 6, 1, 12, tzinfo=UTC)
    os.utime(lagging.path, (noon.timestamp(), noon.timestamp()))
    evidence = lagging.count([query(aggregation=Aggregation.SUM)])[0].evidence
    assert evidence.source == f"csv {lagging.path}"
    assert evidence.query == (
        "sum of quantity where subject = :subject and metric = :metric and :start <= at < :end"
    )
    assert evidence.parameters == {
        "subject": "S-1",
        "metric": "calls",
        "start": "2024-05-01T00:00:00Z",
        "end": "2024-06-01T00:00:00Z",
        "file_bytes": len(HEADER) + 1 + len(ROW),
        "file_modified_at": "2024-06-01T12:00:00Z",
    }
    assert evidence.watermark == lagging.watermark() == noon - timedelta(seconds=60)
    assert MAY.end < noon


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"delimiter": ", "}, "delimiter must be one character"),
        ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be 0 or more"),
        ({"time_format": "native"}, "time_format"),
        ({"naive_times": "local"}, "naive_times"),
        ({"metric_column": None, "known_metrics": ["calls"]}, "known_metrics needs metric_column"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, Any], complaint: str) -> None:
    """A wrong setting is refused when the configuration is read, with its name."""
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(CsvSource).validate_python({"path": "usage.csv", **FILE, **changed})
