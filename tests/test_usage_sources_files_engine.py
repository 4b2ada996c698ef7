"""The files source's engine: files that move, limits, URLs, evidence, settings, many rows."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pydantic import TypeAdapter, ValidationError
from test_usage_sources_files import COLUMNS, csv_file, parquet
from test_usage_sources_files_traps import (
    ROW,
    a_line,
    csv_source,
    json_source,
    parquet_source,
    row,
    value,
)

from usage_sources.contract import JUNE, MAY, close, query
from usage_sources.files import FilesSource
from usage_sources.files.engine import _remote
from usage_sources.files.reader import FilesReader
from worker.domain import Aggregation, Period, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable


def generated(path: Path, select: str) -> str:
    """Let DuckDB write the rows of a SELECT to a Parquet file; return its path."""
    with duckdb.connect(":memory:") as db:
        db.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return str(path)


NEW_YORK = "SET TimeZone = 'America/New_York'"


def grown(path: Path) -> None:
    """Add a row, as an export does that is not finished."""
    with path.open("a") as file:
        file.write(",".join(ROW) + "\n")


def touched(path: Path) -> None:
    """Write the same bytes again."""
    os.utime(path, (1_800_000_000, 1_800_000_000))


@pytest.mark.parametrize(
    "happens", [grown, touched, Path.unlink, lambda path: grown(path.with_name("2.csv"))]
)
def test_files_that_change_meanwhile_are_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Path], None]
) -> None:
    """A file that grows, is replaced, goes or comes during a count makes the source unavailable."""
    path = tmp_path / "1.csv"
    csv_file(path, [ROW])
    source = FilesSource(path=str(tmp_path / "*.csv"), **COLUMNS)
    read = FilesReader._check_all

    def changing(*arguments: Any) -> Any:
        found = read(*arguments)
        happens(path)
        return found

    monkeypatch.setattr(FilesReader, "_check_all", changing)
    with pytest.raises(SourceUnavailable):
        source.count([query()])
    close(source)


def test_a_half_written_parquet_file_is_unavailable(tmp_path: Path) -> None:
    """A Parquet file without its end, or empty, may be on its way."""
    source = parquet_source(tmp_path, "BIGINT", *[ROW] * 1000)
    whole = Path(str(source.path)).read_bytes()
    for part in (whole[:-3], whole[: len(whole) // 2], b""):
        Path(str(source.path)).write_bytes(part)
        with pytest.raises(SourceUnavailable, match="half written"):
            value(source)
        with pytest.raises(SourceUnavailable, match="half written"):
            source.check()
    Path(str(source.path)).write_bytes(whole)
    assert value(source) == 1000


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    """A warm engine keeps nothing of a file that is another one now, columns included."""
    source = parquet_source(tmp_path, "BIGINT", ROW)
    assert source.count([query(aggregation=Aggregation.SUM)])[0].value == 1
    parquet_source(tmp_path, "DOUBLE", row(quantity="2.5"), ROW)
    assert source.count([query(aggregation=Aggregation.SUM)])[0].value == Decimal("3.5")
    close(source)


def as_in_the_shell(text: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run evidence by text alone, as one does in the duckdb shell, in another time zone."""

    def constant(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(constant, value))}]"
        return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"

    given = ", ".join(f"{name} := {constant(each)}" for name, each in parameters.items())
    with duckdb.connect(":memory:") as shell:
        shell.execute(f"{NEW_YORK}; PREPARE again AS {text}")
        return shell.execute(f"EXECUTE again({given})").fetchall()


