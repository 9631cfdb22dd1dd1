"""The queue between the socket and the application: bounded, and honest about what it forgets."""

from __future__ import annotations

import asyncio

import pytest

from agent.bus.types import Connected, Delivery, Disconnected, Inbox, Limits, LinkOptions

UP = Connected(Limits("5", session_present=False))


def down(reason: str) -> Disconnected:
    return Disconnected(reason, 1)


def message(payload: bytes, alive=lambda: True) -> Delivery:
    return Delivery("x", payload, 1, retain=False, _alive=alive)


async def drain(inbox: Inbox) -> list[object]:
    events = []
    try:
        async with asyncio.timeout(0.01):
            while True:
                events.append(await inbox.get())
    except TimeoutError:
        return events


async def test_a_message_that_does_not_fit_by_number_or_bytes_is_not_taken():
    inbox = Inbox(LinkOptions("me", queue_messages=2, queue_bytes=100))
    assert inbox.put(message(bytes(60)))
    assert not inbox.put(message(bytes(60)))
    assert inbox.put(message(bytes(40)))
    assert not inbox.put(message(b""))
    assert inbox.dropped == 2
    assert len((await inbox.get()).payload) == 60
    assert inbox.put(message(bytes(60)))


async def test_forgotten_messages_make_room():
    inbox = Inbox(LinkOptions("me", queue_messages=2, queue_bytes=100))
    alive = True
    assert inbox.put(message(bytes(100), lambda: alive))
    alive = False
    inbox.drop_stale()
    assert inbox.put(message(bytes(100)))
    assert len(await drain(inbox)) == 1


async def test_link_states_of_a_long_night_do_not_pile_up():
    inbox = Inbox(LinkOptions("me"))
    inbox.put(message(b"before"))
    for number in range(1000):
        inbox.put(down(f"{number}"))
        inbox.put(UP)
    inbox.put(message(b"after"))
    events = await drain(inbox)
    assert [type(event) for event in events] == [Delivery, Disconnected, Connected, Delivery]
    assert events[1] == down("999")


async def test_a_failure_reaches_the_reader_after_what_came_before():
    inbox = Inbox(LinkOptions("me"))
    inbox.put(UP)
    inbox.fail(RuntimeError("a bug"))
    assert await inbox.get() is UP
    with pytest.raises(RuntimeError, match=r"a bug"):
        await inbox.get()
