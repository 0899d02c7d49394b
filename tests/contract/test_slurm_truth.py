"""Every way in which a Slurm job ends: what the handle says, and that Slurm's own record is as without us.

Each script runs twice, through submit_script and by sbatch alone, under the same fate. The slow fates (a time limit is
a minute at least) are all begun together.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor
from execute_batch_scheduler.adapters.tracking import NO_EVIDENCE, Pace
from execute_batch_scheduler.adapters.transport import Local

from execute_batch_scheduler import Job, JobFailed, submit_script
from tests.contract.behaviour import until
from tests.services import slurm as service

from psij import JobExecutor, JobState

SLOW = 200.0  # seconds: KillWait, time limits and node timeouts are Slurm's


class _Pinned(Local):
    """This machine, with the variables of one Slurm: several run at the same time here."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, **self._environment}


def executor_for(slurm: service.Slurm) -> TrackedSlurmExecutor:
    executor = JobExecutor.get_instance("tracked-slurm")
    assert isinstance(executor, TrackedSlurmExecutor)
    executor.transport = _Pinned(slurm.environment)
    return executor


@dataclass
class Twins:
    """The same script twice."""

    slurm: service.Slurm
    job: Job
    plain: str
    plain_output: Path

    def both(self, *command: str) -> None:
        """Do the same to both."""
        for number in (self.job.native_id, self.plain):
            self.slurm.run(*command, number)

    def ready(self) -> bool:
        """Whether both have said so: a script that is signalled before its first line has no handler yet."""
        plain = self.plain_output.read_text() if self.plain_output.exists() else ""
        return self.job.stdout() == plain == "ready\n"

    def running(self) -> Twins:
        until(
            lambda: {self.slurm.field(number, "JobState") for number in (self.job.native_id, self.plain)} == {"RUNNING"}
        )
        return self


FATES: dict[str, tuple[str, str]] = {
    "exit 3": ("exit 3", ""),
    "exit 137": ("exit 137", ""),
    "kill -9": ("kill -9 $$", ""),
    "kill -TERM": ("kill -TERM $$", ""),
    "memory": ("srun python3 -c 'x = bytearray(300 << 20); import time; time.sleep(60)'", "--mem=50"),
    "limit": ("exec sleep 1000", "-t1"),  # a shell may be told so, or see its child die of it first: chance
    "trapped limit": ("trap 'exit 0' TERM; while :; do sleep 0.1; done", "-t1"),
    "pending, cancelled": ("true", "--hold"),
    "cancelled": ("echo ready; exec sleep 1000", ""),  # a child of the shell would be signalled first, and race with it
    "cancelled, handled": ("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done", ""),
    "cancelled, ignored": ("trap '' TERM; echo ready; sleep 1000; sleep 1000", ""),
    "requeue exit": ('[ "$SLURM_RESTART_COUNT" = 1 ] || exit 99', "--requeue"),
    "requeued": ('echo run $SLURM_RESTART_COUNT; [ "$SLURM_RESTART_COUNT" = 1 ] || sleep 1000', "--requeue"),
    "node lost": ("echo ready; sleep 1000", "--nodelist=sn4 --no-requeue"),
    "step failed": ("srun false; exit 0", ""),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Twins]]:
    if service.missing():
        pytest.skip("NOT EXERCISED: Slurm is not installed")
    folder = tmp_path_factory.mktemp("plain")
    with service.running(slurmd_timeout=8) as slurm, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTE_JOB_DIRECTORY", str(tmp_path_factory.mktemp("root")))
        executor = executor_for(slurm)

        def submit(name: str) -> Twins:
            script, flags = FATES[name]
            file = folder / re.sub(r"\W", "-", name)
            file.write_text(f"#!/bin/bash\n{script}\n")
            job = submit_script(script, f"-n1 {flags}", executor=executor)
            output = file.with_suffix(".out")
            words = ["--parsable", f"--output={output}", "-n1", *flags.split(), str(file)]
            return Twins(slurm, job, slurm.run("sbatch", *words).strip(), output)

        every = {name: submit(name) for name in FATES}
        every["pending, cancelled"].both("scancel")
        for name in ("cancelled", "cancelled, handled", "cancelled, ignored"):
            until(lambda: every[name].ready())  # noqa: B023
            every[name].both("scancel")
        every["requeued"].running().both("scontrol", "requeue")
        until(every["node lost"].ready)
        slurm.stop_node("sn4")
        yield every


