"""A machine behind a connection: commands and files through shells that stay open, and a feed of what is new there.

A connection gives streams to programs over there; paramiko makes them, or the ssh program. A few of these streams are
shells that are asked. One more runs `feed.bash`, which pushes marks, records and output.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Optional
from weakref import WeakSet

from execute_batch_scheduler.adapters.feed import Feed
from execute_batch_scheduler.adapters.shell import BEGIN_TIMEOUT, LOGIN, PLAIN, Answer, Connection, Shell, Stream
from execute_batch_scheduler.adapters.transport import (
    Growing,
    Marks,
    NewDirectory,
    Refused,
    Result,
    TransportError,
    Unanswered,
    Unreachable,
)

logger = logging.getLogger(__name__)

_SHELLS = 6  # at once; sshd's default MaxSessions is 10
_TIMEOUT = 60.0  # for files
_PIECE = 1 << 22
_TEXT_LIMIT = 1 << 20
_CANNOT_CREATE = 73  # the exit code where a directory could not be made, as in sysexits.h
_READ = 1 << 16  # bytes up to which bash reads as fast as another program would begin to
_PAUSES = (0.2, 0.5, 1, 2)  # before a question is asked again
_WORDS = "export LC_ALL=C"  # of programs over there, so that they are known below
_ERRORS = {
    "No such file or directory": FileNotFoundError,
    "Permission denied": PermissionError,
    "File exists": FileExistsError,
    "Is a directory": IsADirectoryError,
    "Not a directory": NotADirectoryError,
}


def _fill(content: bytes) -> str:
    """What prints so much of the input: without a process where bash itself can."""
    if len(content) > _READ or b"\0" in content:
        return f"head -c {len(content)}"
    return f"TMOUT=0 read -r -d '' -N {len(content)} text && printf %s \"$text\"" if content else ":"


def _contents(new: NewDirectory) -> bytes:
    return b"".join(content for content, _ in new.files.values())


def _making(new: NewDirectory) -> str:
    """What makes a directory with files whose contents are the input."""
    path = shlex.quote(new.path)
    parents = {new.path.rpartition("/")[0], *new.beside}
    lines = [_WORDS, "umask 077"]
    lines += [f"[ -d {shlex.quote(parent)} ] || mkdir -p -- {shlex.quote(parent)} || exit" for parent in parents]
    lines += [f"mkdir -- {path} && cd -- {path} || exit", "IFS="]
    for name, (content, mode) in new.files.items():
        lines.append(f"{_fill(content)} >{shlex.quote(name)} || {{ cd /; rm -rf -- {path}; exit 1; }}")
        if mode != 0o600:
            lines.append(f"chmod {mode:o} {shlex.quote(name)}")
    return "\n".join(lines)


_all: WeakSet[Remote] = WeakSet()


class Remote:
    """The transport to a machine behind a connection; see `transport.Transport`.

    Parameters
    ----------
    host
        How the user calls the machine.
    connect
        Makes a connection; raises Unreachable.
    """

    piece = _PIECE

    def __init__(self, host: str, connect: Callable[[], Connection]) -> None:
        self.host: Optional[str] = host
        self.turns = 0
        """Questions that callers have asked so far: each is a round trip."""
        self._name = host
        self._connect = connect
        self._command = LOGIN
        self._environment: Optional[dict[str, str]] = None
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Have no connection, and nobody who waits for one."""
        self._connection: Optional[Connection] = None
        self._idle: list[Shell] = []
        self._open = 0
        self._most = _SHELLS
        self._free = threading.Condition()
        self._connecting = threading.Lock()
        self._failed: Optional[tuple[float, Unreachable]] = None
        self.connected = threading.Event()
        """Set when a connection was made; who waits for one, which is the feed, clears it."""
        self._feed: Optional[Feed] = None

    def forked(self) -> None:
        """In a child process: the connection is the parent's, whose threads serve it; it is neither used nor ended."""
        self._inherited = self._connection, self._idle, self._feed
        self._begin()

    @property
    def notice(self) -> Optional[str]:
        """What who submits should know of it."""
        if self._command == LOGIN:
            return None
        return (
            f"no login shell answers on {self._name}: its profile does not end, or ends in another program; scripts do "
            f"not find what it sets. Try: ssh {self._name} /bin/bash -lc env"
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that a login shell has there."""
        while (environment := self._environment) is None:
            with self._shell():
                pass
        return environment

    def connection(self) -> Connection:
        """The open connection, made anew if need be; those who ask at the same time share the attempt."""
        asked = time.monotonic()
        with self._connecting:
            if self._connection is not None and self._connection.alive():
                return self._connection
            if self._failed and self._failed[0] > asked:
                raise self._failed[1]
            self._drop()
            try:
                self._connection = self._connect()
            except Unreachable as error:
                self._failed = time.monotonic(), error
                raise
            self.connected.set()
            return self._connection

    def use(self, connection: Connection) -> None:
        """Take a connection that was made elsewhere, as after a login with a password."""
        with self._connecting:
            self._drop()
            self._command, self._environment = LOGIN, None
            self._connection = connection
            self.connected.set()

    def close(self) -> None:
        """Let the connection go; the next question makes a new one."""
        with self._connecting:
            self._drop()
            self._environment = None

    def leave(self) -> bool:
        """The same for good: the feed does not make a new one by itself. Who tracks an open job will ask, though.

        Returns whether there was one.
        """
        with self._connecting:
            there = self._connection is not None
            self._drop()
            if self._feed is not None:
                self._feed.pause()
            self._command, self._environment = LOGIN, None
            return there

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with self._free:
            self._open -= len(self._idle)
            self._idle.clear()
            self._most = _SHELLS
            self._free.notify_all()

    @contextmanager
    def _shell(self, patient: bool = True) -> Iterator[Shell]:
        """A shell for one question. If that raises, the shell is given up."""
        self._mistrust()
        shell = self._take_shell(patient)
        try:
            yield shell
        except BaseException:
            self._let_go()
            shell.stream.close()
            raise
        with self._free:
            usable = not shell.left and shell.connection is self._connection
            if usable:
                self._idle.append(shell)
                self._free.notify()
        if not usable:
            self._let_go()
            shell.stream.close()

    def _let_go(self) -> None:
        with self._free:
            self._open -= 1
            self._free.notify()

    def _take_shell(self, patient: bool) -> Shell:
        """A shell that is idle, or a new one as long as the machine lets us have one more; else wait for one."""
        while True:
            with self._free:
                while patient and not self._idle and self._open >= self._most:
                    self._free.wait()
                if self._idle:
                    return self._idle.pop()
                self._open += 1
            try:
                return self._new_shell()
            except BaseException as error:
                self._let_go()
                with self._free:
                    final = isinstance(error, Unreachable) or not isinstance(error, TransportError)
                    if final or not patient or not self._open:
                        raise
                    self._most = self._open  # sshd's MaxSessions

    def _new_shell(self) -> Shell:
        connection = self.connection()
        try:
            return self._shell_of(connection)
        except TransportError:
            if connection.alive():
                raise
        return self._shell_of(self.connection())  # nothing was asked of the one that broke

    def _shell_of(self, connection: Connection) -> Shell:
        try:
            shell = Shell(connection, self._command, self._name)
        except Unreachable:
            if self._command == PLAIN or self._environment is not None or not connection.alive():
                raise
            shell = Shell(connection, PLAIN, self._name)
            self._command = PLAIN
        if self._environment is None and connection is self._connection:
            self._environment = shell.environment
        return shell

    def _ask(self, script: str, data: bytes = b"", timeout: float = _TIMEOUT, again: bool = True) -> Answer:
        """Ask a shell. A question that may be asked `again` is, when the connection is lost, for some seconds."""
        for pause in _PAUSES if again and self._environment is not None else ():
            try:
                return self._ask_once(script, data, timeout)
            except (Unanswered, Unreachable) as error:
                if isinstance(error, Refused):
                    raise
                logger.info("%s; asking again", error)
                time.sleep(pause)
        return self._ask_once(script, data, timeout)

    def _ask_once(self, script: str, data: bytes, timeout: float) -> Answer:
        with self._shell() as shell:
            self.turns += 1
            try:
                answer = shell.ask(script, data, timeout=timeout)
            except TimeoutError:
                self._kill(shell)
                raise Unanswered(f"{self._name} gave no answer within {timeout:g} s") from None
            except OSError as error:
                raise Unanswered(f"the connection to {self._name} was lost, so it gave no answer") from error
            return answer

    def _mistrust(self) -> None:
        """Shells of a connection that has ended are not asked: their silence would leave outcomes unknown."""
        with self._connecting:
            if self._connection is not None and not self._connection.alive():
                self._drop()

    def _kill(self, shell: Shell) -> None:
        """End what a shell does that has not answered in time. If that fails too, the connection is dead."""
        try:
            with self._shell(patient=False) as other:  # we hold one: to wait for another could be for ever
                other.ask(f"kill -s KILL -- -{int(shell.group)}", timeout=5)
        except (OSError, TransportError):
            self.close()

    # commands

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        put: Optional[Mapping[str, bytes]] = None,
    ) -> Result:
        """Run a command over there; see `Transport`. Unanswered where the connection broke: it may have run."""
        lines = self.environment_lines(environment)
        if put:
            lines.append("umask 077")
            lines += [f"head -c {len(data)} >{shlex.quote(path)} || exit" for path, data in put.items()]
        lines.append(f"exec {shlex.join(command)} </dev/null")
        answer = self._ask("\n".join(lines), b"".join((put or {}).values()), timeout, again=False)
        if answer.exit_code in (126, 127) and f"exec: {command[0]}: " in answer.err:
            raise TransportError(f"{command[0]} could not be run on {self._name}: {answer.err.rpartition(': ')[2]}")
        out = answer.out.decode(errors="replace")
        return Result(tuple(command), self.host, answer.exit_code, out, answer.err)

    def script(
        self,
        text: str,
        *,
        timeout: float,
        environment: Optional[Mapping[str, str]] = None,
        new: Optional[NewDirectory] = None,
    ) -> Result:
        """Run lines of bash over there, in a shell that is open already; Unanswered as with `run`."""
        making = [f"( {_making(new)}\n) || exit {_CANNOT_CREATE}"] if new else []
        lines = [*making, *self.environment_lines(environment), text]
        answer = self._ask("\n".join(lines), _contents(new) if new else b"", timeout, again=False)
        if new and answer.exit_code == _CANNOT_CREATE:
            self._checked(answer, new.path)
        out = answer.out.decode(errors="replace")
        return Result(("bash", "-c", text), self.host, answer.exit_code, out, answer.err)

    def environment_lines(self, environment: Optional[Mapping[str, str]]) -> list[str]:
        """What makes the environment of a shell over there into this one; None leaves it."""
        if environment is None:
            return []
        base = self.environment
        gone = [name for name in base if name not in environment and name.isidentifier()]
        changed = {name: value for name, value in environment.items() if base.get(name) != value}
        lines = [f"unset -v {' '.join(gone)}"] if gone else []
        return lines + [f"export {name}={shlex.quote(value)}" for name, value in changed.items()]

    # files

    def create(self, new: NewDirectory) -> None:
        """Make a private directory with files; see `Transport`."""
        self._checked(self._ask(_making(new), _contents(new), again=False), new.path)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Let a file have `data` from `offset` on, and nothing behind it; a new one is private."""
        file = shlex.quote(path)
        fill = f"head -c {len(data)} >>{file}" if data else ":"
        self._checked(self._ask(f"{_WORDS}; umask 077; truncate -s {offset} -- {file} && {fill}", data), path)

    def append(self, path: str, data: bytes) -> None:
        """Add to a file; twice, maybe, where a connection is lost."""
        self._checked(self._ask(f"{_WORDS}; head -c {len(data)} >>{shlex.quote(path)}", data), path)

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Read a file from `offset` on."""
        file = shlex.quote(path)
        read = f"cat -- {file}"
        if offset or limit >= 0:  # in pieces that a pipe takes at once
            most = f" count={limit}" if limit >= 0 else ""
            read = f"dd if={file} bs=64k skip={offset}{most} iflag=skip_bytes,count_bytes status=none"
        # Without a process where there is nothing. A pipe is its reader's, and a device has no end.
        odd = f"[ ! -e {file} ] || [ -f {file} ] || [ -d {file} ] || exit 0"
        nothing = f"{odd}; exec 4<{file} || exit; exec 4<&-; [ -s {file} ] || exit 0"
        return self._checked(self._ask(f"{_WORDS}; {nothing}; exec {read}"), path).out

    def texts(self, paths: Sequence[str]) -> dict[str, str]:
        """Small text files, in one round trip and without a process."""
        lines = ["LC_ALL=C"]
        for number, path in enumerate(paths):
            lines.append(
                f"{{ IFS= read -r -d '' -n {_TEXT_LIMIT} text <{shlex.quote(path)}; }} 2>/dev/null || "
                f'[ "$text" ] || [ -e {shlex.quote(path)} ] && printf \'%s %s\\n%s\' {number} ${{#text}} "$text"; text='
            )
        out = self._ask("\n".join(lines)).out
        found = {}
        while out:
            head, _, out = out.partition(b"\n")
            number, length = map(int, head.split())
            found[paths[number]] = out[:length].decode(errors="replace")
            out = out[length:]
        return found

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        return int(self._checked(self._ask(f"{_WORDS}; exec stat -L -c %s -- {shlex.quote(path)}"), path).out)

    def remove(self, paths: Sequence[str]) -> int:
        """Remove files, or directories with all in them."""
        names = shlex.join(paths)
        answer = self._ask(f"{_WORDS}; du -scb -- {names} 2>/dev/null | tail -n 1; rm -rf -- {names}")
        self._checked(answer, paths[0])
        freed = re.match(rb"\d+", answer.out)
        return int(freed[0]) if freed else 0

    def _checked(self, answer: Answer, path: str) -> Answer:
        """The answer, or the error that it tells of."""
        if answer.exit_code == 0:
            return answer
        text = answer.err.strip().splitlines()[-1:] or [f"exit code {answer.exit_code}"]
        for words, kind in _ERRORS.items():
            if answer.err.rstrip().endswith(words):
                raise kind(0, f"on {self._name}: {words}", path)
        number = errno.ENOSPC if "No space left" in answer.err or "quota" in answer.err.lower() else errno.EIO
        raise OSError(number, f"on {self._name}: {text[0].rpartition(': ')[2]}", path)

    # what is new

    def marks(self, folder: str, wake: Callable[[], None]) -> Marks:
        """A directory of marks, pushed."""
        return self._fed().marks(folder, wake)

    def follow(self, path: str, offset: int, wake: Callable[[], None]) -> Growing:
        """A file that grows, pushed."""
        return self._fed().follow(path, offset, wake)

    def _fed(self) -> Feed:
        with self._free:
            if self._feed is None:
                self._feed = Feed(self, self._name)
            return self._feed

    def open_program(self, connection: Connection, lines: str) -> Stream:
        """A bash that runs these lines."""
        stream = self._shell_of(connection).stream
        try:
            stream.send(f"{lines}\n".encode(errors="surrogateescape"))
        except OSError:
            stream.close()
            raise
        return stream

    def connection_for_extras(self) -> Connection:
        """The open connection, for who can do without. None is made, and the feed goes first: sessions may be few."""
        ready, connection = self._fed().ready.wait(BEGIN_TIMEOUT), self._connection
        if not ready or connection is None or not self.uses(connection):
            raise Unreachable("there is no connection")
        return connection

    def has_other(self, connection: Optional[Connection]) -> bool:
        """Whether another connection is used, and alive as far as is known."""
        return self._connection is not connection and self.uses(self._connection)

    def uses(self, connection: Optional[Connection]) -> bool:
        """Whether a connection is the one that is used, and alive as far as is known."""
        return connection is not None and connection is self._connection and connection.alive()


def _forked() -> None:
    for remote in list(_all):
        remote.forked()


os.register_at_fork(after_in_child=_forked)
