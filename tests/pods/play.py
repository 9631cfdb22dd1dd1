"""Pods of the tests: Kubernetes YAML played by podman, ready before the test goes on, gone when it is over.

A `Playground` is one test process's own network, directory and names; each `Pod` is a context manager. Whatever it
started carries the id of the process that did, so the next playground clears away what a killed one left behind::

    with Pod(playground, Manifest.read(EXAMPLES / "mariadb.yaml"), images.of_examples(), secrets=...) as pod:
        pod.exec("mariadb", "id")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.brokers import poll
from tests.pods.documented import Documented, follow
from tests.pods.podman import PodmanFailed, call, podman, podman_json
from tests.pods.stand_ins import Json, Manifest, Objects, Place, dict_of, directory_of, mount, playable

EXAMPLES = Path(__file__).parents[2] / "examples" / "pods"

#: Of the databases: a shell, SQL and YAML each mind another character of it.
PASSWORD = "p'ss \"w\\rd"
READY_SECONDS = 60
PROBE_SECONDS = 5
EXEC_SECONDS = 30
LOG_LINES = 40
#: Of a /24, without the gateway and what podman gives out by itself.
FIRST_ADDRESS = 10
LAST_ADDRESS = 250

_MARK = "podhook-test"
_MADE_BY = re.compile(rf"{_MARK}-(\d+)-(\d+)(?:-.*)?")


def _born(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def sweep() -> None:
    """Remove pods, networks and directories of test processes that are gone."""
    for name in podman("pod", "ls", "--format", "{{.Name}}").split():
        if _orphaned(name):
            remove_pod(name)
    for name in podman("network", "ls", "--format", "{{.Name}}").split():
        if _orphaned(name):
            call("network", "rm", name)
    for path in Path(tempfile.gettempdir()).glob(f"{_MARK}-*"):
        if path.is_dir() and _orphaned(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _orphaned(name: str) -> bool:
    made = _MADE_BY.fullmatch(name)
    return made is not None and _born(int(made[1])) != int(made[2])


def remove_pod(name: str) -> None:
    """Remove a pod, whatever state it is in. Its containers first: together, podman takes ten times as long."""
    containers = call("ps", "-a", "-q", "--filter", f"pod={name}", "--filter", f"name={name}-").stdout.split()
    if containers:
        call("rm", "-f", "-t", "0", *containers)
    call("pod", "rm", "-f", "-t", "0", name)


class Playground:
    """Where one test process plays its pods: a network of its own, so that it can give out addresses.

    `documented` is what docs/sidecar.md makes for a cluster: a pod finds the Secrets and ConfigMaps of its namespace.
    """

    documented: Documented

    def __init__(self) -> None:
        self.name = f"{_MARK}-{os.getpid()}-{_born(os.getpid())}"
        self.directory = Path(tempfile.gettempdir()) / self.name
        self._numbers = itertools.count(FIRST_ADDRESS)
        self._prefix = ""

    def __enter__(self) -> Self:
        sweep()
        self.directory.mkdir(mode=0o755)
        self.documented = follow(self.directory)
        podman("network", "create", self.name)
        subnet = podman("network", "inspect", "--format", "{{range .Subnets}}{{.Subnet}}{{end}}", self.name)
        self._prefix = subnet.rpartition(".")[0]
        return self

    def __exit__(self, *_: object) -> None:
        call("network", "rm", "-f", self.name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def place(self, name: str) -> Place:
        """A name, uid, address and directory that no other pod has."""
        number = next(self._numbers)
        assert number <= LAST_ADDRESS, f"more than {LAST_ADDRESS - FIRST_ADDRESS} pods in one test process"
        own_name = f"{self.name}-{number}-{name}"
        directory = self.directory / own_name
        directory.mkdir()
        return Place(own_name, str(uuid.uuid4()), f"{self._prefix}.{number}", directory)


class Pod:
    """One pod, ready inside the `with`.

    Args:
        playground: where it is played.
        manifest: what is played; it is copied first.
        images: container name -> image that takes the place of the manifest's. All must be there: nothing is pulled.
        secrets: secret name -> key -> value; more than, or in place of, what docs/sidecar.md makes for the namespace.
        env: container name -> variables that are added, or take the place of the manifest's.
        hosts: names that the pod's containers resolve -> address, where a cluster would have Services.
    """

    def __init__(
        self,
        playground: Playground,
        manifest: Manifest,
        images: Mapping[str, str],
        *,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        env: Mapping[str, Mapping[str, str]] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        manifest = manifest.copy()
        spec = manifest.pod["spec"]
        for container in spec["containers"]:
            container["image"] = images.get(container["name"], container["image"])
            container["imagePullPolicy"] = "Never"
            _set_variables(container, (env or {}).get(container["name"], {}))
        if hosts:
            spec["hostAliases"] = [{"ip": ip, "hostnames": [name]} for name, ip in hosts.items()]
        self.manifest = manifest
        self._playground = playground
        there = playground.documented.objects.get(self.namespace, Objects())
        self._objects = Objects({**there.secrets, **(secrets or {})}, there.config_maps)
        self.place = playground.place(manifest.pod["metadata"]["name"])
        manifest.pod["metadata"].setdefault("labels", {})["pod-uid"] = self.place.uid

    @property
    def pod(self) -> str:
        """Its name, as its agent says it."""
        return self.place.name

    @property
    def namespace(self) -> str:
        """Its namespace, as its agent says it."""
        return str(self.manifest.pod["metadata"].get("namespace", "default"))

    @property
    def uid(self) -> str:
        """Its uid in Kubernetes' sense."""
        return self.place.uid

    @property
    def ip(self) -> str:
        """Its own address; the host reaches it."""
        return self.place.ip

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"

    # -- life

    def __enter__(self) -> Self:
        try:
            path = self.place.directory / "pod.yaml"
            path.write_text(yaml.safe_dump(playable(self.manifest, self.place, self._objects)), encoding="utf-8")
            podman("kube", "play", "--network", self._playground.name, "--ip", self.ip, str(path))
            self._wait_ready()
        except BaseException as error:
            error.add_note(self.tail())
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.tail())
        self._remove()

    async def __aenter__(self) -> Self:
        """The same where a loop has other things to do: a client that is held up may lose its connection."""
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _remove(self) -> None:
        remove_pod(self.pod)
        shutil.rmtree(self.place.directory, ignore_errors=True)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for container in self.manifest.pod["spec"]["containers"]:
            probe = container.get("readinessProbe")
            while not (self.running(container["name"]) and (probe is None or self._answers(container, probe))):
                assert time.monotonic() < deadline, f"{self}: {container['name']} is not ready after {READY_SECONDS} s"
                state = self.inspect(container["name"])["State"]
                assert state["Status"] in ("created", "running"), f"{self}: {container['name']} is {state}"
                time.sleep(0.05)

    def _answers(self, container: Json, probe: Json) -> bool:
        if "exec" in probe:
            return self.exec(container["name"], *probe["exec"]["command"], check=False).returncode == 0
        port = probe["tcpSocket"]["port"]
        numbers = {each.get("name"): each["containerPort"] for each in container.get("ports", [])}
        try:
            socket.create_connection((self.ip, numbers.get(port, port)), timeout=PROBE_SECONDS).close()
        except OSError:
            return False
        return True

    # -- containers, as podman sees them

    def container(self, name: str) -> str:
        """What podman calls this container."""
        return f"{self.pod}-{name}"

    def inspect(self, name: str) -> Json:
        """What `podman inspect` says of a container."""
        (found,) = podman_json("container", "inspect", self.container(name))
        return dict_of(found)

    def running(self, name: str) -> bool:
        """Whether its main process runs."""
        return podman("container", "inspect", "--format", "{{.State.Running}}", self.container(name)) == "true"

    def host_pid(self, name: str) -> int:
        """Its main process, as the host counts."""
        return int(podman("container", "inspect", "--format", "{{.State.Pid}}", self.container(name)))

    def pid(self, name: str) -> int:
        """Its main process, as the pod counts: the innermost of NSpid."""
        status = Path(f"/proc/{self.host_pid(name)}/status").read_text(encoding="ascii", errors="replace")
        return int(re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)[1])  # type: ignore[index]

    def exec(
        self, name: str, *command: str, check: bool = True, flags: tuple[str, ...] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, for the test's own checks: the privileged way round podhook.

        Raises:
            PodmanFailed: it exited with another code than 0 and `check` is set.
        """
        options.setdefault("within_seconds", EXEC_SECONDS)
        if "input" in options:
            flags = ("-i", *flags)
        ended = call("exec", *flags, self.container(name), *command, **options)
        if check and ended.returncode != 0:
            said = f"{ended.stdout.strip()} {ended.stderr.strip()}"
            raise PodmanFailed(f"{self}: {name}: {' '.join(command)}: exit {ended.returncode}: {said}")
        return ended

    def logs(self, name: str) -> str:
        """What a container said so far, on both streams."""
        said = call("logs", self.container(name))
        return said.stdout + said.stderr

    def renew(self, volume: str, files: Mapping[str, str]) -> None:
        """The Secret or ConfigMap of a volume has other files now, and the kubelet has noticed."""
        spec = self.manifest.pod["spec"]
        (source,) = (each for each in spec["volumes"] if each["name"] == volume)
        ((_, source),) = ((key, value) for key, value in source.items() if key != "name")
        mount(directory_of(self.place, volume), source, files, spec.get("securityContext", {}).get("fsGroup"))

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a container's main process from outside. Whether it is started again is its `restartPolicy`'s."""
        os.kill(self.host_pid(name), number)

    def restart(self, name: str) -> None:
        """Kill a container's main process, and return when podman, as the kubelet would, has started another one."""
        before = self.host_pid(name)
        self.kill(name)
        poll(lambda: self.host_pid(name) not in (0, before), f"{self}: {name} is started again", READY_SECONDS)

    def tail(self) -> str:
        """The end of every container's log, for a failure's message."""
        parts = []
        for container in self.manifest.pod["spec"]["containers"]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                lines = self.logs(container["name"]).splitlines()
                parts.append("\n".join([f"-- log of {self.container(container['name'])}", *lines[-LOG_LINES:]]))
        return "\n".join(parts)


def _set_variables(container: Json, values: Mapping[str, str]) -> None:
    kept = [each for each in container.get("env", []) if each["name"] not in values]
    container["env"] = kept + [{"name": name, "value": value} for name, value in values.items()]


def beside_agent(*containers: Json) -> Manifest:
    """The MariaDB example with other containers in the database's place; the agent stays as it is, and the last."""
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    spec = manifest.pod["spec"]
    manifest.pod["metadata"].pop("annotations")
    manifest.pod["metadata"]["name"] = "beside"
    (described,) = (each for each in spec["volumes"] if "downwardAPI" in each)
    described["downwardAPI"]["items"].pop()
    agent = manifest.container("agent")
    agent["env"] = [each for each in agent["env"] if each["name"] != "PODHOOK_POD_FILE"]
    spec["containers"] = [*containers, agent]
    return manifest
