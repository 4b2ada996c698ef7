"""The composition root: the only place where ports meet adapters."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.config import Config, PluginConfig, load_config
from worker.domain import Rules
from worker.errors import ConfigError
from worker.journal import open_journal
from worker.plugins import build_named
from worker.ports import BillingPlatform, Journal, UsageSource
from worker.reconcile import Ports

CONFIG_VARIABLE = "RECONCILER_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything a process works with; its connections are made at first use and kept."""

    config: Config
    journal: Journal
    platforms: Mapping[str, BillingPlatform]
    sources: Mapping[str, UsageSource]

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


def open_service(config: Config, journal: Journal | None = None) -> Service:
    """Make the adapters, on an open journal or the configured one.

    Raises ConfigError when a secret is missing or the rules cannot hold with a platform's limits.
    """
    config.require_secrets()
    platforms = open_platforms(config)
    for name, platform in platforms.items():
        _check_bounds(name, platform, config.rules)
    return Service(
        config=config,
        journal=journal or open_journal(config.journal.url),
        platforms=platforms,
        sources=open_sources(config),
    )


def open_platforms(config: Config) -> dict[str, BillingPlatform]:
    """Make the billing platforms."""
    return {name: _opened(name, platform) for name, platform in config.platforms.items()}


def open_sources(config: Config) -> dict[str, UsageSource]:
    """Make the usage sources."""
    return {name: _opened(name, source) for name, source in config.usage_sources.items()}


def _check_bounds(name: str, platform: BillingPlatform, rules: Rules) -> None:
    """A call may outlast neither the wait for its outcome nor the claim it is made under."""
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
