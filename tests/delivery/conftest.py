"""The stages on which delivery is tested: one broker, each broker, and a proxy that knows MQTT's packets before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.agents import Stage, any_stage, stage, stage_on
from tests.brokers import Mosquitto, Nats, RealBroker
from tests.delivery.packets import PacketProxy

__all__ = ["any_stage", "stage"]


@pytest.fixture
async def any_proxy(any_stage: Stage) -> AsyncIterator[PacketProxy]:
    """A proxy in front of each broker."""
    async with PacketProxy(any_stage.broker.port).serving() as made:
        yield made


@pytest.fixture
async def proxy(stage: Stage) -> AsyncIterator[PacketProxy]:
    """A proxy in front of mosquitto."""
    async with PacketProxy(stage.broker.port).serving() as made:
        yield made


def _alone(broker: RealBroker) -> Iterator[RealBroker]:
    broker.directory.mkdir()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def mosquitto_alone(tmp_path: Path) -> Iterator[RealBroker]:
    """A mosquitto with its default limits that no other test has: a flood shall not burden others."""
    yield from _alone(Mosquitto(tmp_path / "mosquitto"))


@pytest.fixture
def nats_alone(tmp_path: Path) -> Iterator[RealBroker]:
    """A NATS server that no other test has."""
    yield from _alone(Nats(tmp_path / "nats"))


@pytest.fixture(params=["mosquitto", "nats"])
async def any_stage_alone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on each broker, which no other test has."""
    async with stage_on(request.getfixturevalue(f"{request.param}_alone"), tmp_path) as made:
        yield made


@pytest.fixture
async def stage_alone(mosquitto_alone: RealBroker, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on a mosquitto that no other test has."""
    async with stage_on(mosquitto_alone, tmp_path) as made:
        yield made
