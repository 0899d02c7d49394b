"""What another ordinary user of the machine can see and do. Needs root, to become one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import Job, submit_script
from tests.contract.behaviour import PATIENCE, until
from tests.contract.test_magic import Shell, shell  # noqa: F401

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
SECRET = "hunter2-c0ffee"


@pytest.fixture(params=["local", "slurm"])
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A running job, each of whose parts holds a secret, in a place that others may enter."""
    if os.geteuid() != 0:
        pytest.skip("NOT EXERCISED: only root can become another user")
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))
    script = f"echo {SECRET}; echo {SECRET} >&2; until [ -e {tmp_path}/go ]; do sleep 0.05; done # {SECRET}"
    job = submit_script(script, wlm=request.param, environment={"TOKEN": SECRET})
    until(job.stdout)
    yield job
    (tmp_path / "go").touch()
    assert job.wait(PATIENCE)


def as_nobody(*command: str) -> str:
    return subprocess.run([*NOBODY, *command], capture_output=True, text=True, cwd="/").stdout


def test_files_cannot_be_read(job: Job, tmp_path: Path) -> None:
    assert SECRET in subprocess.run(["grep", "-r", SECRET, str(tmp_path)], capture_output=True, text=True).stdout
    assert as_nobody("find", str(tmp_path), "-maxdepth", "0").strip() == str(tmp_path)  # it can look at all
    assert as_nobody("grep", "-r", SECRET, str(tmp_path), os.environ["HOME"]) == ""
    assert as_nobody("find", f"{tmp_path}/root", f"{tmp_path}/journal", "-mindepth", "1") == ""


def test_arguments_of_processes_hold_no_secret(job: Job) -> None:
    shown = as_nobody("ps", "-eo", "args")
    assert "sleep" in shown
    assert SECRET not in shown


def test_nothing_can_be_changed(job: Job, tmp_path: Path) -> None:
    record = Path(str(job.paths.record))
    before = record.read_bytes()
    as_nobody("sh", "-c", f"echo ended >>{record}; touch {tmp_path}/root/events/x; kill -9 {job.native_id}")
    assert record.read_bytes() == before
    assert not (tmp_path / "root" / "events" / "x").exists()
    assert not job.done()


def test_nothing_listens(job: Job) -> None:
    inodes = {os.readlink(path)[8:-1] for path in Path("/proc/self/fd").iterdir() if _is_socket(path)}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            assert not (words[9] in inodes and words[3] in ("0A", "07")), line


def _is_socket(path: Path) -> bool:
    try:
        return os.readlink(path).startswith("socket:[")
    except FileNotFoundError:
        return False


def test_a_failed_jobs_last_lines_cannot_drive_the_terminal(shell: Shell) -> None:  # noqa: F811
    shell.execute("--wlm=local --err=text --amgr=job", r"printf '\033]0;owned\007\033[2J<b>x</b>\n' >&2; exit 1")
    assert "\033]0;owned" not in shell.out
    assert "?]0;owned??[2J<b>x</b>" in shell.out
    assert "<b>x</b>" not in shell["job"]._repr_html_()


def test_importing_opens_no_socket(tmp_path: Path) -> None:
    code = (
        "import os, execute_batch_scheduler.submit\n"
        "print([f for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}') "
        "and os.readlink(f'/proc/self/fd/{f}').startswith('socket')])"
    )
    result: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
