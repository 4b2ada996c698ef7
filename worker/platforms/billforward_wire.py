"""BillForward's JSON, read into our values; what cannot be right is an error that names it.

Recorded in 2026: null fields are left out, unknown fields and enum values are normal, usage
charges have the type `PricingComponent` and are told apart by `pricingComponentType`, and single
entities come in `results` too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from worker.domain import Delivery, Invoice, InvoiceState, Period, UsageCharge
from worker.errors import DeliveryRejected, PlatformAnswerInvalid
from worker.platforms.rest import ErrorBody
from worker.writes import ChargeWrite

_ID = re.compile(r"(?:[A-Z]{3}-)?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{8,12}")
_LARGEST_WHOLE = 10**18
_WORD = re.compile(r"[A-Za-z]{1,64}")
_STATES = {
    state.value: state
    for state in (
        InvoiceState.PENDING,
        InvoiceState.UNPAID,
        InvoiceState.PAID,
        InvoiceState.VOIDED,
    )
}
_ABOUT: dict[str, Literal["credentials", "absence", "platform"]] = {
    "Oauth": "credentials",
    "PermissionsError": "credentials",
    "NoSuchEntity": "absence",
    "ServerError": "platform",
    "BFError": "platform",
}


def delivery(platform: str, body: bytes, *, owes_ack: bool) -> Delivery:
    """Read a notification. Its `entity` is not looked at: it is a stale copy with a key twice."""
    notification = _notification(body)
    domain, action = (_word(notification, key) for key in ("domain", "action"))
    ours = (domain, action) == ("Invoice", "Pending")
    return Delivery(
        platform=platform,
        id=_id(notification, "id"),
        event=f"{domain}/{action}",
        invoice_id=_id(notification, "entityID") if ours else None,
        body=body,
        owes_ack=owes_ack,
    )


def _notification(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body, parse_constant=_refuse, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise DeliveryRejected("the body is nested too deeply") from None
    except ValueError as error:
        raise DeliveryRejected(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise DeliveryRejected("the body must be a JSON object, as BillForward sends it")
    return parsed


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, unless a key that decides something stands in it twice."""
    keys = [key for key, _ in pairs]
    for key in ("id", "domain", "action", "entityID"):
        if keys.count(key) > 1:
            raise ValueError(f'key "{key}" stands in it twice')
    return dict(pairs)


def _id(notification: Mapping[str, Any], key: str) -> str:
    """Return an id of BillForward's shape: it becomes part of a path, so nothing else passes."""
    value = notification.get(key)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DeliveryRejected(f'"{key}" is missing or not an id of BillForward')
    return value


def _word(notification: Mapping[str, Any], key: str) -> str:
    value = notification.get(key)
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise DeliveryRejected(f'"{key}" is missing or not a word')
    return value


def error_of(payload: Any) -> ErrorBody | None:
    """Find an error in a body; BillForward may send one at any status."""
    if not isinstance(payload, dict) or payload.get("errorType") is None:
        return None
    kind = str(payload["errorType"])
    return ErrorBody(kind, str(payload.get("errorMessage", "")), _ABOUT.get(kind, "request"))


def results(answer: Any) -> list[dict[str, Any]]:
    """Return the rows of the envelope every answer comes in."""
    if not isinstance(answer, dict):
        raise PlatformAnswerInvalid("the answer is not the envelope BillForward sends")
    return rows(answer.get("results"), "results")


