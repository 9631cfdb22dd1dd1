"""The world that is to be shaken: a broker with persistence, agents and coordinators behind proxies, all real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import uuid_utils

from tests.brokers import Mosquitto
from tests.faults import disks
from tests.faults.actors import POD_UID, WORLD, CoordinatorProcess, Pod
from tests.faults.diary import Diary
from tests.faults.frames import Published
from tests.faults.proxy import DOWN, UP, Proxy
from tests.faults.raw import Raw
from tests.faults.schedule import AGENTS, COORDINATORS, Work
from tests.faults.waiting import comes

#: It saves every second, takes what comes, and does not make anybody wait for Nagle (FACTS: MQTT latency).
BROKER_LINES = ("autosave_interval 1", "max_queued_messages 0", "set_tcp_nodelay true")
TRIGGER, CANCEL = "dev.podhook.trigger.v1", "dev.podhook.cancel.v1"


@dataclass(frozen=True, slots=True)
class Command:
    """A trigger or a cancel that was on its way to a pod: the same bytes can be published again."""

    at: float
    pod: str
    by: str
    type: str
    trigger: str
    uid: str
    deadline: float
    payload: bytes


@dataclass(slots=True)
class World:
    """All of it, and what was seen to pass."""

    directory: Path
    diary: Diary
    broker: Mosquitto
    root: str
    raw: Raw
    log: Path
    id: str
    disks: bool = False
    pods: dict[str, Pod] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    coordinators: dict[str, CoordinatorProcess] = field(default_factory=dict)
    commands: dict[str, list[Command]] = field(default_factory=lambda: defaultdict(list))
    of_raw: set[tuple[str, str]] = field(default_factory=set)
    delivered: set[tuple[str, str]] = field(default_factory=set)
    running: set[str] = field(default_factory=set)  # runs that have no verdict yet
    owners: dict[str, str] = field(default_factory=dict)  # whose they are

    def script(self, sleep_seconds: float = 0, exit_code: int = 0) -> str:
        """An action that says when it begins and ends, where it really runs. One short write to a file in append mode
        is never torn or mixed with another."""
        say = f'"$PODHOOK_TRIGGER_ID ${POD_UID} $(date +%s.%N)" >> {self.log}'
        return f"echo start {say}; sleep {sleep_seconds}; echo end {say}; exit {exit_code}"

    # -- agents

    def start_agent(self, pod: Pod) -> None:
        """Start the pod's agent unless it runs."""
        if not pod.agent.alive:
            self.raw.presences.pop(pod.name, None)
            pod.agent.start()
            self.diary.note("started", pod=pod.name, uid=pod.uid)

    def kill_agent(self, pod: Pod) -> None:
        """SIGKILL, noted before: what happens from now on may be its doing."""
        if pod.agent.alive:
            self.diary.note("killed", pod=pod.name, uid=pod.uid)
            pod.agent.kill()

    def raise_the_dead(self) -> None:
        """Who ended without our doing is noted, and started again as the kubelet would."""
        for pod in self.pods.values():
            if not pod.alone.locked() and pod.agent.exit_code is not None:
                self.diary.note("died", pod=pod.name, uid=pod.uid, code=pod.agent.exit_code)
                self.start_agent(pod)
        for coordinator in self.coordinators.values():
            if coordinator.died is not None:
                self.diary.note("died", pod=coordinator.name, uid="-", code=coordinator.died)
                coordinator.start()

    def online(self, pod: Pod) -> bool:
        """Whether its present agent has said so since it was started."""
        said = self.raw.presences.get(pod.name)
        return pod.agent.alive and said is not None and said.state == "online" and said.pod_uid == pod.uid

    async def comes_online(self, pod: Pod, within_seconds: float) -> bool:
        return await comes(lambda: self.online(pod), within_seconds)

    # -- coordinators

    def order(self, work: Work) -> None:
        """Tell a coordinator to make a run."""
        selector = "app=db" if len(work.pods) > 1 else f"name={work.pods[0]}"
        self.coordinators[work.by].order(
            {
                "run": str(uuid_utils.uuid7()),
                "script": self.script(work.sleep_seconds, work.exit_code),
                "selector": selector,
                "on_one": work.on_one,
                "timeout_seconds": work.timeout_seconds,
                "window_seconds": work.window_seconds,
                "max_retry": work.max_retry,
                "cancel_after_seconds": work.cancel_after_seconds,
            }
        )

    # -- what passes

    def listen_to_coordinators(self) -> None:
        """Put what the coordinators said since into the diary."""
        for coordinator in self.coordinators.values():
            for event in coordinator.news():
                self.diary.note(**event)
                if event["what"] == "run":
                    self.running.add(event["run"])
                    self.owners[event["run"]] = coordinator.name
                elif event["what"] == "verdict":
                    self.running.discard(event["run"])

    def abandon(self, coordinator: str) -> None:
        """A coordinator is gone, and its runs with it."""
        self.running = {run for run in self.running if self.owners.get(run) != coordinator}

    def passed(self, name: str, way: str, said: Published) -> None:
        """A PUBLISH went through somebody's proxy."""
        if not said.topic.endswith("/commands"):
            return
        event = json.loads(said.payload)
        data, pod = event["data"], said.topic.split("/")[-2]
        if event["type"] not in (TRIGGER, CANCEL):
            return
        trigger, uid = f"{data['run_id']}/{data['attempt']}", data["pod_uid"]
        if way == UP and name in self.coordinators:
            self.remember(pod, said.payload, event, by=name)
            if event["type"] == TRIGGER:
                deadline = self.commands[pod][-1].deadline
                self.diary.note("published", trigger=trigger, uid=uid, pod=pod, by=name, deadline=deadline)
        elif way == DOWN and name == pod:
            self.delivered.add((uid, trigger))
            what = "delivered" if event["type"] == TRIGGER else "cancel_delivered"
            self.diary.note(what, trigger=trigger, uid=uid, pod=pod, to=self.pods[pod].uid)

    def remember(self, pod: str, payload: bytes, event: dict[str, Any] | None = None, *, by: str) -> None:
        """Keep a command, to be published again some time."""
        event = event or json.loads(payload)
        data = event["data"]
        self.commands[pod].append(
            Command(
                time.time(),
                pod,
                by,
                event["type"],
                f"{data['run_id']}/{data['attempt']}",
                data["pod_uid"],
                datetime.fromisoformat(data["deadline"]).timestamp(),
                payload,
            )
        )


