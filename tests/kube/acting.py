"""Putting the acceptance's objects into a cluster, and running hooks there as a pod of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.cluster import Cluster, Resource
from agent.cluster.resources import NAMESPACES, PODS
from tests.kube.objects import Images, Json, runner, stage

#: Images are pulled meanwhile.
BEGINNING_SECONDS = 300
RUN_SECONDS = 240
LOG_BYTES = 256 * 1024
POLL_SECONDS = 0.5
#: What an agent logs when it has reached its broker; its presence follows within the time that a run waits for it.
ONLINE = b"broker.connected"
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a `podhook run`: its exit code, its result (None where it printed none), and all that it said."""

    code: int
    result: Json | None
    said: str


@dataclass(frozen=True, slots=True)
class Stage:
    """The namespace of one acceptance. Every method asks the cluster of KUBECONFIG (or `connect`'s)."""

    namespace: str
    images: Images
    connect: Callable[[], Cluster] = Cluster

    async def set_up(self) -> None:
        """Make everything, and wait until every pod is Ready: then the agent has told the broker, or is about to."""
        async with self.connect() as cluster:
            documents = stage(self.namespace, self.images)
            for document in documents:
                await cluster.create(_resource(document), document, self.namespace)
                if document["kind"] == "Namespace":  # no pod is taken before its controller has made that
                    await self._until(cluster, SERVICE_ACCOUNTS, "default", lambda _: True, BEGINNING_SECONDS)
            for document in documents:
                if document["kind"] == "Pod":
                    await self._until(cluster, PODS, document["metadata"]["name"], is_ready, BEGINNING_SECONDS)
            await self._agent_is_online(cluster)

    async def run(self, hook: str) -> Ran:
        """Run one of `objects.HOOKS` to its end."""
        async with self.connect() as cluster:
            pod = runner(self.namespace, self.images, hook)
            name = pod["metadata"]["name"]
            await cluster.create(PODS, pod, self.namespace)
            ended = await self._until(cluster, PODS, name, is_over, RUN_SECONDS)
            log, _ = await cluster.log_end(name, self.namespace, limit_bytes=LOG_BYTES)
            said = log.decode(errors="replace")
            results = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
            return Ran(exit_code(ended), results[-1] if results else None, said)

    async def tear_down(self) -> None:
        """Delete the namespace with all that is in it; nobody waits for that."""
        async with self.connect() as cluster:
            await cluster.delete(NAMESPACES, self.namespace)

    async def _agent_is_online(self, cluster: Cluster) -> None:
        """A pod is Ready whatever its agent does (examples/pods), and an agent that is late would be missed."""
        log = b""
        try:
            async with asyncio.timeout(BEGINNING_SECONDS):
                while ONLINE not in log:
                    await asyncio.sleep(POLL_SECONDS)
                    log, _ = await cluster.log_end("db-0", self.namespace, container="agent", limit_bytes=LOG_BYTES)
        except TimeoutError:
            text = log.decode(errors="replace")
            raise AssertionError(f"the agent does not reach its broker within {BEGINNING_SECONDS} s:\n{text}") from None

    async def _until(
        self, cluster: Cluster, kind: Resource, name: str, wanted: Callable[[Json], bool], within_seconds: float
    ) -> Json:
        seen: Json = {}
        try:
            async with (
                asyncio.timeout(within_seconds),
                contextlib.aclosing(cluster.watch(kind, self.namespace, name=name)) as events,
            ):
                async for _, seen in events:
                    if wanted(seen):
                        return seen
        except TimeoutError:
            status = json.dumps(seen.get("status"))
            raise AssertionError(
                f"{kind.kind} {self.namespace}/{name}: not within {within_seconds} s, but {status}"
            ) from None
        raise AssertionError(f"the watch of {kind.kind} {self.namespace}/{name} ended")


def is_ready(pod: Json) -> bool:
    """Whether the kubelet says so."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_over(pod: Json) -> bool:
    """Whether no container of it will run again."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def exit_code(pod: Json) -> int:
    """That of its only container."""
    (status,) = pod["status"]["containerStatuses"]
    return int(status["state"]["terminated"]["exitCode"])


def _resource(document: dict[str, Any]) -> Resource:
    """Where the API serves an object of Kubernetes' own kinds, whose plurals are all regular here."""
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    return Resource(group, version, f"{kind.lower()}s", kind, namespaced=kind != "Namespace")
