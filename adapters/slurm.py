"""Slurm: PSI/J's executor with sbatch's own language, honest states and a tracker in place of its poll thread.

The pure half (argv, job id, parsers) comes first; options are sbatch's, https://slurm.schedmd.com/sbatch.html.
"""

from __future__ import annotations

import calendar
import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from signal import strsignal
from subprocess import CalledProcessError
from typing import IO, Optional

from execute_batch_scheduler.adapters.jobdir import JobDir, Record
from execute_batch_scheduler.adapters.tracking import Details, OutcomeUnknown, Report, Tracker
from execute_batch_scheduler.adapters.transport import Local, Result, Transport, TransportError

from execute_batch_scheduler.adapters import ssh

from psij import InvalidJobException, Job, JobSpec, JobState, JobStatus, ResourceSpecV1, SubmitException
from psij.executors.batch.slurm import SlurmExecutorConfig, SlurmJobExecutor

NATIVE_ARGUMENTS = "native_arguments"
"""The custom attribute that holds words for sbatch which are not an option with a value: ``["--hold"]``."""

DIRECTIVES = "directives"
"""The custom attribute that holds lines for the head of the submit file: ``["#PBS -l walltime=1:00"]``."""

# https://slurm.schedmd.com/job_state_codes.html; COMPLETING and what follows are flags that hide the state.
STATES = {
    "PENDING": JobState.QUEUED,
    "RUNNING": JobState.ACTIVE,
    "SUSPENDED": JobState.ACTIVE,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELED,
    "FAILED": JobState.FAILED,
    "TIMEOUT": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "PREEMPTED": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "DEADLINE": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "REVOKED": JobState.FAILED,
    "COMPLETING": JobState.ACTIVE,
    "CONFIGURING": JobState.QUEUED,
    "POWER_UP_NODE": JobState.QUEUED,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_FED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.QUEUED,
    "SPECIAL_EXIT": JobState.QUEUED,
    "RESV_DEL_HOLD": JobState.QUEUED,
    "RESIZING": JobState.ACTIVE,
    "SIGNALING": JobState.ACTIVE,
    "STAGE_OUT": JobState.ACTIVE,
    "STOPPED": JobState.ACTIVE,
    "UPDATE_DB": JobState.ACTIVE,
}

# https://slurm.schedmd.com/job_reason_codes.html, the usual ones, in words.
REASONS = {
    "BadConstraints": "no node can satisfy what was asked for; as it is, it will not start",
    "BeginTime": "its begin time has not come",
    "Dependency": "a job it depends on has not ended",
    "DependencyNeverSatisfied": "what it depends on can no longer happen; it will never start",
    "JobArrayTaskLimit": "the array's limit of running tasks is reached",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held; release it with scontrol release",
    "JobLaunchFailure": "the node could not start it",
    "job_requeued_in_held_state": "it was requeued and is held; release it with scontrol release",
    "Licenses": "no licence is free",
    "NodeDown": "a node it needs is down",
    "NodeFailure": "its node failed",
    "OutOfMemory": "it used more memory than it had asked for",
    "PartitionConfig": "no set of the partition's nodes can satisfy what was asked for; as it is, it will not start",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows or has up",
    "PartitionTimeLimit": "its time limit is above the partition's",
    "Priority": "jobs of higher priority come first",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as the QOS allows",
    "ReqNodeNotAvail": "a node it needs is not available",
    "RequeueHold": "it was requeued and is held",
    "Reservation": "it waits for its reservation",
    "Resources": "it waits for nodes to become free",
    "SystemFailure": "Slurm itself failed",
    "TimeLimit": "it reached its time limit",
}

