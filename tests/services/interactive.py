"""A login that asks: an SSH server on this machine for users with a password, a one-time code, and a key with a code.

Commands run for real, by bash, with pipes and no terminal. As with a real code generator no code is good twice.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, Union

import asyncssh

from tests.services.background import Background
from tests.services.sshd import end_processes

PASSWORD_USER = "password"
"""Gives a password, as SSH's method of that name."""
INTERACTIVE_USER = "interactive"
"""Answers two questions, one after the other: for the password and for the code."""
TWO_FACTOR_USER = "twofactor"
"""Has a key, and is then asked for the code."""

PASSWORD = "open sesame"
MOST_REFUSALS = 6  # within a connection, as OpenSSH has it; some clients give the same wrong answer for ever
PASSWORD_PROMPT = "Password: "
CODE_PROMPT = "One-time code: "

_Challenge = Union[bool, tuple[str, str, str, list[tuple[str, bool]]]]


class Interactive:
    """A running server. `logins` and `refusals` count by user; `asked` has all prompts that were shown."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.host = "127.0.0.1"
        self.port = 0
        self.home = directory / "home"
        self.key = directory / "id_ed25519"
        self.known_hosts = directory / "known_hosts"
        self.logins: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.commands = 0
        self.asked: list[str] = []
        self._next = 271828
        self._lock = threading.Lock()
        self._background = Background("interactive")
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._tasks: set[Optional[asyncio.Task[None]]] = set()

    @property
    def code(self) -> str:
        """The code that is good now; the next login needs another one."""
        return f"{self._next:06d}"

    @property
    def known_hosts_line(self) -> str:
        """The server's key under its address and its name."""
        return f"[{self.host}]:{self.port},{self.name} {self._public}"

    def block(self, user: str, name: Optional[str] = None) -> str:
        """What an ssh_config says of this server and this user."""
        identity = f'"{self.key}"' if user == TWO_FACTOR_USER else "none"
        return (
            f"Host {name or self.name}\n"
            f"    HostName {self.host}\n"
            f"    Port {self.port}\n"
            f"    User {user}\n"
            f"    IdentityFile {identity}\n"
            f"    IdentitiesOnly yes\n"
            f'    UserKnownHostsFile "{self.known_hosts}"\n'
            f"    GlobalKnownHostsFile /dev/null\n"
            f"    StrictHostKeyChecking yes\n"
        )

    def drop(self) -> None:
        """Break all connections there are now."""
        self._background.run(self._drop())

    def start(self) -> None:
        """Listen, with new keys."""
        self.home.mkdir(mode=0o700)
        client, host = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        client.write_private_key(self.key)
        self.key.chmod(0o600)
        self._client_key = client.convert_to_public()
        self._public = host.export_public_key().decode().strip()
        self._background.run(self._listen(host))
        self.known_hosts.write_text(self.known_hosts_line + "\n")

    def stop(self) -> None:
        """End the server, its connections and what they have started."""
        self._background.run(self._close())
        self._background.stop()
        end_processes(self.home)

    def spend(self, code: str) -> bool:
        """Whether the code is good; it is not any more."""
        with self._lock:
            good = code == self.code
            self._next += good
            return good

    async def _listen(self, key: asyncssh.SSHKey) -> None:
        self._acceptor = await asyncssh.listen(
            self.host,
            0,
            server_factory=lambda: _Login(self),
            server_host_keys=[key],
            process_factory=self._session,
            encoding=None,
            line_editor=False,
        )
        self.port = self._acceptor.get_port()

    async def _drop(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    async def _close(self) -> None:
        self._acceptor.close()
        await self._drop()
        await self._acceptor.wait_closed()

    async def _session(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self.commands += 1
        self._tasks.add(asyncio.current_task())  # of a connection that breaks nobody else holds it, and it may vanish
        user = pwd.getpwuid(os.geteuid()).pw_name
        out, out_end = await _pipe()
        err, err_end = await _pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                "/bin/bash",
                *(["-c", process.command] if process.command is not None else []),
                stdin=asyncio.subprocess.PIPE,
                stdout=out_end,
                stderr=err_end,
                cwd=self.home,
                env={
                    "HOME": str(self.home),
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "SHELL": "/bin/bash",
                    "USER": user,
                    "LOGNAME": user,
                },
                start_new_session=True,
            )
        finally:
            os.close(out_end)
            os.close(err_end)
        feeder = asyncio.ensure_future(_feed(process, child))
        try:
            await asyncio.gather(_show(out, process.stdout), _show(err, process.stderr))
            code = await child.wait()
        finally:
            feeder.cancel()
            assert child.stdin
            child.stdin.close()
            if child.returncode is None:  # the server ends
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if code < 0:
            process.exit_with_signal(signal.Signals(-code).name[3:])
        else:
            process.exit(code)


async def _pipe() -> tuple[tuple[asyncio.StreamReader, asyncio.BaseTransport], int]:
    """A pipe that a command writes to. Closed here, it gives the writer SIGPIPE, as a real server does."""
    mine, theirs = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(mine, "rb", buffering=0)
    )
    return (reader, transport), theirs


