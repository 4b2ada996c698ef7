"""One trace for each delivery and each run: its id is on every log line of it.

Ids are those of W3C's Trace Context. Without OpenTelemetry nothing but the id is made; with it
(`log.otel`) a trace is a span, and what it waited for are spans under it. Nothing of it is sent
to the platform.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from worker.errors import ConfigError

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@dataclass(frozen=True, slots=True)
class Trace:
    """One delivery or run, while it lasts."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))  # 32 hexadecimal digits

    def note(self, **attributes: str | int | float) -> None:
        """Keep something with the trace, where it is kept at all."""


class Tracing:
    """Makes ids, and keeps nothing."""

    @contextmanager
    def trace(self, _name: str, **_attributes: str) -> Iterator[Trace]:
        """Begin a trace that ends with the block."""
        yield Trace()

    def waited(self, name: str, seconds: float, **attributes: str) -> None:
        """Keep what the running trace waited for until now."""


def open_tracing(*, otel: bool) -> Tracing:
    """Make what the setting `log.otel` says; raise ConfigError where its packages are missing.

    Where spans go, OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT and others).
    """
    if not otel:
        return Tracing()
    try:
        spans: Any = import_module("worker.tracing_otel")
        exporter: Any = import_module(_EXPORTER)
    except ImportError as error:
        raise ConfigError(
            ["log.otel: spans need OpenTelemetry: pip install 'invoice-reconciler[otel]'"]
        ) from error
    tracing: Tracing = spans.SpanTracing(spans.batched(exporter.OTLPSpanExporter()))
    return tracing
