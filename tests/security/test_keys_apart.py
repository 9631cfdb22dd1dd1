"""Two trusted keys of one namespace: run ids, answers and verdicts of one are nothing to the other."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from agent.contract.messages import Cancel, OutcomeMessage, Query, Report
from agent.contract.signing.envelope import Typ, sign, unverified
from agent.contract.states import Outcome
from agent.coordinator import Verdict
from agent.sidecar.app import utc_now
from tests.agents import TRUE, Sent, code, shell
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm
from tests.security.test_outcomes import call

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def copied(sent: Sent, **changes: Any) -> dict[str, Any]:
    """The fields of somebody's trigger, for another key to send as its own."""
    said = sent.trigger
    return {"run_id": said.run_id, "attempt": said.attempt, "coordinator": said.coordinator, **changes}


@pytest.mark.parametrize("attempt", [1, 1000])
async def test_nobody_burns_a_run_id_of_another_key(realm: Realm, attempt: int) -> None:
    """Seen first, or as a higher attempt: the hook of the key that the id belongs to still runs."""
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    await realm.trigger(agent, TRUE, "weekly", **copied(sent, attempt=attempt))
    await realm.client.again(agent, sent)
    await realm.stage.until(
        lambda: [each for each in realm.client.heard(OutcomeMessage, sent.run_id) if each.exit_code == 0], "outcomes"
    )
    await realm.works(agent)
    outcomes = [(each.attempt, str(each.outcome)) for each in realm.client.heard(OutcomeMessage, sent.run_id)]
    assert sorted(outcomes) == sorted([(1, "succeeded"), (attempt, "succeeded")]), agent.tail()
    assert tally.runs == 1


async def test_what_one_key_made_another_cannot_sign_as_its_own(realm: Realm) -> None:
    """The very same event under another signature would own the attempt: its issuer stands in it."""
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    said = unverified(sent.payload, limit_bytes=1 << 20)
    await realm.client.send_bytes(agent, sign(said, pair("weekly"), Typ.COMMAND))
    refused = await realm.client.outcome(sent)
    assert (refused.outcome, code(refused)) == ("rejected", "bad_signature")
    await realm.client.again(agent, sent)
    assert (await realm.client.outcome(sent, count=2)).outcome == "succeeded"
    assert tally.runs == 1


