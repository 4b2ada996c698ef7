"""Each billing platform: whether it answers and accepts us, and how it is set up for us."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from worker.doctor.findings import Finding, Look, Visit, named
from worker.errors import CredentialsRefused, PermanentError, TransientError
from worker.overrides import variable
from worker.ports import BillingPlatform, Fault, ShowsSettings
from worker.sections import is_loopback


def look(visit: Visit, name: str, platform: BillingPlatform) -> Look:
    """Return the look at a platform; its settings are asked for only where it answers."""
    mend = f"look whether it is up and can be reached from here; correct platforms.{name}.base_url"
    return Look(f"platform {name}", mend, lambda: _platform(visit, name, platform))


def _platform(visit: Visit, name: str, platform: BillingPlatform) -> Iterator[Finding]:
    subject, before = f"platform {name}", visit.now()
    try:
        platform.check()
    except CredentialsRefused as error:
        mend = (
            f"make an API key in the platform's pages and put it into"
            f" {variable('platforms', name, 'token')}; a key of its sandbox is none of production"
        )
        yield Finding(subject, well=False, told=str(error), mend=mend)
        return
    except PermanentError as error:
        mend = f"correct platforms.{name}.base_url: no API of this platform answers there"
        yield Finding(subject, well=False, told=str(error), mend=mend)
        return
    yield Finding(subject, well=True, told="answers and accepts the token")
    if isinstance(platform, ShowsSettings):
        if (theirs := platform.clock()) is not None:
            visit.note_clock(subject, theirs, before, visit.now())
        yield from _shown(f"plans of {name}", _plans(visit, name, platform))
        yield from _shown(f"webhooks of {name}", _webhooks(visit, name, platform))


def _shown(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on; a token that may not look at settings may still do all the work."""
    try:
        yield from findings
    except (CredentialsRefused, PermanentError) as error:
        told = f"not looked at, the platform does not show them: {error}"
        yield Finding(subject, well=True, told=told)
    except TransientError as error:
        mend = "look at the platform's status, and try again"
        yield Finding(subject, well=False, told=str(error), mend=mend)


def _plans(visit: Visit, name: str, platform: ShowsSettings) -> Iterator[Finding]:
    plans = visit.plans[name] = platform.plans()
    subject = f"plans of {name}"
    faults = [fault for plan in plans for fault in plan.faults]
    yield from _bad(subject, faults)
    if faults:
        return
    usage = sorted({one for plan in plans for one in plan.usage_components})
    unmapped = [f'"{one}"' for one in usage if one not in visit.config.rules.components]
    told = f"{len(plans)} in use, {len(usage)} components by usage, all wait for the count"
    more = f"; not mapped, so that invoices with them are held: {named(unmapped)}"
    yield Finding(subject, well=True, told=told + (more if unmapped else ""))


def _webhooks(visit: Visit, name: str, platform: ShowsSettings) -> Iterator[Finding]:
    """Judge the webhooks that come here; where none does, only the sweep finds invoices."""
    subject, path = f"webhooks of {name}", f"/webhooks/{name}"
    found = platform.webhooks()
    ours = [one for one in found if urlsplit(one.url).path.endswith(path)]
    if not ours:
        others = f"; there are {named([one.url for one in found])}" if found else ""
        yield Finding(
            subject,
            well=False,
            told=f"none leads to {path}{others}",
            mend=f"make one in the platform's pages, for Invoice/Pending, with the URL"
            f" https://{visit.config.webhook.username}:PASSWORD@HOST{path}",
        )
        return
    faults = [fault for one in ours for fault in (*one.faults, *_in_the_clear(one.url))]
    yield from _bad(subject, faults)
    visit.https = visit.https or all(one.url.startswith("https:") for one in ours)
    if not faults:
        yield Finding(subject, well=True, told=named([one.url for one in ours]))


def _in_the_clear(url: str) -> Iterator[Fault]:
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        yield Fault(
            told=f"the webhook to {url} sends its password without TLS",
            mend="put a proxy with TLS in front, and write https:// into the webhook's URL",
        )


def _bad(subject: str, faults: list[Fault]) -> Iterator[Finding]:
    for fault in faults:
        yield Finding(subject, well=False, told=fault.told, mend=fault.mend)
