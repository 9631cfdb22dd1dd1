"""The broker of examples/pods in a pod of its own, and clients that reach it as docs/sidecar.md does."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Self

from agent.bus.broker import Broker, parse_broker
from agent.contract.messages import Message
from agent.coordinator.trust import load_key
from tests.agents import AnyAgent, Client, Json, Sent, until
from tests.broker.stage import COORDINATOR, link
from tests.pods.documented import Documented
from tests.pods.forward import Forward
from tests.pods.play import Pod
from tests.signing import signed

#: Longer than a link takes to find out that its broker does not hear it any more.
HEARD_SECONDS = 90


class BrokerPod(Pod):
    """The broker of examples/pods, reached from here as docs/sidecar.md does: by its name, over TLS, as `nightly`."""

    #: What the agents of examples/pods call it; in a cluster it is the Service's name.
    HOST = "mosquitto.podhook.svc"
    PORT = 8883

    def __enter__(self) -> Self:
        super().__enter__()
        self._forward = Forward((self.ip, self.PORT))
        self._forward.__enter__()
        return self

    def _remove(self) -> None:
        if hasattr(self, "_forward"):
            self._forward.__exit__(None, None, None)
        super()._remove()

    @property
    def hosts(self) -> dict[str, str]:
        """For a pod that shall find it."""
        return {self.HOST: self.ip}

    @property
    def files(self) -> Path:
        """Keys and secrets of whoever followed docs/sidecar.md."""
        return self._playground.documented.directory

    @property
    def documented(self) -> Documented:
        """Whoever followed docs/sidecar.md."""
        return self._playground.documented

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self._forward.port}"

    def as_user(self, name: str) -> Broker:
        """How to connect with a secret that `podhook broker user` wrote: `nightly`, or `shop` as agents do."""
        secret = self.files / "secrets" / name
        files = {"user_file": secret / "user", "password_file": secret / "password"}
        return parse_broker(self.url, ca_file=self.files / "tls" / "ca.crt", **files)

    @property
    def coordinator(self) -> dict[str, str]:
        """The environment of a coordinator's command."""
        secret = self.files / "secrets" / "nightly"
        return {
            "PODHOOK_BROKER": self.url,
            "PODHOOK_BROKER_CA_FILE": str(self.files / "tls" / "ca.crt"),
            "PODHOOK_BROKER_USER_FILE": str(secret / "user"),
            "PODHOOK_BROKER_PASSWORD_FILE": str(secret / "password"),
            "PODHOOK_KEY": str(self.files / "nightly.key"),
            "PODHOOK_AGENT_KEYS": str(self.files / "agents"),
        }

    def client(self) -> NightlyClient:
        """A client without manners, but with what `nightly` has: its user, and its key."""
        return NightlyClient(self)


class NightlyClient(Client):
    """Signs what it sends: the agents of examples/pods obey nothing else."""

    def __init__(self, broker: BrokerPod) -> None:
        super().__init__(broker.url, "podhook", [])
        self.id = COORDINATOR
        subscriptions = ((self.topics.replies(self.id), 1), (self.topics.presences(), 0))
        self.link = link(broker.as_user("nightly"), *subscriptions)
        self.key = load_key(broker.files / "nightly.key")

    def make(self, agent: AnyAgent, action: Json | None = None, **changes: Any) -> Sent:
        sent = super().make(agent, action, **changes)
        return dataclasses.replace(sent, payload=signed(agent, sent.trigger, self.key))

    async def send(self, agent: AnyAgent, message: Message) -> None:
        await self.send_bytes(agent, signed(agent, message, self.key))


async def heard_of(broker: BrokerPod, pod: Pod) -> None:
    """Wait until a pod's presence is at the broker, as whoever connects now sees it."""
    deadline = time.monotonic() + HEARD_SECONDS
    while True:
        async with broker.client() as client:
            try:
                await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of", within_seconds=5)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            else:
                return
