"""tcpSocket: does a connection open? (SEMANTICS: tcpSocket)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.actions.addresses import AddressRefusedError, Reach
from agent.actions.network import address_text, bad_host, connection_failure, host_problem
from agent.actions.stop import Stop, unless_stopped
from agent.contract.messages import Result
from agent.contract.states import Outcome

if TYPE_CHECKING:
    from agent.contract.actions import TcpSocketAction

#: How long an address may be silent before the next one is tried beside it (RFC 8305, section 5).
_NEXT_ADDRESS_SECONDS = 0.25
#: How long the server has to close its side; longer and it gets a reset if it has sent something meanwhile.
_GOODBYE_SECONDS = 0.1

Address = tuple[Any, ...]


@dataclass(slots=True)
class _Connecting:
    """What was tried, in order, and the one socket that opened. Outlives a stop, so the outcome can tell."""

    reach: Reach = field(default_factory=Reach)
    tried: list[Address] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    opened: socket.socket | None = None


async def run_tcp(
    action: TcpSocketAction, *, pod_address: str, port: int, stop: Stop, reach: Reach | None = None
) -> Result:
    """Open a connection and close it again; nothing is sent.

    `pod_address` is used when the action has no host; `port` is the action's, names already resolved; `reach` says
    to which addresses it may go (None: to all but the special ones).
    Succeeded when it opens. Rejected when it may go to none of its addresses. Failed with a code of
    `agent.actions.network` otherwise; timed_out, cancelled or interrupted when `stop` asks first. Raises nothing for
    what a server or the network does.
    """
    host = action.host or pod_address
    if problem := host_problem(host):
        return bad_host(host, problem)
    state = _Connecting(reach or Reach())
    what = f"the connection to {address_text(host, port)}"
    try:
        result = await unless_stopped(_connect(host, port, state), stop, what)
        if state.opened is not None and result.outcome is Outcome.SUCCEEDED:
            await _say_goodbye(state.opened)
    finally:
        if state.opened is not None:
            state.opened.close()
    if stop.reason is not None and result.outcome not in {Outcome.SUCCEEDED, Outcome.FAILED} and state.tried:
        tried = ", ".join(dict.fromkeys(address_text(*address[:2]) for address in state.tried[:8]))
        return stop.ended(f"{what} (tried {tried})")
    return result


async def _connect(host: str, port: int, state: _Connecting) -> Result:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return connection_failure(host, port, state.tried, [error])
    except UnicodeError:
        return bad_host(host, "the resolver cannot take it for a name; correct host")
    await _race(deque(dict.fromkeys((info[0], info[4]) for info in found)), state)
    if state.opened is not None:
        return Result(outcome=Outcome.SUCCEEDED)
    return connection_failure(host, port, state.tried, state.errors)


async def _race(waiting: deque[tuple[int, Address]], state: _Connecting) -> None:
    """Try one address after the other, the next also when the last is silent, until one opens or all failed.

    Without that a single address that drops packets would take the kernel's two minutes; all at once would
    knock on every pod of a Service.
    """
    running: set[asyncio.Task[None]] = set()
    try:
        while state.opened is None and (waiting or running):
            if waiting:
                family, address = waiting.popleft()
                running.add(asyncio.create_task(_try(family, address, state), name="action tcp address"))
            silence = _NEXT_ADDRESS_SECONDS if waiting else None
            done, running = await asyncio.wait(running, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # never an OSError; a mistake of ours must not pass for a silent network
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _try(family: int, address: Address, state: _Connecting) -> None:
    """Connect to one address: the first that opens stays in `state.opened`, any other is closed."""
    if (why := state.reach.refusal(address[0])) is not None:
        state.errors.append(AddressRefusedError(why, state.reach.named))
        return
    state.tried.append(address)
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # no IPv6 here, or no descriptor left
        state.errors.append(error)
        return
    try:
        connection.settimeout(0)
        await asyncio.get_running_loop().sock_connect(connection, address)
        if is_connected_to_itself(connection):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if state.opened is None:
            state.opened = connection
    except OSError as error:
        state.errors.append(error)
    finally:
        if state.opened is not connection:
            connection.close()


def is_connected_to_itself(connection: socket.socket) -> bool:
    """Whether both ends are the same socket.

    On loopback the kernel may give a connection the very port it goes to; TCP's simultaneous open then
    succeeds though nobody listens (Go's net package guards against the same).
    """
    return bool(connection.getsockname() == connection.getpeername())


async def _say_goodbye(connection: socket.socket) -> None:
    """End the connection so that the server reads an end and not a reset.

    A database that speaks first (MySQL's greeting) has sent bytes by now; closing over unread bytes is a
    reset, which servers log and count as an error.
    """
    with suppress(OSError, TimeoutError):
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_GOODBYE_SECONDS):
            while await asyncio.get_running_loop().sock_recv(connection, 4096):
                pass
