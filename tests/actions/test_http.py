"""httpGet and httpPost, one promise per rule of SEMANTICS, against real servers on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from aiohttp import web

from agent.actions.http import HttpOptions, run_http
from agent.actions.stop import Stop, StopReason
from agent.contract.actions import FormField, HttpGetAction, HttpHeader, HttpPostAction
from agent.contract.errors import ErrorCode
from agent.contract.redaction import Redactor
from agent.contract.states import Outcome

OPTIONS = HttpOptions(user_agent="podhook/1")


@pytest.fixture
def run(stop):
    """Run a GET, or a POST when `body` or `form` is given; headers are pairs."""

    async def run(port, *, headers=(), options=OPTIONS, pod_address="127.0.0.1", stop=stop, **fields):
        # model_construct for headers: what the contract refuses must not get out either.
        headers = [HttpHeader.model_construct(name=name, value=value) for name, value in headers]
        kind = HttpPostAction if fields.keys() & {"body", "form"} else HttpGetAction
        action = kind(port=port, **fields).model_copy(update={"http_headers": headers})
        return await run_http(action, pod_address=pod_address, port=port, options=options, stop=stop)

    return run


def answer(status=200, body=b"", **headers):
    async def handler(_):
        return web.Response(status=status, body=body, headers=headers)

    return handler


def to(status, location):
    """Redirects `/`; says done everywhere else."""

    async def handler(request):
        if request.path != "/":
            return web.Response(text="done")
        return web.Response(status=status, headers={"Location": location.format(port=request.url.port)})

    return handler


# --- what counts


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.SUCCEEDED),
        (204, Outcome.SUCCEEDED),
        (304, Outcome.SUCCEEDED),
        (399, Outcome.SUCCEEDED),
        (400, Outcome.FAILED),
        (404, Outcome.FAILED),
        (503, Outcome.FAILED),
        (999, Outcome.FAILED),
    ],
)
async def test_200_to_399_is_success(serve, run, status, outcome):
    server = await serve(answer(status))
    result = await run(server.port)
    assert (result.outcome, result.http_status) == (outcome, status)
    assert (result.error and result.error.code) == (None if outcome == "succeeded" else ErrorCode.HTTP_STATUS)


async def test_a_failure_says_the_status_the_place_and_the_start_of_the_body(serve, run):
    server = await serve(answer(503, b"draining\r\n\x1b[2J" + b"x" * 9000))
    result = await run(server.port, path="/x?token=hidden")
    start = rf"HTTP 503 from http://127.0.0.1:{server.port}/x: draining\r\n\x1b[2Jxxx"
    assert result.error.message.startswith(start)
    assert len(result.error.message) < 256 + 60


@pytest.mark.parametrize(("size", "truncated"), [(0, False), (100, False), (101, True), (100_000, True)])
async def test_the_start_of_the_body_is_kept_up_to_the_limit(serve, run, size, truncated):
    server = await serve(answer(200, b"x" * size))
    result = await run(server.port, options=HttpOptions("a", body_limit_bytes=100))
    assert result.stdout.text.count("x") == min(size, 100)
    assert (result.stdout.total_bytes, result.stdout.truncated) == (size, truncated)
    assert result.notes == (["only the first 100 bytes of the body were read"] if truncated else [])


async def test_a_compressed_body_is_kept_as_it_came(serve, run):
    server = await serve(answer(200, b"\x1f\x8b\xff", **{"Content-Encoding": "gzip"}))
    result = await run(server.port)
    assert (result.outcome, result.stdout.encoding, result.stdout.text) == ("succeeded", "base64", "H4v/")


@pytest.mark.parametrize(
    ("head", "forever"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
    ],
)
async def test_a_body_without_end_is_left_at_the_limit(serve_raw, run, head, forever):
    server = await serve_raw(head, forever=forever)
    result = await run(server.port)
    assert (result.outcome, result.stdout.truncated) == (Outcome.SUCCEEDED, True)
    assert len(result.stdout.text) < 33 * 1024


# --- what is sent


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/"),
        ("?x=1", "/?x=1"),
        ("health", "/health"),
        ("/a%20b%2Fc?x=%26&y=1+2&z[]=3", "/a%20b%2Fc?x=%26&y=1+2&z[]=3"),
        ("/a b?c d", "/a%20b?c%20d"),
        ("/50%?é", "/50%25?%C3%A9"),
        ("/a#b?c", "/a"),
        ("/a?b#c", "/a?b"),
        ("/a/../b//c", "/a/../b//c"),
        ("@169.254.169.254/latest", "/@169.254.169.254/latest"),
        (":80@127.0.0.2/", "/:80@127.0.0.2/"),
        ("//127.0.0.2/x", "//127.0.0.2/x"),
        ("http://127.0.0.2/", "/http://127.0.0.2/"),
        ("\\\\evil", "/%5C%5Cevil"),
    ],
)
async def test_a_path_stays_a_path(serve, run, path, sent):
    server = await serve()
    assert (await run(server.port, path=path)).outcome == Outcome.SUCCEEDED
    assert server.requests[0].raw_path == sent
    assert server.requests[0].headers["Host"] == f"127.0.0.1:{server.port}"


async def test_headers_are_sent_as_given_and_nothing_is_invented(serve_raw, run):
    server = await serve_raw(b"HTTP/1.1 200 OK\r\n\r\n")
    await run(server.port, headers=[("X-A", "1"), ("hOsT", "db.example"), ("X-B", ""), ("x-a", "2")])
    assert server.heads[0].decode().split("\r\n") == [
        "GET / HTTP/1.1",
        "Host: db.example",
        "X-A: 1",
        "X-B: ",
        "X-A: 2",
        "User-Agent: podhook/1",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    ]


async def test_the_hooks_own_user_agent_wins(serve, run):
    server = await serve()
    await run(server.port, headers=[("user-agent", "mine"), ("ACCEPT", "text/plain"), ("accept-encoding", "br")])
    asked = server.requests[0].headers
    assert [asked.getall(name) for name in ("User-Agent", "Accept", "Accept-Encoding")] == [
        ["mine"],
        ["text/plain"],
        ["br"],
    ]


async def test_a_header_that_cannot_be_sent_is_said_without_its_value(serve, run):
    server = await serve()
    result = await run(server.port, headers=[("X-Key", "hunter2\x01")])
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.INVALID_ACTION)
    assert "hunter2" not in result.model_dump_json()
    assert server.requests == []


async def test_the_environments_proxy_is_never_used(serve, run, closed_port, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await run((await serve()).port)).outcome == Outcome.SUCCEEDED


async def test_no_cookie_is_kept(serve, run):
    server = await serve(answer(302, b"", **{"Location": "/b", "Set-Cookie": "a=b"}))
    await run(server.port)
    assert len(server.requests) > 1
    assert all("Cookie" not in request.headers for request in server.requests)


FORM = [
    FormField(key="b", values=["2", "1 &"]),
    FormField(key="a", values=["é"]),
    FormField(key="n", values=[]),
]


@pytest.mark.parametrize(
    ("fields", "headers", "content_type", "sent"),
    [
        ({"body": '{"a": 1}'}, [], "application/json", b'{"a": 1}'),
        ({"body": "9" * 5000}, [], "application/json", b"9" * 5000),
        ({"body": "a=1"}, [], "text/plain; charset=utf-8", b"a=1"),
        ({"body": "NaN"}, [], "text/plain; charset=utf-8", b"NaN"),
        ({"body": "[" * 100_000}, [], "text/plain; charset=utf-8", b"[" * 100_000),
        ({"body": "é" * 1_000_000}, [], "text/plain; charset=utf-8", "é".encode() * 1_000_000),
        ({"body": "{}"}, [("content-type", "text/x")], "text/x", b"{}"),
        ({"body": ""}, [], None, b""),
        ({"body": "", "form": FORM}, [], "application/x-www-form-urlencoded", b"b=2&b=1+%26&a=%C3%A9"),
        ({"body": "{}", "form": FORM[:1]}, [], "application/x-www-form-urlencoded", b"b=2&b=1+%26"),
        ({"form": FORM[:1]}, [("Content-Type", "x/y")], "x/y", b"b=2&b=1+%26"),
        ({"body": "{}", "form": FORM[2:]}, [], None, b""),
    ],
)
async def test_a_body_and_its_content_type(serve, run, fields, headers, content_type, sent):
    server = await serve()
    assert (await run(server.port, headers=headers, **fields)).outcome == Outcome.SUCCEEDED
    asked = server.requests[0]
    assert (asked.method, asked.headers.get("Content-Type"), server.bodies[0]) == ("POST", content_type, sent)


async def test_ipv6_addresses_work(serve, run):
    server = await serve(host="::1")
    assert (await run(server.port, pod_address="::1")).outcome == Outcome.SUCCEEDED
    assert server.requests[0].headers["Host"] == f"[::1]:{server.port}"


# --- redirects


@pytest.mark.parametrize(
    "location", ["/b", "b", "?c=1", "http://127.0.0.1:{port}/b", "http://u:p@127.0.0.1:{port}/b#x"]
)
async def test_a_redirect_to_the_same_host_is_followed(serve, run, location):
    async def once(request):
        return web.Response(text="done") if len(server.requests) > 1 else await to(302, location)(request)

    server = await serve(once)
    result = await run(server.port)
    assert (result.http_status, result.stdout.text, result.notes) == (200, "done", [])
    assert "Authorization" not in server.requests[1].headers


async def test_the_same_host_on_another_port_is_the_same_host(serve, run):
    other = await serve()
    server = await serve(to(302, f"http://LOCALHOST:{other.port}/b"))
    assert (await run(server.port, host="localhost", headers=[("Host", "kept.example")])).http_status == 200
    # An absolute location has its own Host; the hook's stays only with a relative one (Go).
    assert other.requests[0].headers["Host"] == f"localhost:{other.port}"


async def test_the_hooks_host_header_stays_with_a_relative_redirect(serve, run):
    server = await serve(to(302, "/b"))
    await run(server.port, headers=[("Host", "kept.example")])
    assert [request.headers["Host"] for request in server.requests] == ["kept.example"] * 2


async def test_another_host_is_not_asked_and_counts_as_success(serve, run):
    other = await serve(host="127.0.0.2")
    server = await serve(to(302, f"//127.0.0.2:{other.port}/?token=hidden"))
    result = await run(server.port)
    assert (result.outcome, result.http_status, other.requests) == (Outcome.SUCCEEDED, 302, [])
    assert len(result.notes) == 1
    assert "127.0.0.2" in result.notes[0]
    assert "hidden" not in result.notes[0]


@pytest.mark.parametrize(("redirects", "outcome"), [(10, Outcome.SUCCEEDED), (11, Outcome.FAILED)])
async def test_ten_redirects_are_followed_and_no_more(serve, run, redirects, outcome):
    async def count(request):
        done = len(server.requests) > redirects
        return web.Response() if done else web.Response(status=307, headers={"Location": "/"})

    server = await serve(count)
    result = await run(server.port)
    assert (result.outcome, len(server.requests)) == (outcome, 11)
    assert (result.error and result.error.code) == (ErrorCode.TOO_MANY_REDIRECTS if redirects == 11 else None)


@pytest.mark.parametrize(
    ("status", "method", "body", "content_type"),
    [
        (301, "GET", b"", None),
        (302, "GET", b"", None),
        (303, "GET", b"", None),
        (307, "POST", b"{}", "application/json"),
        (308, "POST", b"{}", "application/json"),
    ],
)
async def test_a_redirected_post_follows_gos_rules(serve, run, status, method, body, content_type):
    server = await serve(to(status, "/b"))
    assert (await run(server.port, body="{}")).http_status == 200
    asked = server.requests[1]
    assert (asked.method, server.bodies[1], asked.headers.get("Content-Type")) == (method, body, content_type)


@pytest.mark.parametrize("status", [300, 304, 305])
async def test_other_statuses_of_the_family_lead_nowhere(serve, run, status):
    server = await serve(answer(status, b"", Location="/b"))
    assert (await run(server.port)).http_status == status


@pytest.mark.parametrize("location", ["http://[::1", "http://127.0.0.1:99999/", "ftp://127.0.0.1/"])
async def test_a_redirect_to_nowhere_fails(serve, run, location):
    result = await run((await serve(answer(302, b"", Location=location))).port)
    assert (result.outcome, result.http_status) == (Outcome.FAILED, 302)
    assert result.error.code == ErrorCode.HTTP_PROTOCOL


async def test_a_redirect_to_a_closed_port_names_that_address_alone(serve, run, closed_port):
    result = await run((await serve(answer(302, b"", Location=f"http://127.0.0.1:{closed_port}/"))).port)
    assert (result.http_status, result.error.code) == (302, ErrorCode.CONNECTION_REFUSED)
    assert result.error.message.startswith(f"cannot connect to 127.0.0.1:{closed_port}: ")


async def test_a_redirect_without_a_location_is_an_answer(serve, run):
    assert (await run((await serve(answer(302))).port)).outcome == Outcome.SUCCEEDED


# --- TLS


@pytest.mark.parametrize(
    ("host", "options", "outcome"),
    [
        ("", {}, Outcome.SUCCEEDED),
        ("", {"verify_pod": True}, Outcome.FAILED),
        ("127.0.0.1", {}, Outcome.FAILED),
        ("127.0.0.1", {"verify_host": False}, Outcome.SUCCEEDED),
    ],
)
async def test_tls_is_verified_for_a_given_host_and_not_for_the_pod(serve, run, certificates, host, options, outcome):
    server = await serve(tls=certificates.server)
    result = await run(server.port, scheme="https", host=host, options=HttpOptions("a", **options))
    assert (result.outcome, len(server.requests)) == (outcome, outcome == Outcome.SUCCEEDED)
    if outcome == Outcome.FAILED:
        assert result.error.code == ErrorCode.TLS
        assert "the issuer check failed" in result.error.message
        assert (
            f"set {'PODHOOK_HTTP_VERIFY_HOST' if host else 'PODHOOK_HTTP_VERIFY_POD'} to false" in result.error.message
        )


@pytest.mark.parametrize(
    ("host", "says"), [("127.0.0.1", None), ("localhost", None), ("127.0.0.2", "the name check failed")]
)
async def test_a_private_authority_is_trusted_for_the_names_it_signed(serve, run, certificates, host, says):
    server = await serve(tls=certificates.server, host="0.0.0.0")
    options = HttpOptions("a", verify_pod=True, ca_file=certificates.authority)
    result = await run(server.port, scheme="HTTPS", host=host, options=options)
    assert (says is None) == (result.outcome == Outcome.SUCCEEDED)
    assert says is None or says in result.error.message


async def test_a_redirect_to_https_is_verified_too(serve, run, certificates):
    secure = await serve(tls=certificates.server)
    server = await serve(to(302, f"https://127.0.0.1:{secure.port}/"))
    result = await run(server.port, host="127.0.0.1")
    assert (result.http_status, result.error.code, secure.requests) == (302, ErrorCode.TLS, [])
    assert str(secure.port) in result.error.message


async def test_a_server_without_tls_is_called_one(serve, run):
    result = await run((await serve()).port, scheme="https")
    assert result.error.code == ErrorCode.TLS
    assert "does not speak TLS" in result.error.message
    assert "set scheme to HTTP" in result.error.message


async def test_a_server_that_wants_a_clients_certificate_is_told_apart(run, insisting_port):
    result = await run(insisting_port, scheme="https")
    assert result.error.code == ErrorCode.TLS
    assert "podhook sends none" in result.error.message


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_an_unusable_ca_file_is_named(serve, run, certificates, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    server = await serve(tls=certificates.server)
    result = await run(server.port, scheme="https", host="127.0.0.1", options=HttpOptions("a", ca_file=path))
    assert (result.error.code, server.requests) == (ErrorCode.TLS, [])
    assert f"PODHOOK_HTTP_CA_FILE {path}" in result.error.message


# --- servers that misbehave

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x0a",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK + b"X y: hidden\r\n\r\n",
        OK + b"X: " + b"hidden" * 2000 + b"\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        OK + b"Content-Length: 20\r\n\r\nhi",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhi",
    ],
)
async def test_malformed_http_is_a_failure_and_never_an_exception(serve_raw, run, sent):
    result = await run((await serve_raw(sent)).port)
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.HTTP_PROTOCOL)
    assert "hidden" not in result.model_dump_json()


async def test_a_request_is_never_sent_twice(serve_raw, run):
    server = await serve_raw(b"")
    assert (await run(server.port)).error.code == ErrorCode.HTTP_PROTOCOL
    assert len(server.heads) == 1


async def test_a_head_without_end_is_given_up(serve_raw, run):
    result = await run((await serve_raw(OK, forever=b"X-A: b\r\n" * 1000)).port)
    assert result.error.code == ErrorCode.HTTP_PROTOCOL


async def test_a_body_that_breaks_off_keeps_what_came(serve_raw, run):
    result = await run((await serve_raw(OK + b"Content-Length: 20\r\n\r\nhi")).port)
    assert (result.http_status, result.stdout.text) == (200, "hi")


async def test_a_failed_status_stays_the_reason_when_its_body_breaks_off(serve_raw, run):
    result = await run((await serve_raw(b"HTTP/1.1 503 X\r\nContent-Length: 20\r\n\r\nfull")).port)
    assert (result.error.code, result.notes) == (ErrorCode.HTTP_STATUS, ["the body broke off after 4 bytes"])


async def test_a_refused_connection_is_told_as_for_tcp(run, closed_port):
    result = await run(closed_port, host="localhost")
    assert result.error.code == ErrorCode.CONNECTION_REFUSED
    assert f"localhost:{closed_port} (tried " in result.error.message
    assert f"127.0.0.1:{closed_port}" in result.error.message


@pytest.mark.parametrize("host", ["db.invalid", "2130706433", "a..b", "a" * 64, "\u00fc" * 64])
async def test_an_impossible_host_is_a_failure_and_never_an_exception(run, host):
    result = await run(80, host=host)
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.NAME_NOT_FOUND)


# --- a stop

STOPS = [
    (StopReason.TIMED_OUT, Outcome.TIMED_OUT),
    (StopReason.CANCELLED, Outcome.CANCELLED),
    (StopReason.AGENT_STOPPING, Outcome.INTERRUPTED),
]


@pytest.mark.parametrize(("reason", "outcome"), STOPS)
async def test_a_stop_ends_a_request_without_an_answer(serve_raw, run, stop, reason, outcome):
    server = await serve_raw(close=False)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(run(server.port, path="/slow"))
        await server.asked.wait()
        stop.set(reason)
    assert (running.result().outcome, running.result().http_status) == (outcome, None)
    assert f"GET http://127.0.0.1:{server.port}/slow" in running.result().error.message
    async with asyncio.timeout(10):
        await server.ended  # the connection is gone, not just forgotten


async def test_a_timeout_in_a_body_keeps_status_and_what_came(serve_raw, run):
    server = await serve_raw(OK + b"\r\nhalf", close=False)
    stop = Stop(timeout_seconds=0.3)
    stop.start_clock()
    result = await run(server.port, stop=stop)
    assert (result.outcome, result.http_status, result.stdout.text) == (Outcome.TIMED_OUT, 200, "half")


async def test_a_stop_ends_a_connection_that_does_not_open(silent_port, run, stop):
    asyncio.get_running_loop().call_soon(stop.set, StopReason.CANCELLED)
    async with asyncio.timeout(10):
        assert (await run(silent_port)).outcome == Outcome.CANCELLED


async def test_a_cancelled_caller_ends_the_request(serve_raw, run):
    server = await serve_raw(close=False)
    running = asyncio.create_task(run(server.port))
    async with asyncio.timeout(10):
        await server.asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await server.ended


# --- memory


def test_aiohttp_is_not_imported_before_a_request_is_made():
    code = "import sys, agent.actions.http, agent.actions.tcp; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "agent.actions.http" in loaded
    assert not {"aiohttp", "yarl", "multidict"} & set(loaded)


# --- secrets


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("before", [0, 230, 245, 250, 1000])
async def test_no_part_of_a_secret_is_shown_wherever_the_body_is_cut(serve, run, status, before):
    secret = b"correct-horse-battery-staple"
    server = await serve(answer(status, b"." * before + secret))
    options = replace(OPTIONS, redactor=Redactor([secret]), body_limit_bytes=before + 12)
    result = await run(server.port, options=options)
    assert result.stdout.text.startswith("." * before + "[redacted]")
    said = result.model_dump_json()
    assert not any(secret[at : at + 4].decode() in said for at in range(len(secret) - 3))
