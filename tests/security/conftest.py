"""A stage on the shipped mosquitto, with keys: whose commands its agents obey, and with which key they speak."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.contract.messages import Message
from agent.contract.signing.keys import private_text, public_text
from agent.coordinator import Coordinator
from tests.agents import AgentProcess, AnyAgent, Client, Sent
from tests.broker.shipped import Shipped
from tests.broker.stage import ShippedStage, stage_on_shipped
from tests.contract.signing.keys import pair
from tests.signing import signed


@dataclass
class Realm:
    """Keys by their names: `nightly` and `weekly` may command, `boss` is an operator, `lab` may command namespace lab.

    `shop` is the agents' own key; `stranger` is nobody's.
    """

    stage: ShippedStage
    directory: Path

    @property
    def client(self) -> Client:
        return self.stage.client

    @property
    def trusted(self) -> Path:
        return self.directory / "trusted"

    def trust(self, name: str, **rights: Any) -> Path:
        """Let agents obey a key."""
        self.trusted.mkdir(exist_ok=True)
        path = self.trusted / f"{name}.pub"
        path.write_text(public_text(pair(name), **rights), encoding="ascii")
        return path

    def key_file(self, name: str) -> Path:
        """The file of a private key."""
        path = self.directory / f"{name}.key"
        path.write_text(private_text(pair(name)), encoding="ascii")
        return path

    def agent_keys(self, **by_namespace: str) -> Path:
        """The directory that a coordinator is given, by default with the right key of namespace shop."""
        directory = self.directory / f"agent-keys-{uuid.uuid4().hex[:6]}"
        directory.mkdir()
        for namespace, name in (by_namespace or {"shop": "shop"}).items():
            (directory / f"{namespace}.pub").write_text(public_text(pair(name)), encoding="ascii")
        return directory

    def coordinator(self, key: str | None = "nightly", agent_keys: Path | None = None, **more: Any) -> Coordinator:
        """A real coordinator on the stage."""
        return Coordinator(
            self.stage.as_coordinator,
            key=self.key_file(key) if key else None,
            agent_keys=agent_keys,
            **more,
        )

    async def agent(self, pod: str = "db-0", **settings: Any) -> AgentProcess:
        """An agent that obeys the realm's keys and signs what it says."""
        if not self.trusted.exists():
            for name, rights in {
                "nightly": {},
                "weekly": {"namespaces": ["shop", "bar"]},
                "boss": {"operator": True},
                "lab": {"namespaces": ["lab"]},
            }.items():
                self.trust(name, **rights)
        keys = {"allow_unsigned": "", "trusted_keys": self.trusted, "agent_key": self.key_file("shop")}
        return await self.stage.agent(pod, **{**keys, **settings})

    def signed(self, agent: AnyAgent, message: Message, key: str = "nightly", **changes: Any) -> bytes:
        """A command as a coordinator signs it; see there for what `changes` may be."""
        return signed(agent, message, pair(key), **changes)

    def make(
        self, agent: AnyAgent, action: Any, key: str = "nightly", *, of: dict[str, Any] | None = None, **changes: Any
    ):
        """A signed trigger; `changes` are the trigger's, `of` its envelope's."""
        sent = self.client.make(agent, action, **changes)
        return replace(sent, payload=self.signed(agent, sent.trigger, key, **(of or {})))

    async def trigger(self, agent: AnyAgent, action: Any, key: str = "nightly", **changes: Any) -> Sent:
        """Make one and publish it."""
        sent = self.make(agent, action, key, **changes)
        await self.client.send_bytes(agent, sent.payload)
        return sent

    async def send(self, agent: AnyAgent, message: Message, key: str = "nightly", **changes: Any) -> None:
        """Publish another command."""
        await self.client.send_bytes(agent, self.signed(agent, message, key, **changes))

    async def works(self, agent: AnyAgent) -> None:
        """A good trigger still succeeds; what was sent before it on this link has been handled then."""
        outcome = await self.client.outcome(await self.trigger(agent, {"exec": {"command": ["/bin/true"]}}))
        assert outcome.outcome == "succeeded", f"{outcome}\n{agent.tail()}"


@pytest.fixture
async def stage(shipped_mosquitto: Shipped, tmp_path: Path) -> AsyncIterator[ShippedStage]:
    """Agents and clients of namespace `shop` with their users on the mosquitto that is shipped."""
    async with stage_on_shipped(shipped_mosquitto, tmp_path) as made:
        yield made


@pytest.fixture
def realm(stage: ShippedStage, tmp_path: Path) -> Realm:
    return Realm(stage, tmp_path)
