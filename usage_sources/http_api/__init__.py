"""Usage counted by any JSON API that answers GET: with a total, or with pages of events."""

from usage_sources.http_api.source import HttpSource

__all__ = ["HttpSource"]
