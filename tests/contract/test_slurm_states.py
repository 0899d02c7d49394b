"""Slurm's states beside the usual ones: what the handle says, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor

from execute_batch_scheduler import Job, submit_script
from tests.contract.behaviour import until
from tests.contract.test_slurm_truth import executor_for
from tests.services import slurm as service

from psij import JobState

PATIENCE = 60.0
MORE = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=kill Nodes=sn[1-4] PriorityTier=1 PreemptMode=CANCEL
PartitionName=again Nodes=sn[1-4] PriorityTier=1 PreemptMode=REQUEUE
PartitionName=first Nodes=sn[1-4] PriorityTier=9 PreemptMode=OFF
PartitionName=down Nodes=sn[1-4] State=DOWN
"""


class Lab:
    def __init__(self, slurm: service.Slurm, executor: TrackedSlurmExecutor) -> None:
        self.slurm = slurm
        self.executor = executor

    def submit(self, script: str, flags: str = "") -> Job:
        return submit_script(script, flags, executor=self.executor)

    def shows(self, job: Job, native_state: str, reason: str = "") -> Job:
        """Wait until the handle says so; it is told to look, as it would by itself a minute later."""

        def said() -> bool:
            self.executor.tracker.hurry(job.psij_job)
            return job.native_state == native_state and str(job.reason or "").startswith(reason)

        until(said)
        return job


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if service.missing():
        pytest.skip("NOT EXERCISED: Slurm is not installed")
    with service.running(more=MORE) as slurm, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield Lab(slurm, executor_for(slurm))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--hold", "JobHeldUser: it is held; release it with scontrol release"),
        ("--begin=now+1hour", "BeginTime: its begin time has not come"),
        ("--dependency=afterok:{running}", "Dependency: a job it depends on has not ended"),
        (
            "--dependency=afterok:{failed} --kill-on-invalid-dep=no",
            "DependencyNeverSatisfied: what it depends on can no longer happen; it will never start",
        ),
        ("-p down", "PartitionDown: the partition is down"),
        ("-p short --time=2:00:00", "PartitionTimeLimit: its time limit is above the partition's"),
    ],
)
def test_a_job_that_waits_says_why(lab: Lab, flags: str, reason: str) -> None:
    running, failed = lab.submit("sleep 1000"), lab.submit("exit 3")
    lab.shows(failed, "FAILED")
    job = lab.shows(lab.submit("true", flags.format(running=running, failed=failed)), "PENDING", reason)
    assert (job.state, job.reason, job.exit_code) == (JobState.QUEUED, reason, None)
    job.cancel()
    running.cancel()
    assert job.wait(PATIENCE)
    assert (job.state, job.native_state) == (JobState.CANCELED, "CANCELLED")


def test_a_dependency_by_the_handle_itself(lab: Lab) -> None:
    first = lab.submit("sleep 0.5; echo first")
    second = lab.submit("echo second", f"--dependency=afterok:{first}")
    assert second.result(PATIENCE) == "second\n"
    assert first.done()
    assert first.ended is not None
    assert second.started is not None
    assert first.ended <= second.started


def test_a_job_whose_dependency_failed_is_cancelled_by_slurm(lab: Lab) -> None:
    failed = lab.submit("exit 3")
    job = lab.submit("true", f"--dependency=afterok:{failed} --kill-on-invalid-dep=yes")
    lab.shows(job, "CANCELLED", "DependencyNeverSatisfied")
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code) == (JobState.CANCELED, None)


def test_a_held_job_that_is_released_runs(lab: Lab) -> None:
    job = lab.shows(lab.submit("echo out", "--hold"), "PENDING", "JobHeldUser")
    lab.slurm.run("scontrol", "release", job.native_id)
    assert job.result(PATIENCE) == "out\n"


def test_a_suspended_job_goes_on(lab: Lab, tmp_path: Path) -> None:
    job = lab.submit(f"echo out; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo more")
    until(lambda: job.stdout() == "out\n")
    lab.slurm.run("scontrol", "suspend", job.native_id)
    lab.shows(job, "SUSPENDED")
    assert (job.state, job.done()) == (JobState.ACTIVE, False)
    lab.slurm.run("scontrol", "resume", job.native_id)
    lab.shows(job, "RUNNING")
    (tmp_path / "go").touch()
    assert job.result(PATIENCE) == "out\nmore\n"


def test_a_suspended_job_can_be_cancelled(lab: Lab) -> None:
    job = lab.submit("echo out; sleep 1000")
    until(lambda: job.stdout() == "out\n")
    lab.slurm.run("scontrol", "suspend", job.native_id)
    lab.shows(job, "SUSPENDED")
    job.cancel()
    assert job.wait(PATIENCE)
    assert (job.state, job.native_state) == (JobState.CANCELED, "CANCELLED")


def test_a_job_that_is_requeued_and_held_has_not_ended(lab: Lab) -> None:
    job = lab.submit("echo out; sleep 1000", "--requeue")
    until(lambda: job.stdout() == "out\n")
    lab.slurm.run("scontrol", "requeuehold", job.native_id)
    until(lambda: lab.slurm.field(job.native_id, "JobState") in ("PENDING", "REQUEUE_HOLD"))
    lab.shows(
        job, lab.slurm.field(job.native_id, "JobState"), "job_requeued_in_held_state: it was requeued and is held"
    )
    assert not job.done()
    job.cancel()
    assert job.wait(PATIENCE)
    assert job.state is JobState.CANCELED


def test_a_job_that_is_preempted(lab: Lab) -> None:
    victim = lab.submit("echo out; sleep 1000", "-p kill --exclusive -N4")
    until(lambda: victim.stdout() == "out\n")
    winner = lab.submit("echo won", "-p first --exclusive -N4")
    assert winner.result(PATIENCE) == "won\n"
    assert victim.wait(PATIENCE)
    assert (victim.state, victim.native_state) == (JobState.FAILED, "PREEMPTED")
    assert "PREEMPTED" in str(victim.exception())


def test_a_job_that_is_preempted_and_queued_again_has_not_ended(lab: Lab) -> None:
    victim = lab.submit("echo out; sleep 1000", "-p again --exclusive -N4 --requeue")
    until(lambda: victim.stdout() == "out\n")
    winner = lab.submit("echo won", "-p first --exclusive -N4")
    assert winner.result(PATIENCE) == "won\n"
    lab.shows(victim, "PENDING")
    assert not victim.done()
    victim.cancel()
    assert victim.wait(PATIENCE)
    assert victim.state is JobState.CANCELED


def test_a_job_that_misses_its_deadline(lab: Lab) -> None:
    before = lab.submit("echo out; sleep 1000", "--exclusive -N4")
    until(lambda: before.stdout() == "out\n")
    job = lab.shows(lab.submit("true", "--exclusive -N4 -t1 --deadline=now+2hours"), "PENDING", "Resources")
    lab.slurm.run("scontrol", "update", f"JobId={job.native_id}", "Deadline=now+1")
    lab.shows(job, "DEADLINE")
    before.cancel()
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code) == (JobState.FAILED, None)
