"""CloudEvents become usage events exactly, or are refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cloudevents import EventRejected, parsed_json, usage_event
from worker.metering import UsageEvent

FIRST, LAST = datetime(1990, 1, 1), datetime(2090, 1, 1)  # noqa: DTZ001  Hypothesis wants it so
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/phones/7",
    "type": "text_message",
    "subject": "SUB-1",
    "time": "2026-11-02T10:00:00Z",
    "data": {"value": 3},
}


def read(**changed: Any) -> UsageEvent:
    """Read the good event with changes; None leaves an attribute out."""
    event = {key: value for key, value in {**GOOD, **changed}.items() if value is not None}
    return usage_event(parsed_json(json.dumps(event)))


def test_every_attribute_has_its_place() -> None:
    """Type is the metric; the rest keeps its name; what we do not use is not looked at."""
    assert read(traceparent="00-abc", datacontenttype="application/json") == UsageEvent(
        source="/phones/7",
        id="e-1",
        subject="SUB-1",
        metric="text_message",
        at=datetime(2026, 11, 2, 10, tzinfo=UTC),
        quantity=Decimal(3),
    )


@pytest.mark.parametrize("data", [None, {}, {"other": 1}])
def test_an_event_without_a_value_is_one(data: Any) -> None:
    """The default quantity is 1."""
    assert read(data=data).quantity == 1


@pytest.mark.parametrize("text", ["0.1", "1e3", "-5", "123456789012345678901.5", '"0.10"', "0"])
def test_quantities_are_exact(text: str) -> None:
    """Numbers and numbers in text are read digit by digit, never as a float."""
    event = usage_event(parsed_json(json.dumps(GOOD).replace('"value": 3', f'"value": {text}')))
    assert event.quantity == Decimal(text.strip('"'))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"specversion": "0.3"}, '"specversion" must be "1.0"'),
        ({"specversion": None}, '"specversion" must be "1.0"'),
        ({"id": None}, '"id" is missing'),
        ({"id": ""}, '"id" is missing'),
        ({"id": 7}, '"id" is no text; write it in quotes'),
        ({"id": "x" * 1025}, '"id" has more than 1024 characters'),
        ({"source": "a\x00b"}, '"source" has a character'),
        ({"source": "a\ud800b"}, '"source" has a character'),
        ({"subject": None}, '"subject" is missing'),
        ({"type": None}, '"type" is missing'),
        ({"time": None}, '"time" is missing'),
        ({"time": 1793491200}, '"time" is no text; write it as in "2026-11-02T10:00:00Z"'),
        ({"time": "2026-11-02T10:00:00"}, "has no zone"),
        ({"time": "2026-11-02"}, "only a date"),
        ({"time": "2026-W45-1T10:00:00Z"}, "no date and time of RFC 3339"),
        ({"time": "20261102T100000Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02 10:00:00Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T10:00Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T10:00:00,5Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T10:00:00+01"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T10:00:00+01:00:30"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T24:00:00Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-02-30T10:00:00Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-11-02T10:00:00Z\n"}, "no date and time of RFC 3339"),
        ({"time": "٢٠٢٦-11-02T10:00:00Z"}, "no date and time of RFC 3339"),
        ({"time": "2026-12-31T23:59:60Z"}, "leap second"),
        ({"time": "1980-01-01T00:00:00+10:00"}, "not between 1980 and 9998"),
        ({"time": "9998-12-31T23:00:00-02:00"}, "not between 1980 and 9998"),
        ({"time": "0001-01-01T00:00:00+23:59"}, "not between 1980 and 9998"),
        ({"time": "9999-12-31T23:59:59-23:59"}, "not between 1980 and 9998"),
        ({"time": "yesterday"}, "no date and time"),
        ({"time": "1970-01-01T00:00:00Z"}, "not between 1980 and 9998"),
        ({"data": [1]}, '"data" must be an object'),
        ({"data": "3"}, '"data" must be an object'),
        ({"data_base64": "Mw=="}, "not data_base64"),
        ({"data": {"value": True}}, "data.value is no number"),
        ({"data": {"value": None}}, "data.value is no number"),
        ({"data": {"value": "three"}}, "data.value is no number"),
        ({"data": {"value": "1_000"}}, "data.value is no number"),
        ({"data": {"value": " 3"}}, "data.value is no number"),
        ({"data": {"value": "NaN"}}, "data.value is no finite number"),
        ({"data": {"value": "1e31"}}, "data.value has more than 30 digits"),
        ({"data": {"value": "1e-31"}}, "data.value has more than 30 digits"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(changed: dict[str, Any], told: str) -> None:
    """The refusal names the attribute and what is wrong with it."""
    with pytest.raises(EventRejected, match=told):
        read(**changed)


@pytest.mark.parametrize("text", ["{", "[1", '{"a": NaN}', "[" * 100_000, "1e9999999999999999999"])
def test_what_is_no_json_is_refused(text: str) -> None:
    """Broken, endless, too deep or absurd JSON is one clear refusal."""
    with pytest.raises(EventRejected):
        usage_event(parsed_json(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{bad", "it is not JSON: Expecting property name enclosed in double quotes: column 2"),
        ('{"a": 1,\n "b": }', "it is not JSON: Expecting value: line 2, column 7"),
        (
            "\n\n {bad",
            "it is not JSON: Expecting property name enclosed in double quotes: line 3, column 3",
        ),
    ],
)
def test_what_is_no_json_is_told_with_its_place(text: str, told: str) -> None:
    """The line is named where there are several, and no place twice."""
    with pytest.raises(EventRejected) as refused:
        parsed_json(text)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("once", "twice", "name"),
    [
        ('"id": "e-1"', '"id": "v", "id": "e-1"', '"id"'),
        ('"value": 3', '"value": 5, "value": 3', '"value"'),
        ('"value": 3', '"value": 3, "value": 3', '"value"'),
        ('"data": {', '"data": {"value": 9}, "data": {', '"data"'),
        ('"id": "e-1"', '"id": "e-1", "\\ud800": 1, "\\ud800": 2', r'"\ud800"'),
    ],
)
def test_a_name_that_stands_twice_is_refused(once: str, twice: str, name: str) -> None:
    """Which of two values was meant is not guessed, and the refusal names their name."""
    text = json.dumps(GOOD)
    assert usage_event(parsed_json(text)).id == "e-1"
    assert once in text
    with pytest.raises(EventRejected) as refused:
        usage_event(parsed_json(text.replace(once, twice)))
    assert str(refused.value).startswith(f"{name} stands twice in one object")


@given(st.datetimes(FIRST, LAST), st.integers(-839, 839))
def test_the_instant_is_kept_whatever_the_offset(moment: datetime, minutes: int) -> None:
    """The same instant is read from any zone it is written in, to the microsecond."""
    at = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert read(time=at.isoformat()).at == at


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2026-11-02t10:00:00z", 0),
        ("2026-11-02T12:30:00.5+02:30", 500_000),
        ("2026-11-02T10:00:00.123456789Z", 123_456),
        ("2026-11-02T10:00:00-00:00", 0),
    ],
)
def test_every_spelling_of_rfc_3339_is_read(text: str, microsecond: int) -> None:
    """Small letters, any fraction, any offset; what is finer than a microsecond is cut off."""
    assert read(time=text).at == datetime(2026, 11, 2, 10, 0, 0, microsecond, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["1979-12-31T23:00:00-02:00", "9999-01-01T01:00:00+02:00", "1980-01-01T00:00:00Z"]
)
def test_the_first_and_last_instants_count_in_utc(text: str) -> None:
    """The year is that of the instant, whatever zone it is written in."""
    assert read(time=text).at == datetime.fromisoformat(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_else_is_refused_and_nothing_crashes(value: Any) -> None:
    """No JSON value but an event becomes one."""
    with pytest.raises(EventRejected):
        usage_event(value)
