"""Which cluster is asked, and as whom; what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import certifi  # kubernetes_asyncio's
import pytest
import yaml

from agent.cluster import Cluster
from agent.cluster.resources import PODS
from agent.contract.errors import ClusterUnavailable, InvalidSettings
from tests.cluster.world import World


async def namespace(cluster: Cluster) -> str:
    async with cluster:
        return cluster.namespace


async def test_a_context_is_chosen_by_its_name(world: World):
    world.write_kubeconfig(prod={"namespace": "bank"}, bare={})
    assert await namespace(world.cluster()) == "shop"
    assert await namespace(world.cluster(context="prod")) == "bank"
    assert await namespace(world.cluster(context="bare")) == "default"


async def test_a_context_that_is_not_there_names_those_there_are(world):
    world.write_kubeconfig(prod={})
    with pytest.raises(InvalidSettings) as caught:
        await namespace(world.cluster(context="prd"))
    assert str(caught.value) == (
        f"the kubeconfig {world.kubeconfig} has no context 'prd' (has: here, prod); set --context to one of them"
    )


async def test_a_kubeconfig_that_is_not_there(world, tmp_path):
    with pytest.raises(InvalidSettings) as caught:
        await namespace(world.cluster(kubeconfig=tmp_path / "none"))
    assert str(caught.value) == (f"there is no kubeconfig to be read at {tmp_path}/none; correct the path or its mode")


@pytest.mark.parametrize("text", ["", "- a list", "{", "contexts: 1", "contexts: [1, {name: 2}]"])
async def test_a_kubeconfig_that_is_none(world, text):
    world.kubeconfig.write_text(text)
    with pytest.raises(ClusterUnavailable, match=r"cannot be used .*; find out why with: kubectl get pods"):
        await namespace(world.cluster())
    with pytest.raises(InvalidSettings, match=r"has no context 'here' \(has: none\)"):
        await namespace(world.cluster(context="here"))


async def test_no_cluster_at_all(world):
    with pytest.raises(ClusterUnavailable) as caught:
        await namespace(world.cluster(kubeconfig=None))
    assert str(caught.value) == (
        "there is no cluster to ask: KUBERNETES_SERVICE_HOST is not set, as it is in every pod, and there is no "
        "kubeconfig to be read at ~/.kube/config; name one with --kubeconfig, set KUBECONFIG, or do without a "
        "cluster: --source presence"
    )


async def test_what_is_named_wins_over_the_environment_and_that_over_the_pod(world, tmp_path, monkeypatch):
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("t\n")
    (account / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    (account / "namespace").write_text("own\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    other = tmp_path / "other"
    other.write_bytes(world.kubeconfig.read_bytes().replace(b"namespace: shop", b"namespace: bank"))
    assert await namespace(world.cluster(kubeconfig=None, service_account=account)) == "own"
    monkeypatch.setenv("KUBECONFIG", str(other))
    assert await namespace(world.cluster(kubeconfig=None, service_account=account)) == "bank"
    assert await namespace(world.cluster(service_account=account)) == "shop"
    (account / "namespace").unlink()
    monkeypatch.delenv("KUBECONFIG")
    assert await namespace(world.cluster(kubeconfig=None, service_account=account)) == "default"


async def test_without_the_library_it_says_how_to_get_it(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    with pytest.raises(InvalidSettings) as caught:
        await namespace(world.cluster())
    assert str(caught.value).startswith("a cluster is asked for, and kubernetes-asyncio cannot be imported (")
    assert str(caught.value).endswith(
        "install it: pip install 'podhook[kubernetes]', or do without a cluster: --source presence"
    )


@pytest.mark.parametrize("path", ["", ":x/%zz"])
async def test_a_password_in_the_servers_address_is_not_told(world, path):
    document = yaml.safe_load(world.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = world.url.replace("//", "//jane:s3cret@") + path
    world.kubeconfig.write_text(yaml.safe_dump(document))
    async with world.cluster() as cluster:
        assert cluster.server == f"the API server at {world.url}{path}"
        with pytest.raises(ClusterUnavailable, match="could not be asked") as caught:
            await cluster.get(PODS, "db-0")
    assert "s3cret" not in str(caught.value)
    assert world.asked == []
