"""A metric that nobody ever used is unknown and not 0, in a table and in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import mysql, postgresql
from test_usage_sources_csv import FILE, HEADER
from test_usage_sources_sql import MAY_2, TABLE, statement_text, store

from usage_sources.contract import JUNE, close, query
from usage_sources.csv_file import CsvSource
from usage_sources.reading import NAMES_LOOKED_AT
from usage_sources.sql import SqlSource
from usage_sources.sql import table as sql_table
from usage_sources.sql.statements import Columns, TableStatements
from worker.domain import Aggregation
from worker.errors import SourceInvalid
from worker.ports import UsageSource

Rows = list[tuple[str, str]]  # subject and metric; each is one event in May
Make = Callable[..., UsageSource]

USED: Rows = [("S-1", "calls"), ("S-2", "fax_page"), ("S-2", "text_message")]


@pytest.fixture(params=["sql", "csv"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make a source of either kind over these events."""
    made: list[UsageSource] = []

    def sql(rows: Rows, **changed: Any) -> UsageSource:
        url = store(tmp_path / "usage.db", [(*each, MAY_2, 1, "ann") for each in rows])
        return TypeAdapter(SqlSource).validate_python({"url": url, **TABLE, **changed})

    def csv(rows: Rows, **changed: Any) -> UsageSource:
        path = tmp_path / "usage.csv"
        lines = [f"{subject},{metric},{MAY_2},1,ann" for subject, metric in rows]
        path.write_text("\n".join([HEADER, *lines]))
        return TypeAdapter(CsvSource).validate_python({"path": str(path), **FILE, **changed})

    def kept(rows: Rows, **changed: Any) -> UsageSource:
        made.append((sql if request.param == "sql" else csv)(rows, **changed))
        return made[-1]

    yield kept
    for source in made:
        close(source)


def ask(source: UsageSource, metric: str, **changed: Any) -> Any:
    """Return the value of one query."""
    return source.count([query(metric=metric, **changed)])[0].value


def refusal(source: UsageSource, *metrics: str, **changed: Any) -> str:
    """Return how the source refuses to count these metrics."""
    asked = [query(metric, metric=metric, **changed) for metric in metrics]
    with pytest.raises(SourceInvalid) as caught:
        source.count(asked)
    return str(caught.value)


@contextmanager
def statements() -> Iterator[list[str]]:
    """Listen to the SELECTs that any database is asked."""
    run: list[str] = []

    def heard(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            run.append(" ".join(statement.split()))

    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        yield run
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)


def test_a_misspelt_metric_is_named_with_its_mend(make: Make) -> None:
    """The error says metric, column, place, the nearest metric, and both ways to mend it."""
    told = refusal(make(USED), "text_mesage")
    for part in (
        "usage.",
        "nobody ever used the metric 'text_mesage' (column metric)",
        "unknown, not 0; nearest: 'text_message'",
        "; correct metric under components, or list it in the source's known_metrics",
    ):
        assert part in told
    assert "\n" not in told


def test_a_metric_of_others_is_zero_for_a_known_subject(make: Make) -> None:
    """What anybody used at any time exists: 0 for those who did not use it, or not then."""
    source = make(USED)
    assert ask(source, "fax_page") == 0
    assert ask(source, "calls", period=JUNE) == 0
    assert ask(source, "calls", subject="S-2", period=JUNE) == 0


def test_a_known_metric_is_zero_before_its_first_event(make: Make) -> None:
    """known_metrics vouches for the metrics in it and for no other, nor for any subject."""
    source = make(USED, known_metrics=["minutes"])
    assert ask(source, "minutes") == 0
    assert ask(source, "minutes", subject="nobody") is None
    assert "'minute'" in refusal(source, "minute")


def test_an_unknown_subject_does_not_excuse_an_unknown_metric(make: Make) -> None:
    """A component may bill an unknown subject as 0; it must not bill a misspelt metric so."""
    assert "'faxpage'" in refusal(make(USED), "faxpage", subject="nobody")
    assert ask(make(USED), "fax_page", subject="nobody") is None


def test_one_unknown_metric_refuses_the_whole_call(make: Make) -> None:
    """The charges of an invoice stand together; many unknown ones are cut to a readable line."""
    source = make(USED)
    assert "'faxes'" in refusal(source, "calls", "fax_page", "faxes")
    told = refusal(source, "calls", *(f"report.{n}" for n in range(51)))
    assert "'report.0', 'report.1', 'report.10', 'report.11', 'report.12' and 46 more" in told
    assert len(told) < 700


def test_an_unknown_metric_is_no_matter_of_the_aggregation(make: Make) -> None:
    """The largest of a misspelt metric is refused for its name, not for the empty period."""
    for aggregation in Aggregation:
        assert "nobody ever used" in refusal(make(USED), "cals", aggregation=aggregation)


def test_an_empty_place_knows_no_metric(make: Make) -> None:
    """Before its first event a source holds; it bills nobody 0 by that."""
    assert "it has no metric at all" in refusal(make([]), "calls")


def test_without_a_metric_column_no_metric_is_looked_for(make: Make) -> None:
    """A place of one metric counts it under whatever name the component has."""
    source = make(USED, metric_column=None)
    assert ask(source, "whatever") == 1
    assert ask(source, "whatever", period=JUNE) == 0


