"""submit_script(): flags, directives and settings become a PSI/J job. The only wiring."""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Optional, TypeVar, Union, overload
from weakref import WeakKeyDictionary

from execute_batch_scheduler import backend, directives, flags as flag_table, journal, transfer
from execute_batch_scheduler.adapters import process, stock
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.remote import Remote
from execute_batch_scheduler.adapters.ssh_config import parse_host
from execute_batch_scheduler.adapters.tracking import OutcomeUnknown, Tracker
from execute_batch_scheduler.adapters.transport import Local, NewDirectory, Transport, TransportError
from execute_batch_scheduler.display import NAMELESS
from execute_batch_scheduler.errors import BackendUnavailable, BadUsage, SubmissionFailed
from execute_batch_scheduler.flags import Flag
from execute_batch_scheduler.job import Job
from execute_batch_scheduler.settings import Choice, settings
from execute_batch_scheduler.spec import HONOURED, WITHOUT_SCHEDULER, check_alone, check_stock, make_spec
from execute_batch_scheduler.transfer import Progress

import psij
from psij import JobExecutor, JobExecutorConfig, JobSpec
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutor

_OURS = {"slurm": "tracked-slurm", "local": "process", "ssh": "ssh"}
_COMMANDS = {"tracked-slurm": "sbatch", "slurm": "sbatch", "pbs": "qsub", "pbs_classic": "qsub", "lsf": "bsub"}
_HINTS = {
    r"[Ii]nvalid partition": "sinfo -s lists the partitions",
    r"[Ii]nvalid account|account or partition": "sacctmgr show associations user=$USER lists your accounts",
    r"[Ii]nvalid qos": "sacctmgr show qos lists them",
    r"[Nn]ode count specification|[Nn]ode configuration|CPU count": "sinfo -N -l shows what the nodes have",
    r"[Tt]ime limit|Invalid --time": "times are minutes, h:m:s or days-h; sinfo -s shows the partitions' limits",
    r"Invalid --mem": "memory is a number with K, M, G or T behind it, as in --mem=4G, or of megabytes",
    r"configuration source": "that Slurm has no configuration; --wlm=local (--wlm=ssh for --host) does without",
    r"[Uu]nable to contact|[Cc]onnection refused|[Ss]ocket timed out|did not respond": (
        "scontrol ping shows whether the controller is up; squeue --me shows whether the job was accepted all the same"
    ),
}
_NOT_PLAIN = {"output", "error", "input", "open-mode"}
_SHORT = 1 << 16  # characters of a script that is sent together with the order to begin it
# Those for which programs set handlers that raise.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_TIMEOUT = 20.0
_TITLE = 80  # characters of a script's first command that are noted

logger = logging.getLogger(__name__)
_executors: dict[tuple[int, str, Optional[str], int], JobExecutor] = {}
_trackers: WeakKeyDictionary[JobExecutor, Tracker] = WeakKeyDictionary()
_lock = threading.RLock()
T = TypeVar("T")


@dataclass(frozen=True)
class DryRun:
    """What would be submitted.

    Attributes
    ----------
    script : str
        As it would run.
    command : str
        The submit command as a shell would take it.
    spec : psij.JobSpec
        What the command is made of.
    notices : tuple of str
        What the user should know.
    prologue : str
        What would run before the script.
    """

    script: str
    command: str
    spec: JobSpec
    notices: tuple[str, ...]
    prologue: str = ""

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        spec = {name.lstrip("_"): value for name, value in vars(self.spec).items() if value is not None}
        for name in ("resources", "attributes"):
            values = vars(getattr(self.spec, name)).items()
            spec[name] = {
                key.lstrip("_"): value for key, value in values if value is not None and not key.startswith("_computed")
            }
        lines = "\n".join(f"  {name}: {value}" for name, value in spec.items())
        prologue = f"# Prologue\n{self.prologue}\n" if self.prologue else ""
        return f"{prologue}# Script\n{self.script}\n# Command\n{self.command}\n\n# JobSpec\n{lines}"


@overload
def submit_script(
    script: Union[str, os.PathLike[str]],
    flags: Union[str, Sequence[str]] = (),
    *,
    wlm: Optional[str] = None,
    target: Optional[str] = None,
    host: Optional[str] = None,
    identity: Union[str, os.PathLike[str], None] = None,
    shell: Optional[str] = None,
    directory: Union[str, os.PathLike[str], None] = None,
    environment: Optional[Mapping[str, str]] = None,
    executor: Optional[JobExecutor] = None,
    config: Optional[JobExecutorConfig] = None,
    native: Sequence[str] = (),
    put: Sequence[Union[str, os.PathLike[str]]] = (),
    progress: Progress = lambda *_: None,
    dry_run: Literal[False] = False,
) -> Job: ...


