"""What ClickHouse's column types can hold: names, quantities and times, each compared exactly."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from usage_sources.reading import EPOCH_UNITS, microseconds, moment_at
from worker.domain import Period

TimeFormat = Literal["native", "epoch_seconds", "epoch_milliseconds", "epoch_microseconds"]
Name = str | int

# DateTime64 holds more, but not in each of its precisions.
EARLIEST_NATIVE = datetime(1925, 1, 1, tzinfo=UTC)
LATEST_NATIVE = datetime(2262, 1, 1, tzinfo=UTC)

_WRAPPED = re.compile(r"(?:LowCardinality|Nullable)\((.*)\)", re.DOTALL)
_TYPE = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)
_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)")
_AS_TEXT = ("Bool", "Date", "Date32", "Enum8", "Enum16", "IPv4", "IPv6")
_FLOAT_SCALE = 38
# A float's shortest text has 17 digits at most: between these bounds all of them fit.
_FLOAT_FITS = "({0} = 0 OR (abs({0}) >= 1e-20 AND abs({0}) < 1e30))"


def quoted(name: str) -> str:
    """Write an identifier so that it is nothing else, whatever it is made of."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


@dataclass(frozen=True)
class ColumnType:
    """A column's type without what wraps it."""

    text: str  # as the server writes it
    base: str  # e.g. "DateTime64"
    arguments: str  # e.g. "6, 'UTC'"
    nullable: bool

    @classmethod
    def of(cls, text: str) -> ColumnType:
        """Read a type as system.columns has it."""
        inner = text
        while found := _WRAPPED.fullmatch(inner):
            inner = found[1]
        named = _TYPE.fullmatch(inner)
        base, arguments = (named[1], named[2] or "") if named else (inner, "")
        return cls(text, base, arguments, "Nullable(" in text)


@dataclass(frozen=True)
class Key:
    """A column that is matched against names: how it is compared, and how a name is bound."""

    expression: str
    parameter_type: str  # of a list of names
    bind: Callable[[str], Name | None]  # None: no row can have this name
    text: str  # what is selected and grouped by: the name as it is bound

    def is_one_of(self, parameter: str) -> str:
        """Compare with a list that is bound later."""
        return f"{self.expression} IN {{{parameter}:{self.parameter_type}}}"

    def values(self, names: list[str]) -> list[Name]:
        """Bind the names that the column's type can hold."""
        return [value for name in names if (value := self.bind(name)) is not None]


def key_of(name: str, kind: ColumnType) -> Key | None:
    """Say how a column is matched against names; None: its values are no names."""
    column = quoted(name)
    if kind.base == "String":
        return Key(column, "Array(String)", _as_text, column)
    if kind.base == "FixedString":
        length = int(kind.arguments)
        unpadded = f"toString({column})"
        return Key(column, "Array(String)", partial(_as_fixed, length=length), unpadded)
    if whole := _INTEGER.fullmatch(kind.base):
        lowest, highest = _range(signed=not whole[1], bits=int(whole[2]))
        bind = partial(_as_integer, lowest=lowest, highest=highest)
        return Key(column, f"Array({kind.base})", bind, column)
    if kind.base == "UUID":
        return Key(column, "Array(UUID)", _as_uuid, column)
    if kind.base in _AS_TEXT:
        text = f"toString({column})"
        return Key(text, "Array(String)", _as_text, text)
    return None


@dataclass(frozen=True)
class Quantity:
    """A column of numbers: the value that adds up exactly, and how a misfit shows."""

    column: str
    exact: str  # a 256 bit integer or decimal
    scale: int  # digits after the point that `exact` keeps
    fits: str | None  # false where `exact` would not be the number; None: it always is


def quantity_of(name: str, kind: ColumnType) -> Quantity | None:
    """Say how a column's numbers are added; None: they are no numbers."""
    column = quoted(name)
    if _INTEGER.fullmatch(kind.base):
        return Quantity(column, f"toInt256({column})", 0, None)
    if kind.base == "Decimal":
        scale = int(kind.arguments.partition(",")[2])
        return Quantity(column, f"toDecimal256({column}, {scale})", scale, None)
    if kind.base in ("Float32", "Float64"):
        exact = f"toDecimal256OrZero(toString({column}), {_FLOAT_SCALE})"
        return Quantity(column, exact, _FLOAT_SCALE, _FLOAT_FITS.format(column))
    return None


@dataclass(frozen=True)
class Clock:
    """A column of times: how a moment is written to be compared with it, and its whole unit."""

    column: str
    nullable: bool
    parameter_type: str
    unit: int  # in microseconds; a column that keeps more than those has 1
    native: bool

    def bound(self, moment: datetime) -> str | int:
        """Write one moment; between two whole units the later one decides, for `>=` and `<`."""
        count = -(-microseconds(moment) // self.unit)
        if not self.native:
            return count
        if not EARLIEST_NATIVE <= moment < LATEST_NATIVE:
            raise ValueError(f"{moment.isoformat()} is beyond what a {self.parameter_type} holds")
        written = moment_at(count * self.unit).replace(tzinfo=None)
        return written.isoformat(" ", "seconds" if self.unit == 1_000_000 else "microseconds")

    def splits(self, period: Period) -> bool:
        """Tell whether an edge of the period lies between two whole units of the column."""
        return any(microseconds(edge) % self.unit for edge in (period.start, period.end))

    def shown(self) -> str:
        """Write a stored time as text, whatever zone the column is shown in."""
        zone = ", 'UTC'" if self.native else ""
        return f"toString({self.column}{zone})"


def clock_of(name: str, kind: ColumnType, time_format: TimeFormat) -> Clock | str:
    """Say how a column's times are compared, or why they cannot be."""
    if time_format == "native":
        if kind.base not in ("DateTime", "DateTime64"):
            return "is no DateTime or DateTime64; set another time_format, or name another column"
        digits = int(kind.arguments.partition(",")[0]) if kind.base == "DateTime64" else 0
        written_as = f"DateTime64({digits}, 'UTC')"
        unit: int = 10 ** max(0, 6 - digits)
        return Clock(quoted(name), kind.nullable, written_as, unit, native=True)
    if kind.base in ("DateTime", "DateTime64"):
        return 'is a time by itself; set time_format = "native"'
    if not _INTEGER.fullmatch(kind.base):
        return f"does not hold whole numbers, as {time_format} needs"
    return Clock(quoted(name), kind.nullable, "Int64", EPOCH_UNITS[time_format], native=False)


def _range(*, signed: bool, bits: int) -> tuple[int, int]:
    lowest: int = -(2 ** (bits - 1)) if signed else 0
    return lowest, lowest + 2**bits - 1


def _as_text(name: str) -> str | None:
    """Give a name unless it has half a character, which no UTF-8 text holds."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    return name


def _as_fixed(name: str, length: int) -> str | None:
    """Give a name that fits; zero bytes at the end only pad a FixedString."""
    text = _as_text(name)
    fits = text is not None and len(text.encode()) <= length and not text.endswith("\0")
    return text if fits else None


def _as_integer(name: str, lowest: int, highest: int) -> int | None:
    """Read a name that is exactly how the integer is written, so that 7 is never 007."""
    if len(name) > 80 or not re.fullmatch(r"0|-?[1-9][0-9]*", name, re.ASCII):
        return None
    number = int(name)
    return number if lowest <= number <= highest else None


def _as_uuid(name: str) -> str | None:
    try:
        return name if str(uuid.UUID(name)) == name else None
    except ValueError:
        return None
