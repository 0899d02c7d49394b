"""jobs() and attach(): what was submitted, and the way back to it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional, Union

from execute_batch_scheduler import display, journal
from execute_batch_scheduler.adapters import stock
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor
from execute_batch_scheduler.adapters.tracking import Report, judged
from execute_batch_scheduler.adapters.transport import Local, TransportError
from execute_batch_scheduler.errors import BadUsage, ExecuteError
from execute_batch_scheduler.job import Job
from execute_batch_scheduler.journal import Entry
from execute_batch_scheduler.submit import executor_for, tracker_for

import psij
from psij import JobExecutor, JobSpec, JobState

_AGE = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SUBMITTING = 120.0  # seconds after which a submission that left no trace has not taken place


class Jobs(list[Entry]):
    """Jobs as they were noted, with their states as of now; shows as a table."""

    def __repr__(self) -> str:
        return display.table(self)

    def _repr_html_(self) -> str:
        return display.html_table(self)


def jobs(
    *, since: Union[str, float, timedelta, None] = None, state: Optional[str] = None, wlm: Optional[str] = None
) -> Jobs:
    """What was submitted from this home directory, oldest first, in whatever kernel or program.

    Ended jobs are read from the journal alone. For the others one question is asked, whatever their number.

    Parameters
    ----------
    since
        Only jobs submitted since: an age such as ``"2h"``, ``"7d"``, seconds, or a timedelta.
    state
        Only jobs in this state, in PSI/J's word or the scheduler's.
    wlm
        Only jobs of this backend.
    """
    begin = 0.0 if since is None else time.time() - seconds(since)
    found = [entry for entry in journal.entries() if entry.at >= begin and wlm in (None, entry.wlm)]
    _refresh([entry for entry in found if not _ended(entry)])
    return Jobs(entry for entry in found if state is None or state.upper() in (entry.state, entry.native_state))


def attach(
    native_id: Union[str, int],
    *,
    wlm: Optional[str] = None,
    host: Optional[str] = None,
    executor: Optional[JobExecutor] = None,
) -> Job:
    """The handle of a job that was submitted before, with all of its output, whether it runs or has ended.

    Parameters
    ----------
    native_id
        The scheduler's number, the process id, or the job's key; of several jobs the newest. A job that was submitted
        by sbatch alone is found too, as long as Slurm knows it.
    wlm
        The backend, where the number alone is not enough.
    host
        Not used yet.
    executor
        A PSI/J executor to use.

    Raises
    ------
    ExecuteError
        If nobody knows such a job.
    """
    number = str(native_id)
    known = [
        entry
        for entry in journal.entries()
        if (
            (entry.native_id or "").partition(";")[0] == number.partition(";")[0]
            or entry.key.startswith(number.lower() or "-")
        )
        and wlm in (None, entry.wlm)
        and host == entry.host
    ]
    if known:
        return _attach_own(known[-1], executor)
    return _attach_foreign(number, wlm, executor)


def clean(older: Union[str, float, timedelta]) -> tuple[int, int]:
    """Remove the directories of jobs that ended longer ago than `older`; never that of a job that has not.

    Returns
    -------
    tuple of int
        How many jobs, and how many bytes.
    """
    before = time.time() - seconds(older)
    old = [entry for entry in jobs() if _ended(entry) and (entry.ended or entry.at) < before]
    freed = 0
    for entry in old:
        freed += sum(path.lstat().st_size for path in Path(entry.directory).rglob("*"))
        Local().remove(entry.directory)
    journal.drop({entry.key for entry in old})
    return len(old), freed


def seconds(age: Union[str, float, timedelta]) -> float:
    """An age in seconds: ``"90s"``, ``"2h"``, ``"7d"``, ``"1d12h"``, a number, or a timedelta."""
    if isinstance(age, timedelta):
        return age.total_seconds()
    if isinstance(age, (int, float)):
        return float(age)
    parts = _AGE.findall(age)
    if not parts or _AGE.sub("", age).strip():
        raise BadUsage(f"{age!r} is no age; say 90s, 30m, 2h, 7d or 1d12h")
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


def _ended(entry: Entry) -> bool:
    return entry.state in ("COMPLETED", "FAILED", "CANCELED")


def _psij_job(entry: Entry) -> psij.Job:
    """PSI/J's view of a noted job. It has the id of then, by which a submission is looked up."""
    executable, arguments = JobDir(entry.directory).command
    spec = JobSpec(executable, arguments, stdout_path=entry.stdout, stderr_path=entry.stderr)
    job = psij.Job(spec)
    job._id, job._native_id = entry.key, entry.native_id
    return job


def _refresh(entries: Sequence[Entry]) -> None:
    """Bring noted jobs up to date: one question to each executor."""
    for wlm in {entry.wlm for entry in entries}:
        mine = {entry.key: entry for entry in entries if entry.wlm == wlm}
        try:
            _, executor = executor_for(wlm)
            _learn_ids(executor, mine.values())
            asked = {key: _psij_job(entry) for key, entry in mine.items() if entry.native_id}
            reports = _ask(executor, list(asked.values())) if asked else {}
        except (TransportError, ExecuteError) as error:
            for entry in mine.values():
                entry.native_state, entry.reason = "UNKNOWN", f"not answered: {error}".split("\n")[0]
            continue
        for key, entry in mine.items():
            _take(entry, reports.get(key))


