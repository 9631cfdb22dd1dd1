"""`GET /healthz`, for a liveness probe: an answer says that the agent's loop turns, and names what is wrong.

It is always 200: a full disk or an absent broker is not mended by a restart, and a restart of a sidecar can take its
pod out of its Service. What is wrong is told by name only; the sentences are in the log and in presence.

Written here because aiohttp's server costs each pod 9 MB (FACTS: Memory of imports), for one line of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

#: A request that takes longer, or a line that is larger, is nobody's probe; of too many connections the oldest goes.
REQUEST_SECONDS = 5
REQUEST_BYTES = 4096
MAX_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Health:
    """How the agent is: the names of its problems, as presence has them in sentences."""

    agent: str
    version: str
    problems: tuple[str, ...]

    def to_json(self) -> bytes:
        """The body of the answer."""
        status = "degraded" if self.problems else "ok"
        said = {"status": status, "agent": self.agent, "version": self.version, "problems": self.problems}
        return json.dumps(said).encode() + b"\n"


@contextlib.asynccontextmanager
async def serving_health(port: int, health: Callable[[], Health]) -> AsyncIterator[str | None]:
    """Serve while the block runs; port 0 serves nothing. Yields why it cannot, for the agent works without."""
    if not port:
        yield None
        return
    open_ones: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (
            len(open_ones) >= MAX_CONNECTIONS
        ):  # who keeps sockets open must not make a probe fail, and the agent restart
            next(iter(open_ones.values())).transport.abort()
        open_ones[asyncio.current_task()] = writer
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(answer(await _request_line(reader), health()))
                await writer.drain()
        writer.close()
        open_ones.pop(asyncio.current_task(), None)

    try:
        server = await asyncio.start_server(serve, None, port, limit=REQUEST_BYTES)
    except OSError as error:
        why = error.strerror or error
        yield f"the health port {port} cannot be opened: {why}; set PODHOOK_HEALTH_PORT to a free one"
        return
    try:
        yield None
    finally:
        server.close()
        for writer in open_ones.values():
            writer.transport.abort()  # whoever reads from it comes to an end by that
        await asyncio.gather(*(task for task in open_ones if task is not None), return_exceptions=True)


async def _request_line(reader: asyncio.StreamReader) -> bytes:
    """The first line; the headers are read, because a client that still writes would take the answer for a reset."""
    first = await reader.readline()
    seen = len(first)
    while (line := await reader.readline()).strip():
        seen += len(line)
        if seen > REQUEST_BYTES:
            raise ValueError("too large")
    return first


def answer(request_line: bytes, health: Health) -> bytes:
    """The whole HTTP response to a request that began with this line (RFC 9112)."""
    method, path, version = (*request_line.split(), b"", b"", b"")[:3]
    if not version.startswith(b"HTTP/1."):
        status, body = "400 Bad Request", b"not HTTP/1\n"
    elif method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", b"only GET\n"
    elif path.partition(b"?")[0] != b"/healthz":
        status, body = "404 Not Found", b"there is only /healthz\n"
    else:
        status, body = "200 OK", health.to_json()
    kind = "application/json" if status.startswith("200") else "text/plain"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == b"HEAD" else body)
