"""A bad line to a server on this machine: a TCP proxy that delays, holds back, cuts and counts.

All settings may change while connections are open. What is in flight keeps its order.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Optional, Union, cast

from tests.services.background import Background

_MOST = 16 << 20  # bytes that one direction of a connection holds; then the sender has to wait


class _End(Enum):
    CLOSED = auto()
    RESET = auto()


@dataclass(frozen=True)
class Counts:
    """What has passed: subtract one from another."""

    connections: int = 0
    up: int = 0
    down: int = 0
    turns: int = 0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.connections - other.connections, self.up - other.up, self.down - other.down, self.turns - other.turns
        )


class Proxy:
    """Passes connections on to a server while the block runs.

    `delay` is added in each direction, in seconds, and does not limit how much is on its way; connecting itself is not
    delayed. `connections` counts
    those passed on; `up` and `down` count bytes to and from the server; `turns` counts how often, within a connection,
    the server spoke after the client did: the round trips.
    """

    def __init__(self, host: str, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        self.port = 0
        self.connections = self.up = self.down = self.turns = 0
        self._server = (host, port)
        self._lines: set[_Line] = set()
        self._limit: Optional[int] = None
        self._once = True
        self._refused = False
        self._stalled = False

    def __enter__(self) -> Proxy:
        self._background = Background("proxy")
        self._background.run(self._listen())
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._background.run(self._close())
        self._background.stop()

    @property
    def counts(self) -> Counts:
        """The counters as they are now."""
        return Counts(self.connections, self.up, self.down, self.turns)

    @property
    def open(self) -> int:
        """The number of connections there are now."""
        return len(self._lines)

    def cut(self) -> None:
        """Reset all connections there are now. What was on its way is lost."""
        self._background.run(self._cut())

    def cut_after(self, count: Optional[int], once: bool = True) -> None:
        """Reset a connection when it has passed so many more bytes from the server, and not one more.

        This happens to the first connection that comes so far, or without `once` to each, later ones included.
        None calls it off.
        """
        self._background.run(self._cut_after(count, once))

    def stall(self) -> None:
        """Pass nothing on, not even an end; connections stay open, and new ones are taken and get no answer."""
        self._stalled = True

    def resume(self) -> None:
        """Pass everything on that was held back."""
        self._background.run(self._resume())

    def refuse(self, refused: bool = True) -> None:
        """Close new connections at once; those that are open go on."""
        self._refused = refused

    async def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Side(_Line(self), "client"), sock=listener)

    async def _cut(self) -> None:
        for line in list(self._lines):
            line.reset()
        await asyncio.sleep(0)  # sockets are closed in the next round

    async def _cut_after(self, count: Optional[int], once: bool) -> None:
        self._limit, self._once = count, once
        for line in self._lines:
            line.left = count

    async def _resume(self) -> None:
        self._stalled = False
        for line in list(self._lines):
            line.client.flush()
            line.server.flush()

    async def _close(self) -> None:
        self._listener.close()
        await self._cut()


class _Line:
    """One connection: its two sides."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.left = proxy._limit
        self.last = ""
        self.connected = False
        self.doomed = False
        self.server = _Side(self, "server")

    def opened(self, client: _Side) -> None:
        self.client = client
        if self.proxy._refused:
            client.close(reset=False)
            return
        self.proxy.connections += 1
        self.proxy._lines.add(self)
        self._connecting = asyncio.ensure_future(self._connect())  # a task that nobody holds may vanish

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy._server)
        except OSError:
            self.reset()
            return
        if self not in self.proxy._lines:  # it was cut meanwhile
            self.server.close(reset=True)
        self.connected = True
        self.client.flush()

    def count(self, name: str, size: int) -> None:
        if name == "client":
            self.proxy.up += size
        else:
            self.proxy.down += size
            self.proxy.turns += self.last == "client"
        self.last = name

    def allowed(self, name: str, data: bytes) -> bytes:
        """As much of what a side has sent as may pass; the line breaks when that is delivered."""
        if name == "client" or self.left is None:
            return data
        data = data[: self.left]
        self.left -= len(data)
        if self.left == 0:
            self.doomed = True
            if self.proxy._once:
                self.proxy._limit = None
                for line in self.proxy._lines:
                    line.left = None
        return data

    def reset(self) -> None:
        self._end(reset=True)

    def finish(self) -> None:
        """Close the line when both directions have ended."""
        if self.client.passed_end and self.server.passed_end:
            self._end(reset=False)

    def _end(self, reset: bool) -> None:
        self.proxy._lines.discard(self)
        self.client.close(reset)
        self.server.close(reset)


class _Side(asyncio.Protocol):
    """One side of a line, and what it has sent that the other side has not got yet."""

    transport: Optional[asyncio.Transport] = None

    def __init__(self, line: _Line, name: str) -> None:
        self.line = line
        self.name = name
        self.passed_end = False
        self._waiting: deque[tuple[float, Union[bytes, _End]]] = deque()
        self._size = 0
        self._full = False  # the socket takes no more for now
        self._timer: Optional[asyncio.TimerHandle] = None

    @property
    def other(self) -> _Side:
        return self.line.server if self.name == "client" else self.line.client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(0)  # so `_full` means that something is not with the system yet
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.name == "client":
            self.line.opened(self)

    def data_received(self, data: bytes) -> None:
        self.line.count(self.name, len(data))
        self._size += len(data)
        self._put(data)
        if self._size > _MOST and self.transport:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._put(_End.CLOSED)
        return True  # the other direction goes on

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.transport = None
        if error is not None:
            self._put(_End.RESET)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.other.flush()

    def close(self, reset: bool) -> None:
        self._waiting.clear()
        if self._timer:
            self._timer.cancel()
        if self.transport is None:
            return
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        else:
            self.transport.close()

    def _put(self, what: Union[bytes, _End]) -> None:
        self._waiting.append((asyncio.get_running_loop().time() + self.line.proxy.delay, what))
        self.flush()

    def flush(self) -> None:
        """Hand on what is due."""
        loop, target = asyncio.get_running_loop(), self.other
        if self.name == "client" and not self.line.connected:
            return
        while not target._full and not self.line.proxy._stalled:
            if self.line.doomed and self.name == "server":  # all that may pass has been delivered
                self.line.reset()
            if not self._waiting:
                return
            due, what = self._waiting[0]
            if due > loop.time():
                if self._timer:
                    self._timer.cancel()
                self._timer = loop.call_at(due, self.flush)
                return
            self._waiting.popleft()
            if what is _End.RESET:
                self.line.reset()
            elif what is _End.CLOSED:
                self.passed_end = True
                if target.transport:
                    target.transport.write_eof()
                self.line.finish()
            elif isinstance(what, bytes):
                self._pass(what, target)

    def _pass(self, data: bytes, target: _Side) -> None:
        self._size -= len(data)
        if self.transport and self._size <= _MOST and not self.transport.is_reading():
            self.transport.resume_reading()
        if target.transport:
            target.transport.write(self.line.allowed(self.name, data))
