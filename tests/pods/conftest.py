"""Pods for everybody: the images, a playground, and a broker in a pod of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.pods import images as recipes
from tests.pods.broker import BrokerPod, NightlyClient
from tests.pods.images import Images
from tests.pods.play import EXAMPLES, PASSWORD, Playground, Pod
from tests.pods.podman import why_not
from tests.pods.stand_ins import Manifest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/pods/" in item.path.as_posix():
            item.add_marker(pytest.mark.pods)
            # Making the images for the first time takes minutes, and is bounded by itself.
            item.add_marker(pytest.mark.timeout(func_only=True))


@pytest.fixture(scope="session")
def images() -> Images:
    """Every image, made if it is not there."""
    if reason := why_not():
        pytest.skip(reason)
    try:
        return recipes.ensure()
    except recipes.NoContainersHere as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def playground(images: Images) -> Iterator[Playground]:
    """This process's own network and names."""
    with Playground() as playground:
        yield playground


@pytest.fixture(scope="session")
def broker_pod(playground: Playground, images: Images) -> Iterator[BrokerPod]:
    """The broker of the examples, with the shipped configuration; one per test process."""
    with BrokerPod(playground, Manifest.read(EXAMPLES / "mosquitto.yaml"), images.of_examples()) as pod:
        yield pod


@pytest.fixture(scope="session")
def mariadb(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The MariaDB example; tests leave nothing in it."""
    with _database("mariadb", {"root-password": PASSWORD}, playground, images, broker_pod) as pod:
        yield pod


@pytest.fixture(scope="session")
def postgresql(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The PostgreSQL example; tests leave nothing in it."""
    with _database("postgresql", {"password": PASSWORD}, playground, images, broker_pod) as pod:
        yield pod


def _database(name: str, secret: dict[str, str], playground: Playground, images: Images, broker_pod: BrokerPod) -> Pod:
    manifest = Manifest.read(EXAMPLES / f"{name}.yaml")
    return Pod(playground, manifest, images.of_examples(), secrets={name: secret}, hosts=broker_pod.hosts)


@pytest.fixture
async def client(broker_pod: BrokerPod) -> AsyncIterator[NightlyClient]:
    """A coordinator on the pods' broker."""
    async with broker_pod.client() as made:
        yield made
