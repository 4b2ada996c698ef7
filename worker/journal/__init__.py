"""Journals, one module each; all pass the same contract suite."""

from importlib import import_module
from pathlib import Path

from worker.errors import ConfigError
from worker.journal.sql import SqlJournal
from worker.journal.sqlite import SqliteJournal

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


def open_journal(url: str) -> SqlJournal:
    """Open the journal a URL names, making its file or tables where there are none yet.

    `sqlite:///state/journal.db` is a path relative to the working directory, a fourth slash
    makes it absolute; `postgresql://user@host/database` is what libpq takes. Raises ConfigError
    for other URLs, JournalUnavailable when it cannot open.
    """
    if url.startswith(_POSTGRES):
        return _postgres(url)
    if not url.startswith(_SQLITE) or len(url) == len(_SQLITE):
        scheme = url.split(":", 1)[0]
        raise ConfigError(
            [
                f"journal.url: {scheme} is not a journal; use sqlite:///path/to/file"
                " or postgresql://user@host/database"
            ]
        )
    return SqliteJournal(Path(url.removeprefix(_SQLITE)))


def journal_file(url: str) -> Path | None:
    """Return the file a journal's URL names; None: it is a database's."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def _postgres(url: str) -> SqlJournal:
    try:
        module = import_module("worker.journal.postgres")
    except ImportError as error:
        raise ConfigError(
            ["journal.url: PostgreSQL needs psycopg: pip install 'invoice-reconciler[postgres]'"]
        ) from error
    journal: SqlJournal = module.PostgresJournal(url)
    return journal
