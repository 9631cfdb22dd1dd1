"""httpGet and httpPost: one request, redirects within its host, and what came of it (SEMANTICS).

aiohttp costs 9 MB and is imported only when a request is made (FACTS: Memory of imports).
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from agent.actions import network
from agent.actions.addresses import AddressRefusedError, Reach, refused
from agent.actions.stop import Stop, unless_stopped
from agent.contract.actions import HttpGetAction, HttpPostAction
from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import Result
from agent.contract.outcomes import captured_stream, failure, redacted
from agent.contract.redaction import Redactor
from agent.contract.states import Outcome

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

#: At most this many redirects are followed (SEMANTICS).
MAX_REDIRECTS = 10
#: They name another place for the same thing; 300, 304, 305 and 306 do not (RFC 9110, section 15.4).
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: They describe a body and go with it when POST becomes GET (RFC 9110, section 15.4).
_BODY_HEADERS = frozenset({"content-encoding", "content-language", "content-location", "content-type", "digest"})
#: What stands in a path as it is (RFC 3986, section 3.3); a query may have "?" and, as forms do, brackets.
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = _PATH_SAFE + "?[]"
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: A declared length is believed up to here: what JSON carries everywhere (RFC 8259, section 6).
_LARGEST_LENGTH = 2**53


#: Asked for each redirect: (method, port, path as sent) -> where it may connect. Raises Refusal.
Follow = Callable[[str, int, str], Reach]


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """What the agent decides about requests, for all of them.

    `user_agent` is sent when the hook gives none. `verify_pod`: verify TLS when the hook gives no host
    (kubelet's probes do not); `verify_host`: verify it when it does. `ca_file`: PEM authorities to verify by
    instead of the system's. `body_limit_bytes`: how much of an answer's body is kept. `reach`: to which addresses
    connections may go; `follow` judges what a redirect asks for (None: `reach` holds for it, too). `redactor` knows
    the secrets that must not be seen in what is said of it.
    """

    user_agent: str
    verify_pod: bool = False
    verify_host: bool = True
    ca_file: Path | None = None
    body_limit_bytes: int = 32 * 1024
    reach: Reach = field(default_factory=Reach)
    follow: Follow | None = None
    redactor: Redactor = field(default_factory=Redactor)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: URL
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def target(self) -> str:
        """For messages: without the query, which may hold a token."""
        return network.printable(str(self.url.with_query(None)))


@dataclass(slots=True)
class _Seen:
    """What was asked and what came back so far. Outlives a stop and an error, so the outcome can tell."""

    request: _Request
    reach: Reach
    status: int | None = None
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    declared_bytes: int = 0
    tried: list[tuple[Any, ...]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_answered(self, following: _Request) -> None:
        """What is refused now follows a request that was sent: it may have taken effect."""
        if self.status is not None:
            led = f"the redirect to {following.target} was refused"
            self.notes.append(f"a request had been answered ({self.status}) before {led}")

    def added_to(self, result: Result, options: HttpOptions) -> Result:
        """`result` with the status, the kept start of the body, and the notes; without secrets."""
        limit_bytes = options.body_limit_bytes
        if self.status is None:
            return result
        cut_bytes, notes = 0, self.notes
        if len(self.body) > limit_bytes:
            cut_bytes = max(len(self.body), min(self.declared_bytes, _LARGEST_LENGTH)) - limit_bytes
            notes = [*notes, f"only the first {limit_bytes} bytes of the body were read"]
        body = options.redactor.data(bytes(self.body[:limit_bytes]), cut=not self.whole)
        stdout = captured_stream(body, cut_bytes=cut_bytes)
        update = {"http_status": self.status, "stdout": stdout, "notes": notes}
        return result.model_copy(update=update)


async def run_http(
    action: HttpGetAction | HttpPostAction, *, pod_address: str, port: int, options: HttpOptions, stop: Stop
) -> Result:
    """Send the request, follow redirects within its host, and read the start of the last answer's body.

    `pod_address` is used when the action has no host; `port` is the action's, names already resolved.
    Succeeded for 200 <= status < 400, a redirect to another host included; timed_out, cancelled or
    interrupted when `stop` asks first; rejected when it may connect to none of the host's addresses, or a redirect asks
    for what is not allowed (then a note, and `http_status`, say that a request was answered before); failed otherwise.
    `http_status` and `stdout` are set whenever there was an answer. Raises nothing for what a server or the network
    does.
    """
    host = action.host or pod_address
    if problem := network.host_problem(host):
        return network.bad_host(host, problem)
    try:
        request = _first_request(action, host, port, options.user_agent)
    except ValueError:
        return network.bad_host(host, "it has a character that no host name has; correct host")
    seen = _Seen(request, options.reach)
    work = _attempt(seen, options, given_host=bool(action.host))
    result = await unless_stopped(work, stop, f"{request.method} {request.target}")
    return redacted(seen.added_to(result, options), options.redactor)


def _first_request(action: HttpGetAction, host: str, port: int, user_agent: str) -> _Request:
    """The request as the hook describes it. Raises ValueError for a host that cannot stand in a URL."""
    from yarl import URL  # noqa: PLC0415 - comes with aiohttp

    path, _, query = action.path.partition("#")[0].partition("?")
    # From parts: no path, however it looks ("@evil/", "//evil/"), ever becomes a host.
    origin = URL.build(scheme="https" if action.tls else "http", host=host, port=port)
    url = URL.build(
        scheme=origin.scheme,
        authority=origin.raw_authority,
        path=_quoted(path if path.startswith("/") else f"/{path}", _PATH_SAFE),
        query_string=_quoted(query, _QUERY_SAFE),
        encoded=True,
    )
    # identity: the body is shown to people and bounded as sent; nothing to unpack, no decompression bomb.
    defaults = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
    method, body = "GET", b""
    if isinstance(action, HttpPostAction):
        method, (body, content_type) = "POST", _body(action)
        defaults |= {"Content-Type": content_type} if body else {}
    headers = [(each.name, each.value) for each in action.http_headers]
    given = {name.lower() for name, _ in headers}
    headers += [(name, value) for name, value in defaults.items() if name.lower() not in given]
    return _Request(method, url, tuple(headers), body)


def _quoted(text: str, safe: str) -> str:
    """`text` with everything escaped that must be, and valid percent-escapes left alone."""
    return quote(_STRAY_PERCENT.sub("%25", text), safe=safe, errors="replace")


def _body(action: HttpPostAction) -> tuple[bytes, str]:
    """The bytes to send, and the Content-Type they have unless the hook says otherwise."""
    if action.form:
        pairs = [(each.key, value) for each in action.form for value in each.values]
        return urlencode(pairs, errors="replace").encode(), "application/x-www-form-urlencoded"
    content_type = "application/json" if _is_json(action.body) else "text/plain; charset=utf-8"
    return action.body.encode(errors="replace"), content_type


def _is_json(text: str) -> bool:
    def not_json(name: str) -> None:
        raise ValueError(f"{name} is Python's, not JSON's")

    try:
        json.loads(text, parse_constant=not_json, parse_int=str)  # int() refuses more than 4,300 digits
    except (ValueError, RecursionError):
        return False
    return True


def _following(request: _Request, status: int, location: str) -> _Request | str | None:
    """What a response asks for next: a request, a note on why it is not sent, or nothing.

    The rules of Go's http client, for which existing hooks were written: 301, 302 and 303 turn POST into GET,
    307 and 308 repeat it; the hook's Host header stays only while the location is relative; the host is
    compared without its port (kubelet's prober). Raises ValueError for a location that is no URL.
    """
    from yarl import URL  # noqa: PLC0415 - comes with aiohttp

    if status not in _REDIRECTS or not location:
        return None
    place = URL(location)
    url = request.url.join(place).with_fragment(None)
    if (url.host or "").lower() != (request.url.host or "").lower():
        other = network.printable(url.host or f"{url.scheme}:")
        return f"the redirect ({status}) to another host, {other!r}, was not followed; it counts as success"
    if url.scheme not in {"http", "https"}:
        raise ValueError("neither http nor https")
    dropped = {"host"} if place.scheme else set()
    following = replace(request, url=url.with_user(None))  # credentials are the hook's to give
    if status not in {307, 308} and request.method != "GET":
        dropped |= _BODY_HEADERS
        following = replace(following, method="GET", body=b"")
    return replace(following, headers=tuple(each for each in request.headers if each[0].lower() not in dropped))


async def _attempt(seen: _Seen, options: HttpOptions, *, given_host: bool) -> Result:
    """Open a session for this one attempt; whatever goes wrong in it becomes a result."""
    import aiohttp  # noqa: PLC0415 - see the module's docstring

    def new_socket(info: tuple[Any, ...]) -> socket.socket:
        """Sees every connection: redirects and literal addresses too (FACTS: HTTP actions and addresses)."""
        if (why := seen.reach.refusal(str(info[4][0]))) is not None:
            seen.refused.append(why)
            raise AddressRefusedError(why, seen.reach.named)
        seen.tried.append(info[4])
        return socket.socket(*info[:3])

    async def once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """aiohttp repeats a GET whose connection broke (its issue 10790); a hook is sent once."""
        try:
            return await send(request)
        except aiohttp.ClientConnectionError as error:
            raise network.BrokenError from error

    verify = options.verify_host if given_host else options.verify_pod
    try:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=aiohttp.ThreadedResolver(),  # the system's, whether or not aiodns is installed
                use_dns_cache=False,
                force_close=True,
                socket_factory=new_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # time is the stop's to bound
            trust_env=False,
            auto_decompress=False,
            middlewares=[once],
        ) as session:
            return await _exchange(session, seen, options, verify=verify)
    except network.UnusableCaFileError as error:
        return failure(Outcome.FAILED, ErrorCode.TLS, str(error))
    except Exception as error:  # noqa: BLE001 - a server decides what aiohttp meets; it must not end the agent
        if seen.refused and not seen.tried:
            return _address_refused(seen)
        url, setting = seen.request.url, "PODHOOK_HTTP_VERIFY_HOST" if given_host else "PODHOOK_HTTP_VERIFY_POD"
        return network.http_failure(url.host or "", url.port or 0, seen.tried, error, setting=setting)


def _address_refused(seen: _Seen) -> Result:
    """Rejected: no socket was made. After a redirect a note says that a request was answered before."""
    message = refused(network.address_text(seen.request.url.host or "", seen.request.url.port or 0), seen.refused)
    seen.note_answered(seen.request)
    return failure(Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED, message, seen.reach.named)


async def _exchange(session: aiohttp.ClientSession, seen: _Seen, options: HttpOptions, *, verify: bool) -> Result:
    for _ in range(MAX_REDIRECTS + 1):
        request = seen.request
        context: Any = False  # aiohttp's word for "do not verify"
        if verify and request.url.scheme == "https":
            context = await asyncio.to_thread(network.verifying_context, options.ca_file)
        async with session.request(
            request.method,
            request.url,
            headers=_for_aiohttp(request.headers),
            data=io.BytesIO(request.body) if request.body else None,  # bytes above 1 MiB make aiohttp warn
            skip_auto_headers=("Content-Type",),  # an empty body has none
            allow_redirects=False,
            ssl=context,
        ) as response:
            seen.status, seen.declared_bytes = response.status, response.content_length or 0
            try:
                following = _following(request, response.status, response.headers.get("Location", ""))
            except ValueError:
                message = f"the redirect ({response.status}) from {request.target} leads to no http or https URL"
                return failure(Outcome.FAILED, ErrorCode.HTTP_PROTOCOL, f"{message}; correct the server")
            if isinstance(following, _Request):
                response.close()
                if options.follow is not None:
                    try:
                        seen.reach = options.follow(following.method, following.url.port or 0, following.url.raw_path)
                    except Refusal as no:
                        seen.note_answered(following)
                        message = f"the redirect ({response.status}) was not followed: {no.message}"
                        return failure(Outcome.REJECTED, no.code, message, no.rule)
                seen.request, seen.tried, seen.refused = following, [], []
                continue
            seen.notes += [following] if following else []
            return await _judged(response, seen, options)
    message = f"{request.target} redirects again after {MAX_REDIRECTS} redirects; give the final address"
    return failure(Outcome.FAILED, ErrorCode.TOO_MANY_REDIRECTS, message)


def _for_aiohttp(headers: tuple[tuple[str, str], ...]) -> Any:
    """A multidict in the hook's order, with one Host at most: the first that is not empty, as Go takes it."""
    from multidict import CIMultiDict  # noqa: PLC0415 - comes with aiohttp

    hosts = [("Host", value) for name, value in headers if name.lower() == "host" and value][:1]
    # aiohttp takes the second of "X-A" and "x-a" for another value of a header that it then overwrites.
    spelling: dict[str, str] = {}
    others = [(spelling.setdefault(name.lower(), name), value) for name, value in headers]
    return CIMultiDict([*hosts, *(each for each in others if each[0].lower() != "host")])


async def _judged(response: aiohttp.ClientResponse, seen: _Seen, options: HttpOptions) -> Result:
    """Read the start of the body - one byte more than is kept, to know whether there is more - and judge."""
    limit_bytes = options.body_limit_bytes
    good = 200 <= response.status < 400  # kubelet's prober, and so KubeStash's
    try:
        while len(seen.body) <= limit_bytes:
            chunk = await response.content.read(limit_bytes + 1 - len(seen.body))
            if not chunk:
                seen.whole = True
                break
            seen.body += chunk
    except Exception:
        if good:
            raise
        seen.notes.append(f"the body broke off after {len(seen.body)} bytes")
    if good:
        return Result(outcome=Outcome.SUCCEEDED)
    body = options.redactor.data(bytes(seen.body), cut=not seen.whole)  # first: no cut may leave a part of a secret
    start = network.printable(body[: 4 * network.EXCERPT_CHARS].decode(errors="backslashreplace").strip())
    message = f"HTTP {response.status} from {seen.request.target}" + (f": {start}" if start else "")
    return failure(Outcome.FAILED, ErrorCode.HTTP_STATUS, message)
