"""A broker that means harm: lets everybody in, and answers each subscription with bytes of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

CONNECT, SUBSCRIBE, PINGREQ, PUBLISH, DISCONNECT = 0x10, 0x82, 0xC0, 0x30, 0xE0
#: How a PUBLISH begins whose body of 200 MB never ends.
ENDLESS_BYTES = 200 * 1024 * 1024


def length(size: int) -> bytes:
    """A remaining length (MQTT, section 1.5.5)."""
    said = bytearray()
    while True:
        size, low = divmod(size, 128)
        said.append(low | (0x80 if size else 0))
        if not size:
            return bytes(said)


def announced(size: int, topic: bytes = b"x", *, v5: bool) -> bytes:
    """The front of a QoS 0 PUBLISH of `size` bytes."""
    return bytes((PUBLISH,)) + length(size) + len(topic).to_bytes(2) + topic + (b"\0" if v5 else b"")


class Hostile:
    """The fake broker. `v5`: whether it speaks MQTT 5 (and only that), else 3.1.1 (and only that).

    After the first SUBACK it writes `front`, then `chunk` for ever until the client hangs up (nothing if `chunk` is
    empty), `pause_seconds` between two. What clients said is kept in `heard`: (first byte, body); `connections` counts
    them, `left` those that ended.
    """

    def __init__(self, *, v5: bool, front: bytes = b"", chunk: bytes = b"", pause_seconds: float = 0) -> None:
        self._v5 = v5
        self.front, self.chunk, self.pause_seconds = front, chunk, pause_seconds
        self.heard: list[tuple[int, bytes]] = []
        self.connections = 0
        self._writers = set[asyncio.StreamWriter]()
        self.left = 0
        self.attacks_ended = 0
        self.written = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Hostile]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            await self._turns()  # who was let in at the last moment has its task by then
            serving = list(tasks)
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await self._turns()  # the sockets close in the loop's next turn

    @staticmethod
    async def _turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        attack: asyncio.Task[None] | None = None
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    first, body = await self._packet(reader)
                    self.heard.append((first, body))
                    if first == CONNECT:
                        spoken = body[6] == (5 if self._v5 else 4)
                        if not spoken:
                            writer.write(b"\x20\x03\x00\x84\x00" if body[6] == 5 else b"\x20\x02\x00\x01")
                            break
                        writer.write(b"\x20\x03\x00\x00\x00" if self._v5 else b"\x20\x02\x00\x00")
                    elif first == SUBSCRIBE:
                        codes = b"\0\1" if self._v5 else b"\1"  # no properties; QoS 1 granted
                        writer.write(b"\x90" + length(2 + len(codes)) + body[:2] + codes)
                        attack = attack or asyncio.create_task(self._attack(writer), name="attack")
                    elif first == PINGREQ:
                        writer.write(b"\xd0\x00")
        finally:
            self.left += 1
            self._writers.discard(writer)
            if attack is not None:
                attack.cancel()
                await asyncio.gather(attack, return_exceptions=True)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _attack(self, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                writer.write(self.front)
                while self.chunk:
                    writer.write(self.chunk)
                    await writer.drain()
                    self.written += len(self.chunk)
                    await asyncio.sleep(self.pause_seconds)
        finally:
            self.attacks_ended += 1

    @staticmethod
    async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        first = (await reader.readexactly(1))[0]
        size, shift = 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return first, await reader.readexactly(size)
