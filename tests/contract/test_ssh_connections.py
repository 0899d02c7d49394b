"""How a machine is found, known and logged in to: what OpenSSH's own client does is what has to happen here."""

from __future__ import annotations

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
from execute_batch_scheduler.adapters.transport import Unreachable

from execute_batch_scheduler.adapters import ssh
from tests.contract.behaviour import until
from tests.services import sshd as sshd_service
from tests.services.sshd import Sshd

SSH = shutil.which("ssh") or ""


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


def says(url: str, ask: Optional[ssh.Ask] = None) -> str:
    """What a command over there prints, by a connection of its own."""
    connection = ssh.connect(ssh.parse_url(url), ask)
    try:
        stream = connection.open('echo "$USER" is in')
        text = b""
        while piece := stream.receive(20):
            text += piece
        return text.decode()
    finally:
        connection.close()


def refusal(url: str, ask: Optional[ssh.Ask] = None) -> str:
    """Why there is no connection."""
    with pytest.raises(Unreachable) as caught:
        says(url, ask)
    text = str(caught.value)
    for word in ("Traceback", "Error", "Exception", "paramiko.", "None", "0x"):
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
def agent() -> Iterator[Agent]:
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    agent = Agent(folder)
    yield agent
    agent.stop()
    shutil.rmtree(folder)


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
    key = new_key(tmp_path / "key", kind, "secret")
    admit(sshd, key)
    agent.add(key, "secret")
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


def test_an_agent_that_is_gone_is_no_obstacle(
    client: Client, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    assert says(client.host(sshd)) == f"{sshd.user} is in\n"
    text = refusal(client.host(sshd, "other", IdentityFile=new_key(tmp_path / "key")))
    assert f"agent at {tmp_path}/gone: No such file or directory" in text
    stuck = socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "s"))
    monkeypatch.setattr(ssh, "_AGENT_TIMEOUT", 0.2)
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
    address = ssh.Address("there", identity=str(key))
    assert "identity=" in address.url
    assert says(address.url) == f"{sshd.user} is in\n"
    assert says(ssh.Address("there", identity=str(key), program=True).url) == f"{sshd.user} is in\n"


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


@pytest.mark.parametrize("before", ["nothing", "others", "an unfinished line", "no directory"])
def test_an_unknown_machine_is_refused_and_made_known_by_the_command_told(
    client: Client, sshd: Sshd, known: Known, before: str
) -> None:
    if before == "others":
        known.has(f"elsewhere {sshd.host_key()}")
    elif before == "an unfinished line":
        known.path.write_text(f"elsewhere {sshd.host_key()}")
    elif before == "no directory":
        known.path = known.path.with_name("not there") / "known hosts"
    quoted = f"{known.path}".replace(" ", "?") if before != "no directory" else "~/.ssh/more/known_hosts"
    if before == "no directory":
        known.path = Path("~/.ssh/more/known_hosts").expanduser()
    url = client.host(sshd, UserKnownHostsFile=known.path)
    content = known.path.read_bytes() if known.path.exists() else None
    text = refusal(url)
    assert text.startswith("there is not known by this key")
    assert f"type ssh-ed25519 with the fingerprint {sshd.fingerprint()}." in text
    assert (known.path.read_bytes() if known.path.exists() else None) == content, quoted
    (command,) = commands(text)
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


def test_nothing_listens(client: Client, sshd: Sshd) -> None:
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
        with speaking(words, lambda connection: time.sleep(3)) as port:
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
    key = new_key(tmp_path / "key", "rsa", "secret", form)
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
        address = ssh.Address("there", identity=str(gone), program=client_)
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
    monkeypatch.setattr(ssh, "_LOGIN_TIMEOUT", 0.3)
    assert refusal("ssh://there") == "there: ssh -G gives no answer within 0.3 s; see Match in ~/.ssh/config"


def test_nothing_of_paramiko_is_logged_unless_asked_for(
    client: Client, sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log has tracebacks, and where no logging is configured Python prints errors to the notebook."""
    caplog.set_level(logging.WARNING)
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200) as port:
        refusal(client.host(sshd, Port=port))
    assert caplog.text == ""
