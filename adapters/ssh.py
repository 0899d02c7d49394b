"""SSH: which machine is meant, who it is, who we are; and connections to it, by paramiko or by the ssh program.

What the user's own ssh would do is asked of that program (``ssh -G``), so that configuration counts here as there:
https://man.openbsd.org/ssh_config
"""

from __future__ import annotations

import base64
import fnmatch
import getpass
import hashlib
import hmac
import io
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Optional, Union
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from execute_batch_scheduler.adapters.remote import Connection, Remote, Stream
from execute_batch_scheduler.adapters.transport import Refused, TransportError, Unreachable

if TYPE_CHECKING:
    import paramiko

Ask = Callable[[str, bool], str]
"""Asks the user something, and tells whether what is typed may be shown."""

# A login name comes into the user's ProxyCommand, which is shell text: none of its signs, and no option.
_HOST = re.compile(
    r"(?:(?P<user>\w[\w.+~\\@-]*)@)?(?P<host>\[[\da-fA-F:.]+(?:%\w+)?\]|\w[\w.-]*)(?::(?P<port>\d{1,5}))?", re.ASCII
)
_CONNECT_TIMEOUT = 15.0
_LOGIN_TIMEOUT = 30.0
_ASK_TIMEOUT = 600.0  # somebody is looking for a phone
_AGENT_TIMEOUT = 60.0  # somebody is looking for the key to touch
_OPEN_TIMEOUT = 20.0
_SEND_TIMEOUT = 30.0
_KEEPALIVE = 30
_SILENCE = 30_000  # milliseconds after which what we have sent should have been acknowledged
_WINDOW = 1 << 24  # bytes under way: what paramiko has by default costs half of the speed
_PACKET = 1 << 18
_PIECE = 1 << 20
_HOPS = 8
_DEFAULT_KEYS = tuple(
    f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")
)
_USE_PROGRAM = 'ssh_client = "program" in the settings lets the ssh program make the connection'

# Paramiko tells tracebacks of what the user is told in a sentence. Who wants them sets this logger's level.
_LOG = f"{__name__}.paramiko"
logging.getLogger(_LOG).setLevel(logging.CRITICAL)


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
    more = parts.path.strip("/") or parts.fragment or query
    if parts.scheme != "ssh" or more or client not in ("paramiko", "program"):
        raise ValueError(f"{url!r} is no such URL; say ssh://machine or ssh://user@machine:2222")
    return replace(parse_host(parts.netloc), identity=identity, program=client == "program")


# what the user's configuration says


