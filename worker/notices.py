"""Notices: tells people of held invoices and of old ones, a cause at a time.

The sweep calls this after each round. What was told, and when, stands in the journal: any number
of sweeps on any number of machines tell a channel once in each interval. Telling never stops or
fails a sweep; what could not be told is tried again after ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Protocol

import structlog

from worker.causes import Cause
from worker.domain import InvoiceKey, utc_text
from worker.errors import ReconcilerError, RecordInvalid
from worker.logs import masked
from worker.metrics import NOTICES, Numbers
from worker.overviews import Filter
from worker.ports import Journal
from worker.record import InvoiceRow, State

_AGAIN_AFTER = timedelta(minutes=10)  # a channel that failed may yet have delivered
_MOST_NAMED = 5
_MOST_OLD = 1000  # counted; of more, the notice says so

TOO_OLD = Cause(
    key="too_old",
    title="Not issued in time",
    mend="Their time has come, and no worker takes them. Let reconciler doctor look at workers,"
    " sweep, Redis and platform, and mend what it names; nothing needs to be replayed.",
)

log = structlog.get_logger("notices")


class NotTold(ReconcilerError):
    """A channel did not take a notice; the text holds no address and no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What one channel is told at once: all invoices of one cause."""

    cause: Cause
    count: int
    at_least: bool  # there are more than were counted
    oldest_at: datetime
    now: datetime
    first: tuple[tuple[InvoiceKey, str], ...]  # the oldest, with their reasons
    url: str  # empty: there is no page

    @property
    def subject(self) -> str:
        """Say it in one line."""
        number = f"{self.count}{'+' if self.at_least else ''}"
        noun = "invoice" if self.count == 1 else "invoices"
        held = "" if self.cause is TOO_OLD else " held"
        return f"{number} {noun}{held}: {self.cause.title}"

    def text(self) -> str:
        """Say it to a person."""
        lines = [f"{self.subject}.", f"The oldest since {utc_text(self.oldest_at)}:"]
        lines += [f"- {key}: {reason}" for key, reason in self.first]
        if (more := self.count - len(self.first)) > 0:
            lines.append(f"- and {more} more")
        lines.append(f"What to do: {self.cause.mend}")
        return "\n".join([*lines, self.url] if self.url else lines)

    def as_json(self) -> dict[str, Any]:
        """Say it to a program."""
        return {
            "cause": self.cause.key,
            "title": self.cause.title,
            "mend": self.cause.mend,
            "count": self.count,
            "at_least": self.at_least,
            "oldest_at": utc_text(self.oldest_at),
            "oldest_seconds": int((self.now - self.oldest_at).total_seconds()),
            "invoices": [
                {"platform": key.platform, "invoice": key.invoice_id, "reason": reason}
                for key, reason in self.first
            ],
            "url": self.url or None,
            "text": self.text(),
        }


class Channel(Protocol):
    """A way to people."""

    @property
    def name(self) -> str:
        """What the journal and the metrics call it."""

    def send(self, notice: Notice) -> None:
        """Hand a notice over, in bounded time; raise NotTold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notices:
    """Looks at the journal and tells each channel what it was not told of late."""

    journal: Journal
    channels: Sequence[Channel]
    now: Callable[[], datetime]
    every: timedelta  # between two notices of one cause
    older_than: timedelta  # an invoice that is due for so long, and not taken, is told of too
    page_url: str = ""
    secrets: Collection[str] = field(default=(), repr=False)
    numbers: Numbers

    def tell(self) -> int:
        """Tell what is to be told; return how many notices went out. Raises nothing."""
        told = 0
        try:
            channels = list(self.channels)
            for notice in self._notices() if channels else ():
                for channel in list(channels):
                    if not self._take(channel, notice):
                        continue
                    if self._sent(channel, notice):
                        told += 1
                    else:
                        channels.remove(channel)  # one failure a round is enough to wait for
        except ReconcilerError as error:
            log.warning("notices_failed", reason=str(error))
        except Exception as error:
            log.exception("notices_failed", reason=type(error).__name__)
        return told

    def _take(self, channel: Channel, notice: Notice) -> bool:
        return self.journal.take_notice(channel.name, notice.cause.key, notice.now, self.every)

    def _sent(self, channel: Channel, notice: Notice) -> bool:
        event = log.bind(channel=channel.name, cause=notice.cause.key, count=notice.count)
        try:
            channel.send(notice)
        except NotTold as error:
            self.numbers.add(NOTICES, channel.name, "failed")
            event.warning("notice_not_sent", reason=str(error))
            again = min(_AGAIN_AFTER, self.every)
            as_if = notice.now - self.every + again
            self.journal.give_back_notice(channel.name, notice.cause.key, notice.now, as_if)
            return False
        self.numbers.add(NOTICES, channel.name, "sent")
        event.info("notice")
        return True

    def _notices(self) -> Iterator[Notice]:
        """Yield a notice for each cause, whether it is its time or not."""
        now = self.now()
        for held in self.journal.overview(now).held:
            wanted = Filter(states=(State.HELD,), cause=held.cause.key)
            page = self.journal.search(wanted, _MOST_NAMED)
            if page.invoices:  # it may have been replayed meanwhile
                rows = [one.row for one in page.invoices]
                yield self._notice(held.cause, rows, page.total, now)
        limit = now - self.older_than
        late = self._late(now, limit)
        readable = filter(None, map(self._row, late))
        rows = list(islice((r for r in readable if _is_due(r, limit)), _MOST_NAMED))
        if rows:  # they may have been taken meanwhile
            yield self._notice(TOO_OLD, rows, len(late), now)

    def _late(self, now: datetime, limit: datetime) -> Sequence[InvoiceKey]:
        """Name what is due since the limit and nobody works on now, longest overdue first."""
        late: list[InvoiceKey] = []
        known = set(self.journal.due(limit, _MOST_OLD))  # all but those with a lease since then
        for key in self.journal.due(now, _MOST_OLD):
            if key not in known and (row := self._row(key)) and not _is_due(row, limit):
                break  # so are all behind it
            late.append(key)
        return late

    def _row(self, key: InvoiceKey) -> InvoiceRow | None:
        """Read where an invoice stands; of an unreadable record, the worker that takes it tells."""
        with suppress(RecordInvalid):
            history = self.journal.history(key)
            return history.row if history else None
        return None

    def _notice(
        self, cause: Cause, rows: Sequence[InvoiceRow], count: int, now: datetime
    ) -> Notice:
        due = cause is TOO_OLD
        return Notice(
            cause=cause,
            count=count,
            at_least=due and count == _MOST_OLD,
            oldest_at=(rows[0].due_at if due else None) or rows[0].first_seen_at,
            now=now,
            first=tuple(
                (row.key, masked(_due(row) if due else row.reason, self.secrets)) for row in rows
            ),
            url=self.page_url,
        )


def _is_due(row: InvoiceRow, limit: datetime) -> bool:
    return row.due_at is not None and row.due_at <= limit


def _due(row: InvoiceRow) -> str:
    since = f"due since {utc_text(row.due_at)}" if row.due_at else "due"
    return f"{since}; the last: {row.reason}" if row.reason else since
