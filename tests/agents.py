"""Agents for tests: real processes to be killed, light ones by the hundred, and a raw client that commands them.

A `Stage` is a broker, a topic root of its own, a client, and the agents that a test starts there. All of it ends with
the test; whatever fails shows the end of every agent's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

import pytest
import uuid_utils

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions, Publication
from agent.contract.actions import Action
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import (
    REPLIES,
    Cancel,
    Go,
    Message,
    OutcomeMessage,
    Presence,
    Query,
    Release,
    Report,
    Targets,
    Trigger,
)
from agent.contract.signing.peeking import peek
from agent.contract.topics import Topics
from agent.pod.processes import LocalLauncher
from agent.sidecar.app import Agent, utc_now
from agent.sidecar.settings import AgentSettings
from tests.brokers import Mosquitto, Nats, RealBroker, leashed

PROJECT = Path(__file__).parents[1]
WITHIN_SECONDS = 20
LOG_TAIL_LINES = 25
PROMPT_SECONDS = 10
#: A reply that answers no question of ours would be a bug; so would a presence that cannot be read.
_REPLIES = Kinds.of(*REPLIES)
_PRESENCE = Kinds.of(Presence)

M = TypeVar("M", bound=Message)
AnyAgent: TypeAlias = "AgentProcess | LightAgent"
Json = dict[str, Any]


def shell(script: str) -> Json:
    """The action that runs a shell script."""
    return {"exec": {"command": ["/bin/sh", "-c", script]}}


TRUE: Json = {"exec": {"command": ["/bin/true"]}}


@dataclass(frozen=True, slots=True)
class Tally:
    """A file to which each run of a command appends one line (O_APPEND): runs are counted from outside."""

    path: Path

    def action(self, then: str = "", *, word: str = "ran") -> Json:
        """Append a line, then do something else."""
        return shell(f"echo {word} >> '{self.path}'; {then or ':'}")

    @property
    def words(self) -> list[str]:
        """What was appended so far."""
        return self.path.read_text(encoding="ascii").split() if self.path.exists() else []

    @property
    def runs(self) -> int:
        """How many lines were appended so far."""
        return len(self.words)


@dataclass(frozen=True, slots=True)
class Sent:
    """A trigger as it was published: the same bytes can be published again."""

    trigger: Trigger
    payload: bytes

    @property
    def run_id(self) -> str:
        return self.trigger.run_id

    @property
    def attempt(self) -> int:
        return self.trigger.attempt

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.payload).hexdigest()


class AgentProcess:
    """A real agent process with its own state directory, labels and pod uid; it can be started again."""

    program: tuple[str, ...] = ("-m", "agent", "agent")

    def __init__(self, home: Path, broker_url: str, root: str, namespace: str, pod: str, **settings: object) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.namespace = namespace
        self.pod = pod
        self.labels_file = home / "labels"
        self.labels_file.write_text('app="db"\n', encoding="utf-8")
        self.log_file = home / "log"
        self.audit_file = home / "audit"
        self.state = home / "state"
        self.settings: dict[str, object] = {
            "BROKER": broker_url,
            "TOPIC_ROOT": root,
            "NAMESPACE": namespace,
            "POD": pod,
            "POD_UID": str(uuid.uuid4()),
            "CONTAINER": "app",
            "LABELS_FILE": self.labels_file,
            "STATE_DIR": self.state,
            "ALLOW_UNSIGNED": "true",
            "GRACE_SECONDS": 1,
            "LOG_FORMAT": "json",
            **{name.upper(): value for name, value in settings.items()},
        }
        self.program = ("-m", "agent", "agent")
        self.environment: dict[str, str] = {}  # what its commands shall inherit
        self._process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"

    @property
    def uid(self) -> str:
        """The uid of its pod."""
        return str(self.settings["POD_UID"])

    @property
    def pid(self) -> int:
        """Its process; it must have been started."""
        assert self._process is not None, f"agent {self} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, or was not started."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start it, without waiting for anything."""
        assert not self.alive, f"agent {self} runs already"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
        own = {f"PODHOOK_{key}": str(value) for key, value in self.settings.items()}
        with self.log_file.open("ab") as log, self.audit_file.open("ab") as audit:
            self._process = subprocess.Popen(
                leashed(sys.executable, *self.program),
                cwd=PROJECT,
                env={**inherited, **own, **self.environment, "PYTHONPATH": str(PROJECT)},
                stdin=subprocess.DEVNULL,
                stdout=audit,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no chance to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PROMPT_SECONDS)

    async def exited(self, within_seconds: float = WITHIN_SECONDS) -> int:
        """Its exit code, once it has ended."""
        process = self._process
        assert process is not None, f"agent {self} was not started"
        await until(lambda: process.poll() is not None, f"agent {self} ends", within_seconds, agents=[self])
        return int(process.returncode)

    async def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return await self.exited()

    def log(self, event: str | None = None, **values: object) -> list[Json]:
        """Its log as parsed JSON; only this event with these values, if given."""
        lines = self.log_file.read_bytes().splitlines() if self.log_file.exists() else []
        records = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [
            each
            for each in records
            if event in (None, each["event"]) and all(each.get(name) == value for name, value in values.items())
        ]

    def audit(self, kind: str | None = None, **values: object) -> list[Json]:
        """Its audit on standard output; only lines of this kind with these values, if given."""
        lines = self.audit_file.read_bytes().splitlines() if self.audit_file.exists() else []
        return [
            each
            for each in map(json.loads, lines)
            if kind in (None, each["audit"]) and all(each.get(name) == value for name, value in values.items())
        ]

    async def audited(self, kind: str, **values: object) -> Json:
        """The first audit line of this kind with these values, once it is there."""
        await until(lambda: self.audit(kind, **values), f"{self} audits {kind} {values}", agents=[self])
        return self.audit(kind, **values)[0]

    async def logged(self, event: str, **values: object) -> Json:
        """The first log line of this event with these values, once it is there."""
        await until(lambda: self.log(event, **values), f"{self} logs {event} {values}", agents=[self])
        return self.log(event, **values)[0]

    def tail(self) -> str:
        """The end of its log, for a failure's message."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join([f"-- log of agent {self} ({len(lines)} lines)", *lines[-LOG_TAIL_LINES:]])


def left_running(run_id: str) -> list[int]:
    """Processes whose environment says that this run started them."""
    mark = f"PODHOOK_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


async def until(
    condition: Callable[[], object],
    what: str,
    within_seconds: float = WITHIN_SECONDS,
    *,
    agents: list[AgentProcess] | None = None,
) -> None:
    """Poll with a bound; the failure says what did not come, and shows the agents' logs."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > deadline:
            tails = "\n".join(agent.tail() for agent in agents or [])
            raise AssertionError(f"{what}: not within {within_seconds:g} s\n{tails}")
        await asyncio.sleep(0.005)


