"""The configuration: one TOML file, then the environment; every complaint at once.

`RECONCILER__SECTION__KEY` overrides a key, `RECONCILER__SECTION__KEY_FILE` names a file that
holds its value. Secrets come only that way.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.domain import Aggregation, Component, Rounding, Rules, Subject, UnknownSubject
from worker.errors import ConfigError
from worker.plugins import (
    PLATFORMS,
    SOURCES,
    UnknownKind,
    complaints_about,
    plain_error,
    plugin_class,
    secrets_of,
    suggestion,
    unknown,
)

PREFIX = "RECONCILER__"
_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_WEBHOOK_SECRETS = ("password", "previous_password")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookSection(_Section):
    """Who may deliver notifications, and where they are received."""

    username: str = Field(default="billing-platform", min_length=1)
    password: str = Field(default="", repr=False)
    previous_password: str = Field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    processes: int = Field(default=2, ge=1, le=64)
    threads: int = Field(default=8, ge=1, le=256)


class QueueSection(_Section):
    """The doorbell."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    name: str = Field(default="reconcile", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    sweep_interval_seconds: SomeSeconds = 60


class JournalSection(_Section):
    """The truth."""

    url: str = "sqlite:///state/journal.db"


class RulesSection(_Section):
    """What is decided once for all invoices."""

    invoice_types: list[str] = Field(default=["Subscription", "FinalArrears"], min_length=1)
    issue_without_usage: bool = True
    grace_seconds: Seconds = 300
    not_found_grace_seconds: Seconds = 120
    watermark_poll_seconds: SomeSeconds = 300
    settle_seconds: Seconds = 120
    retry_delays_seconds: list[Seconds] = Field(default=[5, 30, 120, 600, 3600], min_length=1)
    max_attempts: int = Field(default=12, ge=1)
    lease_seconds: SomeSeconds = 300