@contextlib.asynccontextmanager
async def make_world(directory: Path, diary: Diary) -> AsyncIterator[World]:
    """A world in `directory`; when it ends, everything that it started has ended."""
    for name in ("broker", "agents", "coordinators"):
        (directory / name).mkdir(parents=True)
    broker = Mosquitto(directory / "broker", *BROKER_LINES)
    broker.start()
    root, identity = f"t-{uuid.uuid4().hex[:16]}", uuid.uuid4().hex
    raw = Raw(broker.url, root, diary)
    world = World(directory, diary, broker, root, raw, directory / "executions", identity)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(_end, world)
        await stack.enter_async_context(raw)
        for name in (*AGENTS, *COORDINATORS):
            proxy = Proxy(name, broker.port, lambda way, said, name=name: world.passed(name, way, said))
            world.proxies[name] = await stack.enter_async_context(proxy.serving())
        why_no_disks = [disks.mount(directory / "agents" / name / "disk") for name in AGENTS]
        world.disks = not any(why_no_disks)
        if not world.disks:
            diary.note("no_disks", why=next(filter(None, why_no_disks)))
        for name in AGENTS:
            world.pods[name] = Pod(name, directory / "agents" / name, world.proxies[name], root, identity)
            world.start_agent(world.pods[name])
        for name in COORDINATORS:
            url = world.proxies[name].url
            world.coordinators[name] = CoordinatorProcess(name, directory / "coordinators", url, root)
            world.coordinators[name].start()
        yield world


def _end(world: World) -> None:
    for pod in world.pods.values():
        pod.agent.kill()
    for coordinator in world.coordinators.values():
        coordinator.kill()
    world.broker.kill()
    mark = f"{WORLD}={world.id}".encode()
    for entry in Path("/proc").iterdir():  # a killed agent leaves its commands
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
    for pod in world.pods.values():
        subprocess.run(["umount", "-l", str(pod.disk)], capture_output=True, check=False)