class Client:
    """A coordinator without manners: publishes any bytes as a command, and keeps everything that is said."""

    def __init__(self, broker_url: str, root: str, agents: list[AgentProcess]) -> None:
        self.id = f"test-{uuid.uuid4().hex[:12]}"
        self.topics = Topics(root)
        self.made: list[str] = []  # run ids
        self.replies: list[Message] = []
        self.presences: dict[str, list[Presence | None]] = {}
        self._agents = agents
        subscriptions = ((self.topics.replies(self.id), 1), (self.topics.presences(), 0))
        options = LinkOptions(self.id, subscriptions, session_expiry_seconds=600, packet_limit_bytes=1024 * 1024)
        self.link = Link(parse_broker(broker_url), options)
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.link.__aenter__()
        await self.link.wait_up(WITHIN_SECONDS)
        self._reading = asyncio.create_task(self._read(), name="test client")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self.link.__aexit__()

    async def _read(self) -> None:
        async for event in self.link.events():
            if not isinstance(event, Delivery):
                continue
            if event.topic.endswith("/presence"):
                said = open_event(peek(event.payload), _PRESENCE, limit_bytes=1 << 20).data if event.payload else None
                self.presences.setdefault("/".join(self.topics.parse_presence(event.topic)), []).append(said)
            else:
                self.replies.append(open_event(peek(event.payload), _REPLIES, limit_bytes=1 << 20).data)
            event.ack()

    # -- out

    def seal(self, message: Message) -> bytes:
        """The CloudEvent of a message, said by this client now."""
        return seal(message, source=f"/tests/{self.id}", time=utc_now(), event_id=str(uuid.uuid4()))

    async def send_bytes(self, agent: AnyAgent, payload: bytes) -> None:
        """Publish anything as a command; returns when the broker has it."""
        topic = self.topics.commands(agent.namespace, agent.pod)
        await self.link.publish(Publication(topic, payload, content_type=CONTENT_TYPE))

    async def send(self, agent: AnyAgent, message: Message) -> None:
        """Publish a command."""
        await self.send_bytes(agent, self.seal(message))

    def make(self, agent: AnyAgent, action: Json | None = None, **changes: Any) -> Sent:
        """A trigger for an agent; `issued_in` and `deadline_in` are seconds from now, the rest are its fields."""
        now = utc_now()
        issued_at = now + timedelta(seconds=changes.pop("issued_in", 0))
        deadline = now + timedelta(seconds=changes.pop("deadline_in", 60))
        fields: Json = {
            "run_id": str(uuid_utils.uuid7()),
            "attempt": 1,
            "coordinator": self.id,
            "pod_uid": agent.uid,
            "targets": Targets.of([(agent.namespace, agent.pod, agent.uid)]),
            "action": Action.model_validate(action) if action else None,
            "timeout_seconds": 30,
            "issued_at": issued_at,
            "deadline": deadline,
            **changes,
        }
        trigger = Trigger(**fields)
        self.made.append(trigger.run_id)
        return Sent(trigger, self.seal(trigger))

    async def trigger(self, agent: AnyAgent, action: Json | None = None, **changes: Any) -> Sent:
        """Make a trigger and publish it."""
        sent = self.make(agent, action, **changes)
        await self.send_bytes(agent, sent.payload)
        return sent

    async def again(self, agent: AnyAgent, sent: Sent) -> None:
        """Publish the same bytes again."""
        await self.send_bytes(agent, sent.payload)

    async def go(self, agent: AnyAgent, sent: Sent, *, start_in: float = 30) -> None:
        start_by = utc_now() + timedelta(seconds=start_in)
        await self.send(
            agent, Go(run_id=sent.run_id, attempt=sent.attempt, pod_uid=sent.trigger.pod_uid, start_by=start_by)
        )

    async def cancel(self, agent: AnyAgent, sent: Sent) -> None:
        await self.send(agent, Cancel(**_of(sent)))

    async def release(self, agent: AnyAgent, sent: Sent) -> None:
        await self.send(agent, Release(**_of(sent)))

    # -- in

    def heard(self, kind: type[M], run_id: str, attempt: int | None = None) -> list[M]:
        """Everything of one type that was said about a run (or one attempt of it)."""
        return [
            each
            for each in self.replies
            if isinstance(each, kind)
            and getattr(each, "run_id", None) == run_id
            and attempt in (None, getattr(each, "attempt", None))
        ]

    async def reply(self, kind: type[M], sent: Sent, *, count: int = 1, within_seconds: float = WITHIN_SECONDS) -> M:
        """The `count`th reply of a type about an attempt, once it is there."""

        def said() -> list[M]:
            return self.heard(kind, sent.run_id, sent.attempt)

        await until(
            lambda: len(said()) >= count,
            f"{kind.__name__} {count} for {sent.run_id}",
            within_seconds,
            agents=self._agents,
        )
        return said()[count - 1]

    async def outcome(self, sent: Sent, *, count: int = 1, within_seconds: float = WITHIN_SECONDS) -> OutcomeMessage:
        """The `count`th outcome of an attempt."""
        return await self.reply(OutcomeMessage, sent, count=count, within_seconds=within_seconds)

    async def run(self, agent: AnyAgent, action: Json, **changes: Any) -> OutcomeMessage:
        """Trigger, and wait for the outcome."""
        return await self.outcome(await self.trigger(agent, action, **changes))

    async def works(self, agent: AnyAgent) -> None:
        """A good trigger succeeds; every command that was sent before it on this link has been handled then."""
        outcome = await self.run(agent, TRUE)
        assert outcome.outcome == "succeeded", f"a good trigger came out {outcome}\n{agent.tail()}"

    async def query(self, agent: AnyAgent, run_id: str, **fields: Any) -> Report:
        """Ask what the agent knows, and wait for its report."""
        query = Query(query_id=str(uuid.uuid4()), coordinator=self.id, run_id=run_id, **fields)
        await self.send(agent, query)

        def answers() -> list[Report]:
            return [each for each in self.heard(Report, run_id) if each.query_id == query.query_id]

        await until(answers, f"a report about {run_id}", agents=self._agents)
        return answers()[0]

    async def ask_about(self, agent: AnyAgent, sent: Sent, *, settle: bool = False, **changes: Any) -> Report:
        """Ask about one attempt as a coordinator does, with what its trigger said."""
        said = sent.trigger
        fields: Json = {"pod_uid": said.pod_uid, "issued_at": said.issued_at, "deadline": said.deadline, **changes}
        return await self.query(agent, sent.run_id, attempt=sent.attempt, settle=settle, **fields)

    def said(self, agent: AnyAgent) -> list[Presence | None]:
        """Every presence of an agent so far, oldest first; None is a goodbye."""
        return self.presences.setdefault(str(agent), [])

    async def presence(
        self, agent: AnyAgent, matches: Callable[[Presence | None], object], what: str, *, after: int = 0
    ) -> Presence | None:
        """The first presence that matches, of those after the first `after`."""

        def found() -> list[Presence | None]:
            return [each for each in self.said(agent)[after:] if matches(each)]

        await until(found, f"presence of {agent}: {what} (said: {len(self.said(agent))})", agents=self._agents)
        return found()[0]


