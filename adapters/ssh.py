"""SSH: which machine is meant, who it is, who we are; and connections to it, by paramiko or by the ssh program.

What the user's own ssh would do is asked of that program (``ssh -G``), so that configuration counts here as there:
https://man.openbsd.org/ssh_config
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import re
import select
import shlex
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from execute_batch_scheduler.adapters.remote import Connection, Remote, Stream
from execute_batch_scheduler.adapters.transport import TransportError, Unreachable

if TYPE_CHECKING:
    import paramiko

Ask = Callable[[str, bool], str]
"""Asks the user something, and tells whether what is typed may be shown."""

_HOST = re.compile(
    r"(?:(?P<user>[^\s:/@-][^\s:/@]*)@)?(?P<host>\[[\w.:%-]+\]|\w[\w.-]*)(?::(?P<port>\d{1,5}))?", re.ASCII
)
_CONNECT_TIMEOUT = 15.0
_LOGIN_TIMEOUT = 30.0
_OPEN_TIMEOUT = 20.0
_KEEPALIVE = 30
_WINDOW = 1 << 24  # bytes under way: what paramiko has by default costs half of the speed
_PACKET = 1 << 18
_HOPS = 8


@dataclass(frozen=True)
class Address:
    """A machine as the user names it.

    Attributes
    ----------
    host
        A name or number, or a name of the user's ssh configuration.
    user, port, identity
        Login name, port, private key file; None leaves them to the configuration.
    program
        Whether the ssh program makes the connection: it can more than paramiko, and shares a ControlMaster.
    """

    host: str
    user: Optional[str] = None
    port: Optional[int] = None
    identity: Optional[str] = None
    program: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    @property
    def url(self) -> str:
        """As PSI/J's executors take it."""
        more = {"identity": self.identity, "client": "program" if self.program else None}
        query = urlencode({name: value for name, value in more.items() if value}, quote_via=quote)
        return f"ssh://{self}" + (f"?{query}" if query else "")

    @property
    def words(self) -> list[str]:
        """As the ssh program takes it."""
        options = {"-l": self.user, "-p": self.port, "-i": self.identity}
        return [*(str(word) for pair in options.items() if pair[1] for word in pair), "--", self.host]


def parse_host(text: str) -> Address:
    """``[user@]host[:port]``; ValueError for anything else, above all for what a command might take as an option."""
    match = _HOST.fullmatch(text)
    if not match or int(match["port"] or 1) not in range(1, 65536):
        raise ValueError(f"{text!r} is no host; say machine, user@machine or user@machine:2222")
    host = match["host"].strip("[]")
    return Address(host, match["user"], int(match["port"]) if match["port"] else None)


def parse_url(url: str) -> Address:
    """``ssh://[user@]host[:port][?identity=FILE&client=program]``; ValueError for anything else."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    client = query.pop("client", "paramiko")
    identity = query.pop("identity", None)
    if parts.scheme != "ssh" or parts.path not in ("", "/") or query or client not in ("paramiko", "program"):
        raise ValueError(f"{url!r} is no such URL; say ssh://machine or ssh://user@machine:2222")
    return replace(parse_host(parts.netloc), identity=identity, program=client == "program")


# what the user's configuration says


Options = dict[str, list[str]]


def configuration(address: Address) -> Options:
    """What the user's ssh configuration says of a machine, by lower-case option."""
    program = shutil.which("ssh")
    if program is None:
        return _by_paramiko(address)
    try:
        result = subprocess.run(
            [program, "-G", *address.words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"ssh -G {address.host} gave no answer within 20 s: see the Match lines of ~/.ssh/config"
        ) from None
    if result.returncode != 0:
        raise Unreachable(f"ssh cannot read its configuration for {address}: {result.stderr.strip()}")
    options: Options = {}
    for line in result.stdout.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name.lower(), []).append(value)
    return options


