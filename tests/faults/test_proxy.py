"""The proxy cuts streams into packets, and does to them what it is told, with a real client and a real broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions, Publication
from tests.brokers import Mosquitto
from tests.faults import frames
from tests.faults.proxy import DOWN, UP, Proxy
from tests.strays import until

WITHIN_SECONDS = 10


def packet(first: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([size % 128 | 0x80, size // 128])
    return bytes([first]) + length + body


def publish(topic: str, payload: bytes, *, properties: bytes = b"\0") -> bytes:
    return packet(0x32, len(topic).to_bytes(2) + topic.encode() + b"\0\7" + properties + payload)


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1000])
def test_a_stream_is_cut_where_its_packets_end_whatever_its_pieces(pieces: int) -> None:
    packets = [packet(0xC0, b""), publish("a/b", b"x" * 300), packet(0x40, b"\0\7"), publish("c", b"")]
    stream = b"".join(packets)
    splitter, found = frames.Splitter(), []
    for at in range(0, len(stream), pieces):
        found += splitter.feed(stream[at : at + pieces])
    assert found == packets


def test_a_publish_is_read_in_both_versions() -> None:
    assert frames.published(publish("a/b", b"hello"), 5) == frames.Published("a/b", b"hello")
    assert frames.published(publish("a/b", b"hello", properties=b"\2\1\1"), 5).payload == b"hello"
    assert frames.published(publish("a/b", b"hello", properties=b""), 4).payload == b"hello"
    assert frames.version(packet(0x10, b"\0\4MQTT\5\0")) == 5


def test_only_a_publish_of_qos_1_may_come_twice_and_says_so() -> None:
    once = publish("a", b"x")
    assert frames.may_come_twice(once)
    assert not frames.may_come_twice(bytes([0x30]) + once[1:])
    assert not frames.may_come_twice(packet(0x40, b"\0\7"))
    assert frames.once_more(once) == bytes([0x3A]) + once[1:]


class Listener:
    """A client behind the proxy: what it got, in order."""

    def __init__(self, url: str, topic: str) -> None:
        self.got: list[bytes] = []
        self.breaks = 0
        options = LinkOptions(f"listener-{topic}", ((topic, 1),), session_expiry_seconds=60)
        self.link = Link(parse_broker(url), options)
        self.up = asyncio.Event()

    async def listen(self) -> None:
        async for event in self.link.events():
            if isinstance(event, Delivery):
                self.got.append(event.payload)
                event.ack()
            self.up.set() if isinstance(event, Connected) else None
            self.breaks += isinstance(event, Disconnected)

    async def has(self, count: int) -> None:
        await until(lambda: len(self.got) >= count, f"{count} messages")


@contextlib.asynccontextmanager
async def stage(broker: Mosquitto, topic: str) -> AsyncIterator[tuple[Proxy, Listener, Link, list[str]]]:
    passed: list[str] = []
    proxy = Proxy("test", broker.port, lambda way, said: passed.append(f"{way} {said.payload.decode()}"))
    async with proxy.serving():
        listener = Listener(proxy.url, topic)
        async with listener.link, Link(parse_broker(broker.url), LinkOptions(f"sender-{topic}")) as sender:
            task = asyncio.create_task(listener.listen())
            await asyncio.wait_for(listener.up.wait(), WITHIN_SECONDS)
            await sender.wait_up(WITHIN_SECONDS)
            yield proxy, listener, sender, passed
            task.cancel()


pytestmark = pytest.mark.broker


async def test_in_good_weather_everything_passes_and_is_told(mosquitto: Mosquitto, topics_root: str) -> None:
    async with stage(mosquitto, topics_root) as (_, listener, sender, passed):
        await sender.publish(Publication(topics_root, b"1"))
        await listener.has(1)
        await listener.link.publish(Publication("elsewhere", b"2"))
    assert passed == [f"{DOWN} 1", f"{UP} 2"]


async def test_it_swaps_a_message_with_the_next(mosquitto: Mosquitto, topics_root: str) -> None:
    async with stage(mosquitto, topics_root) as (proxy, listener, sender, _):
        proxy.weather.swap = True
        for text in (b"1", b"2", b"3"):
            await sender.publish(Publication(topics_root, text))
        await listener.has(3)
        assert listener.got == [b"2", b"1", b"3"]


async def test_it_repeats_a_message_after_it_was_acknowledged(mosquitto: Mosquitto, topics_root: str) -> None:
    async with stage(mosquitto, topics_root) as (proxy, listener, sender, _):
        proxy.weather.repeat = True
        await sender.publish(Publication(topics_root, b"1"))
        await listener.has(2)
        assert listener.got == [b"1", b"1"]
        proxy.weather.repeat = False
        await sender.publish(Publication(topics_root, b"2"))
        await listener.has(3)
        assert listener.breaks == 0


@pytest.mark.parametrize("way", [UP, DOWN])
async def test_what_is_lost_while_it_is_deaf_comes_again_after_the_cut(
    mosquitto: Mosquitto, topics_root: str, way: str
) -> None:
    async with stage(mosquitto, topics_root) as (proxy, listener, sender, passed):
        proxy.weather.deaf.add(way)
        await sender.publish(Publication(topics_root, b"1"))
        await asyncio.sleep(0.2)  # it would be there by now
        assert len(listener.got) == (way == UP)  # its acknowledgement is lost instead
        proxy.weather.deaf.clear()
        proxy.cut()
        await listener.has(1 + (way == UP))
        assert passed[-1] == f"{DOWN} 1"


async def test_it_delays(mosquitto: Mosquitto, topics_root: str) -> None:
    async with stage(mosquitto, topics_root) as (proxy, listener, sender, _):
        proxy.weather.delay_seconds = 0.3
        await sender.publish(Publication(topics_root, b"1"))
        await asyncio.sleep(0.1)
        assert listener.got == []
        await listener.has(1)
