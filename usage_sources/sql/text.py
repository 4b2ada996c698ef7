"""Counting by a statement that the operator wrote, with named parameters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from usage_sources.reading import (
    NaiveTimes,
    TimeFormat,
    exact_quantity,
    grouped,
    no_metrics_apart,
    shown,
)
from usage_sources.sql import mysql
from usage_sources.sql.database import Answer, Database
from usage_sources.sql.evidence import notes_on_text, told
from usage_sources.sql.keys import name_type
from usage_sources.sql.names import MetricsReader, parameters_of, statement_of
from usage_sources.sql.statements import time_bounds, time_type
from worker.domain import UsageQuery, utc_text
from worker.errors import SourceInvalid

_PLURALS = {"subjects": "subject", "metrics": "metric", "components": "component"}
_SINGULARS = {singular: plural for plural, singular in _PLURALS.items()}
_METRICS = {"metric", "metrics", "component", "components"}
_ALLOWED = {"start", "end", *_PLURALS, *_SINGULARS}


def check_query(text: str) -> None:
    """Raise ValueError unless the parameters can tell charges apart."""
    names = parameters_of(text)
    if unknown := names - _ALLOWED:
        raise ValueError(
            f"query has unknown parameters {', '.join(sorted(unknown))}; it may use"
            f" {', '.join(sorted(_ALLOWED))} (write \\: for a plain colon before a word)"
        )
    if missing := {"start", "end"} - names:
        raise ValueError(f"query does not use :{' and :'.join(sorted(missing, reverse=True))}")
    if len(names & {"subject", "subjects"}) != 1:
        raise ValueError("query must use either :subject or :subjects")
    if len(names & _METRICS) > 1:
        raise ValueError("query may use only one of :metric, :metrics, :component, :components")


def tells_metrics_apart(text: str) -> bool:
    """Tell whether the statement is told which metric to count."""
    return bool(parameters_of(text) & _METRICS)


class TextReader:
    """Answers queries from the rows of one statement: `value`, `events` and whose they are."""

    def __init__(
        self,
        database: Database,
        text: str,
        times: tuple[TimeFormat, NaiveTimes],
        stated: MetricsReader | None = None,
    ) -> None:
        self._database = database
        self._times = times
        self._stated = stated
        # What their GROUP BY takes for one name is each collation's own affair.
        self._one_by_one = database.dialect_name in mysql.DIALECTS
        names = parameters_of(text)
        self._subject = "subject" if "subject" in names else "subjects"
        self._metric = next(iter(names & _METRICS), None)
        kind = name_type(database.dialect_name)
        plural = [
            sa.bindparam(name, expanding=True, type_=kind) for name in names & _PLURALS.keys()
        ]
        single = [sa.bindparam(name, type_=kind) for name in names & _SINGULARS.keys()]
        edges = [sa.bindparam(name, type_=time_type(*self._times)) for name in ("start", "end")]
        self._statement = statement_of(text.strip()).bindparams(*plural, *single, *edges)
        self.place = f"{database.place} query"

    def answers(self, connection: sa.Connection, queries: Sequence[UsageQuery]) -> list[Answer]:
        """Answer every query; a value is None where the statement gave no row for it."""
        self._check_apart(queries)
        ranks = _ranks({name for query in queries for name in self._key(query) if name})
        batches = grouped(
            queries,
            lambda query: (
                *self._batch_key(query),
                *(ranks.get(n or "") for n in self._key(query)),
            ),
        )
        return [answer for batch in batches.values() for answer in self._batch(connection, batch)]

    def check_metrics(self, connection: sa.Connection, answers: Iterable[Answer]) -> None:
        """Raise if any metric without usage is none that exists, where a statement says which."""
        if self._stated is None:
            return
        unused = {self._metric_of(e.query) for e in answers if not e.value and not e.events}
        if missing := sorted(unused - self._stated.known(connection, unused)):
            raise SourceInvalid(self._stated.refusal(connection, self.place, missing))

    def _batch(self, connection: sa.Connection, queries: list[UsageQuery]) -> list[Answer]:
        period = queries[0].period
        bound = {**self._names(queries), **time_bounds(*self._times, period)}
        columns, rows = self._database.rows(connection, self._statement, bound)
        found = self._by_key([name.lower() for name in columns], rows, queries)
        text, parameters = told(self._statement, connection.dialect, bound)
        parameters |= {"start_at": utc_text(period.start), "end_at": utc_text(period.end)}
        none = Answer(
            query=queries[0],
            value=None,
            events=None,
            text=text,
            parameters=parameters,
            notes=notes_on_text(self._database.dialect_name, text),
        )
        return [
            self._answer(replace(none, query=query), found.get(self._key(query)))
            for query in queries
        ]

    def _batch_key(self, query: UsageQuery) -> tuple[Any, ...]:
        """Return what must be equal for two charges to be answered by one run."""
        if self._one_by_one:
            return (query.period, *self._key(query))
        subject = query.subject if self._subject == "subject" else None
        single = self._metric in _SINGULARS
        return (query.period, subject, self._metric_of(query) if single else None)

    def _names(self, queries: list[UsageQuery]) -> dict[str, Any]:
        """Return the names to bind, as a list or as the one that the batch shares."""
        named = {self._subject: sorted({query.subject for query in queries})}
        if self._metric is not None:
            named[self._metric] = sorted({self._metric_of(query) for query in queries})
        return {name: values if name in _PLURALS else values[0] for name, values in named.items()}

    def _metric_of(self, query: UsageQuery) -> str:
        of_component = self._metric in ("component", "components")
        return query.component if of_component else query.metric

    def _key(self, query: UsageQuery) -> tuple[str, str | None]:
        return query.subject, None if self._metric is None else self._metric_of(query)

    def _by_key(
        self, columns: list[str], rows: Sequence[sa.Row[Any]], queries: list[UsageQuery]
    ) -> dict[tuple[str, str | None], Mapping[str, Any]]:
        """Return the row of each charge; refuse rows that are nobody's or somebody's second."""
        self._check_columns(columns)
        given = self._names(queries)
        asked = {self._key(query) for query in queries}
        subjects, metrics = ({key[place] for key in asked} for place in (0, 1))
        found: dict[tuple[str, str | None], Mapping[str, Any]] = {}
        for row in rows:
            named = dict(zip(columns, row, strict=True))
            key = (
                str(named.get("subject", given.get("subject"))),
                None if self._metric is None else self._metric_in(named, given),
            )
            if key[0] not in subjects or key[1] not in metrics:
                raise SourceInvalid(f"{self.place} answered for {_of(key)}, which was not asked")
            if key not in asked:
                continue  # of two lists a statement finds each with each
            if key in found:
                raise SourceInvalid(f"{self.place} gave two rows for {_of(key)}; group its rows")
            found[key] = named
        return found

    def _metric_in(self, named: Mapping[str, Any], given: Mapping[str, Any]) -> str:
        column = _PLURALS.get(self._metric or "", self._metric or "")
        return str(named.get(column, given.get(column)))

    def _check_columns(self, columns: list[str]) -> None:
        plurals = [_PLURALS[name] for name in (self._subject, self._metric) if name in _PLURALS]
        for name in ("value", *plurals):
            if name not in columns:
                raise SourceInvalid(
                    f"{self.place} has no column {name}, only {', '.join(columns)};"
                    f" write: AS {name}"
                )
        for name in ("value", "events", *_SINGULARS):
            if columns.count(name) > 1:
                raise SourceInvalid(f"{self.place} has two columns {name}")

    def _answer(self, none: Answer, row: Mapping[str, Any] | None) -> Answer:
        """Read a row as the answer to the query that has none yet."""
        query, column = none.query, "value"
        if row is None:
            return none
        try:
            value = exact_quantity(row["value"])
            column = "events"
            events = None if row.get("events") is None else _whole(row["events"])
        except ValueError as error:
            raise SourceInvalid(
                f"{self.place}: {column} of {_of(self._key(query))}: {shown(row[column])} {error}"
            ) from None
        return replace(none, value=value, events=events)

    def _check_apart(self, queries: Sequence[UsageQuery]) -> None:
        """Refuse to give charges that ask for different things one and the same number."""
        if columns := sorted({column for query in queries for column, _ in query.filters}):
            raise SourceInvalid(
                f"{self.place} cannot filter by {', '.join(map(shown, columns))}: write the"
                " condition into the query, or count from a table"
            )
        if self._metric is None and (fault := no_metrics_apart(self.place, list(queries))):
            raise SourceInvalid(f"{fault}; use :metrics or :components")
        for key, batch in grouped(queries, self._key).items():
            asked = {query.aggregation for query in batch}
            if len(asked) > 1:
                raise SourceInvalid(
                    f"{self.place} cannot tell {' and '.join(sorted(asked))} of {_of(key)} apart"
                )


def _ranks(names: set[str]) -> dict[str, int]:
    """Number names that a database may take for one, so that they are never asked together.

    The statement's GROUP BY can ignore case (NOCASE, CITEXT), accents and spaces (a collation of
    the operator's), and so would add their usage up.
    """
    ranks: dict[str, int] = {}
    alike: Counter[str] = Counter()
    for name in sorted(names):
        letters = unicodedata.normalize("NFKD", name).casefold()
        base = "".join(each for each in letters if not unicodedata.combining(each)).strip()
        ranks[name] = alike[base]
        alike[base] += 1
    return ranks


def _whole(value: Any) -> int:
    number = exact_quantity(value)
    if number < 0 or number != int(number):
        raise ValueError("is not a number of events")
    return int(number)


def _of(key: tuple[str, str | None]) -> str:
    subject, metric = key
    return f"subject {shown(subject)}" + ("" if metric is None else f", {shown(metric)}")
