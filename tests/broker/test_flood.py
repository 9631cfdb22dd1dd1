"""Ten thousand messages that are none, through the shipped mosquitto: the agent stays small, and then does its work."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.bus.types import Publication
from agent.contract.errors import LinkDown
from agent.contract.messages import OutcomeMessage
from agent.contract.topics import Topics
from tests.agents import TRUE, AgentProcess, Client, code, until
from tests.broker.shipped import Shipped
from tests.broker.stage import stage_on_shipped

pytestmark = [pytest.mark.broker, pytest.mark.processes, pytest.mark.timeout(300)]

MESSAGES = 10_000
#: What an agent may grow by: its queue, the refusals that wait to be said, the tasks that say them.
GROWTH_MB = 40


@dataclass
class Scene:
    agent: AgentProcess
    client: Client


@contextlib.asynccontextmanager
async def scene(broker: Shipped, home: Path, **settings: str) -> AsyncIterator[Scene]:
    async with stage_on_shipped(broker, home, "coordinator_everywhere") as stage:
        yield Scene(await stage.agent(**settings), stage.client)


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def flood(scene: Scene, make: Callable[[int], bytes], qos: int) -> None:
    """Publish all of it, as fast as the broker takes it."""
    topic = Topics().commands("shop", "db-0")

    async def publish(publication: Publication) -> None:
        while True:
            try:
                await scene.client.link.publish(publication)
                return
            except LinkDown:  # QoS 0 has no answer to wait for: the broker reads slower than we write
                if not scene.client.link.up:
                    raise
                await asyncio.sleep(0.01)

    async def some(numbers: range) -> None:
        for number in numbers:
            await publish(Publication(topic, make(number), qos=qos))

    await asyncio.gather(*(some(range(start, MESSAGES, 50)) for start in range(50)))


async def answered(scene: Scene, expected: str) -> None:
    """A trigger is answered in the end. mosquitto drops what does not fit into a full queue: it is sent until then."""
    made = []

    async def one() -> None:
        made.append(await scene.client.trigger(scene.agent, TRUE, deadline_in=200))

    await one()
    for _ in range(180):
        answers = [each for sent in made for each in scene.client.heard(OutcomeMessage, sent.run_id, sent.attempt)]
        if answers:
            assert {each.outcome for each in answers} == {expected}
            return
        await asyncio.sleep(0.5)
        await one()
    raise AssertionError(f"no trigger was answered\n{scene.agent.tail()}")


@pytest.mark.parametrize("qos", [0, 1])
async def test_garbage_does_not_keep_a_good_trigger_away(shipped_mosquitto, tmp_path, qos):
    async with scene(shipped_mosquitto, tmp_path) as here:
        before = peak_mb(here.agent.pid)
        await flood(here, lambda number: b"\xff%d" % number + b"x" * 1000, qos)
        await answered(here, "succeeded")
        grown = peak_mb(here.agent.pid) - before
        print(f"grew by {grown:.1f} MB")
        assert grown < GROWTH_MB
        lines = here.agent.log("command.refused")
        assert 0 < len(lines) < 500, "a flood of log lines"
        await until(lambda: told(here.agent) > 1000, "the rest is counted", agents=[here.agent])


def told(agent: AgentProcess) -> int:
    """How many refusals the log speaks of."""
    lines = [*agent.log("command.refused"), *agent.log("log.suppressed", of="command.refused")]
    return sum(each.get("suppressed", 0) for each in lines)


async def test_triggers_for_others_do_not_keep_a_good_one_away(shipped_mosquitto, tmp_path):
    """Each is answered, or falls out of the queue of refusals: that is the dear kind."""
    async with scene(shipped_mosquitto, tmp_path) as here:
        bad = here.client.make(here.agent, TRUE, pod_uid="another")
        before = peak_mb(here.agent.pid)
        run = bad.run_id.encode()

        def numbered(number: int) -> bytes:
            return bad.payload.replace(run, run[:-12] + b"%012x" % number)

        await flood(here, numbered, 1)
        await answered(here, "succeeded")
        grown = peak_mb(here.agent.pid) - before
        print(f"grew by {grown:.1f} MB")
        assert grown < GROWTH_MB
        assert len(here.agent.log("trigger.refused")) < 500


async def test_an_agent_that_takes_only_signed_triggers_answers_after_a_flood_of_others(shipped_mosquitto, tmp_path):
    async with scene(shipped_mosquitto, tmp_path, ALLOW_UNSIGNED="false") as here:
        unsigned = here.client.make(here.agent, TRUE)
        before = peak_mb(here.agent.pid)
        run = unsigned.run_id.encode()
        await flood(here, lambda number: unsigned.payload.replace(run, run[:-12] + b"%012x" % number), 1)
        await answered(here, "rejected")
        grown = peak_mb(here.agent.pid) - before
        print(f"grew by {grown:.1f} MB")
        assert grown < GROWTH_MB
        assert len(here.agent.log("trigger.refused")) < 500
        last = await here.client.run(here.agent, TRUE)
        assert code(last) == "unsigned"
