"""Nobody sees the operators' pages who may not; no reader acts, and no stranger by others' hand."""

from __future__ import annotations

import stat
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import INV, KEY, NOW, delivery
from flask import Flask
from ops_builders import (
    NO_REDIS,
    ORIGIN,
    PASSWORDS,
    Browser,
    complaints,
    journal_of,
    logged_in,
    ops_app,
)

from webhook_app import create_app
from worker.config import config_of
from worker.ops.throttle import Throttle

ONE = f"/ops/invoices/billforward/{INV}"
VERBS = ("replay", "release", "hold", "close")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application with an operator, a reader and one invoice that is due."""
    app = ops_app(journal_url)
    journal_of(app).record_delivery(delivery(), NOW)
    return app


def urls(app: Flask, method: str) -> Iterator[str]:
    """Name a URL for every route under /ops that takes a method; one for each verb of an act."""
    values = {"platform": "billforward", "invoice_id": INV, "bulk_id": "0" * 24}
    values |= {"registry_name": "failed", "order": "asc", "per_page": "1", "page": "1"}
    values |= {"pressed": "replay"}
    adapter = app.url_map.bind("localhost")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/ops") and method in (rule.methods or ()):
            for verb in VERBS if "verb" in rule.arguments else ("",):
                given = {name: values.get(name, "0") for name in rule.arguments - {"verb"}}
                given |= {"verb": verb} if verb else {}
                yield adapter.build(rule.endpoint, given, method=method)


def basic(name: str, password: str) -> dict[str, str]:
    """Make the header of HTTP basic authentication."""
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


def changes(app: Flask) -> list[str]:
    """Return every URL under /ops that is not a plain read."""
    return [url for method in ("POST", "PUT", "PATCH", "DELETE") for url in urls(app, method)]


def untouched(app: Flask) -> bool:
    """Tell whether nothing was done to the invoice, and nothing paused."""
    history = journal_of(app).history(KEY)
    assert history is not None
    return len(history.entries) == 1 and not journal_of(app).acts()


def test_every_verb_is_tried(app: Flask) -> None:
    """The tests below press each of the acts on an invoice, and there is no other verb."""
    (rule,) = [rule.rule for rule in app.url_map.iter_rules() if "verb" in rule.arguments]
    assert f"<any({', '.join(VERBS)}):verb>" in rule
    assert {f"{ONE}/{verb}" for verb in (*VERBS, "recount", "preview")} <= set(changes(app))


def test_only_deliveries_and_events_change_anything_elsewhere(app: Flask, tmp_path: Path) -> None:
    """Outside /ops two routes take more than a read: each has its own login and its own tests."""
    webhook = ("/webhooks/<platform>", "POST")
    assert writing_routes(app) == {webhook}
    file = {
        "platforms": {"billforward": {"base_url": "http://127.0.0.1:1/v1"}},
        "journal": {"url": f"sqlite:///{tmp_path}/journal.db"},
        "usage_sources": {"meter": {"kind": "meter", "url": f"sqlite:///{tmp_path}/usage.db"}},
        "events": {"source": "meter"},
    }
    secrets = ("WEBHOOK__PASSWORD", "PLATFORMS__BILLFORWARD__TOKEN", "EVENTS__TOKEN")
    environ = {f"RECONCILER__{name}": f"{name}-of-tests" for name in secrets}
    assert writing_routes(create_app(config_of(file, environ))) == {webhook, ("/events", "POST")}


def writing_routes(app: Flask) -> set[tuple[str, str]]:
    """Return every route outside /ops with each method of it that is not a read."""
    return {
        (rule.rule, method)
        for rule in app.url_map.iter_rules()
        if not rule.rule.startswith("/ops/")
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    }


def test_every_page_asks_for_a_login(app: Flask) -> None:
    """A browser is led to the login page and back to where it wanted to go."""
    for url in urls(app, "GET"):
        if url.startswith(("/ops/login", "/ops/static")):
            continue
        answer = app.test_client().get(url)
        assert answer.status_code in (302, 308, 401), url
        assert INV not in answer.text.replace(url, "")
    answer = app.test_client().get("/ops/invoices?state=held")
    assert answer.headers["Location"] == "/ops/login?next=/ops/invoices%3Fstate%3Dheld"


def test_a_login_begins_a_session(app: Flask) -> None:
    """The right password opens the pages; the page that was wanted comes next."""
    browser = Browser(app)
    answer = browser.log_in("ana", next="/ops/invoices?state=held")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ops/invoices?state=held")
    assert browser.get("/ops/").status_code == 200
    assert "ana <small>operator</small>" in browser.get("/ops/").text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/ops/",
        "//evil.example/ops/",
        "/\\evil.example/ops/",
        "javascript:alert(1)",
        "/ops/\r\nX: y",
        "/webhooks/x",
        "",
    ],
)
def test_a_login_leads_nowhere_else(app: Flask, wanted: str) -> None:
    """A link cannot send the person who logs in to another site."""
    answer = Browser(app).log_in("ana", next=wanted)
    assert answer.headers["Location"] == "/ops/"


@pytest.mark.parametrize(("name", "password"), [("ana", "wrong"), ("nobody", "x"), ("ana", "")])
def test_a_wrong_password_opens_nothing(app: Flask, name: str, password: str) -> None:
    """It is said without telling which of the two is wrong."""
    browser = Browser(app)
    form = {"name": name, "password": password}
    answer = browser.post("/ops/login", form, "/ops/login")
    assert answer.status_code == 401
    assert "Name or password is wrong" in answer.text
    assert browser.get("/ops/").status_code == 302


def test_the_cookie_is_closed(app: Flask) -> None:
    """Scripts cannot read it, other sites cannot send it; beyond loopback only https carries it."""
    here = app.test_client().get("/ops/login").headers["Set-Cookie"]
    there = app.test_client().get("/ops/login", headers={"Host": "ops.example"})
    secured = app.test_client().get("/ops/login", base_url="https://localhost")
    assert "HttpOnly" in here
    assert "SameSite=Strict" in here
    assert "Path=/ops" in here
    assert "Secure" not in here
    assert "Secure" in there.headers["Set-Cookie"]
    assert "Secure" in secured.headers["Set-Cookie"]


def test_a_forged_cookie_is_no_session(app: Flask) -> None:
    """A cookie that was changed, or signed with another key, opens nothing."""
    browser = logged_in(app)
    cookie = browser.client.get_cookie("reconciler_ops", path="/ops")
    assert cookie is not None
    for forged in (cookie.value[:-2] + "AA", cookie.value[5:], "x"):
        client = app.test_client()
        client.set_cookie("reconciler_ops", forged, path="/ops")
        assert client.get("/ops/").status_code == 302


def test_a_new_password_ends_the_sessions(
    journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cookie of the old password opens nothing, and another process' cookie is known."""
    cookie = logged_in(ops_app(journal_url)).client.get_cookie("reconciler_ops", path="/ops")
    assert cookie is not None
    twin, renewed = ops_app(journal_url), None
    monkeypatch.setitem(PASSWORDS, "ana", "another-password-of-tests")
    renewed = ops_app(journal_url)
    for app, status in ((twin, 200), (renewed, 302)):
        client = app.test_client()
        client.set_cookie("reconciler_ops", cookie.value, path="/ops")
        assert client.get("/ops/").status_code == status


