"""Commands run inside the database's own container, started by an agent that has no privilege of its own."""

from __future__ import annotations

import hashlib

import pytest

from agent.contract.states import Outcome
from agent.pod.supervisor import AGENT_UID
from tests.agents import Client
from tests.pods.play import PASSWORD, Pod
from tests.pods.test_launcher import family, status
from tests.pods.test_like_exec import run, sh

pytestmark = pytest.mark.pods


async def test_a_command_is_the_containers_own_user_with_its_files_and_environment(
    client: Client, mariadb: Pod
) -> None:
    script = 'id; cat /etc/hostname; echo; printf "%s" "$MYSQL_ROOT_PASSWORD" | sha256sum'  # not itself: redacted
    outcome = await run(client, mariadb, sh("mariadb", script))
    kubectl_like = mariadb.exec("mariadb", "sh", "-c", "id; cat /etc/hostname; echo")
    assert outcome.outcome is Outcome.SUCCEEDED, outcome
    lines = outcome.stdout.text.splitlines()
    assert lines[:2] == kubectl_like.stdout.splitlines()
    assert lines[2].split()[0] == hashlib.sha256(PASSWORD.encode()).hexdigest()


async def test_the_command_holds_no_capability_and_can_gain_none(client: Client, mariadb: Pod) -> None:
    outcome = await run(client, mariadb, sh("mariadb", "grep -E 'Cap(Inh|Prm|Eff|Amb)|NoNewPrivs' /proc/self/status"))
    said = dict(line.split(":") for line in outcome.stdout.text.replace("\t", "").splitlines())
    assert said == {
        "CapInh": "0" * 16, "CapPrm": "0" * 16, "CapEff": "0" * 16, "CapAmb": "0" * 16, "NoNewPrivs": "1",
    }, outcome  # fmt: skip


async def test_the_network_facing_process_has_no_privilege_at_all(mariadb: Pod) -> None:
    of = await family(mariadb)
    for name, pid in of._asdict().items():
        said = status(pid)
        assert said["NoNewPrivs"] == "1", name
        assert set(said["Uid"].split()) == {str(AGENT_UID) if name == "agent" else "0"}, name
    agent = status(of.agent)
    assert [agent[each] for each in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == ["0" * 16] * 4
    assert agent["Groups"] == ""


@pytest.mark.parametrize("port", ["mysql", 3306])
async def test_a_port_by_its_name_or_number_at_the_pods_own_address(client: Client, mariadb: Pod, port: object) -> None:
    outcome = await run(client, mariadb, {"tcpSocket": {"port": port}, "containerName": "mariadb"})
    assert outcome.outcome is Outcome.SUCCEEDED, outcome
