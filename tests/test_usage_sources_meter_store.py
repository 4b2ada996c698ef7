"""The store of the built-in meter: each event once, all or nothing, and faults told by remedy."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from meter_builders import KINDS, append, hours_after, used, value
from postgres import Server

from usage_sources.contract.values import MIDNIGHT, query
from usage_sources.meter import MeterSource
from usage_sources.meter.appending import ROLL_FROM, append_rows, our_clock, rows_of
from usage_sources.meter.postgres import PostgresMeter
from usage_sources.meter.postgres_writing import PostgresAppending
from usage_sources.meter.sqlite import SqliteMeter
from usage_sources.meter.sqlite_tables import make_tables
from worker.domain import Aggregation
from worker.errors import SourceInvalid, SourceUnavailable
from worker.metering import UsageEvent, Verdict

STORED, DUPLICATE, CONFLICT = "stored", "duplicate", "conflict"


@pytest.fixture(params=KINDS)
def source(
    request: pytest.FixtureRequest, new_journal_url: Callable[[str], str]
) -> Iterator[MeterSource]:
    """A meter in a new database of each kind."""
    with closing(MeterSource(url=new_journal_url(request.param))) as source:
        yield source


def test_an_event_counts_once(source: MeterSource) -> None:
    """Sent again, alone or twice in a batch, however it is written, it is a duplicate."""
    one = used("1.50", id="a")
    elsewhere = one.at.astimezone(timezone(timedelta(hours=5, minutes=45)))
    again = one._replace(at=elsewhere, quantity=Decimal("1.5"))
    assert append(source, one, again) == [STORED, DUPLICATE]
    assert append(source, again, used("2", id="b"), one) == [DUPLICATE, STORED, DUPLICATE]
    assert append(source, one, again) == [DUPLICATE, DUPLICATE]
    assert value(source) == Decimal("3.5")


CHANGES: list[dict[str, Any]] = [
    {"subject": "S-2"},
    {"metric": "pages"},
    {"at": MIDNIGHT + timedelta(microseconds=1)},
    {"quantity": Decimal("1.0000001")},
    {"quantity": Decimal("1e30")},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_other_content_is_a_conflict(source: MeterSource, change: dict[str, Any]) -> None:
    """A name that is there with anything else changes nothing, across batches or in one."""
    one = used(id="a")
    other = one._replace(**change)
    assert append(source, one, other) == [STORED, CONFLICT]
    assert append(source, other, one) == [CONFLICT, DUPLICATE]
    assert value(source) == 1


def test_a_name_is_a_source_and_an_id(source: MeterSource) -> None:
    """Two sources may use one id, and no border between the two texts can be moved."""
    names = [("a", "1"), ("b", "1"), ("a1", "1"), ("a", "11"), ("1", "a")]
    some = [used(source=origin, id=name) for origin, name in names]
    assert append(source, *some) == [STORED] * len(names)
    assert append(source, *some) == [DUPLICATE] * len(names)
    assert value(source) == len(names)


def test_all_or_nothing_is_nothing_with_a_conflict(source: MeterSource) -> None:
    """One conflict keeps the whole batch out; without all or nothing, only itself."""
    one = used(id="a")
    append(source, one)
    batch = [used(id="b"), one._replace(quantity=Decimal(2)), one, used(id="c")]
    verdicts = [STORED, CONFLICT, DUPLICATE, STORED]
    assert append(source, *batch, all_or_nothing=True) == verdicts
    assert value(source) == 1
    assert append(source, *batch) == verdicts
    assert value(source) == 3
    assert append(source, one, used(), all_or_nothing=True) == [DUPLICATE, STORED]
    assert value(source) == 4


def test_nothing_is_stored_of_nothing(source: MeterSource) -> None:
    """An empty batch has no verdicts and makes no tables."""
    assert append(source) == []
    with pytest.raises(SourceUnavailable):
        source.check()


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"subject": "S\0"},
        {"metric": "\ud800"},
        {"at": datetime(2024, 5, 1)},  # noqa: DTZ001
        {"at": datetime(1979, 12, 31, tzinfo=UTC)},
        {"quantity": Decimal("NaN")},
        {"quantity": Decimal("sNaN")},
        {"quantity": Decimal("-Infinity")},
        {"quantity": Decimal("1e60")},
        {"quantity": Decimal("1e-61")},
        {"quantity": 1.5},
    ],
    ids=ascii,
)
def test_what_cannot_be_kept_is_refused(source: MeterSource, change: dict[str, Any]) -> None:
    """A value that some database could not give back is a ValueError, and its batch is not in."""
    with pytest.raises(ValueError, match=r"."):
        append(source, used(), used()._replace(**change))
    append(source, used())
    assert value(source) == 1


def test_long_names_are_kept_apart(source: MeterSource) -> None:
    """Names that differ at their far end, and no compression shortens, are different."""
    long = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(1023))
    some = [used(source=long + each, id=long + each) for each in "ab"]
    some += [used(id=long + each, subject=long + each, metric=long + each) for each in "cd"]
    assert append(source, *some, *some) == [STORED] * 4 + [DUPLICATE] * 4
    (tally,) = source.count([query(subject=long + "c", metric=long + "c")])
    assert tally.value == 1


def test_a_clock_that_goes_back_stores_nothing_earlier(tmp_path: Path, postgres_url: str) -> None:
    """What is stored after a cut-off is after it, whatever our clock says."""
    path = tmp_path / "usage.db"
    clock = iter([2_000, 1_000, 2_000, 5_000] * 2)
    for meter in (
        SqliteMeter(path, 30, clock=lambda: next(clock)),
        PostgresMeter(postgres_url, 30, clock=lambda: next(clock)),
    ):
        with closing(meter):
            moments = []
            for _ in range(4):
                meter.append([used()], all_or_nothing=False)
                with meter.reading() as snapshot:
                    moments.append(snapshot.latest)
            assert moments == [2_000, 2_001, 2_002, 5_000]


def test_a_duplicate_moves_no_cut_off(source: MeterSource) -> None:
    """Where nothing was stored, the newest moment stays what it was."""
    one = used(id="a")
    append(source, one)
    first = source.count([query()])[0].evidence.stored_until
    append(source, one)
    append(source, one._replace(metric="pages"), used(), all_or_nothing=True)
    assert source.count([query()])[0].evidence.stored_until == first


def test_writers_of_one_database_take_turns(source: MeterSource) -> None:
    """Many threads of two stores, with the same events in part: each counts once, none fails."""
    shared = [used(id=f"shared {number}") for number in range(50)]
    with closing(MeterSource(url=source.url)) as other:

        def run(number: int) -> int:
            store = (source, other)[number % 2].store
            own = [used(id=f"{number}/{each}", at=hours_after(each)) for each in range(50)]
            verdicts = store.append([*shared, *own], all_or_nothing=False)
            return list(verdicts).count(Verdict.STORED)

        with ThreadPoolExecutor(8) as pool:
            stored = list(pool.map(run, range(16)))
    assert sum(stored) == 50 + 16 * 50
    assert value(source, Aggregation.COUNT) == sum(stored)


def test_the_next_writer_sees_what_the_one_before_committed(
    postgres: Server, database: str
) -> None:
    """An event that another writer is about to commit is waited for, and then a duplicate."""
    url, one = postgres.url(database), used(id="a")
    with closing(MeterSource(url=url)) as source, ThreadPoolExecutor(1) as pool:
        append(source, used())
        with psycopg.connect(url) as other:
            append_rows(PostgresAppending(other, our_clock), rows_of([one]), all_or_nothing=False)
            waiting = pool.submit(append, source, one)
            look = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while postgres.run(f"{look} AND datname = '{database}'") == [(0,)]:
                time.sleep(0.01)
        assert waiting.result() == [DUPLICATE]
        assert value(source) == 2


@pytest.mark.parametrize("change", ["UPDATE ON meter_series", "INSERT ON meter_hours"])
def test_a_fault_on_the_way_leaves_nothing(tmp_path: Path, change: str) -> None:
    """When the last of a batch's writes fails, nothing of the batch is in."""
    path = tmp_path / "usage.db"
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        append(source, used(id="first"))
        with closing(sqlite3.connect(path)) as other:
            other.execute(
                f"CREATE TRIGGER fault BEFORE {change} BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        with pytest.raises(SourceInvalid):
            append(source, *(used() for _ in range(2 * ROLL_FROM)))
        assert value(source) == 1


def test_a_series_is_rolled_up_when_it_has_about_enough(tmp_path: Path) -> None:
    """Its events are counted by a sample: the hours are kept from about ROLL_FROM events on."""
    path = tmp_path / "usage.db"
    with closing(SqliteMeter(path, 30)) as meter:
        rolled_from = 0
        for number in range(2 * ROLL_FROM // 100):
            some = [used(id=f"{100 * number + each}") for each in range(100)]
            meter.append(some, all_or_nothing=False)
            with closing(sqlite3.connect(path)) as look:
                ((rolled,),) = look.execute("SELECT rolled FROM meter_series")
            rolled_from += 100 * (not rolled)
    assert 0.8 * ROLL_FROM < rolled_from < 1.2 * ROLL_FROM


WRITER = """
import sys
import time
from decimal import Decimal
from datetime import datetime, timedelta, UTC
from usage_sources.meter import MeterSource
from usage_sources.meter.appending import ROLL_FROM, append_rows, our_clock, rows_of
from worker.metering import UsageEvent
url, name = sys.argv[1:]
store = MeterSource(url=url).store
start = datetime(2024, 5, 1, tzinfo=UTC)
for batch in range(100_000):
    store.append([UsageEvent(source=name, id=f"{batch}/{each}", subject="S-1", metric="calls",
        at=start + timedelta(seconds=each * 997), quantity=Decimal("0.5")) for each in range(700)],
        all_or_nothing=False)
    print(batch, flush=True)
"""


def test_killed_in_the_middle_a_batch_is_in_or_not(source: MeterSource) -> None:
    """Two processes append and are killed: whole batches are in, no fewer than were answered."""
    command = [sys.executable, "-c", WRITER, source.url]
    before = Decimal(0)
    for attempt in range(2):
        writers = [
            subprocess.Popen([*command, f"{attempt}{name}"], stdout=subprocess.PIPE, text=True)
            for name in "ab"
        ]
        answered = 0
        for writer in writers:
            assert writer.stdout is not None
            answered += sum(1 for _ in zip(range(4), writer.stdout, strict=False))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            answered += len(writer.communicate()[0].splitlines())
        events = value(source, Aggregation.COUNT) or Decimal(0)
        assert events % 700 == 0
        assert answered * 700 <= events - before <= (answered + 2) * 700
        assert value(source) == events / 2, "the hourly sums are not those of the events"
        before = events


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A batch that does not fit is not in at all, and smaller ones are when there is room."""
    path = tmp_path / "usage.db"
    with closing(SqliteMeter(path, 5, max_pages=40)) as meter:
        meter.append([used(id="first")], all_or_nothing=False)
        with pytest.raises(SourceUnavailable, match="full"):
            meter.append([used() for _ in range(5000)], all_or_nothing=False)
        assert list(meter.append([used(id="first"), used()], all_or_nothing=False)) == [
            Verdict.DUPLICATE,
            Verdict.STORED,
        ]
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        assert value(source) == 2


def test_a_locked_file_is_waited_for_and_then_told(tmp_path: Path) -> None:
    """While another program writes, appending says "try later" in time, and counting goes on."""
    path = tmp_path / "usage.db"
    with closing(MeterSource(url=f"sqlite:///{path}", timeout_seconds=0.2)) as source:
        append(source, used())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SourceUnavailable, match="locked; another program is writing to it"):
                append(source, used())
            assert value(source) == 1
            other.execute("ROLLBACK")
        assert append(source, used()) == [STORED]


def test_a_writer_on_its_way_holds_the_next(postgres_url: str) -> None:
    """On PostgreSQL nobody stores while another has yet to commit, so that cut-offs are final."""
    with closing(MeterSource(url=postgres_url, timeout_seconds=0.5)) as source:
        append(source, used())
        with psycopg.connect(postgres_url) as other:
            other.execute("UPDATE meter_clock SET stored_at = stored_at + 1")
            with pytest.raises(SourceUnavailable):
                append(source, used())
            assert value(source) == 1
            other.rollback()
        assert append(source, used()) == [STORED]


def test_a_connection_that_was_ended_is_made_again(postgres: Server, database: str) -> None:
    """After a failover the next append and the next count just work."""
    with closing(MeterSource(url=postgres.url(database))) as source:
        append(source, used())
        assert value(source) == 1
        assert postgres.terminate(database) == 2
        assert append(source, used()) == [STORED]
        assert value(source) == 2


def test_a_replaced_file_is_opened_anew(tmp_path: Path) -> None:
    """A file put in the place of the one that is open is the one that counts."""
    path, other = tmp_path / "usage.db", tmp_path / "other.db"
    with closing(MeterSource(url=f"sqlite:///{other}")) as source:
        append(source, used("7"))
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        append(source, used("1"))
        assert value(source) == 1
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        other.replace(path)
        assert value(source) == 7
        assert append(source, used("2")) == [STORED]
        assert value(source) == 9


def stored_in(path: Path) -> dict[tuple[str, str], set[str]]:
    """Return the ids of the events of each subject and metric, as the file itself has them."""
    found: dict[tuple[str, str], set[str]] = {}
    with closing(sqlite3.connect(path)) as connection:
        for subject, metric, name in connection.execute(
            "SELECT subject, metric, events.id FROM meter_events AS events"
            " JOIN meter_series AS series ON series.id = events.series"
        ):
            found.setdefault((subject, metric), set()).add(name)
    return found


def break_an_append(meter: SqliteMeter, path: Path, event: UsageEvent) -> None:
    """Append an event of a new series, with a fault after its series was made."""
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON meter_events"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(SourceInvalid):
            meter.append([event], all_or_nothing=False)
        other.execute("DROP TRIGGER fault")


@pytest.mark.parametrize("writers", [1, 2])
def test_a_series_that_was_rolled_back_gets_no_events_of_another(
    tmp_path: Path, writers: int
) -> None:
    """Its number goes to the next new series, whoever writes that; each event finds its own."""
    path = tmp_path / "usage.db"
    ours, others = used(id="ours", subject="S-2"), used(id="other's", subject="S-3")
    with closing(SqliteMeter(path, 5)) as meter, closing(SqliteMeter(path, 5)) as second:
        meter.append([used(id="first")], all_or_nothing=False)
        break_an_append(meter, path, ours)
        (meter, second)[writers - 1].append([others], all_or_nothing=False)
        meter.append([ours, others._replace(id="other's again")], all_or_nothing=False)
    assert stored_in(path) == {
        ("S-1", "calls"): {"first"},
        ("S-2", "calls"): {"ours"},
        ("S-3", "calls"): {"other's", "other's again"},
    }


def test_a_refused_batch_leaves_its_series_to_be_made(tmp_path: Path) -> None:
    """What came beside a conflict, all or nothing, goes to its own series when it comes alone."""
    path, first = tmp_path / "usage.db", used(id="first")
    ours, others = used(id="ours", subject="S-2"), used(id="other's", subject="S-3")
    with closing(SqliteMeter(path, 5)) as meter:
        meter.append([first], all_or_nothing=False)
        meter.append([ours, first._replace(quantity=Decimal(2))], all_or_nothing=True)
        for each in (others, ours):
            meter.append([each], all_or_nothing=True)
    assert stored_in(path) == {
        ("S-1", "calls"): {"first"},
        ("S-2", "calls"): {"ours"},
        ("S-3", "calls"): {"other's"},
    }


def test_a_replaced_file_numbers_its_own_series(tmp_path: Path) -> None:
    """A writer that knew the series of one file puts no event into those of the next."""
    path, other = tmp_path / "usage.db", tmp_path / "other.db"
    with closing(SqliteMeter(other, 5)) as second:
        second.append([used(id="1", subject="S-2")], all_or_nothing=False)
    with closing(SqliteMeter(path, 5)) as meter:
        meter.append([used(id="lost with its file")], all_or_nothing=False)
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        other.replace(path)
        meter.append([used(id="2"), used(id="3", subject="S-2")], all_or_nothing=False)
    assert stored_in(path) == {("S-1", "calls"): {"2"}, ("S-2", "calls"): {"1", "3"}}


def test_more_series_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many series there are, and long their names, memory is bounded and nothing mixed."""
    path, most, batch = tmp_path / "usage.db", 8, 4
    monkeypatch.setattr("usage_sources.meter.sqlite_writing._MOST_KNOWN", most)
    expected: dict[tuple[str, str], set[str]] = {}
    with closing(SqliteMeter(path, 5)) as meter, closing(SqliteMeter(path, 5)) as second:
        for turn in range(60):
            some = [
                used(
                    id=f"{turn}/{each}",
                    subject=f"S-{turn * (each + 1) % 7}" + "n" * 1000 * (each % 2),
                    metric=f"metric {turn % 5}",
                )
                for each in range(batch)
            ]
            (meter, second)[turn % 3 == 2].append(some, all_or_nothing=False)
            for each in some:
                expected.setdefault((each.subject, each.metric), set()).add(each.id)
            assert len(meter._known) <= most + batch
            assert all(len(subject) < 100 for subject, _ in meter._known)
    assert len(expected) > 2 * most
    assert stored_in(path) == expected


class Meanwhile:
    """A connection during whose first look at a file another one makes the tables."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours = sqlite3.connect(path, isolation_level=None)
        self._times = 0

    @property
    def in_transaction(self) -> bool:
        """Tell what the real connection says."""
        return self._ours.in_transaction

    def execute(self, text: str) -> list[Any]:
        """Run a statement; after the first that looks at the file, the other one is done."""
        rows = self._ours.execute(text).fetchall()
        self._times += text.startswith("PRAGMA application_id")
        if self._times == 1:
            self._times += 1
            with closing(sqlite3.connect(self._path, isolation_level=None)) as other:
                make_tables(other, "other", lambda _: None)
        return rows

    def close(self) -> None:
        """Close the real one."""
        self._ours.close()


def test_two_that_make_the_tables_at_once_do_not_mistake_each_other(tmp_path: Path) -> None:
    """A file that another process makes just now is not taken for one of another program."""
    path = tmp_path / "usage.db"
    with closing(sqlite3.connect(path)) as first:
        first.execute("PRAGMA journal_mode = WAL")
        with closing(Meanwhile(path)) as ours:
            make_tables(cast("sqlite3.Connection", ours), "ours", lambda _: None)
    with closing(SqliteMeter(path, 5)) as meter:
        assert meter.append([used()], all_or_nothing=False) == [Verdict.STORED]


def test_the_evidence_names_the_file_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody elsewhere finds it, however the settings write it; and it stays the same file."""
    monkeypatch.chdir(tmp_path)
    with closing(MeterSource(url="sqlite:///usage.db")) as source:
        append(source, used())
        monkeypatch.chdir("/")
        (tally,) = source.count([query()])
    assert tally.evidence.source == f"meter sqlite:///{tmp_path}/usage.db"


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    """A database that is not a meter's, or no database, is named and left as it is."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE meter_events (id)")
    before = path.read_bytes()
    with closing(MeterSource(url=f"sqlite:///{path}")) as source:
        for asking in (source.check, lambda: append(source, used())):
            with pytest.raises(SourceInvalid, match=r"other\.db is a database of another program"):
                asking()
        assert path.read_bytes() == before
        path.write_bytes(b"no database " * 100)
        for asking in (source.check, lambda: append(source, used())):
            with pytest.raises(SourceInvalid, match="not a database; correct url"):
                asking()


def test_a_later_versions_tables_are_refused(source: MeterSource) -> None:
    """What a newer program wrote is neither read nor written by this one."""
    append(source, used())
    source.close()
    if source.url.startswith("sqlite"):
        with closing(sqlite3.connect(source.url.removeprefix("sqlite:///"))) as other:
            other.execute("PRAGMA user_version = 99")
    else:
        with psycopg.connect(source.url) as later:
            later.execute("UPDATE meter_schema SET version = 99")
    for asking in (source.check, lambda: append(source, used())):
        with pytest.raises(SourceInvalid, match=r"by a later version \(tables of version 99\)"):
            asking()


def test_another_programs_table_is_refused(postgres_url: str) -> None:
    """A meter_events that the meter did not make is named and left alone."""
    with psycopg.connect(postgres_url) as other:
        other.execute("CREATE TABLE meter_events (id BIGINT)")
    with closing(MeterSource(url=postgres_url)) as source:
        for asking in (source.check, lambda: append(source, used())):
            with pytest.raises(SourceInvalid, match="meter_events of another program"):
                asking()


def test_events_are_neither_changed_nor_removed(source: MeterSource) -> None:
    """The database itself refuses it, because the hourly sums would no longer be theirs."""
    append(source, used())
    for statement in ("DELETE FROM meter_events", "UPDATE meter_events SET at = at + 1"):
        if source.url.startswith("sqlite"):
            path = source.url.removeprefix("sqlite:///")
            with (
                closing(sqlite3.connect(path)) as other,
                pytest.raises(sqlite3.Error, match="append-only"),
            ):
                other.execute(statement)
        else:
            with (
                closing(psycopg.connect(source.url)) as strange,
                pytest.raises(psycopg.Error, match="append-only"),
            ):
                strange.execute(statement.encode())
    assert value(source) == 1
