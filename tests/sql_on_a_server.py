"""What the tests of the SQL source on a real server share, whichever server it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from test_usage_sources_sql import TABLE

from usage_sources.contract import UsageEvent, UsageSourceContract
from usage_sources.reading import microseconds
from usage_sources.sql import SqlSource

Write = Callable[[datetime], object]


class OnServer(UsageSourceContract):
    """The contract in one way to store times; the module's fixture `shared` is the place."""

    time: ClassVar[str]  # the type of the column created_at
    settings: ClassVar[dict[str, Any]] = {}
    place: Any  # with a table that is made anew as often as it is asked for

    @pytest.fixture(autouse=True)
    def _prepared(self, shared: Any) -> Iterator[None]:
        self.place = shared
        with ExitStack() as stack:
            self.stack = stack  # what is undone after the test
            yield

    def written(self, at: datetime) -> object:
        """Write a time as the column has it."""
        return at

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> SqlSource:
        """Store the events in a new table."""
        self.place.store(events, self.time, self.written)
        source: SqlSource = self.place.source(**self.settings)
        return source


class EpochMicroseconds(OnServer):
    """Times as whole microseconds."""

    time = "bigint"
    settings: ClassVar[dict[str, Any]] = {"time_format": "epoch_microseconds"}

    def written(self, at: datetime) -> object:
        """Write an integer."""
        return microseconds(at)


class EpochDecimal(OnServer):
    """Times as decimal milliseconds."""

    time = "decimal(20, 3)"
    settings: ClassVar[dict[str, Any]] = {"time_format": "epoch_milliseconds"}
    resolution = timedelta(milliseconds=1)

    def written(self, at: datetime) -> object:
        """Write a decimal."""
        return Decimal(microseconds(at)) / 1_000


def own_statements(table: str) -> dict[str, Any]:
    """Return the settings that count by statements of the operator's own, in place of a table."""
    return dict.fromkeys(TABLE) | {
        "time_format": "native",
        "query": f"""
            SELECT subject_id AS subject, metric, count(*) AS events,
                CASE WHEN count(quantity) = count(*) THEN sum(quantity) END AS value
            FROM {table} WHERE subject_id IN :subjects AND metric IN :metrics
                AND created_at >= :start AND created_at < :end
            GROUP BY subject_id, metric""",
        "known_subjects_query": f"SELECT DISTINCT subject_id FROM {table}"
        " WHERE subject_id IN :subjects",
        "known_metrics_query": f"SELECT DISTINCT metric FROM {table}",
    }
