"""What the package of 2017 documents, line by line, as far as it is about cells.

Its configuration lines and installation options are in tests/unit/test_settings.py and tests/packaging.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import display
from tests.contract.behaviour import PATIENCE, until
from tests.contract.test_magic import Shell, shell  # noqa: F401


def test_the_first_session(shell: Shell, slurm: Any) -> None:  # noqa: F811
    """Shown with its output after the end; here that is --no-stream."""
    assert shell.execute("-n8 -N4 --no-stream", "srun -n 8 sh -c 'echo $SLURMD_NODENAME'").success
    pattern = r"Submitted batch job (\d+)\n(Waiting for resources.*\n)?Running \.+o*\n"
    transcript = re.fullmatch(pattern + r"End batch job \1 Status:  COMPLETED\n\n((?:sn\d\n){8})", shell.out)
    assert transcript
    assert set(transcript[3].split()) == {"sn1", "sn2", "sn3", "sn4"}


def test_all_parameters_go_to_sbatch(shell: Shell, slurm: Any) -> None:  # noqa: F811
    me = getpass.getuser()
    words = ["reservationname=rsv", "starttime=now", "duration=60", f"users={me}", "nodes=sn1"]
    until(lambda: slurm.run("scontrol", "create", "reservation", *words, check=False))  # once the node is idle
    try:
        cell = "echo $SLURM_JOB_ID\nsrun -n 4 sh -c 'echo $SLURMD_NODENAME'"
        line = "-n4 -N1 --reservation=rsv --time=00:42:00 --no-stream --jobid=number --amgr=job"
        assert shell.execute(line, cell).success
        assert shell.out.endswith(f"COMPLETED\n\n{shell['number']}\n" + "sn1\n" * 4)
        assert slurm.field(shell["number"], "TimeLimit") == "00:42:00"
        assert slurm.field(shell["number"], "Reservation") == "rsv"
    finally:
        slurm.run("scontrol", "delete", "reservationname=rsv")


def test_the_common_arguments(shell: Shell, slurm: Any) -> None:  # noqa: F811
    assert shell.execute("--wlm=slurm --shell=/bin/sh --bg --amgr=backend", "echo out; echo err >&2").success
    until(shell["backend"].done)
    assert shell["backend"].get_output() == ("out\n", "err\n")
    assert shell.execute("--wlm=slurm --no-stream", "#!/usr/bin/env python3\nprint('the shebang counts')").success
    assert shell.out.endswith("\n\nthe shebang counts\n")
    assert shell.execute("--wlm=slurm --no-stream", "echo $0 $BASH").success
    assert shell.out.strip().endswith("/bin/bash")


@pytest.mark.parametrize(
    ("seconds", "line"),
    [(0, "."), (3.5, "...."), (9, "." * 10), (20, "." * 10 + "o"), (60, "." * 10 + "ooooo")],
)
def test_the_progress_line(seconds: float, line: str) -> None:
    assert display.marks(seconds) == line


def test_ctrl_c_prints_terminate_and_cancels(shell: Shell, slurm: Any, tmp_path: Path) -> None:  # noqa: F811
    from tests.contract.test_magic import _interrupt_when

    thread = _interrupt_when((tmp_path / "running").exists)
    shell.execute("-n1 --jobid=number --amgr=job", f"touch {tmp_path}/running; sleep 1000")
    thread.join()
    assert f"Terminate job {shell['number']}\n" in shell.out
    assert shell["job"].wait(PATIENCE)
    assert slurm.field(shell["number"], "JobState") == "CANCELLED"


def test_ssh(shell: Shell, sshd: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Shown with its output after the end too."""
    assert shell.execute("--workloadmanager=ssh --host=adistantmachine --no-stream --pid=pid", "hostname").success
    pattern = rf"SSH started with pid: {shell['pid']}\nRunning \.+o*\nDone\n\n(.+)\n"
    transcript = re.fullmatch(pattern, shell.out)
    assert transcript
    assert transcript[1] == os.uname().nodename


def test_ssh_by_the_lines_of_the_profile(
    shell: Shell,  # noqa: F811
    sshd: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = 'import execute_cell; execute_cell._DEFAULT_LINE_CMD_ARGS="--host={}"; execute_cell._DEFAULT_MGR="ssh"'
    try:
        assert shell.run(lines.format("adistantmachine")).success
        assert shell.execute("--amgr=backend --bg", "echo out; echo err >&2").success
        until(shell["backend"].done)
        assert shell["backend"].get_output() == ("out\n", "err\n")
        assert (shell["backend"].wlm, shell["backend"].host) == ("ssh", "adistantmachine")
        assert shell.execute("--wlm=local", "echo here").success
        assert "here\nDone\n" in shell.out
    finally:
        sys.modules.pop("execute_cell", None)


def test_ssh_asks_nothing(shell: Shell, sshd: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """No password, no passphrase: what cannot connect without fails at once and says so."""
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("it asks"))
    monkeypatch.setattr("getpass.getpass", lambda prompt: pytest.fail("it asks"))
    sshd.add_host(
        f"Host nokey\n HostName 127.0.0.1\n Port {sshd.port}\n UserKnownHostsFile {sshd.known_hosts}\n"
        " IdentityFile /nonexistent\n IdentitiesOnly yes\n"
    )
    result = shell.execute("--wlm=ssh --host=nokey")
    assert not result.success
    assert "does not let" in shell.out + shell.err
