"""Usage counted from the raw samples that a Prometheus keeps of counters and gauges."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path

from usage_sources.prometheus.api import PrometheusApi, is_label
from usage_sources.prometheus.counting import Counted, Counting, Manner, check_query
from usage_sources.prometheus.tracks import EndedSeries, NewSeries
from usage_sources.reading import digest, lagging, shown
from usage_sources.web import Credentials, Deadline, WebApi, check_base_url, check_header
from worker.domain import Evidence, Tally, UsageQuery, utc_text


@dataclass(frozen=True, kw_only=True)
class PrometheusSource:
    """Counts usage by the exact differences of counters; each field is a setting.

    A component's metric is the metric's name, and its filters are labels. Several series of one
    subject are added. Of a gauge, `max` and `last` of its samples can be counted.
    """

    # What the configuration calls it.
    name: str = field(default="", metadata={"setting": False})
    # The address of Prometheus, or of what answers its API, without /api/v1.
    base_url: str
    # The label with the id that usage is keyed by.
    subject_label: str
    # Labels that every series must have; where several replicas store the same samples, name one
    # of them here, or usage is counted once for each.
    labels: Mapping[str, str] = field(default_factory=dict)
    # Metrics that exist although no series of theirs has come yet; any other that no series has
    # is an error. Nobody is known to a metric without series.
    known_metrics: tuple[str, ...] = field(default_factory=tuple)
    # The API token, sent as a bearer token; or give username and password, or nothing.
    token: str = field(default="", repr=False, metadata={"secret": True})
    # The user for basic authentication; default: none.
    username: str | None = None
    # The password of that user.
    password: str = field(default="", repr=False, metadata={"secret": True})
    # How old the last sample before a period's start, and before its end, may be.
    staleness_seconds: float = 300.0
    # How far apart two samples may be; usage in a longer gap may be lost, and is never guessed.
    max_gap_seconds: float = 300.0
    # What a series that begins inside a period means: "held", or "from_zero" where a counter
    # begins at 0 and its first sample is all usage. One that had earlier samples is not new.
    new_series: NewSeries = "held"
    # What a series that ends inside a period means: "held", or "complete" where its last sample
    # shows all its usage, as when a pod was replaced. The last of a subject's must not end.
    ended_series: EndedSeries = "held"
    # How much time one request covers; lower it where an answer has too many samples or bytes.
    chunk_seconds: float = 86_400.0
    # Everything older than this many seconds is in; default: unsaid.
    watermark_lag_seconds: float | None = None
    # How long one count may take, however many requests it needs.
    timeout_seconds: float = 30.0
    # A file of certificates (PEM) to trust instead of the usual ones; default: none.
    ca_file: str | None = None

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        for name in ("subject_label", *(f"labels.{each}" for each in self.labels)):
            label = self.subject_label if name == "subject_label" else name.partition(".")[2]
            if not is_label(label):
                raise ValueError(f"{name}: {shown(label)} cannot be the name of a label")
        if self.subject_label in self.labels:
            raise ValueError(f"labels.{self.subject_label}: it is the subject_label")
        if not all(self.labels.values()):
            raise ValueError("labels: to Prometheus, an empty value means that there is no label")
        for name in ("staleness_seconds", "max_gap_seconds", "chunk_seconds"):
            if not 0.001 <= getattr(self, name) <= 10**9:
                raise ValueError(f"{name} must be 0.001 or more, and 1000000000 at most")
        lag = self.watermark_lag_seconds
        if lag is not None and not (isfinite(lag) and lag >= 0):
            raise ValueError("watermark_lag_seconds must be 0 or more")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError("timeout_seconds must be more than 0, and 3600 at most")
        if self.ca_file is not None and not Path(self.ca_file).is_file():
            raise ValueError(f"ca_file: there is no file {self.ca_file}")
        self._check_credentials()

    def _check_credentials(self) -> None:
        check_header("token", self.token)
        if self.token and (self.username is not None or self.password):
            raise ValueError("give token, or username and password, not both")
        if (self.username is None) != (not self.password):
            raise ValueError("username and password need each other")
        if ":" in (self.username or ""):
            raise ValueError("username must not hold a colon")

    def count(self, queries: Sequence[UsageQuery]) -> Sequence[Tally]:
        """Answer every query; the samples of each subject and metric are read anew."""
        asked_at = self.now()
        counting = Counting(PrometheusApi(self._web, Deadline(self.timeout_seconds)), self._manner)
        for query in queries:
            check_query(self._web.place, query)
        return [self._tally(query, counting.counted(query), asked_at) for query in queries]

    def watermark(self) -> datetime | None:
        """Return the present moment less the lag that the settings state; None: unsaid."""
        return lagging(self.now(), self.watermark_lag_seconds)

    def check(self) -> None:
        """Raise unless the server answers a query and accepts our credentials."""
        PrometheusApi(self._web, Deadline(self.timeout_seconds)).check()

    @staticmethod
    def now() -> datetime:
        """Return the present moment; a test's subclass may return another."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Give up the connections; the next use makes new ones."""
        self._web.close()

    @cached_property
    def _web(self) -> WebApi:
        headers = {}
        basic = ""
        if self.token:
            headers = {"Authorization": f"Bearer {self.token}"}
        elif self.username is not None:
            basic = b64encode(f"{self.username}:{self.password}".encode()).decode()
            headers = {"Authorization": f"Basic {basic}"}
        return WebApi(
            self.base_url,
            kind="prometheus",
            timeout_seconds=self.timeout_seconds,
            credentials=Credentials(
                headers=headers,
                secrets=[self.token, self.password, basic],
                set_by=(self.name, "password" if self.username is not None else "token"),
            ),
            ca_file=self.ca_file,
        )

    @cached_property
    def _manner(self) -> Manner:
        return Manner(
            subject_label=self.subject_label,
            labels=tuple(sorted(self.labels.items())),
            known_metrics=frozenset(self.known_metrics),
            staleness=round(self.staleness_seconds * 1000),
            max_gap=round(self.max_gap_seconds * 1000),
            chunk=round(self.chunk_seconds * 1000),
            new_series=self.new_series,
            ended_series=self.ended_series,
        )

    def _tally(self, query: UsageQuery, counted: Counted, asked_at: datetime) -> Tally:
        evidence = Evidence(
            source=self._web.place,
            query=counted.question,
            parameters={
                "time": utc_text(query.period.end),
                "subject": query.subject,
                "metric": query.metric,
                "aggregation": query.aggregation.value,
                "start": utc_text(query.period.start),
                "end": utc_text(query.period.end),
                "filters": dict(query.filters),
                "labels": dict(self.labels),
                "staleness_seconds": f"{self.staleness_seconds:g}",
                "max_gap_seconds": f"{self.max_gap_seconds:g}",
                "samples": counted.samples,
                "series": counted.series,
            },
            asked_at=asked_at,
            digest=digest(query, counted.value, None),
            watermark=lagging(asked_at, self.watermark_lag_seconds),
            notes=counted.notes,
        )
        return Tally(query=query, value=counted.value, events=None, evidence=evidence)
