"""Connections that cannot be made, or lead nowhere: what is said then."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.ssh_config import Address
from execute_batch_scheduler.adapters.transport import NewDirectory, Unreachable

from execute_batch_scheduler import submit_script
from execute_batch_scheduler.adapters import shell, ssh, ssh_config
from tests.contract.ssh_client import (
    Client,
    commands,
    new_key,
    refusal,
    says,
    speaking,
)
from tests.services import sshd as sshd_service
from tests.services.sshd import Sshd

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
    monkeypatch.setattr(shell, "BEGIN_TIMEOUT", 2.0)
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
    assert ("no login shell answers on there" in (there.notice or "")) == (from_ == "sshd")


def test_who_submits_hears_of_a_profile_that_is_left_out_as_long_as_it_is(login_shell: LoginShell) -> None:
    login_shell.profile.write_text("export FROM=profile; exit 3\n")
    job = submit_script("echo $FROM", host="there")
    assert job.result(60) == "sshd\n"
    assert any("no login shell answers on there" in notice for notice in job.notices)
    login_shell.profile.write_text("export FROM=profile\n")
    ssh.logout("ssh://there")
    job = submit_script("echo $FROM", host="there")
    assert job.result(60) == "profile\n"
    assert job.notices == ()


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
