"""jobs() and attach(): the way back to a job, whatever became of the process that submitted it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import BadUsage, ExecuteError, JobCancelled, attach, jobs, journal, submit_script
from execute_batch_scheduler.history import clean, seconds
from tests.contract.behaviour import PATIENCE, until
from tests.contract.test_magic import Shell, shell  # noqa: F401

from psij import JobState


@pytest.fixture(autouse=True)
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))


@pytest.fixture(params=["local", "slurm", "psij:local"])
def wlm(request: pytest.FixtureRequest) -> str:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    return str(request.param)


@pytest.fixture(params=["local", "slurm"])
def detached(request: pytest.FixtureRequest) -> str:
    """A backend whose jobs outlive the process that submitted them; those of PSI/J's local executor do not."""
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    return str(request.param)


def elsewhere(code: str) -> str:
    """What another process prints."""
    code = f"from execute_batch_scheduler import *\n{code}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_running_job_of_another_process(detached: str, tmp_path: Path) -> None:
    script = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo two; echo err >&2; exit 3"
    number = elsewhere(f"print(submit_script({script!r}, wlm={detached!r}).native_id)").strip()
    until(lambda: [entry.native_state for entry in jobs()] == ["RUNNING"])
    first, second = attach(number), attach(int(number), wlm=detached)
    seen = ""
    for stream, text in first.follow():
        seen += text if stream == "stdout" else ""
        if seen == "one\n":
            assert first.state in (JobState.QUEUED, JobState.ACTIVE)
            (tmp_path / "go").touch()
    assert seen == "one\ntwo\n"
    assert second.wait(PATIENCE)
    for job in (first, second):
        assert (job.state, job.exit_code, job.get_output()) == (JobState.FAILED, 3, ("one\ntwo\n", "err\n"))
    assert first.key == second.key == jobs()[-1].key


def test_an_ended_job(wlm: str) -> None:
    number = elsewhere(
        f"job = submit_script('echo out; exit 3', wlm={wlm!r}); job.wait(); print(job.native_id)"
    ).strip()
    job = attach(number)
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code, job.stdout()) == (JobState.FAILED, 3, "out\n")
    assert job.started is not None
    assert job.future.done()


def test_a_job_that_ended_while_nobody_looked(detached: str) -> None:
    number = elsewhere(f"print(submit_script('sleep 0.5; echo out; exit 3', wlm={detached!r}).native_id)").strip()
    until(lambda: [entry.exit_code for entry in jobs()] == [3])
    assert attach(number).exception(0) is not None
    assert attach(number).stdout() == "out\n"


def test_an_attached_job_can_be_cancelled(detached: str) -> None:
    number = elsewhere(f"print(submit_script('sleep 1000', wlm={detached!r}).native_id)").strip()
    job = attach(number)
    until(job.running)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(PATIENCE)
    assert [entry.state for entry in jobs(state="cancelled")] == ["CANCELED"]


def test_a_job_submitted_by_sbatch_alone(slurm: Any, tmp_path: Path) -> None:
    words = [f"--output={tmp_path}/o ut", "--wrap=echo out; echo err >&2; sleep 1; exit 3"]
    running = slurm.run("sbatch", "--parsable", *words).strip()
    job = attach(running)
    assert job.wait(PATIENCE)
    assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "FAILED", 3)
    assert job.get_output() == ("out\nerr\n", "")
    assert job.started is not None
    assert job.submitted <= job.started
    again = attach(running)
    assert (again.state, again.exit_code, again.stdout()) == (JobState.FAILED, 3, "out\nerr\n")
    assert again.paths.directory is None
    assert jobs() == []


def test_an_array_is_no_job(slurm: Any) -> None:
    number = slurm.run("sbatch", "--parsable", "--array=1-2", "--wrap=sleep 1").strip()
    with pytest.raises(ExecuteError, match=f"job {number} is an array, .*squeue -r -j {number} shows its tasks"):
        attach(number)
    with pytest.raises(BadUsage, match="--array=1-2: job arrays are not supported yet"):
        submit_script("true", native=["--array=1-2"], wlm="slurm")
    with pytest.raises(ExecuteError, match="no job 0 is known"):
        attach(0)


def test_a_name_that_a_variable_gives(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_JOB_NAME", "ofvariable")
    job = submit_script("echo hello", "-n1", wlm="slurm")
    assert slurm.field(job.native_id, "JobName") == "ofvariable"
    assert "echo hello" in repr(jobs())
    assert "/bin/bash" not in repr(jobs())


def test_a_job_that_slurm_has_purged(slurm_with_accounting: Any) -> None:
    number = elsewhere("job = submit_script('echo out; exit 3', wlm='slurm'); print(job.native_id)").strip()
    until(lambda: not slurm_with_accounting.run("scontrol", "show", "job", number, check=False))
    job = attach(number)
    assert job.wait(PATIENCE)
    assert (job.state, job.exit_code, job.stdout()) == (JobState.FAILED, 3, "out\n")


def test_a_job_sent_to_a_cluster_by_name(slurm_with_accounting: Any, tmp_path: Path) -> None:
    script = f"echo out; until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 3"
    job = submit_script(script, "--clusters=lab -n1", wlm="slurm")
    number, cluster = job.native_id.split(";")
    assert cluster == "lab"
    until(job.running)
    again = attach(number)
    assert again.key == job.key
    (tmp_path / "go").touch()
    for one in (job, again):
        assert one.wait(PATIENCE)
        assert (one.state, one.native_state, one.exit_code, one.stdout()) == (JobState.FAILED, "FAILED", 3, "out\n")
    held = [submit_script("true", "--clusters=lab --hold", wlm="slurm") for _ in range(2)]
    assert [entry.native_state for entry in jobs(state="PENDING")] == ["PENDING"] * 2
    for one in held:
        assert one.cancel()
        assert one.wait(PATIENCE)
        assert one.cancelled()


def test_two_handles_of_one_job_in_one_process(slurm: Any) -> None:
    job = submit_script("sleep 0.5; exit 3", wlm="slurm")
    handles = [attach(job.native_id) for _ in range(3)]
    for one in (job, *handles):
        assert one.wait(PATIENCE)
        assert (one.state, one.native_state, one.reason) == (JobState.FAILED, "FAILED", "NonZeroExitCode")


def test_an_unknown_job_is_an_error_that_says_so(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecuteError, match=r"no job 99999 is known: .* Slurm does not know it"):
        attach("99999")
    with pytest.raises(ExecuteError, match="no job nonsense is known"):
        attach("nonsense")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExecuteError, match=r"no job 99999 is known.* no scheduler can be asked"):
        attach("99999")


