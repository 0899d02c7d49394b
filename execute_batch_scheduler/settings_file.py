"""Settings files: TOML, checked, with errors that name file and line. Which keys there are stands here, as data."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from execute_batch_scheduler import flags as flag_table
from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.flags import REQUIRED, SBATCH, Flag, Option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Trail = tuple[str, ...]
Complaint = tuple[Trail, str]
Check = Callable[[Trail, object], Iterator[Complaint]]

# Options of a cell that are no flags, and where else they can be set.
_NO_FLAGS = {
    "wlm": "set wlm",
    "workloadmanager": "set wlm",
    "shell": "set shell",
    **dict.fromkeys(
        ("target", "bg", "amgr", "jobid", "pid", "no-raise-error", "dry-run", "no-stream"), "say it in the cell"
    ),
}
# Ours, and PSI/J's own: a table, because importing PSI/J to ask it takes longer than all else that is done here.
_BACKENDS = ["cobalt", "flux", "local", "lsf", "oar", "pbs", "pbs_classic", "rp", "slurm", "ssh", "torque"]
_FLAGS = {**SBATCH, "host": Option("host", REQUIRED, group="host")}


def parse_flags(text: str) -> list[Flag]:
    """Default flags: sbatch's, and ``--host``.

    Raises
    ------
    BadUsage
        For quotes that are not closed, for a word that is no flag, and for what belongs to a cell.
    """
    try:
        flags = flag_table.parse(shlex.split(text), _FLAGS)
    except ValueError as error:  # of shlex, or BadUsage
        raise BadUsage(f"{error} in {text!r}") from None
    for flag in flags:
        if flag.name in _NO_FLAGS and flag.option is None:
            raise BadUsage(f"--{flag.name} cannot be a default flag; {_NO_FLAGS[flag.name]}")
    return flags


def _text(at: Trail, value: object) -> Iterator[Complaint]:
    if not isinstance(value, str) or not value.strip():
        yield at, f"{at[-1]} must be a text, and {value!r} is none"


def _backend(at: Trail, value: object) -> Iterator[Complaint]:
    if not isinstance(value, str) or not value.strip():
        yield from _text(at, value)
    elif value not in _BACKENDS and not re.match("psij:.", value):
        yield (
            at,
            f"there is no backend {value!r}; {_near(value, _BACKENDS)}There are {', '.join(_BACKENDS)}, and psij:NAME",
        )


def _prologue(at: Trail, value: object) -> Iterator[Complaint]:
    if not isinstance(value, str) or "\0" in value or "\r" in value:
        yield at, "prologue must be lines of bash, with Unix line ends"


def _on_interrupt(at: Trail, value: object) -> Iterator[Complaint]:
    if value not in ("cancel", "detach"):
        yield at, f"on_interrupt is 'cancel' or 'detach', and not {value!r}"


def _ssh_client(at: Trail, value: object) -> Iterator[Complaint]:
    if value not in ("paramiko", "program"):
        yield at, f"ssh_client is 'paramiko' or 'program', and not {value!r}"


def _flags(at: Trail, value: object) -> Iterator[Complaint]:
    if isinstance(value, Mapping):
        for backend, text in value.items():
            yield from _backend((*at, str(backend)), backend)
            yield from _flag_text((*at, str(backend)), text)
    elif isinstance(value, str):
        yield from _flag_text(at, value)
    else:
        yield at, f"flags must be a text, or a table of texts by backend, and {value!r} is neither"


def _flag_text(at: Trail, value: object) -> Iterator[Complaint]:
    if not isinstance(value, str):
        yield at, f"flags must be a text, and {value!r} is none"
        return
    try:
        parse_flags(value)
    except BadUsage as error:
        yield at, str(error)


def _variables(at: Trail, value: object) -> Iterator[Complaint]:
    if not isinstance(value, Mapping):
        yield at, "environment must be a table of variables"
        return
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            yield (*at, name), f"{name!r} is no name of a variable"
        elif isinstance(text, bool) or not isinstance(text, (str, int)) or "\0" in str(text):
            yield (*at, name), f"the variable {name} must be a text or a whole number, and {text!r} is neither"


# https://exaworks.org/psij-python/docs/v/0.9.11/.generated/psij.executors.batch.html
_EXECUTOR_CONFIG = {
    "launcher_log_file": str,
    "work_directory": str,
    "queue_polling_interval": int,
    "initial_queue_polling_delay": int,
    "queue_polling_error_threshold": int,
    "keep_files": bool,
}


def check_executor_config(at: Trail, value: object) -> Iterator[Complaint]:
    """What is wrong with a table of attributes of PSI/J's configurations."""
    if not isinstance(value, Mapping):
        yield at, "executor_config must be a table"
        return
    for name, one in value.items():
        if name not in _EXECUTOR_CONFIG:
            yield (*at, name), _unknown(name, _EXECUTOR_CONFIG)
        elif type(one) is not _EXECUTOR_CONFIG[name]:
            yield (*at, name), f"{name} must be of type {_EXECUTOR_CONFIG[name].__name__}, and {one!r} is not"