def _of(sent: Sent) -> Json:
    said = sent.trigger
    return {"run_id": said.run_id, "attempt": said.attempt, "pod_uid": said.pod_uid, "deadline": said.deadline}


def code(outcome: OutcomeMessage) -> str | None:
    """The stable name of what went wrong, if anything did."""
    return outcome.error.code if outcome.error else None


def online(presence: Presence | None) -> bool:
    """Whether this presence says that somebody is there."""
    return presence is not None and presence.state == "online"


def offline(presence: Presence | None) -> bool:
    """Whether this presence says that somebody vanished."""
    return presence is not None and presence.state == "offline"


@dataclass
class Stage:
    """A broker, a topic root of its own, a client on it, and the agents started there."""

    broker: RealBroker
    root: str
    directory: Path
    client: Client
    agents: list[AgentProcess]

    def make(self, pod: str = "db-0", *, home: str = "", broker_url: str = "", **settings: object) -> AgentProcess:
        """An agent that is not started yet."""
        directory = self.directory / (home or f"{pod}-{len(self.agents)}")
        made = AgentProcess(directory, broker_url or self.broker.url, self.root, "shop", pod, **settings)
        self.agents.append(made)
        return made

    async def agent(self, pod: str = "db-0", **settings: Any) -> AgentProcess:
        """An agent that is there: its presence says so."""
        made = self.make(pod, **settings)
        await self.start(made)
        return made

    async def start(self, agent: AnyAgent) -> None:
        """Start an agent (again) and wait until a new presence says that it is online."""
        after = len(self.client.said(agent))
        agent.start()
        await self.client.presence(
            agent,
            lambda said: online(said) and said is not None and said.pod_uid == agent.uid,
            "online after its start",
            after=after,
        )

    async def until(self, condition: Callable[[], object], what: str, within_seconds: float = WITHIN_SECONDS) -> None:
        """Poll with a bound; a failure shows every agent's log."""
        await until(condition, what, within_seconds, agents=self.agents)

    def tally(self) -> Tally:
        """A new count of runs."""
        return Tally(self.directory / f"tally-{uuid.uuid4().hex[:8]}")

    def end(self) -> None:
        """End every agent, and what it left running; show its log, should the test have failed."""
        for each in self.agents:
            each.kill()
        for pid in [pid for run_id in self.client.made for pid in left_running(run_id)]:  # of a killed agent
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for each in self.agents:
            print(each.tail())


