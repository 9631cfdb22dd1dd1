"""The steps of docs/sidecar.md make what the examples mount, and the examples are safe to copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.contract.signing.keys import parse_trusted_keys
from agent.coordinator.trust import load_agent_keys, load_key
from tests.pods.documented import Documented, follow
from tests.pods.images import PROJECT
from tests.pods.play import EXAMPLES
from tests.pods.stand_ins import Manifest

PODS = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
DATABASES = ("mariadb", "postgresql")
SHIPPED = PROJECT / "manifests" / "broker" / "mosquitto"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Documented:
    if shutil.which("openssl") is None or shutil.which("bash") is None:
        pytest.skip("openssl or bash is not installed: apt-get install openssl bash")
    return follow(tmp_path_factory.mktemp("a-reader"))


def test_the_broker_gets_the_shipped_configuration_byte_for_byte(documented):
    of_broker = documented.objects["podhook"]
    assert of_broker.config_maps["podhook-broker"] == {"mosquitto.conf": (SHIPPED / "mosquitto.conf").read_text()}
    acl = of_broker.secrets["podhook-broker-auth"]["acl"]
    assert acl.startswith((SHIPPED / "acl").read_text())
    assert set(of_broker.secrets["podhook-broker-auth"]) == {"acl", "passwords"}
    assert set(of_broker.secrets["podhook-broker-tls"]) == {"ca.crt", "tls.crt", "tls.key"}


@pytest.mark.parametrize("name", PODS)
def test_every_secret_and_config_map_that_an_example_mounts_is_made(documented, name):
    pod = Manifest.read(EXAMPLES / f"{name}.yaml").pod
    there = documented.objects[pod["metadata"]["namespace"]]
    for volume in pod["spec"]["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["secretName"] in there.secrets
        if "configMap" in volume:
            assert volume["configMap"]["name"] in there.config_maps


def test_agents_and_coordinators_get_keys_that_belong_together(documented):
    of_shop = documented.objects["shop"]
    nightly, agents = load_key(documented.directory / "nightly.key"), load_agent_keys(documented.directory / "agents")
    (trusted,) = parse_trusted_keys(of_shop.config_maps["podhook-trusted"]["nightly.pub"], "nightly")
    assert (trusted.kid, trusted.namespaces) == (nightly.kid, frozenset({"shop"}))
    (own,) = agents["shop"]
    assert f'"{own.jwk.as_dict(private=False)["x"]}"' in of_shop.secrets["podhook-agent"]["shop.key"]


def test_no_pod_gets_what_is_the_coordinators_or_the_authoritys(documented):
    here = documented.directory
    private = [here / "nightly.key", here / "tls" / "ca.key", here / "secrets" / "nightly" / "password"]
    given = [text for each in documented.objects.values() for data in _all(each) for text in data.values()]
    assert len(given) > 10
    for path in private:
        assert not [text for text in given if path.read_text().strip() in text], f"a pod gets {path.name}"
    password = (here / "secrets" / "shop" / "password").read_text()
    holders = [name for name, data in documented.objects["podhook"].secrets.items() if password in str(data)]
    assert holders == [], "the broker keeps hashes"


def _all(objects):
    return [*objects.secrets.values(), *objects.config_maps.values()]


@pytest.mark.parametrize("name", DATABASES)
def test_an_example_obeys_keys_only_and_speaks_tls_as_its_namespaces_user(name):
    manifest = Manifest.read(EXAMPLES / f"{name}.yaml")
    agent, spec = manifest.container("agent"), manifest.pod["spec"]
    values = {each["name"]: each.get("value") for each in agent["env"]}
    assert "PODHOOK_ALLOW_UNSIGNED" not in values
    assert values["PODHOOK_BROKER"].startswith("mqtts://")
    for setting in ("TRUSTED_KEYS", "AGENT_KEY", "BROKER_CA_FILE", "BROKER_USER_FILE", "BROKER_PASSWORD_FILE"):
        path = Path(values[f"PODHOOK_{setting}"])
        mounts = [Path(each["mountPath"]) for each in agent["volumeMounts"] if each.get("readOnly")]
        assert {path, path.parent} & set(mounts), f"{setting} is not mounted, or not read-only"
    mounted_elsewhere = [each["name"] for each in manifest.container(name).get("volumeMounts", [])]
    for volume in spec["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440
            assert volume["name"] not in mounted_elsewhere
    assert spec["securityContext"]["fsGroup"] == 64918


def test_nothing_in_the_examples_or_manifests_is_open():
    for path in [*EXAMPLES.rglob("*.yaml"), *(PROJECT / "manifests").rglob("*")]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "allow_anonymous true" not in text, path
            assert "ALLOW_UNSIGNED" not in text, path
