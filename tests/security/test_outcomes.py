"""What agents say: a coordinator with their keys believes nobody else, and one without says so of every outcome."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.bus.types import Publication
from agent.contract.events import digest, seal
from agent.contract.messages import OutcomeMessage, Presence
from agent.contract.signing.envelope import Typ, sign, unverified
from agent.contract.signing.peeking import peek
from agent.contract.states import Outcome
from agent.coordinator import Coordinator, HookCall, RunEvent, RunResult, Verdict, load_hooks
from agent.sidecar.app import utc_now
from tests.agents import AgentProcess, online
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def call(command: str, **more: Any) -> HookCall:
    """A hook on every pod of namespace shop."""
    document = {
        "action": {"exec": {"command": ["/bin/sh", "-c", command]}},
        "executor": {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnAll"}},
    }
    [hook] = load_hooks(json.dumps(document).encode(), name="freeze")
    return HookCall(hook, namespaces=frozenset({"shop"}), **more)


def forged(agent: AgentProcess, run_id: str, trigger_hash: str, outcome: Outcome = Outcome.SUCCEEDED) -> bytes:
    """What somebody says who knows everything about an attempt, but has no key."""
    message = OutcomeMessage(
        outcome=outcome,
        exit_code=0,
        run_id=run_id,
        attempt=1,
        trigger_hash=trigger_hash,
        namespace=agent.namespace,
        pod=agent.pod,
        pod_uid=agent.uid,
    )
    return seal(message, source="/agents/shop/db-0", time=utc_now(), event_id=str(uuid.uuid4()))


async def run_and_forge(realm: Realm, agent: AgentProcess, *, forger: str | None, **coordinator: Any) -> RunResult:
    """Run a hook that fails, and say in the agent's name that it succeeded before it has ended."""
    started = asyncio.Event()
    async with realm.coordinator(**coordinator) as one:
        triggers: list[tuple[str, str]] = []
        sealed_by = one._wire.trust.seal

        def spy(said: bytes) -> Any:  # the hash is on the broker for everybody to read
            event = json.loads(said)
            if event["type"].endswith("trigger.v1"):
                triggers.append((event["data"]["run_id"], digest(said)))
            return sealed_by(said)

        one._wire.trust = _Spied(one._wire.trust, spy)  # type: ignore[assignment]

        def heard(event: RunEvent) -> None:
            if event.kind == "started":
                started.set()

        running = asyncio.create_task(one.run(call("sleep 2; exit 1"), on_event=heard))
        async with asyncio.timeout(20):
            await started.wait()
        [(run_id, trigger_hash)] = triggers
        payload = forged(agent, run_id, trigger_hash)
        if forger is not None:
            payload = sign(payload, pair(forger), Typ.OUTCOME)
        topic = realm.client.topics.reply(one.id, run_id, agent.namespace, agent.pod)
        await realm.stage.insider.publish(Publication(topic, payload))
        return await running


class _Spied:
    """The coordinator's trust, with one method watched."""

    def __init__(self, inner: Any, seal: Any) -> None:
        self._inner, self.seal = inner, seal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("forger", [None, "stranger", "nightly", "lab"])
async def test_a_forged_outcome_is_refused_and_told(realm: Realm, forger: str | None) -> None:
    agent = await realm.agent()
    run = await run_and_forge(realm, agent, forger=forger, agent_keys=realm.agent_keys())
    assert (run.verdict, [each.result.outcome for each in run.targets]) == (Verdict.FAILED, [Outcome.FAILED]), run
    assert run.verified
    assert any(note.startswith("not believed: shop/db-0: ") for note in run.notes), run.notes


async def test_without_the_agents_keys_a_forgery_is_believed_and_everything_is_called_unverified(realm: Realm) -> None:
    """SECURITY.md says so: whoever may publish on the run's topic can then say anything."""
    agent = await realm.agent()
    run = await run_and_forge(realm, agent, forger=None)
    assert run.verdict is Verdict.SUCCEEDED, "then SECURITY.md promises too little"
    assert not run.verified
    assert [target["verified"] for target in run.to_json()["targets"]] == [False]


async def test_the_key_of_another_namespace_proves_nothing(realm: Realm) -> None:
    """Agents of lab have a key that the coordinator knows; for shop it counts as little as none."""
    agent = await realm.agent()
    run = await run_and_forge(realm, agent, forger="lab", agent_keys=realm.agent_keys(shop="shop", lab="lab"))
    assert run.verdict is Verdict.FAILED, run


async def test_an_honest_agent_is_verified(realm: Realm) -> None:
    await realm.agent()
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        run = await one.run(call("true"))
    assert (run.verdict, run.verified, run.notes) == (Verdict.SUCCEEDED, True, ())
    assert [target["verified"] for target in run.to_json()["targets"]] == [True]


async def test_an_agent_without_its_key_is_not_there_for_who_verifies(realm: Realm) -> None:
    await realm.agent()
    realm.trust("nightly")
    await realm.agent("db-1", agent_key="")
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        run = await one.run(call("true"))
        assert run.verdict is Verdict.NOT_STARTED
        assert run.error is not None
        assert (run.error.code, "shop/db-1" in run.error.message) == ("missing_agents", True), run.error
        assert [each.pod for each in one.distrusted] == ["db-1"]
        assert "not signed" in one.distrusted[0].why
        without = await one.run(call("true", allow_missing=True))
        assert [(str(each.target), each.result.outcome) for each in without.targets] == [
            ("shop/db-0", Outcome.SUCCEEDED)
        ]


