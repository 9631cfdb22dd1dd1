"""Commands: only what a trusted key signed for this very pod, not long ago, and not seen before, does anything."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest

from agent.contract.messages import Cancel, Go, OutcomeMessage, Query, Ready, Report
from agent.contract.signing.envelope import unverified
from agent.sidecar.app import utc_now
from tests.agents import TRUE, AgentProcess, Sent, code, shell
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def refused_with(realm: Realm, sent: Sent) -> str | None:
    outcome = await realm.client.outcome(sent)
    assert outcome.outcome == "rejected", outcome
    return code(outcome)


async def test_what_a_trusted_key_signed_runs(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    for key in ("nightly", "weekly", "boss"):
        outcome = await realm.client.outcome(await realm.trigger(agent, tally.action(), key))
        assert outcome.outcome == "succeeded", f"{outcome}\n{agent.tail()}"
    assert tally.runs == 3


@pytest.mark.parametrize(
    ("key", "expected"), [("stranger", "unknown_key"), ("lab", "key_not_allowed"), ("shop", "unknown_key")]
)
async def test_another_key_moves_nothing(realm: Realm, key: str, expected: str) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    assert await refused_with(realm, await realm.trigger(agent, tally.action(), key)) == expected
    await realm.works(agent)
    assert tally.runs == 0


async def test_an_unsigned_trigger_moves_nothing(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    assert await refused_with(realm, await realm.client.trigger(agent, tally.action())) == "unsigned"
    await realm.works(agent)
    assert tally.runs == 0


async def test_no_unsigned_command_of_another_kind_moves_anything(realm: Realm) -> None:
    agent = await realm.agent()
    sent = await realm.trigger(agent, TRUE, wait_for_go=True)
    await realm.client.reply(Ready, sent)
    await realm.client.go(agent, sent)
    await realm.client.cancel(agent, sent)
    await realm.client.send(agent, Query(query_id=sent.run_id, coordinator=realm.client.id, run_id=sent.run_id))
    await realm.works(agent)
    assert realm.client.heard(OutcomeMessage, sent.run_id) == [], "something was obeyed"
    assert realm.client.heard(Report, sent.run_id) == [], "a stranger was told what runs here"


async def test_an_expired_trigger_moves_nothing(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    assert (
        await refused_with(realm, await realm.trigger(agent, tally.action(), deadline_in=-1, issued_in=-5)) == "expired"
    )
    later = {"expires": utc_now() - timedelta(seconds=1)}
    assert await refused_with(realm, await realm.trigger(agent, tally.action(), of=later)) == "expired"
    for_ever = {"expires": utc_now() + timedelta(days=365)}
    assert await refused_with(realm, await realm.trigger(agent, tally.action(), of=for_ever)) == "deadline_too_far"
    assert tally.runs == 0


async def test_a_trigger_without_end_or_audience_moves_nothing(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    assert await refused_with(realm, await realm.trigger(agent, tally.action(), of={"expires": None})) == "expired"
    assert (
        await refused_with(realm, await realm.trigger(agent, tally.action(), of={"audience": None})) == "wrong_audience"
    )
    assert tally.runs == 0


async def test_a_replay_after_a_restart_is_answered_and_not_run(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = await realm.trigger(agent, tally.action())
    await realm.client.outcome(sent)
    agent.kill()
    await realm.stage.start(agent)
    await realm.client.again(agent, sent)
    again = await realm.client.outcome(sent, count=2)
    assert (again.outcome, tally.runs) == ("succeeded", 1), agent.tail()


async def test_a_replay_to_another_agent_moves_nothing(realm: Realm) -> None:
    first, second, tally = await realm.agent("db-0"), await realm.agent("db-1"), realm.stage.tally()
    sent = await realm.trigger(first, tally.action())
    await realm.client.outcome(sent)
    await realm.client.again(second, sent)
    await second.logged("command.refused", code="wrong_audience")
    await realm.works(second)
    assert tally.runs == 1


async def test_a_replay_to_a_pod_of_the_same_name_with_another_uid_moves_nothing(realm: Realm) -> None:
    first, tally = await realm.agent(), realm.stage.tally()
    sent = await realm.trigger(first, tally.action())
    await realm.client.outcome(sent)
    await first.terminate()
    second = await realm.agent()
    await realm.client.again(second, sent)
    assert code(await realm.client.outcome(sent, count=2)) == "wrong_pod_uid"
    assert tally.runs == 1


async def test_the_pod_uid_within_is_the_one_it_was_signed_for(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    other = {"audience": f"shop/db-0/{realm.stage.make('x').uid}"}
    assert await refused_with(realm, await realm.trigger(agent, tally.action(), of=other)) == "wrong_audience"
    assert tally.runs == 0


async def test_a_changed_trigger_moves_nothing(realm: Realm) -> None:
    """Another command within the same signature."""
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, TRUE)
    head, _, signature = sent.payload.split(b".")
    said = unverified(sent.payload, limit_bytes=1 << 20)
    evil = said.replace(b"/bin/true", b"/bin/date")
    changed = b".".join([head, base64.urlsafe_b64encode(evil).rstrip(b"="), signature])
    await realm.client.send_bytes(agent, changed)
    assert await refused_with(realm, sent) == "bad_signature"
    await realm.works(agent)
    assert not agent.log("attempt.started", program="/bin/date")
    assert tally.runs == 0


async def test_stripping_a_signature_does_not_make_the_agent_deny_what_it_runs(realm: Realm) -> None:
    """The refusal of the stripped copy must not read as an answer to the signed one."""
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action("sleep 1"))
    said = unverified(sent.payload, limit_bytes=1 << 20)
    await realm.client.send_bytes(agent, said)
    await realm.client.send_bytes(agent, sent.payload)
    first = await realm.client.outcome(sent)
    assert code(first) == "unsigned"
    second = await realm.client.outcome(sent, count=2)
    assert (second.outcome, tally.runs) == ("succeeded", 1), agent.tail()
    assert first.trigger_hash != second.trigger_hash, "the stripped copy's refusal names the signed trigger"


# --- whose attempt it is


def of(sent: Sent) -> dict[str, object]:
    said = sent.trigger
    return {"run_id": said.run_id, "attempt": said.attempt, "pod_uid": said.pod_uid}


def cancel(sent: Sent) -> Cancel:
    return Cancel(**of(sent), deadline=sent.trigger.deadline)


async def running(realm: Realm, agent: AgentProcess, **changes: object) -> Sent:
    """A trigger of key nightly that waits for its go."""
    sent = await realm.trigger(agent, shell("sleep 60"), wait_for_go=True, **changes)
    await realm.client.reply(Ready, sent)
    return sent


async def test_only_the_key_that_began_it_or_an_operators_may_say_go(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = await realm.trigger(agent, tally.action(), wait_for_go=True)
    await realm.client.reply(Ready, sent)
    go = Go(**of(sent), start_by=sent.trigger.deadline)
    await realm.send(agent, go, "weekly")
    await agent.logged("command.refused", code="key_not_allowed", type=Go.TYPE)
    assert tally.runs == 0
    await realm.send(agent, go, "nightly")
    assert (await realm.client.outcome(sent)).outcome == "succeeded"


@pytest.mark.parametrize("key", ["nightly", "boss"])
async def test_the_key_that_began_it_and_an_operators_may_cancel_it(realm: Realm, key: str) -> None:
    agent = await realm.agent()
    sent = await running(realm, agent)
    await realm.send(agent, cancel(sent), key)
    assert (await realm.client.outcome(sent)).outcome == "cancelled"


async def test_another_trusted_key_cannot_cancel_it(realm: Realm) -> None:
    agent = await realm.agent()
    sent = await running(realm, agent)
    await realm.send(agent, cancel(sent), "weekly")
    await realm.send(agent, cancel(sent).model_copy(update={"attempt": 1000}), "weekly")
    await agent.logged("command.refused", code="key_not_allowed", type=Cancel.TYPE)
    await realm.works(agent)
    assert realm.client.heard(OutcomeMessage, sent.run_id) == []


async def test_another_trusted_key_cannot_bury_what_has_not_come_yet(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    said = sent.trigger
    await realm.send(agent, cancel(sent), "weekly")
    settle = Query(
        query_id=said.run_id,
        coordinator=realm.client.id,
        **of(sent),
        settle=True,
        issued_at=said.issued_at,
        deadline=said.deadline,
    )
    await realm.send(agent, settle, "weekly")
    await realm.stage.until(lambda: realm.client.heard(Report, said.run_id), "the report")
    report = realm.client.heard(Report, said.run_id)[0]
    assert (report.tombstoned, report.tombstoned_for) == (True, pair("weekly").kid)
    await realm.client.again(agent, sent)
    assert (await realm.client.outcome(sent)).outcome == "succeeded"
    assert tally.runs == 1


@pytest.mark.parametrize("key", ["nightly", "boss"])
async def test_the_same_key_and_an_operators_bury_it(realm: Realm, key: str) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = realm.make(agent, tally.action())
    await realm.send(agent, cancel(sent), key)
    await realm.client.again(agent, sent)
    outcome = await realm.client.outcome(sent)
    assert (outcome.outcome, code(outcome), tally.runs) == ("cancelled", "tombstoned", 0)


async def test_a_copy_of_a_signed_command_does_not_act_again(realm: Realm) -> None:
    agent = await realm.agent()
    sent = realm.make(agent, TRUE)
    copy = realm.signed(agent, cancel(sent))
    await realm.client.send_bytes(agent, copy)
    await agent.logged("attempt.tombstoned")
    agent.kill()
    await realm.stage.start(agent)
    await realm.client.send_bytes(agent, copy)
    await agent.logged("command.refused", code="replayed", type=Cancel.TYPE)


async def test_a_stale_command_is_refused(realm: Realm) -> None:
    agent = await realm.agent()
    sent = await running(realm, agent)
    before = utc_now() - timedelta(minutes=10)
    await realm.send(agent, cancel(sent), time=before, expires=before + timedelta(minutes=5))
    await agent.logged("command.refused", code="expired")
    await realm.send(
        agent, cancel(sent), time=utc_now() + timedelta(minutes=5), expires=utc_now() + timedelta(minutes=9)
    )
    await agent.logged("command.refused", code="clock_skew")
    assert realm.client.heard(OutcomeMessage, sent.run_id) == []


# --- keys come and go


async def test_keys_are_rotated_without_a_restart(realm: Realm) -> None:
    agent = await realm.agent()
    await realm.works(agent)
    realm.trust("next")
    await agent.logged("key.trusted", key_id=pair("next").kid)
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "next"))).outcome == "succeeded"
    (realm.trusted / "nightly.pub").unlink()
    loaded = len(agent.log("key.trusted"))
    await realm.stage.until(lambda: len(agent.log("key.trusted")) > loaded, "the keys are read again")
    assert await refused_with(realm, await realm.trigger(agent, TRUE, "nightly")) == "unknown_key"
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "next"))).outcome == "succeeded"


async def test_a_broken_key_file_is_reported_and_the_others_still_count(realm: Realm) -> None:
    agent = await realm.agent()
    (realm.trusted / "weekly.pub").write_text("{")
    said = await realm.client.presence(
        agent, lambda p: p and any("weekly.pub" in each for each in p.problems), "problem"
    )
    assert said is not None
    await realm.works(agent)
    assert await refused_with(realm, await realm.trigger(agent, TRUE, "weekly")) == "unknown_key"


async def test_without_a_key_the_agent_stays_up_refuses_everything_and_says_what_to_do(realm: Realm) -> None:
    realm.trusted.mkdir()
    agent, tally = await realm.agent(), realm.stage.tally()
    assert await refused_with(realm, await realm.trigger(agent, tally.action())) == "unsigned"
    assert await refused_with(realm, await realm.client.trigger(agent, tally.action())) == "unsigned"
    presence = realm.client.said(agent)[-1]
    assert presence is not None
    assert any("no trusted key in" in each and "podhook keygen" in each for each in presence.problems), (
        presence.problems
    )
    realm.trust("nightly")
    await agent.logged("key.trusted", key_id=pair("nightly").kid)
    await realm.works(agent)
    assert tally.runs == 0


async def test_a_private_key_among_the_trusted_ones_is_not_trusted_but_reported(realm: Realm) -> None:
    agent = await realm.agent()
    (realm.trusted / "oops.jwk").write_text(realm.key_file("oops").read_text())
    await realm.client.presence(
        agent, lambda p: p and any("oops.jwk is a private key" in each for each in p.problems), "the problem"
    )
    assert await refused_with(realm, await realm.trigger(agent, TRUE, "oops")) == "unknown_key"


async def test_where_unsigned_commands_are_obeyed_signed_ones_are_too(realm: Realm) -> None:
    """So that coordinators can begin to sign before the agents have their keys."""
    agent = await realm.stage.agent()
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "stranger"))).outcome == "succeeded"


async def test_what_is_signed_may_be_large(realm: Realm) -> None:
    agent = await realm.agent()
    text = "x" * 60_000
    outcome = await realm.client.outcome(await realm.trigger(agent, shell(f": {text}; printf %060000d 1")))
    assert outcome.outcome == "succeeded"
    assert outcome.stdout.total_bytes == 60_000
