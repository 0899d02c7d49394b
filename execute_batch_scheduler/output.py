"""Reading a file that grows: by offset, in bounded pieces, whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Optional

from execute_batch_scheduler.adapters.transport import Growing, Transport

_TAIL = 1 << 16
Place = tuple[str, int]


class Output:
    """One output stream of a job, read from where the last reading ended.

    Parameters
    ----------
    transport
        Where the file lies.
    place
        Tells the file's path and where in it the job's output begins, or None as long as that is not known.
    most
        Show at most this many bytes of its head and of its tail; None shows all.
    wake
        Called when something came, if that shows by itself.
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
        self._file: Optional[Growing] = None
        self._restarts = 0
        self._shown = 0  # bytes
        self._finished = False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __repr__(self) -> str:
        place = self._place()
        where = f"in {place[0]}" if place else "which has not begun"
        return f"<output {where}: {self._shown:,} bytes read so far; .read() gives what has come since>"

    def read(self) -> str:
        """What has come since, in pieces of bounded size; '' if nothing. Never waits for the job."""
        if self._file is None:
            place = self._place()
            if place is None:
                return ""
            self._file = self._transport.follow(*place, self._wake)
            if self._finished:
                self._file.finish()
        room = self._transport.piece if self._most is None else min(self._transport.piece, self._most - self._shown)
        if room <= 0:
            return ""
        data = self._file.read(room)
        if self._file.restarts != self._restarts:  # truncated, as by a requeue: it begins anew
            self._restarts = self._file.restarts
            self._decode(b"", True)
            self._shown = 0
        self._shown += len(data)
        return self._decode(data)

    def finish(self) -> None:
        """The job has ended: from now on `read` gives '' at the end of the output alone."""
        self._finished = True
        if self._file is not None:
            self._file.finish()

    def rest(self) -> str:
        """When the job has ended and `read` brings no more: half a character that stayed, and the tail."""
        place = self._place()
        if self._most is None or place is None or self._shown < self._most:
            return self._decode(b"", True)
        path, begin = place
        end = self._shown + (0 if self._restarts else begin)
        try:
            size = self._transport.size(path)
            left_out = size - end - self._most
            tail = self._transport.read(path, max(end, size - self._most))
        except FileNotFoundError:
            return self._decode(b"", True)
        if left_out <= 0:
            return self._decode(tail, True)
        note = f"\n[... {left_out:,} bytes are not shown; the whole is in {path} ...]\n"
        return self._decode(b"", True) + note + tail.decode(errors="replace")


def whole(transport: Transport, place: Optional[Place]) -> str:
    """A file's text from where the job's output begins; '' if no file is known. FileNotFoundError if it is gone."""
    return "" if place is None else transport.read(*place).decode(errors="replace")


def last_lines(transport: Transport, path: Optional[str], count: int = 10) -> list[str]:
    """The last lines of a file, without reading the rest."""
    if path is None:
        return []
    try:
        start = max(0, transport.size(path) - _TAIL)
        lines = transport.read(path, start).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:]
