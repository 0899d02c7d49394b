"""The cell magic ``%%execute``: parse the line, call submit_script, show what happens. The only file with IPython."""

from __future__ import annotations

import difflib
import getpass
import os
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any, Optional

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.utils.text import DollarFormatter
from traitlets import Any as AnyTrait, Bunch, Dict, Enum, Unicode, Union as TraitUnion, observe

from execute_batch_scheduler import display, flags as flag_table
from execute_batch_scheduler.errors import (
    BadUsage,
    ConnectionLost,
    ExecuteError,
    Interrupted,
    JobError,
    SubmissionFailed,
)
from execute_batch_scheduler.flags import NONE, REQUIRED, Flag, Option
from execute_batch_scheduler.settings import settings

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from execute_batch_scheduler.job import Job

_OWN = {
    option.name: option
    for option in (
        Option("wlm", REQUIRED, group="wlm"),
        Option("workloadmanager", REQUIRED, group="wlm"),
        Option("target", REQUIRED),
        Option("host", REQUIRED),
        Option("user", REQUIRED),
        Option("port", REQUIRED),
        Option("identity", REQUIRED),
        Option("put", REQUIRED),
        Option("get", REQUIRED),
        Option("shell", REQUIRED),
        Option("bg", NONE),
        Option("amgr", REQUIRED),
        Option("jobid", REQUIRED),
        Option("pid", REQUIRED),
        Option("out", REQUIRED),
        Option("err", REQUIRED),
        Option("no-raise-error", NONE),
        Option("dry-run", NONE),
        Option("no-stream", NONE),
    )
}
_TO_FILL_IN = re.compile(r"\{\{|\}\}|\$\$|\$\{\w+\}|\{[^{}]+\}|\$[A-Za-z_]\w*(\.\w+)*")
_VARIABLES = ("amgr", "jobid", "pid", "out", "err")
_MOST_IN_NOTEBOOK = 60_000  # bytes from head and tail of each stream: saved lines cost more, and stay below 1 MB
_HANDLE = "_execute_job"  # the last job's handle, whatever else was asked for
_PATIENCE = 1.0  # seconds before a job is said to wait: most start sooner


