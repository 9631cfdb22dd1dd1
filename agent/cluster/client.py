"""A cluster: questions to its API server that are asked again while that helps, and whose answers have bounds.

::

    async with Cluster(context="prod") as cluster:
        pods = await cluster.list(PODS, "shop", selector="app=db")

Objects are plain JSON, as the API has it. Of `namespace`, "" means that of the login and None all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

from agent.cluster import vendor
from agent.cluster.asking import Asker, Clock
from agent.cluster.creating import create
from agent.cluster.discovery import kinds
from agent.cluster.log import log_end
from agent.cluster.login import SERVICE_ACCOUNT, Way
from agent.cluster.paging import collect
from agent.cluster.reading import MAX_OBJECT_BYTES, Json, read_object
from agent.cluster.refusals import Question
from agent.cluster.resources import PODS, Resource
from agent.cluster.watch import Watch
from agent.cluster.watching import Event
from agent.cluster.words import COORDINATOR
from agent.contract.errors import ClusterConflict, ClusterNotFound

__all__ = ["Cluster", "Objects"]

T = TypeVar("T")
#: Said outside of the class, where `list` is a method.
Objects: TypeAlias = list[Json]
Kept: TypeAlias = list[T]

TIMEOUT_SECONDS = 30.0
_NOT_FOUND = 404


class Cluster:
    """One cluster. An async context manager, safe for concurrent use; the connections are shared.

    `timeout_seconds` bounds each question and a login; a question that fails for a reason that passes is asked up to
    five times within a minute. `now`, `sleep` and `spread` are for tests.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        service_account: Path = SERVICE_ACCOUNT,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`kubeconfig` and `context` win over KUBECONFIG, which wins over a pod's service account (as kubectl's)."""
        given = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG", "")
        way = Way(given, context or "", service_account)
        self._asker = Asker(way, COORDINATOR, timeout_seconds, Clock(now, sleep, spread))

    async def __aenter__(self) -> Self:
        """Log in; the API server itself is not asked anything yet.

        Raises:
            InvalidSettings: no such kubeconfig or context, or kubernetes-asyncio is not installed.
            ClusterUnavailable: no cluster, or credentials that cannot be used.
        """
        await self._asker.open(await vendor.load(COORDINATOR))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._asker.close()

    @property
    def namespace(self) -> str:
        """The namespace of the context or of the service account; `default` where they name none."""
        return self._asker.namespace

    @property
    def server(self) -> str:
        """How sentences name it: `the API server at https://...`."""
        return self._asker.server

    # -- reading

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Json:
        """One object.

        Raises:
            ClusterNotFound: there is none of that name, or no such kind.
            ClusterError: any other no, or no answer.
        """
        question = self._question("get", resource, namespace, name)
        answer = await self._asker.ask(question, limit_bytes=MAX_OBJECT_BYTES)
        return read_object(answer.body, question.thing, self.server)

    async def list(
        self, resource: Resource, namespace: str | None, *, selector: str = "", metadata_only: bool = False
    ) -> Objects:
        """Every object that the label selector matches, without its managedFields; 500 at a time.

        `metadata_only` leaves the rest of the objects at the server.

        Raises:
            ClusterError: a no, no answer, or more than 50,000 objects.
        """
        return await self.collect(
            resource, namespace, lambda item: item, selector=selector, metadata_only=metadata_only
        )

    async def collect(
        self,
        resource: Resource,
        namespace: str | None,
        keep: Callable[[Json], T],
        *,
        selector: str = "",
        metadata_only: bool = False,
    ) -> Kept[T]:
        """`list`, of which only what `keep` returns stays in memory."""
        question = self._question("list", resource, namespace)
        kept, _ = await collect(self._asker, question, keep, selector=selector, metadata_only=metadata_only)
        return kept

    async def kinds(self, api_version: str) -> dict[str, Resource]:
        """The kinds that `group/version` serves, by name; empty where there is no such group.

        Raises:
            ClusterError: a no, or no answer.
        """
        return await kinds(self._asker, api_version)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        name: str = "",
        selector: str = "",
        resource_version: str = "",
    ) -> AsyncIterator[Event]:
        """What happens to the objects: ("ADDED" | "MODIFIED" | "DELETED", object), without end; `aclose()` it.

        It begins with everything there is as ADDED, or after `resource_version`. Timeouts, broken connections and
        versions that the server has forgotten do not end it and repeat nothing; an object that vanished meanwhile is
        DELETED with no more than its kind, name, namespace and uid.

        Raises:
            ClusterUnavailable: nothing but failures for five minutes.
            ClusterError: any other no.
        """
        question = self._question("watch", resource, namespace, name)
        query = [("labelSelector", selector)] if selector else []
        if name:
            query.append(("fieldSelector", f"metadata.name={name}"))

        async def relist() -> tuple[Objects, str]:
            listing = self._question("list", resource, namespace)
            return await collect(self._asker, listing, lambda item: item, selector=selector, name=name)

        watch = Watch(self._asker, question, query, relist, resource_version)
        async with contextlib.aclosing(watch.events()) as events:
            async for event in events:
                yield event

    async def log_end(
        self, pod: str, namespace: str, *, container: str = "", limit_bytes: int
    ) -> tuple[bytes, int | None]:
        """The last `limit_bytes` of a container's log (of its last 2,000 lines), and the size of the whole.

        The size is None where more lines were written than that. Bytes are as written; they need not be UTF-8.

        Raises:
            ClusterRefused: the container has no log (yet).
            ClusterError: any other no, or no answer.
        """
        question = self._question("get", PODS, namespace, pod, "log")
        return await self._asker.again(question, lambda _: log_end(self._asker, question, container, limit_bytes))

    # -- changing

    async def create(self, resource: Resource, body: Json, namespace: str = "") -> Json:
        """Create the object that `body` describes, once; `metadata.name` is required.

        Where an answer got lost, it is looked for by its name: an object that has every label and annotation of `body`
        (which should have one that nobody else's has) is the one that was created.

        Raises:
            ClusterConflict: the name is taken.
            ClusterError: any other no, or no answer.
        """
        name = body["metadata"]["name"]
        creation = self._question("create", resource, namespace)
        lookup = self._question("get", resource, namespace, name)
        return await create(self._asker, creation, lookup, body)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Delete it, and with `uid` only the object that has it. One that is not there (any more) is fine.

        Raises:
            ClusterError: a no, or no answer.
        """
        question = self._question("delete", resource, namespace, name)
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        body = {**options, "preconditions": {"uid": uid}} if uid else options
        try:
            await self._asker.ask(
                question, "DELETE", body=body, limit_bytes=MAX_OBJECT_BYTES, passing=frozenset({_NOT_FOUND})
            )
        except ClusterConflict:
            if uid is None:
                raise
            with contextlib.suppress(ClusterNotFound):
                present = await self.get(resource, name, namespace)
                if present.get("metadata", {}).get("uid") == uid:
                    raise

    # -- how

    def _question(
        self, verb: str, resource: Resource, namespace: str | None, name: str = "", subresource: str = ""
    ) -> Question:
        if verb in ("get", "delete") and not name:
            raise ValueError(f"{resource} without a name would be all of them")
        place = (self.namespace if namespace == "" else namespace) if resource.namespaced else ""
        return Question(verb, resource, place, name, subresource)
