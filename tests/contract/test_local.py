"""The behaviour suite on this machine, and what only this backend does."""

from __future__ import annotations

import pytest

from execute_batch_scheduler import BackendUnavailable, BadUsage, submit_script
from tests.contract.behaviour import PATIENCE, OurBehaviour, until

from psij import JobState


class TestLocal(OurBehaviour):
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
