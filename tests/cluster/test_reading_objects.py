"""Lists in pages, single objects, kinds and logs: what is asked, and what an answer becomes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import Resource
from agent.cluster.reading import MAX_OBJECT_BYTES
from agent.cluster.resources import DEPLOYMENTS, FUNCTIONS, JOBS, NAMESPACES, PODS
from agent.contract.errors import BadInput, ClusterNotFound, ClusterRefused, ClusterUnavailable
from tests.agents import until
from tests.cluster.world import METADATA_ONLY, World, no, pod

PODS_OF_SHOP = "get /api/v1/namespaces/shop/pods"
DB = "get /api/v1/namespaces/shop/pods/db-0"


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


# --- one object


async def test_an_object_is_the_apis_json(world: World):
    world.put("v1/pods", pod("db-0"))
    async with world.cluster() as cluster:
        assert await cluster.get(PODS, "db-0", "shop") == pod("db-0")
    (request,) = list(world.api)
    assert request.headers["Authorization"] == "Bearer janes"
    assert request.headers["User-Agent"].startswith("podhook/")


async def test_no_namespace_is_that_of_the_context(world):
    world.put("v1/pods", pod("db-0"))
    async with world.cluster() as cluster:
        assert cluster.namespace == "shop"
        await cluster.get(PODS, "db-0")
        await cluster.list(PODS, "")
    assert world.asked == ["GET /api/v1/namespaces/shop/pods/db-0", "GET /api/v1/namespaces/shop/pods"]


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        (NAMESPACES, "/api/v1/namespaces/x"),
        (FUNCTIONS, "/apis/addons.kubestash.com/v1alpha1/functions/x"),
        (JOBS, "/apis/batch/v1/namespaces/other/jobs/x"),
    ],
)
async def test_every_kind_has_its_place(world, resource: Resource, path: str):
    world.answer(f"get {path}", (200, {"metadata": {"name": "x"}}))
    async with world.cluster() as cluster:
        assert await cluster.get(resource, "x", "other") == {"metadata": {"name": "x"}}


async def test_what_is_not_there_is_named(world):
    world.answer(DB, no(404, 'pods "db-0" not found'))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound) as caught:
            await cluster.get(PODS, "db-0", "shop")
    assert str(caught.value) == f'the API server at {world.url} has no pods shop/db-0 (404: pods "db-0" not found)'
    assert caught.value.status == 404


@pytest.mark.parametrize("name", [".", "..", "a/b", "a%2fb", "a b", "x" * 254, "a\nb"])
async def test_a_name_that_leads_elsewhere_is_not_asked_about(world, name):
    async with world.cluster() as cluster:
        with pytest.raises(BadInput, match="is not the name of a Pod in Kubernetes"):
            await cluster.get(PODS, name, "shop")
        with pytest.raises(BadInput, match="is not the name of a namespace in Kubernetes"):
            await cluster.list(PODS, name)
    assert world.asked == []


async def test_no_name_is_not_all_of_them(world):
    async with world.cluster() as cluster:
        with pytest.raises(ValueError, match="without a name would be all of them"):
            await cluster.get(PODS, "", "shop")
        with pytest.raises(ValueError, match="without a name would be all of them"):
            await cluster.delete(PODS, "", "shop")
    assert world.asked == []


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b"{", b'{"metadata": 1}', b"[" * 100_000, b"\xff", b"NaN"])
async def test_an_answer_that_is_no_object_is_not_taken_in(world, body):
    world.answer(DB, (200, body))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match=r"something that is not pods shop/db-0.*check that it is the API"):
            await cluster.get(PODS, "db-0", "shop")
    assert len(world.asked) == 1  # asking again would not help


async def test_an_object_has_a_bound(world):
    world.answer(DB, (200, b" " * (MAX_OBJECT_BYTES + 1)))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match=f"more than {MAX_OBJECT_BYTES} bytes to get pods shop/db-0"):
            await cluster.get(PODS, "db-0", "shop")


# --- lists


async def test_a_thousand_pods_are_two_questions(world):
    for number in range(1000):
        world.put("v1/pods", pod(f"db-{number:04}"))
    async with world.cluster() as cluster:
        found = await cluster.list(PODS, "shop", selector="!absent")
    assert names(found) == [f"db-{number:04}" for number in range(1000)]
    assert [dict(request.params) for request in world.api] == [
        {"limit": "500", "labelSelector": "!absent"},
        {"limit": "500", "labelSelector": "!absent", "continue": "500"},
    ]
    assert "managedFields" not in found[0]["metadata"]
    assert found[0]["status"]["phase"] == "Running"


async def test_all_namespaces_are_one_question(world):
    for namespace in ("shop", "bank"):
        world.put("v1/pods", pod("db-0", namespace))
    async with world.cluster() as cluster:
        assert len(await cluster.list(PODS, None)) == 2
        assert len(await cluster.list(PODS, "bank")) == 1
    assert world.asked == ["GET /api/v1/pods", "GET /api/v1/namespaces/bank/pods"]


async def test_metadata_alone_is_asked_for_as_the_api_has_it(world):
    world.put("apps/v1/deployments", {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 3}})
    async with world.cluster() as cluster:
        assert await cluster.list(DEPLOYMENTS, "shop", metadata_only=True) == [
            {"metadata": {"name": "web", "namespace": "shop"}}
        ]
    assert next(iter(world.api)).headers["Accept"] == METADATA_ONLY


async def test_only_what_is_kept_is_kept(world):
    world.put("v1/pods", pod("db-0"))
    async with world.cluster() as cluster:
        assert await cluster.collect(PODS, "shop", lambda item: item["metadata"]["uid"]) == ["uid-shop-db-0"]


async def test_an_empty_list_may_be_null(world):
    world.answer(PODS_OF_SHOP, (200, {"metadata": {}, "items": None}))
    async with world.cluster() as cluster:
        assert await cluster.list(PODS, "shop") == []


async def test_a_list_that_is_forgotten_half_way_is_begun_anew(world):
    for number in range(1200):
        world.put("v1/pods", pod(f"db-{number:04}"))
    world.answer(PODS_OF_SHOP, lambda _: None, no(410, "The provided continue parameter is too old"), lambda _: None)
    async with world.cluster() as cluster:
        found = await cluster.list(PODS, "shop")
    assert names(found) == [f"db-{number:04}" for number in range(1200)]
    assert [request.params.get("continue") for request in world.api] == [None, "500", None, "500", "1000"]


async def test_a_list_that_is_forgotten_again_and_again_is_given_up(world):
    for number in range(501):
        world.put("v1/pods", pod(f"db-{number:04}"))
    world.answer(PODS_OF_SHOP, lambda request: no(410) if "continue" in request.params else None)
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match="forgot the list of pods in namespace shop 3 times") as caught:
            await cluster.list(PODS, "shop")
    assert caught.value.status == 410
    assert len(world.asked) == 6


@pytest.mark.parametrize("items", [[], [pod("db-0")]])
async def test_a_list_that_does_not_go_on_is_given_up(world, items):
    world.answer(PODS_OF_SHOP, (200, {"metadata": {"continue": "same"}, "items": items}))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match="sends a list of pods in namespace shop that does not go on"):
            await cluster.list(PODS, "shop")
    assert len(world.asked) <= 2


@pytest.mark.parametrize(
    "body",
    [{}, {"items": {}}, {"items": [1]}, {"items": [{"metadata": None}]}, {"items": [{"metadata": {"name": 1}}]}],
)
async def test_an_answer_that_is_no_list_is_not_taken_in(world, body):
    world.answer(PODS_OF_SHOP, (200, body))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match="something that is no list of pods; check that it is the API"):
            await cluster.list(PODS, "shop")


async def test_a_list_has_a_bound(world, monkeypatch):
    monkeypatch.setattr("agent.cluster.paging.MAX_OBJECTS", 2)
    for number in range(3):
        world.put("v1/pods", pod(f"db-{number}"))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused, match="more than 2 pods in namespace shop; name namespaces or a narrower"):
            await cluster.list(PODS, "shop")


# --- kinds and logs


async def test_the_kinds_of_a_group(world):
    world.answer(
        "get /apis/kubedb.com/v1",
        (
            200,
            {
                "resources": [
                    {"name": "mysqls", "kind": "MySQL", "namespaced": True},
                    {"name": "mysqls/status", "kind": "MySQL", "namespaced": True},
                    {"name": "versions", "kind": "MySQLVersion", "namespaced": False},
                    {"name": 3},
                ]
            },
        ),
    )
    world.answer("get /apis/gone.com/v1", no(404))
    world.answer("get /apis/secret.com/v1", no(403, "no"))
    async with world.cluster() as cluster:
        assert await cluster.kinds("kubedb.com/v1") == {
            "MySQL": Resource("kubedb.com", "v1", "mysqls", "MySQL"),
            "MySQLVersion": Resource("kubedb.com", "v1", "versions", "MySQLVersion", namespaced=False),
        }
        assert await cluster.kinds("gone.com/v1") == {}
        with pytest.raises(ClusterRefused, match=r"which kinds secret.com/v1 has \(403: no\); bind the ClusterRole"):
            await cluster.kinds("secret.com/v1")
        with pytest.raises(BadInput):
            await cluster.kinds("../v1")


@pytest.mark.parametrize(
    ("log", "limit", "end", "size"),
    [
        (b"", 4, b"", 0),
        (b"abc", 4, b"abc", 3),
        (b"abcdefgh\n", 4, b"fgh\n", 9),
        (b"\xff\xfe" * 40_000, 3, b"\xfe\xff\xfe", 80_000),
        (b"x\n" * 2000, 4, b"x\nx\n", None),
    ],
)
async def test_the_end_of_a_log(world, log, limit, end, size):
    world.answer(f"{DB}/log", (200, log))
    async with world.cluster() as cluster:
        assert await cluster.log_end("db-0", "shop", container="mysql", limit_bytes=limit) == (end, size)
    (request,) = list(world.api)
    assert dict(request.params) == {"tailLines": "2000", "container": "mysql"}


async def test_a_log_that_is_not_there_yet(world):
    world.answer(f"{DB}/log", no(400, 'container "mysql" in pod "db-0" is waiting to start: ContainerCreating'))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused, match="is waiting to start: ContainerCreating") as caught:
            await cluster.log_end("db-0", "shop", limit_bytes=10)
    assert caught.value.status == 400


# --- many at once, and the end


async def test_many_ask_at_once_and_nothing_stays_open(world):
    for number in range(40):
        world.put("v1/pods", pod(f"db-{number}"))
    tasks, descriptors = asyncio.all_tasks(), set(Path("/proc/self/fd").iterdir())
    async with world.cluster() as cluster, asyncio.TaskGroup() as group:
        asked = [group.create_task(cluster.get(PODS, f"db-{number}", "shop")) for number in range(40)]
    assert [task.result()["metadata"]["name"] for task in asked] == [f"db-{number}" for number in range(40)]
    left = [task for task in asyncio.all_tasks() - tasks if "RequestHandler" not in repr(task)]  # the mock server's
    assert left == []
    await until(lambda: set(Path("/proc/self/fd").iterdir()) <= descriptors, "every connection is closed")


async def test_a_question_can_be_cancelled(world):
    asked, never = asyncio.Event(), asyncio.Event()

    async def silent() -> None:
        asked.set()
        await never.wait()

    world.api[DB] << silent
    async with world.cluster() as cluster:
        task = asyncio.create_task(cluster.get(PODS, "db-0", "shop"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        never.set()


async def test_an_answer_that_does_not_come_is_not_waited_for(world):
    never = asyncio.Event()
    world.api[DB] << never.wait
    async with world.cluster(timeout_seconds=0.05) as cluster:
        with pytest.raises(ClusterUnavailable, match=r"did not answer within 0.05 s; check .* asked 5 times in"):
            await cluster.get(PODS, "db-0", "shop")
    never.set()
