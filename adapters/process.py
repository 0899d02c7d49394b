"""Processes without a scheduler: detached, so that they outlive whoever started them, with the same files and states.

The native id is the process id of the wrapper, which leads a session and process group of its own.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from execute_batch_scheduler.adapters.jobdir import JobDir, Record, read_records
from execute_batch_scheduler.adapters.remote import Remote
from execute_batch_scheduler.adapters.slurm import submit_environment
from execute_batch_scheduler.adapters.starter import Starter
from execute_batch_scheduler.adapters.tracking import Details, OutcomeUnknown, Pace, Report, Tracker
from execute_batch_scheduler.adapters.transport import Local, NewDirectory, Transport, TransportError, Unanswered

from execute_batch_scheduler.adapters import ssh

from psij import InvalidJobException, Job, JobExecutor, JobExecutorConfig, JobSpec, JobState, JobStatus, SubmitException

_TIMEOUT = 30.0
_KILL_AFTER = 5  # seconds from TERM to KILL when a job is cancelled
_LOOKS = (0.2, 1, 3)  # seconds before each look for a process whose start was not confirmed
# Of the processes that `_LIST` tells, those which lead a session. A spare's command has a dot more: see start.bash.
_WRAPPER = re.compile(r"^ *(\d+) +[^\sZ]*s\S* +\S+ -p (/.+/jobs/[^/]+)/(\./)?run$", re.MULTILINE)
_LIST = 'exec ps -ww -u "$UID" -o pid=,stat=,args='

# A background child of a shell has SIGINT and SIGQUIT ignored, and what is ignored at its start a script cannot get
# back: hence the trap. The id is told only when every redirection has succeeded, and before our own output and errors
# are let go: whoever waits for their end has it then.
_START = """( trap - INT QUIT; cd -- {directory} >/dev/null || exit
hash setsid || exit
__pid=$BASHPID
exec 6>&1 7>&2 <{stdin} >{stdout} 2>{stderr} || exit
echo "$__pid" >&6
exec 6>&- 7>&- setsid -- {command} ) &
"""
# Every group of the session, as programs make some of their own: timeout, a shell with `set -m`. What waits is another
# program: a child of this shell would keep open what that keeps for itself, and its answer would wait for that.
_CANCEL = """\
groups() {{ (echo {pid}; ps -o pgid= --sid {pid}) | sort -nu; }}
for group in $(groups); do kill -s TERM -- "-$group"; done
exec setsid /bin/bash -p -c '
  for ((i = 0; i < {patience}; i++)); do
    sleep 0.1
    ps -o stat= --sid {pid} | grep -qv "^Z" || exit
  done
  '"$(declare -f groups)"'
  for group in $(groups); do kill -s KILL -- "-$group"; done
' </dev/null >/dev/null 2>&1 &
"""


def start_script(spec: JobSpec) -> str:
    """The shell text that starts a specification's command in the background and prints its process id."""
    return _START.format(
        directory=shlex.quote(said_directory(spec) or "."),
        stdin=_redirection(spec, "input", spec.stdin_path) or "/dev/null",
        stdout=_redirection(spec, "output", spec.stdout_path) or "/dev/null",
        stderr=_redirection(spec, "error", spec.stderr_path) or "&1",
        command=shlex.join([spec.executable or "", *(spec.arguments or [])]),
    )


def _said(spec: JobSpec, option: str) -> Optional[str]:
    """The value of one of sbatch's options that no field of PSI/J's could hold."""
    value = spec.attributes.get_custom_attribute(f"slurm.{option}") if spec.attributes is not None else None
    return None if value is None else str(value)


def said_directory(spec: JobSpec) -> str:
    """The directory that was asked for, as it was said; empty if none was."""
    return str(_said(spec, "chdir") or spec.directory or "")


def _redirection(spec: JobSpec, option: str, path: Optional[Path]) -> Optional[str]:
    pattern = _said(spec, option)
    if pattern is not None:
        return _filename(pattern, spec.name or "")
    return None if path is None else shlex.quote(str(path))


