"""tcpSocket: succeeds when the connection opens; else the address tried and the system's reason."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque

import pytest

from agent.actions import network
from agent.actions.stop import Stop, StopReason
from agent.actions.tcp import _Connecting, _race, is_connected_to_itself, run_tcp
from agent.contract.actions import TcpSocketAction
from agent.contract.errors import ErrorCode
from agent.contract.states import Outcome


async def connect(port, stop, *, host="", pod_address="127.0.0.1"):
    action = TcpSocketAction(host=host, port=port)
    return await run_tcp(action, pod_address=pod_address, port=port, stop=stop)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "localhost"])
async def test_an_open_port_is_success(serve_raw, stop, host):
    server = await serve_raw(close=False)
    result = await connect(server.port, stop, host=host)
    assert (result.outcome, result.error) == (Outcome.SUCCEEDED, None)


async def test_the_pods_address_is_only_used_without_a_host(serve_raw, stop):
    server = await serve_raw(close=False)
    result = await connect(server.port, stop, host="127.0.0.1", pod_address="192.0.2.1")
    assert result.outcome == Outcome.SUCCEEDED


async def test_ipv6_addresses_work(stop):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert (await connect(port, stop, pod_address="::1")).outcome == Outcome.SUCCEEDED


async def test_a_server_that_speaks_first_reads_an_end_and_no_reset(serve_raw, stop):
    server = await serve_raw(b"5.7.44 a greeting", speaks_first=True, close=False)
    assert (await connect(server.port, stop)).outcome == Outcome.SUCCEEDED
    assert await server.ended == "end"


async def test_a_server_that_never_stops_speaking_does_not_hold_the_action(serve_raw, stop):
    server = await serve_raw(forever=b"x" * 4096, speaks_first=True)
    async with asyncio.timeout(5):
        assert (await connect(server.port, stop)).outcome == Outcome.SUCCEEDED


async def test_refused_names_the_address_and_the_reason(closed_port, stop):
    result = await connect(closed_port, stop)
    assert result.outcome == Outcome.FAILED
    assert result.error.code == ErrorCode.CONNECTION_REFUSED
    assert f"127.0.0.1:{closed_port}: Connection refused (ECONNREFUSED)" in result.error.message


async def test_a_name_is_told_with_the_addresses_it_had(closed_port, stop):
    result = await connect(closed_port, stop, host="localhost")
    assert f"localhost:{closed_port} (tried " in result.error.message
    assert f"127.0.0.1:{closed_port}" in result.error.message


async def test_an_unknown_name_says_so(stop):
    result = await connect(5432, stop, host="db.invalid")
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.NAME_NOT_FOUND)
    assert "db.invalid:5432" in result.error.message


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("2130706433", "write 127.0.0.1"),
        ("0x7f000001", "write 127.0.0.1"),
        ("127.1", "write 127.0.0.1"),
        ("0251.254.169.254", "write 169.254.169.254"),
        ("a..b", "empty or longer than 63"),
        ("a" * 64, "empty or longer than 63"),
        ("", "the pod's own address is not known"),
    ],
)
async def test_a_host_in_disguise_or_impossible_is_never_tried(stop, host, says):
    result = await connect(5432, stop, host=host, pod_address="")
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.NAME_NOT_FOUND)
    assert says in result.error.message


async def test_a_timeout_ends_it_and_names_the_address_tried(silent_port):
    stop = Stop(timeout_seconds=0.05)
    stop.start_clock()
    result = await connect(silent_port, stop, host="127.0.0.1")
    assert result.outcome == Outcome.TIMED_OUT
    assert f"(tried 127.0.0.1:{silent_port})" in result.error.message


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [(StopReason.CANCELLED, Outcome.CANCELLED), (StopReason.AGENT_STOPPING, Outcome.INTERRUPTED)],
)
async def test_a_stop_ends_it_at_once(silent_port, stop, reason, outcome):
    asyncio.get_running_loop().call_soon(stop.set, reason)
    async with asyncio.timeout(5):
        assert (await connect(silent_port, stop)).outcome == outcome


async def test_a_silent_address_does_not_hold_up_the_next(silent_port, serve_raw):
    server = await serve_raw(close=False)
    state = _Connecting()
    addresses = [("127.0.0.1", silent_port), ("127.0.0.1", server.port)]
    async with asyncio.timeout(10):
        await _race(deque((socket.AF_INET, address) for address in addresses), state)
    assert state.tried == addresses
    assert state.opened.getpeername() == addresses[1]
    state.opened.close()


async def test_all_addresses_that_failed_are_told(closed_port):
    state = _Connecting()
    addresses = [(socket.AF_INET, ("127.0.0.1", closed_port)), (socket.AF_INET, ("127.0.0.2", closed_port))]
    await _race(deque(addresses), state)
    result = network.connection_failure("db.shop", closed_port, state.tried, state.errors)
    assert f"(tried 127.0.0.1:{closed_port}, 127.0.0.2:{closed_port})" in result.error.message


def test_a_connection_to_itself_is_no_server():
    with socket.socket() as alone:
        alone.bind(("127.0.0.1", 0))
        alone.connect(alone.getsockname())
        assert is_connected_to_itself(alone)


def of_errno(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("errors", "code", "says"),
    [
        ([of_errno(errno.ETIMEDOUT)], ErrorCode.CONNECTION_TIMED_OUT, "(ETIMEDOUT)"),
        ([TimeoutError()], ErrorCode.CONNECTION_TIMED_OUT, "TimeoutError"),
        ([of_errno(errno.EHOSTUNREACH)], ErrorCode.NO_ROUTE, "(EHOSTUNREACH)"),
        ([of_errno(errno.ENETUNREACH)], ErrorCode.NO_ROUTE, "(ENETUNREACH)"),
        ([of_errno(errno.EADDRNOTAVAIL)], ErrorCode.NO_ROUTE, "(EADDRNOTAVAIL)"),
        ([of_errno(errno.EPERM)], ErrorCode.CONNECTION_FAILED, "Operation not permitted (EPERM)"),
        ([of_errno(errno.ECONNRESET)], ErrorCode.CONNECTION_FAILED, "(ECONNRESET)"),
        ([socket.gaierror(socket.EAI_AGAIN, "Try again")], ErrorCode.NAME_NOT_FOUND, "Try again"),
        (
            [of_errno(errno.ENETUNREACH), of_errno(errno.ECONNREFUSED)],
            ErrorCode.CONNECTION_REFUSED,
            "Network is unreachable (ENETUNREACH), Connection refused (ECONNREFUSED)",
        ),
        (
            [OSError("Multiple exceptions: [Errno 101] Connect call failed, [Errno 111] Connect call failed")],
            ErrorCode.CONNECTION_REFUSED,
            "Network is unreachable (ENETUNREACH), Connection refused (ECONNREFUSED)",
        ),
    ],
)
def test_each_reason_has_its_code_and_the_systems_words(errors, code, says):
    result = network.connection_failure("10.0.0.1", 80, [("10.0.0.1", 80)], errors)
    assert result.error.code == code
    assert result.error.message.startswith("cannot connect to 10.0.0.1:80: ")
    assert says in result.error.message


def test_a_name_with_very_many_addresses_stays_readable():
    tried = [(f"10.0.0.{n}", 80) for n in range(200)]
    message = network.connection_failure("db", 80, tried, [of_errno(errno.ECONNREFUSED)]).error.message
    assert "and 192 more" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("number", "text", "says"),
    [
        (10, "certificate has expired", "the date check failed"),
        (9, "certificate is not yet valid", "the date check failed"),
        (62, "Hostname mismatch", "the name check failed"),
        (18, "self-signed certificate", "set PODHOOK_HTTP_CA_FILE to its authority"),
        (66, "EE certificate key too weak", "the certificate check failed"),
    ],
)
def test_a_certificate_error_says_which_check_and_what_to_set(number, text, says):
    error = ssl.SSLCertVerificationError(1, "verify failed")
    error.verify_code, error.verify_message = number, text
    result = network.http_failure("db", 443, [], error, setting="PODHOOK_HTTP_VERIFY_HOST")
    assert result.error.code == ErrorCode.TLS
    assert all(part in result.error.message for part in (says, text, "db:443", "set PODHOOK_HTTP_VERIFY_HOST to false"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\r\n\x1b[31m\0", r"a\r\n\x1b[31m\x00"),
        ("\u202e\ud800", r"\u202e\ud800"),
        ("x" * 300, "x" * 253 + "..."),
        ("\0" * 300, "\\x00" * 63 + "\\..."),
    ],
)
def test_a_servers_text_is_shown_on_one_line_and_bounded(text, shown):
    assert network.printable(text) == shown
