"""The behaviour suite on this machine, and what only this backend does."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

from execute_batch_scheduler import BackendUnavailable, BadUsage, SubmissionFailed, submit_script
from tests.contract.behaviour import PATIENCE, OurBehaviour, WithoutScheduler, until

from psij import JobState


class TestLocal(WithoutScheduler, OurBehaviour):
    wlm = "local"

    def test_a_time_limit_ends_the_job(self) -> None:
        job = self.submit("sleep 1000", "--time=0:01")
        assert job.wait(PATIENCE)
        assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "TIMEOUT", 143)
        assert "time limit" in str(job.reason)

    def test_a_trapped_time_limit_is_one_all_the_same(self) -> None:
        job = self.submit("trap 'exit 0' TERM; while :; do sleep 0.1; done", "--time=0:01")
        assert job.wait(PATIENCE)
        assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "TIMEOUT", 0)

    def test_a_job_that_ignores_its_cancellation_is_killed(self) -> None:
        job = self.submit("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        until(lambda: job.stdout() == "ready\n")
        job.cancel()
        assert job.wait(PATIENCE)
        assert (job.state, job.native_state) == (JobState.CANCELED, "CANCELLED")

    def test_a_killed_wrapper_is_no_completion(self) -> None:
        job = self.submit("echo ready; sleep 1000")
        until(lambda: job.stdout() == "ready\n")
        import os
        import signal

        os.killpg(int(job.native_id), signal.SIGKILL)
        assert job.wait(PATIENCE)
        assert (job.state, job.native_state, job.exit_code) == (JobState.FAILED, "FAILED", None)
        assert "left no end record" in str(job.reason)

    def test_resource_flags_are_said_to_have_no_effect(self) -> None:
        job = self.submit("true", "-n8 --mem=4G --time=5 --job-name=x")
        assert job.notices == ("Without a scheduler these have no effect: --ntasks=8 --mem=4G",)
        assert job.wait(PATIENCE)

    def test_an_unknown_flag_is_refused(self) -> None:
        with pytest.raises(BadUsage, match=r"^--timme=3: no such option. did you mean --time"):
            self.submit("true", "--timme=3")

    def test_it_is_not_the_default_when_resources_are_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(BackendUnavailable, match=r"no scheduler is found on this machine, and --ntasks=8"):
            submit_script("true", "-n8")


def test_a_fork_has_jobs_of_its_own_and_hears_of_those_from_before(tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = submit_script(f"until [ -e {go} ]; do sleep 0.05; done; exit 3", wlm="local")
    pid = os.fork()
    if pid == 0:
        try:
            fine = submit_script("echo child", wlm="local").result(PATIENCE) == "child\n"
            go.touch()
            os._exit(0 if fine and job.wait(PATIENCE) and job.exit_code == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert job.wait(PATIENCE)


def test_what_has_ended_and_nobody_holds_is_forgotten() -> None:
    jobs = [weakref.ref(submit_script("true", wlm="local")) for _ in range(3)]
    until(lambda: gc.collect() is not None and not any(job() for job in jobs))


def test_a_directory_whose_name_is_not_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the C locale, where ps does not print it."""
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", str(tmp_path / "m\u00fcller"))
    job = submit_script("echo ready; sleep 1000", wlm="local")
    until(lambda: job.stdout() == "ready\n")
    assert not job.wait(6)  # it is looked for after five seconds
    assert job.cancel()
    assert job.wait(PATIENCE)
    assert (job.native_state, job.exit_code) == ("CANCELLED", 143)


def test_a_time_limit_ends_what_the_script_leaves_behind() -> None:
    script = "trap 'exit 0' TERM; (trap '' TERM; echo $BASHPID; exec sleep 1000) & sleep 60 & wait"
    job = submit_script(script, "--time=0:01", wlm="local")
    assert job.wait(PATIENCE)
    assert job.native_state == "TIMEOUT"
    until(lambda: not Path(f"/proc/{job.stdout().strip()}").exists())


def test_a_limit_of_somebody_elses_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_TIME_LIMIT", "1")
    monkeypatch.setenv("SECONDS", "99999")
    assert submit_script("sleep 2; echo out", "--time=5", wlm="local").result(PATIENCE) == "out\n"


def test_a_start_without_setsid_is_no_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmissionFailed, match="setsid"):
        submit_script("true", wlm="local")


def test_where_cd_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDPATH", str(tmp_path))
    assert submit_script("pwd", "--chdir=sub", wlm="local").result(PATIENCE) == f"{tmp_path}/sub\n"


def test_what_sbatch_alone_reads_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SBATCH_OUTPUT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("SBATCH_JOB_NAME", "other")
    job = submit_script("echo out", wlm="local")
    assert job.result(PATIENCE) == "out\n"
    job = submit_script(f"#!/bin/bash\n#SBATCH --output={tmp_path}/said\necho out", wlm="local")
    assert job.result(PATIENCE) == (tmp_path / "said").read_text() == "out\n"
    assert not (tmp_path / "elsewhere").exists()


def test_a_cancellation_that_could_not_look_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ps that cannot be asked, as one that lacks an option, does not say that nothing runs."""
    job = submit_script("echo ready; sleep 1000", wlm="local")
    until(lambda: job.stdout() == "ready\n")
    ps = tmp_path / "ps"
    ps.write_text("#!/bin/sh\necho 'ps: unrecognized option: sid' >&2\nexit 1\n")
    ps.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(SubmissionFailed, match=r"could not be cancelled: (.|\n)*unrecognized option: sid"):
            job.cancel()
    assert job.cancel()
    assert job.wait(PATIENCE)
    assert job.cancelled()
