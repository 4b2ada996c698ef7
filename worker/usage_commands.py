"""`reconciler count|recount`: what operators ask of usage sources."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import NoReturn

import click

from worker import actions
from worker.actions import Asked
from worker.asking import counted
from worker.config import Config
from worker.counting import frozen_tally
from worker.domain import Component, FrozenTally, Period, Tally, UsageQuery
from worker.errors import SourceInvalid, SourceUnavailable
from worker.invoice_commands import (
    NEEDS_ATTENTION,
    Moment,
    as_json,
    invoice_argument,
    invoice_key,
    open_desk,
    platform_option,
    print_json,
    reason_option,
    user,
)
from worker.journal import open_journal
from worker.plugins import suggestion
from worker.progress import progress
from worker.recount import Recount, recount_json
from worker.recount import recount as counted_again
from worker.story import tally_json, tally_lines
from worker.wiring import configured, open_sources


@click.command()
@click.option(
    "--component", metavar="NAME", required=True, help="The component, as the config names it."
)
@click.option(
    "--subject", metavar="ID", required=True, help="Whose usage: the id that the source keys it by."
)
@click.option("--from", "start", type=Moment(), required=True, help="The start, which counts.")
@click.option("--to", "end", type=Moment(), required=True, help="The end, which does not count.")
@as_json
def count(component: str, subject: str, start: datetime, end: datetime, *, as_json: bool) -> None:
    """Count one component's usage, without an invoice. Nothing is written.

    \b
    reconciler count --component "Text messages" --subject SUB-… \\
        --from 2026-10-01 --to 2026-11-01
    """  # noqa: D301  click reads the backspace itself
    config = configured()
    asked = _component(config, component)
    if end < start:
        raise click.UsageError("--to lies before --from")
    query = asked.query("", subject, Period(start, end))
    try:
        with progress("counting", None, shown=not as_json):
            tallies = counted(open_sources(config), asked.source, [query])
    except SourceInvalid as error:
        _held(str(error))
    except SourceUnavailable as error:
        raise SourceUnavailable(f"{error}; try again later") from error
    _tell_count(asked, query, tallies, as_json=as_json)


def _component(config: Config, name: str) -> Component:
    components = config.rules.components
    if name not in components:
        raise click.UsageError(
            f"the config has no component {name!r}{suggestion(name, components)}"
        )
    return components[name]


def _tell_count(
    component: Component, query: UsageQuery, tallies: list[Tally], *, as_json: bool
) -> None:
    result = frozen_tally(query, tallies, component)
    if isinstance(result, str):
        _held(result)
    if as_json:
        print_json(tally_json(result))
        return
    click.echo(f"{component.name}: {result.quantity}")
    for line in tally_lines(result):
        click.echo(f"  {line}")


def _held(reason: str) -> NoReturn:
    click.echo(f"an invoice would be held: {reason}", err=True)
    sys.exit(NEEDS_ATTENTION)


@click.command()
@invoice_argument
@platform_option
@click.option("--late-too", is_flag=True, help="Count also what came in after the first count.")
@reason_option
@as_json
def recount(
    invoice_id: str, platform: str | None, *, late_too: bool, reason: str, as_json: bool
) -> None:
    """Count again what was billed, and print the difference. Nothing is billed anew.

    It stands in the invoice's record, with the differences. Ends with 3 when a count differs or
    cannot be made.
    """
    config = configured()
    with closing(open_journal(config.journal.url)) as journal:
        key = invoice_key(config, journal, invoice_id, platform)
        history = journal.history(key)
        if history is None or not history.tallies:
            raise click.ClickException(f"{invoice_id}: nothing of it was counted yet")
        again = counted_again(history.tallies, open_sources(config), late_too=late_too)
        results: list[Recount] = []
        with progress("counting", len(history.tallies), shown=not as_json) as advance:
            for result in again:
                results.append(result)
                advance(len(results))
        desk, asked = open_desk(config, journal), Asked(user(), reason)
        actions.recounted(desk, key, asked, results, late_too=late_too)
    if as_json:
        print_json([recount_json(result) for result in results])
    else:
        for line in _table(results):
            click.echo(line)
    if any(result.fault or result.difference for result in results):
        sys.exit(NEEDS_ATTENTION)


def _table(results: list[Recount]) -> Iterator[str]:
    width = max(len(_name(result.billed)) for result in results)
    yield f"{'component':<{width}}  {'billed':>12}  {'recounted':>12}  {'difference':>12}"
    for result in results:
        name, billed = _name(result.billed), result.billed.quantity
        if result.difference is None:
            yield f"{name:<{width}}  {billed:>12}  {result.fault}"
            continue
        difference = f"{result.difference:+}" if result.difference else "0"
        yield f"{name:<{width}}  {billed:>12}  {result.quantity:>12}  {difference:>12}"


def _name(tally: FrozenTally) -> str:
    return f"{tally.span.component} {tally.span.period.start:%Y-%m-%d}"
