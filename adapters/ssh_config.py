"""Which machine is meant: how the user names it, and what the user's ssh configuration says of it.

What the user's own ssh would do is asked of that program (``ssh -G``), so that configuration counts here as there:
https://man.openbsd.org/ssh_config
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from execute_batch_scheduler.adapters.transport import Unreachable

DEFAULT_KEYS = tuple(
    f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")
)
USE_PROGRAM = 'ssh_client = "program" in the settings lets the ssh program make the connection'
# A login name comes into the user's ProxyCommand, which is shell text: none of its signs, and no option.
_HOST = re.compile(
    r"(?:(?P<user>\w[\w.+~\\@-]*)@)?(?P<host>\[[\da-fA-F:.]+(?:%\w+)?\]|\w[\w.-]*)(?::(?P<port>\d{1,5}))?", re.ASCII
)
_TIMEOUT = 30.0


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
                timeout=_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"{self.address}: ssh -G gives no answer within {_TIMEOUT:g} s; see Match in ~/.ssh/config"
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
        options["identityfile"] = options.get("identityfile") or list(DEFAULT_KEYS)
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


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
