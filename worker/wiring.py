"""The composition root: the only place where ports meet adapters."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from worker.config import Config, PluginConfig, load_config
from worker.domain import Rules
from worker.errors import ConfigError
from worker.journal import journal_file, open_journal
from worker.journal.sql import SqlJournal
from worker.measured import MeasuredSource, MeasuredStore, Measures
from worker.metering import EventStore
from worker.metrics import Numbers
from worker.notices import Notices
from worker.notices_channels import open_channels
from worker.overrides import dotted
from worker.plugins import build_named
from worker.ports import BillingPlatform, Journal, Ports, UsageSource
from worker.tracing import open_tracing

CONFIG_VARIABLE = "RECONCILER_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything a process works with; its connections are made at first use and kept."""

    config: Config
    journal: Journal
    platforms: Mapping[str, BillingPlatform]
    sources: Mapping[str, UsageSource]
    measures: Measures = field(default_factory=Measures)

    def ports(self, platform: str, stopping: Callable[[], bool]) -> Ports:
        """Return what a run on one platform's invoice needs."""
        return Ports(
            platform=self.platforms[platform],
            sources=self.sources,
            journal=self.journal,
            now=utc_now,
            random=random.random,
            stopping=stopping,
        )


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def config_path() -> Path:
    """Return the configuration file the environment names, or config.toml here."""
    return Path(os.environ.get(CONFIG_VARIABLE, "config.toml"))


def configured() -> Config:
    """Read the configuration; raise ConfigError with every complaint."""
    return load_config(config_path(), os.environ)


def open_service(
    config: Config, journal: Journal | None = None, measures: Measures | None = None
) -> Service:
    """Make the adapters, on an open journal or the configured one; the same with the measures.

    Raises ConfigError when a secret is missing or the rules cannot hold with a platform's limits.
    """
    config.require_secrets()
    platforms = open_platforms(config)
    for name, platform in platforms.items():
        check_bounds(name, platform, config.rules)
    measures = measures or open_measures(config)
    for name, platform in platforms.items():
        measures.watch(name, platform)
    return Service(
        config=config,
        journal=journal or open_measured_journal(config, measures),
        platforms=platforms,
        sources=open_sources(config, measures),
        measures=measures,
    )


def open_measures(config: Config) -> Measures:
    """Make what counts and traces; nothing is written before the first count."""
    return Measures(Numbers(metrics_folder(config)), open_tracing(otel=config.log.otel))


def metrics_folder(config: Config) -> Path:
    """Return where the processes of this machine count: by default beside the journal's file."""
    if config.metrics.folder:
        return Path(config.metrics.folder)
    file = journal_file(config.journal.url)
    return (file.parent if file else Path("state")) / "metrics"


def open_measured_journal(config: Config, measures: Measures) -> SqlJournal:
    """Open the configured journal, its commits measured."""
    journal = open_journal(config.journal.url)
    journal.store = MeasuredStore(journal.store, measures.numbers)
    return journal


def open_notices(service: Service) -> Notices:
    """Make what tells people of invoices, by the channels that are set."""
    settings = service.config.notices
    return Notices(
        journal=service.journal,
        channels=open_channels(settings),
        now=utc_now,
        every=timedelta(seconds=settings.every_seconds),
        older_than=timedelta(seconds=settings.older_than_seconds),
        page_url=settings.page_url or "",
        secrets=service.config.secrets,
        numbers=service.measures.numbers,
    )


def open_platforms(config: Config) -> dict[str, BillingPlatform]:
    """Make the billing platforms."""
    return {name: _opened(name, platform) for name, platform in config.platforms.items()}


def open_sources(config: Config, measures: Measures | None = None) -> dict[str, UsageSource]:
    """Make the usage sources, each once: those that a source asks before the source itself.

    Raises ConfigError when a secret of theirs is missing.
    """
    places = tuple(f"{dotted(('usage_sources', name))}." for name in config.usage_sources)
    if missing := [told for told in config.missing_secrets if told.startswith(places)]:
        raise ConfigError(missing)
    made: dict[str, UsageSource] = {}

    def source(name: str) -> UsageSource:
        if name not in made:
            chosen = config.usage_sources[name]
            asked = {setting: source(other) for setting, other in chosen.sources().items()}
            made[name] = build_named(chosen.plugin, name, {**chosen.settings, **asked})
            if measures is not None:
                made[name] = MeasuredSource(name, made[name], measures)
        return made[name]

    return {name: source(name) for name in config.usage_sources}


def open_event_store(config: Config) -> EventStore:
    """Make the store that the events of `[events]` go into; raise ConfigError."""
    name = config.events.source
    if not name:
        raise ConfigError(['events.source is not set: name a usage source of the kind "meter"'])
    store: EventStore = _opened(name, config.usage_sources[name]).store
    return store


def check_bounds(name: str, platform: BillingPlatform, rules: Rules) -> None:
    """Raise ConfigError where a call may outlast the wait for its outcome, or its claim."""
    longest = platform.longest_call
    complaints = [
        f"rules.{setting}_seconds must be above {least.total_seconds():g}: a call to {name} may"
        f" take {longest.total_seconds():g} seconds by its timeouts"
        for setting, value, least in (
            ("settle", rules.settle, longest),
            ("lease", rules.lease, longest + rules.settle),
        )
        if value <= least
    ]
    if complaints:
        raise ConfigError(complaints)


def _opened(name: str, chosen: PluginConfig) -> Any:
    return build_named(chosen.plugin, name, chosen.settings)
