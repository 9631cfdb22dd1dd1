"""A list, page by page: 1,000 pods are two questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agent.cluster.asking import Asker
from agent.cluster.reading import Json, read_page
from agent.cluster.refusals import Question
from agent.cluster.session import JSON, Query
from agent.contract.errors import ClusterRefused, ClusterUnavailable

T = TypeVar("T")

#: kubectl's own (`--chunk-size`).
PAGE_OBJECTS = 500
#: 500 pods are 5 MB or so; at more than 128 KiB each the list is not taken in.
MAX_PAGE_BYTES = 64 * 1024 * 1024
MAX_OBJECTS = 50_000
#: A list is begun again when its pages outlive what the server remembers (5 min), so often at most.
MAX_RELISTS = 2

#: meta/v1 PartialObjectMetadataList (Kubernetes API concepts, "Alternate representations"); JSON is JSON anyway.
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_GONE = 410


async def collect(
    asker: Asker,
    question: Question,
    keep: Callable[[Json], T],
    *,
    selector: str = "",
    metadata_only: bool = False,
    name: str = "",
) -> tuple[list[T], str]:
    """What `keep` makes of every object, and the version of the list.

    Raises:
        ClusterRefused: a no, or there are more objects than are taken in.
        ClusterUnavailable: no answer, or none that ends.
    """
    query = [("limit", str(PAGE_OBJECTS))]
    if selector:
        query.append(("labelSelector", selector))
    if name:
        query.append(("fieldSelector", f"metadata.name={name}"))
    for _ in range(MAX_RELISTS + 1):
        whole = await _once(asker, question, keep, query, _METADATA_ONLY if metadata_only else JSON)
        if whole is not None:
            return whole
    raise ClusterUnavailable(
        f"{asker.server} forgot the list of {question.thing} {MAX_RELISTS + 1} times before its end was read; name "
        "namespaces or a narrower selector",
        status=_GONE,
    )


async def _once(
    asker: Asker, question: Question, keep: Callable[[Json], T], query: Query, accept: str
) -> tuple[list[T], str] | None:
    """The list, or None when the server has forgotten it half way."""
    kept: list[T] = []
    resume = ""
    while True:
        answer = await asker.ask(
            question,
            query=[*query, ("continue", resume)] if resume else query,
            accept=accept,
            limit_bytes=MAX_PAGE_BYTES,
            passing=frozenset({_GONE}) if resume else frozenset(),
        )
        if answer.status == _GONE:
            return None
        page = read_page(answer.body, str(question.resource), asker.server)
        kept += map(keep, page.items)
        if len(kept) > MAX_OBJECTS:
            raise ClusterRefused(
                f"there are more than {MAX_OBJECTS} {question.thing}; name namespaces or a narrower selector"
            )
        if not page.resume:
            return kept, page.resource_version
        if page.resume == resume or not page.items:
            raise ClusterUnavailable(
                f"{asker.server} sends a list of {question.thing} that does not go on; check that it is the API server"
            )
        resume = page.resume
