"""How a machine is found, known and logged in to: what OpenSSH's own client does is what has to happen here."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import pytest
from execute_batch_scheduler.adapters.ssh_config import Address, parse_url
from execute_batch_scheduler.adapters.ssh_login import Ask
from execute_batch_scheduler.adapters.transport import NewDirectory, TransportError, Unreachable

from execute_batch_scheduler import BadUsage, submit_script
from execute_batch_scheduler.adapters import remote, ssh, ssh_config, ssh_login
from execute_batch_scheduler.settings import settings
from tests.contract.behaviour import until
from tests.services import interactive as interactive_service, sshd as sshd_service
from tests.services.interactive import PASSWORD, Interactive
from tests.services.proxy import Proxy
from tests.services.sshd import Sshd

SSH = shutil.which("ssh") or ""
NUMBERS = itertools.count()


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


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    yield Client(tmp_path, monkeypatch)
    for ours in ssh._remotes.values():
        ours.close()
    ssh._remotes.clear()


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


# which machine


@pytest.fixture(scope="module")
def hops() -> Iterator[list[Sshd]]:
    with sshd_service.running(name="hop1") as one, sshd_service.running(name="hop2") as two:
        yield [one, two]


HERE = "HostName 127.0.0.1\nPort {port}\n{login}"


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ("Host there other\n" + HERE, "ssh://other"),
        ("Host *.site !bad.site\n" + HERE, "ssh://login.site"),
        ("Match all\nInclude {folder}/more*", "ssh://included"),
        ('Match originalhost there exec "test %n = there"\n' + HERE, "ssh://there"),
        ("Match user someone\nUser nobody\nMatch all\n" + HERE, "ssh://there"),
        ("Host there\nHostName localhost.invalid\nHost *\n{login}", "ssh://root@127.0.0.1:{port}"),
        ("Host there\nProxyCommand bash -c 'exec 3<>/dev/tcp/127.0.0.1/%p; cat <&3 & cat >&3'\n" + HERE, "ssh://there"),
        ("Host there\nProxyCommand python3 -c '{relay}' %h %p\n" + HERE, "ssh://there"),
        ("Host there\nHostKeyAlias {name}\nHostName localhost\nPort {port}\n{login}", "ssh://there"),
    ],
    ids=["alias", "pattern", "Include", "exec", "user", "number", "ProxyCommand", "tokens", "HostKeyAlias"],
)
def test_the_users_configuration_counts(client: Client, sshd: Sshd, config: str, url: str, tmp_path: Path) -> None:
    if sshd.user != "root":
        pytest.skip("NOT EXERCISED: written for root")
    login = f"User root\nIdentityFile {sshd.key}\nIdentitiesOnly yes\nUserKnownHostsFile {sshd.known_hosts}"
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection(sys.argv[1:])\n"
        "def up():\n"
        "  while data := os.read(0, 65536): s.sendall(data)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536): os.write(1, data)\n"
    )
    values = {
        "port": sshd.port,
        "login": login,
        "folder": tmp_path,
        "name": sshd.name,
        "relay": f'exec(open("{relay}").read())',
    }
    (tmp_path / "more.config").write_text(("Host included\n" + HERE).format(**values))
    client.config.write_text(config.format(**values) + "\n")
    assert says(url.format(**values)) == "root is in\n"


def test_key_files_with_tilde_tokens_and_variables(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, word in enumerate(["~/.ssh/a b %r@%h-%p %%", "%d/.ssh/%n-%k", "${PLACE}/key"]):
        name = f"there{number}"
        monkeypatch.setenv("PLACE", str(client.home / "place"))
        where = word.replace("~", str(client.home)).replace("%d", str(client.home)).replace("%r", sshd.user)
        where = where.replace("%h", sshd.host).replace("%p", str(sshd.port)).replace("%n", name)
        where = where.replace("%k", name).replace("${PLACE}", str(client.home / "place")).replace("%%", "%")
        Path(where).parent.mkdir(exist_ok=True)
        shutil.copy(sshd.key, where)
        known = f"HostKeyAlias {name}\n" if "%k" in word else ""
        with sshd.known_hosts.open("a") as file:
            file.write(f"{name} {sshd.host_key()}\n")
        client.configure(f"Host {name}\n{known}")
        assert says(client.host(sshd, name, IdentityFile=f'"{word}"')) == f"{sshd.user} is in\n"


def test_one_machine_in_between(client: Client, sshd: Sshd, hops: list[Sshd]) -> None:
    client.host(hops[0], "gate")
    before = hops[0].logins
    assert says(client.host(sshd, ProxyJump="gate")) == f"{sshd.user} is in\n"
    assert hops[0].logins == before + 1


@pytest.mark.parametrize("how", ["a list", "each names the next"])
def test_two_machines_in_between(client: Client, sshd: Sshd, hops: list[Sshd], how: str) -> None:
    before = [hop.logins for hop in hops]
    client.host(hops[0], "gate1")
    if how == "a list":
        client.host(hops[1], "gate2", HostName="localhost", HostKeyAlias="hop2")
        url = client.host(sshd, ProxyJump=f"{hops[0].user}@gate1:{hops[0].port},gate2")
    else:
        client.host(hops[1], "gate2", ProxyJump="gate1")
        url = client.host(sshd, ProxyJump=f"ssh://gate2:{hops[1].port}")
    assert says(url) == f"{sshd.user} is in\n"
    assert [hop.logins for hop in hops] == [count + 1 for count in before]


def test_a_machine_in_between_that_leads_nowhere(client: Client, sshd: Sshd, hops: list[Sshd]) -> None:
    client.host(hops[0], "gate")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    text = refusal(client.host(sshd, ProxyJump="gate", Port=port))
    assert f"127.0.0.1 port {port} cannot be reached from the machine before it" in text
    client.host(sshd, "around", ProxyJump="about")
    client.host(sshd, "about", ProxyJump="around")
    assert "ProxyJump leads through more than 8 machines" in refusal("ssh://around")
    assert "its ProxyJump cannot be read: '$(x)' is no host" in refusal(client.host(sshd, "odd", ProxyJump="$(x)"))


def test_a_proxy_command_that_fails_has_its_say(client: Client, sshd: Sshd) -> None:
    url = client.host(sshd, ProxyCommand="sh -c 'echo the gate is shut >&2; exit 1'")
    assert refusal(url) == "there: its ProxyCommand says: the gate is shut"
    assert "closes the connection at once" in refusal(client.host(sshd, "mute", ProxyCommand="true"))


def test_a_proxy_command_ends_with_the_connection(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = f"bash -c 'echo $$ >{pid}; exec 3<>/dev/tcp/%h/%p; cat <&3 & trap \"\" PIPE; cat >&3; sleep 1000'"
    says(client.host(sshd, ProxyCommand=command))
    until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists(), 10)


def test_without_the_ssh_program_its_configuration_is_read_all_the_same(
    client: Client, sshd: Sshd, hops: list[Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = client.host(sshd, ProxyJump="gate")
    client.host(hops[0], "gate")
    client.configure("Host *\n ProxyCommand none")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert says(url) == f"{sshd.user} is in\n"
    assert says(f"ssh://{hops[0].user}@gate:{hops[0].port}") == f"{sshd.user} is in\n"
    client.host(sshd, "other", IdentityFile=tmp_path / "none")
    assert says(Address("other", identity=str(sshd.key)).url) == f"{sshd.user} is in\n"
    client.config.write_text("nonsense\n")
    assert refusal(url) == "there: the ssh configuration cannot be read: Unparsable line nonsense"


# who we are


class Agent:
    """A private ssh-agent, whose keys are added without anybody being asked."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder / "agent")
        self.pass_file = folder / "askpass"
        self._process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", self.place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: os.path.exists(self.place), 10)

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


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory for sockets, whose names must be short."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


