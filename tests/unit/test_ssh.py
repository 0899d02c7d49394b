"""What is understood of a machine's name, of known hosts and of key files. That OpenSSH agrees: see the contracts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.known_hosts import fingerprint, known_keys
from execute_batch_scheduler.adapters.ssh_config import Address, parse_host, parse_url

KEY = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)
TEXT = base64.b64encode(KEY).decode()
FOUND = ("", "ssh-ed25519", KEY)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("machine", Address("machine")),
        ("a.b-c_d.example.org", Address("a.b-c_d.example.org")),
        ("10.0.0.1", Address("10.0.0.1")),
        ("user@machine:2222", Address("machine", "user", 2222)),
        ("first.last+x~y-z@machine", Address("machine", "first.last+x~y-z")),
        ("somebody@some.where@machine", Address("machine", "somebody@some.where")),
        (r"DOMAIN\user@machine", Address("machine", r"DOMAIN\user")),
        ("[::1]:22", Address("::1", None, 22)),
        ("me@[fe80::1%eth0]", Address("fe80::1%eth0", "me")),
        ("m:1", Address("m", None, 1)),
        ("m:65535", Address("m", None, 65535)),
    ],
)
def test_hosts(text: str, address: Address) -> None:
    assert parse_host(text) == address
    assert str(address) == text or text == "[fe80::1%eth0]"
    assert parse_url(address.url) == address
    assert address.words[-2:] == ["--", address.host]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-oProxyCommand=x",
        "-x",
        "user@-x",
        "-x@machine",
        "@machine",
        "user@",
        "a b",
        "a;b",
        "a|b",
        "a&b",
        "a\nb",
        "machine\n",
        "$(x)",
        "`x`",
        "'x'",
        '"x"',
        "$(x)@machine",
        "a b@machine",
        "u;x@machine",
        "u'x@machine",
        "u%h@machine",
        "a/b",
        "..",
        "~",
        "*",
        "mäschine",
        "m:",
        "m:0",
        "m:65536",
        "m:99999",
        "m:123456",
        "m:-1",
        "m:x",
        "m:²",
        "::1",
        "[::1",
        "[]",
        "[-x]",
        "[::1]:",
        "ssh://machine",
        "a,b",
        "a=b",
        "%h",
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="is no host; say machine, user@machine or user@machine:2222"):
        parse_host(text)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://machine", Address("machine")),
        ("ssh://machine/", Address("machine")),
        ("ssh://Me@Machine:22", Address("Machine", "Me", 22)),
        ("ssh://[::1]:22", Address("::1", None, 22)),
        ("ssh://m?client=program", Address("m", program=True)),
        ("ssh://m?client=paramiko", Address("m")),
        ("ssh://m?identity=%2Fhome%2Fme%2Fa%20key%26b", Address("m", identity="/home/me/a key&b")),
        ("ssh://m?identity=/k&client=program", Address("m", identity="/k", program=True)),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse_url(url) == address
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "machine",
        "http://machine",
        "ssh:machine",
        "ssh://",
        "ssh:///tmp",
        "ssh://machine/tmp",
        "ssh://machine#more",
        "ssh://machine?port=22",
        "ssh://machine?client=putty",
        "ssh://-oProxyCommand=x",
        "ssh://user@-x",
        "ssh://a b",
        "ssh://user:secret@machine",
        "ssh://machine:0",
        "ssh://machine:65536",
        "ssh://[::1",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError):
        parse_url(url)


def test_an_address_as_the_program_takes_it() -> None:
    address = Address("m", "me", 22, "-oProxyCommand=x")
    assert address.words == ["-l", "me", "-p", "22", "-i", "-oProxyCommand=x", "--", "m"]


def hashed(name: str) -> str:
    salt = bytes(range(20))
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"machine ssh-ed25519 {TEXT}", "machine"),
        (f"machine ssh-ed25519 {TEXT} a comment # more", "machine"),
        (f"  Machine\tssh-ed25519  {TEXT}\r", "mACHINE"),
        (f"other,machine,10.0.0.1 ssh-ed25519 {TEXT}", "machine"),
        (f"[machine]:2222 ssh-ed25519 {TEXT}", "[machine]:2222"),
        (f"[::1]:2222 ssh-ed25519 {TEXT}", "[::1]:2222"),
        (f"*.site ssh-ed25519 {TEXT}", "a.b.site"),
        (f"n??e ssh-ed25519 {TEXT}", "node"),
        (f"[*.site]:* ssh-ed25519 {TEXT}", "[a.site]:2222"),
        (f"*,!other ssh-ed25519 {TEXT}", "machine"),
        (f"{hashed('machine')} ssh-ed25519 {TEXT}", "machine"),
        (f"{hashed('[machine]:2222')} ssh-ed25519 {TEXT}", "[Machine]:2222"),
    ],
)
def test_a_key_that_is_known(line: str, name: str) -> None:
    assert known_keys(f"# a comment\n\n{line}\nnonsense\n", name) == [FOUND]


@pytest.mark.parametrize(
    "line",
    [
        f"#machine ssh-ed25519 {TEXT}",
        f"# machine ssh-ed25519 {TEXT}",
        f"machine2 ssh-ed25519 {TEXT}",
        f"[machine]:2222 ssh-ed25519 {TEXT}",
        f"[machine] ssh-ed25519 {TEXT}",
        f"m[a]chine ssh-ed25519 {TEXT}",
        f"mach ssh-ed25519 {TEXT}",
        f"*,!machine ssh-ed25519 {TEXT}",
        f"!m*,machine ssh-ed25519 {TEXT}",
        f"!other ssh-ed25519 {TEXT}",
        f"{hashed('other')} ssh-ed25519 {TEXT}",
        f"|1|nonsense ssh-ed25519 {TEXT}",
        f"|1|a|b ssh-ed25519 {TEXT}",
        f"|2|a|b ssh-ed25519 {TEXT}",
        f"{hashed('machine')[:-8]} ssh-ed25519 {TEXT}",
        f"machine ssh-ed25519 {TEXT[:-3]}!",
        "machine ssh-ed25519",
        "machine",
        "@revoked",
        "@revoked machine ssh-ed25519",
    ],
)
def test_a_key_that_is_not_known(line: str) -> None:
    assert known_keys(line, "machine") == []


def test_marks_and_the_order_of_lines_stay() -> None:
    other = base64.b64encode(b"other").decode()
    text = f"@revoked * ssh-ed25519 {TEXT}\n@cert-authority m* ssh-rsa {other}\nmachine ssh-rsa {other}"
    assert known_keys(text, "machine") == [
        ("@revoked", "ssh-ed25519", KEY),
        ("@cert-authority", "ssh-rsa", b"other"),
        ("", "ssh-rsa", b"other"),
    ]


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text(f"ssh-ed25519 {TEXT}\n")
    result = subprocess.run(["ssh-keygen", "-l", "-f", str(file)], capture_output=True, text=True)
    assert result.stdout.split()[1] == fingerprint(KEY)
