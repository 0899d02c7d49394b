"""PSI/J is the contract: a program that knows PSI/J alone runs the same JobSpec everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor, submit_arguments

from execute_batch_scheduler import submit_script
from tests.contract.behaviour import until

from psij import Job, JobAttributes, JobExecutor, JobSpec, JobState, ResourceSpecV1

PATIENCE = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a specification names no output, Slurm writes slurm-N.out."""
    monkeypatch.chdir(tmp_path)


EXECUTORS = ["local", "slurm", "tracked-slurm", "process"]


@pytest.mark.parametrize("name", EXECUTORS)
def test_one_specification_on_every_executor(name: str, slurm: object, tmp_path: Path) -> None:
    executor = JobExecutor.get_instance(name, config=_quick(name))
    states: list[JobState] = []
    spec = JobSpec(
        "/bin/sh",
        ["-c", 'echo "$GREETING" "$1"; echo err >&2; exit 3', "sh", "two words"],
        directory=tmp_path,
        environment={"GREETING": "hello"},
        stdout_path=tmp_path / "out",
        stderr_path=tmp_path / "err",
        resources=ResourceSpecV1(node_count=1, process_count=1),
        attributes=JobAttributes(duration=timedelta(minutes=5)),
    )
    job = Job(spec)
    job.set_job_status_callback(lambda _, status: states.append(status.state))
    executor.submit(job)
    status = job.wait(PATIENCE)
    assert status is not None
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert (tmp_path / "out").read_text() == "hello two words\n"
    assert (tmp_path / "err").read_text() == "err\n"
    assert states[-1] == JobState.FAILED


@pytest.mark.parametrize("name", EXECUTORS)
def test_the_same_executors_through_submit_script(name: str, slurm: object) -> None:
    job = submit_script("echo hello; exit 3", executor=JobExecutor.get_instance(name, config=_quick(name)))
    assert job.wait(60)
    assert (job.state, job.exit_code, job.stdout()) == (JobState.FAILED, 3, "hello\n")


def _quick(name: str) -> Any:
    from psij.executors.batch.slurm import SlurmExecutorConfig

    return SlurmExecutorConfig(queue_polling_interval=1, initial_queue_polling_delay=1) if name == "slurm" else None


@pytest.mark.parametrize("name", ["tracked-slurm", "process"])
def test_cancel_attach_and_details_with_psij_alone(name: str, slurm: object, tmp_path: Path) -> None:
    executor: Any = JobExecutor.get_instance(name)
    job = Job(JobSpec("/bin/sleep", ["1000"]))
    executor.submit(job)
    job.wait(PATIENCE, [JobState.ACTIVE])
    assert job.native_id is not None
    assert job.native_id in executor.list()
    again = Job(job.spec)
    executor.attach(again, job.native_id)
    job.cancel()
    for one in (job, again):
        status = one.wait(PATIENCE)
        assert status is not None
        assert status.state is JobState.CANCELED
        assert status.metadata is not None
        assert status.metadata["native_state"] == "CANCELLED"
        assert executor.inspect(one).native_state == "CANCELLED"


def test_an_unknown_id_is_not_completed(slurm: object) -> None:
    """PSI/J's own executor calls it COMPLETED."""
    job = Job(JobSpec("/bin/true"))
    JobExecutor.get_instance("tracked-slurm").attach(job, "99999")
    status = job.wait(PATIENCE)
    assert status is not None
    assert status.state is JobState.FAILED
    assert "no evidence" in str(status.message)


def test_every_word_of_sbatch_comes_from_the_specification(slurm: Any) -> None:
    plan = submit_script("true", "-n2", wlm="slurm", dry_run=True)
    assert "--ntasks=2" in plan.command
    assert isinstance(plan.spec.resources, ResourceSpecV1)
    plan.spec.resources.process_count = 3
    assert "--ntasks=3" in submit_arguments(plan.spec)

    spec = JobSpec("/bin/true", name="by hand", attributes=JobAttributes(custom_attributes={"slurm.comment": "a b"}))
    job = Job(spec)
    executor = JobExecutor.get_instance("tracked-slurm")
    executor.submit(job)
    out = slurm.run("scontrol", "show", "job", job.native_id)
    assert "JobName=by hand\n" in out
    assert "Comment=a b " in out
    assert "TimeLimit=00:10:00" in out  # PSI/J's own default, as long as nobody takes it away
    job.wait(PATIENCE)


def test_one_job_with_an_odd_reason_blinds_nobody(slurm: Any) -> None:
    """PSI/J's own parser fails for every job as long as one of them has a reason with a space."""
    slurm.run("scontrol", "update", "nodename=sn4", "state=down", "reason=for the test")
    try:
        odd = submit_script("true", "--nodelist=sn4", wlm="slurm")
        jobs = [submit_script(f"sleep 1; exit {n}", "-n1", wlm="slurm") for n in range(3)]
        until(lambda: odd.reason)
        assert "ReqNodeNotAvail: a node it needs is not available" in str(odd.reason)
        assert all(job.wait(60) for job in jobs)
        assert [job.exit_code for job in jobs] == [0, 1, 2]
        assert odd.state is JobState.QUEUED
    finally:
        slurm.run("scontrol", "update", "nodename=sn4", "state=idle")
    assert odd.wait(60)


def test_files_of_tracked_slurm_are_private(slurm: object) -> None:
    executor = JobExecutor.get_instance("tracked-slurm")
    assert isinstance(executor, TrackedSlurmExecutor)
    job = Job(JobSpec("/bin/sleep", ["0.5"], environment={"TOKEN": "secret"}))
    executor.submit(job)
    assert executor.work_directory.stat().st_mode & 0o077 == 0
    assert list(executor.work_directory.glob(f"{job.id}*"))
    job.wait(PATIENCE)
    assert not list(executor.work_directory.glob(f"{job.id}*"))


def test_importing_gives_the_childrens_signal_back() -> None:
    code = (
        "import signal; signal.signal(signal.SIGCHLD, handler := lambda *_: None)\n"
        "import execute_batch_scheduler.submit\n"
        "assert signal.getsignal(signal.SIGCHLD) is handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_psij_finds_our_executors_by_itself() -> None:
    code = (
        "import psij\n"
        "names = psij.JobExecutor.get_executor_names()\n"
        "assert {'process', 'tracked-slurm', 'slurm', 'local'} <= names, names\n"
        "from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor\n"
        "assert type(psij.JobExecutor.get_instance('tracked-slurm')) is TrackedSlurmExecutor\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), cwd="/")
