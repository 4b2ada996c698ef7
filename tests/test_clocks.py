"""Clocks: ours and the platform's differ, ours steps back, local ones change in the night."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from builders import END, KEY, NOW, START, delivery, rules
from clock_builders import MOST_LOOKS, SUB, TEXT, SteppingClock, add_usage, put, stage_on
from fakes import FakePlatform, FakeSource, lost
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_builders import TEXTS, Caller

from sandbox.process import RunningSandbox
from worker.config import config_of
from worker.domain import Period, utc, utc_text
from worker.errors import ConfigError
from worker.journal.sqlite import SqliteJournal
from worker.ports import Ports
from worker.reconcile import reconcile
from worker.record import State

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize("skew", [DAY, -DAY], ids=["ahead", "behind"])
def test_a_platform_whose_clock_is_a_day_off_delays_an_hour_at_most(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, skew: timedelta
) -> None:
    """A Retry-After by the platform's clock is not trusted with a day, and the invoice issued."""
    stage = stage_on(tmp_path, sandbox, journal_url, [utc_text(START)])
    platform_now = datetime.now(UTC) + skew
    sandbox.control.set_clock(platform_now)
    later = format_datetime(platform_now + timedelta(minutes=1), usegmt=True)
    sandbox.control.add_fault("rate_limit", retry_after=later, times=5)
    key = stage.deliver(put(sandbox, 1, utc_text(START), utc_text(END)))
    history = stage.settled(key)
    assert history.row.state is State.ISSUED
    assert sandbox.control.record().issues == {key.invoice_id: 1}
    waited = [later.at - one.at for one, later in pairwise(history.entries)]
    assert timedelta(seconds=5) <= max(waited) <= HOUR


def test_an_invoice_from_a_day_ahead_waits_and_one_from_a_day_behind_does_not(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str
) -> None:
    """Whenever the platform thinks a period is over, it is counted once it is over for us."""
    stage = stage_on(tmp_path, sandbox, journal_url, [utc_text(START), utc_text(END)])
    stage.clock.now = END + timedelta(minutes=10)
    ahead = stage.deliver(put(sandbox, 1, utc_text(END), utc_text(END + DAY)))
    row = stage.run(ahead).row
    assert (row.state, row.due_at) == (State.WAITING, END + DAY + timedelta(minutes=5))
    add_usage(tmp_path, [utc_text(END + 23 * HOUR)])
    history = stage.settled(ahead)
    assert [tally.quantity for tally in history.tallies] == [2]
    assert stage.clock.now == row.due_at
    behind = put(sandbox, 2, utc_text(START), utc_text(END))  # over for a day already
    assert stage.billed(behind) == (1, Period(START, END))
    assert stage.clock.now == row.due_at


@pytest.mark.parametrize("answer_is_lost", [False, True], ids=["answered", "lost"])
def test_our_clock_may_step_back_a_day_at_any_moment(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, answer_is_lost: bool
) -> None:
    """At whichever of its readings our clock steps back, the invoice is issued once and right."""
    stage = stage_on(tmp_path, sandbox, journal_url, times=[])
    steps_back_at, readings = 0, 1
    while steps_back_at <= readings:
        start, end = (START + n * HOUR for n in (steps_back_at, steps_back_at + 1))
        add_usage(tmp_path, [utc_text(start)] * 3)
        invoice_id = put(sandbox, steps_back_at, utc_text(start), utc_text(end))
        if answer_is_lost:
            sandbox.control.add_fault("drop_after", match={"path": f"{invoice_id}/recalculate"})
        stage.clock = SteppingClock(steps=iter([timedelta(0)] * steps_back_at + [-DAY]))
        assert stage.billed(invoice_id) == (3, Period(start, end))
        readings = stage.clock.readings
        steps_back_at += 1
    assert steps_back_at > 10
    issues = sandbox.control.record().issues
    assert len(issues) == steps_back_at
    assert set(issues.values()) == {1}


clock_steps = st.lists(
    st.integers(-3 * 86_400, 3 * 86_400).map(lambda s: timedelta(seconds=s)), max_size=40
)


