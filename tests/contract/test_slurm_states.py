"""Slurm's states beside the usual ones: what the handle says, and in which words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor, parse_show_job

from execute_batch_scheduler import Job, submit_script
from tests.contract.behaviour import until
from tests.contract.test_slurm_truth import executor_for
from tests.services import slurm as service

from psij import JobState

PATIENCE = 60.0
MORE = """
RequeueExitHold=98
SuspendProgram=/bin/true
ResumeProgram=/bin/true
ResumeTimeout=3
SuspendTimeout=1
SuspendTime=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=kill Nodes=sn[1-4] PriorityTier=1 PreemptMode=CANCEL
PartitionName=again Nodes=sn[1-4] PriorityTier=1 PreemptMode=REQUEUE
PartitionName=first Nodes=sn[1-4] PriorityTier=9 PreemptMode=OFF
PartitionName=down Nodes=sn[1-4] State=DOWN
"""


HELD = "job_requeued_in_held_state: it was requeued and is held; release it with scontrol release"
TWICE = 'echo run $SLURM_RESTART_COUNT; [ "$SLURM_RESTART_COUNT" = 1 ] || exec sleep 1000'
DATA = Path(__file__).resolve().parents[1] / "data" / "slurm"


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

    def again(self, job: Job) -> str:
        """Let a requeued job run now, for which Slurm has a later time in mind; its output."""
        assert not job.done()
        time.sleep(1.1)  # a node refuses a job that it ended in the same second
        self.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        return job.result(PATIENCE)


def told(job: Job) -> tuple[JobState, Optional[str], Optional[str], Optional[int]]:
    return job.state, job.native_state, job.reason, job.exit_code


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


def test_a_stopped_job_goes_on(lab: Lab) -> None:
    job = lab.submit("echo out; sleep 1; echo more")
    until(lambda: job.stdout() == "out\n")
    lab.slurm.run("scancel", "--signal=STOP", job.native_id)
    lab.shows(job, "STOPPED")
    assert told(job) == (JobState.ACTIVE, "STOPPED", None, None)
    lab.slurm.run("scancel", "--signal=CONT", job.native_id)
    assert job.result(PATIENCE) == "out\nmore\n"


@pytest.mark.parametrize(
    ("script", "command", "native_state", "reason"),
    [
        (TWICE, ["scontrol", "requeuehold"], "PENDING", HELD),
        (TWICE, ["scontrol", "requeuehold", "State=SpecialExit"], "SPECIAL_EXIT", HELD),
        (  # RequeueExitHold
            'echo run $SLURM_RESTART_COUNT; [ "$SLURM_RESTART_COUNT" = 1 ] || exit 98',
            [],
            "SPECIAL_EXIT",
            "JobHeldUser: it is held; release it with scontrol release",
        ),
    ],
    ids=["requeuehold", "special exit", "exit code"],
)
@pytest.mark.parametrize("fate", ["released", "cancelled"])
def test_a_job_that_is_requeued_and_held_has_not_ended(
    lab: Lab, script: str, command: list[str], native_state: str, reason: str, fate: str
) -> None:
    job = lab.submit(script, "--requeue")
    until(lambda: job.stdout() == "run\n")
    if command:
        lab.slurm.run(*command, job.native_id)
    lab.shows(job, native_state, reason)
    assert told(job) == (JobState.ACTIVE, native_state, reason, None)
    if fate == "released":
        lab.slurm.run("scontrol", "release", job.native_id)
        assert lab.again(job) == "run 1\n"
        assert told(job) == (JobState.COMPLETED, "COMPLETED", None, 0)
    else:
        job.cancel()
        assert job.wait(PATIENCE)
        assert told(job)[:3] == (JobState.CANCELED, "CANCELLED", "cancelled")


@pytest.mark.parametrize(
    ("partition", "requeue", "script", "code"),
    [
        ("kill", "--requeue", "echo run; exec sleep 1000", 143),
        ("kill", "--requeue", "trap 'exit 0' TERM; echo run; while :; do sleep 0.1; done", 0),
        ("again", "--no-requeue", "echo run; exec sleep 1000", 143),
    ],
)
def test_a_job_that_is_preempted(lab: Lab, partition: str, requeue: str, script: str, code: int) -> None:
    victim = lab.submit(script, f"-p {partition} {requeue} --exclusive -N4")
    until(lambda: victim.stdout() == "run\n")
    winner = lab.submit("echo won", "-p first --exclusive -N4")
    assert winner.result(PATIENCE) == "won\n"
    assert victim.wait(PATIENCE)
    assert told(victim) == (JobState.FAILED, "PREEMPTED", None, code)
    assert "PREEMPTED" in str(victim.exception())


def test_a_job_that_is_preempted_and_queued_again_has_not_ended(lab: Lab) -> None:
    victim = lab.submit(TWICE, "-p again --exclusive -N4 --requeue")
    until(lambda: victim.stdout() == "run\n")
    winner = lab.submit("echo won", "-p first --exclusive -N4")
    assert winner.result(PATIENCE) == "won\n"
    lab.shows(victim, "PENDING", "BeginTime")
    assert told(victim) == (JobState.ACTIVE, "PENDING", "BeginTime: its begin time has not come", None)
    assert lab.again(victim) == "run 1\n"
    assert told(victim) == (JobState.COMPLETED, "COMPLETED", None, 0)


@contextmanager
def node_down(lab: Lab, node: str) -> Iterator[None]:
    lab.slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    yield
    lab.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # it may have come by itself


def test_a_job_whose_node_is_taken_down(lab: Lab) -> None:
    job = lab.submit(TWICE, "--nodelist=sn3 --no-requeue")
    until(lambda: job.stdout() == "run\n")
    with node_down(lab, "sn3"):
        lab.shows(job, "NODE_FAIL")
        assert told(job)[:3] == (JobState.FAILED, "NODE_FAIL", "NodeDown: a node it needs is down")
        assert job.exit_code in (None, 143)  # the node may have had time for it


def test_a_job_whose_node_is_taken_down_and_that_is_queued_again_has_not_ended(lab: Lab) -> None:
    job = lab.submit(TWICE, "--requeue")
    until(lambda: job.stdout() == "run\n")
    with node_down(lab, lab.slurm.field(job.native_id, "NodeList")):
        lab.shows(job, "PENDING", "BeginTime")
        assert told(job) == (JobState.ACTIVE, "PENDING", "BeginTime: its begin time has not come", None)
        assert lab.again(job) == "run 1\n"
        assert told(job) == (JobState.COMPLETED, "COMPLETED", None, 0)


def test_a_node_that_never_boots(lab: Lab) -> None:
    """One that is switched off to save power, and whose ResumeProgram does nothing. Slurm 22.05 says NODE_FAIL then."""
    lab.slurm.stop_node("sn4")
    lab.slurm.run("scontrol", "update", "NodeName=sn4", "State=POWER_DOWN_FORCE")
    try:
        until(lambda: lab.slurm.run("sinfo", "-h", "-n", "sn4", "-p", "normal", "-o", "%T").strip() == "idle~")
        once, again = (lab.submit("echo out", f"--nodelist=sn4 --{no}requeue") for no in ("no-", ""))
        for job in (once, again):
            lab.shows(job, "CONFIGURING")
            assert told(job) == (JobState.QUEUED, "CONFIGURING", None, None)
        lab.shows(once, "NODE_FAIL")
        assert told(once) == (JobState.FAILED, "NODE_FAIL", "NodeDown: a node it needs is down", None)
        lab.shows(again, "PENDING")
        assert again.state is JobState.QUEUED
    finally:
        lab.slurm.start_node("sn4")
        lab.slurm.run("scontrol", "update", "NodeName=sn4", "State=POWER_UP")
        lab.slurm.run("scontrol", "update", "NodeName=sn4", "State=RESUME", check=False)
    assert lab.again(again) == "out\n"


def test_what_slurm_says_of_a_boot_failure() -> None:
    """Nothing makes it say so here: this is its text of a lost node, with what _job_fail() in its job_mgr.c sets."""
    text = (DATA / "show_node_fail.txt").read_text()
    text = text.replace("NODE_FAIL Reason=NodeDown", "BOOT_FAIL Reason=JobLaunchFailure")
    report = parse_show_job(text.replace("ExitCode=0:0", "ExitCode=0:1"))
    assert report is not None
    assert (report.state, report.native_state, report.exit_code) == (JobState.FAILED, "BOOT_FAIL", None)
    assert report.reason == "JobLaunchFailure: the node could not start it"


def test_a_job_that_misses_its_deadline(lab: Lab) -> None:
    before = lab.submit("echo out; sleep 1000", "--exclusive -N4")
    until(lambda: before.stdout() == "out\n")
    job = lab.shows(lab.submit("true", "--exclusive -N4 -t1 --deadline=now+2hours"), "PENDING", "Resources")
    lab.slurm.run("scontrol", "update", f"JobId={job.native_id}", "Deadline=now+1")
    lab.shows(job, "DEADLINE")
    before.cancel()
    assert told(job) == (JobState.FAILED, "DEADLINE", "DeadLine", None)