@overload
def submit_script(
    script: Union[str, os.PathLike[str]],
    flags: Union[str, Sequence[str]] = (),
    *,
    wlm: Optional[str] = None,
    target: Optional[str] = None,
    host: Optional[str] = None,
    identity: Union[str, os.PathLike[str], None] = None,
    shell: Optional[str] = None,
    directory: Union[str, os.PathLike[str], None] = None,
    environment: Optional[Mapping[str, str]] = None,
    executor: Optional[JobExecutor] = None,
    config: Optional[JobExecutorConfig] = None,
    native: Sequence[str] = (),
    put: Sequence[Union[str, os.PathLike[str]]] = (),
    progress: Progress = lambda *_: None,
    dry_run: Literal[True],
) -> DryRun: ...


def submit_script(
    script: Union[str, os.PathLike[str]],
    flags: Union[str, Sequence[str]] = (),
    *,
    wlm: Optional[str] = None,
    target: Optional[str] = None,
    host: Optional[str] = None,
    identity: Union[str, os.PathLike[str], None] = None,
    shell: Optional[str] = None,
    directory: Union[str, os.PathLike[str], None] = None,
    environment: Optional[Mapping[str, str]] = None,
    executor: Optional[JobExecutor] = None,
    config: Optional[JobExecutorConfig] = None,
    native: Sequence[str] = (),
    put: Sequence[Union[str, os.PathLike[str]]] = (),
    progress: Progress = lambda *_: None,
    dry_run: bool = False,
) -> Union[Job, DryRun]:
    """Run a script as a batch job.

    Parameters
    ----------
    script
        The script's text, or the path of its file as an os.PathLike. ``#SBATCH`` lines at its head count.
    flags
        sbatch's flags, as one string or as a list of words.
    wlm
        The backend: slurm, local, a name that PSI/J knows (lsf, flux ...), or ``psij:NAME`` for PSI/J's own executor
        of a name. By default what the settings say, else a scheduler that is found, else this machine as long as no
        resources are asked for.
    target
        The name of a target in the settings files: a backend with its flags, environment and so on. What is said here
        or in the script wins over it.
    host
        The machine that runs it, or behind whose login its scheduler is: ``machine``, ``user@machine:2222``, or a name
        of the user's ssh configuration. With no `wlm` it runs there as by ssh. Default is this machine.
    identity
        The private key file for `host`, where the ssh configuration does not name it.
    shell
        What runs the script, with arguments if need be; default is its ``#!`` line, or bash.
    directory
        Where the script runs; the same as --chdir.
    environment
        Variables for the script. They go into a private file, onto no command line.
    executor
        A PSI/J executor to use instead of one found by `wlm`.
    config
        A PSI/J configuration for the executor that `wlm` names.
    native
        Words for the scheduler's own submit command, as they are.
    put
        Files and directories that are copied to `host` before, into the directory where the script runs.
    progress
        Called while they are: with a name, how many bytes are there, and how many there are in all.
    dry_run
        Submit nothing, make nothing; return what would be.

    Returns
    -------
    Job
        The handle of the running job; a DryRun with ``dry_run=True``.

    Raises
    ------
    BadUsage, BackendUnavailable, SubmissionFailed
        Each says what to do. Then nothing was submitted, and nothing is left.

    Source
    ------
    sbatch's flags: https://slurm.schedmd.com/sbatch.html
    """
    choice = settings.choose(target)
    text, name = _read(script)
    text = with_shell(text, shell, choice.shell)
    line = flag_table.parse(_split(flags, "flags") if isinstance(flags, str) else [str(word) for word in flags])
    if directory is not None:
        if any(flag.name == "chdir" for flag in line):
            raise BadUsage("directory= and --chdir say the same thing; give one of them")
        line += flag_table.parse([f"--chdir={os.fspath(directory)}"])
    head = flag_table.parse(directives.read(text))
    merged = flag_table.merge(line, head, os.environ)
    for key, value in (environment or {}).items():
        if not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
            raise BadUsage(f"environment: {key!r} is no name of a variable")
        if not isinstance(value, str) or "\0" in value:
            raise BadUsage(f"environment: {key} must be a text without NUL bytes, and {value!r} is none")
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise BadUsage(f"environment: {key} holds {value[error.start]!r}, which is no character") from None
    host = host or choice.host
    wlm = _name(executor) if executor is not None else wlm or choice.wlm or backend.default(merged, host)
    defaults = _defaults(choice, wlm)
    host = host or next((flag.value for flag in defaults if flag.name == "host"), None)
    url = _url(wlm, host, identity or choice.identity, choice.ssh_client) if executor is None else None
    wlm, chosen = executor_for(wlm, executor, config or backend.configuration(choice.executor_config), url)
    transport: Transport = getattr(chosen, "transport", None) or Local()
    there = _environment(transport)
    root = choice.root if transport.host is None else root_there(choice, transport.host, there)
    variables = {} if wlm in ("local", "ssh") else there  # nobody reads SBATCH_* variables where there is no sbatch
    merged = flag_table.merge(line, head, variables, [flag for flag in defaults if flag.name != "host"])
    psij_job = psij.Job()
    # What can begin at once is begun in a directory that is there already.
    plain = not (dry_run or put or _NOT_PLAIN & {flag.name for flag in merged}) and len(text) < _SHORT
    prompt = chosen if plain and isinstance(chosen, process.ProcessExecutor) else None
    where = prompt.directory(root, psij_job.id) if prompt else JobDir.new(root, psij_job.id)
    foreign = directives.foreign(text)
    read = foreign if wlm == "slurm" else ()
    try:
        psij_job.spec = make_spec(merged, where, name=name, native=native, environment=variables, foreign=read)
        notices = _check(psij_job.spec, wlm, chosen, merged, native, foreign)
    except BadUsage:
        if prompt:
            prompt.give_back(where)
        raise
    if isinstance(transport, Remote) and transport.notice:
        notices = (*notices, transport.notice)
    if dry_run:
        return DryRun(text, _preview(chosen, psij_job), psij_job.spec, notices, choice.prologue)
    if put and transport.host is None:
        raise BadUsage("--put goes with --host: a job of this machine finds the files where they are")
    if put:
        place = transfer.working_directory(psij_job.spec, transport)
        try:
            left_out = transfer.put(transport, [os.fspath(path) for path in put], place, progress)
        except TransportError as error:
            raise SubmissionFailed(f"nothing was submitted: {error}") from error
        notices = (*notices, *(f"--put left out {path}, which is neither file nor directory" for path in left_out))
    if wlm == "slurm":
        notices = (*notices, *_without_directory(psij_job.spec, merged, transport))
    private = {**choice.environment, **(environment or {})}
    new = where.files(text.encode(errors="surrogateescape"), private, choice.prologue)
    title = directives.first_command(text)
    uninterrupted(lambda: _submit(wlm, chosen, psij_job, title, new, transport), lambda: chosen.cancel(psij_job))
    tracker = tracker_for(chosen, transport)
    if not hasattr(chosen, "tracker"):
        tracker.register_job(psij_job)
    said = getattr(chosen, "messages", {}).pop(psij_job.id, "").splitlines()
    return Job(psij_job, wlm=wlm, host=transport.host, tracker=tracker, transport=transport, notices=(*notices, *said))


