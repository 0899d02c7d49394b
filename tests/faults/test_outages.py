"""What goes wrong around a job: a controller that lies, lags or is away; files that go. Real Slurm, with a tool of ours
put in front of its commands where Slurm itself cannot be made to misbehave."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor
from execute_batch_scheduler.adapters.tracking import Pace

from execute_batch_scheduler import JobFailed, attach, submit_script
from tests.contract.behaviour import PATIENCE, until

from psij import JobExecutor, JobState

Front = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: object) -> None:
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.chdir(tmp_path)


def own_executor() -> TrackedSlurmExecutor:
    executor = JobExecutor.get_instance("tracked-slurm")
    assert isinstance(executor, TrackedSlurmExecutor)
    executor.tracker.pace = Pace(unanswered=0.3)
    return executor


RUBBISH = {
    "garbage": "echo '<html>502 Bad Gateway</html>'",
    "nothing": "true",
    "rate limit": "echo 'slurm_load_jobs error: Rate limit exceeded, please retry' >&2; exit 1",
    "wrong configuration": "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1",
    "half an answer": '"$REAL" "$@" | head -c 60',
    "killed": "kill -9 $$",
}


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_changes_no_state(front: Front, answer: str) -> None:
    job = submit_script("echo out; sleep 0.5; exit 3", executor=own_executor())
    front("scontrol", answer)
    front("squeue", answer)
    until(lambda: job.details.unanswered_since)
    assert job.state in (JobState.QUEUED, JobState.ACTIVE)
    assert job.stdout() == "out\n"
    front("scontrol", "")
    front("squeue", "")
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code) == (JobState.FAILED, 3)


def test_a_slow_controller_does_not_hold_up_the_output(front: Front, tmp_path: Path) -> None:
    job = submit_script(
        f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo two; sleep 0.3", executor=own_executor()
    )
    until(job.running)
    front("scontrol", 'sleep 3; exec "$REAL" "$@"')
    other = submit_script("true", "--hold", executor=job.psij_job.executor)  # something to ask about
    seen = ""
    for _, text in job.follow():
        seen += text
        if seen == "one\n":
            (tmp_path / "go").touch()
        if seen == "one\ntwo\n" and not job.done():
            break
    assert seen == "one\ntwo\n"
    assert job.wait(PATIENCE)
    other.cancel()


def test_accounting_that_holds_an_old_job_of_the_same_number(front: Front) -> None:
    job = submit_script("exit 3", "--hold", executor=own_executor())
    old = f"{job.native_id}|COMPLETED|0:0|2020-01-01T00:00:00|2020-01-01T00:00:00|2020-01-01T00:00:00|sn1"
    front("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    front("sacct", f"echo '{old}'")
    executor = job.psij_job.executor
    assert isinstance(executor, TrackedSlurmExecutor)
    executor.tracker.hurry(job.psij_job)
    time.sleep(0.5)
    assert job.state is not JobState.COMPLETED
    front("scontrol", "")
    subprocess.run(["scontrol", "release", job.native_id], check=True)
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code) == (JobState.FAILED, 3)


def test_the_record_cannot_be_written() -> None:
    """As on a full disk: Slurm's word alone decides."""
    job = submit_script("echo out; exit 3", "--hold", executor=own_executor())
    record = Path(str(job.paths.record))
    record.unlink()
    record.symlink_to("/dev/full")
    subprocess.run(["scontrol", "release", job.native_id], check=True)
    assert job.wait(PATIENCE)
    assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "FAILED", 3)
    assert job.stdout() == "out\n"


def test_the_job_directory_goes_while_the_job_runs(tmp_path: Path) -> None:
    job = submit_script(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo out", executor=own_executor())
    until(job.running)
    shutil.rmtree(str(job.paths.directory))
    (tmp_path / "go").touch()
    executor = job.psij_job.executor
    assert isinstance(executor, TrackedSlurmExecutor)
    until(lambda: executor.tracker.hurry(job.psij_job) or job.done())
    assert (job.state, job.native_state, job.exit_code) == (JobState.COMPLETED, "COMPLETED", 0)
    with pytest.raises(JobFailed, match="completed, but its output is gone: there is no /"):
        job.result()


def test_output_that_the_job_truncates(tmp_path: Path) -> None:
    job = submit_script(
        f"echo a long first line; until [ -e {tmp_path}/go ]; do sleep 0.05; done; : >{tmp_path}/out; echo b",
        f"--output={tmp_path}/out --open-mode=append",
        executor=own_executor(),
    )
    seen = ""
    for _, text in job.follow():
        seen += text
        (tmp_path / "go").touch()
    assert seen == "a long first line\nb\n"


def test_output_appended_to_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("from before\n")
    job = submit_script("echo new", f"--output={tmp_path}/out --open-mode=append", executor=own_executor())
    assert "".join(text for _, text in job.follow()) == "new\n"
    assert job.result() == "new\n"


def test_a_process_that_was_stopped_for_a_while() -> None:
    """As when a laptop sleeps: the job has ended meanwhile."""
    code = (
        "from execute_batch_scheduler import submit_script\n"
        "job = submit_script('sleep 1; echo out; exit 3', wlm='slurm'); print(job, flush=True)\n"
        "job.wait(); print(job.exit_code, job.stdout(), end='')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = process.stdout.readline().strip()
    process.send_signal(signal.SIGSTOP)
    assert attach(number).wait(PATIENCE)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=PATIENCE)[0] == "3 out\n"


def test_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit_script("sleep 0.5; exit 3", executor=own_executor())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86400)
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code) == (JobState.FAILED, 3)
