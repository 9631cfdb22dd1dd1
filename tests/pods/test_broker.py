"""The broker of the examples in a real pod: it is the shipped configuration, and follows what is mounted by itself."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.bus.broker import Broker
from agent.contract.topics import Topics
from tests.broker.raw import NotLetIn, Raw
from tests.broker.shipped import podhook
from tests.brokers import poll
from tests.pods import documented
from tests.pods.broker import BrokerPod, heard_of
from tests.pods.images import PROJECT, Images
from tests.pods.play import EXAMPLES, Playground, Pod
from tests.pods.stand_ins import Manifest
from tests.pods.test_smoke import capabilities, status

pytestmark = pytest.mark.pods

NOT_AUTHORIZED = 0x87
#: Two looks of the reloader, on a machine that has other things to do.
RELOADED_SECONDS = 30
UID = "1883"


def let_in(broker: Broker) -> bool:
    try:
        Raw(replace(broker, protocol="5")).end()
    except NotLetIn:
        return False
    return True


@pytest.fixture(scope="module")
def own(playground: Playground, images: Images) -> Iterator[BrokerPod]:
    """A broker whose users may be changed."""
    with BrokerPod(playground, Manifest.read(EXAMPLES / "mosquitto.yaml"), images.of_examples()) as pod:
        yield pod


# -- who is let in


def test_an_outsider_gets_nothing_of_it(broker_pod: BrokerPod) -> None:
    shop = broker_pod.as_user("shop")
    assert let_in(shop)
    nobody = replace(shop, user_file=None, password_file=None)
    for user, password in ((None, None), ("shop", "wrong"), ("nobody", "x")):
        assert not let_in(replace(nobody, user=user, password=password)), user
    with pytest.raises((NotLetIn, AssertionError)):
        Raw(replace(shop, tls=False, protocol="5"))
    for port in (1883, 4222, 8080, 9001):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((broker_pod.ip, port), timeout=5)


def test_the_agents_user_commands_nobody_in_it(broker_pod: BrokerPod) -> None:
    raw = Raw(replace(broker_pod.as_user("shop"), protocol="5"))
    assert raw.publish(Topics().commands("shop", "db-0"), b"forged") == NOT_AUTHORIZED
    raw.end()


def test_it_reads_what_manifests_have_byte_for_byte(broker_pod: BrokerPod) -> None:
    shipped = (PROJECT / "manifests" / "broker" / "mosquitto" / "mosquitto.conf").read_text(encoding="utf-8")
    assert broker_pod.exec("mosquitto", "cat", "/mosquitto/config/mosquitto.conf").stdout == shipped
    (process,) = (each for each in _processes(broker_pod) if "/usr/sbin/mosquitto" in each)
    assert process.endswith("-c /mosquitto/config/mosquitto.conf")


def _processes(pod: Pod) -> list[str]:
    script = "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $each; echo; done"
    return [line.strip() for line in pod.exec("mosquitto", "sh", "-c", script).stdout.splitlines()]


# -- it follows what is mounted


def test_a_new_namespace_gets_in_and_a_removed_one_is_cut_when_the_secret_changes(
    own: BrokerPod, tmp_path: Path
) -> None:
    """Nobody signals: the reloader in its pod does. Fails with `shareProcessNamespace: false`."""
    auth, secrets = tmp_path / "auth", tmp_path / "secrets"
    shutil.copytree(own.files / "auth", auth)
    poll(lambda: told(own) >= 1, "it is told at the start", RELOADED_SECONDS)
    podhook("broker", "user", "billing", "--files", auth, "--secret", secrets / "billing")
    billing = replace(
        own.as_user("shop"), user_file=secrets / "billing" / "user", password_file=secrets / "billing" / "password"
    )
    assert not let_in(billing)
    renew(own, auth)
    poll(lambda: let_in(billing), f"the new user gets in\n{own.logs('reloader')}", RELOADED_SECONDS)
    connected = Raw(replace(billing, protocol="5"))
    podhook("broker", "user", "billing", "--files", auth, "--remove")
    renew(own, auth)
    poll(connected.lost.is_set, f"the removed user is cut\n{own.logs('reloader')}", RELOADED_SECONDS)
    assert not let_in(billing)
    assert let_in(own.as_user("shop"))
    connected.end()


def renew(pod: Pod, auth: Path) -> None:
    pod.renew("auth", {name: (auth / name).read_text() for name in ("acl", "passwords")})


def told(pod: Pod) -> int:
    return pod.logs("reloader").count('"broker.told_to_reload"')


def test_the_reloader_has_the_brokers_user_and_nothing_else(own: BrokerPod) -> None:
    said = status(own, "reloader", own.pid("reloader"))
    assert said["Uid"].split() == [UID] * 4
    assert capabilities(said["CapPrm"]) == capabilities(said["CapBnd"]) == set()
    assert said["NoNewPrivs"] == "1"
    resident = int(said["VmHWM"].split()[0]) / 1024
    print(f"the reloader has {resident:.0f} MB")
    assert own.pid("reloader") != 1


def test_it_is_told_again_when_it_was_killed(own: BrokerPod) -> None:
    poll(lambda: told(own) >= 1, "it is told at the start", RELOADED_SECONDS)
    before = told(own)
    own.restart("reloader")
    poll(lambda: told(own) > before, f"once, for what changed meanwhile\n{own.logs('reloader')}", RELOADED_SECONDS)
    assert own.inspect("mosquitto")["RestartCount"] == 0, "and it ended nobody"


def test_what_is_mounted_is_nobody_elses_to_read(own: BrokerPod) -> None:
    """mosquitto from 2.0.16 on warns of files that everybody may read."""
    listed = own.exec("mosquitto", "ls", "-lL", "/mosquitto/auth", "/mosquitto/tls").stdout
    modes = re.findall(r"^(-\S+)\s+\d+\s+(\S+)\s+(\S+)", listed, re.MULTILINE)
    assert len(modes) == 5
    assert set(modes) == {("-r--r-----", "root", "mosquitto")}


def test_without_a_shared_process_namespace_the_reloader_says_what_to_change(
    playground: Playground, images: Images
) -> None:
    manifest = Manifest.read(EXAMPLES / "mosquitto.yaml")
    manifest.pod["spec"]["shareProcessNamespace"] = False
    with BrokerPod(playground, manifest, images.of_examples()) as pod:
        poll(lambda: "broker.not_told" in pod.logs("reloader"), "it says why", RELOADED_SECONDS)
        assert "only this container's own processes are to be seen" in pod.logs("reloader")
        assert "set shareProcessNamespace: true in its spec" in pod.logs("reloader")
        assert pod.running("reloader")


# -- as the documentation has it


async def test_a_reader_of_the_documentation_runs_a_hook(broker_pod: BrokerPod, mariadb: Pod) -> None:
    """The last of the three blocks of docs/sidecar.md, as it stands but for the port and the one pod that is meant."""
    await heard_of(broker_pod, mariadb)
    block, port = documented.block("use"), broker_pod.url.rpartition(":")[2]
    assert block.count("--expect 1") == 2
    assert block.count("mqtts://localhost:8883") == 1
    block = block.replace("mqtts://localhost:8883", f"mqtts://localhost:{port}")
    block = block.replace("--expect 1", f"--expect 1 -l app=mariadb,pod-uid={mariadb.uid}")
    said = broker_pod.documented.run(block)
    assert said.count("1 succeeded") == 2, said
    assert re.search(rf"{mariadb.pod}\s.*online", said), said


async def test_without_the_key_the_same_reader_gets_nothing_run(
    broker_pod: BrokerPod, mariadb: Pod, tmp_path: Path
) -> None:
    await heard_of(broker_pod, mariadb)
    env = {name: value for name, value in broker_pod.coordinator.items() if name != "PODHOOK_KEY"}
    hook = EXAMPLES.parent / "hooks" / "mariadb-read-only.yaml"
    options = ("-n", "shop", "-l", f"app=mariadb,pod-uid={mariadb.uid}", "-o", "json")
    assert '"unsigned"' in podhook("run", hook, *options, env=env, code=1).stdout
