"""What the configuration alone tells, and what it tells together with what others told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import urlsplit

from worker.config import Config
from worker.doctor.findings import Finding, Look, Visit, named
from worker.domain import Component, Mode
from worker.errors import ConfigError
from worker.journal import journal_file
from worker.overrides import Where, dotted, variable
from worker.sections import is_loopback
from worker.wiring import check_bounds

_SHORTEST_PASSWORD = 16
_FEWEST_LETTERS = 6  # different ones
_MAKE_ONE = "openssl rand -hex 24"


def early_looks(visit: Visit) -> list[Look]:
    """Return the looks that need nobody outside."""
    return [
        Look("secrets", "correct the configuration", lambda: _secrets(visit)),
        Look("passwords", "correct the configuration", lambda: _passwords(visit)),
        Look("timeouts", "correct the configuration", lambda: _timeouts(visit)),
        Look("mode", "correct the configuration", lambda: _mode(visit)),
    ]


def late_looks(visit: Visit) -> list[Look]:
    """Return the looks that need what the platforms told."""
    return [
        Look("components", "correct the configuration", lambda: _components(visit)),
        Look("web server", "correct the configuration", lambda: _web_server(visit)),
        Look("operators' pages", "correct the configuration", lambda: _pages(visit)),
    ]


def _secrets(visit: Visit) -> Iterator[Finding]:
    for told in visit.config.missing_secrets:
        yield Finding("secrets", well=False, told=told, mend="set it where the processes start")
    if not visit.config.missing_secrets:
        yield Finding("secrets", well=True, told="all set")


def _passwords(visit: Visit) -> Iterator[Finding]:
    """Judge what lets others in; nothing of it is shown."""
    seen = dict[str, Where]()
    well = True
    for where, password in _passwords_given(visit.config).items():
        fault = _fault(password)
        if where[0] == "ops" and password in seen:
            fault = f"is {dotted(seen[password])} too: who knows the one has the other"
        seen.setdefault(password, where)
        if fault:
            well = False
            then = "restart `reconciler serve`" if where[0] == "ops" else "into what sends it"
            yield Finding(
                "passwords",
                well=False,
                told=f"{dotted(where)} {fault}",
                mend=f"make one with `{_MAKE_ONE}`, put it into {variable(*where)} and {then}",
            )
    if well:
        yield Finding("passwords", well=True, told="long enough")


def _passwords_given(config: Config) -> dict[Where, str]:
    given: dict[Where, str] = {
        ("webhook", "password"): config.webhook.password,
        ("webhook", "previous_password"): config.webhook.previous_password,
        ("events", "token"): config.events.token,
        ("metrics", "token"): config.metrics.token,
    }
    if config.ops.enabled:
        given["ops", "session_key"] = config.ops.session_key
        for name, user in config.ops.users.items():
            given["ops", "users", name, "password"] = user.password
    return {where: password for where, password in given.items() if password}


def _fault(password: str) -> str:
    letters = len(set(password))
    if len(password) < _SHORTEST_PASSWORD:
        return f"has {len(password)} characters: it can be guessed from outside"
    if letters < _FEWEST_LETTERS:
        return f"is made of {letters} different characters: it can be guessed from outside"
    return ""


def _timeouts(visit: Visit) -> Iterator[Finding]:
    """A call must end before the claim it is made under: another worker would take the invoice."""
    config = visit.config
    faults = list[tuple[str, str]]()
    for name, platform in visit.platforms().items():
        try:
            check_bounds(name, platform, config.rules)
        except ConfigError as error:
            mend = f"raise it, or lower platforms.{name}.read_timeout_seconds"
            faults += [(complaint, mend) for complaint in error.complaints]
    lease = config.rules.lease.total_seconds()
    for name, source in visit.sources().items():
        timeout = getattr(source, "timeout_seconds", None)
        if isinstance(timeout, int | float) and 2 * timeout > lease:
            told = (
                f"usage_sources.{name}.timeout_seconds is {timeout:g}, waited for the connection"
                f" and again for the count: after rules.lease_seconds, {lease:g}, another worker"
                " takes the invoice, and nobody ever ends counting it"
            )
            mend = (
                f"set usage_sources.{name}.timeout_seconds to {lease / 2:g} or less, or"
                f" rules.lease_seconds to {2 * timeout:g} or more"
            )
            faults.append((told, mend))
    for told, mend in faults:
        yield Finding("timeouts", well=False, told=told, mend=mend)
    if not faults:
        yield Finding("timeouts", well=True, told=f"all end within a claim's {lease:g} s")


def _mode(visit: Visit) -> Iterator[Finding]:
    mode = visit.config.rules.mode
    means = {
        Mode.WRITE: "invoices are counted, written and issued",
        Mode.OBSERVE: "invoices are counted and shown; nothing is written, nothing is issued",
    }
    yield Finding("mode", well=True, told=f"{mode}: {means[mode]}")


def _components(visit: Visit) -> Iterator[Finding]:
    """Two components that count the same bill it twice, where both are on one rate plan."""
    alike = defaultdict[tuple[object, ...], list[str]](list)
    for component in visit.config.rules.components.values():
        alike[_counted(component)].append(component.name)
    well = True
    for names in alike.values():
        together = _together(visit, names) if len(names) > 1 else []
        if together:
            well = False
            yield Finding(
                "components",
                well=False,
                told=f"{named([_quoted(one) for one in together])} count the same events of the"
                " same source: an invoice with both bills them twice",
                mend="give each its own metric or filters in the config, or take one off the plan",
            )
    if well:
        told = f"{len(visit.config.rules.components)} mapped, none counted twice on one invoice"
        yield Finding("components", well=True, told=told)


def _counted(component: Component) -> tuple[object, ...]:
    """Return all that decides which events are counted, and into what."""
    filters, subject = component.filters, component.subject
    return component.source, component.metric, component.aggregation, subject, filters


def _together(visit: Visit, names: list[str]) -> list[str]:
    """Return those that one invoice may carry: all, where a platform does not tell its plans."""
    if set(visit.plans) != set(visit.config.platforms):
        return names
    for plans in visit.plans.values():
        for plan in plans:
            both = [name for name in names if name in plan.usage_components]
            if len(both) > 1:
                return both
    return []


def _quoted(name: str) -> str:
    return f'"{name}"'


def _web_server(visit: Visit) -> Iterator[Finding]:
    """Look for signs of a proxy with TLS: the webhook's password must not travel in the clear."""
    config = visit.config
    place = f"{config.webhook.host}:{config.webhook.port}"
    if is_loopback(config.webhook.host):
        yield Finding("web server", well=True, told=f"listens on {place}, for this machine alone")
        return
    sign = _proxy_sign(visit)
    yield Finding(
        "web server",
        well=bool(sign),
        told=f"listens on {place} without TLS, "
        + (f"behind a proxy: {sign}" if sign else "and nothing says that a proxy with it is there"),
        mend="put a proxy with TLS in front, set webhook.host to 127.0.0.1, and give the platform"
        " the proxy's https URL",
    )


