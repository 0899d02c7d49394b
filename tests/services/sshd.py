"""A real OpenSSH server on this machine: private directory, loopback only, as the current user, no system service used.

Its clients see no configuration of the user's: OpenSSH takes ~/.ssh from the passwd entry, whatever $HOME says, so a
program `ssh` that stands first in PATH names a private configuration. An agent is not private: remove SSH_AUTH_SOCK
from the environment of what is tested (the fixture `sshd` does).

A session has a private $HOME, yet starts in the directory that the passwd entry names: the server looks only there.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from tests.services.slurm import free_ports

COMMANDS = ("sshd", "ssh", "ssh-keygen")
KINDS = ("ed25519", "ecdsa", "rsa")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_SESSION_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# For most keywords the first value counts, so what a test wants goes to the top, and its Match blocks to the end.
_SERVER = """
{options}
ListenAddress 127.0.0.1
Port {port}
{host_keys}
AuthorizedKeysFile "{base}/authorized_keys"
SetEnv {environment}
{force}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserEnvironment no
PermitUserRC no
UsePAM no
StrictModes no
UseDNS no
PidFile none
PrintMotd no
PrintLastLog no
MaxStartups 100:30:200
LogLevel VERBOSE
Subsystem sftp internal-sftp
{penalties}
{matches}
"""
_CLIENT = """\
Host {name}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile "{key}"
    IdentitiesOnly yes
    UserKnownHostsFile "{known_hosts}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def missing() -> list[str]:
    """The commands that are needed and not there."""
    return [command for command in COMMANDS if not shutil.which(command, path=_path())]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"


def _program(name: str) -> str:
    found = shutil.which(name, path=_path())
    if not found:
        raise RuntimeError(f"{name} is not installed")
    return os.path.abspath(found)  # the server starts itself again for each connection and insists on a full path


def _run(*command: str) -> str:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: exit code {result.returncode}: {result.stderr}")
    return result.stdout


@dataclass
class Sshd:
    """A running private server; `environment` is what its clients need, and SSH_AUTH_SOCK must not be set."""

    name: str
    port: int
    user: str
    directory: Path
    host: str = "127.0.0.1"
    _process: Optional[subprocess.Popen[bytes]] = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        """$HOME of the sessions."""
        return self.directory / "home"

    @property
    def known_hosts(self) -> Path:
        """The server's keys under its address and under its name, hashed."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """The client's private key."""
        return self.directory / "id_ed25519"

    @property
    def config(self) -> Path:
        """The client's configuration, with a block for this server."""
        return self.directory / "ssh_config"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: a PATH where `ssh` uses the private configuration."""
        return {"PATH": f"{self.directory / 'bin'}:{os.environ.get('PATH', _SESSION_PATH)}"}

    def add_host(self, block: str) -> None:
        """Append to the client's configuration. The first value of a keyword counts, as always with ssh."""
        with self.config.open("a") as file:
            file.write(f"\n{block.rstrip()}\n")

    def host_key(self, kind: str = "ed25519") -> str:
        """A public key of the server, as it stands in a file of known hosts after the name."""
        return " ".join((self.directory / f"host_{kind}.pub").read_text().split()[:2])

    def host_keys(self) -> list[str]:
        """All of them."""
        return [self.host_key(kind) for kind in KINDS]

    def fingerprint(self, kind: str = "ed25519") -> str:
        """The fingerprint of a public key of the server: `SHA256:...`."""
        return _run(_program("ssh-keygen"), "-l", "-f", str(self.directory / f"host_{kind}.pub")).split()[1]

    def log(self) -> str:
        """What the server has logged."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def logins(self) -> int:
        """The number of connections that were let in so far."""
        return len(re.findall(r"^Accepted \S+ for ", self.log(), re.MULTILINE))

    @property
    def sessions(self) -> int:
        """The number of commands, shells and subsystems that were started so far."""
        return len(re.findall("^Starting session: ", self.log(), re.MULTILINE))

    def start(self) -> None:
        """Start the server, at first or again, and wait until it answers."""
        sshd, conf = _program("sshd"), str(self.directory / "sshd_config")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's server confines itself there before the login
        _run(sshd, "-t", "-f", conf)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", conf],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"sshd does not answer on port {self.port}: {self.log()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                return connection.recv(8).startswith(b"SSH-")
        except OSError:
            return False

    def drop(self) -> None:
        """Break all connections there are now. What their sessions run lives on, unless it minds."""
        for pid, program in self._descendants():
            if program.startswith("sshd"):  # also sshd-session and sshd-auth of newer releases
                _signal(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Break all connections and let no new ones in, as if the machine were down."""
        if self._process is None:
            return
        os.kill(self._process.pid, signal.SIGSTOP)  # no connection comes while they are counted
        self.drop()
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop the server and end all that its sessions have started."""
        inside = [pid for pid, _ in self._descendants()]
        self.stop()
        for pid in inside:
            _signal(pid, signal.SIGKILL)
        end_processes(self.home)

    def _descendants(self) -> list[tuple[int, str]]:
        """The processes below the server, with their programs' names."""
        if self._process is None:
            return []
        parents: dict[int, list[tuple[int, str]]] = {}
        for pid in _processes():
            try:
                head, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
            except OSError:
                continue  # it has ended meanwhile
            parents.setdefault(int(rest.split()[1]), []).append((pid, head.partition("(")[2]))
        found = list(parents.get(self._process.pid, []))
        for pid, _ in found:  # grows while it is read
            found += parents.get(pid, [])
        return found