@pytest.fixture
def agent(sockets: Path) -> Iterator[Agent]:
    agent = Agent(sockets)
    yield agent
    agent.stop()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_keys_of_all_kinds(client: Client, sshd: Sshd, tmp_path: Path, kind: str, form: str) -> None:
    key = new_key(tmp_path / "key", kind, form=form)
    admit(sshd, key)
    assert says(client.host(sshd, IdentityFile=key)) == f"{sshd.user} is in\n"
    key.with_suffix(".pub").unlink()
    assert says(client.host(sshd, "alone", IdentityFile=key)) == f"{sshd.user} is in\n"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("said", ["SSH_AUTH_SOCK", "IdentityAgent", "a variable", "a public key file"])
def test_the_agent_holds_an_encrypted_key(
    client: Client, sshd: Sshd, agent: Agent, tmp_path: Path, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "key", kind, "let me in")
    admit(sshd, key)
    agent.add(key, "let me in")
    options: dict[str, object] = {"IdentityFile": key}
    if said == "IdentityAgent":
        options["IdentityAgent"] = agent.place
    elif said == "a variable":
        monkeypatch.setenv("MY_AGENT", agent.place)
        options["IdentityAgent"] = "$MY_AGENT"
    else:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    if said == "a public key file":
        key.unlink()
        options["IdentityFile"] = f"{key}.pub"
    elif kind != "rsa":
        key.with_suffix(".pub").unlink()  # the private one says it too
    assert says(client.host(sshd, **options)) == f"{sshd.user} is in\n"


