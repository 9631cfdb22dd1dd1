"""Real servers on loopback for the network actions: well-behaved ones, rude ones, silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from agent.actions.stop import Stop

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Recorded:
    """A server that keeps what it was asked."""

    port: int = 0
    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Recorded]]]:
    """Start an HTTP(S) server with a handler; all are stopped after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            handler: Handler | None = None, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
        ) -> Recorded:
            seen = Recorded()

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                seen.requests.append(request)
                seen.bodies.append(await request.content.read())  # read() stops at 1 MiB
                return await handler(request) if handler else web.Response(text="done")

            runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, host, 0, ssl_context=tls)
            await site.start()
            seen.port = runner.addresses[0][1]
            return seen

        yield start


@dataclass
class Raw:
    """A server that reads a request's head, sends some bytes, and closes (or not)."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    #: How the client's side ended: "end" or "reset".
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@pytest.fixture
async def serve_raw() -> AsyncIterator[Callable[..., Awaitable[Raw]]]:
    """Start a server: `head` is sent once, then `forever` for ever; or it closes, unless `close=False`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            head: bytes = b"", *, forever: bytes = b"", close: bool = True, speaks_first: bool = False
        ) -> Raw:
            seen = Raw()

            async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if not speaks_first:
                    seen.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(head)
                seen.asked.set()
                while forever:
                    writer.write(forever)
                    await writer.drain()
                if not close:
                    await reader.read()
                    seen.ended.set_result("end")

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await talk(reader, writer)
                except (OSError, EOFError):
                    if not seen.ended.done():
                        seen.ended.set_result("reset")
                finally:
                    writer.close()

            server = await asyncio.start_server(handle, "127.0.0.1", 0)
            stack.callback(server.close)
            seen.port = server.sockets[0].getsockname()[1]
            return seen

        yield start


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and nobody can begin to while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that never answers a connection: its queue is full, so the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture
async def stop() -> AsyncIterator[Stop]:
    """A stop that nobody asks for, unless the test does."""
    stop = Stop(timeout_seconds=30)
    yield stop
    stop.close()


@dataclass(frozen=True)
class Certificates:
    """An authority, and a server's certificate by it for `localhost` and 127.0.0.1 only."""

    authority: Path
    server: ssl.SSLContext
    #: The same server, which insists on a client's certificate.
    insisting: ssl.SSLContext


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made by the openssl command: an authority as people make them at home, without a key identifier."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "ca.cnf").write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ca\n[dn]\n[ca]\nbasicConstraints=critical,CA:true\n"
        "[leaf]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config ca.cnf"
    openssl(f"req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=home")
    openssl(f"req {key} -keyout server.key -out server.csr -subj /CN=server")
    signed = "-CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -extfile ca.cnf -extensions leaf"
    openssl(f"x509 -req -in server.csr {signed} -out server.pem")

    def context() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(folder / "server.pem", folder / "server.key")
        return made

    insisting = context()
    insisting.verify_mode = ssl.CERT_REQUIRED
    insisting.load_verify_locations(folder / "ca.pem")
    return Certificates(folder / "ca.pem", context(), insisting)


@pytest.fixture
def insisting_port(certificates: Certificates) -> Iterator[int]:
    """A TLS server that tells clients without a certificate so; asyncio's just closes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def refuse() -> None:
            connection, _ = listening.accept()
            plain = connection.dup()
            with contextlib.suppress(OSError), connection:
                certificates.insisting.wrap_socket(connection, server_side=True)
            with plain:
                while plain.recv(4096):
                    pass

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(timeout=10)
