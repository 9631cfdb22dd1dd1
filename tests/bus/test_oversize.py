"""A body over the limit costs no memory, is told, and is acknowledged like any other."""

from __future__ import annotations

import tracemalloc

import pytest
from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.bus.broker import parse_broker
from agent.bus.types import Delivery, Publication
from tests.brokers import Nats
from tests.bus.peers import SESSION, next_event, send, take_until, until, up

LIMIT = {"payload_limit_bytes": 256 * 1024}


@pytest.mark.parametrize("qos", [0, 1])
async def test_an_oversize_body_is_told_and_the_link_stays_up(broker_url, real_broker, topics_root, qos):
    topic = f"{topics_root}/commands"
    size = 600_000 if isinstance(real_broker, Nats) else 10_000_000
    async with (
        up(broker_url, f"{topics_root}-me", topic, **LIMIT) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [b"before", bytes(size)], qos)
        await until(lambda: not sender._connection._paho.want_write(), "all of it has left")
        await send(sender, topic, [b"after"], qos)
        bodies = [await next_event(link, Delivery) for _ in range(3)]
        assert sorted(body.payload for body in bodies) == [b"", b"after", b"before"]
        oversize = next(body for body in bodies if not body.payload)
        assert oversize.topic == topic
        assert size <= oversize.oversize_bytes < size + 200
        assert link.up


async def test_an_oversize_body_needs_no_memory_and_is_acknowledged(broker_url, real_broker, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    size = 600_000 if isinstance(real_broker, Nats) else 10_000_000
    async with up(broker_url, me, topic, **LIMIT, **SESSION):
        pass
    async with up(broker_url, f"{topics_root}-sender") as sender:
        await sender.publish(Publication(topic, bytes(size)))
        tracemalloc.start()
        try:
            async with up(broker_url, me, topic, **LIMIT, **SESSION) as link:
                (await next_event(link, Delivery)).ack()
                _, peak_bytes = tracemalloc.get_traced_memory()
                await send(sender, topic, [b"end"])
                assert await take_until(link, b"end") == []
        finally:
            tracemalloc.stop()
        assert peak_bytes < 500_000
        async with up(broker_url, me, topic, **LIMIT, **SESSION) as link:
            await send(sender, topic, [b"end"])
            assert await take_until(link, b"end") == []


async def test_a_body_just_over_the_limit_is_told_too(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    async with up(broker_url, f"{topics_root}-me", topic, payload_limit_bytes=1000) as link:
        await send(link, topic, [bytes(1000), bytes(1001)])
        sizes = []
        for _ in range(2):
            delivery = await next_event(link, Delivery)
            sizes.append((len(delivery.payload), delivery.oversize_bytes))
            delivery.ack()
    assert sorted(sizes) == [(0, 1001), (1000, 0)]


async def test_endless_properties_do_not_block_the_session(mosquitto, topics_root):
    """Whoever may publish to an agent could otherwise send one message that no connection survives."""
    topic = f"{topics_root}/commands"
    async with up(parse_broker(mosquitto.url, protocol="5"), topics_root, topic, **LIMIT, **SESSION) as link:
        publish_with_properties(mosquitto.port, topic, size=600_000)
        hostile = await next_event(link, Delivery)
        hostile.ack()
        assert (hostile.topic, hostile.payload) == (topic, b"")
        assert hostile.oversize_bytes > 600_000
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
