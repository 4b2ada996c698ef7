"""The configuration: one TOML file, then the environment; every complaint at once.

`overrides` reads the environment and finds the secrets, which come only that way.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.domain import Rules
from worker.errors import ConfigError
from worker.logs import masked
from worker.overrides import (
    GROUPS,
    SECTION_SECRETS,
    TABLE_SECRETS,
    Where,
    dotted,
    missing,
    override,
    quoted,
    secret_values,
    secrets_in_file,
)
from worker.plugins import (
    UnknownKind,
    circles,
    complaints_about,
    plain_error,
    plugin_class,
    required_secrets_of,
    sources_named,
    suggestion,
    unknown,
)
from worker.sections import (
    ComponentSection,
    EventsSection,
    File,
    JournalSection,
    LogSection,
    MetricsSection,
    NoticesSection,
    OpsSection,
    QueueSection,
    SweepSection,
    UserSection,
    WebhookSection,
    is_loopback,
)

__all__ = ["Config", "PluginConfig", "WebhookSection", "config_of", "load_config"]

_KEPT_BACK = {  # never shown: they are or hold secrets
    *(name for names in SECTION_SECRETS.values() for name in names),
    *(name for names in TABLE_SECRETS.values() for name in names),
    *("redis_url", "url"),
}


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One platform or usage source: its class and its settings, checked."""

    plugin: type[Any]
    settings: dict[str, Any] = field(repr=False)  # with the secrets

    def sources(self) -> dict[str, str]:
        """Return which of its settings name other usage sources, and which they name."""
        return sources_named(self.plugin, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the program is told, checked; what is missing of the secrets is listed."""

    webhook: WebhookSection
    queue: QueueSection
    sweep: SweepSection
    journal: JournalSection
    events: EventsSection
    metrics: MetricsSection
    notices: NoticesSection
    ops: OpsSection
    log: LogSection
    rules: Rules
    platforms: dict[str, PluginConfig]
    usage_sources: dict[str, PluginConfig]
    missing_secrets: tuple[str, ...]
    secrets: tuple[str, ...] = field(repr=False)  # their values, to keep them out of the logs

    def require_secrets(self) -> None:
        """Raise ConfigError naming every secret that is not set."""
        if self.missing_secrets:
            raise ConfigError(self.missing_secrets)


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the file and the environment; raise ConfigError with every complaint at once."""
    try:
        text = path.read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            [f"there is no {path}; copy config.example.toml there, or name another with --config"]
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    return config_of(data, environ)


def config_of(file_data: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """Check what a file says together with the environment."""
    data = copy.deepcopy(dict(file_data))
    complaints = secrets_in_file(data)
    origins, unreadable = override(data, environ)
    found = _Findings(data, origins)
    file = found.file()
    platforms, sources = found.plugins("platforms"), found.plugins("usage_sources")
    found.check_sources(sources)
    complaints += [*unreadable, *found.complaints]
    if file is not None and _is_open(file):
        told = "the pages would be open to everybody: name [ops.users], or a trusted proxy's header"
        complaints.append(f"ops: webhook.host is {file.webhook.host}, so {told}")
    if complaints or file is None:
        raise ConfigError(complaints)
    if not file.webhook.password:
        found.missing_secrets.append(missing("webhook", "password"))
    if file.events.source and not file.events.token:
        found.missing_secrets.append(missing("events", "token"))
    found.missing_secrets += _passwords_missing(file.ops)
    return Config(
        webhook=file.webhook,
        queue=file.queue,
        sweep=file.sweep,
        journal=file.journal,
        events=file.events,
        metrics=file.metrics,
        notices=file.notices,
        ops=file.ops,
        log=file.log,
        rules=_rules(file),
        platforms=platforms,
        usage_sources=sources,
        missing_secrets=tuple(found.missing_secrets),
        secrets=tuple(found.secrets),
    )


class _Findings:
    """One look at the data: each part is checked whatever is wrong with the others."""

    def __init__(self, data: dict[str, Any], origins: Mapping[Where, str]) -> None:
        self.complaints: list[str] = []
        self.missing_secrets: list[str] = []
        self.secrets = secret_values(data)
        self._data = data
        self._origins = origins

    def file(self) -> File | None:
        """Check everything but the settings of plugins."""
        try:
            return File.model_validate(self._data)
        except ValidationError as error:
            for detail in error.errors():
                where, wrong = _complaint(detail)
                self._complain(where, wrong)
            return None

    def plugins(self, section: str) -> dict[str, PluginConfig]:
        """Check each plugin's settings, and note the secrets that are not set."""
        found: dict[str, PluginConfig] = {}
        for name, given in self._tables(section).items():
            settings = dict(given)
            try:
                plugin = plugin_class(GROUPS[section], str(settings.pop("kind", name)))
            except UnknownKind as error:
                self._complain((section, name, "kind"), str(error))
                continue
            unset = [one for one in required_secrets_of(plugin) if settings.get(one) in (None, "")]
            self.missing_secrets += [missing(section, name, secret) for secret in unset]
            placeholders = dict.fromkeys(unset, "not set")
            for place, wrong in complaints_about(plugin, {**settings, **placeholders}):
                self._complain((section, name, *place), wrong)
            found[name] = PluginConfig(plugin, settings)
        return found

    def check_sources(self, found: Mapping[str, PluginConfig]) -> None:
        """Check that components and sources name usage sources that are there, and no circle."""
        for name, component in self._tables("components").items():
            if isinstance(source := component.get("source"), str):
                self._check_source(("components", name, "source"), source)
        for name, plugin in found.items():
            for setting, source in plugin.sources().items():
                self._check_source(("usage_sources", name, setting), source)
        events = (self._data.get("events") or {}).get("source")
        if isinstance(events, str) and events:
            self._check_source(("events", "source"), events)
            if events in found and not hasattr(found[events].plugin, "store"):
                told = f'"{events}" takes no events; name a usage source of the kind "meter"'
                self._complain(("events", "source"), told)
        for way in circles({name: plugin.sources() for name, plugin in found.items()}):
            (name, setting), *_ = way
            told = " -> ".join(quoted(each) for each, _ in way)
            self._complain(
                ("usage_sources", name, setting), f"asks itself: {told} -> {quoted(name)}"
            )

    def _check_source(self, where: Where, source: str) -> None:
        sources = self._tables("usage_sources")
        if source not in sources:
            told = f'there is no usage source "{source}"{suggestion(source, sources)}'
            self._complain(where, told)

    def _tables(self, section: str) -> dict[str, dict[str, Any]]:
        tables = self._data.get(section)
        given = tables if isinstance(tables, dict) else {}
        return {name: table for name, table in given.items() if isinstance(table, dict)}

    def _complain(self, where: Where, wrong: str) -> None:
        """Name the key, and the variable that set it; no secret stays in the text."""
        origin = next((v for k, v in self._origins.items() if k[: len(where)] == where), "")
        told = f"{wrong} (set by {origin})" if origin else wrong
        self.complaints.append(f"{dotted(where)}: {masked(told, self.secrets)}")


def _is_open(file: File) -> bool:
    return file.ops.enabled and not file.ops.has_login and not is_loopback(file.webhook.host)


def _passwords_missing(ops: OpsSection) -> list[str]:
    """Name the users who cannot log in; with a proxy, their entry may tell the role alone."""
    if not ops.enabled or ops.proxy_user_header:
        return []
    unset = [name for name, user in ops.users.items() if not user.password]
    return [missing("ops", "users", name, "password") for name in unset]


def _rules(file: File) -> Rules:
    rules = file.rules
    return Rules(
        components={name: one.component(name) for name, one in file.components.items()},
        invoice_types=frozenset(rules.invoice_types),
        grace=timedelta(seconds=rules.grace_seconds),
        issue_without_usage=rules.issue_without_usage,
        not_found_grace=timedelta(seconds=rules.not_found_grace_seconds),
        watermark_poll=timedelta(seconds=rules.watermark_poll_seconds),
        watermark_deadline=timedelta(seconds=rules.watermark_deadline_seconds),
        settle=timedelta(seconds=rules.settle_seconds),
        retry_delays=tuple(timedelta(seconds=s) for s in rules.retry_delays_seconds),
        max_attempts=rules.max_attempts,
        lease=timedelta(seconds=rules.lease_seconds),
        mode=rules.mode,
    )


def _complaint(detail: Mapping[str, Any]) -> tuple[Where, str]:
    where = tuple(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return where, unknown(where[-1], _names_at(where[:-1]))
    return where, plain_error(detail, secret=where[-1] in _KEPT_BACK)


def _names_at(where: Where) -> list[str]:
    """Return the settings of a section."""
    if not where:
        return list(File.model_fields)
    if where[0] == "components":
        return list(ComponentSection.model_fields)
    if where[:2] == ("ops", "users"):
        return list(UserSection.model_fields)
    section = File.model_fields[where[0]].annotation
    return list(getattr(section, "model_fields", ()))
