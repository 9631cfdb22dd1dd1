"""A hostile broker: a proxy that reads every message on its way to one client, and passes on what it likes instead."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

from tests.faults.frames import CONNECT, PUBLISH, Splitter, kind, published, version

#: Topic and payload to what is delivered instead; one that is None is kept back.
Rewrite = Callable[[str, bytes], bytes | None]


class HostileBroker:
    """Between a client and the broker. What comes down is rewritten; all that was seen is in `seen`.

    `client_tls` is what it shows to the client, `broker_tls` how it connects to the broker; None is without TLS.
    """

    def __init__(
        self,
        broker_port: int,
        rewrite: Rewrite,
        *,
        client_tls: ssl.SSLContext | None = None,
        broker_tls: ssl.SSLContext | None = None,
    ) -> None:
        self._broker_port = broker_port
        self._client_tls = client_tls
        self._broker_tls = broker_tls
        self.rewrite = rewrite
        self.seen: list[tuple[str, bytes]] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"mqtt{'s' if self._client_tls else ''}://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[HostileBroker]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._client_tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, out = await asyncio.open_connection("127.0.0.1", self._broker_port, ssl=self._broker_tls)
        level = 5

        def up(packet: bytes) -> bytes | None:
            nonlocal level
            if kind(packet) == CONNECT:
                level = version(packet)
            return packet

        def down(packet: bytes) -> bytes | None:
            return self._changed(packet, level) if kind(packet) == PUBLISH else packet

        for source, sink, change in ((reader, out, up), (upstream, writer, down)):
            task = asyncio.create_task(_pump(source, sink, change), name="hostile broker")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _changed(self, packet: bytes, level: int) -> bytes | None:
        message = published(packet, level)
        self.seen.append((message.topic, message.payload))
        instead = self.rewrite(message.topic, message.payload)
        if instead is None or instead == message.payload:
            return None if instead is None else packet
        at = 1
        while packet[at] & 0x80:
            at += 1
        front = packet[at + 1 : len(packet) - len(message.payload)]
        return packet[:1] + _length(len(front) + len(instead)) + front + instead


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes | None]
) -> None:
    splitter = Splitter()
    try:
        while data := await source.read(65536):
            for packet in splitter.feed(data):
                changed = change(packet)
                if changed is not None:
                    sink.write(changed)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


def _length(value: int) -> bytes:
    """MQTT's variable byte integer (section 1.5.5)."""
    encoded = bytearray()
    while True:
        value, byte = divmod(value, 128)
        encoded.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