def test_few_names_are_read_to_find_the_nearest(make: Make) -> None:
    """A place with very many metrics is not read to its end for a suggestion."""
    many = [("S-1", f"metric {n}") for n in range(NAMES_LOOKED_AT)]
    told = refusal(make([*many, ("S-1", "text_message")]), "text_mesage")
    assert "nearest: 'metric 1'" in told or "nearest: 'metric 0'" in told
    assert ask(make([*many, ("S-2", "text_message")]), "text_message") == 0


def table(tmp_path: Path, rows: Rows, **changed: Any) -> SqlSource:
    """Make a source over a table of these events."""
    url = store(tmp_path / "usage.db", [(*each, MAY_2, 1, "ann") for each in rows])
    return SqlSource(url=url, **{**TABLE, **changed})


def test_all_doubtful_metrics_are_one_look_and_only_the_first_time(tmp_path: Path) -> None:
    """Fifty unused metrics cost one statement; once seen, and if counted, none."""
    names = [f"metric {n}" for n in range(50)]
    source = table(tmp_path, [("S-1", "calls"), *(("S-2", name) for name in names)])
    asked = [query(name, metric=name) for name in names]
    with statements() as run:
        source.count([query()])
        assert len(run) == 1
        source.count(asked)
        looks = [text for text in run if "EXISTS" in text]
        assert len(looks) == 1
        assert looks[0].count("EXISTS") == 50
        source.count(asked)
        source.count([query(period=JUNE)])
        assert [text for text in run if "EXISTS" in text] == looks
    source.close()


def test_a_stated_metric_is_not_looked_for(tmp_path: Path) -> None:
    """known_metrics spares the look, also on a table without an index that helps."""
    source = table(tmp_path, USED, known_metrics=("fax_page",))
    with statements() as run:
        assert ask(source, "fax_page") == 0
    assert not [text for text in run if "EXISTS" in text]
    source.close()


def test_a_metric_refused_once_is_counted_after_its_first_event(tmp_path: Path) -> None:
    """What is unknown is not remembered: the first event, of anybody, mends it."""
    source = table(tmp_path, USED)
    assert "'minutes'" in refusal(source, "minutes")
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        into = "usage (subject_id, metric, created_at)"
        db.execute(f"INSERT INTO {into} VALUES ('S-2', 'minutes', ?)", [MAY_2])
    assert ask(source, "minutes") == 0
    source.close()


def test_more_metrics_than_a_statement_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics beyond what one statement can ask for are asked in the next."""
    monkeypatch.setattr(sql_table, "_MOST_AT_ONCE", 2)
    names = [f"metric {n}" for n in range(5)]
    source = table(tmp_path, [("S-1", "calls"), *(("S-2", name) for name in names)])
    tallies = source.count([query(name, metric=name) for name in names])
    assert [tally.value for tally in tallies] == [0] * 5
    assert "'metric 5'" in refusal(source, *names, "metric 5")
    source.close()


def test_names_that_cannot_be_read_spoil_no_error(tmp_path: Path) -> None:
    """The refusal stands, without suggestion, where the metrics there are cannot be listed."""
    source = table(tmp_path, USED)
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db, db:
        db.execute("UPDATE usage SET metric = CAST(x'ff' AS TEXT) WHERE metric = 'calls'")
    assert "nobody ever used the metric 'cals'" in refusal(source, "cals")
    source.close()


def test_a_number_column_has_no_metric_by_a_name() -> None:
    """A name that the column's type cannot hold is nobody's metric, and is not sent."""
    integers: dict[str, Any] = {
        **dict.fromkeys(COLUMNS.named().values(), sa.String()),
        "metric": sa.Integer(),
    }
    metric = TableStatements(COLUMNS, "postgresql", integers).metric
    assert metric is not None
    assert [metric.bind(name) for name in ("7", "07", "calls")] == [7, None, None]


COLUMNS = Columns(
    table="events",
    subject="subject_id",
    time="created_at",
    metric="metric",
    quantity=None,
    unique=None,
    time_format="native",
    naive_times="reject",
)
EXACT = " COLLATE utf8mb4_0900_bin"
SAME = f"(CONVERT(events.metric USING utf8mb4){EXACT}) = "


@pytest.mark.parametrize(
    ("dialect", "exactly"),
    [
        (postgresql.psycopg.dialect(), ("::VARCHAR", "")),  # type: ignore[no-untyped-call]
        (mysql.pymysql.dialect(), (EXACT, f" AND {SAME}:name_0{EXACT}")),
    ],
)
def test_each_look_stops_at_the_first_row(dialect: sa.Dialect, exactly: tuple[str, str]) -> None:
    """Elsewhere than on SQLite too: EXISTS for each metric, case told apart, all bound."""
    types = dict.fromkeys(COLUMNS.named().values(), sa.String())
    metric = TableStatements(COLUMNS, dialect.name, types).metric
    assert metric is not None
    cast, same = exactly
    assert statement_text(TableStatements.used(metric, 1), dialect) == (
        "SELECT CASE WHEN (EXISTS (SELECT 1 FROM events"
        f" WHERE events.metric = :name_0{cast}{same})) THEN 1 ELSE 0 END AS anon_1"
    )