@pytest.mark.parametrize(
    ("name", "state", "native_state", "exit_code", "reason"),
    [
        ("exit 3", JobState.FAILED, "FAILED", 3, "NonZeroExitCode"),
        ("exit 137", JobState.FAILED, "FAILED", 137, "NonZeroExitCode"),
        ("kill -9", JobState.FAILED, "FAILED", 137, "RaisedSignal:9(Killed)"),
        ("kill -TERM", JobState.FAILED, "FAILED", 143, "RaisedSignal:15(Terminated)"),
        ("memory", JobState.FAILED, "FAILED", 137, "NonZeroExitCode"),
        ("pending, cancelled", JobState.CANCELED, "CANCELLED", None, "cancelled"),
        ("cancelled", JobState.CANCELED, "CANCELLED", 143, "cancelled"),
        ("cancelled, handled", JobState.CANCELED, "CANCELLED", 7, "cancelled"),
        ("cancelled, ignored", JobState.CANCELED, "CANCELLED", 137, "cancelled"),
        ("requeue exit", JobState.COMPLETED, "COMPLETED", 0, None),
        ("requeued", JobState.COMPLETED, "COMPLETED", 0, None),
        ("step failed", JobState.COMPLETED, "COMPLETED", 0, None),
        ("node lost", JobState.FAILED, "NODE_FAIL", None, "NodeDown: a node it needs is down"),
        ("limit", JobState.FAILED, "TIMEOUT", 143, "TimeLimit: it reached its time limit"),
        ("trapped limit", JobState.FAILED, "TIMEOUT", 0, "TimeLimit: it reached its time limit"),
    ],
)
def test_every_end_is_told_as_it_was(
    twins: dict[str, Twins],
    name: str,
    state: JobState,
    native_state: str,
    exit_code: Optional[int],
    reason: Optional[str],
) -> None:
    pair = twins[name]
    assert pair.job.wait(SLOW)
    assert (pair.job.state, pair.job.native_state, pair.job.exit_code) == (state, native_state, exit_code)
    assert pair.job.reason == reason

    fields = ["JobState", "Reason", "ExitCode", "Restarts"]

    def record(number: str) -> dict[str, str]:
        return {field: pair.slurm.field(number, field) for field in fields}

    until(lambda: record(pair.plain)["JobState"] == native_state, SLOW)
    assert record(pair.job.native_id) == record(pair.plain)
    assert pair.job.psij_job.status.state is state
    assert pair.job.psij_job.status.exit_code == exit_code


def test_the_output_of_a_requeued_job_is_that_of_its_last_run(twins: dict[str, Twins]) -> None:
    assert twins["requeued"].job.result(SLOW) == "run 1\n"


def test_a_memory_kill_is_explained_by_the_last_lines(twins: dict[str, Twins]) -> None:
    with pytest.raises(JobFailed, match="Exceeded job memory limit"):
        twins["memory"].job.result(SLOW)


# A Slurm that goes away, and one that forgets


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Slurm]:
    if service.missing():
        pytest.skip("NOT EXERCISED: Slurm is not installed")
    with service.running(min_job_age=2) as slurm:
        yield slurm


def test_a_controller_that_is_away_changes_no_state(forgetful: service.Slurm, tmp_path: Path) -> None:
    job = submit_script(f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 3", executor=executor_for(forgetful))
    until(job.running)
    forgetful.stop_controller()
    down = time.monotonic()
    (tmp_path / "go").touch()
    since = until(lambda: job.details.unanswered_since)
    assert time.time() - since < 60
    while time.monotonic() - down < 40:
        assert job.running()
        time.sleep(0.1)
    forgetful.start_controller()
    assert job.wait(SLOW)
    assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "FAILED", 3)
    assert job.details.unanswered_since is None


@pytest.mark.parametrize(
    ("script", "cancel", "state", "exit_code", "reason"),
    [
        ("true", "nobody", JobState.COMPLETED, 0, None),
        ("exit 3", "nobody", JobState.FAILED, 3, "the scheduler no longer knows the job, its own record counts"),
        ("sleep 1000", "we", JobState.CANCELED, 143, "cancelled"),
        (
            "sleep 1000",
            "others",
            JobState.FAILED,
            143,
            "it was sent TERM; the scheduler no longer knows the job, its own record counts",
        ),
        ("", "others while pending", JobState.FAILED, None, NO_EVIDENCE),
    ],
)
def test_a_job_that_is_gone_before_anybody_looked(
    forgetful: service.Slurm,
    script: str,
    cancel: str,
    state: JobState,
    exit_code: Optional[int],
    reason: Optional[str],
) -> None:
    executor = executor_for(forgetful)
    executor.tracker._put_questions = lambda: None  # type: ignore[method-assign]  # nobody asks
    job = submit_script(script or "true", "" if script else "--hold", executor=executor)
    executor.tracker.pace = Pace(forgotten=0.1)
    if cancel in ("we", "others"):
        until(job.running)
    if cancel == "we":
        job.cancel()
    elif cancel != "nobody":
        forgetful.run("scancel", job.native_id)
    known = ["scontrol", "show", "job", job.native_id]
    until(lambda: not forgetful.run(*known, check=False), SLOW)
    del executor.tracker._put_questions  # type: ignore[method-assign]
    executor.tracker.hurry(job.psij_job)
    assert job.wait(SLOW)
    assert (job.state, job.exit_code, job.reason) == (state, exit_code, reason)


def test_accounting_tells_of_a_job_that_the_controller_forgot(
    slurm_with_accounting: service.Slurm, tmp_path: Path
) -> None:
    """The end that left no record of ours: only sacct knows of it."""
    executor = executor_for(slurm_with_accounting)
    executor.tracker._put_questions = lambda: None  # type: ignore[method-assign]
    job = submit_script("true", "--hold", executor=executor)
    slurm_with_accounting.run("scancel", job.native_id)
    until(lambda: not slurm_with_accounting.run("scontrol", "show", "job", job.native_id, check=False), SLOW)
    del executor.tracker._put_questions  # type: ignore[method-assign]
    executor.tracker.hurry(job.psij_job)
    assert job.wait(SLOW)
    assert (job.state, job.native_state, job.exit_code) == (JobState.CANCELED, "CANCELLED", None)
    assert re.fullmatch(r"cancelled by \S+", str(job.reason))