def _filename(path: str, name: str) -> str:
    """A filename pattern of sbatch's as a shell word, with %-signs replaced as far as they mean anything here."""
    variables = {"j": "__pid", "A": "__pid", "J": "__pid", "u": "USER", "N": "HOSTNAME"}
    words = []
    for piece in re.split(r"(%\d{0,2}.)", path):
        letter, width = piece[-1:], piece[1:-1]
        if piece[:1] == "%" and letter in variables:
            value = f'"${variables[letter]}"'
            words.append(f'"$(printf %0{width}d {value})"' if width and letter in "jAJ" else value)
        elif piece:
            words.append(shlex.quote({"%%": "%", "%x": name}.get(piece, piece)))
    return "".join(words)


def parse_processes(out: str) -> dict[str, str]:
    """Process id -> command line, of those that live, from ``ps -o pid=,stat=,args=``."""
    found = {}
    for line in out.splitlines():
        pid, stat, args = [*line.split(None, 2), "", ""][:3]
        if not stat.startswith("Z"):
            found[pid] = args
    return found


def verdict(record: Record, alive: bool) -> Report:
    """What the record and the life of the process say together."""
    attempt = record.attempt
    if attempt is None or attempt.ended is None:
        if alive:
            return Report(JobState.ACTIVE, "RUNNING")
        if record.cancelled:
            return Report(JobState.CANCELED, "CANCELLED", reason="cancelled")
        if attempt and attempt.limit:
            return Report(JobState.FAILED, "TIMEOUT", reason="TimeLimit: it reached its time limit")
        return Report(
            JobState.FAILED,
            "FAILED",
            reason="its process is gone and left no end record: killed with SIGKILL, or the machine restarted",
        )
    code = attempt.status
    if record.obeyed:
        return Report(JobState.CANCELED, "CANCELLED", code, "cancelled")
    if attempt.limit:
        return Report(JobState.FAILED, "TIMEOUT", code, "TimeLimit: it reached its time limit")
    if code == 0:
        return Report(JobState.COMPLETED, "COMPLETED", code)
    reason = "NonZeroExitCode" if attempt.signal is None else f"RaisedSignal:{attempt.signal}"
    return Report(JobState.FAILED, "FAILED", code, reason)


