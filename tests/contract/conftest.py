"""Fixtures of several modules here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from execute_batch_scheduler.adapters import ssh
from tests.contract.ssh_client import (
    USERS,
    Agent,
    Client,
    Guarded,
    Known,
    new_key,
)
from tests.services import interactive as interactive_service
from tests.services.interactive import Interactive
from tests.services.sshd import Sshd


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    before = set(ssh._remotes)
    yield Client(tmp_path, monkeypatch)
    for key in ssh._remotes.keys() - before:  # a name may mean another machine in the next test
        ssh._remotes.pop(key).leave()


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path / "known")


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory for sockets, whose names must be short."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


@pytest.fixture
def agent(sockets: Path) -> Iterator[Agent]:
    agent = Agent(sockets)
    yield agent
    agent.stop()


@pytest.fixture(scope="module")
def guarded_daemon() -> Iterator[Interactive]:
    with interactive_service.running() as server:
        yield server


@pytest.fixture
def guarded(guarded_daemon: Interactive, client: Client) -> Guarded:
    for user in USERS:
        client.configure(guarded_daemon.block(user, user))
    return Guarded(guarded_daemon)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of an authority for certificates."""
    return new_key(tmp_path_factory.mktemp("authority") / "ca")
