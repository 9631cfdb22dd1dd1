"""What the agent does with the rights it was given: four capabilities are enough, with fewer it says what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.contract.errors import ErrorCode
from agent.contract.states import Outcome
from agent.pod.supervisor import COMMAND_UID
from tests.agents import Client, until
from tests.pods.broker import BrokerPod
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
from tests.pods.test_like_exec import command, printed, run, sh, told

pytestmark = pytest.mark.pods

NEEDED = ["SETUID", "SETGID", "KILL", "SYS_CHROOT"]
WHAT_TO_GIVE = "give the agent's container runAsUser: 0 and the capabilities SETUID, SETGID, KILL and SYS_CHROOT"

Play = Callable[[list[str]], Pod]


@pytest.fixture
def play(playground: Playground, images: Images, broker_pod: BrokerPod) -> Play:
    """A pod whose agent has exactly these capabilities, and a root file system that it cannot write."""

    def pod(capabilities: list[str]) -> Pod:
        manifest = beside_agent({"name": "target", "image": images.tools})
        manifest.container("agent")["securityContext"] = {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": capabilities},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        return Pod(playground, manifest, {"agent": images.agent}, hosts=broker_pod.hosts)

    return pod


@pytest.fixture
def least(play: Play) -> Iterator[Pod]:
    with play(NEEDED) as pod:
        yield pod


async def test_four_capabilities_and_nothing_to_write_to_are_enough(least: Pod, client: Client) -> None:
    look = "id -u; pwd; grep CapPrm /proc/self/status"
    assert (await printed(client, least, sh("target", look))).split() == ["999", "/home", "CapPrm:", "0" * 16]
    assert await printed(client, least, sh("agent", "id -u")) == f"{COMMAND_UID}\n"
    outcome = await run(client, least, sh("target", "setsid sleep 3456 & sleep 3456"), timeout_seconds=0.5)
    assert outcome.outcome is Outcome.TIMED_OUT, outcome
    assert outcome.notes == []


async def test_without_chown_the_journal_is_still_nobody_elses_to_read_or_remove(least: Pod, client: Client) -> None:
    await until(lambda: client.presences.get(str(least)), f"{least} is heard of")
    state = least.place.directory / "volumes" / "podhook-state"
    before = {path.relative_to(state) for path in state.rglob("journal*")}
    assert before, "it has a journal"
    script = "rm -rf /var/lib/podhook/*; mv /var/lib/podhook/agent /var/lib/podhook/other; cat /var/lib/podhook/*/*"
    outcome = await run(client, least, sh("agent", script))
    assert (outcome.outcome, outcome.stdout.text) == (Outcome.FAILED, ""), outcome
    assert before <= {path.relative_to(state) for path in state.rglob("journal*")}
    assert oct((state / "agent").stat().st_mode & 0o7777) == "0o700"


@pytest.mark.parametrize("missing", ["SETUID", "SETGID", "KILL"])
async def test_without_one_of_them_the_agent_stays_up_and_names_it(
    broker_pod: BrokerPod, play: Play, missing: str
) -> None:
    lacking = f"the agent's container lacks {missing}; {WHAT_TO_GIVE}"
    async with (
        play([name for name in NEEDED if name != missing]) as pod,
        broker_pod.client() as client,
    ):
        said = await client.presence(pod, lambda said: said is not None and bool(said.problems), "what is missing")
        assert f"commands run in the agent's own container only: {lacking}" in said.problems, said
        assert told(await run(client, pod, command("target", "true"))) == (
            Outcome.REJECTED,
            ErrorCode.CONTAINER_NOT_ENTERABLE,
            (
                f"container 'target' of pod {pod} is not the agent's own ('agent'), and commands cannot run there: "
                f"{lacking}; mend that, or name 'agent' in containerName"
            ),
        )
        assert await printed(client, pod, command("agent", "/bin/echo", "here")) == "here\n"
        assert pod.inspect("agent")["RestartCount"] == 0


async def test_without_sys_chroot_commands_run_in_the_agents_own_container_as_a_third_user(broker_pod, play) -> None:
    async with (
        play([name for name in NEEDED if name != "SYS_CHROOT"]) as pod,
        broker_pod.client() as client,
    ):
        outcome, code, message = told(await run(client, pod, command("target", "true")))
        assert (outcome, code) == (Outcome.REJECTED, ErrorCode.CONTAINER_NOT_ENTERABLE)
        assert f"lacks SYS_CHROOT; {WHAT_TO_GIVE}" in message
        assert await printed(client, pod, sh("agent", "id -u")) == f"{COMMAND_UID}\n"
