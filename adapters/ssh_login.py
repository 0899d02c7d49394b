"""Who we are: keys, certificates and the agent, tried as ssh tries them; and what the user is asked."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import socket
import stat
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Optional

from execute_batch_scheduler.adapters.known_hosts import fingerprint
from execute_batch_scheduler.adapters.ssh_config import DEFAULT_KEYS, USE_PROGRAM, Configuration, text_of
from execute_batch_scheduler.adapters.transport import Refused

if TYPE_CHECKING:
    import paramiko

Ask = Callable[[str, bool], str]
"""Asks the user something, and tells whether what is typed may be shown."""

_AGENT_TIMEOUT = 60.0  # somebody is looking for the key to touch


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
        text = text_of(path)
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
        return cls(path, _public(text_of(Path(f"{path}.pub"))), "ENCRYPTED" in kind + body)

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
        raise ValueError(f"it is of a type that paramiko cannot use; {USE_PROGRAM}")


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


class Login:
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
        paths = {self.configuration.path(word): word in DEFAULT_KEYS for word in words}
        if self.address.identity:
            paths = {Path(self.address.identity): True, **paths}
        gone = [path for path, usual in paths.items() if not usual and not path.exists()]
        self.tried += [f"{path}: there is no such file" for path in gone]
        return [_KeyFile.read(path) for path in paths if path.exists()]

    def _certificates(self) -> list[tuple[Path, bytes]]:
        words = self.configuration.all("certificatefile")
        paths = [self.configuration.path(word) for word in words]
        paths += [self.configuration.path(f"{word}-cert.pub") for word in self.configuration.all("identityfile")]
        return [(path, blob) for path in paths if (blob := _public(text_of(path)))]

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
        if active and any("refused" in text for text in self.tried):
            lines.append(f"Another key: --identity=FILE. To have a key taken there: ssh-copy-id {self.address}")
        if self.ask is None:
            lines.append(f"If ssh itself gets in: {USE_PROGRAM}")
        return "\n".join(lines)
