"""Logging in to the operators' pages: guesses are slowed down and told, and sessions end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from itsdangerous import TimestampSigner
from ops_builders import ORIGIN, PASSWORDS, Browser, logged_in, ops_app
from structlog.testing import capture_logs

from worker.config import config_of
from worker.errors import ConfigError
from worker.ops.throttle import Throttle
from worker.ops.visits import LASTS

USERS = {"ana": {"role": "operator"}, "rob": {"role": "reader"}}
BEHIND_PROXY = {"enabled": True, "users": USERS, "trusted_proxies": ["10.0.0.0/8", "127.0.0.1"]}
HERE, THERE = "203.0.113.9", "198.51.100.7"
COOKIE = "reconciler_ops"


@pytest.fixture(name="app")
def _app(journal_url: str) -> Flask:
    """The application with an operator and a reader."""
    return ops_app(journal_url)


@pytest.fixture(name="proxied")
def _proxied(journal_url: str) -> Flask:
    """The same behind trusted proxies."""
    return ops_app(journal_url, ops=BEHIND_PROXY)


def guess(app: Flask, name: str, peer: str, password: str = "", **headers: str) -> int:
    """Log in by the form from an address; return the status."""
    browser = Browser(app)
    form = {"csrf": browser.token(), "name": name, "password": password or "wrong"}
    given = {**ORIGIN, **{key.replace("_", "-"): value for key, value in headers.items()}}
    answer = browser.client.post(
        "/ops/login", data=form, headers=given, environ_base={"REMOTE_ADDR": peer}
    )
    return answer.status_code


def session_of(browser: Browser) -> str:
    """Return the cookie that a browser carries."""
    cookie = browser.client.get_cookie(COOKIE, path="/ops")
    assert cookie is not None
    return cookie.value


def opens(app: Flask, cookie: str) -> str:
    """Open the overview with a cookie alone; empty: a login is asked for."""
    client = app.test_client()
    client.set_cookie(COOKIE, cookie, path="/ops")
    answer = client.get("/ops/")
    return answer.text if answer.status_code == 200 else ""


def test_an_address_closes_for_all_names(app: Flask) -> None:
    """After fifty failures even the right password waits there; other addresses are open."""
    assert {guess(app, f"name{number}", HERE) for number in range(50)} == {401}
    assert guess(app, "ana", HERE, PASSWORDS["ana"]) == 429
    assert guess(app, "ana", THERE, PASSWORDS["ana"]) == 303


def test_a_success_does_not_open_the_address(app: Flask) -> None:
    """Who knows one password is given no more guesses at the others."""
    for number in range(50):
        guess(app, f"name{number}", HERE)
        if number == 25:
            assert guess(app, "rob", HERE, PASSWORDS["rob"]) == 303
    assert guess(app, "ana", HERE, PASSWORDS["ana"]) == 429


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_a_proxys_address_does_not_close(proxied: Flask, peer: str) -> None:
    """Where the proxy names no client, one who guesses does not lock everybody out."""
    for number in range(50):
        guess(proxied, f"name{number}", peer)
    assert guess(proxied, "ana", peer, PASSWORDS["ana"]) == 303


def test_this_machines_address_does_not_close(app: Flask) -> None:
    """A proxy on it that nobody named may stand for everybody."""
    for number in range(50):
        guess(app, f"name{number}", "127.0.0.1")
    assert guess(app, "ana", "127.0.0.1", PASSWORDS["ana"]) == 303


@pytest.mark.parametrize(
    ("passed", "closed"),
    [
        (HERE, True),
        (f"{THERE}, {HERE}", True),  # what the client itself sent stands left
        (f"{THERE}, {HERE}, 10.0.0.1,127.0.0.1", True),  # through a chain of trusted proxies
        (THERE, False),
        (f"{HERE}, {THERE}", False),
        (f"{HERE}, unknown", False),
        (f"{HERE},", False),
        ("", False),
    ],
)
def test_a_trusted_proxy_names_the_client(proxied: Flask, passed: str, closed: bool) -> None:
    """Failures count for the last address that is no proxy's, and for nobody else."""
    for _ in range(5):
        guess(proxied, "ana", "10.1.2.3", X_Forwarded_For=HERE)
    status = guess(proxied, "ana", "10.1.2.3", PASSWORDS["ana"], X_Forwarded_For=passed)
    assert status == (429 if closed else 303)


def test_only_a_trusted_proxy_names_the_client(proxied: Flask) -> None:
    """Nobody else gets a fresh start by a header."""
    for number in range(5):
        guess(proxied, "ana", HERE, X_Forwarded_For=f"192.0.2.{number}")
    assert guess(proxied, "ana", HERE, PASSWORDS["ana"], X_Forwarded_For=THERE) == 429


def test_what_is_no_address_is_no_fresh_start(proxied: Flask) -> None:
    """Where a proxy passes on something else, the failures count for the proxy itself."""
    for number in range(5):
        guess(proxied, "ana", "10.1.2.3", X_Forwarded_For=f"{THERE}, odd-{number}")
    assert guess(proxied, "ana", "10.1.2.3", PASSWORDS["ana"]) == 429


