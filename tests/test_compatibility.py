"""docs/compatibility.md has a row for every field of the models that read HookTemplates, calls and Functions."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from agent.contract.env_vars import EnvVar
from agent.contract.functions import ContainerRuntimeSettings, FunctionRuntimeSettings, FunctionSpec, PodRuntimeSettings
from agent.contract.plans import HookInfo
from agent.contract.pod_parts import Volume, VolumeMount
from agent.contract.templates import HookSpec

PAGE = (Path(__file__).parents[1] / "docs" / "compatibility.md").read_text(encoding="utf-8")
#: What has a table, by its heading; where one of these stands in another, that one's table is meant.
MODELS: dict[str, type[BaseModel]] = {
    "HookTemplate": HookSpec,
    "HookInfo": HookInfo,
    "Function": FunctionSpec,
    "ContainerRuntimeSettings": ContainerRuntimeSettings,
    "PodRuntimeSettings": PodRuntimeSettings,
    "EnvVar": EnvVar,
    "VolumeMount": VolumeMount,
    "Volume": Volume,
}
_APART = {*MODELS.values()}


def tables() -> dict[str, list[tuple[str, str]]]:
    """The rows of each table: (fields, what is said)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, text in re.findall(r"^### `(\w+)`\n(.*?)(?=^#)", PAGE, re.MULTILINE | re.DOTALL):
        rows = [row for row in re.findall(r"^\| (.*?) \| (.*?) \|$", text, re.MULTILINE) if row[0] != "field"]
        found[heading] = rows
    return found


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a field holds, and what its path gets on the way there."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from models_in(arguments[0])
    elif origin in (Union, types.UnionType):
        for each in arguments:
            yield from models_in(each)
    elif origin is list:
        for model, path in models_in(arguments[0]):
            yield model, "[]" + path
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The path of every field of a model, but for those that have a table of their own."""
    for name, field in model.model_fields.items():
        if model is FunctionRuntimeSettings and name in ContainerRuntimeSettings.model_fields:
            continue  # the same settings: that table is meant
        here = f"{path}{field.alias or name}"
        yield here
        for inner, step in models_in(field.annotation):
            if inner not in _APART:
                yield from fields(inner, f"{here}{step}.")


def test_there_is_a_table_for_each_and_no_other():
    assert tables().keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_field_has_one_row_and_every_row_a_field(name):
    told = [field for row, _ in tables()[name] for field in re.findall(r"`([^`]+)`", row)]
    assert sorted(told) == sorted(set(fields(MODELS[name])))


@pytest.mark.parametrize("name", MODELS)
def test_every_row_says_whether_it_works_and_where_it_does_not_why(name):
    for row, said in tables()[name]:
        verdict = re.match(r"works|differs: |refused: |ours: ", said)
        assert verdict, row
        if verdict[0] in ("differs: ", "refused: "):
            assert len(said) > 50, f"{row}: says no reason"
