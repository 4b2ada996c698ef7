"""Counting by a statement that the operator wrote, with named parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from usage_sources.reading import (
    NaiveTimes,
    TimeFormat,
    exact_quantity,
    no_metrics_apart,
    shown,
)
from usage_sources.sql_database import Answer, Database, grouped
from usage_sources.sql_statements import time_bounds, time_type
from worker.domain import UsageQuery, utc_text
from worker.errors import SourceInvalid

_PLURALS = {"subjects": "subject", "metrics": "metric", "components": "component"}
_SINGULARS = {singular: plural for plural, singular in _PLURALS.items()}
_PARENTHESES = re.compile(rf"\(\s*(:(?:{'|'.join(_PLURALS)}))\s*\)")
_ALLOWED = {"start", "end", *_PLURALS, *_SINGULARS}


def statement_of(text: str) -> sa.TextClause:
    """Read a statement; a list may stand in parentheses, as in plain SQL, or without."""
    return sa.text(_PARENTHESES.sub(r"\1", text))


def parameters_of(text: str) -> set[str]:
    """Return the names of a statement's parameters."""
    return set(sa.text(text).compile().params)


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
    if len(names & {"metric", "metrics", "component", "components"}) > 1:
        raise ValueError("query may use only one of :metric, :metrics, :component, :components")


class TextReader:
    """Answers queries from the rows of one statement: `value`, `events` and whose they are."""

    def __init__(
        self, database: Database, text: str, time_format: TimeFormat, naive_times: NaiveTimes
    ) -> None:
        self._database = database
        self._text = text.strip()
        self._times = (time_format, naive_times)
        names = parameters_of(text)
        self._subject = "subject" if "subject" in names else "subjects"
        metrics = names & {"metric", "metrics", "component", "components"}
        self._metric = next(iter(metrics), None)
        plural = [
            sa.bindparam(name, expanding=True, type_=sa.String())
            for name in names & _PLURALS.keys()
        ]
        single = [sa.bindparam(name, type_=sa.String()) for name in names & _SINGULARS.keys()]
        edges = [sa.bindparam(name, type_=time_type(*self._times)) for name in ("start", "end")]
        self._statement = statement_of(text).bindparams(*plural, *single, *edges)
        self.place = f"{database.place} query"

    def answers(self, connection: sa.Connection, queries: Sequence[UsageQuery]) -> list[Answer]:
        """Answer every query; a value is None where the statement gave no row for it."""
        self._check_apart(queries)
        batches = grouped(queries, self._batch_key)
        return [answer for batch in batches.values() for answer in self._batch(connection, batch)]

    def _batch(self, connection: sa.Connection, queries: list[UsageQuery]) -> list[Answer]:
        period = queries[0].period
        bound = {**self._names(queries), **time_bounds(*self._times, period)}
        columns, rows = self._database.rows(connection, self._statement, bound)
        found = self._by_key([name.lower() for name in columns], rows, queries)
        told = {
            **{
                name: value.isoformat() if isinstance(value, datetime) else value
                for name, value in bound.items()
            },
            "start_at": utc_text(period.start),
            "end_at": utc_text(period.end),
        }
        return [self._answer(query, found.get(self._key(query)), told) for query in queries]

    def _batch_key(self, query: UsageQuery) -> tuple[Any, ...]:
        """Return what must be equal for two charges to be answered by one run."""
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
        found: dict[tuple[str, str | None], Mapping[str, Any]] = {}
        for row in rows:
            named = dict(zip(columns, row, strict=True))
            key = (
                str(named.get("subject", given.get("subject"))),
                None if self._metric is None else self._metric_in(named, given),
            )
            if key not in asked:
                raise SourceInvalid(f"{self.place} answered for {_of(key)}, which was not asked")
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

    def _answer(
        self, query: UsageQuery, row: Mapping[str, Any] | None, told: dict[str, Any]
    ) -> Answer:
        answer = Answer(query=query, value=None, events=None, text=self._text, parameters=told)
        if row is None:
            return answer
        column = "value"
        try:
            value = exact_quantity(row["value"])
            column = "events"
            events = None if row.get("events") is None else _whole(row["events"])
        except ValueError as error:
            raise SourceInvalid(
                f"{self.place}: {column} of {_of(self._key(query))}: {shown(row[column])} {error}"
            ) from None
        return Answer(query=query, value=value, events=events, text=self._text, parameters=told)

    def _check_apart(self, queries: Sequence[UsageQuery]) -> None:
        """Refuse to give charges that ask for different things one and the same number."""
        if self._metric is None and (fault := no_metrics_apart(self.place, list(queries))):
            raise SourceInvalid(f"{fault}; use :metrics or :components")
        for key, batch in grouped(queries, self._key).items():
            asked = {query.aggregation for query in batch}
            if len(asked) > 1:
                raise SourceInvalid(
                    f"{self.place} cannot tell {' and '.join(sorted(asked))} of {_of(key)} apart"
                )


class SubjectsReader:
    """Asks the operator's own statement which subjects there are."""

    def __init__(self, database: Database, text: str) -> None:
        subjects = sa.bindparam("subjects", expanding=True, type_=sa.String())
        self._database = database
        self._statement = statement_of(text).bindparams(subjects)

    def known(self, connection: sa.Connection, subjects: Iterable[str]) -> frozenset[str]:
        """Return those subjects that the statement's first column names."""
        asked = sorted(subjects)
        rows = self._database.rows(connection, self._statement, {"subjects": asked})[1]
        return frozenset(str(row[0]) for row in rows) & frozenset(asked)


def _whole(value: Any) -> int:
    number = exact_quantity(value)
    if number < 0 or number != int(number):
        raise ValueError("is not a number of events")
    return int(number)


def _of(key: tuple[str, str | None]) -> str:
    subject, metric = key
    return f"subject {shown(subject)}" + ("" if metric is None else f", {shown(metric)}")