def test_of_an_agents_many_keys_those_named_count(
    client: Client, sshd: Sshd, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    for number in range(7):
        agent.add(new_key(tmp_path / f"wrong{number}"))
    agent.add(key := new_key(tmp_path / "key"))
    admit(sshd, key)

    def attempts() -> int:
        return len(re.findall("^(Failed|Postponed) publickey", sshd.log(), re.MULTILINE))

    before = attempts()
    assert says(client.host(sshd, IdentityFile=key)) == f"{sshd.user} is in\n"
    assert says(client.host(sshd, "open", IdentityFile=key, IdentitiesOnly="no")) == f"{sshd.user} is in\n"
    assert attempts() == before
    text = refusal(client.host(sshd, "wide", IdentityFile=None, IdentitiesOnly="no"))
    assert text.startswith(f"wide does not let {sshd.user} in and closed the connection\n")
    assert "Too many keys" in text
    assert "IdentitiesOnly yes" in text


def test_an_agent_that_does_not_sign_is_no_obstacle(
    client: Client, sshd: Sshd, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    admit(sshd, key := new_key(tmp_path / "key"))
    agent.add(key, "", "-c")  # to be confirmed, and there is nobody
    url = client.host(sshd, IdentityFile=f"{sshd.key}\n  IdentityFile {key}")
    assert says(url) == f"{sshd.user} is in\n"
    text = refusal(client.host(sshd, "strict", IdentityFile=f"{key}.pub"))
    assert "the agent refuses" in text
    assert "holds no private key, and no agent has it" not in text


def test_an_agent_may_be_disregarded(
    client: Client, sshd: Sshd, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    other = new_key(tmp_path / "other")
    agent.add(other)
    for only in ("no", "yes"):  # what the agent has is tried once, and not from the file too
        (line,) = commands(refusal(client.host(sshd, f"once{only}", IdentityFile=other, IdentitiesOnly=only)))
        assert line.startswith("the agent's key ")
    admit(sshd, key := new_key(tmp_path / "key"))
    agent.add(key)
    third = new_key(tmp_path / "third")
    assert commands(refusal(client.host(sshd, "only", IdentityFile=third))) == [f"{third}: refused"]
    without = client.host(sshd, "without", IdentityFile=third, IdentitiesOnly="no", IdentityAgent="none")
    assert commands(refusal(without)) == [f"{third}: refused"]
    assert says(client.host(sshd, "open", IdentityFile=third, IdentitiesOnly="no")) == f"{sshd.user} is in\n"


def test_an_agent_that_is_gone_is_no_obstacle(
    client: Client, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    assert says(client.host(sshd)) == f"{sshd.user} is in\n"
    text = refusal(client.host(sshd, "other", IdentityFile=new_key(tmp_path / "key")))
    assert f"agent at {tmp_path}/gone: No such file or directory" in text
    stuck = socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "s"))
    monkeypatch.setattr(ssh_login, "_AGENT_TIMEOUT", 0.2)
    with stuck:
        assert says(client.host(sshd, "third")) == f"{sshd.user} is in\n"


@pytest.fixture(scope="module")
def authority() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="authority-"))
    yield new_key(folder / "ca")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def certified(authority: Path) -> Iterator[Sshd]:
    """A machine that knows no key, only an authority."""
    with sshd_service.running(
        name="certified", options=[f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none"]
    ) as server:
        yield server


def sign(authority: Path, key: Path, user: str, *options: str) -> Path:
    keygen("-q", "-s", authority, "-I", "tests", "-n", user, *options, f"{key}.pub")
    return key.with_name(f"{key.name}-cert.pub")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("where", ["beside the key", "CertificateFile", "agent", "agent has the key alone"])
def test_certificates(
    client: Client,
    certified: Sshd,
    authority: Path,
    agent: Agent,
    tmp_path: Path,
    kind: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = new_key(tmp_path / "key", kind)
    assert "refused" in refusal(client.host(certified, "before", IdentityFile=key))
    certificate = sign(authority, key, certified.user)
    options: dict[str, object] = {"IdentityFile": key}
    if where.startswith("agent"):
        monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    if where == "agent":
        agent.add(key)
        certificate.unlink()
        key.unlink()
        options["IdentityFile"] = f"{key}.pub"
    elif where != "beside the key":
        options["CertificateFile"] = certificate.rename(tmp_path / "passport.pub")
        if where == "agent has the key alone":
            agent.add(key)
            key.unlink()
            options["IdentityFile"] = f"{key}.pub"
    assert says(client.host(certified, **options)) == f"{certified.user} is in\n"


def test_a_certificate_that_has_expired_leaves_the_key(
    client: Client, sshd: Sshd, authority: Path, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "key")
    admit(sshd, key)
    sign(authority, key, sshd.user, "-V", "20200101:20200102")
    assert says(client.host(sshd, IdentityFile=key)) == f"{sshd.user} is in\n"


def test_an_identity_that_is_named_comes_first(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    key = new_key(tmp_path / "my key")
    admit(sshd, key)
    client.host(sshd, IdentityFile=new_key(tmp_path / "wrong"))
    address = Address("there", identity=str(key))
    assert "identity=" in address.url
    assert says(address.url) == f"{sshd.user} is in\n"
    assert says(Address("there", identity=str(key), program=True).url) == f"{sshd.user} is in\n"


# who the machine is


class Known:
    """A file of known hosts, which nobody but the test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, *lines: str) -> None:
        self.path.write_text("".join(f"{line}\n" for line in lines))

    def hash(self) -> None:
        keygen("-q", "-H", "-f", self.path)
        Path(f"{self.path}.old").unlink()


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path / "known")


def place(server: Sshd) -> str:
    return f"[{server.host}]:{server.port}"


def commands(text: str) -> list[str]:
    """The command lines that a message gives."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("before", ["nothing", "others", "an unfinished line", "no directory", "an alias"])
def test_an_unknown_machine_is_refused_and_made_known_by_the_command_told(
    client: Client, sshd: Sshd, known: Known, before: str
) -> None:
    if before == "others":
        known.has(f"elsewhere {sshd.host_key()}")
    elif before == "an unfinished line":
        known.path.write_text(f"elsewhere {sshd.host_key()}")
    elif before == "no directory":
        known.path = client.home / ".ssh" / "more" / "known"
    alias = "another" if before == "an alias" else None
    url = client.host(sshd, UserKnownHostsFile=known.path, HostKeyAlias=alias)
    content = known.path.read_bytes() if known.path.exists() else None
    text = refusal(url)
    assert text.startswith("there is not known by this key")
    assert f"type ssh-ed25519 with the fingerprint {sshd.fingerprint()}." in text
    assert (known.path.read_bytes() if known.path.exists() else None) == content
    (command,) = commands(text)
    assert f"'{alias or place(sshd)} ssh-ed25519 " in command
    subprocess.run(command, shell=True, check=True, env={"PATH": os.environ["PATH"]})
    assert says(url) == f"{sshd.user} is in\n"
    result = subprocess.run(["ssh", "-oBatchMode=yes", "there", "echo ssh too"], capture_output=True, text=True)
    assert result.stdout == "ssh too\n", result.stderr
    assert stat.S_IMODE(known.path.parent.stat().st_mode) & 0o022 == 0
    if content:
        assert known.path.read_bytes().startswith(content)


def test_a_machine_whose_key_has_changed_is_refused_in_other_words(
    client: Client, sshd: Sshd, known: Known, tmp_path: Path
) -> None:
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    known.has(f"{place(sshd)} {other.strip()}", f"elsewhere {other.strip()}")
    known.hash()
    url = client.host(sshd, UserKnownHostsFile=f"/dev/null {known.path}")
    content = known.path.read_bytes()
    text = refusal(url)
    assert text.startswith("the key of there HAS CHANGED")
    assert sshd.fingerprint() in text
    assert "pose as" in text
    assert known.path.read_bytes() == content
    first, second = commands(text)
    assert first.startswith("ssh-keygen -R")
    for command in (first, second):
        subprocess.run(command, shell=True, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    assert says(url) == f"{sshd.user} is in\n"
    assert len(known.path.read_text().splitlines()) == 2  # the one elsewhere is left


def test_a_key_that_has_changed_in_the_system_s_file(client: Client, sshd: Sshd, known: Known, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    known.has(f"{place(sshd)} {other.strip()}")
    mine = tmp_path / "mine"
    text = refusal(client.host(sshd, UserKnownHostsFile=mine, GlobalKnownHostsFile=known.path))
    remove, add = commands(text)
    assert remove.endswith(str(known.path))
    assert add.endswith(f">> {mine}")
    subprocess.run(add, shell=True, check=True)
    assert says("ssh://there") == f"{sshd.user} is in\n"  # the user's own file says enough


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_machine_is_asked_for_the_key_that_is_known(
    client: Client, sshd: Sshd, known: Known, kind: str, hashed: bool
) -> None:
    known.has(f"{place(sshd)} {sshd.host_key(kind)}")
    if hashed:
        known.hash()
    assert says(client.host(sshd, UserKnownHostsFile=known.path)) == f"{sshd.user} is in\n"


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        (["# a comment", "", "damaged", "other {key}", "{place} {key}"], True),
        (["{place} ssh-ed25519 damaged!", "{place} {key}"], True),
        (["[127.0.*]:{port} {key}"], True),
        (["[127.0.?.1]:{port},!nowhere {key}"], True),
        (["*,![127.0.0.1]:{port} {key}"], True),  # by the portless name
        (["!127.0.0.1,*,![127.0.0.1]:{port} {key}"], False),
        (["*,!127.0.0.1 {key}"], True),
        (["127.0.0.1 {key}"], True),  # without a port: for each
        (["[127.0.0.1]:1 {key}"], False),
        (["[127.0.0.1]:{port}0 {key}"], False),
        (["|1|damaged {key}"], False),
        (["{place} {key}", "@revoked * {key}"], False),
        (["@revoked * {key}"], False),
        (["@cert-authority * {key}"], False),
        (["@cert-authority * {key}", "{place} {key}"], True),
        (["{place} {other}", "{place} {key}"], True),
    ],
)
def test_lines_of_known_hosts(
    client: Client, sshd: Sshd, known: Known, tmp_path: Path, lines: list[str], good: bool
) -> None:
    """The ssh program is asked too: the answer has to be the same."""
    other = " ".join(new_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2])
    values = {"place": place(sshd), "port": sshd.port, "key": sshd.host_key(), "other": other}
    known.has(*(line.format(**values) for line in lines))
    url = client.host(sshd, UserKnownHostsFile=known.path, HostKeyAlgorithms="ssh-ed25519")
    theirs = subprocess.run(
        ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "there", "true"], capture_output=True, text=True
    )
    assert (theirs.returncode == 0) == good, theirs.stderr
    if good:
        assert says(url) == f"{sshd.user} is in\n"
        return
    text = refusal(url)
    assert ("is revoked; ask" in text) == any("revoked" in line for line in lines)
    assert ('ssh_client = "program"' in text) == any("cert-authority" in line for line in lines)


def test_other_types_that_are_known_are_told(client: Client, sshd: Sshd, known: Known, tmp_path: Path) -> None:
    with sshd_service.running(name="old", options=[f"HostKey {new_key(tmp_path / 'host')}"]) as server:
        lines = [line for line in (server.directory / "sshd_config").read_text().splitlines() if "/host_" not in line]
        (server.directory / "sshd_config").write_text("\n".join(lines))
        server.stop()
        server.start()
        known.has(f"{place(server)} {sshd.host_key('rsa')}")
        text = refusal(client.host(server, "old", UserKnownHostsFile=known.path))
        assert "is not known by this key" in text
        assert "known are only keys of other types: ssh-rsa" in text


def test_a_configuration_that_keeps_no_known_hosts(client: Client, sshd: Sshd) -> None:
    text = refusal(client.host(sshd, UserKnownHostsFile="/dev/null", StrictHostKeyChecking="no"))
    (command,) = commands(text)
    assert command.endswith(f">> {client.home}/.ssh/known_hosts")
    assert f"UserKnownHostsFile of the ssh configuration must name {client.home}/.ssh/known_hosts" in text


def test_what_only_the_program_heeds_is_not_passed_over(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    text = refusal(client.host(sshd, RevokedHostKeys=tmp_path / "revoked"))
    assert "RevokedHostKeys" in text
    assert 'ssh_client = "program"' in text


def test_an_authority_for_machines_is_understood_by_the_program(
    client: Client, known: Known, authority: Path, tmp_path: Path
) -> None:
    host = new_key(tmp_path / "host")
    keygen("-q", "-s", authority, "-I", "host", "-h", "-n", "127.0.0.1", f"{host}.pub")
    with sshd_service.running(
        name="vouched", options=[f"HostKey {host}", f"HostCertificate {host}-cert.pub"]
    ) as server:
        public = authority.with_suffix(".pub").read_text().strip()
        known.has(f"@cert-authority * {public}")
        url = client.host(server, UserKnownHostsFile=known.path)
        assert 'ssh_client = "program"' in refusal(url)
        assert says(f"{url}?client=program") == f"{server.user} is in\n"


# what is said when it does not work


def test_no_such_machine(client: Client) -> None:
    assert "there is no machine 'no.such.machine.invalid' (" in refusal("ssh://no.such.machine.invalid")
    assert refusal(f"ssh://{'a' * 70}").startswith("a" * 70)


def test_nobody_listens(client: Client, sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    text = refusal(client.host(sshd, Port=port))
    assert text == f"there: 127.0.0.1 port {port}: Connection refused; does a machine with SSH answer there?"


def test_the_network_gives_no_answer(client: Client, sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        crowd = []
        for _ in range(3):  # nobody takes them, and there is no place for more
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            crowd.append(one)
        began = time.monotonic()
        text = refusal(client.host(sshd, Port=port, ConnectTimeout=1))
        assert text == f"there: 127.0.0.1 port {port} gives no answer within 1 s; is a VPN needed?"
        assert time.monotonic() - began < 5
        for one in crowd:
            one.close()


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
        with connection:
            connection.sendall(first)
            then(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_server_that_says_nothing(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_LOGIN_TIMEOUT", 0.5)
    for words in (b"", b"SSH-2.0-OpenSSH_9.0\r\n"):
        with speaking(words, lambda connection: [None for _ in iter(lambda: connection.recv(4096), b"")]) as port:
            began = time.monotonic()
            text = refusal(client.host(sshd, f"mute{port}", Port=port))
            assert f"127.0.0.1 port {port} takes the connection and says nothing within 0.5 s" in text
            assert time.monotonic() - began < 2


def test_a_server_that_is_none_of_ssh(client: Client, sshd: Sshd) -> None:
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200) as port:
        text = refusal(client.host(sshd, Port=port))
        assert text == f"there: what answers on 127.0.0.1 port {port} is no SSH server"
    with speaking(b"") as port:
        text = refusal(client.host(sshd, "shut", Port=port))
        assert text == f"shut: 127.0.0.1 port {port} closes the connection at once; does it let this machine in?"


def test_no_method_in_common(client: Client) -> None:
    with sshd_service.running(name="modern", options=["Ciphers chacha20-poly1305@openssh.com"]) as server:
        text = refusal(client.host(server))
        assert "and paramiko have no method in common" in text
        assert 'ssh_client = "program"' in text
        assert says("ssh://there?client=program") == f"{server.user} is in\n"


def test_a_key_that_is_refused(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    text = refusal(client.host(sshd, IdentityFile=key))
    first, second, *_ = text.splitlines()
    assert first == f"there does not let {sshd.user} in; it takes publickey"
    assert second == f"  {key}: refused"


def test_a_user_who_is_unknown(client: Client, sshd: Sshd) -> None:
    text = refusal(client.host(sshd, User="nosuchuser"))
    assert "there does not let nosuchuser in" in text
    assert f"{sshd.key}: refused" in text


def test_a_key_file_that_others_can_read(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    key = Path(shutil.copy(sshd.key, tmp_path / "my key"))
    key.chmod(0o640)
    text = refusal(client.host(sshd, IdentityFile=f'"{key}"'))
    (said,) = [line for line in commands(text) if "not used" in line]
    assert said == f"{key}: not used, as others can read it (mode 0640): chmod 600 '{key}'"
    subprocess.run(said.rpartition("): ")[2], shell=True, check=True)
    assert says("ssh://there") == f"{sshd.user} is in\n"


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_an_encrypted_key_that_no_agent_holds(client: Client, sshd: Sshd, tmp_path: Path, form: str) -> None:
    key = new_key(tmp_path / "key", "rsa", "let me in", form)
    text = refusal(client.host(sshd, IdentityFile=key))
    assert f"{key}: has a passphrase, and no agent holds it: ssh-add {key}\n" in text
    assert "%execute_login there" in text


def test_key_files_that_are_missing_or_none(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    gone, odd, public = tmp_path / "gone", tmp_path / "odd", tmp_path / "public"
    odd.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----\n")
    odd.chmod(0o600)
    public.write_text("nothing of a key")
    text = refusal(client.host(sshd, IdentityFile="\n  IdentityFile ".join(map(str, (gone, odd, public, tmp_path)))))
    assert f"{gone}: there is no such file\n" in text
    assert f"{odd}: cannot be used: " in text
    assert f"{public}: holds no private key, and no agent has it\n" in text
    for client_ in (False, True):
        address = Address("there", identity=str(gone), program=client_)
        assert refusal(address.url) == f"there: there is no key file {gone}"
    text = refusal(client.host(sshd, "usual", IdentityFile=None))
    assert "no key was found: ssh-keygen makes one, ssh-copy-id sends it" in text
    assert "no such file" not in text


def test_a_configuration_that_is_broken(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.config.write_text("Host there\n  Prot 22\n")
    text = refusal("ssh://there")
    assert text.startswith("there: ssh cannot read its configuration: ")
    assert f"{client.config} line 2" in text or f"{client.config}: line 2" in text
    assert "prot" in text.lower()
    client.config.write_text('Match exec "sleep 20"\n  Port 22\n')
    monkeypatch.setattr(ssh_config, "_TIMEOUT", 0.3)
    assert refusal("ssh://there") == "there: ssh -G gives no answer within 0.3 s; see Match in ~/.ssh/config"


def test_nothing_of_paramiko_is_logged_unless_asked_for(
    client: Client, sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log has tracebacks, and where no logging is configured Python prints errors to the notebook."""
    caplog.set_level(logging.WARNING)
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200) as port:
        refusal(client.host(sshd, Port=port))
    assert caplog.text == ""


# what answers behind the login


class LoginShell:
    """A machine whose user has a login shell of the test's choice."""

    def __init__(self, server: Sshd, program: Path) -> None:
        self.server = server
        self._program = program
        self.profile = server.home / ".bash_profile"

    def is_(self, words: str, before: str = "") -> None:
        self._program.write_text(f"#!/bin/sh\n{before}\nexec {words}\n")
        self._program.chmod(0o755)


@pytest.fixture(scope="module")
def shells() -> Iterator[LoginShell]:
    folder = Path(tempfile.mkdtemp(prefix="shell-"))
    (folder / "banner").write_text("All that you do is watched.\n" * 100)
    with sshd_service.running(
        name="shells", shell=f"{folder}/shell", options=[f"Banner {folder}/banner"], environment={"FROM": "sshd"}
    ) as server:
        yield LoginShell(server, folder / "shell")
    shutil.rmtree(folder)


@pytest.fixture
def login_shell(shells: LoginShell, client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoginShell]:
    monkeypatch.setattr(remote, "_BEGIN_TIMEOUT", 2.0)
    client.host(shells.server)
    shells.is_('bash "$@"')
    yield shells
    shells.profile.unlink(missing_ok=True)


@pytest.mark.parametrize("client_", ["paramiko", "program"])
@pytest.mark.parametrize("shell", ["bash", "dash", "tcsh", "fish", "noisy"])
def test_login_shells(login_shell: LoginShell, shell: str, client_: str, tmp_path: Path) -> None:
    if shell != "noisy" and not shutil.which(shell):
        if os.environ.get("CI") == "true":
            pytest.fail(f"{shell} is not installed")
        pytest.skip(f"NOT EXERCISED: {shell} is not installed")
    login_shell.is_(
        'bash "$@"' if shell == "noisy" else f'{shell} "$@"',
        "echo Message of the day; echo more >&2; seq 20000" if shell == "noisy" else "",
    )
    login_shell.profile.write_text("export FROM=profile\n")
    there = ssh.transport(f"ssh://there?client={client_}")
    assert there.run(["printenv", "FROM"], timeout=20).stdout == "profile\n"
    there.create(NewDirectory(f"{tmp_path}/made", {"a": (b"some\0thing", 0o600)}))
    assert there.read(f"{tmp_path}/made/a") == b"some\0thing"


@pytest.mark.parametrize(
    ("profile", "from_"),
    [
        ("export FROM=profile; echo noise; echo noise >&2; seq 100000", "profile"),
        ("export FROM=profile; read answer; cat; read -r -u 0 more", "profile"),
        ("export FROM=profile; set -e; false", "sshd"),
        ("export FROM=profile; sleep 60", "sshd"),
        ("exec cat", "sshd"),
        ("exec sleep 60", "sshd"),
        ("exit 3", "sshd"),
        ("exec >/dev/null 2>&1 <&-; export FROM=profile", "sshd"),
    ],
    ids=["noise", "reads", "set -e", "hangs", "other program", "other program that hangs", "exit", "redirects"],
)
def test_profiles(login_shell: LoginShell, profile: str, from_: str) -> None:
    login_shell.profile.write_text(f"{profile}\n")
    there = ssh.transport("ssh://there")
    assert there.run(["printenv", "FROM"], timeout=20).stdout == f"{from_}\n"
    assert there.run(["printenv", "FROM"], timeout=20).stdout == f"{from_}\n"


@pytest.mark.parametrize("client_", ["paramiko", "program"])
@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("/bin/false", "it said nothing"),
        ("/usr/sbin/nologin", "This account is currently not available"),
        ('rbash "$@"', "restricted"),
        ("sh -c 'echo no bash here; exit 127'", "it said: no bash here"),
        ("/no/such/shell", "not found"),
        ("cat", "within 2 s; it said: "),
    ],
    ids=["false", "nologin", "rbash", "no bash", "no shell", "echo"],
)
def test_accounts_without_a_shell(login_shell: LoginShell, shell: str, said: str, client_: str) -> None:
    login_shell.is_(shell)
    with pytest.raises(Unreachable) as caught:
        ssh.transport(f"ssh://there?client={client_}").run(["true"], timeout=20)
    text = str(caught.value)
    assert text.startswith("there lets us in, but no /bin/bash answers there")
    assert said in text
    assert "Traceback" not in text


# logins that ask


@pytest.fixture(scope="module")
def guarded_daemon() -> Iterator[Interactive]:
    with interactive_service.running() as server:
        yield server


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
        return {"code": self.server.code}.get("code" if "code" in prompt else "", PASSWORD)

    def logins(self, user: str) -> int:
        return self.server.logins[user] - self.before.get(user, 0)


@pytest.fixture
def guarded(guarded_daemon: Interactive, client: Client) -> Guarded:
    for user in USERS:
        client.configure(guarded_daemon.block(user, user))
    return Guarded(guarded_daemon)


USERS = {
    "password": ["(password@password) Password: "],
    "interactive": ["(interactive@interactive) Password: ", "(interactive@interactive) One-time code: "],
    "twofactor": ["(twofactor@twofactor) One-time code: "],
}


@pytest.mark.parametrize("user", USERS)
def test_where_somebody_has_to_be_asked_nobody_is_asked_by_the_way(guarded: Guarded, user: str) -> None:
    text = refusal(f"ssh://{user}")
    assert text.startswith(f"{user} does not let {user} in")
    assert f"%execute_login {user}" in text
    if user == "twofactor":
        assert f"{guarded.server.key}: accepted, but keyboard-interactive is wanted too" in text
    assert guarded.logins(user) == 0


@pytest.mark.parametrize("user", USERS)
def test_a_login_with_the_right_answers_is_used_from_then_on(guarded: Guarded, user: str) -> None:
    url = f"ssh://{user}"
    there = ssh.transport(url)
    with pytest.raises(Unreachable, match="%execute_login"):
        there.run(["true"], timeout=20)
    ssh.login(url, guarded.ask)
    assert guarded.prompts == USERS[user]
    for _ in range(2):
        assert ssh.transport(url).run(["echo", "in"], timeout=20).stdout == "in\n"
    assert there is ssh.transport(url)
    assert guarded.logins(user) == 1
    assert submit_script("echo a job", host=user).result(60) == "a job\n"
    assert (guarded.logins(user), guarded.prompts) == (1, USERS[user])
    ssh.logout(url)
    until(lambda: not guarded.server._connections, 10)
    with pytest.raises(Unreachable, match="%execute_login"):
        there.run(["true"], timeout=20)


@pytest.mark.parametrize("user", USERS)
def test_a_connection_that_is_lost_wants_a_login_again(guarded: Guarded, user: str) -> None:
    url = f"ssh://{user}"
    ssh.login(url, guarded.ask)
    assert ssh.transport(url).run(["echo", "in"], timeout=20).stdout == "in\n"
    guarded.server.drop()
    noticed(ssh.transport(url))
    with pytest.raises(Unreachable, match="%execute_login"):
        ssh.transport(url).run(["true"], timeout=20)
    ssh.login(url, guarded.ask)
    assert ssh.transport(url).run(["echo", "in"], timeout=20).stdout == "in\n"


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("wrong", ["Password", "code"])
def test_a_wrong_answer(guarded: Guarded, user: str, wrong: str) -> None:
    prompts = USERS[user]
    if not any(wrong in prompt for prompt in prompts):
        return
    guarded.answers[wrong] = "mistyped"
    with pytest.raises(Unreachable) as caught:
        ssh.login(f"ssh://{user}", guarded.ask)
    text = str(caught.value)
    method = "password" if user == "password" else "keyboard-interactive"
    assert text.startswith(f"{user} does not let {user} in")
    assert f"\n  {method}: refused" in text
    assert "mistyped" not in text
    assert guarded.prompts == prompts[: 1 + next(i for i, prompt in enumerate(prompts) if wrong in prompt)]
    assert guarded.logins(user) == 0
    guarded.answers.clear()
    ssh.login(f"ssh://{user}", guarded.ask)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, EOFError])
def test_whoever_gives_up_at_a_question_has_no_connection(
    guarded: Guarded, user: str, kind: type[BaseException]
) -> None:
    def ask(prompt: str, echo: bool) -> str:
        raise kind

    before = threading.active_count()
    with pytest.raises(kind):
        ssh.login(f"ssh://{user}", ask)
    until(lambda: not guarded.server._connections, 10)
    until(lambda: threading.active_count() <= before, 10)


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_the_passphrase_of_a_key_is_asked_for(
    client: Client, sshd: Sshd, guarded: Guarded, tmp_path: Path, form: str
) -> None:
    key = new_key(tmp_path / "key", "ecdsa", "let me in", form)
    admit(sshd, key)
    url = client.host(sshd, IdentityFile=f"{key}\n  IdentityFile {tmp_path}/gone")
    guarded.answers["Passphrase"] = "wrong"
    with pytest.raises(Unreachable, match="key: that is not its passphrase"):
        ssh.login(url, guarded.ask)
    guarded.answers["Passphrase"] = "let me in"
    guarded.prompts.clear()
    ssh.login(url, guarded.ask)
    assert guarded.prompts == [f"Passphrase of {key}: "]
    assert ssh.transport(url).run(["echo", "in"], timeout=20).stdout == "in\n"


def test_no_passphrase_is_asked_for_where_another_key_will_do(
    client: Client, sshd: Sshd, guarded: Guarded, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "key", passphrase="let me in")
    ssh.login(client.host(sshd, IdentityFile=f"{key}\n  IdentityFile {sshd.key}"), guarded.ask)
    assert guarded.prompts == []


def test_a_gate_that_asks_and_a_machine_behind_it(client: Client, sshd: Sshd, guarded: Guarded) -> None:
    """The first one passes nothing on, so what counts here is that it was asked for and what is said."""
    url = client.host(sshd, ProxyJump="twofactor")
    assert "%execute_login" in refusal(url)
    with pytest.raises(Unreachable, match="cannot be reached from the machine before it"):
        ssh.login(url, guarded.ask)
    assert guarded.prompts == USERS["twofactor"]


# the ssh program


def with_program(url: str) -> str:
    return f"{url}?client=program"


def test_the_program_says_itself_what_is_wrong(client: Client, sshd: Sshd, known: Known, tmp_path: Path) -> None:
    text = refusal(with_program(client.host(sshd, IdentityFile=new_key(tmp_path / "key"))))
    assert text == f"ssh there says: {sshd.user}@127.0.0.1: Permission denied (publickey)."
    known.has()
    url = client.host(sshd, "stranger", UserKnownHostsFile=known.path, StrictHostKeyChecking="no")
    text = refusal(with_program(url))
    assert "Host key verification failed" in text
    assert known.path.read_text() == ""


def test_the_program_asks_nobody(guarded: Guarded) -> None:
    text = refusal("ssh://interactive?client=program")
    assert "Permission denied (keyboard-interactive" in text
    assert "ControlMaster" in text


def test_no_program(client: Client, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = client.host(sshd)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "PATH has none" in refusal(with_program(url))


def test_a_program_that_gives_no_answer(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_LOGIN_TIMEOUT", 0.5)
    with speaking(b"", lambda connection: [None for _ in iter(lambda: connection.recv(4096), b"")]) as port:
        text = refusal(with_program(client.host(sshd, Port=port)))
        assert text == "ssh there gave no answer within 0.5 s"


def test_a_master_connection_is_used(
    client: Client, sshd: Sshd, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = client.host(sshd, "shared", ControlPath=f"{sockets}/%C")
    master = subprocess.Popen(["ssh", "-M", "-N", "shared"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: os.listdir(sockets), 20)
        before = sshd.logins
        there = ssh.transport(with_program(url))
        assert [there.run(["echo", str(n)], timeout=20).stdout for n in range(3)] == ["0\n", "1\n", "2\n"]
        monkeypatch.setattr(settings, "ssh_client", "program")
        assert submit_script("echo a job", host="shared").result(60) == "a job\n"
        assert sshd.logins == before
    finally:
        master.terminate()
        master.wait()
    noticed(there)
    assert there.run(["echo", "on its own"], timeout=20).stdout == "on its own\n"
    assert sshd.logins > before


def test_a_master_that_stays_holds_nobody_up(client: Client, own_sshd: Sshd, sockets: Path) -> None:
    url = client.host(own_sshd, ControlPath=f"{sockets}/%C", ControlMaster="auto", ControlPersist="60")
    before, began = own_sshd.logins, time.monotonic()
    there = ssh.transport(with_program(url))
    assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
    ssh.logout(with_program(url))
    assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
    assert time.monotonic() - began < 10
    assert own_sshd.logins == before + 1
    subprocess.run(["ssh", "-O", "exit", "there"], check=True, capture_output=True)


def test_what_else_the_configuration_wants_of_the_program_does_no_harm(
    client: Client, sshd: Sshd, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.place)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = client.host(
        sshd,
        RemoteCommand="sleep 1000",
        RequestTTY="force",
        LocalForward=f"{port} localhost:22",
        DynamicForward=f"{port}",
        ExitOnForwardFailure="yes",
        ForwardX11="yes",
        ForwardAgent="yes",
        PermitLocalCommand="yes",
        LocalCommand=f"echo noise; touch {tmp_path}/touched",
    )
    there = ssh.transport(with_program(url))
    assert there.run(["sh", "-c", "echo in $SSH_AUTH_SOCK"], timeout=20).stdout == "in\n"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not (tmp_path / "touched").exists()


def test_a_connection_that_was_let_go_opens_nothing(url: str) -> None:
    connection = ssh.connect(parse_url(url))
    stream = connection.open("cat")
    assert connection.alive()
    connection.close()
    assert not connection.alive()
    with pytest.raises(TransportError, match="no further session can be opened"):
        connection.open("cat")
    try:
        assert stream.receive(5) == b""
    except OSError:
        pass
    with pytest.raises(OSError):
        until(lambda: stream.send(b"x"), 5)
    stream.close()


def test_no_process_of_the_program_is_left(client: Client, sshd: Sshd) -> None:
    url = with_program(client.host(sshd, "mine"))
    there = ssh.transport(url)
    there.run(["true"], timeout=20)
    marks = there.marks("/nowhere", lambda: None)
    mine = lambda: [pid for pid in children() if b"\0mine\0" in cmdline(pid)]  # noqa: E731
    until(lambda: len(mine()) > 1, 10)
    del marks
    ssh.logout(url)
    left = mine()
    until(lambda: not set(left) & set(mine()), 10)


def children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with_parent = Path(f"/proc/{name}/stat")
        try:
            if int(with_parent.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
        except OSError:
            continue
    return found


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# what the connection carries, and its end


def noticed(there: remote.Remote) -> None:
    """Wait until the end of a connection has come to be known here."""
    until(lambda: there._connection is None or not there._connection.alive(), 20)


@pytest.fixture(params=["paramiko", "program"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(which: str, client: Client, own_sshd: Sshd) -> str:
    """A machine that may be stopped, by both clients. The feed of an earlier test, which tries again, knows no way."""
    return f"{client.host(own_sshd, f'own{next(NUMBERS)}')}?client={which}"


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[Sshd]:
    with sshd_service.running(name="own") as server:
        yield server


@pytest.fixture
def own_sshd(own_daemon: Sshd) -> Iterator[Sshd]:
    yield own_daemon
    if own_daemon._process is None:
        own_daemon.start()


def test_ten_megabytes_each_way(url: str, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    there = ssh.transport(url)
    there.create(NewDirectory(f"{tmp_path}/made", {"a": (data, 0o600), "b": (b"", 0o644), "c": (b"after", 0o700)}))
    assert there.read(f"{tmp_path}/made/a") == data
    assert there.read(f"{tmp_path}/made/a", 5 << 20, 1000) == data[5 << 20 :][:1000]
    assert there.texts([f"{tmp_path}/made/b", f"{tmp_path}/made/c"]) == {
        f"{tmp_path}/made/b": "",
        f"{tmp_path}/made/c": "after",
    }
    assert (tmp_path / "made" / "a").read_bytes() == data


def test_a_script_of_ten_megabytes(client: Client, sshd: Sshd, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ssh_client", which)
    client.host(sshd, "big")
    script = "#!/bin/bash\n" + ": 'a comment of sixty-four characters, that is to be repeated often.'\n" * 150_000
    assert len(script) > 10_000_000
    job = submit_script(script + "echo the end\n", host="big")
    assert job.result(120) == "the end\n"


def test_marks_and_what_a_file_gets_come_by_themselves(url: str, tmp_path: Path) -> None:
    there = ssh.transport(url)
    woken = threading.Event()
    folder, file = tmp_path / "root" / "events", tmp_path / "growing"
    folder.mkdir(parents=True)
    marks = there.marks(str(folder), woken.set)
    growing = there.follow(str(file), 0, woken.set)
    (folder / "30000101T000000-2.0.started").touch()
    assert list(until(marks.fresh, 10)) == ["30000101T000000-2.0.started"]
    file.write_bytes(b"one")
    assert until(lambda: growing.read(100), 10) == b"one"
    with file.open("ab") as more:
        more.write(b"two")
    assert until(lambda: growing.read(100), 10) == b"two"
    assert woken.is_set()


def test_one_login_for_all(client: Client, own_sshd: Sshd) -> None:
    there = ssh.transport(client.host(own_sshd, "one"))
    before = own_sshd.logins
    said: list[str] = []

    def work(number: int) -> None:
        said.extend(there.run(["echo", f"{number}"], timeout=20).stdout for _ in range(5))

    threads = [threading.Thread(target=work, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 60
    assert own_sshd.logins == before + 1


def test_a_server_that_was_away_is_connected_to_anew(url: str, own_sshd: Sshd) -> None:
    there = ssh.transport(url)
    for number in range(3):
        before = own_sshd.logins
        assert there.run(["echo", f"{number}"], timeout=20).stdout == f"{number}\n"
        if number and "paramiko" in url:
            assert own_sshd.logins == before + 1
        own_sshd.stop()
        noticed(there)
        with pytest.raises(Unreachable, match="onnection refused"):
            there.run(["true"], timeout=20)
        own_sshd.start()
        there._refused = None  # else it is not tried again for two seconds


def test_a_connection_that_died_while_idle_is_replaced_before_it_is_used(url: str, own_sshd: Sshd) -> None:
    there = ssh.transport(url)
    for number in range(5):
        assert there.run(["echo", f"{number}"], timeout=20).stdout == f"{number}\n"
        own_sshd.drop()
        noticed(there)


@contextmanager
def by_proxy(client: Client, server: Sshd, which: str) -> Iterator[tuple[Proxy, str]]:
    with Proxy(server.host, server.port) as proxy:
        url = client.host(server, "far", Port=proxy.port, HostKeyAlias=server.name)
        yield proxy, f"{url}?client={which}"
        ssh.logout(f"{url}?client={which}")


def test_a_connection_that_is_half_open_is_given_up(
    client: Client, own_sshd: Sshd, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SILENCE", 6.5)  # a sign of life comes each five seconds
    monkeypatch.setattr(ssh, "_LOGIN_TIMEOUT", 1.0)
    with by_proxy(client, own_sshd, which) as (proxy, url):
        there = ssh.transport(url)
        assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
        marks = there.marks("/nowhere", lambda: None)
        time.sleep(0.5)
        connection = there.connection()
        proxy.stall()
        until(lambda: there._connection is not connection, 10)
        proxy.cut()
        proxy.resume()
        assert until(lambda: there.run(["echo", "again"], timeout=20).stdout, 20) == "again\n"
        del marks


@pytest.mark.parametrize("size", [0, 10 << 20])
def test_calls_on_a_half_open_connection_end(
    client: Client, own_sshd: Sshd, which: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_LOGIN_TIMEOUT", 1.0)
    monkeypatch.setattr(ssh, "_OPEN_TIMEOUT", 1.0)
    monkeypatch.setattr(ssh, "_SEND_TIMEOUT", 2.0)
    monkeypatch.setattr(remote, "_BEGIN_TIMEOUT", 2.0)
    with by_proxy(client, own_sshd, which) as (proxy, url):
        there = ssh.transport(url)
        assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(TransportError):
            there.run(["cat"], timeout=2, put={f"{tmp_path}/file": b"x" * size} if size else None)
        assert time.monotonic() - began < 15
        proxy.cut()
        proxy.resume()
        assert until(lambda: there.run(["echo", "again"], timeout=20).stdout, 20) == "again\n"


def test_a_server_that_takes_no_further_session(client: Client) -> None:
    with sshd_service.running(name="narrow", options=["MaxSessions 1"]) as server:
        connection = ssh.connect(parse_url(client.host(server)))
        first = connection.open("cat")
        with pytest.raises(TransportError, match="no further session can be opened"):
            connection.open("cat")
        first.close()
        connection.close()


# nobody else's business


def listening() -> set[str]:
    """The sockets of this process that listen."""
    mine = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    found = set()
    for kind, state in (("tcp", (3, "0A")), ("tcp6", (3, "0A"))):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[state[0]] == state[1] and f"socket:[{words[9]}]" in mine:
                found.add(words[1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "00010000" and f"socket:[{words[6]}]" in mine:
            found.add(words[-1])
    return found


def test_nothing_listens(url: str, sshd: Sshd) -> None:
    before = listening()
    there = ssh.transport(url)
    assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
    marks = there.marks("/nowhere", lambda: None)
    assert listening() == before
    del marks


@pytest.mark.parametrize("user", USERS)
def test_secrets_stay_in_memory(
    guarded: Guarded, user: str, client: Client, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, ssh._LOG)
    secrets = [PASSWORD, guarded.server.code]
    lines: list[bytes] = []

    def look() -> None:
        lines.extend(cmdline(int(name)) for name in os.listdir("/proc") if name.isdigit())

    def ask(prompt: str, echo: bool) -> str:
        look()
        return guarded.ask(prompt, echo)

    ssh.login(f"ssh://{user}", ask)
    there = ssh.transport(f"ssh://{user}")
    there.run(["true"], timeout=20)
    look()
    connection: Any = there.connection()
    (transport,) = connection._transports
    texts = [repr(vars(one)) for one in (there, connection, transport, transport.auth_handler, *there._idle)]
    texts += [repr(there), repr(connection), repr(there.environment), caplog.text]
    assert "successful" in caplog.text  # so paramiko was listened to
    files = [path.read_bytes() for path in [*client.home.rglob("*"), *tmp_path.rglob("*")] if path.is_file()]
    for secret in secrets:
        assert not any(secret in text for text in texts)
        assert not any(secret.encode() in data for data in [*lines, *files])


HOSTILE = [
    "-oProxyCommand=touch {mark}",
    "-F{mark}",
    "a;touch {mark}",
    "$(touch {mark})",
    "`touch {mark}`",
    "a\ntouch {mark}",
    "a|touch {mark}",
    "$(touch${{IFS}}{mark})@there",
    ";touch {mark};@there",
    "-l@there",
    "x@-oProxyCommand=touch {mark}",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_never_reaches_a_shell(client: Client, sshd: Sshd, hostile: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    client.host(sshd, "*", ProxyCommand="sh -c 'echo %n %r %h >&2'")
    host = hostile.format(mark=mark)
    with pytest.raises(BadUsage, match="is no host"):
        submit_script("true", host=host)
    with pytest.raises(ValueError):
        ssh.transport(f"ssh://{host}")
    with pytest.raises(ValueError):
        ssh.login(f"ssh://{host}?client=program", lambda prompt, echo: "")
    assert not mark.exists()
