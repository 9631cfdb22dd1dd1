"""The API server's JSON: an object, or a page of a list. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core

from agent.contract.errors import ClusterUnavailable

Json = dict[str, Any]
#: etcd keeps no object above 1.5 MiB (its default `--max-request-bytes`); as JSON it may be twice that.
MAX_OBJECT_BYTES = 3 * 1024 * 1024
_CHECK = "check that it is the API server"


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects of a list; `resume` leads to the next page, "" after the last."""

    items: list[Json]
    resume: str
    resource_version: str


def read_object(body: bytes, what: str, server: str) -> Json:
    """Read one object.

    Raises:
        ClusterUnavailable: the bytes are something else.
    """
    value = _json(body, what, server)
    if not isinstance(value, dict) or not isinstance(value.get("metadata", {}), dict):
        raise ClusterUnavailable(f"{server} answered with something that is not {what}; {_CHECK}")
    return value


def read_page(body: bytes, what: str, server: str) -> Page:
    """Read one page; what nobody reads of its objects (managedFields: who wrote which field) is dropped.

    Raises:
        ClusterUnavailable: the bytes are something else.
    """
    value = read_object(body, what, server)
    items, metadata = value.get("items"), value.get("metadata", {})
    items = [] if items is None and "items" in value else items  # an empty list of Go's may be null
    if not isinstance(items, list) or not all(_is_object(item) for item in items):
        raise ClusterUnavailable(f"{server} answered with something that is no list of {what}; {_CHECK}")
    for item in items:
        item["metadata"].pop("managedFields", None)
    return Page(items, str(metadata.get("continue") or ""), str(metadata.get("resourceVersion") or ""))


def _is_object(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    metadata = item.get("metadata")
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str)


def _json(body: bytes, what: str, server: str) -> Any:
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise ClusterUnavailable(f"{server} answered with something that is not {what} (no JSON); {_CHECK}") from error
