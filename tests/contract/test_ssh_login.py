"""How a machine is found, and how a user is let in: as by OpenSSH's own client."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.ssh_config import Address
from execute_batch_scheduler.adapters.transport import Unreachable

from execute_batch_scheduler import submit_script
from execute_batch_scheduler.adapters import ssh, ssh_login
from tests.contract.behaviour import until
from tests.contract.ssh_client import (
    USERS,
    Agent,
    Client,
    Guarded,
    admit,
    commands,
    keygen,
    new_key,
    noticed,
    refusal,
    says,
)
from tests.services import sshd as sshd_service
from tests.services.sshd import Sshd

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


# logins that ask


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


@pytest.mark.parametrize(
    ("user", "wrong"),
    [(user, wrong) for user in USERS for wrong in ("Password", "code") if wrong in "".join(USERS[user])],
)
def test_a_wrong_answer(guarded: Guarded, user: str, wrong: str) -> None:
    prompts = USERS[user]
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
