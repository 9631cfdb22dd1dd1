"""From a host and a port to a connected socket, TLS included, without blocking the event loop.

The library below would do this in a thread that cannot be cancelled: an agent told to stop while its broker
does not answer would hang until that thread is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading

from agent.contract.errors import BrokerRefused, BusError, LinkDown


async def dial(host: str, port: int, tls: ssl.SSLContext | None, within_seconds: float) -> socket.socket:
    """Connect to the first address that answers, with TCP_NODELAY; the socket is non-blocking.

    Raises:
        LinkDown: nobody answered, or not in time.
        BrokerRefused: the certificate cannot be trusted, or ours was refused.
    """
    try:
        async with asyncio.timeout(within_seconds):
            sock = await _connect(host, port)
            if tls is None:
                return sock
            return await _handshake(sock, host, tls)
    except TimeoutError as error:
        raise LinkDown(f"{host}:{port} did not answer within {within_seconds:g} s") from error
    except ssl.SSLError as error:
        raise tls_error(error) from error
    except OSError as error:
        code = error.errno or 0  # below 0 for the resolver, whose own words are fine
        said = os.strerror(code) if code > 0 else error.strerror
        raise LinkDown(f"{host}:{port}: {said or error}") from error


def tls_error(error: ssl.SSLError) -> BusError:
    """What a TLS error means: whether somebody said no, and to what."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerRefused(
            f"the broker's certificate is not trusted: {error.verify_message}; "
            "check the CA file, and that the URL has the name that the certificate is for"
        )
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "alert" in reason:  # the other side said so, RFC 8446 section 6
        return BrokerRefused(f"the broker refused TLS: {reason}; check the client certificate and its key")
    return LinkDown(f"TLS with the broker failed: {reason}; check that this port speaks TLS")


_Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


async def _resolve(host: str, port: int) -> list[_Address]:
    """getaddrinfo in a thread that nobody waits for: the loop's own would be joined at the end of the process."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[_Address]] = loop.create_future()

    def settle(result: list[_Address] | OSError) -> None:
        if answer.done():
            return
        if isinstance(result, OSError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def ask() -> None:
        result: list[_Address] | OSError
        try:
            result = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            result = error
        except UnicodeError as error:  # a label that is too long, or empty
            result = OSError(f"{host!r} is not a host name: {error}")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(f"no address for {host}")
    for family, kind, protocol, _, address in await _resolve(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)  # noqa: FBT003 (the standard library's signature)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _handshake(sock: socket.socket, host: str, tls: ssl.SSLContext) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    try:
        secured = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                loop.add_reader(secured, _wake, ready)
            except ssl.SSLWantWriteError:
                loop.add_writer(secured, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(secured)
                loop.remove_writer(secured)
    except BaseException:
        secured.close()
        raise


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
