"""The meter's tables in PostgreSQL."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from worker.errors import SourceInvalid

_LOCK = 0x4D455452  # so that two programs do not make the tables at once

_FIRST_TABLES = (
    "CREATE TABLE meter_clock (stored_at BIGINT NOT NULL)",
    "INSERT INTO meter_clock VALUES (0)",
    "CREATE TABLE meter_sources (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT)",
    "CREATE INDEX meter_sources_by_name ON meter_sources USING hash (name)",
    # digest: of subject and metric, because an index takes no long texts;
    # since: when its first event was stored; events: counted until it is rolled up
    """CREATE TABLE meter_series (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        subject TEXT NOT NULL, metric TEXT NOT NULL, digest BYTEA NOT NULL UNIQUE,
        since BIGINT NOT NULL, events BIGINT NOT NULL DEFAULT 0,
        rolled BOOLEAN NOT NULL DEFAULT false
    )""",
    "CREATE INDEX meter_series_of_subject ON meter_series USING hash (subject)",
    "CREATE INDEX meter_series_of_metric ON meter_series USING hash (metric)",
    # digest: of source and id; at and stored_at: microseconds since 1970
    """CREATE TABLE meter_events (
        seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        source BIGINT NOT NULL REFERENCES meter_sources, id TEXT NOT NULL,
        digest BYTEA NOT NULL UNIQUE,
        series BIGINT NOT NULL REFERENCES meter_series, at BIGINT NOT NULL,
        quantity NUMERIC NOT NULL, stored_at BIGINT NOT NULL
    )""",
    """CREATE INDEX meter_events_to_count ON meter_events (series, at)
        INCLUDE (stored_at, quantity)""",
    # hour: since 1970; stored_at: of the newest event in it
    """CREATE TABLE meter_hours (
        series BIGINT NOT NULL REFERENCES meter_series, hour BIGINT NOT NULL,
        stored_at BIGINT NOT NULL, events BIGINT NOT NULL,
        total NUMERIC NOT NULL, most NUMERIC NOT NULL,
        PRIMARY KEY (series, hour)
    )""",
    """CREATE FUNCTION meter_events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$""",
    """CREATE TRIGGER meter_events_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE
    ON meter_events FOR EACH STATEMENT EXECUTE FUNCTION meter_events_refuse_change()""",
    "CREATE TABLE meter_schema (version BIGINT NOT NULL)",
    "INSERT INTO meter_schema VALUES (0)",
)

_MIGRATIONS = (_FIRST_TABLES,)  # applied in order; meter_schema says how many


def make_tables(connection: Connection[Any], place: str) -> None:
    """Bring the database to this version's tables; safe to run from several machines at once."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        version = _version(connection, place)
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement.encode())
        if version < len(_MIGRATIONS):
            connection.execute("UPDATE meter_schema SET version = %s", [len(_MIGRATIONS)])


def tables_are_there(connection: Connection[Any], place: str) -> bool:
    """Tell whether the database has this version's tables; refuse a foreign or newer one."""
    with connection.transaction():
        return _version(connection, place) == len(_MIGRATIONS)


def _version(connection: Connection[Any], place: str) -> int:
    """Return how many migrations are applied."""
    (encoding,) = _row(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise SourceInvalid(f"{place}: the database's encoding is {encoding}; make one with UTF8")
    ours, events = _row(
        connection, "SELECT to_regclass('meter_schema'), to_regclass('meter_events')"
    )
    if ours is None:
        if events is not None:
            raise SourceInvalid(f"{place} has a table meter_events of another program")
        return 0
    (version,) = _row(connection, "SELECT max(version) FROM meter_schema")
    if version is None or version > len(_MIGRATIONS):
        raise SourceInvalid(
            f"{place} was written by a later version (tables of version {version});"
            " upgrade the program"
        )
    return int(version)


def _row(connection: Connection[Any], sql: str) -> Any:
    return connection.execute(sql.encode()).fetchone()