async def test_an_operators_cancel_also_stops_what_hides_behind_another_keys_attempt(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    await realm.trigger(agent, TRUE, "weekly", **copied(sent))
    await realm.works(agent)
    said = sent.trigger
    cancel = Cancel(run_id=said.run_id, attempt=1, pod_uid=said.pod_uid, deadline=said.deadline)
    await realm.send(agent, cancel, "boss")
    await realm.client.again(agent, sent)
    await realm.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_an_answer_that_binds_another_key_concludes_nothing(realm: Realm) -> None:
    """Another key settles the attempt before its trigger comes, in the coordinator's name; that report is no answer."""
    agent, tally = await realm.agent(), realm.stage.tally()
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        sealed = one._wire.trust.seal
        asked: list[str] = []

        def spy(said: bytes) -> Any:
            event = json.loads(said)
            if event["type"].endswith("trigger.v1"):
                asked.append(event["data"]["run_id"])
            return sealed(said)

        object.__setattr__(one._wire, "trust", _Watched(one._wire.trust, spy))
        running = asyncio.create_task(one.run(call(f"echo ran >> {tally.path}; sleep 3")))
        await realm.stage.until(lambda: asked, "the trigger left")
        for settle in (True, False):
            now = utc_now()
            question = Query(
                query_id=asked[0],  # the coordinator's own topic
                coordinator=one.id,
                run_id=asked[0],
                attempt=1 if not settle else 7,
                settle=settle,
                pod_uid=agent.uid if settle else None,
                issued_at=now if settle else None,
                deadline=now + timedelta(seconds=30) if settle else None,
            )
            await realm.send(agent, question, "weekly")
        run = await running
    assert [each.result.outcome for each in run.targets] == [Outcome.SUCCEEDED], run
    assert tally.runs == 1


class _Watched:
    """The coordinator's trust, with one method watched."""

    def __init__(self, inner: Any, seal: Any) -> None:
        self._inner, self.seal = inner, seal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_report_names_the_question_that_it_answers(realm: Realm) -> None:
    agent = await realm.agent()
    sent = await realm.trigger(agent, TRUE)
    await realm.client.outcome(sent)
    hashes = []
    for key in ("nightly", "weekly"):
        query = Query(query_id=sent.run_id, coordinator=realm.client.id, run_id=sent.run_id)
        payload = realm.signed(agent, query, key)
        await realm.client.send_bytes(agent, payload)
        said = unverified(payload, limit_bytes=1 << 20)
        from agent.contract.events import digest

        hashes.append(digest(said))
    await realm.stage.until(lambda: len(realm.client.heard(Report, sent.run_id)) == 2, "two reports")
    assert sorted(str(each.query_hash) for each in realm.client.heard(Report, sent.run_id)) == sorted(hashes)


async def test_another_keys_run_of_the_same_id_is_not_the_run_that_is_asked_about(realm: Realm) -> None:
    """A run that failed does not become one that succeeded because somebody else used its id elsewhere."""
    first, second = await realm.agent("db-0"), await realm.agent("db-1")
    async with realm.coordinator(agent_keys=realm.agent_keys()) as one:
        failed = await one.run(call("exit 1", selector="app=db", strategy="ExecuteOnOne"))
        assert failed.verdict is Verdict.FAILED
        [known] = (await one.query(failed.run_id)).known
        told = known.attempts[0]
        for agent in (first, second):
            sent = await realm.trigger(
                agent, TRUE, "weekly", run_id=failed.run_id, attempt=2, targets=told.targets, name="freeze"
            )
            await realm.client.outcome(sent)
        assert (await one.query(failed.run_id)).verdict is Verdict.FAILED
        assert (await one.resume(failed.run_id)).verdict is Verdict.FAILED
    async with realm.coordinator("boss", agent_keys=realm.agent_keys()) as other:
        picture = await other.query(failed.run_id)
        assert picture.verdict is Verdict.INCOMPLETE, "which of the two runs is meant cannot be known"
        assert len(picture.keys) == 2


async def test_a_cancel_by_another_key_does_not_promise_what_it_cannot(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    async with realm.coordinator("weekly", agent_keys=realm.agent_keys()) as other:
        cancelled = await other.resume(sent.run_id, cancel=True)
    assert cancelled.verdict is Verdict.INCOMPLETE
    assert cancelled.error is not None
    assert cancelled.error.code == "unconfirmed"
    assert "only an operator's key stops what another key began" in cancelled.error.message
    await realm.client.again(agent, sent)
    assert (await realm.client.outcome(sent)).outcome == "succeeded"
    async with realm.coordinator("boss", agent_keys=realm.agent_keys()) as operator:
        sure = await operator.resume(realm.make(agent, TRUE).run_id, cancel=True)
    assert sure.error is not None
    assert "if it comes, they refuse it" in sure.error.message


async def test_what_was_refused_for_its_key_does_not_run_when_the_key_comes(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = await realm.trigger(agent, tally.action(), "late")
    assert code(await realm.client.outcome(sent)) == "unknown_key"
    realm.trust("late")
    await agent.logged("key.trusted", key_id=pair("late").kid)
    await realm.client.again(agent, sent)
    assert code(await realm.client.outcome(sent, count=2)) == "key_just_trusted"
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "late"))).outcome == "succeeded"
    assert tally.runs == 0


async def test_what_runs_is_not_denied_because_its_key_went(realm: Realm) -> None:
    agent = await realm.agent()
    sent = await realm.trigger(agent, shell("sleep 60"))
    await agent.logged("attempt.started", trigger_id=sent.trigger.trigger_id)
    loaded = len(agent.log("key.trusted"))
    (realm.trusted / "nightly.pub").unlink()
    await realm.stage.until(lambda: len(agent.log("key.trusted")) > loaded, "the keys are read again")
    await realm.client.again(agent, sent)
    await agent.logged("command.refused", code="unknown_key")
    assert code(await realm.client.outcome(await realm.trigger(agent, TRUE, "stranger"))) == "unknown_key"
    assert realm.client.heard(OutcomeMessage, sent.run_id) == [], "refused, and it runs"


async def test_an_agent_whose_clock_is_behind_still_answers_questions(realm: Realm) -> None:
    """Its clock is what they ask for."""
    agent = await realm.agent()
    sent = await realm.trigger(agent, TRUE)
    await realm.client.outcome(sent)
    ahead = utc_now() + timedelta(minutes=5)
    query = Query(query_id=sent.run_id, coordinator=realm.client.id, run_id=sent.run_id)
    await realm.send(agent, query, time=ahead, expires=ahead + timedelta(minutes=10))
    await realm.stage.until(lambda: realm.client.heard(Report, sent.run_id), "the report")