def _by_paramiko(address: Address) -> Options:
    import paramiko

    path = Path("~/.ssh/config").expanduser()
    config = paramiko.SSHConfig.from_path(str(path)) if path.exists() else paramiko.SSHConfig()
    found = config.lookup(address.host)
    options: Options = {name: [value] if isinstance(value, str) else list(value) for name, value in found.items()}
    said = {"user": address.user, "port": address.port, "identityfile": address.identity}
    options.update({name: [str(value)] for name, value in said.items() if value})
    return options


def _first(options: Options, name: str, default: str = "") -> str:
    value = (options.get(name) or [default])[0]
    return "" if value.lower() == "none" else value


# who the machine is


def known_keys(text: str, name: str) -> list[tuple[str, str, bytes]]:
    """The keys that a known_hosts file has for a name: marker or ``""``, type, key. Hashed names and patterns count."""
    found = []
    for line in text.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or not _is_for(words[0], name):
            continue
        try:
            found.append((marker, words[1], base64.b64decode(words[2], validate=True)))
        except ValueError:
            continue  # damaged: it vouches for nobody
    return found


def _is_for(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns.split("|")[2:4])
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    name, good = name.lower(), False
    for pattern in patterns.lower().split(","):
        plain = pattern.lstrip("!").replace("[", "[[]")  # for fnmatch a bracket begins a set
        if fnmatch.fnmatchcase(name, plain):
            if pattern.startswith("!"):
                return False
            good = True
    return good