@magics_class
class ExecuteMagics(Magics):
    """Options of ``%%execute``, as ``c.ExecuteMagics.NAME`` in ipython_config.py or ``%config ExecuteMagics.NAME``."""

    shell: InteractiveShell  # never None: the magics are made for a shell

    wlm = Unicode(None, allow_none=True, help="The backend where a cell names none; None finds one.").tag(config=True)
    default_shell = Unicode(None, allow_none=True, help="What runs a cell that has no #! line.").tag(config=True)
    job_directory = Unicode(None, allow_none=True, help="The root of job directories; compute nodes must see it.").tag(
        config=True
    )
    on_interrupt = Enum(
        ["cancel", "detach"],
        None,
        allow_none=True,
        help="What Ctrl-C does to the job: cancel it, or leave it running.",
    ).tag(config=True)
    flags: TraitUnion = TraitUnion(
        [Unicode(), Dict()],
        default_value=None,
        allow_none=True,
        help="Default flags: for the default backend, or a dict by backend.",
    ).tag(config=True)
    ssh_client = Enum(
        ["paramiko", "program"],
        None,
        allow_none=True,
        help="What connects to other machines: paramiko, or the ssh program.",
    ).tag(config=True)
    executor_config = AnyTrait(None, help="A PSI/J configuration for the executor, or a dict of its attributes.").tag(
        config=True
    )

    @observe("wlm", "default_shell", "job_directory", "on_interrupt", "ssh_client", "flags", "executor_config")
    def _settle(self, change: Bunch) -> None:
        setattr(settings, "shell" if change.name == "default_shell" else change.name, change.new)

    @no_var_expand
    @cell_magic
    def execute(self, line: str, cell: str) -> Optional[Job]:
        """Run the cell as a batch job.

        ::

            %%execute [--wlm=NAME] [--bg] [...] [any flag of sbatch's] [-- native options]

        --wlm=NAME             slurm, local, psij:NAME; also --workloadmanager. Default: Slurm where it is, else here
        --target=NAME          a target of the settings files: a backend with its flags, environment and so on
        --host=MACHINE         run it there by SSH, or by the scheduler behind that login; as [user@]machine[:port]
        --user, --port, --identity=FILE   for --host, where the ssh configuration does not say them
        --put PATH ...         copy files to --host before
        --get PATTERN ...      copy files from --host when the job has ended
        --shell=SHELL          what runs the cell, with arguments if need be; default: the cell's #! line, or bash
        --bg                   do not wait; returns the handle
        --amgr=VAR             put the handle into VAR, at once
        --jobid=VAR --pid=VAR  put the job's number, the process id, into VAR
        --out=VAR --err=VAR    put the output into VAR instead of showing it; with --bg, something to read it from
        --no-raise-error       do not raise if the job fails
        --dry-run              show script, command and JobSpec; submit nothing
        --no-stream            show the output when the job has ended

        All other flags are sbatch's: -n8 -N4 --time=10 --mem=4G. {expression} and $name in the line are filled in
        from the notebook's variables; the cell is left as it is. Ctrl-C cancels the job.
        """
        try:
            return self._execute(line, cell)
        except BadUsage as error:
            raise UsageError(f"{error}{_meant(line)}") from None
        except SubmissionFailed as error:
            error.args = (f"{error}{_meant(line)}",)
            raise

    @line_magic
    def execute_jobs(self, line: str) -> Any:
        """List jobs: ``%execute_jobs [--since=2d] [--state=FAILED] [--wlm=ssh] [--host=login1]``."""
        from execute_batch_scheduler.history import jobs

        words, options = _options(line, "since", "state", "wlm", "host")
        if words:
            raise UsageError(f"{words[0]}: %execute_jobs takes options only; %execute_info shows one job")
        return jobs(**options)

    @line_magic
    def execute_attach(self, line: str) -> Job:
        """Show a job's output so far and follow it to its end; returns the handle. Ctrl-C ends the following alone.

        ``%execute_attach ID [--wlm=slurm] [--host=machine]``; the options tell numbers apart that are alike. So they do
        in %execute_output, %execute_info and %execute_cancel.
        """
        job = _attached(line)
        self.shell.push({_HANDLE: job})
        print(display.attached(job))
        _Cell(self, job, {"no-raise-error": ""}, on_interrupt="detach").follow()
        if job.exception() is not None:
            print(display.failure(job, [], None))
        return job

    @line_magic
    def execute_output(self, line: str) -> None:
        """Show a job's output so far: ``%execute_output ID``."""
        job = _attached(line)
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            reader = job.open(name, _MOST_IN_NOTEBOOK if hasattr(self.shell, "kernel") else None)
            reader.finish()  # all that is there now
            if reader.gone():
                print(f"{name} is gone: there is no {getattr(job.paths, name)}", file=sys.stderr)
            while text := reader.read():
                stream.write(text)
            stream.write(reader.rest())

    @line_magic
    def execute_info(self, line: str) -> Job:
        """Show all that is known of a job: ``%execute_info ID``; returns the handle."""
        job = _attached(line)
        if not hasattr(self.shell, "kernel"):  # a notebook shows the handle as a table
            print("\n".join(f"{name:9}  {value}" for name, value in display.facts(job).items()))
        return job

    @line_magic
    def execute_cancel(self, line: str) -> None:
        """Cancel jobs: ``%execute_cancel ID ...``."""
        failures = []
        numbers, options = _numbers(line)
        for number in numbers:
            try:
                job = _attach(number, options)
                print(f"Terminate job {job.native_id}" if job.cancel() else f"{job!r} has ended already")
            except ExecuteError as error:  # the others are cancelled all the same
                failures.append(error)
        if failures:
            raise ExecuteError("\n".join(map(str, failures)))

    @line_magic
    def execute_login(self, line: str) -> None:
        """Log in where a password or code is asked for: ``%execute_login [user@]machine[:port]``, or a target."""
        from execute_batch_scheduler.adapters import ssh
        from execute_batch_scheduler.adapters.transport import TransportError
        from execute_batch_scheduler.submit import machine

        host, url = machine(_one(line))
        try:
            ssh.login(url, _ask)
        except TransportError as error:
            raise UsageError(str(error)) from None
        except KeyboardInterrupt:
            raise UsageError(f"not logged in to {host}") from None
        print(f"Logged in to {host}; cells reach it until this kernel ends, or until %execute_logout {line.strip()}")

    @line_magic
    def execute_logout(self, line: str) -> None:
        """Let the connection to a machine go: ``%execute_logout [user@]machine[:port]``; its jobs go on."""
        from execute_batch_scheduler.adapters import ssh
        from execute_batch_scheduler.submit import machine

        host, url = machine(_one(line))
        print(f"Logged out of {host}" if ssh.logout(url) else f"There was no connection to {host}")

    @line_magic
    def execute_clean(self, line: str) -> None:
        """Remove what ended jobs left: ``%execute_clean --older=30d``."""
        from execute_batch_scheduler.history import clean

        older = _options(line, "older")[1].get("older")
        if older is None:
            raise UsageError("%execute_clean wants an age, as in --older=30d")
        count, freed = clean(older)
        print(f"{count} jobs removed, {freed / 1e6:,.1f} MB freed")

    def _execute(self, line: str, cell: str) -> Optional[Job]:
        own, scheduler, native, files = self._parse(line)
        if files["get"] and "bg" in own:
            raise BadUsage("--get waits for the job, and --bg does not; say handle.get(PATTERN) when it has ended")
        from execute_batch_scheduler.submit import submit_script

        given: dict[str, Any] = {name: own.get(name) for name in ("wlm", "target", "identity", "shell")}
        given["host"] = _host(own)
        if "dry-run" in own:
            plan = submit_script(cell, scheduler, native=native, dry_run=True, **given)
            print("\n".join([*plan.notices, str(plan)]))
            return None
        with _Bar("put") as bar:
            job: Job = submit_script(cell, scheduler, native=native, put=files["put"], progress=bar, **given)
        for notice in job.notices:
            print(notice)
        self._publish(own, job)
        if "bg" in own:
            hint = "" if "amgr" in own or "out" in own else f"; its handle is {_HANDLE}, or next time --amgr=VAR"
            print(display.submitted(job) + hint)
            return job
        failure = None
        try:
            _Cell(self, job, own).run()
        except JobError as error:
            failure = error  # what it left is copied all the same
        if files["get"] and job.host is None:
            print("--get: the job ran on this machine, so its files are here already")
        elif files["get"]:
            try:
                with _Bar("get") as bar:
                    job.get(*files["get"], progress=bar)
            except ExecuteError as error:
                error.args = (f"{error}\nTo try again: {own.get('amgr', _HANDLE)}.get(PATTERN)",)
                if failure is None:
                    raise
                print(error)
        if failure is not None:
            raise failure
        return None

    def _parse(self, line: str) -> tuple[dict[str, str], list[str], list[str], dict[str, list[str]]]:
        """Our own options by name, sbatch's words, native words, and the files to copy."""
        values: list[str] = []

        def set_aside(match: re.Match[str]) -> str:  # so that a value with spaces stays one word, whatever it holds
            values.append(self._value(match[0]))
            return f"\ue000{len(values) - 1}\ue001"

        try:
            words = shlex.split(_TO_FILL_IN.sub(set_aside, line))
        except ValueError as error:
            raise BadUsage(f"{error} in: {line}") from None
        words = [re.sub("\ue000(\\d+)\ue001", lambda match: values[int(match[1])], word) for word in words]
        native: list[str] = []
        if "--" in words:
            at = words.index("--")
            words, native = words[:at], words[at + 1 :]
        files = {name: _lists(words, f"--{name}") for name in ("put", "get")}
        parsed = flag_table.parse(words, {**flag_table.SBATCH, **_OWN})
        own = {flag.option.group or flag.name: flag.value or "" for flag in parsed if flag.option and _is_own(flag)}
        for name in _VARIABLES:
            if name in own and not own[name].isidentifier():
                hint = {"out": "; for a file use --output", "err": "; for a file use --error"}.get(name, "")
                raise BadUsage(f"--{name} wants the name of a variable, and {own[name]!r} is none{hint}")
        return own, [flag.word for flag in parsed if not _is_own(flag)], native, files

    def _value(self, words: str) -> str:
        """Of {expression} or $name from the notebook's variables; $NAME from the environment too."""
        names = {**os.environ, **self.shell.user_ns}
        try:
            return str(DollarFormatter().vformat(re.sub(r"^\$\{(.*)\}$", r"$\1", words), (), names))
        except NameError as error:
            missing = re.search(r"'(.*)'", str(error))
            what = f"{missing[1] if missing else error} is not defined, and {words} needs it"
        except Exception as error:
            what = f"{words} cannot be filled in: {error}"
        raise BadUsage(what + ("; a brace is written {{" if "{" in words else ""))

    def _publish(self, own: dict[str, str], job: Job) -> None:
        """Put into the namespace what was asked for, while the job runs."""
        background = "bg" in own
        values: dict[str, Any] = {
            "amgr": job,
            "jobid": job.native_id,
            "pid": int(job.native_id) if job.native_id.isdigit() else job.native_id,
            "out": job.open("stdout") if background else None,
            "err": job.open("stderr") if background else None,
        }
        self.shell.push({_HANDLE: job})
        self.shell.push({own[name]: values[name] for name in _VARIABLES if name in own and values[name] is not None})


