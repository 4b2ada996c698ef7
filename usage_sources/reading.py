"""Moments, quantities and answers, read and written exactly; pure, shared by the sources here."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow
from typing import Any, Literal, TypeVar

from worker.domain import Aggregation, Period, UsageQuery
from worker.errors import SourceInvalid

_Key = TypeVar("_Key", bound=Hashable)

TimeFormat = Literal["iso", "epoch_seconds", "epoch_milliseconds", "epoch_microseconds", "native"]
NaiveTimes = Literal["reject", "utc"]

EPOCH_UNITS = {  # microseconds in one unit
    "epoch_seconds": 1_000_000,
    "epoch_milliseconds": 1_000,
    "epoch_microseconds": 1,
}

# Usage outside these years means that the unit is wrong: seconds read as milliseconds are in
# 1970, milliseconds read as seconds far beyond 9999. Both would be counted as an empty period.
EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES_LOOKED_AT = 200  # of the metrics there are, to name the ones nearest to one that is not

_DIGITS = 60  # at most so many before and so many after the point
_EXACT = Context(prec=200, traps=[Inexact, InvalidOperation, Overflow])
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def microseconds(moment: datetime) -> int:
    """Return an aware moment as whole microseconds since 1970 in UTC."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment_at(count: int) -> datetime:
    """Return the moment that lies so many microseconds after 1970."""
    try:
        return _EPOCH + timedelta(microseconds=count)
    except OverflowError:
        raise ValueError("is no moment between the years 1 and 9999") from None


def iso_microseconds(text: object, naive_times: NaiveTimes) -> int:
    """Read ISO 8601 text with any offset; digits beyond microseconds are cut off.

    Cutting keeps `start <= t < end` exact, because a period's bounds are whole microseconds.
    """
    if not isinstance(text, str):
        raise ValueError("is not ISO 8601 text")  # noqa: TRY004 - a value of the data, not a bug
    if text[10:11] not in ("T", " ", "t") and text[8:9] not in ("T", "t"):
        raise ValueError("is not an ISO 8601 date and time")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = _spelt_small(text)
    if moment.tzinfo is None:
        moment = with_zone(moment, naive_times)
    return microseconds(moment)


