"""Reading a file that grows: by offset, in bounded pieces, whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from execute_batch_scheduler.adapters.transport import Growing, Transport

_TAIL = 1 << 16
_LITTLE = 1000  # bytes, as in run.bash: a whole output that is told is no longer


@dataclass(frozen=True)
class Place:
    """Where an output lies.

    Attributes
    ----------
    path
        The file.
    begin
        Where in it the output of the attempt begins.
    attempt
        The number of the attempt; None as long as that is not known.
    over
        Whether the job was queued again: what comes from now on is of another attempt.
    """

    path: str
    begin: int = 0
    attempt: Optional[int] = None
    over: bool = False


class Output:
    """One output stream of a job, read from where the last reading ended.

    Parameters
    ----------
    transport
        Where the file lies.
    place
        Tells where the output is, or None as long as that is not known.
    most
        Show at most this many bytes of its head and of its tail; None shows all.
    wake
        Called when something came, if that shows by itself.

    Attributes
    ----------
    restarts : int
        How often the output began anew: the job was queued again, or its file truncated.
    """

    def __init__(
        self,
        transport: Transport,
        place: Callable[[], Optional[Place]],
        most: Optional[int] = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._place = place
        self._most = most
        self._wake = wake
        self.restarts = 0
        self._file: Optional[Growing] = None
        self._file_restarts = 0
        self._attempt: Optional[int] = None
        self._expected = False  # a truncation showed; the attempt that it belongs to will
        self._drained = False  # the attempt is over, and all of it was read
        self._at = 0  # offset in the file
        self._shown = 0  # bytes
        self._head = b""  # what was read at first, if that is little
        self._finished = False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __repr__(self) -> str:
        place = self._place()
        where = f"in {place.path}" if place else "which has not begun"
        return f"<output {where}: {self._shown:,} bytes read so far; .read() gives what has come since>"

    def read(self) -> str:
        """What has come since, in pieces of bounded size; '' if nothing. Never waits for the job."""
        place = self._place()
        if place is None:
            return ""
        begin = place.begin
        if self._file is None:
            self._open(place.path, begin)
        elif place.attempt != self._attempt and self._attempt is not None:
            if begin > self._at and (text := self._read(begin - self._at)):
                return text  # of the attempt before, to which this one is appended
            if not self._expected:
                self._begin_anew()
                self._open(place.path, max(begin, self._at) if begin else 0)  # appended, or the file was truncated
            self._expected = False
        self._attempt = place.attempt
        self._drained = self._drained and place.over
        if self._drained:
            return ""
        text = self._read(self._transport.piece)
        self._drained = place.over and not text and self._has_all(place.path)
        return text

    def _has_all(self, path: str) -> bool:
        """Whether there is no more to be shown now; that nothing was pushed does not tell it."""
        if self._most is not None and self._shown >= self._most:
            return True
        try:
            return self._transport.size(path) <= self._at
        except FileNotFoundError:
            return True

    def _read(self, most: int) -> str:
        assert self._file is not None
        room = most if self._most is None else min(most, self._most - self._shown)
        if room <= 0:
            return ""
        data = self._file.read(room)
        if self._file.restarts != self._file_restarts:
            self._file_restarts, self._at, self._expected = self._file.restarts, 0, True
            self._begin_anew()
        self._at += len(data)
        self._shown += len(data)
        if self._shown <= _LITTLE:
            self._head += data
        return self._decode(data)

    def _open(self, path: str, offset: int) -> None:
        self._file = self._transport.follow(path, offset, self._wake)
        self._file_restarts, self._at = 0, offset
        if self._finished:
            self._file.finish()

    def _begin_anew(self) -> None:
        self.restarts += 1
        self._shown, self._head = 0, b""
        self._decode(b"", True)

    def finish(self, whole: Optional[bytes] = None) -> None:
        """The job has ended: from now on `read` gives '' at the end of the output alone.

        Parameters
        ----------
        whole
            The whole output, if that is little and known: then no file is read any more.
        """
        self._finished = True
        if self._file is not None:
            self._file.finish()
        if whole is not None and self._at <= len(whole) and not isinstance(self._file, _Told):
            if whole[self._at - len(self._head) : self._at] != self._head:  # replaced, and nobody has seen it yet
                self._at = 0
                self._begin_anew()
            self._file, self._file_restarts = _Told(whole[self._at :]), 0

    def gone(self) -> bool:
        """Whether the job's output should be there, and no file is."""
        place = self._place()
        if place is None:
            return False
        try:
            self._transport.size(place.path)
        except FileNotFoundError:
            return True
        return False

    def rest(self) -> str:
        """When the job has ended and `read` brings no more: half a character that stayed, and the tail."""
        place = self._place()
        if self._most is None or place is None or self._shown < self._most:
            return self._decode(b"", True)
        try:
            size = self._transport.size(place.path)
            left_out = size - self._at - self._most
            tail = self._transport.read(place.path, max(self._at, size - self._most))
        except FileNotFoundError:
            return self._decode(b"", True)
        if left_out <= 0:
            return self._decode(tail, True)
        note = f"\n[... {left_out:,} bytes are not shown; the whole is in {place.path} ...]\n"
        return self._decode(b"", True) + note + tail.decode(errors="replace")


class _Told:
    """What is left to be read of a file, without the file."""

    restarts = 0

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, most: int) -> bytes:
        data, self._data = self._data[:most], self._data[most:]
        return data

    def finish(self) -> None:
        pass  # it has all


def whole(transport: Transport, place: Optional[Place]) -> str:
    """A file's text from where the job's output begins; '' if no file is known. FileNotFoundError if it is gone."""
    return "" if place is None else text(transport.read(place.path, place.begin))


def text(data: bytes) -> str:
    """Output as it is shown: what is no text does no harm."""
    return data.decode(errors="replace")


def last_lines(transport: Transport, path: Optional[str], whole: Optional[bytes] = None, count: int = 10) -> list[str]:
    """The last lines of a file, without reading the rest; or of what is known to be in it."""
    if path is None:
        return []
    try:
        data = transport.read(path, max(0, transport.size(path) - _TAIL)) if whole is None else whole
    except FileNotFoundError:
        return []
    return text(data).splitlines()[-count:]