def _lists(words: list[str], option: str) -> list[str]:
    """Take an option that has any number of values out of the words, and give these."""
    values = []
    while (at := next((at for at, word in enumerate(words) if word.partition("=")[0] == option), None)) is not None:
        end = at + 1
        while end < len(words) and not words[end].startswith("-"):
            end += 1
        given = [*filter(None, [words[at].partition("=")[2]]), *words[at + 1 : end]]
        if not given:
            raise BadUsage(f"{option} wants the names of files")
        values += given
        del words[at:end]
    return values


class _Bar:
    """The progress of copying, at most ten times a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = 0.0
        self._names: set[str] = set()
        self._total = 0

    def __call__(self, name: str, done: int, total: int) -> None:
        self._names.add(name)
        self._total = total
        if time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            sys.stdout.write("\r" + display.progress(self._what, name, done, total))
            sys.stdout.flush()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._names and kind is None:
            print("\r" + display.copied(self._what, len(self._names), self._total))
        elif self._names:
            sys.stdout.write("\r" + " " * 90 + "\r")  # what comes says how far it got


def _host(own: dict[str, str]) -> Optional[str]:
    """The machine with what else was said of it."""
    host = own.get("host")
    if host == "":
        raise BadUsage("--host is empty; say [user@]machine[:port]")
    if host is None and own.keys() & {"user", "port", "identity"}:
        raise BadUsage("--user, --port and --identity go with --host")
    if host and "user" in own:
        host = f"{own['user']}@{host.rpartition('@')[2]}"
    if host and "port" in own:
        host = f"{host}:{own['port']}"
    return host


def _meant(line: str) -> str:
    """A hint where a line holds what looks like a misspelt option of the cell's own."""
    names = re.findall(r"(?<!\S)--([a-z][\w-]*)", line.partition(" -- ")[0])
    known = {**flag_table.SBATCH, **_OWN}
    for name in names:
        near = None if flag_table.find(name, known) else difflib.get_close_matches(name, list(known), n=1)
        if near and near[0] in _OWN:
            return f"\nHint: --{name}: did you mean --{near[0]}, an option of the cell? %%execute? shows them"
    return ""