class ProcessExecutor(JobExecutor):
    """Runs jobs as detached processes of this machine; registered as ``process``.

    Parameters
    ----------
    url
        ``ssh://[user@]host[:port]`` for those of another machine; None is this one.
    config
        PSI/J's configuration. A job that does not run our wrapper yet gets a job directory below its work_directory.
    """

    def __init__(self, url: Optional[str] = None, config: Optional[JobExecutorConfig] = None) -> None:
        super().__init__(url=url, config=config or JobExecutorConfig())
        self.transport: Transport = ssh.transport(url) if url else Local()
        # No scheduler is bothered by a question, and ps answers it.
        pace = Pace(queued=0.5, queued_most=1.0, running=5.0, ended=0.0, ended_most=0.5, forgotten=0.2)
        self.tracker = Tracker(
            self.name,
            self.transport,
            self.ask,
            self._set_job_status,
            pace,
            verdict=lambda record: verdict(record, False),
        )
        self._starter: Optional[Starter] = None

    def submit(self, job: Job) -> None:
        """See PSI/J. On return the process runs."""
        spec, new = self._check_job(job), None
        if spec.executable is None:
            raise InvalidJobException("a job needs an executable")
        if JobDir.of(spec) is None:
            job.spec, new = self._wrapped(job, spec)
        try:
            self._submit(job, new)
        except OSError as error:
            raise SubmitException(f"{error.filename} could not be made: {error.strerror}") from error

    def directory(self, root: str, key: str) -> JobDir:
        """Where the files of a new job are to be: the directory of a spare if one waits, else a new one."""
        if not isinstance(self.transport, Remote):
            return JobDir.new(root, key)
        if self._starter is None:
            self._starter = Starter(self.transport, root, self.tracker.hear)
        spare = self._starter.take() if self._starter.root == root else None
        return spare or JobDir.new(root, key)

    def give_back(self, directory: JobDir) -> None:
        """Say that what `directory` gave is not used."""
        if self._starter:
            self._starter.give_back(directory)

    def submit_new(self, job: Job, new: NewDirectory) -> None:
        """Submit a job whose files are yet to be written; OSError where that cannot be."""
        self._check_job(job)
        self._submit(job, new)

    def _submit(self, job: Job, new: Optional[NewDirectory]) -> None:
        assert job.spec is not None
        try:
            job._native_id = self._started(job.spec, new)
        except Unanswered as error:
            job._native_id = self._found_out(job, error)
        except TransportError as error:
            raise SubmitException(str(error)) from error
        self._set_job_status(job, JobStatus(JobState.ACTIVE, metadata={"native_id": job.native_id}))
        self.tracker.register_job(job)
        if self._starter:
            self._starter.begin()

    def _started(self, spec: JobSpec, new: Optional[NewDirectory]) -> int:
        """The process id of a job that was started."""
        environment = _environment(spec, self.transport.environment)
        if self._starter and new:
            number = self._starter.go(new, environment, said_directory(spec) or ".")
            if number is not None:
                return number
        result = self.transport.script(start_script(spec), timeout=_TIMEOUT, environment=environment, new=new)
        if not result.stdout.strip().isdigit():
            raise SubmitException(result.stderr.strip() or "the process could not be started")
        return int(result.stdout)

    def cancel(self, job: Job) -> None:
        """See PSI/J: TERM to the whole process group, KILL a few seconds later to what is left of it."""
        directory = JobDir.of(job.spec)
        if job.native_id is None or directory is None:
            raise SubmitException("Job does not have a native ID.")
        script = _CANCEL.format(pid=int(job.native_id), patience=_KILL_AFTER * 10)
        try:
            if job.status.final or not self._has_session(job.native_id, directory):
                self.tracker.hurry(job)
                return
            directory.note_cancelled(self.transport)
            result = self.transport.script(script, timeout=_TIMEOUT)
        except TransportError as error:
            raise SubmitException(str(error)) from error
        if result.exit_code != 0:
            raise SubmitException(str(result))
        self.tracker.hurry(job)

    def _has_session(self, native_id: str, directory: JobDir) -> bool:
        """Whether something of a job runs, be it without its wrapper; others may have got its number since."""
        result = self.transport.run(["ps", "-ww", "-o", "pid=,stat=,args=", "--sid", native_id], timeout=_TIMEOUT)
        if result.stderr:  # such as a ps without --sid: that nothing runs would be no finding
            raise TransportError(str(result))
        return any(directory.name in args for args in parse_processes(result.stdout).values())

    def attach(self, job: Job, native_id: str) -> None:
        """See PSI/J. The job's specification must name its job directory, as our own jobs' do."""
        if JobDir.of(job.spec) is None:
            raise InvalidJobException("a process without a job directory cannot be attached to: it leaves no exit code")
        job._native_id = native_id
        job.executor = self
        self.tracker.register_job(job)

    def list(self) -> list[str]:
        """See PSI/J: the processes of this user that run our wrapper, but not those that wait for a script."""
        wrappers = _WRAPPER.findall(self.transport.script(_LIST, timeout=_TIMEOUT).stdout)
        spares = [JobDir(path) for _, path, spare in wrappers if spare]
        begun = {one.path for one, record in zip(spares, read_records(spares, self.transport)) if record.attempt}
        return [pid for pid, path, spare in wrappers if not spare or path in begun]

    def inspect(self, job: Job) -> Details:
        """What is known of a job beside its status. No I/O."""
        return self.tracker.details(job)

    def record(self, job: Job) -> Record:
        """The job's own record as last read. No I/O."""
        return self.tracker.record(job)

    def look_up(self, jobs: Sequence[Job], since: float) -> dict[str, str]:
        """Process ids of jobs whose start was not seen, by PSI/J id. `since` is of no use here."""
        result = self.transport.script(_LIST, timeout=_TIMEOUT)
        processes = parse_processes(result.stdout)
        found = {}
        for job in jobs:
            directory = JobDir.of(job.spec)
            if directory is None:
                continue
            ends = [f"/{directory.name}/run"]
            if self._has_script(directory):  # else what has its name may be a spare that was not begun
                ends.append(f"/{directory.name}/./run")
            pids = [pid for pid, args in processes.items() if args.endswith(tuple(ends))]
            if pids:
                found[job.id] = min(pids, key=int)  # the wrapper; the keeper, its child, has the same command
        return found

    def _has_script(self, directory: JobDir) -> bool:
        try:
            return self.transport.size(f"{directory.path}/script") > 0
        except FileNotFoundError:
            return False

    def _found_out(self, job: Job, error: Unanswered) -> int:
        """The process id of a job whose start was not confirmed, from its record or by a look for its process.

        If there is none, the caller removes the job directory, without which it cannot be started any more.
        """
        directory = JobDir.of(job.spec)
        assert directory is not None
        asked = False
        for pause in _LOOKS:
            time.sleep(pause)
            try:
                attempt = directory.read(self.transport).attempt
                number = (attempt and attempt.native_id) or self.look_up([job], 0.0).get(job.id)
                asked = True
            except TransportError:
                continue
            if number is not None:
                return int(number)
        if asked:
            raise SubmitException(str(error)) from error
        raise OutcomeUnknown(f"{error}\nWhether the job was started is not known") from error

    def _wrapped(self, job: Job, spec: JobSpec) -> tuple[JobSpec, NewDirectory]:
        """The same job, run by our wrapper: a detached process tells nobody else its exit code."""
        root = str(self.config.work_directory / self.name)
        if self.transport.host is not None:
            root = f"{self.transport.environment['HOME']}/.psij/{self.name}"  # the configuration's is ours
        directory = JobDir.new(root, job.id)
        script = f"#!/bin/bash -p\nexec {shlex.join([spec.executable or '', *(spec.arguments or [])])}\n"
        executable, arguments = directory.command
        wrapped = JobSpec(
            executable,
            arguments,
            directory=spec.directory,
            name=spec.name,
            inherit_environment=spec.inherit_environment,
            environment=dict(spec.environment or {}),
            stdin_path=spec.stdin_path,
            stdout_path=spec.stdout_path or Path(directory.stdout),
            stderr_path=spec.stderr_path or Path(directory.stderr),
            resources=spec.resources,
            attributes=spec.attributes,
        )
        return wrapped, directory.files(script.encode(), {})

    def _alive(self, jobs: Sequence[Job]) -> set[str]:
        """Ids of the jobs whose process lives; another process that has got the same number does not count."""
        pids = ",".join(job.native_id or "" for job in jobs)
        result = self.transport.run(["ps", "-ww", "-o", "pid=,stat=,args=", "-p", pids], timeout=_TIMEOUT)
        if result.stderr:
            raise TransportError(str(result))
        found = parse_processes(result.stdout)
        return {
            job.id
            for job in jobs
            if (directory := JobDir.of(job.spec))
            and (args := found.get(job.native_id or ""))
            # By the name, which is ASCII: ps may not print all that a path holds. [bash] becomes another program now.
            and (directory.name in args or args.startswith("["))
        }

    def ask(self, jobs: Sequence[Job]) -> dict[str, Report]:
        """How jobs are, by PSI/J id: their records, and whether their processes live."""
        directories = {job.id: directory for job in jobs if (directory := JobDir.of(job.spec))}

        def records() -> dict[str, Record]:
            return dict(zip(directories, read_records(list(directories.values()), self.transport)))

        before = records()
        open_jobs = [job for job in jobs if not (attempt := before[job.id].attempt) or attempt.ended is None]
        if not open_jobs:
            return {key: verdict(record, alive=False) for key, record in before.items()}
        alive = self._alive(open_jobs)  # before the records are read again: a process that is gone has written its own
        return {key: verdict(record, key in alive) for key, record in records().items()}


class SSHExecutor(ProcessExecutor):
    """The same on another machine; registered as ``ssh``.

    Parameters
    ----------
    url
        ``ssh://[user@]host[:port]``.
    config
        PSI/J's configuration.
    """

    def __init__(self, url: Optional[str] = None, config: Optional[JobExecutorConfig] = None) -> None:
        if not url:
            raise ValueError('the executor "ssh" wants a url="ssh://user@machine:22"')
        super().__init__(url=url, config=config)


def _environment(spec: JobSpec, base: Mapping[str, str]) -> dict[str, str]:
    environment = submit_environment(base) if spec.inherit_environment else {}
    environment.update(spec.environment or {})
    if spec.attributes is not None and spec.attributes.duration is not None:
        environment["EXECUTE_TIME_LIMIT"] = str(int(spec.attributes.duration.total_seconds()))
    return environment
