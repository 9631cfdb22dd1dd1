"""Who writes to an agent's presence: repeats of what was truly signed once, by ourselves or by a predecessor."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.bus.types import Publication
from agent.contract.events import Kinds, open_event, seal
from agent.contract.messages import Presence
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.peeking import peek
from agent.sidecar.app import utc_now
from tests.agents import AgentProcess, online
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]

DAY = timedelta(days=1)


def signed(uid: str, key: str | None = "shop", *, said_at: datetime, born: datetime, **more: Any) -> bytes:
    """A presence as an agent of namespace shop signs it."""
    presence = Presence(
        namespace="shop",
        pod="db-0",
        pod_uid=uid,
        born_at=born,
        clock=said_at,
        **{"state": "online", "labels": {"app": "db"}, **more},
    )
    payload = seal(presence, source="/agents/shop/db-0", time=said_at, event_id=str(uuid.uuid4()))
    return sign(payload, pair(key), Typ.OUTCOME) if key else payload


async def contradicts(realm: Realm, agent: AgentProcess, payload: bytes) -> None:
    """Publish on the agent's topic, and see the agent say again who is there."""
    await realm.works(agent)
    topic = realm.client.topics.presence("shop", "db-0")
    planted = _presence_in(payload)
    await realm.stage.insider.publish(Publication(topic, payload, retain=True))
    await realm.client.presence(agent, lambda p: p == planted, "stands there")
    at = realm.client.said(agent).index(planted)
    await realm.client.presence(agent, lambda p: online(p) and p and p.pod_uid == agent.uid, "says it", after=at + 1)
    await realm.works(agent)
    assert not agent.log("agent.replaced"), agent.tail()


def _presence_in(payload: bytes) -> Presence:
    said: Presence = open_event(peek(payload), Kinds.of(Presence), limit_bytes=1 << 20).data
    return said


@pytest.mark.parametrize(
    ("said_at", "born", "what"),
    [
        (-DAY, timedelta(seconds=40), "a predecessor whose clock was ahead, heard yesterday"),
        (-timedelta(seconds=60), timedelta(seconds=-1), "somebody later, heard a minute ago"),
        (timedelta(seconds=60), timedelta(seconds=60), "somebody whose clock is ahead now"),
    ],
)
async def test_a_successor_that_does_not_speak_now_sends_nobody_away(realm, said_at, born, what):
    agent = await realm.agent()
    now = utc_now()
    await contradicts(realm, agent, signed("another", said_at=now + said_at, born=now + born))


async def test_an_agent_that_shall_have_a_key_and_has_none_is_not_sent_away_by_an_outsider(realm: Realm) -> None:
    agent = await realm.agent(agent_key=realm.directory / "not-there-yet.key")
    now = utc_now()
    await contradicts(realm, agent, signed("evil", None, said_at=now, born=now + timedelta(seconds=5)))


async def test_an_older_presence_of_our_own_does_not_stand(realm: Realm) -> None:
    """Yesterday its labels made it a replica: a run on replicas must not find it."""
    agent = await realm.agent()
    mine = await realm.client.presence(agent, online, "is online")
    assert mine is not None
    old = mine.model_copy(update={"labels": {"app": "db", "role": "replica"}})
    payload = seal(old, source="/agents/shop/db-0", time=mine.clock, event_id=str(uuid.uuid4()))
    await contradicts(realm, agent, sign(payload, pair("shop"), Typ.OUTCOME))


async def test_our_own_earlier_life_does_not_send_us_away(realm: Realm) -> None:
    """It began without a usable state directory, so it was born when it started: after the journal that we have."""
    agent = await realm.agent()
    mine = await realm.client.presence(agent, online, "is online")
    assert mine is not None
    assert mine.started_at is not None
    before = mine.started_at - timedelta(milliseconds=1)
    ill = signed(agent.uid, said_at=utc_now(), born=mine.born_at + timedelta(seconds=1), started_at=before)
    await contradicts(realm, agent, ill)


async def test_a_true_successor_still_takes_the_name(realm: Realm) -> None:
    agent = await realm.agent()
    now = utc_now()
    topic = realm.client.topics.presence("shop", "db-0")
    await realm.stage.insider.publish(Publication(topic, signed("later", said_at=now, born=now)))
    await agent.logged("agent.replaced", by_pod_uid="later")


async def test_a_siblings_presence_on_our_topic_does_not_send_us_away(realm: Realm) -> None:
    """Signed with the key of our namespace, a moment ago, by an agent that was born later: but not of our name."""
    agent, said = await realm.agent("db-0"), len(realm.client.presences.get("shop/db-0", []))
    now = utc_now()
    presence = Presence(namespace="shop", pod="db-1", pod_uid="zzz", state="online", born_at=now, clock=now)
    payload = sign(seal(presence, source="/agents/shop/db-1", time=now, event_id="1"), pair("shop"), Typ.OUTCOME)
    await realm.stage.insider.publish(Publication(realm.client.topics.presence("shop", "db-0"), payload, retain=True))
    await realm.client.presence(
        agent, lambda p: online(p) and p is not None and p.pod_uid == agent.uid, "says its own again", after=said + 1
    )
    await realm.works(agent)
    assert not agent.log("agent.replaced"), agent.tail()
