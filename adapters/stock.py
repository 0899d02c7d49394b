"""PSI/J's own executors, tracked: the job's record says when it ended and how, long before their polling does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from execute_batch_scheduler.adapters.jobdir import JobDir, Record
from execute_batch_scheduler.adapters.tracking import Pace, Report, Tracker
from execute_batch_scheduler.adapters.transport import Transport

from psij import Job, JobExecutor, JobState


def track(executor: JobExecutor, transport: Transport) -> Tracker:
    """A tracker for an executor that has none. Its questions cost nothing: they read what PSI/J knows by now."""
    pace = Pace(queued=0.25, queued_most=1.0, running=1.0, ended=0.0)
    return Tracker(executor.name, transport, lambda jobs: ask(jobs, transport), lambda job, status: None, pace)


def ask(jobs: Sequence[Job], transport: Transport) -> dict[str, Report]:
    """What is known of jobs, by PSI/J id."""
    answers = {job.id: verdict(job, transport) for job in jobs}
    return {key: answer for key, answer in answers.items() if answer is not None}


def verdict(job: Job, transport: Transport) -> Optional[Report]:
    """The end record decides. PSI/J's COMPLETED without one is no evidence: it says so of vanished jobs too."""
    directory = JobDir.of(job.spec)
    record = directory.read(transport) if directory else Record()
    attempt, status = record.attempt, job.status
    if attempt and attempt.ended is not None:
        state = JobState.COMPLETED if attempt.status == 0 else JobState.FAILED
        if record.obeyed or status.state is JobState.CANCELED:
            state = JobState.CANCELED
        return Report(state, exit_code=attempt.status, reason=status.message)
    if status.state is JobState.COMPLETED:
        return None
    if status.state is JobState.FAILED and record.cancelled:
        return Report(JobState.CANCELED, exit_code=status.exit_code, reason=status.message)
    state = JobState.ACTIVE if attempt and not status.final else status.state
    return Report(state, exit_code=status.exit_code, reason=status.message)
