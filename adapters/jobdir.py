"""The job directory: every file of a job, named, written and read in this one place.

::

    ROOT/events/NAME.ATTEMPT.EVENT     empty marks: something happened to the job of that name
    ROOT/jobs/NAME/script              what the user wrote
    ROOT/jobs/NAME/run                 runs it and keeps the record (run.bash)
    ROOT/jobs/NAME/environment         variables for the script alone, and a prologue, where there are any
    ROOT/jobs/NAME/record              started, told (a signal), limit, cancelled, ended: one line each
    ROOT/jobs/NAME/stdout, stderr      unless the user named other files

All files are made before the job is submitted: NFS clients remember for up to a minute that a name was not there.
"""

from __future__ import annotations

import calendar
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from execute_batch_scheduler.adapters.transport import NewDirectory, Transport

from psij import JobSpec

_SHELL = "/bin/bash"
RUN = Path(__file__).with_name("run.bash").read_bytes()
# A prologue finds what the head of a bash script finds. BASH_ENV is read here, as a function's `declare` is its own.
_BEGIN_PROLOGUE = 'import_functions; [ ! -r "${BASH_ENV-}" ] || . "$BASH_ENV"; begin_prologue'


@dataclass(frozen=True)
class Attempt:
    """One run of the script as its record tells it; times are seconds since the epoch, by the node's clock."""

    number: int
    native_id: Optional[str] = None
    node: Optional[str] = None
    stdout: Optional[str] = None
    stderr: Optional[str] = None
    stdout_from: int = 0  # what was in the files before
    stderr_from: int = 0
    started: Optional[float] = None
    ended: Optional[float] = None
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    told: tuple[str, ...] = ()
    limit: bool = False

    @property
    def status(self) -> Optional[int]:
        """The exit code as a shell tells it, 128 + N for signal N; None before the end."""
        return self.exit_code if self.signal is None else 128 + self.signal


@dataclass(frozen=True)
class Record:
    """What the wrapper wrote of a job: the last attempt, and whether a cancellation was asked for."""

    attempt: Optional[Attempt] = None
    cancelled: bool = False

    @property
    def obeyed(self) -> bool:
        """Whether the script ended because of a cancellation that was asked for."""
        return self.cancelled and self.attempt is not None and bool(self.attempt.told)


def parse_record(text: str) -> Record:
    """Read a record. A line without its newline is still being written; an unknown line or field is passed over."""
    attempts: dict[int, Attempt] = {}
    cancelled = False
    for line in text.split("\n")[:-1]:
        event, *pairs = line.split("\t")
        fields = dict(pair.partition("=")[::2] for pair in pairs)
        cancelled = cancelled or event == "cancelled"
        number = _number(fields.get("attempt"))
        if number is None:
            continue
        attempt = attempts.get(int(number), Attempt(int(number)))
        at = _number(fields.get("time"))
        if event == "started":
            native_id, node, stdout, stderr = (fields.get(name) or None for name in ("id", "node", "stdout", "stderr"))
            attempt = replace(
                attempt,
                started=at,
                native_id=native_id,
                node=node,
                stdout=stdout,
                stderr=stderr,
                stdout_from=int(_number(fields.get("stdout_from")) or 0),
                stderr_from=int(_number(fields.get("stderr_from")) or 0),
            )
        elif event == "told":
            attempt = replace(attempt, told=(*attempt.told, fields.get("signal", "?")))
        elif event == "limit":
            attempt = replace(attempt, limit=True)
        elif event == "ended":
            code, signal = (_number(fields.get(name)) for name in ("exit", "signal"))
            attempt = replace(
                attempt,
                ended=at,
                exit_code=None if code is None else int(code),
                signal=None if signal is None else int(signal),
                told=tuple(filter(None, fields.get("told", "").split(","))),
            )
        attempts[int(number)] = attempt
    return Record(attempts[max(attempts)] if attempts else None, cancelled)


def _number(text: Optional[str]) -> Optional[float]:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class JobDir:
    """The files of one job, as paths on the machine where it runs."""

    path: str

    @classmethod
    def new(cls, root: str, key: str) -> JobDir:
        """The directory for a new job under `root`; the name sorts by time and holds the start of the job's key."""
        return cls(f"{root}/jobs/{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{key[:8]}")

    @classmethod
    def of(cls, spec: Optional[JobSpec]) -> Optional[JobDir]:
        """The directory of a job by its specification; None if it does not run our wrapper."""
        arguments = (spec and spec.arguments) or []
        if spec is None or spec.executable != _SHELL or len(arguments) != 2 or not arguments[1].endswith("/run"):
            return None
        return cls(arguments[1][: -len("/run")])

    @property
    def name(self) -> str:
        """The name that marks in `events` begin with."""
        return self.path.rpartition("/")[2]

    @property
    def created(self) -> float:
        """When the directory was made, seconds since the epoch, from its name."""
        return float(calendar.timegm(time.strptime(self.name[:15], "%Y%m%dT%H%M%S")))

    @property
    def events(self) -> str:
        """The directory of marks that all jobs of the root share."""
        return f"{self.path.rpartition('/jobs/')[0]}/events"

    @property
    def stdout(self) -> str:
        """Where standard output goes unless the user names a file."""
        return f"{self.path}/stdout"

    @property
    def stderr(self) -> str:
        """Where standard error goes unless the user names a file."""
        return f"{self.path}/stderr"

    @property
    def record(self) -> str:
        """What the wrapper wrote."""
        return f"{self.path}/record"

    @property
    def command(self) -> tuple[str, list[str]]:
        """Executable and arguments that run the job."""
        return _SHELL, ["-p", f"{self.path}/run"]

    def files(self, script: bytes, environment: Mapping[str, str], prologue: str = "") -> NewDirectory:
        """The directory with all its files, yet to be made. The prologue is bash, run before the script."""
        files = {"script": (script, 0o700), "run": (RUN, 0o600)}
        if environment or prologue:
            lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
            if prologue:
                lines.append(f"{_BEGIN_PROLOGUE}\n{prologue}\n:\n")
            files["environment"] = ("".join(lines).encode(errors="surrogateescape"), 0o600)
        files.update(dict.fromkeys(("record", "stdout", "stderr"), (b"", 0o600)))
        return NewDirectory(self.path, files, (self.events,))

    def note_cancelled(self, transport: Transport) -> None:
        """Put down that a cancellation was asked for, so that its effect is not taken for a failure."""
        try:
            transport.append(self.record, b"cancelled\n")
        except FileNotFoundError:  # the directory is gone; the scheduler knows what it was told
            return

    def read(self, transport: Transport) -> Record:
        """The record so far; an empty one if the directory is gone."""
        return read_records([self], transport)[0]


def read_records(directories: Sequence[JobDir], transport: Transport) -> list[Record]:
    """The records of several jobs, in one go."""
    texts = transport.texts([directory.record for directory in directories])
    return [parse_record(texts.get(directory.record, "")) for directory in directories]
