"""Shipped brokers whose files are mounted as Kubernetes does it, and the reloader that runs beside them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.broker.shipped import PROJECT, Authority, Shipped, ShippedMosquitto, ShippedNats
from tests.brokers import leashed, poll
from tests.mounted import Mounted

#: A look a second, two of them equal, and a machine that has other things to do.
RELOADED_SECONDS = 30


def files_in(directory: Path) -> dict[str, bytes]:
    """What `kubectl create secret --from-file=DIRECTORY` takes: the files, but none that begins with a dot."""
    return {each.name: each.read_bytes() for each in directory.iterdir() if each.is_file() and each.name[0] != "."}


class MountedBroker:
    """A shipped broker. Its users are issued in one directory and mounted in another; `renew` is the kubelet.

    `auth` and `tls` are what an administrator has; the broker reads what was mounted of them.
    """

    def __init__(self, broker: Shipped) -> None:
        self.broker = broker
        self.mounts: dict[str, Mounted] = {}
        self.sources: dict[str, Path] = {}
        for name in ("auth", "tls"):
            source = broker.directory / f"{name}-of-the-administrator"
            if (broker.directory / name).exists():
                (broker.directory / name).rename(source)
            source.mkdir(exist_ok=True)
            self.sources[name] = source
            self.mounts[name] = Mounted(broker.directory / name, {})
        broker.auth = self.sources["auth"]

    @property
    def pid_file(self) -> Path:
        return self.broker.directory / "pid"

    def start(self) -> None:
        """Start it, on what is mounted by now."""
        self.broker.start()
        self.pid_file.write_text(f"{self.broker.pid}\n")

    def stop(self) -> None:
        self.broker.stop()

    def renew(self, *names: str) -> None:
        """The kubelet mounts what the administrator has now."""
        for name in names or self.mounts:
            self.mounts[name].renew(files_in(self.sources[name]))

    def issue(self, *arguments: object) -> None:
        """`podhook broker user`; mounted by `renew`."""
        self.broker.issue(*arguments)  # type: ignore[arg-type]

    def show_another_certificate(self, authority: Authority) -> None:
        """The broker's own certificate, by this authority; mounted by `renew`."""
        certificate, key = authority.issue("broker", server=True)
        (self.sources["tls"] / "tls.crt").write_bytes(certificate.read_bytes())
        (self.sources["tls"] / "tls.key").write_bytes(key.read_bytes())

    def loaded(self) -> int:
        """How often it says that it read its files again."""
        said = b"Reloading config" if self.broker.server == "mosquitto" else b"Reloaded server configuration"
        return self.broker.log.read_bytes().count(said)

    @contextlib.contextmanager
    def reloading(self, *more: object) -> Iterator[Reloading]:
        """`podhook broker reload` beside it, until the block ends."""
        running = Reloading(self, *more)
        try:
            yield running
        finally:
            running.end()


class Reloading:
    """The command as a process."""

    def __init__(self, mounted: MountedBroker, *more: object) -> None:
        self._log = mounted.broker.directory / f"reloader-{os.urandom(3).hex()}.log"
        paths = [each.directory for each in mounted.mounts.values()]
        arguments = [*paths, "--for", mounted.broker.server, "--pid-file", mounted.pid_file, *more]
        command = leashed(sys.executable, "-m", "agent", "broker", "reload", *map(str, arguments))
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stderr=log)

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = [json.loads(line) for line in self._log.read_bytes().splitlines()]
        return [each for each in lines if each["event"] == event]

    def told(self, times: int) -> None:
        """Wait until it told the broker for the nth time."""
        poll(lambda: len(self.said("broker.told_to_reload")) >= times, f"told {times} times\n{self}", RELOADED_SECONDS)

    def complained(self, of: str) -> None:
        """Wait until it says what is wrong."""
        poll(lambda: any(of in each["problem"] for each in self.said("broker.not_told")), of, RELOADED_SECONDS)

    def end(self) -> int:
        """SIGTERM, as a pod that ends; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(10)

    def __str__(self) -> str:
        return self._log.read_text()


def mosquitto(directory: Path, configuration: str = "mosquitto.conf") -> MountedBroker:
    """The shipped mosquitto on mounted files."""
    return MountedBroker(ShippedMosquitto(directory, configuration))


def nats(directory: Path) -> MountedBroker:
    """The shipped NATS server on mounted files."""
    return MountedBroker(ShippedNats(directory))
