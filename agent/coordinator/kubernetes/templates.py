"""HookTemplates and Functions that are kept in the cluster: KubeStash's, or podhook's own kinds (manifests/crds)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from agent.cluster import Cluster, Resource
from agent.cluster.resources import FUNCTIONS, HOOK_TEMPLATES, PODHOOK_FUNCTIONS, PODHOOK_HOOK_TEMPLATES
from agent.contract.errors import ClusterError, ClusterNotFound, ClusterRefused, InvalidHook, Problem
from agent.contract.templates import Hook, read_hook

#: In this order: who has both groups and uses a name in both means KubeStash's.
TEMPLATES = (HOOK_TEMPLATES, PODHOOK_HOOK_TEMPLATES)
FUNCTION_KINDS = (FUNCTIONS, PODHOOK_FUNCTIONS)
_FORBIDDEN = 403
_MAX_NAMES_SHOWN = 10


async def read_template(
    cluster: Cluster, name: str, namespace: str, *, resources: Sequence[Resource] = TEMPLATES
) -> Hook:
    """The HookTemplate of that name, of the first of `resources` that has it.

    Raises:
        InvalidHook: with every problem of the template, each naming it.
        ClusterNotFound: there is none (the message names those there are), or the cluster does not know the kind.
        ClusterError: any other no, or no answer.
    """
    document = await _read(cluster, name, namespace, resources)
    try:
        return read_hook(document)
    except InvalidHook as error:
        of = f"HookTemplate {namespace}/{name}"
        problems = [Problem(f"{of}: {each.path}" if each.path else of, each.message) for each in error.problems]
        raise InvalidHook(problems) from error


async def read_function_document(
    cluster: Cluster, name: str, *, resources: Sequence[Resource] = FUNCTION_KINDS
) -> dict[str, Any]:
    """The Function of that name, as somebody wrote it: apiVersion, kind, metadata.name and spec.

    Raises:
        ClusterNotFound: there is none (the message names those there are), or the cluster does not know the kind.
        ClusterError: any other no, or no answer.
    """
    return await _read(cluster, name, "", resources)


async def _read(cluster: Cluster, name: str, namespace: str, resources: Sequence[Resource]) -> dict[str, Any]:
    missing: list[Resource] = []
    refused: list[ClusterRefused] = []
    for resource in resources:
        try:
            return _written(await cluster.get(resource, name, namespace), resource)
        except ClusterNotFound:
            missing.append(resource)
        except ClusterRefused as error:
            if error.status != _FORBIDDEN:
                raise
            refused.append(error)  # RBAC says so of kinds that are not even installed
    kind = resources[0].kind
    known: list[str] | None = None
    for resource in missing:
        try:
            known = (known or []) + await cluster.collect(
                resource, namespace, lambda item: str(item["metadata"]["name"]), metadata_only=True
            )
        except ClusterNotFound:
            continue  # not installed
        except ClusterError:
            known = known or []  # it may exist, and its names are not for us
    if known is not None:
        place = f"{namespace}/{name}" if resources[0].namespaced else name
        raise ClusterNotFound(f"there is no {kind} {place} in the cluster{_has(name, known)}")
    if refused:
        raise refused[0]
    groups = " nor ".join(resource.group for resource in resources)
    raise ClusterNotFound(
        f"the cluster does not know the kind {kind} (neither {groups} is installed); install KubeStash or podhook's "
        f"CRDs (manifests/crds), or give the {kind} as a file"
    )


def _has(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not known:
        return "; create it there, or give it as a file"
    more = f" and {len(known) - _MAX_NAMES_SHOWN} more" if len(known) > _MAX_NAMES_SHOWN else ""
    return f" (has: {', '.join(sorted(known)[:_MAX_NAMES_SHOWN])}{more})"


def _written(item: dict[str, Any], resource: Resource) -> dict[str, Any]:
    """What a person wrote of it: not the status, nor the metadata that the server adds."""
    metadata = item.get("metadata", {})
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {key: metadata[key] for key in ("name", "namespace") if key in metadata},
        **{key: value for key, value in item.items() if key not in ("apiVersion", "kind", "metadata", "status")},
    }
