"""The same fault twice: what PSI/J's own Slurm executor makes of it, and what ours does.

Each test says first what is wrong there: one that fails in that half tells that PSI/J has been mended since 0.9.11, and
that something may be taken out here. Each has a Slurm of its own, as a job of one test would blind PSI/J in the next.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor
from execute_batch_scheduler.adapters.tracking import NO_EVIDENCE, Pace

from execute_batch_scheduler import BadUsage, ExecuteError, Job, attach, submit_script
from tests.contract.behaviour import PATIENCE, until
from tests.services import slurm as service

from psij import Job as PsijJob, JobAttributes, JobExecutor, JobSpec, JobState, SubmitException
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutor
from psij.executors.batch.slurm import SlurmExecutorConfig

AnyJob = Union[PsijJob, Job]
Front = Callable[[str, str], None]
Verdict = tuple[JobState, Optional[int]]
ACTIVE, CANCELED, COMPLETED, FAILED = JobState.ACTIVE, JobState.CANCELED, JobState.COMPLETED, JobState.FAILED
FORGET = {"min_job_age": 2}  # seconds after which the controller forgets an ended job
ACCOUNTING = {"accounting": True, **FORGET}


class Lab:
    """A Slurm, PSI/J's executor on it, and ours."""

    def __init__(self, slurm: service.Slurm, work_directory: Path) -> None:
        self.slurm = slurm
        config = SlurmExecutorConfig(
            queue_polling_interval=1, initial_queue_polling_delay=1, work_directory=work_directory
        )
        stock = JobExecutor.get_instance("slurm", config=config)
        assert isinstance(stock, BatchSchedulerExecutor)
        self.stock = stock
        executor = JobExecutor.get_instance("tracked-slurm")
        assert isinstance(executor, TrackedSlurmExecutor)
        executor.tracker.pace = Pace(queued=0.5, running=1.0, unanswered=0.3, forgotten=0.3)
        self.executor = executor

    def submit_stock(self, script: str, **options: str) -> PsijJob:
        directory = Path(options.pop("chdir", "."))  # the template's own field
        attributes = JobAttributes(custom_attributes={f"slurm.{name}": value for name, value in options.items()})
        job = PsijJob(JobSpec("/bin/bash", ["-c", script], directory=directory.absolute(), attributes=attributes))
        self.stock.submit(job)
        return job

    def submit(self, script: str, **options: str) -> Job:
        return submit_script(script, [f"--{name}={value}" for name, value in options.items()], executor=self.executor)

    def twins(self, script: str, **options: str) -> tuple[PsijJob, Job]:
        """The same job twice: PSI/J's and ours."""
        return self.submit_stock(script, **options), self.submit(script, **options)

    def attach_stock(self, number: str) -> PsijJob:
        job = PsijJob()
        self.stock.attach(job, number)
        return job

    def state(self, job: AnyJob) -> str:
        """Slurm's own word."""
        return self.slurm.field(str(job.native_id), "JobState")

    def record(self, job: AnyJob) -> tuple[str, str]:
        return self.state(job), self.slurm.field(str(job.native_id), "ExitCode")

    def forgotten(self) -> None:
        until(lambda: not self.slurm.run("squeue", "-h", "-t", "all"))


def end(job: AnyJob) -> Verdict:
    """What a handle says in the end."""
    if isinstance(job, PsijJob):
        until(lambda: job.status.final)
        return job.status.state, job.status.exit_code
    assert job.wait(PATIENCE)
    assert end(job.psij_job) == (job.state, job.exit_code)
    return job.state, job.exit_code


def polled(lab: Lab, count: int = 3) -> None:
    """Wait until PSI/J has asked that often."""
    asked = []

    def run(command: list[str], real: Callable[[list[str]], str]) -> str:
        asked.append(command)
        return real(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.stock, "_run_command", functools.partial(run, real=lab.stock._run_command))
        until(lambda: len(asked) > count)


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    settings = getattr(request, "param", {})
    if service.missing(settings.get("accounting", False)):
        pytest.skip("NOT EXERCISED: Slurm is not installed")
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.chdir(tmp_path)
    with service.running(**settings) as slurm:
        for name, value in slurm.environment.items():
            monkeypatch.setenv(name, value)
        yield Lab(slurm, tmp_path / "psij")


# what a job ended with


