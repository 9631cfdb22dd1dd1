"""The shipped brokers are shared by tests: what one leaves there would be the next one's missing agents."""

from __future__ import annotations

import pytest

from agent.bus.types import Publication
from tests.agents import until
from tests.broker.shipped import Shipped
from tests.broker.stage import stage_on_shipped

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_no_presence_outlives_its_stage(shipped_mosquitto: Shipped, tmp_path) -> None:
    async with stage_on_shipped(shipped_mosquitto, tmp_path / "one") as stage:
        agent = await stage.agent("db-7")
        planted = (await stage.client.presence(agent, bool, "is there")).model_copy(update={"pod": "db-8"})
        topic = stage.client.topics.presence("shop", "db-8")
        await stage.insider.publish(Publication(topic, stage.client.seal(planted), retain=True))
        await until(lambda: stage.client.presences.get("shop/db-8"), "the other is there, too")
    async with stage_on_shipped(shipped_mosquitto, tmp_path / "two") as stage:
        await stage.agent("db-9")  # what is retained came before it
        assert set(stage.client.presences) - {"shop/nobody"} == {"shop/db-9"}
