"""From flags to a psij.JobSpec. Pure.

A flag goes into PSI/J's field where there is one that means the same and can hold the value; else it becomes a custom
attribute: ``slurm.NAME`` with a value, and those without one together in ``native_arguments``, which PSI/J's own
templates pass over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Optional

from typeguard import suppress_type_checks

from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.slurm import DIRECTIVES, NATIVE_ARGUMENTS, literal_filename
from execute_batch_scheduler.directives import line_of
from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.flags import Flag, in_environment

from psij import InvalidJobException, JobAttributes, JobSpec, ResourceSpecV1

_COUNTS = {
    "nodes": "node_count",
    "ntasks": "process_count",
    "ntasks-per-node": "processes_per_node",
    "cpus-per-task": "cpu_cores_per_process",
    "gpus-per-task": "gpu_cores_per_process",
}
_ATTRIBUTES = {"partition": "queue_name", "account": "account", "reservation": "reservation_id"}
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?|(?P<clock>\d+(?::\d+){0,2}))")
_NO_LIMIT = re.compile(r"(?i)unlimited|infinite|-1")
_OURS = re.compile(r"/dev/(stdin|stdout|stderr|tty|fd/.*)$|/proc/(self|thread-self|\d+)/fd/")
_LONGEST_TIME = 12  # longer ones may be more than a timedelta holds

ANSWERS = {
    "array": "job arrays are not supported yet; submit one job per index, or run sbatch --array in a terminal",
    "help": "%%execute? shows the options of the cell; those of the scheduler: !sbatch --help",
    "usage": "%%execute? shows the options of the cell; those of the scheduler: !sbatch --usage",
    "version": "!sbatch --version tells",
    "wrap": "write the command into the cell",
    "test-only": "--dry-run shows what would be submitted; !sbatch --test-only asks Slurm when it would start",
}
"""Options that make no sense here, and what to do instead."""

HONOURED = {"wait", "parsable", "quiet"}
"""Options whose meaning is ours to give: whoever waits is told by the cell, and what is printed by the magic."""

WITHOUT_SCHEDULER = {"time", "chdir", "output", "error", "input", "job-name"}
"""Options that mean the same where no scheduler is."""


def make_spec(
    flags: Sequence[Flag],
    directory: JobDir,
    *,
    name: Optional[str] = None,
    native: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    foreign: Sequence[str] = (),
) -> JobSpec:
    """The specification of a job that runs our wrapper.

    Parameters
    ----------
    flags
        As merged, so each option is there once.
    directory
        The job's own.
    name
        Used unless the flags hold one.
    native
        Words for the scheduler's submit command as they are.
    environment
        Where a ``SBATCH_*`` variable speaks, no default of ours does.
    foreign
        Directives in another scheduler's language that sbatch reads too. They count before its own directives, so
        that all that is weaker than they must stand with them: only sbatch knows what they say.

    Raises
    ------
    BadUsage
        For an option that makes no sense in a cell.
    """
    executable, arguments = directory.command
    with suppress_type_checks():  # which mypy has done here, and which take as long as all else of a submission
        attributes = JobAttributes()
        spec = JobSpec(executable, arguments, resources=ResourceSpecV1(), attributes=attributes)
    attributes.duration = None  # type: ignore[assignment]  # the constructor forces 10 minutes on everybody
    words: list[str] = []
    head: list[str] = []
    for flag in flags:
        if flag.name in ANSWERS and flag.option:
            raise BadUsage(f"--{flag.name} makes no sense in a cell: {ANSWERS[flag.name]}")
        if flag.name in HONOURED:
            continue
        if flag.name in ("output", "error") and re.search(r"[\t\n]", flag.value or ""):
            raise BadUsage(f"--{flag.name}: {flag.value!r} holds a tab or a line's end, which file names here may not")
        if foreign and flag.weak:
            head.append(line_of(flag.word))
            continue
        if _fill_field(spec, flag):
            continue
        if flag.option is None or flag.value is None:
            words.append(flag.word)
        else:
            attributes.set_custom_attribute(f"slurm.{flag.name}", flag.value)
    for word in native:
        if re.match("--ar|-a", word):
            raise BadUsage(f"{word}: {ANSWERS['array']}")
    said = {flag.name for flag in flags} | {option.name for option in in_environment(environment)}
    if foreign:
        defaults = [f"--job-name={name}"] if name else []
        defaults.append(f"--output={literal_filename(directory.stdout)}")
        attributes.set_custom_attribute(DIRECTIVES, [*map(line_of, defaults), *head, *foreign])
        said |= {"job-name", "output"}
    if "job-name" not in said:
        spec.name = name
    if "output" not in said:
        spec.stdout_path = Path(directory.stdout)
    if "error" not in said and "output" not in said:
        spec.stderr_path = Path(directory.stderr)
    if words or native:
        attributes.set_custom_attribute(NATIVE_ARGUMENTS, [*words, *native])
    return spec


def _fill_field(spec: JobSpec, flag: Flag) -> bool:
    """Put a flag into the field that means the same; False if there is none, or it cannot hold the value."""
    name, value = flag.name, flag.value
    resources, attributes = spec.resources, spec.attributes
    assert isinstance(resources, ResourceSpecV1)
    assert attributes is not None
    if name in _COUNTS and value and re.fullmatch(r"[1-9]\d*", value):
        setattr(resources, _COUNTS[name], int(value))
        try:
            resources._check_constraints()
        except InvalidJobException:  # such as 8 tasks on 3 nodes: Slurm can
            setattr(resources, _COUNTS[name], None)
            resources._check_constraints()
            return False
        return True
    if name == "exclusive" and value is None:
        resources.exclusive_node_use = True
        return True
    if name == "time" and value and (duration := parse_time(value)):
        attributes.duration = duration
        return True
    if name in _ATTRIBUTES and value:
        setattr(attributes, _ATTRIBUTES[name], value)
        return True
    if name == "job-name" and value and value != spec.executable:  # PSI/J's way of saying that there is no name
        spec.name = value
        return True
    if name == "chdir" and value and str(Path(value)) == value:
        spec.directory = Path(value)
        return True
    if name == "input" and value and str(Path(value)) == value and not re.search(r"[%\\]", value):
        spec.stdin_path = Path(value)
        return True
    return False


def parse_time(text: str) -> Optional[timedelta]:
    """Sbatch's minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s; None for what a duration cannot say (UNLIMITED, 0)."""
    match = _TIME.fullmatch(text)
    if not match or len(text) > _LONGEST_TIME:
        return None
    if match["clock"] is None:
        parts = [int(match[name] or 0) for name in ("days", "dh", "dm", "ds")]
        duration = timedelta(days=parts[0], hours=parts[1], minutes=parts[2], seconds=parts[3])
    else:
        numbers = [int(part) for part in match["clock"].split(":")]
        if len(numbers) == 3:
            duration = timedelta(hours=numbers[0], minutes=numbers[1], seconds=numbers[2])
        else:
            duration = timedelta(minutes=numbers[0], seconds=[*numbers, 0][1])
    return duration or None


