"""Settings on a real Slurm: default flags, targets, prologues, and an sbatch that only a login shell finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import JobFailed, backend, submit_script
from execute_batch_scheduler.adapters import transport
from tests.contract.behaviour import PATIENCE

SETTINGS = """
flags = "--comment=everywhere"

[targets.small]
wlm = "slurm"
flags = "--ntasks=2 --time=10 --mem=10"
prologue = '''
module() { echo "loaded $2"; }
module load gcc
export COMPILER=gcc'''
environment = { LEVEL = 3 }

[targets.broken]
wlm = "slurm"
prologue = "module load nothing"
"""


@pytest.fixture(autouse=True)
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    monkeypatch.setenv("EXECUTE_CONFIG", str(tmp_path / "settings.toml"))


def test_a_target(slurm: Any) -> None:
    job = submit_script("echo $SLURM_NTASKS $COMPILER $LEVEL", "--time=5", target="small")
    assert job.result(PATIENCE) == "loaded gcc\n2 gcc 3\n"
    assert slurm.field(job.native_id, "TimeLimit") == "00:05:00"


def test_a_default_flag_and_a_member_of_its_group(slurm: Any) -> None:
    job = submit_script("true", "-n1")
    assert job.wait(PATIENCE)
    assert slurm.field(job.native_id, "Comment") == "everywhere"
    job = submit_script("true", "--mem-per-cpu=11", target="small")
    assert job.wait(PATIENCE)
    assert slurm.field(job.native_id, "MinMemoryCPU") == "11M"


def test_a_prologue_that_fails_is_the_end_of_the_job(slurm: Any) -> None:
    job = submit_script("echo script", target="broken")
    with pytest.raises(JobFailed, match=r"(?s)exit code 127.*the prologue ended with exit code 127.*not run"):
        job.result(PATIENCE)
    assert job.stdout() == ""
    assert slurm.field(job.native_id, "JobState") == "FAILED"


def test_an_sbatch_that_only_a_login_shell_finds(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.which("sbatch")
    monkeypatch.setattr(transport, "SEARCHED_FIRST", [])
    monkeypatch.setattr(backend, "_login_sbatch", lambda: path)
    monkeypatch.setenv("PATH", "/nowhere")
    job = submit_script("#!/bin/bash\necho here", "-n1")
    assert job.result(PATIENCE) == "here\n"
    assert job.wlm == "slurm"
