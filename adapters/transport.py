"""Where commands run and files lie: one small protocol, so that an adapter need not know whether it is here."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Protocol

SEARCHED_FIRST: list[str] = []
"""Directories where commands are looked for before those of PATH: where a login shell has found a scheduler."""


@dataclass(frozen=True)
class Result:
    """What a command left behind, wherever it ran."""

    command: tuple[str, ...]
    host: Optional[str]
    exit_code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        where = self.host or "this machine"
        said = (self.stderr.strip() or self.stdout.strip() or "it printed nothing").splitlines()[-5:]
        return f"{shlex.join(self.command)}\n  on {where} ended with exit code {self.exit_code}:\n  " + "\n  ".join(
            said
        )


@dataclass(frozen=True)
class NewDirectory:
    """A private directory that is to be made with its files, name -> (content, mode), or not at all.

    Directories `beside` it are made too where there are none, and all above.
    """

    path: str
    files: Mapping[str, tuple[bytes, int]]
    beside: tuple[str, ...] = ()


class TransportError(Exception):
    """A command could not be started, or did not answer in time; the message says which and where."""


_TEXT_LIMIT = 1 << 20


class Unanswered(TransportError):
    """The command was started and gave no answer in time: what it did is not known."""


class Unreachable(TransportError):
    """There is no connection to the machine, and none can be made now; the message says why and what to do."""


class Refused(Unreachable):
    """The machine does not let us in, or is not the one that it should be: trying again is of no use."""


class Marks(Protocol):
    """A directory of marks, whose names say that something happened; see `jobdir`."""

    def fresh(self) -> dict[str, Optional[str]]:
        """The names that are new since the last call, and the record of their job where it came along. No waiting."""

    def hurry(self) -> None:
        """Look soon: something is about to happen."""

    def rest(self) -> None:
        """Nobody waits for any until `hurry` is called: no connection need be made for them."""


class Growing(Protocol):
    """A file that grows, read from where the last reading ended."""

    restarts: int
    """How often it was found truncated or replaced, and was begun anew."""

    def read(self, most: int) -> bytes:
        """What has come since, at most so many bytes; nothing where there is no file. No waiting, until `finish`."""

    def finish(self) -> None:
        """Nobody writes any more: from now on nothing means the end of the file."""


class Transport(Protocol):
    """Commands and files of one machine."""

    host: Optional[str]
    piece: int
    """How many bytes of a file are well read at once."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that commands have there."""

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        put: Optional[Mapping[str, bytes]] = None,
    ) -> Result:
        """Run a command to its end, after private files were written; an exit code other than 0 is no error here."""

    def script(
        self,
        text: str,
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        new: Optional[NewDirectory] = None,
    ) -> Result:
        """Run lines of bash to their end, as `run` does, after a directory was made; no profile is read for them."""

    def create(self, new: NewDirectory) -> None:
        """Make a directory; OSError where that cannot be."""

    def append(self, path: str, data: bytes) -> None:
        """Add to a file."""

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Let a file have `data` from `offset` on, and nothing behind it; one that is not there is made."""

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Read a file from `offset` on, at most `limit` bytes; FileNotFoundError where there is none."""

    def texts(self, paths: Sequence[str]) -> dict[str, str]:
        """Small text files, all at once; those that are not there are left out."""

    def size(self, path: str) -> int:
        """The size of a file in bytes; FileNotFoundError where there is none."""

    def remove(self, paths: Sequence[str]) -> int:
        """Remove files, or directories with all in them, where they are there; how many bytes that freed."""

    def marks(self, folder: str, wake: Callable[[], None]) -> Marks:
        """A directory of marks; `wake` is called when some came, if that shows by itself."""

    def follow(self, path: str, offset: int, wake: Callable[[], None]) -> Growing:
        """A file that grows; `wake` is called when something came, if that shows by itself."""


