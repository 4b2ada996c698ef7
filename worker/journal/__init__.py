"""Journals, one module each; all pass the same contract suite."""

from pathlib import Path

from worker.errors import ConfigError
from worker.journal.sqlite import SqliteJournal

_SQLITE = "sqlite:///"


def open_journal(url: str) -> SqliteJournal:
    """Open the journal a URL names, making it where there is none yet.

    `sqlite:///state/journal.db` is a path relative to the working directory, a fourth slash
    makes it absolute. Raises ConfigError for other URLs, JournalUnavailable when it cannot open.
    """
    if not url.startswith(_SQLITE) or len(url) == len(_SQLITE):
        scheme = url.split(":", 1)[0]
        raise ConfigError([f"journal.url: {scheme} is not a journal; use sqlite:///path/to/file"])
    return SqliteJournal(Path(url.removeprefix(_SQLITE)))