def backends() -> list[str]:
    """Names that ``wlm=`` takes."""
    return sorted({*_OURS, *(name for name in JobExecutor.get_executor_names() if name not in _OURS.values())})


def with_shell(text: str, shell: Optional[str], default: Optional[str] = None) -> str:
    """The script with the ``#!`` line that it is to have: the shell asked for, else its own, else the settings'."""
    if not text.strip():
        raise BadUsage("the script is empty: write the commands into the cell; %%execute? shows its options")
    if "\r\n" in text:
        raise BadUsage("the script has DOS line ends, which sbatch refuses; convert it (dos2unix)")
    if "\0" in text:
        raise BadUsage("the script holds a NUL byte; it must be text")
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise BadUsage(f"the script holds {text[error.start]!r}, which is no character") from None
    if text.startswith("\ufeff"):
        raise BadUsage("the script begins with a byte order mark, which sbatch refuses; save it as UTF-8 without one")
    stripped = text.lstrip("\n")
    own = stripped.startswith("#!")
    if not shell and own:
        return stripped if stripped.endswith("\n") else stripped + "\n"
    shell = (shell or default or settings.choose().shell).strip()
    words = _split(shell, "--shell")
    if not words:
        raise BadUsage("--shell is empty; give a program, with arguments if need be")
    if not (shell.startswith("/usr/bin/env -S ") or (words[0].startswith("/") and len(words) <= 2)):
        # the kernel takes all that stands behind the program for one argument; env parts it
        shell = f"/usr/bin/env {'-S ' if len(words) > 1 else ''}{shell}"
    body = stripped.partition("\n")[2] if own else text
    return f"#!{shell}\n{body}" + ("" if body.endswith("\n") else "\n")