@pytest.mark.parametrize("how", list(Aggregation))
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "native"])
def test_the_evidence_runs_as_it_is(tmp_path: Path, how: Aggregation, kind: str) -> None:
    """Somebody else gets the same number from the text and its parameters in DuckDB itself."""
    rows = [row(quantity="2.50"), row(quantity="2.50", visitor="O'Brien"), row(metric="pages")]
    source: FilesSource
    match kind:
        case "csv":
            source = csv_source(tmp_path, *rows)
        case "jsonl":
            late = a_line("2.50", at='"2024-05-31T23:00:00"')  # in New York it would be June
            source = json_source(tmp_path, late, late, naive_times="utc")
        case "parquet":
            source = parquet_source(tmp_path, "DECIMAL(10,2)", *rows)
        case _:
            path = parquet(tmp_path / "n.parquet", rows, "TIMESTAMPTZ", "DOUBLE")
            source = FilesSource(path=path, **{**COLUMNS, "time_format": "native"})
    asked = query(aggregation=how, filters=(("region", "eu"),))
    (tally,) = source.count([asked])
    close(source)
    evidence = tally.evidence
    again = as_in_the_shell(evidence.query, json.loads(json.dumps(evidence.parameters)))
    assert [each[:3] for each in again] == [("S-1", "calls", "eu")]
    is_listed = any("lists each quantity" in note for note in evidence.notes)
    factor = again[0][3] if is_listed and how is Aggregation.SUM else 1
    assert Decimal(str(again[0][-1])) * factor == tally.value
    assert again[0][3] == tally.events


def test_the_evidence_tells_which_files_they_were(tmp_path: Path) -> None:
    """Each file stands there with its size and age; of very many, a digest of the list."""
    path = csv_file(tmp_path / "usage.csv", [ROW])
    noon = datetime(2024, 6, 1, 12, tzinfo=UTC)
    os.utime(path, (noon.timestamp(), noon.timestamp()))
    source = FilesSource(path=path, **COLUMNS, watermark_lag_seconds=60.0)
    evidence = source.count([query()])[0].evidence
    size = os.path.getsize(path)
    told = f"{path}: {size} bytes, changed 2024-06-01T12:00:00Z"
    assert evidence.source == f"files {path}"
    assert evidence.notes == (f"Read {told}.",)
    assert evidence.parameters == {
        "files": [path],
        "subjects": ["S-1"],
        "metrics": ["calls"],
        "start_at": "2024-05-01 00:00:00.000000Z",
        "end_at": "2024-06-01 00:00:00.000000Z",
    }
    assert evidence.watermark == source.watermark() == noon - timedelta(seconds=60)
    close(source)
    for number in range(100):
        csv_file(tmp_path / f"{number}.csv", [])
    many = FilesSource(path=str(tmp_path / "*.csv"), **COLUMNS)
    (note,) = many.count([query()])[0].evidence.notes
    assert f"Read 101 files of {size + 100 * 43} bytes in all" in note
    listing = [
        f"{each}: {each.stat().st_size} bytes, changed "
        + datetime.fromtimestamp(int(each.stat().st_mtime), UTC).isoformat().replace("+00:00", "Z")
        for each in sorted(tmp_path.glob("*.csv"), key=str)
    ]
    assert hashlib.sha256("\n".join(listing).encode()).hexdigest() in note
    close(many)


def test_one_statement_answers_the_charges_of_a_period(tmp_path: Path) -> None:
    """Fifty charges over one period carry one and the same statement."""
    rows = [row(metric=f"m{number}") for number in range(50)]
    source = csv_source(tmp_path, *rows)
    asked = [query(str(number), metric=f"m{number}") for number in range(50)]
    tallies = source.count(asked)
    assert [tally.value for tally in tallies] == [1] * 50
    assert len({tally.evidence.query for tally in tallies}) == 1
    assert len({str(tally.evidence.parameters) for tally in tallies}) == 1
    close(source)