# After these sbatch may have submitted the job all the same.
_OUTCOME_UNKNOWN = re.compile(r"timed out|gave no answer|Zero Bytes|Unexpected message|I/O error|was killed: status")
_LOOKS = (0.3, 1, 3, 8)  # seconds before each look for a job that sbatch did not tell of
_LAST_SIGNAL = 31  # above are Slurm's own marks: 53 for a failed launch, 125 for a memory kill
_SKEW = 300.0  # seconds by which the clocks of Slurm and of this machine may differ
_SUBMIT_TIMEOUT = 120.0  # a stalled controller: sbatch itself gives up after MessageTimeout, by default 10 s, tries
_QUESTION_TIMEOUT = 30.0
# Of these the commands of Slurm take their behaviour or their output's form, https://slurm.schedmd.com/squeue.html
_QUESTION_VARIABLES = re.compile(r"S(QUEUE|CONTROL|ACCT|CANCEL|INFO)_|SLURM_(TIME_FORMAT|CLUSTERS|BITSTR_LEN)$")
# What belongs to the process that submits and must not reach the job: an allocation or MPI world around the kernel,
# the kernel itself, a hub, the terminal. SBATCH_WAIT would block, SBATCH_ARRAY_INX make many jobs of one. Outside of an
# allocation a SLURM_ variable is the user's or the site's (SLURM_MPI_TYPE ...), and travels as by sbatch.
_LOCAL_VARIABLES = re.compile(
    r"(SLURM_JOB|PMI|PMIX|JPY|JUPYTERHUB|IPYTHON|OAR|PBS)_|PMI\w*$|MPLBACKEND$|CLICOLOR(_FORCE)?$|FORCE_COLOR$"
    r"|PAGER$|GIT_PAGER$|SBATCH_(WAIT|ARRAY_INX)$|EXECUTE_TIME_LIMIT$"
)
_ALLOCATION_VARIABLES = re.compile(r"(SLURM|SLURMD|SRUN)_")
_CLIENT_VARIABLES = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_HINT", "SLURM_UMASK", "SLURM_JWT"}

# scontrol separates its words by spaces that values may hold too: each is looked for at the head of its own line, and
# what the user chose (name, comment, paths) stands in lines of its own.
_SHOWN_STATE = re.compile(
    r"^ +Priority=\S+ Nice=.*\n +JobState=(\S+) Reason=(.*?) (?:FailedNode=\S+ )?Dependency=", re.MULTILINE
)
_SHOWN_END = re.compile(r"^ +Requeue=\d+ Restarts=(\d+) .*\bExitCode=(\d+):(\d+)", re.MULTILINE)
_SHOWN_TIMES = re.compile(r"^ +StartTime=(\S+) EndTime=(\S+)", re.MULTILINE)
_SHOWN_SUBMIT = re.compile(r"^ +SubmitTime=(\S+)", re.MULTILINE)
_SHOWN_COMMAND = re.compile(r"^ +Command=(.*?) *$", re.MULTILINE)
_SHOWN_NODES = re.compile(r"^ +NodeList=(\S+)", re.MULTILINE)
_QUEUE_COLUMNS = {
    "JobID": 24,
    "State": 24,
    "exit_code": 12,
    "RestartCnt": 12,
    "StartTime": 24,
    "SubmitTime": 24,
    "NodeList": 256,
    "Command": 1024,
}
_QUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in _QUEUE_COLUMNS.items()) + ",Reason:512"
_ACCOUNT_FORMAT = "JobIDRaw,State,ExitCode,Submit,Start,End,NodeList"


