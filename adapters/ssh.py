"""SSH: connections to other machines, by paramiko or by the ssh program, one for each machine and process."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Optional, Union

from execute_batch_scheduler.adapters.known_hosts import Known
from execute_batch_scheduler.adapters.remote import Remote
from execute_batch_scheduler.adapters.shell import Connection, Stream
from execute_batch_scheduler.adapters.ssh_config import USE_PROGRAM, Address, Configuration, parse_host, parse_url
from execute_batch_scheduler.adapters.ssh_login import Ask, Login
from execute_batch_scheduler.adapters.transport import Refused, TransportError, Unreachable

if TYPE_CHECKING:
    import paramiko

_CONNECT_TIMEOUT = 15.0
_LOGIN_TIMEOUT = 30.0
_ASK_TIMEOUT = 600.0  # somebody is looking for a phone
_OPEN_TIMEOUT = 20.0
_SEND_TIMEOUT = 30.0
_KEEPALIVE = 30
_SILENCE = 30_000  # milliseconds after which what we have sent should have been acknowledged
_WINDOW = 1 << 24  # bytes under way: what paramiko has by default costs half of the speed
_PACKET = 1 << 18
_PIECE = 1 << 20
_HOPS = 8

# Paramiko tells tracebacks of what the user is told in a sentence. Who wants them sets this logger's level.
_LOG = f"{__name__}.paramiko"
logging.getLogger(_LOG).setLevel(logging.CRITICAL)


class _Process(socket.socket):
    """A program that runs here, and our end of its standard streams."""

    def __init__(self, words: Sequence[str], stderr: Optional[IO[bytes]] = None) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            end = theirs.fileno()
            complaints = end if stderr is None else stderr.fileno()
            self._process = subprocess.Popen(words, stdin=end, stdout=end, stderr=complaints, start_new_session=True)
            super().__init__(fileno=ours.detach())

    def lost(self) -> bool:
        """Whether it has ended as ssh does when the connection breaks, and nobody here wanted that."""
        code = self._process.poll()
        return code is not None and (code == 255 or code < 0) and self.fileno() >= 0

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        super().close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(self._process.pid, number)
                    self._process.wait(1)


class _Stream:
    """A stream over a channel of paramiko's, or a program."""

    def __init__(self, end: Union[paramiko.Channel, _Process]) -> None:
        self._end = end

    def send(self, data: bytes) -> None:
        with _broken():
            self._end.settimeout(_SEND_TIMEOUT)  # for each piece: a socket's sendall would take it for all
            sent = 0
            while sent < len(data):
                try:
                    piece = self._end.send(data[sent : sent + _PACKET])
                except socket.timeout:
                    raise ConnectionError(f"nothing is taken any more since {_SEND_TIMEOUT:g} s") from None
                if not piece:
                    raise EOFError
                sent += piece

    def receive(self, timeout: float) -> bytes:
        with _broken():
            self._end.settimeout(max(timeout, 0.001))
            try:
                return bytes(self._end.recv(_PIECE))
            except socket.timeout:
                raise TimeoutError from None

    def close(self) -> None:
        with suppress(Exception):
            self._end.close()


@contextmanager
def _broken() -> Iterator[None]:
    """Paramiko has further errors for a connection that is gone."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise ConnectionError(str(error)) from error


def _reason(error: Exception) -> str:
    return str(error.args[-1]) if error.args else "it closed the connection"


class _Paramiko:
    """A connection of paramiko's, through as many machines as there are in between."""

    def __init__(self, transports: list[paramiko.Transport]) -> None:
        self._transports = transports

    def open(self, command: str) -> Stream:
        import paramiko

        channel = None
        try:
            channel = self._transports[-1].open_session(timeout=_OPEN_TIMEOUT)
            channel.set_combine_stderr(True)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if channel is None and not isinstance(error, paramiko.ChannelException):  # which is the machine's own no
                self.close()
            raise TransportError(f"no further session can be opened: {_reason(error)}") from error
        return _Stream(channel)

    def alive(self) -> bool:
        return all(transport.is_active() for transport in self._transports)

    def close(self) -> None:
        for transport in self._transports:  # the nearest first: what is behind it then waits for nothing
            with suppress(Exception):
                transport.close()