def _spelt_small(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        raise ValueError("is not an ISO 8601 date and time") from None


def with_zone(moment: datetime, naive_times: NaiveTimes) -> datetime:
    """Give a moment without zone the one that the settings state, or refuse it."""
    if moment.tzinfo is not None:
        return moment
    if naive_times == "reject":
        raise ValueError('has no zone; if such times are UTC, set naive_times = "utc"')
    return moment.replace(tzinfo=UTC)


def epoch_microseconds(value: object, time_format: TimeFormat) -> int:
    """Read a number of seconds, milliseconds or microseconds since 1970, written in any type."""
    count = int((stored_quantity(value) * EPOCH_UNITS[time_format]).__floor__())
    if not microseconds(EARLIEST) <= count < microseconds(LATEST):
        raise ValueError(f"is not between 1980 and 9999 when read as {time_format}")
    return count


def exact_quantity(value: object) -> Decimal:
    """Read a quantity that a source answered; a float or a missing value is refused."""
    if isinstance(value, float):
        raise ValueError(  # noqa: TRY004 - a value of the data, not a bug
            "is a float, which cannot carry a quantity exactly; cast it to text or numeric"
            " (on SQLite, sum with decimal_sum)"
        )
    return stored_quantity(value)


def stored_quantity(value: object) -> Decimal:
    """Read a quantity as it is stored; a float counts as its shortest decimal text."""
    if type(value) is int:
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise ValueError("is not a number")  # noqa: TRY004 - a value of the data, not a bug
    text = str(value) if isinstance(value, float) else value
    if isinstance(text, str) and (not text.isascii() or "_" in text):
        raise ValueError("is not a number")
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("is not a number") from None
    if not number.is_finite():
        raise ValueError("is not a finite number")
    if number.adjusted() >= _DIGITS or int(number.as_tuple().exponent) < -_DIGITS:
        raise ValueError(f"has more than {_DIGITS} digits before or after the point")
    return number


def exact_sum(one: Decimal, other: Decimal) -> Decimal:
    """Add without rounding, whatever the context of the thread is."""
    try:
        return _EXACT.add(one, other)
    except DecimalException:
        raise ValueError("cannot be added exactly") from None


def plain(number: Decimal) -> str:
    """Write a number without exponent and without idle zeros: equal numbers, equal texts."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def digest(query: UsageQuery, value: Decimal | None, events: int | None) -> str:
    """Return the SHA-256 of an answer as canonical JSON: keys sorted, numbers written plainly."""
    answer = {
        "component": query.component,
        "events": events,
        "metric": query.metric,
        "subject": query.subject,
        "value": None if value is None else plain(value),
    }
    return hashlib.sha256(_CANONICAL.encode(answer).encode()).hexdigest()


def empty_value(aggregation: Aggregation) -> Decimal:
    """Return what a known subject without events used; only sums of things can be zero."""
    if aggregation in (Aggregation.MAX, Aggregation.LAST):
        raise ValueError(f"no value in the period, so there is no {aggregation}")
    return Decimal(0)


def nothing_used(place: str, query: UsageQuery) -> Decimal:
    """Return what a known subject without events used; SourceInvalid where that is no number."""
    try:
        return empty_value(query.aggregation)
    except ValueError as error:
        raise SourceInvalid(
            f"{place}: subject {shown(query.subject)}, {shown(query.metric)}"
            f" in {query.period}: {error}"
        ) from None


def lagging(now: datetime, lag_seconds: float | None) -> datetime | None:
    """Return up to when everything is in, a lag before now; None: no lag is stated."""
    return None if lag_seconds is None else now - timedelta(seconds=lag_seconds)


def stated_watermark(
    place: str, rows: Sequence[Sequence[Any]], read: Callable[[Any], datetime]
) -> datetime:
    """Return the one moment that a watermark_query gave; SourceInvalid: it gave no such."""
    if len(rows) != 1 or len(rows[0]) != 1:
        raise SourceInvalid(f"{place}: watermark_query must give one value")
    try:
        return read(rows[0][0])
    except ValueError as error:
        raise SourceInvalid(f"{place}: watermark_query: {shown(rows[0][0])} {error}") from None


def nobody(now: datetime) -> UsageQuery:
    """Ask for nobody's usage over no time, to see that a source answers at all.

    The period is at a whole second, which every source can express.
    """
    moment = now.replace(microsecond=0)
    return UsageQuery(
        charge_id="",
        subject="",
        component="",
        metric="",
        aggregation=Aggregation.COUNT,
        period=Period(moment, moment),
    )


def grouped(
    queries: Iterable[UsageQuery], key: Callable[[UsageQuery], _Key]
) -> dict[_Key, list[UsageQuery]]:
    """Put queries with equal keys together, in the order they came."""
    groups: dict[_Key, list[UsageQuery]] = {}
    for query in queries:
        groups.setdefault(key(query), []).append(query)
    return groups


def shown(value: Any) -> str:
    """Show a value of the data in an error's one line, cut to a readable length."""
    text = "NULL" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def no_metrics_apart(place: str, queries: list[UsageQuery]) -> str | None:
    """Say why a source that knows no metrics cannot answer; None: it is asked for one only."""
    asked = sorted({query.metric for query in queries})
    if len(asked) < 2:
        return None
    return f"{place} cannot tell the metrics {', '.join(map(shown, asked))} apart"


def nearest(name: str, names: Collection[str]) -> list[str]:
    """Return the few names that are most like this one; without any like it, the first."""
    return difflib.get_close_matches(name, names, cutoff=0.4) or sorted(names)[:5]


def never_used(
    place: str,
    column: str,
    metrics: Sequence[str],
    names: Collection[str],
    *,
    called: str = "column",
) -> str:
    """Say that metrics are in no row at all, so that their counts are unknown and not zero."""
    near = dict.fromkeys(each for name in metrics[:3] for each in nearest(name, names)[:3])
    has = f"nearest: {', '.join(map(shown, near))}" if near else "it has no metric at all"
    more = f" and {len(metrics) - 5} more" if len(metrics) > 5 else ""
    return (
        f"{place}: nobody ever used the metric {', '.join(map(shown, metrics[:5]))}{more}"
        f" ({called} {column}), so its count is unknown, not 0; {has}; correct metric under"
        " components, or list it in the source's known_metrics if its first event is yet to come"
    )
