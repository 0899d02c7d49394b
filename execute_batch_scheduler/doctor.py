"""``python -m execute_batch_scheduler doctor``: what is here, what is not, and what to do about it."""

from __future__ import annotations

import concurrent.futures
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Optional
from uuid import uuid4

from execute_batch_scheduler.errors import BadUsage, ExecuteError
from execute_batch_scheduler.settings import settings

if TYPE_CHECKING:
    from execute_batch_scheduler.adapters.transport import Transport

_SCHEDULERS = {"slurm": ["sbatch", "--version"], "pbs": ["qsub", "--version"], "oar": ["oarsub", "--version"]}
_PATIENCE = 15  # seconds
_SKEW = 120  # seconds; more makes times of jobs confusing
_NEEDED = (
    "bash",
    "cat",
    "dd",
    "du",
    "find",
    "head",
    "mkdir",
    "ps",
    "readlink",
    "rm",
    "setsid",
    "stat",
    "tail",
    "truncate",
)
Finding = tuple[bool, str]


def examine(submit: bool, host: Optional[str] = None) -> Iterator[Finding]:
    """Findings one by one: whether it is well, and what to say.

    Parameters
    ----------
    submit
        Whether to run a small job on the default backend, to see whether its node sees the job directory.
    host
        Another machine, or a target, to examine that.
    """
    if host is not None:
        yield from _there(host, submit)
        return
    yield True, f"Python {sys.version.split()[0]}, " + ", ".join(map(_version, ("psij-python", "ipython", "paramiko")))
    found = list(_schedulers())
    yield from found
    if not found:
        yield True, "no scheduler is found: cells run on this machine (--wlm=local)"
    yield _bash()
    read = list(_settings())
    yield from read
    if not read[-1][0]:
        return
    yield _root()
    if submit:
        yield _submit()


def main(submit: bool, host: Optional[str] = None) -> int:
    """Print the findings; the exit code is 1 if anything is not well."""
    well = True
    for good, text in examine(submit, host):
        print(f"{'ok ' if good else 'BAD'}  {text}", flush=True)
        well = well and good
    return 0 if well else 1


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is missing"


def _schedulers() -> Iterator[Finding]:
    from execute_batch_scheduler import backend  # not above: it imports PSI/J

    for name, command in _SCHEDULERS.items():
        on_path = shutil.which(command[0])
        path = backend.find_sbatch() if name == "slurm" else on_path
        if path:
            good, said = _asked(command)
            how = "" if on_path else " (PATH lacks it, a login shell has it)"
            yield good, f"{name}: {path}{how}, {said}" + ("" if good else "; ask the site's administrators")
            if good and name == "slurm":
                yield _controller()


def _controller() -> Finding:
    _, said = _asked(["scontrol", "ping"])
    up = " is UP" in said
    return up, f"slurm: {said}" + ("" if up else "; until it is up again --wlm=local runs jobs on this machine")


def _asked(command: list[str]) -> Finding:
    """Whether a command succeeds, and the line of its answer that tells most."""
    from execute_batch_scheduler.adapters.transport import Local, TransportError

    try:
        result = Local().run(command, timeout=_PATIENCE)
    except TransportError as error:
        return False, str(error)
    good = result.exit_code == 0
    lines = [
        line for line in (result.stdout + result.stderr).splitlines() if line.strip() and not line.startswith("*")
    ] or ["it says nothing"]
    return good, lines[0 if good else -1].strip()


def _bash() -> Finding:
    good = Path("/bin/bash").exists()
    return good, "/bin/bash is there" if good else "/bin/bash is missing; jobs cannot be run here"


def _settings() -> Iterator[Finding]:
    """What is set, and where."""
    from execute_batch_scheduler import backend  # not above: it imports PSI/J

    try:
        places, choice = settings.places(), settings.choose()
    except BadUsage as error:
        yield False, f"settings: {error}"
        return
    files = ", ".join(place.name for place in places if place.file and Path(place.name).exists())
    targets = ", ".join(sorted({name for place in places for name in place.values.get("targets", {})}))
    yield True, f"settings, but for IPython's: {files or 'there is no file'}; targets: {targets or 'none'}"
    named = [place.name for place in places if place.values.get("wlm")]
    wlm = choice.wlm or backend.found() or "local"
    yield True, f"default backend: {wlm}, " + (f"as {named[-1]} says" if named else "as found on this machine")
    tables = [place.values["flags"] for place in places if isinstance(place.values.get("flags"), Mapping)]
    for name in sorted({wlm, *(name for table in tables for name in table)}):
        flags = choice.default_flags([name], lambda: wlm)
        if flags:
            yield True, f"default flags for {name}: {shlex.join(flag.word for flag in flags)}"


