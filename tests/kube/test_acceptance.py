"""`make test-kube`: a hook of each executor in the cluster that KUBECONFIG leads to, run by a pod of it.

PODHOOK_TEST_IMAGE names podhook's image, as the cluster's nodes can pull it or have it; PODHOOK_TEST_BROKER_IMAGE and
PODHOOK_TEST_PLAIN_IMAGE another mosquitto and another image with a shell. A namespace of its own is made, and deleted.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator

import pytest

from agent.cluster import Cluster
from agent.contract.errors import PodhookError
from tests.kube.acting import Stage
from tests.kube.objects import Images

pytestmark = [pytest.mark.kube, pytest.mark.timeout(900)]

ANSWERING_SECONDS = 20


async def why_not() -> str:
    """Why nothing can be tried; empty where it can."""
    if not os.environ.get("KUBECONFIG"):
        return "no cluster: KUBECONFIG is not set; KUBECONFIG=FILE PODHOOK_TEST_IMAGE=IMAGE make test-kube"
    if Images.of(os.environ) is None:
        return "no image: PODHOOK_TEST_IMAGE is not set; name podhook's image as the cluster's nodes can have it"
    try:
        async with asyncio.timeout(ANSWERING_SECONDS), Cluster() as cluster:
            await cluster.kinds("v1")
    except PodhookError as error:
        return f"no cluster answers: {error}"
    except TimeoutError:
        return f"no cluster answers within {ANSWERING_SECONDS} s to what KUBECONFIG={os.environ['KUBECONFIG']} says"
    return ""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A namespace with a broker, a pod with an agent, and one without."""
    if reason := asyncio.run(why_not()):
        pytest.skip(reason)
    images = Images.of(os.environ)
    assert images is not None
    stage = Stage(f"podhook-test-{uuid.uuid4().hex[:8]}", images)
    try:
        asyncio.run(stage.set_up())
        yield stage
    finally:
        asyncio.run(stage.tear_down())


async def test_a_hook_runs_in_the_container_beside_the_agent(stage: Stage):
    ran = await stage.run("pod")
    assert ran.code == 0, ran.said
    (target,) = ran.result["targets"]
    assert (target["pod"], target["stdout"]) == ("db-0", "written by sh in db-0\n")


async def test_a_selected_pod_without_an_agent_stops_the_run_before_it_begins(stage: Stage):
    ran = await stage.run("missing")
    assert ran.code == 3, ran.said
    assert (ran.result["error"]["code"], "bare-0" in ran.result["error"]["message"]) == ("missing_agents", True)


async def test_the_coordinator_runs_a_hook_itself(stage: Stage):
    ran = await stage.run("operator")
    assert (ran.code, ran.result["verdict"]) == (0, "succeeded"), ran.said


async def test_a_function_is_a_job_whose_log_is_told(stage: Stage):
    ran = await stage.run("function")
    assert ran.code == 0, ran.said
    assert [each["stdout"] for each in ran.result["targets"]] == ["migrated\n"]
