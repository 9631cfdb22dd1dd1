"""Pods with what is written on them, for hooks that stand there."""

from __future__ import annotations

import functools
from typing import Any

from agent.cluster import Cluster
from agent.cluster.resources import PODS
from agent.coordinator.annotated import AnnotatedPod
from agent.coordinator.kubernetes.pods import pod_seen
from agent.coordinator.kubernetes.together import together


async def list_annotated_pods(cluster: Cluster, selector: str, namespaces: frozenset[str] | None) -> list[AnnotatedPod]:
    """Every pod that the selector means (an empty one: all of them), whatever state it is in.

    Raises:
        ClusterError: a list was refused, or not answered.
    """
    places: list[str | None] = [None] if namespaces is None else [*sorted(namespaces)]
    lists = await together(
        functools.partial(cluster.collect, PODS, place, annotated_pod, selector=selector) for place in places
    )
    return [pod for found in lists for pod in found]


def annotated_pod(item: dict[str, Any]) -> AnnotatedPod:
    """A pod as the API server lists it. Containers that can be entered are its own, and its sidecars."""
    spec = item.get("spec") or {}
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    names = tuple(str(each["name"]) for each in [*(spec.get("containers") or ()), *sidecars])
    annotations = {str(name): str(value) for name, value in (item["metadata"].get("annotations") or {}).items()}
    return AnnotatedPod(pod_seen(item), annotations, names)
