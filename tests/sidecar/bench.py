"""An agent on a bench: all of it but its process and its broker. What it says is caught where it would leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import uuid_utils

from agent.bus.link import Link
from agent.bus.types import Delivery, Publication
from agent.contract.actions import Action
from agent.contract.events import Kinds, open_event, seal
from agent.contract.messages import REPLIES, Message, OutcomeMessage, Targets, Trigger
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.keys import public_text
from agent.sidecar.app import Agent
from agent.sidecar.attempts import Attempts
from agent.sidecar.settings import AgentSettings
from agent.sidecar.voice import Outbox
from tests.agents import TRUE, Json, SharedLauncher
from tests.contract.signing.keys import pair

_REPLIES = Kinds.of(*REPLIES)
#: The containers of its pod: its own, and one that it cannot enter.
POD = {"containers": [{"name": "app", "ports": [{"name": "web", "containerPort": 8080}]}, {"name": "mysql"}]}


class CaughtLink:
    """What leaves the agent, decoded."""

    up = True
    limits = None

    def __init__(self) -> None:
        self.said: list[Message] = []

    async def publish(self, publication: Publication, **_: Any) -> None:
        self.said.append(open_event(publication.payload, _REPLIES, limit_bytes=1 << 20).data)


@dataclass
class Bench:
    """An agent of the pod `shop/db-0` with the containers app (its own) and mysql (which it cannot enter)."""

    directory: Path
    agent: Agent
    settings: AgentSettings
    group: asyncio.TaskGroup
    link: CaughtLink = field(default_factory=CaughtLink)
    shift_seconds: float = 0
    attempts: Attempts = field(init=False)
    outbox: Outbox = field(init=False)

    def trigger(self, action: Json | None = TRUE, **changes: Any) -> Trigger:
        now, issued, deadline = self.now(), changes.pop("issued", 0), changes.pop("deadline", 60)
        fields: Json = {
            "run_id": str(uuid_utils.uuid7()),
            "attempt": 1,
            "coordinator": "c",
            "pod_uid": self.settings.pod_uid,
            "targets": Targets.of([("shop", "db-0", self.settings.pod_uid)]),
            "action": Action.model_validate(action) if action else None,
            "name": "hook",
            "timeout_seconds": 30,
            "issued_at": now + timedelta(seconds=issued),
            "deadline": now + timedelta(seconds=deadline),
            **changes,
        }
        return Trigger(**fields)

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.shift_seconds)

    def signed(self, message: Message, key: str = "nightly", **changes: Any) -> bytes:
        now = self.now()
        said = {
            "source": "/t",
            "time": now,
            "event_id": str(uuid.uuid4()),
            "issuer": pair(key).kid,
            "audience": f"shop/db-0/{self.settings.pod_uid}",
            "expires": message.deadline if isinstance(message, Trigger) else now + timedelta(minutes=15),
            **changes,
        }
        return sign(seal(message, **said), pair(key), Typ.COMMAND)

    async def give(self, payload: bytes) -> None:
        await self.agent._command(Delivery("t/commands", payload, 1, retain=False), self.attempts)

    async def refused(self, trigger: Trigger, payload: bytes | None = None) -> Trigger:
        await self.give(self.signed(trigger) if payload is None else payload)
        return trigger

    def outcomes(self, run_id: str) -> list[OutcomeMessage]:
        return [each for each in self.link.said if isinstance(each, OutcomeMessage) and each.run_id == run_id]

    def audit(self) -> list[Json]:
        path = Path(self.settings.audit)
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def trust(self, name: str) -> None:
        (self.directory / "trusted" / f"{name}.pub").write_text(public_text(pair(name)), encoding="ascii")
        self.agent._look_at_files()


@contextlib.asynccontextmanager
async def bench(directory: Path, **settings: Any) -> AsyncIterator[Bench]:
    """An agent on `directory`, which may have been there before."""
    trusted = directory / "trusted"
    if not trusted.exists():
        trusted.mkdir()
        (trusted / "nightly.pub").write_text(public_text(pair("nightly")), encoding="ascii")
        (trusted / "lab.pub").write_text(public_text(pair("lab"), namespaces=["lab"]), encoding="ascii")
        (directory / "pod.json").write_text(json.dumps(POD), encoding="utf-8")
        (directory / "secrets").mkdir()
    if policy := settings.pop("policy", ""):
        settings["policy"] = directory / "policy.yaml"
        settings["policy"].write_text(policy, encoding="utf-8")
    made = AgentSettings(
        namespace="shop",
        pod="db-0",
        pod_uid="6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01",
        container="app",
        pod_file=directory / "pod.json",
        state_dir=directory / "state",
        audit=str(directory / "audit"),
        trusted_keys=trusted,
        secrets_dir=directory / "secrets",
        **settings,
    )
    holder: list[Bench] = []
    agent = Agent(made, now=lambda: holder[0].now() if holder else datetime.now(UTC))
    agent._launcher = SharedLauncher()
    agent._look_at_files()
    await agent._open_journal()
    try:
        async with asyncio.TaskGroup() as group:
            one = Bench(directory, agent, made, group)
            holder.append(one)
            one.attempts, one.outbox = agent._wire(cast("Link", one.link), group)
            await agent._recover(one.attempts)
            yield one
            await one.attempts.drain(0, 5)
    finally:
        await agent._journal.close()
        agent._audit.close()