def _ask(executor: JobExecutor, jobs: list[psij.Job]) -> dict[str, Report]:
    ask: Any = getattr(executor, "ask", None)
    return ask(jobs) if ask else stock.ask(jobs, Local())


def _learn_ids(executor: JobExecutor, entries: Iterable[Entry]) -> None:
    """Native ids of jobs whose submission ended with the process that began it: from their records, or looked up."""
    missing = [entry for entry in entries if entry.native_id is None]
    for entry in missing:
        attempt = JobDir(entry.directory).read(Local()).attempt
        entry.native_id = attempt.native_id if attempt else None
    missing = [entry for entry in missing if entry.native_id is None]
    look_up: Any = getattr(executor, "look_up", None)
    if missing and look_up:
        found = look_up([_psij_job(entry) for entry in missing], min(entry.at for entry in missing))
        for entry in missing:
            entry.native_id = found.get(entry.key)
            if entry.native_id:
                journal.note(entry.key, native_id=entry.native_id)


def _take(entry: Entry, report: Optional[Report]) -> None:
    directory = JobDir(entry.directory)
    record = directory.read(Local())
    if entry.native_id is None and time.time() - entry.at < _SUBMITTING:
        entry.native_state = "SUBMITTING"
        return
    if entry.native_id is None:
        lost = "its submission was cut off, and the scheduler has no such job"
        report = Report(JobState.FAILED, "NOT SUBMITTED", reason=lost)
    elif report is None and not (record.attempt and record.attempt.ended) and time.time() - entry.at < _SUBMITTING:
        return  # one "not found" proves nothing
    report = judged(report, record, directory)
    entry.native_state, entry.reason, entry.exit_code = report.native_state, report.reason, report.exit_code
    attempt = record.attempt
    entry.started = (attempt.started if attempt else None) or report.started
    if report.state is None:
        return
    entry.state = str(report.state)
    if report.final:
        entry.ended = (attempt.ended if attempt else None) or report.ended or time.time()
        known = ("state", "native_state", "exit_code", "reason", "started", "ended", "native_id")
        journal.note(entry.key, **{name: getattr(entry, name) for name in known})


def _attach_own(entry: Entry, executor: Optional[JobExecutor]) -> Job:
    wlm, chosen = executor_for(entry.wlm, executor)
    if not _ended(entry) and entry.native_id is None:
        _learn_ids(chosen, [entry])
        _take(entry, None)
    job = _psij_job(entry)
    job._id = psij.Job().id  # the same job may be attached to more than once in one process
    tracker = tracker_for(chosen, Local())
    attempt = JobDir(entry.directory).read(Local()).attempt
    if _ended(entry):
        state = next(state for state in JobState if str(state) == entry.state)
        report = Report(
            state, entry.native_state, entry.exit_code, entry.reason, started=entry.started, ended=entry.ended
        )
        job.executor = chosen
        tracker.settle(job, report)
    elif entry.native_id is None:
        raise ExecuteError(
            f"job {entry.key} was being submitted, and the scheduler does not know it yet; try again in two minutes"
        )
    elif hasattr(chosen, "ask"):
        chosen.attach(job, entry.native_id)
    else:
        if not (attempt and attempt.ended):
            chosen.attach(job, entry.native_id)
        tracker.register_job(job)
    if not _ended(entry):
        tracker.hurry(job)
    return Job(job, wlm=wlm, host=entry.host, tracker=tracker, transport=Local(), key=entry.key, submitted=entry.at)


def _attach_foreign(number: str, wlm: Optional[str], executor: Optional[JobExecutor]) -> Job:
    """A job that was not submitted here: the scheduler must know it, and tells where its output goes."""
    unknown = ExecuteError(f"no job {number} is known: it is not in the journal ({journal.folder()})")
    if not number.isdigit():
        raise unknown
    try:
        wlm, chosen = executor_for(wlm or "slurm", executor)
    except ExecuteError as error:
        raise ExecuteError(f"{unknown}, and no scheduler can be asked: {error}") from None
    if not isinstance(chosen, TrackedSlurmExecutor):
        raise unknown
    job = psij.Job(JobSpec(""))
    job._native_id = number
    try:
        report = chosen.ask([job]).get(job.id)
    except TransportError as error:
        raise ExecuteError(f"{unknown}, and Slurm does not answer: {error}") from None
    if report is None:
        raise ExecuteError(f"{unknown}, and Slurm does not know it (any more)")
    assert job.spec is not None
    job.spec.stdout_path, job.spec.stderr_path = chosen.output_paths(number)
    tracker = tracker_for(chosen, Local())
    if report.final:
        job.executor = chosen
        tracker.settle(job, report)
    else:
        chosen.attach(job, number)
        tracker.hurry(job)
    return Job(job, wlm=wlm, host=None, tracker=tracker, transport=Local())