def fingerprint(key: bytes) -> str:
    """As ssh-keygen -l tells it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _files(options: Options, names: Sequence[str], default: str) -> list[Path]:
    words = [word for name in names for word in shlex.split(_first(options, name, default if name == names[0] else ""))]
    return [Path(word).expanduser() for word in words]


class _Known:
    """The keys that are known for one machine."""

    def __init__(self, address: Address, options: Options) -> None:
        host = _first(options, "hostkeyalias") or _first(options, "hostname", address.host)
        port = _first(options, "port", "22")
        self.address = address
        self.name = host if port == "22" or _first(options, "hostkeyalias") else f"[{host}]:{port}"
        self.files = _files(options, ("userknownhostsfile", "globalknownhostsfile"), "~/.ssh/known_hosts")
        self.keys = [key for file in self.files if (text := _text(file)) for key in known_keys(text, self.name)]

    @property
    def types(self) -> list[str]:
        """Types of keys that are known, as a server is to be asked for them."""
        types = [type_ for marker, type_, _ in self.keys if not marker]
        return [
            name for type_ in types for name in (["rsa-sha2-512", "rsa-sha2-256"] if type_ == "ssh-rsa" else [type_])
        ]

    def check(self, type_: str, key: bytes) -> None:
        """Unreachable if the machine is not who it should be."""
        if any(marker == "@revoked" and known == key for marker, _, known in self.keys):
            raise Unreachable(f"{self.address}: its key {fingerprint(key)} is revoked; ask the site's administrators")
        if any(not marker and known == key for marker, _, known in self.keys):
            return
        file = self.files[0] if self.files else Path("~/.ssh/known_hosts").expanduser()
        line = f"{self.name} {type_} {base64.b64encode(key).decode()}"
        add = f"echo {shlex.quote(line)} >> {shlex.quote(str(file))}"
        what = f"it shows a key of type {type_} with the fingerprint {fingerprint(key)}"
        if any(not marker and known_type == type_ for marker, known_type, _ in self.keys):
            raise Unreachable(
                f"the key of {self.address} HAS CHANGED: {what}, and known is another one. Somebody may pose as that "
                "machine. If the site says that its key was changed:\n"
                f"  ssh-keygen -R {shlex.quote(self.name)} -f {shlex.quote(str(file))}\n  {add}"
            )
        raise Unreachable(
            f"{self.address} is not known here: {what}. If that is what the site publishes, this adds it:\n  {add}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# who we are


class _Identity:
    """Tries what we have to prove who we are, and remembers what came of it, for the message."""

    def __init__(self, address: Address, options: Options, ask: Optional[Ask]) -> None:
        self.address = address
        self.options = options
        self.user = _first(options, "user", address.user or "") or os.environ.get("USER", "")
        self.ask = ask
        self.tried: list[str] = []

    def prove(self, transport: paramiko.Transport) -> None:
        """Log in; Unreachable if we are not let in."""
        import paramiko

        allowed: list[str] = ["publickey"]
        try:
            transport.auth_none(self.user)
            return
        except paramiko.BadAuthenticationType as error:
            allowed = error.allowed_types
        except paramiko.SSHException:
            pass
        if "publickey" in allowed:
            for name, key in self._keys():
                try:
                    allowed = transport.auth_publickey(self.user, key)
                except paramiko.BadAuthenticationType as error:
                    allowed = error.allowed_types
                    break
                except paramiko.SSHException as error:
                    self.tried.append(f"{name}: {'refused' if transport.is_active() else error}")
                    if not transport.is_active():
                        break
                    continue
                if not allowed:
                    return
                self.tried.append(f"{name}: accepted, but {' or '.join(allowed)} is wanted too")
                break
        if self.ask and transport.is_active():
            allowed = self._answer(transport, allowed, self.ask)
            if not allowed:
                return
        raise Unreachable(self._refusal(allowed))

    def _answer(self, transport: paramiko.Transport, allowed: list[str], ask: Ask) -> list[str]:
        """Log in by what the user types."""
        import paramiko

        def answer(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            head = "\n".join(filter(None, (title.strip(), instructions.strip())))
            return [ask(f"{head}\n{prompt}" if head else prompt, echo) for prompt, echo in prompts]

        for method in ("keyboard-interactive", "password"):
            if method not in allowed:
                continue
            try:
                if method == "password":
                    return transport.auth_password(
                        self.user, ask(f"Password of {self.address}: ", False), fallback=False
                    )
                return transport.auth_interactive(self.user, answer)
            except paramiko.SSHException:
                self.tried.append(f"{method}: refused")
                if not transport.is_active():
                    break
        return allowed

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Keys of the agent, then those of files."""
        only = self._wanted() if _first(self.options, "identitiesonly", "no").lower() == "yes" else None
        yield from self._agent_keys(only)
        for word in self.options.get("identityfile") or ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"]:
            path = Path(self._expanded(word))
            if path.exists():
                key = self._key(path)
                if key is not None:
                    yield str(path), key
            elif self.address.identity:
                self.tried.append(f"{path}: there is no such file")

    def _agent_keys(self, only: Optional[set[bytes]]) -> Iterator[tuple[str, paramiko.PKey]]:
        import paramiko
        from paramiko.agent import AgentSSH

        place = _first(self.options, "identityagent", "SSH_AUTH_SOCK")
        place = os.environ.get("SSH_AUTH_SOCK", "") if place == "SSH_AUTH_SOCK" else self._expanded(place)
        if not place:
            return
        agent = AgentSSH()
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(5)
            connection.connect(place)
            agent._connect(connection)  # type: ignore[no-untyped-call]
        except (OSError, paramiko.SSHException) as error:
            self.tried.append(f"agent at {place}: {error}")
            return
        keys = [key for key in agent.get_keys() if only is None or key.asbytes() in only]
        for key in keys:
            yield f"agent's key {key.get_name()} {fingerprint(key.asbytes())}", key

    def _wanted(self) -> set[bytes]:
        """Public keys of the identity files: of an agent's keys these alone may be used."""
        texts = [_text(Path(self._expanded(word) + ".pub")).split() for word in self.options.get("identityfile", [])]
        return {base64.b64decode(words[1]) for words in texts if len(words) > 1}

    def _key(self, path: Path) -> Optional[paramiko.PKey]:
        from paramiko import PasswordRequiredException
        from paramiko.pkey import PKey, UnknownKeyType

        try:
            status = path.stat()
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and status.st_uid == os.getuid():
                mode = stat.S_IMODE(status.st_mode)
                self.tried.append(f"{path}: not used, as others can read it (mode {mode:04o}): chmod 600 {path}")
                return None
            try:
                return PKey.from_path(str(path))
            except (TypeError, PasswordRequiredException):
                if self.ask is None:
                    self.tried.append(f"{path}: has a passphrase, and no agent holds it: ssh-add {path}")
                    return None
                return PKey.from_path(str(path), self.ask(f"Passphrase of {path}: ", False).encode())  # type: ignore[arg-type]
        except (OSError, ValueError, UnknownKeyType) as error:
            self.tried.append(f"{path}: {error or type(error).__name__}")
            return None

    def _expanded(self, word: str) -> str:
        tokens = {
            "%%": "%",
            "%d": str(Path.home()),
            "%h": _first(self.options, "hostname"),
            "%r": self.user,
            "%u": os.environ.get("USER", ""),
        }
        return os.path.expanduser(re.sub("%.", lambda match: tokens.get(match[0], match[0]), word))

    def _refusal(self, allowed: list[str]) -> str:
        lines = [f"{self.address} does not let {self.user} in; it takes {', '.join(allowed) or 'nothing more'}"]
        lines += [f"  {text}" for text in self.tried] or [
            "  no key was found: ssh-keygen makes one, ssh-copy-id sends it"
        ]
        if self.ask is None and {"keyboard-interactive", "password"} & set(allowed):
            lines.append(f"To be asked for a password or code: %execute_login {self.address}")
        lines.append('If ssh itself gets in, let it make the connection: ssh_client = "program" in the settings')
        return "\n".join(lines)


