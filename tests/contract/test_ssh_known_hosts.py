"""That a machine is the one it is taken for: as OpenSSH's own client finds out."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.contract.ssh_client import (
    Client,
    Known,
    commands,
    keygen,
    new_key,
    refusal,
    says,
)
from tests.services import sshd as sshd_service
from tests.services.sshd import Sshd


def place(server: Sshd) -> str:
    return f"[{server.host}]:{server.port}"


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
