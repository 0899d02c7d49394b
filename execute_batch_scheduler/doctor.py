"""``python -m execute_batch_scheduler doctor``: what is here, what is not, and what to do about it."""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from execute_batch_scheduler.errors import ExecuteError
from execute_batch_scheduler.settings import settings

_SCHEDULERS = {"slurm": ["sbatch", "--version"], "pbs": ["qsub", "--version"], "oar": ["oarsub", "--version"]}
_PATIENCE = 15  # seconds
Finding = tuple[bool, str]


def examine(submit: bool) -> Iterator[Finding]:
    """Findings one by one: whether it is well, and what to say.

    Parameters
    ----------
    submit
        Whether to run a small job on the default backend, to see whether its node sees the job directory.
    """
    yield True, f"Python {sys.version.split()[0]}, " + ", ".join(map(_version, ("psij-python", "ipython", "paramiko")))
    found = list(_schedulers())
    yield from found
    if not found:
        yield True, "no scheduler on PATH: cells run on this machine (--wlm=local)"
    yield _bash()
    yield _root()
    if submit:
        yield _submit()


def main(submit: bool) -> int:
    """Print the findings; the exit code is 1 if anything is not well."""
    well = True
    for good, text in examine(submit):
        print(f"{'ok ' if good else 'BAD'}  {text}", flush=True)
        well = well and good
    return 0 if well else 1


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is missing"


def _schedulers() -> Iterator[Finding]:
    for name, command in _SCHEDULERS.items():
        path = shutil.which(command[0])
        if path:
            good, said = _asked(command)
            yield good, f"{name}: {path}, {said}" + ("" if good else "; ask the site's administrators")
            if good and name == "slurm":
                yield _controller()


def _controller() -> Finding:
    _, said = _asked(["scontrol", "ping"])
    up = " is UP" in said
    return up, f"slurm: {said}" + ("" if up else "; jobs cannot be submitted until it is up again")


def _asked(command: list[str]) -> Finding:
    """Whether a command succeeds, and the line of its answer that tells most."""
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return False, f"{' '.join(command)} gave no answer within {_PATIENCE} s"
    good = result.returncode == 0
    lines = [
        line for line in (result.stdout + result.stderr).splitlines() if line.strip() and not line.startswith("*")
    ] or ["it says nothing"]
    return good, lines[0 if good else -1].strip()


def _bash() -> Finding:
    good = Path("/bin/bash").exists()
    return good, "/bin/bash is there" if good else "/bin/bash is missing; jobs cannot be run here"


def _root() -> Finding:
    root = Path(settings.root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = root / f"probe-{uuid4().hex}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        return False, f"job directory {root}: {error.strerror}; set job_directory or $EXECUTE_JOB_DIRECTORY to another"
    free = shutil.disk_usage(root).free >> 20
    return True, f"job directory {root} can be written, {free:,} MB free"


def _submit() -> Finding:
    from execute_batch_scheduler.submit import submit_script

    try:
        job = submit_script("hostname")
        node = job.result(timeout=600).strip()
    except ExecuteError as error:
        return False, f"a small job: {error}"
    except concurrent.futures.TimeoutError:
        return False, f"a small job has not run within 10 minutes: {job!r}, {job.reason or 'no reason is known'}"
    return True, f"a small job ({job!r}) ran on {job.details.nodes or node}, which sees the job directory"
