"""A Prometheus for the tests: one of the test's own over HTTP, and the real one where installed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from usage_server import Asked, Reply

from usage_sources.contract import UsageEvent
from usage_sources.reading import microseconds, plain

Stored = dict[tuple[tuple[str, str], ...], list[tuple[int, str]]]  # samples, oldest first

_MATCHER = re.compile(r'([a-zA-Z_]\w*)=("(?:[^"\\]|\\.)*")')
_RANGE = re.compile(r"(?s)(count_over_time\()?(\{.*\})\[(\d+)(ms|d)\]\)?")
_DAY = 86_400_000
_FILLED = [  # moments at which every series has a sample, all of 2024
    microseconds(datetime(2023, 12, 1, tzinfo=UTC)) // 1000 + 7 * _DAY * week for week in range(60)
]
INSTALLED = shutil.which("prometheus") is not None and shutil.which("promtool") is not None


def series(samples: Sequence[tuple[int, object]], **labels: str) -> Stored:
    """Store one series; `metric` is its name."""
    named = {"__name__": labels.pop("metric", "calls"), "tenant": "S-1", **labels}
    ordered = sorted(samples, key=lambda sample: sample[0])
    return {tuple(sorted(named.items())): [(at, str(value)) for at, value in ordered]}


def counters(events: Sequence[UsageEvent], *, from_zero: bool = False) -> Stored:
    """Make counters of events: a sample at T shows what was used before T.

    Each event has a sample at its time and one a millisecond later; every series has one a week,
    or from its first event on.
    """
    stored: Stored = {}
    by_series: dict[tuple[tuple[str, str], ...], list[tuple[int, Decimal]]] = {}
    for event in events:
        names = {"__name__": event.metric, "tenant": event.subject, "region": event.region}
        quantity = Decimal("NaN") if event.quantity is None else event.quantity
        at = microseconds(event.at) // 1000
        by_series.setdefault(tuple(sorted(names.items())), []).append((at, quantity))
    for labels, used in by_series.items():
        moments = {*_FILLED, *(at for at, _ in used), *(at + 1 for at, _ in used)}
        first = min(at for at, _ in used)
        shown = sorted(at for at in moments if not from_zero or at > first)
        values = [sum((q for at, q in used if at < moment), Decimal(0)) for moment in shown]
        texts = ["NaN" if value.is_nan() else plain(value) for value in values]
        stored[labels] = list(zip(shown, texts, strict=True))
    return stored


@dataclass
class PrometheusLike:
    """Answers as Prometheus does, from the samples that a test gives it."""

    stored: Stored = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    closed: bool = True  # at the old end of a range: Prometheus 2; open: Prometheus 3
    more: Mapping[str, Any] = field(default_factory=dict)  # beside the data of an answer

    def __call__(self, asked: Asked) -> Reply:
        """Answer one request."""
        path = asked.path[2:]
        if path == ["query"]:
            return self._data(self._query(asked.first("query") or "", asked.first("time")))
        if path == ["metadata"]:
            metric = asked.first("metric")
            found = {n: [{"type": t}] for n, t in self.types.items() if n == metric}
            return self._data(found)
        label = "__name__" if path == ["labels"] else path[1]
        found_series = self._matching(asked.first("match[]") or "{}")
        names = {name for each in found_series for name in dict(each)}
        values = {dict(each)[label] for each in found_series if label in dict(each)}
        return self._data(sorted(names if path == ["labels"] else values))

    def _query(self, query: str, at: str | None) -> Any:
        if query == "1":
            return {"resultType": "scalar", "result": [1, "1"]}
        found = _RANGE.fullmatch(query)
        assert found is not None, query
        upto = microseconds(datetime.fromisoformat(at or "")) // 1000
        after = upto - int(found[3]) * (_DAY if found[4] == "d" else 1)
        result = []
        for labels in self._matching(found[2]):
            samples = [
                [Decimal(at) / 1000, text]
                for at, text in self.stored[labels]
                if after < at <= upto or (self.closed and at == after)
            ]
            if samples and found[1]:
                unnamed = {n: v for n, v in labels if n != "__name__"}
                result.append(
                    {"metric": unnamed, "value": [Decimal(upto) / 1000, str(len(samples))]}
                )
            elif samples:
                result.append({"metric": dict(labels), "values": samples})
        return {"resultType": "vector" if found[1] else "matrix", "result": result}

    def _matching(self, selector: str) -> list[tuple[tuple[str, str], ...]]:
        wanted = {(name, json.loads(text)) for name, text in _MATCHER.findall(selector)}
        assert all(value for _, value in wanted), "an empty matcher matches what has no label"
        return [labels for labels in self.stored if wanted <= set(labels)]

    def _data(self, data: Any) -> Reply:
        return Reply({"status": "success", "data": data, **self.more})


@contextlib.contextmanager
def real_prometheus(folder: Path, stored: Stored) -> Iterator[str]:
    """Run the Prometheus that is installed over these samples; yield its URL."""
    folder.mkdir()
    lines = [f"{_line(labels, at, text)}\n" for labels, s in stored.items() for at, text in s]
    (folder / "samples.txt").write_text("".join(lines) + "# EOF\n", encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "prometheus.yml").write_text("global: {}\n")
    filling = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    if lines:
        subprocess.run(
            [*filling, "--max-block-duration=20000h", "samples.txt", "data"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=60,
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
        *("--storage.tsdb.retention.time=100y", f"--web.listen-address={address}"),
    ]
    with (folder / "log.txt").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        _wait(f"http://{address}/-/ready", running, folder / "log.txt")
        yield f"http://{address}"
    finally:
        running.kill()
        running.wait(30)


def _line(labels: tuple[tuple[str, str], ...], at: int, text: str) -> str:
    named = dict(labels)
    name = named.pop("__name__")
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})  # all that OpenMetrics knows
    texts = {n: v.translate(escapes) for n, v in named.items()}
    each = ",".join(f'{n}="{text}"' for n, text in texts.items())
    # 0.4 ms more, since the tool cuts a float off at whole milliseconds.
    return f"{name}{{{each}}} {text} {at // 1000}.{at % 1000:03d}4"


def _wait(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        with contextlib.suppress(urllib.error.URLError, OSError):
            direct.open(url, timeout=5).close()
            return
        assert running.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
