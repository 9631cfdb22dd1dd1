"""The shipped brokers, one of each in a test process: whoever needs one shares it, and leaves nothing there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.broker.shipped import Shipped, ShippedMosquitto, ShippedNats


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
