"""A lasting relation with a broker: connect, reconnect with jitter, hand out what happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Self

from agent.bus.mqtt import Connection, ProtocolRefused, unsayable
from agent.bus.reading import Refused
from agent.bus.types import Connected, Disconnected, Inbox, Limits, LinkEvent, LinkOptions, Publication
from agent.contract.errors import BusError, InvalidSettings, LinkDown

if TYPE_CHECKING:
    from agent.bus.broker import Broker

#: First pause of a reconnect; doubles up to the ceiling; each pause is drawn from [0.5, 1] of it.
RECONNECT_FIRST_SECONDS = 0.25
RECONNECT_CEILING_SECONDS = 15
#: A connection that lived this long ends the doubling. One that breaks at once does not: two clients that
#: take one session from each other, or a message that the broker cannot bear, must not make a storm.
STEADY_SECONDS = 5


class Link:
    """A lasting relation with a broker: connects, reconnects, subscribes, hands out what happens.

    Use as an async context manager, and read `events()` until it is left. `publish` works whenever the link
    is up.
    """

    def __init__(self, broker: Broker, options: LinkOptions) -> None:
        self._broker = broker
        self._options = options
        self._inbox = Inbox(options)
        self._refused = Refused()
        self._connection: Connection | None = None
        self._protocol = "5" if broker.protocol == "auto" else broker.protocol
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._tried = asyncio.Event()
        self._leaving = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected(), name="bus.link")
        self._task.add_done_callback(self._crashed)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._leaving.set()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def up(self) -> bool:
        """Whether a publish can leave now."""
        return self._connection is not None

    @property
    def limits(self) -> Limits | None:
        """What the present broker can do; None while the link is down."""
        return self._connection.limits if self._connection else None

    async def wait_up(self, within_seconds: float) -> None:
        """Wait for the first connection.

        Raises:
            BrokerRefused: the broker answered and said no.
            InvalidSettings: the settings cannot be used.
            LinkDown: no connection within the time; says what the last try said.
        """
        try:
            async with asyncio.timeout(within_seconds):
                while not self.up:
                    if self._failure is not None and not isinstance(self._failure, LinkDown):
                        raise self._failure
                    self._tried.clear()
                    await self._tried.wait()
        except TimeoutError as error:
            reason = self._failure or "no answer"
            raise LinkDown(f"cannot reach the broker at {self._broker.url}: {reason}") from error

    async def events(self) -> AsyncIterator[LinkEvent]:
        """What happens, in order. Never ends by itself."""
        while True:
            yield await self._inbox.get()

    async def publish(self, publication: Publication, *, submitted: Callable[[], None] | None = None) -> None:
        """Publish; QoS 1 returns when the broker has it. That is not delivery: brokers drop what they took.

        Args:
            publication: what to publish.
            submitted: called when the message may be on its way, so that its silence proves nothing any more.

        Raises:
            LinkDown: not connected, or the link broke before the broker answered. If `submitted` was called
                the message may have arrived. For QoS 0 also when the broker reads too slowly.
            PublishRefused: the broker said no to this message, or it is larger than the broker takes.
        """
        if self._connection is None:
            raise LinkDown("not connected to the broker")
        await self._connection.publish(publication, submitted)

    def drop(self, reason: str) -> None:
        """Break the present connection without a goodbye (the will speaks); it is made again."""
        if self._connection is not None:
            self._connection.abort(reason)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pause = RECONNECT_FIRST_SECONDS
        while not self._leaving.is_set():  # until Python 3.12 `wait_for` (in aiomqtt) may swallow the cancellation
            connection: Connection | None = None
            up_since, read_away = loop.time(), self._refused.read_away
            try:
                connection = await self._open()
                if self._leaving.is_set():
                    raise asyncio.CancelledError
                self._connection = connection
                up_since = loop.time()
                self._say(Connected(connection.limits), None)
                raise LinkDown(await asyncio.shield(connection.lost))
            except (BusError, InvalidSettings) as error:
                self._connection = None
                steady = connection is not None and loop.time() - up_since >= STEADY_SECONDS
                if steady or self._refused.read_away > read_away:  # one message less stands in the way
                    pause = RECONNECT_FIRST_SECONDS
                if self._leaving.is_set():
                    return
                retry = pause * random.uniform(0.5, 1)  # noqa: S311 (jitter, not a secret)
                self._say(Disconnected(str(error), retry), error)
            except asyncio.CancelledError:
                self._connection = None
                if connection is not None:
                    await connection.close()
                raise
            await asyncio.sleep(retry)
            pause = min(pause * 2, RECONNECT_CEILING_SECONDS)

    def _crashed(self, task: asyncio.Task[None]) -> None:
        """A bug must not look like a silent broker: whoever reads the events or waits gets it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._inbox.fail(error)
            self._tried.set()

    def _say(self, event: Connected | Disconnected, failure: Exception | None) -> None:
        self._failure = failure
        self._inbox.put(event)
        self._tried.set()

    async def _open(self) -> Connection:
        try:
            connection = Connection(self._broker, self._options, self._protocol, self._inbox, self._refused)
        except ValueError as error:  # the will is asked for here, and written
            raise unsayable(error) from error
        try:
            await connection.open()
        except ProtocolRefused:
            if self._broker.protocol != "auto" or self._protocol != "5":
                raise
            self._protocol = "3.1.1"
            return await self._open()
        return connection