class Local:
    """The machine that we run on."""

    host: Optional[str] = None
    piece = 1 << 16

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of our own process."""
        return os.environ

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        put: Optional[Mapping[str, bytes]] = None,
    ) -> Result:
        """Run a command in a session of its own, so that a kernel's interrupt cannot kill it halfway."""
        for path, data in (put or {}).items():
            _write(path, data, 0o600)
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_with_path(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise TransportError(f"{command[0]} could not be run on this machine: {error.strerror}") from error
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise Unanswered(f"{shlex.join(command)} gave no answer on this machine within {timeout:g} s") from None
        return Result(tuple(command), None, process.returncode, _text(out), _text(err))

    def script(
        self,
        text: str,
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        new: Optional[NewDirectory] = None,
    ) -> Result:
        """Run lines of bash. --norc: below sshd it would read ~/.bashrc even so."""
        if new is not None:
            self.create(new)
        return self.run(["/bin/bash", "--norc", "-p", "-c", text], timeout=timeout, environment=environment)

    def create(self, new: NewDirectory) -> None:
        """Make a private directory, and those beside it."""
        for needed in (*new.beside, os.path.dirname(new.path)):
            make_private(needed)
        os.mkdir(new.path, 0o700)
        try:
            for name, (content, mode) in new.files.items():
                _write(f"{new.path}/{name}", content, mode)
        except OSError:
            self.remove([new.path])
            raise

    def append(self, path: str, data: bytes) -> None:
        """Add to a file."""
        with open(path, "ab") as file:
            file.write(data)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Let a file have `data` from `offset` on, and nothing behind it."""
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Read a file from `offset` on. Opened anew each time: that is what makes NFS look again."""
        if _is_stream(path):
            return b""
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(limit) or b""

    def texts(self, paths: Sequence[str]) -> dict[str, str]:
        """Small text files."""
        found = {}
        for path in paths:
            try:
                found[path] = _text(self.read(path, limit=_TEXT_LIMIT))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        if _is_stream(path):
            return 0
        with open(path, "rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_size

    def remove(self, paths: Sequence[str]) -> int:
        """Remove files, or directories with all in them."""
        import shutil

        freed = 0
        for path in filter(os.path.lexists, paths):
            freed += sum(one.lstat().st_size for one in (Path(path), *Path(path).rglob("*")) if not one.is_dir())
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return freed

    def marks(self, folder: str, wake: Callable[[], None]) -> Marks:
        """A directory of marks, listed whenever it is asked for what is fresh."""
        return _LocalMarks(folder)

    def follow(self, path: str, offset: int, wake: Callable[[], None]) -> Growing:
        """A file that grows, looked at whenever it is read."""
        return _LocalGrowing(self, path, offset)


def _is_stream(path: str) -> bool:
    """Whether it is nothing to read from: a pipe is its reader's, and a device has no end."""
    mode = os.stat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


class _LocalMarks:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: Optional[set[str]] = None

    def fresh(self) -> dict[str, Optional[str]]:
        try:
            names = set(os.listdir(self._folder))
        except FileNotFoundError:
            names = set()
        if self._seen is None:
            names -= self._sweep_out(names)
        fresh = names - (self._seen or set())
        self._seen = names
        return dict.fromkeys(fresh)

    def _sweep_out(self, names: set[str]) -> set[str]:
        """Remove the marks of jobs submitted more than an hour ago: whoever tracks them has long seen these."""
        old = {name for name in names if name < an_hour_ago()}
        for name in old:
            Path(self._folder, name).unlink(missing_ok=True)
        return old

    def hurry(self) -> None:
        pass  # it looks when it is asked

    def rest(self) -> None:
        pass


class _LocalGrowing:
    def __init__(self, transport: Local, path: str, offset: int) -> None:
        self.restarts = 0
        self._transport = transport
        self._path = path
        self._offset = offset

    def read(self, most: int) -> bytes:
        try:
            data = self._transport.read(self._path, self._offset, most)
            if not data and self._offset and self._transport.size(self._path) < self._offset:
                self.restarts += 1
                self._offset = 0
                data = self._transport.read(self._path, 0, most)
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data

    def finish(self) -> None:
        pass  # it reads to the end anyway


def make_private(folder: str) -> None:
    """Make a directory, and all above that are missing; mkdir(parents=True) would leave those to the umask."""
    if folder and not os.path.isdir(folder):
        make_private(os.path.dirname(folder))
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def an_hour_ago() -> str:
    """What names of marks that are older begin with, or sort before."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() - 3600))


def _write(path: str, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _with_path(environment: Optional[Mapping[str, str]]) -> Optional[dict[str, str]]:
    if not SEARCHED_FIRST:
        return None if environment is None else dict(environment)
    found = dict(os.environ if environment is None else environment)
    found["PATH"] = os.pathsep.join([*SEARCHED_FIRST, found.get("PATH", os.defpath)])
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