@contextlib.asynccontextmanager
async def stage_on(broker: RealBroker, directory: Path) -> AsyncIterator[Stage]:
    """A stage on a broker; every agent process that was started there, and what it left running, ends with it."""
    agents: list[AgentProcess] = []
    root = f"t-{uuid.uuid4().hex[:16]}"
    stage = Stage(broker, root, directory, Client(broker.url, root, agents), agents)
    try:
        async with stage.client:
            yield stage
    finally:
        stage.end()


@pytest.fixture
async def stage(mosquitto: Mosquitto, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on mosquitto."""
    async with stage_on(mosquitto, tmp_path) as made:
        yield made


@pytest.fixture(params=["mosquitto", "nats"])
async def any_stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on each broker, for promises that hang on order or loss."""
    broker: Mosquitto | Nats = request.getfixturevalue(request.param)
    async with stage_on(broker, tmp_path) as made:
        yield made


# -- light agents


class _Everything(set[int]):
    """Light agents live in the test's own process: none of its children is a stray that they may reap."""

    def __contains__(self, _: object) -> bool:
        return True


class SharedLauncher(LocalLauncher):
    """Starts commands for agents that share a process."""

    def __init__(self) -> None:
        super().__init__()
        self.running = _Everything()


@dataclass
class LightAgent:
    """An agent in this process: the same code without a process of its own. `shift_seconds` moves its clock."""

    settings: AgentSettings
    shift_seconds: float = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.agent = Agent(self.settings, now=self.now)
        self.agent._launcher = SharedLauncher()
        identity = self.settings.identity()
        self.namespace, self.pod, self.uid = identity.namespace, identity.pod, identity.pod_uid

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.shift_seconds)


def light_settings(broker_url: str, root: str, directory: Path, pod: str) -> AgentSettings:
    """Settings of a light agent with a state directory of its own."""
    labels = directory / "light-labels"
    labels.write_text('app="db"\n', encoding="utf-8")
    return AgentSettings(
        broker=broker_url,
        topic_root=root,
        namespace="shop",
        pod=pod,
        pod_uid=str(uuid.uuid4()),
        labels_file=labels,
        state_dir=directory / pod,
        audit=str(directory / f"{pod}.audit"),
        allow_unsigned=True,
        grace_seconds=1,
    )


@contextlib.asynccontextmanager
async def light_agents(broker_url: str, root: str, directory: Path, count: int) -> AsyncIterator[list[LightAgent]]:
    """Agents that live in this process, started together and stopped in order."""
    agents = [LightAgent(light_settings(broker_url, root, directory, f"db-{at}")) for at in range(count)]
    tasks = [asyncio.create_task(each.agent.run(each.stop), name=f"light {each}") for each in agents]
    try:
        yield agents
    finally:
        for each in agents:
            each.stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), WITHIN_SECONDS)
