"""What a publisher can rely on: an answer, a refusal, or the word that the link broke - never a leak."""

from __future__ import annotations

import asyncio

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.mqtt import MAX_IN_FLIGHT
from agent.bus.types import Delivery, Disconnected, LinkOptions, Publication
from agent.contract.errors import LinkDown, PublishRefused
from tests.brokers import Mosquitto
from tests.bus.peers import next_event, numbered, send, take, take_until, until, up


@pytest.fixture
def start_mosquitto(tmp_path):
    """A mosquitto of one's own with further lines of configuration."""
    started = []

    def start(*lines: str, **options) -> Mosquitto:
        directory = tmp_path / f"mosquitto-{len(started)}"
        directory.mkdir()
        started.append(Mosquitto(directory, *lines, **options))
        started[-1].start()
        return started[-1]

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture
def frozen(real_broker):
    """A broker that can be made silent; it is thawed at the end."""
    yield real_broker
    real_broker.thaw()


async def test_a_refused_publish_raises_and_the_link_stays_up(start_mosquitto, tmp_path):
    (tmp_path / "acl").write_text("topic readwrite allowed/#\n")
    broker = parse_broker(start_mosquitto(f"acl_file {tmp_path}/acl").url, protocol="5")
    async with up(broker, "me", "allowed/x") as link:
        with pytest.raises(PublishRefused, match=r"'forbidden/x'.*0x87.*access rules") as refused:
            await link.publish(Publication("forbidden/x", b""))
        assert refused.value.reason_code == 0x87
        await send(link, "allowed/x", [b"fine"])
        assert await take(link, 1) == [b"fine"]


async def test_with_3_1_1_a_refusal_is_not_seen_and_that_is_said_at_connect_time(start_mosquitto, tmp_path):
    (tmp_path / "acl").write_text("topic readwrite allowed/#\n")
    broker = parse_broker(start_mosquitto(f"acl_file {tmp_path}/acl").url, protocol="3.1.1")
    async with up(broker, "me", "forbidden/x", "allowed/x") as link:
        assert any("refuses looks like one that it took" in warning for warning in link.limits.notes)
        await send(link, "forbidden/x", [b"lost"])
        await send(link, "allowed/x", [b"end"])
        assert await take_until(link, b"end") == []


async def test_cancelled_publishes_leave_nothing_behind(broker_url, topics_root):
    topic = f"{topics_root}/x"
    async with up(broker_url, f"{topics_root}-me", topic) as link:
        for _ in range(10):
            tasks = [asyncio.create_task(link.publish(Publication(topic, b"gone"))) for _ in range(100)]
            await asyncio.sleep(0)  # some are under way, the others wait for a slot
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):
            await asyncio.gather(*(link.publish(Publication(topic, payload)) for payload in numbered(100)))
        connection = link._connection
        await until(lambda: not connection._pending, "every answer has come")
        assert connection._slots._value == min(MAX_IN_FLIGHT, link.limits.receive_maximum)
        assert connection._paho._out_messages == {}
        assert connection._waiting == 0
        arrived = set()
        while not arrived >= set(numbered(100)):
            arrived.update(await take(link, 1))


async def test_whoever_waits_for_a_slot_hears_that_the_link_broke(broker_url, frozen, topics_root):
    async with up(broker_url, f"{topics_root}-me") as link:
        frozen.freeze()
        submitted = []
        tasks = [
            asyncio.create_task(
                link.publish(Publication(topics_root, b""), submitted=lambda number=number: submitted.append(number))
            )
            for number in range(3 * MAX_IN_FLIGHT)
        ]
        slots = min(MAX_IN_FLIGHT, link.limits.receive_maximum)
        await until(lambda: len(submitted) == slots, "all slots are taken")
        link.drop("test")
        one_more = asyncio.create_task(link.publish(Publication(topics_root, b"")))
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, one_more, return_exceptions=True)
        assert {type(result) for result in results} == {LinkDown}
        assert len(submitted) == slots, "what waited never left, and its publisher can know that"


async def test_chatter_to_a_broker_that_does_not_read_is_refused_at_a_bound(broker_url, frozen, topics_root):
    async with up(broker_url, f"{topics_root}-me") as link:
        frozen.freeze()
        with pytest.raises(LinkDown, match=r"too slow"):
            await send(link, topics_root, [bytes(256 * 1024)] * 200, qos=0)
        link.drop("test")


async def test_a_silent_broker_is_noticed_by_the_missing_answer(broker_url, frozen, topics_root, monkeypatch):
    monkeypatch.setattr("agent.bus.mqtt.ACK_TIMEOUT_SECONDS", 0.2)
    async with up(broker_url, f"{topics_root}-me") as link:
        frozen.freeze()
        with pytest.raises(LinkDown, match=r"did not acknowledge within 0\.2 s"):
            await link.publish(Publication(topics_root, b""))
        frozen.thaw()
        lost = await next_event(link, Disconnected)
        assert lost.reason == "no acknowledgement within 0.2 s"
        await link.wait_up(10)


async def test_the_broker_is_never_sent_more_than_it_takes_at_once(start_mosquitto):
    broker = parse_broker(start_mosquitto("max_inflight_messages 3").url, protocol="5")
    async with up(broker, "me") as link:
        assert link.limits.receive_maximum == 3
        async with asyncio.timeout(10):
            await asyncio.gather(*(link.publish(Publication("x", payload)) for payload in numbered(200)))
        assert link.up


async def test_a_publish_larger_than_the_broker_takes_is_refused_here(start_mosquitto):
    broker = parse_broker(start_mosquitto("max_packet_size 2000").url, protocol="5")
    async with up(broker, "me", "x") as link:
        assert link.limits.maximum_packet_bytes == 2000
        assert any("at most 2000 bytes" in warning for warning in link.limits.warnings)
        with pytest.raises(PublishRefused, match=r"too large.*of at most 2000"):
            await link.publish(Publication("x", bytes(2000)))
        await link.publish(Publication("x", bytes(1900), content_type="application/cloudevents+json"))
        assert len((await next_event(link, Delivery)).payload) == 1900
        assert link.up


async def test_a_publish_without_a_link_says_so(topics_root):
    link = Link(parse_broker("mqtt://127.0.0.1:1"), LinkOptions("me"))
    with pytest.raises(LinkDown, match=r"not connected to the broker"):
        await link.publish(Publication("x", b""))
