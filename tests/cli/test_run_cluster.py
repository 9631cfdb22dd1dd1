"""`podhook run --source kubernetes`: every way in which cluster and presence differ, its verdict and its exit code.

kmock answers, mosquitto and the agents are real. `docs/kubernetes.md` has the same table for people.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import POD, clean_environment, script
from tests.cluster.conftest import world as world  # noqa: PLC0414 (a fixture)
from tests.cluster.world import World, no, pod
from tests.kubernetes_schema import check

pytestmark = [pytest.mark.broker, pytest.mark.processes]

ONE = {"type": "Pod", "pod": {"selector": "app=db"}}
PODS = "get /api/v1/namespaces/shop/pods"


@pytest.fixture
async def shop(cli, world: World):
    """Two pods of the cluster with an agent each, db-0 and db-1."""

    def agents() -> None:
        for name in ("db-0", "db-1"):
            cli.agent(name, "shop", POD_UID=f"uid-shop-{name}")
        cli.online("db-0", "db-1")

    for name in ("db-0", "db-1"):
        world.put("v1/pods", pod(name, labels={"app": "db"}))
    await asyncio.to_thread(agents)
    return world


async def run(cli, world: World, *arguments: object, executor=POD, source: str = "kubernetes"):
    """The exit code, the result (None where there is none), and standard error in one line."""
    file = cli.file(script(f'echo "$PODHOOK_POD" >> {cli.directory}/diary', executor))
    cluster = ("--kubeconfig", world.kubeconfig, "--source", source, "-n", "shop", "-o", "json")
    done = await asyncio.to_thread(cli, "run", file, *cluster, *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else None, " ".join(done.stderr.split())


def ran(cli) -> int:
    """How many times the hook ran, anywhere."""
    diary = cli.directory / "diary"
    return len(diary.read_text().splitlines()) if diary.exists() else 0


async def test_0_when_every_pod_that_runs_has_its_agent(cli, shop):
    code, result, _ = await run(cli, shop)
    assert (code, result["verdict"], ran(cli)) == (0, "succeeded", 2)


async def test_3_when_a_selected_pod_has_no_agent_and_0_without_it_where_that_is_allowed(cli, shop):
    shop.put("v1/pods", pod("db-2", labels={"app": "db"}))
    code, result, _ = await run(cli, shop)
    assert (code, result["verdict"], result["error"]["code"], ran(cli)) == (3, "not_started", "missing_agents", 0)
    assert "shop/db-2 (no agent has said that it is there)" in result["error"]["message"]
    code, result, _ = await run(cli, shop, "--allow-missing")
    assert (code, result["verdict"], ran(cli)) == (0, "succeeded", 2)


async def test_3_when_the_agent_by_that_name_is_of_another_pod(cli, shop):
    """The pod was replaced, and the new one's agent is not there yet."""
    shop.put("v1/pods", pod("db-1", labels={"app": "db"}, uid="uid-of-the-new-one"))
    code, result, _ = await run(cli, shop)
    assert (code, result["error"]["code"], ran(cli)) == (3, "missing_agents", 0)
    assert "of pod uid uid-shop-db-1, and the pod has uid-of-the-new-one" in result["error"]["message"]


async def test_3_when_no_pod_is_selected_and_0_where_that_is_accepted(cli, shop):
    code, result, _ = await run(cli, shop, "-l", "app=none")
    assert (code, result["verdict"], result["error"]["code"], ran(cli)) == (3, "not_started", "no_targets", 0)
    code, result, _ = await run(cli, shop, "-l", "app=none", "--allow-empty")
    assert (code, result["verdict"], ran(cli)) == (0, "succeeded", 0)


