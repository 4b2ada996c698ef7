"""Every line of a delivery and of a run carries its trace id; spans are there where asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from builders import INV, KEY
from metrics_builders import Installation, deliver, installation, put_invoice
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from sandbox.process import RunningSandbox
from worker import jobs
from worker.config import load_config
from worker.journal.sqlite import SqliteJournal
from worker.measured import Measures
from worker.record import EntryKind
from worker.tracing import Tracing, open_tracing
from worker.tracing_otel import SpanTracing
from worker.wiring import open_service

TRACE_ID = re.compile(r"[0-9a-f]{32}")
MISSING = """
import sys
sys.modules["{module}"] = None
from worker.errors import ConfigError
from worker.tracing import open_tracing
try:
    open_tracing(otel=True)
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def there(tmp_path: Path, sandbox: RunningSandbox, redis_url: str) -> Installation:
    """An installation with the article's invoice, delivered."""
    put_invoice(sandbox)
    return installation(tmp_path, sandbox, redis_url, '[log]\nformat = "json"\n')


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """Where spans end."""
    return InMemorySpanExporter()


@pytest.fixture
def spans(exported: InMemorySpanExporter) -> SpanTracing:
    """Tracing that exports into memory."""
    return SpanTracing(SimpleSpanProcessor(exported))


def lines_of(logged: str) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in logged.splitlines()]


def claimed_by(there: Installation) -> str:
    """Return the trace id that the journal keeps of the run."""
    history = SqliteJournal(there.folder / "journal.db").history(KEY)
    assert history is not None
    (claimed,) = [entry for entry in history.entries if entry.kind is EntryKind.CLAIMED]
    return str(claimed.data["trace_id"])


def test_a_run_is_found_from_its_log_lines_and_from_the_journal(there: Installation) -> None:
    """Invoice, platform, attempt and trace id are on its line; the claim has the same trace id."""
    deliver(there.client())
    lines = lines_of(there.run("work", "--burst"))
    (issued,) = [line for line in lines if line["event"] == "issued"]
    assert (issued["invoice"], issued["platform"], issued["attempt"]) == (INV, "billforward", 0)
    assert TRACE_ID.fullmatch(issued["trace_id"])
    assert issued["trace_id"] == claimed_by(there)
    stopped = [line for line in lines if line["event"] == "worker_stopped"]
    assert not any("trace_id" in line for line in stopped)


def test_a_job_that_crashed_is_told_with_its_ids(there: Installation) -> None:
    """Also the line that the worker writes after the run is over belongs to it."""
    deliver(there.client())
    with (there.folder / "config.toml").open("a") as config:
        config.write("[rules]\nlease_seconds = 1\n")  # which the platform's timeouts forbid
    (failed,) = [
        line for line in lines_of(there.run("work", "--burst")) if line["event"] == "job_failed"
    ]
    assert (failed["job"], failed["invoice"]) == (f"billforward-{INV}", INV)


def test_each_delivery_has_a_trace_of_its_own(there: Installation) -> None:
    """Taken or refused: its lines carry one id, and the next request on the thread another."""
    client = there.client()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        deliver(client)
        deliver(client)
        deliver(client, "wrong")
        client.get("/metrics", environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert "trace_id" not in lines.pop()  # it delivers nothing
    ids = [line["trace_id"] for line in lines]
    assert [line["event"] for line in lines] == ["delivery", "delivery", "refused"]
    assert len(set(ids)) == 3
    assert all(TRACE_ID.fullmatch(one) for one in ids)


def test_spans_of_a_delivery_and_a_run(
    there: Installation,
    spans: SpanTracing,
    exported: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run is one span with its requests and counts under it, also those of its threads."""
    client = there.client()
    client.application.extensions["receiver"].measures = Measures(tracing=spans)
    deliver(client)
    (delivery,) = exported.get_finished_spans()
    assert (delivery.name, dict(delivery.attributes or {})) == ("delivery", {"result": "new"})
    exported.clear()
    for name, value in there.environ.items():
        monkeypatch.setenv(name, value)
    config = load_config(there.folder / "config.toml", there.environ)
    service = open_service(config, measures=Measures(tracing=spans))
    current = jobs.CurrentService()
    monkeypatch.setattr(current, "service", lambda: service)
    monkeypatch.setattr(jobs, "current", current)
    jobs.reconcile_invoice("billforward", INV)
    structlog.contextvars.clear_contextvars()
    *waits, run = exported.get_finished_spans()
    assert run.name == "run"
    attributes = {"invoice": INV, "platform": "billforward", "state": "issued", "attempt": 0}
    assert dict(run.attributes or {}) == attributes
    assert run.context is not None
    assert f"{run.context.trace_id:032x}" == claimed_by(there)
    assert {wait.name for wait in waits} == {"platform request", "source query"}
    assert all(parent_of(wait) == run.context.span_id for wait in waits)
    assert "token" not in str([span.to_json() for span in (*waits, run)])


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of the span above."""
    return None if span.parent is None else span.parent.span_id


def test_what_a_thread_of_a_run_waits_for_belongs_to_it(
    spans: SpanTracing, exported: InMemorySpanExporter
) -> None:
    """Charges are written by a pool of threads; their requests are under the run too."""
    with spans.trace("run"):
        other = threading.Thread(target=spans.waited, args=("platform request", 0.25))
        other.start()
        other.join()
    wait, run = exported.get_finished_spans()
    assert run.context is not None
    assert parent_of(wait) == run.context.span_id
    assert (wait.end_time or 0) - (wait.start_time or 0) == 250_000_000


def test_an_error_leaves_its_class_and_no_text(
    spans: SpanTracing, exported: InMemorySpanExporter
) -> None:
    """The text of an error may quote anything."""
    with pytest.raises(KeyError), spans.trace("run"):
        raise KeyError("s3cr3t-9e10")
    (run,) = exported.get_finished_spans()
    assert run.status.description == "KeyError"
    assert "s3cr3t-9e10" not in run.to_json()


def test_without_spans_there_is_an_id_and_nothing_else() -> None:
    """Nothing to install for the ids in the logs."""
    tracing = open_tracing(otel=False)
    assert type(tracing) is Tracing
    with tracing.trace("run") as first, tracing.trace("run") as second:
        first.note(state="issued")
        tracing.waited("source query", 1.0)
    assert TRACE_ID.fullmatch(first.id)
    assert first.id != second.id


@pytest.mark.parametrize(
    "module", ["opentelemetry", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_what_is_missing_is_named(module: str) -> None:
    """One sentence says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", MISSING.format(module=module)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == (
        "log.otel: spans need OpenTelemetry: pip install 'invoice-reconciler[otel]'\n"
    )
