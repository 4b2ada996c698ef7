"""The HTTP API of Prometheus, as far as counting needs it: raw samples, labels, types.

An instant query for a range selector answers raw samples with their own times. Its range is
closed at its old end in Prometheus 2 and open in Prometheus 3, so that a sample which lies there
exactly is left out here and belongs to the range before. The range of time that lists of labels
and their values are made of is always named, for other servers of this API have other defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from usage_sources.prometheus.tracks import Labels, Series, Unknown, moment_text
from usage_sources.reading import shown
from usage_sources.web import Deadline, NotThere, Query, Refused, WebApi
from worker.domain import utc_text
from worker.errors import SourceInvalid, SourceUnavailable

Matchers = Sequence[tuple[str, str]]  # a label, and what it must be equal to

NAME = "__name__"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OF_HISTOGRAMS = ("le", "quantile")


class PrometheusApi:
    """Asks one server, up to one deadline; remembers what a count asks again and again."""

    def __init__(self, web: WebApi, deadline: Deadline) -> None:
        self.place = web.place
        self._web = web
        self._deadline = deadline
        self._columns: dict[str, frozenset[str]] = {}
        self._types: dict[str, frozenset[str]] = {}

    def check(self) -> None:
        """Raise unless the server evaluates a query."""
        answer = self._asked("/api/v1/query", [("query", "1")])
        if not isinstance(answer, dict) or answer.get("resultType") != "scalar":
            raise self._wrong("/api/v1/query", "it cannot evaluate a query")

    def columns(self, matchers: Matchers) -> frozenset[str]:
        """Return the labels that such series have or ever had; empty: there are no such series."""
        key = selector(matchers)
        if key not in self._columns:
            self._columns[key] = frozenset(self._names("/api/v1/labels", matchers))
        return self._columns[key]

    def has_value(self, label: str, matchers: Matchers) -> bool:
        """Tell whether any series ever had these labels; `label` is one of them."""
        return bool(self._names(f"/api/v1/label/{label}/values", matchers))

    def metrics(self) -> list[str]:
        """Return the metrics that there are or ever were."""
        return self._names(f"/api/v1/label/{NAME}/values", ())

    def types(self, metric: str) -> frozenset[str]:
        """Return what the targets that are scraped now call the metric; empty: unsaid."""
        if metric not in self._types:
            self._types[metric] = frozenset(self._metadata(metric))
        return self._types[metric]

    def samples(self, matchers: Matchers, after: int, upto: int) -> list[Series]:
        """Return the raw samples with `after < time <= upto`, in milliseconds."""
        answer = self._instant(f"{selector(matchers)}[{upto - after}ms]", upto, "matrix")
        series = [self._series(each, matchers, after, upto) for each in answer]
        if len({each.labels for each in series}) < len(series):
            raise self._wrong("/api/v1/query", "a series stands in it twice")
        return series

    def earlier(self, matchers: Matchers, upto: int, days: int) -> set[Labels]:
        """Return the series with any sample in the days up to this moment."""
        query = f"count_over_time({selector(matchers)}[{days}d])"
        return {self._labels(each) for each in self._instant(query, upto, "vector")}

    def _names(self, path: str, matchers: Matchers) -> list[str]:
        bounds = [("start", "0"), ("end", utc_text(datetime.now(UTC)))]
        match = [("match[]", selector(matchers))] if matchers else []
        names = self._asked(path, [*match, *bounds])
        if names is None:
            return []
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise self._wrong(path, "its data is no list of texts")
        return [each for each in names if each]

    def _metadata(self, metric: str) -> Iterable[str]:
        path = "/api/v1/metadata"
        try:
            found = self._asked(path, [("metric", metric)])
        except NotThere:
            return []
        try:
            return [str(each["type"]) for each in (found or {}).get(metric, [])]
        except (TypeError, KeyError, AttributeError):
            raise self._wrong(path, "its data is no table of metrics") from None

    def _instant(self, query: str, at: int, kind: str) -> list[Any]:
        path = "/api/v1/query"
        try:
            answer = self._asked(path, [("query", query), ("time", moment_text(at))])
        except Refused as error:
            if "too many samples" not in str(error):
                raise
            raise SourceInvalid(
                f"{error}; lower chunk_seconds, or raise the server's query.max-samples"
            ) from None
        result = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(result, list) or answer.get("resultType") != kind:
            raise self._wrong(path, f"its data is no {kind}")
        return result

    def _series(self, each: Any, matchers: Matchers, after: int, upto: int) -> Series:
        path = "/api/v1/query"
        labels = self._labels(each)
        given = {**dict(labels), NAME: each["metric"].get(NAME)}
        if any(given.get(name) != value for name, value in matchers):
            raise self._wrong(path, "it holds a series that was not asked for")
        if each.get("histograms") or not given.keys().isdisjoint(_OF_HISTOGRAMS):
            raise Unknown("it is a histogram or a summary; count its _count or _sum instead")
        samples: list[tuple[int, str]] = []
        last = after
        for time, text in self._pairs(each):
            at = time * 1000
            if at != int(at) or at > upto:
                raise self._wrong(path, f"a sample's time, {shown(str(time))}, cannot be")
            if at <= after:
                continue
            if at <= last:
                raise self._wrong(path, "its samples are not in order")
            last = int(at)
            samples.append((last, text))
        return Series(labels, samples)

    def _pairs(self, each: Any) -> list[tuple[int | Decimal, str]]:
        values = each.get("values")
        if not isinstance(values, list) or not all(_is_sample(pair) for pair in values):
            raise self._wrong("/api/v1/query", "a sample is no pair of a time and a text")
        return values

    def _labels(self, each: Any) -> Labels:
        labels = each.get("metric") if isinstance(each, dict) else None
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            raise self._wrong("/api/v1/query", "a series has no labels")
        return tuple(sorted((name, value) for name, value in labels.items() if name != NAME))

    def _asked(self, path: str, query: Query) -> Any:
        answer = self._web.get(path, query, deadline=self._deadline)
        if not isinstance(answer, dict) or answer.get("status") != "success":
            raise self._wrong(path, "it does not say success")
        if answer.get("isPartial") or answer.get("warnings"):
            raise SourceUnavailable(
                f"{self.place}: GET {path}: the answer is partial or has warnings, so it is not"
                " the whole of what there is"
            )
        return answer.get("data")

    def _wrong(self, path: str, why: str) -> SourceInvalid:
        return SourceInvalid(f"{self.place}: GET {path}: this is no answer of Prometheus: {why}")


def selector(matchers: Matchers) -> str:
    """Write a PromQL selector; the texts are escaped, and the names must have been checked."""
    # Each escape that JSON writes here means the same in PromQL, as long as it is not ASCII only.
    each = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in matchers)
    return f"{{{','.join(each)}}}"


def is_label(name: str) -> bool:
    """Tell whether this can be the name of a label, other than that of the metric's name."""
    return _LABEL.fullmatch(name) is not None and name != NAME


def _is_sample(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and type(pair[0]) in (int, Decimal)
        and isinstance(pair[1], str)
    )
