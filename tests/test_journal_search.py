"""Both journals find the same of many invoices; what a filter and a cursor take."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from builders import KEY, NOW
from contracts_search import SearchContract

from worker.overviews import Cursor, Filter


class TestSqliteSearch(SearchContract):
    """Run the contract of searches on files."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Name this test's file."""
        return f"sqlite:///{tmp_path}/journal.db"


class TestPostgresSearch(SearchContract):
    """Run the contract of searches on databases."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        """Name this test's database."""
        return postgres_url


@pytest.mark.parametrize("text", ["", "x", "2015-12-02T13:00:00Z", "2015-12-02T13:00:00 p INV-1"])
def test_a_link_that_was_changed_is_refused(text: str) -> None:
    """A place in the list is read from what the page wrote, or not at all."""
    assert Cursor.of(str(Cursor(NOW, KEY))) == Cursor(NOW, KEY)
    with pytest.raises(ValueError, match=r"."):
        Cursor.of(text)


def test_a_filter_needs_zones() -> None:
    """A moment without a zone names no instant."""
    with pytest.raises(ValueError, match="no time zone"):
        Filter(since=datetime(2015, 12, 2))  # noqa: DTZ001
