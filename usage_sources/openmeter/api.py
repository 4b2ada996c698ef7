"""OpenMeter's REST API, the first and the third: meters, totals of subjects, who is known.

What both have in common, from OpenMeter's specifications and its ClickHouse query: a query
without a window gives one total per subject over `from <= time < to`, on whole seconds; asked by
subject, it groups by subject; a subject without events has no row; an empty period is refused.
Values are computed as 64-bit floats unless OpenMeter runs with decimal precision; as far as its
code was read, they are floats on their way out even then, also where the third API writes text.

First API (`/api/v1`): a meter by slug, a query by GET with JSON numbers, a subject by key.
Third API (`/api/v3/openmeter`): a meter by id, so that its key is looked up in the list; a query
by POST with decimal text; subjects are those that customers are attributed by. Filters of its
lists are ignored by some versions, so that pages are read until the name is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from usage_sources.reading import exact_quantity, iso_microseconds, moment_at, shown
from usage_sources.web import Deadline, NotThere, Query, WebApi, path_segment
from worker.domain import Period, utc_text
from worker.errors import SourceInvalid

_MOST_PAGES = 1000
_PAGE_SIZE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter's definition, as far as counting needs it."""

    id: str
    name: str  # slug or key
    aggregation: str  # in small letters
    columns: frozenset[str]  # what its events can be filtered by
    since: datetime | None  # it leaves out what is older


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What some subjects used of one meter; without a period, at any time."""

    subjects: tuple[str, ...]
    period: Period | None
    filters: tuple[tuple[str, str], ...] = ()


class MeterApi(Protocol):
    """What the two versions have in common."""

    def check(self, deadline: Deadline) -> None:
        """Raise unless OpenMeter answers and accepts our credentials."""

    def meter(self, name: str, deadline: Deadline) -> Meter:
        """Return the definition; raise SourceInvalid where there is none."""

    def question(self, meter: Meter, question: Question) -> str:
        """Write the request so that somebody else can send it."""

    def totals(self, meter: Meter, question: Question, deadline: Deadline) -> dict[str, Decimal]:
        """Return the total of each subject that has any event."""

    def lists(self, subject: str, deadline: Deadline) -> bool:
        """Tell whether OpenMeter was told of the subject, whatever it used."""


class FirstApi:
    """`/api/v1`."""

    def __init__(self, web: WebApi) -> None:
        self._web = web

    def check(self, deadline: Deadline) -> None:
        """Ask for the meters."""
        self._web.get("/api/v1/meters", deadline=deadline)

    def meter(self, name: str, deadline: Deadline) -> Meter:
        """Ask for the meter by its slug; OpenMeter would also take an id."""
        place = self._web.place
        try:
            found = self._web.get(f"/api/v1/meters/{_segment(place, name)}", deadline=deadline)
        except NotThere:
            found = None
        if not isinstance(found, dict) or found.get("slug") != name:
            raise _no_meter(place, name)
        return _meter(place, found, name, {"since": "eventFrom", "gone": "deletedAt"})

    def question(self, meter: Meter, question: Question) -> str:
        """Write the address."""
        return f"GET {self._web.url(*self._address(meter, question))}"

    def totals(self, meter: Meter, question: Question, deadline: Deadline) -> dict[str, Decimal]:
        """Ask with all filters in the address."""
        path, query = self._address(meter, question)
        answer = self._web.get(path, query, deadline=deadline)
        totals = _Totals(f"{self._web.place}: meter {shown(meter.name)}", question)
        return totals.of(answer, lambda row: row.get("subject"))

    def lists(self, subject: str, deadline: Deadline) -> bool:
        """Ask for the subject by its key; OpenMeter would also take an id."""
        try:
            path = f"/api/v1/subjects/{path_segment(subject)}"
            found = self._web.get(path, deadline=deadline)
        except (NotThere, ValueError):
            return False
        return isinstance(found, dict) and found.get("key") == subject

    def _address(self, meter: Meter, question: Question) -> tuple[str, Query]:
        query: list[tuple[str, str]] = []
        if question.period is not None:
            query += [("from", utc_text(question.period.start))]
            query += [("to", utc_text(question.period.end))]
        query += [("subject", subject) for subject in question.subjects]
        query += [("groupBy", "subject")]
        query += [(f"filterGroupBy[{column}]", value) for column, value in question.filters]
        return f"/api/v1/meters/{_segment(self._web.place, meter.name)}/query", query


class ThirdApi:
    """`/api/v3/openmeter`."""

    def __init__(self, web: WebApi) -> None:
        self._web = web

    def check(self, deadline: Deadline) -> None:
        """Ask for one meter."""
        self._web.get("/api/v3/openmeter/meters", [("page[size]", "1")], deadline=deadline)

    def meter(self, name: str, deadline: Deadline) -> Meter:
        """Look the key up in the list of meters."""
        for found in self._listed("meters", "key", name, deadline):
            if found.get("key") == name:
                place = self._web.place
                return _meter(place, found, name, {"since": "events_from", "gone": "deleted_at"})
        raise _no_meter(self._web.place, name)

    def question(self, meter: Meter, question: Question) -> str:
        """Write the address and the body."""
        body = json.dumps(self._body(question), ensure_ascii=False)
        return f"POST {self._web.url(self._path(meter))}\n{body}"

    def totals(self, meter: Meter, question: Question, deadline: Deadline) -> dict[str, Decimal]:
        """Ask with all filters in the body."""
        answer = self._web.post(self._path(meter), self._body(question), deadline=deadline)
        totals = _Totals(f"{self._web.place}: meter {shown(meter.name)}", question)
        return totals.of(answer, _subject_dimension)

    def lists(self, subject: str, deadline: Deadline) -> bool:
        """Look for a customer whose usage is that of the subject."""
        name = "usage_attribution_subject_key"
        return any(
            subject in ((customer.get("usage_attribution") or {}).get("subject_keys") or ())
            for customer in self._listed("customers", name, subject, deadline)
        )

    def _path(self, meter: Meter) -> str:
        return f"/api/v3/openmeter/meters/{_segment(self._web.place, meter.id)}/query"

    @staticmethod
    def _body(question: Question) -> dict[str, Any]:
        dimensions: dict[str, Any] = {"subject": {"in": list(question.subjects)}}
        dimensions |= {column: {"eq": value} for column, value in question.filters}
        body: dict[str, Any] = {
            "group_by_dimensions": ["subject"],
            "filters": {"dimensions": dimensions},
        }
        if question.period is not None:
            start, end = question.period.start, question.period.end
            body = {"from": utc_text(start), "to": utc_text(end), **body}
        return body

    def _listed(
        self, what: str, name: str, value: str, deadline: Deadline
    ) -> Iterator[dict[str, Any]]:
        """Give every item of a list that may or may not be filtered, page after page."""
        place, seen = f"{self._web.place}: its list of {what}", 0
        for number in range(1, _MOST_PAGES + 1):
            query = [(f"filter[{name}]", value)]
            query += [("page[number]", str(number)), ("page[size]", str(_PAGE_SIZE))]
            answer = self._web.get(f"/api/v3/openmeter/{what}", query, deadline=deadline)
            items = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
                raise SourceInvalid(f"{place} is not a list of objects in data")
            yield from items
            seen += len(items)
            if not items or seen >= _total(place, answer):
                return
        raise SourceInvalid(f"{place} has more than {_MOST_PAGES} pages")


def _total(place: str, answer: dict[str, Any]) -> int:
    meta = answer.get("meta")
    page = meta.get("page") if isinstance(meta, dict) else None
    total = page.get("total") if isinstance(page, dict) else None
    if type(total) is not int:
        raise SourceInvalid(f"{place} does not say in meta.page.total how long it is")
    return total


def _subject_dimension(row: dict[str, Any]) -> Any:
    dimensions = row.get("dimensions")
    return dimensions.get("subject") if isinstance(dimensions, dict) else None


@dataclass(frozen=True, slots=True)
class _Totals:
    """Reads an answer to a question, and nothing that answers another one."""

    place: str
    question: Question

    def of(self, answer: Any, subject_of: Any) -> dict[str, Decimal]:
        """Return each subject's total; raise SourceInvalid."""
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise SourceInvalid(f"{self.place}: the answer has no list of rows in data")
        self._check_window(answer)
        totals: dict[str, Decimal] = {}
        for number, row in enumerate(answer["data"]):
            where = f"{self.place}: data[{number}]"
            if not isinstance(row, dict):
                raise SourceInvalid(f"{where} is not an object")
            subject = subject_of(row)
            if subject not in self.question.subjects:
                raise SourceInvalid(f"{where} is of {shown(subject)}, whom nobody asked for")
            if subject in totals:
                raise SourceInvalid(f"{where} is the second one of {shown(subject)}, not a total")
            value = row.get("value")
            try:
                totals[subject] = exact_quantity(value)
            except ValueError as error:
                raise SourceInvalid(f"{where}.value: {shown(value)} {error}") from None
        return totals

    def _check_window(self, answer: dict[str, Any]) -> None:
        """Refuse an answer about another time, or in windows."""
        if answer.get("windowSize") is not None:
            raise SourceInvalid(f"{self.place}: the answer is in windows, not one total")
        if self.question.period is None:
            return
        bounds = {"from": self.question.period.start, "to": self.question.period.end}
        for name, bound in bounds.items():
            if _moment(answer.get(name)) != bound:
                raise SourceInvalid(
                    f"{self.place}: the answer is about {name} {shown(answer.get(name))},"
                    f" not {utc_text(bound)}"
                )


