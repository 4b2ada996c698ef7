"""The OpenMeter source: the contract over both of its APIs, and every refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import TypeAdapter, ValidationError
from usage_server import Asked, MeterLike, Reply, Serving, nobody, serving

from usage_sources.contract import JUNE, MAY, MIDNIGHT, UsageEvent, UsageSourceContract
from usage_sources.contract import event as used
from usage_sources.contract import query as asking
from usage_sources.openmeter import OpenMeterSource
from usage_sources.openmeter.api import FirstApi, Meter, MeterApi, Question, ThirdApi
from usage_sources.web import Credentials, Deadline, WebApi
from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable

TOKEN = "s3cret-t0ken"
SECOND = timedelta(seconds=1)
LEFT_OUT = "OpenMeter leaves out an event whose value is not a number."
both = pytest.mark.parametrize("api", ["v1", "v3"])

Version = Literal["v1", "v3"]


@pytest.fixture(name="like")
def _like() -> MeterLike:
    return MeterLike()


@pytest.fixture(name="server")
def _server(like: MeterLike) -> Iterator[Serving]:
    with serving(like) as running:
        yield running


@pytest.fixture(name="source")
def _source(server: Serving) -> Iterator[Callable[..., OpenMeterSource]]:
    made: list[OpenMeterSource] = []

    def make(**settings: Any) -> OpenMeterSource:
        made.append(OpenMeterSource(**{"base_url": server.url, "token": TOKEN, **settings}))
        return made[-1]

    yield make
    for each in made:
        each.close()


class MeterContract(UsageSourceContract):
    """What the four runs of the suite share."""

    api: ClassVar[Version]
    aggregation: ClassVar[str]
    resolution = SECOND
    exact = True

    @pytest.fixture(autouse=True)
    def _served(self, like: MeterLike, server: Serving) -> None:
        self.like, self.server = like, server
        like.aggregation = self.aggregation

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> OpenMeterSource:
        """Give the events to the server; each metric in them is a meter."""
        self.like.events = list(events)
        return OpenMeterSource(
            base_url=self.server.url, token=TOKEN, api=self.api, exact_values=self.exact
        )

    def source_down(self, tmp_path: Path) -> OpenMeterSource:
        """Ask where nobody listens."""
        return OpenMeterSource(base_url=nobody(), token=TOKEN, api=self.api)

    def source_slow(self, tmp_path: Path) -> OpenMeterSource:
        """Ask a server that does not answer."""
        self.server.answering = self.server.hang
        return OpenMeterSource(
            base_url=self.server.url, token=TOKEN, api=self.api, timeout_seconds=1
        )


class CountContract(MeterContract):
    """Meters that count."""

    aggregation = "count"
    aggregations = frozenset({Aggregation.COUNT})


class SumContract(MeterContract):
    """Meters that add."""

    aggregation = "sum"
    aggregations = frozenset({Aggregation.SUM})

    def test_an_event_without_a_quantity_is_refused(self, tmp_path: Path) -> None:
        """OpenMeter leaves it out and cannot say so; the evidence does."""
        stored = [used(MIDNIGHT), used(MIDNIGHT, quantity=None)]
        tally = self.tally(tmp_path, stored, asking(aggregation=Aggregation.SUM))
        assert tally.value == 1
        assert LEFT_OUT in tally.evidence.notes


class TestFirstApiCounts(CountContract):
    """JSON numbers."""

    api = "v1"


class TestThirdApiCounts(CountContract):
    """Decimal text."""

    api = "v3"


class TestFirstApiAdds(SumContract):
    """JSON numbers, which are floats on the other side."""

    api = "v1"
    exact = False

    def test_large_quantities_keep_every_digit(self, tmp_path: Path) -> None:
        """What a float may have lost digits of is refused."""
        stored = [used(MIDNIGHT, quantity=Decimal(10**18)), used(MIDNIGHT)]
        with pytest.raises(SourceInvalid, match="is 2\\^53 or more"):
            self.tally(tmp_path, stored, asking(aggregation=Aggregation.SUM))


class TestThirdApiAdds(SumContract):
    """Decimal text, from an OpenMeter that keeps decimals."""

    api = "v3"


@both
class TestCounting:
    """What is asked, and what comes of it."""

    @pytest.mark.parametrize(
        ("word", "aggregation", "value"),
        [
            ("count", Aggregation.COUNT, 4),
            ("sum", Aggregation.SUM, Decimal("14.5")),
            ("max", Aggregation.MAX, Decimal("9.5")),
            ("latest", Aggregation.LAST, -2),
            ("unique_count", Aggregation.UNIQUE, 3),
        ],
    )
    def test_a_meter_aggregates_in_one_way(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        word: str,
        aggregation: Aggregation,
        value: object,
    ) -> None:
        """The component's aggregation must be the meter's; any other is refused."""
        hours = [(0, "3", "ann"), (3, "-2", "bob"), (1, "9.5", "ann"), (2, "4", "Ann")]
        like.aggregation = word
        like.events = [
            used(MIDNIGHT + timedelta(hours=at), quantity=Decimal(quantity), unique=unique)
            for at, quantity, unique in hours
        ]
        for each in Aggregation:
            if each is aggregation:
                assert one(source(api=api), asking(aggregation=each)).value == value
            else:
                with pytest.raises(SourceInvalid, match=f"aggregates by {word}, not {each}"):
                    one(source(api=api), asking(aggregation=each))

    @pytest.mark.parametrize("word", ["avg", "min", "median", ""])
    def test_a_strange_aggregation_is_refused(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version, word: str
    ) -> None:
        """A meter that averages answers no component."""
        like.events, like.aggregation = [used(MIDNIGHT)], word
        for each in Aggregation:
            with pytest.raises(SourceInvalid, match=f"aggregates by {word}, not"):
                one(source(api=api), asking(aggregation=each))

    @pytest.mark.parametrize(("word", "each"), [("max", "max"), ("latest", "last")])
    def test_no_maximum_of_nothing(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        word: str,
        each: str,
    ) -> None:
        """A known subject without events has no maximum and no last value, and not 0."""
        like.events, like.aggregation = [used(JUNE.start)], word
        with pytest.raises(SourceInvalid, match=f"no value in the period, so there is no {each}"):
            one(source(api=api), asking(aggregation=Aggregation(each)))

    def test_one_request_for_many_subjects(
        self,
        like: MeterLike,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        api: Version,
    ) -> None:
        """Charges that differ in the subject share a query, and meters are asked for once."""
        like.page_size = 100
        names = [f"S-{number}" for number in range(150)]
        like.events = [used(MIDNIGHT, subject=name) for name in names]
        asked = [asking(name, subject=name) for name in names] + [asking("again", subject="S-0")]
        tallies = source(api=api).count(asked)
        assert sorted(each.query.charge_id for each in tallies) == sorted([*names, "again"])
        assert {each.value for each in tallies} == {Decimal(1)}
        assert len(server.asked) == 3  # the meter, 100 subjects, 50 subjects

    def test_a_total_is_asked_for_without_a_window(
        self,
        like: MeterLike,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        api: Version,
    ) -> None:
        """Windows would be cut at the edges; the period is asked for as it is, in UTC."""
        like.events = [used(MIDNIGHT, region="us")]
        tally = one(source(api=api), asking(filters=(("region", "eu & us"),)))
        question = {
            "v1": f"GET {server.url}/api/v1/meters/calls/query?from=2024-05-01T00%3A00%3A00Z"
            "&to=2024-06-01T00%3A00%3A00Z&subject=S-1&groupBy=subject"
            "&filterGroupBy%5Bregion%5D=eu%20%26%20us",
            "v3": f"POST {server.url}/api/v3/openmeter/meters/METER000/query\n"
            '{"from": "2024-05-01T00:00:00Z", "to": "2024-06-01T00:00:00Z",'
            ' "group_by_dimensions": ["subject"], "filters": {"dimensions":'
            ' {"subject": {"in": ["S-1"]}, "region": {"eq": "eu & us"}}}}',
        }[api]
        evidence = tally.evidence
        assert evidence.query == question
        assert question.split("\n")[0].removeprefix("GET ").removeprefix("POST ") in {
            server.url + each.target for each in server.asked
        }
        assert evidence.source == f"openmeter {server.url}"
        assert evidence.parameters == {
            "subject": "S-1",
            "metric": "calls",
            "aggregation": "count",
            "start": "2024-05-01T00:00:00Z",
            "end": "2024-06-01T00:00:00Z",
            "filters": {"region": "eu & us"},
        }
        assert evidence.notes == ("OpenMeter computed it with 64-bit floats.",)
        assert TOKEN not in repr((tally, source(api=api)))

    def test_an_empty_period_is_not_asked_for(
        self,
        like: MeterLike,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        api: Version,
    ) -> None:
        """OpenMeter refuses one; it holds nothing, if meter and subject are there."""
        like.events, nothing = [used(MIDNIGHT)], Period(MIDNIGHT, MIDNIGHT)
        known = one(source(api=api), asking(period=nothing))
        assert known.value == 0
        assert "was not asked" in known.evidence.notes[0]
        assert one(source(api=api), asking(period=nothing, subject="nobody")).value is None

    def test_usage_at_any_time_makes_a_subject_known(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """Where nobody keeps a list of subjects, an older or newer event proves one."""
        like.subjects, like.events = False, [used(JUNE.start), used(MIDNIGHT, metric="pages")]
        assert one(source(api=api), asking()).value == 0
        assert one(source(api=api), asking(subject="nobody")).value is None
        like.events = [used(JUNE.start, subject="S-2"), used(MIDNIGHT, metric="pages")]
        assert one(source(api=api), asking()).value is None

    @pytest.mark.parametrize("name", ["", ".", "..", "../subjects"])
    def test_no_name_leads_elsewhere(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version, name: str
    ) -> None:
        """A subject or metric that would change the address is nobody's, or refused."""
        like.events = [used(MIDNIGHT)]
        with pytest.raises(SourceInvalid, match=r"is no meter|cannot stand in the path"):
            one(source(api=api), asking(metric=name))
        assert one(source(api=api), asking(subject=name)).value is None

    @pytest.mark.parametrize("edge", ["start", "end"])
    def test_a_fraction_of_a_second_is_refused(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        edge: str,
    ) -> None:
        """OpenMeter would cut it off and count other events."""
        like.events = [used(MIDNIGHT)]
        bounds = {"start": MAY.start, "end": MAY.end}
        bounds[edge] += timedelta(microseconds=1)
        with pytest.raises(SourceInvalid, match="counts whole seconds"):
            one(source(api=api), asking(period=Period(**bounds)))

    def test_a_filter_is_a_dimension(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """What the meter does not keep apart is refused, naming what it does; once each."""
        like.events = [used(MIDNIGHT)]
        like.meter = {
            name: {"region": "$.region", "subject": "$.owner"} for name in ("groupBy", "dimensions")
        }
        for filters in [(("subject", "S-2"),), (("region", "eu"), ("region", "us"))]:
            with pytest.raises(SourceInvalid, match="its dimensions are 'region'"):
                one(source(api=api), asking(filters=filters))
        with pytest.raises(SourceInvalid, match="by an empty 'region'"):
            one(source(api=api), asking(filters=(("region", ""),)))

    def test_what_a_float_may_have_changed_is_refused(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """From 2^53 on a value is taken only from an OpenMeter that is said to be exact."""
        like.aggregation = "sum"
        added = asking(aggregation=Aggregation.SUM)
        for sign in (1, -1):
            like.events = [used(MIDNIGHT, quantity=Decimal(sign * (2**53 - 1)))]
            assert one(source(api=api), added).value == sign * (2**53 - 1)
            like.events = [used(MIDNIGHT, quantity=Decimal(sign * 2**53))]
            with pytest.raises(SourceInvalid, match="set exact_values"):
                one(source(api=api), added)
            assert one(source(api=api, exact_values=True), added).value == sign * 2**53

    def test_the_timeout_is_of_the_whole_count(
        self,
        like: MeterLike,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        api: Version,
    ) -> None:
        """Requests that are answered in time one by one may yet be too late together."""

        def slowly(asked: Asked) -> Reply:
            server.closing.wait(0.4)
            return like(asked)

        like.events, server.answering = [used(JUNE.start)], slowly
        with pytest.raises(SourceUnavailable, match="no answer within 1 s"):
            source(api=api, timeout_seconds=1).count([asking(subject="nobody")])

    def test_the_watermark_lags(self, like: MeterLike, server: Serving, api: Version) -> None:
        """With a lag, everything older is in; without one it is unsaid."""
        now = datetime(2024, 7, 1, tzinfo=UTC)

        class Frozen(OpenMeterSource):
            @staticmethod
            def now() -> datetime:
                return now

        like.events = [used(MIDNIGHT)]
        for lag, moment in [(None, None), (60, now - timedelta(minutes=1))]:
            source = Frozen(base_url=server.url, token=TOKEN, api=api, watermark_lag_seconds=lag)
            assert source.watermark() == moment
            assert one(source, asking()).evidence.watermark == moment
            source.close()


@both
class TestAnswers:
    """An answer that is not to the question is no count."""

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"data": None}, "has no list of rows in data"),
            ({"data": {}}, "has no list of rows in data"),
            ({"data": [1]}, r"data\[0\] is not an object"),
            ({"data": [{"value": 1}]}, r"data\[0\] is of NULL, whom nobody asked for"),
            ({"from": "2024-05-01T00:00:01Z"}, "about from '2024-05-01T00:00:01Z', not 2024-05-01"),
            ({"to": "2024-06-01T00:01:00Z"}, "about to '2024-06-01T00:01:00Z', not 2024-06-01"),
            ({"to": None}, "about to NULL"),
            ({"from": 5}, "about from 5"),
            ({"windowSize": "DAY"}, "in windows, not one total"),
        ],
    )
    def test_another_answer_is_refused(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        changed: dict[str, Any],
        told: str,
    ) -> None:
        """Rows of the wrong shape, and answers about another time."""
        like.events, like.answer = [used(MIDNIGHT)], changed
        with pytest.raises(SourceInvalid, match=told):
            one(source(api=api), asking())

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            ([("S-2", 1)], "is of 'S-2', whom nobody asked for"),
            ([("s-1", 1)], "is of 's-1', whom nobody asked for"),
            ([("S-1", 1), ("S-1", 2)], r"data\[1\] is the second one of 'S-1'"),
            ([("S-1", None)], r"data\[0\].value: NULL is not a number"),
            ([("S-1", "")], "is not a number"),
            ([("S-1", True)], "is not a number"),
            ([("S-1", [1])], "is not a number"),
            ([("S-1", "NaN")], "is not a finite number"),
            ([("S-1", "1e999")], "more than 60 digits"),
        ],
    )
    def test_a_wrong_row_is_refused(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        rows: list[tuple[str, object]],
        told: str,
    ) -> None:
        """A row of somebody else, a second row, and a value that is no number."""
        like.events = [used(MIDNIGHT)]
        like.answer = {
            "data": [
                {"subject": subject, "dimensions": {"subject": subject}, "value": value}
                for subject, value in rows
            ]
        }
        with pytest.raises(SourceInvalid, match=told):
            one(source(api=api), asking())

    def test_text_keeps_every_digit(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """Decimal text is read as it stands."""
        row = {"subject": "S-1", "dimensions": {"subject": "S-1"}}
        like.events, like.answer = [used(MIDNIGHT)], {"data": [{**row, "value": "0.30000000001"}]}
        assert one(source(api=api), asking()).value == Decimal("0.30000000001")

    @pytest.mark.parametrize(
        ("first", "third", "told"),
        [
            ({"deletedAt": "2024-01-01T00:00:00Z"}, "deleted_at", "was deleted at '2024-01-01"),
            ({"eventFrom": "2024-05-01T00:00:01Z"}, "events_from", "leaves out what is older"),
            ({"eventFrom": "yesterday"}, "events_from", "'yesterday' is no moment"),
            ({"aggregation": None}, "aggregation", "no id or no aggregation"),
            ({"id": None}, "id", "no id or no aggregation"),
            ({"groupBy": ["region"]}, "dimensions", "groups by is not an object"),
        ],
    )
    def test_a_meter_that_cannot_count_is_refused(
        self,
        like: MeterLike,
        source: Callable[..., OpenMeterSource],
        api: Version,
        first: dict[str, Any],
        third: str,
        told: str,
    ) -> None:
        """A deleted meter, one that begins inside the period, and a definition of no use."""
        like.events = [used(MIDNIGHT)]
        like.meter = first if api == "v1" else dict.fromkeys([third], *first.values())
        with pytest.raises(SourceInvalid, match=told):
            one(source(api=api), asking())

    def test_a_meter_that_begins_with_the_period_counts(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """Nothing of the period is left out."""
        like.events = [used(MIDNIGHT)]
        like.meter = {{"v1": "eventFrom", "v3": "events_from"}[api]: "2024-05-01T00:00:00Z"}
        assert one(source(api=api), asking()).value == 1

    def test_an_id_is_no_name(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """OpenMeter takes ids for keys; an id that happens to match makes nobody known."""
        like.events = [used(JUNE.start)]
        assert one(source(api=api), asking(subject="id-of-S-1")).value is None
        like.meter = {"slug": "other", "key": "other"}
        with pytest.raises(SourceInvalid, match="there is no meter 'calls'"):
            one(source(api=api), asking())

    def test_a_refused_token_is_told(
        self, like: MeterLike, source: Callable[..., OpenMeterSource], api: Version
    ) -> None:
        """Neither counting nor checking goes on, and the token is not told."""
        like.events = [used(MIDNIGHT)]
        wrong = source(api=api, token="wr0ng", name="metering")
        told = "refused our credentials; put the right one into RECONCILER__.*__METERING__TOKEN$"
        for ask in (wrong.check, lambda: one(wrong, asking())):
            with pytest.raises(SourceUnavailable, match=told) as caught:
                ask()
            assert "wr0ng" not in str(caught.value)
        source(api=api).check()

    def test_a_failure_is_never_a_count(
        self,
        like: MeterLike,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        api: Version,
    ) -> None:
        """Whichever of the requests fails, and however, there is no tally."""
        like.events = [used(JUNE.start)]
        one(source(api=api), asking(subject="nobody"))
        steps = len(server.asked)
        assert steps >= 4
        for status, error in [(503, SourceUnavailable), (400, SourceInvalid)]:
            for failing in range(steps):
                server.asked.clear()

                def answering(asked: Any, failing: int = failing, status: int = status) -> Reply:
                    return Reply({}, status) if len(server.asked) == failing + 1 else like(asked)

                server.answering = answering
                with pytest.raises(error):
                    one(source(api=api), asking(subject="nobody"))


@pytest.mark.parametrize("kind", [FirstApi, ThirdApi])
def test_every_request_keeps_the_deadline(
    server: Serving, kind: Callable[[WebApi], MeterApi]
) -> None:
    """Once a count's time is up, none of its requests is sent, whichever comes next."""
    web = WebApi(
        server.url, kind="openmeter", timeout_seconds=60, credentials=Credentials(headers={})
    )
    api, over = kind(web), Deadline(0)
    meter = Meter(id="M", name="calls", aggregation="count", columns=frozenset(), since=None)
    for ask in (
        lambda: api.check(over),
        lambda: api.meter("calls", over),
        lambda: api.totals(meter, Question(subjects=("S-1",), period=MAY), over),
        lambda: api.lists("S-1", over),
    ):
        with pytest.raises(SourceUnavailable, match="no answer within 0 s"):
            ask()
    web.close()
    assert server.asked == []


class TestLists:
    """The third API looks names up in lists."""

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            ([], "is not a list of objects in data"),
            ({"data": None}, "is not a list of objects in data"),
            ({"data": ["calls"]}, "is not a list of objects in data"),
            ({"data": [{"key": "other"}]}, "does not say in meta.page.total"),
            ({"data": [{"key": "other"}], "meta": {"page": {"total": "1"}}}, "does not say"),
        ],
    )
    def test_a_strange_list_is_refused(
        self,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        answer: object,
        told: str,
    ) -> None:
        """Who is not on a list that cannot be read is not thereby unknown."""
        server.answering = lambda _: Reply(answer)
        with pytest.raises(SourceInvalid, match=told):
            one(source(api="v3"), asking())

    def test_an_endless_list_is_refused(
        self,
        server: Serving,
        source: Callable[..., OpenMeterSource],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A list that never ends is given up."""
        monkeypatch.setattr("usage_sources.openmeter.api._MOST_PAGES", 5)
        endless = {"data": [{"key": "other"}], "meta": {"page": {"total": 10**9}}}
        server.answering = lambda _: Reply(endless)
        with pytest.raises(SourceInvalid, match="more than 5 pages"):
            one(source(api="v3"), asking())
        assert len(server.asked) == 5


class TestSettings:
    """What is wrong is said before anything is asked."""

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"base_url": "openmeter.example"}, "base_url must be"),
            ({"base_url": "https://me:pw@openmeter.example"}, "base_url must be"),
            ({"token": "a\nb"}, "token may hold"),
            ({"api": "v2"}, "api"),
            ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be"),
            ({"watermark_lag_seconds": float("nan")}, "watermark_lag_seconds must be"),
            ({"timeout_seconds": 0}, "timeout_seconds must be"),
            ({"timeout_seconds": float("inf")}, "timeout_seconds must be"),
            ({"ca_file": "/nowhere.pem"}, "ca_file: there is no file"),
        ],
    )
    def test_a_wrong_setting_is_named(self, changed: dict[str, Any], told: str) -> None:
        """Each complaint begins with the setting."""
        settings = {"base_url": "https://openmeter.example", **changed}
        with pytest.raises(ValidationError, match=told):
            TypeAdapter(OpenMeterSource).validate_python(settings)

    def test_no_token_is_no_header(
        self, like: MeterLike, server: Serving, source: Callable[..., OpenMeterSource]
    ) -> None:
        """An OpenMeter without keys is asked without one."""
        with pytest.raises(SourceUnavailable, match="credentials"):
            source(token="").check()
        assert "Authorization" not in server.asked[0].headers


def one(source: OpenMeterSource, query: UsageQuery) -> Tally:
    """Ask one query, twice over, for a source must answer alike."""
    first, again = source.count([query])[0], source.count([query])[0]
    assert replace(first, evidence=again.evidence) == again
    return again
