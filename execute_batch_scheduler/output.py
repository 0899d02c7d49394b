"""Reading a file that grows: by offset, in bounded pieces, whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Optional

from execute_batch_scheduler.adapters.transport import Transport

_PIECE = 1 << 16
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
    """

    def __init__(self, transport: Transport, place: Callable[[], Optional[Place]], most: Optional[int] = None) -> None:
        self._transport = transport
        self._place = place
        self._most = most
        self._begin: Optional[int] = None
        self._offset = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __repr__(self) -> str:
        place = self._place()
        where = f"in {place[0]}" if place else "which has not begun"
        return f"<output {where}: {self._shown():,} bytes read so far; .read() gives what has come since>"

    def read(self) -> str:
        """What has come since, at most 64 KiB; '' if nothing. Never blocks."""
        place = self._place()
        if place is None:
            return ""
        path, begin = place
        if self._begin is None:
            self._begin = self._offset = begin
        try:
            data = self._piece(path)
            if not data and self._offset and self._transport.size(path) < self._offset:
                self._begin = self._offset = 0  # truncated, as by a requeue: it begins anew
                self._decode(b"", True)
                data = self._piece(path)
        except FileNotFoundError:
            return ""
        self._offset += len(data)
        return self._decode(data)

    def _piece(self, path: str) -> bytes:
        size = _PIECE if self._most is None else min(_PIECE, self._most - self._shown())
        return self._transport.read(path, self._offset, size) if size > 0 else b""

    def rest(self) -> str:
        """When the job has ended and `read` brings no more: half a character that stayed, and the tail."""
        place = self._place()
        if self._most is None or place is None or self._shown() < self._most:
            return self._decode(b"", True)
        path = place[0]
        try:
            size = self._transport.size(path)
            left_out = size - self._offset - self._most
            tail = self._transport.read(path, max(self._offset, size - self._most))
        except FileNotFoundError:
            return self._decode(b"", True)
        if left_out <= 0:
            return self._decode(tail, True)
        note = f"\n[... {left_out:,} bytes are not shown; the whole is in {path} ...]\n"
        return self._decode(b"", True) + note + tail.decode(errors="replace")

    def _shown(self) -> int:
        return self._offset - (self._begin or 0)


def whole(transport: Transport, place: Optional[Place]) -> str:
    """All of a file's text from where the job's output begins; '' where there is none."""
    if place is None:
        return ""
    try:
        return transport.read(*place).decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_lines(transport: Transport, path: Optional[str], count: int = 10) -> list[str]:
    """The last lines of a file, without reading the rest."""
    if path is None:
        return []
    try:
        start = max(0, transport.size(path) - _PIECE)
        lines = transport.read(path, start).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:]
