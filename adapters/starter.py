"""Jobs of another machine that begin at once: over there, `start.bash` keeps one waiting in a directory of its own."""

from __future__ import annotations

import logging
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

from execute_batch_scheduler.adapters.jobdir import RUN, JobDir
from execute_batch_scheduler.adapters.remote import Remote
from execute_batch_scheduler.adapters.shell import Connection, Stream
from execute_batch_scheduler.adapters.transport import NewDirectory, TransportError, Unanswered

logger = logging.getLogger(__name__)

_START = Path(__file__).with_name("start.bash").read_text()
_NAME = re.compile(rb"\d{8}T\d{6}-[0-9a-f]{8}")
_ESCAPED = re.compile(rb"\\.")
_MEANT = {rb"\n": b"\n", rb"\s": b" "}
_SILENCE = 12.0  # it says each five seconds that it is alive
_IDLE = 30.0  # nothing need come; that the connection is gone is found out by others, and shows here too
_LOST = 60.0  # until a spare that was promised and not used is thought to be lost
_REFUSED = 300.0  # before it is tried again where no further session is to be had


class _Session:
    """A `start.bash` that runs."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.connection = connection
        self.stream = stream
        self.heard = time.monotonic()
        """When it said something last."""
        self.spare: Optional[tuple[str, int]] = None
        """The name and the process id of the one that waits and is nobody's yet."""
        self.renew_at = time.monotonic() + _LOST
        self.asking = threading.Lock()
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""

    def answer(self) -> bytes:
        """What is said to a `go`; nothing where the connection is lost, TimeoutError where nothing is said at all."""
        began = time.monotonic()
        while True:
            try:
                return self.answers.get(timeout=1)
            except queue.Empty:
                if time.monotonic() > max(began, self.heard) + _SILENCE:
                    raise TimeoutError(f"nothing came within {_SILENCE:g} s") from None

    def line(self) -> list[bytes]:
        """The words of the next line."""
        while b"\n" not in self._rest:
            try:
                piece = self.stream.receive(_IDLE)
            except TimeoutError:
                continue
            if not piece:
                raise ConnectionError("its end came")
            self._rest += piece
            self.heard = time.monotonic()
        line, _, self._rest = self._rest.partition(b"\n")
        return [_ESCAPED.sub(lambda found: _MEANT.get(found[0], found[0][1:]), word) for word in line.split(b" ")]