def presence(pod: str, uid: str, **more: Any) -> bytes:
    now = datetime.now(UTC)
    said = Presence(
        namespace="shop", pod=pod, pod_uid=uid, state="online", born_at=now, clock=now, labels={"app": "db"}, **more
    )
    return seal(said, source=f"/agents/shop/{pod}", time=now, event_id=str(uuid.uuid4()))


async def test_a_made_up_agent_can_stop_a_run_but_not_be_counted_in_one(realm: Realm) -> None:
    await realm.agent()
    topic = realm.client.topics.presence("shop", "db-9")
    await realm.stage.insider.publish(Publication(topic, presence("db-9", "uid-9"), retain=True))
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        run = await one.run(call("true"))
        assert (run.verdict, run.error and run.error.code) == (Verdict.NOT_STARTED, "missing_agents")
        assert [each.pod for each in await one.agents()] == ["db-0"]


async def test_a_forged_successor_does_not_send_the_agent_away(realm: Realm) -> None:
    agent = await realm.agent()
    said = len(realm.client.said(agent))
    topic = realm.client.topics.presence("shop", "db-0")
    for payload in (presence("db-0", "zzz"), sign(presence("db-0", "zzz"), pair("stranger"), Typ.OUTCOME)):
        await realm.stage.insider.publish(Publication(topic, payload, retain=True))
    await realm.client.presence(
        agent, lambda p: online(p) and p is not None and p.pod_uid == agent.uid, "says it again", after=said
    )
    await realm.works(agent)
    assert not agent.log("agent.replaced")


async def test_presence_and_will_are_signed(realm: Realm) -> None:
    agent = await realm.agent()
    directory = realm.agent_keys()
    async with realm.coordinator(agent_keys=directory) as one:
        assert [(each.pod, each.state) for each in await one.agents()] == [("db-0", "online")]
        agent.kill()
        async with asyncio.timeout(20):
            while [each.state for each in await one.agents()] != ["offline"]:
                await one.presence_changed()
        assert one.distrusted == []


async def test_an_outcome_of_an_earlier_attempt_answers_no_later_one(realm: Realm) -> None:
    """Signed, of the same pod, and about another run: it binds the run, the attempt, the uid and the trigger."""
    agent = await realm.agent()
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        stored: list[bytes] = []

        def keep(topic: str, payload: bytes) -> bytes:
            if topic.startswith(f"{realm.stage.root}/v1/runs/") and b"outcome" in (peek(payload) or b""):
                stored.append(payload)
            return payload

        hostile = realm.stage.hostile(keep)
        async with (
            hostile.serving(),
            Coordinator(
                realm.stage.as_coordinator_by(hostile),
                key=realm.key_file("nightly"),
                agent_keys=realm.agent_keys(),
            ) as watched,
        ):
            assert (await watched.run(call("true"))).verdict is Verdict.SUCCEEDED
            [old] = stored
            first_runs = [topic for topic, _ in hostile.seen if "/runs/" in topic]
            assert first_runs
            hostile.rewrite = lambda topic, payload: old if "/runs/" in topic else payload
            run = await watched.run(call("exit 1", timeout_seconds=1, start_window_seconds=1))
        assert run.verdict is not Verdict.SUCCEEDED, "an old success was taken for a new one"
        assert agent.alive
        assert one.verifies


@pytest.mark.parametrize("what", ["command", "signature", "audience", "stripped", "swapped header"])
async def test_a_broker_that_rewrites_a_trigger_gets_nothing_run(realm: Realm, what: str) -> None:
    tally = realm.stage.tally()
    other = base64.urlsafe_b64encode(b'{"alg":"none","kid":"","typ":"podhook-command+jws"}').rstrip(b"=")

    def rewrite(topic: str, payload: bytes) -> bytes:
        if not topic.endswith("/commands") or payload.count(b".") != 2:
            return payload
        head, _, signature = payload.split(b".")
        said = unverified(payload, limit_bytes=1 << 20)
        if b"trigger.v1" not in said:
            return payload

        def body(changed: bytes) -> bytes:
            return b".".join([head, base64.urlsafe_b64encode(changed).rstrip(b"="), signature])

        return {
            "command": body(said.replace(b"exit 0", b"exit 1")),
            "signature": payload[:-1] + (b"A" if payload[-1:] != b"A" else b"Q"),
            "audience": body(said.replace(b"shop/db-0", b"shop/db-1")),
            "stripped": said,
            "swapped header": b".".join([other, payload.split(b".")[1], signature]),
        }[what]

    async with realm.stage.hostile(rewrite).serving() as hostile:
        agent = await realm.agent(broker_url=hostile.url)
        async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
            run = await one.run(call(f"echo ran >> {tally.path}; exit 0", timeout_seconds=2, start_window_seconds=2))
        assert tally.runs == 0, agent.tail()
        assert run.verdict is Verdict.FAILED, run
        hostile.rewrite = lambda _, payload: payload
        async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
            assert (await one.run(call("true"))).verdict is Verdict.SUCCEEDED, "the agent did not recover"
