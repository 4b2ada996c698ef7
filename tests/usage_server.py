"""HTTP servers of a test's own on the loopback: OpenMeter's API, a plain one, and broken ones."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from usage_sources.contract import UsageEvent
from worker.domain import utc_text


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    target: str  # as it was sent, percent-encoded
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> list[str]:
        """The segments of the path, decoded one by one."""
        return [unquote(each) for each in urlsplit(self.target).path.split("/")[1:]]

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters, decoded, in their order."""
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True, strict_parsing=False)

    def first(self, name: str) -> str | None:
        """Return the first value of a parameter."""
        return next((value for key, value in self.query if key == name), None)


@dataclass(frozen=True)
class Reply:
    """What to answer: a value to be written as JSON, or bytes as they are."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Answering = Callable[[Asked], Reply]


class Serving:
    """A running server: its URL, what it was asked, and what it answers next."""

    def __init__(self, url: str, answering: Answering) -> None:
        self.url = url
        self.answering = answering
        self.asked: list[Asked] = []
        self.connections: set[Any] = set()
        self.closing = threading.Event()

    def hang(self, _: Asked) -> Reply:
        """Answer only when the server is stopped."""
        self.closing.wait(60)
        return Reply({})


@contextlib.contextmanager
def serving(answering: Answering, tls: ssl.SSLContext | None = None) -> Iterator[Serving]:
    """Run a real HTTP server until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            asked = Asked(self.command, self.path, dict(self.headers), self.rfile.read(size))
            running.asked.append(asked)
            running.connections.add(self.client_address)
            reply = running.answering(asked)
            body = reply.body if isinstance(reply.body, bytes) else written(reply.body)
            with contextlib.suppress(OSError):  # a client that has given up
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that did not like the certificate
                super().handle()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        running = Serving(f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", answering)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.closing.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def talking(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Run a server that does to each connection whatever `talk` does; yield its URL."""
    closing = threading.Event()

    def meet() -> None:
        while not closing.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(65536)
                talk(connection, closing)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.02)
        thread = threading.Thread(target=meet, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            closing.set()
            thread.join()


def nobody() -> str:
    """Return a URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def written(value: Any) -> bytes:
    """Write JSON with each Decimal as a number with all its digits."""
    marked = json.dumps(value, default=lambda number: f"\0{number:f}\0")
    return re.sub(r'"\\u0000([0-9.-]+)\\u0000"', r"\1", marked).encode()


def moment(text: str) -> datetime:
    """Read a moment from a parameter."""
    return datetime.fromisoformat(text)


def chosen(
    events: Sequence[UsageEvent], start: datetime | None, end: datetime | None
) -> list[UsageEvent]:
    """Return the events of a half-open time, as a store of whole seconds sees them."""
    seconds = [(each, each.at.astimezone(UTC).replace(microsecond=0)) for each in events]
    return [
        each for each, at in seconds if (start is None or at >= start) and (end is None or at < end)
    ]


def aggregated(aggregation: str, events: Sequence[UsageEvent]) -> Decimal | None:
    """Make one number of events; what has no quantity is left out, as OpenMeter does."""
    match aggregation:
        case "count":
            return Decimal(len(events))
        case "unique_count":
            return Decimal(len({each.unique for each in events}))
    quantities = [each.quantity for each in events if each.quantity is not None]
    if not quantities:
        return None
    match aggregation:
        case "sum":
            return sum(quantities, Decimal(0))
        case "max":
            return max(quantities)
    latest = max(events, key=lambda each: each.at)
    return latest.quantity


class MeterLike:
    """OpenMeter's REST API over some events, as its specification and its code have it.

    Each metric is a meter; what has a subject is a subject, or a customer's, without any more ado.
    """

    def __init__(self, aggregation: str = "count") -> None:
        self.events: list[UsageEvent] = []
        self.aggregation = aggregation
        self.subjects = True  # whether it keeps a list of them
        self.page_size = 2
        self.meter: dict[str, Any] = {}  # what differs in the definitions
        self.answer: dict[str, Any] = {}  # what differs in the answers

    def __call__(self, asked: Asked) -> Reply:
        """Answer one request."""
        if asked.headers.get("Authorization") != "Bearer s3cret-t0ken":
            return Reply({"title": "Unauthorized"}, 401)
        match asked.path:
            case ["api", "v1", "meters"]:
                return Reply([])
            case ["api", "v1", "meters", slug] if slug in self.metrics:
                return Reply(self.meter_v1(slug))
            case ["api", "v1", "meters", slug, "query"] if slug in self.metrics:
                return self.query_v1(slug, asked)
            case ["api", "v1", "subjects", name] if self.subjects:
                for key in self.keys:
                    if name in (key, f"id-of-{key}"):
                        return Reply({"id": f"id-of-{key}", "key": key})
            case ["api", "v3", "openmeter", "meters"]:
                return self.page(asked, "key", [self.meter_v3(each) for each in self.metrics])
            case ["api", "v3", "openmeter", "meters", meter, "query"]:
                return self.query_v3(meter, asked)
            case ["api", "v3", "openmeter", "customers"]:
                return self.page(asked, "usage_attribution_subject_key", self.customers())
        return Reply({"type": "about:blank", "title": "Not Found", "status": 404}, 404)

    @property
    def metrics(self) -> list[str]:
        """The meters, by slug or key."""
        return sorted({each.metric for each in self.events})

    @property
    def keys(self) -> list[str]:
        """The subjects."""
        return sorted({each.subject for each in self.events})

    def meter_v1(self, slug: str) -> dict[str, Any]:
        """Write a meter's definition."""
        return {
            "id": self.id_of(slug),
            "slug": slug,
            "aggregation": self.aggregation.upper(),
            "eventType": slug,
            "groupBy": {"region": "$.region"},
            **self.meter,
        }

    def meter_v3(self, key: str) -> dict[str, Any]:
        """Write a meter's definition."""
        return {
            "id": self.id_of(key),
            "key": key,
            "name": key,
            "aggregation": self.aggregation,
            "event_type": key,
            "dimensions": {"region": "$.region"},
            **self.meter,
        }

    def customers(self) -> list[dict[str, Any]]:
        """Write a customer for each subject."""
        keys = self.keys if self.subjects else []
        return [{"id": f"C-{key}", "usage_attribution": {"subject_keys": [key]}} for key in keys]

    def id_of(self, metric: str) -> str:
        """Name a meter by its place among them, as an id that is not its key."""
        return f"METER{self.metrics.index(metric):03}"

    def page(self, asked: Asked, name: str, items: list[dict[str, Any]]) -> Reply:
        """Answer with a page of a list; the filter is not looked at, as older versions do."""
        assert asked.first(f"filter[{name}]") is not None or asked.first("page[size]") == "1"
        number = int(asked.first("page[number]") or 1)
        start = (number - 1) * self.page_size
        meta = {"page": {"number": number, "size": self.page_size, "total": len(items)}}
        return Reply({"data": items[start : start + self.page_size], "meta": meta})

    def query_v1(self, slug: str, asked: Asked) -> Reply:
        """Answer a query of the first API: JSON numbers, filters in the address."""
        start, end = asked.first("from"), asked.first("to")
        wanted = {value for key, value in asked.query if key == "subject"}
        filters = {
            found[1]: value
            for key, value in asked.query
            if (found := re.fullmatch(r"filterGroupBy\[(.*)\]", key, re.DOTALL))
        }
        if start == end is not None or not set(filters) <= {"region"}:
            return Reply({"title": "Bad Request"}, 400)
        rows = [
            {"value": value, "windowStart": start, "windowEnd": end, "subject": subject}
            for subject, value in self.totals(slug, wanted, (start, end), filters)
        ]
        answer: dict[str, Any] = {
            "from": start,
            "to": end,
            "data": [{**row, "groupBy": {}} for row in rows],
        }
        return Reply({**answer, **self.answer})

    def query_v3(self, meter: str, asked: Asked) -> Reply:
        """Answer a query of the third API: decimal text, filters in the body."""
        ids = {self.id_of(each): each for each in self.metrics}
        body = json.loads(asked.body)
        start, end = body.get("from"), body.get("to")
        dimensions = body["filters"]["dimensions"]
        filters = {k: v["eq"] for k, v in dimensions.items() if k != "subject"}
        if start == end is not None or not set(filters) <= {"region"}:
            return Reply({"title": "Bad Request"}, 400)
        rows = [
            {"value": f"{value:f}", "from": start, "to": end, "dimensions": {"subject": subject}}
            for subject, value in self.totals(
                ids[meter], set(dimensions["subject"]["in"]), (start, end), filters
            )
        ]
        return Reply({"from": start, "to": end, "data": rows, **self.answer})

    def totals(
        self,
        metric: str,
        subjects: set[str],
        bounds: tuple[str | None, str | None],
        filters: Mapping[str, str],
    ) -> list[tuple[str, Decimal]]:
        """Return one total for each subject with events; none for one without."""
        start, end = (None if each is None else moment(each) for each in bounds)
        found = []
        for subject in sorted(subjects):
            of_it = [
                each
                for each in chosen(self.events, start, end)
                if (each.metric, each.subject) == (metric, subject)
                and all(getattr(each, key) == value for key, value in filters.items())
            ]
            value = aggregated(self.aggregation, of_it) if of_it else None
            if value is not None:
                found.append((subject, value))
        return found


class PlainApi:
    """An API of somebody's own: totals, or pages of events, for a subject and a metric.

    /usage/METRIC/of/SUBJECT and /events?subject=...; /tenants/SUBJECT says who exists.
    """

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []
        self.aggregation = "count"
        self.page_size = 2
        self.read = moment  # how it reads a time
        self.unknown: Reply | None = Reply({"error": "no such tenant"}, 404)

    def __call__(self, asked: Asked) -> Reply:
        """Answer one request."""
        match asked.path:
            case ["tenants", key]:
                there = any(each.subject == key for each in self.events)
                return Reply({"id": key}) if there else Reply({"error": "no"}, 404)
            case ["usage", metric, "of", subject]:
                return self.total(metric, subject, asked)
            case ["events"]:
                return self.page(asked)
        return Reply({"error": "no such page"}, 404)

    def found(self, metric: str, subject: str, asked: Asked) -> list[UsageEvent] | None:
        """Return the events asked for; None: nobody has this name."""
        if self.unknown and all(each.subject != subject for each in self.events):
            return None
        start, end = self.read(asked.first("since") or ""), self.read(asked.first("until") or "")
        region = asked.first("where")
        return [
            each
            for each in self.events
            if (each.metric, each.subject) == (metric, subject)
            and start <= each.at < end
            and region in (None, each.region)
        ]

    def total(self, metric: str, subject: str, asked: Asked) -> Reply:
        """Answer with one number, written as text."""
        found = self.found(metric, subject, asked)
        if found is None:
            return self.unknown or Reply({})
        missing = any(each.quantity is None for each in found) and self.aggregation != "count"
        value = None if missing else aggregated(self.aggregation, found) or Decimal(0)
        total = None if value is None else f"{value:f}"
        return Reply({"result": {"total": total, "events": len(found)}})

    def page(self, asked: Asked) -> Reply:
        """Answer with a few events and where the next ones are."""
        found = self.found(asked.first("metric") or "", asked.first("subject") or "", asked)
        if found is None:
            return self.unknown or Reply({})
        start = int(asked.first("after") or 0)
        end = start + self.page_size
        items = [{"at": utc_text(each.at), "quantity": each.quantity} for each in found[start:end]]
        more = end < len(found)
        link = asked.target.partition("&after=")[0] + f"&after={end}" if more else None
        return Reply({"items": items, "next": link, "cursor": str(end) if more else None})


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_milliseconds(text: str) -> datetime:
    """Read a number of milliseconds."""
    return EPOCH + timedelta(milliseconds=int(text))
