"""Where commands run and files lie: one small protocol, so that an adapter need not know whether it is here."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
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


class TransportError(Exception):
    """A command could not be started, or did not answer in time; the message says which and where."""


class Unanswered(TransportError):
    """The command was started and gave no answer in time: what it did is not known."""


class Transport(Protocol):
    """Commands and files of one machine."""

    host: Optional[str]

    def run(self, command: Sequence[str], *, timeout: float, environment: Optional[Mapping[str, str]] = None) -> Result:
        """Run a command to its end; an exit code other than 0 is no error here."""

    def make(self, path: str) -> None:
        """Make a private directory, and those above it, where there is none."""

    def create(self, path: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Make a private directory holding `files`, name -> (content, mode); on failure nothing is left."""

    def append(self, path: str, data: bytes) -> None:
        """Add to a file."""

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Read a file from `offset` on, at most `limit` bytes; FileNotFoundError where there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is something of that name."""

    def size(self, path: str) -> int:
        """The size of a file in bytes; FileNotFoundError where there is none."""

    def names(self, path: str) -> list[str]:
        """The names in a directory; none where there is no directory."""

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it, where it is there."""


class Local:
    """The machine that we run on."""

    host: Optional[str] = None

    def run(self, command: Sequence[str], *, timeout: float, environment: Optional[Mapping[str, str]] = None) -> Result:
        """Run a command in a session of its own, so that a kernel's interrupt cannot kill it halfway."""
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

    def make(self, path: str) -> None:
        """Make a private directory, and those above it, where there is none."""
        if os.path.isdir(path):
            return
        missing = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
        for folder in reversed(missing):  # pathlib's mkdir(parents=True) leaves those above to the umask
            folder.mkdir(mode=0o700, exist_ok=True)

    def create(self, path: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Make a private directory holding `files`."""
        folder = Path(path)
        self.make(str(folder.parent))
        folder.mkdir(mode=0o700)
        try:
            for name, (content, mode) in files.items():
                with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(content)
        except OSError:
            self.remove(path)
            raise

    def append(self, path: str, data: bytes) -> None:
        """Add to a file."""
        with open(path, "ab") as file:
            file.write(data)

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Read a file from `offset` on. Opened anew each time: that is what makes NFS look again."""
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(limit) or b""

    def exists(self, path: str) -> bool:
        """Whether there is something of that name."""
        return os.path.lexists(path)

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        with open(path, "rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_size

    def names(self, path: str) -> list[str]:
        """The names in a directory."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        import shutil

        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def _with_path(environment: Optional[Mapping[str, str]]) -> Optional[dict[str, str]]:
    if not SEARCHED_FIRST:
        return None if environment is None else dict(environment)
    found = dict(os.environ if environment is None else environment)
    found["PATH"] = os.pathsep.join([*SEARCHED_FIRST, found.get("PATH", os.defpath)])
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
