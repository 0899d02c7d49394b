"""A submission that is cut off: at most one job, found again, nothing submitted twice."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import SubmissionFailed, attach, jobs, journal, submit_script
from tests.contract.behaviour import PATIENCE, until


@pytest.fixture(autouse=True)
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))


def sbatch_that(slurm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """Put an sbatch in front of the real one, which it may call as $SBATCH."""
    tool = folder / "bin" / "sbatch"
    tool.parent.mkdir()
    real = subprocess.run(["/bin/sh", "-c", "command -v sbatch"], capture_output=True, text=True).stdout.strip()
    tool.write_text(f"#!/bin/bash\nSBATCH={real}\n{act}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def in_queue(slurm: Any, key: str) -> list[str]:
    lines = slurm.run("squeue", "-h", "-t", "all", "-o", "%i|%o").splitlines()
    return [line.partition("|")[0] for line in lines if key in line]


@pytest.mark.parametrize(
    "act",
    [
        '"$SBATCH" "$@" >/dev/null; echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv '
        'operation" >&2; exit 1',
        '"$SBATCH" "$@" >/dev/null; kill -9 $$',
        '( sleep 0.8; exec "$SBATCH" "$@" ) </dev/null >/dev/null 2>&1 & kill -9 $$',
    ],
    ids=["the answer is lost", "sbatch is killed behind it", "the job appears only later"],
)
def test_a_job_whose_number_was_not_told_is_found(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    sbatch_that(slurm, tmp_path, monkeypatch, act)
    job = submit_script("echo once; exit 3", wlm="slurm")
    assert job.wait(PATIENCE)
    assert (job.exit_code, job.stdout()) == (3, "once\n")
    assert in_queue(slurm, job.key) == [job.native_id]


def test_a_job_that_cannot_be_found_is_not_submitted_again(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("execute_batch_scheduler.adapters.slurm._LOOKS", (0.1, 0.1))
    sbatch_that(slurm, tmp_path, monkeypatch, f"echo x >>{tmp_path}/calls; kill -9 $$")
    with pytest.raises(SubmissionFailed, match="not known; Slurm does not know it now\nDo not run it again") as caught:
        submit_script("true", wlm="slurm")
    assert (tmp_path / "calls").read_text() == "x\n"
    (entry,) = jobs()
    assert entry.key in str(caught.value)
    assert entry.native_state == "SUBMITTING"
    monkeypatch.setattr("execute_batch_scheduler.history._SUBMITTING", 0.0)
    (entry,) = jobs()
    assert (entry.state, entry.native_state) == ("FAILED", "NOT SUBMITTED")


def test_a_stalled_controller_takes_the_job_when_it_goes_on(slurm: Any, tmp_path: Path) -> None:
    """sbatch gives up after MessageTimeout; the message lies with the controller all the same."""
    pid = int((slurm.base / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        subprocess.Popen(["/bin/sh", "-c", f"sleep 5; kill -CONT {pid}"])
        job = submit_script("echo once", wlm="slurm")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert job.result(PATIENCE) == "once\n"
    assert in_queue(slurm, job.key) == [job.native_id]


def test_a_refusal_is_none_of_this(slurm: Any, job_root: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(SubmissionFailed, match="Invalid partition"):
        submit_script("true", "-p nope", wlm="slurm")
    assert time.monotonic() - begin < 10
    assert jobs() == []
    assert list((job_root / "jobs").iterdir()) == []


def test_a_kernel_killed_at_a_random_moment_costs_at_most_nothing(slurm: Any, tmp_path: Path) -> None:
    """100 processes are killed with -9 somewhere between the submission and the end of the job."""
    seed = int(os.environ.get("EXECUTE_TEST_SEED", random.randrange(10**6)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    code = (
        "import sys; from execute_batch_scheduler import submit_script\n"
        "import execute_batch_scheduler.submit\n"
        "print('begin', flush=True)\n"
        "job = submit_script(f'echo {sys.argv[1]}; exit 3', '-n1 --mem=1', wlm='slurm')\n"
        "print('submitted', flush=True)\n"
        "job.wait()\n"
    )
    told = 0
    for number in range(100):
        words = [sys.executable, "-c", code, str(number)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begin\n"
            time.sleep(chance.choice([0.03, 0.03, 1.0]) * chance.random())
            process.kill()
            told += "submitted" in process.stdout.read()
    until(lambda: not slurm.run("squeue", "-h"))
    entries = {entry.key: entry for entry in jobs()}
    commands = slurm.run("squeue", "-h", "-t", "all", "-o", "%o").splitlines()
    in_slurm = [match[1] for command in commands if (match := re.search(r"/([0-9a-f-]{36})\.job", command))]
    mine = [key for key in in_slurm if key in entries]
    assert len(mine) == len(set(mine))  # at most one job each
    found = [entry for entry in entries.values() if entry.native_id is not None]
    assert {entry.key for entry in found} == set(mine)  # every job of Slurm's is found, and no other
    assert len(found) >= told
    for entry in found:
        job = attach(entry.key)
        assert job.wait(PATIENCE)
        assert job.exit_code == 3
        assert job.stdout().strip().isdigit()
    assert 0 < len(found) <= 100
    print(f"{len(found)} of 100 were submitted; {told} were told so before they were killed")


def test_a_journal_that_cannot_be_written_is_said_and_nothing_is_submitted(
    monkeypatch: pytest.MonkeyPatch, job_root: Path
) -> None:
    monkeypatch.setenv("EXECUTE_JOURNAL", "/proc/nowhere")
    with pytest.raises(SubmissionFailed, match=r"the journal /proc/nowhere cannot be written .* set \$EXECUTE_JOURNAL"):
        submit_script("true", wlm="local")
    assert not (job_root / "jobs").exists()


def test_a_journal_that_fills_up_behind_the_submission_costs_no_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    note = journal.note

    def full(key: str, **known: object) -> None:
        if "wlm" not in known:
            raise OSError(28, "No space left on device")
        note(key, **known)

    monkeypatch.setattr(journal, "note", full)
    job = submit_script("echo out; exit 3", wlm="local")
    assert job.wait(PATIENCE)
    assert (job.exit_code, job.stdout()) == (3, "out\n")