def test_filters_in_any_order_hold_all(tmp_path: Path) -> None:
    """Two filters narrow together, whichever comes first; one column cannot be two things."""
    rows = [ROW, row(region="us"), row(visitor="bob"), row(region="")]
    source = csv_source(tmp_path, *rows)
    both = (("visitor", "ann"), ("region", "eu"))
    asked = [
        query("1", filters=both),
        query("2", filters=both[::-1]),
        query("3", filters=(("region", "eu"), ("region", "us"))),
        query("4", filters=(("region", ""),)),
        query("5", filters=(("visitor", "eu"), ("region", "ann"))),
    ]
    values = {tally.query.charge_id: tally.value for tally in source.count(asked)}
    assert values == {"1": 1, "2": 1, "3": 0, "4": 1, "5": 0}
    close(source)


@pytest.mark.parametrize("kind", ["BIGINT", "DOUBLE", "VARCHAR", "DECIMAL(12,1)"])
def test_an_edge_within_a_second_is_kept(tmp_path: Path, kind: str) -> None:
    """A whole second is before an edge that lies half a second later, in every type."""
    rows = [row(at=str(int(MAY.start.timestamp()) + number)) for number in (0, 1, 2)]
    path = parquet(tmp_path / "u.parquet", rows, kind, "BIGINT")
    source = FilesSource(path=path, **{**COLUMNS, "time_format": "epoch_seconds"})
    half = timedelta(seconds=0.5)
    for start, end, number in ((half, 3 * half, 1), (0 * half, half, 1), (half, 4 * half, 1)):
        period = Period(MAY.start + start, MAY.start + end)
        assert source.count([query(period=period)])[0].value == number
    close(source)


def test_a_million_rows_are_counted_exactly(tmp_path: Path) -> None:
    """DuckDB's answer over a million rows is the one that plain arithmetic gives."""
    path = generated(
        tmp_path / "million.parquet",
        "SELECT 'S-' || (i % 7) AS subject, 'm' || (i % 3) AS metric, i * 0.1::DOUBLE AS quantity,"
        ' make_timestamptz(1714521600000000 + i * 5000000) AS "at", i % 1000 AS visitor,'
        " 'eu' AS region FROM range(1000000) AS events(i)",
    )
    source = FilesSource(path=path, **{**COLUMNS, "time_format": "native"})
    split = Period(MAY.start, MAY.start + timedelta(days=30, microseconds=1))
    mine = [i for i in range(1_000_000) if i % 7 == 3 and i % 3 == 1 and i * 5 <= 30 * 86_400]
    asked = [
        query(how, subject="S-3", metric="m1", aggregation=how, period=split) for how in Aggregation
    ]
    values = {tally.query.aggregation: tally.value for tally in source.count(asked)}
    rounded = [Decimal(str(i * 0.1)) for i in mine]
    assert values == {
        Aggregation.COUNT: len(mine),
        Aggregation.SUM: sum(rounded),
        Aggregation.MAX: max(rounded),
        Aggregation.LAST: rounded[-1],
        Aggregation.UNIQUE: len({i % 1000 for i in mine}),
    }
    close(source)


def test_no_value_in_the_period_is_no_maximum(tmp_path: Path) -> None:
    """A known subject without events has no largest and no last value."""
    for how in (Aggregation.MAX, Aggregation.LAST):
        with pytest.raises(SourceInvalid, match="no value in the period"):
            value(csv_source(tmp_path, ROW), how, period=JUNE)


def test_two_last_values_at_once_are_ambiguous(tmp_path: Path) -> None:
    """Equal instants with different quantities have no last one; equal quantities have."""
    same = row(at="2024-05-02T02:00:00+02:00", quantity="1.0")
    assert value(csv_source(tmp_path, ROW, same), Aggregation.LAST) == 1
    two = row(at="2024-05-02T02:00:00+02:00", quantity="2")
    with pytest.raises(SourceInvalid, match=r"ambiguous: 1 and 2"):
        value(csv_source(tmp_path, ROW, two), Aggregation.LAST)


