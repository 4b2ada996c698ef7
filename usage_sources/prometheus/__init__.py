"""Usage counted from the raw samples that a Prometheus keeps of counters and gauges."""

from usage_sources.prometheus.source import PrometheusSource

__all__ = ["PrometheusSource"]
