"""The shipped brokers with two namespaces and their coordinators, and raw clients that try what they may not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.broker.raw import Raw
from tests.broker.shipped import Shipped, ShippedMosquitto, ShippedNats

WAYS = ("mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1")


def issue_users(broker: Shipped) -> None:
    """Two namespaces, a coordinator for each, and one for everybody."""
    broker.issue("shop")
    broker.issue("billing")
    broker.issue("nightly", "--coordinator", "-n", "shop")
    broker.issue("monthly", "--coordinator", "-n", "billing")
    broker.issue("everywhere", "--coordinator", "--all-namespaces", "--prune")


def _running(kind: type[Shipped], factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    broker = kind(factory.mktemp(kind.server))
    issue_users(broker)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def shipped_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    yield from _running(ShippedMosquitto, tmp_path_factory)


@pytest.fixture(scope="session")
def shipped_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    yield from _running(ShippedNats, tmp_path_factory)


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
