"""How far a file was read into a store, kept in a small file of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import BinaryIO

_PART = 1024 * 1024
_SECONDS_BETWEEN = 1.0  # a disk may take some milliseconds to write the mark down


class Bookmark:
    """The mark in one file, read in one format into one store.

    It is good only while every byte before it is what was read: a file that grew goes on, one
    that was changed before the mark is read from its start.
    """

    offset: int  # in bytes; all that is before it was stored
    last: int  # where the mark before it stood

    def __init__(self, folder: Path, path: Path, file: BinaryIO, reading: str) -> None:
        """Find the mark; `reading` names the format and the store."""
        name = hashlib.sha256(f"{path.resolve()}\n{reading}".encode(errors="surrogateescape"))
        self._place = folder / f"{path.name[:40]}-{name.hexdigest()[:16]}.json"
        self._file = file
        self._kept_at = -_SECONDS_BETWEEN
        self.forget()
        self._find()

    def forget(self) -> None:
        """Stand at the file's start."""
        self.offset = self.last = self._stored = 0
        self._read = hashlib.sha256()

    def move(self, offset: int) -> None:
        """Note that everything before the offset is stored; now and then it is written down."""
        self._stored = offset
        if time.monotonic() - self._kept_at >= _SECONDS_BETWEEN:
            self.keep()

    def lift(self) -> None:
        """Take the mark out of its file while it is in doubt; `keep` puts it back."""
        self._place.unlink(missing_ok=True)

    def keep(self) -> None:
        """Write down what is stored."""
        self._kept_at = time.monotonic()
        if self._stored > self.offset and self._take_in(self._stored):
            self.last, self.offset = self.offset, self._stored
        if not self.offset:
            return
        kept = {"offset": self.offset, "last": self.last, "sha256": self._read.hexdigest()}
        self._place.parent.mkdir(parents=True, exist_ok=True)
        new = self._place.with_suffix(".new")
        new.write_text(json.dumps(kept))
        os.replace(new, self._place)

    def _find(self) -> None:
        try:
            kept = json.loads(self._place.read_bytes())
            offset, last, digest = int(kept["offset"]), int(kept["last"]), str(kept["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if 0 <= last < offset and self._take_in(offset) and self._read.hexdigest() == digest:
            self.offset, self.last = offset, last
        else:
            self.forget()

    def _take_in(self, offset: int) -> bool:
        """Take the bytes between the mark and the offset in; False: there are not so many."""
        at, read = self.offset, self._read.copy()
        while at < offset:
            part = os.pread(self._file.fileno(), min(_PART, offset - at), at)
            if not part:
                return False
            read.update(part)
            at += len(part)
        self._read = read
        return True
