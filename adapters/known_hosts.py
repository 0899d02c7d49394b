"""Who a machine is: its host keys, as known_hosts files have them. Nothing is ever added to these."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import shlex
from pathlib import Path

from execute_batch_scheduler.adapters.ssh_config import USE_PROGRAM, Configuration, text_of
from execute_batch_scheduler.adapters.transport import Refused


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


class Known:
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
        texts = [(path, text_of(path)) for path in (*users, *globals_)]
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
            raise Refused(f"{self.address}: RevokedHostKeys is heeded by the ssh program alone; {USE_PROGRAM}")
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
            text += f". An authority vouches for its certificates, which paramiko cannot check: {USE_PROGRAM}"
        text += f". If the site publishes that fingerprint, this adds the key:\n  {self._add(line)}"
        text += f"\nand UserKnownHostsFile of the ssh configuration must name {self.file}" if self.unheeded else ""
        raise Refused(text)

    def _add(self, line: str) -> str:
        """The command line that adds a line to the known ones."""
        file, said = shlex.quote(str(self.file)), text_of(self.file)
        folder = "" if self.file.parent.exists() else f"mkdir -p -m 700 {shlex.quote(str(self.file.parent))} && "
        end = f"echo >> {file} && " if said and not said.endswith("\n") else ""
        return f"{folder}{end}echo {shlex.quote(line)} >> {file}"