def test_a_number_that_two_backends_have_given(slurm: Any) -> None:
    job = submit_script("echo here", wlm="local")
    other = submit_script("echo there", wlm="slurm")
    assert job.wait(PATIENCE)
    assert other.wait(PATIENCE)
    journal.note(other.key, native_id=job.native_id)
    with pytest.raises(ExecuteError, match=rf"2 jobs have the number {job}; name the one .*:\n(.*\n)*{other.key[:8]}"):
        attach(job.native_id)
    for entry, text in zip(jobs(), ("here\n", "there\n")):
        assert attach(entry).stdout() == text
        assert attach(entry.key[:8]).stdout() == text
    assert attach(job.native_id, wlm="local").stdout() == "here\n"


def test_filters(slurm: Any) -> None:
    first = submit_script("exit 3", wlm="local")
    second = submit_script("true", wlm="slurm")
    assert first.wait(PATIENCE)
    assert second.wait(PATIENCE)
    assert [entry.native_id for entry in jobs()] == [first.native_id, second.native_id]
    assert [entry.native_id for entry in jobs(wlm="slurm")] == [second.native_id]
    assert [entry.native_id for entry in jobs(state="FAILED")] == [first.native_id]
    assert len(jobs(since="1h")) == 2
    time.sleep(0.01)
    assert jobs(since=0) == []
    assert first.native_id in repr(jobs())
    assert "<table>" in jobs()._repr_html_()


def test_a_controller_that_is_down_is_said_and_changes_nothing(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit_script("true", "--hold", wlm="slurm")
    conf = Path(os.environ["SLURM_CONF"])
    text = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", conf.read_text()).replace(
        "MessageTimeout=3", "MessageTimeout=1"
    )
    other = conf.with_name("down.conf")
    other.write_text(text)
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(other))
        (entry,) = jobs()
        assert (entry.state, entry.native_state) == (None, "UNKNOWN")
        assert "not answered" in str(entry.reason)
    assert jobs()[0].native_state == "PENDING"
    job.cancel()
    assert job.wait(PATIENCE)


def test_clean_takes_ended_jobs_only(tmp_path: Path) -> None:
    old = submit_script("echo x", wlm="local")
    running = submit_script(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done", wlm="local")
    assert old.wait(PATIENCE)
    assert clean("1h") == (0, 0)
    count, freed = clean(0)
    assert (count, freed > 0) == (1, True)
    assert not Path(str(old.paths.directory)).exists()
    assert Path(str(running.paths.directory)).exists()
    assert [entry.key for entry in jobs()] == [running.key]
    (tmp_path / "go").touch()
    assert running.wait(PATIENCE)


@pytest.mark.parametrize(("age", "value"), [("90s", 90), ("2h", 7200), ("1d12h", 129600), (5, 5), ("1w", 604800)])
def test_ages(age: Any, value: float) -> None:
    assert seconds(age) == value


def test_ages_that_are_none() -> None:
    with pytest.raises(ExecuteError, match="'soon' is no age"):
        seconds("soon")


def test_the_line_magics(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    number = elsewhere(
        "job = submit_script('echo out; echo err >&2; exit 3', wlm='local'); job.wait(); print(job)"
    ).strip()
    assert number in str(shell.run("%execute_jobs").result)
    assert shell.run("%execute_jobs --state=COMPLETED").result == []
    job = shell.run(f"%execute_attach {number}").result
    assert job.exit_code == 3
    assert f"Attached to job {number}" in shell.out
    assert "out\n" in shell.out
    assert "Status:  FAILED" in shell.out
    shell.run(f"%execute_output {number}")
    assert (shell.out, shell.err) == ("out\n", "err\n")
    assert shell.run(f"%execute_info {number}").result.exit_code == 3
    shell.run(f"%execute_cancel {number}")
    assert "has ended already" in shell.out
    shell.run("%execute_clean --older=0s")
    assert "1 jobs removed" in shell.out
    for bad in (
        "%execute_attach",
        "%execute_attach 99999999",
        "%execute_clean",
        "%execute_jobs --nope=1",
        "%execute_cancel",
    ):
        assert not shell.run(bad).success
        assert "Traceback" not in shell.out + shell.err
