"""What is new on another machine, as it comes: over there, `feed.bash` watches marks and growing files, and pushes."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Optional
from weakref import WeakValueDictionary

from execute_batch_scheduler.adapters.shell import Connection, Stream
from execute_batch_scheduler.adapters.transport import Refused, TransportError, an_hour_ago

if TYPE_CHECKING:
    from execute_batch_scheduler.adapters.remote import Remote

logger = logging.getLogger(__name__)

_FEED = Path(__file__).with_name("feed.bash").read_text()
_WINDOW = 1 << 22  # bytes of a growing file that may be under way or unread
_CHUNK = 1 << 20
_SILENCE = 20.0  # seconds without a sign of life after which a connection is given up; one comes each five
_PAUSES = (0.2, 0.5, 1, 2, 5, 10)  # before a connection is tried again
_REFUSED = 300.0  # the same where we are not let in: a site counts that


class _Marks:
    def __init__(self, feed: Feed, number: int, folder: str, wake: Callable[[], None]) -> None:
        self._feed = feed
        self._number = number
        self.folder = folder
        self.wake = wake
        self.seen: set[str] = set()
        self.resting = False
        self._fresh: dict[str, Optional[str]] = {}
        self._lock = threading.Lock()

    def begin(self) -> str:
        """The line that lets the feed begin, or go on."""
        return f"marks {self._number} {an_hour_ago()} {self.folder}"

    def take(self, name: str, record: Optional[str]) -> None:
        with self._lock:
            if record is None and name in self.seen:
                return  # known from before the connection was lost
            self.seen.add(name)
            self._fresh[name] = record or None
        self.wake()

    def fresh(self) -> dict[str, Optional[str]]:
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            return fresh

    def hurry(self) -> None:
        self.resting = False
        self._feed.need()
        self._feed.say("")

    def rest(self) -> None:
        self.resting = True


class _Growing:
    def __init__(self, feed: Feed, number: int, remote: Remote, path: str, offset: int, wake: Callable[[], None]):
        self.restarts = 0
        self.wake = wake
        self._feed = feed
        self._number = number
        self._remote = remote
        self._path = path
        self._offset = offset  # up to where it was read by our user
        self._waiting = bytearray()  # what has come since
        self._granted = 0
        self._finished = False
        self._lock = threading.Lock()

    def begin(self) -> str:
        """The line that lets the feed begin, or go on."""
        with self._lock:
            at = self._offset + len(self._waiting)
            self._granted = self._offset + _WINDOW
            return f"follow {self._number} {at} {self._granted} {self._path}"

    def take(self, data: bytes) -> None:
        with self._lock:
            if self._finished:
                return  # it is read from where this would have begun
            self._waiting += data
        self.wake()

    def again(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._offset = 0
            self.restarts += 1
            self._granted = _WINDOW
        self._feed.say(f"more {self._number} {_WINDOW}")

    def read(self, most: int) -> bytes:
        with self._lock:
            data = bytes(memoryview(self._waiting)[:most])
            del self._waiting[:most]
            self._offset += len(data)
            grant = self._offset + _WINDOW if self._granted - self._offset < _WINDOW // 2 else 0
            self._granted = grant or self._granted
        if data or not self._finished:
            if grant and not self._finished:
                self._feed.say(f"more {self._number} {grant}")
            return data
        try:
            data = self._remote.read(self._path, self._offset, most)
            if not data and self._offset and self._remote.size(self._path) < self._offset:
                self.restarts += 1
                self._offset = 0
                data = self._remote.read(self._path, 0, most)
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data

    def finish(self) -> None:
        with self._lock:
            self._finished = True
        self._feed.forget(self._number)


class Feed:
    """The client's end of `feed.bash`: one thread that takes what is pushed, and connects again when that stops."""

    def __init__(self, remote: Remote, host: str) -> None:
        self._remote = remote
        self._items: WeakValueDictionary[int, _Marks | _Growing] = WeakValueDictionary()
        self._begun: set[int] = set()  # what the other end holds, also of items that nobody here has any more
        self._next = 0
        self._stream: Optional[Stream] = None
        self._lock = threading.RLock()
        self._needed = threading.Event()
        self._paused = False
        self.ready = threading.Event()
        """Set while it has a session."""
        threading.Thread(target=self._run, name=f"feed of {host}", daemon=True).start()

    def marks(self, folder: str, wake: Callable[[], None]) -> _Marks:
        with self._lock:
            self._next += 1
            item = self._items[self._next] = _Marks(self, self._next, folder, wake)
            self._begin(item)
            return item

    def follow(self, path: str, offset: int, wake: Callable[[], None]) -> _Growing:
        with self._lock:
            self._next += 1
            item = self._items[self._next] = _Growing(self, self._next, self._remote, path, offset, wake)
            self._begin(item)
            return item

    def need(self) -> None:
        """Have it connect again, where it has not as nobody waited for anything."""
        with self._lock:
            self._needed.set()

    def _begin(self, item: _Marks | _Growing) -> None:
        self._needed.set()
        self._begun.add(self._next)
        self.say(item.begin())

    def forget(self, number: int) -> None:
        with self._lock:
            self._items.pop(number, None)
            self._begun.discard(number)
        self.say(f"forget {number}")

    def say(self, line: str) -> None:
        """Tell the feed; if the connection is broken, it is told all that counts when there is a new one."""
        with self._lock:
            if self._stream is None:
                return
            try:
                self._stream.send(f"{line}\n".encode(errors="surrogateescape"))
            except OSError:
                self._stream.close()

    def pause(self) -> None:
        """From the end of this connection on, wait until somebody else makes one."""
        self._paused = True

    def _run(self) -> None:
        failures = 0
        connection: Optional[Connection] = None
        while True:
            self._needed.wait()
            if self._paused:
                self._wait_for_another_than(connection)
                self._paused = False
            marker = secrets.token_hex(16)
            refused = False
            try:
                connection = None
                connection = self._remote.connection()
                stream = self._remote.open_program(connection, f"marker={marker} chunk={_CHUNK}\n{_FEED}\nexit")
                with self._lock:
                    self._stream = stream
                    self._begun = set(self._items)
                    for item in list(self._items.values()):
                        self.say(item.begin())
                self.ready.set()
                frames = _Frames(stream, marker)
                while True:
                    self._take(*frames.next())
                    failures = 0
            except (TransportError, OSError, ValueError) as error:  # ValueError: ssh's last words
                logger.info("%s: the feed ended, and will be begun again: %s", self._remote.host, error)
                refused = isinstance(error, Refused)
                if isinstance(error, TimeoutError):
                    self._remote.close()  # no sign of life
            except Exception:
                logger.exception("%s: the feed failed, and will be begun again", self._remote.host)
            self.ready.clear()
            with self._lock:
                stream_was, self._stream = self._stream, None
                if all(isinstance(item, _Marks) and item.resting for item in self._items.values()):
                    self._needed.clear()
            if stream_was is not None:
                stream_was.close()
            pause = _REFUSED if refused else _PAUSES[min(failures, len(_PAUSES) - 1)]
            self._wait_for_another_than(connection, pause)
            failures += 1

    def _wait_for_another_than(self, connection: Optional[Connection], most: Optional[float] = None) -> None:
        """Wait until somebody else has made a connection, as by a login, but not longer."""
        self._remote.connected.clear()
        if not self._remote.has_other(connection):
            self._remote.connected.wait(most)

    def _take(self, words: list[str], data: bytes) -> None:
        verb, number = words[0], int(words[1]) if len(words) > 1 else 0
        item = self._items.get(number)
        if isinstance(item, _Marks):
            if verb == "old":
                item.take(words[2], None)
            elif verb == "mark":
                item.take(words[2], data.decode(errors="replace"))
        elif isinstance(item, _Growing):
            if verb == "data":
                item.take(data)
            elif verb == "again":
                item.again()
        elif verb == "alive":
            with self._lock:
                dropped = self._begun - set(self._items)
            for one in dropped:
                self.forget(one)
        elif number:
            self.forget(number)


class _Frames:
    def __init__(self, stream: Stream, marker: str) -> None:
        self._stream = stream
        self._end = f"\n{marker}\n".encode()
        self._buffer = bytearray()

    def next(self) -> tuple[list[str], bytes]:
        """The words of a frame's first line, and its data."""
        words = self._until(b"\n").decode(errors="surrogateescape").split(" ")
        return words, self._until(self._end) if words[0] in ("data", "mark") else b""

    def _until(self, mark: bytes) -> bytes:
        start = 0
        while (at := self._buffer.find(mark, start)) < 0:
            start = max(0, len(self._buffer) - len(mark) + 1)
            piece = self._stream.receive(_SILENCE)
            if not piece:
                raise ConnectionError("its end came")
            self._buffer += piece
        found = bytes(memoryview(self._buffer)[:at])
        del self._buffer[: at + len(mark)]
        return found
