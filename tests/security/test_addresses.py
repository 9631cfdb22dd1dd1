"""HTTP and TCP actions to the metadata address, by every way to write or reach it, with a real agent process.

That no connection went there is seen within the agent: Python's audit events name every connect() of the process.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.contract.messages import Started
from tests.agents import AgentProcess, code
from tests.broker.stage import ShippedStage

pytestmark = [pytest.mark.broker, pytest.mark.processes]

METADATA = "169.254.169.254"
#: What a resolver, the kernel or a gateway takes for it, or for a way to it.
FORMS = (
    METADATA,
    "metadata.test",
    "2852039166",
    "0xa9fea9fe",
    f"::ffff:{METADATA}",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
)

#: The agent as ever, but: a line in a file for each address that a socket is about to be connected to; none but the
#: test's own is connected to in truth, since a guard that fails shall not ask the metadata of the machine that runs the
#: test; and two names that no resolver knows, of which the second leads elsewhere the second time.
WITNESS = f"""
import runpy, socket, sys
seen = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print(repr(args[1]), file=seen, flush=True)
        if args[1][0] != "127.0.0.1":
            raise OSError("kept from connecting by the test")
sys.addaudithook(watch)
lookup, rebound = socket.getaddrinfo, ["127.0.0.1"]
def resolve(host, *args, **more):
    if host == "metadata.test":
        host = "{METADATA}"
    elif host == "rebinding.test":
        host = rebound.pop() if rebound else "{METADATA}"
    return lookup(host, *args, **more)
socket.getaddrinfo = resolve
runpy.run_module("agent", run_name="__main__", alter_sys=True)
"""


@dataclass
class Watched:
    """An agent whose connections are known."""

    stage: ShippedStage
    agent: AgentProcess

    @property
    def connected(self) -> list[tuple[str, int]]:
        """Address and port of every connection so far that is not to the broker."""
        pairs = [ast.literal_eval(line) for line in (self.agent.home / "connected").read_text().splitlines()]
        return [pair[:2] for pair in pairs if pair[1] != self.stage.broker.port]


@pytest.fixture
async def watched(stage: ShippedStage) -> Watched:
    agent = stage.make()
    agent.program = ("-c", WITNESS, str(agent.home / "connected"), "agent")
    await stage.start(agent)
    return Watched(stage, agent)


@dataclass
class Listener:
    """An HTTP server that says the same to everybody, and keeps the first line of what it was asked."""

    answer: bytes
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Listener]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.split(b"\r\n")[0].decode())
                writer.write(self.answer)
                await writer.drain()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self


def redirect(status: str, location: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def get(port: int, path: str) -> dict[str, Any]:
    return {"httpGet": {"host": "127.0.0.1", "port": port, "path": path}}


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect"])
@pytest.mark.parametrize("host", [METADATA, "2852039166", f"[::ffff:{METADATA}]", f"127.0.0.1@{METADATA}"])
async def test_a_redirect_to_the_metadata_address_is_not_followed(watched: Watched, status: str, host: str) -> None:
    async with Listener(redirect(status, f"http://{host}/latest")).serving() as listener:
        outcome = await watched.stage.client.run(watched.agent, get(listener.port, "/begin"))
        assert (outcome.outcome, outcome.http_status) == ("succeeded", int(status[:3])), outcome
        assert any("was not followed" in note for note in outcome.notes), outcome.notes
        assert listener.asked == ["GET /begin HTTP/1.1"]
        assert watched.connected == [("127.0.0.1", listener.port)], "somebody else was connected to"


@pytest.mark.parametrize("path", [f"@{METADATA}/latest", f":80@{METADATA}/latest", f"//{METADATA}/latest"])
async def test_a_path_that_looks_like_a_host_goes_to_the_host_that_was_given(watched: Watched, path: str) -> None:
    async with Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").serving() as listener:
        outcome = await watched.stage.client.run(watched.agent, get(listener.port, path))
        assert (outcome.outcome, outcome.http_status) == ("succeeded", 200), outcome
        asked = path if path.startswith("/") else f"/{path}"
        assert listener.asked == [f"GET {asked} HTTP/1.1"]
        assert watched.connected == [("127.0.0.1", listener.port)], "somebody else was connected to"


async def test_no_form_of_the_metadata_address_is_connected_to(watched: Watched) -> None:
    client, agent = watched.stage.client, watched.agent
    for host in FORMS:
        for action in (
            {"httpGet": {"host": host, "port": 80, "path": "/latest"}},
            {"tcpSocket": {"host": host, "port": 80}},
        ):
            sent = await client.trigger(agent, action)
            outcome = await client.outcome(sent)
            assert (outcome.outcome, code(outcome)) == ("rejected", "address_refused"), (action, outcome)
            assert outcome.error is not None
            assert METADATA in outcome.error.message, "what it was taken for is not said"
            looked_up = host == "metadata.test"
            assert bool(client.heard(Started, sent.run_id)) == looked_up, "an address is judged before anything starts"
    assert watched.connected == []
    outcome = await client.run(agent, {"tcpSocket": {"host": "127.0.0.2", "port": 80}})
    assert watched.connected == [("127.0.0.2", 80)], "the witness is blind"
    assert outcome.error is not None
    assert "kept from connecting by the test" in outcome.error.message


async def test_a_name_that_leads_to_the_metadata_address_the_second_time_is_followed_no_further(
    watched: Watched,
) -> None:
    async with Listener(redirect("302 Found", "/latest")).serving() as listener:
        action = {"httpGet": {"host": "rebinding.test", "port": listener.port, "path": "/begin"}}
        outcome = await watched.stage.client.run(watched.agent, action)
        assert (outcome.outcome, code(outcome)) == ("rejected", "address_refused"), outcome
        assert outcome.http_status == 302
        assert any("had been answered (302)" in note for note in outcome.notes), "a refusal that hides what was sent"
        line = await watched.agent.audited("outcome", run_id=outcome.run_id)
        assert (line["code"], line["rule"]) == ("address_refused", "no policy")
        assert METADATA in line["reason"]
        assert listener.asked == ["GET /begin HTTP/1.1"]
        assert watched.connected == [("127.0.0.1", listener.port)], "somebody else was connected to"
