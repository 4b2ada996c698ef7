"""What a browser carries for us: a signed cookie that says who logged in, and the forms' token."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer

from worker.config import Config
from worker.errors import ConfigError
from worker.journal import journal_file
from worker.sections import SHORTEST_KEY, UserSection

LASTS = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Visit:
    """One browser, and who logged in there; an empty name: nobody yet."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    name: str = ""


class Visits:
    """Writes and reads what browsers carry; nothing of it is kept here."""

    def __init__(self, users: Mapping[str, UserSection], key: bytes) -> None:
        self._users = users
        self._key = key

    def written(self, visit: Visit) -> str:
        """Return the cookie of a visit."""
        return str(self._signer("visit").dumps([visit.id, visit.name, self._proof(visit.name)]))

    def read(self, cookie: str) -> Visit | None:
        """Read a cookie; None: it is not ours, too old, or its user has another password now."""
        try:
            visit_id, name, proof = self._read("visit", cookie)
        except (ValueError, TypeError):
            return None
        return Visit(visit_id, name) if self._fits(name, str(proof)) else None

    def token(self, visit: Visit, person: str) -> str:
        """Return what the forms of a visit carry."""
        return str(self._signer("token").dumps([visit.id, person]))

    def is_token(self, given: str, visit: Visit, person: str) -> bool:
        """Tell whether a form is of this visit and this person, and not too old."""
        return bool(self._read("token", given) == [visit.id, person])

    def _fits(self, name: str, proof: str) -> bool:
        return not name or (
            name in self._users and hmac.compare_digest(digest(proof), digest(self._proof(name)))
        )

    def _proof(self, name: str) -> str:
        """Tie a visit to its user's password without telling it."""
        user = self._users.get(name)
        text = f"{name}:{user.password if user else ''}"
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()

    def _read(self, use: str, text: str) -> Any:
        try:
            return self._signer(use).loads(text, max_age=int(LASTS.total_seconds()))
        except BadSignature:
            return None

    def _signer(self, use: str) -> URLSafeTimedSerializer:
        return signer(self._key, use)


def open_visits(config: Config) -> Visits:
    """Make what signs visits."""
    return Visits(config.ops.users, session_key(config))


def session_key(config: Config) -> bytes:
    """Return the key that all processes of this installation sign with."""
    given = config.ops.session_key
    return given.encode() if given else _kept_key(config)


def signer(key: bytes, use: str) -> URLSafeTimedSerializer:
    """Make what signs for one use; what it signed is of no other."""
    return URLSafeTimedSerializer(key, salt=use, signer_kwargs={"digest_method": hashlib.sha256})


def digest(text: str) -> bytes:
    """Make texts equally long, to compare them in constant time."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _kept_key(config: Config) -> bytes:
    """Return the key beside the journal's file, made at the first start."""
    file = journal_file(config.journal.url)
    path = (file.parent if file else Path("state")) / "ops-session.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # whole or not at all; of two that start at once, one wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    key = path.read_text()
    if len(key) < SHORTEST_KEY:
        raise ConfigError([f"{path} is cut short: delete it, and start again to get a whole one"])
    return key.encode()
