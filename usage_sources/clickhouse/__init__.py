"""Usage counted in a table of events in ClickHouse."""

from usage_sources.clickhouse.source import ClickHouseSource

__all__ = ["ClickHouseSource"]