def _meter(place: str, found: dict[str, Any], name: str, names: dict[str, str]) -> Meter:
    where = f"{place}: meter {shown(name)}"
    identity, aggregation, since = found.get("id"), found.get("aggregation"), names["since"]
    columns = found.get("groupBy") or found.get("dimensions") or {}
    if not isinstance(identity, str) or not isinstance(aggregation, str):
        raise SourceInvalid(f"{where}: its definition has no id or no aggregation")
    if not isinstance(columns, dict):
        raise SourceInvalid(f"{where}: what it groups by is not an object")
    if found.get(names["gone"]) is not None:
        raise SourceInvalid(f"{where} was deleted at {shown(found[names['gone']])}")
    begins = _moment(found.get(since))
    if begins is None and found.get(since) is not None:
        raise SourceInvalid(f"{where}: {since} {shown(found[since])} is no moment")
    return Meter(
        id=identity,
        name=name,
        aggregation=aggregation.lower(),
        columns=frozenset(columns),
        since=begins,
    )


def _moment(value: object) -> datetime | None:
    try:
        return moment_at(iso_microseconds(value, "reject"))
    except ValueError:
        return None


def _no_meter(place: str, name: str) -> SourceInvalid:
    return SourceInvalid(
        f"{place}: there is no meter {shown(name)}, so its usage is unknown, not 0;"
        " correct metric under components"
    )


def _segment(place: str, name: str) -> str:
    try:
        return path_segment(name)
    except ValueError as error:
        raise SourceInvalid(f"{place}: {shown(name)} {error}") from None


def grouped_subjects(subjects: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Give the subjects, each once, in groups of at most so many."""
    once = tuple(dict.fromkeys(subjects))
    for start in range(0, len(once), size):
        yield once[start : start + size]