def _is_own(flag: Flag) -> bool:
    return flag.option is not None and _OWN.get(flag.name) is flag.option


def _one(line: str) -> str:
    words = line.split()
    if len(words) != 1:
        raise UsageError("one machine, please: [user@]machine[:port], or a target")
    return words[0]


def _ask(prompt: str, shown: bool) -> str:
    """What the user types, in a notebook or a terminal."""
    return input(prompt) if shown else getpass.getpass(prompt)


def _attached(line: str) -> Job:
    """The handle of the job that a line names."""
    numbers, options = _numbers(line)
    if len(numbers) > 1:
        raise UsageError("one job, please: %execute_jobs lists them")
    return _attach(numbers[0], options)


def _attach(number: str, options: dict[str, str]) -> Job:
    from execute_batch_scheduler.history import attach

    return attach(number, wlm=options.get("wlm"), host=options.get("host"))


def _numbers(line: str) -> tuple[list[str], dict[str, str]]:
    """The jobs that a line names, and what tells them apart."""
    numbers, options = _options(line, "wlm", "host")
    if not numbers:
        raise UsageError("which job? %execute_jobs lists them")
    return numbers, options


def _options(line: str, *names: str) -> tuple[list[str], dict[str, str]]:
    """The words of a line, and its options."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{error} in: {line}") from None
    own = {name: Option(name, REQUIRED) for name in names}
    flags = flag_table.parse([word for word in words if word.startswith("-")], own)
    unknown = next((flag for flag in flags if flag.name not in names), None)
    if unknown:
        raise UsageError(f"{unknown.word}: there are {', '.join(f'--{name}=...' for name in names)}")
    return [word for word in words if not word.startswith("-")], {flag.name: flag.value or "" for flag in flags}


def _is_shutting_down(shell: InteractiveShell) -> bool:
    """Whether an interrupt is the beginning of a kernel's end: jupyter_client sends one before it asks for that.

    A closed kernel must not cost the job. The request comes some milliseconds behind the interrupt.
    """
    kernel = getattr(shell, "kernel", None)
    for _ in range(30 if kernel is not None else 0):
        if getattr(kernel, "_shutdown_message", None) is not None:
            return True
        time.sleep(0.01)
    return False


class _Cell:
    """A cell that waits: the progress line, the output, the end."""

    def __init__(
        self, magics: ExecuteMagics, job: Job, own: dict[str, str], on_interrupt: Optional[str] = None
    ) -> None:
        self.magics, self.job, self.own = magics, job, own
        self.on_interrupt = on_interrupt or settings.choose().on_interrupt
        self._line = ""  # the progress line as it stands
        self._head = ""  # what it begins with
        self._since = 0.0
        self._over = False
        self._open_line = False  # the job's output so far ends within a line
        self._restarts = 0
        self._outage: Optional[float] = None  # the last one told of
        self._held: list[tuple[str, str]] = []
        self._quiet = {"stdout": "out" in own, "stderr": "err" in own}
        most = _MOST_IN_NOTEBOOK if hasattr(magics.shell, "kernel") else None
        self._streams = {name: job.open(name, most) for name in ("stdout", "stderr")}
        self._begun = time.monotonic()

    def run(self) -> None:
        """Show the job until it has ended; raise what it failed with."""
        print(display.submitted(self.job))
        self.follow()

    def follow(self) -> None:
        """Show the output, and the end."""
        try:
            try:
                self._show()
            except KeyboardInterrupt:
                self._interrupted()
        except Interrupted:  # told already
            raise
        except KeyboardInterrupt:
            self._end_line()
            fate = "it has been told to end" if self.job.cancelling else "the job goes on"
            name = self.own.get("amgr", _HANDLE)
            raise Interrupted(f"not waiting any longer; {fate}: {name} is {self.job!r}") from None
        texts = {"out": self.job.stdout, "err": self.job.stderr}
        self.magics.shell.push({self.own[name]: read() for name, read in texts.items() if name in self.own})
        if "no-raise-error" not in self.own:
            error = self.job.exception()
            if error is not None:
                if not self._quiet["stderr"]:  # the last lines stand just above
                    error.args = (display.failure(self.job, [], None),)
                raise error

    def _show(self) -> None:
        for name, text in self.job.follow(ticks=True, streams=self._streams):
            if not name or self._quiet[name]:
                self._progress()
                self._tell_outage()
            elif "no-stream" in self.own:
                self._held.append((name, text))
            else:
                self._finish_progress()
                self._tell_restarts(self._streams[name].restarts)
                self._write(name, text)
        self._finish_progress()
        self._end_output()
        print(display.ended(self.job))
        if "no-stream" in self.own:
            print()
            for name, text in self._held:
                self._write(name, text)
            self._end_output()

    def _write(self, name: str, text: str) -> None:
        stream = {"stdout": sys.stdout, "stderr": sys.stderr}[name]
        stream.write(text)
        stream.flush()
        self._open_line = not text.endswith("\n")

    def _tell_outage(self) -> None:
        """Silence is told from a job that has nothing to say."""
        since = self.job.details.unanswered_since
        if since and since != self._outage and self.job.running():
            self._outage = since
            self._end_line()
            self._end_output()
            print(display.outage(self.job, since))

    def _tell_restarts(self, restarts: int) -> None:
        """Output of a job that was queued again is not mixed with what it wrote before."""
        if restarts > self._restarts:
            self._restarts = restarts
            self._end_output()
            print(f"--- the output of job {self.job.native_id} begins anew ---")

    def _end_output(self) -> None:
        """What comes now is not the job's: it begins a line."""
        if self._open_line:
            print()
            self._open_line = False

    def _progress(self, running: bool = False) -> None:
        """Let the progress line say how it is with the job."""
        if self._over:
            return
        running = running or self.job.running() or self.job.done()
        head = display.RUNNING if running else display.waiting(self.job)
        if head != display.RUNNING and time.monotonic() - self._begun < _PATIENCE:
            return
        if head != self._head and self._line and head.startswith(self._line):
            self._head = head  # only more is said
        elif head != self._head:
            self._end_line()
            self._head, self._line, self._since = head, "", time.monotonic()
        line = head + display.marks(time.monotonic() - self._since) if head == display.RUNNING else head
        sys.stdout.write(line[len(self._line) :])
        sys.stdout.flush()
        self._line = line

    def _finish_progress(self) -> None:
        """The job writes, or has ended: from here on there is no progress line."""
        if not self.job.done() or self.job.started is not None:
            self._progress(running=True)
        self._end_line()
        self._over = True

    def _end_line(self) -> None:
        if self._line:
            sys.stdout.write("\n")
            self._line = ""

    def _interrupted(self) -> None:
        """Ctrl-C: cancel, wait for the confirmation, show what there is. A second one, from the caller, ends that."""
        self._end_line()
        self._end_output()
        if self.on_interrupt == "detach" or _is_shutting_down(self.magics.shell):
            raise KeyboardInterrupt
        from execute_batch_scheduler.submit import uninterrupted

        print(f"Terminate job {self.job.native_id}")
        self._over = True
        try:
            uninterrupted(self.job.cancel)
        except (SubmissionFailed, ConnectionLost) as error:
            again = f"%execute_cancel {self.job.native_id} tries that again"
            raise Interrupted(
                f"it could not be cancelled, and goes on: {error}\n{again}; its handle is {_HANDLE}"
            ) from None
        self._show()


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext execute_batch_scheduler.execute_magic``."""
    shell.register_magics(ExecuteMagics(shell))


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics and their configuration away again."""
    for kind, names in ExecuteMagics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    magics = shell.magics_manager.registry.pop("ExecuteMagics", None)
    if magics in shell.configurables:
        shell.configurables.remove(magics)