def test_slurm_is_told_that_a_failed_job_succeeded(lab: Lab) -> None:
    """So what depends on it starts, and mail and accounting lie."""
    scripts = ["exit 3", "kill -9 $$", "kill -SEGV $$"]
    codes = [(FAILED, 3), (FAILED, 137), (FAILED, 139)]

    def dependents(jobs: Sequence[AnyJob]) -> list[str]:
        options = {"kill-on-invalid-dep": "yes"}
        after = [lab.submit("true", dependency=f"afterok:{job.native_id}", **options) for job in jobs]
        until(lambda: all(job.done() for job in after))
        return [lab.state(job) for job in after]

    stock = [lab.submit_stock(script) for script in scripts]
    assert [end(job) for job in stock] == codes
    assert [lab.record(job) for job in stock] == [("COMPLETED", "0:0")] * 3
    assert dependents(stock) == ["COMPLETED"] * 3
    ours = [lab.submit(script) for script in scripts]
    assert [end(job) for job in ours] == codes
    assert [lab.record(job) for job in ours] == [("FAILED", "3:0"), ("FAILED", "0:9"), ("FAILED", "0:11")]
    assert dependents(ours) == ["CANCELLED"] * 3


def test_an_exit_code_that_asks_for_a_requeue(lab: Lab) -> None:
    """RequeueExit=99. Slurm never sees the code."""
    stock, ours = lab.twins('[ "$SLURM_RESTART_COUNT" = 1 ] || exit 99')
    assert end(stock) == (FAILED, 99)
    assert lab.state(stock) == "COMPLETED"
    until(lambda: lab.state(ours) == "PENDING")
    assert not ours.done()
    time.sleep(1.1)  # a node refuses a job that it ended in the same second
    lab.slurm.run("scontrol", "update", f"JobId={ours}", "StartTime=now")
    assert end(ours) == (COMPLETED, 0)


def test_a_memory_kill_is_called_a_failed_launch(lab: Lab) -> None:
    stock, ours = lab.twins("python3 -c 'x = bytearray(300 << 20); import time; time.sleep(60)'", mem="50")
    _, code = end(stock)  # 137 where Slurm ended the script first, and then PSI/J's script around it
    assert "memory" not in str(stock.status.message)
    assert code == 137 or str(stock.status.message).startswith("The job could not be launched")
    assert end(ours) == (FAILED, 137)
    assert ours.reason == "RaisedSignal:9(Killed)"
    assert "exceeded memory limit" in str(ours.exception())


