"""Plans whose templates, values and pods are a cluster's: kmock answers, mosquitto and the agent are real."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from tests.cli.conftest import script
from tests.cluster.conftest import world as world  # noqa: PLC0414 (a fixture)
from tests.cluster.world import no, pod

pytestmark = [pytest.mark.broker, pytest.mark.processes]

TEMPLATES = "core.kubestash.com/v1alpha1"


def put_template(world, name, text):
    metadata = {"name": name, "namespace": "shop"}
    item = {"apiVersion": TEMPLATES, "kind": "HookTemplate", "metadata": metadata, "spec": script(text)}
    world.put(f"{TEMPLATES}/hooktemplates", item)


@pytest.fixture
def plan(world, cli, tmp_path):
    """A plan as it is pasted, a pod with an agent, templates and a Secret in the cluster."""
    cli.agent("db-0", "shop", POD_UID="uid-shop-db-0")
    cli.online("db-0")
    world.put("v1/pods", pod("db-0", labels={"app": "db"}))
    world.put("v1/secrets", {"metadata": {"name": "db", "namespace": "shop"}, "data": {"word": b64("s3cret")}})
    put_template(world, "freeze", f'echo "freeze ${{WORD}}" >> {tmp_path}/diary')
    put_template(world, "thaw", f'echo "thaw {{{{ .Status.Phase }}}}" >> {tmp_path}/diary')
    word = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "word"}}}
    pre = [{"name": "freeze", "hookTemplate": {"name": "freeze", "namespace": "shop"}, "variables": [word]}]
    post = [{"name": "thaw", "hookTemplate": {"name": "thaw"}}]
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"namespace": "shop", "preBackup": pre, "postBackup": post}))
    return path


def b64(text):
    return base64.b64encode(text.encode()).decode()


def diary(plan):
    file = plan.parent / "diary"
    return file.read_text().splitlines() if file.exists() else []


async def test_a_pasted_plan_runs_with_templates_values_and_pods_of_the_cluster(world, cli, plan):
    done = await asyncio.to_thread(cli, "around", plan, "--kubeconfig", world.kubeconfig, "--", "true")
    assert done.returncode == 0, done.stderr
    assert diary(plan) == ["freeze s3cret", "thaw Succeeded"]
    assert "s3cret" not in done.stderr


async def test_a_pod_without_an_agent_is_missed_before_anything_is_frozen(world, cli, plan):
    """Presence alone would not know of it."""
    world.put("v1/pods", pod("db-1", labels={"app": "db"}))
    done = await asyncio.to_thread(cli, "around", plan, "--kubeconfig", world.kubeconfig, "--", "true")
    assert done.returncode == 122, done.stderr
    assert "shop/db-1 (no agent has said that it is there)" in " ".join(done.stderr.split())
    assert diary(plan) == ["thaw Failed"]
    by_presence = ("--kubeconfig", world.kubeconfig, "--source", "presence")
    done = await asyncio.to_thread(cli, "around", plan, *by_presence, "--", "true")
    assert done.returncode == 0, done.stderr


async def test_what_the_cluster_has_not_is_a_problem_of_the_plan_and_a_cluster_that_is_away_is_124(world, cli, plan):
    document = json.loads(plan.read_text())
    document["postBackup"][0]["hookTemplate"]["name"] = "thwa"
    wrong = plan.parent / "wrong.yaml"
    wrong.write_text(json.dumps(document))
    done = await asyncio.to_thread(cli, "around", wrong, "--kubeconfig", world.kubeconfig, "--", "true")
    assert done.returncode == 121
    assert "postBackup[0].hookTemplate: there is no HookTemplate shop/thwa in the cluster; did you mean 'thaw'?" in (
        " ".join(done.stderr.split())
    )
    done = await asyncio.to_thread(
        cli, "around", plan, "--kubeconfig", world.kubeconfig, "--context", "nowhere", "--", "true"
    )
    assert done.returncode == 121
    assert "nowhere" in done.stderr
    world.write_kubeconfig()
    config = world.kubeconfig.read_text().replace(world.url, "http://127.0.0.1:9")
    world.kubeconfig.write_text(config)
    done = await asyncio.to_thread(
        cli, "around", plan, "--kubeconfig", world.kubeconfig, "--", "true", within_seconds=110
    )
    assert done.returncode == 124, done.stderr
    assert diary(plan) == []


async def test_inside_a_cluster_that_may_not_be_asked_agents_say_which_pods_there_are(world, cli, plan, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    done = await asyncio.to_thread(cli, "run", cli.file("true"), "-n", "shop")
    assert done.returncode == 0, done.stderr
    assert "the cluster is not asked, and pods that have no agent are not missed" in done.stderr


async def test_pods_that_may_not_be_listed_are_chosen_by_presence_with_a_note_unless_the_cluster_is_the_source(
    world, cli, plan
):
    world.answer("get /api/v1/namespaces/shop/pods", no(403, "forbidden"))
    run = ("run", plan, "--phase", "preBackup", "--kubeconfig", world.kubeconfig)
    done = await asyncio.to_thread(cli, *run)
    assert done.returncode == 0, done.stderr
    assert "pods were chosen by what agents say" in done.stdout
    done = await asyncio.to_thread(cli, *run, "--source", "kubernetes")
    assert done.returncode == 4
    assert "list" in done.stderr
