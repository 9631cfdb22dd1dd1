"""What a variable may say, and how what is wrong with it is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.contract.env_vars import SOURCES, EnvVar
from agent.contract.explain import explain

KEY = {"name": "db", "key": "password"}


def problems(document: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        EnvVar.model_validate(document)
    return [str(problem) for problem in explain(EnvVar, caught.value)]


@pytest.mark.parametrize(
    "document",
    [
        {"name": "A"},
        {"name": "A", "value": ""},
        {"name": "A.b-c_D", "value": "x=$(Y)\n"},
        {"name": "A", "valueFrom": {"secretKeyRef": KEY}},
        {"name": "A", "value": "", "valueFrom": {"configMapKeyRef": {**KEY, "optional": True}}},
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ],
)
def test_what_kubernetes_accepts_is_written_again_as_it_was(document: dict[str, Any]) -> None:
    assert EnvVar.model_validate(document).document() == document


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_known_by_its_name(source):
    part = KEY if "Key" in source else {"fieldPath": "metadata.name"}
    variable = EnvVar.model_validate({"name": "A", "valueFrom": {source: part}})
    assert variable.value_from is not None
    assert variable.value_from.source == source


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "name: is required"),
        ({"name": "1A"}, "name: '1A' is not the name of an environment variable (letters, digits, '_', '-' and '.')"),
        ({"name": "A", "valuefrom": {}}, "valuefrom: unknown field; did you mean 'valueFrom'?"),
        ({"name": "A", "value": 1}, "value: 1 is a number, not a string; put it in quotes"),
        (
            {"name": "A", "value": "x\0y"},
            "value: there is a NUL character in it, which no environment has room for; remove it",
        ),
        (
            {"name": "A", "value": "x", "valueFrom": {"secretKeyRef": KEY}},
            "valueFrom: stands beside a value; give one of them",
        ),
        (
            {"name": "A", "valueFrom": {}},
            "valueFrom: names no source; give one of secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef",
        ),
        (
            {"name": "A", "valueFrom": {"secretKeyRef": KEY, "configMapKeyRef": KEY}},
            "valueFrom: names 2 sources (secretKeyRef, configMapKeyRef); a value has one: keep one",
        ),
        (
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "db", "kay": "x", "key": "y"}}},
            "valueFrom.secretKeyRef.kay: unknown field; did you mean 'key'?",
        ),
        ({"name": "A", "valueFrom": {"secretKeyRef": {"name": "db"}}}, "valueFrom.secretKeyRef.key: is required"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(document, sentence):
    assert problems(document) == [sentence]


def test_a_value_does_not_stand_in_what_is_printed():
    assert "s3cret" not in repr(EnvVar.model_validate({"name": "A", "value": "s3cret"}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
        lambda x: st.dictionaries(
            st.sampled_from(["name", "value", "valueFrom", *SOURCES, "key", "optional"]), x, max_size=4
        ),
        max_leaves=8,
    )
)
def test_anything_at_all_is_a_variable_or_a_problem(document):
    try:
        variable = EnvVar.model_validate(document)
    except ValidationError:
        assert problems(document)
    else:
        assert EnvVar.model_validate(variable.document()) == variable
