"""The configuration: one file and the environment, every complaint at once, no secret told."""

from __future__ import annotations

import copy
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from usage_sources.both import BothSources
from usage_sources.clickhouse import ClickHouseSource
from usage_sources.csv_file import CsvSource
from usage_sources.files import FilesSource
from usage_sources.http_api import HttpSource
from usage_sources.openmeter import OpenMeterSource
from usage_sources.prometheus import PrometheusSource
from usage_sources.sql import SqlSource
from worker import sections
from worker.config import Config, config_of, load_config
from worker.domain import Aggregation, Mode, Rounding
from worker.errors import ConfigError
from worker.overrides import variable
from worker.platforms.billforward import BillForward
from worker.wiring import open_sources

LAW = settings(max_examples=60, deadline=None, derandomize=True)
EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
TOKEN = "RECONCILER__PLATFORMS__BILLFORWARD__TOKEN"
PASSWORD = "RECONCILER__WEBHOOK__PASSWORD"
SECRETS = {TOKEN: "token-5d41402a", PASSWORD: "hook-7b2c9e10"}
GOOD: dict[str, Any] = {
    "platforms": {"billforward": {"base_url": "https://billing.example/v1"}},
    "usage_sources": {
        "events": {
            "kind": "sql",
            "url": "sqlite:////var/lib/usage.db",
            "table": "usage",
            "subject_column": "subscription_id",
            "time_column": "occurred_at",
            "time_format": "iso",
        }
    },
    "components": {"Text messages": {"source": "events"}},
}


@dataclasses.dataclass
class Careless:
    """A plugin whose own error repeats its secret."""

    token: str = dataclasses.field(metadata={"secret": True})

    def __post_init__(self) -> None:
        raise ValueError(f"cannot use {self.token}")


@dataclasses.dataclass
class Optional:
    """A plugin that can do without its secret."""

    token: str = dataclasses.field(default="", metadata={"secret": True})


def changed(**tables: Any) -> dict[str, Any]:
    """Return good data with sections put in."""
    return copy.deepcopy({**GOOD, **tables})


def complaints_of(data: dict[str, Any], environ: dict[str, str] | None = None) -> list[str]:
    """Return what is complained of."""
    with pytest.raises(ConfigError) as caught:
        config_of(data, SECRETS if environ is None else environ)
    return list(caught.value.complaints)


def one_complaint(data: dict[str, Any], environ: dict[str, str] | None = None) -> str:
    """Return the only complaint."""
    complaints = complaints_of(data, environ)
    assert len(complaints) == 1, complaints
    return complaints[0]


