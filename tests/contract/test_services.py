"""The services that other tests rely on do what they say."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import asyncssh
import paramiko
import pytest

from tests.contract.behaviour import until
from tests.services import interactive as interactive_service, sshd as sshd_service
from tests.services.interactive import (
    CODE_PROMPT,
    INTERACTIVE_USER,
    PASSWORD,
    PASSWORD_PROMPT,
    PASSWORD_USER,
    TWO_FACTOR_USER,
    Interactive,
)
from tests.services.proxy import Counts, Proxy
from tests.services.sshd import Sshd


def ssh(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh", *words], input=data, capture_output=True, timeout=60)


class TestSshd:
    def test_a_command_runs_in_a_private_home(self, sshd: Sshd) -> None:
        logins, sessions = sshd.logins, sshd.sessions
        result = ssh(sshd.name, 'echo "$HOME"; cat; exit 3', data=b"a\0\xff")
        assert (result.returncode, result.stdout) == (3, f"{sshd.home}\n".encode() + b"a\0\xff")
        assert (sshd.logins, sshd.sessions) == (logins + 1, sessions + 1)

    def test_only_the_private_configuration_counts(self, sshd: Sshd) -> None:
        lines = ssh("-G", sshd.name).stdout.decode().splitlines()
        assert {f"port {sshd.port}", f"user {sshd.user}", f"userknownhostsfile {sshd.known_hosts}"} <= set(lines)
        assert [line for line in lines if line.startswith("identityfile ")] == [f"identityfile {sshd.key}"]

    def test_its_keys_are_known(self, sshd: Sshd) -> None:
        for name in (f"[{sshd.host}]:{sshd.port}", sshd.name):
            found = subprocess.run(["ssh-keygen", "-F", name, "-f", str(sshd.known_hosts)], capture_output=True)
            assert all(key in found.stdout.decode() for key in sshd.host_keys())
        assert sshd.name not in sshd.known_hosts.read_text()
        assert sshd.fingerprint("rsa").startswith("SHA256:")

    def test_another_shell_options_and_variables(self, own_sshd: Sshd) -> None:
        assert ssh("another", 'echo "$0 $EXAMPLE"').stdout == b'/bin/sh a "quoted" $word\n'
        own_sshd.add_host(f"Host again\n    HostName {own_sshd.host}\n    Port {own_sshd.port}")
        own_sshd.add_host(f"Host *\n    UserKnownHostsFile {own_sshd.known_hosts}\n    IdentityFile {own_sshd.key}")
        assert ssh("again", "true").returncode == 0

    def test_it_stops_and_comes_back(self, own_sshd: Sshd) -> None:
        with subprocess.Popen(["ssh", "another", "echo ready; sleep 1000"], stdout=-1, stderr=-3) as waiting:
            assert waiting.stdout
            assert waiting.stdout.readline() == b"ready\n"
            own_sshd.stop()
            assert waiting.wait(30) == 255
        assert ssh("another", "true").returncode == 255
        own_sshd.start()
        assert ssh("another", "true").returncode == 0

    def test_nothing_is_left(self) -> None:
        with sshd_service.running() as sshd:
            command = [str(sshd.directory / "bin" / "ssh"), sshd.name]
            detached = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
            pid = int(subprocess.run([*command, detached], stdout=-1).stdout)
            assert runs(pid)
        assert not sshd.directory.exists()
        until(lambda: not runs(pid))

    def test_a_mistake_in_its_configuration_is_told(self) -> None:
        with pytest.raises(RuntimeError, match="Nonsense"), sshd_service.running(options=["Nonsense yes"]):
            pass


def runs(pid: int) -> bool:
    try:
        return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture
def own_sshd(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A server beside the one that other tests share."""
    with sshd_service.running(
        name="another",
        shell="/bin/sh",
        environment={"EXAMPLE": 'a "quoted" $word'},
        options=["Banner none", "Match User nobody", "    ForceCommand false"],
    ) as own:
        monkeypatch.setenv("PATH", own.environment["PATH"])
        yield own


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
        except ConnectionError:
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A line to a server that sends back what it gets, and ends when its client does."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with Proxy("127.0.0.1", server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture
def line(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as line:
        yield line


def ask(line: socket.socket, data: bytes) -> bytes:
    """What comes back, up to the size of what was sent."""
    line.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := line.recv(1 << 16)):
        answer += more
    return answer


class TestProxy:
    def test_it_passes_on_and_counts(self, proxy: Proxy, line: socket.socket) -> None:
        assert [ask(line, data) for data in (b"one", b"three")] == [b"one", b"three"]
        assert proxy.counts == Counts(connections=1, up=8, down=8, turns=2)
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b""
        until(lambda: proxy.open == 0)

    def test_a_delay_costs_time_per_turn_and_not_per_byte(self, proxy: Proxy, line: socket.socket) -> None:
        big = os.urandom(1 << 20)
        proxy.delay = 0.1
        start = time.monotonic()
        sender = threading.Thread(target=line.sendall, args=(big,))
        sender.start()
        answer = b""
        while len(answer) < len(big):
            answer += line.recv(1 << 16)
        sender.join()
        assert answer == big
        assert 0.2 <= time.monotonic() - start < 2  # one after the other, its 16 pieces of 64 KiB would take 3.2 s

    def test_it_cuts_what_is_open(self, proxy: Proxy, line: socket.socket) -> None:
        ask(line, b"one")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            line.recv(1)
        with socket.create_connection(("127.0.0.1", proxy.port)) as again:
            assert ask(again, b"two") == b"two"

    @pytest.mark.parametrize("once", [True, False])
    def test_it_cuts_after_so_many_bytes(self, proxy: Proxy, once: bool) -> None:
        proxy.cut_after(5, once)
        with socket.create_connection(("127.0.0.1", proxy.port)) as line:
            assert ask(line, b"one") == b"one"
            line.sendall(b"three")
            assert line.recv(10) == b"th"
            with pytest.raises(ConnectionResetError):
                line.recv(1)
        with socket.create_connection(("127.0.0.1", proxy.port)) as line:
            line.sendall(b"thirteen")
            assert line.recv(10) == (b"thirteen" if once else b"thirt")

    def test_it_holds_back(self, proxy: Proxy, line: socket.socket) -> None:
        ask(line, b"one")
        proxy.stall()
        line.sendall(b"two")
        line.settimeout(0.1)
        with pytest.raises(socket.timeout):
            line.recv(1)
        line.settimeout(30)
        proxy.resume()
        assert line.recv(10) == b"two"

    def test_it_refuses(self, proxy: Proxy, line: socket.socket) -> None:
        ask(line, b"one")
        proxy.refuse()
        with socket.create_connection(("127.0.0.1", proxy.port)) as refused:
            assert refused.recv(1) == b""
        assert ask(line, b"two") == b"two"
        proxy.refuse(False)
        with socket.create_connection(("127.0.0.1", proxy.port)) as again:
            assert ask(again, b"three") == b"three"
        assert proxy.connections == 2


