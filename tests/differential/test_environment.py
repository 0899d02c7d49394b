"""Submitting from where notebooks run: in an allocation, under a kernel and a hub, with Slurm's own variables."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from execute_batch_scheduler import Job, submit_script
from tests.contract.behaviour import until
from tests.services import slurm as service

from psij import JobState

PATIENCE = 60.0
CHECKOUT = Path(__file__).resolve().parents[2]

# What a job sees of Slurm differs from job to job in these.
OWN = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_TASK_PID", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_GTIDS")
PLACE = ("SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURMD_NODENAME")

# What ipykernel, JupyterHub, the notebook's terminal and MPI launchers set.
FOREIGN = {
    "JPY_PARENT_PID": "1",
    "JPY_SESSION_NAME": "notebook.ipynb",
    "JUPYTERHUB_API_TOKEN": "secret",
    "JUPYTERHUB_USER": "me",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "CLICOLOR": "1",
    "CLICOLOR_FORCE": "1",
    "FORCE_COLOR": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "PMI_RANK": "0",
    "PMIX_RANK": "0",
}


@pytest.fixture(autouse=True)
def _somewhere(slurm: service.Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def variables(out: str) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in out.split("\0") if entry)


def of_slurm(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name[:5] == "SLURM" and name not in (*OWN, *PLACE)}


INNER = """
import json, os, sys
from execute_batch_scheduler import submit_script
job = submit_script("env -0", "-n1 --time=3 --job-name=inner")
out = job.result(60)
print(json.dumps([out, job.state.name, job.native_state, job.native_id, os.environ["SLURM_JOB_ID"]]))
"""


@pytest.mark.parametrize("launch", ["", "srun -n1 --overlap "], ids=["sbatch", "srun"])
def test_from_inside_an_allocation_a_job_is_as_from_outside(slurm: service.Slurm, tmp_path: Path, launch: str) -> None:
    outside = submit_script("env -0", "-n1 --time=3 --job-name=inner")
    (tmp_path / "inner.py").write_text(INNER)
    paths = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "outer.sh").write_text(
        "#!/bin/bash\n#SBATCH -n2 -c2 --time=5 --mem-per-cpu=60 --job-name=outer --gres=gpu:1 --export=ALL\n"
        f"export PYTHONPATH={paths}\n{launch}{sys.executable} -W ignore inner.py\n"
    )
    number = slurm.run("sbatch", "--parsable", "--output=outer.out", f"--chdir={tmp_path}", "outer.sh").strip()
    until(lambda: slurm.field(number, "JobState") in ("COMPLETED", "FAILED"))
    text = (tmp_path / "outer.out").read_text()
    assert slurm.field(number, "JobState") == "COMPLETED", text
    out, state, native_state, inner, outer = json.loads(text.splitlines()[-1])
    assert (state, native_state, outer) == ("COMPLETED", "COMPLETED", number)
    assert inner != outer
    seen = variables(out)
    assert of_slurm(seen) == of_slurm(variables(outside.result(PATIENCE)))
    assert seen["SLURM_JOB_ID"] == inner
    assert slurm.field(inner, "NumCPUs") == "1"


def test_what_belongs_to_the_kernel_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**FOREIGN, "MINE": "travels", "OMP_NUM_THREADS": "3"}.items():
        monkeypatch.setenv(name, value)
    seen = variables(submit_script("env -0").result(PATIENCE))
    assert not FOREIGN.keys() & seen.keys()
    assert (seen["MINE"], seen["OMP_NUM_THREADS"]) == ("travels", "3")


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("SBATCH_TIMELIMIT", "7", "TimeLimit", "00:07:00"),
        ("SBATCH_PARTITION", "short", "Partition", "short"),
        ("SBATCH_JOB_NAME", "mine", "JobName", "mine"),
        ("SBATCH_MEM_PER_NODE", "123", "MinMemoryNode", "123M"),
        ("SBATCH_EXCLUSIVE", "user", "OverSubscribe", "USER"),
        ("SBATCH_NO_REQUEUE", "1", "Requeue", "0"),
        ("SBATCH_WAIT", "1", "JobState", "PENDING"),  # it would block
        ("SBATCH_ARRAY_INX", "0-3", "JobState", "PENDING"),  # it would make many jobs of one
        ("SBATCH_DEBUG", "2", "JobState", "PENDING"),
    ],
)
def test_sbatchs_variables_count(
    slurm: service.Slurm, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    job = submit_script("true", "--hold")
    assert slurm.field(job.native_id, field) == expected
    assert "ArrayJobId" not in slurm.run("scontrol", "show", "job", job.native_id)
    job.cancel()
    assert job.wait(PATIENCE)
    assert job.state is JobState.CANCELED


@pytest.mark.parametrize(
    ("setting", "stdout", "stderr"),
    [
        ({"SBATCH_OUTPUT": "out-%j"}, "out\nerr\n", ""),
        ({"SBATCH_OUTPUT": "out-%j", "SBATCH_ERROR": "err-%j"}, "out\n", "err\n"),
        ({"SBATCH_ERROR": "err-%j"}, "out\n", "err\n"),
        ({"SBATCH_OPEN_MODE": "append"}, "out\n", "err\n"),
        ({"SBATCH_EXPORT": "NIL"}, "out\n", "err\n"),
        ({"SBATCH_EXPORT": "PATH"}, "out\n", "err\n"),
        ({"SBATCH_SIGNAL": "USR1@10", "SBATCH_REQUEUE": "1"}, "out\n", "err\n"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_the_output_is_found_wherever_variables_send_it(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], stdout: str, stderr: str
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    job = submit_script("echo out; echo err >&2")
    assert job.result(PATIENCE) == stdout
    assert job.stderr() == stderr


FORMS: dict[str, str] = {
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_FORMAT2": "JobID",
    "SQUEUE_STATES": "RUNNING",
    "SQUEUE_SORT": "-M",
    "SQUEUE_PARTITION": "short",
    "SQUEUE_USERS": "nobody",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_BITSTR_LEN": "1",
    "SCONTROL_ALL": "1",
    "SACCT_FORMAT": "jobid",
    "SCANCEL_INTERACTIVE": "true",
    "SCANCEL_STATE": "RUNNING",
    "SCANCEL_NAME": "other",
}


@pytest.mark.parametrize("together", [1, 2], ids=["one job", "several jobs"])
@pytest.mark.parametrize("names", [[name] for name in FORMS] + [list(FORMS)], ids=lambda names: names[-1][-16:])
def test_the_forms_of_other_commands_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, names: list[str], together: int
) -> None:
    for name in names:
        monkeypatch.setenv(name, FORMS[name])
    held = [submit_script("true", "--hold") for _ in range(together)]
    ran = submit_script("echo out; exit 3")
    assert ran.wait(PATIENCE)
    assert (ran.native_state, ran.exit_code, ran.stdout()) == ("FAILED", 3, "out\n")

    def waits(job: Job) -> Any:
        return job.native_state == "PENDING" and str(job.reason).startswith("JobHeldUser: it is held")

    for job in held:
        job._tracker.hurry(job.psij_job)
        until(lambda: waits(job))  # noqa: B023
        job.cancel()
        assert job.wait(PATIENCE)
        assert (job.state, job.native_state) == (JobState.CANCELED, "CANCELLED")


@pytest.mark.parametrize("variable", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_a_cluster_that_is_named_by_a_variable(
    slurm_with_accounting: service.Slurm, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Sbatch prints the cluster's name behind the number then."""
    monkeypatch.setenv(variable, "lab")
    job = submit_script("echo out")
    assert job.result(PATIENCE) == "out\n"
    assert job.native_id.partition(";")[2] == "lab"
    assert job.native_state == "COMPLETED"
