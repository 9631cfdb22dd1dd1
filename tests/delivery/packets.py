"""A proxy that knows where MQTT's packets begin and end, so that a test can lose exactly one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from agent.contract.messages import Message
from tests.proxy import Proxy

_PUBLISH, _PUBACK = 3, 4


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of MQTT (3.1.1 or 5); `down` is from the broker to the client."""

    raw: bytes
    down: bool

    @property
    def acknowledges(self) -> int | None:
        """The packet id that a PUBACK names; None for anything else."""
        at = _front(self.raw)[1]
        return int.from_bytes(self.raw[at : at + 2]) if self.raw[0] >> 4 == _PUBACK else None

    @property
    def packet_id(self) -> int:
        """The id of a PUBLISH; 0 at QoS 0."""
        assert self.raw[0] >> 4 == _PUBLISH, "only a PUBLISH is asked for its id"
        at = _front(self.raw)[1]
        at += 2 + int.from_bytes(self.raw[at : at + 2])  # behind its topic
        return int.from_bytes(self.raw[at : at + 2]) if self.raw[0] & 0x06 else 0

    def says(self, kind: type[Message]) -> bool:
        """Whether it publishes a message of this type."""
        return self.raw[0] >> 4 == _PUBLISH and f'"type":"{kind.TYPE}"'.encode() in self.raw


class PacketProxy(Proxy):
    """`passes` sees each packet before it goes on and says whether it does; who is `barred` gets no connection.

    While `flowing` is cleared, what the broker says waits: it is late, and not lost.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.passes: Callable[[Packet], bool] = lambda _: True
        self.barred = False
        self.flowing = asyncio.Event()
        self.flowing.set()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def bar(self) -> None:
        """Break every connection and let nobody in until `barred` is False."""
        self.barred = True
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.barred:
            writer.transport.abort()
            return
        await super()._serve(reader, writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, down: bool) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                buffer += data
                while size := _whole(buffer):
                    packet, buffer = Packet(buffer[:size], down), buffer[size:]
                    if down:
                        await self.flowing.wait()
                    if self.passes(packet) and not (down and self.deaf):
                        sink.write(packet.raw)
                await sink.drain()
        sink.close()


def _front(data: bytes) -> tuple[int, int]:
    """(remaining length, where it begins); (0, 0) while the length is not whole (MQTT 5, section 1.5.5)."""
    length = 0
    for at, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return length, at + 2
    return 0, 0


def _whole(data: bytes) -> int:
    """The size of the first packet if all of it is there, else 0."""
    length, begin = _front(data)
    return begin + length if begin and len(data) >= begin + length else 0