def submit_arguments(spec: JobSpec) -> list[str]:
    """Sbatch's words for a specification: what it does not say is not said to Slurm."""
    words = []

    def say(option: str, value: object) -> None:
        if value is not None:
            words.append(f"--{option}={value}")

    if spec.name != spec.executable:  # PSI/J's way of saying that there is no name
        say("job-name", spec.name)
    say("chdir", spec.directory)
    for option, path in (("input", spec.stdin_path), ("output", spec.stdout_path), ("error", spec.stderr_path)):
        say(option, None if path is None else literal_filename(str(path)))
    resources = spec.resources
    if isinstance(resources, ResourceSpecV1):
        say("nodes", resources.node_count)
        say("ntasks", resources.process_count)
        say("ntasks-per-node", resources.processes_per_node)
        say("cpus-per-task", resources.cpu_cores_per_process)
        say("gpus-per-task", resources.gpu_cores_per_process)
        say("mem", resources.memory and f"{max(1, resources.memory // 1024)}K")
        if resources.exclusive_node_use:
            words.append("--exclusive")
    attributes = spec.attributes
    if attributes is not None:
        say("time", None if attributes.duration is None else format_time(attributes.duration))
        say("partition", attributes.queue_name)
        say("account", attributes.account)
        say("reservation", attributes.reservation_id)
        for name, value in (attributes.custom_attributes or {}).items():
            scheduler, dot, option = name.partition(".")
            if dot and scheduler.lower() == "slurm":
                words.append(f"-{option}{value}" if len(option) == 1 else f"--{option}={value}")
        native = attributes.get_custom_attribute(NATIVE_ARGUMENTS)
        words += [str(word) for word in native] if isinstance(native, (list, tuple)) else []
    if not spec.inherit_environment:
        words.append("--export=NONE")
    return words


def submit_script(spec: JobSpec) -> str:
    """The script that sbatch gets: the specification's directives, environment and command."""
    command = [spec.executable or "", *(spec.arguments or [])]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in (spec.environment or {}).items()]
    for hook in (spec.pre_launch, spec.post_launch):
        if hook is not None:
            raise SubmitException("tracked-slurm runs one command: put pre_launch and post_launch into the script")
    directives = spec.attributes.get_custom_attribute(DIRECTIVES) if spec.attributes is not None else None
    head = [str(line) for line in directives] if isinstance(directives, (list, tuple)) else []
    return "\n".join(["#!/bin/bash -p", *head, *lines, f"exec {shlex.join(command)}", ""])


def literal_filename(path: str) -> str:
    """A path for --output and its like, whose %-patterns sbatch would expand; a backslash would turn that off."""
    return path if "\\" in path else path.replace("%", "%%")


def format_time(duration: timedelta) -> str:
    """days-hours:minutes:seconds."""
    seconds = int(duration.total_seconds())
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days}-{clock}" if days else clock


def job_id(out: str) -> Optional[str]:
    """The id in what ``sbatch --parsable`` printed: ``123``, or ``123;cluster`` where --clusters was said."""
    match = re.match(r"\d+(;\S+)?$", out.split("\n", 1)[0].strip())
    return match[0] if match else None


def _number(native_id: str) -> str:
    return native_id.partition(";")[0]


def _place(native_id: str) -> str:
    """The cluster that a job was sent to by --clusters; empty for the one that commands ask anyway."""
    return native_id.partition(";")[2]


def _where(native_id: str) -> list[str]:
    return ["-M", _place(native_id)] if _place(native_id) else ["--local"]


def submit_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What sbatch may see, and with it the job."""
    inside = "SLURM_JOB_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if name in _CLIENT_VARIABLES
        or not (_LOCAL_VARIABLES.match(name) or (inside and _ALLOCATION_VARIABLES.match(name)))
    }


def question_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the other commands may see, so that their output has the form that is parsed here."""
    return {**{name: value for name, value in environment.items() if not _QUESTION_VARIABLES.match(name)}, "TZ": "UTC0"}


