"""Who acts: an agent in its pod and a coordinator, each a real process that can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.agents import PROJECT, AgentProcess
from tests.brokers import leashed
from tests.faults.coordinator import NAMESPACE
from tests.faults.proxy import Proxy
from tests.faults.stepped import CLOCK, set_clock

#: Stands in the environment of an agent and of all that it starts: where a command really ran, and in whose world.
POD_UID, WORLD = "FAULTS_POD_UID", "FAULTS_WORLD"


class Pod:
    """A pod's name, disk, clock and link, and the agent that lives there now: a real process in a state of its own."""

    def __init__(self, name: str, directory: Path, proxy: Proxy, root: str, world: str) -> None:
        self.name = name
        self.directory = directory
        self.proxy = proxy
        self.disk = directory / "disk"
        self.clock = directory / "clock"
        self.alone = asyncio.Lock()  # held by whoever deals with its process
        self._root = root
        self._world = world
        self.agent = self._born()

    @property
    def uid(self) -> str:
        return self.agent.uid

    @property
    def journal(self) -> Path:
        return self.agent.state / f"journal-{self.uid}.sqlite3"

    def reborn(self) -> None:
        """The pod is replaced: another uid, and nothing of what was kept."""
        shutil.rmtree(self.agent.state, ignore_errors=True)
        self.agent = self._born()

    def _born(self) -> AgentProcess:
        agent = AgentProcess(self.directory, self.proxy.url, self._root, NAMESPACE, self.name)
        agent.program = ("-m", "tests.faults.stepped")
        agent.state = self.disk / f"state-{agent.uid[:8]}"
        agent.settings["STATE_DIR"] = agent.state
        agent.environment = {POD_UID: agent.uid, WORLD: self._world, CLOCK: str(self.clock)}
        agent.labels_file.write_text(f'app="db"\nname="{self.name}"\n', encoding="utf-8")
        set_clock(self.clock, 0)
        return agent


class CoordinatorProcess:
    """A real coordinator's process, and the file in which it says what it hears."""

    def __init__(self, name: str, directory: Path, url: str, root: str) -> None:
        self.name = name
        self.said = directory / f"{name}.jsonl"
        self._log = directory / f"{name}.log"
        self._arguments = ("-m", "tests.faults.coordinator", url, root, name, str(self.said))
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._read = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def died(self) -> int | None:
        """How it ended, if that was not our doing."""
        return None if self._process is None or self._killed else self._process.poll()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._killed = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                leashed(sys.executable, *self._arguments),
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def order(self, order: dict[str, Any]) -> None:
        """Tell it to make a run, if it lives."""
        if self.alive and self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()

    def kill(self) -> None:
        if self._process is not None:
            self._killed = True
            self._process.kill()
            self._process.wait(10)
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()

    def news(self) -> list[dict[str, Any]]:
        """What it said since we last looked."""
        if not self.said.exists():
            return []
        with self.said.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