def written(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def uncommented(text: str) -> str:
    """Return the example with every commented-out table and setting in force."""
    return re.sub(r"(?m)^# ((?:\[.*\]|[a-z0-9_]+ = .*))$", r"\1", text)


def settings_shown(text: str) -> Iterator[tuple[str, str, Any, bool, bool]]:
    """Yield table, key, value, whether it is in force, and whether it says `Default: none.`."""
    table, remark = "", ""
    for line in text.splitlines():
        if found := re.fullmatch(r"(?:# )?\[(.+)\]", line):
            table = found[1]
        elif found := re.fullmatch(r"(?:# )?([a-z0-9_]+) = (.+)", line):
            value = tomllib.loads(f"v = {found[2]}")["v"]
            yield table, found[1], value, line[0] != "#", "Default: none." in remark
            remark = ""
        else:
            remark = remark + line if line.startswith("#") else ""


def plugin_settings(plugin: type[Any]) -> dict[str, Any]:
    """Return a shipped plugin's settings with their defaults."""
    return {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(plugin)
        if field.metadata.get("setting", True)
    }


def section_settings(section: type[BaseModel]) -> dict[str, Any]:
    """Return a section's settings with their defaults."""
    return {
        name: dataclasses.MISSING if field.is_required() else field.default
        for name, field in section.model_fields.items()
        if name != "users"  # a table for each
    }


SECRET_SETTINGS = (
    "token",
    "password",
    "previous_password",
    "s3_secret",
    "s3_session_token",
    "webhook_url",
    "slack_url",
    "smtp_password",
    "session_key",
)
EXPLAINED = [
    (["webhook"], section_settings(sections.WebhookSection)),
    (["queue"], section_settings(sections.QueueSection)),
    (["sweep"], section_settings(sections.SweepSection)),
    (["journal"], section_settings(sections.JournalSection)),
    (["rules"], section_settings(sections.RulesSection)),
    (["log"], section_settings(sections.LogSection)),
    (['components."Text messages"'], section_settings(sections.ComponentSection)),
    (["platforms.billforward"], plugin_settings(BillForward)),
    (["usage_sources.events", "usage_sources.statement"], plugin_settings(SqlSource)),
    (["usage_sources.export"], plugin_settings(CsvSource)),
    (["usage_sources.compared"], plugin_settings(BothSources)),
    (["usage_sources.lake"], plugin_settings(FilesSource)),
    (["usage_sources.warehouse", "usage_sources.lagging"], plugin_settings(ClickHouseSource)),
    (["usage_sources.meters"], plugin_settings(OpenMeterSource)),
    (["usage_sources.api", "usage_sources.pages"], plugin_settings(HttpSource)),
    (["usage_sources.counters"], plugin_settings(PrometheusSource)),
    (["events"], section_settings(sections.EventsSection)),
    (["metrics"], section_settings(sections.MetricsSection)),
    (["ops"], section_settings(sections.OpsSection)),
    (["ops.users.ana"], section_settings(sections.UserSection)),
    (["notices"], section_settings(sections.NoticesSection)),
]


def test_the_example_loads_as_it_is() -> None:
    """The example needs nothing but the secrets, and every default in it is in force."""
    config = load_config(EXAMPLE, SECRETS)
    assert config.missing_secrets == ()
    assert list(config.rules.components) == ["Text messages", "Storage GB"]
    assert config.rules.components["Storage GB"].aggregation is Aggregation.SUM
    assert config.rules.components["Storage GB"].rounding is Rounding.HALF_UP
    assert config.webhook.port == 8000


def test_the_example_loads_uncommented() -> None:
    """Every commented-out setting of the example may be put in force, two rivals apart."""
    text = EXAMPLE.read_text().replace("/etc/ssl/internal.pem", str(EXAMPLE))
    data = tomllib.loads(uncommented(text))
    assert set(data) == {
        *("webhook", "platforms", "queue", "sweep", "journal"),
        *("events", "rules", "usage_sources", "components", "ops", "metrics", "notices", "log"),
    }
    passwords = {
        f"RECONCILER__USAGE_SOURCES__{name}__PASSWORD": "of-a-source"
        for name in ("PAGES", "COUNTERS")
    }
    config = config_of(data, {**SECRETS, **passwords})
    assert list(config.usage_sources) == [
        *("events", "statement", "export", "compared", "lake", "warehouse", "lagging"),
        *("meters", "api", "pages", "meter", "counters"),
    ]


@pytest.mark.parametrize(("tables", "known"), EXPLAINED, ids=lambda each: str(each)[:30])
def test_the_example_explains_every_setting(tables: list[str], known: dict[str, Any]) -> None:
    """Every setting stands in the example, with its real default where it has one."""
    text = EXAMPLE.read_text()
    shown = {
        key: (value, is_active, says_none)
        for table, key, value, is_active, says_none in settings_shown(text)
        if table in tables
    }
    assert not shown.keys() - known.keys() - {"kind"}
    for name, default in known.items():
        if name in SECRET_SETTINGS:
            assert any(variable(*table.split("."), name) in text for table in tables)
            continue
        value, is_active, says_none = shown[name]
        if is_active:
            continue
        if default is None:
            assert says_none, f"{name} has no default, and the example does not say so"
        elif default is not dataclasses.MISSING:
            assert (value, says_none) == (default, False), name


BOTH = {"kind": "both"}


@pytest.mark.parametrize(
    ("sources", "complaints"),
    [
        (
            {"a": {**BOTH, "first": "event", "second": "events"}},
            {'usage_sources.a.first: there is no usage source "event", did you mean "events"?'},
        ),
        (
            {"a": {**BOTH, "first": "a", "second": "events"}},
            {"usage_sources.a.first: asks itself: a -> a"},
        ),
        (
            {
                "a": {**BOTH, "first": "events", "second": "b c"},
                "b c": {**BOTH, "first": "a", "second": "evnts"},
            },
            {
                'usage_sources.a.second: asks itself: a -> "b c" -> a',
                'usage_sources."b c".second: there is no usage source "evnts",'
                ' did you mean "events"?',
            },
        ),
        (
            {"a": {**BOTH, "first": "events", "second": "events"}},
            {"usage_sources.a: first and second must be two sources"},
        ),
        (
            {"a": {**BOTH, "first": 7, "shadow": "perhaps"}},
            {
                "usage_sources.a.first: must be the name of another usage source",
                "usage_sources.a.second: is missing",
                "usage_sources.a.shadow: must be a valid boolean, unable to interpret input"
                " (got 'perhaps')",
            },
        ),
        (
            {"a": {**BOTH, "first": "events", "second": "b"}, "b": {"kind": "nothing"}},
            {'usage_sources.b.kind: no kind "nothing"'},
        ),
    ],
)
def test_sources_of_sources(sources: dict[str, Any], complaints: set[str]) -> None:
    """A setting that names another source is held to name one, not itself, and in no circle."""
    found = complaints_of(changed(usage_sources={**GOOD["usage_sources"], **sources}))
    assert {each.split("; there are")[0] for each in found} == complaints


def test_sources_are_opened_once_and_in_order(tmp_path: Path) -> None:
    """A source is given the very sources that it names, wherever they stand in the file."""
    export = {
        "kind": "csv",
        "path": str(tmp_path / "usage.csv"),
        "subject_column": "subject",
        "time_column": "at",
        "time_format": "iso",
    }
    nested = {**BOTH, "first": "compared", "second": "other"}
    compared = {**BOTH, "first": "events", "second": "export", "tolerance": 0.5}
    sources = {"nested": nested, "compared": compared, "export": export, "other": export}
    data = changed(usage_sources={**sources, **GOOD["usage_sources"]})
    opened: dict[str, Any] = dict(open_sources(config_of(data, SECRETS)))
    assert list(opened) == ["nested", "compared", "export", "other", "events"]
    assert opened["nested"].first is opened["compared"]
    assert opened["compared"].first is opened["events"]
    assert opened["compared"].second is opened["export"]
    assert opened["compared"].tolerance == Decimal("0.5")


def test_defaults_suffice() -> None:
    """A file with one platform is complete."""
    config = config_of({"platforms": GOOD["platforms"]}, SECRETS)
    assert (config.rules.max_attempts, config.rules.grace) == (12, timedelta(minutes=5))
    assert config.queue.redis_url == "redis://127.0.0.1:6379/0"
    assert config.usage_sources == {}


def test_every_fault_at_once() -> None:
    """Faults of every section come in one error, each with its key."""
    data = changed(
        webhook={"prot": 1, "port": 70_000},
        platforms={"billforward": {"base_url": "ftp://x"}, "other": {"kind": "stripee"}},
        usage_sources={"events": {**GOOD["usage_sources"]["events"], "tabel": "x"}},
        components={"Fax pages": {"source": "evnts"}, "Calls": {"source": "events", "metrik": 1}},
        rules={"max_attempts": 0},
        colour="blue",
    )
    complaints = complaints_of(data, {"RECONCILER__RULES__INVOICE_TYPES": "[", **SECRETS})
    keys = {complaint.split(": ")[0] for complaint in complaints}
    assert keys == {
        *("webhook.prot", "webhook.port", "platforms.billforward", "platforms.other.kind"),
        *("usage_sources.events.tabel", 'components."Fax pages".source', "colour"),
        *("components.Calls.metrik", "rules.max_attempts", "RECONCILER__RULES__INVOICE_TYPES"),
    }


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (changed(webhok={}), 'webhok: there is no such setting, did you mean "webhook"?'),
        (
            changed(log={"levl": "info"}),
            'log.levl: there is no such setting, did you mean "level"?',
        ),
        (
            changed(components={"Text messages": {"source": "events", "metrics": "a"}}),
            'components."Text messages".metrics: there is no such setting, did you mean "metric"?',
        ),
        (
            changed(platforms={"billforward": {"base_url": "https://a/v1", "base_ulr": "b"}}),
            'platforms.billforward.base_ulr: there is no such setting, did you mean "base_url"?',
        ),
        (
            changed(platforms={"billforward": {"base_url": "https://a/v1", "name": "b"}}),
            "platforms.billforward.name: there is no such setting",
        ),
        (
            changed(components={"Fax": {"source": "event"}}),
            'components.Fax.source: there is no usage source "event", did you mean "events"?',
        ),
        (
            changed(platforms={"billforward": {"kind": "billforwards"}}),
            'platforms.billforward.kind: no kind "billforwards", did you mean "billforward"?;'
            ' there are billforward, or name your own as "package.module:Class"',
        ),
    ],
)
def test_unknown_names(data: dict[str, Any], complaint: str) -> None:
    """An unknown name is refused at every level, with the nearest that exists."""
    assert one_complaint(data) == complaint


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"platforms": {}}, r"^platforms: .*at least 1 item"),
        ({}, "^platforms: is missing$"),
        (changed(webhook="x"), "^webhook: must be a valid dictionary$"),
        (changed(platforms=[]), "^platforms: must be a valid dictionary$"),
        (changed(webhook={"port": "eighty"}), r"^webhook.port: .*integer.*\(got 'eighty'\)$"),
        (changed(webhook={"port": True}), r"^webhook.port: must not be true or false"),
        (changed(webhook={"port": 1.5}), r"^webhook.port: .*integer"),
        (changed(webhook={"username": "a:b"}), r"^webhook.username: .*\(got 'a:b'\)"),
        (changed(rules={"grace_seconds": float("nan")}), "^rules.grace_seconds: .*finite"),
        (changed(rules={"grace_seconds": 1e300}), "^rules.grace_seconds: .*less than"),
        (changed(rules={"lease_seconds": 0}), "^rules.lease_seconds: .*greater than 0"),
        (changed(rules={"retry_delays_seconds": [1, "x"]}), r"^rules.retry_delays_seconds.1: "),
        (changed(rules={"retry_delays_seconds": []}), "^rules.retry_delays_seconds: "),
        (changed(log={"level": "loud"}), r"^log.level: .*'debug'.*\(got 'loud'\)"),
        (changed(queue={"name": "a b"}), r"^queue.name: .*pattern"),
        (changed(queue={"redis_url": "10.0.0.7:6379"}), "^queue.redis_url: must be a URL such"),
        (changed(queue={"redis_url": "redis://h:x/0"}), "^queue.redis_url: must be a URL such"),
        (changed(components={"A": {"source": "events", "max_quantity": -1}}), "max_quantity: "),
        (changed(components={"A": {}}), "^components.A.source: is missing$"),
        (changed(components={"A": {"source": "events", "rounding": "x"}}), "A.rounding: .*'up'"),
        (changed(usage_sources={"s": {"kind": "sql"}}, components={}), "s.url: is missing"),
    ],
)
def test_wrong_values(data: dict[str, Any], complaint: str) -> None:
    """A value that cannot be meant is refused with its key and what is expected."""
    assert any(re.search(complaint, each) for each in complaints_of(data, {}))


