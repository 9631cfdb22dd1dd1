"""The CustomResourceDefinitions: in step with the models, and such that an API server takes them and all they allow."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from agent.contract.crds import OWN, THEIRS, definitions
from agent.contract.functions import FUNCTION_API_VERSIONS, FunctionSpec, function_of
from agent.contract.templates import API_VERSIONS, HookSpec, load_hooks
from tests import crds
from tests.kubernetes_schema import check

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"HookTemplate": HookSpec, "Function": FunctionSpec}
KINDS = [(whose, kind) for whose in (OWN, THEIRS) for kind in MODELS]

Json = dict[str, Any]


def definition(whose: str, kind: str) -> Json:
    (found,) = [each for each in definitions(whose) if each["spec"]["names"]["kind"] == kind]
    return found


def root(kind: str, whose: str = OWN) -> Json:
    schema: Json = definition(whose, kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def places(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema within a schema, with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from places(part, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from places(schema[name], f"{path}[{name}]")


# -- in step


@pytest.mark.parametrize("name", ["hooktemplates.yaml", "functions.yaml"])
def test_the_shipped_files_are_those_of_the_models(name):
    assert (crds.FOLDER / name).read_text(encoding="utf-8") == crds.files()[name], "make crds"


def test_nothing_else_is_shipped():
    assert {each.name for each in crds.FOLDER.iterdir()} == crds.files().keys()


def of_model(annotation: Any) -> Iterator[Any]:
    """The types of value that an annotation allows, without going through JSON schema."""
    if get_origin(annotation) is Annotated:
        yield from of_model(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from of_model(part)
    elif annotation is not type(None):
        yield annotation


def fields(model: type[BaseModel], path: str) -> Iterator[str]:
    """The path of every field of a model, below it and in lists and mappings."""
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}"
        yield here
        yield from within(field.annotation, here)


def within(annotation: Any, path: str) -> Iterator[str]:
    for kind in of_model(annotation):
        if get_origin(kind) is list:
            yield from within(get_args(kind)[0], f"{path}[items]")
        elif get_origin(kind) is dict:
            yield from within(get_args(kind)[1], f"{path}[additionalProperties]")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, path)


@pytest.mark.parametrize("kind", MODELS)
def test_every_field_of_the_model_has_its_place_and_there_is_no_other(kind):
    inner = {path for path, _ in places(root(kind)) if path.startswith(".spec.") and not path.endswith("]")}
    assert inner == set(fields(MODELS[kind], ".spec"))


@pytest.mark.parametrize(("whose", "kind"), KINDS)
def test_objects_of_the_group_are_those_that_are_read(whose, kind):
    spec = definition(whose, kind)["spec"]
    known = {"HookTemplate": API_VERSIONS, "Function": FUNCTION_API_VERSIONS}[kind]
    assert f"{spec['group']}/{spec['versions'][0]['name']}" in known


def test_both_groups_have_the_same_schema():
    for kind in MODELS:
        assert root(kind, OWN) == root(kind, THEIRS)
    assert {each["metadata"]["name"] for each in definitions(THEIRS)} == {
        "hooktemplates.core.kubestash.com",
        "functions.addons.kubestash.com",
    }


# -- such that an API server takes them


@pytest.mark.parametrize(("whose", "kind"), KINDS)
def test_it_is_a_definition_by_kubernetes_own_schema(whose, kind):
    check(definition(whose, kind))


def test_scopes_and_names():
    template, function = definitions(OWN)
    assert (template["spec"]["scope"], function["spec"]["scope"]) == ("Namespaced", "Cluster")
    short = [name for each in definitions(OWN) for name in each["spec"]["names"]["shortNames"]]
    assert len(set(short)) == 2
    for each in (template, function):
        assert each["metadata"]["name"] == f"{each['spec']['names']['plural']}.{each['spec']['group']}"


@pytest.mark.parametrize("kind", MODELS)
def test_printed_columns_show_fields_that_are_there(kind):
    for column in definition(OWN, kind)["spec"]["versions"][0]["additionalPrinterColumns"]:
        if not column["jsonPath"].startswith(".metadata"):
            at = dict(places(root(kind)))[column["jsonPath"]]
            assert at["type"] == column["type"]


#: apiextensions/v1, JSONSchemaProps: what a place may say. (No $ref, no nullable, no default: none is wanted here.)
_SAID = {"description", "type", "enum", "required", "properties", "items", "additionalProperties", "anyOf"}
_SAID |= {"minLength", "maxLength", "minItems", "minimum", "maximum", "pattern"}
_SAID |= {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}


@pytest.mark.parametrize("kind", MODELS)
def test_the_schema_is_structural(kind):
    """Kubernetes: "Specifying a structural schema", and what apiextensions' validation refuses beside that."""
    for path, part in places(root(kind)):
        assert part.keys() <= _SAID, path
        if part.get("x-kubernetes-int-or-string"):
            assert part["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
            assert "type" not in part, path
        elif part.get("x-kubernetes-preserve-unknown-fields") and "type" not in part:
            assert part.keys() == {"x-kubernetes-preserve-unknown-fields"}, path
        else:
            assert part["type"] in ("object", "array", "string", "integer", "boolean"), path
            assert "anyOf" not in part, path
        if part.get("type") == "array":
            assert "items" in part, path
        assert not ("properties" in part and "additionalProperties" in part), path
        assert isinstance(part.get("additionalProperties", {}), dict), path
        assert set(part.get("required", ())) <= set(part.get("properties", ())), path
        if part.get("type") == "object" and path != ".metadata":  # else the API server would drop all that is in it
            kept = part.keys() & {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
            assert len(kept) == 1, path
        if path != "":
            assert "metadata" not in part.get("properties", {}) or path.startswith(".spec"), path


@pytest.mark.parametrize("kind", MODELS)
def test_explanations_are_for_users(kind):
    for path, part in places(root(kind)):
        assert "SEMANTICS" not in part.get("description", ""), path
        assert "\n" not in part.get("description", ""), path


# -- and keeps every field


def strict(schema: Json) -> Json:
    """The schema as a client checks it that asks for strict fields: nothing that would be dropped."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    for name in ("items", "additionalProperties"):
        if name in made:
            made[name] = strict(made[name])
    if "properties" in made:
        made["properties"] = {name: strict(part) for name, part in made["properties"].items()}
        made["additionalProperties"] = False
    return made


def accepted(kind: str, spec: Json) -> None:
    jsonschema.Draft202012Validator(strict(root(kind)["properties"]["spec"])).validate(spec)


def hooks() -> list[tuple[str, Json]]:
    files = sorted([*ROOT.glob("examples/guide/*.yaml"), *ROOT.glob("examples/hooks/*.yaml")])
    read = [(file.name, each) for file in files for each in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    return [(name, each) for name, each in read if each.get("kind") != "HookPlan"]  # which no cluster has


@pytest.mark.parametrize(("name", "document"), hooks(), ids=[name for name, _ in hooks()])
def test_every_shipped_example_fits(name, document):
    accepted("HookTemplate", document.get("spec", document))


#: As much as a hook and a Function can have.
EVERYTHING = {
    "usagePolicy": {
        "allowedNamespaces": {
            "from": "Selector",
            "selector": {
                "matchLabels": {"a": "b"},
                "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}],
            },
        }
    },
    "params": [{"name": "P", "usage": "u", "required": True, "default": "d"}],
    "action": {
        "httpPost": {
            "host": "h",
            "port": "web",
            "path": "/",
            "scheme": "HTTPS",
            "httpHeaders": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"file": "db/password"}}],
            "body": "{}",
            "form": [{"key": "k", "values": ["v"]}],
        },
        "containerName": "c",
    },
    "executor": {
        "type": "Function",
        "function": {
            "name": "f",
            "env": [
                {"name": "A", "value": "b"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}},
            ],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a", "readOnly": True}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}],
        },
    },
}
FUNCTION = {
    "image": "example/f:1",
    "command": ["/f"],
    "args": ["-x"],
    "workingDir": "/",
    "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}],
    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    "runtimeSettings": {
        "resources": {"limits": {"cpu": 2, "memory": "1Gi"}, "requests": {"cpu": "500m"}},
        "securityContext": {"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}},
        "pod": {
            "podLabels": {"a": "b"},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "s"}],
            "automountServiceAccountToken": False,
            "priority": 5,
        },
    },
}


def test_what_the_models_read_the_schema_takes():
    document = {
        "apiVersion": "podhook.dev/v1alpha1",
        "kind": "HookTemplate",
        "metadata": {"name": "h"},
        "spec": EVERYTHING,
    }
    load_hooks(json.dumps(document))
    accepted("HookTemplate", EVERYTHING)
    for port in (80, "80", "web"):
        accepted("HookTemplate", {"action": {"tcpSocket": {"host": "h", "port": port}}})
    function_of({"apiVersion": "podhook.dev/v1alpha1", "kind": "Function", "metadata": {"name": "f"}, "spec": FUNCTION})
    accepted("Function", FUNCTION)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("HookTemplate", {"action": {"exec": {"comand": ["x"]}}}),
        ("HookTemplate", {"action": {"exec": {"command": []}}}),
        ("HookTemplate", {"action": {"exec": {"command": "x"}}}),
        ("HookTemplate", {"action": {"tcpSocket": {"host": "h", "port": 8.5}}}),
        ("HookTemplate", {"action": {"exec": {"command": ["x"], "env": None}}}),
        ("HookTemplate", {"executor": {"type": "Nobody"}}),
        ("HookTemplate", {"executor": {"pod": {"selector": "a=b"}}}),
        ("HookTemplate", {"executor": {"type": "Pod", "pod": {"selector": "a=b", "strategy": "All"}}}),
        ("Function", {}),
        ("Function", {"image": "x", "ports": [{"containerPort": 70000}]}),
        ("Function", {"image": "x", "runtimeSettings": {"resources": {"limits": {"cpu": True}}}}),
    ],
)
def test_what_is_wrong_the_schema_refuses(kind, spec):
    with pytest.raises(jsonschema.ValidationError):
        accepted(kind, spec)
