"""The behaviour suite on a real Slurm."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from execute_batch_scheduler import submit_script
from execute_batch_scheduler.submit import executor_for
from tests.contract.behaviour import PATIENCE, OurBehaviour
from tests.services.slurm import Slurm

from psij import JobState


class TestSlurm(OurBehaviour):
    wlm = "slurm"

    @pytest.fixture(autouse=True)
    def _service(self, slurm: object) -> None:
        pass


class TestSlurmWithAccounting(OurBehaviour):
    wlm = "slurm"

    @pytest.fixture(autouse=True)
    def _service(self, slurm_with_accounting: object) -> None:
        pass


def test_a_memory_kill_is_known_soon_to_who_follows(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm ends the job some seconds after it has written into the output that it does."""
    _, executor = executor_for("slurm")
    tracker = executor.tracker  # type: ignore[attr-defined]
    monkeypatch.setattr(tracker, "pace", replace(tracker.pace, running=1e6))  # nobody asks by himself
    job = submit_script("python3 -c 'x = bytearray(300 << 20); import time; time.sleep(60)'", "--mem=50", wlm="slurm")
    seen, end = "", time.monotonic() + PATIENCE
    for _, text in job.follow(ticks=True):
        seen += text
        assert time.monotonic() < end, seen
    assert "Exceeded job memory limit" in seen
    assert (job.state, job.exit_code) == (JobState.FAILED, 137)
