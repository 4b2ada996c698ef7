"""The journal's statements that read many invoices: search, overview, earlier periods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from string import ascii_lowercase, ascii_uppercase

from worker.causes import cause_named
from worker.domain import InvoiceKey, Period, Span, utc
from worker.journal.acts import UNPAUSED, paused
from worker.journal.codec import moment_of, stamp
from worker.journal.rows import component_pattern, facts_of, id_of, invoice_of
from worker.journal.store import Row, Transaction
from worker.overviews import (
    HOUR,
    HOURS,
    UNISSUED,
    Cursor,
    Filter,
    HeldFor,
    Hour,
    Listed,
    Overview,
    Page,
    PreviousTally,
    hour_of,
)
from worker.record import EntryKind, State

FREE = f"(lease_until IS NULL OR lease_until <= ?) AND {UNPAUSED}"
_PAUSED = "SELECT 1 FROM pauses p WHERE p.platform IN ('', invoices.platform) AND p.at <= ?"
_MOMENTS = {
    "since": "period_end > ?",
    "until": "period_start < ?",
    "due_since": "due_at <= ?",
    "unchanged_since": "updated_at <= ?",
    "paused_since": f"EXISTS ({_PAUSED})",
    "free_at": FREE,
}

_AGE = ("first_seen_at", "platform", "invoice_id")
_HOUR_LETTERS = len("2015-12-02T13")
_BILLED = f"'{State.ISSUED}', '{State.CLOSED}'"

_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)

Condition = tuple[str, Sequence[object]]


def search(tx: Transaction, wanted: Filter, limit: int, after: Cursor | None) -> Page:
    """Read a page, and count the whole unless the page is it."""
    conditions = list(_conditions(tx.folded, wanted))
    rows = _page(tx, wanted, conditions, after, limit + 1)
    more = len(rows) > limit
    shown = [_listed(row) for row in rows[:limit]]
    total = len(shown) if after is None and not more else _count(tx, wanted, conditions)
    goes_on = more and _moment(wanted) == _AGE[0]
    return Page(invoices=tuple(shown), total=total, after=shown[-1].cursor if goes_on else None)


def listed(tx: Transaction, wanted: Filter, limit: int, after: Cursor | None) -> list[Listed]:
    """Read a page alone."""
    conditions = list(_conditions(tx.folded, wanted))
    return [_listed(row) for row in _page(tx, wanted, conditions, after, limit)]


def overview(tx: Transaction, now: datetime) -> Overview:
    """Read how the work stands."""
    states = tx.rows("SELECT state, count(*) AS n FROM invoices GROUP BY state")
    numbers = {row["state"]: row["n"] for row in states}
    oldest = _page(tx, Filter(states=UNISSUED), [], None, 1)
    held = tx.rows(
        f"""SELECT cause, count(*) AS n, min(first_seen_at) AS oldest_at FROM invoices
        WHERE state = '{State.HELD}' GROUP BY cause ORDER BY n DESC, cause"""
    )
    hours = _hours(tx, now)
    midnight = utc(now).replace(hour=0, minute=0, second=0, microsecond=0)
    return Overview(
        now=now,
        by_state={state: numbers.get(state, 0) for state in State},
        oldest=_listed(oldest[0]).cursor if oldest else None,
        held=tuple(
            HeldFor(
                cause=cause_named(row["cause"]),
                number=row["n"],
                oldest_at=moment_of(row["oldest_at"]),
            )
            for row in held
        ),
        issued_today=sum(hour.issued for hour in hours if hour.start >= midnight),
        hours=tuple(hours),
        paused=paused(tx.rows("SELECT * FROM pauses ORDER BY platform")),
    )


def previous_tallies(
    tx: Transaction, key: InvoiceKey, span: Span, count: int
) -> list[PreviousTally]:
    """Read what other invoices billed of the same usage before, newest first."""
    rows = tx.rows(
        f"""SELECT t.* FROM tallies t JOIN invoices i USING (platform, invoice_id)
        WHERE t.platform = ? AND t.subject = ? AND t.component = ? AND t.period_start < ?
        AND t.invoice_id != ? AND i.state IN ({_BILLED})
        ORDER BY t.period_start DESC, t.invoice_id, t.charge_id LIMIT ?""",
        [
            *(key.platform, span.subject, span.component),
            *(stamp(span.period.start), key.invoice_id, count),
        ],
    )
    return [
        PreviousTally(
            invoice_id=row["invoice_id"],
            period=Period(moment_of(row["period_start"]), moment_of(row["period_end"])),
            quantity=int(row["quantity"]),
        )
        for row in rows
    ]


def _conditions(folded: str, wanted: Filter) -> Iterator[Condition]:
    """Yield what the filter asks for, beside the states; what is looked up fast comes first."""
    exact = {
        "platform || ''": wanted.platform,  # not by the key's index, which has not their order
        "subscription_id": wanted.subscription,
        "account_id": wanted.account,
    }
    for column, value in exact.items():
        if value:
            yield f"{column} = ?", [value]
    if wanted.cause:
        yield f"state = '{State.HELD}' AND cause = ?", [wanted.cause]
    for name, condition in _MOMENTS.items():
        if moment := getattr(wanted, name):
            yield condition, [stamp(moment)]
    if wanted.component:
        patterns = component_pattern(wanted.component), f'"{wanted.component}"'
        named = f"state != '{State.ISSUED}' AND {_like(folded, 'reason')}"
        yield f"({_like(folded, 'components')} OR {named})", [*map(_anywhere, patterns)]
    if wanted.reason:
        yield _like(folded, "reason"), [_anywhere(wanted.reason)]
    if wanted.text:
        either = f"({_like(folded, 'invoice_id')} OR {_like(folded, 'reason')})"
        yield either, [_anywhere(wanted.text)] * 2


def _like(folded: str, column: str) -> str:
    return f"{folded}({column}) LIKE ? ESCAPE '!'"


def _anywhere(text: str) -> str:
    """Return the pattern that finds a text in any place, its own % and _ taken as they are."""
    for letter in "!%_":
        text = text.replace(letter, f"!{letter}")
    return f"%{text.translate(_SMALL)}%"


def _page(
    tx: Transaction,
    wanted: Filter,
    conditions: Sequence[Condition],
    after: Cursor | None,
    limit: int,
) -> list[Row]:
    """Read the first rows behind a place; of each state in turn, as its index has their order."""
    moment = _moment(wanted)
    # Thousands may be due at one moment: by it alone they are not sorted further.
    names = _AGE if moment == _AGE[0] else (moment,)
    down, beyond = (" DESC", "<") if wanted.newest_first else ("", ">")
    order = ", ".join(f"{name}{down}" for name in names)
    if after is not None:
        if names != _AGE:
            raise ValueError("only a list by age goes on behind a place")
        place = [stamp(after.first_seen_at), *id_of(after.key)]
        conditions = [*conditions, (f"({', '.join(_AGE)}) {beyond} (?, ?, ?)", place)]
    parts, values = [], []
    for number, one in enumerate(_by_state(wanted, conditions)):
        parts.append(
            f"SELECT * FROM (SELECT {moment}, platform, invoice_id FROM invoices {_where(one)}"
            f" ORDER BY {order} LIMIT ?) AS part{number}"
        )
        values += [*_values(one), limit]
    return tx.rows(
        f"""SELECT i.* FROM (SELECT * FROM ({" UNION ALL ".join(parts)}) AS parts
        ORDER BY {order} LIMIT ?) AS page JOIN invoices i USING (platform, invoice_id)
        ORDER BY {", ".join(f"i.{name}{down}" for name in names)}""",
        [*values, limit],
    )


def _moment(wanted: Filter) -> str:
    """Name the moment in whose order the invoices are."""
    if wanted.due_since:
        return "due_at"
    return "updated_at" if wanted.unchanged_since else _AGE[0]


def _count(tx: Transaction, wanted: Filter, conditions: Sequence[Condition]) -> int:
    return sum(
        int(tx.rows(f"SELECT count(*) AS n FROM invoices {_where(one)}", _values(one))[0]["n"])
        for one in _by_state(wanted, conditions)
    )


def _by_state(wanted: Filter, conditions: Sequence[Condition]) -> Iterator[Sequence[Condition]]:
    """Yield the conditions for each state that is wanted; once without one, if all are."""
    if set(wanted.states) in (set(), set(State)):
        yield conditions
        return
    for state in dict.fromkeys(wanted.states):
        yield [(f"state = '{state}'", ()), *conditions]


def _where(conditions: Sequence[Condition]) -> str:
    return f"WHERE {' AND '.join(sql for sql, _ in conditions)}" if conditions else ""


def _values(conditions: Sequence[Condition]) -> list[object]:
    return [value for _, values in conditions for value in values]


def _listed(row: Row) -> Listed:
    invoice = invoice_of(row)
    cause = cause_named(row["cause"]) if invoice.state is State.HELD else None
    return Listed(row=invoice, facts=facts_of(row), cause=cause)


def _hours(tx: Transaction, now: datetime) -> list[Hour]:
    """Count by the hour what was issued, and which invoices were held at least once in it."""
    start = hour_of(now) - (HOURS - 1) * HOUR
    issued = tx.rows(
        f"""SELECT substr(issued_at, 1, {_HOUR_LETTERS}) AS hour, count(*) AS n FROM invoices
        WHERE issued_at >= ? GROUP BY hour""",
        [stamp(start)],
    )
    held = tx.rows(
        f"""SELECT hour, count(*) AS n FROM (
        SELECT DISTINCT substr(at, 1, {_HOUR_LETTERS}) AS hour, platform, invoice_id FROM entries
        WHERE kind = '{EntryKind.HELD}' AND at >= ?) AS holds GROUP BY hour""",
        [stamp(start)],
    )
    numbers_issued, numbers_held = _numbers(issued), _numbers(held)
    hours = [start + timedelta(hours=number) for number in range(HOURS)]
    return [
        Hour(
            start=hour,
            issued=numbers_issued.get(stamp(hour)[:_HOUR_LETTERS], 0),
            held=numbers_held.get(stamp(hour)[:_HOUR_LETTERS], 0),
        )
        for hour in hours
    ]


def _numbers(rows: Sequence[Row]) -> dict[str, int]:
    return {row["hour"]: row["n"] for row in rows}