def test_a_source_is_well_again_after_a_timeout(tmp_path: Path) -> None:
    """What was interrupted does not disturb the next count."""
    source = parquet_source(tmp_path, "BIGINT", ROW, timeout_seconds=0.000001)
    with pytest.raises(SourceUnavailable, match="no answer within 1e-06 s"):
        source.count([query()])
    object.__setattr__(source._engine, "_timeout_seconds", 60.0)
    assert value(source) == 1


def test_too_little_memory_names_the_setting(tmp_path: Path) -> None:
    """A limit that the count does not fit into is a person's to raise."""
    path = generated(
        tmp_path / "wide.parquet",
        "SELECT 'S-1' AS subject, 'calls' AS metric, '2024-05-02T00:00:00Z' AS \"at\","
        " md5(i::VARCHAR) AS visitor, 1 AS quantity FROM range(300000) AS events(i)",
    )
    source = FilesSource(path=path, **COLUMNS, memory_limit="12MB")
    with pytest.raises(SourceInvalid, match="memory_limit is the setting"):
        value(source, Aggregation.UNIQUE)


def test_the_engine_fetches_keeps_and_spills_nothing(tmp_path: Path) -> None:
    """No extension, secret or temporary file comes from or goes to anywhere unasked."""
    source = csv_source(tmp_path, ROW, memory_limit="1GiB")
    with source._engine.reading() as session:
        found = dict(session.rows("SELECT name, value FROM duckdb_settings()", {}))
        with pytest.raises(SourceInvalid, match="locked"):
            session.rows("SET memory_limit = '2GB'", {})
    close(source)
    for name in ("autoinstall_known_extensions", "autoload_known_extensions"):
        assert found[name] == "false"
    assert (found["allow_persistent_secrets"], found["temp_directory"]) == ("false", "")
    assert (found["TimeZone"], found["memory_limit"]) == ("UTC", "1.0 GiB")


def test_a_url_needs_httpfs_and_says_so() -> None:
    """Without the extension a URL is refused with the way to get it, and nothing is fetched."""
    url = "https://127.0.0.1:1/usage.parquet"
    source = FilesSource(path=url, **COLUMNS, allow_network=True)
    if extensions_installed():
        pytest.skip("httpfs is installed on this machine")
    for asking in (source.check, lambda: source.count([query()])):
        with pytest.raises(SourceInvalid, match="INSTALL httpfs once in duckdb"):
            asking()


def extensions_installed() -> bool:
    """Tell whether httpfs can be loaded here without fetching it."""
    look = "SELECT installed FROM duckdb_extensions() WHERE extension_name = 'httpfs'"
    with duckdb.connect(":memory:") as db:
        return db.execute(look).fetchall() == [(True,)]


def test_a_store_tells_names_sizes_and_times(tmp_path: Path) -> None:
    """What is asked of an object store about its files is right, as on this disk."""
    path = csv_file(tmp_path / "usage.csv", [ROW])
    os.utime(path, (1_800_000_000, 1_800_000_000))
    source = csv_source(tmp_path / "..", ROW)
    with source._engine.reading() as session:
        (found,) = _remote(session, str(tmp_path / "*.csv"))
    assert (found.path, found.size) == (path, os.path.getsize(path))
    assert found.modified_us == 1_800_000_000_000_000
    close(source)