def parse_show_job(out: str) -> Optional[Report]:
    """What ``scontrol show job ID`` says; None if it is no such answer."""
    shown = _SHOWN_STATE.search(out)
    if not shown:
        return None
    state, reason = shown.groups()
    end, times, nodes = (pattern.search(out) for pattern in (_SHOWN_END, _SHOWN_TIMES, _SHOWN_NODES))
    submit, command = _SHOWN_SUBMIT.search(out), _SHOWN_COMMAND.search(out)
    restarts, code, signal = (int(number) for number in end.groups()) if end else (0, 0, 0)
    start, ended = (_time(text) for text in times.groups()) if times else (None, None)
    queued = STATES.get(state) is JobState.QUEUED
    ran = nodes is not None and nodes[1] != "(null)"
    return Report(
        state=STATES.get(state),
        native_state=state,
        exit_code=_exit_code(state, code, signal),
        reason=reason_in_words(reason, state, signal),
        expected_start=start if queued else None,
        nodes=nodes[1] if nodes and ran else None,
        attempt=restarts,
        started=start if ran and not queued else None,
        ended=ended,
        submitted=_time(submit[1]) if submit else None,
        command=command[1] if command else None,
    )


def parse_queue(out: str) -> dict[str, Report]:
    """What squeue says, by job id. A line that cannot be read is left out; it concerns that job alone."""
    reports = {}
    for line in out.splitlines():
        fields, at = {}, 0
        for name, width in _QUEUE_COLUMNS.items():
            fields[name], at = line[at : at + width].strip(), at + width
        state = fields["State"]
        if not fields["JobID"].isdigit() or not state:
            continue
        status = int(fields["exit_code"]) if fields["exit_code"].isdigit() else 0  # as waitpid tells it
        queued = STATES.get(state) is JobState.QUEUED
        start = _time(fields["StartTime"])
        reports[fields["JobID"]] = Report(
            state=STATES.get(state),
            native_state=state,
            exit_code=_exit_code(state, status >> 8, status & 0x7F),
            reason=reason_in_words(line[at:].strip(), state, status & 0x7F),
            expected_start=start if queued else None,
            nodes=fields["NodeList"] or None,
            attempt=int(fields["RestartCnt"]) if fields["RestartCnt"].isdigit() else 0,
            started=None if queued else start,
            submitted=_time(fields["SubmitTime"]),
            command=fields["Command"] or None,
        )
    return reports


def parse_accounting(out: str) -> dict[str, Report]:
    """What sacct says, by job id; of jobs that it holds to be ended. The controller no longer knows them."""
    reports = {}
    for line in out.splitlines():
        fields = line.split("|")
        if len(fields) != len(_ACCOUNT_FORMAT.split(",")):
            continue
        number, words, code, submitted, start, end, nodes = fields
        state, *by = words.split() or [""]  # "CANCELLED by 1000"
        exit_code, signal = (int(part) if part.isdigit() else 0 for part in (code.partition(":")[::2]))
        report = Report(
            state=STATES.get(state),
            native_state=state,
            exit_code=_exit_code(state, exit_code, signal),
            # its Reason column is the one for which the job waited last
            reason=" ".join(["cancelled", *by]) if by else reason_in_words("", state, signal),
            nodes=nodes if nodes != "None assigned" else None,
            started=_time(start),
            ended=_time(end),
            submitted=_time(submitted),
        )
        if report.final:
            reports[number] = report
    return reports


def is_same(report: Report, job: Job) -> bool:
    """Whether an answer is about the job, and not about another one that had or has got its number."""
    directory = JobDir.of(job.spec)
    if directory is None:
        return True
    if report.command and report.command.startswith("/"):
        return directory.path in report.command
    return report.submitted is None or report.submitted > directory.created - _SKEW


def _mark(job: Job) -> str:
    directory = JobDir.of(job.spec)
    return directory.path if directory else f"{job.id}.job"


def reason_in_words(reason: str, state: str, signal: int = 0) -> Optional[str]:
    """Slurm's reason, and what it means where we know; its own text stays but where it misleads."""
    code, _, rest = reason.partition(",")
    if state == "CANCELLED" and code != "DependencyNeverSatisfied":
        return "cancelled"  # Slurm leaves the reason for which it was pending
    if state == "FAILED" and 0 < signal <= _LAST_SIGNAL and not reason.startswith("RaisedSignal"):
        return f"RaisedSignal:{signal}({strsignal(signal)})"  # some releases call it JobLaunchFailure
    if reason in ("", "None", "(null)"):
        code = reason = {"OUT_OF_MEMORY": "OutOfMemory", "TIMEOUT": "TimeLimit", "NODE_FAIL": "NodeFailure"}.get(
            state, ""
        )
    words = REASONS.get(code)
    if not words:
        return reason or None
    detail = rest.lstrip(" _")  # scontrol writes _ for the spaces of squeue
    return f"{code}: {words}" + (f" ({detail})" if detail else "")


