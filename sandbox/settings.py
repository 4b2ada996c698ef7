"""The switches of a sandbox: one frozen value, each with the behaviour it chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeGuard


class UnknownSettingError(ValueError):
    """A setting was named that does not exist, or given a value of the wrong type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this sandbox behaves where BillForward is silent; durations are in seconds."""

    max_records: int | None = None
    """Largest page; a bigger `records` is cut to it, as `recordsRequested` shows. None: no cap."""
    unknown_id_is_empty: bool = False
    """An unknown id is answered with 200 and no results, instead of 404 NoSuchEntity."""
    include_retired_by_default: bool = False
    """What `include_retired` means where a request does not say."""
    cost_follows_charges: bool = False
    """An invoice's cost changes with each charge, instead of at the invoice's recalculation."""
    charge_recalculation_bumps_invoice: bool = False
    """Recalculating a charge raises its invoice's versionNumber too."""
    batch_is_atomic: bool = True
    """A batch with one bad charge writes none; False: it writes those before the bad one."""
    reissue_allowed: bool = False
    """An invoice that a colleague un-issued may be issued again, instead of a second_issue."""
    record_state_conflicts: bool = True
    """A write on a Voided or Paid invoice counts as a violation; it is refused either way."""
    strict_quantities: bool = True
    """A quantity outside all tiers is refused; False: the nearest tier prices the rest."""
    first_invoice_has_usage: bool = False
    """A subscription's first invoice carries usage charges over a zero-length period."""
    pay_after_seconds: float | None = None
    """Sandbox time between issue and automatic payment. None: it stays Unpaid."""
    latency_seconds: float = 0.0
    """Added to every answer of the API, after the state has changed."""
    notify_on_recalculation: bool = True
    """Recalculating an invoice notifies the state it ends in."""
    notification_copies: int = 1
    """How often each notification is sent under the same id."""
    reorder_window: int = 0
    """Notifications held back and shuffled together; 0 or 1 keeps their order."""
    reorder_seed: int = 0
    """Seed of that shuffle."""
    reorder_hold_seconds: float = 0.5
    """How long an unfilled window is held before it is sent all the same."""
    redelivery_seconds: tuple[float, ...] = (0.5, 2.0, 5.0)
    """Pauses before each further attempt after a failure; afterwards it is given up."""
    ack_attempts: int = 20
    """Attempts for a webhook with ackEnabled that never acknowledges; the last pause repeats."""
    notification_timeout_seconds: float = 5.0
    """How long a webhook may take to answer before the attempt has failed."""

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """Return these settings with *changes*; UnknownSettingError names each wrong key."""
        unknown = sorted(set(changes) - set(KINDS))
        if unknown:
            raise UnknownSettingError(f"no such setting: {', '.join(unknown)}")
        return dataclasses.replace(self, **{k: _value(k, v) for k, v in changes.items()})

    def as_json(self) -> dict[str, Any]:
        """Return every setting by name, as JSON types."""
        return dataclasses.asdict(self)


KINDS: Mapping[str, str] = {field.name: str(field.type) for field in dataclasses.fields(Settings)}


def _value(name: str, value: object) -> Any:
    kind = KINDS[name]
    if value is None and kind.endswith("| None"):
        return None
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.startswith("int") and _is_number(value, int):
        return value
    if kind.startswith("float") and _is_number(value, int, float, Decimal):
        return float(str(value))
    if kind.startswith("tuple") and _are_numbers(value):
        return tuple(float(item) for item in value)
    raise UnknownSettingError(f"setting {name} must be {kind} and not negative, got {value!r}")


def _are_numbers(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and all(
        _is_number(item, int, float, Decimal) for item in value
    )


def _is_number(value: object, *kinds: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return isinstance(value, int | float | Decimal) and value >= 0
