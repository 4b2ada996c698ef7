"""Usage counted by any JSON API that answers GET: with a total, or with pages of events."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from usage_sources.http_api.answer import Answer, Found, Shape
from usage_sources.http_api.text import (
    HttpTime,
    Template,
    check_json_path,
    check_parameter,
    check_path,
    values_of,
)
from usage_sources.reading import digest, lagging, no_metrics_apart, shown
from usage_sources.web import Credentials, Deadline, Refused, WebApi, check_base_url, check_header
from worker.domain import Aggregation, Evidence, Period, Tally, UsageQuery, utc_text
from worker.errors import SourceInvalid

_NO_ANSWER_ABOUT_A_SUBJECT = (401, 403, 408, 425, 429)
_ADDED_UP = frozenset({Aggregation.COUNT, Aggregation.SUM})


@dataclass(frozen=True, kw_only=True)
class HttpSource:
    """Counts usage by asking a JSON API; each field is a setting.

    One request for each charge, one after the other, and for each further page. The API must
    count `start <= time < end`. Give either `value_path` or `items_path`.
    """

    # What the configuration calls it.
    name: str = field(default="", metadata={"setting": False})
    # The address that `path` is added to.
    base_url: str
    # The path, with {subject}, {metric}, {component}, {start} and {end} where they belong.
    path: str
    # How the API makes events one number, of "count", "sum", "max", "last", "unique"; a component
    # that wants another is refused.
    aggregations: tuple[Aggregation, ...]
    # Parameters, each with a text that may hold the same placeholders; no secret belongs here.
    query: dict[str, str] = field(default_factory=dict)
    # How {start} and {end} are written: "iso", "epoch_seconds" or "epoch_milliseconds".
    time_format: HttpTime = "iso"
    # The parameter that each column of a component's filters is sent as; others are refused.
    filter_parameters: dict[str, str] = field(default_factory=dict)
    # Where the number stands in the answer, as in "data.rows[0].total".
    value_path: str | None = None
    # Where the answer says how many events made the number; default: it does not.
    events_path: str | None = None
    # Instead of `value_path`: where the list of events stands, to be counted or added up.
    items_path: str | None = None
    # Where each event's quantity stands in it; needed to add up.
    item_value_path: str | None = None
    # Where the answer links to the next page; null or "" there: it was the last.
    next_path: str | None = None
    # The last page has nothing at all at `next_path`; otherwise that is an error.
    last_page_omits_next: bool = False
    # The parameter that what stands at `next_path` is sent as; default: it is a URL.
    cursor_parameter: str | None = None
    # More pages than this are refused.
    max_pages: int = 100
    # The statuses by which the API says that it does not know the subject.
    unknown_subject_statuses: tuple[int, ...] = ()
    # A path, with {subject}, that exists where the subject does; asked where the count is 0, or
    # where a status says that the subject is unknown, which is an error if it exists.
    known_subject_path: str | None = None
    # Sent in `auth_header` after `auth_prefix`; default: nothing is sent.
    token: str = field(default="", repr=False, metadata={"secret": True})
    # The header that carries the token.
    auth_header: str = "Authorization"
    # What stands before the token; "" for nothing.
    auth_prefix: str = "Bearer"
    # Instead of a token: the user of HTTP Basic authentication.
    username: str | None = None
    # The password of that user.
    password: str = field(default="", repr=False, metadata={"secret": True})
    # Everything older than this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None
    # How long one count may take, however many requests it needs.
    timeout_seconds: float = 30.0
    # A file of certificates (PEM) to trust instead of the usual ones; default: none.
    ca_file: str | None = None

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        self._check_address()
        self._check_answer()
        self._check_subjects()
        self._check_credentials()
        if not self.aggregations:
            raise ValueError('aggregations must name one at least, as in ["count"]')
        if self.watermark_lag_seconds is not None and not self.watermark_lag_seconds >= 0:
            raise ValueError("watermark_lag_seconds must be 0 or more")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError("timeout_seconds must be more than 0, and 3600 at most")
        if self.ca_file is not None and not Path(self.ca_file).is_file():
            raise ValueError(f"ca_file: there is no file {self.ca_file}")

    def _check_address(self) -> None:
        if missing := {"subject", "start", "end"} - self._placeholders:
            raise ValueError(f"path and query do not use {{{'} and {'.join(sorted(missing))}}}")
        sent = [*self.query, *self.filter_parameters.values()]
        sent += [self.cursor_parameter] if self.cursor_parameter is not None else []
        if len(set(sent)) != len(sent) or "" in sent:
            raise ValueError(
                "query, filter_parameters and cursor_parameter must name different parameters"
            )

    def _check_answer(self) -> None:
        if (self.value_path is None) == (self.items_path is None):
            raise ValueError("give either value_path or items_path")
        for name in ("value_path", "events_path", "items_path", "item_value_path", "next_path"):
            check_json_path(name, getattr(self, name))
        if self.items_path is None:
            for name in ("item_value_path", "next_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to items_path")
        elif self.events_path is not None:
            raise ValueError("events_path belongs to value_path; items are counted")
        elif not set(self.aggregations) <= _ADDED_UP:
            raise ValueError('aggregations: items can make a "count" and a "sum" only')
        elif (Aggregation.SUM in self.aggregations) != (self.item_value_path is not None):
            raise ValueError('item_value_path is needed for "sum" in aggregations, and only there')
        for name in ("cursor_parameter", "last_page_omits_next"):
            if getattr(self, name) and self.next_path is None:
                raise ValueError(f"{name} belongs to next_path")
        if self.max_pages < 1:
            raise ValueError("max_pages must be 1 or more")

    def _check_subjects(self) -> None:
        if not self.unknown_subject_statuses and self.known_subject_path is None:
            raise ValueError(
                "unknown_subject_statuses or known_subject_path is needed, because an API may"
                " answer 0 also for a subject that nobody knows; give the first, as in [404], if"
                " it does not, or else a path that exists only where the subject does"
            )
        for status in self.unknown_subject_statuses:
            if not 400 <= status < 500 or status in _NO_ANSWER_ABOUT_A_SUBJECT:
                raise ValueError(f"unknown_subject_statuses: {status} says nothing of a subject")
        if self.known_subject_path is not None:
            names = check_path("known_subject_path", self.known_subject_path).names
            if names != {"subject"}:
                raise ValueError("known_subject_path must use {subject} and nothing else")

    def _check_credentials(self) -> None:
        for name in ("token", "auth_prefix"):
            check_header(name, getattr(self, name))
        if not self.auth_header.replace("-", "").replace("_", "").isalnum():
            raise ValueError("auth_header must be the name of a header")
        check_header("auth_header", self.auth_header)
        if self.username and self.token:
            raise ValueError("give token or username, not both")
        if self.password and not self.username:
            raise ValueError("password belongs to username")
        if ":" in (self.username or ""):
            raise ValueError("username must not hold a colon")
        if any("\ud800" <= c <= "\udfff" for c in (self.username or "") + self.password):
            raise ValueError("username and password must be UTF-8 text")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer one query after the other, within the one timeout."""
        deadline = Deadline(self.timeout_seconds)
        addresses = [self._address(query) for query in queries]
        if not {"metric", "component"} & self._placeholders and (
            fault := no_metrics_apart("the API", list(queries))
        ):
            raise SourceInvalid(f"{self._web.place}: {fault}; use {{metric}} in path or query")
        return [
            self._tally(query, url, deadline) for query, url in zip(queries, addresses, strict=True)
        ]

    def watermark(self) -> datetime | None:
        """Return the present moment less the lag that the settings state; None: unsaid."""
        return lagging(self.now(), self.watermark_lag_seconds)

    def check(self) -> None:
        """Ask for nobody's usage; raise unless the API answers and accepts our credentials."""
        start = self.now().replace(microsecond=0)
        nobody = UsageQuery(
            charge_id="",
            subject="nobody",
            component="none",
            metric="none",
            aggregation=self.aggregations[0],
            period=Period(start - timedelta(seconds=1), start),
        )
        deadline = Deadline(self.timeout_seconds)
        try:
            self._web.get_url(self._address(nobody), deadline=deadline)
        except Refused:  # it answered: it knows nobody
            return

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._web.close()

    @cached_property
    def _placeholders(self) -> set[str]:
        """What the path and the parameters use; raise ValueError."""
        names = set(check_path("path", self.path).names)
        for parameter, text in self.query.items():
            names |= check_parameter(f"query: {parameter}", text).names
        return names

    @cached_property
    def _web(self) -> WebApi:
        headers, secrets = {}, [self.token, self.password]
        if self.username:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
            secrets.append(pair)
        elif self.token:
            headers[self.auth_header] = f"{self.auth_prefix} {self.token}".strip()
        return WebApi(
            self.base_url,
            kind="http",
            timeout_seconds=self.timeout_seconds,
            credentials=Credentials(
                headers=headers,
                secrets=secrets,
                set_by=(self.name, "password" if self.username else "token"),
            ),
            ca_file=self.ca_file,
        )

    @cached_property
    def _shape(self) -> Shape:
        return Shape(**{each.name: getattr(self, each.name) for each in fields(Shape)})

    def _address(self, query: UsageQuery) -> str:
        """Return the URL of a query; refuse what it cannot say."""
        place = self._web.place
        if query.aggregation not in self.aggregations:
            raise SourceInvalid(f"{place} does not answer {query.aggregation}; see aggregations")
        columns = [column for column, _ in query.filters]
        for column in columns:
            if column not in self.filter_parameters or columns.count(column) > 1:
                raise SourceInvalid(
                    f"{place} cannot filter by {shown(column)}; see filter_parameters"
                )
        try:
            values = values_of(query, self.time_format)
            path = Template(self.path).path(values)
        except ValueError as error:
            subject, metric = shown(query.subject), shown(query.metric)
            raise SourceInvalid(f"{place}: {metric} of {subject}: {error}") from None
        sent = [(name, Template(text).filled(values)) for name, text in self.query.items()]
        sent += [(self.filter_parameters[column], value) for column, value in query.filters]
        return self._web.url(path, sent)

    def _tally(self, query: UsageQuery, url: str, deadline: Deadline) -> Tally:
        asked_at = self.now()
        found = self._found(query, url, deadline)
        lag = lagging(asked_at, self.watermark_lag_seconds)
        paths = {name: getattr(self, name) for name in ("value_path", "items_path", "next_path")}
        evidence = Evidence(
            source=self._web.place,
            query=f"GET {url}",
            parameters={
                "subject": query.subject,
                "metric": query.metric,
                "component": query.component,
                "aggregation": query.aggregation.value,
                "start": utc_text(query.period.start),
                "end": utc_text(query.period.end),
                "filters": dict(query.filters),
                **{name: path for name, path in paths.items() if path is not None},
            },
            asked_at=asked_at,
            digest=digest(query, found.value, found.events),
            watermark=lag,
            notes=(f"The answer came in {found.pages} pages.",) if found.pages > 1 else (),
        )
        return Tally(query=query, value=found.value, events=found.events, evidence=evidence)

    def _found(self, query: UsageQuery, url: str, deadline: Deadline) -> Found:
        try:
            answer = Answer(self._web, self._shape, url, deadline)
        except Refused as error:
            is_about_it = error.status in self.unknown_subject_statuses
            has_proof = self.known_subject_path is not None
            if not is_about_it or (has_proof and self._is_known(query.subject, deadline)):
                raise  # as where the metric is unknown, not the subject
            return Found(None, None)
        found = answer.found(query.aggregation)
        if not found.value and not self._is_known(query.subject, deadline):
            return Found(None, None, found.pages)
        return found

    def _is_known(self, subject: str, deadline: Deadline) -> bool:
        if self.known_subject_path is None:
            return True  # the API would have answered with one of its statuses
        try:
            path = Template(self.known_subject_path).path({"subject": subject})
            self._web.get(path, deadline=deadline)
        except ValueError:
            return False
        except Refused as error:
            if error.status in (404, *self.unknown_subject_statuses):
                return False
            raise
        return True
