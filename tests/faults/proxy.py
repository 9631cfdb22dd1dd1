"""A TCP proxy that knows where MQTT packets end, so that it can do to them what networks and brokers do.

It delays, repeats and swaps whole packets, goes deaf in one direction, and cuts connections. TCP cannot lose a packet
and go on, so whoever was deaf is cut in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tests.faults.frames import (
    CONNECT,
    PUBLISH,
    Published,
    Splitter,
    kind,
    may_come_twice,
    once_more,
    published,
    version,
)

UP, DOWN = "up", "down"  # to the broker, and from it
#: A repeated packet comes this much later: by then the first one was acknowledged, so it is told apart by its id only.
REPEAT_SECONDS = 0.4
#: A packet that is held back for the next one waits no longer than this.
HOLD_SECONDS = 0.8
_CLOSED = b""

OnPublish = Callable[[str, Published], None]


@dataclass(slots=True)
class Weather:
    """What happens to the packets of every connection now. `deaf` has the directions in which nothing arrives."""

    delay_seconds: float = 0
    repeat: bool = False
    swap: bool = False
    deaf: set[str] = field(default_factory=set)


class Proxy:
    """Between one client and the broker, on a port of its own. `on_publish` hears of each PUBLISH that passed."""

    def __init__(self, name: str, broker_port: int, on_publish: OnPublish) -> None:
        self.name = name
        self.port = 0
        self.weather = Weather()
        self._broker_port = broker_port
        self._on_publish = on_publish
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def calm(self) -> None:
        """Good weather."""
        self.weather = Weather()

    def cut(self) -> None:
        """Break every connection with a reset: no goodbye."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, out = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        for each in (writer, out):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers |= {writer, out}
        said = _Said()
        ways = [_Way(self, UP, reader, out, said), _Way(self, DOWN, upstream, writer, said)]
        for work in [part for way in ways for part in (way.read(), way.write())]:
            task = asyncio.create_task(work, name=f"proxy {self.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def passed(self, direction: str, packet: bytes, level: int) -> None:
        """A packet was passed on."""
        if kind(packet) == PUBLISH:
            self._on_publish(direction, published(packet, level))

    def let_go(self, writer: asyncio.StreamWriter) -> None:
        """One end is gone, and everything that it had said was passed on."""
        self._writers.discard(writer)
        writer.close()


@dataclass(slots=True)
class _Said:
    """What both directions of a connection must know: the protocol that its CONNECT named."""

    level: int = 5


@dataclass(slots=True)
class _Way:
    """One direction of one connection: packets are read at once, and written when it is their time, in order."""

    proxy: Proxy
    direction: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    said: _Said
    _waiting: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    _held: bytes = b""

    async def read(self) -> None:
        splitter, loop = Splitter(), asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65536):
                for packet in splitter.feed(data):
                    if kind(packet) == CONNECT:
                        self.said.level = version(packet)
                    self._waiting.put_nowait((loop.time() + self.proxy.weather.delay_seconds, packet))
        self._waiting.put_nowait((0, _CLOSED))

    async def write(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                try:
                    due, packet = await asyncio.wait_for(self._waiting.get(), HOLD_SECONDS if self._held else None)
                except TimeoutError:
                    self._release()
                    continue
                await asyncio.sleep(max(0, due - loop.time()))
                if packet == _CLOSED:
                    break
                self._pass(packet)
                await self.writer.drain()
        self.proxy.let_go(self.writer)

    def _pass(self, packet: bytes) -> None:
        weather = self.proxy.weather
        if weather.swap and not self._held and may_come_twice(packet):
            self._held = packet  # it leaves after the next one
            return
        self._put(packet)
        if kind(packet) == PUBLISH:
            self._release()
        if weather.repeat and may_come_twice(packet):
            asyncio.get_running_loop().call_later(REPEAT_SECONDS, self._put, once_more(packet))

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._put(held)

    def _put(self, packet: bytes) -> None:
        if self.direction in self.proxy.weather.deaf or self.writer.is_closing():
            return
        self.writer.write(packet)
        self.proxy.passed(self.direction, packet, self.said.level)
