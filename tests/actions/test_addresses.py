"""Special addresses are not connected to: in no spelling, by no name, by no redirect. Real sockets on loopback."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agent.actions.addresses import SPECIAL, AddressRefusedError, Reach, canonical, forms, meant
from agent.actions.http import HttpOptions, run_http
from agent.actions.network import connection_failure
from agent.actions.tcp import run_tcp
from agent.contract.actions import HttpGetAction, HttpPostAction, TcpSocketAction
from agent.contract.errors import ErrorCode, Refusal
from agent.contract.states import Outcome

METADATA = ipaddress.IPv4Address("169.254.169.254")
#: For tests with real servers: all of this is special, so that a connection there would be seen.
OURS = ((ipaddress.ip_network("127.0.0.0/8"), "special here"), (ipaddress.ip_network("::1/128"), "special here"))
SECOND = ((ipaddress.ip_network("127.0.0.2/32"), "special here"),)


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


# -- what is refused


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "169.254.0.23",
        "fe80::1",
        "fe80::1%eth0",
        "febf:ffff::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",  # RFC 6052 with 96 bits
        "64:ff9b:1:a9fe:a9:fe00::",  # ... with 48
        "64:ff9b:1:a9:fe:a9fe::",  # ... with 56
        "64:ff9b:1:0:a9:fea9:fe00::",  # ... with 64
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::",  # Teredo's server
        "2001:0:1:2:3:4:5601:5601",  # Teredo's client, inverted
        "2001:db8::5efe:169.254.169.254",
        "2001:db8::200:5efe:169.254.169.254",
        "64:ff9b::100.100.100.200",
        "2002:a83f:8110::1",
    ],
)
def test_special_addresses_are_refused_in_every_form(text):
    assert Reach().refusal(text) is not None
    everything = Reach(networks("0.0.0.0/0", "::/0"), rule="http[0]")
    assert "http[0] does not" in everything.refusal(text), "everything names nothing"


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "127.0.0.1", "::1", "::", "0.0.0.0", "8.8.8.8", "2001:db8::1", "64:ff9b::8.8.8.8", "fd00::1"]
)
def test_others_are_not(text):
    assert Reach().refusal(text) is None


@pytest.mark.parametrize("text", ["", "db.shop", "169.254.169.254/32", "1", "\0", "a" * 500])
def test_what_is_no_address_is_refused(text):
    assert "is no IP address" in Reach().refusal(text)


@pytest.mark.parametrize(
    ("rule", "address", "allowed"),
    [
        ("169.254.169.254/32", "169.254.169.254", True),
        ("169.254.169.254/32", "::ffff:169.254.169.254", True),
        ("169.254.169.254/32", "169.254.169.253", False),
        ("169.254.0.0/16", "169.254.169.254", True),
        ("168.0.0.0/7", "169.254.169.254", False),  # wider than the block: nobody meant that
        ("169.254.169.254/32", "64:ff9b::a9fe:a9fe", False),  # the gateway's form was not named, others are not allowed
        ("fd00:ec2::254/128", "fd00:ec2::254", True),
        ("fc00::/7", "fd00:ec2::254", False),
    ],
)
def test_a_rule_opens_a_special_address_only_by_naming_it(rule, address, allowed):
    assert (Reach(networks(rule), others=False, rule="tcp[0]").refusal(address) is None) == allowed


def test_a_name_may_not_lead_back_to_this_very_host():
    elsewhere = Reach(loopback=False, rule="http[0]")
    for text in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"):
        assert "is this pod itself" in elsewhere.refusal(text)
    assert elsewhere.refusal("10.0.0.1") is None


@given(st.one_of(st.ip_addresses(), st.text(max_size=60)))
def test_any_address_is_judged_without_a_crash(text):
    Reach(networks("10.0.0.0/8")).refusal(str(text))
    meant(str(text))


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "::ffff:0:{}", "2001:db8::5efe:{}"]))
def test_what_an_address_carries_is_found(inner, form):
    assert inner in forms(ipaddress.ip_address(form.format(inner)))


@given(st.ip_addresses(v=4))
def test_6to4_carries_its_address(inner):
    assert inner in forms(ipaddress.IPv6Address((0x2002 << 112) | int(inner) << 80 | 1))


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_the_address(inner):
    assert canonical(ipaddress.IPv6Address((0xFFFF << 32) | int(inner))) == inner


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.16689662", "169.254.169.254"]
)
def test_a_number_is_taken_for_the_address_that_resolvers_take_it_for(host):
    assert meant(host) == METADATA


def test_the_list_is_what_it_says():
    for block, what in SPECIAL:
        assert Reach().refusal(str(block.network_address)) is not None
        assert what


# -- at the socket


class Door:
    """A listening socket; whoever comes is seen, if only in the backlog."""

    def __init__(self, address="127.0.0.1", port=0):
        self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.socket.bind((address, port))
        self.socket.listen()
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    def came(self):
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def door():
    made = Door()
    yield made
    made.socket.close()


#: Spellings of 127.0.0.1 that the contract lets through; the kernel connects to it for each that a socket is made for.
SPELLINGS = ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "::ffff:7f00:1"]
NUMERIC = ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"]


def get(port, stop, host="", special=OURS, *, path="", body=None, pod_address="127.0.0.1", **options):
    fields = {"host": host, "port": port, "path": path}
    action = HttpGetAction(**fields) if body is None else HttpPostAction(**fields, body=body)
    options = HttpOptions("podhook/1", **{"reach": Reach(special=special), **options})
    return run_http(action, pod_address=pod_address, port=port, options=options, stop=stop)


def connect(port, stop, host="", special=OURS, reach=None):
    action = TcpSocketAction(host=host, port=port)
    return run_tcp(action, pod_address="127.0.0.1", port=port, stop=stop, reach=reach or Reach(special=special))


@pytest.mark.parametrize("host", ["", *SPELLINGS])
@pytest.mark.parametrize("act", [get, connect])
async def test_no_connection_is_made_to_a_special_address(door, stop, act, host):
    result = await act(door.port, stop, host)
    assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
    assert "special here; it is refused unless a rule" in result.error.message
    assert not door.came()


@pytest.mark.parametrize("host", ["", *SPELLINGS])
async def test_where_they_are_not_special_each_spelling_leads_there(door, stop, host):
    assert (await connect(door.port, stop, host, ())).outcome is Outcome.SUCCEEDED
    assert door.came(), "the tests above would prove nothing"


@pytest.mark.parametrize("host", NUMERIC)
@pytest.mark.parametrize("act", [get, connect])
async def test_nor_by_a_number(door, stop, act, host):
    result = await act(door.port, stop, host, ())
    assert result.error.code == ErrorCode.NAME_NOT_FOUND
    assert "127.0.0.1" in result.error.message
    assert not door.came()


async def test_nor_to_ipv6s_loopback(stop):
    door = Door("::1")
    try:
        for act in (get, connect):
            result = await act(door.port, stop, "::1")
            assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
        assert not door.came()
    finally:
        door.socket.close()


@pytest.mark.parametrize(
    "host",
    ["64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::1", "2001:0:7f00:1::", "::7f00:1", "2001:db8::5efe:7f00:1"],
)
@pytest.mark.parametrize("act", [get, connect])
async def test_nor_by_what_a_gateway_would_unwrap(stop, act, host):
    result = await act(9, stop, host)
    assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
    assert "127.0.0.1, carried by" in result.error.message


@pytest.mark.parametrize(
    "path", ["@127.0.0.1/latest", "@127.0.0.1:{port}/", "//127.0.0.1/x", "http://127.0.0.1/", ".@"]
)
async def test_a_path_never_becomes_a_host(door, stop, path):
    """The host is 127.0.0.2, where nobody listens; 127.0.0.1 has a door that must stay shut."""
    result = await get(door.port, stop, "127.0.0.2", (), path=path.format(port=door.port))
    assert f"127.0.0.2:{door.port}" in result.error.message
    assert not door.came()


def resolver(monkeypatch, *answers):
    """`db.example` resolves to each answer in turn, to the last for ever; other names as before."""
    real, left = socket.getaddrinfo, list(answers)

    def getaddrinfo(host, port, *args, **more):
        if host not in ("db.example", b"db.example"):
            return real(host, port, *args, **more)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("act", [get, connect])
async def test_a_name_that_leads_there_is_not_followed(monkeypatch, door, stop, act):
    resolver(monkeypatch, ["127.0.0.1"])
    result = await act(door.port, stop, "db.example")
    assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
    assert f"db.example:{door.port}" in result.error.message
    assert not door.came()


@pytest.mark.parametrize("act", [get, connect])
async def test_of_several_addresses_only_those_are_tried_that_may_be(monkeypatch, door, stop, act):
    """127.0.0.2 is special; 127.0.0.3 has nobody, and its refusal is what the outcome tells."""
    shut = Door("127.0.0.2", door.port)
    try:
        resolver(monkeypatch, ["127.0.0.2", "127.0.0.3"])
        result = await act(door.port, stop, "db.example", SECOND)
        assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.CONNECTION_REFUSED)
        assert f"tried 127.0.0.3:{door.port}" in result.error.message
        assert not shut.came()
    finally:
        shut.socket.close()


async def test_tcp_says_what_it_did_not_try(monkeypatch, door, stop):
    resolver(monkeypatch, ["127.0.0.2", "127.0.0.3"])
    result = await connect(door.port, stop, "db.example", SECOND)
    assert "Not tried: 127.0.0.2 is special here" in result.error.message


async def test_rebinding_does_not_help(monkeypatch, serve, stop):
    """The first request goes to 127.0.0.1; it redirects to the same name, which then leads to 127.0.0.2."""
    asked = []

    async def redirect(request):
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/again"})

    server = (await serve(redirect)).port
    shut = Door("127.0.0.2", server)
    try:
        resolver(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        result = await get(server, stop, "db.example", SECOND, path="/first")
        assert asked == ["/first"]
        assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
        assert result.error.rule == "no policy"
        assert result.http_status == 307
        note = f"a request had been answered (307) before the redirect to http://db.example:{server}/again was refused"
        assert result.notes == [note]
        assert not shut.came()
    finally:
        shut.socket.close()


async def test_a_redirect_to_a_special_address_is_to_another_host_and_not_followed(serve, stop):
    shut = Door("127.0.0.2")

    async def redirect(_):
        return web.Response(status=302, headers={"Location": f"http://127.0.0.2:{shut.port}/latest"})

    try:
        result = await get((await serve(redirect)).port, stop, special=SECOND)
        assert result.outcome is Outcome.SUCCEEDED
        assert "was not followed" in result.notes[0]
        assert not shut.came()
    finally:
        shut.socket.close()


async def test_a_redirect_is_judged_anew_with_its_method_port_and_path(serve, stop):
    heard = []

    async def redirect(request):
        heard.append(request.path)
        return web.Response(status=303, headers={"Location": "/admin/x?y=1"})

    judged = []

    def no(method, port, path):
        judged.append((method, port, path))
        raise Refusal(ErrorCode.POLICY_DENIED, "policy: http: no", "http")

    port = (await serve(redirect)).port
    result = await get(port, stop, special=(), body="{}", path="/backup/", follow=no)
    assert judged == [("GET", port, "/admin/x")]
    assert heard == ["/backup/"]
    assert (result.outcome, result.error.code, result.error.rule) == (
        Outcome.REJECTED,
        ErrorCode.POLICY_DENIED,
        "http",
    )
    assert result.error.message == "the redirect (303) was not followed: policy: http: no"
    led = f"the redirect to http://127.0.0.1:{port}/admin/x was refused"
    assert (result.http_status, result.notes) == (303, [f"a request had been answered (303) before {led}"])


async def test_no_cookie_is_kept_between_redirects(serve, stop):
    cookies = []

    async def redirect(request):
        cookies.append(request.headers.get("Cookie"))
        if request.path == "/":
            return web.Response(status=302, headers={"Location": "/again", "Set-Cookie": "session=1"})
        return web.Response()

    assert (await get((await serve(redirect)).port, stop, special=())).outcome is Outcome.SUCCEEDED
    assert cookies == [None, None]


def test_a_refused_address_is_no_reason_among_others():
    errors = [AddressRefusedError("x is special"), ConnectionRefusedError(111, "no")]
    result = connection_failure("db", 1, [], errors)
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.CONNECTION_REFUSED)
    refused = connection_failure("db", 1, [], [AddressRefusedError("x is special", "tcp[2]")])
    assert refused.outcome is Outcome.REJECTED
    assert refused.error is not None
    assert (refused.error.code, refused.error.rule) == (ErrorCode.ADDRESS_REFUSED, "tcp[2]")
