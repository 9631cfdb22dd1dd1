"""What the kubelet would have decided, decided by us: without podman, so it runs everywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.pods.play import EXAMPLES, beside_agent
from tests.pods.stand_ins import Manifest, Objects, Place, playable

OF_PODHOOK = {
    "podhook-broker": {"user": "shop"},
    "podhook-agent": {"shop.key": "k"},
    "podhook-broker-auth": {"acl": "a"},
}
SECRETS = {"mariadb": {"root-password": "hidden"}, "postgresql": {"password": "hidden"}, "podhook-broker-tls": {}}
CONFIG_MAPS = {"podhook-trusted": {"nightly.pub": "p"}, "podhook-broker": {"mosquitto.conf": "set_tcp_nodelay true"}}
OBJECTS = Objects({**OF_PODHOOK, **SECRETS}, CONFIG_MAPS)
UID = "0b9b1e0e-8f1b-4b53-9d0c-2f4b1c8f6a11"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("mariadb-7", UID, "10.1.2.3", tmp_path)


def variables(pod: dict, container: str) -> dict[str, str]:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == container)
    return {each["name"]: each["value"] for each in found["env"]}


def mounted(pod: dict, container: str, path: str) -> Path:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == container)
    (name,) = (each["name"] for each in found["volumeMounts"] if each["mountPath"] == path)
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == name)
    return Path(volume["hostPath"]["path"])


def test_the_downward_api_and_secrets_become_plain_values(place):
    pod = playable(Manifest.read(EXAMPLES / "mariadb.yaml"), place, OBJECTS)
    assert variables(pod, "mariadb") == {"MYSQL_ROOT_PASSWORD": "hidden"}
    agent = variables(pod, "agent")
    assert agent["PODHOOK_NAMESPACE"] == "shop"
    assert agent["PODHOOK_POD"] == pod["metadata"]["name"] == "mariadb-7"
    assert agent["PODHOOK_POD_UID"] == UID
    assert agent["PODHOOK_POD_IP"] == "10.1.2.3"
    files = mounted(pod, "agent", "/etc/podhook/pod")
    assert (files / "labels").read_text() == 'app="mariadb"'
    assert '"containerPort": 3306' in (files / "pod").read_text()


@pytest.mark.parametrize("name", ["mariadb", "agent"])
def test_every_container_has_the_kubelets_termination_log(place, name):
    pod = playable(Manifest.read(EXAMPLES / "mariadb.yaml"), place, OBJECTS)
    path = mounted(pod, name, "/dev/termination-log")
    assert re.fullmatch(rf"pods/{UID}/containers/{name}/[0-9a-f]{{8}}", str(path.relative_to(place.directory)))
    assert path.is_file()


def test_a_termination_message_path_of_ones_own_is_kept(place):
    manifest = beside_agent({"name": "target", "image": "tools", "terminationMessagePath": "/last/words"})
    assert mounted(playable(manifest, place, OBJECTS), "target", "/last/words").is_file()


def test_a_config_map_is_a_directory_of_files(place):
    pod = playable(Manifest.read(EXAMPLES / "mosquitto.yaml"), place, OBJECTS)
    configuration = mounted(pod, "mosquitto", "/mosquitto/config") / "mosquitto.conf"
    assert "set_tcp_nodelay true" in configuration.read_text()


def test_everybody_may_write_to_an_empty_dir(place):
    pod = playable(Manifest.read(EXAMPLES / "mariadb.yaml"), place, OBJECTS)
    assert mounted(pod, "agent", "/var/lib/podhook").stat().st_mode & 0o777 == 0o777


def test_no_port_is_published_on_the_host(place):
    pod = playable(Manifest.read(EXAMPLES / "mariadb.yaml"), place, OBJECTS)
    assert all("ports" not in each for each in pod["spec"]["containers"])


def test_fs_group_and_the_pods_users_reach_every_container(place):
    manifest = beside_agent({"name": "target", "image": "tools", "securityContext": {"runAsUser": 5}})
    manifest.container("agent").pop("securityContext")
    manifest.pod["spec"]["securityContext"] = {"fsGroup": 2000, "supplementalGroups": [1], "runAsUser": 6}
    spec = playable(manifest, place, OBJECTS)["spec"]
    assert spec["securityContext"]["supplementalGroups"] == [1, 2000]
    assert [each["securityContext"]["runAsUser"] for each in spec["containers"]] == [5, 6]


def test_what_is_played_is_a_copy(place):
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    before = yaml.safe_dump(manifest.pod)
    playable(manifest, place, OBJECTS)
    assert yaml.safe_dump(manifest.pod) == before


def test_a_secret_that_nobody_gave_is_named(place):
    with pytest.raises(KeyError, match="postgresql"):
        playable(Manifest.read(EXAMPLES / "postgresql.yaml"), place, Objects(OF_PODHOOK, CONFIG_MAPS))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another group")
@pytest.mark.parametrize(("group", "expected"), [(None, "0o444"), (64918, "0o440")])
def test_a_mounted_secret_has_the_mode_and_the_group_that_the_pod_says(place, group, expected):
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    if group is None:
        manifest.pod["spec"].pop("securityContext")
        for volume in manifest.pod["spec"]["volumes"]:
            volume.get("secret", {}).update(defaultMode=0o444)
    path = mounted(playable(manifest, place, OBJECTS), "agent", "/etc/podhook/agent") / "shop.key"
    assert path.is_symlink()
    assert (oct(path.stat().st_mode & 0o777), path.stat().st_gid) == (expected, group or 0)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_example_asks_for_more_than_the_baseline(path):
    spec = Manifest.read(path).pod["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))
    for container in spec["containers"]:
        context = container.get("securityContext", {})
        assert not context.get("privileged")
        assert "add" not in context.get("capabilities", {})
        assert "hostPort" not in str(container.get("ports", ""))
        assert container["name"] != "agent" or not {"readinessProbe", "startupProbe"} & set(container)