def test_a_job_that_ran_in_another_directory_has_completed(lab: Lab, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    assert end(lab.submit_stock(f"pwd >{tmp_path}/stock", chdir=str(place))) == (COMPLETED, 0)
    assert (tmp_path / "stock").read_text() != f"{place}\n"
    assert lab.submit("pwd", chdir=str(place)).result(PATIENCE) == f"{place}\n"


# jobs that are not there (any more)


@pytest.mark.parametrize("lab", [FORGET], indirect=True, ids=["forgetful"])
def test_a_job_that_there_never_was(lab: Lab) -> None:
    assert end(lab.attach_stock("4711")) == (COMPLETED, None)
    with pytest.raises(ExecuteError, match="no job 4711 is known"):
        attach(4711, executor=lab.executor)
    job = PsijJob()
    lab.executor.attach(job, "4711")
    assert end(job) == (FAILED, None)
    assert job.status.message == NO_EVIDENCE


def test_a_job_that_is_attached_to_twice(lab: Lab) -> None:
    """The first reader removes the file with the exit code."""
    stock, ours = lab.twins("exit 3")
    assert end(stock) == end(ours) == (FAILED, 3)
    assert end(lab.attach_stock(str(stock.native_id))) == (COMPLETED, None)
    assert [end(attach(str(ours), executor=lab.executor)) for _ in range(2)] == [(FAILED, 3)] * 2


KERNEL = """
import sys, time
from execute_batch_scheduler import submit_script
from psij import Job, JobAttributes, JobExecutor, JobSpec
script, name, value, cancel = sys.argv[1:]
stock = Job(JobSpec("/bin/bash", ["-c", script], attributes=JobAttributes(custom_attributes={f"slurm.{name}": value})))
JobExecutor.get_instance("slurm").submit(stock)
ours = submit_script(script, [f"--{name}={value}"], wlm="slurm")
print(stock.native_id, ours.native_id, ours.key)
if cancel:
    while not ours.running():
        time.sleep(0.1)
    stock.cancel()
    ours.cancel()
"""
GONE = {
    "cancelled by others while pending": ("true", "begin", "now+1hour"),
    "cancelled by others": ("sleep 1000", "nodelist", "sn1"),
    "cancelled by its handle": ("sleep 1000", "nodelist", "sn2"),
    "node lost": ("sleep 1000", "nodelist", "sn4"),
}
ITS_RECORD_ALONE = [
    (FAILED, None, NO_EVIDENCE),
    (FAILED, 143, "it was sent TERM; the scheduler no longer knows the job, its own record counts"),
    (CANCELED, 143, "cancelled"),
    (FAILED, None, NO_EVIDENCE),
]
WITH_ACCOUNTING = [
    (CANCELED, None, f"cancelled by {os.getuid()}"),
    (CANCELED, 143, f"cancelled by {os.getuid()}"),
    (CANCELED, 143, f"cancelled by {os.getuid()}"),
    (FAILED, None, "NodeFailure: its node failed"),
]


@pytest.mark.parametrize(
    ("lab", "told"),
    [(FORGET, ITS_RECORD_ALONE), (ACCOUNTING, WITH_ACCOUNTING)],
    indirect=["lab"],
    ids=["forgetful", "accounting"],
)
def test_jobs_that_slurm_forgot_while_nobody_looked(lab: Lab, told: list[tuple[JobState, Optional[int], str]]) -> None:
    """A kernel was closed, and its jobs met these fates."""
    numbers: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for fate, words in GONE.items():
        cancel = "cancel" if fate == "cancelled by its handle" else ""
        done = subprocess.run([sys.executable, "-c", KERNEL, *words, cancel], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *numbers[fate], keys[fate] = done.stdout.split()
    for number in numbers["cancelled by others"] + numbers["node lost"]:
        until(lambda: lab.slurm.field(number, "JobState") == "RUNNING")  # noqa: B023
    lab.slurm.run("scancel", *numbers["cancelled by others while pending"], *numbers["cancelled by others"])
    for number in numbers["node lost"]:
        lab.slurm.run("scontrol", "update", f"JobId={number}", "Requeue=0")
    lab.slurm.stop_node("sn4")
    lab.slurm.run("scontrol", "update", "NodeName=sn4", "State=DOWN", "Reason=test")
    lab.forgotten()
    stock = [lab.attach_stock(number) for number, _ in numbers.values()]
    ours = [attach(key, executor=lab.executor) for key in keys.values()]
    assert [end(job) for job in stock] == [(COMPLETED, None)] * len(GONE)
    assert [(*end(job), job.reason) for job in ours] == told


def test_a_job_array_has_completed_while_it_waits(lab: Lab) -> None:
    stock = lab.submit_stock("sleep 1000", array="0-2")
    assert end(stock) == (COMPLETED, None)
    assert len(lab.slurm.run("squeue", "-h", "-r").splitlines()) == 3
    with pytest.raises(BadUsage, match="job arrays are not supported yet"):
        lab.submit("sleep 1000", array="0-2")


def test_jobs_that_the_users_variables_hide(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "short")
    stock, *ours = [*lab.twins("true", begin="now+1hour"), lab.submit("true", begin="now+1hour")]
    assert end(stock) == (COMPLETED, None)
    assert lab.state(stock) == "PENDING"
    states = [report.native_state for report in lab.executor.ask([job.psij_job for job in ours]).values()]
    assert states == ["PENDING"] * 2


@pytest.mark.parametrize("lab", [ACCOUNTING], indirect=True, ids=["accounting"])
def test_a_job_that_is_sent_to_a_cluster_by_its_name(lab: Lab) -> None:
    """sbatch says "Submitted batch job 1 on cluster lab"."""
    stock, ours = lab.twins("sleep 2; exit 3", clusters="lab")
    assert stock.native_id == "lab"
    assert end(stock) == (COMPLETED, None)
    assert not ours.done()
    assert end(ours) == (FAILED, 3)


# a controller, or its answer, that is out of order


@pytest.mark.parametrize("reason", ["ReqNodeNotAvail,", "DeadLine"], ids=["of two words", "not in its table"])
def test_another_job_whose_reason_is_odd(lab: Lab, reason: str) -> None:
    """No job of the user is reported any more, as long as Slurm shows that one."""
    run = lab.slurm.run
    run("scontrol", "update", "NodeName=sn4", "State=DOWN", "Reason=test")
    other = run("sbatch", "--parsable", "--nodelist=sn4", "--time=1", "--deadline=now+1hour", "--wrap=true").strip()
    if reason == "DeadLine":
        run("scontrol", "update", f"JobId={other}", "Deadline=now+1")
    until(lambda: run("squeue", "-h", "-t", "all", "-o", "%r").startswith(reason))
    stock, ours = lab.twins("exit 3")
    assert end(ours) == (FAILED, 3)
    until(lambda: lab.state(stock) == "COMPLETED")
    polled(lab)
    assert not stock.status.final


def test_a_controller_that_is_away(lab: Lab, tmp_path: Path) -> None:
    stock, ours = lab.twins(f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 3")
    until(lambda: stock.status.state is ACTIVE and ours.running())
    lab.slurm.stop_controller()
    assert end(stock) == (FAILED, None)
    until(lambda: ours.details.unanswered_since)
    assert ours.running()
    lab.slurm.start_controller()
    assert lab.state(stock) == "RUNNING"
    (tmp_path / "go").touch()
    assert end(ours) == (FAILED, 3)


RUBBISH: dict[str, tuple[str, Verdict]] = {
    "garbage": ("echo '<html>502 Bad Gateway</html>'", (COMPLETED, None)),
    "nothing": ("true", (COMPLETED, None)),
    "half an answer": ('"$REAL" "$@" | head -c 30', (COMPLETED, None)),
    "rate limit": ("echo 'slurm_load_jobs error: Rate limit exceeded' >&2; exit 1", (FAILED, None)),
}


@pytest.mark.parametrize(("answer", "verdict"), RUBBISH.values(), ids=RUBBISH)
def test_an_answer_that_is_none(lab: Lab, front: Front, answer: str, verdict: Verdict) -> None:
    stock, ours = lab.twins("sleep 1000")
    until(lambda: stock.status.state is ACTIVE and ours.running())
    for command in ("squeue", "scontrol"):
        front(command, answer)
    assert end(stock) == verdict
    until(lambda: ours.details.unanswered_since)
    assert ours.running()
    for command in ("squeue", "scontrol"):
        front(command, "")
    assert lab.state(stock) == "RUNNING"
    ours.cancel()
    assert end(ours) == (CANCELED, 143)


def test_a_question_that_hangs(lab: Lab, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("execute_batch_scheduler.adapters.slurm._QUESTION_TIMEOUT", 1.0)
    hang = f'rmdir {tmp_path}/hung 2>/dev/null && exec sleep 60; exec "$REAL" "$@"'
    (tmp_path / "hung").mkdir()
    front("squeue", hang)
    stock = lab.submit_stock("exit 3")
    until(lambda: lab.state(stock) == "COMPLETED" and not (tmp_path / "hung").exists())
    (tmp_path / "hung").mkdir()
    front("scontrol", hang)
    ours = lab.submit("exit 3")
    assert end(ours) == (FAILED, 3)
    assert not (tmp_path / "hung").exists()
    assert not stock.status.final


def test_the_answer_to_a_submission_is_lost(lab: Lab, front: Front) -> None:
    front("sbatch", '"$REAL" "$@" >/dev/null; kill -9 $$')
    with pytest.raises(SubmitException):
        lab.submit_stock("exit 3")
    assert len(lab.slurm.run("squeue", "-h", "-t", "all").splitlines()) == 1
    assert end(lab.submit("exit 3")) == (FAILED, 3)
    assert len(lab.slurm.run("squeue", "-h", "-t", "all").splitlines()) == 2


def test_a_job_that_is_requeued_and_held(lab: Lab) -> None:
    """PSI/J's states do not go back: both stay ACTIVE. Ours says beside it what there is to do."""
    stock, ours = lab.twins("sleep 1000")
    until(lambda: stock.status.state is ACTIVE and ours.running())
    for job in (stock, ours):
        lab.slurm.run("scontrol", "requeuehold", str(job.native_id))
    until(lambda: ours.native_state == "PENDING")
    polled(lab)
    assert (stock.status.state, stock.status.message) == (ACTIVE, None)
    assert str(ours.reason).startswith("job_requeued_in_held_state: it was requeued and is held; release it with")
