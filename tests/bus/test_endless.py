"""A broker that announces 200 MB and sends on and on: what agents and coordinators, real processes, need for it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.agents import PROJECT, AgentProcess, until
from tests.brokers import leashed
from tests.bus.hostile import ENDLESS_BYTES, Hostile, announced

pytestmark = [pytest.mark.processes]

CHUNK = bytes(256 * 1024)
#: What was seen is below 1; paho needed 185 (an unfinished PUBLISH of 200 MB, kept as it comes).
GROWTH_MB = 10


def peak_mb(pid: int) -> float:
    """The most memory that a process had resident so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_an_agent_stays_small(tmp_path, v5):
    async with Hostile(v5=v5).serving() as broker:
        agent = AgentProcess(tmp_path, broker.url, "podhook", "shop", "db-0")
        agent.start()
        try:
            await agent.logged("broker.connected")
            before = peak_mb(agent.pid)
            broker.front, broker.chunk = announced(ENDLESS_BYTES, v5=v5), CHUNK
            broker.cut()
            await until(lambda: broker.attacks_ended >= 3, "it was attacked", agents=[agent])
            reasons = [each["reason"] for each in agent.log("broker.disconnected")]
            assert any(f"announced a packet of {ENDLESS_BYTES} bytes" in each for each in reasons), reasons
            assert peak_mb(agent.pid) - before < GROWTH_MB
            assert agent.alive
        finally:
            agent.kill()
            print(agent.tail())


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_a_coordinator_stays_small(v5):
    async def peak(broker: Hostile) -> float:
        command = leashed(sys.executable, "-c", _AGENTS)
        env = {**os.environ, "PODHOOK_BROKER": broker.url, "PYTHONPATH": str(PROJECT)}
        process = await asyncio.create_subprocess_exec(
            *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        found = re.search(rb"peak (\d+)", err)
        assert found is not None, (out, err)
        return int(found[1]) / 1024

    async with Hostile(v5=v5).serving() as broker:
        usual = await peak(broker)
        broker.front, broker.chunk = announced(ENDLESS_BYTES, v5=v5), CHUNK
        attacked = await peak(broker)
        assert broker.attacks_ended > 0
        assert broker.written < 3 * ENDLESS_BYTES
    assert attacked - usual < GROWTH_MB


#: `podhook agents`, and what it needed at most.
_AGENTS = """
import resource, sys
from agent.cli.main import app
try:
    app(["agents"])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
