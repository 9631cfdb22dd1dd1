"""A tenant goes for the session of another namespace's agent: without its name he gets nothing, with it no word."""

from __future__ import annotations

import asyncio

import pytest

from agent.contract.messages import Go
from agent.contract.topics import Topics, client_id
from tests.agents import AgentProcess
from tests.broker.raw import Raw
from tests.security.conftest import Realm
from tests.security.test_commands import of, running

pytestmark = [pytest.mark.broker, pytest.mark.processes]

COMMANDS = Topics().commands("shop", "db-0")
THIEF = "billing"


def session_of(agent: AgentProcess) -> str:
    """Its client id, of which the end is in its state and nowhere else."""
    (lock,) = agent.state.glob("*.lock")
    return client_id(agent.namespace, agent.pod, lock.read_text())


async def claims(realm: Realm, name: str) -> Raw:
    """The thief connects by this name, and asks for the agent's commands."""
    broker = realm.stage.broker.as_user(THIEF, "5")
    thief = await asyncio.to_thread(Raw, broker, name, session=True)
    await asyncio.to_thread(thief.subscribe, COMMANDS)
    return thief


async def test_without_the_name_of_its_session_nobody_disturbs_an_agent(realm: Realm) -> None:
    """All that can be read of it: its namespace, its pod, its uid, its coordinator."""
    agent = await realm.agent()
    for guess in ("shop_db-0", "shop_db-0_", f"shop_db-0_{agent.uid}", "shop", "db-0", agent.uid, realm.client.id):
        thief = await claims(realm, guess)
        await realm.works(agent)
        assert thief.messages == []
        await asyncio.to_thread(thief.end)
    assert len(agent.log("broker.connected")) == 1, agent.tail()


async def test_whoever_has_stolen_the_name_hears_nothing_and_the_agent_goes_on(realm: Realm) -> None:
    """He cuts the connection, and SECURITY.md says so: what was begun goes on, and what comes later arrives."""
    agent = await realm.agent()
    begun = await running(realm, agent)
    thief = await claims(realm, session_of(agent))
    await realm.client.again(agent, begun)  # while he has it, or just after
    await realm.stage.until(lambda: len(agent.log("broker.connected")) >= 2, "the agent takes its session back")
    assert agent.log("broker.disconnected"), "he had it"
    await realm.works(agent)
    assert thief.lost.is_set()
    assert thief.messages == []
    await realm.send(agent, Go(**of(begun), start_by=begun.trigger.deadline), "nightly")
    await agent.logged("attempt.started", trigger_id=begun.trigger.trigger_id)
    await asyncio.to_thread(thief.end)
