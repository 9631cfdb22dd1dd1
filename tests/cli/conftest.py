"""`python -m agent` as people run it, beside real agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.brokers import leashed

POD = {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnAll"}}


def clean_environment(**more: object) -> dict[str, str]:
    """Ours without settings of podhook, plus `more`; None takes a variable away."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PODHOOK_", "COLUMNS", "LINES"))}
    kept = {key: value for key, value in kept.items() if more.get(key, "") is not None}
    return kept | {key: str(value) for key, value in more.items() if value is not None}


@dataclass
class Command:
    """A running `podhook`, its output read as it comes."""

    process: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            reader = threading.Thread(target=lambda s=stream, kept=lines: kept.extend(s), daemon=True)
            reader.start()
            self._readers.append(reader)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, within_seconds: float = 30) -> int:
        code = self.process.wait(within_seconds)
        for reader in self._readers:
            reader.join(5)
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()


class Cli:
    """Runs `podhook` against one broker and topic root."""

    def __init__(self, url: str, root: str, directory: Path) -> None:
        self.url, self.root, self.directory = url, root, directory
        self._started: list[Command] = []

    def environment(self, **more: object) -> dict[str, str]:
        return clean_environment(PODHOOK_BROKER=self.url, PODHOOK_TOPIC_ROOT=self.root, **more)

    def __call__(self, *arguments: object, stdin: str = "", env: dict[str, str] | None = None, within_seconds=60):
        """Run it to its end."""
        return subprocess.run(
            [sys.executable, "-m", "agent", *map(str, arguments)],
            input=stdin,
            env=self.environment() if env is None else env,
            cwd=self.directory,
            check=False,
            capture_output=True,
            text=True,
            timeout=within_seconds,
        )

    def start(self, *arguments: object, env: dict[str, str] | None = None) -> Command:
        """Run it in the background."""
        process = subprocess.Popen(
            leashed(sys.executable, "-m", "agent", *map(str, arguments)),
            env=self.environment() if env is None else env,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(Command(process))
        return self._started[-1]

    def agent(self, pod: str, namespace: str = "default", labels: str = 'app="db"\n', **more: object) -> Command:
        """Start an agent; `ready` waits for it."""
        home = self.directory / f"agent-{namespace}-{pod}"
        home.mkdir(exist_ok=True)
        (home / "labels").write_text(labels)
        settings = {
            "NAMESPACE": namespace,
            "POD": pod,
            "LABELS_FILE": home / "labels",
            "STATE_DIR": home / "state",
            "ALLOW_UNSIGNED": "true",
            "GRACE_SECONDS": "0",
            **more,
        }
        return self.start("agent", env=self.environment(**{f"PODHOOK_{key}": value for key, value in settings.items()}))

    def online(self, *pods: str) -> None:
        """Wait until these agents are online."""
        from agent.coordinator import Coordinator

        async def wait() -> None:
            async with Coordinator(self.url, topic_root=self.root) as watching, asyncio.timeout(20):
                while not set(pods) <= {each.pod for each in await watching.agents() if each.state == "online"}:
                    await watching.presence_changed()

        asyncio.run(wait())

    def file(self, *hooks: dict | str, name: str = "hooks.yaml") -> Path:
        """A file of hooks; a text is a shell script on all pods."""
        path = self.directory / name
        path.write_text("\n---\n".join(json.dumps(script(h) if isinstance(h, str) else h) for h in hooks))
        return path

    def close(self) -> None:
        for command in self._started:
            if command.process.poll() is None:
                command.process.send_signal(signal.SIGTERM)
        for command in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(10)
            command.end()


def script(text: str, executor: dict | None = None) -> dict:
    return {"action": {"exec": {"command": ["/bin/sh", "-c", text]}}, "executor": executor or POD}


@pytest.fixture
def cli(mosquitto, topics_root, tmp_path) -> Iterator[Cli]:
    cli = Cli(mosquitto.url, topics_root, tmp_path)
    yield cli
    cli.close()


@pytest.fixture(scope="module")
def shared(_mosquitto_process, tmp_path_factory) -> Iterator[Cli]:
    """Two agents, db-0 and db-1, for every test of a module that leaves them as they are."""
    _mosquitto_process.start()
    cli = Cli(_mosquitto_process.url, f"t-{os.urandom(8).hex()}", tmp_path_factory.mktemp("shared"))
    for pod in ("db-0", "db-1"):
        cli.agent(pod)
    cli.online("db-0", "db-1")
    yield cli
    cli.close()
