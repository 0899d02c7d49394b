"""The user's side of a connection, for tests: a home, keys, a configuration."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

import pytest
from execute_batch_scheduler.adapters.ssh_config import parse_url
from execute_batch_scheduler.adapters.ssh_login import Ask
from execute_batch_scheduler.adapters.transport import Unreachable

from execute_batch_scheduler.adapters import remote, ssh
from tests.contract.behaviour import until
from tests.services.interactive import PASSWORD, Interactive
from tests.services.sshd import Sshd

SSH = shutil.which("ssh") or ""


def keygen(*words: object) -> str:
    return subprocess.run(
        ["ssh-keygen", *map(str, words)], stdin=subprocess.DEVNULL, check=True, capture_output=True, text=True
    ).stdout


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "", form: str = "RFC4716") -> Path:
    """A private key; its public one is beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = ["-b", 2048] if kind == "rsa" else []
    keygen("-q", "-t", kind, *bits, "-N", passphrase, "-C", "", "-m", form, "-f", path)
    return path


def admit(server: Sshd, key: Path) -> None:
    with (server.directory / "authorized_keys").open("a") as file:
        file.write(key.with_name(f"{key.name}.pub").read_text())


class Client:
    """The user's side: a home, a configuration, and a program ssh that takes that one for the user's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "user"
        self.config = self.home / ".ssh" / "config"
        self.config.parent.mkdir(parents=True)
        program = folder / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {SSH} -F {self.config} "$@"\n')
        program.chmod(0o755)
        self.config.write_text("")
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def configure(self, text: str) -> None:
        with self.config.open("a") as file:
            file.write(f"{text}\n")

    def host(self, server: Sshd, name: str = "there", **options: object) -> str:
        """Write a block for a server; what is None is left out. The URL."""
        values: dict[str, object] = {
            "HostName": server.host,
            "Port": server.port,
            "User": server.user,
            "IdentityFile": server.key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": server.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            **options,
        }
        lines = [f"  {option} {value}" for option, value in values.items() if value is not None]
        self.configure("\n".join([f"Host {name}", *lines]))
        return f"ssh://{name}"


def says(url: str, ask: Optional[Ask] = None) -> str:
    """What a command over there prints, by a connection of its own."""
    connection = ssh.connect(parse_url(url), ask)
    try:
        stream = connection.open('echo "$USER" is in')
        text = b""
        while piece := stream.receive(20):
            text += piece
        return text.decode()
    finally:
        connection.close()


def refusal(url: str, ask: Optional[Ask] = None) -> str:
    """Why there is no connection."""
    with pytest.raises(Unreachable) as caught:
        says(url, ask)
    text = str(caught.value)
    for word in ("Traceback", "Error", "Exception", "paramiko.", "None"):
        assert word not in text
    return text


class Agent:
    """A private ssh-agent, whose keys are added without anybody being asked."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder / "agent")
        self.pass_file = folder / "askpass"
        self._process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", self.place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: os.path.exists(self.place), 10)
        except BaseException:
            self.stop()
            raise

    def add(self, key: Path, passphrase: str = "", *options: str) -> None:
        self.pass_file.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
        self.pass_file.chmod(0o700)
        environment = {**os.environ, "SSH_AUTH_SOCK": self.place, "SSH_ASKPASS": str(self.pass_file)}
        subprocess.run(
            ["ssh-add", "-q", *options, str(key)],
            env={**environment, "SSH_ASKPASS_REQUIRE": "force"},
            stdin=subprocess.DEVNULL,
            check=True,
            capture_output=True,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Known:
    """A file of known hosts, which nobody but the test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, *lines: str) -> None:
        self.path.write_text("".join(f"{line}\n" for line in lines))

    def hash(self) -> None:
        keygen("-q", "-H", "-f", self.path)
        Path(f"{self.path}.old").unlink()


def commands(text: str) -> list[str]:
    """The command lines that a message gives."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


class Guarded:
    def __init__(self, server: Interactive) -> None:
        self.server = server
        self.prompts: list[str] = []
        self.answers: dict[str, str] = {}
        self.before = dict(server.logins)

    def ask(self, prompt: str, echo: bool) -> str:
        assert threading.current_thread() is threading.main_thread()  # it may talk to the user only from there
        assert not echo
        self.prompts.append(prompt)
        for word, answer in self.answers.items():
            if word in prompt:
                return answer
        return self.server.code if "code" in prompt else PASSWORD

    def logins(self, user: str) -> int:
        return self.server.logins[user] - self.before.get(user, 0)


USERS = {
    "password": ["(password@password) Password: "],
    "interactive": ["(interactive@interactive) Password: ", "(interactive@interactive) One-time code: "],
    "twofactor": ["(twofactor@twofactor) One-time code: "],
}


@contextmanager
def speaking(first: bytes, then: Callable[[socket.socket], Any] = lambda _: None) -> Iterator[int]:
    """A server that says so much; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(ConnectionError):
            connection.sendall(first)
            then(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def noticed(there: remote.Remote) -> None:
    """Wait until the end of a connection has come to be known here."""
    until(lambda: there._connection is None or not there._connection.alive(), 20)