def test_a_logout_ends_the_session(app: Flask) -> None:
    """A reader can log out too, and then sees nothing."""
    browser = logged_in(app, "rob")
    assert browser.post("/ops/logout", {}).status_code == 303
    assert browser.get("/ops/").status_code == 302


def test_basic_authentication_opens_the_pages(app: Flask) -> None:
    """Programs get the exports with name and password; a wrong one is told how to log in."""
    client = app.test_client()
    assert (
        client.get("/ops/invoices.csv", headers=basic("rob", PASSWORDS["rob"])).status_code == 200
    )
    answer = client.get("/ops/invoices.csv", headers=basic("rob", "wrong"))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
        401,
        'Basic realm="operators"',
    )


def test_guessing_is_slowed_down(app: Flask) -> None:
    """After five failures even the right password waits; another person is not kept out."""
    browser = Browser(app)
    for _ in range(5):
        assert browser.post("/ops/login", {"name": "ana", "password": "x"}, "/ops/login")
    assert browser.log_in("ana").status_code == 429
    headers = basic("ana", PASSWORDS["ana"])
    assert app.test_client().get("/ops/", headers=headers).status_code == 429
    assert browser.log_in("rob").status_code == 303


def test_the_throttle_forgets() -> None:
    """Failures count for five minutes, and what is kept has a bound."""
    now = 1000.0
    throttle = Throttle(is_shared=lambda _: False, clock=lambda: now)
    for _ in range(5):
        throttle.failed("10.0.0.1", "ana")
    assert throttle.is_closed("10.0.0.1", "ana")
    assert not throttle.is_closed("10.0.0.2", "ana")
    now += 301
    assert not throttle.is_closed("10.0.0.1", "ana")
    for number in range(10_001):
        throttle.failed("10.0.0.1", str(number))
    assert len(throttle._failures) == 10_000


def test_no_get_changes_anything(app: Flask) -> None:
    """Every route that acts refuses GET, or only shows the page its form stands on."""
    browser = logged_in(app)
    for url in changes(app):
        answer = browser.get(url)
        assert answer.status_code in (200, 302, 303, 400, 404, 405), url
    assert untouched(app)


