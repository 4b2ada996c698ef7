"""Reading a total, or pages of events, from the answers of a JSON API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from usage_sources.http_api.text import JsonPath
from usage_sources.reading import exact_quantity, exact_sum, shown
from usage_sources.web import Deadline, WebApi
from worker.domain import Aggregation
from worker.errors import SourceInvalid

T = TypeVar("T")


class Found(NamedTuple):
    """What an API answered; `value` None: it does not know the subject."""

    value: Decimal | None
    events: int | None
    pages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where things stand in an answer: either a value, or items on one page or several."""

    value_path: str | None
    events_path: str | None
    items_path: str | None
    item_value_path: str | None
    next_path: str | None
    last_page_omits_next: bool
    cursor_parameter: str | None
    max_pages: int


class Answer:
    """The answer to one question, beginning with its first page."""

    def __init__(self, web: WebApi, shape: Shape, url: str, deadline: Deadline) -> None:
        self._web = web
        self._shape = shape
        self._url = url
        self._deadline = deadline
        self._first = web.get_url(url, deadline=deadline)

    def found(self, aggregation: Aggregation) -> Found:
        """Return the number; raise SourceInvalid, naming the path, where it is not there."""
        shape = self._shape
        if shape.value_path is not None:
            value = self._at("value_path", shape.value_path, self._first, exact_quantity)
            events = None
            if shape.events_path is not None:
                events = self._at("events_path", shape.events_path, self._first, _whole)
            return Found(value, events)
        total, events, pages = Decimal(0), 0, 0
        for pages, page in enumerate(self._pages(), start=1):
            items = self._at("items_path", shape.items_path or "$", page, _list)
            events += len(items)
            if aggregation is Aggregation.SUM:
                for number, item in enumerate(items):
                    total = self._plus(total, item, f"page {pages}, item {number}: ")
        return Found(total if aggregation is Aggregation.SUM else Decimal(events), events, pages)

    def _plus(self, total: Decimal, item: Any, where: str) -> Decimal:
        path = self._shape.item_value_path or "$"
        return self._at(
            f"{where}item_value_path",
            path,
            item,
            lambda each: exact_sum(total, exact_quantity(each)),
        )

    def _pages(self) -> Iterator[Any]:
        url, page, seen = self._url, self._first, {self._url}
        yield page
        while link := self._link(page):
            url = self._next(url, link)
            if url in seen:
                raise SourceInvalid(f"{self._web.place}: its pages go in a circle")
            if len(seen) >= self._shape.max_pages:
                raise SourceInvalid(
                    f"{self._web.place}: more than {self._shape.max_pages} pages; see max_pages"
                )
            seen.add(url)
            page = self._web.get_url(url, deadline=self._deadline)
            yield page

    def _link(self, page: Any) -> str | None:
        """Return what leads to the next page; None: this is the last."""
        path = self._shape.next_path
        if path is None:
            return None
        try:
            link = JsonPath(path).find(page)
        except LookupError:
            if self._shape.last_page_omits_next:
                return None
            raise SourceInvalid(
                f"{self._web.place}: next_path {path}: there is nothing in the answer; if that"
                " means the last page, set last_page_omits_next"
            ) from None
        if link is None or link == "":
            return None
        if type(link) is int and self._shape.cursor_parameter is not None:
            return str(link)
        if not isinstance(link, str):
            raise SourceInvalid(
                f"{self._web.place}: next_path {path}: {shown(link)} leads to no page"
            )
        return link

    def _next(self, url: str, link: str) -> str:
        name = self._shape.cursor_parameter
        if name is None:
            return self._web.next_url(url, link)
        try:
            parameter = f"{quote(name, safe='')}={quote(link, safe='')}"
        except UnicodeEncodeError:
            raise SourceInvalid(f"{self._web.place}: a cursor is not Unicode text") from None
        return f"{self._url}{'&' if '?' in self._url else '?'}{parameter}"

    def _at(self, setting: str, path: str, document: Any, read: Callable[[Any], T]) -> T:
        where = f"{self._web.place}: {setting} {path}"
        try:
            value = JsonPath(path).find(document)
        except LookupError:
            raise SourceInvalid(f"{where}: there is nothing in the answer") from None
        try:
            return read(value)
        except ValueError as error:
            raise SourceInvalid(f"{where}: {shown(value)} {error}") from None


def _whole(value: Any) -> int:
    number = exact_quantity(value)
    if number < 0 or number != int(number):
        raise ValueError("is no number of events")
    return int(number)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("is no list")  # noqa: TRY004 - a value of the data, not a bug
    return value
