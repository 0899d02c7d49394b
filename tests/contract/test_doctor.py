"""``python -m execute_batch_scheduler doctor``: what it finds, and what it says to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import doctor


def findings(submit: bool = False) -> dict[str, bool]:
    return {text: good for good, text in doctor.examine(submit)}


def test_a_machine_without_a_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for command in ("bash", "ps", "hostname", "setsid"):
        (tmp_path / command).symlink_to(str(shutil.which(command)))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings()
    assert all(found.values())
    assert "no scheduler on PATH: cells run on this machine (--wlm=local)" in found
    assert any("psij-python 0.9" in text for text in found)


def test_slurm_with_a_small_job(slurm: Any, job_root: Path) -> None:
    found = findings(submit=True)
    assert all(found.values()), found
    texts = "\n".join(found)
    assert re.search(r"slurm: /\S+/sbatch, slurm\S* \d+\.\d+", texts)
    assert re.search(r"slurm: Slurmctld\(primary\) at \S+ is UP", texts)
    assert re.search(
        r"a small job \(<Job \d+ slurm COMPLETED exit code 0>\) ran on sn\d, which sees the job directory", texts
    )
    assert f"job directory {job_root} can be written" in texts


def test_a_controller_that_is_down(slurm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", Path(os.environ["SLURM_CONF"]).read_text())
    (tmp_path / "slurm.conf").write_text(conf.replace("MessageTimeout=3", "MessageTimeout=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    bad = [text for text, good in findings().items() if not good]
    assert len(bad) == 1
    assert bad[0].startswith("slurm: Slurmctld(primary) at ")
    assert bad[0].endswith(" is DOWN; jobs cannot be submitted until it is up again")


def test_a_job_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", "/proc/nowhere")
    bad = [text for text, good in findings().items() if not good and "job directory" in text]
    assert bad == [
        "job directory /proc/nowhere: No such file or directory; set job_directory or $EXECUTE_JOB_DIRECTORY to another"
    ]


def test_the_command_line(slurm: object) -> None:
    command = [sys.executable, "-m", "execute_batch_scheduler", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("ok   Python 3.")
    assert "BAD" not in result.stdout
    broken = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SLURM_CONF": "/nowhere"})
    assert broken.returncode == 1
    assert "BAD  slurm: " in broken.stdout
