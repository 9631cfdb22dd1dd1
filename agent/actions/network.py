"""Why a connection failed: a code, and a sentence with the address, the system's reason and the next step."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.actions.addresses import AddressRefusedError, refused
from agent.contract.errors import ErrorCode
from agent.contract.outcomes import failure
from agent.contract.states import Outcome

if TYPE_CHECKING:
    from agent.contract.messages import Result

#: A text from a server stands in a message with at most this many characters.
EXCERPT_CHARS = 256
#: A name may have hundreds of addresses (a headless Service); a message lists this many.
_LISTED_ADDRESSES = 8

#: Most telling first: when several addresses failed in several ways, the first kind found is the outcome's.
_ERRNOS = {
    ErrorCode.CONNECTION_REFUSED: {errno.ECONNREFUSED},
    ErrorCode.CONNECTION_TIMED_OUT: {errno.ETIMEDOUT},
    ErrorCode.NO_ROUTE: {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,  # an IPv6 address where this pod has none
        errno.EAFNOSUPPORT,
    },
}
_ADVICE = {
    ErrorCode.CONNECTION_REFUSED: "check the port, and that the server runs and listens on this address",
    ErrorCode.CONNECTION_TIMED_OUT: "check that no network policy or firewall drops it",
    ErrorCode.NO_ROUTE: "check the address and this pod's network",
    ErrorCode.NAME_NOT_FOUND: "check the host's spelling and the cluster's DNS",
    ErrorCode.CONNECTION_FAILED: "check the server's log",
}

# OpenSSL's X509_V_ERR_* numbers (x509_vfy.h): their texts differ between versions, the numbers do not.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_WRONG_NAME = {62, 64}
#: How OpenSSL names an answer that is no TLS record.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}

_E = TypeVar("_E", bound=BaseException)


class UnusableCaFileError(Exception):
    """`ca_file` cannot be read or has no certificate; the message says why and what to do."""


class BrokenError(Exception):
    """A connection could not be opened or broke; its cause is aiohttp's error."""


def printable(text: str, limit_chars: int = EXCERPT_CHARS) -> str:
    """`text` on one line, control and other invisible characters escaped, at most `limit_chars` long."""
    # An escape is up to ten characters, never none: no more than the limit has to be looked at.
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit_chars + 1]
    )
    return shown if len(shown) <= limit_chars else shown[: limit_chars - 3] + "..."