class Configuration:
    """What the user's ssh configuration says of a machine; Unreachable if it cannot be read."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._options = self._by_program() if shutil.which("ssh") else self._by_paramiko()
        self.host = self.first("hostname", address.host)
        self.port = int(self.first("port", "22"))
        self.user = self.first("user") or getpass.getuser()

    def _by_program(self) -> dict[str, list[str]]:
        try:
            result = subprocess.run(
                ["ssh", "-G", *self.address.words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LOGIN_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"{self.address}: ssh -G gives no answer within {_LOGIN_TIMEOUT:g} s; see Match in ~/.ssh/config"
            ) from None
        if result.returncode != 0:
            raise Unreachable(f"{self.address}: ssh cannot read its configuration: {result.stderr.strip()}")
        options: dict[str, list[str]] = {}
        for line in result.stdout.splitlines():
            name, _, value = line.partition(" ")
            options.setdefault(name.lower(), []).append(value)
        return options

    def _by_paramiko(self) -> dict[str, list[str]]:
        """Without the program: most of what it would say, but nothing of files that are included."""
        import paramiko

        config = paramiko.SSHConfig()
        try:
            for path in (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")):
                if path.exists():
                    with path.open(errors="replace") as file:
                        config.parse(file)
            found = config.lookup(self.address.host)
        except (paramiko.SSHException, OSError, ValueError, ImportError) as error:
            raise Unreachable(f"{self.address}: the ssh configuration cannot be read: {error}") from error
        options = {name: value if isinstance(value, list) else [value] for name, value in found.items() if value}
        said = {"user": self.address.user, "port": self.address.port}
        options.update({name: [str(value)] for name, value in said.items() if value})
        options["identityfile"] = options.get("identityfile") or list(_DEFAULT_KEYS)
        return options

    def first(self, name: str, default: str = "") -> str:
        """The first value of an option; empty where that is ``none``."""
        value = (self._options.get(name) or [default])[0]
        return "" if value.lower() == "none" else value

    def all(self, name: str) -> list[str]:
        """All values of an option that may have several."""
        return [value for value in self._options.get(name, []) if value.lower() != "none"]

    def expanded(self, text: str) -> str:
        """With the values of the tokens that ssh knows."""
        local = socket.gethostname()
        values = {
            "%": "%",
            "d": str(Path.home()),
            "h": self.host,
            "i": str(os.getuid()),
            "k": self.first("hostkeyalias", self.address.host),
            "L": local.partition(".")[0],
            "l": local,
            "n": self.address.host,
            "p": str(self.port),
            "r": self.user,
            "u": getpass.getuser(),
        }
        return re.sub("%(.)", lambda match: values.get(match[1], match[0]), text)

    def path(self, text: str) -> Path:
        """A file that the configuration names."""
        return Path(os.path.expanduser(os.path.expandvars(self.expanded(text))))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# who the machine is


def known_keys(text: str, name: str) -> list[tuple[str, str, bytes]]:
    """The keys that a known_hosts file has for a name: marker or ``""``, type, key. Hashed names and patterns count."""
    found = []
    for line in text.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or not _is_for(words[0], name.lower()):
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
    good = False
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


class _Known:
    """The keys that are known for one machine. Nothing is ever added: what adds one is told to the user."""

    def __init__(self, configuration: Configuration) -> None:
        self.address = configuration.address
        alias = configuration.first("hostkeyalias")
        host, port = alias or configuration.host, 22 if alias else configuration.port
        self.name = host if port == 22 else f"[{host}]:{port}"
        users, globals_ = (
            [configuration.path(word) for word in configuration.first(f"{whose}knownhostsfile", default).split()]
            for whose, default in (("user", "~/.ssh/known_hosts"), ("global", "/etc/ssh/ssh_known_hosts"))
        )
        self.file = next((path for path in users if str(path) != os.devnull), Path("~/.ssh/known_hosts").expanduser())
        self.unheeded = self.file not in users
        texts = [(path, _text(path)) for path in (*users, *globals_)]
        self.keys = [(path, *key) for path, text in texts for key in known_keys(text, self.name)]
        # As with ssh, who is known without a port is known on each.
        self.portless = [] if port == 22 else [key for _, text in texts for key in known_keys(text, host)]
        self.revoking = configuration.first("revokedhostkeys")

    @property
    def types(self) -> set[str]:
        """Types of keys that are known, as a server is to be asked for them."""
        types = {type_ for _, marker, type_, _ in self.keys if not marker}
        types |= set() if self.keys else {type_ for marker, type_, _ in self.portless if not marker}
        return types | ({"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in types else set())

    def check(self, type_: str, key: bytes) -> None:
        """Refused if the machine is not who it should be."""
        every = [known[1:] for known in self.keys] + self.portless
        if self.revoking:
            raise Refused(f"{self.address}: RevokedHostKeys is heeded by the ssh program alone; {_USE_PROGRAM}")
        if ("@revoked", type_, key) in every:
            raise Refused(f"{self.address}: its key {fingerprint(key)} is revoked; ask the site's administrators")
        if ("", type_, key) in every:
            return
        line = f"{self.name} {type_} {base64.b64encode(key).decode()}"
        what = f"it shows a key of type {type_} with the fingerprint {fingerprint(key)}"
        changed = next((path for path, marker, known, _ in self.keys if (marker, known) == ("", type_)), None)
        if changed:
            raise Refused(
                f"the key of {self.address} HAS CHANGED: {what}, and {changed} has another one. Somebody may pose as "
                "that machine. If the site says that its key was changed:\n"
                f"  {shlex.join(['ssh-keygen', '-R', self.name, '-f', str(changed)])}\n  {self._add(line)}"
            )
        others = sorted({known for marker, known, _ in every if not marker})
        text = f"{self.address} is not known by this key: {what}"
        text += f"; known are only keys of other types: {', '.join(others)}" if others else ""
        if any(marker == "@cert-authority" for marker, _, _ in every):
            text += f". An authority vouches for its certificates, which paramiko cannot check: {_USE_PROGRAM}"
        text += f". If the site publishes that fingerprint, this adds the key:\n  {self._add(line)}"
        text += f"\nand UserKnownHostsFile of the ssh configuration must name {self.file}" if self.unheeded else ""
        raise Refused(text)

    def _add(self, line: str) -> str:
        """The command line that adds a line to the known ones."""
        file, said = shlex.quote(str(self.file)), _text(self.file)
        folder = "" if self.file.parent.exists() else f"mkdir -p -m 700 {shlex.quote(str(self.file.parent))} && "
        end = f"echo >> {file} && " if said and not said.endswith("\n") else ""
        return f"{folder}{end}echo {shlex.quote(line)} >> {file}"


# who we are


def _take(data: bytes) -> tuple[bytes, bytes]:
    """The first string of an SSH structure, and what follows it."""
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]


def _certifies(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate is for a public key: behind its type and a nonce it holds that key."""
    fields = _take(key)[1]
    return bool(fields) and _take(_take(certificate)[1])[1].startswith(fields)


