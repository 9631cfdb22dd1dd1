"""Which pods there are, as the API server knows them: the truth that presences are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.cluster import Cluster
from agent.cluster.resources import PODS
from agent.contract.templates import OwnerFilter
from agent.coordinator.kubernetes.owners import Owners, owners_of
from agent.coordinator.kubernetes.together import together
from agent.coordinator.targets import PodSeen, owned_by

__all__ = ["PodSeen", "list_pods", "pod_seen"]


async def list_pods(
    cluster: Cluster,
    selector: str,
    namespaces: frozenset[str] | None,
    owner: OwnerFilter | None = None,
    *,
    note: Callable[[str], None] = lambda _: None,
) -> list[PodSeen]:
    """Every pod that the selector and the owner mean, by namespace and name, whatever state it is in.

    `namespaces` None is all of them, with one list; else each is listed. Owners are looked up only for a filter, up
    the chain, with one list of each kind (and namespace): 1,000 pods of a Deployment are three questions.
    `note` hears a sentence for each custom kind whose own owners cannot be looked up.

    Raises:
        ClusterError: a list was refused, or not answered.
    """
    places: list[str | None] = [None] if namespaces is None else [*sorted(namespaces)]
    lists = await together(
        functools.partial(cluster.collect, PODS, place, pod_seen, selector=selector) for place in places
    )
    pods = sorted((pod for found in lists for pod in found), key=lambda pod: (pod.namespace, pod.name))
    if owner is None:
        return pods
    owners = Owners(cluster, note, all_namespaces=namespaces is None)
    chains = await owners.climb(
        {pod.uid: (pod.namespace, pod.owners) for pod in pods}, lambda chain: owned_by(chain, owner)
    )
    whole = (replace(pod, owners=chains[pod.uid]) for pod in pods)
    return [pod for pod in whole if owned_by(pod.owners, owner)]


def pod_seen(item: dict[str, Any]) -> PodSeen:
    """A pod as the API server lists it."""
    metadata, status = item["metadata"], item.get("status") or {}
    conditions = status.get("conditions")
    return PodSeen(
        namespace=str(metadata.get("namespace", "")),
        name=metadata["name"],
        uid=str(metadata.get("uid", "")),
        labels={str(key): str(value) for key, value in (metadata.get("labels") or {}).items()},
        phase=str(status.get("phase", "")),
        ready=any(
            isinstance(each, dict) and each.get("type") == "Ready" and each.get("status") == "True"
            for each in (conditions if isinstance(conditions, list) else [])
        ),
        deleting=metadata.get("deletionTimestamp") is not None,
        owners=owners_of(item),
        ip=str(status.get("podIP", "")),
    )