class _Program:
    """What the ssh program gives: each stream is one of it. A ControlMaster, if the user has one, makes that quick."""

    def __init__(self, address: Address) -> None:
        program = shutil.which("ssh")
        if program is None:
            raise Unreachable("the ssh program is to make the connection, and this machine's PATH has none")
        # No terminal and nobody to ask, keys that are known, and nothing else of what the configuration may want.
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ServerAliveInterval=10"]
        options += [f"ConnectTimeout={_CONNECT_TIMEOUT:.0f}"]
        options += ["ClearAllForwardings=yes", "RemoteCommand=none", "PermitLocalCommand=no", "LogLevel=ERROR"]
        self._words = [program, "-T", "-a", "-x", *(f"-o{option}" for option in options), *address.words]
        self._streams: list[_Process] = []
        self._closed = False
        self._lock = threading.Lock()
        self._greet(address)

    def _greet(self, address: Address) -> None:
        """Say no more than what ssh says, if it does not get in."""
        try:
            result = subprocess.run(
                [*self._words, "exit 0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_LOGIN_TIMEOUT,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"ssh {address} gave no answer within {_LOGIN_TIMEOUT:g} s") from None
        if result.returncode == 255:
            said = result.stderr.decode(errors="replace").strip()
            hint = ""
            if "keyboard-interactive" in said or "password" in said:
                hint = "\nIt is not asked for a password or code here: keep a connection open elsewhere (ControlMaster)"
            kind = Refused if re.search("Permission denied|verification failed", said) else Unreachable
            raise kind(f"ssh {address} says: {said or 'nothing'}{hint}")

    def open(self, command: str) -> Stream:
        with self._lock:
            if self._closed:
                raise TransportError("no further session can be opened: the connection was let go")
            try:
                stream = _Process([*self._words, command])
            except OSError as error:
                raise TransportError(f"ssh cannot be run: {error.strerror}") from error
            self._streams = [one for one in self._streams if one.fileno() >= 0] + [stream]
        return _Stream(stream)

    def alive(self) -> bool:
        """Not if one stream is lost: others may be, and have not noticed yet."""
        with self._lock:
            return not self._closed and not any(stream.lost() for stream in self._streams)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for stream in self._streams:
                stream.close()


def connect(address: Address, ask: Optional[Ask] = None) -> Connection:
    """A new connection.

    Parameters
    ----------
    ask
        Asks the user for a password, a passphrase, a code; None asks nothing.

    Raises
    ------
    Unreachable
        Says why, and what to do.
    """
    if address.identity and not Path(address.identity).exists():
        raise Unreachable(f"{address}: there is no key file {address.identity}")
    return _Program(address) if address.program else _Paramiko(_transports(address, ask, _HOPS))


def _transports(
    address: Address, ask: Optional[Ask], hops: int, via: Optional[paramiko.Transport] = None
) -> list[paramiko.Transport]:
    """The connections to the machines in between, each through the one before it, and to the machine itself."""
    configuration = Configuration(address)
    made: list[paramiko.Transport] = []
    try:
        for jump in filter(None, configuration.first("proxyjump").split(",")) if via is None else ():
            if not hops:
                raise Unreachable(f"{address}: its ProxyJump leads through more than {_HOPS} machines")
            try:
                hop = parse_url(jump) if "://" in jump else parse_host(jump)
            except ValueError as error:
                raise Unreachable(f"{address}: its ProxyJump cannot be read: {error}") from None
            made += _transports(hop, ask, hops - 1, made[-1] if made else None)
        return [*made, _transport(configuration, ask, made[-1] if made else via)]
    except BaseException:
        _Paramiko(made).close()
        raise


def _transport(
    configuration: Configuration, ask: Optional[Ask], via: Optional[paramiko.Transport]
) -> paramiko.Transport:
    import paramiko

    known = Known(configuration)
    with tempfile.TemporaryFile() as complaints:
        transport = paramiko.Transport(
            _socket(configuration, via, complaints), default_window_size=_WINDOW, default_max_packet_size=_PACKET
        )
        transport.set_log_channel(_LOG)
        transport.banner_timeout = transport.handshake_timeout = _LOGIN_TIMEOUT
        transport.auth_timeout = _ASK_TIMEOUT if ask else _LOGIN_TIMEOUT
        security = transport.get_security_options()
        # GCM is twice as fast as the others here. Key types that are known come first, as the server picks by that.
        security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
        security.key_types = sorted(security.key_types, key=lambda name: name not in known.types)
        try:
            key = _key_shown(configuration, transport, complaints)
            known.check(key.get_name(), key.asbytes())
            Login(configuration, transport, ask).prove()
            transport.set_keepalive(_KEEPALIVE)
            return transport
        except BaseException:
            transport.close()
            raise


def _key_shown(configuration: Configuration, transport: paramiko.Transport, complaints: IO[bytes]) -> paramiko.PKey:
    """The machine's key. If none comes, why, in a sentence: paramiko speaks of its own workings."""
    import paramiko

    began = time.monotonic()
    try:
        transport.start_client(timeout=_LOGIN_TIMEOUT)
        return transport.get_remote_server_key()
    except (paramiko.SSHException, OSError, EOFError) as error:
        place = f"{configuration.host} port {configuration.port}"
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip()
        if said:
            why = f"its ProxyCommand says: {said[-1000:]}"
        elif time.monotonic() - began >= _LOGIN_TIMEOUT:
            why = f"{place} takes the connection and says nothing within {_LOGIN_TIMEOUT:g} s; is that SSH's port?"
        elif isinstance(error, EOFError) or isinstance(error.__context__, (EOFError, OSError)):
            why = f"{place} closes the connection at once; does it let this machine in?"
        elif not transport.remote_version:
            why = f"what answers on {place} is no SSH server"
        elif isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            why = f"{place} and paramiko have no method in common ({error}); {USE_PROGRAM}"
        else:
            why = f"no SSH connection to {place}: {_reason(error)}"
        raise Unreachable(f"{configuration.address}: {why}") from error


def _socket(configuration: Configuration, via: Optional[paramiko.Transport], complaints: IO[bytes]) -> Any:
    """A byte stream to the machine: by way of another machine, of a command, or straight."""
    import paramiko

    address, host, port = configuration.address, configuration.host, configuration.port
    timeout = float(configuration.first("connecttimeout") or _CONNECT_TIMEOUT)
    command = configuration.first("proxycommand")
    if via is not None:
        try:
            return via.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable(
                f"{address}: {host} port {port} cannot be reached from the machine before it: {_reason(error)}"
            ) from error
    if command:  # which is shell text, in the user's own configuration
        return _Process(["/bin/sh", "-c", f"exec {configuration.expanded(command)}"], complaints)
    try:
        connection = socket.create_connection((host, port), timeout=timeout)
    except (socket.gaierror, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "that cannot be a name"
        raise Unreachable(f"{address}: there is no machine {host!r} ({said}); is the name right?") from error
    except socket.timeout:
        raise Unreachable(
            f"{address}: {host} port {port} gives no answer within {timeout:g} s; is a VPN needed?"
        ) from None
    except OSError as error:
        raise Unreachable(
            f"{address}: {host} port {port}: {error.strerror}; does a machine with SSH answer there?"
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Else what we say to a machine that is gone is said again for a quarter of an hour.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE)
    return connection


# one connection for all


_remotes: dict[tuple[int, str], Remote] = {}
_lock = threading.Lock()


def transport(url: str) -> Remote:
    """The transport to a machine: one for each URL and process. It connects when it is first used.

    Parameters
    ----------
    url
        See `parse_url`.
    """
    address = parse_url(url)
    with _lock:
        key = (os.getpid(), address.url)
        if key not in _remotes:
            _remotes[key] = Remote(str(address), lambda: connect(address))
        return _remotes[key]


def login(url: str, ask: Ask) -> None:
    """Connect to a machine, asking the user for what it wants; what uses its transport later uses this connection."""
    transport(url).use(connect(parse_url(url), ask))


def logout(url: str) -> bool:
    """Let the connection to a machine go, until somebody asks something of it; whether there was one."""
    return transport(url).leave()