def test_no_form_without_its_token_acts(app: Flask) -> None:
    """Every route that acts refuses a form without the token, or with another visit's."""
    browser, other = logged_in(app), logged_in(app)
    tokens = ("", "x", other.token("/ops/"))
    for url in changes(app):
        for token in tokens:
            form = {"reason": "r", "platform": "", "verb": "replay", "csrf": token}
            answer = browser.client.post(url, data=form, headers=ORIGIN)
            assert answer.status_code == 403, url
    assert untouched(app)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_no_other_site_acts(app: Flask, headers: dict[str, str]) -> None:
    """Even with the right token, what comes from elsewhere is refused, on every route."""
    browser = logged_in(app)
    token = browser.token("/ops/")
    for url in changes(app):
        form = {"csrf": token, "reason": "r", "verb": "replay"}
        assert browser.client.post(url, data=form, headers=headers).status_code == 403, url
    assert untouched(app)


def test_no_reader_acts(app: Flask) -> None:
    """Every route that acts refuses a reader with the right token; only the session is theirs."""
    browser = logged_in(app, "rob")
    token = browser.token("/ops/")
    for url in changes(app):
        if url in ("/ops/login", "/ops/logout"):
            continue
        form = {"csrf": token, "reason": "r", "verb": "replay"}
        answer = browser.client.post(url, data=form, headers={**ORIGIN, "X-CSRF-Token": token})
        assert answer.status_code == 403, url
    assert untouched(app)


def test_a_reader_sees_no_buttons(app: Flask) -> None:
    """What they may not do is not offered."""
    text = logged_in(app, "rob").get(ONE).text
    assert INV in text
    assert "Replay" not in text


@pytest.mark.parametrize("url", ["/ops/", "/ops/login", ONE, "/ops/invoices.csv", "/ops/sources"])
def test_every_answer_is_closed(app: Flask, url: str) -> None:
    """No answer may be framed, guessed, kept, or run a script; nothing inline is in any page."""
    answer = logged_in(app).get(url)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    for inline in ("<script", "<style", ' style="', " onclick=", "javascript:"):
        assert inline not in answer.text


def test_a_large_form_is_refused(app: Flask) -> None:
    """A form of a megabyte is not read."""
    browser = logged_in(app)
    form = {"csrf": "x" * 1_000_000}
    assert browser.client.post("/ops/pause", data=form, headers=ORIGIN).status_code == 413


PROXY = {
    "enabled": True,
    "proxy_user_header": "X-Remote-User",
    "proxy_role_header": "X-Remote-Role",
    "trusted_proxies": ["10.0.0.0/8"],
}