def _public(text: str) -> bytes:
    """The key of a public key file or certificate; nothing if that is none."""
    words = text.split()
    try:
        key = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        return b""
    return key if _take(key)[0] == words[0].encode() else b""


@dataclass(frozen=True)
class _KeyFile:
    """A file that the user may log in by; `public` is empty where it cannot be read without the passphrase."""

    path: Path
    public: bytes
    encrypted: bool = False
    private: bool = True

    @classmethod
    def read(cls, path: Path) -> _KeyFile:
        """What can be told without a passphrase.

        https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.key
        """
        text = _text(path)
        match = re.search(r"-----BEGIN ([A-Z]+ |)PRIVATE KEY-----\s+(.*)-----END", text, re.DOTALL)
        if match is None:
            return cls(path, _public(text), private=False)
        kind, body = match[1].strip(), match[2]
        with suppress(ValueError):
            magic, _, rest = base64.b64decode(body).partition(b"openssh-key-v1\0")
            if kind == "OPENSSH" and rest and not magic:
                cipher, rest = _take(rest)
                public = _take(_take(_take(rest)[1])[1][4:])[0]  # behind the function, its options, a number of keys
                return cls(path, public, cipher != b"none")
        return cls(path, _public(_text(Path(f"{path}.pub"))), "ENCRYPTED" in kind + body)

    def load(self, passphrase: Optional[str]) -> paramiko.PKey:
        """The private key; ValueError if it cannot be had. Paramiko itself fails to read some keys."""
        import paramiko
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        data, password = self.path.read_bytes(), None if passphrase is None else passphrase.encode()
        try:
            if b"BEGIN OPENSSH" in data:
                key: Any = serialization.load_ssh_private_key(data, password)
            else:
                key = serialization.load_pem_private_key(data, password)
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(str(error)) from error
        if isinstance(key, rsa.RSAPrivateKey):
            return paramiko.RSAKey(key=key)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return paramiko.ECDSAKey(vals=(key, key.public_key()))
        if isinstance(key, ed25519.Ed25519PrivateKey):
            form = serialization.PrivateFormat.OpenSSH
            text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
            return paramiko.Ed25519Key.from_private_key(io.StringIO(text))
        raise ValueError(f"it is of a type that paramiko cannot use; {_USE_PROGRAM}")


class _Key:
    """What paramiko wants of a key or certificate. Where no signature is to be had, that is refused like a key."""

    public_blob = None

    def __init__(self, blob: bytes, sign: Callable[[bytes, str], Any]) -> None:
        self._blob = blob
        self._sign = sign
        self.trouble = ""

    def get_name(self) -> str:
        return _take(self._blob)[0].decode()

    def asbytes(self) -> bytes:
        return self._blob

    def sign_ssh_data(self, data: bytes, algorithm: str = "") -> Any:
        try:
            return self._sign(data, algorithm)
        except Exception as error:  # here in paramiko's thread it would end the connection
            self.trouble = str(error) or type(error).__name__
            return b""


def _is(key: bytes, public: bytes) -> bool:
    """Whether it is that key, or a certificate of it."""
    return key == public or _certifies(key, public)


class _Agent:
    """A connection to an ssh-agent: https://datatracker.ietf.org/doc/html/draft-ietf-sshm-ssh-agent"""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.keys: list[tuple[bytes, str]] = []
        """Public keys or certificates, and their comments."""

    def connect(self, place: str) -> None:
        """Get the keys."""
        self._connection.settimeout(_AGENT_TIMEOUT)
        self._connection.connect(place)
        answer = self._ask(11, b"", 12)
        rest = answer[4:]
        for _ in range(int.from_bytes(answer[:4], "big")):
            key, rest = _take(rest)
            comment, rest = _take(rest)
            self.keys.append((key, comment.decode(errors="replace")))

    def sign(self, key: bytes, data: bytes, algorithm: str) -> bytes:
        """A signature by the private half of a key."""
        flags = 4 if "sha2-512" in algorithm else 2 if "sha2-256" in algorithm else 0
        strings = b"".join(len(part).to_bytes(4, "big") + part for part in (key, data))
        return _take(self._ask(13, strings + flags.to_bytes(4, "big"), 14))[0]

    def _ask(self, kind: int, data: bytes, expected: int) -> bytes:
        self._connection.sendall((len(data) + 1).to_bytes(4, "big") + bytes([kind]) + data)
        answer = self._receive(int.from_bytes(self._receive(4), "big"))
        if answer[:1] != bytes([expected]):
            raise OSError("the agent refuses")
        return answer[1:]

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._connection.recv(size - len(data))
            if not piece:
                raise OSError("the agent closed the connection")
            data += piece
        return data