class LogSection(_Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class ComponentSection(_Section):
    """How one priced component is counted; its key is the component's name on the platform."""

    source: str
    metric: str = ""
    aggregation: Aggregation = Aggregation.COUNT
    subject: Subject = Subject.SUBSCRIPTION
    rounding: Rounding = Rounding.REJECT
    unknown_subject: UnknownSubject = UnknownSubject.HOLD
    max_quantity: int | None = Field(default=None, ge=0)


PlatformName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class _File(_Section):
    webhook: WebhookSection = WebhookSection()
    platforms: dict[PlatformName, dict[str, Any]] = Field(min_length=1)
    queue: QueueSection = QueueSection()
    journal: JournalSection = JournalSection()
    rules: RulesSection = RulesSection()
    usage_sources: dict[str, dict[str, Any]] = {}
    components: dict[str, ComponentSection] = {}
    log: LogSection = LogSection()


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One platform or usage source: its class and its settings, checked."""

    plugin: type[Any]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the program is told, checked; what is missing of the secrets is listed."""

    webhook: WebhookSection
    queue: QueueSection
    journal: JournalSection
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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    return config_of(data, environ)


def config_of(data: dict[str, Any], environ: Mapping[str, str]) -> Config:
    """Check what a file says together with the environment."""
    complaints = list(_secrets_in_file(data))
    complaints += _override(data, environ)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        complaints += [_complaint(detail) for detail in error.errors()]
        raise ConfigError(complaints) from None
    platforms, missing = _plugins(PLATFORMS, "platforms", file.platforms, complaints)
    sources, missing_too = _plugins(SOURCES, "usage_sources", file.usage_sources, complaints)
    complaints += _unknown_sources(file)
    if complaints:
        raise ConfigError(complaints)
    if not file.webhook.password:
        missing.append(_missing("webhook", "password"))
    return Config(
        webhook=file.webhook,
        queue=file.queue,
        journal=file.journal,
        log=file.log,
        rules=_rules(file),
        platforms=platforms,
        usage_sources=sources,
        missing_secrets=(*missing, *missing_too),
        secrets=tuple(_secret_values(file, platforms | sources)),
    )


def _rules(file: _File) -> Rules:
    rules = file.rules
    components = {
        name: Component(name=name, **{**dict(component), "metric": component.metric or name})
        for name, component in file.components.items()
    }
    return Rules(
        components=components,
        invoice_types=frozenset(rules.invoice_types),
        grace=timedelta(seconds=rules.grace_seconds),
        issue_without_usage=rules.issue_without_usage,
        not_found_grace=timedelta(seconds=rules.not_found_grace_seconds),
        watermark_poll=timedelta(seconds=rules.watermark_poll_seconds),
        settle=timedelta(seconds=rules.settle_seconds),
        retry_delays=tuple(timedelta(seconds=s) for s in rules.retry_delays_seconds),
        max_attempts=rules.max_attempts,
        lease=timedelta(seconds=rules.lease_seconds),
    )


def _plugins(
    group: str, section: str, given: dict[str, dict[str, Any]], complaints: list[str]
) -> tuple[dict[str, PluginConfig], list[str]]:
    """Check each plugin's settings; return them, and the secrets that are not set."""
    found: dict[str, PluginConfig] = {}
    missing: list[str] = []
    for name, settings in given.items():
        settings = dict(settings)
        where = f"{section}.{_quoted(name)}"
        try:
            plugin = plugin_class(group, str(settings.pop("kind", name)))
        except UnknownKind as error:
            complaints.append(f"{where}.kind: {error}")
            continue
        unset = [secret for secret in secrets_of(plugin) if not settings.get(secret)]
        missing += [_missing(section, name, secret) for secret in unset]
        placeholders = dict.fromkeys(unset, "not set")
        for setting, wrong in complaints_about(plugin, {**settings, **placeholders}):
            complaints.append(f"{where}.{setting}: {wrong}" if setting else f"{where}: {wrong}")
        found[name] = PluginConfig(plugin, settings)
    return found, missing


def _unknown_sources(file: _File) -> Iterator[str]:
    for name, component in file.components.items():
        if component.source not in file.usage_sources:
            near = suggestion(component.source, file.usage_sources)
            yield (
                f"components.{_quoted(name)}.source: there is no usage source"
                f' "{component.source}"{near}'
            )


def _secrets_in_file(data: dict[str, Any]) -> Iterator[str]:
    """Find secrets that stand in the file, by their key or inside a URL."""
    for where, value in _leaves(data):
        named = len(where) > 1 and where[-1] in _secret_keys(data, where)
        if named or (isinstance(value, str) and _PASSWORD_IN_URL.search(value)):
            yield f"{_dotted(where)}: a secret must not stand in the file; set {variable(*where)}"


def _leaves(data: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, (*where, key))
    else:
        yield where, data


def _secret_keys(data: dict[str, Any], where: tuple[str, ...]) -> Collection[str]:
    """Return the names of the secrets in the section a key stands in."""
    groups = {"platforms": PLATFORMS, "usage_sources": SOURCES}
    if where[0] == "webhook":
        return _WEBHOOK_SECRETS
    if where[0] not in groups or len(where) != 3:
        return ()
    try:
        kind = data[where[0]][where[1]].get("kind", where[1])
        return secrets_of(plugin_class(groups[where[0]], str(kind)))
    except UnknownKind:
        return ()


def _secret_values(file: _File, plugins: Mapping[str, PluginConfig]) -> Iterator[str]:
    yield from (file.webhook.password, file.webhook.previous_password)
    for plugin in plugins.values():
        yield from (str(plugin.settings.get(name, "")) for name in secrets_of(plugin.plugin))
    everything = [file.queue.redis_url, file.journal.url]
    everything += [str(v) for plugin in plugins.values() for v in plugin.settings.values()]
    for value in everything:
        if found := _PASSWORD_IN_URL.search(value):
            yield found.group(1)


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """Put what the environment says into the data; yield what cannot be read."""
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        path, value = name.removeprefix(PREFIX).split("__"), environ[name]
        if path[-1].endswith("_FILE"):
            path[-1] = path[-1].removesuffix("_FILE")
            try:
                value = Path(value).read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                yield f"{name}: {type(error).__name__}: cannot read the file it names"
                continue
        if not all(path):
            yield f"{name}: write it as {PREFIX}SECTION__KEY"
            continue
        try:
            _put(data, path, _parsed(value))
        except (TypeError, tomllib.TOMLDecodeError):
            yield f"{name}: does not fit the file's structure or is not a TOML list"


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(_key(data, part), {})
    data[_key(data, path[-1])] = value


def _key(data: Mapping[str, Any], part: str) -> str:
    """Return the key an environment variable's part means; an unknown one in lower case."""
    if not isinstance(data, dict):
        raise TypeError
    return next((key for key in data if _upper(key) == part.upper()), part.lower())


def _parsed(value: str) -> Any:
    """Return a list where the text is one; everything else is text that its type will read."""
    return tomllib.loads(f"v = {value}")["v"] if value.startswith("[") else value


def variable(*where: str) -> str:
    """Return the environment variable that sets a key."""
    return PREFIX + "__".join(_upper(part) for part in where)


def _upper(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", key).upper()


def _missing(*where: str) -> str:
    name = variable(*where)
    return f"{_dotted(where)} is not set: put it into {name}, or its file's path into {name}_FILE"


def _complaint(detail: Mapping[str, Any]) -> str:
    where = tuple(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{_dotted(where)}: {unknown(where[-1], _names_at(where[:-1]))}"
    return f"{_dotted(where)}: {plain_error(detail, secret=where[-1] in _WEBHOOK_SECRETS)}"


def _names_at(where: tuple[str, ...]) -> list[str]:
    """Return the settings of a section."""
    if not where:
        return list(_File.model_fields)
    if where[0] == "components":
        return list(ComponentSection.model_fields)
    section = _File.model_fields[where[0]].annotation
    return list(getattr(section, "model_fields", ()))


def _dotted(where: tuple[str, ...]) -> str:
    return ".".join(map(_quoted, where))


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
