"""Real brokers for tests: started on free loopback ports, ended by whoever started them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.bus import embedded, leash

NO_MOSQUITTO = "mosquitto is not installed: apt-get install mosquitto"
NO_NATS = "the NATS server is not installed: pip install 'podhook[demo]'"
START_SECONDS = 15


def poll(condition: Callable[[], bool], what: str, within_seconds: float = 10) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_seconds} s"
        time.sleep(0.01)


def free_port() -> int:
    """A loopback port that nobody has at the moment; somebody may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class RealBroker:
    """A broker process of ours that can be stopped and started again with what it keeps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, on the same port as before if it ran before. Without effect while it runs."""
        if self._process is not None:
            return
        for attempt in range(5):
            port = self.port or free_port()
            if self._start(port):
                self.port = port
                return
            assert self.port == 0 or attempt < 4, f"{self}: {embedded.log_tail(self.log)}"
        raise AssertionError(f"{self} does not start: {embedded.log_tail(self.log)}")

    def _start(self, port: int) -> bool:
        self.log.unlink(missing_ok=True)
        arguments = self.command(port)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self.ready(port):
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def command(self, port: int) -> list[str]:
        raise NotImplementedError

    def ready(self, port: int) -> bool:
        raise NotImplementedError

    def stop(self) -> None:
        """End it politely, so that it saves what it keeps; the hard way after 10 s."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def kill(self) -> None:
        """End it without a chance to save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """Stop and start on the same port; persistent sessions and retained messages stay."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Leave it there, but silent (SIGSTOP); returns once every thread of it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while any(_running(task) for task in Path(f"/proc/{self.pid}/task").iterdir()):
            assert time.monotonic() < deadline, "the broker did not stop"
            time.sleep(0.005)

    def thaw(self) -> None:
        """Undo `freeze`."""
        os.kill(self.pid, signal.SIGCONT)


def _running(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] != "T"
    except OSError:
        return False


class Mosquitto(RealBroker):
    """mosquitto with the limits it comes with, and any further lines of configuration."""

    def __init__(self, directory: Path, *lines: str, anonymous: bool = True) -> None:
        super().__init__(directory)
        self._lines = (f"allow_anonymous {str(anonymous).lower()}", *lines)

    def __str__(self) -> str:
        return "mosquitto"

    def command(self, port: int) -> list[str]:
        configuration = self.directory / "mosquitto.conf"
        listener, kept = f"listener {port} 127.0.0.1", f"persistence_location {self.directory}/"
        account = f"user {pwd.getpwuid(os.getuid()).pw_name}"
        lines = (listener, account, "persistence true", kept, "log_dest stderr", *self._lines)
        configuration.write_text("\n".join(lines) + "\n")
        return leashed(mosquitto_binary(), "-c", str(configuration))

    def ready(self, port: int) -> bool:
        return b" running" in self.log.read_bytes() and accepts(port)


class Nats(RealBroker):
    """The embedded broker's server, started without an event loop, and with NATS's own limit of a payload (1 MiB)."""

    def __str__(self) -> str:
        return "nats-server"

    def command(self, port: int) -> list[str]:
        try:
            command = embedded.command(self.directory, self.directory / "state", self.log, port=port)
        except embedded.InvalidSettings:
            pytest.skip(NO_NATS)
        configuration = Path(command[-1])
        ours = configuration.read_text()
        assert ours.count("max_payload: 261120\n") == 1
        configuration.write_text(ours.replace("max_payload: 261120\n", ""))
        return command

    def ready(self, port: int) -> bool:
        return embedded.listening_port(self.log) == port


def mosquitto_binary(name: str = "mosquitto") -> str:
    """Where mosquitto, or a tool that comes with it, is; Debian keeps daemons out of a user's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(NO_MOSQUITTO)
    return found


def leashed(*command: str) -> list[str]:
    """The same command, ended by the kernel should the test process die."""
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