def end_processes(home: Path) -> None:
    """Kill what sessions have left behind: nothing else has their private $HOME."""
    mark = f"HOME={home}".encode()
    for pause in (0.05, 0):  # twice: while a process begins another program it shows no environment
        for pid in _processes():
            try:
                if pid != os.getpid() and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    _signal(pid, signal.SIGKILL)
            except OSError:
                continue  # it has ended meanwhile, or is somebody else's
        time.sleep(pause)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _quoted(name: str, value: str) -> str:
    return '"{}={}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))


def _prepare(sshd: Sshd, options: Sequence[str], shell: Optional[str], environment: Mapping[str, str]) -> None:
    """Write all files: keys, both configurations, and the client's program."""
    base, keygen = sshd.directory, _program("ssh-keygen")
    sshd.home.mkdir(mode=0o700)
    for kind in KINDS:
        bits = ["-b", "2048"] if kind == "rsa" else []
        _run(keygen, "-q", "-t", kind, *bits, "-N", "", "-C", "", "-f", str(base / f"host_{kind}"))
    _run(keygen, "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(sshd.key))
    shutil.copy(sshd.key.with_suffix(".pub"), base / "authorized_keys")
    names = (f"[{sshd.host}]:{sshd.port}", sshd.name)
    sshd.known_hosts.write_text("".join(f"{name} {key}\n" for name in names for key in sshd.host_keys()))
    _run(keygen, "-q", "-H", "-f", str(sshd.known_hosts))
    Path(f"{sshd.known_hosts}.old").unlink()  # the same in clear text

    match = next((i for i, line in enumerate(options) if line.split()[:1] in (["Match"], ["match"])), len(options))
    variables = {"PATH": _SESSION_PATH, "HOME": str(sshd.home), **environment}
    (base / "sshd_config").write_text(
        _SERVER.format(
            options="\n".join(options[:match]),
            matches="\n".join(options[match:]),
            port=sshd.port,
            base=base,
            host_keys="\n".join(f'HostKey "{base}/host_{kind}"' for kind in KINDS),
            # One line, of which the later ones would be ignored
            environment=" ".join(_quoted(name, value) for name, value in variables.items()),
            force=f'ForceCommand exec {shell} -c "$SSH_ORIGINAL_COMMAND"' if shell else "",
            # From 9.8 on, failed logins of one test would lock out the next ones; older servers refuse the word
            penalties="PerSourcePenalties no" if _release() >= (9, 8) else "",
        )
    )
    sshd.config.write_text(
        _CLIENT.format(name=sshd.name, port=sshd.port, user=sshd.user, key=sshd.key, known_hosts=sshd.known_hosts)
    )
    program = base / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(_program("ssh"))} -F {shlex.quote(str(sshd.config))} "$@"\n')
    program.chmod(0o755)


def _release() -> tuple[int, int]:
    """OpenSSH's release: client and server are of one."""
    result = subprocess.run([_program("ssh"), "-V"], capture_output=True, text=True, timeout=60)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", result.stderr)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@contextmanager
def running(
    *,
    name: str = "adistantmachine",
    options: Sequence[str] = (),
    shell: Optional[str] = None,
    environment: Mapping[str, str] = {},
) -> Iterator[Sshd]:
    """A private server while the block runs.

    `options` are further lines of sshd_config; `shell` stands in for the user's login shell; `environment` is what
    sessions have besides HOME and PATH, or in their place.
    """
    directory = Path(tempfile.mkdtemp(prefix="sshd-"))
    user = pwd.getpwuid(os.geteuid()).pw_name
    sshd = Sshd(name=name, port=free_ports(1)[0], user=user, directory=directory)
    try:
        _prepare(sshd, options, shell, environment)
        sshd.start()
        yield sshd
    finally:
        sshd.close()
        shutil.rmtree(directory, ignore_errors=True)
