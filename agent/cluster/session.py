"""Questions over one login: bytes out, bytes back with a bound, and a sentence for every way not to get an answer.

Addresses, TLS, credentials and proxies are the vendor's; the objects it would make of an answer are not wanted
(1,000 pods would take ten times the time and memory), so answers are taken as they arrive.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent import __version__
from agent.cluster.login import Login
from agent.cluster.vendor import Vendor
from agent.cluster.words import Words, excerpt, public
from agent.contract.errors import ClusterUnavailable

JSON = "application/json"
Query = Sequence[tuple[str, str]]


class Hopeless(ClusterUnavailable):
    """Nobody was reached, and another try a moment later would not be different: the wrong certificate, no TLS."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said: HTTP's status, its Retry-After, and the body, of which `whole` says if all of it."""

    status: int
    retry_after: str
    body: bytes
    whole: bool


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, session: Session, response: Any, silence_seconds: float) -> None:
        self._session = session
        self._response = response
        self._silence_seconds = silence_seconds
        self.status: int = response.status
        self.retry_after: str = response.headers.get("Retry-After", "")

    async def read(self) -> bytes:
        """The next piece of the body, of any size; nothing at its end.

        Raises:
            ClusterUnavailable: the connection broke, or nothing came for too long.
        """
        try:
            piece: bytes = await self._response.content.readany()
        except Exception as error:
            raise self._session.why(error, self._silence_seconds) from error
        return piece

    async def answer(self, limit_bytes: int) -> Answer:
        """The body as a whole, or its first `limit_bytes` or a little more."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > limit_bytes:
                break
        return Answer(self.status, self.retry_after, bytes(body), whole=len(body) <= limit_bytes)

    async def lines(self, limit_bytes: int) -> AsyncGenerator[bytes]:
        """The body line by line; what stands after the last line break was cut off and is left out.

        Raises:
            ClusterUnavailable: a line is longer than `limit_bytes`.
        """
        kept = bytearray()
        while piece := await self.read():
            *whole, rest = piece.split(b"\n")
            for part in whole:
                line = bytes(kept) + part
                kept.clear()
                if line:
                    yield line
            kept += rest
            if len(kept) > limit_bytes:
                raise ClusterUnavailable(
                    f"{self._session.server} sends a line of more than {limit_bytes} bytes, and no object has so many; "
                    "check that it is the API server"
                )


class Session:
    """One login's connections to the API server. Close it."""

    def __init__(self, vendor: Vendor, login: Login, words: Words) -> None:
        """Raises ClusterUnavailable where what the login names (an authority, a certificate) cannot be used."""
        self.login = login
        self._words = words
        self._users = 0
        self._retired = False
        try:
            self._api = vendor.client.ApiClient(login.configuration)
        except Exception as error:  # ssl's and the system's
            raise self.why(error, 0) from error
        self._api.user_agent = f"podhook/{__version__}"

    @property
    def server(self) -> str:
        """How sentences name the API server."""
        return self.login.server

    async def close(self) -> None:
        """Close every connection, whoever uses one."""
        await self._api.close()

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Session]:
        """Keep it open until the block ends, also when it is retired meanwhile."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.close()

    async def retire(self) -> None:
        """Close it as soon as nobody uses it any more."""
        self._retired = True
        if not self._users:
            await self.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        limit_bytes: int,
        timeout_seconds: float,
        query: Query = (),
        accept: str = JSON,
        body: Any = None,
    ) -> Answer:
        """Ask once.

        Raises:
            ClusterUnavailable: no answer; the sentence says why and what to do.
        """
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self.stream(
                    method,
                    path,
                    query=query,
                    accept=accept,
                    body=body,
                    open_seconds=timeout_seconds,
                    silence_seconds=timeout_seconds,
                ) as stream,
            ):
                return await stream.answer(limit_bytes)
        except TimeoutError as error:
            raise self.why(error, timeout_seconds) from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        open_seconds: float,
        silence_seconds: float,
        query: Query = (),
        accept: str = JSON,
        body: Any = None,
    ) -> AsyncIterator[Stream]:
        """Ask, and read the answer as it comes: it begins within `open_seconds` and never pauses for `silence_seconds`.

        Raises:
            ClusterUnavailable: no answer; the sentence says why and what to do.
        """
        import aiohttp  # noqa: PLC0415 (9 MB; the vendor has loaded it by now)

        timeout = aiohttp.ClientTimeout(total=None, sock_read=silence_seconds)
        try:
            async with asyncio.timeout(open_seconds):
                response = await self._api.call_api(
                    path,
                    method,
                    query_params=list(query),
                    header_params={"Accept": accept, "Content-Type": JSON},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,  # it would take in an answer of any size
                    _request_timeout=timeout,
                )
        except Exception as error:  # aiohttp's, ssl's, the system's, and the vendor's own
            raise self.why(error, open_seconds) from error
        async with response:
            yield Stream(self, response, silence_seconds)

    def why(self, error: Exception, seconds: float) -> ClusterUnavailable:
        """Why there was no answer, and what to do."""
        import aiohttp  # noqa: PLC0415 (9 MB; the vendor has loaded it by now)

        kind: type[ClusterUnavailable] = ClusterUnavailable
        match error:
            case TimeoutError():
                said = f"did not answer within {seconds:g} s; check that no network policy or firewall drops it"
            case aiohttp.ClientConnectorCertificateError():
                why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
                trusted = self.login.configuration.ssl_ca_cert or "the system's authorities"
                said = f"shows a certificate that {trusted} does not vouch for ({excerpt(why)}); correct either"
                kind = Hopeless
            case aiohttp.ClientConnectorDNSError():
                said = "is not known by that name; check its spelling and the DNS"
            case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as cause):
                said = f"does not speak TLS as it should ({excerpt(str(cause))}); check its address"
                kind = Hopeless
            case aiohttp.ClientConnectorError(os_error=cause):
                why = os.strerror(cause.errno) if cause.errno else str(cause)
                said = f"cannot be reached ({excerpt(why)}); check its address and {self._words.network}"
            case _:
                said = f"could not be asked ({type(error).__name__}: {excerpt(public(str(error)))}); check its address"
                kind = Hopeless if isinstance(error, ssl.SSLError | ValueError) else kind
        return kind(f"{self.server} {said}")
