"""Connections that are cut, delayed and stalled between us and a real sshd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from execute_batch_scheduler import Job, SubmissionFailed, attach, jobs, submit_script
from execute_batch_scheduler.adapters import feed, remote, ssh
from tests.contract.behaviour import PATIENCE, until
from tests.services.proxy import Proxy
from tests.services.sshd import Sshd

from psij import JobState

DELAY = 0.05  # seconds each way


@dataclass
class Way:
    """A way to the machine that can be cut, by a host name of its own."""

    proxy: Proxy
    host: str

    @property
    def transport(self) -> remote.Remote:
        return ssh.transport(f"ssh://{self.host}")


@pytest.fixture
def way(sshd: Sshd) -> Iterator[Way]:
    with Proxy(sshd.host, sshd.port) as proxy:
        way = Way(proxy, f"faraway{proxy.port}")
        sshd.add_host(
            f"Host {way.host}\n HostName 127.0.0.1\n Port {proxy.port}\n User {sshd.user}\n IdentityFile {sshd.key}\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {sshd.known_hosts}\n HostKeyAlias {sshd.name}\n"
        )
        yield way
        ssh.logout(f"ssh://{way.host}")


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_a_connection_cut_ten_times_loses_and_repeats_nothing(way: Way, dice: random.Random) -> None:
    job = submit_script("for i in $(seq 1 400); do echo $i; sleep 0.05; done", host=way.host)
    cuts: list[float] = []

    def cut() -> None:
        while len(cuts) < 10:
            time.sleep(dice.uniform(0.5, 2.2))
            if dice.random() < 0.5:
                way.proxy.cut()
            else:
                way.proxy.cut_after(dice.randrange(1, 2000))
            cuts.append(time.monotonic())

    thread = threading.Thread(target=cut)
    thread.start()
    text = "".join(piece for stream, piece in job.follow() if stream == "stdout")
    thread.join()
    assert text.split() == [str(i) for i in range(1, 401)]
    assert (job.state, job.exit_code) == (JobState.COMPLETED, 0)
    assert way.proxy.connections > 5


def test_much_output_over_a_connection_that_is_cut(way: Way, dice: random.Random) -> None:
    job = submit_script("seq 3000000", host=way.host)  # 22 MB
    pieces: list[str] = []
    for stream, text in job.follow():
        if stream == "stdout":
            if dice.random() < 0.3:
                way.proxy.cut_after(dice.randrange(1, 1 << 20))
            pieces.append(text)
    way.proxy.cut_after(None)
    assert "".join(pieces) == "".join(f"{i}\n" for i in range(1, 3000001))
    assert job.stdout() == "".join(pieces)


def test_a_submission_that_is_cut_runs_once_or_not_at_all(way: Way, dice: random.Random, tmp_path: Path) -> None:
    """Wherever the answers stop: who gets a handle has a job that ran once; who gets an error, none."""
    submit_script("true", host=way.host).result(PATIENCE)
    got: dict[Path, Job] = {}
    refused: dict[Path, str] = {}
    for number in range(25):
        place = tmp_path / str(number)
        way.proxy.cut_after(dice.randrange(1, 1500))
        try:
            got[place] = submit_script(f"echo ran >>{place}", host=way.host)
        except SubmissionFailed as error:
            refused[place] = str(error)
        way.proxy.cut_after(None)
    for place, job in got.items():
        assert job.wait(PATIENCE)
        assert job.exit_code == 0
        assert place.read_text() == "ran\n"
    assert all("nothing was submitted" in text or "was not submitted" in text for text in refused.values())
    time.sleep(1)
    assert not [place for place in refused if place.exists()]
    assert got


def test_a_cell_takes_few_round_trips(way: Way) -> None:
    submit_script("true", host=way.host).result(PATIENCE)
    way.proxy.delay = DELAY
    before, counts = way.transport.turns, way.proxy.counts
    job = submit_script("sleep 1", host=way.host)
    until(lambda: job.started)
    assert (way.proxy.counts - counts).turns <= 3 + 1  # that the feed is told to look often has no answer
    assert way.transport.turns - before <= 3
    assert job.wait(PATIENCE)


def test_fifty_jobs_share_one_connection(way: Way, sshd: Sshd) -> None:
    submit_script("true", host=way.host).result(PATIENCE)
    logins, made = sshd.logins, []

    def submit(number: int) -> None:
        made.append((number, submit_script(f"echo {number}", host=way.host)))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job.result(PATIENCE) for _, job in sorted(made)] == [f"{number}\n" for number in range(50)]
    assert sshd.logins == logins
    assert way.proxy.connections == 1


def test_a_connection_that_stalls_is_given_up(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_SILENCE", 7.0)  # the feed says each five seconds that it is alive
    job = submit_script("for i in $(seq 1 150); do echo $i; sleep 0.1; done", host=way.host)
    text = ""
    stalled = False
    for stream, piece in job.follow():
        text += piece if stream == "stdout" else ""
        if not stalled and len(text) > 10:
            stalled = True
            way.proxy.stall()
            threading.Timer(9, way.proxy.resume).start()
    assert text.split() == [str(i) for i in range(1, 151)]
    assert way.proxy.connections >= 2


def test_a_machine_that_restarts_its_sshd(way: Way, sshd: Sshd) -> None:
    job = submit_script("for i in $(seq 1 60); do echo $i; sleep 0.1; done", host=way.host)
    until(lambda: len(job.stdout().split()) > 3)
    sshd.stop()
    assert not job.wait(1.5)
    assert job.state is JobState.ACTIVE
    sshd.start()
    assert job.wait(PATIENCE)
    assert job.stdout().split() == [str(i) for i in range(1, 61)]
    assert attach(job.native_id).exit_code == 0
    assert jobs()[-1].native_state == "COMPLETED"
