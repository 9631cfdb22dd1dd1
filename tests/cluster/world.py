"""An API server that lists as a real one does, and a way to it: kmock's emulator, in pages and by selectors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kmock
import yaml

from agent.cluster import Cluster
from agent.contract.selectors import parse_selector

Json = dict[str, Any]
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class Api(kmock.KubernetesEmulator):
    """Lists with `limit` and `continue`, `labelSelector`, `fieldSelector=metadata.name=...`, and metadata alone.

    `scripts` says what is answered instead, by method and path: with kmock's own reactions the objects would be
    created and deleted all the same.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scripts: dict[str, Callable[[Any], Any]] = {}

    async def _handle(self, request: Any) -> Any:
        script = self.scripts.get(f"{request.method.value.lower()} {request.url.path}")
        said = script(request) if script else None
        if said is None:
            return await super()._handle(request)
        status, body, headers = (*said, {})[:3]
        return await kmock.Response(status=status, payload=body, headers=headers)(request)

    async def _serve_list(self, request: Any) -> Any:
        whole = await super()._serve_list(request)
        selector = parse_selector(request.params.get("labelSelector", ""))
        name = request.params.get("fieldSelector", "").removeprefix("metadata.name=")
        items = [
            item
            for item in sorted(whole["items"], key=lambda item: (item["metadata"].get("namespace", ""), _name(item)))
            if selector.matches(item["metadata"].get("labels", {})) and name in ("", _name(item))
        ]
        begin = int(request.params.get("continue") or 0)
        end = begin + int(request.params.get("limit") or len(items))
        page = items[begin:end]
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            page = [{"metadata": item["metadata"]} for item in page]
        metadata = {"resourceVersion": "77"}
        if end < len(items):
            metadata["continue"] = str(end)
        return {"kind": "List", "metadata": metadata, "items": page}


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    seconds: float = 0.0
    naps: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.seconds += seconds

    @staticmethod
    def spread() -> float:
        return 0.0


@dataclass
class World:
    """A mock API server, a kubeconfig that leads to it, and a clock."""

    api: Api
    url: str
    directory: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def asked(self) -> list[str]:
        """Every question so far: method and path."""
        return [f"{request.method.value} {request.url.path}" for request in self.api]

    def write_kubeconfig(self, user: Json | None = None, **contexts: Json) -> Path:
        """The context `here` of namespace `shop`, and others."""
        every = {"here": {"namespace": "shop"}, **contexts}
        document = {
            "current-context": "here",
            "contexts": [
                {"name": name, "context": {"cluster": "mock", "user": "jane", **context}}
                for name, context in every.items()
            ],
            "clusters": [{"name": "mock", "cluster": {"server": self.url}}],
            "users": [{"name": "jane", "user": user or {"token": "janes"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(document))
        return self.kubeconfig

    def cluster(self, **options: Any) -> Cluster:
        options = {"kubeconfig": self.kubeconfig, **options}
        return Cluster(now=self.clock.now, sleep=self.clock.sleep, spread=self.clock.spread, **options)

    def put(self, resource: str, item: Json) -> Json:
        """Let the cluster have an object; `resource` is `v1/pods` or `group/version/plural`."""
        metadata = item["metadata"]
        key = (resource, metadata.get("namespace"), metadata["name"])
        self.api.objects[key] = item
        return item

    def answer(self, question: str, *answers: Callable[[Any], Any] | tuple[int, Json] | tuple[int, Json, Json]) -> None:
        """Let `question` be answered by these, one after the other; the last stays.

        An answer is (status, body), (status, body, headers), or a function of the request that returns one, or
        None for what the emulator would say.
        """
        left = list(answers)

        def reply(request: Any) -> Any:
            present = left.pop(0) if len(left) > 1 else left[0]
            return present(request) if callable(present) else present

        self.api.scripts[question] = reply


def no(status: int, message: str = "", **headers: str) -> tuple[int, Json, Json]:
    """The API server's Status, and its headers (`Retry_After="3"`)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return status, body, names


def lines(*events: tuple[str, Json]) -> bytes:
    """A watch's answer that ends after these events."""
    return b"".join(json.dumps({"type": kind, "object": item}).encode() + b"\n" for kind, item in events)


def pod(name: str, namespace: str = "shop", **metadata: Any) -> Json:
    """A pod as the API server shows it, with a little of what nobody reads."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "resourceVersion": "1",
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            **metadata,
        },
        "spec": {"containers": [{"name": "mysql"}]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@contextlib.asynccontextmanager
async def a_world(directory: Path) -> AsyncIterator[World]:
    """A world with no objects."""
    async with Api() as api, kmock.Server(api) as served:
        world = World(api, str(served.url).rstrip("/"), directory)
        world.write_kubeconfig()
        yield world
