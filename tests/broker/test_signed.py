"""Keys on the shipped mosquitto, TLS and users and all: signed hooks run, and no flood of what is not stops them.

The floods come from a coordinator's own user, the worst there is: the broker lets everything through, and the agent
alone decides.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.contract.messages import OutcomeMessage
from tests.agents import TRUE, AgentProcess, Sent, code, until
from tests.broker.shipped import Shipped
from tests.broker.stage import stage_on_shipped
from tests.broker.test_flood import MESSAGES, Scene, flood, peak_mb
from tests.broker.test_podhook import as_coordinator, run_hook
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes, pytest.mark.timeout(300)]

#: Of a flood of 10,000, in the log and in the audit each: a few at once, about one a second after that.
LINES = 500
PATIENCE = 100
#: Measured: 8. Refusals that wait to be said are bounded; all of them would be 30.
GROWTH_MB = 20

Make = Callable[[int], bytes]


@contextlib.asynccontextmanager
async def signed_scene(broker: Shipped, home: Path) -> AsyncIterator[tuple[Realm, AgentProcess]]:
    """An agent of namespace shop that obeys `nightly` and signs as `shop`, and a coordinator's user who floods it."""
    async with stage_on_shipped(broker, home) as stage:
        realm = Realm(stage, home)
        realm.trust("nightly", namespaces=["shop"])
        yield realm, await realm.agent()


async def succeeds(realm: Realm, agent: AgentProcess) -> None:
    """A good trigger succeeds in the end. mosquitto drops what does not fit into a full queue: it is sent again."""
    made: list[Sent] = []

    def answers() -> list[OutcomeMessage]:
        return [each for sent in made for each in realm.client.heard(OutcomeMessage, sent.run_id, sent.attempt)]

    for _ in range(PATIENCE):
        made.append(await realm.trigger(agent, TRUE, deadline_in=200))
        with contextlib.suppress(AssertionError):
            await until(answers, "a good trigger is answered", within_seconds=1)
        if answers():
            break
    assert {each.outcome for each in answers()} == {"succeeded"}, f"{answers()}\n{agent.tail()}"


def coordinator(realm: Realm, broker: Shipped, key: str) -> dict[str, str]:
    """What `podhook run` is given: the broker's user, its own key, and the agents' public keys."""
    keys = {"PODHOOK_KEY": str(realm.key_file(key)), "PODHOOK_AGENT_KEYS": str(realm.agent_keys())}
    return {**as_coordinator(broker, "nightly"), **keys}


async def test_a_signed_hook_runs_and_its_outcome_is_vouched_for(shipped_mosquitto: Shipped, tmp_path: Path) -> None:
    async with signed_scene(shipped_mosquitto, tmp_path) as (realm, agent):
        nightly = coordinator(realm, shipped_mosquitto, "nightly")
        (run,) = run_hook(tmp_path, nightly, "-n", "shop", "--expect", "1")
        assert (run["verdict"], run["verified"]) == ("succeeded", True)
        for key in ("stranger", "shop"):
            (refused,) = run_hook(tmp_path, coordinator(realm, shipped_mosquitto, key), "-n", "shop", code=1)
            assert refused["verdict"] == "failed"
            assert "unknown_key" in json.dumps(refused)
        del nightly["PODHOOK_KEY"]
        (unsigned,) = run_hook(tmp_path, nightly, "-n", "shop", code=1)
        assert '"unsigned"' in json.dumps(unsigned)
        assert len(agent.log("attempt.started")) == 1


def garbage(*_: object) -> Make:
    return lambda number: b"\xff%d" % number + b"x" * 1000


def unsigned(realm: Realm, agent: AgentProcess) -> Make:
    made = realm.client.make(agent, TRUE)
    run = made.run_id.encode()
    return lambda number: made.payload.replace(run, run[:-12] + b"%012x" % number)


def of_a_stranger(realm: Realm, agent: AgentProcess) -> Make:
    made = realm.client.make(agent, TRUE).trigger

    def signed(number: int) -> bytes:
        return realm.signed(agent, made.model_copy(update={"run_id": f"{made.run_id[:-12]}{number:012x}"}), "stranger")

    return signed


@pytest.mark.parametrize(("make", "expected"), [(garbage, ""), (unsigned, "unsigned"), (of_a_stranger, "unknown_key")])
async def test_a_flood_of_what_nobody_vouches_for_keeps_no_signed_trigger_away(
    shipped_mosquitto: Shipped, tmp_path: Path, make: Callable[[Realm, AgentProcess], Make], expected: str
) -> None:
    """Fails with a voice.MAX_UNRECORDED of a million, and with floods.LINES_A_MINUTE of 60,000."""
    async with signed_scene(shipped_mosquitto, tmp_path) as (realm, agent):
        await succeeds(realm, agent)
        good = len(realm.client.made)
        before = peak_mb(agent.pid)
        bad = make(realm, agent)
        await flood(Scene(agent, realm.client), bad, 1)
        await succeeds(realm, agent)
        await realm.works(agent)
        grown = peak_mb(agent.pid) - before
        replies = [each for each in realm.client.replies if isinstance(each, OutcomeMessage)]
        refusals = [each for each in replies if each.outcome == "rejected"]
        twice = {run: times for run, times in Counter(each.run_id for each in replies).items() if times > 1}
        print(f"grew by {grown:.1f} MB, {len(refusals)} refusals answered of {MESSAGES}, {good} good before")
        assert grown < GROWTH_MB
        assert twice == {}, "an answer is said once"
        assert len(refusals) <= MESSAGES
        assert {code(each) for each in refusals} == ({expected} if expected else set())
        assert 0 < len(agent.log("command.refused") + agent.log("trigger.refused")) < LINES
        assert 0 < len(agent.audit("decision", decision="refused")) < LINES
        nightly = coordinator(realm, shipped_mosquitto, "nightly")
        (run,) = run_hook(tmp_path, nightly, "-n", "shop", "--expect", "1")
        assert (run["verdict"], run["verified"]) == ("succeeded", True)
