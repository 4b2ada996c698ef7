"""Notices: tells people of held invoices and of those that wait for too long, a cause at a time.

The sweep calls this after each round. What was told, and when, stands in the journal: any number
of sweeps on any number of machines tell a channel once in each interval. Telling never stops or
fails a sweep; what could not be told is tried again after ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from worker.causes import Cause
from worker.domain import InvoiceKey, utc_text
from worker.errors import ReconcilerError, RecordInvalid
from worker.logs import masked
from worker.metrics import NOTICES, Numbers
from worker.overviews import Filter
from worker.ports import Journal
from worker.record import Act, EntryKind, InvoiceRow, State

_AGAIN_AFTER = timedelta(minutes=10)  # a channel that failed may yet have delivered
_MOST_NAMED = 5

TOO_OLD = Cause(
    key="too_old",
    title="Not issued in time",
    mend="Their time has come, and no worker takes them. Let reconciler doctor look at workers,"
    " sweep, Redis and platform, and mend what it names; nothing needs to be replayed.",
)
PARKED = Cause(
    key="parked",
    title="Parked by hand",
    mend="When what an invoice waits for is done, let it go with reconciler release. One that was"
    " settled on the platform, close with reconciler close.",
)
PAUSED = Cause(
    key="paused",
    title="Stopped by a pause",
    mend="Nothing of a paused platform is issued until somebody runs reconciler resume.",
)
_DUE = (TOO_OLD, PAUSED)

log = structlog.get_logger("notices")


class NotTold(ReconcilerError):
    """A channel did not take a notice; the text holds no address and no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What one channel is told at once: all invoices of one cause."""

    cause: Cause
    count: int
    oldest_at: datetime
    now: datetime
    first: tuple[tuple[InvoiceKey, str], ...]  # the oldest, with their reasons
    pauses: tuple[Act, ...] = ()  # what stops them
    url: str  # empty: there is no page

    @property
    def subject(self) -> str:
        """Say it in one line."""
        noun = "invoice" if self.count == 1 else "invoices"
        held = "" if self.cause in (*_DUE, PARKED) else " held"
        return f"{self.count} {noun}{held}: {self.cause.title}"

    def text(self) -> str:
        """Say it to a person."""
        lines = [f"{self.subject}."]
        for act in self.pauses:
            stopped = act.platform or "Every platform"
            lines.append(f"{stopped} is paused by {act.by} since {utc_text(act.at)}: {act.reason}")
        lines.append(f"The oldest since {utc_text(self.oldest_at)}:")
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
            "oldest_at": utc_text(self.oldest_at),
            "oldest_seconds": int((self.now - self.oldest_at).total_seconds()),
            "invoices": [
                {"platform": key.platform, "invoice": key.invoice_id, "reason": reason}
                for key, reason in self.first
            ],
            "pauses": [
                {
                    "platform": act.platform or None,
                    "by": act.by,
                    "reason": act.reason,
                    "at": utc_text(act.at),
                }
                for act in self.pauses
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
    older_than: timedelta  # what is due, parked or paused for so long is told of too
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
        limit = now - self.older_than
        overview = self.journal.overview(now)
        for held in overview.held:
            wanted = Filter(states=(State.HELD,), cause=held.cause.key)
            yield from self._notice(held.cause, wanted, now)
        yield from self._notice(TOO_OLD, Filter(due_since=limit, free_at=now), now)
        parked = Filter(states=(State.PARKED,), unchanged_since=limit)
        yield from self._notice(PARKED, parked, now)
        pauses = [
            replace(act, reason=masked(act.reason, self.secrets))
            for act in overview.paused.values()
            if act.at <= limit
        ]
        if pauses:
            paused = Filter(due_since=limit, paused_since=limit)
            yield from self._notice(PAUSED, paused, now, pauses)

    def _notice(
        self, cause: Cause, wanted: Filter, now: datetime, pauses: Sequence[Act] = ()
    ) -> Iterator[Notice]:
        """Yield the notice of the invoices that are found; none: they were taken meanwhile."""
        page = self.journal.search(wanted, _MOST_NAMED)
        rows = [one.row for one in page.invoices]
        told = [self._told(cause, row) for row in rows]
        if told:
            yield Notice(
                cause=cause,
                count=page.total,
                oldest_at=min(since for since, _ in told),
                now=now,
                first=tuple(
                    (row.key, masked(text, self.secrets))
                    for row, (_, text) in zip(rows, told, strict=True)
                ),
                pauses=tuple(pauses),
                url=self.page_url,
            )

    def _told(self, cause: Cause, row: InvoiceRow) -> tuple[datetime, str]:
        """Return since when an invoice is what it is told for, and what to say of it."""
        if cause is PARKED:
            return self._parked(row)
        if cause in _DUE and row.due_at is not None:
            since = f"due since {utc_text(row.due_at)}"
            return row.due_at, f"{since}; the last: {row.reason}" if row.reason else since
        return row.first_seen_at, row.reason

    def _parked(self, row: InvoiceRow) -> tuple[datetime, str]:
        """Read who parked it and when, where the record can be read."""
        since, by = row.updated_at, ""
        with suppress(RecordInvalid):
            history = self.journal.history(row.key)
            for entry in history.entries if history else ():
                if entry.kind is EntryKind.PARKED:
                    since, by = entry.at, f" by {entry.data.get('by', '')}"
        return since, f"parked{by} since {utc_text(since)}: {row.reason}"
