"""Usage counted in a database, in a table of events or by a statement of your own."""

from usage_sources.sql.source import SqlSource

__all__ = ["SqlSource"]
