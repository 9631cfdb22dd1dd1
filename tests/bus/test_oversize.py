"""A packet over the limit costs no memory and blocks no session.

With MQTT 5 the broker knows the limit and keeps such a message to itself; with 3.1.1 it ends the connection, and when
it comes again it is told and acknowledged like any other, without its body.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
import structlog
from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.bus import link as link_module
from agent.bus.broker import Broker, parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, Disconnected, LinkOptions, Publication
from tests.brokers import Nats
from tests.bus.hostile import ENDLESS_BYTES, Hostile, announced
from tests.bus.peers import SESSION, WITHIN_SECONDS, next_event, send, take_until, up

LIMIT = {"packet_limit_bytes": 256 * 1024}


#: Over our limit, under NATS's own of 1 MiB.
SIZE = 900_000


def told_by_the_broker(broker: Broker) -> bool:
    """Whether the broker knows our limit, and delivers nothing above it."""
    return broker.protocol == "5"


async def deliveries(link: Link, count: int) -> AsyncIterator[Delivery]:
    """The next ones, acknowledged as they come; the link may break meanwhile."""
    async with asyncio.timeout(4 * WITHIN_SECONDS):
        async for event in link.events():
            if isinstance(event, Delivery):
                event.ack()
                yield event
                count -= 1
            if not count:
                return


async def test_it_ends_the_connection_and_is_acknowledged_when_it_comes_again(broker_url, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, me, topic, **LIMIT, **SESSION) as link, up(broker_url, f"{topics_root}-sender") as sender:
        with structlog.testing.capture_logs() as logs:
            await send(sender, topic, [b"before", bytes(SIZE), b"after"])
            came = [each async for each in deliveries(link, 2 if told_by_the_broker(broker_url) else 3)]
        # What the broken connection had handed out and nobody had acknowledged may come twice.
        assert {each.payload for each in came if not each.oversize_bytes} == {b"before", b"after"}
        if not told_by_the_broker(broker_url):
            [oversize] = [each for each in came if each.oversize_bytes]
            assert (oversize.topic, oversize.payload, oversize.qos) == (topic, b"", 1)
            assert SIZE <= oversize.oversize_bytes < SIZE + 200
            lines = [line for line in logs if line["event"] == "bus.packet_too_large"]
            assert [(line["packet_bytes"], line["limit_bytes"]) for line in lines] == [
                (oversize.oversize_bytes, 262144)
            ] * 2
            assert [line["next"] for line in lines] == [
                "the connection is closed; if it comes again, it is read away and acknowledged",
                "it ended a connection before: read away, and acknowledged",
            ]
    async with up(broker_url, me, topic, **LIMIT, **SESSION) as link:
        await send(link, topic, [b"end"])
        assert await take_until(link, b"end") == [], "nothing is left of it"


@pytest.mark.parametrize("real_broker", ["mosquitto-3.1.1", "nats"], indirect=True)
async def test_it_ends_the_connection_before_anybody_hears_of_it(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    async with (
        up(broker_url, f"{topics_root}-me", topic, **LIMIT) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [bytes(SIZE)], qos=0)
        async with asyncio.timeout(WITHIN_SECONDS):
            async for event in link.events():
                assert not isinstance(event, Delivery)
                if isinstance(event, Disconnected):
                    break
        assert "closed before its body" in event.reason
        await link.wait_up(WITHIN_SECONDS)
        await send(link, topic, [b"end"])
        assert await take_until(link, b"end") == [], "QoS 0 does not come again"


async def test_it_needs_no_memory_when_it_ends_a_connection_nor_when_it_is_read_away(broker_url, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, me, topic, **LIMIT, **SESSION):
        pass
    async with up(broker_url, f"{topics_root}-sender") as sender:
        await sender.publish(Publication(topic, bytes(SIZE)))
        tracemalloc.start()
        try:
            # Not `up`: the message may be there before SUBACK is, and end the first connection before it is up.
            async with Link(broker_url, LinkOptions(me, ((topic, 1),), **LIMIT, **SESSION)) as link:
                if not told_by_the_broker(broker_url):
                    async for delivery in deliveries(link, 1):
                        assert delivery.oversize_bytes > SIZE
                await link.wait_up(WITHIN_SECONDS)
                await send(sender, topic, [b"end"])
                assert await take_until(link, b"end") == []
                _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 500_000


async def test_many_that_the_broker_keeps_to_itself_leave_room_for_the_others(mosquitto, topics_root):
    """mosquitto 2.0.11 with MQTT 5 keeps the place of each among the unacknowledged ones until the next connection, so
    as many are sent as leave one: `UNBOUNDED_NOTE` says it.
    """
    broker, topic = parse_broker(mosquitto.url, protocol="5"), f"{topics_root}/commands"
    async with (
        up(broker, f"{topics_root}-me", topic, **LIMIT, receive_maximum=5) as link,
        up(broker, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [*[bytes(SIZE)] * 4, b"end"])
        assert await take_until(link, b"end") == []
        assert link.up


async def test_a_queue_of_them_drains_and_its_pauses_do_not_grow(mosquitto, topics_root, monkeypatch):
    """Ten of them and a good one: with pauses that double, the last of ten reconnects would wait for two minutes."""
    monkeypatch.setattr(link_module, "RECONNECT_CEILING_SECONDS", 3600)
    monkeypatch.setattr(link_module, "STEADY_SECONDS", 3600)
    broker, topic = parse_broker(mosquitto.url, protocol="3.1.1"), f"{topics_root}/commands"
    async with (
        up(broker, f"{topics_root}-me", topic, **LIMIT, **SESSION) as link,
        up(broker, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [*(bytes(SIZE + number) for number in range(10)), b"end"])
        pauses, sizes = [], []
        async with asyncio.timeout(4 * WITHIN_SECONDS):
            async for event in link.events():
                if isinstance(event, Disconnected):
                    pauses.append(event.retry_seconds)
                if isinstance(event, Delivery):
                    event.ack()
                    if event.payload == b"end":
                        break
                    sizes.append(event.oversize_bytes)
        assert len(set(sizes)) == 10
        assert max(pauses) <= 2 * link_module.RECONNECT_FIRST_SECONDS


async def test_a_queue_of_them_on_a_broker_that_keeps_no_order_drains_too(nats: Nats, topics_root):
    broker, topic = parse_broker(nats.url), f"{topics_root}/commands"
    async with (
        up(broker, f"{topics_root}-me", topic, **LIMIT, **SESSION) as link,
        up(broker, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [*(bytes(SIZE + number) for number in range(4)), b"end"])
        seen = set()
        async for delivery in deliveries(link, 100):
            seen.add(delivery.oversize_bytes or delivery.payload)
            if len(seen) == 5:
                break
        assert b"end" in seen


async def test_retained_ones_do_not_keep_a_client_out(mosquitto, topics_root):
    """They come with every subscription, and nobody can acknowledge them away."""
    broker = parse_broker(mosquitto.url, protocol="3.1.1")
    topics = [f"{topics_root}/{pod}/presence" for pod in ("a", "b", "c")]
    async with up(broker, f"{topics_root}-sender") as sender:
        for topic in topics:
            await sender.publish(Publication(topic, bytes(SIZE), retain=True))
        options = LinkOptions(f"{topics_root}-me", ((f"{topics_root}/+/presence", 0),), **LIMIT)
        async with Link(broker, options) as link:
            seen = set()
            async for delivery in deliveries(link, 100):
                seen.add(delivery.topic)
                if seen == set(topics):
                    break
            await link.wait_up(WITHIN_SECONDS)
            await send(link, f"{topics_root}/d/presence", [b"end"])
            async for delivery in deliveries(link, 100):
                if delivery.payload == b"end":
                    break
        for topic in topics:
            await sender.publish(Publication(topic, b"", retain=True))


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_the_pauses_grow_where_nothing_is_ever_read_away(v5, monkeypatch):
    monkeypatch.setattr(link_module, "RECONNECT_FIRST_SECONDS", 0.001)
    async with (
        Hostile(v5=v5, front=announced(ENDLESS_BYTES, v5=v5)).serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        pauses = [(await next_event(link, Disconnected)).retry_seconds for _ in range(8)]
    assert pauses[-1] > 0.001 * 2**7 / 2 * 0.99


async def test_a_packet_just_over_the_limit_is_not_taken(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    front = 2 + len(topic) + 2 + (1 if broker_url.protocol == "5" else 0)  # topic, packet id, no properties
    room = 1000 - front - (3 if broker_url.protocol == "5" else 0)  # MQTT 5 counts the fixed header, mosquitto does not
    async with (
        up(broker_url, f"{topics_root}-me", topic, packet_limit_bytes=1000, **SESSION) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [bytes(room)])
        fits = await next_event(link, Delivery)
        fits.ack()
        assert (len(fits.payload), fits.oversize_bytes) == (room, 0)
        await send(sender, topic, [bytes(room + (4 if broker_url.protocol == "5" else 1))])
        if not told_by_the_broker(broker_url):
            assert (
                "announced a packet of 1001 bytes; the limit is 1000" in (await next_event(link, Disconnected)).reason
            )
            async for after in deliveries(link, 1):
                assert (after.payload, after.oversize_bytes) == (b"", 1001)
        await send(sender, topic, [b"end"])
        assert (await next_event(link, Delivery)).payload == b"end"


async def test_endless_properties_do_not_block_the_session(mosquitto, topics_root):
    """Whoever may publish to an agent could otherwise send one message that no connection survives."""
    topic = f"{topics_root}/commands"
    async with up(parse_broker(mosquitto.url, protocol="5"), topics_root, topic, **LIMIT, **SESSION) as link:
        publish_with_properties(mosquitto.port, topic, size=600_000)
        await send(link, topic, [b"end"])
        assert await take_until(link, b"end") == []
        assert link.up


def publish_with_properties(port: int, topic: str, size: int) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    for _ in range(size // 60_000):
        properties.UserProperty = ("name", "x" * 60_000)
    client = Paho(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.publish(topic, b"body", qos=1, properties=properties).wait_for_publish(10)
    finally:
        client.disconnect()
        client.loop_stop()
