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
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from redis.connection import parse_url

from worker.domain import Aggregation, Component, Rounding, Rules, Subject, UnknownSubject
from worker.errors import ConfigError
from worker.logs import masked
from worker.overrides import (
    GROUPS,
    WEBHOOK_SECRETS,
    Where,
    dotted,
    missing,
    override,
    secret_values,
    secrets_in_file,
)
from worker.plugins import (
    UnknownKind,
    complaints_about,
    plain_error,
    plugin_class,
    required_secrets_of,
    suggestion,
    unknown,
)

_MOST_SECONDS = 10 * 365 * 24 * 60 * 60  # more would leave the calendar
_KEPT_BACK = (*WEBHOOK_SECRETS, "redis_url", "url")  # never shown: they are or hold secrets

Seconds = Annotated[float, Field(ge=0, le=_MOST_SECONDS, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=_MOST_SECONDS, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where pydantic would take them for 1 and 0."""
        expected = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and expected is not bool:
            raise ValueError("must not be true or false")
        return value


class WebhookSection(_Section):
    """Who may deliver notifications, and where they are received."""

    username: str = Field(default="billing-platform", pattern=r"^[^:\s]+$")
    password: str = Field(default="", repr=False)
    previous_password: str = Field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    processes: int = Field(default=2, ge=1, le=64)
    threads: int = Field(default=8, ge=1, le=256)


class QueueSection(_Section):
    """The doorbell."""

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    name: str = Field(default="reconcile", pattern=r"^[A-Za-z0-9_-]{1,64}$")

    @field_validator("redis_url")
    @classmethod
    def _is_url_of_redis(cls, url: str) -> str:
        """Refuse here what Redis' client would refuse with a traceback, later."""
        try:
            parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            raise ValueError("must be a URL such as redis://127.0.0.1:6379/0") from None
        return url


class SweepSection(_Section):
    """The safety net."""

    interval_seconds: SomeSeconds = 60
    find_pending_seconds: SomeSeconds = 600
    find_pending_pages: int = Field(default=4, ge=0, le=1000)


class JournalSection(_Section):
    """The truth."""

    url: str = Field(default="sqlite:///state/journal.db", repr=False)


class RulesSection(_Section):
    """What is decided once for all invoices."""

    invoice_types: list[str] = Field(default=["Subscription", "FinalArrears"], min_length=1)
    issue_without_usage: bool = True
    grace_seconds: Seconds = 300
    not_found_grace_seconds: Seconds = 120
    watermark_poll_seconds: SomeSeconds = 300
    watermark_deadline_seconds: SomeSeconds = 259200
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
    sweep: SweepSection = SweepSection()
    journal: JournalSection = JournalSection()
    rules: RulesSection = RulesSection()
    usage_sources: dict[str, dict[str, Any]] = {}
    components: dict[str, ComponentSection] = {}
    log: LogSection = LogSection()


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One platform or usage source: its class and its settings, checked."""

    plugin: type[Any]
    settings: dict[str, Any] = field(repr=False)  # with the secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the program is told, checked; what is missing of the secrets is listed."""

    webhook: WebhookSection
    queue: QueueSection
    sweep: SweepSection
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
    found.check_sources()
    complaints += [*unreadable, *found.complaints]
    if complaints or file is None:
        raise ConfigError(complaints)
    if not file.webhook.password:
        found.missing_secrets.append(missing("webhook", "password"))
    return Config(
        webhook=file.webhook,
        queue=file.queue,
        sweep=file.sweep,
        journal=file.journal,
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

    def file(self) -> _File | None:
        """Check everything but the settings of plugins."""
        try:
            return _File.model_validate(self._data)
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

    def check_sources(self) -> None:
        """Check that every component names a usage source that is there."""
        sources = self._tables("usage_sources")
        for name, component in self._tables("components").items():
            source = component.get("source")
            if isinstance(source, str) and source not in sources:
                told = f'there is no usage source "{source}"{suggestion(source, sources)}'
                self._complain(("components", name, "source"), told)

    def _tables(self, section: str) -> dict[str, dict[str, Any]]:
        tables = self._data.get(section)
        given = tables if isinstance(tables, dict) else {}
        return {name: table for name, table in given.items() if isinstance(table, dict)}

    def _complain(self, where: Where, wrong: str) -> None:
        """Name the key, and the variable that set it; no secret stays in the text."""
        origin = next((v for k, v in self._origins.items() if k[: len(where)] == where), "")
        told = f"{wrong} (set by {origin})" if origin else wrong
        self.complaints.append(f"{dotted(where)}: {masked(told, self.secrets)}")


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
        watermark_deadline=timedelta(seconds=rules.watermark_deadline_seconds),
        settle=timedelta(seconds=rules.settle_seconds),
        retry_delays=tuple(timedelta(seconds=s) for s in rules.retry_delays_seconds),
        max_attempts=rules.max_attempts,
        lease=timedelta(seconds=rules.lease_seconds),
    )


def _complaint(detail: Mapping[str, Any]) -> tuple[Where, str]:
    where = tuple(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return where, unknown(where[-1], _names_at(where[:-1]))
    return where, plain_error(detail, secret=where[-1] in _KEPT_BACK)


def _names_at(where: Where) -> list[str]:
    """Return the settings of a section."""
    if not where:
        return list(_File.model_fields)
    if where[0] == "components":
        return list(ComponentSection.model_fields)
    section = _File.model_fields[where[0]].annotation
    return list(getattr(section, "model_fields", ()))
