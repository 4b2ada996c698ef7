"""The built-in meter: keeps usage events itself, each once, and counts them."""

from usage_sources.meter.source import MeterSource

__all__ = ["MeterSource"]