@pytest.mark.parametrize("name", ["bill forward", "a/b", "ä", "", "x" * 33])
def test_platform_names(name: str) -> None:
    """A platform's name is part of an address, so it has letters, digits, - and _ only."""
    data = changed(platforms={name: {"kind": "billforward", "base_url": "https://a/v1"}})
    told = one_complaint(data, {})
    assert re.match(rf'platforms."?{re.escape(name)}"?: must match pattern', told)


def test_missing_file(tmp_path: Path) -> None:
    """Without a file, the complaint names it and what to copy."""
    with pytest.raises(ConfigError, match=r"there is no .*nowhere.toml; copy config.example.toml"):
        load_config(tmp_path / "nowhere.toml", {})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[webhook]\nport = = 1\n", r"line 2"),
        (b"[webhook]\nport = 1\nport = 2\n", r"line 3"),
        (b"\xff\xfe", "decode"),
        (b"a = " + b"9" * 5000, "digits"),
        (b"a = " + b"[" * 20_000, "recursion"),
    ],
)
def test_unreadable_file(tmp_path: Path, content: bytes, told: str) -> None:
    """A file that is no TOML is refused with the line, whatever is in it."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(path, {})
    assert str(path) in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder in the file's place is a complaint too."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


@pytest.mark.parametrize(
    ("data", "key", "name"),
    [
        (changed(webhook={"password": "s3cr3t-a"}), "webhook.password", PASSWORD),
        (changed(webhook={"password": {"x": "s3cr3t-a"}}), "webhook.password.x", f"{PASSWORD}__X"),
        (
            changed(webhook={"previous_password": "s3cr3t-a"}),
            "webhook.previous_password",
            "RECONCILER__WEBHOOK__PREVIOUS_PASSWORD",
        ),
        (
            changed(platforms={"billforward": {"base_url": "https://a", "token": "s3cr3t-a"}}),
            "platforms.billforward.token",
            TOKEN,
        ),
        (
            changed(platforms={"eu": {"kind": "billforward", "token": ["s3cr3t-a"]}}),
            "platforms.eu.token",
            "RECONCILER__PLATFORMS__EU__TOKEN",
        ),
        (
            changed(queue={"redis_url": "redis://:s3cr3t-a@h:6379/0"}),
            "queue.redis_url",
            "RECONCILER__QUEUE__REDIS_URL",
        ),
        (
            changed(queue={"redis_url": "redis://h:6379/0?password=s3cr3t-a"}),
            "queue.redis_url",
            "RECONCILER__QUEUE__REDIS_URL",
        ),
        (
            changed(journal={"url": "postgresql://me:s3cr3t-a@h/db"}),
            "journal.url",
            "RECONCILER__JOURNAL__URL",
        ),
        (
            changed(usage_sources={"my db": {"kind": "sql", "url": "mysql://me:s3cr3t-a/@h/db"}}),
            'usage_sources."my db".url',
            "RECONCILER__USAGE_SOURCES__MY_DB__URL",
        ),
        (changed(more={"urls": ["a", "x://u:s3cr3t-a@h"]}), "more.urls", "RECONCILER__MORE__URLS"),
    ],
)
def test_no_secret_in_the_file(data: dict[str, Any], key: str, name: str) -> None:
    """A secret in the file is refused, naming the variable to use, and is not repeated."""
    complaints = complaints_of(data)
    assert f"{key}: a secret must not stand in the file; set {name}" in complaints
    assert "s3cr3t" not in "\n".join(complaints)


def test_missing_secrets_are_listed() -> None:
    """What is not set is listed with both variables, and asked for only where it is needed."""
    config = config_of(changed(), {PASSWORD: ""})
    assert [told.split(" is not set")[0] for told in config.missing_secrets] == [
        "platforms.billforward.token",
        "webhook.password",
    ]
    with pytest.raises(ConfigError) as caught:
        config.require_secrets()
    assert TOKEN in str(caught.value)
    assert f"{PASSWORD}_FILE" in str(caught.value)
    config_of(changed(), SECRETS).require_secrets()


def test_an_optional_secret_may_be_missing() -> None:
    """A plugin's secret with a default is not asked for."""
    data = changed(platforms={"mine": {"kind": "test_config:Optional"}})
    assert config_of(data, {PASSWORD: "hook-7b2c"}).missing_secrets == ()