def _split(text: str, what: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadUsage(f"{what}: {error} in {text!r}") from None


def _read(script: Union[str, os.PathLike[str]]) -> tuple[str, str]:
    """A script's text, and the name that sbatch would give the job."""
    if isinstance(script, str):
        if re.fullmatch(r"[^\s;|&<>()$]{1,255}", script) and Path(script).is_file() and not shutil.which(script):
            raise BadUsage(f"{script!r} is a file; to submit it say submit_script(Path({script!r}))")
        return script, NAMELESS
    path = Path(script)
    try:
        return path.read_bytes().decode(errors="surrogateescape"), path.name
    except OSError as error:
        raise BadUsage(f"the script {path} cannot be read: {error}") from error


def executor_for(
    wlm: Optional[str],
    executor: Optional[JobExecutor] = None,
    config: Optional[JobExecutorConfig] = None,
    url: Optional[str] = None,
) -> tuple[str, JobExecutor]:
    """The backend's name as we say it, and its executor; one instance each, as each polls by itself.

    Parameters
    ----------
    url
        ``ssh://machine``, for the backend of that machine.
    """
    if executor is not None:
        return _name(executor), executor
    wlm = wlm or settings.choose().wlm or backend.default(())
    psij_name = wlm[len("psij:") :] if wlm.startswith("psij:") else _OURS.get(wlm, wlm)
    if psij_name not in JobExecutor.get_executor_names():
        near = difflib.get_close_matches(wlm, backends(), n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise BackendUnavailable(f"there is no backend {wlm!r}; {hint} are {', '.join(backends())}, and psij:NAME")
    command = _COMMANDS.get(psij_name)
    if (
        url is None
        and command
        and not (backend.find_sbatch() if psij_name == "tracked-slurm" else shutil.which(command))
    ):
        raise BackendUnavailable(
            f"{wlm} needs {command}, and this machine's PATH has none. Run on a login node, or load the scheduler's "
            "module before Jupyter or IPython is started; --wlm=local runs the cell on this machine"
        )
    with _lock:
        key = (os.getpid(), psij_name, url, id(config))  # a fork has none of the threads of the one before
        if key not in _executors:
            try:
                _executors[key] = JobExecutor.get_instance(psij_name, url=url, config=config)
            except (ValueError, ImportError) as error:
                raise BackendUnavailable(f"{wlm}: {error}") from error
        return wlm if wlm in _OURS else f"psij:{psij_name}", _executors[key]


def machine(name: str) -> tuple[str, str]:
    """A host, or the host of a target, and its URL."""
    try:
        choice = settings.choose(name)
    except BadUsage:
        choice = settings.choose()
    host = choice.host or name
    url = _url("ssh", host, choice.identity, choice.ssh_client)
    assert url is not None
    return host, url


def _url(
    wlm: str, host: Optional[str], identity: Union[str, os.PathLike[str], None], client: Optional[str]
) -> Optional[str]:
    """Where a backend is, as PSI/J's executors take it; None for this machine."""
    if host is None:
        if wlm == "ssh":
            raise BadUsage("--wlm=ssh wants the machine: --host=machine, or host in a target")
        return None
    if wlm not in _OURS or wlm == "local":
        raise BackendUnavailable(
            f"{wlm} cannot be reached on {host}: over SSH there are {', '.join(sorted({*_OURS} - {'local'}))}; "
            "--wlm=ssh runs it there without a scheduler"
        )
    try:
        address = parse_host(host)
    except ValueError as error:
        raise BadUsage(f"host: {error}") from None
    named = None if identity is None else os.path.abspath(os.path.expanduser(identity))
    return replace(address, identity=named, program=client == "program").url


def _environment(transport: Transport) -> Mapping[str, str]:
    try:
        return transport.environment
    except TransportError as error:
        raise BackendUnavailable(str(error)) from error


def root_there(choice: Choice, host: str, there: Mapping[str, str]) -> str:
    """The root of job directories on another machine: this one's settings name places of this one."""
    root = choice.root_there or there.get("EXECUTE_JOB_DIRECTORY") or "~/.execute_batch_scheduler"
    if root == "~" or root.startswith("~/"):
        root = there["HOME"] + root[1:]
    if not root.startswith("/"):
        raise BadUsage(f"job_directory = {root!r}: on {host} it must begin with / or ~/")
    return root


def _name(executor: JobExecutor) -> str:
    """What we call the backend of an executor."""
    ours = {psij_name: name for name, psij_name in _OURS.items()}
    return ours.get(executor.name, f"psij:{executor.name}")


def _defaults(choice: Choice, wlm: str) -> list[Flag]:
    """The default flags for a backend."""
    short = wlm[len("psij:") :] if wlm.startswith("psij:") else wlm
    names = {wlm} if short in _OURS else {short, f"psij:{short}"}
    return choice.default_flags(names, lambda: choice.wlm or backend.found() or "local") + choice.default_outputs(names)


def _check(
    spec: JobSpec, wlm: str, executor: JobExecutor, flags: Sequence[Flag], native: Sequence[str], foreign: Sequence[str]
) -> tuple[str, ...]:
    """Refuse what a backend cannot be told; what it will not heed is said in one line."""
    if wlm in ("local", "ssh"):
        if native:
            raise BadUsage(f"native options ({native[0]} ...) need a scheduler, and --wlm={wlm} has none")
        unknown = next((flag for flag in flags if flag.option is None), None)
        if unknown:
            raise BadUsage(f"{unknown.word}: no such option; {flag_table.suggest(unknown.name)}".rstrip("; "))
        check_alone(flags)
        idle = [*(flag.word for flag in flags if flag.name not in WITHOUT_SCHEDULER | HONOURED), *foreign]
        return (f"Without a scheduler these have no effect: {' '.join(idle)}",) if idle else ()
    if wlm.startswith("psij:"):
        if foreign:
            what = f"{wlm} does not read {foreign[0]!r}"
            raise BadUsage(f"{what}: PSI/J writes the submit file; say it as a flag of sbatch's")
        check_stock(spec, flags, native, executor.name)
    return ()


def _without_directory(spec: JobSpec, flags: Sequence[Flag], transport: Transport) -> list[str]:
    """Slurm takes a job whose output cannot be opened, and fails it when it starts, maybe hours later."""
    said = {flag.word: os.path.dirname(flag.value or "") for flag in flags if flag.name in ("output", "error")}
    said = {word: folder for word, folder in said.items() if folder and not re.search(r"[%\\]|^/+dev(/|$)", folder)}
    try:
        base = os.getcwd() if transport.host is None else transport.environment["HOME"]
        places = {word: os.path.join(base, process.said_directory(spec), folder) for word, folder in said.items()}
        test = "\n".join(f"[ -d {shlex.quote(place)} ] || echo {shlex.quote(word)}" for word, place in places.items())
        missing = transport.script(test, timeout=_LOOK_TIMEOUT).stdout.splitlines() if places else []
    except (TransportError, OSError):  # this was for a notice only
        return []
    where = f" on {transport.host}" if transport.host else ""
    return [
        f"{word}: there is no directory {os.path.normpath(place)}{where}; if the node has none, the job will fail"
        for word, place in places.items()
        if word in missing
    ]


def _submit(
    wlm: str, executor: JobExecutor, job: psij.Job, title: str, new: NewDirectory, transport: Transport
) -> None:
    """Note the job, make its directory, submit it, note its id. Of a job that was refused nothing is left."""
    where, made = JobDir(new.path), False
    try:
        _note(wlm, executor, job, title, where, transport)
        if isinstance(executor, process.ProcessExecutor):
            executor.submit_new(job, new)
        else:
            transport.create(new)
            made = True
            executor.submit(job)
    except OutcomeUnknown as error:
        raise SubmissionFailed(
            f"{error}\nDo not run it again before you know: attach({job.id!r}) and jobs() look it up"
        ) from error
    except BaseException as error:
        if not isinstance(error, FileExistsError):  # what is there already is another's
            _remove(where, transport)
        _note_as_far_as_possible(job, removed=True)
        if isinstance(error, OSError) and not made:
            raise SubmissionFailed(
                f"the job directory {where.path} could not be made ({error.strerror}); nothing was submitted. Set "
                "job_directory (or $EXECUTE_JOB_DIRECTORY) to a directory that you can write and that compute nodes see"
            ) from error
        if isinstance(error, TransportError):
            raise SubmissionFailed(f"nothing was submitted: {error}") from error
        if isinstance(error, (psij.SubmitException, psij.InvalidJobException)):
            raise SubmissionFailed(_refusal(executor, job, str(error))) from error
        raise
    _note_as_far_as_possible(job, native_id=job.native_id)


def _note_as_far_as_possible(job: psij.Job, **known: object) -> None:
    """A job that runs is not given up because the journal cannot be written now; jobs() looks its number up."""
    try:
        journal.note(job.id, **known)
    except OSError as error:
        logger.warning("job %s: the journal %s cannot be written: %s", job.native_id, journal.folder(), error)


def _remove(where: JobDir, transport: Transport) -> None:
    """Leave nothing of a job that was not submitted; a machine that is away keeps a directory that harms nobody."""
    try:
        transport.remove([where.path])
    except TransportError as error:
        logger.info("%s: the job directory %s could not be removed: %s", transport.host, where.path, error)


def _note(wlm: str, executor: JobExecutor, job: psij.Job, title: str, where: JobDir, transport: Transport) -> None:
    assert job.spec is not None
    ours = (where.stdout, where.stderr)
    out, err = (str(path) if str(path) in ours else None for path in (job.spec.stdout_path, job.spec.stderr_path))
    try:
        journal.note(
            job.id,
            wlm=wlm,
            host=transport.host,
            url=getattr(executor, "url", None),
            executor=executor.name,
            name=None if job.spec.name == job.spec.executable else job.spec.name,  # PSI/J's way of saying none
            title=title[:_TITLE],
            directory=where.path,
            chdir=None if job.spec.directory is None else str(job.spec.directory),
            stdout=out,
            stderr=err,
        )
    except OSError as error:
        raise psij.SubmitException(
            f"the journal {journal.folder()} cannot be written ({error.strerror}), so the job could be lost; "
            "set $EXECUTE_JOURNAL to a directory that you can write"
        ) from error


def _refusal(executor: JobExecutor, job: psij.Job, message: str) -> str:
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, message)]
    unknown = re.search(r"unrecognized option '--([\w-]+)", message)
    if unknown:
        hints.append(flag_table.suggest(unknown[1]))
    parts = [f"the job was not submitted:\n{message.strip()}", *(f"Hint: {hint}" for hint in hints if hint)]
    command = _preview(executor, job)
    where = JobDir.of(job.spec)
    for folder in (where and where.path, str(getattr(executor, "work_directory", "") or "")):
        command = command.replace(folder, "...") if folder else command  # nothing of it is left
    return "\n".join([*parts, f"The command was: {command}"])


