"""Facts about jobs as text and HTML. Pure; no I/O."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from execute_batch_scheduler.job import Job
    from execute_batch_scheduler.journal import Entry

NAMELESS = "sbatch"  # what sbatch calls a job whose script has no file
WAITING = "Waiting for resources"
RUNNING = "Running "
_MARKS = ((10, ".", 1), (60, "o", 10), (600, "O", 60), (float("inf"), "@", 600))


def marks(seconds: float) -> str:
    """The progress line after so many seconds: ``.`` each second for 10 s, ``o`` each 10 s, ``O`` each minute, ``@``
    each 10 minutes.
    """
    line, begin = ".", 0.0
    for end, mark, step in _MARKS:
        line += mark * int((min(seconds, end - (mark == ".")) - begin) // step)
        if seconds < end:
            break
        begin = end
    return line


def submitted(job: Job) -> str:
    """The first line of a cell."""
    if job.wlm == "local":
        return f"Started on this machine with pid: {job.native_id}"
    if job.wlm == "ssh":
        return f"SSH started with pid: {job.native_id}"
    number = job.native_id.replace(";", " on cluster ")
    where = f" at {job.host}" if job.host else ""
    return f"Submitted batch job {number}{where}" + ("" if job.wlm == "slurm" else f" ({job.wlm})")


def attached(job: Job) -> str:
    """The first line when somebody comes back to a job."""
    return f"Attached to job {job.native_id}, submitted {job.submitted:%Y-%m-%d %H:%M:%S}"


def ended(job: Job) -> str:
    """The last line of a cell."""
    state = job.native_state or str(job.state)
    alone = job.wlm in ("local", "ssh")
    if alone and state == "COMPLETED":
        return "Done"
    what = "process" if alone else "batch job"
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    return f"End {what} {job.native_id} Status:  {state}{code}"


def waiting(job: Job) -> str:
    """Why the job does not run yet, and when it will if somebody knows."""
    details = job.details
    parts = [(details.reason or "").replace("scontrol release", f"scontrol release {job.native_id}")]
    if details.expected_start and details.expected_start > time.time():
        parts.append(f"expected start {datetime.fromtimestamp(details.expected_start):%Y-%m-%d %H:%M}")
    if details.unanswered_since:
        since = f"{datetime.fromtimestamp(details.unanswered_since):%H:%M:%S}"
        parts.append(f"{job.host or 'the scheduler'} has not answered since {since}")
    said = plain("; ".join(filter(None, parts)))
    return f"{WAITING} ({said})" if said else WAITING


def outage(job: Job, since: float) -> str:
    """That nothing is heard of a job that runs."""
    who = job.host or "the scheduler"
    return f"--- {who} has not answered since {datetime.fromtimestamp(since):%H:%M:%S}; the job goes on ---"


def progress(what: str, name: str, done: int, total: int) -> str:
    """How far files are copied."""
    share = done / total if total else 1.0
    bar = ("#" * int(share * 30)).ljust(30, ".")
    return f"{what} [{bar}] {share:4.0%} of {total / 1e6:,.1f} MB  {plain(name.rpartition('/')[2])[:30]:30}"


def copied(what: str, files: int, total: int) -> str:
    """That files were copied; long enough to cover the progress."""
    size = f"{total / 1e6:,.1f} MB" if total >= 1e5 else f"{total:,} bytes"
    return f"{what}: {files} file{'s' * (files != 1)}, {size}".ljust(90)


def failure(job: Job, last_lines: list[str], path: Optional[str]) -> str:
    """What to say of a job that did not complete."""
    state = job.native_state or str(job.state)
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    where = job.wlm if job.host is None else f"{job.wlm} at {job.host}"
    reason = f": {job.reason}" if job.reason and job.reason not in ("NonZeroExitCode", "cancelled") else ""
    lines = [f"job {job.native_id} ({where}) ended {state}{code}{reason}"]
    if last_lines:
        lines += [f"the last lines of {path}:", *(f"    {plain(line)}" for line in last_lines)]
    if job.paths.directory:
        lines.append(_left(job))
    return "\n".join(lines)


def _left(job: Job) -> str:
    """Where the script and the output of a job are."""
    paths, place = job.paths, _place(job)
    if paths.stdout is None:
        return f"its script is in {place}"
    outputs = [path for path in (paths.stdout, paths.stderr) if path]
    if all(_output(job, path) is None for path in outputs):
        return f"its script and output are in {place}"
    where = " and ".join(f"{job.host}:{path}" if job.host else path for path in outputs)
    return f"its output is in {where}; its script is in {place}"


def _state(job: Job) -> str:
    asked = " (cancel requested)" if job.cancelling and not job.done() else ""
    return (job.native_state or str(job.state)) + asked


def one_line(job: Job) -> str:
    """A handle's repr."""
    state = _state(job)
    code = f" exit code {job.exit_code}" if job.exit_code is not None else ""
    return f"<Job {job.native_id} {job.wlm}{'@' + job.host if job.host else ''} {state}{code}>"


