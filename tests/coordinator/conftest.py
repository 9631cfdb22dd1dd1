"""Light agents (in the test's own loop) and real ones (processes), each with a state, labels and topics of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.contract.templates import Hook, load_hooks
from agent.coordinator import Coordinator, HookCall, RunEvent
from agent.sidecar.app import Agent
from agent.sidecar.settings import AgentSettings
from tests.brokers import Mosquitto, Nats, leashed

WITHIN_SECONDS = 15
#: An agent that is told to end while it connects lets that attempt run out first: ten seconds, and ten to say goodbye.
ENDING_SECONDS = 60


async def until(condition, what: str, within_seconds: float = WITHIN_SECONDS) -> None:
    """Wait for a condition, with a bound."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {within_seconds} s"
        await asyncio.sleep(0.01)


def sh(script: str, *, strategy: str = "ExecuteOnAll", selector: str = "app=db", container: str = "agent") -> Hook:
    """A hook that runs a shell script in every pod of the test."""
    return load_hooks(
        json.dumps(
            {
                "action": {"exec": {"command": ["/bin/sh", "-c", script]}, "containerName": container},
                "executor": {"type": "Pod", "pod": {"selector": selector, "strategy": strategy}},
            }
        ),
        name="test",
    )[0]


@dataclass
class Diary:
    """What hooks write down as they run: one line a writer, appended in one write, so nothing is lost or mixed."""

    path: Path

    def note(self, text: str = "$PODHOOK_TRIGGER_ID") -> str:
        """The shell command that appends a line."""
        return f'echo "{text}" >> {self.path}'

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@dataclass
class Heard:
    """An `on_event` that keeps everything."""

    events: list[RunEvent] = field(default_factory=list)

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[str]:
        """The pods to which that happened, in order."""
        return [event.target.pod for event in self.events if event.kind == kind and event.target]


@dataclass
class LightAgent:
    """An agent in the test's own loop."""

    settings: AgentSettings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Drain it; it says goodbye."""
        self.stop.set()
        if self.task is not None:
            await asyncio.wait_for(asyncio.shield(self.task), WITHIN_SECONDS)


class Fleet:
    """Starts agents on one broker below one topic root, and ends those that are left."""

    def __init__(self, broker: Mosquitto | Nats, root: str, directory: Path) -> None:
        self.broker = broker
        self.root = root
        self.directory = directory
        self._light: list[LightAgent] = []
        self._heavy: list[subprocess.Popen[bytes]] = []

    def settings(self, pod: str, *, namespace: str = "default", labels: dict[str, str] | None = None, **more):
        home = self.directory / f"{namespace}-{pod}"
        home.mkdir(exist_ok=True)
        text = "".join(f'{key}="{value}"\n' for key, value in ({"app": "db"} if labels is None else labels).items())
        (home / "labels").write_text(text)
        return {
            "broker": self.broker.url,
            "topic_root": self.root,
            "namespace": namespace,
            "pod": pod,
            "pod_uid": f"uid-{namespace}-{pod}",
            "labels_file": home / "labels",
            "state_dir": home / "state",
            "audit": str(home / "audit"),
            "allow_unsigned": True,
            "grace_seconds": 0,
            **more,
        }

    async def start(self, *pods: str, **more) -> list[LightAgent]:
        """Light agents, of whose presence the broker knows when this comes back."""
        agents = [LightAgent(AgentSettings(**self.settings(pod, **more))) for pod in pods]
        for agent in agents:
            agent.task = asyncio.create_task(Agent(agent.settings).run(agent.stop), name=f"agent {agent.settings.pod}")
        self._light += agents
        await self.online(*pods)
        return agents

    def process(self, pod: str, **more) -> subprocess.Popen[bytes]:
        """A real agent; see `online`."""
        settings = self.settings(pod, **more)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")},
            **{f"PODHOOK_{key.upper()}": str(value) for key, value in settings.items()},
        }
        with (self.directory / f"{pod}.log").open("ab") as log:
            process = subprocess.Popen(
                leashed(sys.executable, "-m", "agent", "agent"),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._heavy.append(process)
        return process

    async def spawn(self, *pods: str, **more) -> list[subprocess.Popen[bytes]]:
        """Real agents. What ends commands on several pods at once needs them: an attempt's strays are found by a mark
        that all targets of a run share, among the children of one agent's process."""
        processes = [self.process(pod, **more) for pod in pods]
        await self.online(*pods)
        return processes

    async def online(self, *pods: str, within_seconds: float = WITHIN_SECONDS) -> None:
        """Wait until these are online."""
        await self.presence_is(lambda states: all(states.get(pod) == "online" for pod in pods), within_seconds)

    async def presence_is(self, wanted, within_seconds: float = WITHIN_SECONDS) -> None:
        """Wait until `wanted` holds for {pod: state}."""
        async with self.coordinator() as watching, asyncio.timeout(within_seconds):
            while not wanted({each.pod: each.state for each in await watching.agents()}):
                await watching.presence_changed()

    def coordinator(self) -> Coordinator:
        return Coordinator(self.broker.url, topic_root=self.root)

    async def run(self, hook: Hook, *, on_event=lambda _: None, **call):
        """Run one hook with a coordinator of its own."""
        async with self.coordinator() as coordinator:
            return await coordinator.run(HookCall(hook, **call), on_event=on_event)

    async def close(self) -> None:
        for process in self._heavy:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for agent in self._light:
            agent.stop.set()
        running = [agent.task for agent in self._light if agent.task]
        try:
            await asyncio.wait_for(asyncio.gather(*running), ENDING_SECONDS)
        finally:
            for process in self._heavy:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait(5)


@pytest.fixture
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PODHOOK_") and "TEST" not in name]:
        monkeypatch.delenv(name)


@pytest.fixture
async def fleet(mosquitto: Mosquitto, topics_root, tmp_path, no_settings_from_outside) -> AsyncIterator[Fleet]:
    """Agents on mosquitto."""
    fleet = Fleet(mosquitto, topics_root, tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture
async def nats_fleet(nats: Nats, topics_root, tmp_path, no_settings_from_outside) -> AsyncIterator[Fleet]:
    """Agents on the embedded broker's server."""
    fleet = Fleet(nats, topics_root, tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture(params=["mosquitto", "nats"])
async def any_fleet(request, topics_root, tmp_path, no_settings_from_outside) -> AsyncIterator[Fleet]:
    """Agents on each kind of broker."""
    fleet = Fleet(request.getfixturevalue(request.param), topics_root, tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    return Diary(tmp_path / "diary")
