"""A bash of another machine that stays open and is asked one thing at a time: a question costs one round trip."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from execute_batch_scheduler.adapters.transport import Unreachable

# What runs over there, whatever the user's shell is: sh, csh and fish read this line alike. The environment is that of
# a login shell, whose profile gets no input and whose output is passed over.
LOGIN = """exec /bin/sh -c 'exec 3<&0 </dev/null; exec /bin/bash -lc "exec /bin/bash -p <&3 3<&-"'"""
PLAIN = "exec /bin/bash -p"  # for those whose profile ends in another program
# How an open shell takes a question: so many bytes of its input, read at once. Commands bash reads byte by byte.
_OBEY = """exec 9</dev/null; unset -v __script __err __code; __obey() { # LENGTH INPUT MARKER
  TMOUT=0 IFS= LC_ALL=C read -r -d '' -N "$1" __script || exit
  { __err=$( { eval "$__script"; } 2>&1 >&3 3>&- <&"$2" 9<&- ); __code=$?; } 3>&1
  printf '\\n%s %s\\n%s\\n%s\\n' "$3" "$__code" "$__err" "$3"
}"""
BEGIN_TIMEOUT = 20.0
_LAST_WORDS = 2.0  # for what a shell said before it ended


class Stream(Protocol):
    """A program over there: its input, and its output and errors in one."""

    def send(self, data: bytes) -> None:
        """Give it input. ConnectionError or OSError if it is gone."""

    def receive(self, timeout: float) -> bytes:
        """What it has printed, at least a byte; nothing at its end. TimeoutError if none comes."""

    def close(self) -> None:
        """Let it go. Never raises."""


class Connection(Protocol):
    """An open connection to a machine."""

    def open(self, command: str) -> Stream:
        """Run a command line by the user's shell. TransportError if that cannot be."""

    def alive(self) -> bool:
        """Whether it can still be used, as far as is known."""

    def close(self) -> None:
        """Let it go. Never raises."""


@dataclass(frozen=True)
class Answer:
    """What a script printed and how it ended."""

    out: bytes
    exit_code: int
    err: str


class Shell:
    """One bash over there.

    Parameters
    ----------
    connection
        Where it is begun.
    command
        What begins it: LOGIN or PLAIN.
    host
        How the user calls the machine.

    Raises
    ------
    TransportError
        No stream is to be had, or no bash answers.
    """

    def __init__(self, connection: Connection, command: str, host: str) -> None:
        self.connection = connection
        self.stream = connection.open(command)
        self._host = host
        self._marker = secrets.token_hex(16)
        self._rest = b""
        self.left = False  # it has ended by itself
        self.group = ""
        self.environment: dict[str, str] = {}
        try:
            self._begin()
        except BaseException:
            self.stream.close()
            raise

    def _begin(self) -> None:
        """Get past whatever profile and banner print."""
        said = b""
        try:
            self.stream.send(f"exec 2>/dev/null; cd; {_OBEY}\nprintf '\\n%s\\n' {self._marker}\n".encode())
            said = self._until(f"\n{self._marker}\n".encode(), time.monotonic() + BEGIN_TIMEOUT)
            answer = self.ask(
                'read -r _ _ _ _ group _ </proc/$$/stat; echo "$group"; cat "/proc/$$/environ"', timeout=BEGIN_TIMEOUT
            )
        except OSError as error:
            text = (said or self._rest).decode(errors="replace").strip()
            what = f"it said: {text[-500:]}" if text else "it said nothing"
            late = f" within {BEGIN_TIMEOUT:g} s" if isinstance(error, TimeoutError) else ""
            raise Unreachable(
                f"{self._host} lets us in, but no /bin/bash answers there{late}; {what}\n"
                f"Try: ssh {self._host} /bin/bash -c true"
            ) from None
        group, _, environment = answer.out.partition(b"\n")
        self.group = group.decode()
        pairs = (pair.partition("=") for pair in environment.decode(errors="surrogateescape").split("\0") if pair)
        self.environment = {name: value for name, _, value in pairs}

    def ask(self, script: str, data: bytes = b"", *, timeout: float) -> Answer:
        """Run a script; `data` is its input. An OSError leaves the shell unusable."""
        end = time.monotonic() + timeout
        words = script.encode(errors="surrogateescape")
        # What a failed script leaves of its input must not be taken for commands: hence the exit.
        source, leave = (0, '; [ "$__code" = 0 ] || exit') if data else (9, "")
        self.left = bool(data)
        try:
            self.stream.send(f"__obey {len(words)} {source} {self._marker}{leave}\n".encode() + words + data)
        except OSError:
            with suppress(OSError):  # it may have said why it takes no more
                return self._answer(time.monotonic() + _LAST_WORDS)
            raise
        answer = self._answer(end)
        self.left = bool(data and answer.exit_code)
        return answer

    def _answer(self, end: float) -> Answer:
        out = self._until(f"\n{self._marker} ".encode(), end)
        code = int(self._until(b"\n", end))
        err = self._until(f"\n{self._marker}\n".encode(), end)
        return Answer(out, code, err.decode(errors="replace"))

    def _until(self, mark: bytes, end: float) -> bytes:
        """What comes before a mark."""
        pieces, tail = [], self._rest
        while (at := tail.find(mark)) < 0:
            keep = len(mark) - 1
            pieces.append(tail[:-keep])
            self._rest = tail  # told when this goes wrong
            piece = self.stream.receive(max(0.0, end - time.monotonic()))
            if not piece:
                raise ConnectionError("its end came before the answer was whole")
            tail = tail[-keep:] + piece
        pieces.append(tail[:at])
        self._rest = tail[at + len(mark) :]
        return b"".join(pieces)