async def test_a_pod_that_is_being_deleted_does_not_count_whether_it_has_an_agent_or_not(cli, shop):
    gone = {"deletionTimestamp": "2026-03-01T02:30:00Z"}
    shop.put("v1/pods", pod("db-1", labels={"app": "db"}, **gone))
    shop.put("v1/pods", pod("db-2", labels={"app": "db"}, **gone))
    code, result, _ = await run(cli, shop)
    assert (code, result["verdict"], ran(cli)) == (0, "succeeded", 1)
    assert "shop/db-1 (being deleted), shop/db-2 (being deleted)" in " ".join(result["notes"])
    shop.put("v1/pods", pod("db-0", labels={"app": "db"}, **gone))
    code, result, _ = await run(cli, shop)
    assert (code, result["error"]["code"], ran(cli)) == (3, "no_targets", 1)


async def test_a_pod_that_comes_after_the_list_is_not_of_this_run(cli, shop):
    """What the list had is what the run is about: the pod that comes while it is answered is not asked."""

    def comes(_) -> None:
        shop.put("v1/pods", pod("db-2", labels={"app": "db"}))

    listed = [pod(name, labels={"app": "db"}) for name in ("db-0", "db-1")]
    answer = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": listed}
    shop.answer(PODS, lambda request: (comes(request), (200, answer))[1])
    code, result, _ = await run(cli, shop)
    assert (code, len(result["targets"]), ran(cli)) == (0, 2, 2)


async def test_a_pod_that_vanishes_after_the_list_fails_the_run_and_is_named(cli, shop):
    """The list still has it, and its agent says goodbye before anything is triggered."""
    leaving = cli.agent("db-2", "shop", POD_UID="uid-shop-db-2")
    shop.put("v1/pods", pod("db-2", labels={"app": "db"}))
    await asyncio.to_thread(cli.online, "db-2")
    listed = [pod(name, labels={"app": "db"}) for name in ("db-0", "db-1", "db-2")]
    answer = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": listed}

    def vanishes(_):
        leaving.process.terminate()
        leaving.wait()
        return 200, answer

    shop.answer(PODS, vanishes)
    code, result, _ = await run(cli, shop)
    assert (code, result["error"]["code"], ran(cli)) == (3, "missing_agents", 0)
    assert "shop/db-2" in result["error"]["message"]


async def test_an_agent_whose_pod_the_cluster_does_not_have_is_left_alone_and_named(cli, shop):
    del shop.api.objects["v1/pods", "shop", "db-1"]
    code, result, _ = await run(cli, shop)
    assert (code, ran(cli)) == (0, 1)
    assert "of pods that the cluster does not have: shop/db-1" in " ".join(result["notes"])


async def test_on_one_tries_only_pods_that_are_ready_and_3_when_none_is(cli, shop):
    unready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    shop.put("v1/pods", pod("db-0", labels={"app": "db"}) | {"status": unready})
    code, result, _ = await run(cli, shop, executor=ONE)
    assert (code, [each["pod"] for each in result["targets"]], ran(cli)) == (0, ["db-1"], 1)
    shop.put("v1/pods", pod("db-1", labels={"app": "db"}) | {"status": unready})
    code, result, _ = await run(cli, shop, executor=ONE)
    assert (code, result["error"]["code"], ran(cli)) == (3, "no_ready_pod", 1)


async def test_3_when_the_cluster_has_another_number_of_pods_than_expected(cli, shop):
    code, result, _ = await run(cli, shop, "--expect", "3")
    assert (code, result["error"]["code"], ran(cli)) == (3, "unexpected_count", 0)


