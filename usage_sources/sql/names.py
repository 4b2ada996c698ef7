"""Statements that the operator wrote, and those of them that say which names exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from usage_sources.reading import nearest, shown
from usage_sources.sql import mysql
from usage_sources.sql.database import Database
from usage_sources.sql.keys import name_type

_MOST_SHOWN = 5


_PARENTHESES = re.compile(r"\(\s*(:(?:subjects|metrics|components))\s*\)")


def statement_of(text: str) -> sa.TextClause:
    """Read a statement; a list may stand in parentheses, as in plain SQL, or without."""
    return sa.text(_PARENTHESES.sub(r"\1", text))


def parameters_of(text: str) -> set[str]:
    """Return the names of a statement's parameters."""
    return set(sa.text(text).compile().params)


class SubjectsReader:
    """Asks the operator's own statement which subjects there are."""

    def __init__(self, database: Database, text: str) -> None:
        kind = name_type(database.dialect_name)
        subjects = sa.bindparam("subjects", expanding=True, type_=kind)
        self._database = database
        self._statement = statement_of(text).bindparams(subjects)
        self._one_by_one = database.dialect_name in mysql.DIALECTS  # whose DISTINCT merges names

    def known(self, connection: sa.Connection, subjects: Iterable[str]) -> frozenset[str]:
        """Return those subjects that the statement's first column names."""
        asked = sorted(subjects)
        lists = [[name] for name in asked] if self._one_by_one else [asked]
        return frozenset().union(*(self._among(connection, names) for names in lists))

    def _among(self, connection: sa.Connection, names: list[str]) -> frozenset[str]:
        rows = self._database.rows(connection, self._statement, {"subjects": names})[1]
        return frozenset(str(row[0]) for row in rows) & frozenset(names)


class MetricsReader:
    """Knows the metrics that the statement's first column names; one it named once exists."""

    def __init__(self, database: Database, text: str) -> None:
        self._database = database
        self._takes_names = bool(parameters_of(text))
        self._statement = statement_of(text)
        if self._takes_names:
            kind = name_type(database.dialect_name)
            names = sa.bindparam("metrics", expanding=True, type_=kind)
            self._statement = self._statement.bindparams(names)
        self._seen: set[str] = set()

    def known(self, connection: sa.Connection, metrics: set[str]) -> set[str]:
        """Return those of the metrics that exist."""
        doubtful = sorted(metrics - self._seen)
        if doubtful:
            self._seen |= self._asked(connection, doubtful).intersection(doubtful)
        return metrics & self._seen

    def refusal(self, connection: sa.Connection, place: str, missing: Sequence[str]) -> str:
        """Say that metrics do not exist, so that their counts are unknown and not zero."""
        names = self._asked(connection, list(missing))
        near = dict.fromkeys(each for name in missing[:3] for each in nearest(name, names)[:3])
        more = f" and {len(missing) - _MOST_SHOWN} more" if len(missing) > _MOST_SHOWN else ""
        hint = f"; nearest: {', '.join(map(shown, near))}" if near else ""
        return (
            f"{place}: known_metrics_query does not name the metric"
            f" {', '.join(map(shown, missing[:_MOST_SHOWN]))}{more}, so its count is unknown, not 0"
            f"{hint}; correct metric under components, or the statement"
        )

    def _asked(self, connection: sa.Connection, metrics: Sequence[str]) -> set[str]:
        bound = {"metrics": list(metrics)} if self._takes_names else {}
        rows = self._database.rows(connection, self._statement, bound)[1]
        return {str(row[0]) for row in rows}