def _root() -> Finding:
    root = Path(settings.root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = root / f"probe-{uuid4().hex}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        return False, f"job directory {root}: {error.strerror}; set job_directory or $EXECUTE_JOB_DIRECTORY to another"
    free = shutil.disk_usage(root).free >> 20
    return True, f"job directory {root} can be written, {free:,} MB free"


def _there(name: str, submit: bool) -> Iterator[Finding]:
    """What is on another machine, as a job finds it."""
    from execute_batch_scheduler.adapters import ssh
    from execute_batch_scheduler.adapters.transport import TransportError
    from execute_batch_scheduler.submit import machine, root_there

    try:
        host, url = machine(name)
        transport = ssh.transport(url)
        began = time.monotonic()
        there = transport.environment
        took, began = time.monotonic() - began, time.monotonic()
        transport.texts([])
        yield True, f"{host}: reached in {took:.1f} s, a round trip takes {(time.monotonic() - began) * 1e3:.0f} ms"
        missing = _shell(
            transport, f'for name in {" ".join(_NEEDED)}; do type -P "$name" >/dev/null || echo "$name"; done'
        )
        lacking = ", ".join(missing) + (" is" if len(missing) == 1 else " are") + " missing; jobs cannot be run there"
        yield not missing, f"{host}: {lacking if missing else 'all that jobs need is there'}"
        ahead = int(_shell(transport, "date +%s")[0]) - int(time.time())
        skew = f"is {abs(ahead)} s {'ahead' if ahead > 0 else 'behind'}" if abs(ahead) > 1 else "agrees with ours"
        yield abs(ahead) < _SKEW, f"{host}: its clock {skew}"
        backends = []
        for wlm, command in _SCHEDULERS.items():
            path = _shell(transport, f"type -P {command[0]}")
            if path:
                result = transport.run(command, timeout=_PATIENCE)
                good = result.exit_code == 0
                backends += [wlm] if good else []
                text = (result.stdout if good else result.stderr).strip().splitlines() or ["it says nothing"]
                yield good or wlm != "slurm", f"{host}: {wlm}: {path[0]}, {text[0 if good else -1]}"
        yield True, f"{host}: cells run there by {' or '.join(f'--wlm={wlm}' for wlm in [*backends, 'ssh'])}"
        root = root_there(settings.choose(None if name == host else name), host, there)
        said = _shell(
            transport,
            f"umask 077; mkdir -p {shlex.quote(root)} && cd {shlex.quote(root)} && : >probe-$$ && rm probe-$$ && "
            'df -Pm . | tail -n 1 | { read -r _ _ _ free _; echo "$free"; }',
        )
        well = bool(said) and said[-1].isdigit()
        what = f"can be written, {int(said[-1]):,} MB free" if well else f"cannot be written: {' '.join(said)}"
        yield well, f"{host}: job directory {root} {what}"
        if submit:
            yield _submit(wlm=backends[0] if backends == ["slurm"] else "ssh", host=host)
    except (TransportError, ExecuteError) as error:
        yield False, str(error)


def _shell(transport: Transport, script: str) -> list[str]:
    """The lines that a script prints over there."""
    result = transport.script(script, timeout=_PATIENCE)
    return (result.stdout or result.stderr).splitlines()


def _submit(wlm: Optional[str] = None, host: Optional[str] = None) -> Finding:
    from execute_batch_scheduler.submit import submit_script

    try:
        job = submit_script("hostname", wlm=wlm, host=host)
        node = job.result(timeout=600).strip()
    except ExecuteError as error:
        return False, f"a small job: {error}"
    except concurrent.futures.TimeoutError:
        return False, f"a small job has not run within 10 minutes: {job!r}, {job.reason or 'no reason is known'}"
    return True, f"a small job ({job!r}) ran on {job.details.nodes or node}, which sees the job directory"
