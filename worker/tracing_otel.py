"""Traces as OpenTelemetry's spans; needs `pip install 'invoice-reconciler[otel]'`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span

from worker import __version__
from worker.tracing import Trace, Tracing

_NAME = "invoice-reconciler"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SpanTrace(Trace):
    span: Span

    def note(self, **attributes: str | int | float) -> None:
        self.span.set_attributes(attributes)


class SpanTracing(Tracing):
    """Hands every trace, and what it waited for, to a span processor."""

    def __init__(self, processor: SpanProcessor) -> None:
        """Name the service as OTEL_SERVICE_NAME does, or invoice-reconciler."""
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: _NAME}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_NAME, __version__)
        self._newest: Context | None = None

    @contextmanager
    def trace(self, _name: str, **_attributes: str) -> Iterator[Trace]:
        """Begin a span of its own, and make it current."""
        # The text of an error may hold anything; its class tells enough.
        with self._tracer.start_as_current_span(
            _name,
            Context(),
            attributes=_attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._newest = context.get_current()
            try:
                yield _SpanTrace(id=f"{span.get_span_context().trace_id:032x}", span=span)
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise
            finally:
                self._newest = None

    def waited(self, name: str, seconds: float, **attributes: str) -> None:
        """Add a span that ends now, under the current one.

        A thread that a run uses for its requests has no current span; it takes the newest.
        """
        has_own = get_current_span().get_span_context().is_valid
        now = time.time_ns()
        span = self._tracer.start_span(
            name,
            context.get_current() if has_own else self._newest,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=now - int(seconds * 1e9),
        )
        span.end(now)


def batched(exporter: SpanExporter) -> SpanProcessor:
    """Send spans from a thread of their own, so that nobody waits for it."""
    return BatchSpanProcessor(exporter)
