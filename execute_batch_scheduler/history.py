"""jobs() and attach(): what was submitted, and the way back to it."""

from __future__ import annotations

import concurrent.futures
import difflib
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Optional, Union

from execute_batch_scheduler import display, journal
from execute_batch_scheduler.adapters import ssh, stock
from execute_batch_scheduler.adapters.jobdir import JobDir, Record, read_records
from execute_batch_scheduler.adapters.slurm import STATES, TrackedSlurmExecutor
from execute_batch_scheduler.adapters.ssh_config import parse_host
from execute_batch_scheduler.adapters.tracking import Report, judged
from execute_batch_scheduler.adapters.transport import Local, Transport, TransportError
from execute_batch_scheduler.errors import BadUsage, ExecuteError
from execute_batch_scheduler.job import Job
from execute_batch_scheduler.journal import Entry
from execute_batch_scheduler.submit import executor_for, tracker_for

import psij
from psij import JobExecutor, JobSpec, JobState

_AGE = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_KEY_LENGTH = 8  # of what is shown of a job without a number
NOT_SUBMITTED = "NOT SUBMITTED"
_SUBMITTING = 120.0  # seconds after which a submission that left no trace has not taken place


class Jobs(list[Entry]):
    """Jobs as they were noted, with their states as of now; shows as a table."""

    def __repr__(self) -> str:
        return display.table(self)

    def _repr_html_(self) -> str:
        return display.html_table(self)