def test_secrets_from_files(tmp_path: Path) -> None:
    """A variable with _FILE names a file; its last line ends are no part of the secret."""
    (tmp_path / "token").write_text(" to ken \r\n\n")
    config = config_of(changed(), {f"{TOKEN}_FILE": str(tmp_path / "token"), PASSWORD: "p-1234"})
    assert config.platforms["billforward"].settings["token"] == " to ken "
    assert set(config.secrets) == {" to ken ", "p-1234"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_bad_secret_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing or no text is a complaint with the variable's name."""
    path = tmp_path / "token"
    if content:
        path.write_bytes(content)
    complaint = one_complaint(changed(), {f"{TOKEN}_FILE": str(path), PASSWORD: "x"})
    assert complaint.startswith(f"{TOKEN}_FILE: cannot read the file it names")


def test_a_secret_set_twice(tmp_path: Path) -> None:
    """A variable and its _FILE together are refused: neither silently wins."""
    complaint = one_complaint(changed(), {**SECRETS, f"{TOKEN}_FILE": str(tmp_path)})
    assert complaint == f"{TOKEN}_FILE: {TOKEN} is set too; keep one of the two"


def test_overrides() -> None:
    """Variables override and add keys, in components with several words too, and lists."""
    data = changed(components={"Text messages (UK)": {"source": "events"}})
    environ = {
        "RECONCILER__WEBHOOK__PORT": "9000",
        "RECONCILER__RULES__INVOICE_TYPES": '["Subscription"]',
        "RECONCILER__RULES__RETRY_DELAYS_SECONDS": "[1, 2.5]",
        "RECONCILER__RULES__ISSUE_WITHOUT_USAGE": "false",
        "RECONCILER__COMPONENTS__TEXT_MESSAGES_UK__MAX_QUANTITY": "7",
        "RECONCILER__COMPONENTS__FAX__SOURCE": "events",
        "RECONCILER__USAGE_SOURCES__EVENTS__TIMEOUT_SECONDS": "3",
        "RECONCILER__QUEUE__REDIS_URL": "redis://:pa%2Fss-9@h:6379/1",
        "OTHER__WEBHOOK__PORT": "1",
        "RECONCILER_CONFIG": "elsewhere.toml",
        **SECRETS,
    }
    config = config_of(data, environ)
    assert config.webhook.port == 9000
    assert config.rules.invoice_types == {"Subscription"}
    assert config.rules.retry_delays == (timedelta(seconds=1), timedelta(seconds=2.5))
    assert config.rules.issue_without_usage is False
    assert config.rules.components["Text messages (UK)"].max_quantity == 7
    assert config.rules.components["fax"].source == "events"
    assert config.usage_sources["events"].settings["timeout_seconds"] == "3"
    assert {"pa%2Fss-9", "pa/ss-9"} <= set(config.secrets)
    assert data["components"] == {"Text messages (UK)": {"source": "events"}}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RECONCILER__WEBHOK__PORT", "1", r'webhok: .*"webhook".* \(set by RECONCILER__WEBHOK__'),
        ("RECONCILER__WEBHOOK__PROT", "1", r'webhook.prot: .*"port".* \(set by RECONCILER__WEB'),
        ("RECONCILER__WEBHOOK__PORT", "x", r"webhook.port: .*integer.* \(set by RECONCILER__WEB"),
        ("RECONCILER__WEBHOOK____PORT", "1", "write it as RECONCILER__SECTION__KEY"),
        ("RECONCILER__", "1", "write it as RECONCILER__SECTION__KEY"),
        ("RECONCILER__WEBHOOK__PORT__X", "1", "webhook.port is not a table"),
        ("RECONCILER__RULES__INVOICE_TYPES", "[a", "is not a TOML list"),
        ("RECONCILER__RULES__INVOICE_TYPES", "a", "must be a valid list"),
        ("RECONCILER__COMPONENTS__FAX_PAGES__SOURCE", "x", r'"Fax pages" or Fax-pages; set it in'),
    ],
)
def test_bad_overrides(name: str, value: str, complaint: str) -> None:
    """A variable that cannot be used is named in the complaint."""
    both = {"Fax pages": {"source": "events"}, "Fax-pages": {"source": "events"}}
    data = changed(webhook={"port": 1}, components=both)
    told = one_complaint(data, {**SECRETS, name: value})
    assert re.search(complaint, told)
    assert name in told


