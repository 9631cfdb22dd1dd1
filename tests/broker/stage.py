"""A stage on a shipped broker: agents and clients with its users, over TLS, and nothing left there for the next test.

The client is a coordinator's user. What an attacker publishes who has the agents' own user, the most that a tenant can
have of a namespace, goes by `insider`.
"""

from __future__ import annotations

import contextlib
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from agent.bus.broker import Broker
from agent.bus.link import Link
from agent.bus.types import LinkOptions, Publication
from tests.agents import WITHIN_SECONDS, AgentProcess, Client, Stage, until
from tests.broker.shipped import Shipped
from tests.security.rewriting import HostileBroker, Rewrite

NAMESPACE = "shop"
COORDINATOR = "coordinator_nightly"
#: More than any flood of the tests.
QUEUE_MESSAGES = 100_000


class Commander(Client):
    """The raw client as a coordinator's user: answers come on its user's topics."""

    def __init__(self, broker: Shipped, user: str, agents: list[AgentProcess]) -> None:
        super().__init__(broker.url, "podhook", agents)
        self.id = user
        self.link = link(broker.as_user(user), (self.topics.replies(user), 1), (self.topics.presences(), 0))


def link(broker: Broker, *subscriptions: tuple[str, int]) -> Link:
    """A link as a user, for as long as it is entered."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    return Link(broker, LinkOptions(name, subscriptions, packet_limit_bytes=1 << 20, queue_messages=QUEUE_MESSAGES))


@dataclass
class ShippedStage(Stage):
    """A stage whose agents have the broker user of namespace `shop`."""

    broker: Shipped
    insider: Link

    def make(self, pod: str = "db-0", *, home: str = "", broker_url: str = "", **settings: object) -> AgentProcess:
        """An agent that is not started yet; `broker_url` is another way to the broker."""
        users = {name.lower(): value for name, value in self.broker.settings(NAMESPACE).items()}
        url = broker_url or users.pop("broker")
        return super().make(pod, home=home, broker_url=url, **{**users, "broker": url, **settings})

    @property
    def as_coordinator(self) -> Broker:
        """How a coordinator connects."""
        return self.broker.as_user(COORDINATOR)

    def as_coordinator_by(self, hostile: HostileBroker) -> Broker:
        """The same through somebody who sits between."""
        return replace(self.as_coordinator, port=hostile.port)

    def hostile(self, rewrite: Rewrite) -> HostileBroker:
        """Somebody between: he has a certificate that agents and coordinators trust, as a compromised broker has."""
        shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        shown.load_cert_chain(*self.broker.authority.issue("between", server=True))
        upstream = ssl.create_default_context(cafile=str(self.broker.authority.ca))
        return HostileBroker(self.broker.port, rewrite, client_tls=shown, broker_tls=upstream)


@contextlib.asynccontextmanager
async def stage_on_shipped(broker: Shipped, directory: Path, user: str = COORDINATOR) -> AsyncIterator[ShippedStage]:
    """A stage on a shipped broker that other tests share; `user` is the client's."""
    agents: list[AgentProcess] = []
    client, insider = Commander(broker, user, agents), link(broker.as_user(NAMESPACE))
    async with client, insider:
        await insider.wait_up(WITHIN_SECONDS)
        stage = ShippedStage(broker, "podhook", directory, client, agents, insider)
        try:
            yield stage
        finally:
            stage.end()
            await _clear(stage)


async def _clear(stage: ShippedStage) -> None:
    """No presence stays: it would be a target of the next test's runs, and missing there."""
    topics, client = stage.client.topics, stage.client
    agents = {(each.namespace, each.pod) for each in stage.agents}
    # The broker knows that they are gone, and has said their wills, when it has answered us twice: the first answer may
    # come out of the same turn of its loop as their end.
    for _ in range(2):
        await stage.insider.publish(Publication(topics.presence(NAMESPACE, "nobody"), b"", retain=True))
    names = agents | {tuple(each.split("/")) for each in client.presences}
    for namespace, pod in names:
        await stage.insider.publish(Publication(topics.presence(namespace, pod), b"", retain=True))
    said = [client.presences.setdefault(f"{namespace}/{pod}", [None]) for namespace, pod in names]
    await until(lambda: all(each[-1] is None for each in said), "all presence is cleared")
