"""The source for any JSON API: the contract over totals and pages, and every refusal."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter, ValidationError
from usage_server import Asked, PlainApi, Reply, Serving, from_milliseconds, nobody, serving

from usage_sources.contract import JUNE, MAY, MIDNIGHT, UsageEvent, UsageSourceContract
from usage_sources.contract import event as used
from usage_sources.contract import query as asking
from usage_sources.http_api import HttpSource
from worker.domain import Aggregation, Period, Tally, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable
from worker.plugins import settings_of

TOTALS: dict[str, Any] = {
    "path": "/usage/{metric}/of/{subject}",
    "query": {"since": "{start}", "until": "{end}"},
    "filter_parameters": {"region": "where"},
    "value_path": "result.total",
    "events_path": "$.result['events']",
    "unknown_subject_statuses": [404],
    "aggregations": ["count"],
}
PAGES: dict[str, Any] = {
    "path": "/events",
    "query": {
        "subject": "{subject}",
        "metric": "{metric}",
        "since": "{start}",
        "until": "{end}",
    },
    "filter_parameters": {"region": "where"},
    "items_path": "items",
    "item_value_path": "quantity",
    "next_path": "next",
    "known_subject_path": "/tenants/{subject}",
    "aggregations": ["count", "sum"],
}
MILLISECOND = timedelta(milliseconds=1)


def made(base_url: str, shape: dict[str, Any], **changed: Any) -> HttpSource:
    """Make a source as the configuration does; a setting that is ... is left out."""
    settings = {"base_url": base_url, **shape, **changed}
    kept = {name: value for name, value in settings.items() if value is not ...}
    source: HttpSource = TypeAdapter(HttpSource).validate_python(kept)
    return source


@pytest.fixture(name="plain")
def _plain() -> PlainApi:
    return PlainApi()


@pytest.fixture(name="server")
def _server(plain: PlainApi) -> Iterator[Serving]:
    with serving(plain) as running:
        yield running


@pytest.fixture(name="source")
def _source(server: Serving) -> Iterator[Callable[..., HttpSource]]:
    sources: list[HttpSource] = []

    def make(shape: dict[str, Any] = TOTALS, **changed: Any) -> HttpSource:
        sources.append(made(server.url, shape, **changed))
        return sources[-1]

    yield make
    for each in sources:
        each.close()


class HttpContract(UsageSourceContract):
    """What the runs of the suite share."""

    shape: ClassVar[dict[str, Any]]
    knows_metrics = False

    @pytest.fixture(autouse=True)
    def _served(self, plain: PlainApi, server: Serving) -> None:
        self.plain, self.server = plain, server

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> HttpSource:
        """Give the events to the server."""
        self.plain.events = list(events)
        return made(self.server.url, self.shape)

    def source_down(self, tmp_path: Path) -> HttpSource:
        """Ask where nobody listens."""
        return made(nobody(), self.shape)

    def source_slow(self, tmp_path: Path) -> HttpSource:
        """Ask a server that does not answer."""
        self.server.answering = self.server.hang
        return made(self.server.url, self.shape, timeout_seconds=1)


class TestTotalsThatCount(HttpContract):
    """A number of events, of an API that says 404 of whom it does not know."""

    shape = TOTALS
    aggregations = frozenset({Aggregation.COUNT})


class TestTotalsThatAdd(HttpContract):
    """A sum, times in milliseconds, of an API that answers 0 for anybody."""

    shape: ClassVar[dict[str, Any]] = {
        **{k: v for k, v in TOTALS.items() if k != "unknown_subject_statuses"},
        "aggregations": ["sum"],
        "known_subject_path": "/tenants/{subject}",
        "time_format": "epoch_milliseconds",
    }
    aggregations = frozenset({Aggregation.SUM})
    resolution = MILLISECOND

    @pytest.fixture(autouse=True)
    def _adding(self, plain: PlainApi) -> None:
        plain.aggregation, plain.read, plain.unknown = "sum", from_milliseconds, None


class TestPagesByLink(HttpContract):
    """Events on pages of two, each with a link to the next."""

    shape: ClassVar[dict[str, Any]] = {**PAGES, "unknown_subject_statuses": [404]}
    aggregations = frozenset({Aggregation.COUNT, Aggregation.SUM})


class TestPagesByCursor(HttpContract):
    """Events on pages of two, each with a cursor."""

    shape: ClassVar[dict[str, Any]] = {
        **PAGES,
        "next_path": "cursor",
        "cursor_parameter": "after",
    }
    aggregations = frozenset({Aggregation.COUNT, Aggregation.SUM})

    @pytest.fixture(autouse=True)
    def _forgiving(self, plain: PlainApi) -> None:
        plain.unknown = None


class TestAsking:
    """What is sent."""

    def test_the_address_is_evidence(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Anybody with the credentials can send the request again; no secret stands in it."""
        plain.events = [used(MIDNIGHT, region="e&u")]
        asking_it = source(token="s3cr3t-t0ken")
        tally = one(asking_it, asking(filters=(("region", "e&u"),)))
        url = (
            f"{server.url}/usage/calls/of/S-1?since=2024-05-01T00%3A00%3A00Z"
            "&until=2024-06-01T00%3A00%3A00Z&where=e%26u"
        )
        assert tally.evidence.query == f"GET {url}"
        assert server.url + server.asked[0].target == url
        assert tally.evidence.source == f"http {server.url}"
        assert tally.evidence.parameters == {
            "subject": "S-1",
            "metric": "calls",
            "component": "calls",
            "aggregation": "count",
            "start": "2024-05-01T00:00:00Z",
            "end": "2024-06-01T00:00:00Z",
            "filters": {"region": "e&u"},
            "value_path": "result.total",
        }
        assert tally.value == 1
        assert tally.events == 1
        assert tally.evidence.notes == ()
        assert server.asked[0].headers["Authorization"] == "Bearer s3cr3t-t0ken"
        assert "s3cr3t" not in repr((tally, asking_it))

    @pytest.mark.parametrize(
        ("changed", "header", "value"),
        [
            ({"token": "abc"}, "Authorization", "Bearer abc"),
            ({"token": "abc", "auth_prefix": "Token"}, "Authorization", "Token abc"),
            ({"token": "abc", "auth_header": "X-Api-Key", "auth_prefix": ""}, "X-Api-Key", "abc"),
            (
                {"username": "me", "password": "pä:ss"},
                "Authorization",
                "Basic " + base64.b64encode("me:pä:ss".encode()).decode(),
            ),
            ({}, "Authorization", None),
        ],
    )
    def test_who_asks_is_proved(
        self,
        server: Serving,
        source: Callable[..., HttpSource],
        changed: dict[str, Any],
        header: str,
        value: str | None,
    ) -> None:
        """A token in a header of choice, a user with a password, or nothing."""
        source(**changed).check()
        assert server.asked[0].headers.get(header) == value

    def test_an_echoed_password_is_not_told(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Neither as it is nor as Basic authentication sends it."""
        server.answering = lambda asked: Reply(
            {"got": asked.headers["Authorization"], "password": "p4ssword"}, 400
        )
        with pytest.raises(SourceInvalid, match=r"Basic \*\*\*") as caught:
            one(source(username="me", password="p4ssword"), asking())
        assert "p4ssword" not in str(caught.value)

    @pytest.mark.parametrize(
        ("time_format", "start", "until"),
        [
            ("iso", MIDNIGHT + timedelta(microseconds=1), "2024-05-01T00:00:00.000001Z"),
            ("epoch_milliseconds", MIDNIGHT + MILLISECOND, "1714521600001"),
            ("epoch_seconds", MIDNIGHT, "1714521600"),
        ],
    )
    def test_times_are_written_whole(
        self,
        server: Serving,
        source: Callable[..., HttpSource],
        time_format: str,
        start: datetime,
        until: str,
    ) -> None:
        """A moment is sent as it is, to the last digit."""
        server.answering = lambda _: Reply({"result": {"total": 7, "events": 7}})
        one(source(time_format=time_format), asking(period=Period(start, MAY.end)))
        assert server.asked[0].first("since") == until

    @pytest.mark.parametrize("edge", ["start", "end"])
    @pytest.mark.parametrize(
        ("time_format", "rest"),
        [
            ("epoch_milliseconds", timedelta(microseconds=1)),
            ("epoch_seconds", MILLISECOND),
            ("epoch_seconds", timedelta(microseconds=999_999)),
        ],
    )
    def test_a_time_that_cannot_be_written_is_refused(
        self,
        server: Serving,
        source: Callable[..., HttpSource],
        edge: str,
        time_format: str,
        rest: timedelta,
    ) -> None:
        """A period that the format would change is not asked for."""
        bounds = {"start": MAY.start, "end": MAY.end}
        bounds[edge] += rest
        with pytest.raises(SourceInvalid, match=f"cannot be written as whole {time_format}"):
            one(source(time_format=time_format), asking(period=Period(**bounds)))
        assert server.asked == []

    @pytest.mark.parametrize("name", ["", ".", "..", "\ud800"])
    def test_no_name_leads_elsewhere(
        self, server: Serving, source: Callable[..., HttpSource], name: str
    ) -> None:
        """A name that would change the path is refused before anything is sent."""
        for asked in (asking(subject=name), asking(metric=name)):
            with pytest.raises(SourceInvalid, match=r"cannot stand|not Unicode"):
                one(source(), asked)
        with pytest.raises(SourceInvalid, match=r"would lead elsewhere|cannot stand|not Unicode"):
            one(source(path="/usage/.{subject}"), asking(subject="." if name != "\ud800" else name))
        with pytest.raises(SourceInvalid, match="not Unicode"):
            one(source(PAGES), asking(subject="\ud800"))
        assert server.asked == []

    @pytest.mark.parametrize("name", ["../../tenants", "a/b", "a?b=c#d", "{end}", "{0}", "%2e%2e"])
    def test_a_name_is_one_segment(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource], name: str
    ) -> None:
        """Slashes, braces and percent signs in a name stay in it."""
        plain.events = [used(MIDNIGHT, subject=name, metric=name)]
        assert one(source(), asking(subject=name, metric=name)).value == 1
        assert server.asked[0].path == ["usage", name, "of", name]

    def test_the_component_can_be_sent(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Every placeholder is filled, braces can be written, and a name is not filled twice."""
        server.answering = lambda _: Reply({"result": {"total": 7, "events": 7}})
        changed = {"query": {"q": "{{{component}}}-{metric}-{start}-{end}"}}
        one(source(**changed), asking(metric="{end}", period=Period(MIDNIGHT, MIDNIGHT)))
        times = "2024-05-01T00:00:00Z-2024-05-01T00:00:00Z"
        assert server.asked[0].first("q") == "{{end}}-{end}-" + times

    def test_metrics_that_cannot_be_told_apart_are_refused(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """An API that is not told the metric answers for one only."""
        only = source(path="/usage/calls/of/{subject}")
        asked = [asking("1"), asking("2", metric="pages")]
        with pytest.raises(SourceInvalid, match="cannot tell the metrics 'calls', 'pages' apart"):
            only.count(asked)
        assert server.asked == []

    def test_what_the_api_cannot_do_is_refused(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Another aggregation, another filter, or one filter twice, is not asked for."""
        with pytest.raises(SourceInvalid, match="does not answer sum; see aggregations"):
            one(source(), asking(aggregation=Aggregation.SUM))
        for filters in [(("plan", "x"),), (("region", "eu"), ("region", "us"))]:
            with pytest.raises(SourceInvalid, match="cannot filter by"):
                one(source(), asking(filters=filters))
        assert server.asked == []

    def test_the_timeout_is_of_the_whole_count(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Pages that come in time one by one may yet be too late together."""
        plain.events = [used(MIDNIGHT)] * 40

        def slowly(asked: Any) -> Reply:
            server.closing.wait(0.1)
            return plain(asked)

        server.answering = slowly
        with pytest.raises(SourceUnavailable, match=r"no answer within 0\.5 s"):
            one(source(PAGES, timeout_seconds=0.5), asking())

    def test_the_timeout_is_of_both_questions(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Asking whether the subject exists gets what time is left, no more."""

        def slowly(asked: Asked) -> Reply:
            server.closing.wait(0.7)
            return plain(asked)

        plain.events, server.answering = [used(JUNE.start)], slowly
        with pytest.raises(SourceUnavailable, match="no answer within 1 s"):
            one(source(known_subject_path="/tenants/{subject}", timeout_seconds=1), asking())

    def test_the_watermark_lags(self, server: Serving) -> None:
        """With a lag, everything older is in; without one it is unsaid."""
        now = datetime(2024, 7, 1, tzinfo=UTC)

        class Frozen(HttpSource):
            @staticmethod
            def now() -> datetime:
                return now

        for lag, moment in [(None, None), (60, now - timedelta(minutes=1))]:
            settings = {"base_url": server.url, **TOTALS, "watermark_lag_seconds": lag}
            source: HttpSource = TypeAdapter(Frozen).validate_python(settings)
            assert source.watermark() == moment
            assert one(source, asking()).evidence.watermark == moment
            source.close()


class TestAnswers:
    """What comes back is a count, or it is refused."""

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b"7", 7),
            (b"0.10", Decimal("0.10")),
            (b"100000000000000000000000000001", 10**29 + 1),
            (b'"3.000000000000000000001"', Decimal("3.000000000000000000001")),
            (b"-2", -2),
            (b"1e3", 1000),
        ],
    )
    def test_numbers_are_exact(
        self, server: Serving, source: Callable[..., HttpSource], body: bytes, value: object
    ) -> None:
        """A number, or text that is one, keeps every digit."""
        server.answering = lambda _: Reply(body)
        assert one(source(value_path="$", events_path=...), asking()).value == value

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            ({}, "value_path result.total: there is nothing in the answer"),
            ({"result": []}, "value_path result.total: there is nothing in the answer"),
            ({"result": None}, "value_path result.total: there is nothing in the answer"),
            ({"result": {"total": None}}, "value_path result.total: NULL is not a number"),
            ({"result": {"total": ""}}, "value_path result.total: '' is not a number"),
            ({"result": {"total": True}}, "is not a number"),
            ({"result": {"total": [7]}}, "is not a number"),
            ({"result": {"total": "1_000"}}, "is not a number"),
            ({"result": {"total": "Infinity"}}, "is not a finite number"),
            ({"result": {"total": 1}}, r"events_path \$.result\['events'\]: there is nothing"),
            ({"result": {"total": 1, "events": -1}}, "is no number of events"),
            ({"result": {"total": 1, "events": "1.5"}}, "is no number of events"),
        ],
    )
    def test_what_is_no_number_is_refused(
        self, server: Serving, source: Callable[..., HttpSource], answer: object, told: str
    ) -> None:
        """Nothing, null and nonsense are never 0; the path is named."""
        server.answering = lambda _: Reply(answer)
        with pytest.raises(SourceInvalid, match=told):
            one(source(), asking())

    @pytest.mark.parametrize(
        ("path", "document"),
        [
            ("a", {"a": 7}),
            ("$.a", {"a": 7}),
            ("a.b[1].c", {"a": {"b": [0, {"c": 7}]}}),
            ("[0][1]", [[0, 7]]),
            ("$[0]", [7]),
            ('a["b.c"]', {"a": {"b.c": 7}}),
            ("['a b'].c", {"a b": {"c": 7}}),
            ("a-b.0", {"a-b": {"0": 7}}),
        ],
    )
    def test_a_path_leads_to_the_value(
        self, server: Serving, source: Callable[..., HttpSource], path: str, document: object
    ) -> None:
        """Names, indexes and quoted names, with or without $."""
        server.answering = lambda _: Reply(document)
        assert one(source(value_path=path, events_path=...), asking()).value == 7

    def test_only_the_statuses_named_make_a_subject_unknown(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """A 404 that was not said to mean that is an error, and so is any other status."""
        server.answering = lambda _: Reply({}, 404)
        assert one(source(), asking()).value is None
        with pytest.raises(SourceInvalid, match="404"):
            one(source(unknown_subject_statuses=[410]), asking())
        server.answering = lambda _: Reply({}, 410)
        assert one(source(unknown_subject_statuses=[404, 410]), asking()).value is None
        with pytest.raises(SourceInvalid, match="410"):
            one(source(), asking())
        server.answering = lambda _: Reply({}, 503)
        with pytest.raises(SourceUnavailable, match="503"):
            one(source(), asking())

    def test_a_zero_is_believed_of_known_subjects_only(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Where 0 came, the second question is asked; it must be answered."""
        plain.unknown, plain.events = None, [used(JUNE.start)]
        sure = source(unknown_subject_statuses=..., known_subject_path="/tenants/{subject}")
        assert one(sure, asking()).value == 0
        assert one(sure, asking(subject="nobody")).value is None
        assert one(sure, asking(period=JUNE)).value == 1
        assert [each.path[0] for each in server.asked].count("tenants") == 2
        for status, error in [(500, SourceUnavailable), (400, SourceInvalid)]:

            def answering(asked: Asked, status: int = status) -> Reply:
                return plain(asked) if asked.path[0] == "usage" else Reply({}, status)

            server.answering = answering
            with pytest.raises(error):
                one(sure, asking())

    def test_an_unknown_metric_is_no_unknown_subject(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Where a path proves that the subject exists, the status is about something else."""
        plain.events = [used(MIDNIGHT)]

        def answering(asked: Asked) -> Reply:
            return Reply({}, 404) if "call" in asked.path else plain(asked)

        server.answering = answering
        sure = source(known_subject_path="/tenants/{subject}")
        with pytest.raises(SourceInvalid, match="GET /usage/call/of/S-1: 404"):
            one(sure, asking(metric="call"))
        assert one(sure, asking(metric="call", subject="nobody")).value is None
        assert one(source(), asking(metric="call")).value is None

    def test_refused_credentials_tell_what_sets_them(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """The variable of the token, or of the password, by the name in the configuration."""
        told = "401, it refused our credentials; put the right one into RECONCILER__USAGE_SOURCES__"
        server.answering = lambda _: Reply({}, 401)
        for changed, name in (({}, "OUR_API__TOKEN"), ({"username": "u"}, "OUR_API__PASSWORD")):
            with pytest.raises(SourceUnavailable, match=f"{told}{name}$"):
                source(name="our api", **changed).check()
        assert "name" not in [each.name for each in settings_of(HttpSource)]

    def test_check_needs_an_answer(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """That nobody is known is well; a refused token, or no JSON, is not."""
        source().check()
        for reply, error in [
            (Reply({}, 401), SourceUnavailable),
            (Reply(b"<html>"), SourceInvalid),
            (Reply({}, 500), SourceUnavailable),
        ]:

            def answering(_: Asked, reply: Reply = reply) -> Reply:
                return reply

            server.answering = answering
            with pytest.raises(error):
                source().check()


class TestPages:
    """Events on several pages are all counted, each once, or none is."""

    def test_every_page_is_read(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Five events on three pages; the evidence says so."""
        plain.events = [used(MIDNIGHT, quantity=Decimal("0.1")) for _ in range(5)]
        tally = one(source(PAGES), asking(aggregation=Aggregation.SUM))
        assert (tally.value, tally.events) == (Decimal("0.5"), 5)
        assert tally.evidence.notes == ("The answer came in 3 pages.",)
        assert [each.first("after") for each in server.asked] == [None, "2", "4"]

    @pytest.mark.parametrize(
        ("pages", "told"),
        [
            ([{"items": [], "next": "/events"}], "another place|circle"),
            ([{"items": [], "next": "http://127.0.0.1:1/x"}], "links to another place"),
            ([{"items": [], "next": "//evil.example/x"}], "links to another place"),
            ([{"items": [], "next": 5}], "next_path next: 5 leads to no page"),
            ([{"items": [], "next": True}], "next_path next: True leads to no page"),
            ([{"items": []}], "next_path next: there is nothing .* last_page_omits_next"),
            ([{"items": None, "next": None}], "items_path items: NULL is no list"),
            ([{"items": {"0": 1}, "next": None}], "items_path items: .* is no list"),
            ([{"next": None}], "items_path items: there is nothing"),
            ([{"items": [{}], "next": "/2"}, {"items": 1, "next": None}], "items: 1 is no list"),
        ],
    )
    def test_a_strange_page_is_refused(
        self,
        server: Serving,
        source: Callable[..., HttpSource],
        pages: list[dict[str, Any]],
        told: str,
    ) -> None:
        """A page that cannot be read, or followed, makes the whole count worthless."""
        replies = iter([Reply(each) for each in pages] + [Reply(pages[-1])] * 5)
        server.answering = lambda _: next(replies)
        with pytest.raises(SourceInvalid, match=told):
            source(PAGES).count([asking()])

    @pytest.mark.parametrize("quantity", [None, "many", True, []])
    def test_a_strange_quantity_is_refused(
        self, server: Serving, source: Callable[..., HttpSource], quantity: object
    ) -> None:
        """The event is named by page and place."""
        items = [{"quantity": 1}, {"quantity": quantity}]
        server.answering = lambda _: Reply({"items": items, "next": None})
        with pytest.raises(SourceInvalid, match=r"page 1, item 1: item_value_path quantity: .* is"):
            one(source(PAGES), asking(aggregation=Aggregation.SUM))

    @pytest.mark.parametrize("link", ["/events?page=2", "?page=2"])
    def test_pages_in_a_circle_are_refused(
        self, server: Serving, source: Callable[..., HttpSource], link: str
    ) -> None:
        """A page that comes again would be counted again."""
        server.answering = lambda _: Reply({"items": [{}], "next": link})
        with pytest.raises(SourceInvalid, match="its pages go in a circle"):
            one(source(PAGES), asking())
        assert len(server.asked) == 2

    @pytest.mark.parametrize("cursor", ["same", 5])
    def test_a_cursor_in_a_circle_is_refused(
        self, server: Serving, source: Callable[..., HttpSource], cursor: object
    ) -> None:
        """A cursor that does not move is no next page."""
        server.answering = lambda _: Reply({"items": [{}], "next": cursor})
        with pytest.raises(SourceInvalid, match="its pages go in a circle"):
            one(source(PAGES, cursor_parameter="after"), asking())
        assert [each.first("after") for each in server.asked] == [None, str(cursor)]

    def test_pages_have_a_bound(
        self, plain: PlainApi, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """As many as the setting says are read; one more is refused, never left out."""
        plain.events = [used(MIDNIGHT)] * 6
        assert one(source(PAGES, max_pages=3), asking()).value == 6
        server.asked.clear()
        with pytest.raises(SourceInvalid, match="more than 2 pages; see max_pages"):
            one(source(PAGES, max_pages=2), asking())
        assert len(server.asked) == 2

    def test_a_cursor_is_only_a_value(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """What stands in a cursor adds no parameter."""
        pages = iter([{"items": [], "next": "a&subject=b#?"}, {"items": [{}], "next": ""}])
        server.answering = lambda _: Reply(next(pages))
        tally = source(PAGES, cursor_parameter="after").count([asking()])[0]
        assert tally.value == 1
        assert server.asked[1].first("after") == "a&subject=b#?"
        assert server.asked[1].first("subject") == "S-1"

    def test_the_last_page_may_say_nothing(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Where the settings say so, nothing at next_path is the end."""
        server.answering = lambda _: Reply({"items": [{}]})
        assert one(source(PAGES, last_page_omits_next=True), asking()).value == 1

    def test_a_later_page_that_is_gone_is_no_unknown_subject(
        self, server: Serving, source: Callable[..., HttpSource]
    ) -> None:
        """Only the first page's status speaks of the subject."""
        server.answering = lambda asked: (
            Reply({}, 404)
            if asked.first("page")
            else Reply({"items": [{}], "next": "/events?page=2"})
        )
        with pytest.raises(SourceInvalid, match="404"):
            one(source(PAGES, unknown_subject_statuses=[404]), asking())


class TestSettings:
    """What is wrong is said before anything is asked."""

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"base_url": "api.example"}, "base_url must be"),
            ({"path": "usage/{subject}"}, "path must begin with one slash"),
            ({"path": "//evil.example/{subject}"}, "path must begin with one slash"),
            ({"path": "/usage?of={subject}"}, "parameters belong to query"),
            ({"path": "/usage of/{subject}"}, "path must begin with one slash"),
            ({"path": "/../{subject}"}, "path would lead elsewhere"),
            ({"path": "/usage/{tenant}"}, "path may hold {subject}, {metric}"),
            ({"path": "/usage/{subject.__class__}"}, "path may hold {subject}, {metric}"),
            ({"path": "/usage/{subject!r}"}, "path may hold {subject}, {metric}"),
            ({"path": "/usage/{subject:>9}"}, "path may hold {subject}, {metric}"),
            ({"path": "/usage/{}"}, "path may hold {subject}, {metric}"),
            ({"path": "/usage/{subject"}, "path "),
            ({"path": "/usage/{metric}"}, "do not use {subject}"),
            ({"query": {"since": "{start}"}}, "do not use {end}"),
            ({"query": {}}, "do not use {end} and {start}"),
            ({"query": {"since": "{start}", "until": "{End}"}}, "query: until may hold"),
            ({"filter_parameters": {"region": "since"}}, "must name different parameters"),
            ({"filter_parameters": {"a": "x", "b": "x"}}, "must name different parameters"),
            ({"filter_parameters": {"a": ""}}, "must name different parameters"),
            ({"aggregations": []}, "aggregations must name one"),
            ({"aggregations": ["average"]}, "aggregations"),
            ({"time_format": "native"}, "time_format"),
            ({"value_path": ...}, "give either value_path or items_path"),
            ({"items_path": "items"}, "give either value_path or items_path"),
            ({"next_path": "next"}, "next_path belongs to items_path"),
            ({"item_value_path": "x"}, "item_value_path belongs to items_path"),
            ({"cursor_parameter": "after"}, "cursor_parameter belongs to next_path"),
            ({"last_page_omits_next": True}, "last_page_omits_next belongs to next_path"),
            ({"max_pages": 0}, "max_pages must be"),
            ({"unknown_subject_statuses": ...}, "or known_subject_path is needed"),
            ({"unknown_subject_statuses": [401]}, "401 says nothing of a subject"),
            ({"unknown_subject_statuses": [429]}, "429 says nothing of a subject"),
            ({"unknown_subject_statuses": [200]}, "200 says nothing of a subject"),
            ({"known_subject_path": "/tenants"}, "must use {subject} and nothing else"),
            ({"known_subject_path": "tenants/{subject}"}, "known_subject_path must begin"),
            ({"known_subject_path": "/{subject}/{metric}"}, "must use {subject} and nothing else"),
            ({"token": "a\nb"}, "token may hold"),
            ({"auth_prefix": "Bearer "}, "auth_prefix may hold"),
            ({"token": "a", "auth_header": "X Key"}, "auth_header must be"),
            ({"token": "a", "auth_header": ""}, "auth_header must be"),
            ({"token": "a", "auth_header": "Schlüssel"}, "auth_header may hold"),
            ({"token": "a", "username": "b"}, "give token or username"),
            ({"password": "a"}, "password belongs to username"),
            ({"username": "a:b"}, "username must not hold a colon"),
            ({"username": "a", "password": "\udcff"}, "username and password must be UTF-8"),
            ({"watermark_lag_seconds": -1}, "watermark_lag_seconds must be"),
            ({"timeout_seconds": 0}, "timeout_seconds must be"),
            ({"timeout_seconds": float("nan")}, "timeout_seconds must be"),
            ({"ca_file": "/nowhere.pem"}, "ca_file: there is no file"),
        ],
    )
    def test_a_wrong_setting_is_named(self, changed: dict[str, Any], told: str) -> None:
        """Each complaint names the setting."""
        with pytest.raises(ValidationError) as caught:
            made(**{"base_url": "https://api.example", "shape": TOTALS, **changed})
        assert told in str(caught.value)

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"aggregations": ["count", "max"]}, 'items can make a "count" and a "sum" only'),
            ({"item_value_path": ...}, 'item_value_path is needed for "sum"'),
            ({"aggregations": ["count"]}, 'item_value_path is needed for "sum"'),
            ({"events_path": "x"}, "events_path belongs to value_path"),
            ({"cursor_parameter": "since"}, "must name different parameters"),
            ({"cursor_parameter": ""}, "must name different parameters"),
        ],
    )
    def test_a_wrong_setting_of_pages_is_named(self, changed: dict[str, Any], told: str) -> None:
        """Each complaint names the setting."""
        with pytest.raises(ValidationError) as caught:
            made("https://api.example", PAGES, **changed)
        assert told in str(caught.value)

    @pytest.mark.parametrize(
        "path",
        [
            *("", ".", ".a", "a.", "a..b", "a[", "a[x]", "a[-1]", "a[*]", "$a", "$..a", "a b"),
            *("a[0]b", 'a["b]', "a[0:2]", "$[?(@.x)]", "a['']"),
        ],
    )
    def test_a_wrong_json_path_is_named(self, path: str) -> None:
        """What is not a plain path is refused, and nothing is guessed."""
        with pytest.raises(ValidationError, match=r"value_path .* is no path like"):
            made("https://api.example", TOTALS, value_path=path)

    def test_a_secret_is_not_told(self) -> None:
        """A complaint shows no password and no token."""
        for secrets in [{"token": "s3c\nr3t"}, {"password": "s3c\nr3t"}]:
            with pytest.raises(ValidationError) as caught:
                made("https://api.example", TOTALS, **secrets)
            assert "s3c" not in json.dumps([each["msg"] for each in caught.value.errors()])


def one(source: HttpSource, query: UsageQuery) -> Tally:
    """Ask one query."""
    (tally,) = source.count([query])
    return tally