@pytest.mark.parametrize(
    ("data", "environ"),
    [
        ({}, {"RECONCILER__WEBHOOK": "s3cr3t-b"}),
        ({}, {"RECONCILER__PLATFORMS__BILLFORWARD": "s3cr3t-b"}),
        ({}, {f"{TOKEN}N": "s3cr3t-b"}),
        ({}, {PASSWORD: '["s3cr3t-b"]'}),
        ({}, {f"{PASSWORD}__X": "s3cr3t-b"}),
        ({}, {"RECONCILER__QUEUE__NAME": "redis://:s3cr3t-b@h"}),
        ({}, {"RECONCILER__QUEUE__REDIS_URL": "redis://:s3cr3t-b/x@h/0"}),
        ({}, {"RECONCILER__QUEUE__REDIS_URL": "s3cr3t-b"}),
        ({}, {"RECONCILER__USAGE_SOURCES__EVENTS__URL": "nosuch://u:s3cr3t-b@h/db"}),
        (
            {"mine": {"kind": "test_config:Careless"}},
            {"RECONCILER__PLATFORMS__MINE__TOKEN": "s3cr3t-b"},
        ),
    ],
)
def test_no_complaint_tells_a_secret(data: dict[str, Any], environ: dict[str, str]) -> None:
    """Whatever is wrong around a secret, its value is in no complaint."""
    platforms = {**GOOD["platforms"], **data}
    complaints = complaints_of(changed(platforms=platforms), {TOKEN: "x", **environ})
    assert "s3cr3t-b" not in "\n".join(complaints)


