"""Fixtures for everybody: real brokers, topics of one's own, and skips that can be forbidden."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Generator, Iterator

import pytest

from agent.bus.broker import Broker, parse_broker
from tests.broker.fixtures import shipped_mosquitto, shipped_nats
from tests.brokers import Mosquitto, Nats

__all__ = ["shipped_mosquitto", "shipped_nats"]

#: `all` turns every skip into a failure: where everything should be there, a skipped promise is a broken one.
REQUIRE = os.environ.get("PODHOOK_TEST_REQUIRE", "")

BROKERS = ("mosquitto-5", "mosquitto-3.1.1", "nats")

# Under nohup or a script's `&` these are ignored, every process that a test starts would inherit that, and tests of
# Ctrl-C would wait for ever.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if REQUIRE == "all" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"PODHOOK_TEST_REQUIRE=all forbids skips: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def _mosquitto_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def mosquitto(_mosquitto_process: Mosquitto) -> Mosquitto:
    """A mosquitto with its default limits; one per test process, running again if a test stopped it."""
    _mosquitto_process.start()
    return _mosquitto_process


@pytest.fixture(scope="session")
def _nats_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    broker = Nats(tmp_path_factory.mktemp("nats"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def nats(_nats_process: Nats) -> Nats:
    """The embedded broker's server; one per test process, running again if a test stopped it."""
    _nats_process.start()
    return _nats_process


@pytest.fixture(params=BROKERS)
def real_broker(request: pytest.FixtureRequest) -> Mosquitto | Nats:
    """The process behind `broker_url`, for tests that stop it."""
    return request.getfixturevalue(request.param.split("-")[0])


@pytest.fixture
def broker_url(real_broker: Mosquitto | Nats, request: pytest.FixtureRequest) -> Broker:
    """How to reach each broker that we promise to work with, with its version of MQTT."""
    name = request.node.callspec.params["real_broker"]
    return parse_broker(real_broker.url, protocol="5" if name.endswith("-5") else "3.1.1")


@pytest.fixture
def topics_root() -> str:
    """A topic root that no other test has, so that tests share a broker without meeting."""
    return f"t-{uuid.uuid4().hex[:16]}"
