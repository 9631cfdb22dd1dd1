"""The acceptance's objects and its way with a cluster, as far as that can be known without one."""

from __future__ import annotations

import copy
import json

import pytest

from tests.cluster.conftest import world as world  # noqa: PLC0414 (a fixture)
from tests.cluster.world import World
from tests.kube import acting
from tests.kube.acting import Stage
from tests.kube.objects import HOOKS, Images, runner, stage
from tests.kubernetes_schema import check

IMAGES = Images("podhook:test", "mosquitto:test", "shell:test")


@pytest.mark.parametrize("document", stage("ns", IMAGES), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_a_cluster_takes_every_object(document):
    check(document)
    assert document["metadata"].get("namespace", "ns") == "ns"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_cluster_takes_whoever_runs_a_hook_and_finds_what_is_mounted(hook):
    pod = runner("ns", IMAGES, hook)
    check(pod)
    (files,) = (each["data"] for each in stage("ns", IMAGES) if each["metadata"]["name"] == "hooks")
    arguments = pod["spec"]["containers"][0]["args"]
    assert {each.removeprefix("/hooks/") for each in arguments if each.startswith("/hooks/")} <= files.keys()


def test_nothing_but_the_images_that_variables_name_is_pulled():
    pods = [each for each in [*stage("ns", IMAGES), runner("ns", IMAGES, "pod")] if each["kind"] == "Pod"]
    images = [container["image"] for pod in pods for container in pod["spec"]["containers"]]
    assert sorted(set(images)) == ["mosquitto:test", "podhook:test", "shell:test"]


@pytest.mark.parametrize(
    ("environment", "images"),
    [
        ({}, None),
        ({"PODHOOK_TEST_IMAGE": ""}, None),
        ({"PODHOOK_TEST_IMAGE": "a"}, Images("a", "eclipse-mosquitto:2", "busybox:1.36")),
        (
            {"PODHOOK_TEST_IMAGE": "a", "PODHOOK_TEST_BROKER_IMAGE": "b", "PODHOOK_TEST_PLAIN_IMAGE": "c"},
            Images("a", "b", "c"),
        ),
    ],
)
def test_variables_name_the_images(environment, images):
    assert Images.of(environment) == images


class Kubelet:
    """What becomes of a pod in a mock cluster: it is Ready at once, and one that runs hooks is over with `code`."""

    def __init__(self, world: World, *, code: int, said: str) -> None:
        self.world, self.code = world, code
        # kmock cannot read what makes a namespace and says 500: the client then finds that it is there.
        namespace = stage("ns", IMAGES)[0]
        for verb in ("get", "delete"):
            world.answer(f"{verb} /api/v1/namespaces/ns", (200, namespace))
        world.put("v1/serviceaccounts", {"metadata": {"name": "default", "namespace": "ns", "resourceVersion": "1"}})
        world.answer("post /api/v1/namespaces/ns/pods", self._create)
        for name, log in (("db-0", b"... broker.connected ..."), ("run-pod", said.encode())):
            world.answer(f"get /api/v1/namespaces/ns/pods/{name}/log", (200, log))

    def _create(self, request):
        pod = copy.deepcopy(dict(request.data))
        pod["metadata"] |= {"uid": f"uid-{pod['metadata']['name']}", "resourceVersion": "1"}
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        if pod["metadata"]["name"].startswith("run-"):
            ended = {"state": {"terminated": {"exitCode": self.code}}}
            status = {"phase": "Failed" if self.code else "Succeeded", "containerStatuses": [ended]}
        return 201, self.world.put("v1/pods", pod | {"status": status})


async def test_a_hook_is_run_by_a_pod_of_the_cluster_and_told_with_its_exit_code(world, monkeypatch):
    monkeypatch.setattr(acting, "POLL_SECONDS", 0.01)
    said = f"podhook: something for people\n{json.dumps({'verdict': 'failed'})}\n"
    Kubelet(world, code=1, said=said)
    stage = Stage("ns", IMAGES, world.cluster)
    await stage.set_up()
    ran = await stage.run("pod")
    assert (ran.code, ran.result, ran.said) == (1, {"verdict": "failed"}, said)
    await stage.tear_down()
    assert "DELETE /api/v1/namespaces/ns" in world.asked
    made = [name for kind, _, name in world.api.objects if kind in ("v1/configmaps", "v1/services", "v1/pods")]
    assert {"hooks", "mosquitto", "db-0", "bare-0", "run-pod"} <= set(made)
