"""The labels of namespaces, for usage policies that select by them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from agent.cluster import Cluster
from agent.cluster.resources import NAMESPACES
from agent.contract.errors import ClusterNotFound
from agent.coordinator.kubernetes.together import together

Labels = dict[str, str]


async def namespace_labels(cluster: Cluster, names: Iterable[str]) -> dict[str, Labels]:
    """The labels of each of these namespaces; one that does not exist is left out.

    Needs `get` on each: a list would need a right to all of them.

    Raises:
        ClusterError: a namespace may not be read, or no answer.
    """
    asked = sorted(set(names))
    found = await together(functools.partial(_labels, cluster, name) for name in asked)
    return {name: labels for name, labels in zip(asked, found, strict=True) if labels is not None}


async def _labels(cluster: Cluster, name: str) -> Labels | None:
    try:
        item: dict[str, Any] = await cluster.get(NAMESPACES, name)
    except ClusterNotFound:
        return None
    return {str(key): str(value) for key, value in (item.get("metadata", {}).get("labels") or {}).items()}
