"""What one agent costs that has nothing to do: start-up time, memory, CPU."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psutil

from agent.bus.embedded import EmbeddedBroker
from tests.agents import AgentProcess, Client, online

STARTS = 5
IDLE_SECONDS = 10


async def main() -> None:
    """Print start-up time until presence, and memory and CPU of an idle agent."""
    with tempfile.TemporaryDirectory() as directory:
        async with EmbeddedBroker() as broker:
            agent = AgentProcess(Path(directory) / "agent", broker.url, "bench-idle", "bench", "db-0")
            async with Client(broker.url, "bench-idle", [agent]) as client:
                try:
                    await _measure(agent, client)
                finally:
                    agent.kill()


async def _measure(agent: AgentProcess, client: Client) -> None:
    seconds = []
    for at in range(STARTS):
        after, begun = len(client.said(agent)), time.perf_counter()
        agent.start()
        await client.presence(agent, online, "online", after=after)
        seconds.append(time.perf_counter() - begun)
        if at < STARTS - 1:
            await agent.terminate()
    print(f"start until presence, best and worst of {STARTS}: {min(seconds):.2f} s, {max(seconds):.2f} s")
    process = psutil.Process(agent.pid)
    await asyncio.sleep(1)  # what starting still has to do
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(IDLE_SECONDS)
    spent = sum(process.cpu_times()[:2]) - before
    print(f"resident memory after {IDLE_SECONDS} s idle: {process.memory_info().rss / 1e6:.1f} MB")
    print(f"CPU used in {IDLE_SECONDS} s idle: {spent:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
