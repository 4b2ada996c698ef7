"""Usage counted by the meters of an OpenMeter, self-hosted or its cloud, over its REST API."""

from usage_sources.openmeter.source import OpenMeterSource

__all__ = ["OpenMeterSource"]