_COLUMNS = ("Job", "Backend", "State", "Exit", "Submitted", "Ended", "Name", "Reason")


def table(entries: Sequence[Entry]) -> str:
    """Noted jobs, one a line."""
    if not entries:
        return "no jobs"
    rows = [_COLUMNS, *map(_row, entries)]
    widths = [min(40, max(len(row[column]) for row in rows)) for column in range(len(_COLUMNS))]
    lines = ("  ".join(_cut(cell, width).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}\u2026"


def html_table(entries: Sequence[Entry]) -> str:
    """The same for a notebook."""
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in _row(entry)) + "</tr>"
        for entry in entries
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _row(entry: Entry) -> tuple[str, ...]:
    name = entry.name or ""
    if name in ("", NAMELESS):  # of many cells that would tell nothing
        name = entry.title or name
    cells = (
        entry.native_id or entry.key[:8],
        entry.wlm + (f"@{entry.host}" if entry.host else ""),
        entry.native_state or entry.state or "SUBMITTED",
        "" if entry.exit_code is None else str(entry.exit_code),
        _clock(entry.at),
        _clock(entry.ended),
        name,
        entry.reason or "",
    )
    return tuple(map(plain, cells))


def plain(text: str) -> str:
    """Text without what would drive a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)


def _clock(seconds: Optional[float]) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds):%m-%d %H:%M:%S}"


def facts(job: Job) -> dict[str, str]:
    """What is known of a job."""
    details = job.details
    rows = {
        "Job": f"{job.native_id} ({job.wlm}{' at ' + job.host if job.host else ''})",
        "State": _state(job),
        "Reason": details.reason,
        "Exit code": job.exit_code,
        "Nodes": details.nodes,
        "Submitted": f"{job.submitted:%Y-%m-%d %H:%M:%S}",
        "Started": f"{job.started:%Y-%m-%d %H:%M:%S}" if job.started else None,
        "Ended": f"{job.ended:%Y-%m-%d %H:%M:%S}" if job.ended else None,
        "Output": _output(job, job.paths.stdout),
        "Errors": _output(job, job.paths.stderr),
        "Directory": _place(job),
    }
    return {name: str(value) for name, value in rows.items() if value is not None}


def _output(job: Job, path: Optional[str]) -> Optional[str]:
    """An output of the job, where it is not in the job directory."""
    if path is None or os.path.dirname(path) == job.paths.directory:
        return None
    return f"{job.host}:{path}" if job.host else path


def _place(job: Job) -> Optional[str]:
    """The job directory, with the machine where it is another one."""
    directory = job.paths.directory
    return f"{job.host}:{directory}" if job.host and directory else directory


def card(job: Job) -> str:
    """A handle in a notebook."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in facts(job).items()
    )
    return f"<table>{cells}</table>"
