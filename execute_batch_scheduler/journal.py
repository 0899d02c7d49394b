"""What was submitted, remembered on this machine: jobs() and attach() need no connection for it.

Each process appends lines to a file of its own, so no lock is needed, not even on NFS; a reader puts together what all
files say of a job. A line is a JSON object with ``v`` (the format, 1), ``key`` (the job), ``at`` (seconds since the
epoch) and the fields that became known then; later lines win.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from execute_batch_scheduler.adapters.transport import make_private

VERSION = 1
_lock = threading.Lock()
_torn = False  # the last line was written in part, so the next one must begin anew
_own: Optional[tuple[int, Path]] = None  # the process that opened it, and its file


@dataclass
class Entry:
    """One submitted script as far as it was noted; times are seconds since the epoch.

    Attributes
    ----------
    key : str
        The job's UUID.
    native_id : str or None
        None if it was never learned: the process ended, or lost the connection, while it submitted.
    title : str or None
        The script's first command.
    directory : str
        The job directory.
    chdir : str or None
        Where the script runs, if that was said.
    stdout, stderr : str or None
        Where its output goes; None where only the job's record tells.
    state, native_state, exit_code, reason
        How it ended; None before that.
    removed : bool
        Whether its directory was cleaned away.
    """

    key: str
    at: float = 0.0
    wlm: str = ""
    host: Optional[str] = None
    url: Optional[str] = None
    executor: str = ""
    name: Optional[str] = None
    title: Optional[str] = None
    directory: str = ""
    chdir: Optional[str] = None
    stdout: Optional[str] = None
    stderr: Optional[str] = None
    native_id: Optional[str] = None
    state: Optional[str] = None
    native_state: Optional[str] = None
    exit_code: Optional[int] = None
    reason: Optional[str] = None
    started: Optional[float] = None
    ended: Optional[float] = None
    removed: bool = False


_FIELDS = {field.name for field in fields(Entry)}
_NUMBERS = {"started", "ended", "exit_code"}
_MOST = 1e11  # seconds since the epoch: later is damage


def folder() -> Path:
    """Where the journal lies: ``$EXECUTE_JOURNAL``, or ``~/.execute_batch_scheduler/journal``."""
    return Path(os.environ.get("EXECUTE_JOURNAL") or "~/.execute_batch_scheduler/journal").expanduser()


def note(key: str, **known: Any) -> None:
    """Write down what is known of a job now.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    line = json.dumps({"v": VERSION, "key": key, "at": time.time(), **known}, ensure_ascii=False) + "\n"
    global _torn
    with _lock, open(os.open(_own_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab", buffering=0) as file:
        data = b"\n" * _torn + line.encode(errors="surrogateescape")
        _torn = file.write(data) < len(data)
        if _torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_own_file()))


def entries() -> list[Entry]:
    """All jobs that were noted and not cleaned away, oldest first. What is damaged is passed over with a warning."""
    found: dict[str, Entry] = {}
    for line in sorted(_lines(), key=lambda line: float(line["at"])):
        entry = found.setdefault(line["key"], Entry(line["key"], at=line["at"]))
        for name, value in line.items():
            if name in _FIELDS and name not in ("key", "at"):
                setattr(entry, name, value)
    return [entry for entry in found.values() if entry.wlm and not entry.removed]


def drop(keys: set[str]) -> None:
    """Forget jobs: note that they are removed, and delete files of ended processes that tell of nothing else."""
    for key in keys:
        note(key, removed=True)
    remaining = {entry.key for entry in entries()}
    for path in _files():
        if path == _own_file() or path.name.split("-")[1:2] != [_host()]:
            continue
        pid = path.stem.rpartition("-")[2]
        if not Path(f"/proc/{pid}").exists() and not {line["key"] for line in _read(path)} & remaining:
            path.unlink()


def _own_file() -> Path:
    """The file of this process; a fork gets its own."""
    global _own
    if _own is None or _own[0] != os.getpid() or _own[1].parent != folder():
        place = folder()
        make_private(str(place))
        _own = os.getpid(), place / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{_host()}-{os.getpid()}.jsonl"
    return _own[1]


def _host() -> str:
    return socket.gethostname().split(".")[0].replace("-", "_")


def _files() -> list[Path]:
    place = folder()
    return sorted(place.glob("*.jsonl")) if place.is_dir() else []


def _lines() -> Iterator[dict[str, Any]]:
    for path in _files():
        yield from _read(path)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        warnings.warn(f"the journal {path} cannot be read: {error}", stacklevel=2)
        return
    for number, line in enumerate(text.split("\n")[:-1], 1):  # what has no newline is still being written
        try:
            read = json.loads(line)
            if read["v"] > VERSION:
                continue  # a newer release wrote it, and knows what it means
            _check(read)
            yield read
        except (ValueError, TypeError, KeyError, RecursionError):
            warnings.warn(f"a damaged entry is passed over: {path}, line {number}", stacklevel=2)


def _check(line: dict[str, Any]) -> None:
    """TypeError or ValueError for values that no line of ours has."""
    if not isinstance(line["key"], str) or not 0 <= line["at"] < _MOST:
        raise ValueError("key and at")
    for name, value in line.items():
        kinds = (bool,) if name == "removed" else (int, float) if name in _NUMBERS else (str,)
        if name in _FIELDS - {"at"} and value is not None and not isinstance(value, kinds):
            raise TypeError(name)
        if name in _NUMBERS and value is not None and not abs(value) < _MOST:
            raise ValueError(name)