def _exit_code(state: str, code: int, signal: int) -> Optional[int]:
    """As a shell tells it, 128 + N for signal N. None where no script has ended by itself."""
    final = STATES.get(state)
    if final is None or not final.final or state in ("NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED"):
        return None
    if signal > _LAST_SIGNAL:
        return None
    if signal:
        return 128 + signal
    return code if code or state == "COMPLETED" else None


def _time(text: str) -> Optional[float]:
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S")))
    except ValueError:  # Unknown, N/A, (null)
        return None


class TrackedSlurmExecutor(SlurmJobExecutor):
    """PSI/J's Slurm executor; registered as ``tracked-slurm``.

    Submission, attaching and cancelling are PSI/J's. What sbatch is given, how its commands run, and how states become
    known are ours.

    Parameters
    ----------
    url
        ``ssh://[user@]host[:port]`` for a cluster behind another machine; None is the one of this machine.
    config
        PSI/J's configuration; its polling settings have no effect.
    """

    def __init__(self, url: Optional[str] = None, config: Optional[SlurmExecutorConfig] = None) -> None:
        self.transport: Transport = ssh.transport(url) if url else Local()  # the base class starts the tracker
        self._submissions: dict[str, tuple[str, bytes]] = {}  # PSI/J id and text, by a submit file's path
        self._accounting = True
        self.messages: dict[str, str] = {}  # what sbatch said of jobs that it took, by PSI/J id
        super().__init__(url=url, config=config)
        self.url = url  # PSI/J's own drops it; the journal needs it

    # PSI/J's documented hooks

    def generate_submit_script(self, job: Job, context: Mapping[str, object], submit_file: IO[str]) -> None:
        """See PSI/J."""
        assert job.spec is not None
        text = submit_script(job.spec)
        path = self._submit_path(job, self.work_directory / f"{job.id}.job")
        self._submissions[path] = job.id, text.encode(errors="surrogateescape")
        if self.transport.host is None:
            submit_file.write(text)

    def _submit_path(self, job: Job, local: Path) -> str:
        """The submit file where sbatch runs: in the job directory, so that it goes when that goes."""
        if self.transport.host is None:
            return str(local.absolute())
        directory = JobDir.of(job.spec)
        return f"{directory.path}/submit" if directory else f"{self.transport.environment['HOME']}/.{local.name}"

    def get_submit_command(self, job: Job, submit_file_path: Path) -> list[str]:
        """See PSI/J."""
        assert job.spec is not None
        directory = JobDir.of(job.spec)
        # The script has no use for the job directory as its argument; Slurm's record of the command has: it is the mark
        # by which a job is found again, and known from another one of the same number.
        mark = [directory.path] if directory else []
        return ["sbatch", "--parsable", *submit_arguments(job.spec), self._submit_path(job, submit_file_path), *mark]

    def job_id_from_submit_output(self, out: str) -> str:
        """See PSI/J."""
        number = job_id(out)
        if number is None:
            raise SubmitException(f"sbatch succeeded but printed no job id: {out!r}")
        return number

    def get_status_command(self, native_ids: Collection[str]) -> list[str]:
        """One job: scontrol, one RPC. Several: one squeue for all of the user's, never a list of ids."""
        first = next(iter(native_ids))
        if len(native_ids) == 1:
            return ["scontrol", *_where(first), "show", "job", _number(first)]
        return ["squeue", *_where(first), "--me", "-t", "all", "-h", "-O", _QUEUE_FORMAT]

    def get_cancel_command(self, native_id: str) -> list[str]:
        """See PSI/J; on the job's own cluster."""
        where = ["-M", _place(native_id)] if _place(native_id) else []
        return ["scancel", "-Q", *where, _number(native_id)]

    def parse_status_output(self, exit_code: int, out: str) -> dict[str, JobStatus]:
        """See PSI/J; the tracker uses the parsers themselves, which say more."""
        return {
            number: JobStatus(report.state, message=report.reason, exit_code=report.exit_code)
            for number, report in parse_queue(out).items()
            if report.state is not None
        }

    def _ensure_work_dir(self) -> None:
        """Submit files hold the job's environment: nobody else is to read them."""
        self.work_directory.mkdir(parents=True, exist_ok=True)
        self.work_directory.chmod(0o700)

    def _start_queue_poll_thread(self) -> Tracker:  # type: ignore[override]
        self.tracker = Tracker(self.name, self.transport, self.ask, self._set_job_status, queued="PENDING")
        return self.tracker

    def _run_command(self, cmd: list[str]) -> str:
        path = next((word for word in cmd if word in self._submissions), "")
        job, script = self._submissions.pop(path, ("", b""))
        try:
            result = self._run(cmd, {path: script} if script and self.transport.host is not None else None)
        except TransportError as error:
            raise SubmitException(str(error)) from error
        if result.exit_code != 0:
            said = (result.stderr or result.stdout).strip() or str(result)
            if result.exit_code < 0:
                said += f"\n{cmd[0]} was killed: status {result.exit_code}"
            raise CalledProcessError(result.exit_code, cmd, output=said)
        if job and result.stderr.strip():  # a site's plugins speak there: "routed to partition x"
            self.messages[job] = result.stderr.strip()
        return result.stdout

    def _read_aux_files(self, job: Job, status: JobStatus) -> None:
        """PSI/J's exit-code files: we have none."""

    # what is ours

    def submit(self, job: Job) -> None:
        """See PSI/J; of a job that is refused nothing is left."""
        submitted = time.time()
        local = self.work_directory / f"{job.id}.job"
        try:
            super().submit(job)
        except SubmitException as error:
            if _OUTCOME_UNKNOWN.search(str(error)):
                self._adopt(job, submitted, error)
                return
            local.unlink(missing_ok=True)
            raise
        finally:
            if self.transport.host is not None:
                local.unlink(missing_ok=True)  # it was written over there

    def output_paths(self, native_id: str) -> tuple[Optional[str], Optional[str]]:
        """Where a job's output goes as far as Slurm tells; the second is None where both go to one file.

        InvalidJobException for an array, which is many jobs.
        """
        result = self._run(["scontrol", *_where(native_id), "show", "job", _number(native_id)])
        if re.search(r"\bArrayTaskId=", result.stdout):
            raise InvalidJobException(f"job {native_id} is an array, and these are not supported yet")
        out, err = (re.search(rf"^ +{name}=(.+?) *$", result.stdout, re.MULTILINE) for name in ("StdOut", "StdErr"))
        stdout, stderr = (match[1] if match else None for match in (out, err))
        return stdout, None if stderr == stdout else stderr

    def look_up(self, jobs: Sequence[Job], since: float) -> dict[str, str]:
        """Slurm's ids of jobs whose submission was not answered, by PSI/J id: found by the command.

        Parameters
        ----------
        since
            No job is older; seconds since the epoch.
        """
        result = self._run(["squeue", "--local", "--me", "-t", "all", "-h", "-o", "%i|%o"])
        if result.exit_code != 0:
            raise TransportError(str(result))
        lines = result.stdout.splitlines()
        found = {job.id: line.partition("|")[0] for job in jobs for line in lines if _mark(job) in line}
        if len(found) < len(jobs) and self._accounting:
            start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since - 60))
            result = self._run(["sacct", "-n", "-P", "-X", "-S", start, "-o", "JobIDRaw,SubmitLine"])
            lines = result.stdout.splitlines() if result.exit_code == 0 else []
            told = {job.id: line.partition("|")[0] for job in jobs for line in lines if _mark(job) in line}
            found = {**told, **found}
        return found

    def _adopt(self, job: Job, since: float, error: SubmitException) -> None:
        """Find the job that sbatch did not tell of. One "not found" proves nothing: Slurm may still be at it."""
        asked = 0
        for pause in _LOOKS:
            time.sleep(pause)
            try:
                number = self.look_up([job], since).get(job.id)
                asked += 1
            except TransportError:
                continue
            if number is not None:
                job._native_id = number
                self._set_job_status(job, JobStatus(JobState.QUEUED, metadata={"native_id": number}))
                self.tracker.register_job(job)
                return
        looked = "Slurm does not know it now" if asked else "Slurm could not be asked"
        raise OutcomeUnknown(f"{error}\nWhether Slurm has taken the job is not known; {looked}") from error

    def cancel(self, job: Job) -> None:
        """See PSI/J; and the state is asked for soon."""
        super().cancel(job)
        self.tracker.hurry(job)

    def inspect(self, job: Job) -> Details:
        """What is known of a job beside its status. No I/O."""
        return self.tracker.details(job)

    def record(self, job: Job) -> Record:
        """The job's own record as last read. No I/O."""
        return self.tracker.record(job)

    def _run(self, command: Sequence[str], put: Optional[Mapping[str, bytes]] = None) -> Result:
        environment = self.transport.environment
        if command[0] == "sbatch":
            environment = submit_environment(environment)
            return self.transport.run(command, timeout=_SUBMIT_TIMEOUT, environment=environment, put=put)
        return self.transport.run(command, timeout=_QUESTION_TIMEOUT, environment=question_environment(environment))

    def ask(self, jobs: Sequence[Job]) -> dict[str, Report]:
        """How jobs are, by PSI/J id: the controller tells, then accounting of those it has forgotten."""
        answers: dict[str, Report] = {}
        for place in {_place(job.native_id or "") for job in jobs}:
            mine = [(job, _number(job.native_id)) for job in jobs if job.native_id and _place(job.native_id) == place]
            numbers = sorted({number for _, number in mine})
            reports = self._ask_controller(numbers, place)
            forgotten = [number for number in numbers if number not in reports]
            if forgotten and self._accounting:
                reports.update(self._ask_accounting(forgotten, place))
            answers.update({job.id: reports[number] for job, number in mine if number in reports})
        return {job.id: answers[job.id] for job in jobs if job.id in answers and is_same(answers[job.id], job)}

    def _ask_controller(self, numbers: list[str], place: str) -> dict[str, Report]:
        result = self._run(self.get_status_command([f"{number};{place}" if place else number for number in numbers]))
        if len(numbers) > 1:
            if result.exit_code != 0:
                raise TransportError(str(result))
            return parse_queue(result.stdout)
        if result.exit_code != 0 and "Invalid job id" not in result.stderr:
            raise TransportError(str(result))
        report = parse_show_job(result.stdout)
        if report is None and result.exit_code == 0:
            raise TransportError(f"an answer that cannot be read: {result}")
        return {} if report is None else {numbers[0]: report}

    def _ask_accounting(self, numbers: list[str], place: str) -> dict[str, Report]:
        where = ["-M", place] if place else []
        try:
            result = self._run(["sacct", *where, "-n", "-P", "-X", "-j", ",".join(numbers), "-o", _ACCOUNT_FORMAT])
        except TransportError as error:
            if "could not be run" not in str(error):
                raise
            self._accounting = False
            return {}
        if "accounting storage is disabled" in result.stderr:
            self._accounting = False
            return {}
        if result.exit_code != 0:
            raise TransportError(str(result))
        return parse_accounting(result.stdout)