def test_no_representation_tells_a_secret() -> None:
    """A configuration may be printed: none of its secrets is in the text."""
    environ = {
        TOKEN: "s3cr3t-1",
        PASSWORD: "s3cr3t-2",
        "RECONCILER__WEBHOOK__PREVIOUS_PASSWORD": "s3cr3t-3",
        "RECONCILER__QUEUE__REDIS_URL": "redis://:s3cr3t-4@h:6379/0",
        "RECONCILER__USAGE_SOURCES__EVENTS__URL": "sqlite:////var/x.db?password=s3cr3t-5",
        "RECONCILER__JOURNAL__URL": "postgresql://me:s3cr3t-6@h/db",
    }
    config = config_of(changed(), environ)
    assert "s3cr3t" not in f"{config!r} {config} {config.platforms!r} {config.queue!s}"
    assert {f"s3cr3t-{n}" for n in range(1, 7)} <= set(config.secrets)


def test_every_rule_arrives() -> None:
    """Each rule of the file arrives where it belongs, durations as such."""
    given = {
        "mode": "observe",
        "invoice_types": ["A", "B"],
        "issue_without_usage": False,
        "grace_seconds": 1,
        "not_found_grace_seconds": 2,
        "watermark_poll_seconds": 3,
        "settle_seconds": 4,
        "retry_delays_seconds": [5, 6],
        "max_attempts": 7,
        "lease_seconds": 8,
        "watermark_deadline_seconds": 9,
    }
    assert set(given) == set(sections.RulesSection.model_fields)
    rules = config_of(changed(rules=given), SECRETS).rules
    assert rules.mode is Mode.OBSERVE
    assert rules.invoice_types == {"A", "B"}
    assert rules.issue_without_usage is False
    durations = [rules.grace, rules.not_found_grace, rules.watermark_poll, rules.settle]
    durations += [*rules.retry_delays, rules.lease, rules.watermark_deadline]
    assert [duration.total_seconds() for duration in durations] == [1, 2, 3, 4, 5, 6, 8, 9]
    assert rules.max_attempts == 7