@pytest.mark.parametrize(
    ("owner", "count"),
    [
        ({"kind": "Deployment"}, 1),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "name": "db"}, 1),
        ({"kind": "Deployment", "uid": "d-1"}, 1),
        ({"kind": "Deployment", "uid": "d-2"}, 0),
        ({"kind": "StatefulSet", "name": "db"}, 1),
        ({"kind": "StatefulSet", "name": "db", "uid": "s-2"}, 0),
    ],
)
async def test_an_owner_is_found_above_the_controller_and_its_uid_may_be_left_out(cli, shop, owner, count):
    def owned(kind: str, name: str, uid: str) -> dict:
        return {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": True}

    shop.put("v1/pods", pod("db-0", labels={"app": "db"}, ownerReferences=[owned("ReplicaSet", "db-5d9", "r-1")]))
    shop.put("v1/pods", pod("db-1", labels={"app": "db"}, ownerReferences=[owned("StatefulSet", "db", "s-1")]))
    metadata = {
        "name": "db-5d9",
        "namespace": "shop",
        "uid": "r-1",
        "ownerReferences": [owned("Deployment", "db", "d-1")],
    }
    shop.put("apps/v1/replicasets", {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata})
    for kind, uid in (("deployments", "d-1"), ("statefulsets", "s-1")):
        shop.put(f"apps/v1/{kind}", {"metadata": {"name": "db", "namespace": "shop", "uid": uid}})
    executor = {"type": "Pod", "pod": {"selector": "app=db", "owner": owner, "strategy": "ExecuteOnAll"}}
    code, _, _ = await run(cli, shop, executor=executor)
    assert (code, ran(cli)) == (0 if count else 3, count)


SOME = {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "shop"}}}}


@pytest.mark.parametrize(("labels", "code"), [({"team": "shop"}, 0), ({"team": "other"}, 2), (None, 2)])
async def test_a_template_for_selected_namespaces_is_used_where_the_clusters_labels_say_so(cli, shop, labels, code):
    known = no(404) if labels is None else (200, {"metadata": {"name": "shop", "labels": labels}})
    shop.answer("get /api/v1/namespaces/shop", known)
    template = {
        "apiVersion": "core.kubestash.com/v1alpha1",
        "kind": "HookTemplate",
        "metadata": {"name": "freeze", "namespace": "templates"},
        "spec": {**script(f"echo >> {cli.directory}/diary"), "usagePolicy": SOME},
    }
    file = cli.file(template)
    done = await asyncio.to_thread(cli, "run", file, "--kubeconfig", shop.kubeconfig, "-n", "shop")
    assert (done.returncode, ran(cli)) == (code, 0 if code else 2), done.stderr
    assert code == 0 or "those of shop do not" in done.stderr
    done = await asyncio.to_thread(cli, "run", file, "-n", "shop")
    assert done.returncode == 2
    assert "which only the cluster knows" in done.stderr


@pytest.mark.parametrize("source", ["kubernetes", "auto"])
async def test_4_when_the_cluster_does_not_accept_who_asks(cli, shop, source):
    """A login that has run out is no missing right: what agents say does not stand in for it."""
    shop.answer(PODS, no(401, "Unauthorized"))
    code, _, said = await run(cli, shop, source=source)
    assert (code, ran(cli)) == (4, 0)
    assert "does not accept" in said


async def test_4_when_pods_may_not_be_listed_with_the_right_ready_to_paste(cli, shop):
    shop.answer(PODS, no(403, 'pods is forbidden: User "jane" cannot list resource "pods" in the namespace "shop"'))
    file = cli.file(script("true"))
    cluster = ("--kubeconfig", shop.kubeconfig, "--source", "kubernetes", "-n", "shop")
    done = await asyncio.to_thread(cli, "run", file, *cluster)
    assert done.returncode == 4
    said, _, rule = done.stderr.partition("kubectl apply -f -` and this:\n")
    assert 'User "jane" cannot list' in said
    role, binding = yaml.safe_load_all(rule)
    for each in (role, binding):
        check(each)
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    assert (role["metadata"]["namespace"], binding["subjects"][0]["name"]) == ("shop", "jane")


def test_a_run_that_asks_no_cluster_does_not_load_what_asks_one(cli, tmp_path: Path):
    """The library takes 55 MB and a second, which is for those who ask."""
    file = tmp_path / "hook.yaml"
    action = {"exec": {"command": ["true"]}}
    file.write_text(json.dumps({"action": action, "executor": {"type": "Operator"}}))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "agent", "run", str(file)],
        env=clean_environment(KUBECONFIG=tmp_path / "none", KUBERNETES_SERVICE_HOST=None),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "agent.coordinator.client" in loaded
    assert not {name for name in loaded if name.startswith(("kubernetes_asyncio", "agent.cluster"))}
