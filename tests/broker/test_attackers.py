"""The attackers of SECURITY.md who hold a broker user, on the mosquitto that is shipped, against real agents.

The worst case each time: the attacker publishes as a coordinator's own user, or as the agents' own, so that the
broker lets everything through that it lets anybody through; what is left is what the keys are worth.
"""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest

from agent.contract.events import digest
from agent.contract.messages import Cancel, OutcomeMessage, Trigger
from agent.contract.signing.envelope import Typ, sign, unverified
from agent.contract.signing.peeking import peek
from agent.contract.states import Outcome
from agent.contract.topics import Topics
from agent.coordinator import Coordinator, RunEvent, RunResult, Verdict
from agent.sidecar.app import utc_now
from tests.agents import AgentProcess, Sent, Tally, code
from tests.broker.raw import Raw
from tests.broker.shipped import Shipped
from tests.broker.test_signed import signed_scene
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm
from tests.security.test_commands import cancel, refused_with, running
from tests.security.test_outcomes import call, forged

pytestmark = [pytest.mark.broker, pytest.mark.processes, pytest.mark.timeout(120)]

NOT_AUTHORIZED = 0x87  # MQTT 5, section 3.4.2.1
LIMIT_BYTES = 1 << 20


# -- triggers, by whoever may publish commands


async def late(realm: Realm, agent: AgentProcess, tally: Tally) -> None:
    """Kept back until it had expired, by what the trigger or by what its envelope says."""
    for sent in (
        realm.make(agent, tally.action(), deadline_in=-1, issued_in=-5),
        realm.make(agent, tally.action(), of={"expires": utc_now() - timedelta(seconds=1)}),
    ):
        await realm.client.again(agent, sent)
        assert await refused_with(realm, sent) == "expired"


async def stripped(realm: Realm, agent: AgentProcess, tally: Tally) -> None:
    """What was signed, without its signature."""
    sent = realm.make(agent, tally.action())
    await realm.client.send_bytes(agent, unverified(sent.payload, limit_bytes=LIMIT_BYTES))
    assert await refused_with(realm, sent) == "unsigned"


async def cancelled_by_another(realm: Realm, agent: AgentProcess) -> None:
    """A key that may trigger here, but did not begin this."""
    sent = await running(realm, agent)
    await realm.send(agent, cancel(sent), "weekly")
    await agent.logged("command.refused", code="key_not_allowed", type=Cancel.TYPE)
    await realm.works(agent)
    assert realm.client.heard(OutcomeMessage, sent.run_id) == [], agent.tail()
    await realm.send(agent, cancel(sent), "nightly")
    assert (await realm.client.outcome(sent)).outcome == "cancelled", "who began it may"


async def replayed_after_a_crash(realm: Realm, agent: AgentProcess, sent: Sent) -> None:
    """The agent that ran it says so again; it does not run it again."""
    agent.kill()
    await realm.stage.start(agent)
    await realm.client.again(agent, sent)
    answer = await realm.client.outcome(sent, count=2)
    assert answer.outcome == "succeeded", agent.tail()


async def refusal_by(realm: Realm, agent: AgentProcess, sent: Sent) -> str | None:
    """Why this very agent rejected it."""

    def said() -> list[OutcomeMessage]:
        return [each for each in realm.client.heard(OutcomeMessage, sent.run_id) if each.pod_uid == agent.uid]

    await realm.stage.until(said, f"{agent} refuses")
    assert [each.outcome for each in said()] == ["rejected"], agent.tail()
    return code(said()[0])


async def test_whoever_may_publish_commands_but_has_no_key_of_the_run_gets_nothing_run(
    shipped_mosquitto: Shipped, tmp_path: Path
) -> None:
    async with signed_scene(shipped_mosquitto, tmp_path) as (realm, agent):
        realm.trust("weekly", namespaces=["shop"])
        await agent.logged("key.trusted", key_id=pair("weekly").kid)
        tally = realm.stage.tally()
        await late(realm, agent, tally)
        await stripped(realm, agent, tally)
        await cancelled_by_another(realm, agent)
        assert tally.runs == 0

        sent = await realm.trigger(agent, tally.action(), deadline_in=200)
        assert (await realm.client.outcome(sent)).outcome == "succeeded", agent.tail()
        await replayed_after_a_crash(realm, agent, sent)
        await realm.works(agent)
        assert tally.runs == 1, "a replay was run"

        other = await realm.agent("db-1")
        await realm.client.again(other, sent)
        assert await refusal_by(realm, other, sent) == "wrong_audience"
        await realm.works(other)
        assert tally.runs == 1, "another agent ran it"

        await agent.terminate()
        namesake = await realm.agent("db-0")
        assert namesake.uid != agent.uid
        await realm.client.again(namesake, sent)
        assert await refusal_by(realm, namesake, sent) == "wrong_pod_uid"
        await realm.works(namesake)
        assert tally.runs == 1, "a pod of the same name ran it"


