"""Which backend runs a script where nobody names one, and where its commands are."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from execute_batch_scheduler import settings_file
from execute_batch_scheduler.adapters import transport
from execute_batch_scheduler.errors import BackendUnavailable, BadUsage
from execute_batch_scheduler.flags import Flag
from execute_batch_scheduler.spec import HONOURED, WITHOUT_SCHEDULER

from psij import JobExecutor, JobExecutorConfig
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig

# Submit commands, and the names of PSI/J's executors for them.
_OTHERS = {"qsub": "pbs", "bsub": "lsf", "flux": "flux"}
_LOGIN_TIMEOUT = 20.0  # on a login node whose file system is slow, module systems take their time


def default(flags: Sequence[Flag], host: Optional[str] = None) -> str:
    """The backend where nobody names one; on another machine that is ssh.

    Raises
    ------
    BackendUnavailable
        Where there is no scheduler and a flag asks for resources.
    """
    scheduler = found() if host is None else None
    wanted = [flag.word for flag in flags if flag.name not in WITHOUT_SCHEDULER | HONOURED]
    wanted_there = [flag.word for flag in flags if flag.word in wanted and flag.option]
    if host and wanted_there:
        raise BackendUnavailable(
            f"{wanted_there[0]} asks for a scheduler: say --wlm=slurm for the one behind {host}, or --wlm=ssh to run "
            "it on that machine itself"
        )
    if host:
        return "ssh"
    if scheduler is None and wanted:
        raise BackendUnavailable(
            f"no scheduler is found on this machine, and {wanted[0]} asks for one; without such flags, or with "
            "--wlm=local, the cell runs on this machine"
        )
    return scheduler or "local"


def found() -> Optional[str]:
    """The scheduler of this machine; None if there is none."""
    if find_sbatch():
        return "slurm"
    known = JobExecutor.get_executor_names()
    return next((name for command, name in _OTHERS.items() if name in known and shutil.which(command)), None)


def find_sbatch() -> Optional[str]:
    """The path of sbatch. A kernel's PATH may lack what a login shell has; such a shell is asked once."""
    path = shutil.which("sbatch")
    if path:
        return path
    path = _login_sbatch()
    if path and os.path.dirname(path) not in transport.SEARCHED_FIRST:
        transport.SEARCHED_FIRST.append(os.path.dirname(path))
    return path


@functools.cache
def _login_sbatch() -> Optional[str]:
    try:
        result = transport.Local().run(["/bin/bash", "-lc", "command -v sbatch"], timeout=_LOGIN_TIMEOUT)
    except transport.TransportError:
        return None
    # a profile may print, and an alias is no path
    paths = [line for line in result.stdout.splitlines() if line.startswith("/") and line.endswith("/sbatch")]
    return paths[-1] if paths and os.access(paths[-1], os.X_OK) else None


def configuration(said: Any) -> Optional[JobExecutorConfig]:
    """A PSI/J configuration as it is, or from a table of its attributes; equal tables make one, and so one executor.

    Raises
    ------
    BadUsage
        For what is neither, and for attributes that there are not.
    """
    if said is None or isinstance(said, JobExecutorConfig):
        return said
    for _, complaint in settings_file.check_executor_config(("executor_config",), said):
        raise BadUsage(f"executor_config: {complaint}")
    assert isinstance(said, Mapping)
    return _configuration(tuple(sorted(said.items())))


@functools.cache
def _configuration(attributes: tuple[tuple[str, Any], ...]) -> JobExecutorConfig:
    # PSI/J's batch executors take this class, and its others take any
    config = BatchSchedulerExecutorConfig()
    for name, value in attributes:
        setattr(config, name, os.path.expanduser(value) if isinstance(value, str) else value)
    return config