@given(steps=clock_steps, fails=st.sampled_from(["", "write CHG-1", "issue"]), dies=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_clock_can_lose_or_double_an_invoice(
    steps: list[timedelta], fails: str, dies: bool
) -> None:
    """However our clock jumps between its readings, an invoice ends as issued, once."""
    platform = FakePlatform(lost_answers={fails})
    if fails:
        platform.failures[fails] = [lost(fails)]
    clock = SteppingClock(steps=iter(steps))
    with tempfile.TemporaryDirectory() as folder:
        journal = SqliteJournal(Path(folder) / "journal.db")
        journal.record_delivery(delivery(), clock())
        if dies:
            journal.claim(KEY, "a worker that dies", clock(), rules().lease)
        ports = Ports(
            platform=platform,
            sources={"events": FakeSource()},
            journal=journal,
            now=clock,
            random=lambda: 0.0,
            stopping=lambda: False,
        )
        for _ in range(3 * MOST_LOOKS):
            reconcile(KEY, owner="another", ports=ports, rules=rules())
            (row,) = journal.invoices()
            if row.due_at is None:
                break
            clock.at_least(max(filter(None, (row.due_at, row.lease_until))))
        assert journal.verify(KEY) is None
        journal.close()
    assert (row.state, row.lease_owner) == (State.ISSUED, None)
    assert platform.issues == 1
    assert platform.charges["CHG-1"].quantity == 105


def test_a_lease_outlives_a_step_back_and_ends(tmp_path: Path) -> None:
    """After a step back nobody takes a claimed invoice early, and somebody takes it in the end."""
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.record_delivery(delivery(), NOW)
    lease = timedelta(minutes=5)
    assert journal.claim(KEY, "one", NOW, lease) is not None
    for moment in (NOW - DAY, NOW - HOUR, NOW, NOW + lease - timedelta(microseconds=1)):
        assert journal.claim(KEY, "two", moment, lease) is None
        assert journal.due(moment) == []
    assert journal.due(NOW + lease) == [KEY]
    assert journal.claim(KEY, "two", NOW + lease, lease) is not None
    journal.close()


NIGHTS = [
    ("Europe/Berlin", date(2026, 3, 29), 23 * HOUR),
    ("Europe/Berlin", date(2026, 10, 25), 25 * HOUR),
    ("America/New_York", date(2026, 3, 8), 23 * HOUR),
    ("America/New_York", date(2026, 11, 1), 25 * HOUR),
    ("Australia/Lord_Howe", date(2026, 10, 4), 23.5 * HOUR),
    ("Australia/Lord_Howe", date(2026, 4, 5), 24.5 * HOUR),
]


def midnight(day: date, zone: str) -> datetime:
    """Return the beginning of a day in a zone."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(("zone", "day", "length"), NIGHTS, ids=lambda value: str(value))
def test_a_night_of_clock_change_is_billed_for_the_hours_it_has(
    tmp_path: Path,
    sandbox: RunningSandbox,
    journal_url: str,
    zone: str,
    day: date,
    length: timedelta,
) -> None:
    """The day of a change, its eve and its morrow bill each half hour once, as long as they are."""
    edges = [midnight(day + n * DAY, zone) for n in (-1, 0, 1, 2)]
    first, last = utc(edges[0]), utc(edges[-1])
    moments = [first + n * HOUR / 2 for n in range(-4, int((last - first) / HOUR * 2) + 4)]
    texts = [moment.astimezone(ZoneInfo(zone)).isoformat() for moment in moments]
    stage = stage_on(tmp_path, sandbox, journal_url, texts)
    stage.clock.now = last + HOUR
    billed = [
        stage.billed(put(sandbox, n, start.isoformat(), end.isoformat()))
        for n, (start, end) in enumerate(pairwise(edges))
    ]
    assert [period.end - period.start for _, period in billed] == [DAY, length, DAY]
    assert [quantity for quantity, _ in billed] == [48, length / HOUR * 2, 48]
    assert set(sandbox.control.record().issues.values()) == {1}


@pytest.mark.parametrize(
    ("start", "days"),
    [
        ("2024-01-31", [29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 28, 31]),
        ("2023-01-31", [28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29, 31]),
        ("2024-02-29", [29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 30, 29, 31]),
    ],
)
def test_months_of_every_length_are_billed_without_gap_or_overlap(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, start: str, days: list[int]
) -> None:
    """A subscription that began on the last of a month is billed each day once, leap days too."""
    began_at = datetime.fromisoformat(f"{start}T00:00:00+00:00")
    every_day = [utc_text(began_at + n * DAY) for n in range(sum(days) + 10)]
    stage = stage_on(tmp_path, sandbox, journal_url, every_day)
    stage.clock.now = began_at + (sum(days) + 20) * DAY
    plan = sandbox.control.put_plan(
        name="Basic", components=[{"name": TEXT, "chargeType": "usage", "price": TEXTS}]
    )
    account = sandbox.control.put_account()
    sandbox.control.put_subscription(
        id=SUB, accountID=account["id"], productRatePlanID=plan["id"], start=utc_text(began_at)
    )
    with Caller(sandbox.base_url, sandbox.token) as api:
        answer = api.post(f"subscriptions/{SUB}/advance", {"periods": len(days)})
    billed = [stage.billed(invoice_id) for invoice_id in answer.results[0]["invoices"]]
    assert [quantity for quantity, _ in billed] == days
    assert billed[0][1].start == began_at
    assert all(one.end == other.start for (_, one), (_, other) in pairwise(billed))


zones = st.sampled_from(
    [
        *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "UTC"),
        *("America/Havana", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia"),
    ]
)
instants = st.datetimes(
    min_value=datetime(1990, 1, 1),  # noqa: DTZ001  hypothesis adds the zone
    max_value=datetime(2089, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@given(moment=instants, zone=zones, other=zones)
def test_writing_a_moment_in_any_zone_keeps_the_instant(
    moment: datetime, zone: str, other: str
) -> None:
    """Through whichever zones a moment is written, folded hours too, it stays where it was."""
    local = moment.astimezone(ZoneInfo(zone))
    assert utc(local) == moment
    assert datetime.fromisoformat(local.isoformat()) == moment
    assert utc_text(local.astimezone(ZoneInfo(other))) == utc_text(moment)
    step = timedelta(microseconds=1)
    assert local in Period(moment, moment + step)
    assert local not in Period(moment - step, moment)
    assert Period(local, local + DAY).start == moment


@given(moment=instants, zone=zones)
def test_local_days_partition_time_in_every_zone(moment: datetime, zone: str) -> None:
    """A moment is in one of the days about it, also where midnight is skipped or comes twice."""
    day = moment.astimezone(ZoneInfo(zone)).date()
    edges = [midnight(day + n * DAY, zone) for n in range(-2, 4)]
    days = [Period(start, end) for start, end in pairwise(edges)]
    assert sum(moment in one for one in days) == 1
    assert sum((one.end - one.start for one in days), timedelta(0)) == utc(edges[-1]) - utc(
        edges[0]
    )
    assert not any(one.overlaps(other) for one, other in pairwise(days))


def test_the_hour_that_comes_twice_is_an_hour() -> None:
    """Python compares two times of one zone by the wall; a period compares instants."""
    first = datetime(2026, 10, 25, 2, 15, tzinfo=ZoneInfo("Europe/Berlin"))
    second = first.replace(fold=1)
    assert first == second
    period = Period(first, second)
    assert period.end - period.start == HOUR
    assert first in period
    assert second not in period


NAIVE, ZONED = "2015-11-02T12:18:51", "2015-12-02T12:18:51+00:00"


@pytest.mark.parametrize("bounds", [(NAIVE, ZONED), (NAIVE[:10], ZONED), ("2015-11-01Z", NAIVE)])
def test_a_period_without_a_zone_holds_the_invoice(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, bounds: tuple[str, str]
) -> None:
    """A platform that writes a bound without a zone gets no bill by a guessed one."""
    stage = stage_on(tmp_path, sandbox, journal_url, [utc_text(START)])
    history = stage.settled(stage.deliver(put(sandbox, 1, *bounds)))
    assert history.row.state is State.HELD
    assert "has no time zone" in history.row.reason or "not a moment" in history.row.reason
    assert sandbox.control.record().sent("POST") == []


@pytest.mark.parametrize("component", [TEXT, "Exported"], ids=["sql", "csv"])
def test_usage_without_a_zone_holds_the_invoice(
    tmp_path: Path, sandbox: RunningSandbox, journal_url: str, component: str
) -> None:
    """An event whose time names no instant is neither counted nor left out: a person looks."""
    stage = stage_on(tmp_path, sandbox, journal_url, [utc_text(START), "2015-11-03T00:00:00"])
    invoice_id = put(sandbox, 1, utc_text(START), utc_text(END), pricingComponentName=component)
    history = stage.settled(stage.deliver(invoice_id))
    assert history.row.state is State.HELD
    assert "has no zone" in history.row.reason
    assert sandbox.control.record().sent("POST") == []


@pytest.mark.parametrize("setting", ["grace_seconds", "max_attempts", "lease_seconds"])
def test_a_moment_is_no_setting(setting: str) -> None:
    """TOML can write moments; where a number is wanted one is a complaint with the key's name."""
    moment = datetime(2026, 1, 1)  # noqa: DTZ001  as TOML reads it without a zone
    with pytest.raises(ConfigError) as refused:
        config_of({"platforms": {}, "rules": {setting: moment}}, {})
    assert any(one.startswith(f"rules.{setting}: ") for one in refused.value.complaints)


@pytest.mark.parametrize("name", ["period", "membership", "text", "delivery", "due", "claim"])
def test_no_entrance_of_the_core_takes_a_moment_without_a_zone(tmp_path: Path, name: str) -> None:
    """Whoever hands over a zoneless moment is told so; nobody's local time is guessed."""
    journal, naive = SqliteJournal(tmp_path / "journal.db"), NOW.replace(tzinfo=None)
    entrances: dict[str, Callable[[], object]] = {
        "period": lambda: Period(naive, END),
        "membership": lambda: naive in Period(START, END),
        "text": lambda: utc_text(naive),
        "delivery": lambda: journal.record_delivery(delivery(), naive),
        "due": lambda: journal.due(naive),
        "claim": lambda: journal.claim(KEY, "one", naive, HOUR),
    }
    with pytest.raises(ValueError, match="no time zone"):
        entrances[name]()
    assert journal.invoices() == []
    journal.close()
