"""The sections of the configuration file: every key but those of plugins, with its default."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from redis.connection import parse_url

from worker.domain import Aggregation, Component, Mode, Rounding, Subject, UnknownSubject

SHORTEST_KEY = 32  # characters, of what signs sessions
_MOST_SECONDS = 10 * 365 * 24 * 60 * 60  # more would leave the calendar

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


class EventsSection(_Section):
    """Where usage events that are sent to us go."""

    source: str | None = None
    token: str = Field(default="", repr=False)


class RulesSection(_Section):
    """What is decided once for all invoices."""

    mode: Mode = Mode.WRITE
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
    otel: bool = False


class MetricsSection(_Section):
    """What is counted, and who may read it."""

    folder: str | None = None  # None: beside the journal
    token: str = Field(default="", repr=False)


class NoticesSection(_Section):
    """Who is told of invoices that need a person, and where."""

    webhook_url: str = Field(default="", repr=False)
    slack_url: str = Field(default="", repr=False)
    smtp_host: str | None = None
    smtp_port: int = Field(default=587, ge=1, le=65535)
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str | None = None
    smtp_password: str = Field(default="", repr=False)
    smtp_from: str | None = None
    smtp_to: list[str] | None = None
    page_url: str | None = None
    older_than_seconds: SomeSeconds = 86400
    every_seconds: SomeSeconds = 14400

    @field_validator("webhook_url", "slack_url", "page_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        """Refuse what could not be posted to; a secret one is not shown."""
        try:
            parts = urlsplit(url or "")
            good = not url or (parts.scheme in ("http", "https") and bool(parts.hostname))
        except ValueError:
            good = False
        if not good:
            raise ValueError("must be a URL such as https://host/path")
        return url

    @model_validator(mode="after")
    def _is_whole(self) -> NoticesSection:
        if self.smtp_host and not (self.smtp_from and self.smtp_to):
            raise ValueError("mail needs smtp_from and smtp_to too")
        if self.smtp_tls == "none" and self.smtp_password:
            raise ValueError('smtp_tls is "none": the password would go in the clear')
        return self


class Role(StrEnum):
    """What a person may do on the operators' pages."""

    READER = "reader"
    OPERATOR = "operator"


UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@+-]{1,64}$")]


class UserSection(_Section):
    """One person; the key is the name they log in with, and it goes into the record."""

    role: Role
    password: str = Field(default="", repr=False)


class OpsSection(_Section):
    """The operators' pages, and who may open them."""

    enabled: bool = False
    users: dict[UserName, UserSection] = {}
    proxy_user_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")
    proxy_role_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")
    trusted_proxies: list[str] = []
    session_key: str = Field(default="", repr=False)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: list[str]) -> list[str]:
        for one in networks:
            try:
                ip_network(one)
            except ValueError:
                raise ValueError(f'"{one}" is not an address or a network') from None
        return networks

    @field_validator("session_key")
    @classmethod
    def _is_long(cls, key: str) -> str:
        if key and len(key) < SHORTEST_KEY:
            raise ValueError(f"must have {SHORTEST_KEY} characters or more")
        return key

    @model_validator(mode="after")
    def _is_whole(self) -> OpsSection:
        if self.proxy_user_header and not self.trusted_proxies:
            raise ValueError("proxy_user_header needs trusted_proxies too")
        if self.trusted_proxies and not self.has_login:
            raise ValueError("trusted_proxies needs [ops.users] or proxy_user_header too")
        if self.proxy_role_header and not self.proxy_user_header:
            raise ValueError("proxy_role_header needs proxy_user_header too")
        return self

    @property
    def has_login(self) -> bool:
        """Tell whether anybody has to say who they are."""
        return bool(self.users or self.proxy_user_header)

    def trusts(self, address: str) -> bool:
        """Tell whether an address is of a proxy whose headers are believed."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        meant = getattr(found, "ipv4_mapped", None) or found
        return any(meant in network for network in self.trusted_networks)

    @cached_property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Return where a proxy's headers are believed from."""
        return tuple(map(ip_network, self.trusted_proxies))


def is_loopback(host: str) -> bool:
    """Tell whether only this machine itself can be meant."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class ComponentSection(_Section):
    """How one priced component is counted; its key is the component's name on the platform."""

    source: str
    metric: str = ""
    aggregation: Aggregation = Aggregation.COUNT
    subject: str = "subscription"
    filters: dict[str, str] = {}
    divide_by: Decimal = Field(default=Decimal(1), gt=0, allow_inf_nan=False)
    rounding: Rounding = Rounding.REJECT
    unknown_subject: UnknownSubject = UnknownSubject.HOLD
    max_quantity: int | None = Field(default=None, ge=0)
    grace_seconds: Seconds | None = None

    @field_validator("subject")
    @classmethod
    def _is_subject(cls, text: str) -> str:
        Subject.of(text)
        return text

    def component(self, name: str) -> Component:
        """Return the core's value of it."""
        grace = self.grace_seconds
        return Component(
            name=name,
            source=self.source,
            metric=self.metric or name,
            aggregation=self.aggregation,
            subject=Subject.of(self.subject),
            filters=tuple(sorted(self.filters.items())),
            divide_by=self.divide_by,
            rounding=self.rounding,
            unknown_subject=self.unknown_subject,
            max_quantity=self.max_quantity,
            grace=None if grace is None else timedelta(seconds=grace),
        )


PlatformName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class File(_Section):
    """Everything in the file, but for the settings of platforms and usage sources."""

    webhook: WebhookSection = WebhookSection()
    platforms: dict[PlatformName, dict[str, Any]] = Field(min_length=1)
    queue: QueueSection = QueueSection()
    sweep: SweepSection = SweepSection()
    journal: JournalSection = JournalSection()
    rules: RulesSection = RulesSection()
    usage_sources: dict[str, dict[str, Any]] = {}
    components: dict[str, ComponentSection] = {}
    events: EventsSection = EventsSection()
    metrics: MetricsSection = MetricsSection()
    notices: NoticesSection = NoticesSection()
    ops: OpsSection = OpsSection()
    log: LogSection = LogSection()
