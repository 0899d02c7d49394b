r"""``%%bash`` for supercomputers: run a script as a batch job, from a notebook cell or a program.

>>> from execute_batch_scheduler import submit_script
>>> submit_script("echo hello", wlm="local").result()
'hello\n'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from execute_batch_scheduler.errors import (
        BackendUnavailable as BackendUnavailable,
        BadUsage as BadUsage,
        ConnectionLost as ConnectionLost,
        ExecuteError as ExecuteError,
        Interrupted as Interrupted,
        JobCancelled as JobCancelled,
        JobError as JobError,
        JobFailed as JobFailed,
        SubmissionFailed as SubmissionFailed,
    )
    from execute_batch_scheduler.history import attach as attach, jobs as jobs
    from execute_batch_scheduler.job import Job as Job
    from execute_batch_scheduler.settings import settings as settings
    from execute_batch_scheduler.submit import DryRun as DryRun, backends as backends, submit_script as submit_script

__version__ = "0.1.0"

# Nothing heavy is imported before it is used: PSI/J takes a quarter of a second.
_HOMES = {
    "submit": ("submit_script", "backends", "DryRun"),
    "history": ("jobs", "attach"),
    "job": ("Job",),
    "errors": (
        "ExecuteError",
        "BadUsage",
        "BackendUnavailable",
        "SubmissionFailed",
        "ConnectionLost",
        "Interrupted",
        "JobError",
        "JobFailed",
        "JobCancelled",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [*_HOME, "settings"]


def __getattr__(name: str) -> Any:
    if name == "settings":
        return importlib.import_module(f"{__name__}.settings").settings
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext execute_batch_scheduler``."""
    from execute_batch_scheduler import execute_magic

    execute_magic.load_ipython_extension(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """``%unload_ext execute_batch_scheduler``."""
    from execute_batch_scheduler import execute_magic

    execute_magic.unload_ipython_extension(shell)