def _proxy_sign(visit: Visit) -> str:
    config = visit.config
    signs = {
        "the platform's webhook has an https URL": visit.https,
        "ops.trusted_proxies is set": bool(config.ops.trusted_proxies),
        "notices.page_url is https": (config.notices.page_url or "").startswith("https:"),
    }
    return next((name for name, there in signs.items() if there), "")


def _pages(visit: Visit) -> Iterator[Finding]:
    """Judge the login: a proxy can hide who asks, and makes many clients look like one."""
    subject, ops = "operators' pages", visit.config.ops
    linked = _is_linked_through_proxy(visit.config)
    sign = _proxy_sign(visit) or ("notices.page_url is beyond this machine" if linked else "")
    if not ops.enabled:
        yield Finding(subject, well=True, told="off")
    elif not ops.has_login and sign:
        yield Finding(
            subject,
            well=False,
            told=f"nobody has to log in, and a proxy is in front: {sign}; whoever it lets through"
            " may be taken for this machine's own browser, which may do everything",
            mend="name who may open them in [ops.users], set each one's password, and restart"
            " `reconciler serve`",
        )
    elif linked and not ops.trusted_proxies:
        yield Finding(
            subject,
            well=False,
            told="notices.page_url leads through a proxy that is not in ops.trusted_proxies: failed"
            " logins of all its clients count as one's, who can lock the others out",
            mend="let the proxy add X-Forwarded-For, put its address into ops.trusted_proxies, and"
            " restart `reconciler serve`",
        )
    else:
        yield Finding(subject, well=True, told=_login_told(visit.config))


def _is_linked_through_proxy(config: Config) -> bool:
    """Tell whether page_url is not where we listen: elsewhere, or with a TLS that we have not."""
    url = urlsplit(config.notices.page_url or "")
    if not url.hostname or is_loopback(url.hostname):
        return False
    return url.scheme == "https" or is_loopback(config.webhook.host)


def _login_told(config: Config) -> str:
    ops = config.ops
    if not ops.has_login:
        return "for this machine's own browser alone, without a login"
    told = "for whom the proxy names" if ops.proxy_user_header else f"{len(ops.users)} may log in"
    if ops.session_key or journal_file(config.journal.url):
        return told
    key = variable("ops", "session_key")
    return f"{told}; where several machines serve the pages, give all the same {key}"