def test_secrets_are_said_to_nobody() -> None:
    """Keys of a store stand in no repr and in no error's text; quotes in them do no harm."""
    given = {**COLUMNS, "path": "s3://bucket/*.parquet", "allow_network": True}
    secret, token = "s3cr'et", "t0ken"
    source = FilesSource(
        **given, s3_key_id="AK", s3_secret=secret, s3_session_token=token, s3_region="eu-west-1"
    )
    engine = source._engine
    shown = f"{source!r} {engine._access!r} {engine.sorted(duckdb.Error(f'x {secret} {token}'))}"
    assert secret not in shown
    assert token not in shown
    statement = engine._access.statement()
    assert statement == (
        "CREATE OR REPLACE TEMPORARY SECRET (TYPE s3, KEY_ID 'AK', SECRET 's3cr''et',"
        " SESSION_TOKEN 't0ken', REGION 'eu-west-1')"
    )


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"path": []}, "path must name a file"),
        ({"path": ""}, "path must name a file"),
        ({"path": "usage.dat"}, "format is needed"),
        ({"path": ["a.csv", "a.parquet"]}, "format is needed"),
        ({"time_format": "native"}, "time_format: csv has no timestamps"),
        ({"time_format": "epoch"}, "time_format"),
        ({"delimiter": ", "}, "delimiter must be one character"),
        ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be 0 or more"),
        ({"timeout_seconds": 0}, "timeout_seconds must be more than 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be more than 0"),
        ({"memory_limit": "much"}, "memory_limit must be a number and a unit"),
        ({"metric_column": None, "known_metrics": ["calls"]}, "known_metrics needs metric_column"),
        ({"path": "https://h/a.csv"}, "set allow_network = true"),
        ({"path": "http://h/a.csv", "allow_network": True}, "s3:// or https://"),
        ({"path": "https://u:p@h/a.csv", "allow_network": True}, "path must hold no user"),
        ({"path": "https://h/a.csv?sig=x", "allow_network": True}, "path must hold no user"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, Any], complaint: str) -> None:
    """A wrong setting is refused when the configuration is read, with its name."""
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(FilesSource).validate_python({"path": "usage.csv", **COLUMNS, **changed})


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DuckDB the configuration is refused with the command that mends it."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"pip install 'invoice-reconciler\[files\]'"):
        FilesSource(path="usage.csv", **COLUMNS)


def test_an_aggregation_names_the_setting_it_needs(tmp_path: Path) -> None:
    """Summing without a quantity, or telling metrics apart without a column, says what to set."""
    none = {"quantity_column": None, "unique_column": None, "metric_column": None}
    bare = csv_source(tmp_path, ROW, **none)
    assert value(bare) == 1
    with pytest.raises(SourceInvalid, match="sum needs quantity_column"):
        value(bare, Aggregation.SUM)
    with pytest.raises(SourceInvalid, match="unique needs unique_column"):
        value(bare, Aggregation.UNIQUE)
    two: list[UsageQuery] = [query("1"), query("2", metric="pages", aggregation=Aggregation.COUNT)]
    with pytest.raises(SourceInvalid, match="cannot tell the metrics 'calls', 'pages' apart"):
        bare.count(two)
    with pytest.raises(SourceInvalid, match="set metric_column"):
        bare.count([query("1"), query("2", metric="pages", period=JUNE)])
    filtered = [
        query("1", filters=(("region", "eu"),)),
        query("2", metric="pages", filters=(("region", "us"),)),
    ]
    assert [tally.value for tally in bare.count(filtered)] == [1, 0]
    close(bare)


def test_an_empty_export_knows_nobody(tmp_path: Path) -> None:
    """A file with a header only, or no line at all, makes nobody's usage 0."""
    given: dict[str, Any] = {"known_metrics": ("calls",)}
    assert value(csv_source(tmp_path, **given)) is None
    (tmp_path / "usage.jsonl").write_text("")
    assert value(FilesSource(path=str(tmp_path / "usage.jsonl"), **COLUMNS, **given)) is None
    (tmp_path / "usage.csv").write_text("")
    with pytest.raises(SourceInvalid, match="has no column subject"):
        value(FilesSource(path=str(tmp_path / "usage.csv"), **COLUMNS, **given))


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    """The check passes over good files and names a wrong column and a wrong type."""
    csv_source(tmp_path, ROW).check()
    with pytest.raises(SourceInvalid, match="has no column moment"):
        csv_source(tmp_path, ROW, time_column="moment").check()
    with pytest.raises(SourceInvalid, match="is VARCHAR, not a timestamp"):
        parquet_source(tmp_path, "BIGINT", ROW, time_format="native").check()
