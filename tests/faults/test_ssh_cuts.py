"""Connections that are cut, delayed and stalled between us and a real sshd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from execute_batch_scheduler import submit_script
from execute_batch_scheduler.adapters import ssh
from tests.services.proxy import Proxy
from tests.services.sshd import Sshd

from psij import JobState


@pytest.fixture
def proxy(sshd: Sshd, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A way to the machine that can be cut; its name is `faraway`, and each test has a connection of its own."""
    with Proxy(sshd.host, sshd.port) as proxy:
        name = f"faraway{proxy.port}"
        known = f"HostKeyAlias {sshd.name}"
        sshd.add_host(
            f"Host {name}\n HostName 127.0.0.1\n Port {proxy.port}\n User {sshd.user}\n IdentityFile {sshd.key}\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {sshd.known_hosts}\n {known}\n"
        )
        proxy.name = name  # type: ignore[attr-defined]
        yield proxy
        ssh.logout(f"ssh://{name}")


def test_a_connection_cut_ten_times_loses_and_repeats_nothing(proxy: Proxy) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    job = submit_script("for i in $(seq 1 400); do echo $i; sleep 0.05; done", host=proxy.name)  # type: ignore[attr-defined]
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        end = time.monotonic() + 20
        while cuts < 10 and time.monotonic() < end:
            time.sleep(dice.uniform(0.5, 2.2))
            if dice.random() < 0.5:
                proxy.cut()
            else:
                proxy.cut_after(dice.randrange(1, 2000))
            cuts += 1

    thread = threading.Thread(target=cut)
    thread.start()
    text = "".join(piece for stream, piece in job.follow() if stream == "stdout")
    thread.join()
    assert cuts == 10
    assert text.split() == [str(i) for i in range(1, 401)]
    assert (job.state, job.exit_code) == (JobState.COMPLETED, 0)
    assert proxy.connections > 5