def jobs(
    *,
    since: Union[str, float, timedelta, None] = None,
    state: Optional[str] = None,
    wlm: Optional[str] = None,
    host: Optional[str] = None,
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
    host
        Only jobs of this machine, as it was named then.
    """
    if state is not None:
        _known_state(state)
    begin = 0.0 if since is None else time.time() - seconds(since)
    found = [
        entry
        for entry in journal.entries()
        if entry.at >= begin and wlm in (None, entry.wlm) and host in (None, entry.host)
    ]
    _refresh([entry for entry in found if not _ended(entry)])
    return Jobs(entry for entry in found if state is None or state.upper() in (entry.state, entry.native_state))


def _known_state(state: str) -> None:
    known = {*map(str, JobState), *STATES, "SUBMITTING", NOT_SUBMITTED, "UNKNOWN"}
    if state.upper() not in known:
        near = difflib.get_close_matches(state.upper(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; there are PSI/J's and Slurm's own"
        raise BadUsage(f"{state!r} is no state of jobs{hint}")


def attach(
    native_id: Union[str, int, Entry],
    *,
    wlm: Optional[str] = None,
    host: Optional[str] = None,
    executor: Optional[JobExecutor] = None,
) -> Job:
    """The handle of a job that was submitted before, with all of its output, whether it runs or has ended.

    Parameters
    ----------
    native_id
        The scheduler's number, or the process id; of several jobs of one backend and machine the newest. Else the job's
        key, or its first eight or more characters; or what `jobs` lists. A job that was submitted by sbatch alone is
        found too, as long as Slurm knows it.
    wlm
        The backend, where the number alone is not enough.
    host
        The machine, as it was named when the job was submitted; where the number alone is not enough.
    executor
        A PSI/J executor to use.

    Raises
    ------
    ExecuteError
        If nobody knows such a job, or jobs of several backends or machines have this number.
    """
    number = native_id.key if isinstance(native_id, Entry) else str(native_id)
    here = [entry for entry in journal.entries() if wlm in (None, entry.wlm) and host in (None, entry.host)]
    known = [entry for entry in here if (entry.native_id or "").partition(";")[0] == number.partition(";")[0]]
    if not known and len(number) >= _KEY_LENGTH:
        known = [entry for entry in here if entry.key.startswith(number.lower())]
    newest = {(entry.wlm, entry.host): entry for entry in known}
    if len(newest) > 1 and executor is not None:
        known = [entry for entry in known if entry.executor == executor.name] or known
    elif len(newest) > 1:
        table = display.table([replace(entry, native_id=None) for entry in newest.values()])
        raise ExecuteError(f"{len(newest)} jobs have the number {number}; name the one you mean by its key:\n{table}")
    try:
        return _attach_own(known[-1], executor) if known else _attach_foreign(number, wlm, host, executor)
    except TransportError as error:
        raise ExecuteError(f"job {number}: {error}") from error


def clean(older: Union[str, float, timedelta]) -> tuple[int, int]:
    """Remove the directories of jobs that ended longer ago than `older`; never that of a job that has not.

    Returns
    -------
    tuple of int
        How many jobs, and how many bytes.
    """
    before = time.time() - seconds(older)
    old = [entry for entry in jobs() if _ended(entry) and (entry.ended or entry.at) < before]
    freed, removed = 0, set()
    for url in {entry.url for entry in old}:
        mine = [entry for entry in old if entry.url == url]
        try:
            freed += (ssh.transport(url) if url else Local()).remove([entry.directory for entry in mine])
            removed |= {entry.key for entry in mine}
        except TransportError as error:
            names = ", ".join(entry.native_id or entry.key[:_KEY_LENGTH] for entry in mine)
            warnings.warn(f"kept, as they cannot be removed now: {names} ({error})", stacklevel=2)
    journal.drop(removed)
    return len(removed), freed


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
    spec = JobSpec(executable, arguments, directory=entry.chdir, stdout_path=entry.stdout, stderr_path=entry.stderr)
    job = psij.Job(spec)
    job._id, job._native_id = entry.key, entry.native_id
    return job


def _refresh(entries: Sequence[Entry]) -> None:
    """Bring noted jobs up to date: one question to each executor, and machines that are away make none wait."""
    groups = {(entry.wlm, entry.url) for entry in entries}
    mine = [[entry for entry in entries if (entry.wlm, entry.url) == group] for group in groups]
    if mine:
        with concurrent.futures.ThreadPoolExecutor(len(mine)) as pool:
            list(pool.map(_refresh_alike, mine))


def _refresh_alike(entries: Sequence[Entry]) -> None:
    try:
        _, executor = executor_for(entries[0].wlm, url=entries[0].url)
        transport = _transport(executor)
        _learn_ids(executor, entries, transport)
        asked = {entry.key: _psij_job(entry) for entry in entries if entry.native_id}
        reports = _ask(executor, list(asked.values()), transport) if asked else {}
        records = read_records([JobDir(entry.directory) for entry in entries], transport)
    except (TransportError, ExecuteError) as error:
        for entry in entries:
            entry.native_state, entry.reason = "UNKNOWN", f"not answered: {error}".split("\n")[0]
        return
    for entry, record in zip(entries, records):
        _take(entry, reports.get(entry.key), record)


def _transport(executor: JobExecutor) -> Transport:
    return getattr(executor, "transport", None) or Local()


def _ask(executor: JobExecutor, jobs: list[psij.Job], transport: Transport) -> dict[str, Report]:
    ask: Any = getattr(executor, "ask", None)
    return ask(jobs) if ask else stock.ask(jobs, transport)


def _learn_ids(executor: JobExecutor, entries: Iterable[Entry], transport: Transport) -> None:
    """Native ids of jobs whose submission ended with the process that began it: from their records, or looked up."""
    missing = [entry for entry in entries if entry.native_id is None]
    if not missing:
        return
    for entry, record in zip(missing, read_records([JobDir(entry.directory) for entry in missing], transport)):
        entry.native_id = record.attempt.native_id if record.attempt else None
    missing = [entry for entry in missing if entry.native_id is None]
    look_up: Any = getattr(executor, "look_up", None)
    if missing and look_up:
        found = look_up([_psij_job(entry) for entry in missing], min(entry.at for entry in missing))
        for entry in missing:
            entry.native_id = found.get(entry.key)
            if entry.native_id:
                journal.note(entry.key, native_id=entry.native_id)


def _take(entry: Entry, report: Optional[Report], record: Record) -> None:
    directory = JobDir(entry.directory)
    if entry.native_id is None and time.time() - entry.at < _SUBMITTING:
        entry.native_state = "SUBMITTING"
        return
    if entry.native_id is None:
        lost = "its submission was cut off, and the scheduler has no such job"
        report = Report(JobState.FAILED, NOT_SUBMITTED, reason=lost)
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
    wlm, chosen = executor_for(entry.wlm, executor, url=entry.url)
    transport = _transport(chosen)
    record = JobDir(entry.directory).read(transport)
    if not _ended(entry) and entry.native_id is None:
        _learn_ids(chosen, [entry], transport)
        _take(entry, None, record)
    job = _psij_job(entry)
    job._id = psij.Job().id  # the same job may be attached to more than once in one process
    tracker = tracker_for(chosen, transport)
    attempt = record.attempt
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
        tracker.take(job, record)
        tracker.hurry(job)
    return Job(job, wlm=wlm, host=entry.host, tracker=tracker, transport=transport, key=entry.key, submitted=entry.at)


def _attach_foreign(number: str, wlm: Optional[str], host: Optional[str], executor: Optional[JobExecutor]) -> Job:
    """A job that was not submitted here: the scheduler must know it, and tells where its output goes."""
    where = f" of {host}" if host else ""
    unknown = ExecuteError(
        f"no job {number}{where} is known: it is not in the journal ({journal.folder()}), which %execute_jobs lists"
        + ("" if host else "; one of another machine that was not submitted here wants --host=MACHINE")
    )
    if not (number.isascii() and number.isdigit()) or int(number) == 0:
        raise unknown
    try:
        url = None if host is None else parse_host(host).url
        wlm, chosen = executor_for(wlm or "slurm", executor, url=url)
    except ValueError as error:
        raise BadUsage(f"host: {error}") from None
    except ExecuteError as error:
        raise ExecuteError(f"{unknown}; and no scheduler can be asked: {error}") from None
    if not isinstance(chosen, TrackedSlurmExecutor):
        raise unknown
    job = psij.Job(JobSpec(""))
    job._native_id = number
    try:
        report = chosen.ask([job]).get(job.id)
    except TransportError as error:
        raise ExecuteError(f"{unknown}; and Slurm does not answer: {error}") from None
    if report is None:
        raise ExecuteError(f"{unknown}; and Slurm does not know it (any more)")
    assert job.spec is not None
    try:
        job.spec.stdout_path, job.spec.stderr_path = chosen.output_paths(number)
    except psij.InvalidJobException as error:
        raise ExecuteError(f"{error}; squeue -r -j {number} shows its tasks") from None
    tracker = tracker_for(chosen, chosen.transport)
    if report.final:
        job.executor = chosen
        tracker.settle(job, report)
    else:
        chosen.attach(job, number)
        tracker.hurry(job)
    return Job(
        job,
        wlm=wlm,
        host=chosen.transport.host,
        tracker=tracker,
        transport=chosen.transport,
        submitted=report.submitted,
    )