async def _show(source: tuple[asyncio.StreamReader, asyncio.BaseTransport], target: asyncssh.SSHWriter[bytes]) -> None:
    reader, transport = source
    try:
        while data := await reader.read(1 << 16):
            target.write(data)
            await target.drain()
    except (OSError, asyncssh.Error):
        pass  # the connection is gone
    finally:
        transport.close()


async def _feed(process: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process) -> None:
    assert child.stdin
    while True:
        try:
            data = await process.stdin.read(1 << 16)
            child.stdin.write(data)
            await child.stdin.drain()
        except asyncssh.SignalReceived as asked:
            if child.returncode is None:
                os.killpg(child.pid, signal.Signals[f"SIG{asked.signal}"])
            continue
        except (OSError, asyncssh.Error):
            data = b""  # the command reads no more, or the connection is gone
        if not data:
            child.stdin.close()
            return


class _Login(asyncssh.SSHServer):
    """One connection's way through the login."""

    def __init__(self, server: Interactive) -> None:
        self._server = server
        self._user = ""
        self._has_key = False
        self._has_password = False
        self._refusals = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server._connections.add(conn)
        self._connection = conn
        succeed, fail = conn.send_userauth_success, conn.send_userauth_failure

        async def success() -> None:
            """Say after the key that it was right and is not enough; asyncssh itself knows only one factor."""
            if self._user == TWO_FACTOR_USER and not self._has_key:
                self._has_key = True
                conn.send_userauth_failure(True)
            else:
                await succeed()

        def failure(partial_success: bool) -> None:
            """Let the client ask for the service again, as OpenSSH does: paramiko asks before each try."""
            fail(partial_success)
            conn._next_service = b"ssh-userauth"

        conn.send_userauth_success = success  # type: ignore[method-assign]
        conn.send_userauth_failure = failure  # type: ignore[method-assign]

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._server._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        self._user = username
        return True

    def auth_completed(self) -> None:
        self._server.logins[self._user] += 1

    def public_key_auth_supported(self) -> bool:
        return self._user == TWO_FACTOR_USER and not self._has_key

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self._judged(key == self._server._client_key)

    def password_auth_supported(self) -> bool:
        return self._user in (PASSWORD_USER, INTERACTIVE_USER)  # by password alone the latter is not let in

    def validate_password(self, username: str, password: str) -> bool:
        return self._judged(username == PASSWORD_USER and password == PASSWORD)

    def kbdint_auth_supported(self) -> bool:
        return self._user == INTERACTIVE_USER or (self._user == TWO_FACTOR_USER and self._has_key)

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> _Challenge:
        self._has_password = self._user == TWO_FACTOR_USER
        return self._ask(CODE_PROMPT if self._has_password else PASSWORD_PROMPT)

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> _Challenge:
        if self._has_password:
            return self._judged(len(responses) == 1 and self._server.spend(responses[0]))
        if not self._judged(list(responses) == [PASSWORD]):
            return False
        self._has_password = True
        return self._ask(CODE_PROMPT)

    def _ask(self, prompt: str) -> _Challenge:
        self._server.asked.append(prompt)
        return "", "", "", [(prompt, False)]

    def _judged(self, good: bool) -> bool:
        if not good:
            self._server.refusals[self._user] += 1
            self._refusals += 1
        if self._refusals >= MOST_REFUSALS:
            raise asyncssh.ProtocolError("Too many authentication failures")
        return good


@contextmanager
def running(name: str = "aguardedmachine") -> Iterator[Interactive]:
    """A server while the block runs."""
    directory = Path(tempfile.mkdtemp(prefix="interactive-"))
    server = Interactive(name, directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
