"""Who owns the owners: Pod -> ReplicaSet -> Deployment, for many pods with one list per kind and level."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from agent.cluster import Cluster, Resource
from agent.cluster.resources import (
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
)
from agent.contract.errors import BadInput, ClusterNotFound, ClusterRefused
from agent.contract.messages import Owner
from agent.coordinator.kubernetes.together import together

#: The longest chain of Kubernetes' own kinds is two above a pod; operators add one or two.
MAX_LEVELS = 8

_KNOWN = {
    (each.group, each.kind): each
    for each in (
        REPLICA_SETS,
        DEPLOYMENTS,
        STATEFUL_SETS,
        DAEMON_SETS,
        JOBS,
        CRON_JOBS,
        REPLICATION_CONTROLLERS,
    )
}
#: A static pod's owner is its node, and nobody owns a node.
_ENDS = frozenset({("", "Node")})

Chain = tuple[Owner, ...]


def owners_of(item: dict[str, Any]) -> Chain:
    """The ownerReferences of an object (meta/v1); what is none is left out."""
    references = item.get("metadata", {}).get("ownerReferences")
    return tuple(
        Owner(
            api_version=str(each.get("apiVersion", "")),
            kind=str(each.get("kind", "")),
            name=str(each.get("name", "")),
            uid=str(each.get("uid", "")),
            controller=each.get("controller") is True,
        )
        for each in (references if isinstance(references, list) else [])
        if isinstance(each, dict)
    )


class Owners:
    """The owners of a cluster's objects, as far as they were asked for; each (kind, namespace) is listed once."""

    def __init__(self, cluster: Cluster, note: Callable[[str], None], *, all_namespaces: bool) -> None:
        """`note` hears a sentence where a chain ends because nobody can or may tell how it goes on."""
        self._cluster = cluster
        self._note = note
        self._all_namespaces = all_namespaces
        self._above: dict[str, Chain] = {}
        self._listed: set[tuple[Resource, str | None]] = set()
        self._kinds: dict[str, dict[str, Resource]] = {}

    async def climb(self, chains: dict[str, tuple[str, Chain]], enough: Callable[[Chain], bool]) -> dict[str, Chain]:
        """Make each chain as long as it is: from the direct owners, with the namespace they are in, to the top.

        A chain that is `enough` is not followed further.

        Raises:
            ClusterError: a kind of Kubernetes' own cannot be listed. (Of others the chain ends, and a note says so.)
        """
        done = {key: chain for key, (_, chain) in chains.items()}
        tops = dict(chains)
        for _ in range(MAX_LEVELS):
            tops = {key: top for key, top in tops.items() if top[1] and not enough(done[key])}
            if not tops:
                break
            await self._learn({(namespace, owner) for namespace, top in tops.values() for owner in top})
            for key, (namespace, top) in tops.items():
                known = {owner.uid for owner in done[key]}
                # By uid: a namesake of an owner that is gone is not the owner.
                higher = tuple(
                    owner for below in top for owner in self._above.get(below.uid or "", ()) if owner.uid not in known
                )
                tops[key] = (namespace, higher)
                done[key] += higher
        return done

    async def _learn(self, owners: Iterable[tuple[str, Owner]]) -> None:
        wanted: dict[tuple[Resource, str | None], None] = {}
        for namespace, owner in sorted(owners, key=lambda each: (each[0], each[1].kind, each[1].uid or "")):
            resource = await self._resource(owner)
            if resource is not None:
                place = None if self._all_namespaces or not resource.namespaced else namespace
                wanted[resource, place] = None
        new = [each for each in wanted if each not in self._listed]
        self._listed.update(new)
        for found in await together(functools.partial(self._list, resource, place) for resource, place in new):
            self._above.update(found)

    async def _list(self, resource: Resource, namespace: str | None) -> dict[str, Chain]:
        """The owners of each object, by its uid."""
        try:
            pairs = await self._cluster.collect(
                resource,
                namespace,
                lambda item: (str(item["metadata"].get("uid", "")), owners_of(item)),
                metadata_only=True,
            )
        except (ClusterNotFound, ClusterRefused) as error:
            if (resource.group, resource.kind) in _KNOWN:
                raise
            sentence, _, _ = str(error).partition("\n")
            self._note(f"who owns a {resource.kind} ({resource.api_version}) is not known: {sentence}")
            return {}
        return {uid: owners for uid, owners in pairs if owners}

    async def _resource(self, owner: Owner) -> Resource | None:
        """What to list for an owner's kind; None where the chain ends."""
        group = owner.api_version.rpartition("/")[0]
        known = _KNOWN.get((group, owner.kind))
        if known is not None or (group, owner.kind) in _ENDS:
            return known
        if owner.api_version not in self._kinds:
            self._kinds[owner.api_version] = {}
            try:
                self._kinds[owner.api_version] = await self._cluster.kinds(owner.api_version)
            except (BadInput, ClusterRefused) as error:
                self._note(f"who owns a {owner.kind} ({owner.api_version}) is not known: {error}")
                return None
            if owner.kind not in self._kinds[owner.api_version]:
                self._note(
                    f"who owns a {owner.kind} ({owner.api_version}) is not known: the cluster does not serve that kind"
                )
        return self._kinds[owner.api_version].get(owner.kind)