# -- outcomes


async def wait_for_trigger(realm: Realm, spy: Raw) -> bytes:
    """The trigger's event, as somebody hears it who may read the namespace's commands."""

    def heard() -> list[bytes]:
        said = [peek(body) or b"" for _, body, _ in spy.messages]
        return [each for each in said if Trigger.TYPE.encode() in each]

    await realm.stage.until(heard, "the trigger is heard")
    return heard()[-1]


async def test_an_outcome_is_forged_by_everybody_who_has_a_user_and_the_true_one_stands(
    shipped_mosquitto: Shipped, tmp_path: Path
) -> None:
    """Users of other namespaces and of coordinators are stopped by the broker, the agents' own user by the key."""
    may_not = ("billing", "coordinator_nightly", "coordinator_everywhere")
    raws = {user: Raw(shipped_mosquitto.as_user(user, "5")) for user in (*may_not, "shop")}
    try:
        async with signed_scene(shipped_mosquitto, tmp_path) as (realm, agent):
            raws["shop"].subscribe(Topics().commands("shop", "db-0"))
            go_on = tmp_path / "go-on"
            started = asyncio.Event()

            def note(event: RunEvent) -> None:
                if event.kind == "started":
                    started.set()

            broker = shipped_mosquitto.as_user("coordinator_nightly")
            async with Coordinator(broker, key=realm.key_file("nightly"), agent_keys=realm.agent_keys()) as one:
                hook = call(f"while [ ! -e '{go_on}' ]; do sleep 0.05; done; exit 1")
                run = asyncio.create_task(one.run(hook, on_event=note))
                async with asyncio.timeout(20):
                    await started.wait()
                trigger = await wait_for_trigger(realm, raws["shop"])
                run_id = str(json.loads(trigger)["data"]["run_id"])
                said = forged(agent, run_id, digest(trigger))
                topic = Topics().reply(one.id, run_id, "shop", "db-0")
                forgeries = [said, *(sign(said, pair(key), Typ.OUTCOME) for key in ("stranger", "nightly"))]
                for forgery in forgeries:
                    for user in may_not:
                        assert await asyncio.to_thread(raws[user].publish, topic, forgery) == NOT_AUTHORIZED, user
                    assert await asyncio.to_thread(raws["shop"].publish, topic, forgery) < 0x80
                go_on.touch()
                result: RunResult = await run
            assert [each.result.outcome for each in result.targets] == [Outcome.FAILED], result
            assert (result.verdict, result.verified) == (Verdict.FAILED, True), result
            assert any(each.startswith("not believed: shop/db-0: ") for each in result.notes), result.notes
            await realm.stage.until(lambda: "failed" in outcomes(realm, run_id), "the true outcome")
            assert outcomes(realm, run_id).count("succeeded") == len(forgeries), "the broker let another's through"
    finally:
        for each in raws.values():
            each.end()


def outcomes(realm: Realm, run_id: str) -> list[str]:
    """Of all outcomes that came through the broker for a run, what they say."""
    return [each.outcome for each in realm.client.heard(OutcomeMessage, run_id)]


# -- a broker that rewrites


@pytest.mark.parametrize("what", ["command", "signature", "stripped"])
async def test_a_broker_that_rewrites_a_trigger_over_tls_gets_nothing_run(
    shipped_mosquitto: Shipped, tmp_path: Path, what: str
) -> None:
    """It has a certificate that the agent trusts, as a compromised broker has."""

    def rewrite(topic: str, payload: bytes) -> bytes:
        if not topic.endswith("/commands") or payload.count(b".") != 2:
            return payload
        head, _, signature = payload.split(b".")
        said = unverified(payload, limit_bytes=LIMIT_BYTES)
        evil = base64.urlsafe_b64encode(said.replace(b"echo ran", b"echo bad")).rstrip(b"=")
        flipped = payload[:-1] + (b"A" if payload[-1:] != b"A" else b"Q")
        return {"command": b".".join([head, evil, signature]), "signature": flipped, "stripped": said}[what]

    async with (
        signed_scene(shipped_mosquitto, tmp_path) as (realm, _),
        realm.stage.hostile(rewrite).serving() as hostile,
    ):
        assert hostile.url.startswith("mqtts://")
        tally = realm.stage.tally()
        agent = await realm.agent("db-1", broker_url=hostile.url)
        sent = await realm.trigger(agent, tally.action())
        assert await refused_with(realm, sent) == ("unsigned" if what == "stripped" else "bad_signature")
        assert tally.words == [], agent.tail()
        assert agent.log("attempt.started") == []
        assert [topic for topic, _ in hostile.seen if topic.endswith("/shop/db-1/commands")], "it is not in between"
        hostile.rewrite = lambda _, payload: payload
        await realm.client.again(agent, sent)
        assert (await realm.client.outcome(sent, count=2)).outcome == "succeeded", agent.tail()
        assert tally.words == ["ran"]
