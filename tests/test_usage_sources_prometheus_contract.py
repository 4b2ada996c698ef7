"""The Prometheus source: the contract, on a server of the test's own and on the real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_server import INSTALLED, PrometheusLike, Stored, counters, real_prometheus
from usage_server import nobody, serving

from usage_sources.contract import JUNE, MIDNIGHT, UsageEvent, UsageSourceContract
from usage_sources.contract import event as used
from usage_sources.contract import query as asking
from usage_sources.contract.values import NAMES
from usage_sources.prometheus import PrometheusSource
from worker.domain import Aggregation
from worker.errors import SourceInvalid

DAY = 86_400.0
SUM = Aggregation.SUM


def source_at(url: str, **settings: Any) -> PrometheusSource:
    """Make a source whose samples may be eight days apart."""
    far = {"staleness_seconds": 8 * DAY, "max_gap_seconds": 8 * DAY, "chunk_seconds": 30 * DAY}
    return PrometheusSource(base_url=url, subject_label="tenant", **{**far, **settings})


class CounterContract(UsageSourceContract):
    """The suite, of events that counters were made of."""

    aggregations = frozenset({SUM})
    resolution = timedelta(milliseconds=1)

    @pytest.fixture(autouse=True)
    def _served(self) -> Iterator[None]:
        with serving(PrometheusLike()) as self.server:
            yield

    def source_down(self, tmp_path: Path) -> PrometheusSource:
        """Ask where nobody listens."""
        return source_at(nobody())

    def source_slow(self, tmp_path: Path) -> PrometheusSource:
        """Ask a server that does not answer."""
        self.server.answering = self.server.hang
        return source_at(self.server.url, timeout_seconds=1)

    def test_every_aggregation_is_what_its_name_says(self, tmp_path: Path) -> None:
        """The sum of what a counter counted; no other aggregation is of a counter."""
        stored = [
            used(MIDNIGHT + timedelta(hours=at), quantity=Decimal(each))
            for at, each in ((0, "3"), (3, "2"), (1, "9.5"))
        ]
        assert self.tally(tmp_path, stored, asking(aggregation=SUM)).value == Decimal("14.5")
        for other in (Aggregation.COUNT, Aggregation.UNIQUE):
            assert self.value_if_any(tmp_path, stored, asking(aggregation=other)) is None

    def test_large_quantities_keep_every_digit(self, tmp_path: Path) -> None:
        """Up to 2^53 - 1 a float is exact; from there on, the count is refused."""
        most = 2**53 - 1
        assert self.total(tmp_path, [str(most - 1), "1"]) == most
        for amount in (2**53, 10**18):
            with pytest.raises(SourceInvalid, match=r"is 2\^53 or more"):
                self.total(tmp_path, [str(amount), "1"])

    def test_a_negative_total_is_passed_on(self, tmp_path: Path) -> None:
        """No counter is below 0: one that is, is refused."""
        with pytest.raises(SourceInvalid, match="is below 0, which no counter is"):
            self.total(tmp_path, ["3", "-5"])

    def test_a_metric_that_only_others_use_is_zero(self, tmp_path: Path) -> None:
        """Only a series makes a subject known to a metric: 0 with one, no value without."""
        stored = [used(MIDNIGHT, metric="pages"), used(JUNE.start, subject="S-2")]
        assert self.number(tmp_path, stored) is None
        nothing = used(JUNE.start, quantity=Decimal(0))
        assert self.number(tmp_path, [*stored, nothing]) == 0


class LikeContract(CounterContract):
    """On the server of the test's own."""

    closed = True
    from_zero = False

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> PrometheusSource:
        """Give the counters to the server."""
        like = PrometheusLike(counters(events, from_zero=self.from_zero), closed=self.closed)
        self.server.answering = like
        new = "from_zero" if self.from_zero else "held"
        return source_at(self.server.url, new_series=new)


class TestPrometheus2(LikeContract):
    """A range is closed at its old end."""


class TestPrometheus3(LikeContract):
    """A range is open at its old end."""

    closed = False


class TestNewSeries(LikeContract):
    """Each series begins with its first usage."""

    from_zero = True


@pytest.mark.skipif(
    not INSTALLED, reason="prometheus and promtool are not installed (Debian: prometheus)"
)
class TestRealPrometheus(CounterContract):
    """The server that is installed, over samples that its own tool brought in."""

    @pytest.fixture(autouse=True)
    def _stopped(self) -> Iterator[None]:
        self.running: list[tuple[Stored, str]] = []
        with ExitStack() as self.stack:
            yield

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> PrometheusSource:
        """Start a server over the counters, unless the last one has them."""
        stored = counters(events)
        if not self.running or self.running[-1][0] != stored:
            self.stack.close()
            folder = tmp_path / str(len(self.running))
            url = self.stack.enter_context(real_prometheus(folder, stored))
            self.running.append((stored, url))
        return source_at(self.running[-1][1])

    def test_names_are_only_names(self, tmp_path: Path) -> None:
        """A subject is a label's value, which may be any text; this version's metrics may not."""
        stored = [used(MIDNIGHT, subject=name) for name in (*NAMES, "bystander")]
        asked = [asking(str(n), subject=name, aggregation=SUM) for n, name in enumerate(NAMES)]
        assert [each.value for each in self.tallies(tmp_path, stored, asked)] == [1] * len(NAMES)
        few = [used(MIDNIGHT, subject="bystander")]
        assert [each.value for each in self.tallies(tmp_path, few, asked)] == [None] * len(NAMES)
