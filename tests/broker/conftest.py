"""Each shipped broker with each protocol that it speaks, and raw clients that try there what they may not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.raw import Raw
from tests.broker.shipped import Shipped

WAYS = ("mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1")


@pytest.fixture(params=["mosquitto", "nats"])
def shipped(request: pytest.FixtureRequest) -> Shipped:
    """Each shipped broker."""
    broker: Shipped = request.getfixturevalue(f"shipped_{request.param}")
    return broker


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[Shipped, str]:
    """Each shipped broker with each protocol that it speaks."""
    server, _, protocol = request.param.partition("-")
    return request.getfixturevalue(f"shipped_{server}"), protocol


@pytest.fixture
def raw(way: tuple[Shipped, str]) -> Iterator[type[Raw]]:
    """Makes raw clients on the broker of `way`; all are gone at the end."""
    broker, protocol = way
    made: list[Raw] = []

    class Here(Raw):
        def __init__(self, user: str, client_id: str = "", **options: object) -> None:
            super().__init__(broker.as_user(user, protocol), client_id, **options)
            made.append(self)

    yield Here
    for each in made:
        each.end()
