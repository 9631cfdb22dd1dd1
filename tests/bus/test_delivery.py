"""What a subscriber can rely on, with every broker that we support."""

from __future__ import annotations

import asyncio

from agent.bus.types import Connected, Delivery, Disconnected, Publication
from tests.brokers import Nats
from tests.bus.peers import SESSION, next_event, numbered, send, take, take_until, until, up, victim


async def test_what_was_not_acknowledged_before_a_crash_is_delivered_again(broker_url, topics_root):
    with victim(broker_url, topics_root, acknowledge=3, receive=8) as process:
        assert process.stdout.readline() == "up\n"
        async with up(broker_url, f"{topics_root}-sender") as sender:
            await send(sender, f"{topics_root}/commands", numbered(8))
            assert await asyncio.to_thread(process.stdout.readline) == "holding\n"
            process.kill()
            process.wait(10)
            async with up(broker_url, f"{topics_root}-victim", f"{topics_root}/commands", **SESSION) as again:
                assert again.limits.session_present
                redelivered = await take(again, 5)
                await send(sender, f"{topics_root}/commands", [b"end"])
                assert await take_until(again, b"end") == []
    assert redelivered == numbered(5, start=3)


async def test_the_queue_is_kept_while_the_client_is_away(broker_url, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, me, topic, **SESSION):
        pass
    async with up(broker_url, f"{topics_root}-sender") as sender:
        await send(sender, topic, numbered(5))
    async with up(broker_url, me, topic, **SESSION) as link:
        assert await take(link, 5) == numbered(5)


async def test_a_session_that_is_not_asked_for_is_not_kept(broker_url, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, me, topic):
        pass
    async with up(broker_url, f"{topics_root}-sender") as sender:
        await send(sender, topic, numbered(5))
        async with up(broker_url, me, topic) as link:
            assert not link.limits.session_present
            await send(sender, topic, [b"end"])
            assert await take_until(link, b"end") == []


async def test_the_queue_is_kept_while_the_broker_restarts(broker_url, real_broker, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, f"{topics_root}-sender") as sender:
        async with up(broker_url, me, topic, **SESSION):
            pass
        await send(sender, topic, numbered(5))
        async with up(broker_url, f"{topics_root}-witness", f"{topics_root}/alive") as witness:
            real_broker.stop()
            await next_event(witness, Disconnected)
            assert not witness.up
            real_broker.start()
            await next_event(witness, Connected)
            await sender.wait_up(10)
            await send(sender, f"{topics_root}/alive", [b"again"])
            assert await take(witness, 1) == [b"again"]
        async with up(broker_url, me, topic, **SESSION) as link:
            assert await take(link, 5) == numbered(5)


async def test_a_message_held_for_long_is_not_handed_out_twice(broker_url, real_broker, topics_root):
    """NATS sends it again after 2 s, on the same connection."""
    topic = f"{topics_root}/commands"
    async with up(broker_url, f"{topics_root}-me", topic, **SESSION) as link:
        arrived = spy_on_arrivals(link)
        await send(link, topic, [b"held"])
        held = await next_event(link, Delivery)
        if isinstance(real_broker, Nats):
            await until(lambda: len(arrived) == 2, "NATS sends it again", 5)
        held.ack()
        await send(link, topic, [b"end"])
        assert await take_until(link, b"end") == []


async def test_what_waits_in_our_queue_when_the_link_breaks_is_handed_out_once(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    async with (
        up(broker_url, f"{topics_root}-me", topic, **SESSION) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, numbered(5))
        await until(lambda: waiting(link) == 5, "all five are in our queue")
        link.drop("test")
        await until(lambda: not link.up, "the link is down")
        assert waiting(link) == 0
        payloads = await take(link, 5)
        await send(sender, topic, [b"end"])
        assert await take_until(link, b"end") == []
    assert payloads == numbered(5)


async def test_an_acknowledgement_after_the_link_broke_does_nothing(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    async with up(broker_url, f"{topics_root}-me", topic, **SESSION) as link:
        await send(link, topic, [b"late"])
        late = await next_event(link, Delivery)
        link.drop("test")
        assert late.stale
        await next_event(link, Disconnected)
        await link.wait_up(10)
        late.ack()
        assert await take(link, 1) == [b"late"]


async def test_a_full_queue_breaks_the_link_and_loses_nothing(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    async with (
        up(broker_url, f"{topics_root}-me", topic, **SESSION, queue_messages=10) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, numbered(30))
        lost = await next_event(link, Disconnected)
        assert lost.reason == "more messages than the queue holds"
        payloads = set()
        while len(payloads) < 30:
            payloads.update(await take(link, 1))
    assert payloads == set(numbered(30))


async def test_chatter_beyond_the_queue_is_dropped_and_counted(broker_url, topics_root):
    topic = f"{topics_root}/chatter"
    async with up(broker_url, f"{topics_root}-me", topic, queue_messages=10) as link:
        await next_event(link, Connected)
        await send(link, topic, numbered(30), qos=0)
        await until(lambda: link._inbox.dropped == 20, "20 of 30 are dropped")
        assert link.up
        assert await take(link, 10) == numbered(10)


async def test_a_retained_message_reaches_who_comes_late(broker_url, topics_root):
    topic = f"{topics_root}/presence"
    async with up(broker_url, f"{topics_root}-agent") as agent:
        await agent.publish(Publication(topic, b"online", retain=True))
        async with up(broker_url, f"{topics_root}-late", topic) as late:
            delivery = await next_event(late, Delivery)
            assert (delivery.payload, delivery.retain) == (b"online", True)
            delivery.ack()
        await agent.publish(Publication(topic, b"", retain=True))
        async with up(broker_url, f"{topics_root}-later", topic) as later:
            await send(agent, topic, [b"end"])
            assert await take_until(later, b"end") == []


def waiting(link) -> int:
    """How many deliveries the application has not taken yet."""
    return sum(isinstance(event, Delivery) for event in link._inbox._events)


def spy_on_arrivals(link) -> list[bytes]:
    """The payloads that come from the broker from now on, whether or not they are handed out."""
    arrived = []
    paho, handle = link._connection._paho, link._connection._paho.on_message
    paho.on_message = lambda *arguments: (arrived.append(arguments[2].payload), handle(*arguments))
    return arrived