@pytest.fixture
def guarded() -> Iterator[Interactive]:
    with interactive_service.running() as server:
        yield server


def login(server: Interactive, user: str, answers: dict[str, str], password: Optional[str] = None) -> bytes:
    """What a command prints that is run after the login."""

    class Client(asyncssh.SSHClient):
        def kbdint_auth_requested(self) -> Optional[str]:
            return "" if answers else None

        def kbdint_challenge_received(
            self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
        ) -> list[str]:
            return [answers.pop(prompt) for prompt, _ in prompts]

    async def go() -> bytes:
        connection = await asyncssh.connect(
            server.host,
            server.port,
            username=user,
            password=password,
            client_keys=[str(server.key)] if user == TWO_FACTOR_USER else None,
            known_hosts=str(server.known_hosts),
            agent_path=None,
            config=None,
            client_factory=Client,
        )
        async with connection:
            result = await connection.run("cat; echo $HOME >&2; kill -9 $$", input=b"a\0\xff", encoding=None)
        assert result.stderr == f"{server.home}\n".encode()
        assert result.returncode == -signal.SIGKILL
        assert isinstance(result.stdout, bytes)
        return result.stdout

    return asyncio.run(go())


class TestInteractive:
    def test_a_password(self, guarded: Interactive) -> None:
        assert login(guarded, PASSWORD_USER, {}, PASSWORD) == b"a\0\xff"
        with pytest.raises(asyncssh.PermissionDenied):
            login(guarded, PASSWORD_USER, {}, "wrong")
        until(lambda: (guarded.logins, guarded.refusals[PASSWORD_USER]) == ({PASSWORD_USER: 1}, 1))

    def test_a_password_and_a_code(self, guarded: Interactive) -> None:
        used = guarded.code
        assert login(guarded, INTERACTIVE_USER, {PASSWORD_PROMPT: PASSWORD, CODE_PROMPT: used}) == b"a\0\xff"
        assert guarded.asked == [PASSWORD_PROMPT, CODE_PROMPT]
        with pytest.raises((asyncssh.Error, KeyError)):
            login(guarded, INTERACTIVE_USER, {PASSWORD_PROMPT: PASSWORD, CODE_PROMPT: used})
        until(lambda: (guarded.logins, guarded.refusals) == ({INTERACTIVE_USER: 1}, {INTERACTIVE_USER: 1}))

    def test_a_key_and_a_code(self, guarded: Interactive) -> None:
        assert login(guarded, TWO_FACTOR_USER, {CODE_PROMPT: guarded.code}) == b"a\0\xff"
        with pytest.raises((asyncssh.Error, KeyError)):
            login(guarded, TWO_FACTOR_USER, {CODE_PROMPT: "wrong"})
        assert guarded.asked[0] == CODE_PROMPT
        until(lambda: (guarded.logins, guarded.refusals) == ({TWO_FACTOR_USER: 1}, {TWO_FACTOR_USER: 1}))

    def test_paramiko_is_asked(self, guarded: Interactive) -> None:
        """It asks for the service anew before each factor."""
        with paramiko.Transport((guarded.host, guarded.port)) as transport:
            transport.start_client(timeout=30)
            key = paramiko.Ed25519Key.from_private_key_file(str(guarded.key))
            assert transport.auth_publickey(TWO_FACTOR_USER, key) == ["keyboard-interactive"]
            with pytest.raises(paramiko.AuthenticationException):
                transport.auth_interactive(TWO_FACTOR_USER, lambda *asked: ["wrong"])
            assert not transport.auth_interactive(TWO_FACTOR_USER, lambda *asked: [guarded.code])
            assert transport.is_authenticated()
        until(lambda: (guarded.logins, guarded.asked) == ({TWO_FACTOR_USER: 1}, [CODE_PROMPT] * 2))

    @pytest.mark.parametrize("user", [INTERACTIVE_USER, TWO_FACTOR_USER])
    def test_openssh_is_asked(
        self, user: str, guarded: Interactive, own_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_sshd.add_host(guarded.block(user))
        program = tmp_path / "answer"
        program.write_text(
            f"#!/bin/sh\ncase $1 in *{PASSWORD_PROMPT.split()[0]}*) echo {PASSWORD};; *) echo {guarded.code};; esac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("SSH_ASKPASS", str(program))
        monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
        result = ssh(guarded.name, "cat; exit 3", data=b"a\0\xff")
        assert (result.returncode, result.stdout) == (3, b"a\0\xff")
        until(lambda: guarded.logins == {user: 1})
