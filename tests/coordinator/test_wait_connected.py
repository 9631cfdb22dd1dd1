"""How long a broker that is away, or refuses us, is waited for before a thaw."""

from __future__ import annotations

import pytest

from agent.contract.errors import BrokerRefused, LinkDown
from agent.coordinator import Coordinator


class Link:
    """One whose broker answers as it is told to; the last answer stays."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def wait_up(self, within_seconds: float) -> None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer


def waiting(monkeypatch, *answers: Exception | None) -> tuple[Coordinator, Link]:
    monkeypatch.setattr("agent.coordinator.client._REFUSED_PAUSE_SECONDS", 0.001)
    coordinator, link = Coordinator("mqtt://broker.invalid"), Link(*answers)
    coordinator._link = link
    return coordinator, link


async def test_a_broker_that_does_not_know_its_users_yet_is_asked_again(monkeypatch):
    coordinator, link = waiting(monkeypatch, BrokerRefused("Not authorized"), BrokerRefused("Not authorized"), None)
    await coordinator.wait_connected(60)
    assert link.asked == 3


async def test_one_that_refuses_to_the_end_is_the_error(monkeypatch):
    coordinator, _ = waiting(monkeypatch, BrokerRefused("Not authorized"))
    with pytest.raises(BrokerRefused, match="Not authorized"):
        await coordinator.wait_connected(0.01)


async def test_one_that_is_away_is_waited_for_once(monkeypatch):
    coordinator, link = waiting(monkeypatch, LinkDown("away"))
    with pytest.raises(LinkDown):
        await coordinator.wait_connected(60)
    assert link.asked == 1
