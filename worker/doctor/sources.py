"""Each usage source: whether it answers, and whether it knows what the components ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from worker.asking import ask, counted
from worker.doctor.findings import Finding, Look, Visit
from worker.domain import Period
from worker.errors import PermanentError
from worker.measured import close_source
from worker.overrides import dotted
from worker.ports import UsageSource

_NOBODY = "reconciler-doctor"  # a subject that no source has


def look(visit: Visit, name: str, sources: Mapping[str, UsageSource]) -> Look:
    """Return the look at a source, and at the components that it counts."""
    mend = (
        f"look whether it is up; correct its place in {dotted(('usage_sources', name))}, or raise"
        " its timeout_seconds"
    )
    return Look(f"usage source {name}", mend, lambda: _source(visit, name, sources))


def _source(visit: Visit, name: str, sources: Mapping[str, UsageSource]) -> Iterator[Finding]:
    """Let the source check itself, and ask it for an empty period as each component would.

    One that no component names gets its own check only: which metric and aggregation it would be
    asked for is not known, and whoever knows its metrics refuses any other, well or not.
    """
    subject = f"usage source {name}"
    try:
        ask(sources, name, lambda source: source.check())
        faults = list(_component_faults(visit, name, sources))
    except PermanentError as error:
        mend = f"correct {dotted(('usage_sources', name))}: its table, columns or format"
        yield Finding(subject, well=False, told=str(error), mend=mend)
        return
    finally:
        close_source(sources[name])
    yield Finding(subject, well=True, told="answers")
    yield from faults


def _component_faults(
    visit: Visit, name: str, sources: Mapping[str, UsageSource]
) -> Iterator[Finding]:
    """Ask for an empty period, of nobody: all that is refused now would hold invoices later."""
    components = [one for one in visit.config.rules.components.values() if one.source == name]
    for component in components:
        now = visit.now().replace(microsecond=0)  # some sources know whole seconds only
        query = component.query("doctor", _NOBODY, Period(now, now))
        try:
            counted(sources, name, [query])
        except PermanentError as error:
            where = dotted(("components", component.name))
            yield Finding(
                f"component {component.name}",
                well=False,
                told=str(error),
                mend=f"correct metric, aggregation or filters of {where}; a metric that is right"
                f" and was never used yet goes into known_metrics of usage_sources.{name}",
            )