# connections


class _Channel:
    """A stream of paramiko's."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def send(self, data: bytes) -> None:
        self._channel.settimeout(_LOGIN_TIMEOUT)
        self._channel.sendall(data)

    def receive(self, timeout: float) -> bytes:
        self._channel.settimeout(max(timeout, 0.001))
        try:
            return self._channel.recv(_WINDOW)
        except socket.timeout:
            raise TimeoutError from None

    def close(self) -> None:
        self._channel.close()


class _Paramiko:
    """A connection of paramiko's, through as many machines as there are in between."""

    def __init__(self, transports: list[paramiko.Transport]) -> None:
        self._transports = transports

    def open(self, command: str) -> Stream:
        import paramiko

        try:
            channel = self._transports[-1].open_session(timeout=_OPEN_TIMEOUT)
            channel.set_combine_stderr(True)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise TransportError(f"no further session can be opened: {error}") from error
        return _Channel(channel)

    def alive(self) -> bool:
        return all(transport.is_active() for transport in self._transports)

    def close(self) -> None:
        for transport in reversed(self._transports):
            transport.close()


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
    return _Program(address) if address.program else _Paramiko(_transports(address, ask, _HOPS))


def _transports(address: Address, ask: Optional[Ask], hops: int, via: Optional[paramiko.Transport] = None) -> list[Any]:
    options = configuration(address)
    before: list[paramiko.Transport] = []
    try:
        jumps = _first(options, "proxyjump")
        if via is None and jumps:
            if not hops:
                raise Unreachable(f"{address}: its ProxyJump leads through more than {_HOPS} machines")
            for jump in jumps.split(","):
                hop = parse_url(jump) if "://" in jump else parse_host(jump)
                before += _transports(hop, ask, hops - 1, before[-1] if before else None)
            via = before[-1]
        return [*before, _transport(address, options, ask, via)]
    except ValueError as error:
        _close(before)
        raise Unreachable(f"{address}: its ProxyJump cannot be read: {error}") from None
    except BaseException:
        _close(before)
        raise


def _close(transports: Sequence[paramiko.Transport]) -> None:
    for transport in reversed(transports):
        transport.close()


