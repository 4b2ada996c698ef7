"""What many tests share: a real Redis, a real sandbox, and an environment without our variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import database, new_journal_url, postgres, postgres_url
from redis import Redis
from sandbox_builders import Caller

from sandbox.client import SandboxControl
from sandbox.process import RunningSandbox, running_sandbox
from sandbox.server import SandboxServer, serving
from worker.demo.redis_server import redis_server

__all__ = ["database", "new_journal_url", "postgres", "postgres_url"]  # fixtures


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the configuration of the machine it runs on."""
    for name in list(os.environ):
        if name.startswith("RECONCILER"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis"), environ={}) as url:
        yield url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """The URL of a real, empty Redis."""
    with Redis.from_url(_redis_server) as client:
        client.flushall()
    return _redis_server


@pytest.fixture(scope="session")
def _sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(token="sandbox-token-of-tests") as running:
        yield running


@pytest.fixture
def sandbox(_sandbox: RunningSandbox) -> Iterator[RunningSandbox]:
    """A real sandbox over HTTP, as new; a test fails when a client broke one of its rules."""
    _sandbox.control.reset()
    yield _sandbox
    assert _sandbox.control.record().broken == []


@pytest.fixture
def journal_url(tmp_path: Path) -> str:
    """The URL of this test's journal."""
    return f"sqlite:///{tmp_path}/journal.db"


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox of this test's own, served by threads of this process."""
    with serving() as running:
        yield running


@pytest.fixture
def control(server: SandboxServer) -> Iterator[SandboxControl]:
    """The control client of this test's own sandbox."""
    with SandboxControl(server.control_url) as client:
        yield client


@pytest.fixture
def api(server: SandboxServer) -> Iterator[Caller]:
    """A caller of this test's own sandbox, with its token."""
    with Caller(server.base_url, server.token) as caller:
        yield caller
