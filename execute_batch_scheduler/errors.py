"""What can go wrong, as exceptions whose text says what to do next.

::

    ExecuteError
    +- BadUsage (also ValueError)        a flag, an option or a script that cannot be; nothing was submitted
    +- BackendUnavailable                no such backend, or its commands are not here
    +- SubmissionFailed                  the scheduler refused the job, or its files could not be written
    +- ConnectionLost                    the machine where the job runs cannot be reached now; the job goes on
    +- Interrupted (also KeyboardInterrupt)  nobody waits for the job any more; it goes on
    +- JobError                          a job that was submitted and did not complete
       +- JobFailed
       +- JobCancelled (also concurrent.futures.CancelledError)
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from execute_batch_scheduler.job import Job


class ExecuteError(Exception):
    """The base of all errors of this package. IPython shows them without our traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class BadUsage(ExecuteError, ValueError):
    """Something that cannot be asked for; nothing was submitted."""


class BackendUnavailable(ExecuteError):
    """There is no such backend, or its commands are not on this machine."""


class SubmissionFailed(ExecuteError):
    """The job was not submitted; the text holds the scheduler's own message."""


class ConnectionLost(ExecuteError):
    """The machine where the job runs cannot be reached now. The job is not concerned by that."""


class Interrupted(ExecuteError, KeyboardInterrupt):
    """The waiting was interrupted, not the job."""


class JobError(ExecuteError):
    """A job that did not complete.

    Attributes
    ----------
    job : Job
        The handle; its state, exit_code, reason, paths and output are there.
    """

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobError):
    """A job that ended in any way but well."""


class JobCancelled(JobError, concurrent.futures.CancelledError):
    """A job that was cancelled, by whomever."""
