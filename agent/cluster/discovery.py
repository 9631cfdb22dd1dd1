"""Which kinds an API group serves, and under which names."""

from __future__ import annotations

from agent.cluster.asking import Asker
from agent.cluster.reading import MAX_OBJECT_BYTES, read_object
from agent.cluster.refusals import Question, said
from agent.cluster.resources import Resource, group_path
from agent.contract.errors import ClusterRefused

_FORBIDDEN, _NOT_FOUND = 403, 404


async def kinds(asker: Asker, api_version: str) -> dict[str, Resource]:
    """The kinds that `group/version` serves, by name; empty where there is no such group (meta/v1 APIResourceList).

    Raises:
        ClusterRefused: not allowed; the ClusterRole system:discovery allows it to whoever is logged in.
        ClusterError: any other no, or no answer.
    """
    group, _, version = api_version.rpartition("/")
    question = Question("get", Resource(group, version, f"kinds of {api_version}", "", namespaced=False), "")
    answer = await asker.ask(
        question,
        path=group_path(api_version),
        limit_bytes=MAX_OBJECT_BYTES,
        passing=frozenset({_FORBIDDEN, _NOT_FOUND}),
    )
    if answer.status == _NOT_FOUND:
        return {}
    if answer.status == _FORBIDDEN:
        raise ClusterRefused(
            f"{asker.server} does not let {asker.words.who} see which kinds {api_version} has {said(answer)}; bind the "
            "ClusterRole system:discovery",
            status=answer.status,
        )
    served = read_object(answer.body, "a list of kinds", asker.server).get("resources")
    return {
        each["kind"]: Resource(group, version, each["name"], each["kind"], bool(each.get("namespaced", True)))
        for each in (served if isinstance(served, list) else [])
        if isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and isinstance(each.get("kind"), str)
        and "/" not in each["name"]  # pods/log and the like
    }