class Starter:
    """The client's end of `start.bash`. Who finds no spare here starts a job without.

    Parameters
    ----------
    remote
        The transport to the machine.
    root
        Where the job directories are made.
    hear
        Called when a job that was begun here ends: with its directory, its record, and all that was printed, by the
        names of the files, if that is little.
    """

    def __init__(self, remote: Remote, root: str, hear: Callable[[str, str, dict[str, bytes]], None]) -> None:
        self.root = root
        self._remote = remote
        self._hear = hear
        self._session: Optional[_Session] = None
        self._given: dict[str, tuple[_Session, int]] = {}  # by name, those that were given away and not begun
        self._thread: Optional[threading.Thread] = None
        self._tried: Optional[Connection] = None  # where no session was to be had until now, and is not before then:
        self._again_at = 0.0
        self._lock = threading.Lock()

    def take(self) -> Optional[JobDir]:
        """The directory of the spare, which is the caller's from now on; None if there is none now."""
        with self._lock:
            session = self._session
            if session is None or not self._remote.uses(session.connection):
                return None
            if time.monotonic() > session.heard + _SILENCE:  # killed, while a job that it has begun holds its output
                session.stream.close()
                return None
            if session.spare is None and time.monotonic() < session.renew_at:
                return None
            session.renew_at = time.monotonic() + _LOST
            if session.spare is not None:
                (name, native_id), session.spare = session.spare, None
                self._given[name] = session, native_id
                return JobDir(f"{self.root}/jobs/{name}")
        if session.asking.acquire(blocking=False):
            try:
                session.stream.send(b"renew\n")
            except OSError as error:
                logger.info("%s: no spare: %s", self._remote.host, error)
            finally:
                session.asking.release()
        return None

    def give_back(self, directory: JobDir) -> None:
        """What `take` has given is not used after all."""
        with self._lock:
            session, native_id = self._given.pop(directory.name, (None, 0))
            if session is not None and session is self._session and session.spare is None:
                session.spare = directory.name, native_id

    def go(self, new: NewDirectory, environment: Mapping[str, str], working_directory: str) -> Optional[int]:
        """Have a spare run a script.

        Parameters
        ----------
        new
            The directory, as it is to be.
        environment
            The script's variables.
        working_directory
            Where it runs.

        Returns
        -------
        int or None
            The process id; None if it is not a directory that `take` has given, or is not there any more.

        Raises
        ------
        Unanswered
            Whether it runs is not known.
        """
        name = JobDir(new.path).name
        with self._lock:
            session, native_id = self._given.pop(name, (None, 0))
        if session is None:
            return None
        moves = [] if working_directory == "." else [f"cd -- {shlex.quote(working_directory)} || exit"]
        words = "\n".join([*moves, *self._remote.environment_lines(environment)])
        parts = [new.files[file][0] if file in new.files else b"" for file in ("script", "environment")]
        parts += [text.encode(errors="surrogateescape") for text in (words, working_directory)]
        lengths = " ".join(str(len(part)) for part in parts)
        self._remote.turns += 1
        try:
            with session.asking:
                session.stream.send(f"go {name} {native_id} {lengths}\n".encode() + b"".join(parts))
                answer = session.answer()
        except OSError as error:
            session.stream.close()
            raise Unanswered(f"{self._remote.host} gave no answer: {error}") from error
        if not answer:
            raise Unanswered(f"the connection to {self._remote.host} was lost, so it gave no answer")
        return native_id if answer == b"went" else None

    def begin(self) -> None:
        """See that there is a spare soon. Does not wait, and makes no connection."""
        with self._lock:
            runs = self._thread is not None and self._thread.is_alive()
            if runs or (time.monotonic() < self._again_at and self._remote.uses(self._tried)):
                return
            self._thread = threading.Thread(target=self._run, name=f"starter of {self._remote.host}", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads may be had
                logger.info("%s: jobs start without a spare: %s", self._remote.host, error)

    def _run(self) -> None:
        program = f"__root={shlex.quote(self.root)} __run={shlex.quote(RUN.decode())}\n{_START}"
        # Not from its input as other programs: a bash that reads its commands there cannot give a child another one.
        lines = f"exec 8< <(printf %s {shlex.quote(program)})\nexec /bin/bash -p /dev/fd/8"
        self._tried, self._again_at = None, time.monotonic() + _REFUSED
        try:
            connection = self._tried = self._remote.connection_for_extras()
            stream = self._remote.open_program(connection, lines)
        except (TransportError, OSError) as error:
            logger.info("%s: jobs start without a spare: %s", self._remote.host, error)
            return
        session = _Session(connection, stream)
        with self._lock:
            self._session = session
        try:
            while True:
                self._take(session, session.line())
        except (OSError, ValueError, IndexError) as error:
            logger.info("%s: no spare any more: %s", self._remote.host, error)
        finally:
            with self._lock:
                self._session = None
                self._given = {name: one for name, one in self._given.items() if one[0] is not session}
            stream.close()
            session.answers.put(b"")

    def _take(self, session: _Session, words: list[bytes]) -> None:
        if words[0] == b"spare" and _NAME.fullmatch(words[1]):
            with self._lock:
                session.spare = words[1].decode(), int(words[2])
                self._again_at = 0.0
        elif words[0] == b"lost":
            with self._lock:
                session.spare, session.renew_at = None, 0.0
        elif words[0] == b"ended":
            outputs = dict(zip(("stdout", "stderr"), words[3:]))
            self._hear(f"{self.root}/jobs/{words[1].decode()}", words[2].decode(errors="replace"), outputs)
        elif words[0] in (b"went", b"gone"):
            session.answers.put(words[0])
        elif words[0] != b"alive":
            logger.warning("%s: the starter said %r", self._remote.host, words)
