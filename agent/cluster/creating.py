"""Creating an object once, also when the answer gets lost."""

from __future__ import annotations

from agent.cluster.asking import Asker
from agent.cluster.reading import MAX_OBJECT_BYTES, Json, read_object
from agent.cluster.refusals import Question
from agent.contract.errors import ClusterConflict, ClusterRefused, ClusterUnavailable

_NOT_FOUND, _CONFLICT = 404, 409
#: A field that the server does not know is an error, not something that it drops (Kubernetes 1.25: field validation).
_STRICT = (("fieldValidation", "Strict"),)


async def create(asker: Asker, creation: Question, lookup: Question, body: Json) -> Json:
    """Create what `body` describes; before it is tried again, `lookup` says whether it is there by now.

    Raises:
        ClusterConflict: the name is taken.
        ClusterError: any other no, or no answer.
    """

    async def attempt(number: int) -> Json:
        if number > 1 and (found := await _found(asker, lookup, body)) is not None:
            return found
        try:
            answer = await asker.ask_once(creation, "POST", query=_STRICT, body=body, limit_bytes=MAX_OBJECT_BYTES)
        except ClusterConflict:
            # The try before may have been slow, and not lost.
            if number > 1 and (found := await _found(asker, lookup, body)) is not None:
                return found
            raise
        return read_object(answer.body, lookup.thing, asker.server)

    try:
        return await asker.again(f"create {lookup.thing}", attempt)
    except ClusterUnavailable as error:
        raise ClusterUnavailable(
            f"{error}; whether {lookup.thing} was created is not known",
            retry_after_seconds=error.retry_after_seconds,
            status=error.status,
        ) from error


async def _found(asker: Asker, lookup: Question, body: Json) -> Json | None:
    """The object that an earlier try has created, or None."""
    try:
        answer = await asker.ask_once(lookup, limit_bytes=MAX_OBJECT_BYTES, passing=frozenset({_NOT_FOUND}))
    except ClusterRefused as error:
        raise ClusterRefused(
            f"whether {lookup.thing} was created is not known, and it cannot be looked for: {error}",
            status=error.status,
            rule=error.rule,
        ) from error
    if answer.status == _NOT_FOUND:
        return None
    found = read_object(answer.body, lookup.thing, asker.server)
    if not _is_ours(found, body):
        raise ClusterConflict(f"{asker.server} has another {lookup.thing} already", status=_CONFLICT)
    return found


def _is_ours(found: Json, body: Json) -> bool:
    """Whether it has every label and annotation of `body`, of which there is at least one."""
    marks = [
        (found["metadata"].get(part, {}).get(key) == value)
        for part in ("labels", "annotations")
        for key, value in (body["metadata"].get(part) or {}).items()
    ]
    return bool(marks) and all(marks)