def _transport(
    address: Address, options: Options, ask: Optional[Ask], via: Optional[paramiko.Transport]
) -> paramiko.Transport:
    import paramiko

    known = _Known(address, options)
    transport = paramiko.Transport(
        _socket(address, options, via), default_window_size=_WINDOW, default_max_packet_size=_PACKET
    )
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = _LOGIN_TIMEOUT
    security = transport.get_security_options()
    # GCM is twice as fast as the others here. Key types that are known come first, as the server picks by that.
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    security.key_types = sorted(security.key_types, key=lambda name: name not in known.types)
    try:
        transport.start_client(timeout=_LOGIN_TIMEOUT)
        key = transport.get_remote_server_key()
        known.check(key.get_name(), key.asbytes())
        if ask:
            transport.auth_timeout = 600  # somebody is looking for a phone
        _Identity(address, options, ask).prove(transport)
        transport.set_keepalive(_KEEPALIVE)
        return transport
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        said = str(error) or "it closed the connection"
        raise Unreachable(f"no SSH connection to {address}: {said}") from error
    except BaseException:
        transport.close()
        raise


def _socket(address: Address, options: Options, via: Optional[paramiko.Transport]) -> Any:
    """A byte stream to the machine: by way of another machine, of a command, or straight."""
    import paramiko

    host, port = _first(options, "hostname", address.host), int(_first(options, "port", "22"))
    command = _first(options, "proxycommand")
    if via is not None:
        try:
            return via.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=_CONNECT_TIMEOUT)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable(f"{address} cannot be reached from the machine before it: {error}") from error
    if command:
        tokens = {"%h": host, "%p": str(port), "%r": _first(options, "user"), "%n": address.host, "%%": "%"}
        return _command(re.sub("%.", lambda match: tokens.get(match[0], match[0]), command))
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT)
    except socket.gaierror as error:
        raise Unreachable(f"there is no machine {host!r}: {error.strerror}; is the name right?") from error
    except socket.timeout:
        raise Unreachable(
            f"{host} port {port} gave no answer within {_CONNECT_TIMEOUT:g} s; is a VPN needed?"
        ) from None
    except OSError as error:
        raise Unreachable(f"{host} port {port}: {error.strerror}; does a machine with SSH answer there?") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _command(command: str) -> socket.socket:
    """The stream of a ProxyCommand, which the user's configuration has as shell text."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, name="proxy command", daemon=True).start()
    return ours


class _Pipes:
    """A stream of the ssh program's."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def send(self, data: bytes) -> None:
        self._in.write(data)

    def receive(self, timeout: float) -> bytes:
        if not select.select([self._out], [], [], timeout)[0]:
            raise TimeoutError
        return os.read(self._out.fileno(), 1 << 20)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        threading.Thread(target=self._process.wait, daemon=True).start()


class _Program:
    """What the ssh program gives: each stream is one of it. A ControlMaster, if the user has one, makes that quick."""

    def __init__(self, address: Address) -> None:
        program = shutil.which("ssh")
        if program is None:
            raise Unreachable("the ssh program is to make the connection, and this machine's PATH has none")
        options = ["-T", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oServerAliveInterval=15"]
        self._words = [program, *options, *address.words]
        self._address = address
        self._failed = False
        self._try()

    def _try(self) -> None:
        """Say no more than what ssh says, if it does not get in."""
        try:
            result = subprocess.run(
                [*self._words, "exit 0"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LOGIN_TIMEOUT,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"ssh {self._address} gave no answer within {_LOGIN_TIMEOUT:g} s") from None
        if result.returncode == 255:
            raise Unreachable(f"ssh {self._address} says: {result.stderr.strip() or 'nothing'}")

    def open(self, command: str) -> Stream:
        return _Pipes(
            subprocess.Popen(
                [*self._words, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        )

    def alive(self) -> bool:
        return True  # each stream finds out for itself

    def close(self) -> None:
        pass


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


def logout(url: str) -> None:
    """Let the connection to a machine go."""
    transport(url).close()