def check_alone(flags: Sequence[Flag]) -> None:
    """Refuse what sbatch would, or what has no meaning without it, before a job runs as its user has not meant it.

    Raises
    ------
    BadUsage
        Naming the first such flag.
    """
    for flag in flags:
        value = flag.value or ""
        if flag.name == "time" and not (_TIME.fullmatch(value) or _NO_LIMIT.fullmatch(value)):
            raise BadUsage(f"{flag.word} is no time: say minutes, or h:m:s, d-h, d-h:m:s")
        if flag.name in ("output", "error", "input", "chdir") and not value:
            raise BadUsage(f"{flag.word} names nothing; leave it out, or say what")
        if flag.name in ("output", "error", "input") and _OURS.match(re.sub("^/+", "/", os.path.normpath(value))):
            without = "the output is shown in any case" if flag.name != "input" else "a job has no terminal"
            raise BadUsage(f"{flag.word} would be a file of ours, not of the job: {without}; leave it out")


def check_stock(spec: JobSpec, flags: Sequence[Flag], native: Sequence[str], executor: str) -> None:
    """Refuse by name what PSI/J's own executors drop, or render so that it means something else.

    Raises
    ------
    BadUsage
        Naming the first such flag.
    """
    said = {flag.name for flag in flags}
    fields = (
        {"chdir", "input"} if executor == "local" else {*_COUNTS, *_ATTRIBUTES, "exclusive", "time", "chdir", "input"}
    )
    attributes = {name.partition(".")[2] for name in (spec.attributes and spec.attributes.custom_attributes) or {}}
    complaints = {}
    for flag in flags:
        name, value = flag.name, flag.value or ""
        rendered = executor == "slurm" and name in attributes - fields  # as a custom attribute of PSI/J's
        if name in HONOURED:
            continue
        if name in ("output", "error", "open-mode", "export", "job-name"):
            complaints[name] = "it sets that itself"
        elif name not in fields and not rendered:
            complaints[name] = "it has no place for it"
        elif name in attributes and not rendered:
            complaints[name] = f"it has no way to say {value!r} beside the others"
        elif not re.fullmatch(r"[\w.,:=@%+/-]*", value):
            complaints[name] = f"it would put quotes into {value!r}"
    if executor != "local" and "ntasks" in said and not said & {"nodes", "ntasks-per-node"}:
        complaints["ntasks"] = "it would put all tasks on one node unless --nodes is given too"
    if native:
        raise BadUsage(f"PSI/J's own executor {executor} cannot be given native options ({native[0]} ...)")
    for name, complaint in complaints.items():
        raise BadUsage(f"PSI/J's own executor {executor} cannot be given --{name}: {complaint}")