def test_what_arrives() -> None:
    """Components get their names and metrics, and plugins their settings without `kind`."""
    config = config_of(changed(), SECRETS)
    component = config.rules.components["Text messages"]
    assert (component.name, component.metric) == ("Text messages", "Text messages")
    assert config.usage_sources["events"].plugin is SqlSource
    assert "kind" not in config.usage_sources["events"].settings


def accepted(data: dict[str, Any], environ: dict[str, str]) -> Config | None:
    """Return the configuration; None where it is refused in the one way that it may be."""
    try:
        return config_of(data, environ)
    except ConfigError as error:
        complaints = error.complaints
    assert complaints
    assert all(complaint and "\n" not in complaint for complaint in complaints)
    return None


@LAW
@given(st.integers())
def test_law_an_integer_arrives_or_is_refused(number: int) -> None:
    """An override of an integer key is that integer, or a complaint when out of bounds."""
    config = accepted(changed(), {**SECRETS, "RECONCILER__WEBHOOK__PORT": str(number)})
    assert (config.webhook.port == number) if config else not 0 <= number <= 65535


@LAW
@given(st.text())
def test_law_any_text_for_an_integer(text: str) -> None:
    """Any text as an override of an integer key is an integer in bounds, or a complaint."""
    config = accepted(changed(), {**SECRETS, "RECONCILER__WEBHOOK__THREADS": text})
    assert config is None or 1 <= config.webhook.threads <= 256


