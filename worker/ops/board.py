"""What the pages work with, and how their modules reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flask import current_app

from worker.actions import Desk
from worker.config import Config
from worker.errors import ConfigError
from worker.logs import mask_also
from worker.measured import Measures


class Board:
    """The journal, the doorbell and the clock, and the configuration as it is now."""

    def __init__(
        self, desk: Desk, measures: Measures, config: Config, read: Callable[[], Config]
    ) -> None:
        """Begin with a configuration; `read` reads it again, as the workers do."""
        self.desk = desk
        self.measures = measures
        self.mistakes: Sequence[str] = ()  # in the file, since it was read last
        self._config = config
        self._read = read

    def config(self) -> Config:
        """Return the configuration as it is now; with a mistake in it, the last good one."""
        try:
            config, self.mistakes = self._read(), ()
        except ConfigError as error:
            self.mistakes = error.complaints
            return self._config
        if config.secrets != self._config.secrets:
            mask_also(config.secrets)
        self._config = config
        return config


def board() -> Board:
    """Return what the pages of this application work with."""
    found: Any = current_app.extensions["ops_board"]
    assert isinstance(found, Board)  # noqa: S101
    return found
