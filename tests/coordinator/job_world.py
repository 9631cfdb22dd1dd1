"""A cluster in memory for one Job, and time that passes when a test says so."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

from agent.cluster.resources import JOBS, PODS, Resource
from agent.contract.errors import ClusterConflict, ClusterNotFound, ClusterUnavailable
from agent.contract.messages import Result
from agent.coordinator.functions import JobEvent, run_function

Json = dict[str, Any]
AWAY = ClusterUnavailable("the API server at https://mock cannot be reached")


class Time:
    """Seconds that pass by `advance` alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self.seconds + seconds, woken)
        self._sleepers.append(entry)
        try:
            await woken
        finally:
            self._sleepers.remove(entry)

    async def advance(self, seconds: float) -> None:
        until = self.seconds + seconds
        await settled()
        while due := [entry for entry in self._sleepers if entry[0] <= until and not entry[1].done()]:
            at, woken = min(due, key=lambda entry: entry[0])
            self.seconds = max(self.seconds, at)
            woken.set_result(None)
            await settled()
        self.seconds = until


async def settled() -> None:
    """Let everything run that can: nothing here waits for anything but this loop."""
    for _ in range(60):
        await asyncio.sleep(0)


class FakeCluster:
    """What `JobCluster` asks for, over objects in memory.

    `fail` maps a question (`get jobs`, `create jobs`, `log`, ...) to what happens instead: an error to raise, or a
    function to call first that may return one. It stays until it is taken away, or as often as `times` says.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.log = (b"", 0)
        self.asked: list[str] = []
        self.fail: dict[str, Callable[[], Exception | None] | Exception] = {}
        self._watches: list[tuple[Resource, asyncio.Queue[tuple[str, Json] | Exception]]] = []
        self._uids = 0

    # -- what is asked

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Json:
        self._ask(f"get {resource.plural}")
        try:
            return copy.deepcopy(self.objects[resource.plural, namespace, name])
        except KeyError:
            raise ClusterNotFound(f"no {resource} {namespace}/{name}", status=404) from None

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "") -> list[Json]:
        self._ask(f"list {resource.plural}")
        wanted = dict(each.split("=") for each in selector.split(","))
        return [
            copy.deepcopy(item)
            for (plural, place, _), item in self.objects.items()
            if (plural, place) == (resource.plural, namespace)
            and wanted.items() <= item["metadata"].get("labels", {}).items()
        ]

    async def create(self, resource: Resource, body: Json, namespace: str = "") -> Json:
        self._ask(f"create {resource.plural}")
        return copy.deepcopy(self.make(body, namespace))

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        propagation: str = "Background",
    ) -> None:
        self._ask(f"delete {resource.plural} {propagation}")
        item = self.objects.get((resource.plural, namespace, name))
        assert uid, "never without a uid: another Job may have the name by now"
        if item is not None and item["metadata"]["uid"] == uid:
            if propagation == "Foreground":
                self.change(resource, name, metadata={"deletionTimestamp": "2024-05-01T10:00:00Z"})
            else:
                self.remove(resource, name)

    async def watch(
        self, resource: Resource, namespace: str | None, *, name: str = "", selector: str = ""
    ) -> AsyncIterator[tuple[str, Json]]:
        self._ask(f"watch {resource.plural}")
        queue: asyncio.Queue[tuple[str, Json] | Exception] = asyncio.Queue()
        for (plural, _, its), item in self.objects.items():
            if plural == resource.plural and name in ("", its):
                queue.put_nowait(("ADDED", copy.deepcopy(item)))
        self._watches.append((resource, queue))
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._watches = [each for each in self._watches if each[1] is not queue]

    async def log_end(
        self, pod: str, namespace: str, *, container: str = "", limit_bytes: int
    ) -> tuple[bytes, int | None]:
        self._ask("log")
        assert (container, namespace) == ("function", "shop")
        data, total = self.log
        return data[max(0, len(data) - limit_bytes) :], total

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        for each in (question, "everything"):
            failure = self.fail.get(each)
            error = failure() if callable(failure) else failure
            if error is not None:
                raise error

    # -- what happens

    def make(self, body: Json, namespace: str = "shop") -> Json:
        item = copy.deepcopy(body)
        plural = {"Job": "jobs", "Pod": "pods"}[item["kind"]]
        key = (plural, namespace, item["metadata"]["name"])
        if key in self.objects:
            raise ClusterConflict(f"{plural} {key[2]} already exists", status=409)
        self._uids += 1
        item["metadata"] |= {"uid": f"uid-{self._uids}", "namespace": namespace}
        item.setdefault("status", {})
        self.objects[key] = item
        self._tell(plural, "ADDED", item)
        return item

    def change(self, resource: Resource, name: str, *, silently: bool = False, **parts: Json) -> None:
        item = self.objects[resource.plural, "shop", name]
        for part, value in parts.items():
            item[part] = {**item.get(part, {}), **value}
        if not silently:
            self._tell(resource.plural, "MODIFIED", item)

    def remove(self, resource: Resource, name: str, *, silently: bool = False) -> None:
        item = self.objects.pop((resource.plural, "shop", name))
        if not silently:
            self._tell(resource.plural, "DELETED", item)

    def break_watches(self, error: Exception) -> None:
        for _, queue in self._watches:
            queue.put_nowait(error)

    def _tell(self, plural: str, kind: str, item: Json) -> None:
        for resource, queue in self._watches:
            if resource.plural == plural:
                queue.put_nowait((kind, copy.deepcopy(item)))


class JobWorld:
    """One Job on its way through a cluster."""

    def __init__(self, job: Json, timeout_seconds: float = 300) -> None:
        self.job = job
        self.name = job["metadata"]["name"]
        self.pod_name = f"{self.name}-abcde"
        self.cluster = FakeCluster()
        self.time = Time()
        self.stop = asyncio.Event()
        self.events: list[JobEvent] = []
        self.timeout_seconds = timeout_seconds

    def start(self, **options: Any) -> asyncio.Task[Result]:
        options = {"on_event": self.events.append, **options}
        work = run_function(
            self.cluster,
            self.job,
            timeout_seconds=self.timeout_seconds,
            stop=self.stop,
            now=self.time.now,
            sleep=self.time.sleep,
            **options,
        )
        return asyncio.create_task(work)

    async def begun(self, **options: Any) -> asyncio.Task[Result]:
        """A run whose Job is there, with a pod that runs."""
        task = self.start(**options)
        await settled()
        self.make_pod()
        self.pod(state={"running": {"startedAt": "2024-05-01T10:00:00Z"}})
        await settled()
        return task

    def make_pod(self, **metadata: Any) -> None:
        job = self.cluster.objects["jobs", "shop", self.name]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self.name, "uid": job["metadata"]["uid"]}
        template = self.job["spec"]["template"]
        metadata = {
            "name": self.pod_name,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner],
        } | metadata
        self.cluster.make({"kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        self.cluster.change(PODS, self.pod_name, spec={"nodeName": "node-1"}, status={"phase": "Pending"})

    def pod(self, phase: str = "Running", state: Json | None = None, silently: bool = False, **more: Any) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "function", "state": state}] if state else []}
        self.cluster.change(PODS, self.pod_name, status=status | more, silently=silently)

    def ends(self, kind: str, reason: str = "", silently: bool = False) -> None:
        """The Job's controller says how it ended."""
        conditions = [{"type": kind, "status": "True", "reason": reason, "message": ""}]
        self.cluster.change(JOBS, self.name, status={"conditions": conditions}, silently=silently)

    def exits(self, code: int, reason: str = "Error", silently: bool = False) -> None:
        """The pod's container ends, and its Job with it."""
        phase = "Failed" if code else "Succeeded"
        ended = {"exitCode": code, "reason": reason, "startedAt": "2024-05-01T10:00:00Z"}
        self.pod(phase, {"terminated": ended}, silently)
        if code:
            self.ends("Failed", "BackoffLimitExceeded", silently)
        else:
            self.ends("Complete", "", silently)

    @property
    def told(self) -> list[str]:
        return [each.kind for each in self.events]