def _targets(at: Trail, value: object) -> Iterator[Complaint]:
    tables = value if isinstance(value, Mapping) else {"": value}
    for name, table in tables.items():
        if isinstance(table, Mapping):
            yield from complaints(table, _TARGET, (*at, name))
        else:
            yield (*at, name), f"a target is a table, [targets.NAME], and {table!r} is none"


_COMMON: dict[str, Check] = {
    "wlm": _backend,
    "shell": _text,
    "job_directory": _text,
    "flags": _flags,
    "ssh_client": _ssh_client,
}
_TARGET: dict[str, Check] = {
    **_COMMON,
    "host": _text,
    "identity": _text,
    "prologue": _prologue,
    "environment": _variables,
    "executor_config": check_executor_config,
}
KEYS: dict[str, Check] = {**_COMMON, "on_interrupt": _on_interrupt, "targets": _targets}
"""What a file may say."""


def complaints(values: Mapping[str, object], keys: Mapping[str, Check] = KEYS, at: Trail = ()) -> Iterator[Complaint]:
    """What is wrong with the values, and the keys that lead there."""
    for key, value in values.items():
        if key in keys:
            yield from keys[key]((*at, key), value)
        else:
            yield (*at, key), _unknown(key, keys)


def _unknown(key: str, keys: Mapping[str, object]) -> str:
    return f"unknown key {key!r}; {_near(key, keys)}There are {', '.join(sorted(keys))}"


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {near[0]}? " if near else ""


_read: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}


def read(path: str, must_exist: bool = False) -> Mapping[str, Any]:
    """What a file says, checked; nothing if there is no file. It is read again only when it has changed.

    Raises
    ------
    BadUsage
        With file and line, if it cannot be read or says what cannot be.
    """
    try:
        status = os.stat(path)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if _read.get(path, ((), {}))[0] != stamp:
            _read[path] = stamp, _parse(path, Path(path).read_bytes().decode())
        return _read[path][1]
    except FileNotFoundError:
        if must_exist:
            raise BadUsage(f"there is no settings file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"the settings file {path} cannot be read: {error}") from None


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise BadUsage(f"{path}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"at line (\d+)", str(error))
        number = int(place[1]) if place else max(1, len(text.splitlines()))
        raise BadUsage(f"{path}:{number}: {error}") from None
    for at, complaint in complaints(values):
        raise BadUsage(f"{path}:{_line(text, at)}: {complaint}")
    return values


def _line(text: str, at: Trail) -> int:
    """The line where the last key of a trail stands: below the table that holds it, else wherever it is first."""
    *tables, key = at
    word = re.compile(rf"""(?:^|[\s.{{,\[])["']?{re.escape(key)}["']?\s*[=.\]]""")
    first, table = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        header = line.lstrip().startswith("[")
        if header:
            table = re.findall(r"[\w-]+", line.partition("]")[0])
        if word.search(line):
            if table == (list(at) if header else tables):
                return number
            first = first or number
    return first or 1
