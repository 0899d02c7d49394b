"""The output of a job that Slurm queues again: shown once, and told apart from what it wrote before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from execute_batch_scheduler import Job, submit_script
from tests.contract.behaviour import until

SCRIPT = 'echo run "${SLURM_RESTART_COUNT:-0}"; printf half; [ "$SLURM_RESTART_COUNT" ] || sleep 1000; echo; echo end'


def follow(job: Job, seen: list[tuple[int, str]]) -> None:
    """What comes on stdout, together with how often it had begun anew."""
    streams = {"stdout": job.open("stdout")}
    for name, text in job.follow(streams=streams):
        seen.append((streams[name].restarts, text))


def test_each_attempt_is_shown_once(slurm: Any, tmp_path: Path) -> None:
    flags = ["--requeue", f"--requeue --open-mode=append --output={tmp_path}/out"]
    jobs = [submit_script(SCRIPT, text, wlm="slurm") for text in flags]
    seen: list[list[tuple[int, str]]] = [[], []]
    threads = [threading.Thread(target=follow, args=pair) for pair in zip(jobs, seen)]
    for thread in threads:
        thread.start()
    for job, pieces in zip(jobs, seen):
        until(lambda pieces=pieces: "half" in "".join(text for _, text in pieces))
        slurm.run("scontrol", "requeue", job.native_id)
    for thread in threads:
        thread.join()
    for job, pieces in zip(jobs, seen):
        first, second = ("".join(text for restarts, text in pieces if restarts == number) for number in (0, 1))
        assert first.startswith("run 0\nhalf")
        assert second == "run 1\nhalf\nend\n" == job.stdout()
    assert (tmp_path / "out").read_text().count("run") == 2