def rows(value: Any, name: str) -> list[dict[str, Any]]:
    """Check that the value called `name` is a list of objects."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise PlatformAnswerInvalid(f'the answer has no list "{name}"')
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise PlatformAnswerInvalid(f'{row.get("id", "an answer")} has no text "{key}"')
    return value


def _number(row: Mapping[str, Any], key: str) -> Decimal:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PlatformAnswerInvalid(f'{row.get("id", "an answer")} has no number "{key}"')
    return Decimal(value)


def _whole(row: Mapping[str, Any], key: str) -> int:
    value = _number(row, key)
    if not -_LARGEST_WHOLE <= value <= _LARGEST_WHOLE or value != value.to_integral_value():
        raise PlatformAnswerInvalid(f'{row.get("id", "an answer")} has no whole number "{key}"')
    return int(value)


def _optional_text(row: Mapping[str, Any], key: str) -> str:
    """Return a text, or nothing where it is left out or null: never the word "None"."""
    return "" if row.get(key) is None else _text(row, key)


def invoice_id(row: Mapping[str, Any]) -> str:
    """Return which invoice a row is; an id that cannot be one becomes no part of a path."""
    value = _text(row, "id")
    if not _ID.fullmatch(value):
        raise PlatformAnswerInvalid("an invoice in the list has an id that cannot be one")
    return value


def charge_id(row: Mapping[str, Any]) -> str:
    """Return which charge a row is about."""
    return _text(row, "id")


def charge_version(row: Mapping[str, Any]) -> int:
    """Return which version of its charge a row is."""
    return _whole(row, "versionNumber")


def metadata(row: Mapping[str, Any], owner_id: str) -> Mapping[str, str]:
    """Read the metadata of a subscription or an account; its values are any scalars, as text."""
    if _text(row, "id") != owner_id:
        raise PlatformAnswerInvalid(f"asked for {owner_id}, got {_text(row, 'id')}")
    given = row.get("metadata") or {}
    if not isinstance(given, dict):
        raise PlatformAnswerInvalid(f"the metadata of {owner_id} is not an object")
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in given.items()
        if isinstance(value, str | int | Decimal)
    }


def is_usage(row: Mapping[str, Any]) -> bool:
    """Tell whether a charge is priced from usage and still counts."""
    return row.get("pricingComponentType") == "usage" and row.get("state") != "Voided"


def invoice(row: Mapping[str, Any]) -> Invoice:
    """Read an invoice."""
    state_text = _text(row, "state")
    embedded = [] if row.get("charges") is None else rows(row["charges"], "charges")
    return Invoice(
        id=_text(row, "id"),
        type=_text(row, "type"),
        state=_STATES.get(state_text, InvoiceState.OTHER),
        state_text=state_text,
        version=_whole(row, "versionNumber"),
        total=_number(row, "invoiceCost"),
        currency=_text(row, "currency"),
        subscription_id=_optional_text(row, "subscriptionID"),
        account_id=_optional_text(row, "accountID"),
        usage_charge_ids=frozenset(_text(row, "id") for row in embedded if is_usage(row)),
    )


def charge(row: Mapping[str, Any], invoice_id: str) -> UsageCharge:
    """Read a usage charge."""
    has_quantity = row.get("pricingComponentValue") is not None
    period, fault = _period(row)
    return UsageCharge(
        id=charge_id(row),
        invoice_id=invoice_id,
        subscription_id=_optional_text(row, "subscriptionID"),
        account_id=_optional_text(row, "accountID"),
        component=_text(row, "pricingComponentName"),
        name=_optional_text(row, "name"),
        quantity=_number(row, "pricingComponentValue") if has_quantity else None,
        amount=_number(row, "amount"),
        version=charge_version(row),
        period=period,
        period_fault=fault,
    )


def _period(row: Mapping[str, Any]) -> tuple[Period | None, str]:
    bounds = []
    for key in ("periodStart", "periodEnd"):
        text = row.get(key)
        try:
            bounds.append(datetime.fromisoformat(text if isinstance(text, str) else ""))
        except ValueError:
            return None, f"its {key} is {'missing' if text is None else 'not a moment'}"
    try:
        return Period(*bounds), ""
    except ValueError as error:
        return None, str(error)
    except OverflowError:  # a bound at the edge of the calendar has no moment in UTC
        return None, "its period is out of range"


def written(
    charge_id: str, quantity: int, invoice_id: str, answered: Sequence[dict[str, Any]]
) -> ChargeWrite:
    """Find the recalculated charge in an answer and check that it carries the quantity."""
    row = next((row for row in answered if row.get("id") == charge_id), None)
    if row is None:
        raise PlatformAnswerInvalid(f"the answer to recalculating {charge_id} is not about it")
    after = charge(row, invoice_id)
    if after.quantity != quantity:
        raise PlatformAnswerInvalid(
            f"asked {charge_id} to become {quantity}, it answered {after.quantity}"
        )
    return ChargeWrite(charge_id=charge_id, charge=after)
