"""`/healthz`: an answer means that the loop turns; what is wrong is named, and never ends the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from agent.sidecar.health import MAX_CONNECTIONS, REQUEST_BYTES, Health, answer, serving_health
from tests.brokers import free_port

WELL = Health("shop/db-0", "0.1.0", ())
ILL = Health("shop/db-0", "0.1.0", ("journal", "broker"))


@pytest.mark.parametrize("health", [WELL, ILL], ids=["well", "ill"])
def test_an_agent_that_answers_lives_whatever_is_wrong(health):
    head, _, body = answer(b"GET /healthz HTTP/1.1\r\n", health).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    said = json.loads(body)
    assert (said["status"], said["problems"]) == ("degraded" if health is ILL else "ok", list(health.problems))


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /healthz?probe=1 HTTP/1.0\r\n", b"200"),
        (b"HEAD /healthz HTTP/1.1\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n", b"404"),
        (b"POST /healthz HTTP/1.1\r\n", b"405"),
        (b"GET /healthz\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00", b"400"),
        (b"", b"400"),
    ],
)
def test_other_requests_are_told_what_there_is(line, status):
    said = answer(line, WELL)
    assert said.split()[1] == status
    if line.startswith(b"HEAD"):
        assert said.endswith(b"\r\n\r\n"), "a HEAD has no body"


async def asked(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    said = await reader.read()
    writer.close()
    return said


async def test_it_is_served_while_the_agent_lives():
    port = free_port()
    async with serving_health(port, lambda: ILL) as why_not:
        assert why_not is None
        said = await asked(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.31\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200"), said
    with pytest.raises(ConnectionRefusedError):
        await asked(port, b"")


async def test_a_port_that_somebody_has_is_a_problem_and_no_end():
    with socket.create_server(("", 0)) as taken:
        async with serving_health(taken.getsockname()[1], lambda: WELL) as why_not:
            assert why_not is not None
            assert "set PODHOOK_HEALTH_PORT to a free one" in why_not


async def test_without_a_port_nothing_is_served():
    async with serving_health(0, lambda: WELL) as why_not:
        assert why_not is None


async def test_who_sends_too_much_or_nothing_gets_nothing_and_harms_nobody():
    port = free_port()
    async with serving_health(port, lambda: WELL):
        assert await asked(port, b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * REQUEST_BYTES) == b""
        assert await asked(port, b"G" * 4 * REQUEST_BYTES) == b""
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        for _, writer in idle:
            writer.write(b"GET")
            await writer.drain()
        await asyncio.sleep(0.05)  # they have their places
        said = await asked(port, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200"), "who keeps sockets open makes a probe fail"
        for reader, writer in idle:
            writer.close()
            with contextlib.suppress(OSError):
                await reader.read()
        said = await asked(port, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200"), said
