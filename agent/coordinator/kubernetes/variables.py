"""The values of a call's variables, from Secrets and ConfigMaps where they say so. No value is ever in a message."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Sequence
from typing import Any

from agent.cluster import Cluster, Resource
from agent.cluster.resources import CONFIG_MAPS, SECRETS
from agent.contract.env_vars import EnvVar, KeyRef
from agent.contract.errors import BadInput, ClusterNotFound
from agent.coordinator.kubernetes.together import together

_MAX_KEYS_SHOWN = 10

Source = tuple[Resource, str]


async def read_variables(cluster: Cluster, variables: Sequence[EnvVar], namespace: str) -> dict[str, str]:
    """Each variable's value; of two with one name the later counts (as in a container's `env`).

    Each Secret and ConfigMap is read once, in `namespace`, with `get` on that one object. What is `optional` and not
    there is left out.

    Raises:
        BadInput: a fieldRef or resourceFieldRef (there is no pod that could be meant), or a value that is no text.
        ClusterNotFound: a Secret, a ConfigMap or a key that is not there.
        ClusterError: any other no, or no answer.
    """
    references = [reference for variable in variables if (reference := _reference(variable)) is not None]
    sources = sorted({source for source, _ in references}, key=lambda each: (each[0].plural, each[1]))
    found = await together(functools.partial(_read, cluster, source, namespace) for source in sources)
    objects = dict(zip(sources, found, strict=True))
    values: dict[str, str] = {}
    for variable in variables:
        values.pop(variable.name, None)
        reference = _reference(variable)
        if reference is None:
            values[variable.name] = variable.value or ""
            continue
        source, ref = reference
        value = _value(variable.name, source, ref, objects[source], namespace)
        if value is not None:
            values[variable.name] = value
    return values


def _reference(variable: EnvVar) -> tuple[Source, KeyRef] | None:
    """Where the value is; None for a literal."""
    origin = variable.value_from
    if origin is None:
        return None
    if origin.secret_key_ref is not None:
        return (SECRETS, origin.secret_key_ref.name), origin.secret_key_ref
    if origin.config_map_key_ref is not None:
        return (CONFIG_MAPS, origin.config_map_key_ref.name), origin.config_map_key_ref
    raise BadInput(
        f"variable {variable.name}: valueFrom.{origin.source} speaks of the pod that a variable stands in, and the "
        "variables of a call stand in none; write the value, or use secretKeyRef or configMapKeyRef"
    )


async def _read(cluster: Cluster, source: Source, namespace: str) -> dict[str, Any] | None:
    try:
        item = await cluster.get(*source, namespace)
    except ClusterNotFound:
        return None
    data = item.get("data")
    return data if isinstance(data, dict) else {}


def _value(name: str, source: Source, ref: KeyRef, data: dict[str, Any] | None, namespace: str) -> str | None:
    resource, _ = source
    where = f"{resource.kind} {namespace}/{ref.name}"
    if data is None or ref.key not in data:
        if ref.optional:
            return None
        if data is None:
            raise ClusterNotFound(f"variable {name}: there is no {where}; create it, or say optional: true")
        keys = ", ".join(sorted(map(str, data))[:_MAX_KEYS_SHOWN]) or "none"
        raise ClusterNotFound(
            f"variable {name}: {where} has no key {ref.key!r} (has: {keys}); correct the key, or say optional: true"
        )
    value = str(data[ref.key])
    if resource is not SECRETS:
        return value
    text = _text(value)
    if text is None:
        raise BadInput(f"variable {name}: key {ref.key!r} of {where} is not UTF-8 text, and a variable is")
    return text


def _text(encoded: str) -> str | None:
    """None rather than an error: its cause would have the value in it."""
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