def bracketed(host: str) -> str:
    """`host` as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def address_text(host: str, port: int) -> str:
    """`10.0.0.1:80`, `db.shop:80` or `[fd00::1]:80`."""
    return f"{bracketed(host)}:{port}"


def host_problem(host: str) -> str | None:
    """Why no connection to `host` is tried at all, or None.

    Resolvers take `2852039166` and `0xa9fea9fe` for 169.254.169.254, past any rule about addresses written as
    addresses are (FACTS: HTTP actions and addresses); so an address has to be written in full.
    """
    if not host:
        return "the action names no host and the pod's own address is not known; set host"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return None
    try:
        host.encode("idna")  # what the resolver does first; `a..b` and labels above 63 characters fail in it
    except UnicodeError:
        return "it is no host name: a part of it is empty or longer than 63 characters; correct host"
    try:
        meant = socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None
    return f"it is an IP address in a short or numeric form; write {meant} if that is meant"


def bad_host(host: str, problem: str) -> Result:
    """The failed result for a host that cannot be one."""
    message = f"cannot connect to {printable(host)!r}: {problem}"
    return failure(Outcome.FAILED, ErrorCode.NAME_NOT_FOUND, message)


def connection_failure(host: str, port: int, tried: Iterable[tuple[Any, ...]], errors: Sequence[OSError]) -> Result:
    """The failed result of a connection that did not open.

    `tried` are socket addresses (`(ip, port, ...)`), `errors` what became of them (at least one). Rejected when
    all were refused by the agent itself: then nothing left it.
    """
    target = address_text(host, port)
    no = [error for error in errors if isinstance(error, AddressRefusedError)]
    not_allowed = [str(error) for error in no]
    errors = [error for error in errors if not isinstance(error, AddressRefusedError)]
    if not errors:
        return failure(Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED, refused(target, not_allowed), no[0].rule)
    addresses = [text for text in dict.fromkeys(address_text(*pair[:2]) for pair in tried) if text != target]
    listed = ", ".join(addresses[:_LISTED_ADDRESSES])
    if len(addresses) > _LISTED_ADDRESSES:
        listed += f" and {len(addresses) - _LISTED_ADDRESSES} more"
    code = _code(errors)
    reasons = ", ".join(dict.fromkeys(reason for error in errors for reason in _reasons(error)))
    where = f"{target} (tried {listed})" if listed else target
    message = f"cannot connect to {where}: {printable(reasons, 1000)}; {_ADVICE[code]}"
    if not_allowed:
        message += f". Not tried: {not_allowed[0]}"
    return failure(Outcome.FAILED, code, message)


def _code(errors: Sequence[OSError]) -> ErrorCode:
    if any(isinstance(error, socket.gaierror) for error in errors):
        return ErrorCode.NAME_NOT_FOUND
    numbers = {number for error in errors for number in _errnos(error)}
    if not numbers and any(isinstance(error, TimeoutError) for error in errors):
        return ErrorCode.CONNECTION_TIMED_OUT
    return next((code for code, known in _ERRNOS.items() if known & numbers), ErrorCode.CONNECTION_FAILED)


def _errnos(error: OSError) -> list[int]:
    if error.errno is not None:
        return [error.errno]
    # aiohttp races a name's addresses and joins their errors in a text, "Multiple exceptions: [Errno 101]
    # ..., [Errno 111] ...". There is no other way to them.
    return [int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))]


def _reasons(error: OSError) -> list[str]:
    if isinstance(error, socket.gaierror):
        return [error.strerror or str(error)]
    # asyncio puts "Connect call failed" where the system's reason was; strerror has it back.
    known = [f"{os.strerror(number)} ({errno.errorcode.get(number, number)})" for number in _errnos(error)]
    return known or [str(error) or type(error).__name__]


def verifying_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context that verifies the server: by `ca_file` (PEM) if given, else by the system's authorities.

    Reads files: call it in a thread.

    Raises:
        UnusableCaFileError: `ca_file` cannot be read, or has no certificate in PEM form.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if error.errno else str(error)
        raise UnusableCaFileError(
            f"PODHOOK_HTTP_CA_FILE {ca_file} cannot be used: {reason}; give a readable file with PEM certificates"
        ) from error
    # Python 3.13 began to refuse authorities without a key identifier, as private ones often are; Go, for
    # which existing hooks were written, takes them. One behaviour on every Python.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def http_failure(host: str, port: int, tried: Iterable[tuple[Any, ...]], error: Exception, *, setting: str) -> Result:
    """The failed result of a request that got no whole answer.

    `error` is aiohttp's, or whatever came out of it; `setting` is the option that switches verification off.
    Texts of aiohttp's are not passed on: they quote the headers that they complain about.
    """
    import aiohttp  # noqa: PLC0415 - 9 MB that only an HTTP action needs (FACTS: Memory of imports)
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415

    target = address_text(host, port)
    if isinstance(error, BrokenError) and isinstance(error.__cause__, aiohttp.ClientConnectionError):
        error = error.__cause__
    if tls := _cause(error, ssl.SSLError):
        return _tls_failure(target, tls, setting)
    if isinstance(error, aiohttp.ClientConnectorError):
        return connection_failure(host, port, tried, [error.os_error])
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        message = "the request cannot be sent: a header has a control character; correct httpHeaders"
        return failure(Outcome.FAILED, ErrorCode.INVALID_ACTION, message)
    code, message = ErrorCode.HTTP_PROTOCOL, f"what {target} answers is not well-formed HTTP"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        message = f"{target} closed the connection without an answer"
    elif isinstance(error, aiohttp.ClientPayloadError):
        message = f"the body of the answer from {target} broke off or is malformed"
    elif isinstance(error, OSError):
        code = ErrorCode.CONNECTION_FAILED
        message = f"the connection to {target} broke before the answer was whole: {', '.join(_reasons(error))}"
    elif not isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        code, message = ErrorCode.INTERNAL, f"the request to {target} failed: {type(error).__name__}"
    return failure(Outcome.FAILED, code, f"{message}; check the server's log, the port and the scheme")


def _cause(error: BaseException | None, kind: type[_E]) -> _E | None:
    """The innermost error of a kind in a chain of causes; aiohttp's are ssl.SSLErrors too, but empty ones."""
    found = None
    while error is not None:
        found = error if isinstance(error, kind) else found
        error = error.__cause__
    return found


def _tls_failure(target: str, error: ssl.SSLError, setting: str) -> Result:
    if isinstance(error, ssl.SSLCertVerificationError):
        sentence = _certificate_sentence(target, error, setting)
    elif error.reason in _NOT_TLS:
        sentence = f"{target} does not speak TLS ({error.reason}); set scheme to HTTP, or the port that does"
    else:
        reason = error.reason or str(error)
        sentence = f"the TLS handshake with {target} failed: {printable(reason)}"
        if "CERTIFICATE" in reason and "ALERT" in reason:
            sentence += "; the server wants a client's certificate, and podhook sends none: use another port"
    return failure(Outcome.FAILED, ErrorCode.TLS, sentence)


def _certificate_sentence(target: str, error: ssl.SSLCertVerificationError, setting: str) -> str:
    reason = f"certificate of {target} was not accepted: {printable(error.verify_message)}"
    off = f"set {setting} to false to accept it unverified"
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"the issuer check failed: the {reason}; set PODHOOK_HTTP_CA_FILE to its authority, or {off}"
    if error.verify_code in _WRONG_NAME:
        return f"the name check failed: the {reason}; set host to a name that the certificate has, or {off}"
    if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
        return f"the date check failed: the {reason}; renew it, look at this node's clock, or {off}"
    return f"the certificate check failed: the {reason}; correct the certificate, or {off}"