def test_proxies_alone_let_nobody_say_who_they_are(proxied: Flask) -> None:
    """Without a header that is configured, what a proxy passes on is no login."""
    environ = {"REMOTE_ADDR": "10.1.2.3", "HTTP_X_REMOTE_USER": "ana", "HTTP_": "ana"}
    answer = proxied.test_client().get("/ops/", environ_base=environ)
    assert answer.status_code == 302


def test_a_machine_has_many_addresses_of_ipv6() -> None:
    """Its network counts as one; addresses of IPv4 inside IPv6 stay apart."""
    throttle = Throttle(is_shared=lambda _: False)
    for number in range(5):
        throttle.failed(f"2001:db8:1:2::{number}", "ana")
        throttle.failed("::ffff:203.0.113.9", "ana")
    assert throttle.is_closed("2001:db8:1:2:ffff::1", "ana")
    assert throttle.is_closed("203.0.113.9", "ana")
    assert not throttle.is_closed("2001:db8:1:3::1", "ana")
    assert not throttle.is_closed("::ffff:203.0.113.10", "ana")


@pytest.mark.parametrize(
    ("name", "told"),
    [("ana", "ana"), ("nobody", "nobody"), ("my pass word!", ""), ("a\nb", ""), ("x" * 65, "")],
)
def test_failed_logins_are_told(app: Flask, name: str, told: str) -> None:
    """The log has the name, if it can be one, and the address; never the password."""
    with capture_logs() as lines:
        for _ in range(6):
            guess(app, name, HERE, "guessed-password")
    events = [line for line in lines if line["event"].startswith("ops_login")]
    assert [line["event"] for line in events] == ["ops_login_failed"] * 5 + ["ops_login_throttled"]
    assert {(line["name"], line["address"]) for line in events} == {(told, HERE)}
    assert "guessed-password" not in repr(lines)


def test_a_long_name_is_not_kept(app: Flask) -> None:
    """What can be no name takes no memory, however much of it is sent."""
    for number in range(3):
        guess(app, f"{number}" * 50_000, HERE)
    throttle: Throttle = app.extensions["ops_access"].throttle
    assert sum(len(part) for key in throttle._failures for part in key) < 100


def test_a_session_ends_after_its_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve hours after the login it opens nothing, however busy it was."""
    began = 1_700_000_000
    now = began
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: now)
    browser = logged_in(app)
    now = began + int(LASTS.total_seconds())
    assert timedelta(hours=12) == LASTS
    assert browser.get("/ops/").status_code == 200
    now += 1
    assert browser.get("/ops/").status_code == 302


def test_the_forms_of_a_session_end_with_it(app: Flask) -> None:
    """After the logout neither the cookie that the browser keeps nor a page left open acts."""
    browser = logged_in(app)
    token = browser.token("/ops/")
    assert browser.post("/ops/logout", {}).status_code == 303
    assert opens(app, session_of(browser)) == ""
    answer = browser.client.post("/ops/pause", data={"csrf": token, "reason": "r"}, headers=ORIGIN)
    assert answer.status_code == 403


def test_a_removed_user_is_out_with_the_restart(journal_url: str, app: Flask) -> None:
    """Their session and their password open nothing any more; the sessions of others go on."""
    ana, rob = (session_of(logged_in(app, name)) for name in ("ana", "rob"))
    restarted = ops_app(journal_url, ops={"enabled": True, "users": {"rob": USERS["rob"]}})
    assert opens(restarted, ana) == ""
    assert "rob <small>reader</small>" in opens(restarted, rob)
    assert guess(restarted, "ana", HERE, PASSWORDS["ana"]) == 401


def test_a_changed_role_counts_with_the_restart(journal_url: str, app: Flask) -> None:
    """A session that goes on has the new role: an operator who became a reader only looks."""
    cookie = session_of(logged_in(app))
    restarted = ops_app(journal_url, ops={"enabled": True, "users": {"ana": {"role": "reader"}}})
    assert "ana <small>reader</small>" in opens(restarted, cookie)
    browser = Browser(restarted)
    browser.client.set_cookie(COOKIE, cookie, path="/ops")
    assert browser.post("/ops/pause", {"reason": "r"}).status_code == 403


def test_a_removed_user_whose_password_stays_is_told() -> None:
    """The variable that is left over is named at the start."""
    file: Mapping[str, Any] = {"platforms": {"billforward": {"base_url": "http://127.0.0.1:1/v1"}}}
    with pytest.raises(ConfigError, match=r"ops\.users\.ana\.role"):
        config_of(file, {"RECONCILER__OPS__USERS__ANA__PASSWORD": "left-over"})


@pytest.mark.parametrize("content", ["", "short"])
def test_a_key_that_was_cut_short_signs_nothing(
    journal_url: str, tmp_path: Path, content: str
) -> None:
    """A file without a whole key would let anybody sign a session: it is named instead."""
    (tmp_path / "ops-session.key").write_text(content)
    with pytest.raises(ConfigError, match=r"ops-session\.key is cut short: delete it"):
        ops_app(journal_url)
