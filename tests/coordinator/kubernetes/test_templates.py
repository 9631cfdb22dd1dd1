"""Templates and Functions from the cluster: KubeStash's, podhook's own, and what is said where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cluster.resources import PODHOOK_HOOK_TEMPLATES
from agent.contract.errors import ClusterNotFound, ClusterRefused, InvalidHook
from agent.coordinator.kubernetes import namespace_labels, read_template
from agent.coordinator.kubernetes.templates import read_function_document
from tests.cluster.world import World, no

KUBESTASH = "core.kubestash.com/v1alpha1"
OURS = "podhook.dev/v1alpha1"
DENIED = no(403, 'User "jane" cannot get')
SPEC = {
    "action": {"exec": {"command": ["sync"]}},
    "executor": {"type": "Pod", "pod": {"selector": "app=db"}},
}


def template(name: str, api_version: str = KUBESTASH, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": "HookTemplate",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": "u1",
            "resourceVersion": "5",
            "generation": 2,
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {**SPEC, **spec},
        "status": {"phase": "Current"},
    }


def put(world: World, item: dict[str, Any]) -> None:
    world.put(f"{item['apiVersion']}/hooktemplates", item)


async def test_a_template_is_read_without_what_the_server_adds(world: World):
    put(world, template("freeze"))
    async with world.cluster() as cluster:
        hook = await read_template(cluster, "freeze", "shop")
    assert (hook.name, hook.namespace) == ("freeze", "shop")
    assert hook.spec.action is not None
    assert hook.spec.action.kind == "exec"
    assert world.asked == [f"GET /apis/{KUBESTASH}/namespaces/shop/hooktemplates/freeze"]


async def test_a_template_of_podhooks_own_kind(world):
    put(world, template("freeze", OURS))
    async with world.cluster() as cluster:
        assert (await read_template(cluster, "freeze", "shop")).name == "freeze"
        assert len(world.asked) == 2
        assert (await read_template(cluster, "freeze", "shop", resources=[PODHOOK_HOOK_TEMPLATES])).name == "freeze"
        assert len(world.asked) == 3


async def test_kubestashs_is_meant_where_both_have_the_name(world):
    put(world, template("freeze", OURS, params=[{"name": "OURS"}]))
    put(world, template("freeze", KUBESTASH, params=[{"name": "THEIRS"}]))
    async with world.cluster() as cluster:
        hook = await read_template(cluster, "freeze", "shop")
    assert [param.name for param in hook.spec.params] == ["THEIRS"]


async def test_every_problem_of_a_template_names_it(world):
    put(world, template("freeze", executor={"type": "Pod"}, actoin={}))
    async with world.cluster() as cluster:
        with pytest.raises(InvalidHook) as caught:
            await read_template(cluster, "freeze", "shop")
    assert sorted(str(caught.value).splitlines()) == [
        "HookTemplate shop/freeze: spec.actoin: unknown field; did you mean 'action'?",
        "HookTemplate shop/freeze: spec.executor: type: Pod needs pod.selector, which says in which pods the hook runs",
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["freeze", "thaw"], "; did you mean 'freeze'?"),
        (["lock", "unlock"], " (has: lock, unlock)"),
        ([f"other{number:02}" for number in range(12)], "other08, other09 and 2 more)"),
    ],
)
async def test_a_template_that_is_not_there_names_those_there_are(world, names, said):
    for name in names:
        put(world, template(name))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound) as caught:
            await read_template(cluster, "freze", "shop")
    assert str(caught.value).startswith("there is no HookTemplate shop/freze in the cluster")
    assert str(caught.value).endswith(said)


async def test_no_templates_at_all(world):
    world.api.resources[f"{KUBESTASH}/hooktemplates"].kind = "HookTemplate"
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound, match="shop/freeze in the cluster; create it there, or give it as a file"):
            await read_template(cluster, "freeze", "shop")


async def test_a_cluster_without_the_kind_is_another_thing(world):
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound) as caught:
            await read_template(cluster, "freeze", "shop")
    assert str(caught.value) == (
        "the cluster does not know the kind HookTemplate (neither core.kubestash.com nor podhook.dev is installed); "
        "install KubeStash or podhook's CRDs (manifests/crds), or give the HookTemplate as a file"
    )


PATHS = {group: f"get /apis/{group}/namespaces/shop/hooktemplates" for group in (KUBESTASH, OURS)}


async def test_rbac_says_no_also_of_a_kind_that_is_not_installed(world):
    """Who may read KubeStash's templates has no right to podhook's, and may have mistyped a name."""
    put(world, template("freeze"))
    world.answer(f"{PATHS[OURS]}/freze", DENIED)
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound, match="did you mean 'freeze'"):
            await read_template(cluster, "freze", "shop")


async def test_a_template_whose_names_may_not_be_listed(world):
    put(world, template("freeze"))
    world.answer(PATHS[KUBESTASH], DENIED)
    world.answer(f"{PATHS[OURS]}/freze", DENIED)
    async with world.cluster() as cluster:
        with pytest.raises(ClusterNotFound, match="there is no HookTemplate shop/freze"):
            await read_template(cluster, "freze", "shop")


async def test_a_missing_right_is_told_where_nothing_else_is_known(world):
    world.answer(f"{PATHS[KUBESTASH]}/freeze", DENIED)
    async with world.cluster() as cluster:
        with pytest.raises(
            ClusterRefused, match=r"let jane get hooktemplates.core.kubestash.com shop/freeze"
        ) as caught:
            await read_template(cluster, "freeze", "shop")
    assert "apiGroups:\n  - core.kubestash.com\n" in caught.value.rule


async def test_a_right_to_one_of_the_groups_is_enough(world):
    put(world, template("freeze", OURS))
    world.answer(f"{PATHS[KUBESTASH]}/freeze", DENIED)
    async with world.cluster() as cluster:
        assert (await read_template(cluster, "freeze", "shop")).name == "freeze"


async def test_who_is_not_let_in_at_all_hears_that(world):
    world.answer(f"{PATHS[KUBESTASH]}/freeze", no(401))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused, match="does not accept podhook's credentials"):
            await read_template(cluster, "freeze", "shop")
    assert len(world.asked) == 2  # with the login, and with a new one


async def test_a_function_is_of_no_namespace(world):
    item = {
        "apiVersion": "addons.kubestash.com/v1alpha1",
        "kind": "Function",
        "metadata": {"name": "dump", "uid": "f1"},
        "spec": {"image": "busybox"},
        "status": {},
    }
    world.put("addons.kubestash.com/v1alpha1/functions", item)
    async with world.cluster() as cluster:
        assert await read_function_document(cluster, "dump") == {
            "apiVersion": "addons.kubestash.com/v1alpha1",
            "kind": "Function",
            "metadata": {"name": "dump"},
            "spec": {"image": "busybox"},
        }
        with pytest.raises(ClusterNotFound, match="there is no Function dumb in the cluster; did you mean 'dump'"):
            await read_function_document(cluster, "dumb")


async def test_the_labels_of_namespaces(world):
    world.answer("get /api/v1/namespaces/shop", (200, {"metadata": {"name": "shop", "labels": {"team": "a"}}}))
    world.answer("get /api/v1/namespaces/bank", (200, {"metadata": {"name": "bank"}}))
    world.answer("get /api/v1/namespaces/gone", no(404))
    async with world.cluster() as cluster:
        assert await namespace_labels(cluster, ["shop", "bank", "gone", "shop"]) == {"shop": {"team": "a"}, "bank": {}}
        assert sorted(world.asked) == [f"GET /api/v1/namespaces/{name}" for name in ("bank", "gone", "shop")]
        world.answer("get /api/v1/namespaces/shop", DENIED)
        with pytest.raises(ClusterRefused) as caught:
            await namespace_labels(cluster, ["shop"])
    assert "kind: ClusterRole\n" in caught.value.rule
    assert "resourceNames:\n  - shop\n" in caught.value.rule
