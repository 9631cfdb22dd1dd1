"""The cluster that a command asks: whether there is one, and what it answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.exits import tell

if TYPE_CHECKING:
    from agent.cli.options import SourceName
    from agent.cluster import Cluster
    from agent.contract.functions import Function
    from agent.coordinator import HookCall
    from agent.coordinator.plan import ReadFunction, ReadLabels, ReadTemplate, ReadVariables, Sources


@dataclass(frozen=True, slots=True)
class Asked:
    """What can be asked; None where no cluster is. `source` is for the coordinator."""

    source: str = "presence"
    cluster: Cluster | None = None
    read_template: ReadTemplate | None = None
    read_variables: ReadVariables | None = None
    read_labels: ReadLabels | None = None
    read_function: ReadFunction | None = None

    async def with_function(self, call: HookCall, functions: Mapping[str, Function]) -> HookCall:
        """The call with the Function that it runs, so that its absence is noticed before anything runs.

        Raises:
            InvalidHook: it cannot be used.
            ClusterError: it cannot be had.
        """
        executor = call.hook.spec.executor
        if executor is None or executor.function is None:
            return call
        name = executor.function.name
        found = functions.get(name)
        if found is None and self.read_function is not None:
            found = await self.read_function(name)
        return replace(call, job_function=found)  # None without a cluster: the call's check says so

    async def with_labels(self, call: HookCall) -> HookCall:
        """The call with the labels of its namespaces, where they decide whether the template may be used there.

        Raises:
            ClusterError: they cannot be had.
        """
        from agent.coordinator.usage import asks_labels

        if call.namespaces is None or self.read_labels is None or not asks_labels(call.hook):
            return call  # the call's check says what is missing
        return replace(call, namespace_labels=await self.read_labels(call.namespaces))

    def sources(self, directory: Path, functions: Mapping[str, Function]) -> Sources:
        """Where a plan in this directory finds what it names; `functions` are those that are files."""
        from agent.coordinator.plan import Sources

        return Sources(
            directory, self.read_template, self.read_variables, self.read_labels, self.read_function, functions
        )


@asynccontextmanager
async def cluster_from(kubeconfig: Path | None, context: str | None, source: SourceName) -> AsyncIterator[Asked]:
    """The cluster that these options name, logged in; nothing is imported where none is.

    Inside a cluster one is asked without being named; if that is not possible (no token is mounted, the image has no
    kubernetes-asyncio), agents say which pods there are, and that is told.

    Raises:
        InvalidSettings: no such kubeconfig or context, or kubernetes-asyncio is not installed.
        ClusterUnavailable: no cluster, or credentials that cannot be used.
    """
    named = kubeconfig is not None or context is not None or source == "kubernetes"
    inside = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and source == "auto"
    if not named and not inside:
        yield Asked()
        return
    from agent.cluster import Cluster
    from agent.contract.errors import ClusterError, InvalidSettings

    cluster = Cluster(kubeconfig=kubeconfig, context=context)
    try:
        await cluster.__aenter__()
    except (ClusterError, InvalidSettings) as error:
        if named:
            raise
        tell(f"the cluster is not asked, and pods that have no agent are not missed: {error}")
        yield Asked()
        return
    try:
        yield _asked(cluster, source)
    finally:
        await cluster.__aexit__(None, None, None)


def _asked(cluster: Cluster, source: SourceName) -> Asked:
    from agent.coordinator import kubernetes

    return Asked(
        source=str(source),
        cluster=cluster,
        read_template=partial(kubernetes.read_template, cluster),
        read_variables=partial(kubernetes.read_variables, cluster),
        read_labels=partial(kubernetes.namespace_labels, cluster),
        read_function=partial(kubernetes.read_function, cluster),
    )
