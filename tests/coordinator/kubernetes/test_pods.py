"""Which pods a selector and an owner mean, and how few questions that takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import ClusterRefused, ClusterUnavailable
from agent.contract.messages import Owner
from agent.contract.templates import OwnerFilter
from agent.coordinator.kubernetes import PodSeen, list_pods
from agent.coordinator.kubernetes.owners import owners_of
from tests.cluster.world import World, no, pod

SHOP = frozenset({"shop"})


def ref(kind: str, name: str, uid: str, api_version: str = "apps/v1", **more: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True, **more}


def put(world: World, resource: str, name: str, uid: str, *owners: dict[str, Any], namespace: str = "shop") -> None:
    metadata = {"name": name, "namespace": namespace, "uid": uid, "ownerReferences": list(owners)}
    world.put(resource, {"metadata": metadata})


def put_pod(world: World, name: str, *owners: dict[str, Any], namespace: str = "shop", **metadata: Any) -> None:
    world.put("v1/pods", pod(name, namespace, ownerReferences=list(owners), **metadata))


async def names(world: World, owner: OwnerFilter | None, namespaces: frozenset[str] | None = SHOP) -> list[str]:
    async with world.cluster() as cluster:
        return [str(each) for each in await list_pods(cluster, "", namespaces, owner)]


def wanted(**fields: Any) -> OwnerFilter:
    return OwnerFilter.model_validate(fields)


# --- what is seen


async def test_a_pod_as_it_is_seen(world: World):
    put_pod(world, "db-0", ref("StatefulSet", "db", "s1"), labels={"app": "db"})
    async with world.cluster() as cluster:
        (seen,) = await list_pods(cluster, "app=db", SHOP, None)
    assert seen == PodSeen(
        namespace="shop",
        name="db-0",
        uid="uid-shop-db-0",
        labels={"app": "db"},
        phase="Running",
        ready=True,
        deleting=False,
        owners=(Owner(api_version="apps/v1", kind="StatefulSet", name="db", uid="s1", controller=True),),
        ip="10.0.0.7",
    )
    assert world.asked == ["GET /api/v1/namespaces/shop/pods"]


async def test_pods_that_do_not_run_are_shown_as_what_they_are(world):
    world.put("v1/pods", {**pod("a"), "status": {"phase": "Pending"}})
    world.put("v1/pods", pod("b", deletionTimestamp="2026-11-22T10:00:00Z"))
    world.put("v1/pods", {**pod("c"), "status": {"phase": "Running", "conditions": [{"type": "Ready"}]}})
    world.put("v1/pods", {**pod("d"), "status": None})
    async with world.cluster() as cluster:
        seen = await list_pods(cluster, "", SHOP, None)
    assert [(each.name, each.phase, each.ready, each.deleting) for each in seen] == [
        ("a", "Pending", False, False),
        ("b", "Running", True, True),
        ("c", "Running", False, False),
        ("d", "", False, False),
    ]


async def test_the_selector_is_the_servers_business(world):
    put_pod(world, "db-0", labels={"app": "db"})
    put_pod(world, "web-0", labels={"app": "web"})
    async with world.cluster() as cluster:
        assert [each.name for each in await list_pods(cluster, "app in (db)", SHOP, None)] == ["db-0"]
    (request,) = list(world.api)
    assert request.params["labelSelector"] == "app in (db)"


async def test_namespaces_are_listed_one_by_one_and_all_of_them_at_once(world):
    for namespace in ("shop", "bank", "other"):
        put_pod(world, "db-0", namespace=namespace)
    assert await names(world, None, frozenset({"shop", "bank"})) == ["bank/db-0", "shop/db-0"]
    assert sorted(world.asked) == ["GET /api/v1/namespaces/bank/pods", "GET /api/v1/namespaces/shop/pods"]
    assert await names(world, None, None) == ["bank/db-0", "other/db-0", "shop/db-0"]
    assert world.asked[2:] == ["GET /api/v1/pods"]
    assert await names(world, None, frozenset()) == []


async def test_a_thousand_pods_of_a_deployment_are_three_questions(world):
    put(world, "apps/v1/deployments", "web", "d1")
    for number in range(10):
        put(world, "apps/v1/replicasets", f"web-{number}", f"r{number}", ref("Deployment", "web", "d1"))
    for number in range(1000):
        owner = ref("ReplicaSet", f"web-{number % 10}", f"r{number % 10}")
        put_pod(world, f"web-{number:04}", owner)
    assert len(await names(world, wanted(kind="Deployment", name="web"))) == 1000
    assert world.asked == [
        "GET /api/v1/namespaces/shop/pods",
        "GET /api/v1/namespaces/shop/pods",
        "GET /apis/apps/v1/namespaces/shop/replicasets",
    ]


# --- owners


@pytest.mark.parametrize(
    ("owner", "matches"),
    [
        (wanted(kind="Deployment", name="web"), True),
        (wanted(kind="Deployment"), True),
        (wanted(kind="Deployment", name="web", uid="d1"), True),
        (wanted(kind="Deployment", name="web", uid="d1", apiVersion="apps/v1", controller=True), True),
        (wanted(kind="Deployment", name="web", uid="d2"), False),
        (wanted(kind="Deployment", name="api"), False),
        (wanted(kind="ReplicaSet", name="web-1"), True),
        (wanted(kind="StatefulSet", name="web"), False),
        (wanted(apiVersion="apps/v1beta1", kind="Deployment"), False),
        (wanted(), True),
    ],
)
async def test_an_owner_above_the_controller_matches(world, owner, matches):
    put(world, "apps/v1/deployments", "web", "d1")
    put(world, "apps/v1/replicasets", "web-1", "r1", ref("Deployment", "web", "d1"))
    put_pod(world, "web-1-x", ref("ReplicaSet", "web-1", "r1"))
    assert await names(world, owner) == (["shop/web-1-x"] if matches else [])


async def test_who_has_no_owner_is_not_owned(world):
    put_pod(world, "db-0")
    assert await names(world, wanted(kind="StatefulSet")) == []
    assert await names(world, wanted()) == []


async def test_a_direct_owner_needs_no_further_question(world):
    put_pod(world, "db-0", ref("StatefulSet", "db", "s1"))
    assert await names(world, wanted(kind="StatefulSet", name="db")) == ["shop/db-0"]
    assert world.asked == ["GET /api/v1/namespaces/shop/pods"]


async def test_a_namesake_of_an_owner_that_is_gone_is_not_the_owner(world):
    """The ReplicaSet was made anew: its successor's Deployment does not own the old one's pods."""
    put(world, "apps/v1/deployments", "web", "d1")
    put(world, "apps/v1/replicasets", "web-1", "r-new", ref("Deployment", "web", "d1"))
    put_pod(world, "old", ref("ReplicaSet", "web-1", "r-old"))
    put_pod(world, "new", ref("ReplicaSet", "web-1", "r-new"))
    assert await names(world, wanted(kind="Deployment", name="web")) == ["shop/new"]


async def test_a_cron_job_owns_what_its_jobs_own(world):
    put(world, "batch/v1/jobs", "night-1", "j1", ref("CronJob", "night", "c1", "batch/v1"))
    put_pod(world, "night-1-x", ref("Job", "night-1", "j1", "batch/v1"))
    assert await names(world, wanted(kind="CronJob", name="night")) == ["shop/night-1-x"]


async def test_every_owner_counts_and_a_circle_ends(world):
    put(world, "apps/v1/statefulsets", "a", "a1", ref("StatefulSet", "b", "b1"))
    put(world, "apps/v1/statefulsets", "b", "b1", ref("StatefulSet", "a", "a1"))
    put_pod(world, "x", ref("Node", "n1", "n", "v1"), ref("StatefulSet", "a", "a1", controller=False))
    async with world.cluster() as cluster:
        (seen,) = await list_pods(cluster, "", SHOP, wanted(kind="StatefulSet", name="b"))
        assert [owner.name for owner in seen.owners] == ["n1", "a", "b"]
        assert await list_pods(cluster, "", SHOP, wanted(kind="Deployment")) == []


async def test_kinds_of_two_namespaces_are_listed_in_both_or_once(world):
    for namespace in ("shop", "bank"):
        put(world, "apps/v1/replicasets", "web-1", f"r-{namespace}", ref("Deployment", "web", "d"), namespace=namespace)
        put_pod(world, "web", ref("ReplicaSet", "web-1", f"r-{namespace}"), namespace=namespace)
    deployment = wanted(kind="Deployment")
    assert await names(world, deployment, frozenset({"shop", "bank"})) == ["bank/web", "shop/web"]
    assert sorted(world.asked)[:2] == [
        "GET /api/v1/namespaces/bank/pods",
        "GET /api/v1/namespaces/shop/pods",
    ]
    assert len(world.asked) == 4
    assert await names(world, deployment, None) == ["bank/web", "shop/web"]
    assert world.asked[4:] == ["GET /api/v1/pods", "GET /apis/apps/v1/replicasets"]


# --- custom kinds


KUBEDB = {"resources": [{"name": "mysqls", "kind": "MySQL", "namespaced": True}]}


def put_database(world: World) -> None:
    put(world, "kubedb.com/v1/mysqls", "shop-db", "m1", ref("Shop", "all", "x1", "shops.dev/v1"))
    put(world, "apps/v1/statefulsets", "db", "s1", ref("MySQL", "shop-db", "m1", "kubedb.com/v1"))
    put_pod(world, "db-0", ref("StatefulSet", "db", "s1"))


async def test_a_custom_kind_is_found_by_discovery(world):
    put_database(world)
    world.answer("get /apis/kubedb.com/v1", (200, KUBEDB))
    assert await names(world, wanted(kind="Shop", name="all")) == ["shop/db-0"]
    assert world.asked == [
        "GET /api/v1/namespaces/shop/pods",
        "GET /apis/apps/v1/namespaces/shop/statefulsets",
        "GET /apis/kubedb.com/v1",
        "GET /apis/kubedb.com/v1/namespaces/shop/mysqls",
    ]


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("get /apis/kubedb.com/v1", no(404), "the cluster does not serve that kind"),
        ("get /apis/kubedb.com/v1", (200, {"resources": []}), "the cluster does not serve that kind"),
        ("get /apis/kubedb.com/v1", no(403, "no"), "bind the ClusterRole system:discovery"),
        ("get /apis/kubedb.com/v1/namespaces/shop/mysqls", no(403, 'User "jane" cannot list'), "let jane list mysqls"),
    ],
)
async def test_a_chain_ends_where_nobody_can_tell_and_a_note_says_so(world, question, answer, why):
    put_database(world)
    world.answer("get /apis/kubedb.com/v1", (200, KUBEDB))
    world.answer(question, answer)
    notes: list[str] = []
    async with world.cluster() as cluster:
        assert await list_pods(cluster, "", SHOP, wanted(kind="Shop"), note=notes.append) == []
        assert len(await list_pods(cluster, "", SHOP, wanted(kind="MySQL", name="shop-db"))) == 1
    (note,) = notes
    assert note.startswith("who owns a MySQL (kubedb.com/v1) is not known: ")
    assert why in note
    assert "\n" not in note


async def test_an_owner_of_no_kind_at_all_ends_the_chain(world):
    put_pod(world, "x", {"apiVersion": "../..", "kind": "X", "name": "x", "uid": "u"}, {"kind": "Y"})
    notes: list[str] = []
    async with world.cluster() as cluster:
        assert await list_pods(cluster, "", SHOP, wanted(kind="Deployment"), note=notes.append) == []
    assert len(notes) == 2
    assert world.asked == ["GET /api/v1/namespaces/shop/pods"]


async def test_a_missing_right_to_a_kind_of_kubernetes_is_no_silent_end(world):
    """Fewer pods than are meant would be frozen."""
    put_pod(world, "web", ref("ReplicaSet", "web-1", "r1"))
    denied = 'User "system:serviceaccount:backup:runner" cannot list resource "replicasets"'
    world.answer("get /apis/apps/v1/namespaces/shop/replicasets", no(403, denied))
    with pytest.raises(ClusterRefused, match=r"let system:serviceaccount:backup:runner list replicasets") as caught:
        await names(world, wanted(kind="Deployment"))
    assert "name: podhook-list-replicasets\n" in caught.value.rule


async def test_one_refusal_among_many_questions_is_raised_as_it_is(world):
    for number in range(20):
        world.answer(f"get /api/v1/namespaces/n{number}/pods", (200, {"items": []}))
    world.answer("get /api/v1/namespaces/n7/pods", no(503))
    with pytest.raises(ClusterUnavailable):
        await names(world, None, frozenset(f"n{number}" for number in range(20)))


# --- anything at all


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["apiVersion", "kind", "name", "uid", "controller", "x"]), inner, max_size=4
            )
        ),
        max_leaves=10,
    )
)
def test_whatever_stands_there_as_owners_is_read(references):
    for owner in owners_of({"metadata": {"ownerReferences": references}}):
        assert isinstance(owner.uid, str)