def _preview(executor: JobExecutor, job: psij.Job) -> str:
    assert job.spec is not None
    if isinstance(executor, BatchSchedulerExecutor):
        return shlex.join(executor.get_submit_command(job, executor.work_directory / f"{job.id}.job"))
    if isinstance(executor, process.ProcessExecutor):
        return process.start_script(job.spec).rstrip()
    return f"{shlex.join([job.spec.executable or '', *(job.spec.arguments or [])])}  # through PSI/J's {executor.name}"


def tracker_for(executor: JobExecutor, transport: Transport) -> Tracker:
    """The tracker of an executor; PSI/J's own get one."""
    tracker: Optional[Tracker] = getattr(executor, "tracker", None)
    if tracker is not None:
        return tracker
    with _lock:
        tracker = _trackers.get(executor)
        if tracker is None:
            tracker = _trackers[executor] = stock.track(executor, transport)
        return tracker


def uninterrupted(action: Callable[[], object], undo: Callable[[], object] = lambda: None) -> None:
    """Do what must not stop halfway. A signal in the middle of it counts when it is done; one that raises undoes it."""
    if threading.current_thread() is not threading.main_thread():  # which no handler interrupts
        action()
        return
    handlers = {one: handler for one in _SIGNALS if callable(handler := signal.getsignal(one))}
    caught: list[int] = []
    for one in handlers:
        signal.signal(one, lambda number, _: caught.append(number))
    try:
        action()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    try:
        for number in caught:
            handlers[signal.Signals(number)](number, None)
    except BaseException:
        uninterrupted(undo)
        raise
