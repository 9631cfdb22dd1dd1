"""`podhook run --from-annotations`: from a cluster's pods, through real agents, to an exit code."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.cli.conftest import Cli
from tests.cluster.conftest import world
from tests.cluster.world import World, no, pod

__all__ = ["world"]

PRE, POST = "pre.hook.backup.velero.io/", "post.hook.backup.velero.io/"


def put(world: World, name: str, *, app: str = "nginx", **annotations: str) -> None:
    """A pod of the cluster; `pre_command="x"` and so on are its annotations."""
    said = {f"{part.partition('_')[0]}.hook.backup.velero.io/{part.partition('_')[2].replace('_', '-')}": text
            for part, text in annotations.items()}  # fmt: skip
    item = pod(name, labels={"app": app}, annotations=said)
    item["spec"] = {"containers": [{"name": "nginx"}, {"name": "fsfreeze"}]}
    world.put("v1/pods", item)


def agents(cli: Cli, *names: str) -> None:
    for name in names:
        cli.agent(name, "shop", 'app="nginx"\n', CONTAINER="fsfreeze", POD_UID=f"uid-shop-{name}")
    cli.online(*names)


async def podhook(cli: Cli, world: World, *arguments: object):
    everything = ("run", "--kubeconfig", world.kubeconfig, "-n", "shop", *arguments)
    return await asyncio.to_thread(cli, *everything)


async def test_veleros_nginx_example_freezes_all_pods_and_thaws_them(cli, world, tmp_path):
    """Its annotations, with a file for each frozen pod instead of a frozen disk."""
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    names = ["nginx-0", "nginx-1", "nginx-2"]
    for name in names:
        put(
            world,
            name,
            pre_command=json.dumps(["/bin/sh", "-c", f"touch {frozen}/{name}"]),
            pre_container="fsfreeze",
            post_command=json.dumps(["/bin/rm", f"{frozen}/{name}"]),
            post_container="fsfreeze",
        )
    put(world, "bystander")
    await asyncio.to_thread(agents, cli, *names)
    done = await podhook(cli, world, "--from-annotations", "pre", "-l", "app=nginx", "-o", "json")
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [run["verdict"] for run in runs]) == (0, ["succeeded"] * 3), done.stderr
    assert "velero-pre: succeeded - 3 runs, one for each hook that the pods have" in done.stderr
    assert runs[0]["notes"][0] == "1 pod has no pre.hook.backup.velero.io/command, and runs nothing"
    assert sorted(each.name for each in frozen.iterdir()) == names
    done = await podhook(cli, world, "--from-annotations", "post")  # no selector: every pod of the namespace
    assert (done.returncode, list(frozen.iterdir())) == (0, [])
    assert done.stdout.count("velero-post-") == 3


async def test_a_hook_that_fails_fails_the_command_unless_its_pod_says_continue(cli, world):
    put(world, "a", pre_command="/bin/true", pre_container="fsfreeze")
    put(world, "b", pre_command="/bin/false", pre_container="fsfreeze", pre_on_error="Continue")
    await asyncio.to_thread(agents, cli, "a", "b")
    done = await podhook(cli, world, "--from-annotations", "pre", "-l", "app=nginx")
    assert done.returncode == 0, done.stderr
    assert "its failure does not count" in done.stdout
    put(world, "b", pre_command="/bin/false", pre_container="fsfreeze")
    done = await podhook(cli, world, "--from-annotations", "pre", "-l", "app=nginx")
    assert done.returncode == 1
    done = await podhook(cli, world, "--from-annotations", "pre", "-l", "app=nginx", "--expect", 3)
    assert (done.returncode, "2 running pods have a hook" in done.stdout) == (3, True)


async def test_pods_without_an_agent_are_named_and_nothing_is_triggered(cli, world, tmp_path):
    put(world, "a", pre_command=json.dumps(["/bin/sh", "-c", f"touch {tmp_path}/ran"]), pre_container="fsfreeze")
    put(world, "b", pre_command="sync")
    await asyncio.to_thread(agents, cli, "a")
    done = await podhook(cli, world, "--from-annotations", "pre")
    assert (done.returncode, (tmp_path / "ran").exists()) == (3, False)
    assert "shop/b (no agent has said that it is there)" in done.stdout
    done = await podhook(cli, world, "--from-annotations", "pre", "--allow-missing")
    assert (done.returncode, (tmp_path / "ran").exists()) == (0, True), done.stderr
    assert "went on without 1 pods that have no live agent: shop/b" in done.stdout


async def test_what_is_wrong_is_told_of_all_pods_before_any_broker_is_asked(world, tmp_path):
    put(world, "a", pre_command='["sync"', pre_timeout="30")
    put(world, "b", pre_command="sync", pre_container="mysql")
    done = await podhook(Cli("mqtt://127.0.0.1:1", "x", tmp_path), world, "--from-annotations", "pre")
    assert done.returncode == 2
    assert f"shop/a: {PRE}command: " in done.stderr
    assert f"shop/a: {PRE}timeout: '30' is not a duration" in done.stderr
    assert f"shop/b: {PRE}container: 'mysql' is not a container of the pod (it has: nginx, fsfreeze)" in done.stderr


async def test_pods_that_cannot_be_listed(world, tmp_path):
    forbidden = 'pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "shop"'
    world.answer("get /api/v1/namespaces/shop/pods", no(403, forbidden))
    done = await podhook(Cli("mqtt://127.0.0.1:1", "x", tmp_path), world, "--from-annotations", "pre")
    assert done.returncode == 4
    assert "pods" in done.stderr
    assert "kind: Role" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hooks.yaml",), "FILE has no meaning with --from-annotations"),
        (("--timeout", "5m"), "--timeout has no meaning with --from-annotations"),
        (("--max-parallel", "2"), "--max-parallel has no meaning"),
        (("--catalogue", "freeze"), "--catalogue has no meaning"),
        (("--source", "presence"), "--source presence knows no annotations"),
    ],
)
def test_what_the_pods_say_is_said_nowhere_else(tmp_path, arguments, said):
    done = Cli("mqtt://127.0.0.1:1", "x", tmp_path)("run", "--from-annotations", "pre", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_before_or_after(tmp_path):
    done = Cli("mqtt://127.0.0.1:1", "x", tmp_path)("run", "--from-annotations", "during")
    assert done.returncode == 2
    assert "'pre', 'post'" in done.stderr