class _Login:
    """Tries what we have to prove who we are, and remembers what came of it, for the message."""

    def __init__(self, configuration: Configuration, transport: paramiko.Transport, ask: Optional[Ask]) -> None:
        self.configuration = configuration
        self.address = configuration.address
        self.user = configuration.user
        self.transport = transport
        self.ask = ask
        self.wanted = ["publickey"]  # what the server would take next; nothing once we are in
        self.tried: list[str] = []
        self.methods: dict[str, Callable[[], None]] = {"publickey": self._by_key}
        if ask:
            self.methods.update({"keyboard-interactive": self._by_answers, "password": self._by_password})
        self.may_ask = False

    def prove(self) -> None:
        """Log in; Refused if we are not let in."""
        self._accepted(partial(self.transport.auth_none, self.user))
        while self.wanted and self.transport.is_active():
            method = next((method for method in self.methods if method in self.wanted), None)
            if method is None:
                break
            self.methods.pop(method)()
        if self.wanted or not self.transport.is_active():
            raise Refused(self._refusal())

    def _accepted(self, attempt: Callable[[], list[str]]) -> bool:
        """Whether the server takes what is offered; more may be wanted even so."""
        import paramiko

        try:
            self.wanted = attempt()
            return True
        except paramiko.BadAuthenticationType as error:
            self.wanted = error.allowed_types
        except (paramiko.SSHException, OSError, EOFError):
            pass
        return False

    def _by_key(self) -> None:
        with closing(self._keys()) as keys:
            for name, key in keys:
                if self._accepted(partial(self.transport.auth_publickey, self.user, key)):
                    if self.wanted:
                        self.tried.append(f"{name}: accepted, but {' or '.join(self.wanted)} is wanted too")
                    return
                self.tried.append(f"{name}: {key.trouble or 'refused'}")
                if not self.transport.is_active() or "publickey" not in self.wanted:
                    return
        if not self.tried:
            self.tried.append("no key was found: ssh-keygen makes one, ssh-copy-id sends it")

    def _by_answers(self) -> None:
        assert self.ask
        # Paramiko's thread gets the questions. They are asked by ours, which may talk to the user and be interrupted.
        questions: SimpleQueue[Optional[tuple[str, list[tuple[str, bool]]]]] = SimpleQueue()
        answers: SimpleQueue[list[str]] = SimpleQueue()

        def handle(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            questions.put(("".join(f"{text.strip()}\n" for text in (title, instructions) if text.strip()), prompts))
            return answers.get()

        with ThreadPoolExecutor(1) as pool:
            login = pool.submit(self.transport.auth_interactive, self.user, handle)
            login.add_done_callback(lambda _: questions.put(None))
            try:
                while (question := questions.get()) is not None:
                    head, prompts = question
                    answers.put([self.ask(f"{head}({self._who}) {prompt}", echo) for prompt, echo in prompts])
                    if prompts:
                        self.methods.pop("password", None)  # it would be the same question again
            except BaseException:
                self.transport.close()
                answers.put([])
                raise
        if not self._accepted(login.result):
            self.tried.append("keyboard-interactive: refused; a wrong password or code?")

    def _by_password(self) -> None:
        assert self.ask
        password = self.ask(f"({self._who}) Password: ", False)
        if not self._accepted(partial(self.transport.auth_password, self.user, password, fallback=False)):
            self.tried.append("password: refused")
        self.transport.auth_handler.password = None  # it has no further use

    @property
    def _who(self) -> str:
        return f"{self.user}@{self.address.host}"

    def _keys(self) -> Generator[tuple[str, _Key], None, None]:
        """What may be tried, in ssh's order: keys of the agent, those that are configured first; of files."""
        files, certificates = self._files(), self._certificates()
        tried: set[bytes] = set()

        def with_certificates(name: str, key: bytes, sign: Callable[[bytes, str], Any]) -> Iterator[tuple[str, _Key]]:
            mine = [(f"{name} with {path}", blob) for path, blob in certificates if _certifies(blob, key)]
            for what, blob in [*mine, (name, key)]:
                if blob not in tried:
                    tried.add(blob)
                    yield what, _Key(blob, sign)

        with self._agent() as agent:
            publics = [file.public for file in files if file.public]
            named = [(key, comment) for public in publics for key, comment in agent.keys if _is(key, public)]
            only = self.configuration.first("identitiesonly").lower() == "yes"
            for key, comment in named if only else [*named, *agent.keys]:
                name = f"the agent's key {comment or fingerprint(key)}"
                yield from with_certificates(name, key, partial(agent.sign, key))
            for file in sorted(files, key=lambda file: file.encrypted):  # no passphrase if it works without
                private = None if file.public in tried else self._private(file)
                if private is not None:
                    yield from with_certificates(str(file.path), private.asbytes(), private.sign_ssh_data)

    def _files(self) -> list[_KeyFile]:
        words = self.configuration.all("identityfile")
        paths = {self.configuration.path(word): word in _DEFAULT_KEYS for word in words}
        if self.address.identity:
            paths = {Path(self.address.identity): True, **paths}
        gone = [path for path, usual in paths.items() if not usual and not path.exists()]
        self.tried += [f"{path}: there is no such file" for path in gone]
        return [_KeyFile.read(path) for path in paths if path.exists()]

    def _certificates(self) -> list[tuple[Path, bytes]]:
        words = self.configuration.all("certificatefile")
        paths = [self.configuration.path(word) for word in words]
        paths += [self.configuration.path(f"{word}-cert.pub") for word in self.configuration.all("identityfile")]
        return [(path, blob) for path in paths if (blob := _public(_text(path)))]

    @contextmanager
    def _agent(self) -> Iterator[_Agent]:
        """The agent; one without keys where there is none."""
        place = self.configuration.first("identityagent", "SSH_AUTH_SOCK")
        place = os.environ.get(place, "") if place == "SSH_AUTH_SOCK" else place and str(self.configuration.path(place))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            agent = _Agent(connection)
            if place:
                try:
                    agent.connect(place)
                except OSError as error:
                    self.tried.append(f"agent at {place}: {error.strerror or error}")
            yield agent

    def _private(self, file: _KeyFile) -> Optional[paramiko.PKey]:
        """The private key of a file; None if it cannot be had, and `tried` says why."""
        status = file.path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if not os.access(file.path, os.R_OK):
            why = "cannot be read by us"
        elif not file.private:
            why = "holds no private key, and no agent has it"
        elif mode & (stat.S_IRWXG | stat.S_IRWXO) and status.st_uid == os.getuid():
            why = f"not used, as others can read it (mode {mode:04o}): chmod 600 {shlex.quote(str(file.path))}"
        elif file.encrypted and self.ask is None:
            why = f"has a passphrase, and no agent holds it: ssh-add {shlex.quote(str(file.path))}"
            self.may_ask = True
        else:
            passphrase = self.ask(f"Passphrase of {file.path}: ", False) if file.encrypted and self.ask else None
            try:
                return file.load(passphrase)
            except (OSError, ValueError) as error:
                why = "that is not its passphrase" if file.encrypted else f"cannot be used: {error}"
        self.tried.append(f"{file.path}: {why}")
        return None

    def _refusal(self) -> str:
        active = self.transport.is_active()
        takes = f"; it takes {', '.join(self.wanted)}" if active else " and closed the connection"
        lines = [f"{self.address} does not let {self.user} in{takes}", *(f"  {text}" for text in self.tried)]
        if not active and len(self.tried) > 1:
            lines.append(
                "Too many keys may have been tried: name the right one by identity, or by IdentityFile with "
                "IdentitiesOnly yes in the ssh configuration"
            )
        if self.ask is None and (self.may_ask or {"keyboard-interactive", "password"} & set(self.wanted)):
            lines.append(f"To be asked for a password, passphrase or code: %execute_login {self.address}")
        if self.ask is None:
            lines.append(f"If ssh itself gets in: {_USE_PROGRAM}")
        return "\n".join(lines)


# connections


class _Process(socket.socket):
    """A program that runs here, and our end of its standard streams."""

    def __init__(self, words: Sequence[str], stderr: Optional[IO[bytes]] = None) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        with theirs:
            end = theirs.fileno()
            complaints = end if stderr is None else stderr.fileno()
            self._process = subprocess.Popen(words, stdin=end, stdout=end, stderr=complaints, start_new_session=True)

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

        try:
            channel = self._transports[-1].open_session(timeout=_OPEN_TIMEOUT)
            channel.set_combine_stderr(True)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
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

    known = _Known(configuration)
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
            _Login(configuration, transport, ask).prove()
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
            why = f"{place} and paramiko have no method in common ({error}); {_USE_PROGRAM}"
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


def logout(url: str) -> None:
    """Let the connection to a machine go."""
    transport(url).close()
