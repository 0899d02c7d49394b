"""What a connection carries, how it ends, and what nobody else may learn of it."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from execute_batch_scheduler.adapters.ssh_config import parse_url
from execute_batch_scheduler.adapters.transport import NewDirectory, TransportError, Unreachable

from execute_batch_scheduler import BadUsage, JobFailed, submit_script
from execute_batch_scheduler.adapters import feed, shell, ssh
from execute_batch_scheduler.settings import settings
from tests.contract.behaviour import until
from tests.contract.ssh_client import (
    USERS,
    Agent,
    Client,
    Guarded,
    Known,
    new_key,
    noticed,
    refusal,
    speaking,
)
from tests.services import sshd as sshd_service
from tests.services.interactive import PASSWORD
from tests.services.proxy import Proxy
from tests.services.sshd import Sshd

NUMBERS = itertools.count()


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


def test_a_file_that_is_not_there_yet_is_read_from_where_it_was_read_before(url: str, tmp_path: Path) -> None:
    growing = ssh.transport(url).follow(str(tmp_path / "late"), 5, lambda: None)
    ssh.transport(url).run(["true"], timeout=20)
    time.sleep(0.5)
    (tmp_path / "other").write_text("0123456789")
    (tmp_path / "other").rename(tmp_path / "late")
    assert until(lambda: growing.read(100), 10) == b"56789"
    (tmp_path / "late").write_text("new")
    assert until(lambda: growing.read(100), 10) == b"new"
    assert growing.restarts == 1


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_what_cannot_be_written_is_said_to_be_so(url: str, tmp_path: Path, size: int) -> None:
    """Also where it says so while there is more to be sent."""
    there = ssh.transport(url)
    with pytest.raises(FileNotFoundError):
        there.write(f"{tmp_path}/no/such/file", 0, bytes(size))
    with pytest.raises(OSError, match="No space left on device"):
        there.append("/dev/full", bytes(size))
    with pytest.raises(FileNotFoundError):
        there.create(NewDirectory("/proc/no/such", {"file": (bytes(size), 0o600)}))
    assert there.run(["echo", "fine"], timeout=20).stdout == "fine\n"


def test_a_machine_that_speaks_another_language(tmp_path: Path, client: Client) -> None:
    # Counts as soon as the locale is not just C, and where the programs' translations are installed.
    environment = {"LANG": "C.UTF-8", "LANGUAGE": "de"}
    with sshd_service.running(name="german", environment=environment) as server:
        there = ssh.transport(client.host(server, "german"))
        assert there.environment["LANGUAGE"] == "de"
        for question in (there.read, there.size):
            with pytest.raises(FileNotFoundError):
                question(f"{tmp_path}/none")
        with pytest.raises(OSError, match="No space left on device"):
            there.append("/dev/full", b"x")
        assert submit_script("echo $LANGUAGE ${LC_ALL-none}", host="german").result(60) == "de none\n"
        with pytest.raises(JobFailed, match="its output is gone"):
            submit_script('rm "${0%script}stdout"', host="german").result(60)
        there.close()


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


def test_nobody_connects_as_long_as_no_job_is_open(
    client: Client, own_sshd: Sshd, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "ssh_client", which)
    host = f"own{next(NUMBERS)}"
    there = ssh.transport(f"{client.host(own_sshd, host)}?client={which}")
    assert submit_script("echo one", host=host).result(60) == "one\n"
    time.sleep(0.5)
    own_sshd.drop()
    noticed(there)
    time.sleep(1)
    assert not there.has_other(None)
    job = submit_script("echo two; sleep 2", host=host)
    connection = there.connection()
    own_sshd.drop()
    until(lambda: there.has_other(connection), 20)
    assert job.result(60) == "two\n"


def test_a_login_that_leads_to_no_session_is_not_tried_without_a_pause(client: Client, own_sshd: Sshd) -> None:
    there = ssh.transport(client.host(own_sshd, "useless"))
    marks = there.marks("/nowhere", lambda: None)
    assert there._fed().ready.wait(20)
    before = own_sshd.logins
    connect = there._connect

    def useless() -> shell.Connection:
        connection = connect()
        connection.close()
        return connection

    there._connect = useless
    own_sshd.drop()
    time.sleep(2)
    there._connect = connect
    assert own_sshd.logins - before < 10
    del marks


def test_a_fork_has_a_connection_of_its_own_and_hears_of_jobs_from_before(
    client: Client, own_sshd: Sshd, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "ssh_client", which)
    host = f"own{next(NUMBERS)}"
    url = f"{client.host(own_sshd, host)}?client={which}"
    go = tmp_path / "go"
    job = submit_script(f"echo out; until [ -e {go} ]; do sleep 0.05; done; exit 3", host=host)
    until(lambda: job.stdout() == "out\n", 20)
    connection = ssh.transport(url).connection()
    pid = os.fork()
    if pid == 0:
        try:
            fine = job.stdout() == "out\n" and submit_script("echo child", host=host).result(60) == "child\n"
            go.touch()
            os._exit(0 if fine and job.wait(60) and job.exit_code == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert job.wait(60)
    assert job.exit_code == 3
    assert ssh.transport(url).connection() is connection


def test_after_a_logout_nobody_connects_until_something_is_asked(url: str) -> None:
    there = ssh.transport(url)
    marks = there.marks("/nowhere", lambda: None)
    assert there.run(["echo", "in"], timeout=20).stdout == "in\n"
    ssh.logout(url)
    time.sleep(1)
    assert there._connection is None
    assert there.run(["echo", "again"], timeout=20).stdout == "again\n"
    assert there._fed().ready.wait(20)
    del marks


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
    monkeypatch.setattr(feed, "_SILENCE", 6.5)  # a sign of life comes each five seconds
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
    monkeypatch.setattr(shell, "BEGIN_TIMEOUT", 2.0)
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
