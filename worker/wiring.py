"""The composition root: the only place where ports meet adapters."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.config import Config, PluginConfig, load_config
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

    def ports(self, platform: str) -> Ports:
        """Return what a run on one platform's invoice needs."""
        if platform not in self.platforms:
            raise ConfigError([f'platforms: there is no "{platform}" any more; add it again'])
        return Ports(
            platform=self.platforms[platform],
            sources=self.sources,
            journal=self.journal,
            now=utc_now,
            random=random.random,
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


def open_service(config: Config) -> Service:
    """Make the adapters; raise ConfigError when a secret is missing."""
    config.require_secrets()
    return Service(
        config=config,
        journal=open_journal(config.journal.url),
        platforms=open_platforms(config),
        sources=open_sources(config),
    )


def open_platforms(config: Config) -> dict[str, BillingPlatform]:
    """Make the billing platforms."""
    return {name: _opened(name, platform) for name, platform in config.platforms.items()}


def open_sources(config: Config) -> dict[str, UsageSource]:
    """Make the usage sources."""
    return {name: _opened(name, source) for name, source in config.usage_sources.items()}


def _opened(name: str, configured: PluginConfig) -> Any:
    return build_named(configured.plugin, name, configured.settings)