@LAW
@given(st.from_regex(r"[A-Za-z][A-Za-z0-9 ()_,.-]*", fullmatch=True))
def test_law_a_variable_reaches_its_component(name: str) -> None:
    """The variable named for a component's setting sets that component's setting."""
    data = changed(components={name: {"source": "events"}})
    where = variable("components", name, "max_quantity")
    assert config_of(data, {**SECRETS, where: "5"}).rules.components[name].max_quantity == 5


NAMES = st.sampled_from(
    [
        *("webhook", "platforms", "queue", "journal", "rules", "usage_sources", "components"),
        *("log", "kind", "url", "token", "password", "source", "port", "billforward", "sql", "x y"),
        *("csv", "path", "table", "redis_url", "retry_delays_seconds", "level", "base_url"),
    ]
)
VALUES = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.datetimes(),
    st.sampled_from(["sql", "csv", "billforward", "os:path", "a:b", "x://u:p@h", "[", "http://a"]),
)
TABLES = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=4),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(VALUES, inner, st.lists(st.one_of(VALUES, inner), max_size=2)), max_size=4
    ),
    max_leaves=12,
)


@LAW
@given(
    TABLES,
    st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: variable(*parts)),
        st.text(max_size=8),
        max_size=3,
    ),
)
def test_law_only_config_errors(data: dict[str, Any], environ: dict[str, str]) -> None:
    """Whatever a file and the environment hold, they make a configuration or complaints."""
    accepted({**GOOD, **data}, environ)
    accepted(data, environ)
