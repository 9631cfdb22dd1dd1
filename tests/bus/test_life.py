"""How a link begins, breaks, comes back and ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions, Publication, Will
from agent.contract.errors import BrokerRefused, InvalidSettings, LinkDown
from tests.brokers import free_port
from tests.bus.peers import next_event, numbered, send, take, take_until, until, up, victim


def a_will(root: str):
    return lambda: Will(f"{root}/presence", b"offline")


async def test_the_will_speaks_when_the_process_is_killed(broker_url, topics_root):
    async with up(broker_url, f"{topics_root}-watcher", f"{topics_root}/presence") as watcher:
        with victim(broker_url, topics_root, acknowledge=0, receive=1) as process:
            assert await asyncio.to_thread(process.stdout.readline) == "up\n"
            process.kill()
            process.wait(10)
            assert await take(watcher, 1) == [b"offline"]


async def test_the_will_speaks_when_the_link_is_dropped_and_stays_for_late_comers(broker_url, topics_root):
    topic = f"{topics_root}/presence"
    async with up(broker_url, f"{topics_root}-watcher", topic) as watcher:
        async with up(broker_url, f"{topics_root}-agent", will=a_will(topics_root)) as agent:
            agent.drop("test")
            assert await take(watcher, 1) == [b"offline"]
        async with up(broker_url, f"{topics_root}-late", topic) as late:
            assert (await next_event(late, Delivery)).retain


async def test_a_goodbye_has_no_will(broker_url, topics_root):
    topic = f"{topics_root}/presence"
    async with up(broker_url, f"{topics_root}-watcher", topic) as watcher:
        async with up(broker_url, f"{topics_root}-agent", will=a_will(topics_root)) as agent:
            await agent.publish(Publication(topic, b"online", retain=True))
        await send(watcher, topic, [b"end"])
        assert await take_until(watcher, b"end") == [b"online"]


async def test_what_is_published_before_the_goodbye_arrives(broker_url, topics_root):
    topic = f"{topics_root}/last"
    async with up(broker_url, f"{topics_root}-watcher", topic) as watcher:
        async with up(broker_url, f"{topics_root}-agent") as agent:
            await send(agent, topic, numbered(20), qos=0)
        assert await take(watcher, 20) == numbered(20)


async def test_the_will_is_asked_for_at_each_connection(broker_url, topics_root):
    words = iter((b"first", b"second"))
    topic = f"{topics_root}/presence"
    async with (
        up(broker_url, f"{topics_root}-watcher", topic) as watcher,
        up(broker_url, f"{topics_root}-agent", will=lambda: Will(topic, next(words, b"more"))) as agent,
    ):
        agent.drop("test")
        assert await take(watcher, 1) == [b"first"]
        await next_event(agent, Disconnected)
        await agent.wait_up(10)
        agent.drop("test")
        assert await take(watcher, 1) == [b"second"]


async def test_the_link_comes_back_after_the_broker_was_killed(broker_url, real_broker, topics_root):
    topic = f"{topics_root}/x"
    async with up(broker_url, f"{topics_root}-me", topic) as link:
        real_broker.kill()
        lost = await next_event(link, Disconnected)
        assert lost.reason
        assert 0 < lost.retry_seconds <= 0.25
        assert link.limits is None
        refused = await next_event(link, Disconnected)
        assert "Connection refused" in refused.reason
        assert refused.retry_seconds <= 0.5
        real_broker.start()
        await next_event(link, Connected)
        await send(link, topic, [b"again"])
        assert await take(link, 1) == [b"again"]


async def test_what_mqtt_5_says_at_the_end_is_passed_on(mosquitto, topics_root):
    async with up(parse_broker(mosquitto.url, protocol="5"), topics_root) as link:
        publish_with_a_wildcard = b"\x32\x07\x00\x01#\x00\x01\x00\x00"
        link._connection._paho._sock.send(publish_with_a_wildcard)
        lost = await next_event(link, Disconnected)
    assert lost.reason == "the broker ended the connection: Protocol error (reason code 0x82)"


async def test_nobody_there_is_said_with_the_reason(topics_root):
    broker = parse_broker(f"mqtt://127.0.0.1:{free_port()}")
    async with Link(broker, LinkOptions(topics_root)) as link:
        with pytest.raises(LinkDown, match=r"cannot reach the broker at mqtt://127\.0\.0\.1:\d+: .*refused"):
            await link.wait_up(0.3)


async def test_leaving_is_quick_while_the_broker_does_not_answer(broker_url, real_broker, topics_root):
    real_broker.freeze()
    try:
        async with Link(broker_url, LinkOptions(topics_root)):
            await asyncio.sleep(0.05)
            begin = time.monotonic()
        assert time.monotonic() - begin < 1
    finally:
        real_broker.thaw()


async def test_a_link_leaves_no_task_and_no_descriptor(broker_url, topics_root):
    async with up(broker_url, f"{topics_root}-me", topics_root) as link:
        link.drop("test")
        await next_event(link, Disconnected)
        await link.wait_up(10)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "all tasks are done")
    assert link._inbox is not None
    assert not asyncio.get_running_loop()._selector.get_map().keys() - own_descriptors()


def own_descriptors() -> set[int]:
    """What the event loop watches for itself."""
    return {asyncio.get_running_loop()._ssock.fileno()}


async def test_two_clients_of_one_name_do_not_storm_the_broker(mosquitto, topics_root):
    broker = parse_broker(mosquitto.url, protocol="5")
    async with (
        Link(broker, LinkOptions(topics_root)) as one,
        Link(broker, LinkOptions(topics_root)) as other,
    ):
        lost = await next_event(one, Disconnected)
        while lost.retry_seconds < 0.5:  # it doubles although every connection succeeds
            lost = await next_event(one, Disconnected)
        assert lost.reason == "the broker closed the connection"
        assert other is not one


async def test_a_forbidden_client_id_is_refused_by_nats(nats):
    async with Link(parse_broker(nats.url), LinkOptions("with.a.dot")) as link:
        with pytest.raises(BrokerRefused, match=r"0x85.*client id"):
            await link.wait_up(5)


async def test_nagle_and_the_delayed_acknowledgement_are_off(broker_url, topics_root):
    """Together they cost 88 ms a round trip; the acknowledgement must be asked for again after each packet."""
    async with up(broker_url, f"{topics_root}-quick", f"{topics_root}/#") as link:
        await link.publish(Publication(f"{topics_root}/x", b"1"))
        sock = link._connection._paho.socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        await link.publish(Publication(f"{topics_root}/x", b"2"))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1, "not asked for again"


async def test_a_will_that_mqtt_cannot_carry_is_this_trys_error_and_the_next_one_asks_again(broker_url, topics_root):
    wills = iter([b"x" * 65_536, b"good"])
    options = LinkOptions(f"{topics_root}-large", will=lambda: Will(f"{topics_root}/presence", next(wills)))
    async with Link(broker_url, options) as link:
        with pytest.raises(InvalidSettings, match="the first message to the broker cannot be written"):
            await link.wait_up(10)
        await next_event(link, Connected)
        assert link.up


async def test_a_will_that_cannot_even_be_made_ends_nothing(broker_url, topics_root):
    tries = iter([UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), None])

    def will() -> Will:
        if (error := next(tries)) is not None:
            raise error
        return Will(f"{topics_root}/presence", b"good")

    async with Link(broker_url, LinkOptions(f"{topics_root}-odd", will=will)) as link:
        await next_event(link, Connected)


class SwallowsCancellation:
    """A connection that is made just when somebody cancels: `wait_for` of Python 3.11 then forgets that."""

    closed = 0
    opening: asyncio.Event

    def __init__(self, *_: object) -> None:
        self.limits = None
        self.lost = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        self.opening.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if self.fails:
            raise LinkDown("and then it broke")

    async def close(self) -> None:
        type(self).closed += 1


@pytest.mark.parametrize("fails", [False, True])
async def test_leaving_ends_also_where_the_cancellation_was_swallowed(monkeypatch, fails):
    monkeypatch.setattr(SwallowsCancellation, "fails", fails, raising=False)
    monkeypatch.setattr(SwallowsCancellation, "closed", 0)
    monkeypatch.setattr(SwallowsCancellation, "opening", asyncio.Event(), raising=False)
    monkeypatch.setattr("agent.bus.link.Connection", SwallowsCancellation)
    link = Link(parse_broker("mqtt://127.0.0.1:1"), LinkOptions("x", ()))
    async with asyncio.timeout(20):
        async with link:
            await SwallowsCancellation.opening.wait()
    assert (SwallowsCancellation.closed, link.up) == (0 if fails else 1, False)
