"""What every billing platform promises of its writes; an adapter and the fake run it alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.domain import Invoice
from worker.errors import OutcomeUnknown
from worker.ports import BillingPlatform
from worker.writes import ChargeWrite, Exchange


@dataclass(frozen=True)
class Stage:
    """A platform with a pending invoice of two usage charges; it sends one request at a time."""

    platform: BillingPlatform
    invoice: Invoice
    charge_ids: tuple[str, str]
    refuse_next: Callable[[], None]  # the next write
    lose_next: Callable[[], None]  # the answer to the next write
    secret: str  # what it shows the platform, which echoes it

    def write(self) -> list[ChargeWrite]:
        """Write a quantity on both charges."""
        quantities = dict.fromkeys(self.charge_ids, 4711)
        return list(self.platform.recalculate(self.invoice, quantities, lambda: False))

    def told(self, exchange: Exchange | None) -> Exchange:
        """Return an exchange that there must be, and that may be kept and shown."""
        assert exchange is not None
        for text in (exchange.request, exchange.answer):
            assert text.isprintable()
            assert 0 < len(text) < 450
            assert self.secret not in text
        return exchange


class PlatformContract:
    """Tests of the writes; the subclass brings a fixture `stage`."""

    def test_a_write_tells_what_was_sent_and_answered(self, stage: Stage) -> None:
        """The request names its charge and the quantity; each request is told once."""
        writes = stage.write()
        assert [write.error for write in writes] == [None, None]
        told = [stage.told(write.exchange) for write in writes if write.exchange]
        assert told[0] == writes[0].exchange
        assert len({one.request for one in told}) == len(told)
        for text in (*stage.charge_ids, "4711"):
            assert any(text in one.request for one in told)

    def test_a_refusal_is_told_and_nothing_of_what_was_not_sent(self, stage: Stage) -> None:
        """The write that was refused carries the exchange; the one behind it has none."""
        stage.refuse_next()
        refused, unsent = stage.write()
        assert refused.error is not None
        assert not isinstance(refused.error, OutcomeUnknown)
        assert "no more" in stage.told(refused.exchange).answer
        assert unsent.exchange is None

    def test_a_lost_answer_is_told_as_lost(self, stage: Stage) -> None:
        """What was sent is known all the same."""
        stage.lose_next()
        lost = stage.write()[0]
        assert isinstance(lost.error, OutcomeUnknown)
        exchange = stage.told(lost.exchange)
        assert stage.charge_ids[0] in exchange.request
        assert not exchange.answer.startswith("2")

    def test_issuing_tells_what_was_sent_and_answered(self, stage: Stage) -> None:
        """The invoice is issued, and the request names it."""
        write = stage.platform.issue(stage.invoice)
        assert write.error is None
        assert write.invoice is not None
        assert stage.invoice.id in stage.told(write.exchange).request

    def test_a_refused_issue_is_told(self, stage: Stage) -> None:
        """It is an error with what was sent and answered."""
        stage.refuse_next()
        write = stage.platform.issue(stage.invoice)
        assert write.invoice is None
        assert write.error is not None
        assert not isinstance(write.error, OutcomeUnknown)
        assert "no more" in stage.told(write.exchange).answer

    def test_an_issue_without_an_answer_is_told_as_lost(self, stage: Stage) -> None:
        """It is unknown, with what was sent."""
        stage.lose_next()
        write = stage.platform.issue(stage.invoice)
        assert isinstance(write.error, OutcomeUnknown)
        assert stage.invoice.id in stage.told(write.exchange).request