def proxied(app: Flask, address: str, **headers: str) -> int:
    """Ask for the overview from an address; return the status."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = app.test_client().get("/ops/", headers=given, environ_base={"REMOTE_ADDR": address})
    return answer.status_code


def test_a_trusted_proxy_says_who_asks(journal_url: str) -> None:
    """Its header is believed from its own address alone, and must name one person and a role."""
    app = ops_app(journal_url, ops=PROXY)
    ana = {"X_Remote_User": "ana", "X_Remote_Role": "operator"}
    assert proxied(app, "10.1.2.3", **ana) == 200
    assert proxied(app, "192.168.1.1", **ana) == 401
    assert proxied(app, "127.0.0.1", **ana) == 401
    assert proxied(app, "10.1.2.3") == 401
    assert proxied(app, "10.1.2.3", **{**ana, "X_Remote_User": "ana,eve"}) == 403
    assert proxied(app, "10.1.2.3", **{**ana, "X_Remote_Role": "root"}) == 403


def test_without_a_role_header_a_proxys_person_reads(journal_url: str) -> None:
    """Only whom the config names as an operator may act."""
    users = {"ana": {"role": "operator"}}
    section = {**PROXY, "proxy_role_header": "", "users": users}
    app = ops_app(journal_url, ops=section)
    for name, role in (("ana", "operator"), ("new", "reader")):
        answer = app.test_client().get(
            "/ops/", headers={"X-Remote-User": name}, environ_base={"REMOTE_ADDR": "10.0.0.1"}
        )
        assert f"{name} <small>{role}</small>" in answer.text


def test_who_has_no_password_cannot_log_in(journal_url: str) -> None:
    """A person named for the proxy's sake alone is not let in by an empty password."""
    app = ops_app(journal_url, ops={**PROXY, "users": {"eve": {"role": "operator"}}})
    assert app.test_client().get("/ops/", headers=basic("eve", "")).status_code == 401


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("192.168.1.5", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, 403),
        ("127.0.0.1", {"Host": "evil.example"}, 403),
        ("127.0.0.1", {"Host": "[::1]:8000"}, 200),
    ],
)
def test_without_a_login_only_this_machine_asks(
    journal_url: str, address: str, headers: dict[str, str], status: int
) -> None:
    """Neither another machine, nor one behind a proxy, nor a rebound name sees the pages."""
    app = ops_app(journal_url, ops={"enabled": True})
    answer = app.test_client().get("/ops/", headers=headers, environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == status


def test_without_a_login_http_1_0_is_refused(journal_url: str) -> None:
    """A proxy on this machine that adds no header and rewrites the Host often speaks it."""
    client = ops_app(journal_url, ops={"enabled": True}).test_client()
    for version, status in (("HTTP/1.1", 200), ("HTTP/1.0", 403)):
        answer = client.get("/ops/", environ_overrides={"SERVER_PROTOCOL": version})
        assert answer.status_code == status


def test_open_pages_listen_on_loopback_only() -> None:
    """Beyond it, the configuration is refused unless somebody has to log in."""
    open_pages = {"enabled": True}
    users = {"users": {"ana": {"role": "operator"}}}
    assert "webhook.host is 0.0.0.0" in complaints(open_pages, "0.0.0.0")  # noqa: S104
    assert "open to everybody" in complaints(open_pages, "ops.example")
    assert not complaints(open_pages, "127.0.0.1")
    assert not complaints(open_pages, "::1")
    assert not complaints(open_pages | users, "0.0.0.0")  # noqa: S104
    assert not complaints({"enabled": False}, "0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"users": {"ana": {"role": "root"}}}, "ops.users.ana.role"),
        ({"users": {"ana": {}}}, "ops.users.ana.role"),
        ({"users": {"ana": {"role": "reader", "pasword": "x"}}}, "password"),
        ({"users": {"ana": {"role": "reader", "password": "x"}}}, "must not stand in the file"),
        ({"users": {"a b": {"role": "reader"}}}, "ops.users"),
        ({"proxy_user_header": "X-User"}, "proxy_user_header needs trusted_proxies"),
        ({"trusted_proxies": ["10.0.0.1"]}, "trusted_proxies needs [ops.users]"),
        ({"proxy_user_header": "X-User", "trusted_proxies": ["10.0.0.0/99"]}, "not an address"),
        ({"proxy_role_header": "X-Role"}, "needs proxy_user_header"),
        ({"session_key": "x" * 40}, "must not stand in the file"),
    ],
)
def test_mistakes_in_the_section_are_told(section: dict[str, Any], told: str) -> None:
    """Each is refused at the start, with the key's name."""
    assert told in complaints(section)


def test_a_password_that_is_not_set_is_told() -> None:
    """It names the variable; a password is hidden from every text of the configuration."""
    file = {
        "platforms": {"billforward": {"base_url": "http://127.0.0.1:1/v1"}},
        "ops": {"enabled": True, "users": {"ana": {"role": "operator"}}},
    }
    missing = config_of(file, {}).missing_secrets
    assert any("RECONCILER__OPS__USERS__ANA__PASSWORD" in told for told in missing)
    config = config_of(file, {"RECONCILER__OPS__USERS__ANA__PASSWORD": "secret-of-ana"})
    assert "secret-of-ana" in config.secrets
    assert "secret-of-ana" not in repr(config)


def test_without_the_section_there_are_no_pages(journal_url: str) -> None:
    """They are off unless they are enabled."""
    app = ops_app(journal_url, NO_REDIS, {"enabled": False})
    assert app.test_client().get("/ops/").status_code == 404
    assert not any(rule.rule.startswith("/ops") for rule in app.url_map.iter_rules())


def test_the_key_is_kept_for_its_owner_alone(app: Flask, tmp_path: Path) -> None:
    """It stands beside the journal, and nobody else on the machine can read it."""
    key = tmp_path / "ops-session.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_text()) == 64
    assert [path.name for path in tmp_path.glob("ops-session.key*")] == ["ops-session.key"]


@pytest.mark.parametrize(
    "path",
    [
        "/ops/login?next=//[",
        "/ops/invoices?until=9999-12-31",
        "/ops/invoices?until=9999-12-30&since=9999-12-31",
        "/ops/invoices?after=0001-01-01T00:00:00%2B23:00+a+b",
        "/ops/invoices?after=%FF",
    ],
)
def test_odd_links_are_answered_clearly(app: Flask, path: str) -> None:
    """A date at the calendar's edge, a broken address or place is a page or a 400, never a 500."""
    assert logged_in(app).get(path).status_code in (200, 302, 400)


def test_a_broken_origin_is_another_site(app: Flask) -> None:
    """What is no address is refused like one of a stranger, before any login."""
    answer = app.test_client().post("/ops/login", headers={"Origin": "http://["})
    assert answer.status_code == 403
