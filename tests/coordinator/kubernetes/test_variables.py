"""Values of variables from Secrets and ConfigMaps, and that none of them is ever told."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.contract.env_vars import EnvVar
from agent.contract.errors import BadInput, ClusterNotFound, ClusterRefused, PodhookError
from agent.coordinator.kubernetes import read_variables
from agent.coordinator.kubernetes.variables import _text
from tests.cluster.world import World, no


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def put(world: World, plural: str, name: str, **data: str) -> None:
    world.put(f"v1/{plural}", {"metadata": {"name": name, "namespace": "shop"}, "data": data})


def variable(name: str, source: str, of: str, key: str, **more: Any) -> EnvVar:
    return EnvVar.model_validate({"name": name, "valueFrom": {source: {"name": of, "key": key, **more}}})


def secret(name: str, of: str, key: str, **more: Any) -> EnvVar:
    return variable(name, "secretKeyRef", of, key, **more)


def config(name: str, of: str, key: str, **more: Any) -> EnvVar:
    return variable(name, "configMapKeyRef", of, key, **more)


async def read(world: World, *variables: EnvVar) -> dict[str, str]:
    async with world.cluster() as cluster:
        return await read_variables(cluster, variables, "shop")


async def failure(world: World, *variables: EnvVar) -> PodhookError:
    with pytest.raises(PodhookError) as caught:
        await read(world, *variables)
    return caught.value


async def test_values_from_everywhere_each_object_read_once(world: World):
    put(world, "secrets", "db", user=encoded("root"), password=encoded("s3cret\n"))
    put(world, "configmaps", "db", host="db.shop")
    assert await read(
        world,
        EnvVar(name="MODE", value="fast"),
        EnvVar(name="EMPTY"),
        secret("USER", "db", "user"),
        secret("PASSWORD", "db", "password"),
        config("HOST", "db", "host"),
    ) == {"MODE": "fast", "EMPTY": "", "USER": "root", "PASSWORD": "s3cret\n", "HOST": "db.shop"}
    assert sorted(world.asked) == [
        "GET /api/v1/namespaces/shop/configmaps/db",
        "GET /api/v1/namespaces/shop/secrets/db",
    ]


async def test_literals_ask_nobody(world):
    assert await read(world, EnvVar(name="A", value="1"), EnvVar(name="A", value="2")) == {"A": "2"}
    assert world.asked == []


async def test_what_is_optional_may_be_absent(world):
    put(world, "secrets", "db", user=encoded("root"))
    assert await read(
        world,
        secret("A", "gone", "x", optional=True),
        secret("B", "db", "x", optional=True),
        config("C", "gone", "x", optional=True),
        secret("D", "db", "user", optional=True),
        EnvVar(name="E", value="literal"),
        secret("E", "gone", "x", optional=True),
    ) == {"D": "root"}


async def test_what_is_missing_is_named_without_a_value(world):
    put(world, "secrets", "db", user=encoded("s3cret"))
    error = await failure(world, secret("PASSWORD", "db", "pasword"))
    assert isinstance(error, ClusterNotFound)
    assert str(error) == (
        "variable PASSWORD: Secret shop/db has no key 'pasword' (has: user); correct the key, or say optional: true"
    )
    assert str(await failure(world, config("HOST", "gone", "x"))) == (
        "variable HOST: there is no ConfigMap shop/gone; create it, or say optional: true"
    )


@pytest.mark.parametrize("source", ["fieldRef", "resourceFieldRef"])
async def test_a_pods_own_fields_are_refused_by_name_before_anything_is_asked(world, source):
    field = EnvVar.model_validate({"name": "POD", "valueFrom": {source: {"fieldPath": "metadata.name"}}})
    error = await failure(world, secret("A", "db", "x"), field)
    assert isinstance(error, BadInput)
    assert str(error).startswith(f"variable POD: valueFrom.{source} speaks of the pod that a variable stands in")
    assert world.asked == []


@pytest.mark.parametrize("data", [encoded(b"\xff\xfe"), "no base64!", "s3cré"])
async def test_a_value_that_is_no_text_is_not_told_either(world, data, caplog):
    put(world, "secrets", "db", key=data)
    error = await failure(world, secret("A", "db", "key"))
    assert str(error) == "variable A: key 'key' of Secret shop/db is not UTF-8 text, and a variable is"
    assert error.__cause__ is None
    assert error.__context__ is None
    assert data not in caplog.text


async def test_the_right_that_is_missing_is_to_that_one_secret(world):
    world.answer("get /api/v1/namespaces/shop/secrets/db", no(403, 'User "jane" cannot get resource "secrets"'))
    error = await failure(world, secret("A", "db", "key"))
    assert isinstance(error, ClusterRefused)
    assert "let jane get secrets shop/db" in str(error)
    assert "resourceNames:\n  - db\n" in error.rule


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_every_text_is_read_as_it_is_and_nothing_else(data):
    try:
        expected: str | None = data.decode()
    except UnicodeDecodeError:
        expected = None
    assert _text(encoded(data)) == expected
