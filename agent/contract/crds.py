"""HookTemplate and Function as CustomResourceDefinitions, made of the models that read them.

For clusters without KubeStash, in a group of our own; or in KubeStash's groups, for tools that expect them there. The
schema is structural (Kubernetes: "Specifying a structural schema"). What stands between fields - exactly one action,
say - it cannot tell: `podhook check` does, and whoever runs the hook.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agent.contract.actions import Strict
from agent.contract.functions import FunctionSpec
from agent.contract.templates import HookSpec

__all__ = ["GROUPS", "OWN", "THEIRS", "VERSION", "definitions"]

VERSION = "v1alpha1"
OWN, THEIRS = "podhook", "kubestash"
#: Whose groups -> the group of HookTemplate and of Function.
GROUPS = {
    OWN: {"HookTemplate": "podhook.dev", "Function": "podhook.dev"},
    THEIRS: {"HookTemplate": "core.kubestash.com", "Function": "addons.kubestash.com"},
}
#: What pydantic says and a structural schema says in the same words.
_KEPT = ("type", "enum", "minLength", "maxLength", "minItems", "minimum", "maximum", "pattern")
#: ... and what it says otherwise, or not at all: API servers drop unknown fields anyway, and defaults are the models'.
_LEFT_OUT = frozenset({"additionalProperties", "default", "description", "items", "properties", "required", "title"})
_SEMANTICS = re.compile(r" ?\(SEMANTICS[^)]*\)")


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    short: str
    scope: str
    spec: type[Strict]
    description: str
    columns: tuple[tuple[str, str, int], ...]


_KINDS = (
    _Kind(
        "HookTemplate",
        "hooktpl",
        "Namespaced",
        HookSpec,
        "A hook: what runs before or after a backup or a restore, and who runs it.",
        (
            ("Executor", ".spec.executor.type", 0),
            ("Selector", ".spec.executor.pod.selector", 0),
            ("Strategy", ".spec.executor.pod.strategy", 1),
            ("Function", ".spec.executor.function.name", 1),
        ),
    ),
    _Kind(
        "Function",
        "hookfn",
        "Cluster",
        FunctionSpec,
        "The container that the Job of a hook runs.",
        (("Image", ".spec.image", 0),),
    ),
)


def definitions(whose: str = OWN) -> list[dict[str, Any]]:
    """Both definitions (apiextensions.k8s.io/v1), in the groups of `OWN` or of `THEIRS`."""
    return [_definition(kind, GROUPS[whose][kind.name]) for kind in _KINDS]


def _definition(kind: _Kind, group: str) -> dict[str, Any]:
    plural = f"{kind.name.lower()}s"
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    columns = [
        {"name": name, "type": "string", "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, path, priority in kind.columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": kind.scope,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [*columns, age],
                    "schema": {"openAPIV3Schema": _root(kind)},
                }
            ],
        },
    }


def _root(kind: _Kind) -> dict[str, Any]:
    of_spec = kind.spec.model_json_schema(by_alias=True)
    return {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(of_spec, of_spec.get("$defs", {})),
        },
    }


def _structural(schema: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """pydantic's JSON schema of a value as a structural schema: no references, and one type at each place."""
    if "$ref" in schema:
        return _structural(models[schema["$ref"].removeprefix("#/$defs/")], models)
    if "anyOf" in schema:
        return _one_of(schema, models)
    if not schema.keys() - {"default", "title"}:  # Any: an entry of an open mapping
        return {"x-kubernetes-preserve-unknown-fields": True}
    unknown = schema.keys() - _LEFT_OUT - set(_KEPT) - {"$defs", "const"}
    assert not unknown, f"no structural schema has {sorted(unknown)}: {schema}"
    made: dict[str, Any] = {}
    if "description" in schema:
        made["description"] = _described(schema["description"])
    made |= {key: list(schema[key]) if key == "enum" else schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if "items" in schema:
        made["items"] = _structural(schema["items"], models)
    if "properties" in schema:
        if schema.get("required"):
            made["required"] = list(schema["required"])
        made["properties"] = {name: _structural(part, models) for name, part in schema["properties"].items()}
    elif made.get("type") == "object":
        values = schema.get("additionalProperties")
        if isinstance(values, dict):
            made["additionalProperties"] = _structural(values, models)
        else:
            made["x-kubernetes-preserve-unknown-fields"] = True
    return made


def _one_of(schema: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """A value that may be left out is not nullable: null is not what is meant. A number or a text is IntOrString."""
    parts = [each for each in schema["anyOf"] if each.get("type") != "null"]
    if len(parts) == 1:
        return _structural(parts[0], models)
    types = {each.get("type") for each in parts}
    assert {"integer", "string"} <= types <= {"integer", "number", "string"}, f"no structural schema can say {schema}"
    return {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}


def _described(text: str) -> str:
    """The first paragraph of a model's docstring, on one line."""
    return _SEMANTICS.sub("", " ".join(text.partition("\n\n")[0].split()))
