"""The walk of one trigger: from its publish to its outcome, for one agent and for a hundred at once."""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from agent.bus.embedded import EmbeddedBroker
from agent.contract.messages import OutcomeMessage
from tests.agents import TRUE, AgentProcess, AnyAgent, Client, Json, Sent, light_agents, online
from tests.brokers import Mosquitto, mosquitto_binary

WARM_UP = 20
TRIGGERS = 200
AGENTS = 100
ROUNDS = 5
WITHIN_SECONDS = 60


class TimedClient(Client):
    """Notes when each outcome arrived."""

    def __init__(self, broker_url: str, root: str, agents: list[AgentProcess]) -> None:
        super().__init__(broker_url, root, agents)
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self.replies = _Hearing(self._heard)

    def _heard(self, message: object) -> None:
        if isinstance(message, OutcomeMessage) and message.run_id in self._waiting:
            assert message.outcome == "succeeded", message
            self._waiting.pop(message.run_id).set_result(time.perf_counter())

    async def timed(self, agent: AnyAgent, action: Json = TRUE) -> float:
        """Milliseconds from publish to outcome."""
        sent: Sent = self.make(agent, action)
        arrived = self._waiting[sent.run_id] = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        async with asyncio.timeout(WITHIN_SECONDS):
            await self.again(agent, sent)
            return (await arrived - begun) * 1000


class _Hearing(list[object]):
    """Where replies go: each is heard at once and kept by nobody."""

    def __init__(self, heard: Callable[[object], None]) -> None:
        super().__init__()
        self._heard = heard

    def append(self, message: object) -> None:
        self._heard(message)


async def main() -> None:
    """Print median and 95th percentile on each broker that is here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            embedded = await stack.enter_async_context(EmbeddedBroker())
            await _measure("embedded NATS", embedded.url, Path(directory) / "nats")
        async with _mosquitto(Path(directory)) as url:
            if url:
                await _measure("mosquitto", url, Path(directory) / "mosquitto")


async def _measure(name: str, url: str, directory: Path) -> None:
    agent = AgentProcess(directory / "agent", url, "bench-one", "bench", "db-0")
    async with TimedClient(url, "bench-one", [agent]) as client:
        try:
            agent.start()
            await client.presence(agent, online, "online")
            for _ in range(WARM_UP):
                await client.timed(agent)
            _show(f"{name}: one agent, /bin/true", [await client.timed(agent) for _ in range(TRIGGERS)])
        finally:
            agent.kill()
    async with (
        TimedClient(url, "bench-many", []) as client,
        light_agents(url, "bench-many", directory, AGENTS) as agents,
    ):
        for each in agents:
            await client.presence(each, online, "online")
        rounds = []
        for _ in range(ROUNDS):
            rounds += await asyncio.gather(*(client.timed(each) for each in agents))
        _show(f"{name}: {AGENTS} light agents in this process, all at once, /bin/true", rounds)


def _show(what: str, milliseconds: list[float]) -> None:
    ranks = statistics.quantiles(milliseconds, n=20)
    print(f"{what}: median {statistics.median(milliseconds):.1f} ms, p95 {ranks[18]:.1f} ms, n={len(milliseconds)}")


@asynccontextmanager
async def _mosquitto(directory: Path) -> AsyncIterator[str]:
    try:
        mosquitto_binary()
    except BaseException as error:  # noqa: BLE001 (pytest's skip: it is not installed)
        print(f"mosquitto: not measured: {error}")
        yield ""
        return
    broker = Mosquitto(directory, "set_tcp_nodelay true")
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()


if __name__ == "__main__":
    asyncio.run(main())
